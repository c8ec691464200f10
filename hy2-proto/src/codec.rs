//! What all decoders share: the error type and a cursor over borrowed bytes.
//!
//! A decoder that stops for lack of input says [`DecodeError::Incomplete`], and reading more may
//! help. A decoder that has seen something no continuation can repair says
//! [`DecodeError::Invalid`], and the stream or datagram is lost. Lengths are judged as soon as
//! they are read, so a peer that announces too much is refused before it can make anyone wait or
//! allocate.

use std::fmt;

use crate::varint;

/// Why a decoder produced nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes are a proper beginning of a message, but not all of it.
    ///
    /// On a stream: read more and try again. In a datagram, which is always whole: the message
    /// was cut short and is to be dropped.
    #[error("message is incomplete")]
    Incomplete,
    /// No further bytes can make this a message.
    #[error("invalid message: {0}")]
    Invalid(InvalidKind),
}

impl DecodeError {
    /// Returns whether more bytes could turn the failure into a success.
    #[must_use]
    pub fn is_incomplete(self) -> bool {
        self == Self::Incomplete
    }
}

/// The rule of the format that the bytes break.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum InvalidKind {
    /// An address is empty or longer than 2,048 bytes.
    AddressLength,
    /// A message text is longer than its limit (2,048 bytes).
    MessageLength,
    /// Padding is longer than 4,096 bytes, or reaches past the end of its datagram.
    PaddingLength,
    /// A text field is not UTF-8.
    NotUtf8,
    /// A datagram is longer than its format allows.
    DatagramLength,
    /// The first byte or type field names no message of this kind.
    Type,
    /// A fragment's number and the number of fragments contradict each other or the format.
    Fragment,
}

impl fmt::Display for InvalidKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AddressLength => "address length out of range",
            Self::MessageLength => "message text too long",
            Self::PaddingLength => "padding too long",
            Self::NotUtf8 => "text is not UTF-8",
            Self::DatagramLength => "datagram too long",
            Self::Type => "unknown message type",
            Self::Fragment => "fragment number or count out of range",
        })
    }
}

impl From<InvalidKind> for DecodeError {
    fn from(kind: InvalidKind) -> Self {
        Self::Invalid(kind)
    }
}

/// Reads fields off the front of a borrowed buffer.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
    consumed: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(buf: &'a [u8]) -> Self {
        Self {
            rest: buf,
            consumed: 0,
        }
    }

    /// Number of bytes taken so far.
    pub(crate) fn consumed(&self) -> usize {
        self.consumed
    }

    /// Takes everything that is left.
    pub(crate) fn into_rest(self) -> &'a [u8] {
        self.rest
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Result<&'a [u8], DecodeError> {
        let (head, rest) = self
            .rest
            .split_at_checked(len)
            .ok_or(DecodeError::Incomplete)?;
        self.rest = rest;
        self.consumed += len;
        Ok(head)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (head, rest) = self
            .rest
            .split_first_chunk::<N>()
            .ok_or(DecodeError::Incomplete)?;
        self.rest = rest;
        self.consumed += N;
        Ok(*head)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, DecodeError> {
        self.array().map(|[byte]: [u8; 1]| byte)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, DecodeError> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_be_bytes)
    }

    /// Takes a varint length that has to lie in `min..=max`, and breaks `rule` otherwise.
    pub(crate) fn length(
        &mut self,
        min: usize,
        max: usize,
        rule: InvalidKind,
    ) -> Result<usize, DecodeError> {
        let (value, width) = varint::decode(self.rest)?;
        self.bytes(width)?;
        match usize::try_from(value) {
            Ok(len) if (min..=max).contains(&len) => Ok(len),
            _ => Err(rule.into()),
        }
    }

    pub(crate) fn str(&mut self, len: usize) -> Result<&'a str, DecodeError> {
        std::str::from_utf8(self.bytes(len)?).map_err(|_| InvalidKind::NotUtf8.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reader_counts_what_it_takes() {
        let mut reader = Reader::new(&[1, 0, 2, 0, 0, 0, 3, 9]);
        assert_eq!(reader.u8(), Ok(1));
        assert_eq!(reader.u16(), Ok(2));
        assert_eq!(reader.u32(), Ok(3));
        assert_eq!(reader.consumed(), 7);
        assert_eq!(reader.u16(), Err(DecodeError::Incomplete));
        assert_eq!(reader.consumed(), 7, "a failed read takes nothing");
        assert_eq!(reader.into_rest(), &[9]);
    }

    #[test]
    fn a_length_over_its_limit_is_invalid_before_its_bytes_arrive() {
        let mut reader = Reader::new(&[0x48, 0x01]);
        assert_eq!(
            reader.length(1, 2048, InvalidKind::AddressLength),
            Err(DecodeError::Invalid(InvalidKind::AddressLength))
        );
        let mut reader = Reader::new(&[0xff; 8]);
        assert_eq!(
            reader.length(0, 4096, InvalidKind::PaddingLength),
            Err(DecodeError::Invalid(InvalidKind::PaddingLength))
        );
    }
}
