//! Lets users in by the program's own table, with limits, own counters, and a guard that tells
//! when a connection ends.
#![allow(clippy::print_stdout)]

use std::{collections::HashMap, sync::Arc};

use hy2_core::{
    BoxFuture, Client, Server,
    authenticator::{AuthContext, AuthDecision, Authenticator, Grant, UserLimits},
    meter::UserCounters,
    outbound::{AddressPolicy, Direct},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

struct Subscribers {
    /// Name and counters by token. Counters are read when the program likes.
    by_token: HashMap<&'static str, (&'static str, Arc<UserCounters>)>,
    ended: mpsc::UnboundedSender<&'static str>,
}

impl Authenticator for Subscribers {
    fn authenticate<'a>(&'a self, request: AuthContext<'a>) -> BoxFuture<'a, AuthDecision> {
        Box::pin(async move {
            // A data base or another service may be asked here. Denied peers see a web site.
            let Some((name, counters)) = self.by_token.get(request.auth) else {
                return AuthDecision::Deny;
            };
            let limits = UserLimits {
                down: Some(hy2_core::Bandwidth::from_bytes_per_sec(12_500_000)),
                max_connections: Some(2),
                ..UserLimits::default()
            };
            let grant = Grant::new(*name).limits(limits);
            let online = Online(name, self.ended.clone());
            AuthDecision::Accept(grant.counters(Arc::clone(counters)).guard(online))
        })
    }
}

/// Lives as long as the connection it was granted for.
struct Online(&'static str, mpsc::UnboundedSender<&'static str>);

impl Drop for Online {
    fn drop(&mut self) {
        let _ = self.1.send(self.0);
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let counters = Arc::new(UserCounters::new());
    let by_token = HashMap::from([("token-1", ("alice", Arc::clone(&counters)))]);
    let (ended, mut ends) = mpsc::unbounded_channel();
    let (tls, roots) = hy2_examples::certificate()?;
    let server = Server::builder(tls)
        .listen(([127, 0, 0, 1], 0).into())
        .authenticator(Subscribers { by_token, ended })
        .outbound(Direct::new(AddressPolicy::allow_all()))
        .bind()?;
    let config = |token| hy2_examples::client_config(server.local_addrs()[0], token, roots.clone());

    let denied = Client::connect(config("token-2")).await.map(drop);
    println!("another token: {denied:?}");
    assert!(denied.is_err());

    let client = Client::connect(config("token-1")).await?;
    let echo = hy2_examples::tcp_echo().await?.to_string();
    let mut stream = client.tcp(&echo).await?;
    stream.write_all(b"hello").await?;
    stream.read_exact(&mut [0; 5]).await?;
    client.close().await;

    let name = ends.recv().await;
    println!("{name:?} left, having moved {:?}", counters.snapshot());
    assert_eq!(
        (counters.snapshot().tx, counters.snapshot().connections),
        (5, 0)
    );
    Ok(())
}
