//! The relay between real sockets on loopback.

use std::{
    io::{BufRead, BufReader, Read},
    net::{SocketAddr, UdpSocket},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use hy2_link_emulator::{
    memory::Direction,
    model::{LinkConfig, Loss},
    relay::{Relay, RelayConfig},
};

fn socket() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("bind");
    socket
        .set_read_timeout(Some(Duration::from_secs(10)))
        .expect("timeout");
    socket
}

fn relay(target: SocketAddr, up: LinkConfig, down: LinkConfig) -> Relay {
    Relay::start(&RelayConfig {
        listen: ([127, 0, 0, 1], 0).into(),
        target,
        up,
        down,
        seed: 7,
    })
    .expect("relay")
}

fn delayed(millis: u64) -> LinkConfig {
    LinkConfig {
        delay: Duration::from_millis(millis),
        ..LinkConfig::default()
    }
}

/// Waits for one datagram and tells its contents and sender.
fn receive(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buffer = [0; 2048];
    let (len, from) = socket.recv_from(&mut buffer).expect("datagram");
    (buffer[..len].to_vec(), from)
}

#[test]
fn datagrams_cross_both_ways_after_the_delay() {
    let server = socket();
    let relay = relay(
        server.local_addr().expect("address"),
        delayed(40),
        delayed(20),
    );
    let client = socket();
    let start = Instant::now();
    client.send_to(b"there", relay.local_addr()).expect("send");
    let (there, from) = receive(&server);
    assert_eq!(there, b"there");
    assert!(start.elapsed() >= Duration::from_millis(40));
    server.send_to(b"back", from).expect("send");
    let (back, from) = receive(&client);
    assert_eq!((back.as_slice(), from), (&b"back"[..], relay.local_addr()));
    assert!(start.elapsed() >= Duration::from_millis(60));
    // The kernel doubles what is asked for, and caps it where the host does not allow more.
    assert!(relay.granted_buffers().iter().all(|bytes| *bytes > 0));
    let report = relay.stop();
    assert_eq!(
        (
            report.up.delivered_packets,
            report.up.delivered_bytes,
            report.down.delivered_packets,
            report.down.delivered_bytes,
            report.send_errors
        ),
        (1, 5, 1, 4, 0)
    );
}

#[test]
fn each_client_has_its_own_address_and_answers() {
    let server = socket();
    let relay = relay(
        server.local_addr().expect("address"),
        delayed(1),
        delayed(1),
    );
    let clients = [socket(), socket(), socket()];
    for (index, client) in clients.iter().enumerate() {
        client
            .send_to(&[index as u8], relay.local_addr())
            .expect("send");
    }
    let mut sources = Vec::new();
    for _ in &clients {
        let (data, from) = receive(&server);
        sources.push(from);
        server.send_to(&data, from).expect("send");
    }
    sources.sort();
    sources.dedup();
    assert_eq!(sources.len(), 3);
    for (index, client) in clients.iter().enumerate() {
        assert_eq!(receive(client).0, [index as u8]);
    }
}

