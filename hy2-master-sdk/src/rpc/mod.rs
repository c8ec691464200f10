//! gRPC for agents, on one port: MasterService over `h2`, NodeManager over `hy2-rev/1`.

mod alerts;
mod enroll;
pub(crate) mod error;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod lease;
mod listener;
pub(crate) mod live;
pub(crate) mod peers;
pub(crate) mod publish;
pub mod reverse;
mod service;
mod session;
mod traffic;

pub use self::listener::TlsError;
pub(crate) use self::listener::{Listener, refresh_tls};
pub use self::live::LiveNode;
