//! Real processes: `hy2 server` and `hy2 client` with real programs and origins around them.
#![cfg(unix)]

mod origin;
mod process;

use std::{
    io::Read,
    net::{SocketAddr, UdpSocket},
};

use origin::{
    connect, http, round_trip, socks5, socks5_udp, tcp_echo, udp_echo, udp_exchange, web,
};
use process::Folder;

#[test]
fn everything_a_client_offers_carries_traffic() {
    carry_everything(&Folder::new());
}

/// As on a machine with one processor.
#[test]
fn everything_a_client_offers_carries_traffic_on_one_thread() {
    carry_everything(&Folder::with(&["--threads", "1"]));
}

fn carry_everything(folder: &Folder) {
    let mut server = folder.server("allowPrivateTargets: true");
    let (tcp, udp, site) = (tcp_echo(), udp_echo(), web());
    let address = server.address("quic");
    let settings = format!(
        "socks5: {{listen: 127.0.0.1:0}}\nhttp: {{listen: 127.0.0.1:0}}\n\
         tcpForwarding: [{{listen: 127.0.0.1:0, remote: '{tcp}'}}]\n\
         udpForwarding: [{{listen: 127.0.0.1:0, remote: '{udp}'}}]\n"
    );
    let mut client = folder.client(address, &settings);
    let (socks, proxy) = (client.address("socks5"), client.address("http"));
    let (forward, udp_forward) = (
        client.address("tcpForwarding"),
        client.address("udpForwarding"),
    );
    client.expect("connected");
    server.expect("client connected");

    let data: Vec<u8> = (0..3_000_000u32).map(|i| (i % 251) as u8).collect();
    let (stream, reply) = socks5(socks, tcp);
    assert_eq!(reply, 0);
    // No field of a line takes the place of another.
    assert_eq!(server.expect("TCP request")["destination"], tcp.to_string());
    assert!(round_trip(stream, &data) == data, "SOCKS5");
    assert!(round_trip(connect(forward), &data) == data, "forward");
    let (stream, head) = http(
        proxy,
        &format!("CONNECT {tcp} HTTP/1.1\r\nHost: {tcp}\r\n\r\n"),
    );
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    assert!(round_trip(stream, &data) == data, "CONNECT");
    let (mut stream, head) = http(
        proxy,
        &format!("GET http://{site}/ HTTP/1.1\r\nHost: {site}\r\n\r\n"),
    );
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    let mut body = [0; 5];
    stream.read_exact(&mut body).expect("body");
    assert_eq!(&body, b"hello");
    // 3,000 bytes travel in fragments.
    for len in [1, 1000, 3000] {
        assert_eq!(udp_exchange(udp_forward, &data[..len]), data[..len]);
        assert_eq!(socks5_udp(socks, udp, &data[..len]), data[..len]);
    }

    // A refused target.
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let closed = free.local_addr().expect("bound");
    drop(free);
    assert_eq!(socks5(socks, closed).1, 5);

    client.signal("TERM");
    assert!(client.wait().success());
    server.expect("client disconnected");
    server.signal("INT");
    assert!(server.wait().success());
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_for_the_log_stops_nothing() {
    let folder = Folder::new();
    let echo = tcp_echo();
    // A free port: the log does not say which one it is.
    let free = UdpSocket::bind("127.0.0.1:0").expect("bind");
    let address = free.local_addr().expect("bound");
    drop(free);
    let settings = format!("listen: {address}\nallowPrivateTargets: true");
    let mut server = folder.server_without_log(&settings);
    let forward = format!("tcpForwarding: [{{listen: 127.0.0.1:0, remote: '{echo}'}}]");
    let mut client = folder.client(address, &forward);
    let forward = client.address("tcpForwarding");
    client.expect("connected");
    let data = vec![7; 300_000];
    for _ in 0..3 {
        assert!(round_trip(connect(forward), &data) == data);
    }
    client.signal("TERM");
    assert!(client.wait().success());
    server.signal("TERM");
    assert!(server.wait().success());
}

#[test]
fn one_port_serves_socks5_and_http() {
    let folder = Folder::new();
    let mut server = folder.server("allowPrivateTargets: true");
    let echo = tcp_echo();
    // A free port, which both inbounds are given.
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let listen = free.local_addr().expect("bound");
    drop(free);
    let settings = format!("socks5: {{listen: '{listen}'}}\nhttp: {{listen: '{listen}'}}\n");
    let mut client = folder.client(server.address("quic"), &settings);
    let address = client.address("socks5 and http");
    client.expect("connected");
    assert_eq!(round_trip(socks5(address, echo).0, b"one"), b"one");
    let (stream, _) = http(
        address,
        &format!("CONNECT {echo} HTTP/1.1\r\nHost: {echo}\r\n\r\n"),
    );
    assert_eq!(round_trip(stream, b"two"), b"two");
}

#[test]
fn private_targets_are_refused_unless_allowed() {
    let folder = Folder::new();
    let mut server = folder.server("");
    let mut client = folder.client(server.address("quic"), "socks5: {listen: 127.0.0.1:0}");
    let socks = client.address("socks5");
    client.expect("connected");
    assert_eq!(socks5(socks, tcp_echo()).1, 2);
}

#[test]
fn draining_lets_open_streams_finish() {
    let folder = Folder::new();
    let mut server = folder.server("allowPrivateTargets: true");
    let mut client = folder.client(server.address("quic"), "socks5: {listen: 127.0.0.1:0}");
    let (socks, echo) = (client.address("socks5"), tcp_echo());
    client.expect("connected");
    let (stream, _) = socks5(socks, echo);
    server.signal("TERM");
    server.expect("ending: no new streams, waiting for open ones");
    assert_eq!(round_trip(stream, b"still here"), b"still here");
    server.expect("ended");
    assert!(server.wait().success());
}

#[test]
fn a_second_signal_ends_at_once() {
    let folder = Folder::new();
    let mut server = folder.server("allowPrivateTargets: true");
    let mut client = folder.client(server.address("quic"), "socks5: {listen: 127.0.0.1:0}");
    let socks = client.address("socks5");
    client.expect("connected");
    let (_open, _) = socks5(socks, tcp_echo());
    server.signal("TERM");
    server.expect("ending: no new streams, waiting for open ones");
    server.signal("TERM");
    server.expect("told twice to end: not waiting any longer");
    assert!(server.wait().success());
}

#[test]
fn a_client_returns_after_the_server_restarted() {
    let folder = Folder::new();
    let echo = tcp_echo();
    let mut server = folder.server("allowPrivateTargets: true");
    let address = server.address("quic");
    let mut client = folder.client(address, "socks5: {listen: 127.0.0.1:0}");
    let socks = client.address("socks5");
    client.expect("connected");
    drop(server);
    let mut server = folder.server(&format!("listen: {address}\nallowPrivateTargets: true"));
    server.address("quic");
    // The new process answers the old connection with a stateless reset.
    client.expect("connection lost");
    client.expect("connected again");
    assert_eq!(round_trip(socks5(socks, echo).0, b"back"), b"back");
}

#[test]
fn a_lazy_client_waits_for_its_first_program() {
    let folder = Folder::new();
    let silent = UdpSocket::bind("127.0.0.1:0").expect("bind");
    let address = silent.local_addr().expect("bound");
    let mut client = folder.client(address, "lazy: true\nsocks5: {listen: 127.0.0.1:0}");
    let socks = client.address("socks5");
    client.expect("lazy: connecting when a program needs it");
    drop(silent);
    let mut server = folder.server(&format!("listen: {address}\nallowPrivateTargets: true"));
    server.address("quic");
    assert_eq!(round_trip(socks5(socks, tcp_echo()).0, b"first"), b"first");
    server.expect("client connected");
    client.expect("connected");
    server.signal("TERM");
    client.expect("connection ended; connecting when a program needs it");
    server.wait();
    let mut server = folder.server(&format!("listen: {address}\nallowPrivateTargets: true"));
    server.address("quic");
    assert_eq!(
        round_trip(socks5(socks, tcp_echo()).0, b"second"),
        b"second"
    );
    client.expect("connected");
}

#[test]
fn a_client_says_why_datagrams_go_nowhere() {
    let folder = Folder::new();
    let mut server = folder.server("disableUDP: true\nallowPrivateTargets: true");
    let address = server.address("quic");
    let forward = format!(
        "udpForwarding: [{{listen: 127.0.0.1:0, remote: '{}'}}]",
        udp_echo()
    );
    let mut client = folder.client(address, &forward);
    let local = client.address("udpForwarding");
    client.expect("connected");
    let socket = UdpSocket::bind("127.0.0.1:0").expect("bind");
    socket.send_to(b"lost", local).expect("send");
    let said = client.expect("not opened");
    assert!(said.to_string().contains("UDP"), "{said}");
}

#[test]
fn certificates_are_reloaded_by_signal_and_by_change() {
    let mut folder = Folder::new();
    let mut server = folder.server("speedTest: true");
    let address = server.address("quic");
    let old = folder.trust(address);
    let quick = ["speedtest", "--data-size", "1000"];
    let run = |folder: &Folder, text: &str| folder.tool(text, &quick).status.code();
    assert_eq!(run(&folder, &old), Some(0));

    folder.renew();
    server.expect("certificate reloaded");
    assert_eq!(run(&folder, &old), Some(4), "the old pin");
    assert_eq!(run(&folder, &folder.trust(address)), Some(0));

    server.signal("HUP");
    server.expect("certificate reloaded");
    std::fs::write(folder.path().join("cert.pem"), "nonsense").expect("write");
    server.signal("HUP");
    server.expect("certificate not reloaded, the present one stays in use");
    assert_eq!(run(&folder, &folder.trust(address)), Some(0));
}

#[test]
fn failures_to_connect_have_names_and_codes() {
    let folder = Folder::new();
    let mut server =
        folder.server("obfs: {type: salamander, salamander: {password: a long password}}");
    let covered = server.address("quic");
    let mut server = folder.server("");
    let address = server.address("quic");
    let pin = "ab".repeat(32);
    for (text, code, says) in [
        (
            folder.trust(address).replace("right", "wrong"),
            3,
            "authentication rejected",
        ),
        (
            folder.trust(address).replace(&folder.pin, &pin),
            4,
            "does not match the pin",
        ),
        (
            format!("server: {address}\nauth: right\ntls: {{sni: localhost}}\n"),
            4,
            "TLS: ",
        ),
        (folder.trust(covered), 5, "is the obfuscation the same?"),
        (
            "server: name.invalid:443\n".to_owned(),
            1,
            "does not resolve",
        ),
    ] {
        let failed = folder.tool(&text, &["ping", "example.com:80"]);
        let error = String::from_utf8_lossy(&failed.stderr).into_owned();
        assert_eq!(failed.status.code(), Some(code), "{error}");
        assert!(error.contains(says), "{error}");
        assert!(
            !error.contains("wrong\n") && !error.contains("panicked"),
            "{error}"
        );
        assert_eq!(
            error
                .lines()
                .filter(|line| line.starts_with("hy2: "))
                .count(),
            1,
            "{error}"
        );
    }
}

#[test]
fn ping_reaches_a_target_or_says_why_not() {
    let folder = Folder::new();
    let mut server = folder.server("allowPrivateTargets: true");
    let settings = folder.trust(server.address("quic"));
    let echo = tcp_echo().to_string();
    let reached = folder.tool(&settings, &["ping", &echo]);
    let said = String::from_utf8_lossy(&reached.stdout).into_owned();
    assert!(reached.status.success(), "{reached:?}");
    assert!(
        said.contains("connected to ") && said.contains(&format!("{echo} reached in ")),
        "{said}"
    );

    let failed = folder.tool(&settings, &["ping", "name.invalid:80"]);
    let error = String::from_utf8_lossy(&failed.stderr).into_owned();
    assert_eq!(failed.status.code(), Some(1));
    assert!(
        error.contains("name.invalid:80 not reached: target not reached: name does not resolve"),
        "{error}"
    );
}

#[test]
fn speed_is_measured_both_ways_if_the_server_allows_it() {
    let folder = Folder::new();
    let mut server = folder.server("speedTest: true");
    let settings = folder.trust(server.address("quic"));
    let bytes = folder.tool(&settings, &["speedtest", "--data-size", "2000000"]);
    let said = String::from_utf8_lossy(&bytes.stdout).into_owned();
    assert!(bytes.status.success(), "{bytes:?}");
    assert!(
        said.contains("download: 1.91 MiB in ") && said.contains("upload: 1.91 MiB in "),
        "{said}"
    );
    let time = folder.tool(
        &settings,
        &[
            "speedtest",
            "--duration",
            "300ms",
            "--skip-upload",
            "--use-bytes",
        ],
    );
    let said = String::from_utf8_lossy(&time.stdout).into_owned();
    assert!(
        time.status.success() && said.lines().count() == 1 && said.contains("B/s"),
        "{said}"
    );

    let mut server = folder.server("");
    let refused = folder.tool(&folder.trust(server.address("quic")), &["speedtest"]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
}

#[test]
fn metrics_and_the_site_on_tcp_are_served() {
    let folder = Folder::new();
    let text = "listen: 127.0.0.1:0\ntls: {cert: cert.pem, key: key.pem}\n\
                auth: {type: password, password: right}\nallowPrivateTargets: true\n\
                masquerade: {type: string, string: {content: hi, headers: {X-Site: yes}}, \
                listenHTTP: 127.0.0.1:0, listenHTTPS: 127.0.0.1:0, forceHTTPS: false}\n";
    let mut server = folder.start("server", "s.yaml", text, &["--metrics", "127.0.0.1:0"]);
    let metrics = server.address("metrics");
    let quic = server.address("quic");
    server.address("https");
    let site = server.address("http");
    let (mut stream, head) = http(site, "GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    let head = head.to_lowercase();
    assert!(head.contains("x-site: yes\r\n"), "{head}");
    assert!(
        head.contains(&format!("alt-svc: h3=\":{}\"; ma=2592000", quic.port())),
        "{head}"
    );
    let mut body = [0; 2];
    stream.read_exact(&mut body).expect("body");
    assert_eq!(&body, b"hi");

    let echo = tcp_echo();
    let text = folder.trust(quic) + "socks5: {listen: 127.0.0.1:0}\n";
    let mut client = folder.start("client", "c.yaml", &text, &["--metrics", "127.0.0.1:0"]);
    let client_metrics = client.address("metrics");
    let socks = client.address("socks5");
    client.expect("connected");
    assert_eq!(round_trip(socks5(socks, echo).0, &[7; 5000]).len(), 5000);
    expect_figures(
        metrics,
        &[
            "hy2_server_connections 1",
            "hy2_server_users 1",
            "hy2_server_tx_bytes_total 5000",
            "hy2_server_rx_bytes_total 5000",
            "hy2_panics_total 0",
        ],
    );
    expect_figures(
        client_metrics,
        &[
            "hy2_client_connected 1",
            "hy2_client_streams_total 1",
            "hy2_client_udp_sessions_total 0",
            "hy2_client_failures_total 0",
            "hy2_panics_total 0",
        ],
    );
}

/// Reads the metrics, which are brought up to date every second, until they have the lines.
fn expect_figures(metrics: SocketAddr, wanted: &[&str]) {
    let request = "GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    loop {
        let (mut stream, _) = http(metrics, request);
        let mut figures = String::new();
        stream.read_to_string(&mut figures).expect("figures");
        let missing: Vec<_> = wanted
            .iter()
            .filter(|line| !figures.lines().any(|figure| figure == **line))
            .collect();
        if missing.is_empty() {
            break;
        }
        assert!(
            std::time::Instant::now() < deadline,
            "{missing:?} not in\n{figures}"
        );
    }
}

#[test]
fn secrets_and_private_addresses_stay_out_of_the_log() {
    let folder = Folder::new();
    let mut server =
        folder.server("obfs: {type: salamander, salamander: {password: hidden-key-1}}");
    let address = server.address("quic");
    let settings = "obfs: {type: salamander, salamander: {password: hidden-key-1}}\n\
                    socks5: {listen: 127.0.0.1:0, username: u, password: hidden-key-2}";
    let mut client = folder.client(address, settings);
    client.expect("connected");
    server.expect("client connected");
    for log in [client.log(), server.log()] {
        assert!(
            !log.contains("hidden-key") && !log.contains("right"),
            "{log}"
        );
    }
}
