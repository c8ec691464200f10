//! Error codes of HTTP/3 and QPACK (RFC 9114, section 8.1; RFC 9204, section 6) and of Hysteria on top.

use quinn::VarInt;

/// H3_NO_ERROR: nothing went wrong; also the ordinary end of a Hysteria connection.
pub(crate) const NO_ERROR: VarInt = VarInt::from_u32(0x100);
/// H3_GENERAL_PROTOCOL_ERROR: what a client closes with when it was not let in.
pub(crate) const GENERAL_PROTOCOL_ERROR: VarInt = VarInt::from_u32(0x101);
/// H3_INTERNAL_ERROR
pub(crate) const INTERNAL_ERROR: VarInt = VarInt::from_u32(0x102);
/// H3_STREAM_CREATION_ERROR
pub(crate) const STREAM_CREATION_ERROR: VarInt = VarInt::from_u32(0x103);
/// H3_CLOSED_CRITICAL_STREAM
pub(crate) const CLOSED_CRITICAL_STREAM: VarInt = VarInt::from_u32(0x104);
/// H3_FRAME_UNEXPECTED
pub(crate) const FRAME_UNEXPECTED: VarInt = VarInt::from_u32(0x105);
/// H3_FRAME_ERROR
pub(crate) const FRAME_ERROR: VarInt = VarInt::from_u32(0x106);
/// H3_EXCESSIVE_LOAD: also what the reference closes with when a user is kicked.
pub(crate) const EXCESSIVE_LOAD: VarInt = VarInt::from_u32(0x107);
/// H3_MISSING_SETTINGS
pub(crate) const MISSING_SETTINGS: VarInt = VarInt::from_u32(0x10a);
/// H3_REQUEST_REJECTED
pub(crate) const REQUEST_REJECTED: VarInt = VarInt::from_u32(0x10b);
/// H3_REQUEST_CANCELLED
pub(crate) const REQUEST_CANCELLED: VarInt = VarInt::from_u32(0x10c);
/// H3_REQUEST_INCOMPLETE
pub(crate) const REQUEST_INCOMPLETE: VarInt = VarInt::from_u32(0x10d);
/// H3_MESSAGE_ERROR
pub(crate) const MESSAGE_ERROR: VarInt = VarInt::from_u32(0x10e);
/// QPACK_DECOMPRESSION_FAILED
pub(crate) const QPACK_DECOMPRESSION_FAILED: VarInt = VarInt::from_u32(0x200);
