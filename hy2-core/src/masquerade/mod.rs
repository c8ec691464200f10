//! The ordinary web site that unauthenticated peers see.

mod body;

pub(crate) use body::unsized_empty;
pub use body::{Body, BodyError, empty, full};
