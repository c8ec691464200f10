//! One TCP relay stream on the server: request, dial, answer, relay.

use std::{error::Error, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use hy2_proto::{
    address::Address,
    codec::DecodeError,
    padding,
    tcp::{MAX_REQUEST_LEN, TcpRequest, TcpResponse},
};
use quinn::{ReadError, RecvStream, SendStream};
use tokio::time::{Instant, timeout};

use super::connection::Relays;
use crate::{
    h3::RelayStream,
    meter::Presence,
    relay::{
        CutUnlessEnded,
        copy::{RelayError, STREAM_DONE, UserTally, relay},
        recv::{RecvError, RelayRecv},
    },
};

/// The internal destination of the speed test (reference §1.10).
pub(crate) const SPEED_TEST_HOST: &str = "@SpeedTest";

/// A stream that its client resets within this time has cost a dial for nothing. Clients that close
/// a stream in order, however soon, end it and stop its answer; they do not reset it.
const SHORT_LIVED: Duration = Duration::from_secs(1);

/// How a stream or the UDP side ended, as far as its connection cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StreamEnd {
    /// The target was reached or refused.
    Served,
    /// The client gave up before that, or right after.
    Aborted,
    /// The connection has no UDP session any more.
    NoMoreUdp,
}

/// Serves one relay stream.
pub(crate) async fn serve(relays: Arc<Relays>, stream: RelayStream) -> StreamEnd {
    let RelayStream { mut send, mut recv } = stream;
    let begun = Instant::now();
    let limit = relays.shared.config.limits.request_timeout;
    let Ok(Ok(request)) = timeout(limit, read_request(&mut recv)).await else {
        // A malformed or missing request gets no bytes, only the end of both directions.
        let _ = recv.stop(STREAM_DONE);
        let _ = send.finish();
        return StreamEnd::Aborted;
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
    let Some(destination) = Destination::of(&target, relays.shared.settings().speed_test) else {
        answer(&mut send, Err("invalid address")).await;
        recv.stop(STREAM_DONE);
        return StreamEnd::Served;
    };
    let member = relays.member();
    // Dropped in reverse order: the presence ends before that is told.
    let mut report = Report::open(&relays, &target);
    let _presence = member.counters.enter(Presence::Stream);
    let _active = relays.enter_stream();
    let address = match destination {
        Destination::Target(address) => address,
        Destination::SpeedTest => {
            let ended = super::speedtest::serve(member, send, recv, limit).await;
            report.end = ended.err().map(Into::into);
            return StreamEnd::Served;
        }
    };
    let dialled = tokio::select! {
        dialled = member.user.lookups.of(relays.shared.outbound.tcp(&address)) => dialled,
        // Dropping the dial is what a client that gives up wants.
        () = given_up(&send) => {
            report.end = Some(Unfinished::GivenUp.into());
            return StreamEnd::Aborted;
        }
    };
    let mut connection = match dialled {
        Ok(connection) => CutUnlessEnded::new(connection),
        Err(error) => {
            tracing::debug!(%error, "target not reached");
            error.warn_of_descriptors();
            answer(&mut send, Err(error.class())).await;
            recv.stop(STREAM_DONE);
            report.end = Some(error.into());
            return StreamEnd::Served;
        }
    };
    if !answer(&mut send, Ok(())).await {
        report.end = Some(Unfinished::GivenUp.into());
        return StreamEnd::Aborted;
    }
    let tally = UserTally::of(member);
    let result = relay(&mut connection, &mut send, &mut recv, tally).await;
    if result.is_ok() {
        // A draining connection closes when its last stream ends, and closing discards what the
        // peer has not acknowledged.
        let _ = timeout(limit, send.stopped()).await;
    }
    let end = match &result {
        Err(RelayError::Recv(RecvError::Starved)) => {
            metrics::counter!("hy2_streams_starved_total").increment(1);
            StreamEnd::Served
        }
        Err(RelayError::Recv(RecvError::Read(ReadError::Reset(_))))
            if begun.elapsed() < SHORT_LIVED =>
        {
            StreamEnd::Aborted
        }
        _ => StreamEnd::Served,
    };
    report.end = result.err().map(Into::into);
    end
}

/// What a request names.
enum Destination {
    Target(Address),
    SpeedTest,
}

impl Destination {
    fn of(target: &str, speed_test: bool) -> Option<Self> {
        let internal = target.strip_prefix(SPEED_TEST_HOST);
        if speed_test && internal.is_some_and(|rest| rest.starts_with(':')) {
            return Some(Self::SpeedTest);
        }
        target.parse().ok().map(Self::Target)
    }
}

/// Why a relay ended without a failure of its own.
#[derive(Debug, thiserror::Error)]
enum Unfinished {
    #[error("the client gave up")]
    GivenUp,
    #[error("the client's connection ended")]
    ConnectionEnded,
}

/// Tells of a relay's beginning and, once it is dropped, of its end.
struct Report<'a> {
    relays: &'a Relays,
    target: &'a str,
    /// What ended it, when not a clean end. Until the relay says otherwise: its task was ended.
    end: Option<Box<dyn Error + Send + Sync>>,
}

impl<'a> Report<'a> {
    fn open(relays: &'a Relays, target: &'a str) -> Self {
        let events = &relays.shared.events;
        events.tcp_requested(&relays.member().peer, target);
        Self {
            relays,
            target,
            end: Some(Unfinished::ConnectionEnded.into()),
        }
    }
}

impl Drop for Report<'_> {
    fn drop(&mut self) {
        let error = self
            .end
            .as_deref()
            .map(|error| error as &(dyn Error + 'static));
        let events = &self.relays.shared.events;
        events.tcp_closed(&self.relays.member().peer, self.target, error);
    }
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
