//! The client's side of the speed test (reference §1.10).

use std::{io, time::Duration};

use bytes::{Bytes, BytesMut};
use hy2_proto::{
    codec::DecodeError,
    speedtest::{
        ADDRESS, CHUNK_LEN, Direction, SpeedtestRequest, SpeedtestResponse, SpeedtestSummary,
        UNTIL_CLOSED,
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Instant, timeout, timeout_at},
};

use super::Client;
use crate::{error::OpenError, relay::TcpStream};

/// Time between two calls of the progress function.
const REPORT_EVERY: Duration = Duration::from_millis(200);

/// How long the end of an upload may take until the server has all of it.
const ARRIVAL_WAIT: Duration = Duration::from_secs(60);

/// How much to move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Amount {
    /// This many bytes; fewer than 2^32 − 1.
    Bytes(u32),
    /// As much as goes in this time.
    Time(Duration),
}

/// How far a speed test is.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct SpeedtestProgress {
    /// Bytes moved so far.
    pub bytes: u64,
    /// Time since the first byte.
    pub elapsed: Duration,
    /// Bytes moved since the last report.
    pub recent_bytes: u64,
    /// Time since the last report.
    pub recent: Duration,
}

/// What a speed test found.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct SpeedtestResult {
    /// Bytes that arrived (download: here; upload: there, when the server says).
    pub bytes: u64,
    /// The time it took.
    pub elapsed: Duration,
}

/// Why a speed test failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpeedtestError {
    /// The server does not offer it, or the tunnel failed.
    #[error("speed test not available: {0}")]
    Open(#[source] OpenError),
    /// The server declined.
    #[error("speed test declined by the server: {0}")]
    Declined(String),
    /// The server's answer is not valid.
    #[error("invalid answer from the server")]
    Protocol(#[source] DecodeError),
    /// The stream failed.
    #[error("speed test interrupted")]
    Io(#[from] io::Error),
}

pub(super) async fn run(
    client: &Client,
    direction: Direction,
    amount: Amount,
    mut progress: impl FnMut(SpeedtestProgress) + Send,
) -> Result<SpeedtestResult, SpeedtestError> {
    let mut stream = client.tcp(ADDRESS).await.map_err(SpeedtestError::Open)?;
    let length = match amount {
        Amount::Bytes(bytes) => bytes.min(UNTIL_CLOSED - 1),
        Amount::Time(_) => UNTIL_CLOSED,
    };
    let mut request = BytesMut::new();
    SpeedtestRequest { direction, length }.encode(&mut request);
    stream.write_chunk(request.freeze()).await?;
    read_response(&mut stream).await?;
    let meter = Meter::new(amount, &mut progress);
    match direction {
        Direction::Download => download(stream, meter).await,
        Direction::Upload => upload(stream, meter).await,
    }
}

async fn read_response(stream: &mut TcpStream) -> Result<(), SpeedtestError> {
    // Byte by byte over the short head: what follows belongs to the test.
    let mut bytes = Vec::with_capacity(16);
    loop {
        bytes.push(stream.read_u8().await?);
        match SpeedtestResponse::decode(&bytes) {
            Ok((response, _)) if response.ok => return Ok(()),
            Ok((response, _)) => return Err(SpeedtestError::Declined(response.message.to_owned())),
            Err(DecodeError::Incomplete) => {}
            Err(error) => return Err(SpeedtestError::Protocol(error)),
        }
    }
}

/// Counts, reports, and knows when it is enough.
struct Meter<'a> {
    limit: Option<u64>,
    start: Instant,
    deadline: Option<Instant>,
    bytes: u64,
    reported: (u64, Instant),
    report: &'a mut (dyn FnMut(SpeedtestProgress) + Send),
}

impl<'a> Meter<'a> {
    fn new(amount: Amount, report: &'a mut (dyn FnMut(SpeedtestProgress) + Send)) -> Self {
        let start = Instant::now();
        let (limit, deadline) = match amount {
            Amount::Bytes(bytes) => (Some(u64::from(bytes)), None),
            Amount::Time(time) => (None, Some(start + time)),
        };
        Self {
            limit,
            start,
            deadline,
            bytes: 0,
            reported: (0, start),
            report,
        }
    }

    fn left(&self) -> u64 {
        self.limit
            .map_or(u64::MAX, |limit| limit.saturating_sub(self.bytes))
    }

    fn moved(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
        let now = Instant::now();
        let recent = now.duration_since(self.reported.1);
        if recent >= REPORT_EVERY {
            (self.report)(SpeedtestProgress {
                bytes: self.bytes,
                elapsed: now.duration_since(self.start),
                recent_bytes: self.bytes - self.reported.0,
                recent,
            });
            self.reported = (self.bytes, now);
        }
    }

    /// Waits for `step` until the time is over.
    async fn until_deadline<T>(&self, step: impl Future<Output = T>) -> Option<T> {
        match self.deadline {
            Some(deadline) => timeout_at(deadline, step).await.ok(),
            None => Some(step.await),
        }
    }

    fn result(&self) -> SpeedtestResult {
        SpeedtestResult {
            bytes: self.bytes,
            elapsed: self.start.elapsed(),
        }
    }
}

async fn download(
    mut stream: TcpStream,
    mut meter: Meter<'_>,
) -> Result<SpeedtestResult, SpeedtestError> {
    while meter.left() > 0 {
        match meter.until_deadline(stream.read_chunk()).await {
            Some(Ok(Some(chunk))) => meter.moved(chunk.len()),
            Some(Err(error)) => return Err(error.into()),
            Some(Ok(None)) | None => break,
        }
    }
    Ok(meter.result())
}

async fn upload(
    mut stream: TcpStream,
    mut meter: Meter<'_>,
) -> Result<SpeedtestResult, SpeedtestError> {
    let chunk = Bytes::from(vec![0; CHUNK_LEN]);
    while meter.left() > 0 {
        let size = usize::try_from(meter.left())
            .unwrap_or(usize::MAX)
            .min(CHUNK_LEN);
        match meter
            .until_deadline(stream.write_chunk(chunk.slice(..size)))
            .await
        {
            Some(result) => result?,
            None => break,
        }
        meter.moved(size);
    }
    stream.shutdown().await?;
    let mut summary = [0; SpeedtestSummary::LEN];
    // What was written is not what arrived: the ends hold up to a window each, which takes a slow
    // connection or a limited user long.
    let told = timeout(ARRIVAL_WAIT, async {
        stream.acknowledged().await;
        let sent = meter.result();
        // Servers of the reference end a timed test without a summary.
        (sent, stream.read_exact(&mut summary).await)
    })
    .await;
    let Ok((sent, read)) = told else {
        return Ok(meter.result());
    };
    if let (Ok(_), Ok((summary, _))) = (read, SpeedtestSummary::decode(&summary))
        && summary.bytes < u32::MAX
    {
        return Ok(SpeedtestResult {
            bytes: u64::from(summary.bytes),
            elapsed: Duration::from_millis(u64::from(summary.millis)),
        });
    }
    Ok(sent)
}
