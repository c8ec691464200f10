//! An orchestrator of a fleet of Hysteria 2 nodes, to embed.
//!
//! - [`domain`] identifiers, states, moments: types and rules without I/O
//! - [`secrets`] the master key, sealed values, credentials
//! - [`auth`] identities of nodes and administrators, the table of rights
//! - [`service`] what can be asked of the fleet, for REST and AdminService alike
//! - [`ratelimit`], [`cache`] in this process, or shared through Redis
//! - [`store`] PostgreSQL or SQLite, one file per aggregate; owns `migrations/`
//!
//! It speaks to nodes with the contracts of [`hy2_proto::control`] and does not link QUIC.
#![forbid(unsafe_code)]

pub mod api;
pub mod auth;
pub mod cache;
pub mod domain;
pub mod events;
pub mod ratelimit;
pub mod plan;
pub mod secrets;
pub mod service;
pub mod store;
pub mod targets;
