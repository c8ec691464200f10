//! What the socket layer puts on the wire, read by raw sockets and a decoder that knows
//! nothing of batches; and what garbage does to it.
#![allow(missing_docs)]

mod quic_pair;

use std::{
    collections::HashMap,
    io,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use hy2_core::socket::{Obfuscation, QuicSocket, SocketOptions, bind, server_socket};
use hy2_proto::salamander::Salamander;
use quic_pair::{Pair, any_v4, client_to, transfer};
use quinn::udp::Transmit;
use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};
use tokio::net::UdpSocket;

const PASSWORD: &str = "average_password";

fn raw() -> UdpSocket {
    UdpSocket::from_std(bind(any_v4(), &SocketOptions::default()).unwrap()).unwrap()
}

async fn send(socket: &QuicSocket, transmit: &Transmit<'_>) {
    let socket = socket.socket();
    let mut poller = socket.clone().create_io_poller();
    loop {
        std::future::poll_fn(|cx| poller.as_mut().poll_writable(cx))
            .await
            .unwrap();
        match socket.try_send(transmit) {
            Ok(()) => return,
            Err(err) => assert_eq!(err.kind(), io::ErrorKind::WouldBlock),
        }
    }
}

/// Reads one datagram after the other, by the definition of each format.
struct NaiveDecoder {
    cover: Option<Salamander>,
    fragments: HashMap<u8, Vec<Option<Vec<u8>>>>,
    sizes: std::ops::RangeInclusive<usize>,
}

impl NaiveDecoder {
    fn decode(&mut self, wire: &[u8]) -> Option<Vec<u8>> {
        let Some(cover) = &self.cover else {
            return Some(wire.to_vec());
        };
        let mut wire = wire.to_vec();
        let len = wire.len();
        let plain = cover.deobfuscate(&mut wire).unwrap();
        if plain[0] != 0x80 {
            return Some(plain.to_vec());
        }
        let (message, index, count) = (plain[1], plain[2] >> 4, plain[2] & 15);
        let padding = usize::from(u16::from_be_bytes([plain[3], plain[4]]));
        let chunk = plain[5 + padding..].to_vec();
        assert!((2..=8).contains(&count) && index < count);
        // Without padding the chunk alone was larger than the size drawn.
        assert!(self.sizes.contains(&len) || padding == 0, "{len}");
        let chunks = self
            .fragments
            .entry(message)
            .or_insert_with(|| vec![None; usize::from(count)]);
        assert_eq!(chunks.len(), usize::from(count));
        assert!(chunks[usize::from(index)].replace(chunk).is_none());
        if chunks.iter().any(Option::is_none) {
            return None;
        }
        let chunks = self.fragments.remove(&message).unwrap();
        let sizes: Vec<_> = chunks.iter().flatten().map(Vec::len).collect();
        assert!(
            sizes.windows(2).rev().skip(1).all(|w| w[0] == w[1]),
            "{sizes:?}"
        );
        Some(chunks.into_iter().flatten().flatten().collect())
    }
}

