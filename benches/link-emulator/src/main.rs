//! Relays UDP between a client and a server through a modelled link.
fn main() {}
