//! Identities: of nodes, the private certificate authority and the keys that sign what they obey; of
//! administrators, passwords, sessions, tokens, and the one table of their rights.

pub mod access;
pub mod api_token;
pub mod ca;
pub mod external;
pub mod jwt;
pub mod password;
pub mod session;
pub mod signing;
pub(crate) mod topics;
pub mod totp;
