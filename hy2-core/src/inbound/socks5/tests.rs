//! Byte-exact conversations on real sockets.

use std::{net::SocketAddr, sync::atomic::Ordering::SeqCst, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
};
use tokio_util::sync::CancellationToken;

use super::{Socks5, Socks5Config, wire};
use crate::inbound::{
    Credentials, DialFailure,
    loopback::{CUT, Loopback, echo_server, ending_server, read_to_end_of, udp_echo_server},
};

#[tokio::test]
async fn connect_without_authentication() {
    let echo = echo_server().await;
    let dialer = Loopback::default();
    let mut program = socks(&dialer, |_| ()).await;
    say(&mut program, "05 01 00", "05 00").await;
    let request = format!("05 01 00 03 04 6e616d65 {:04x}", echo.port());
    say(&mut program, &request, "05 00 00 01 00000000 0000").await;
    say(&mut program, "c0ffee", "c0ffee").await;
    program.shutdown().await.expect("half-close");
    assert_eq!(program.read(&mut [0; 1]).await.ok(), Some(0));
    assert_eq!(*dialer.asked.lock(), [format!("name:{}", echo.port())]);
}

#[tokio::test]
async fn a_cut_and_an_end_are_told_apart() {
    let target = ending_server().await;
    for ask in [CUT, b'.'] {
        let mut program = socks(&Loopback::default(), |_| ()).await;
        say(&mut program, "05 01 00", "05 00").await;
        let request = format!("05 01 00 01 7f000001 {:04x}", target.port());
        say(&mut program, &request, "05 00 00 01 00000000 0000").await;
        match read_to_end_of(&mut program, ask).await {
            Ok(0) => assert_ne!(ask, CUT),
            Ok(_) => panic!("nothing follows"),
            Err(error) => {
                assert_eq!(ask, CUT, "{error}");
                assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
            }
        }
    }
}

#[tokio::test]
async fn bytes_behind_the_request_are_carried() {
    let echo = echo_server().await;
    let mut program = socks(&Loopback::default(), |_| ()).await;
    let all = format!("05 01 00 05 01 00 01 7f000001 {:04x} c0ffee", echo.port());
    say(&mut program, &all, "05 00 05 00 00 01 00000000 0000 c0ffee").await;
}

#[tokio::test]
async fn every_byte_alone_is_served_as_well() {
    let echo = echo_server().await;
    let mut program = socks(&Loopback::default(), with_credentials).await;
    program.set_nodelay(true).expect("nodelay");
    let all = format!(
        "05 02 00 02 01 04 6a6f686e 04 7769636b 05 01 00 04 {} {:04x} ff",
        "00000000000000000000ffff7f000001",
        echo.port()
    );
    for byte in bytes(&all) {
        program.write_all(&[byte]).await.expect("write");
        tokio::task::yield_now().await;
    }
    expect(&mut program, "05 02 01 00 05 00 00 01 00000000 0000 ff").await;
}

#[tokio::test]
async fn wrong_credentials_are_refused_and_nothing_is_dialled() {
    for shown in [
        "01 04 6a6f686e 04 7769636c",
        "01 04 6a6f686f 04 7769636b",
        "01 00 00",
        "01 08 6a6f686e7769636b 00",
    ] {
        let dialer = Loopback::default();
        let mut program = socks(&dialer, with_credentials).await;
        say(&mut program, "05 01 02", "05 02").await;
        // The request is sent along, as if the answer did not matter.
        let and_request = format!("{shown} 05 01 00 01 7f000001 0050");
        say(&mut program, &and_request, "01 01").await;
        closed(&mut program).await;
        assert!(dialer.asked.lock().is_empty(), "{shown}");
    }
}

#[tokio::test]
async fn authentication_cannot_be_left_out() {
    for greeting in ["05 01 00", "05 03 00 01 80", "05 01 ff"] {
        let dialer = Loopback::default();
        let mut program = socks(&dialer, with_credentials).await;
        let and_request = format!("{greeting} 05 01 00 01 7f000001 0050");
        say(&mut program, &and_request, "05 ff").await;
        closed(&mut program).await;
        assert!(dialer.asked.lock().is_empty(), "{greeting}");
    }
    // A request in place of the credentials has the wrong version.
    let dialer = Loopback::default();
    let mut program = socks(&dialer, with_credentials).await;
    say(&mut program, "05 01 02 05 01 00 01 7f000001 0050", "05 02").await;
    closed(&mut program).await;
    assert!(dialer.asked.lock().is_empty());
}

