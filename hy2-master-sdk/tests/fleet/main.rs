//! A master and stub agents over loopback: real TLS, real gRPC.

mod agent;
mod commands;
mod enrolment;
mod session;
mod transport;
