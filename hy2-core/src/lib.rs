//! Hysteria 2 client and server as a library, on quinn, h3, rustls and tokio.
#![deny(unsafe_code)]

pub mod congestion;
pub(crate) mod h3;
#[cfg(feature = "inbound")]
pub mod inbound;
pub mod masquerade;
pub mod socket;

/// A boxed future: what the dyn-compatible traits of this crate return.
pub type BoxFuture<'a, T> = std::pin::Pin<Box<dyn Future<Output = T> + Send + 'a>>;
