//! The receiving half of a relay stream: unordered reads, bounded memory.

use std::{
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use quinn::ReadError;
use tokio::time::{Instant, Sleep, sleep_until};

use super::reassembler::Reassembler;
use crate::{
    congestion::CongestionHandle,
    memory::{MemoryBudget, Reservation},
};

/// Chunks taken from quinn before the consumer gets a turn; as many as one vectored write takes.
pub(crate) const BATCH: usize = 64;

/// Deliverable bytes up to which reading goes at full speed.
const READY_SOFT: usize = 256 << 10;

/// How much more may pile up, while reading slows down, per chunk that waited behind a gap.
const SPAN_PER_GAP: usize = 16 << 10;

/// The most that may pile up while reading slows down.
const SPAN_MAX: usize = 16 << 20;

/// Memory a stream may hold before it counts against the budget.
const UNCOUNTED: usize = 8 << 10;

/// Step in which memory is reserved.
const STEP: usize = 32 << 10;

/// Read at a time once memory counts: what one read brings was not reserved before.
const READ_MAX: usize = 64 << 10;

/// Read by a stream that may take nothing new, to see whether what has come fills a gap: quinn
/// hands out the lowest offset first.
const PROBE: usize = 1;

/// Read behind a probe that does, to the end of the packet.
const PACKET: usize = 1500;

/// A stream refused memory for this long without delivering anything is given up.
const STARVED: Duration = Duration::from_secs(30);

/// Step of a wind-down: a reader that has used up what it may read looks again after this time.
const TICK: Duration = Duration::from_millis(10);

/// The longest wait of a reader that is short of memory. It begins with a [`TICK`] and waits twice
/// as long each time, until something moves.
const PATIENCE_MAX: Duration = Duration::from_millis(160);

/// Why a relay stream can deliver no more.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum RecvError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("stream holds more than its share of memory and makes no progress")]
    Starved,
}

/// Receives a relay stream in order while reading quinn's chunks unordered.
///
/// # Why reading slows down instead of stopping
///
/// When the consumer stalls, the peer may still send a whole window. On a lossy path that window
/// arrives full of gaps, and quinn closes the connection once the unread part has 1,024 of them.
/// Unread gaps are only dangerous while the peer sends at full rate, so reading winds down over
/// several round trips, in proportion to what is already piled up: flow control then slows the
/// peer to a rate at which gaps close faster than they appear.
///
/// # What is reserved
///
/// All that would be held if every gap behind the last byte were filled. So a stream that is refused
/// memory or winds down goes on reading what fills a gap: that needs none, it is what brings memory
/// back, and otherwise each such piece would be one more that is unread in quinn.
#[derive(Debug)]
pub(crate) struct RelayRecv {
    stream: quinn::RecvStream,
    assembler: Reassembler,
    finished: bool,
    /// Kept, because quinn tells of a reset once and then of an end.
    failed: Option<RecvError>,
    memory: Reservation,
    round_trip: RoundTrip,
    /// Most chunks seen behind a gap lately; decays as data is delivered.
    gaps: usize,
    hold: Option<Box<Hold>>,
}

/// Tells the connection's round trip time; asked only while a consumer stalls.
#[derive(Debug, Clone)]
pub(crate) struct RoundTrip(CongestionHandle);

impl RoundTrip {
    pub(crate) fn of(congestion: &CongestionHandle) -> Self {
        Self(congestion.clone())
    }

    pub(crate) fn get(&self) -> Duration {
        self.0.snapshot().smoothed_rtt
    }
}

/// State of a reader that must not read at full speed.
///
/// It sleeps until something happens: data to read while it may read some, or a consumer that
/// takes something. There is a timer only while time alone changes what may be read: in a
/// wind-down, while what has come may fill a gap, and while memory is short.
#[derive(Debug)]
struct Hold {
    timer: Option<Pin<Box<Sleep>>>,
    /// New bytes that may be read until the next look.
    quota: usize,
    /// Bytes of the next look for what fills a gap; 0 when the latest found something else.
    probe: usize,
    /// What was held when it began.
    base: usize,
    /// When `quota` was worked out.
    looked: Instant,
    /// Whether the timer was set for the next step of a wind-down since.
    stepping: bool,
    /// How long to wait for memory.
    patience: Duration,
    starved_since: Option<Instant>,
}

enum Permit {
    /// Read this many bytes at most.
    Upto(usize),
    /// The timer will wake the task, or whoever takes what is there.
    Wait,
}

impl Hold {
    fn begin(now: Instant, claimed: usize) -> Box<Self> {
        Box::new(Self {
            timer: None,
            quota: 0,
            probe: 0,
            base: claimed,
            // The first look is at once.
            looked: now.checked_sub(TICK).unwrap_or(now),
            stepping: false,
            patience: TICK,
            starved_since: None,
        })
    }

