//! Port hopping during transfers, through a relay that stands for the server's port range.
#![allow(missing_docs)]

mod quic_pair;

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};

use hy2_core::socket::{
    DirectSocketFactory, HopConfig, HopInterval, Obfuscation, SocketOptions, bind, client_socket,
};
use quic_pair::{Side, client_on, server_on, transfer};
use tokio::{net::UdpSocket, task::JoinSet};

const HOP: Duration = Duration::from_millis(200);

/// What a firewall's redirect does: several ports lead to the server, and each client
/// address keeps its own way back.
struct PortRange {
    ports: Vec<u16>,
    seen: Arc<Mutex<Seen>>,
    _tasks: JoinSet<()>,
}

#[derive(Default)]
struct Seen {
    ports: HashSet<u16>,
    clients: HashSet<SocketAddr>,
}

impl PortRange {
    fn towards(server: SocketAddr, count: usize) -> Self {
        let seen = Arc::<Mutex<Seen>>::default();
        let mut tasks = JoinSet::new();
        let mut ports = Vec::new();
        for _ in 0..count {
            let front = bind((server.ip(), 0).into(), &SocketOptions::default()).unwrap();
            let front = Arc::new(UdpSocket::from_std(front).unwrap());
            ports.push(front.local_addr().unwrap().port());
            tasks.spawn(forward(front, server, seen.clone()));
        }
        Self {
            ports,
            seen,
            _tasks: tasks,
        }
    }
}

async fn forward(front: Arc<UdpSocket>, server: SocketAddr, seen: Arc<Mutex<Seen>>) {
    let mut ways: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
    // Ends with the task that owns it.
    let mut backs = JoinSet::new();
    let mut buf = [0; 2048];
    loop {
        let Ok((len, client)) = front.recv_from(&mut buf).await else {
            continue;
        };
        let way = ways.entry(client).or_insert_with(|| {
            let mut seen = seen.lock().unwrap();
            seen.ports.insert(front.local_addr().unwrap().port());
            seen.clients.insert(client);
            let way = bind((server.ip(), 0).into(), &SocketOptions::default()).unwrap();
            let way = Arc::new(UdpSocket::from_std(way).unwrap());
            backs.spawn(back(way.clone(), front.clone(), client));
            way
        });
        let _ = way.send_to(&buf[..len], server).await;
    }
}

async fn back(way: Arc<UdpSocket>, front: Arc<UdpSocket>, client: SocketAddr) {
    let mut buf = [0; 2048];
    loop {
        // A client that hopped away leaves a closed port behind, which is no error here.
        if let Ok((len, _)) = way.recv_from(&mut buf).await {
            let _ = front.send_to(&buf[..len], client).await;
        }
    }
}

async fn hops_during_transfers(ip: IpAddr, obfs: Obfuscation) {
    let options = SocketOptions::default();
    let server = server_on(bind((ip, 0).into(), &options).unwrap(), &obfs, &options);
    let range = PortRange::towards(server.endpoint.local_addr().unwrap(), 6);

    let ports: Vec<_> = range.ports.iter().map(u16::to_string).collect();
    let interval = HopInterval::unchecked(HOP, HOP);
    let config = HopConfig::new(ports.join(",").parse().unwrap(), interval).unwrap();
    let remote = SocketAddr::new(ip, range.ports[0]);
    let factory = Arc::new(DirectSocketFactory::new(options.clone()).with_local_ip(ip));
    let socket = client_socket(remote, Some(config), factory, &obfs, &options).unwrap();
    let Side { endpoint, socket } = client_on(socket);

    let accept = async { server.endpoint.accept().await.unwrap().await.unwrap() };
    let connect = async {
        endpoint
            .connect(remote, "localhost")
            .unwrap()
            .await
            .unwrap()
    };
    let (from, to) = tokio::join!(accept, connect);
    while socket.stats().snapshot().hops < 6 {
        transfer(&from, &to, 4 << 20).await;
        transfer(&to, &from, 4 << 20).await;
    }
    assert_eq!(to.remote_address(), remote);
    let seen = range.seen.lock().unwrap();
    assert!(seen.ports.len() > 1, "{:?}", seen.ports);
    assert!(seen.clients.len() > 5, "{:?}", seen.clients);
}

#[tokio::test]
async fn plain_transfers_survive_hops() {
    hops_during_transfers(Ipv4Addr::LOCALHOST.into(), Obfuscation::Plain).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn salamander_transfers_survive_hops_over_v6() {
    let obfs = Obfuscation::salamander("a key of good length").unwrap();
    hops_during_transfers(Ipv6Addr::LOCALHOST.into(), obfs).await;
}

#[tokio::test]
async fn gecko_transfers_survive_hops() {
    let obfs = Obfuscation::gecko("a key of good length", 512, 1200).unwrap();
    hops_during_transfers(Ipv4Addr::LOCALHOST.into(), obfs).await;
}
