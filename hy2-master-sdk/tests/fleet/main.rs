//! A master and stub agents over loopback: real TLS, real gRPC.

mod agent;
mod alerts;
mod commands;
mod cost;
mod enrolment;
mod rotation;
mod session;
mod signers;
mod transport;