    /// Wakes the task at `at`; ready when that has passed.
    fn wake_at(&mut self, cx: &mut Context<'_>, at: Instant) -> Poll<()> {
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(at)));
        if timer.deadline() != at {
            timer.as_mut().reset(at);
        }
        timer.as_mut().poll(cx)
    }

    /// Something moved: memory may come soon.
    fn progressed(&mut self) {
        self.patience = TICK;
        self.starved_since = None;
    }

    /// Accounts for a chunk of `len` bytes; `fills` when it needs no memory that is not reserved.
    fn spend(&mut self, len: usize, fills: bool) {
        if fills {
            self.patience = TICK;
            self.probe = if len == PROBE { PACKET } else { PROBE };
        } else if self.quota > 0 {
            self.quota = self.quota.saturating_sub(len);
        } else {
            self.probe = 0;
        }
    }
}

impl RelayRecv {
    /// Continues a stream whose bytes before `offset` are consumed; `early` are bytes that were
    /// read beyond the header and start at `offset`.
    pub(crate) fn new(
        stream: quinn::RecvStream,
        offset: u64,
        early: Bytes,
        budget: &Arc<MemoryBudget>,
        round_trip: RoundTrip,
    ) -> Self {
        let mut assembler = Reassembler::starting_at(offset);
        assembler.insert(offset, early);
        Self {
            stream,
            assembler,
            finished: false,
            failed: None,
            memory: budget.reservation(),
            round_trip,
            gaps: 0,
            hold: None,
        }
    }

