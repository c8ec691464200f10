//! The body of a request, read from its stream only as fast as somebody asks for it.
//!
//! What nobody asks for stays in QUIC's receive window, so it costs the peer's credit and none of our memory.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame as BodyFrame, SizeHint};
use parking_lot::Mutex;
use quinn::{Connection, VarInt};

use super::{
    budget::Share,
    codes,
    frame::{Frame, FrameError},
    reader::{FrameReader, ReadFault},
    request,
};
use crate::masquerade::BodyError;

/// Where a body leaves its stream, so that the stream is stopped when the answer was sent and not when the handler
/// happened to drop the body.
#[derive(Debug, Default)]
pub(super) struct Home {
    slot: Mutex<Slot>,
}

#[derive(Debug, Default)]
enum Slot {
    /// The body is still around.
    #[default]
    Lent,
    /// The body was dropped.
    Returned(FrameReader),
    /// The answer was sent, or cannot be; with what the peer is told when the body is dropped.
    Closed(VarInt),
    /// The peer sent more than it declared.
    Violated,
}

impl Home {
    /// Ends the request's side of the stream: at once, or when the body is dropped.
    pub(super) fn close(&self, code: VarInt) {
        let slot = std::mem::replace(&mut *self.slot.lock(), Slot::Closed(code));
        if let Slot::Returned(mut reader) = slot {
            reader.stop(code);
        }
    }

    /// Returns whether the body broke its declared length, in which case there is no answer.
    pub(super) fn is_violated(&self) -> bool {
        matches!(*self.slot.lock(), Slot::Violated)
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct RequestBody {
    reader: Option<FrameReader>,
    home: Arc<Home>,
    conn: Connection,
    /// Pays for trailers that are not complete.
    share: Share,
    /// Bytes that the declared length still allows.
    allowed: Option<u64>,
    /// Bytes left in the current DATA frame.
    in_frame: u64,
    trailers_seen: bool,
    ended: bool,
}

impl RequestBody {
    /// Takes the stream behind the field section.
    pub(super) fn new(
        reader: FrameReader,
        home: Arc<Home>,
        conn: Connection,
        share: Share,
        length: Option<u64>,
    ) -> Self {
        Self {
            reader: Some(reader),
            home,
            conn,
            share,
            allowed: length,
            in_frame: 0,
            trailers_seen: false,
            ended: false,
        }
    }

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, BodyError>> {
        loop {
            if self.allowed == Some(0) && self.in_frame > 0 {
                return Poll::Ready(Err(self.violate()));
            }
            let Some(reader) = &mut self.reader else {
                return Poll::Ready(Ok(None));
            };
            let share = &mut self.share;
            match ready!(reader.poll_frame(cx, &mut |held| share.resize(held))) {
                Ok(Some(Frame::DataHead(_) | Frame::Headers(_))) if self.trailers_seen => {
                    return Poll::Ready(Err(invalid("frames follow the trailers")));
                }
                Ok(Some(Frame::DataHead(length))) => self.in_frame = length,
                Ok(Some(Frame::Data(data))) => {
                    let len = data.len() as u64;
                    self.in_frame = self.in_frame.saturating_sub(len);
                    if let Some(allowed) = &mut self.allowed {
                        match allowed.checked_sub(len) {
                            Some(left) => *allowed = left,
                            None => return Poll::Ready(Err(self.violate())),
                        }
                    }
                    return Poll::Ready(Ok(Some(data)));
                }
                // Nobody here has a use for trailers, but they have to be some.
                Ok(Some(Frame::Headers(section))) => match request::check_trailers(&section) {
                    Ok(()) => self.trailers_seen = true,
                    Err(_) => return Poll::Ready(Err(invalid("malformed trailers"))),
                },
                Ok(Some(Frame::HeadersHead)) => {}
                Ok(Some(Frame::Settings | Frame::GoAway))
                | Err(ReadFault::Frame(FrameError::Reserved)) => {
                    self.conn.close(codes::FRAME_UNEXPECTED, b"");
                    return Poll::Ready(Err(invalid("a frame that must not stand here")));
                }
                Ok(None) => return Poll::Ready(Ok(None)),
                // To the reference's stack, and so to any handler behind it, a body may end anywhere but inside its
                // trailers. Who declared a length is held to it by whoever uses the body.
                Err(ReadFault::Truncated) if !reader.is_inside_section() => {
                    return Poll::Ready(Ok(None));
                }
                Err(ReadFault::Frame(FrameError::CutShort)) => return Poll::Ready(Ok(None)),
                Err(ReadFault::Truncated) => {
                    return Poll::Ready(Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()));
                }
                Err(ReadFault::Lost(error)) => return Poll::Ready(Err(error.into())),
                Err(ReadFault::Frame(_)) => return Poll::Ready(Err(invalid("a malformed frame"))),
            }
        }
    }

    fn violate(&mut self) -> BodyError {
        if let Some(mut reader) = self.reader.take() {
            reader.stop(codes::MESSAGE_ERROR);
        }
        *self.home.slot.lock() = Slot::Violated;
        invalid("more than the declared length")
    }
}

fn invalid(what: &'static str) -> BodyError {
    io::Error::new(io::ErrorKind::InvalidData, what).into()
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<BodyFrame<Bytes>, BodyError>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let data = ready!(self.poll_data(cx));
        self.ended = !matches!(data, Ok(Some(_)));
        Poll::Ready(data.transpose().map(|data| data.map(BodyFrame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.ended || (self.allowed == Some(0) && self.in_frame == 0)
    }

    fn size_hint(&self) -> SizeHint {
        self.allowed
            .map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        let Some(mut reader) = self.reader.take() else {
            return;
        };
        let mut slot = self.home.slot.lock();
        match *slot {
            Slot::Lent => *slot = Slot::Returned(reader),
            Slot::Closed(code) => reader.stop(code),
            Slot::Returned(_) | Slot::Violated => {}
        }
    }
}
