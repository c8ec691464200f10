//! Several ports in front of the server's one, as a redirect rule of a firewall makes them: what
//! clients hop between.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Result;
use tokio::{net::UdpSocket, time::timeout};

/// A flow without datagrams towards its client ends after this time.
const IDLE: Duration = Duration::from_secs(6);

type Flows = Arc<Mutex<HashMap<SocketAddr, Arc<UdpSocket>>>>;

/// Opens `count` ports that lead to `target` as long as the process lives; each (port, client) is
/// a socket of its own towards the target, so a hop is a changed address there.
pub(crate) async fn open(count: usize, target: SocketAddr) -> Result<Vec<SocketAddr>> {
    let mut ports = Vec::new();
    for _ in 0..count {
        let socket = UdpSocket::bind("127.0.0.1:0").await?;
        ports.push(socket.local_addr()?);
        // Owned by the process: there is no end to wait for.
        tokio::spawn(serve(Arc::new(socket), target));
    }
    Ok(ports)
}

async fn serve(port: Arc<UdpSocket>, target: SocketAddr) {
    let flows = Flows::default();
    let mut buffer = vec![0; 65_536];
    loop {
        // Errors are answers from ports that closed.
        let Ok((len, client)) = port.recv_from(&mut buffer).await else {
            continue;
        };
        let known = lock(&flows).get(&client).cloned();
        let flow = match known {
            Some(flow) => flow,
            None => {
                let Ok(flow) = connect(target).await else {
                    continue;
                };
                let flow = Arc::new(flow);
                lock(&flows).insert(client, Arc::clone(&flow));
                // Ends by itself when nothing comes back any more.
                let (port, flows) = (Arc::clone(&port), Arc::clone(&flows));
                tokio::spawn(back(port, client, Arc::clone(&flow), flows));
                flow
            }
        };
        let _ = flow.send(&buffer[..len]).await;
    }
}

async fn connect(target: SocketAddr) -> std::io::Result<UdpSocket> {
    let socket = UdpSocket::bind("127.0.0.1:0").await?;
    socket.connect(target).await?;
    Ok(socket)
}

async fn back(port: Arc<UdpSocket>, client: SocketAddr, flow: Arc<UdpSocket>, flows: Flows) {
    let mut buffer = vec![0; 65_536];
    while let Ok(received) = timeout(IDLE, flow.recv(&mut buffer)).await {
        if let Ok(len) = received {
            let _ = port.send_to(&buffer[..len], client).await;
        }
    }
    lock(&flows).remove(&client);
}

fn lock(flows: &Flows) -> std::sync::MutexGuard<'_, HashMap<SocketAddr, Arc<UdpSocket>>> {
    flows.lock().unwrap_or_else(PoisonError::into_inner)
}
