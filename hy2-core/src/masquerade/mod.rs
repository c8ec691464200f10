//! The ordinary web site that unauthenticated peers see.
//!
//! A [`Masquerade`] answers every request that is not a successful authentication, over HTTP/3 and, through
//! [`TcpSite`], over TCP with the same answers. It is asked alike before, after and instead of authentication, so
//! nothing in an answer may depend on who asks for what reason.
//!
//! | | |
//! |---|---|
//! | [`OrdinarySite`] | the default: a few static pages |
//! | [`NotFound`] | the reference server's default answer, which is known as such |
//! | [`Content`] | one fixed answer |
//! | [`Files`] | a directory |
//! | [`ReverseProxy`] | another web server |

mod body;
mod content;
mod entity;
mod files;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod media_type;
mod ordinary;
mod path;
mod proxy;
mod tcp;

use std::{fmt::Debug, net::SocketAddr};

use http::{
    HeaderValue, Request, Response, StatusCode,
    header::{CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS},
};

pub(crate) use body::unsized_empty;
pub use body::{Body, BodyError, empty, full};
pub use content::{Content, ContentError, NotFound};
pub use files::Files;
pub use ordinary::OrdinarySite;
pub use proxy::{ProxyConfig, ProxyConfigError, ReverseProxy};
pub use tcp::{TcpSite, TcpSiteConfig, TcpSiteError, TcpSiteHandle};

use crate::BoxFuture;

/// A web site.
pub trait Masquerade: Send + Sync + Debug {
    /// Returns the answer to a request.
    ///
    /// The request carries a [`Peer`] among its extensions where one is known. The answer's body is not sent for
    /// HEAD. `date` is added where it is missing, and so is `content-length` where the body knows its size.
    ///
    /// # Cancel safety
    /// The future is dropped when the peer gives up.
    fn serve(&self, request: Request<Body>) -> BoxFuture<'_, Response<Body>>;
}

/// Where a request came from; an extension of the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// The client's address.
    pub address: SocketAddr,
    /// Whether the request came through TLS or QUIC.
    pub encrypted: bool,
}

/// Returns a short plain text answer in the form of Go's `http.Error`, which the reference's answers have.
fn plain_error(status: StatusCode, text: &str) -> Response<Body> {
    let mut response = Response::new(full(format!("{text}\n")));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
