//! One request stream: from its first frame to the end of the answer.

use std::{panic::AssertUnwindSafe, sync::Arc};

use bytes::Bytes;
use futures_util::FutureExt;
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use quinn::{RecvStream, SendStream, VarInt};

use super::{
    body::{Home, RequestBody},
    codes,
    frame::{Frame, FrameError, Place},
    front::Shared,
    reader::{FrameReader, ReadFault},
    request::{self, Refusal},
    response::{self, SendFault},
};
use crate::masquerade::{self, Peer};

/// What a decoded request may cost per byte as HTTP/3 counts its size: each field becomes an entry of a hash table and
/// a value of its own, and the tables grow by doubling.
const COST_PER_BYTE: usize = 4;

/// Serves the request on a stream whose first bytes were taken already.
pub(super) async fn serve(
    shared: Arc<Shared>,
    first: Bytes,
    mut send: SendStream,
    recv: RecvStream,
) {
    let mut share = shared.budget.share();
    let mut reader = FrameReader::new(recv, Place::Request, first).counting(&shared.taken);
    let section = match reader.next(|held| share.resize(held)).await {
        Ok(Some(Frame::Headers(section))) => section,
        Ok(Some(_)) => {
            shared.conn.close(
                codes::FRAME_UNEXPECTED,
                b"expected first frame to be a HEADERS frame",
            );
            return;
        }
        Err(ReadFault::Frame(FrameError::Reserved)) => {
            shared.conn.close(codes::FRAME_UNEXPECTED, b"");
            return;
        }
        Err(ReadFault::Frame(FrameError::SectionTooLarge)) => return too_large(reader, send).await,
        Ok(None)
        | Err(
            ReadFault::Truncated
            | ReadFault::Lost(_)
            | ReadFault::Frame(FrameError::Malformed | FrameError::CutShort),
        ) => {
            return abort(&mut reader, &mut send, codes::REQUEST_INCOMPLETE);
        }
    };
    let head = match request::parse(&section) {
        Ok(head) => head,
        Err(Refusal::TooLarge) => return too_large(reader, send).await,
        Err(Refusal::Malformed) => return abort(&mut reader, &mut send, codes::MESSAGE_ERROR),
        Err(Refusal::Undecodable) => {
            return abort(&mut reader, &mut send, codes::QPACK_DECOMPRESSION_FAILED);
        }
    };
    drop(section);
    if !share.resize(head.size * COST_PER_BYTE) {
        return too_large(reader, send).await;
    }

    let home = Arc::new(Home::default());
    let trailers = shared.budget.share();
    let body = RequestBody::new(
        reader,
        Arc::clone(&home),
        shared.conn.clone(),
        trailers,
        head.content_length,
    );
    let is_head = head.request.method() == Method::HEAD;
    let mut request = head.request.map(|()| body.boxed_unsync());
    let address = shared.conn.remote_address();
    request.extensions_mut().insert(Peer {
        address,
        encrypted: true,
    });
    match answer(&shared, &mut send, is_head, request).await {
        _ if home.is_violated() => reset(&mut send, codes::MESSAGE_ERROR),
        Ok(()) => {
            home.close(codes::NO_ERROR);
            // The only error is that the peer stopped the stream.
            let _ = send.finish();
        }
        Err(code) => {
            home.close(code);
            reset(&mut send, code);
        }
    }
}

/// Asks the handler and sends what it answers; gives up when the peer no longer wants it.
async fn answer(
    shared: &Shared,
    send: &mut SendStream,
    is_head: bool,
    request: Request<masquerade::Body>,
) -> Result<(), VarInt> {
    let stopped = send.stopped();
    let handled = AssertUnwindSafe(shared.handler.handle(request)).catch_unwind();
    // Both arms may be dropped: a handler that nobody waits for has nobody to tell.
    let response = tokio::select! {
        biased;
        response = handled => response,
        _ = stopped => return Err(codes::REQUEST_CANCELLED),
    };
    let Ok(response) = response else {
        metrics::counter!("hy2_panics_total").increment(1);
        tracing::error!("request handler panicked");
        return Err(codes::INTERNAL_ERROR);
    };
    response::send(send, is_head, response)
        .await
        .map_err(|fault| {
            if let SendFault::Body(error) = fault {
                tracing::debug!(%error, "answer broke off");
            }
            codes::INTERNAL_ERROR
        })
}

/// Answers 431 to a field section that is larger than we hold.
async fn too_large(mut reader: FrameReader, mut send: SendStream) {
    reader.stop(codes::EXCESSIVE_LOAD);
    let mut response = Response::new(masquerade::unsized_empty());
    *response.status_mut() = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
    if response::send(&mut send, false, response).await.is_ok() {
        // The only error is that the peer stopped the stream.
        let _ = send.finish();
    }
}

fn abort(reader: &mut FrameReader, send: &mut SendStream, code: VarInt) {
    reader.stop(code);
    reset(send, code);
}

fn reset(send: &mut SendStream, code: VarInt) {
    // The only error is that the stream is closed already.
    let _ = send.reset(code);
}
