//! Wire formats of the Hysteria 2 protocol.
//!
//! Every function is pure: no sockets, no clock, no randomness of its own. Decoders borrow from
//! their input, never allocate, and tell "more bytes may help" from "never valid".
#![forbid(unsafe_code)]
