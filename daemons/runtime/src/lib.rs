//! What the daemons of hy2 share: logs, signals, watched files, metrics and progress.
//!
//! Only daemons use this crate. The libraries log and count through facades and leave it to the
//! process to install what receives them; that is done here.
#![deny(unsafe_code)]

mod configuration;
mod descriptors;
mod exposition;
mod interval;
pub mod logging;
mod memory;
mod new_file;
mod panics;
mod progress;
pub mod service;
mod signals;
mod threads;
mod watch;

pub use configuration::{configuration, configuration_text};
pub use descriptors::raise_descriptor_limit;
pub use exposition::{Exposition, Recorder};
pub use interval::interval;
pub use memory::give_memory_back;
pub use new_file::NewFile;
pub use panics::on_panic;
pub use progress::{Progress, Spinner, human_bytes, human_rate};
pub use signals::{Signal, Signals};
pub use threads::start_runtime;
pub use watch::FileWatch;
