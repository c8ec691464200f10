//! The origin and the load: blocking threads, so that they cost little beside what is measured.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc, Barrier,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use socket2::SockRef;

use crate::scenario::Way;

const BUFFER: usize = 256 << 10;

/// What an origin that sends for a time sends between two looks at the clock.
const PIECE: u64 = 64 << 10;

/// How long what was sent in time may take to arrive: at 2 Mbit/s, 15 MB.
const DRAIN: Duration = Duration::from_secs(60);

/// What the sockets of load and origin ask for, so that it is never they who lose a datagram.
const SOCKET_BUFFER: usize = 4 << 20;

/// Connections that the origin serves at once.
const ORIGIN_THREADS: usize = 640;

/// Stack of a thread that only moves bytes.
const STACK: usize = 128 << 10;

/// Request and answer of the small operations, in bytes.
const SMALL: usize = 200;

/// A datagram that has not come back after this time is lost.
const LOST: Duration = Duration::from_millis(400);

/// What a load did.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) elapsed: Duration,
    pub(crate) operations: u64,
    pub(crate) latencies: Vec<Duration>,
    pub(crate) lost: u64,
}

impl Outcome {
    /// Returns a quantile of the latencies in microseconds; 0 without any.
    pub(crate) fn quantile(&mut self, q: f64) -> f64 {
        self.latencies.sort_unstable();
        let last = self.latencies.len().saturating_sub(1);
        let at = (last as f64 * q).round() as usize;
        let latency = self.latencies.get(at);
        latency.map_or(0.0, |latency| latency.as_secs_f64() * 1e6)
    }
}

/// Serves `D <bytes>` (sends them), `T <milliseconds>` (sends for as long), `U <bytes>` (takes them, then
/// answers one byte) and `E` (echoes) on a free port, for as long as the process lives.
pub(crate) fn origin() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let listener = Arc::new(listener);
    // Threads that wait for connections: starting one for each would cost as much as the connection.
    for _ in 0..ORIGIN_THREADS {
        let listener = Arc::clone(&listener);
        thread::Builder::new().stack_size(STACK).spawn(move || {
            for stream in listener.incoming().flatten() {
                // A peer that left is not the origin's business.
                let _ = serve(stream);
            }
        })?;
    }
    Ok(address)
}

/// Echoes datagrams on a free port, for as long as the process lives.
pub(crate) fn udp_origin() -> Result<SocketAddr> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    buffers(&socket)?;
    let address = socket.local_addr()?;
    thread::spawn(move || {
        let mut buffer = vec![0; 65_536];
        loop {
            if let Ok((len, from)) = socket.recv_from(&mut buffer) {
                // A full buffer loses it, as networks do; the load counts that.
                let _ = socket.send_to(&buffer[..len], from);
            }
        }
    });
    Ok(address)
}

fn buffers(socket: &UdpSocket) -> Result<()> {
    let socket = SockRef::from(socket);
    socket.set_recv_buffer_size(SOCKET_BUFFER)?;
    socket.set_send_buffer_size(SOCKET_BUFFER)?;
    Ok(())
}

