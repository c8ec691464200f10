//! Embeddable node agent: runs a Hysteria 2 server as an orchestrator wants it, counts what its
//! users move, and goes on without the orchestrator for days.
//!
//! [`Agent::spawn`] is the short way, [`Agent::builder`] the full one. The agent dials its master,
//! takes signed desired state from it, keeps the last good state on disk, and reports upward. It
//! listens to nobody but the users of the proxy and, on this host, a unix socket.
//!
//! - [`agent`]: build, spawn, handle · [`config`]: what an embedder configures
//! - [`identity`]: token, key, certificate, renewal · [`link`]: the way to the master
//! - [`ledger`]: last good state on disk · [`settings`]: a node's configuration, checked
//! - [`reconcile`]: desired against running · [`engine`]: what runs the proxy
//! - [`users`]: who may pass · [`traffic`]: what was moved, exactly once · [`leases`]: quota
//! - [`manager`]: commands of master and host · [`report`], [`logs`], [`diagnostics`]: what is seen
//!
//! # Examples
//!
//! ```no_run
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! use hy2_agent_sdk::{Agent, AgentConfig, config::Enrolment};
//!
//! let mut config = AgentConfig::new("/var/lib/hy2-agent", vec!["master.example:50052".into()]);
//! let pin = "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08".parse()?;
//! config.enrolment = Some(Enrolment::new("the token that the master showed once", pin));
//! let agent = Agent::spawn(config).await?;
//! let mut status = agent.handle().status();
//! status.wait_for(|status| !status.listening.is_empty()).await?;
//! println!("serving on {:?}", agent.handle().listening());
//! # agent.shutdown().await;
//! # Ok(()) }
//! ```
//!
//! # Dependencies in the public interface
//!
//! `hy2_proto::control` messages, `hy2_core` traits, and `tracing_subscriber::Layer`.
#![deny(unsafe_code)]

pub mod agent;
pub mod clock;
pub mod config;
pub mod diagnostics;
pub mod engine;
pub(crate) mod files;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub mod identity;
pub mod leases;
pub mod ledger;
pub mod link;
pub mod logs;
pub mod manager;
pub mod reconcile;
pub mod report;
pub mod settings;
pub mod traffic;
pub mod users;

pub use agent::{Agent, AgentBuilder, AgentHandle, StartError};
pub use config::AgentConfig;
pub use hy2_core;
pub use hy2_proto;

/// A boxed future: what the dyn-compatible traits of this crate return.
pub type BoxFuture<'a, T> = std::pin::Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Version of this agent, as the master sees it.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What this agent can do beyond the first contract; the master asks for nothing else.
pub const CAPABILITIES: &[&str] = &[
    "users.delta",
    "obfuscation.changeover",
    "leases.quota",
    "leases.devices",
    "reverse",
];
