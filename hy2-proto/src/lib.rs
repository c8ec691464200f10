//! Wire formats of the Hysteria 2 protocol.
//!
//! Every function is pure: no sockets, no clock, no randomness of its own. Time and random bytes
//! are arguments. Decoders borrow from their input, never allocate, and tell "more bytes may
//! help" from "never valid" ([`codec::DecodeError`]).
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::string_slice,
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::cast_sign_loss,
        clippy::unwrap_used,
        clippy::panic,
        clippy::disallowed_methods
    )
)]

pub mod address;
pub mod auth;
pub mod bandwidth;
pub mod codec;
pub mod frag;
pub mod padding;
pub mod salamander;
pub mod tcp;
pub mod udp;
pub mod varint;
