//! The first varint of a stream.

use bytes::Bytes;
use hy2_proto::{tcp, varint};
use quinn::{ReadError, RecvStream};

/// Reads the first varint of a stream and not a byte of a relay stream behind it.
///
/// The state is here and not in the future, so a read may be polled once, dropped, and taken up again elsewhere.
#[derive(Debug, Default)]
pub(super) struct Peek {
    bytes: [u8; varint::MAX_LEN],
    len: usize,
}

/// The narrowest encoding of [`tcp::FRAME_TYPE`] has two bytes. Reading two at once is one read less for every relay
/// stream, and where the varint turns out to have one byte only, the stream is no relay stream.
const FIRST_READ: usize = varint::len(tcp::FRAME_TYPE);

impl Peek {
    /// Returns the value, or `None` when the stream ends before the varint does.
    ///
    /// # Errors
    /// The stream was reset or the connection is lost.
    ///
    /// # Cancel safety
    /// Bytes that were read stay in `self`.
    pub(super) async fn value(&mut self, recv: &mut RecvStream) -> Result<Option<u64>, ReadError> {
        loop {
            if let Some(value) = self.known() {
                return Ok(Some(value));
            }
            match recv.read(self.room()).await? {
                Some(read) => self.filled(read),
                None => return Ok(None),
            }
        }
    }

    /// Returns the value once all of it was read.
    pub(super) fn known(&self) -> Option<u64> {
        let decoded = varint::decode(&self.bytes[..self.len]);
        decoded.ok().map(|(value, _)| value)
    }

    /// Returns the place for the bytes to read next; only for as long as the value is not known.
    pub(super) fn room(&mut self) -> &mut [u8] {
        let wanted = if self.len == 0 {
            FIRST_READ
        } else {
            varint::width(self.bytes[0])
        };
        &mut self.bytes[self.len..wanted]
    }

    /// Counts bytes that were read into [`room`](Self::room).
    pub(super) fn filled(&mut self, read: usize) {
        self.len += read;
    }

    /// Returns what was read behind the value: one byte at most, and none on a relay stream.
    pub(super) fn behind_value(&self) -> Bytes {
        let used = varint::width(self.bytes[0]).min(self.len);
        Bytes::copy_from_slice(&self.bytes[used..self.len])
    }

    /// Returns the bytes that were taken from the stream.
    pub(super) fn into_bytes(self) -> Bytes {
        Bytes::copy_from_slice(&self.bytes[..self.len])
    }
}
