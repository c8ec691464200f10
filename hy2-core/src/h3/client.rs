//! The client's side: one request, and a control stream that stays open.
//!
//! Settings, header order and the strings are those of the official client, whose HTTP/3 stack any server of this
//! protocol has seen before.

use bytes::Bytes;
use hy2_proto::{
    auth::{self, AuthRequest, AuthResponse},
    bandwidth::Bandwidth,
    padding,
};
use quinn::{Connection, ConnectionError, ReadError, SendStream, WriteError};
use tokio::task::JoinSet;

use super::{
    codes,
    frame::{Frame, Place},
    qpack::{Decoder, Encoder},
    reader::{FrameReader, ReadFault},
    response::frame_of_section,
};

/// The control stream of the client: its type and SETTINGS {MAX_FIELD_SECTION_SIZE 10 MiB}.
const CONTROL_STREAM: &[u8] = &[0x00, 0x04, 0x05, 0x06, 0x80, 0xa0, 0x00, 0x00];

/// Keeps the HTTP/3 side of a client connection as it must be for as long as the connection is used.
#[derive(Debug)]
pub(crate) struct ClientFront {
    /// The end of this stream would be the end of the connection.
    _control: SendStream,
    /// Reads away what the server sends on streams of its own; aborted with this.
    _streams: JoinSet<()>,
}

/// Why a client was not let in.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AuthError {
    /// The server answered as a web site does.
    #[error("the server answered with HTTP status {status}, not as a Hysteria server")]
    Rejected {
        /// Status of the answer.
        status: u16,
    },
    /// The server's answer is not valid HTTP/3.
    #[error("the server's answer is not valid HTTP/3: {0}")]
    Invalid(&'static str),
    /// The server closed the request without an answer.
    #[error("the server closed the request stream with code {code:#x}")]
    Closed {
        /// The application's error code.
        code: u64,
    },
    /// The connection was lost.
    #[error("the connection was lost")]
    Connection(#[source] ConnectionError),
}

impl From<ConnectionError> for AuthError {
    fn from(error: ConnectionError) -> Self {
        Self::Connection(error)
    }
}

impl From<WriteError> for AuthError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Stopped(code) => Self::Closed {
                code: code.into_inner(),
            },
            WriteError::ConnectionLost(error) => Self::Connection(error),
            WriteError::ClosedStream | WriteError::ZeroRttRejected => {
                Self::Invalid("the stream was closed")
            }
        }
    }
}

impl From<ReadFault> for AuthError {
    fn from(fault: ReadFault) -> Self {
        match fault {
            ReadFault::Lost(ReadError::ConnectionLost(error)) => Self::Connection(error),
            ReadFault::Lost(ReadError::Reset(code)) => Self::Closed {
                code: code.into_inner(),
            },
            ReadFault::Lost(_) => Self::Invalid("the stream was closed"),
            ReadFault::Truncated => Self::Invalid("it ends inside a frame"),
            ReadFault::Frame(_) => Self::Invalid("a malformed frame"),
        }
    }
}

/// Asks to be let in, and returns what is granted.
///
/// `rx` is how fast this client can receive, zero if it does not know. There is no timeout in here. After an error
/// the connection is of no use; the official client closes it with H3_GENERAL_PROTOCOL_ERROR.
///
/// # Errors
/// [`AuthError::Rejected`] when the server answers with any status but 233; the others when there is no answer.
///
/// # Cancel safety
/// Dropping the future leaves a connection that is half set up and good for closing only.
pub(crate) async fn authenticate(
    conn: &Connection,
    auth: &str,
    rx: Bandwidth,
) -> Result<(AuthResponse, ClientFront), AuthError> {
    let mut control = conn.open_uni().await?;
    control.write_all(CONTROL_STREAM).await?;
    let mut streams = JoinSet::new();
    streams.spawn(read_away(conn.clone()));
    let front = ClientFront {
        _control: control,
        _streams: streams,
    };

    let (mut send, recv) = conn.open_bi().await?;
    send.write_chunk(request(auth, rx)).await?;
    // The only error is that the server stopped the stream, which it may do once it has its answer ready.
    let _ = send.finish();
    let mut reader = FrameReader::new(recv, Place::Request, Bytes::new());
    let granted = loop {
        if let Some(granted) = answer(reader.next(|_| true).await?)? {
            break granted;
        }
    };
    // As the official client does with the body it does not read.
    reader.stop(codes::REQUEST_CANCELLED);
    Ok((granted, front))
}

/// Reads the next frame of an answer; `None` says that it is an interim one and the real one follows.
pub(super) fn answer(frame: Option<Frame>) -> Result<Option<AuthResponse>, AuthError> {
    let section = match frame {
        Some(Frame::Headers(section)) if is_informational(&section) => return Ok(None),
        Some(Frame::Headers(section)) => section,
        Some(_) => return Err(AuthError::Invalid("the first frame is not HEADERS")),
        None => return Err(AuthError::Invalid("it is empty")),
    };
    let fields = fields(&section)?;
    let get = |name: &str| {
        fields
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    };
    let status = get(":status").and_then(|status| status.parse().ok());
    match status.ok_or(AuthError::Invalid("it has no status"))? {
        auth::STATUS_OK => Ok(Some(AuthResponse::from_headers(get))),
        status => Err(AuthError::Rejected { status }),
    }
}

/// Returns the HEADERS frame of the authentication request.
fn request(auth: &str, rx: Bandwidth) -> Bytes {
    let padding = padding::fill(padding::AUTH_REQUEST, |bytes| rand::fill(bytes));
    let mut section = Vec::with_capacity(padding.len() + auth.len() + 256);
    let mut encoder = Encoder::new(&mut section);
    encoder.field(":authority", auth::AUTHORITY.as_bytes());
    encoder.field(":method", auth::METHOD.as_bytes());
    encoder.field(":path", auth::PATH.as_bytes());
    encoder.field(":scheme", auth::SCHEME.as_bytes());
    for (name, value) in (AuthRequest { auth, rx }).headers(&padding) {
        encoder.field(name, value.as_bytes());
    }
    encoder.field("content-length", b"0");
    encoder.field("accept-encoding", b"gzip");
    encoder.field("user-agent", b"quic-go HTTP/3");
    frame_of_section(&section)
}

fn fields(section: &[u8]) -> Result<Vec<(String, String)>, AuthError> {
    let mut decoder = Decoder::new(section);
    let mut fields = Vec::new();
    while let Some(field) = decoder
        .next_field()
        .map_err(|_| AuthError::Invalid("undecodable fields"))?
    {
        // Nothing we look at is anything but ASCII.
        let text = |octets: Vec<u8>| String::from_utf8_lossy(&octets).into_owned();
        fields.push((text(field.name), text(field.value)));
    }
    Ok(fields)
}

/// An interim answer comes before the real one (RFC 9110, section 15.2).
fn is_informational(section: &[u8]) -> bool {
    let first = Decoder::new(section).next_field();
    matches!(first, Ok(Some(field)) if field.name == b":status" && field.value.starts_with(b"1"))
}

/// Takes whatever the server sends on streams that it opens: its settings, which change nothing for us.
async fn read_away(conn: Connection) {
    let mut streams = JoinSet::new();
    loop {
        // Both arms are cancel safe: an accept takes a stream only when it returns one.
        tokio::select! {
            accepted = conn.accept_uni() => {
                let Ok(mut recv) = accepted else { return };
                streams.spawn(async move {
                    while let Ok(Some(_)) = recv.read_chunk(usize::MAX, true).await {}
                });
            }
            Some(_) = streams.join_next() => {}
        }
    }
}
