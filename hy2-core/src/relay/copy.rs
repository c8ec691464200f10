//! The only place that joins the two halves of a relay: counted, half-closed, in big strokes.

use std::{
    future::poll_fn,
    io::{self, IoSlice},
    pin::{Pin, pin},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{BufMut, Bytes, BytesMut};
use quinn::{SendStream, StoppedError, VarInt, WriteError};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, Sleep, sleep_until},
};
use tokio_util::io::poll_read_buf;

use crate::quic::close;

use super::{
    limiter::RateLimiter,
    recv::{BATCH, RecvError, RelayRecv, RoundTrip},
};
use crate::meter::UserCounters;

/// Stream code for "the relay is over" (the reference cancels reads with it).
pub(crate) const STREAM_DONE: VarInt = VarInt::from_u32(0);

/// Smallest and largest read from the target.
const READ_MIN: usize = 4 << 10;
const READ_MAX: usize = 64 << 10;

/// Reads below this are small: quinn looks through its send queue segment by segment, so a bulk
/// flow of small writes costs it much more than the same bytes in big ones.
const SMALL: usize = 16 << 10;

/// After this many small reads in a row, each within [`NEAR`] of the end of the wait before and
/// with nothing flowing back, the relay waits so that the socket gathers a bigger read.
const SMALL_RUN: u32 = 16;
const NEAR: Duration = Duration::from_millis(3);

/// How long it waits: this part of the round trip, which nobody notices, within limits. The longer
/// the path, the longer is the send queue and the dearer are small segments in it.
const GATHER_PART: u32 = 64;
const GATHER_MIN: Duration = Duration::from_millis(1);
const GATHER_MAX: Duration = Duration::from_millis(5);

/// Counts and limits what a relay moves. Directions are the reference's: `tx` towards the
/// target, `rx` towards the client.
///
/// `quantum_*` say how much to move at a time, 0 for nothing before a pause; `moved_*` return until when to
/// pause after it, and then `pause_*` say whether that was long enough.
pub(crate) trait Tally {
    fn quantum_tx(&self) -> usize;
    fn quantum_rx(&self) -> usize;
    fn moved_tx(&self, bytes: usize) -> Option<Instant>;
    fn moved_rx(&self, bytes: usize) -> Option<Instant>;
    fn pause_tx(&self) -> Option<Instant>;
    fn pause_rx(&self) -> Option<Instant>;
}

/// Counts nothing: the client's side.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NoTally;

impl Tally for NoTally {
    fn quantum_tx(&self) -> usize {
        usize::MAX
    }
    fn quantum_rx(&self) -> usize {
        usize::MAX
    }
    fn moved_tx(&self, _bytes: usize) -> Option<Instant> {
        None
    }
    fn moved_rx(&self, _bytes: usize) -> Option<Instant> {
        None
    }
    fn pause_tx(&self) -> Option<Instant> {
        None
    }
    fn pause_rx(&self) -> Option<Instant> {
        None
    }
}

/// Counts into a user's cells and pauses at the user's rates.
#[derive(Debug, Clone, Copy)]
pub(crate) struct UserTally<'a> {
    pub(crate) counters: &'a UserCounters,
    pub(crate) tx: &'a RateLimiter,
    pub(crate) rx: &'a RateLimiter,
}

impl Tally for UserTally<'_> {
    fn quantum_tx(&self) -> usize {
        self.tx.quantum()
    }
    fn quantum_rx(&self) -> usize {
        self.rx.quantum()
    }
    fn moved_tx(&self, bytes: usize) -> Option<Instant> {
        self.counters.add_tx(bytes as u64);
        self.tx.take(bytes)
    }
    fn moved_rx(&self, bytes: usize) -> Option<Instant> {
        self.counters.add_rx(bytes as u64);
        self.rx.take(bytes)
    }
    fn pause_tx(&self) -> Option<Instant> {
        self.tx.pause()
    }
    fn pause_rx(&self) -> Option<Instant> {
        self.rx.pause()
    }
}

