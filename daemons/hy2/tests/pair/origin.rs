//! Origins that answer, and programs that speak to a local proxy.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    time::Duration,
};

/// Starts a TCP server that sends back what it gets.
pub(crate) fn tcp_echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                let mut reader = stream.try_clone().expect("clone");
                let _ = std::io::copy(&mut reader, &mut &stream);
                let _ = stream.shutdown(Shutdown::Write);
            });
        }
    });
    address
}

/// Starts a UDP server that sends back what it gets.
pub(crate) fn udp_echo() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("bind");
    let address = socket.local_addr().expect("bound");
    std::thread::spawn(move || {
        let mut buffer = [0; 65_536];
        while let Ok((len, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..len], from);
        }
    });
    address
}

/// Starts a web server that answers one request per connection.
pub(crate) fn web() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            read_head(&mut stream);
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello";
            let _ = stream.write_all(answer);
        }
    });
    address
}

/// Sends bytes, ends the direction, and returns everything that comes back.
pub(crate) fn round_trip(mut stream: TcpStream, data: &[u8]) -> Vec<u8> {
    let mut writer = stream.try_clone().expect("clone");
    let data = data.to_owned();
    let writing = std::thread::spawn(move || {
        writer.write_all(&data).expect("write");
        writer.shutdown(Shutdown::Write).expect("half-close");
    });
    let mut seen = Vec::new();
    stream.read_to_end(&mut seen).expect("read");
    writing.join().expect("written");
    seen
}

/// Asks a SOCKS5 proxy for a connection; returns its reply code.
pub(crate) fn socks5(proxy: SocketAddr, target: SocketAddr) -> (TcpStream, u8) {
    let mut stream = connect(proxy);
    stream.write_all(&[5, 1, 0]).expect("greeting");
    let mut method = [0; 2];
    stream.read_exact(&mut method).expect("method");
    assert_eq!(method, [5, 0]);
    stream.write_all(&request(1, target)).expect("request");
    let mut reply = [0; 10];
    stream.read_exact(&mut reply).expect("reply");
    (stream, reply[1])
}

/// Sends a datagram through a SOCKS5 proxy and returns the answer's payload.
pub(crate) fn socks5_udp(proxy: SocketAddr, target: SocketAddr, data: &[u8]) -> Vec<u8> {
    let mut control = connect(proxy);
    control.write_all(&[5, 1, 0]).expect("greeting");
    control.read_exact(&mut [0; 2]).expect("method");
    control
        .write_all(&request(3, ([0, 0, 0, 0], 0).into()))
        .expect("request");
    let mut reply = [0; 10];
    control.read_exact(&mut reply).expect("reply");
    assert_eq!(reply[1], 0, "refused");
    let relay = SocketAddr::from(([127, 0, 0, 1], u16::from_be_bytes([reply[8], reply[9]])));
    let mut packet = vec![0, 0, 0];
    packet.extend_from_slice(&request(1, target)[3..]);
    let header = packet.len();
    packet.extend_from_slice(data);
    let answer = udp_exchange(relay, &packet);
    assert_eq!(answer[..header], packet[..header], "the target's address");
    answer[header..].to_vec()
}

/// Sends a datagram and returns the answer.
pub(crate) fn udp_exchange(to: SocketAddr, data: &[u8]) -> Vec<u8> {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("bind");
    socket
        .set_read_timeout(Some(Duration::from_secs(20)))
        .expect("timeout");
    socket.send_to(data, to).expect("send");
    let mut buffer = vec![0; 65_536];
    let (len, _) = socket.recv_from(&mut buffer).expect("an answer");
    buffer.truncate(len);
    buffer
}

/// Sends a request to an HTTP server or proxy and returns the head of the answer.
pub(crate) fn http(address: SocketAddr, request: &str) -> (TcpStream, String) {
    let mut stream = connect(address);
    stream.write_all(request.as_bytes()).expect("request");
    let head = read_head(&mut stream);
    (stream, head)
}

pub(crate) fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("connect");
    stream
        .set_read_timeout(Some(Duration::from_secs(30)))
        .expect("timeout");
    stream
}

fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && stream.read_exact(&mut byte).is_ok() {
        head.push(byte[0]);
    }
    String::from_utf8(head).expect("text")
}

fn request(command: u8, target: SocketAddr) -> Vec<u8> {
    let SocketAddr::V4(target) = target else {
        panic!("the tests use IPv4");
    };
    let mut request = vec![5, command, 0, 1];
    request.extend_from_slice(&target.ip().octets());
    request.extend_from_slice(&target.port().to_be_bytes());
    request
}
