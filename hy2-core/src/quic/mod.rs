//! How we use QUIC: transport settings, endpoint settings and the handshake adjustments that
//! official peers need. Everything that depends on quinn's version lives here.

mod config;
pub(crate) mod crypto;
mod endpoint;
mod identifiers;
mod parameters;
mod send_window;
mod server_crypto;

pub use config::QuicConfig;
pub(crate) use config::{Role, SEND_WINDOW_MAX, transport, window};
pub use endpoint::ResetKey;
pub(crate) use endpoint::{Recogniser, ServerBase, endpoint_config};
pub(crate) use send_window::SendWindow;
pub(crate) use server_crypto::{ServerCrypto, Vigil};

/// Application close codes of the protocol (reference §1.3; RFC 9114 §8.1).
pub(crate) mod close {
    use quinn::VarInt;

    /// A normal end.
    pub(crate) const OK: VarInt = VarInt::from_u32(0x100);
    /// A client ends the connection because it was not let in.
    pub(crate) const PROTOCOL: VarInt = VarInt::from_u32(0x101);
    /// The server ends a connection or stream that took too much, and on a kick.
    pub(crate) const EXCESSIVE_LOAD: VarInt = VarInt::from_u32(0x107);
}

/// The largest DATAGRAM frame we accept, and assume of a peer that does not say (the official
/// client omits the parameter yet expects datagrams; reference trap 1).
pub(crate) const MAX_DATAGRAM_FRAME: u64 = 1200;
