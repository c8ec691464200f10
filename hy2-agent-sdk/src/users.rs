//! Who may pass: the users of the desired state behind `hy2_core`'s `Authenticator`.
//!
//! A credential costs the same whether somebody has it or nobody: two keyed hashes and one lookup.
//! A user who is removed, disabled, expired or out of quota loses live connections at once.

#[cfg(feature = "bench")]
#[doc(hidden)]
pub mod bench;
mod connection;
mod table;
#[cfg(test)]
mod tests;

pub(crate) use connection::{Events, Gate};
pub(crate) use table::{Doors, UserTable};
