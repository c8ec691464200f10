//! TLS settings of servers and clients: certificates that reload, SNI guard, pins, mutual TLS.

mod anchor;
mod client;
mod provider;
mod server;

pub(crate) use client::TlsFailure;
pub use client::{ClientIdentity, ClientTls};
pub use server::{CertificateError, ServerTls, SniGuard};

/// The protocol name that both sides negotiate (RFC 9114 §3.1).
pub(crate) const ALPN_H3: &[u8] = b"h3";
