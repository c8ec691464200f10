//! Decides how targets are reached: one name is served by this program itself, one port is
//! forbidden, everything else is dialled as usual.
#![allow(clippy::print_stdout)]

use hy2_core::{
    Address, BoxFuture, Client, Server,
    authenticator::Password,
    outbound::{AddressPolicy, DialError, Direct, Outbound, TcpConnection, UdpAssociation},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const PASSWORD: &str = "a long random password";

struct Rules {
    direct: Direct,
}

impl Outbound for Rules {
    fn tcp<'a>(
        &'a self,
        target: &'a Address,
    ) -> BoxFuture<'a, Result<Box<dyn TcpConnection>, DialError>> {
        Box::pin(async move {
            let text = target.to_string();
            if text == "status.internal:80" {
                // A pipe in memory is a connection, too.
                let (ours, theirs) = tokio::io::duplex(4096);
                tokio::spawn(status(ours));
                return Ok(Box::new(theirs) as Box<dyn TcpConnection>);
            }
            if target.port == 25 {
                return Err(DialError::Denied);
            }
            println!("dialling {text}");
            self.direct.tcp(target).await
        })
    }

    fn udp<'a>(
        &'a self,
        first: &'a Address,
    ) -> BoxFuture<'a, Result<Box<dyn UdpAssociation>, DialError>> {
        self.direct.udp(first)
    }
}

async fn status(mut connection: tokio::io::DuplexStream) {
    let _ = connection.write_all(b"all is well").await;
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let (tls, roots) = hy2_examples::certificate()?;
    let direct = Direct::new(AddressPolicy::allow_all());
    let server = Server::builder(tls)
        .listen(([127, 0, 0, 1], 0).into())
        .authenticator(Password::new(PASSWORD))
        .outbound(Rules { direct })
        .bind()?;
    let address = server.local_addrs()[0];
    let client = Client::connect(hy2_examples::client_config(address, PASSWORD, roots)).await?;

    let mut answer = String::new();
    let mut stream = client.tcp("status.internal:80").await?;
    stream.read_to_string(&mut answer).await?;
    println!("status.internal says {answer:?}");
    assert_eq!(answer, "all is well");

    let denied = client.tcp("mail.example:25").await.map(drop);
    println!("port 25: {denied:?}");
    assert!(denied.is_err());

    let mut echo = client
        .tcp(&hy2_examples::tcp_echo().await?.to_string())
        .await?;
    echo.write_all(b"hello").await?;
    echo.read_exact(&mut [0; 5]).await?;
    client.close().await;
    Ok(())
}