/// Why a relay did not end cleanly.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum RelayError {
    #[error("the peer's stream failed")]
    Recv(#[source] RecvError),
    #[error("sending to the peer failed")]
    Send(#[source] WriteError),
    #[error("reading from the target failed")]
    TargetRead(#[source] io::Error),
    #[error("writing to the target failed")]
    TargetWrite(#[source] io::Error),
}

/// Relays until both directions are over, or one fails for good.
///
/// An end of file in one direction is passed on and the other goes on. A peer that wants no more
/// data (STOP_SENDING) ends the direction towards it; a target that takes no more ends the
/// direction towards it.
///
/// # Cancel safety
///
/// Dropping the future ends the relay: quinn finishes and stops the stream.
pub(crate) async fn relay<S, T>(
    target: &mut S,
    send: &mut SendStream,
    recv: &mut RelayRecv,
    tally: T,
) -> Result<(), RelayError>
where
    S: AsyncRead + AsyncWrite + Unpin,
    T: Tally,
{
    let mut inward = Inward::default();
    let mut outward = Outward::new(recv.round_trip().clone());
    let result = poll_fn(|cx| {
        let moved_before = inward.moved;
        let inward_done = inward.poll(cx, target, recv, &tally)?;
        if inward.moved != moved_before {
            outward.small_run = 0;
        }
        let outward_done = outward.poll(cx, target, send, &tally)?;
        if inward_done.is_ready() && outward_done.is_ready() {
            Poll::Ready(Ok(()))
        } else {
            Poll::Pending
        }
    })
    .await;
    if let Err(error) = &result {
        // Tell the peer that this is not a clean end; it may have lost bytes.
        let code = match error {
            RelayError::Recv(RecvError::Starved) => close::EXCESSIVE_LOAD,
            _ => STREAM_DONE,
        };
        let _ = send.reset(code);
        recv.stop(code);
    }
    result.and(inward.failure.map_or(Ok(()), Err))
}

/// A pause ordered by a rate limit.
#[derive(Debug, Default)]
struct Pause(Option<Pin<Box<Sleep>>>);

impl Pause {
    fn until(&mut self, deadline: Option<Instant>) {
        if let Some(deadline) = deadline {
            match &mut self.0 {
                Some(sleep) => sleep.as_mut().reset(deadline),
                None => self.0 = Some(Box::pin(sleep_until(deadline))),
            }
        }
    }

    /// Ready when the pause is over; `again` says whether it must go on.
    fn poll(&mut self, cx: &mut Context<'_>, again: impl Fn() -> Option<Instant>) -> Poll<()> {
        while let Some(sleep) = &mut self.0 {
            ready!(sleep.as_mut().poll(cx));
            match again() {
                Some(deadline) => sleep.as_mut().reset(deadline),
                None => self.0 = None,
            }
        }
        Poll::Ready(())
    }
}

/// From the peer's stream to the target.
#[derive(Debug, Default)]
struct Inward {
    moved: u64,
    done: bool,
    pause: Pause,
    /// The target took no more; the other direction may still be worth carrying.
    failure: Option<RelayError>,
}

impl Inward {
    fn poll<S: AsyncWrite + Unpin, T: Tally>(
        &mut self,
        cx: &mut Context<'_>,
        target: &mut S,
        recv: &mut RelayRecv,
        tally: &T,
    ) -> Poll<Result<(), RelayError>> {
        if self.done {
            return Poll::Ready(Ok(()));
        }
        loop {
            if self.pause.poll(cx, || tally.pause_tx()).is_pending() {
                return self.keep_reading(cx, recv);
            }
            if !recv.is_empty() {
                let quantum = tally.quantum_tx();
                if quantum == 0 {
                    self.pause.until(tally.pause_tx());
                    continue;
                }
                match write_ready(cx, target, recv, quantum) {
                    Poll::Ready(Ok(count)) => {
                        recv.consume(count);
                        self.moved += count as u64;
                        self.pause.until(tally.moved_tx(count));
                        continue;
                    }
                    Poll::Ready(Err(error)) => {
                        recv.stop(STREAM_DONE);
                        self.failure = Some(RelayError::TargetWrite(error));
                        self.done = true;
                        return Poll::Ready(Ok(()));
                    }
                    Poll::Pending => return self.keep_reading(cx, recv),
                }
            }
            if recv.is_finished() {
                // A target that is gone cannot be told; its other direction decides.
                let _ = ready!(Pin::new(&mut *target).poll_shutdown(cx));
                self.done = true;
                return Poll::Ready(Ok(()));
            }
            if let Err(error) = ready!(recv.poll_fill(cx)) {
                return Poll::Ready(Err(RelayError::Recv(error)));
            }
        }
    }

    /// Empties quinn while the target does not take anything, as far as memory allows.
    fn keep_reading(
        &self,
        cx: &mut Context<'_>,
        recv: &mut RelayRecv,
    ) -> Poll<Result<(), RelayError>> {
        loop {
            if recv.at_end() {
                return Poll::Pending;
            }
            if let Err(error) = ready!(recv.poll_fill(cx)) {
                return Poll::Ready(Err(RelayError::Recv(error)));
            }
        }
    }
}

/// Writes as many ready chunks as one call takes, at most `limit` bytes.
fn write_ready<S: AsyncWrite + Unpin>(
    cx: &mut Context<'_>,
    target: &mut S,
    recv: &RelayRecv,
    limit: usize,
) -> Poll<io::Result<usize>> {
    let mut slices = [IoSlice::new(&[]); BATCH];
    let mut count = 0;
    let mut room = limit;
    for (slice, chunk) in slices.iter_mut().zip(recv.chunks()) {
        let bytes = chunk.get(..room).unwrap_or(chunk);
        *slice = IoSlice::new(bytes);
        count += 1;
        room -= bytes.len();
        if room == 0 {
            break;
        }
    }
    let filled = slices.get(..count).unwrap_or(&[]);
    let written = if target.is_write_vectored() {
        ready!(Pin::new(target).poll_write_vectored(cx, filled))?
    } else {
        ready!(Pin::new(target).poll_write(cx, filled.first().map_or(&[], |slice| slice)))?
    };
    if written == 0 {
        return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
    }
    Poll::Ready(Ok(written))
}

type Stopped = Pin<Box<dyn Future<Output = Result<Option<VarInt>, StoppedError>> + Send + Sync>>;

/// From the target to the peer's stream.
struct Outward {
    done: bool,
    buffer: BytesMut,
    read_size: usize,
    unsent: Bytes,
    pause: Pause,
    small_run: u32,
    /// When the last read was, or the wait after it ended.
    last_read: Option<Instant>,
    round_trip: RoundTrip,
    stopped: Option<Stopped>,
}

impl Outward {
    fn new(round_trip: RoundTrip) -> Self {
        Self {
            done: false,
            buffer: BytesMut::new(),
            read_size: READ_MIN,
            unsent: Bytes::new(),
            pause: Pause::default(),
            small_run: 0,
            last_read: None,
            round_trip,
            stopped: None,
        }
    }

    fn poll<S: AsyncRead + Unpin, T: Tally>(
        &mut self,
        cx: &mut Context<'_>,
        target: &mut S,
        send: &mut SendStream,
        tally: &T,
    ) -> Poll<Result<(), RelayError>> {
        if self.done {
            return Poll::Ready(Ok(()));
        }
        loop {
            while !self.unsent.is_empty() {
                // What was read before may have to wait, too.
                if tally.quantum_rx() == 0 {
                    self.pause.until(tally.pause_rx());
                    if self.pause.poll(cx, || tally.pause_rx()).is_pending() {
                        return self.watch_for_stop(cx, send);
                    }
                }
                let mut chunks = [std::mem::take(&mut self.unsent)];
                let written = pin!(send.write_chunks(&mut chunks)).poll(cx);
                let [rest] = chunks;
                self.unsent = rest;
                match written {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Ok(written)) => self.pause.until(tally.moved_rx(written.bytes)),
                    Poll::Ready(Err(error)) => return self.refused(error),
                }
            }
            if self.pause.poll(cx, || tally.pause_rx()).is_pending() {
                return self.watch_for_stop(cx, send);
            }
            let quantum = tally.quantum_rx();
            if quantum == 0 {
                self.pause.until(tally.pause_rx());
                continue;
            }
            match self.read(cx, target, quantum) {
                Poll::Pending => return self.watch_for_stop(cx, send),
                Poll::Ready(Err(error)) => {
                    return Poll::Ready(Err(RelayError::TargetRead(error)));
                }
                Poll::Ready(Ok(0)) => {
                    // Fails only when the peer stopped the stream.
                    let _ = send.finish();
                    self.done = true;
                    return Poll::Ready(Ok(()));
                }
                Poll::Ready(Ok(count)) => self.gather(count),
            }
        }
    }

    fn read<S: AsyncRead + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        target: &mut S,
        limit: usize,
    ) -> Poll<io::Result<usize>> {
        if self.buffer.capacity() < self.read_size / 2 {
            self.buffer.reserve(self.read_size);
        }
        let room = self.buffer.capacity();
        let mut buffer = (&mut self.buffer).limit(limit);
        let Poll::Ready(result) = poll_read_buf(Pin::new(target), cx, &mut buffer) else {
            // Nothing to come for a while: hold no memory for it.
            self.buffer = BytesMut::new();
            self.read_size = (self.read_size / 2).max(READ_MIN);
            return Poll::Pending;
        };
        let count = result?;
        if count == room {
            self.read_size = (self.read_size * 4).min(READ_MAX);
        }
        self.unsent = self.buffer.split().freeze();
        Poll::Ready(Ok(count))
    }

    /// Spots a bulk flow of small writes and lets the socket gather them.
    fn gather(&mut self, count: usize) {
        let gathering = self.small_run >= SMALL_RUN;
        if count >= if gathering { READ_MAX / 2 } else { SMALL } {
            self.small_run = 0;
            self.last_read = None;
            return;
        }
        let now = Instant::now();
        let near = self
            .last_read
            .is_some_and(|last| now.saturating_duration_since(last) < NEAR);
        self.last_read = Some(now);
        self.small_run = if near { self.small_run + 1 } else { 0 };
        if self.small_run >= SMALL_RUN {
            let wait = (self.round_trip.get() / GATHER_PART).clamp(GATHER_MIN, GATHER_MAX);
            self.read_size = READ_MAX;
            self.last_read = Some(now + wait);
            self.pause.until(Some(now + wait));
        }
    }

    /// The peer may want no more while the target is silent.
    fn watch_for_stop(
        &mut self,
        cx: &mut Context<'_>,
        send: &SendStream,
    ) -> Poll<Result<(), RelayError>> {
        let stopped = self.stopped.get_or_insert_with(|| Box::pin(send.stopped()));
        match ready!(stopped.as_mut().poll(cx)) {
            Ok(_) => {
                self.done = true;
                Poll::Ready(Ok(()))
            }
            Err(StoppedError::ConnectionLost(error)) => {
                self.refused(WriteError::ConnectionLost(error))
            }
            Err(StoppedError::ZeroRttRejected) => self.refused(WriteError::ZeroRttRejected),
        }
    }

    fn refused(&mut self, error: WriteError) -> Poll<Result<(), RelayError>> {
        self.done = true;
        Poll::Ready(match error {
            WriteError::Stopped(_) => Ok(()),
            error => Err(RelayError::Send(error)),
        })
    }
}
