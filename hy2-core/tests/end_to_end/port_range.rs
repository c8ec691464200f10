//! What a firewall's redirect does: several ports lead to one server.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use tokio::{net::UdpSocket, task::JoinSet};

pub(crate) struct PortRange {
    pub(crate) ports: Vec<u16>,
    seen: Arc<Mutex<Seen>>,
    _tasks: JoinSet<()>,
}

#[derive(Default)]
struct Seen {
    ports: HashSet<u16>,
    clients: HashSet<SocketAddr>,
}

impl PortRange {
    pub(crate) async fn towards(server: SocketAddr, count: usize) -> Self {
        let seen = Arc::<Mutex<Seen>>::default();
        let mut tasks = JoinSet::new();
        let mut ports = Vec::new();
        for _ in 0..count {
            let front = Arc::new(UdpSocket::bind((server.ip(), 0)).await.expect("bind"));
            ports.push(front.local_addr().expect("address").port());
            tasks.spawn(forward(front, server, Arc::clone(&seen)));
        }
        Self {
            ports,
            seen,
            _tasks: tasks,
        }
    }

    /// Sockets that clients used; each hop opens another.
    pub(crate) fn clients_seen(&self) -> usize {
        self.seen.lock().expect("lock").clients.len()
    }

    pub(crate) fn ports_seen(&self) -> usize {
        self.seen.lock().expect("lock").ports.len()
    }
}

async fn forward(front: Arc<UdpSocket>, server: SocketAddr, seen: Arc<Mutex<Seen>>) {
    let port = front.local_addr().expect("address").port();
    let mut ways: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
    let mut backs = JoinSet::new();
    let mut buffer = vec![0; 65_536];
    while let Ok((len, client)) = front.recv_from(&mut buffer).await {
        let known = ways.get(&client).map(Arc::clone);
        let way = if let Some(way) = known {
            way
        } else {
            let way = Arc::new(UdpSocket::bind((server.ip(), 0)).await.expect("bind"));
            way.connect(server).await.expect("connect");
            backs.spawn(back(Arc::clone(&way), Arc::clone(&front), client));
            ways.insert(client, Arc::clone(&way));
            let mut seen = seen.lock().expect("lock");
            seen.ports.insert(port);
            seen.clients.insert(client);
            way
        };
        let _ = way.send(&buffer[..len]).await;
    }
}

async fn back(way: Arc<UdpSocket>, front: Arc<UdpSocket>, client: SocketAddr) {
    let mut buffer = vec![0; 65_536];
    while let Ok(len) = way.recv(&mut buffer).await {
        let _ = front.send_to(&buffer[..len], client).await;
    }
}
