//! The origin and the load: blocking threads, so that they cost little beside what is measured.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

const BUFFER: usize = 256 << 10;

/// Serves `D <bytes>` (sends them) and `U <bytes>` (takes them, then answers one byte) on a free
/// port, for as long as the process lives.
pub(crate) fn origin() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || serve(stream));
        }
    });
    Ok(address)
}

fn serve(stream: TcpStream) -> Option<()> {
    let mut writer = stream.try_clone().ok()?;
    let mut reader = BufReader::with_capacity(BUFFER, stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let (verb, bytes) = line.trim().split_once(' ')?;
    let bytes: u64 = bytes.parse().ok()?;
    match verb {
        "D" => send(&mut writer, bytes).ok(),
        "U" => {
            receive(&mut reader, bytes).ok()?;
            writer.write_all(b"!").ok()
        }
        _ => None,
    }
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

/// Which way the bytes go, as the user of the proxy sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Down,
    Up,
}

/// Moves `bytes` over `streams` connections through `proxy` and returns the time it took.
pub(crate) fn bulk(proxy: SocketAddr, way: Way, bytes: u64, streams: u64) -> Result<Duration> {
    let start = Instant::now();
    let threads: Vec<_> = (0..streams)
        .map(|_| thread::spawn(move || one(proxy, way, bytes / streams)))
        .collect();
    for thread in threads {
        thread
            .join()
            .map_err(|_| anyhow::anyhow!("load thread failed"))??;
    }
    Ok(start.elapsed())
}

fn one(proxy: SocketAddr, way: Way, bytes: u64) -> Result<()> {
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
