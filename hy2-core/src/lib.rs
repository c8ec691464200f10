//! Hysteria 2 client and server as a library, on quinn, rustls and tokio.
//!
//! [`Server`] and [`Client`] are the two entries. Everything an embedder may replace is a small
//! trait with a default: [`authenticator`], [`outbound`], [`event`], [`masquerade`], the
//! [`socket::SocketFactory`].
//!
//! The libraries install no global crypto provider, metrics recorder or log subscriber; they emit
//! through the `metrics` and `tracing` facades and take TLS configurations built on aws-lc-rs.
//!
//! # Dependencies in the public interface
//!
//! `bytes`, `http`, `quinn` (socket traits and errors), `rustls` (certificates) and
//! `tokio` (`AsyncRead`/`AsyncWrite`) types appear in signatures and are re-exported here.
#![deny(unsafe_code)]

pub mod authenticator;
pub mod client;
pub mod congestion;
pub mod error;
pub mod event;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
pub(crate) mod h3;
#[cfg(feature = "inbound")]
pub mod inbound;
pub mod masquerade;
pub mod memory;
pub mod meter;
pub mod outbound;
pub mod quic;
pub mod relay;
pub mod server;
pub mod socket;
pub mod tls;

pub use bytes;
pub use http;
pub use hy2_proto as proto;
pub use hy2_proto::{address::Address, bandwidth::Bandwidth};
pub use quinn;
pub use rustls;

pub use client::{Client, ClientConfig};
pub use server::{Server, ServerBuilder, ServerHandle};

/// A boxed future: what the dyn-compatible traits of this crate return.
pub type BoxFuture<'a, T> = std::pin::Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The program in the README of the whole project compiles.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