fn serve(stream: TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut writer = stream.try_clone()?;
    let mut reader = BufReader::with_capacity(4096, stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let (verb, bytes) = line
        .trim()
        .split_once(' ')
        .unwrap_or_else(|| (line.trim(), "0"));
    let bytes: u64 = bytes.parse()?;
    match verb {
        "D" => send(&mut writer, bytes)?,
        "T" => send_for(&mut writer, Duration::from_millis(bytes))?,
        "U" => {
            receive(&mut reader, bytes)?;
            writer.write_all(b"!")?;
        }
        "E" => {
            let mut buffer = [0; 4096];
            loop {
                match reader.read(&mut buffer)? {
                    0 => break,
                    count => writer.write_all(&buffer[..count])?,
                }
            }
        }
        _ => bail!("no such verb"),
    }
    Ok(())
}

fn send(stream: &mut impl Write, mut bytes: u64) -> std::io::Result<()> {
    let block: Vec<u8> = (0..BUFFER).map(|i| (i % 251) as u8).collect();
    while bytes > 0 {
        let count = usize::try_from(bytes)
            .unwrap_or(usize::MAX)
            .min(block.len());
        stream.write_all(&block[..count])?;
        bytes -= count as u64;
    }
    Ok(())
}

fn send_for(stream: &mut impl Write, span: Duration) -> std::io::Result<()> {
    let start = Instant::now();
    while start.elapsed() < span {
        send(stream, PIECE)?;
    }
    Ok(())
}

fn receive(stream: &mut impl Read, bytes: u64) -> std::io::Result<u64> {
    let mut block = vec![0; BUFFER];
    let mut total = 0;
    while total < bytes {
        let count = stream.read(&mut block)?;
        if count == 0 {
            break;
        }
        total += count as u64;
    }
    Ok(total)
}

/// Moves `bytes` over `streams` connections through `proxy`.
pub(crate) fn bulk(proxy: SocketAddr, way: Way, bytes: u64, streams: u64) -> Result<Outcome> {
    let start = Instant::now();
    let threads: Vec<_> = (0..streams)
        .map(|_| thread::spawn(move || bulk_stream(proxy, way, bytes / streams)))
        .collect();
    for thread in threads {
        join(thread)?;
    }
    Ok(Outcome {
        elapsed: start.elapsed(),
        operations: bytes / streams * streams,
        ..Outcome::default()
    })
}

/// Waits for a thread of a load.
pub(crate) fn join<T>(thread: thread::JoinHandle<Result<T>>) -> Result<T> {
    thread
        .join()
        .map_err(|_| anyhow::anyhow!("a load thread failed"))?
}

fn bulk_stream(proxy: SocketAddr, way: Way, bytes: u64) -> Result<()> {
    let mut stream = TcpStream::connect(proxy)?;
    stream.set_nodelay(true)?;
    match way {
        Way::Down => {
            stream.write_all(format!("D {bytes}\n").as_bytes())?;
            let got = receive(&mut stream, bytes)?;
            ensure!(got == bytes, "{got} of {bytes} bytes arrived");
        }
        Way::Up => {
            stream.write_all(format!("U {bytes}\n").as_bytes())?;
            send(&mut stream, bytes)?;
            let mut done = [0];
            stream.read_exact(&mut done)?;
        }
    }
    Ok(())
}

/// Receives for `span` and returns the bytes, whatever is left then.
pub(crate) fn download_for(proxy: SocketAddr, span: Duration) -> Result<Outcome> {
    let mut stream = TcpStream::connect(proxy)?;
    stream.set_read_timeout(Some(Duration::from_millis(250)))?;
    stream.write_all(b"D 1099511627776\n")?;
    let start = Instant::now();
    let mut block = vec![0; BUFFER];
    let mut bytes = 0;
    while start.elapsed() < span {
        match stream.read(&mut block) {
            Ok(0) => bail!("the connection ended after {bytes} bytes"),
            Ok(count) => bytes += count as u64,
            Err(error) if is_timeout(&error) => {}
            Err(error) => return Err(error).context(format!("after {bytes} bytes")),
        }
    }
    Ok(Outcome {
        elapsed: start.elapsed(),
        operations: bytes,
        ..Outcome::default()
    })
}

/// What came of a download that was received to its end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Drained {
    /// Bytes that came while the origin sent, and how long that was.
    pub(crate) in_time: u64,
    pub(crate) elapsed: Duration,
    pub(crate) total: u64,
    /// Whether that is all; otherwise the rest took too long.
    pub(crate) whole: bool,
}

/// Receives what an origin sends for `span`, to its end: nothing is on its way then.
pub(crate) fn download_to_the_end(proxy: SocketAddr, span: Duration) -> Result<Drained> {
    let mut stream = TcpStream::connect(proxy)?;
    stream.set_read_timeout(Some(Duration::from_millis(250)))?;
    // Before the origin's clock, so that it does not end first.
    let start = Instant::now();
    stream.write_all(format!("T {}\n", span.as_millis()).as_bytes())?;
    drain(&mut stream, start, span)
}

