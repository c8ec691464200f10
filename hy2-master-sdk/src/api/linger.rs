//! A client that is still sending gets to read why it was refused.
//!
//! An answer before the end of a request's body has hyper close the connection with bytes unread,
//! which resets it: the client may then lose the answer that says `413`. So what nobody wants is
//! read and thrown away, within limits.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use http::Version;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;

/// Most that is read of a body that nobody wants, in bytes.
const MOST: usize = 16 << 20;

/// How long it is read.
const PATIENCE: Duration = Duration::from_secs(10);

/// Has the rest of a body read that its handler did not read to the end. HTTP/2 ends one stream
/// without a reset of the others and needs none of it.
pub(super) async fn read_on(request: Request) -> Request {
    if request.version() > Version::HTTP_11 {
        return request;
    }
    request.map(|body| match body.is_end_stream() {
        true => body,
        false => Body::new(Lingering { body: Some(body) }),
    })
}

struct Lingering {
    /// Until its end.
    body: Option<Body>,
}

impl HttpBody for Lingering {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let Some(body) = &mut self.body else {
            return Poll::Ready(None);
        };
        let polled = Pin::new(body).poll_frame(cx);
        if let Poll::Ready(None | Some(Err(_))) = polled {
            self.body = None;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let none = || SizeHint::with_exact(0);
        self.body.as_ref().map_or_else(none, HttpBody::size_hint)
    }
}

impl Drop for Lingering {
    fn drop(&mut self) {
        let Some(body) = self.body.take().filter(|body| !body.is_end_stream()) else {
            return;
        };
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(tokio::time::timeout(PATIENCE, discard(body)));
        }
    }
}

async fn discard(mut body: Body) {
    let mut read = 0;
    while let Some(Ok(frame)) = body.frame().await {
        read += frame.data_ref().map_or(0, Bytes::len);
        if read > MOST {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::stream;

    use super::*;

    /// A body of so many pieces that says how many were read.
    fn pieces(count: usize, bytes: usize) -> (Request, tokio::sync::watch::Receiver<usize>) {
        let (read, reads) = tokio::sync::watch::channel(0);
        let all = stream::iter((1..=count).map(move |at| {
            read.send_replace(at);
            Ok::<_, Infallible>(Bytes::from(vec![0; bytes]))
        }));
        (Request::new(Body::from_stream(all)), reads)
    }

    #[tokio::test]
    async fn what_a_handler_leaves_is_read() {
        let (request, mut reads) = pieces(40, 1000);
        let mut body = read_on(request).await.into_body();
        body.frame().await.unwrap().unwrap();
        assert_eq!(*reads.borrow(), 1);
        drop(body);
        reads.wait_for(|read| *read == 40).await.unwrap();
    }

    #[tokio::test]
    async fn what_never_ends_is_read_up_to_a_limit() {
        let (request, mut reads) = pieces(usize::MAX, 1 << 20);
        drop(read_on(request).await);
        // The sender goes with the body.
        while reads.changed().await.is_ok() {}
        assert_eq!(*reads.borrow(), (MOST >> 20) + 1);
    }

    #[tokio::test]
    async fn http_2_is_left_alone() {
        let (mut request, mut reads) = pieces(40, 1000);
        *request.version_mut() = Version::HTTP_2;
        drop(read_on(request).await);
        while reads.changed().await.is_ok() {}
        assert_eq!(*reads.borrow(), 0);
    }
}
