//! An orchestrator of a fleet of Hysteria 2 nodes, to embed.
//!
//! - [`domain`] identifiers, states, moments: types and rules without I/O
//! - [`secrets`] the master key, sealed values, credentials
//! - [`store`] PostgreSQL or SQLite, one file per aggregate; owns `migrations/`
//!
//! It speaks to nodes with the contracts of [`hy2_proto::control`] and does not link QUIC.
#![forbid(unsafe_code)]

pub mod auth;
pub mod domain;
pub mod plan;
pub mod secrets;
pub mod store;