#[tokio::test]
async fn without_credentials_only_no_authentication_is_taken() {
    let mut program = socks(&Loopback::default(), |_| ()).await;
    say(&mut program, "05 01 02", "05 ff").await;
    closed(&mut program).await;
}

#[tokio::test]
async fn what_is_not_socks5_is_closed_without_an_answer() {
    for first in ["04 01 0050 7f000001 00", "47 45 54 20 2f", "05 00"] {
        let mut program = socks(&Loopback::default(), |_| ()).await;
        program.write_all(&bytes(first)).await.expect("write");
        closed(&mut program).await;
    }
}

#[tokio::test]
async fn failures_have_their_reply() {
    for (failure, code) in [
        (DialFailure::Other, "01"),
        (DialFailure::TunnelDown, "01"),
        (DialFailure::Denied, "02"),
        (DialFailure::Unreachable, "03"),
        (DialFailure::Unresolvable, "04"),
        (DialFailure::Refused, "05"),
        (DialFailure::TimedOut, "06"),
        (DialFailure::UdpDisabled, "07"),
    ] {
        for command in ["01", "03"] {
            let mut program = socks(&Loopback::failing(failure), |_| ()).await;
            let request = format!("05 01 00 05 {command} 00 01 7f000001 0050");
            let answer = format!("05 00 05 {code} 00 01 00000000 0000");
            say(&mut program, &request, &answer).await;
            closed(&mut program).await;
        }
    }
}

#[tokio::test]
async fn unsupported_requests_have_their_reply() {
    for (request, code) in [
        ("05 02 00 01 7f000001 0050", "07"), // BIND
        ("05 09 00 01 7f000001 0050", "07"),
        ("05 03 00 01 00000000 0000", "07"), // UDP is off here
        ("05 01 00 02 7f000001 0050", "08"),
        ("05 01 00 03 00", "01"),
        ("05 01 00 03 03 61 00 62 0050", "01"),
    ] {
        let dialer = Loopback::default();
        let mut program = socks(&dialer, |config| config.disable_udp = true).await;
        say(&mut program, "05 01 00", "05 00").await;
        say(
            &mut program,
            request,
            &format!("05 {code} 00 01 00000000 0000"),
        )
        .await;
        closed(&mut program).await;
        assert!(dialer.asked.lock().is_empty());
    }
}

#[tokio::test]
async fn announced_lengths_that_never_come_end_at_the_deadline() {
    for start in ["05 ff 00", "05 01 00 05 01 00 03 ff 61", "05"] {
        let mut program = socks(&Loopback::default(), |config| {
            config.limits.request_timeout = Duration::from_millis(20);
        })
        .await;
        program.write_all(&bytes(start)).await.expect("write");
        let mut rest = Vec::new();
        program.read_to_end(&mut rest).await.expect("closed");
        assert!(rest.is_empty() || rest == [5, 0], "{rest:?}");
    }
}

