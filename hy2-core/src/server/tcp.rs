//! One TCP relay stream on the server: request, dial, answer, relay.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use hy2_proto::{
    address::Address,
    codec::DecodeError,
    padding,
    tcp::{MAX_REQUEST_LEN, TcpRequest, TcpResponse},
};
use quinn::{RecvStream, SendStream};
use tokio::time::timeout;

use super::connection::Relays;
use crate::{
    h3::RelayStream,
    meter::Presence,
    relay::{
        copy::{RelayError, STREAM_DONE, UserTally, relay},
        recv::RelayRecv,
    },
};

/// The internal destination of the speed test (reference §1.10).
pub(crate) const SPEED_TEST_HOST: &str = "@SpeedTest";

/// How a stream ended, as far as its connection cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StreamEnd {
    /// The target was reached or refused.
    Served,
    /// The client gave up before that.
    Aborted,
}

/// Serves one relay stream.
pub(crate) async fn serve(relays: Arc<Relays>, stream: RelayStream) -> StreamEnd {
    let RelayStream { mut send, mut recv } = stream;
    let limit = relays.shared.config.limits.request_timeout;
    let request = match timeout(limit, read_request(&mut recv)).await {
        Ok(Ok(request)) => request,
        // A malformed or missing request gets no bytes, only the end of both directions.
        Ok(Err(_)) | Err(_) => {
            let _ = recv.stop(STREAM_DONE);
            let _ = send.finish();
            return StreamEnd::Aborted;
        }
    };
    if relays.draining() {
        answer(&mut send, Err("server is shutting down")).await;
        return StreamEnd::Served;
    }
    let Request {
        target,
        offset,
        early,
    } = request;
    let mut recv = RelayRecv::new(
        recv,
        offset,
        early,
        &relays.memory,
        relays.round_trip.clone(),
    );
    if relays.shared.config.speed_test
        && target
            .strip_prefix(SPEED_TEST_HOST)
            .is_some_and(|rest| rest.starts_with(':'))
    {
        super::speedtest::serve(send, recv).await;
        return StreamEnd::Served;
    }
    let Ok(address) = target.parse::<Address>() else {
        answer(&mut send, Err("invalid address")).await;
        recv.stop(STREAM_DONE);
        return StreamEnd::Served;
    };
    let user = &relays.member.user;
    let _presence = user.counters.enter(Presence::Stream);
    let _active = relays.enter_stream();
    let events = &relays.shared.events;
    events.tcp_requested(&relays.member.peer, &target);
    let dialled = tokio::select! {
        dialled = relays.shared.outbound.tcp(&address) => dialled,
        // Dropping the dial is what a client that gives up wants.
        () = given_up(&send) => return StreamEnd::Aborted,
    };
    let mut connection = match dialled {
        Ok(connection) => connection,
        Err(error) => {
            tracing::debug!(%error, "target not reached");
            answer(&mut send, Err(error.class())).await;
            recv.stop(STREAM_DONE);
            events.tcp_closed(&relays.member.peer, &target, Some(&error));
            return StreamEnd::Served;
        }
    };
    if !answer(&mut send, Ok(())).await {
        return StreamEnd::Aborted;
    }
    let tally = UserTally {
        counters: &user.counters,
        tx: &user.tx,
        rx: &user.rx,
    };
    let result = relay(&mut connection, &mut send, &mut recv, tally).await;
    if result.is_ok() {
        // A draining connection closes when its last stream ends, and closing discards what the
        // peer has not acknowledged.
        let _ = timeout(limit, send.stopped()).await;
    }
    if let Err(RelayError::Recv(crate::relay::recv::RecvError::Starved)) = &result {
        metrics::counter!("hy2_streams_starved_total").increment(1);
    }
    let error = result
        .as_ref()
        .err()
        .map(|error| error as &(dyn std::error::Error + 'static));
    events.tcp_closed(&relays.member.peer, &target, error);
    StreamEnd::Served
}

struct Request {
    target: String,
    /// Stream offset of the first byte behind the request.
    offset: u64,
    /// Bytes that were read beyond it.
    early: Bytes,
}

/// Reads the request that follows the frame type.
async fn read_request(recv: &mut RecvStream) -> Result<Request, DecodeError> {
    let mut bytes = BytesMut::new();

    loop {
        let chunk = recv.read_chunk(MAX_REQUEST_LEN, true).await;
        let Ok(Some(chunk)) = chunk else {
            return Err(DecodeError::Incomplete);
        };
        let end = chunk.offset + chunk.bytes.len() as u64;
        // The usual case: the whole request in one chunk, which is not copied.
        let seen: Bytes = if bytes.is_empty() {
            chunk.bytes
        } else {
            bytes.extend_from_slice(&chunk.bytes);
            bytes.split().freeze()
        };
        match TcpRequest::decode(&seen) {
            Ok((request, consumed)) => {
                let early = seen.slice(consumed..);
                return Ok(Request {
                    target: request.address.to_owned(),
                    offset: end - early.len() as u64,
                    early: early.clone(),
                });
            }
            Err(DecodeError::Incomplete) if seen.len() <= MAX_REQUEST_LEN => {
                bytes = BytesMut::from(seen);
            }
            Err(error) => return Err(error),
        }
    }
}

/// Sends the answer; `false` when the client is not there to take it.
pub(super) async fn answer(send: &mut SendStream, result: Result<(), &str>) -> bool {
    let noise = padding::fill(padding::TCP_RESPONSE, |bytes| rand::fill(bytes));
    let (ok, message) = match result {
        Ok(()) => (true, "Connected"),
        Err(class) => (false, class),
    };
    let response = TcpResponse::new(ok, message, noise.as_bytes());
    let mut encoded = BytesMut::with_capacity(response.encoded_len());
    response.encode(&mut encoded);
    let sent = send.write_chunk(encoded.freeze()).await.is_ok();
    if !ok {
        let _ = send.finish();
    }
    sent
}

/// Ends when the client takes no answer any more.
async fn given_up(send: &SendStream) {
    let _ = send.stopped().await;
}
