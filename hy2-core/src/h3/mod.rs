//! HTTP/3 beside relay streams on one QUIC connection.
//!
//! To anybody without the password a server is an HTTP/3 site and nothing else, so what this module does with every
//! byte follows the HTTP/3 stack under the reference server and under Caddy (quic-go): frames, error codes, the texts
//! in them, and its silence. That is why it is written from the frames up: a general HTTP/3 library brings its own
//! settings, streams, checks and close reasons, and covering all of them up costs more than the small part of HTTP/3
//! that a site needs (no push, no dynamic table, no datagrams).
//!
//! * [`Front`] serves one connection: requests go to a [`RequestHandler`], relay streams come out raw.
//! * [`auth`] recognises an authentication request and words its answer; who may pass is decided elsewhere.
//! * [`client`] asks for authentication from the other side.

pub(crate) mod auth;
mod body;
mod budget;
pub(crate) mod client;
mod codes;
mod exchange;
mod frame;
mod front;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod huffman;
mod peek;
mod qpack;
mod reader;
mod request;
mod response;
mod static_table;
mod uni;

pub(crate) use front::{Front, H3Limits, RelayStream};

use crate::{BoxFuture, masquerade::Body};

#[cfg(test)]
mod tests;

/// Answers the requests of one connection.
pub(crate) trait RequestHandler: Send + Sync {
    /// Returns the answer to a request.
    ///
    /// The future is dropped when the peer gives up. A body that was not read is refused after the answer.
    fn handle(&self, request: http::Request<Body>) -> BoxFuture<'_, http::Response<Body>>;
}