/// Random transmits to two destinations, a good part of them full and alike so that they
/// are merged, arrive whole, in order and byte for byte.
async fn arrives_in_order(obfs: Obfuscation, covered: bool, options: SocketOptions) {
    let socket = server_socket(bind(any_v4(), &options).unwrap(), &obfs, &options).unwrap();
    let peers = [raw(), raw()];
    let mut decoders = [(); 2].map(|()| NaiveDecoder {
        cover: covered.then(|| Salamander::new(PASSWORD).unwrap()),
        fragments: HashMap::new(),
        sizes: 512..=1200,
    });
    let mut expected: [Vec<Vec<u8>>; 2] = Default::default();
    let mut rng = StdRng::seed_from_u64(7);
    let mut segment = 1200;
    for round in 0..400 {
        let to = usize::from(rng.random_bool(0.3));
        if rng.random_bool(0.2) {
            segment = rng.random_range(1..1460);
        }
        let count = if rng.random_bool(0.6) {
            10
        } else {
            rng.random_range(1..=10)
        };
        let last = if count == 10 || rng.random_bool(0.5) {
            segment
        } else {
            rng.random_range(1..=segment)
        };
        let mut contents = vec![0; (count - 1) * segment + last];
        rng.fill_bytes(&mut contents);
        // Long headers now and then, which Gecko splits. A whole transmit has one kind or
        // the other here, so that the expected order does not depend on the rest.
        let long = rng.random_bool(0.1);
        for datagram in contents.chunks_mut(segment) {
            datagram[0] = if long { 0xc0 } else { 0x40 } | datagram[0] & 0x3f;
            expected[to].push(datagram.to_vec());
        }
        let transmit = Transmit {
            destination: peers[to].local_addr().unwrap(),
            ecn: None,
            contents: &contents,
            segment_size: (count > 1).then_some(segment),
            src_ip: None,
        };
        send(&socket, &transmit).await;
        // Often enough that no default-sized receive buffer overflows.
        if round % 4 == 3 {
            for ((peer, decoder), expected) in peers.iter().zip(&mut decoders).zip(&mut expected) {
                let mut buf = [0; 2048];
                for datagram in expected.drain(..) {
                    let got = loop {
                        let len = peer.recv(&mut buf).await.unwrap();
                        if let Some(got) = decoder.decode(&buf[..len]) {
                            break got;
                        }
                    };
                    assert!(got == datagram, "round {round}");
                }
            }
        }
    }
    let counters = socket.stats().snapshot();
    assert_eq!(counters.errors, 0);
}

#[tokio::test]
async fn mixed_transmits_arrive_in_order_plain() {
    arrives_in_order(Obfuscation::Plain, false, SocketOptions::default()).await;
}

#[tokio::test]
async fn mixed_transmits_arrive_in_order_under_salamander() {
    let obfs = Obfuscation::salamander(PASSWORD).unwrap();
    arrives_in_order(obfs, true, SocketOptions::default()).await;
}

#[tokio::test]
async fn mixed_transmits_arrive_in_order_under_gecko() {
    let obfs = Obfuscation::gecko(PASSWORD, 512, 1200).unwrap();
    arrives_in_order(obfs, true, SocketOptions::default()).await;
}

#[tokio::test]
async fn mixed_transmits_arrive_in_order_without_offload() {
    let mut options = SocketOptions::default();
    options.gso = false;
    let obfs = Obfuscation::salamander(PASSWORD).unwrap();
    arrives_in_order(obfs, true, options).await;
}

#[tokio::test]
async fn salts_do_not_repeat() {
    let obfs = Obfuscation::salamander(PASSWORD).unwrap();
    let options = SocketOptions::default();
    let socket = server_socket(bind(any_v4(), &options).unwrap(), &obfs, &options).unwrap();
    let peer = raw();
    let mut salts = std::collections::HashSet::new();
    let contents = vec![0x40; 10 * 100];
    for _ in 0..100 {
        let transmit = Transmit {
            destination: peer.local_addr().unwrap(),
            ecn: None,
            contents: &contents,
            segment_size: Some(100),
            src_ip: None,
        };
        send(&socket, &transmit).await;
        for _ in 0..10 {
            let mut buf = [0; 256];
            assert_eq!(peer.recv(&mut buf).await.unwrap(), 108);
            assert!(salts.insert(buf[..8].to_vec()));
        }
    }
}

#[tokio::test]
async fn wrong_key_meets_silence() {
    let salamander = |key| Obfuscation::salamander(key).unwrap();
    let gecko = |key| Obfuscation::gecko(key, 512, 1200).unwrap();
    // All wait for the same timeout.
    tokio::join!(
        silence(salamander("the right key"), salamander("the wrong key")),
        silence(gecko("the right key"), gecko("the wrong key")),
        silence(salamander("the right key"), Obfuscation::Plain),
        silence(gecko("the same key"), salamander("the same key")),
    );
}

