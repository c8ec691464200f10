//! Streams that the peer opens in one direction: its control stream, and QPACK's.
//!
//! As in the HTTP/3 stack of the reference, the control stream is read up to its SETTINGS and not further, and the
//! QPACK streams are not read at all because nothing is ever put into a dynamic table. They stay open and cost what
//! QUIC's receive window allows them.

use std::{
    future::pending,
    sync::atomic::{AtomicBool, Ordering},
};

use quinn::{Connection, RecvStream, VarInt};

use super::{
    codes,
    frame::{Frame, FrameError, Place},
    peek::Peek,
    reader::{FrameReader, ReadFault},
};

/// The critical streams a peer has opened; each may be opened once (RFC 9114, section 6.2).
#[derive(Debug, Default)]
pub(super) struct Seen {
    control: AtomicBool,
    encoder: AtomicBool,
    decoder: AtomicBool,
}

/// Takes care of one stream; does not return while the stream has to stay open.
pub(super) async fn serve(conn: &Connection, seen: &Seen, mut recv: RecvStream) {
    let mut peek = Peek::default();
    let Ok(Some(kind)) = peek.value(&mut recv).await else {
        return;
    };
    let (flag, twice) = match kind {
        0x0 => (&seen.control, "duplicate control stream"),
        0x2 => (&seen.encoder, "duplicate QPACK encoder stream"),
        0x3 => (&seen.decoder, "duplicate QPACK decoder stream"),
        0x1 => return conn.close(codes::STREAM_CREATION_ERROR, b""),
        _ => {
            // The only error is that the stream is closed already.
            let _ = recv.stop(codes::STREAM_CREATION_ERROR);
            return;
        }
    };
    if flag.swap(true, Ordering::Relaxed) {
        return conn.close(codes::STREAM_CREATION_ERROR, twice.as_bytes());
    }
    if kind != 0x0 {
        let _open = recv;
        return pending().await;
    }
    // Boxed: only the stream is kept for the connection's life.
    match Box::pin(read_settings(recv, &peek)).await {
        Ok(recv) => {
            let _open = recv;
            pending().await
        }
        Err(code) => conn.close(code, b""),
    }
}

/// Reads a control stream up to its SETTINGS and returns it.
async fn read_settings(recv: RecvStream, peek: &Peek) -> Result<RecvStream, VarInt> {
    let mut reader = FrameReader::new(recv, Place::Control, peek.behind_value());
    Err(match reader.next(|_| true).await {
        Ok(Some(Frame::Settings)) => return Ok(reader.into_stream()),
        Ok(Some(_)) => codes::MISSING_SETTINGS,
        Ok(None)
        | Err(ReadFault::Truncated | ReadFault::Lost(_) | ReadFault::Frame(FrameError::CutShort)) => {
            codes::CLOSED_CRITICAL_STREAM
        }
        Err(ReadFault::Frame(FrameError::Reserved)) => codes::FRAME_UNEXPECTED,
        Err(ReadFault::Frame(FrameError::Malformed | FrameError::SectionTooLarge)) => {
            codes::FRAME_ERROR
        }
    })
}