#[tokio::test]
async fn datagrams_go_both_ways_with_their_addresses() {
    let (one, two) = (udp_echo_server().await, udp_echo_server().await);
    let dialer = Loopback::default();
    let (control, relay) = associate(&dialer).await;
    let program = UdpSocket::bind("127.0.0.1:0").await.expect("bind");
    for echo in [one, two, one] {
        let packet = packet(echo, "c0ffee");
        program.send_to(&packet, relay).await.expect("send");
        assert_eq!(received(&program).await, packet);
    }
    assert_eq!(dialer.sessions.load(SeqCst), 1);
    drop(control);
    while dialer.sessions.load(SeqCst) > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn fragments_and_strangers_are_dropped() {
    let echo = udp_echo_server().await;
    let dialer = Loopback::default();
    let (_control, relay) = associate(&dialer).await;
    let program = UdpSocket::bind("127.0.0.1:0").await.expect("bind");

    let mut fragment = packet(echo, "aa");
    fragment[2] = 1;
    for nonsense in [&fragment[..], &[], &[0; 9], b"\0\0\0\x03\0\0\0"] {
        program.send_to(nonsense, relay).await.expect("send");
    }
    let first = packet(echo, "01");
    program.send_to(&first, relay).await.expect("send");
    assert_eq!(received(&program).await, first, "and nothing before it");

    // Another port of the same host, and another address of it.
    for address in ["127.0.0.1:0", "127.0.0.2:0"] {
        let stranger = UdpSocket::bind(address).await.expect("bind");
        stranger
            .send_to(&packet(echo, "bb"), relay)
            .await
            .expect("send");
    }
    let second = packet(echo, "02");
    program.send_to(&second, relay).await.expect("send");
    assert_eq!(received(&program).await, second);
    assert_eq!(
        dialer.asked.lock().len(),
        2,
        "only the program's were carried"
    );
}

#[tokio::test]
async fn cancelling_ends_connections() {
    let socks = Socks5::bind(Socks5Config::new(([127, 0, 0, 1], 0).into())).expect("bind");
    let address = socks.local_addr().expect("bound");
    let stop = CancellationToken::new();
    let running = tokio::spawn(socks.run(Loopback::default(), stop.clone()));
    let mut program = TcpStream::connect(address).await.expect("connect");
    say(&mut program, "05 01 00", "05 00").await;
    stop.cancel();
    running.await.expect("ended");
    closed(&mut program).await;
    assert!(
        TcpStream::connect(address).await.is_err(),
        "listener is closed"
    );
}

fn with_credentials(config: &mut Socks5Config) {
    config.credentials = Some(Credentials::new("john", "wick"));
}

/// Starts a server and connects to it.
async fn socks(dialer: &Loopback, change: impl FnOnce(&mut Socks5Config)) -> TcpStream {
    let mut config = Socks5Config::new(([127, 0, 0, 1], 0).into());
    change(&mut config);
    let socks = Socks5::bind(config).expect("bind");
    let address = socks.local_addr().expect("bound");
    tokio::spawn(socks.run(dialer.clone(), CancellationToken::new()));
    TcpStream::connect(address).await.expect("connect")
}

/// Opens an association; returns its TCP connection and the relay's address.
async fn associate(dialer: &Loopback) -> (TcpStream, SocketAddr) {
    let mut control = socks(dialer, |_| ()).await;
    say(&mut control, "05 01 00", "05 00").await;
    let request = bytes("05 03 00 01 00000000 0000");
    control.write_all(&request).await.expect("request");
    let mut reply = [0; 10];
    control.read_exact(&mut reply).await.expect("reply");
    assert_eq!(reply[..8], bytes("05 00 00 01 7f000001"));
    let port = u16::from_be_bytes([reply[8], reply[9]]);
    (control, ([127, 0, 0, 1], port).into())
}

fn packet(address: SocketAddr, payload: &str) -> Vec<u8> {
    let mut packet = Vec::new();
    wire::encode_packet_header(&address.into(), &mut packet);
    packet.extend(bytes(payload));
    packet
}

async fn received(socket: &UdpSocket) -> Vec<u8> {
    let mut buffer = vec![0; 65_536];
    let len = socket.recv(&mut buffer).await.expect("receive");
    buffer.truncate(len);
    buffer
}

async fn say(program: &mut TcpStream, ours: &str, theirs: &str) {
    program.write_all(&bytes(ours)).await.expect("write");
    expect(program, theirs).await;
}

async fn expect(program: &mut TcpStream, theirs: &str) {
    let expected = bytes(theirs);
    let mut seen = vec![0; expected.len()];
    program.read_exact(&mut seen).await.expect(theirs);
    assert_eq!(hex::encode(seen), hex::encode(expected));
}

/// Expects the end: a FIN, or a reset because bytes of ours were left unread.
async fn closed(program: &mut TcpStream) {
    match program.read(&mut [0; 1]).await {
        Ok(read) => assert_eq!(read, 0),
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
    }
}

fn bytes(text: &str) -> Vec<u8> {
    hex::decode(text.replace(' ', "")).expect("hex")
}
