//! Wire formats of the Hysteria 2 protocol.
//!
//! Every function is pure: no sockets, no clock, no randomness of its own. Time and random bytes
//! are arguments. Decoders borrow from their input, never allocate, and tell "more bytes may
//! help" from "never valid" ([`codec::DecodeError`]). Encoders append to any [`bytes::BufMut`],
//! which is the one foreign type in this interface, next to [`bytes::Bytes`].
//!
//! - [`varint`], [`codec`]: what all formats are made of
//! - [`tcp`], [`udp`], [`frag`]: relayed streams and packets
//! - [`auth`], [`padding`], [`close`]: getting in and out
//! - [`address`], [`ports`], [`bandwidth`], [`uri`]: text written by people and peers
//! - [`salamander`], [`gecko`]: obfuscation
//! - [`brutal`]: rate arithmetic of the congestion control
//! - [`speedtest`]: messages of the built-in speed test
//!
//! Feature `control` adds `control`: the gRPC contracts between master, nodes and operators.
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
pub mod brutal;
pub mod close;
pub mod codec;
#[cfg(feature = "control")]
pub mod control;
pub mod frag;
pub mod gecko;
pub mod padding;
pub mod ports;
pub mod salamander;
pub mod speedtest;
pub mod tcp;
pub mod udp;
pub mod uri;
pub mod varint;

/// The examples of the README, compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
