//! Checked traffic through our client, against the ports of an origin.

use std::{
    io,
    time::{Duration, Instant},
};

use hy2_core::{Client, bytes::Bytes, client::UdpSession, relay::TcpStream};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

use super::{MIB, soon};
use crate::peer::{PERIOD, pattern};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// How long a datagram on loopback may take to come back before it counts as lost.
const UDP_WAIT: Duration = Duration::from_secs(5);

/// A transfer whose every byte was compared.
#[derive(Debug)]
pub(crate) struct Moved {
    pub(crate) bytes: u64,
    pub(crate) sha256: String,
    pub(crate) took: Duration,
}

impl Moved {
    /// For a human reader; no test depends on it.
    pub(crate) fn mebibytes_per_second(&self) -> f64 {
        self.bytes as f64 / MIB as f64 / self.took.as_secs_f64()
    }
}

/// Traffic through a client.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Through<'a>(pub(crate) &'a Client);

impl Through<'_> {
    /// Sends `bytes` of a pattern to an echo and compares what comes back.
    pub(crate) async fn echo(self, target: &str, bytes: usize, seed: u64) -> Outcome<()> {
        let stream = soon(self.0.tcp(target)).await?;
        echo_on(stream, bytes, seed).await
    }

    /// Reads `bytes` from a source and compares them with its pattern.
    pub(crate) async fn download(self, source: &str, bytes: u64, seed: u64) -> Outcome<Moved> {
        let mut stream = soon(self.0.tcp(source)).await?;
        let start = Instant::now();
        soon(stream.write_all(format!("{bytes} {seed}\n").as_bytes())).await?;
        let block = pattern(seed, PERIOD);
        let mut hash = Sha256::new();
        let mut at = 0;
        while let Some(chunk) = soon(stream.read_chunk()).await? {
            let mut rest = &chunk[..];
            while !rest.is_empty() {
                let from = (at % PERIOD as u64) as usize;
                let count = rest.len().min(PERIOD - from);
                assert!(
                    rest[..count] == block[from..from + count],
                    "wrong bytes in the {count} from {at}"
                );
                at += count as u64;
                rest = &rest[count..];
            }
            hash.update(&chunk);
        }
        assert_eq!(at, bytes, "bytes of the download");
        Ok(Moved {
            bytes,
            sha256: hex::encode(hash.finalize()),
            took: start.elapsed(),
        })
    }

    /// Sends `bytes` of a pattern to a sink and compares the sink's checksum.
    pub(crate) async fn upload(self, sink: &str, bytes: u64, seed: u64) -> Outcome<Moved> {
        #[derive(Deserialize)]
        struct Swallowed {
            bytes: u64,
            sha256: String,
        }
        let mut stream = soon(self.0.tcp(sink)).await?;
        let start = Instant::now();
        soon(stream.write_all(format!("{bytes}\n").as_bytes())).await?;
        let block = Bytes::from(pattern(seed, PERIOD));
        let mut hash = Sha256::new();
        let mut left = bytes;
        while left > 0 {
            let chunk = block.slice(..PERIOD.min(usize::try_from(left).unwrap_or(usize::MAX)));
            hash.update(&chunk);
            left -= chunk.len() as u64;
            soon(stream.write_chunk(chunk)).await?;
        }
        let mut answer = Vec::new();
        soon(stream.read_to_end(&mut answer)).await?;
        let answer: Swallowed = serde_json::from_slice(&answer)?;
        let sha256 = hex::encode(hash.finalize());
        assert_eq!((answer.bytes, answer.sha256), (bytes, sha256.clone()));
        Ok(Moved {
            bytes,
            sha256,
            took: start.elapsed(),
        })
    }
}

/// Echoes on an open stream and ends it.
pub(crate) async fn echo_on(stream: TcpStream, bytes: usize, seed: u64) -> Outcome<()> {
    let sent = pattern(seed, bytes);
    let (mut read, mut write) = tokio::io::split(stream);
    let mut back = vec![0; bytes];
    let both = async { tokio::try_join!(write.write_all(&sent), read.read_exact(&mut back)) };
    soon(both).await?;
    assert!(back == sent, "the echo of {bytes} bytes differs");
    soon(write.shutdown()).await?;
    let rest = soon(read.read(&mut [0; 16])).await?;
    assert_eq!(rest, 0, "bytes after the end of the echo");
    Ok(())
}

/// Returns bytes of which no two neighbours of a few hundred are alike, so that what changed places
/// shows; another `seed`, others.
pub(crate) fn bytes(len: usize, seed: usize) -> Vec<u8> {
    (0..len)
        .map(|at| ((at + seed) * 7 % 251 + at / 251) as u8)
        .collect()
}

/// Sends one datagram and waits for its echo, which must come from where it went.
pub(crate) async fn udp_echo(session: &UdpSession, target: &str, data: &[u8]) -> Outcome<()> {
    session.send(data, target)?;
    let packet = timeout(UDP_WAIT, session.recv())
        .await
        .map_err(|_| io::Error::other(format!("{} bytes did not come back", data.len())))?
        .ok_or("the session is over")?;
    assert_eq!(packet.source(), target);
    assert!(
        packet.data == data,
        "the echo of {} bytes differs",
        data.len()
    );
    Ok(())
}
