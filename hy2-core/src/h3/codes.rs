//! Error codes of HTTP/3 and QPACK (RFC 9114, section 8.1; RFC 9204, section 6).

use quinn::VarInt;

/// H3_NO_ERROR
pub(super) const NO_ERROR: VarInt = VarInt::from_u32(0x100);
/// H3_INTERNAL_ERROR
pub(super) const INTERNAL_ERROR: VarInt = VarInt::from_u32(0x102);
/// H3_STREAM_CREATION_ERROR
pub(super) const STREAM_CREATION_ERROR: VarInt = VarInt::from_u32(0x103);
/// H3_CLOSED_CRITICAL_STREAM
pub(super) const CLOSED_CRITICAL_STREAM: VarInt = VarInt::from_u32(0x104);
/// H3_FRAME_UNEXPECTED
pub(super) const FRAME_UNEXPECTED: VarInt = VarInt::from_u32(0x105);
/// H3_FRAME_ERROR
pub(super) const FRAME_ERROR: VarInt = VarInt::from_u32(0x106);
/// H3_EXCESSIVE_LOAD
pub(super) const EXCESSIVE_LOAD: VarInt = VarInt::from_u32(0x107);
/// H3_MISSING_SETTINGS
pub(super) const MISSING_SETTINGS: VarInt = VarInt::from_u32(0x10a);
/// H3_REQUEST_REJECTED
pub(super) const REQUEST_REJECTED: VarInt = VarInt::from_u32(0x10b);
/// H3_REQUEST_CANCELLED
pub(super) const REQUEST_CANCELLED: VarInt = VarInt::from_u32(0x10c);
/// H3_REQUEST_INCOMPLETE
pub(super) const REQUEST_INCOMPLETE: VarInt = VarInt::from_u32(0x10d);
/// H3_MESSAGE_ERROR
pub(super) const MESSAGE_ERROR: VarInt = VarInt::from_u32(0x10e);
/// QPACK_DECOMPRESSION_FAILED
pub(super) const QPACK_DECOMPRESSION_FAILED: VarInt = VarInt::from_u32(0x200);