fn drain(stream: &mut impl Read, start: Instant, span: Duration) -> Result<Drained> {
    let mut block = vec![0; BUFFER];
    let mut bytes = 0;
    let mut in_time = None;
    loop {
        let count = match stream.read(&mut block) {
            Ok(count) => Some(count),
            Err(error) if is_timeout(&error) => None,
            Err(error) => return Err(error).context(format!("after {bytes} bytes")),
        };
        bytes += count.unwrap_or(0) as u64;
        let elapsed = start.elapsed();
        if elapsed >= span {
            in_time.get_or_insert((bytes, elapsed));
        }
        let ended = count == Some(0);
        if !ended && elapsed < span + DRAIN {
            continue;
        }
        let (in_time, elapsed) =
            in_time.with_context(|| format!("the connection ended after {bytes} bytes"))?;
        return Ok(Drained {
            in_time,
            elapsed,
            total: bytes,
            whole: ended,
        });
    }
}

/// Sends for `span` and returns how many bytes were taken.
fn upload_for(proxy: SocketAddr, span: Duration) -> Result<u64> {
    let mut stream = TcpStream::connect(proxy)?;
    stream.set_write_timeout(Some(Duration::from_millis(250)))?;
    stream.write_all(b"U 1099511627776\n")?;
    let start = Instant::now();
    let block = vec![7; BUFFER];
    let mut bytes = 0;
    while start.elapsed() < span {
        match stream.write(&block) {
            Ok(0) => bail!("the connection ended after {bytes} bytes"),
            Ok(count) => bytes += count as u64,
            Err(error) if is_timeout(&error) => {}
            Err(error) => return Err(error).context(format!("after {bytes} bytes")),
        }
    }
    Ok(bytes)
}

/// Moves bytes over `streams` connections at once for `span` and returns how many.
pub(crate) fn bulk_for(proxy: SocketAddr, way: Way, streams: u64, span: Duration) -> Result<u64> {
    let threads: Vec<_> = (0..streams)
        .map(|_| {
            thread::spawn(move || match way {
                Way::Down => Ok(download_for(proxy, span)?.operations),
                Way::Up => upload_for(proxy, span),
            })
        })
        .collect();
    let mut bytes = 0;
    for thread in threads {
        bytes += join(thread)?;
    }
    Ok(bytes)
}

fn is_timeout(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
    )
}

/// Small requests and answers on `streams` connections that stay, for `span`.
pub(crate) fn ping_pong(proxy: SocketAddr, streams: usize, span: Duration) -> Result<Outcome> {
    together(streams, span, move |until| {
        let mut stream = echo_stream(proxy)?;
        Ok(move || -> Result<bool> {
            exchange(&mut stream)?;
            Ok(!until.load(Relaxed))
        })
    })
}

/// A connection for each small request, `at_once` at a time, for `span`.
pub(crate) fn requests(proxy: SocketAddr, at_once: usize, span: Duration) -> Result<Outcome> {
    together(at_once, span, move |until| {
        Ok(move || -> Result<bool> {
            exchange(&mut echo_stream(proxy)?)?;
            Ok(!until.load(Relaxed))
        })
    })
}

/// A few connections one after the other, one byte there and back on each.
pub(crate) fn first_bytes(proxy: SocketAddr, count: u64) -> Result<Outcome> {
    let start = Instant::now();
    let mut latencies = Vec::new();
    for _ in 0..count {
        let begun = Instant::now();
        let mut stream = TcpStream::connect(proxy)?;
        stream.set_nodelay(true)?;
        stream.write_all(b"E\n!")?;
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        latencies.push(begun.elapsed());
    }
    Ok(Outcome {
        elapsed: start.elapsed(),
        operations: count,
        latencies,
        lost: 0,
    })
}

fn echo_stream(proxy: SocketAddr) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(proxy)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    stream.write_all(b"E\n")?;
    Ok(stream)
}

fn exchange(stream: &mut TcpStream) -> Result<()> {
    let mut buffer = [7; SMALL];
    stream.write_all(&buffer)?;
    stream.read_exact(&mut buffer).context("no answer")
}

