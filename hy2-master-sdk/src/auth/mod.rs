//! Identities: the private certificate authority, and the keys that sign what nodes obey.

pub mod ca;
pub mod signing;
