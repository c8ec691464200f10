//! Application error codes that connections and streams are closed with.
//!
//! Values of the reference (`core/server`, `core/client`). Peers of other origin close with 0,
//! which means the same as [`NORMAL`].

/// The client or the server is done. HTTP/3 calls it `H3_NO_ERROR`.
pub const NORMAL: u32 = 0x100;

/// The client was not let in, or got an answer that is no HTTP. HTTP/3 calls it
/// `H3_GENERAL_PROTOCOL_ERROR`.
pub const AUTH_FAILED: u32 = 0x101;

/// The server throws the user out, because of a quota or an operator. HTTP/3 calls it
/// `H3_EXCESSIVE_LOAD`.
pub const KICKED: u32 = 0x107;

/// A stream is over: both `STOP_SENDING` and `RESET_STREAM` carry it.
pub const STREAM_DONE: u32 = 0;