/// Runs an operation over and over in `count` threads that begin together, until `span` is over.
/// `prepare` is given the mark that says so.
fn together<P, O>(count: usize, span: Duration, prepare: P) -> Result<Outcome>
where
    P: Fn(Arc<AtomicBool>) -> Result<O> + Clone + Send + 'static,
    O: FnMut() -> Result<bool>,
{
    let until = Arc::new(AtomicBool::new(false));
    let ready = Arc::new(Barrier::new(count + 1));
    let mut threads = Vec::new();
    for _ in 0..count {
        let (prepare, until, ready) = (prepare.clone(), Arc::clone(&until), Arc::clone(&ready));
        let thread = thread::Builder::new().stack_size(STACK);
        threads.push(thread.spawn(move || -> Result<Vec<Duration>> {
            let prepared = prepare(until);
            ready.wait();
            let mut operation = prepared?;
            let mut latencies = Vec::with_capacity(4096);
            loop {
                let start = Instant::now();
                let goes_on = operation()?;
                latencies.push(start.elapsed());
                if !goes_on {
                    return Ok(latencies);
                }
            }
        })?);
    }
    ready.wait();
    let start = Instant::now();
    thread::sleep(span);
    until.store(true, Relaxed);
    let mut outcome = Outcome::default();
    for thread in threads {
        outcome.latencies.append(&mut join(thread)?);
    }
    outcome.elapsed = start.elapsed();
    outcome.operations = outcome.latencies.len() as u64;
    Ok(outcome)
}

/// Datagrams to an echo behind `proxy` and back, `window` on their way at a time, for `span`.
pub(crate) fn udp(
    proxy: SocketAddr,
    size: usize,
    window: usize,
    span: Duration,
) -> Result<Outcome> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    buffers(&socket)?;
    socket.connect(proxy)?;
    socket.set_read_timeout(Some(LOST))?;
    let mut datagram = vec![7; size];
    let mut buffer = vec![0; 65_536];
    open_udp(&socket, &mut datagram, &mut buffer)?;
    let mut outcome = Outcome::default();
    // When each number was sent; `None` once it came back. Numbers below `oldest` are lost.
    let (mut sent_at, mut oldest, mut on_way) = (Vec::new(), 0_usize, 0_usize);
    let start = Instant::now();
    let mut sending = true;
    loop {
        sending &= start.elapsed() < span;
        while sending && on_way < window {
            datagram[..8].copy_from_slice(&(sent_at.len() as u64 + 1).to_be_bytes());
            sent_at.push(Some(Instant::now()));
            socket.send(&datagram)?;
            on_way += 1;
        }
        if on_way == 0 {
            break;
        }
        match socket.recv(&mut buffer) {
            Ok(len) if len == size => {
                let number = buffer
                    .first_chunk()
                    .map_or(0, |head| u64::from_be_bytes(*head));
                let at = usize::try_from(number).unwrap_or(0).wrapping_sub(1);
                if at < oldest {
                    continue;
                }
                let sent = sent_at.get_mut(at).and_then(Option::take);
                if let Some(sent) = sent {
                    outcome.latencies.push(sent.elapsed());
                    outcome.operations += 1;
                    on_way -= 1;
                }
            }
            Ok(len) => bail!("a datagram of {len} bytes instead of {size}"),
            Err(error) if is_timeout(&error) => {
                outcome.lost += on_way as u64;
                on_way = 0;
                oldest = sent_at.len();
            }
            Err(error) => return Err(error.into()),
        }
    }
    outcome.elapsed = start.elapsed();
    Ok(outcome)
}

/// Sends datagrams numbered 0 until the session is open and one comes back.
fn open_udp(socket: &UdpSocket, datagram: &mut [u8], buffer: &mut [u8]) -> Result<()> {
    datagram[..8].fill(0);
    for _ in 0..20 {
        socket.send(datagram)?;
        match socket.recv(buffer) {
            Ok(_) => return Ok(()),
            Err(error) if is_timeout(&error) => {}
            Err(error) => return Err(error.into()),
        }
    }
    bail!("no datagram of {} bytes came back", datagram.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_arrives_after_the_time_counts_in_the_total_alone() -> Result<()> {
        let span = Duration::from_millis(50);
        let drained = download_to_the_end(origin()?, span)?;
        assert!(drained.whole && drained.elapsed >= span, "{drained:?}");
        assert!(
            0 < drained.in_time && drained.in_time <= drained.total,
            "{drained:?}"
        );
        assert_eq!(drained.total % PIECE, 0);
        Ok(())
    }

    #[test]
    fn a_connection_that_ends_early_is_an_error() {
        let error = drain(
            &mut [1_u8, 2, 3].as_slice(),
            Instant::now(),
            Duration::from_secs(60),
        )
        .expect_err("too early");
        assert!(error.to_string().contains("after 3 bytes"), "{error}");
    }
}