async fn silence(right: Obfuscation, wrong: Obfuscation) {
    let options = SocketOptions::default();
    let pair = Pair::new(&right, &options);
    let remote = pair.server.endpoint.local_addr().unwrap();
    let stranger = client_to(remote, &wrong, &options);
    let mut config = quic_pair::client_config();
    let mut transport = quinn::TransportConfig::default();
    transport.max_idle_timeout(Some(Duration::from_secs(2).try_into().unwrap()));
    config.transport_config(transport.into());
    let attempt = stranger
        .endpoint
        .connect_with(config, remote, "localhost")
        .unwrap()
        .await;
    assert!(
        matches!(attempt, Err(quinn::ConnectionError::TimedOut)),
        "{attempt:?}"
    );
    let server = pair.server.socket.stats().snapshot();
    assert!(server.rx_datagrams > 0);
    assert_eq!(server.tx_datagrams, 0);
    // And those who know the key are served.
    let (from, to) = pair.connect().await;
    transfer(&from, &to, 1 << 20).await;
}

#[tokio::test]
async fn garbage_of_every_length_is_met_with_silence() {
    for obfs in [
        Obfuscation::salamander(PASSWORD).unwrap(),
        Obfuscation::gecko(PASSWORD, 512, 1200).unwrap(),
    ] {
        let pair = Pair::new(&obfs, &SocketOptions::default());
        let (from, to) = pair.connect().await;
        let server: SocketAddr = pair.server.endpoint.local_addr().unwrap();
        let before = pair.server.socket.stats().snapshot();
        let prober = raw();
        let mut rng = StdRng::seed_from_u64(3);
        let mut sent = 0;
        for round in 0..4 {
            for len in 0..=1500 {
                let mut garbage = vec![0; len];
                rng.fill_bytes(&mut garbage);
                prober.send_to(&garbage, server).await.unwrap();
                sent += 1;
                if len % 100 == 0 {
                    // Lets the endpoint read before the receive buffer is full.
                    while pair.server.socket.stats().snapshot().rx_datagrams
                        < before.rx_datagrams + sent
                    {
                        tokio::task::yield_now().await;
                    }
                }
            }
            // The connection that was there goes on; new ones come in.
            transfer(&from, &to, 256 << 10).await;
            let (from, to) = pair.connect().await;
            transfer(&to, &from, 64 << 10).await;
            let mut buf = [0; 2048];
            let answer = prober.try_recv(&mut buf);
            assert!(
                matches!(&answer, Err(err) if err.kind() == io::ErrorKind::WouldBlock),
                "round {round}: {answer:?}"
            );
        }
        let after = pair.server.socket.stats().snapshot();
        // Lengths 0 to 8 cannot have a payload.
        assert!(after.rx_dropped >= before.rx_dropped + 4 * 9, "{after:?}");
    }
}

#[tokio::test]
async fn socket_answers_from_the_address_it_was_reached_at() {
    // A wildcard socket has many addresses; quinn names the one a packet came to.
    let obfs = Obfuscation::salamander(PASSWORD).unwrap();
    let options = SocketOptions::default();
    let any = (std::net::Ipv6Addr::UNSPECIFIED, 0).into();
    let server = quic_pair::server_on(bind(any, &options).unwrap(), &obfs, &options);
    let port = server.endpoint.local_addr().unwrap().port();
    for ip in [
        std::net::IpAddr::from(Ipv4Addr::LOCALHOST),
        Ipv4Addr::new(127, 0, 0, 2).into(),
        std::net::Ipv6Addr::LOCALHOST.into(),
    ] {
        let remote = SocketAddr::new(ip, port);
        let client = client_to(remote, &obfs, &options);
        let accept = async { server.endpoint.accept().await.unwrap().await.unwrap() };
        let connect = async {
            client
                .endpoint
                .connect(remote, "localhost")
                .unwrap()
                .await
                .unwrap()
        };
        let (from, to) = tokio::join!(accept, connect);
        transfer(&from, &to, 1 << 20).await;
        assert_eq!(from.local_ip().map(|ip| ip.to_canonical()), Some(ip));
    }
}
