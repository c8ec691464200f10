//! Frames read from a QUIC stream.

use std::{
    future::Future,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use quinn::{ReadError, RecvStream, VarInt};

use super::frame::{Frame, FrameDecoder, FrameError, Place};

/// Most bytes taken from the QUIC receive buffer at a time.
const CHUNK: usize = 16 * 1024;

/// Why no frame follows.
#[derive(Debug)]
pub(super) enum ReadFault {
    /// The stream ended inside a frame.
    Truncated,
    /// The bytes are not what may stand here.
    Frame(FrameError),
    /// The peer reset the stream, or the connection is gone.
    Lost(ReadError),
}

/// Pulls frames from a receive stream; nothing is read ahead of what is asked for.
#[derive(Debug)]
pub(super) struct FrameReader {
    recv: RecvStream,
    decoder: FrameDecoder,
    input: Bytes,
    ended: bool,
    taken: Option<Arc<AtomicU64>>,
}

impl FrameReader {
    /// Reads from `recv`, with `first` in front of what it holds.
    pub(super) fn new(recv: RecvStream, place: Place, first: Bytes) -> Self {
        Self {
            recv,
            decoder: FrameDecoder::new(place),
            input: first,
            ended: false,
            taken: None,
        }
    }

    /// Adds the bytes that are taken from the stream to `taken`.
    pub(super) fn counting(mut self, taken: &Arc<AtomicU64>) -> Self {
        self.taken = Some(Arc::clone(taken));
        self
    }

    /// Gives the stream back, without what was taken from it.
    pub(super) fn into_stream(self) -> RecvStream {
        self.recv
    }

    /// Returns the next frame, or `None` when the stream ended between two frames.
    ///
    /// `held` is told how many bytes wait for the rest of their frame, and may refuse to hold them.
    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
        held: &mut impl FnMut(usize) -> bool,
    ) -> Poll<Result<Option<Frame>, ReadFault>> {
        loop {
            if let Some(frame) = self
                .decoder
                .decode(&mut self.input)
                .map_err(ReadFault::Frame)?
            {
                return Poll::Ready(Ok(Some(frame)));
            }
            if !held(self.decoder.held()) {
                return Poll::Ready(Err(ReadFault::Frame(FrameError::SectionTooLarge)));
            }
            if self.ended {
                let clean = self.decoder.is_between_frames();
                return Poll::Ready(if clean {
                    Ok(None)
                } else {
                    Err(ReadFault::Truncated)
                });
            }
            // Dropping a pending read loses nothing: quinn keeps the bytes until a read returns them.
            let chunk = ready!(pin!(self.recv.read_chunk(CHUNK, true)).poll(cx))
                .map_err(ReadFault::Lost)?;
            match chunk {
                Some(chunk) => {
                    if let Some(taken) = &self.taken {
                        taken.fetch_add(chunk.bytes.len() as u64, Relaxed);
                    }
                    self.input = chunk.bytes;
                }
                None => self.ended = true,
            }
        }
    }

    /// Returns the next frame as [`poll_frame`](Self::poll_frame) does.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub(super) async fn next(
        &mut self,
        mut held: impl FnMut(usize) -> bool,
    ) -> Result<Option<Frame>, ReadFault> {
        std::future::poll_fn(|cx| self.poll_frame(cx, &mut held)).await
    }

    /// Returns whether a part of a field section has arrived, and a part has not.
    pub(super) fn is_inside_section(&self) -> bool {
        self.decoder.is_inside_section()
    }

    /// Asks the peer to send no more.
    ///
    /// Nothing is sent where the end was read or the peer gave up by itself. A stream whose end arrived but was not
    /// read is stopped all the same, and so does the reference's stack after every request without a body.
    pub(super) fn stop(&mut self, code: VarInt) {
        // The only error is that the stream is closed already.
        let _ = self.recv.stop(code);
    }
}