    /// Takes up to [`BATCH`] chunks from quinn. Ready when at least one came or the stream ended.
    /// A failure stays one.
    pub(crate) fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), RecvError>> {
        if self.finished {
            return Poll::Ready(Ok(()));
        }
        if self.failed.is_none() {
            match ready!(self.poll_take(cx)) {
                Ok(()) => return Poll::Ready(Ok(())),
                Err(error) => self.failed = Some(error),
            }
        }
        Poll::Ready(self.failed.clone().map_or(Ok(()), Err))
    }

    fn poll_take(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), RecvError>> {
        let mut taken = 0;
        while taken < BATCH {
            let limit = match self.permit(cx)? {
                Permit::Upto(limit) => limit,
                Permit::Wait => break,
            };
            match pin!(self.stream.read_chunk(limit, false)).poll(cx) {
                Poll::Pending => break,
                Poll::Ready(Ok(None)) => {
                    self.finished = true;
                    break;
                }
                Poll::Ready(Ok(Some(chunk))) => {
                    if let Some(hold) = &mut self.hold {
                        let awaited = self.assembler.ready_bytes() == 0
                            && chunk.offset <= self.assembler.next_offset();
                        let fills = awaited || chunk.offset < self.assembler.end();
                        hold.spend(chunk.bytes.len(), fills);
                    }
                    self.assembler.insert(chunk.offset, chunk.bytes);
                    taken += 1;
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error.into())),
            }
        }
        self.gaps = self.gaps.max(self.assembler.gapped_chunks());
        if taken > 0 || self.finished {
            Poll::Ready(Ok(()))
        } else {
            Poll::Pending
        }
    }

    /// Decides how much may be read now.
    fn permit(&mut self, cx: &mut Context<'_>) -> Result<Permit, RecvError> {
        let held = self.assembler.held();
        let ready = self.assembler.ready_bytes();
        if held <= UNCOUNTED {
            self.hold = None;
            self.memory.shrink(usize::MAX);
            return Ok(Permit::Upto(usize::MAX));
        }
        let claimed = self.assembler.claimed();
        let counted = self.count(claimed);
        if counted && ready <= READY_SOFT {
            self.hold = None;
            return Ok(Permit::Upto(READ_MAX));
        }
        let now = Instant::now();
        let gapped = self.assembler.end() > self.assembler.next_offset();
        let hold = self.hold.get_or_insert_with(|| Hold::begin(now, claimed));
        let gives_up = if counted {
            hold.starved_since = None;
            None
        } else {
            let since = *hold.starved_since.get_or_insert(now);
            if now.duration_since(since) >= STARVED {
                return Err(RecvError::Starved);
            }
            Some(since + STARVED)
        };
        loop {
            // What may still pile up: a span, as far as there is memory for it. What was held
            // before does not count; it fills up behind the gaps that close.
            let span = (self.gaps * SPAN_PER_GAP).min(SPAN_MAX);
            let left = span.saturating_sub(claimed.saturating_sub(hold.base));
            let free = self.memory.budget().free();
            let short = !counted || free < left.min(STEP);
            // The share of it that one step of a wind-down over four round trips covers.
            let fall = 4 * self.round_trip.get().max(Duration::from_millis(25));
            let allowance = |step: Duration| {
                let share = (step.as_secs_f64() / fall.as_secs_f64()).min(1.0);
                if counted {
                    (left.min(free) as f64 * share) as usize
                } else {
                    0
                }
            };
            if now >= hold.looked + TICK {
                // A timer that is late must not slow the wind-down; other waits say nothing.
                let step = match hold.stepping {
                    true => now.duration_since(hold.looked),
                    false => TICK,
                };
                hold.quota = allowance(step);
                // Also when nothing else can be delivered: somebody must find out that it has come.
                hold.probe = if gapped || ready == 0 { PROBE } else { 0 };
                hold.looked = now;
                hold.stepping = false;
                if short {
                    hold.patience = (2 * hold.patience).min(PATIENCE_MAX);
                }
            }
            let may = match hold.quota {
                0 => hold.probe,
                quota => quota,
            };
            if may > 0 {
                // Nothing may come any more: then only the end of its patience wakes the task.
                if let Some(end) = gives_up
                    && hold.wake_at(cx, end).is_ready()
                {
                    return Err(RecvError::Starved);
                }
                return Ok(Permit::Upto(may));
            }
            let at = if short {
                let at = hold.looked + hold.patience;
                gives_up.map_or(at, |end| end.min(at))
            } else if gapped || allowance(TICK) > 0 {
                hold.stepping = true;
                hold.looked + TICK
            } else {
                // Until the consumer takes something there is nothing to wait for.
                hold.timer = None;
                return Ok(Permit::Wait);
            };
            if hold.wake_at(cx, at).is_pending() {
                return Ok(Permit::Wait);
            }
            if now < at {
                // The timer is ahead of the clock that was read above; the task looks again.
                cx.waker().wake_by_ref();
                return Ok(Permit::Wait);
            }
            if gives_up.is_some_and(|end| now >= end) {
                return Err(RecvError::Starved);
            }
        }
    }

    /// Brings the reservation in line with what is claimed; `false` when the budget is exhausted.
    fn count(&mut self, claimed: usize) -> bool {
        let reserved = self.memory.bytes();
        if claimed > reserved {
            return self
                .memory
                .try_grow(claimed.next_multiple_of(STEP) - reserved);
        }
        if reserved > claimed + 2 * STEP {
            self.memory
                .shrink(reserved - claimed.next_multiple_of(STEP));
        }
        true
    }

    /// Tells the round trip time of the connection this stream is of.
    pub(crate) fn round_trip(&self) -> &RoundTrip {
        &self.round_trip
    }

    /// The bytes in order, as chunks.
    pub(crate) fn chunks(&self) -> impl Iterator<Item = &Bytes> {
        self.assembler.chunks()
    }

    /// Tells whether nothing is ready to be delivered.
    pub(crate) fn is_empty(&self) -> bool {
        self.assembler.ready_bytes() == 0
    }

    /// Tells whether the peer will send no more, delivered or not.
    pub(crate) fn at_end(&self) -> bool {
        self.finished
    }

    /// Tells whether everything was delivered and the peer will send no more.
    pub(crate) fn is_finished(&self) -> bool {
        self.finished && self.is_empty()
    }

    /// Marks the first `count` ready bytes as delivered.
    pub(crate) fn consume(&mut self, count: usize) {
        self.assembler.consume(count);
        self.delivered(count);
    }

    fn delivered(&mut self, count: usize) {
        if self.memory.bytes() > 0 {
            self.memory.budget().add_moved(count);
            // Nothing may be read any more that would bring the reservation in line.
            if self.finished && self.assembler.held() == 0 {
                self.memory.shrink(usize::MAX);
            }
        }
        if let Some(hold) = &mut self.hold {
            hold.progressed();
        }
        if self.assembler.gapped_chunks() * 2 < self.gaps {
            self.gaps -= self.gaps.div_ceil(64);
        }
    }

    /// Takes the next chunk, at most `limit` bytes of it; `None` at the end.
    pub(crate) fn poll_chunk(
        &mut self,
        cx: &mut Context<'_>,
        limit: usize,
    ) -> Poll<Result<Option<Bytes>, RecvError>> {
        loop {
            if let Some(mut bytes) = self.assembler.pop() {
                let rest = bytes.split_off(limit.min(bytes.len()));
                self.assembler.unpop(rest);
                self.delivered(bytes.len());
                return Poll::Ready(Ok(Some(bytes)));
            }
            if self.finished {
                return Poll::Ready(Ok(None));
            }
            ready!(self.poll_fill(cx))?;
        }
    }

    /// Puts bytes that were taken too many back in front.
    pub(crate) fn put_back(&mut self, bytes: Bytes) {
        self.assembler.unpop(bytes);
    }

    /// Tells the peer to stop sending, with `code`.
    pub(crate) fn stop(&mut self, code: quinn::VarInt) {
        // Fails only when the stream is over anyway.
        let _ = self.stream.stop(code);
        self.finished = true;
    }
}
