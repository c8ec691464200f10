//! Steers users while they are connected: slows one down, lets go again, throws out, keeps out.
#![allow(clippy::print_stdout)]

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use hy2_core::{
    Bandwidth, BoxFuture, Client, Server,
    authenticator::{AuthContext, AuthDecision, Authenticator, Grant, UserLimits},
    outbound::{AddressPolicy, Direct},
    relay::TcpStream,
};

/// Everybody is alice, until the door is closed.
#[derive(Clone, Default)]
struct Door {
    closed: Arc<AtomicBool>,
}

impl Authenticator for Door {
    fn authenticate<'a>(&'a self, _request: AuthContext<'a>) -> BoxFuture<'a, AuthDecision> {
        let decision = match self.closed.load(Relaxed) {
            false => AuthDecision::Accept(Grant::new("alice")),
            true => AuthDecision::Deny,
        };
        Box::pin(std::future::ready(decision))
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let (tls, roots) = hy2_examples::certificate()?;
    let door = Door::default();
    let server = Server::builder(tls)
        .listen(([127, 0, 0, 1], 0).into())
        .authenticator(door.clone())
        .outbound(Direct::new(AddressPolicy::allow_all()))
        .bind()?;
    let handle = server.handle();
    let alice = "alice".into();
    let config = hy2_examples::client_config(server.local_addrs()[0], "", roots);
    let client = Client::connect(config).await?;
    let target = hy2_examples::tcp_zeros().await?.to_string();

    // Limits hold over all of a user's connections and change under open streams.
    let down = Some("8 mbps".parse()?);
    handle.set_limits(
        &alice,
        UserLimits {
            down,
            ..UserLimits::default()
        },
    );
    let mut stream = client.tcp(&target).await?;
    println!("limited:   {}", rate_of(&mut stream).await?);
    handle.set_limits(&alice, UserLimits::default());
    println!("unlimited: {}", rate_of(&mut stream).await?);

    // A kick closes what is open; the authenticator keeps the user out.
    door.closed.store(true, Relaxed);
    println!("closed {} connection(s) of {alice}", handle.kick(&alice));
    client.disconnected().await;
    let returning = client.tcp(&target).await.map(drop);
    println!("coming back: {returning:?}");
    assert!(returning.is_err());
    println!("{:?}", handle.traffic(&alice));
    Ok(())
}

async fn rate_of(stream: &mut TcpStream) -> anyhow::Result<Bandwidth> {
    let (start, mut bytes) = (Instant::now(), 0);
    while start.elapsed() < Duration::from_millis(1500) {
        bytes += stream.read_chunk().await?.map_or(0, |chunk| chunk.len());
    }
    let per_second = bytes as f64 / start.elapsed().as_secs_f64();
    Ok(Bandwidth::from_bytes_per_sec(per_second as u64))
}
