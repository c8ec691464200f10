//! The reference's clients at our server.

mod tcp;
