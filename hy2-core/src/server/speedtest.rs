//! The built-in speed test: bytes from and to nowhere (reference §1.10).

use bytes::{Bytes, BytesMut};
use hy2_proto::speedtest::{
    CHUNK_LEN, Direction, SpeedtestRequest, SpeedtestResponse, SpeedtestSummary, UNTIL_CLOSED,
};
use quinn::SendStream;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::Instant,
};

use crate::relay::{TcpStream, recv::RelayRecv};

/// Serves one test on a relay stream whose request named the speed test.
pub(super) async fn serve(mut send: SendStream, recv: RelayRecv) {
    if !super::tcp::answer(&mut send, Ok(())).await {
        return;
    }
    let mut stream = TcpStream::new(send, recv, true);
    if let Err(error) = run(&mut stream).await {
        tracing::debug!(%error, "speed test ended early");
    }
}

async fn run(stream: &mut TcpStream) -> std::io::Result<()> {
    let mut request = [0; SpeedtestRequest::LEN];
    stream.read_exact(&mut request).await?;
    let decoded = SpeedtestRequest::decode(&request);
    let mut reply = BytesMut::new();
    let (ok, message) = match decoded {
        Ok(_) => (true, "OK"),
        Err(_) => (false, "invalid request"),
    };
    SpeedtestResponse { ok, message }.encode(&mut reply);
    stream.write_chunk(reply.freeze()).await?;
    match decoded {
        Ok((request, _)) if request.direction == Direction::Download => {
            download(stream, request.length).await
        }
        Ok((request, _)) => upload(stream, request.length).await,
        Err(_) => stream.shutdown().await,
    }
}

async fn download(stream: &mut TcpStream, length: u32) -> std::io::Result<()> {
    // One chunk, shared by every write.
    let chunk = Bytes::from(vec![0; CHUNK_LEN]);
    let mut left = u64::from(length);
    while left > 0 {
        let size = usize::try_from(left).unwrap_or(usize::MAX).min(CHUNK_LEN);
        stream.write_chunk(chunk.slice(..size)).await?;
        if length != UNTIL_CLOSED {
            left -= size as u64;
        }
    }
    stream.shutdown().await
}

async fn upload(stream: &mut TcpStream, length: u32) -> std::io::Result<()> {
    let start = Instant::now();
    let mut received = 0u64;
    while length == UNTIL_CLOSED || received < u64::from(length) {
        match stream.read_chunk().await? {
            Some(chunk) => received += chunk.len() as u64,
            None => break,
        }
    }
    let mut summary = BytesMut::new();
    SpeedtestSummary::new(start.elapsed(), received).encode(&mut summary);
    stream.write_chunk(summary.freeze()).await?;
    stream.shutdown().await
}
