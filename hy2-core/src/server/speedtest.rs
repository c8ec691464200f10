//! The built-in speed test: bytes from and to nowhere (reference §1.10).

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hy2_proto::speedtest::{
    CHUNK_LEN, Direction, SpeedtestRequest, SpeedtestResponse, SpeedtestSummary, UNTIL_CLOSED,
};
use quinn::SendStream;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Instant, sleep_until, timeout},
};

use super::users::Member;
use crate::relay::{
    TcpStream,
    copy::{Tally, UserTally},
    recv::RelayRecv,
};

/// Serves one test on a relay stream whose request named the speed test. Counted and limited like
/// any other traffic of the user. The end waits up to `patience` for the client to have it all.
pub(super) async fn serve(
    member: &Member,
    mut send: SendStream,
    recv: RelayRecv,
    patience: Duration,
) -> std::io::Result<()> {
    if !super::tcp::answer(&mut send, Ok(())).await {
        return Err(std::io::ErrorKind::BrokenPipe.into());
    }
    let mut stream = TcpStream::new(send, recv, true);
    run(&mut stream, UserTally::of(member)).await?;
    let _ = timeout(patience, stream.acknowledged()).await;
    Ok(())
}

async fn run(stream: &mut TcpStream, tally: UserTally<'_>) -> std::io::Result<()> {
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
            download(stream, request.length, tally).await
        }
        Ok((request, _)) => upload(stream, request.length, tally).await,
        Err(_) => stream.shutdown().await,
    }
}

async fn download(
    stream: &mut TcpStream,
    length: u32,
    tally: UserTally<'_>,
) -> std::io::Result<()> {
    // One chunk, shared by every write.
    let chunk = Bytes::from(vec![0; CHUNK_LEN]);
    let mut left = u64::from(length);
    while left > 0 {
        let size = usize::try_from(left).unwrap_or(usize::MAX).min(CHUNK_LEN);
        // Counted first: a write that is broken off may have sent a part.
        let mut pause = tally.moved_rx(size);
        while let Some(until) = pause {
            sleep_until(until).await;
            pause = tally.pause_rx();
        }
        stream.write_chunk(chunk.slice(..size)).await?;
        if length != UNTIL_CLOSED {
            left -= size as u64;
        }
    }
    stream.shutdown().await
}

async fn upload(stream: &mut TcpStream, length: u32, tally: UserTally<'_>) -> std::io::Result<()> {
    let start = Instant::now();
    let mut received = 0u64;
    while length == UNTIL_CLOSED || received < u64::from(length) {
        match stream.read_chunk().await? {
            Some(chunk) => {
                received += chunk.len() as u64;
                let mut pause = tally.moved_tx(chunk.len());
                while let Some(until) = pause {
                    sleep_until(until).await;
                    pause = tally.pause_tx();
                }
            }
            None => break,
        }
    }
    let mut summary = BytesMut::new();
    SpeedtestSummary::new(start.elapsed(), received).encode(&mut summary);
    stream.write_chunk(summary.freeze()).await?;
    stream.shutdown().await
}