#[test]
fn what_arrives_is_what_the_counters_say() {
    const COUNT: u64 = 4_000;
    let server = socket();
    let up = LinkConfig {
        loss: Loss::Bernoulli(0.25),
        duplicate: 0.1,
        mtu: 1000,
        ..delayed(5)
    };
    let relay = relay(server.local_addr().expect("address"), up, delayed(1));
    let client = socket();
    let arrived = Arc::new(AtomicU64::new(0));
    let reader = std::thread::spawn({
        let arrived = Arc::clone(&arrived);
        move || {
            while receive(&server).0.len() != 1 {
                arrived.fetch_add(1, Relaxed);
            }
        }
    });
    for index in 0..COUNT {
        // One in a hundred is too large.
        let len = if index % 100 == 0 { 1001 } else { 1000 };
        client
            .send_to(&vec![0; len], relay.local_addr())
            .expect("send");
        if index % 40 == 39 {
            // Loopback sockets drop what does not fit into their buffer: wait until all was read.
            let deadline = Instant::now() + Duration::from_secs(10);
            let read = || {
                let up = relay.report().up;
                up.offered_packets > index && up.delivered_packets == arrived.load(Relaxed)
            };
            while !read() {
                assert!(Instant::now() < deadline, "{:?}", relay.report());
                std::thread::yield_now();
            }
        }
    }
    relay.reconfigure(Direction::Up, delayed(5));
    // No longer lost.
    client.send_to(&[1], relay.local_addr()).expect("send");
    reader.join().expect("reader");
    let report = relay.stop();
    assert_eq!(report.send_errors, 0, "{report:?}");
    assert_eq!(report.up.offered_packets, COUNT + 1, "{report:?}");
    assert_eq!(report.up.oversized_packets, COUNT / 100, "{report:?}");
    assert!(
        (850..=1_130).contains(&report.up.lost_packets),
        "{report:?}"
    );
    assert!(
        (220..=380).contains(&report.up.duplicated_packets),
        "{report:?}"
    );
    assert_eq!(
        arrived.load(Relaxed) + 1,
        report.up.delivered_packets,
        "{report:?}"
    );
}

#[test]
fn the_bottleneck_holds_its_rate_in_real_time() {
    let server = socket();
    // 8 Mbit/s: 1,000 bytes per millisecond; 200 of them wait at most.
    let up = LinkConfig::clean(8.0, Duration::ZERO, Duration::from_millis(200));
    let relay = relay(server.local_addr().expect("address"), up, delayed(0));
    let client = socket();
    let start = Instant::now();
    for _ in 0..100 {
        client
            .send_to(&[0; 1000], relay.local_addr())
            .expect("send");
    }
    for _ in 0..100 {
        receive(&server);
    }
    let spent = start.elapsed();
    assert!(spent >= Duration::from_millis(99), "{spent:?}");
    assert_eq!(relay.stop().up.overflow_packets, 0);
}

/// Starts the command, relays a datagram, ends it by `end` and returns its report.
fn run_command(end: impl FnOnce(&mut std::process::Child)) -> serde_json::Value {
    let server = socket();
    let target = server.local_addr().expect("address").to_string();
    let mut child = Command::new(env!("CARGO_BIN_EXE_link-emulator"))
        .args(["--target", &target, "--up", "delay=2", "--seed", "9"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("start");
    let mut output = BufReader::new(child.stdout.take().expect("piped"));
    let mut line = String::new();
    output.read_line(&mut line).expect("ready line");
    let ready: serde_json::Value = serde_json::from_str(&line).expect("json");
    assert_eq!(ready["seed"], 9);
    let address = ready["listen"].as_str().expect("address");
    socket().send_to(b"hello", address).expect("send");
    assert_eq!(receive(&server).0, b"hello");
    end(&mut child);
    let mut rest = String::new();
    output.read_to_string(&mut rest).expect("report");
    assert!(child.wait().expect("exit").success());
    serde_json::from_str(&rest).expect("json")
}

#[test]
fn the_command_reports_when_its_input_closes() {
    let report = run_command(|child| drop(child.stdin.take()));
    assert_eq!(report["up"]["delivered_bytes"], 5);
    assert_eq!(report["down"]["offered_packets"], 0);
}

#[test]
fn the_command_reports_when_it_is_terminated() {
    let report = run_command(|child| {
        let status = Command::new("kill")
            .args(["-TERM", &child.id().to_string()])
            .status();
        assert!(status.expect("kill").success());
    });
    assert_eq!(report["up"]["delivered_packets"], 1);
}

#[test]
fn a_link_that_makes_no_sense_is_refused() {
    let output = Command::new(env!("CARGO_BIN_EXE_link-emulator"))
        .args(["--target", "127.0.0.1:1", "--up", "loss=2"])
        .output()
        .expect("start");
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("--up"), "{text}");
}
