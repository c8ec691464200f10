//! An orchestrator of a fleet of Hysteria 2 nodes, to embed.
//!
//! ```no_run
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! use hy2_master_sdk::Master;
//!
//! let master = Master::sqlite("/var/lib/hy2/master.db")
//!     .key_file("/etc/hy2/master.key")
//!     .agents("0.0.0.0:50052")
//!     .start()
//!     .await?;
//! let token = master
//!     .create_enrolment_token("new york", std::time::Duration::from_secs(900), |_| {})
//!     .await?;
//! println!("{} {}", token.secret, token.ca_pin);
//! master.shutdown().await;
//! # Ok(())
//! # }
//! ```
//!
//! - [`Master`] build, start, handle · [`MasterConfig`] its settings
//! - [`domain`] identifiers, states, moments: types and rules without I/O
//! - [`auth`] identities of nodes and administrators, the table of rights
//! - [`service`] what can be asked of the fleet, for REST and AdminService alike
//! - [`ratelimit`], [`cache`] in this process, or shared through Redis
//! - [`plan`] pure functions: rows in, what a node should have out
//! - [`store`] PostgreSQL or SQLite, one file per aggregate; owns `migrations/`
//! - [`secrets`] the master key, sealed values, credentials
//! - [`rotation`] exchanging the private authority
//! - [`rpc`] gRPC for agents on one port
//! - [`front`] REST, AdminService and subscriptions, with [`auth::external`] for administrators of the
//!   embedder's and [`events::EventSink`] for what happens
//!
//! It speaks to nodes with the contracts of [`hy2_proto::control`] and does not link QUIC.
#![forbid(unsafe_code)]

pub mod api;
pub mod auth;
pub mod backup;
pub mod cache;
mod config;
mod core;
pub mod domain;
pub mod events;
pub mod front;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod master;
pub mod plan;
pub mod ratelimit;
mod reconcile;
#[cfg(feature = "redis")]
pub mod redis;
pub mod rotation;
pub mod rpc;
pub mod secrets;
mod serve;
pub mod service;
mod signers;
pub mod store;
pub mod subscription;
pub mod targets;
pub mod tls;
pub mod webhook;

pub use futures_util::future::BoxFuture;

pub use self::config::MasterConfig;
pub use self::core::KeysError;
pub use self::master::{Builder, IssuedToken, Master, StartError, TokenError};
