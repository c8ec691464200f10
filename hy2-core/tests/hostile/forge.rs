//! A hand on the plaintext of an attacker's packets.
//!
//! quinn cannot leave out a byte of a stream or send a frame that it did not make. Its packet keys
//! come from the TLS session though, and a key sees each packet's plaintext before it encrypts it.
//! The keys here change that plaintext: frames that carry a withheld byte become a PING and padding
//! (so the server acknowledges the packet and quinn believes that the byte arrived), and a datagram
//! that begins with [`MAGIC`] becomes the raw frames behind it. Length and everything else of the
//! packet stay.

use std::{
    any::Any,
    collections::HashMap,
    sync::{Arc, Mutex},
};

use bytes::{Bytes, BytesMut};
use hy2_core::proto::varint;
use quinn::Connection;
use quinn_proto::{
    ConnectError, ConnectionId, Side, TransportError,
    crypto::{
        self, CryptoError, ExportKeyingMaterialError, HeaderKey, KeyPair, Keys, PacketKey, Session,
    },
    transport_parameters::TransportParameters,
};

const MAGIC: &[u8; 16] = b"raw frames here:";

/// Most bytes of raw frames per packet.
pub(crate) const MAX_RAW: usize = 1100;

/// What is done to the packets of one attacker.
#[derive(Debug, Default)]
pub(crate) struct Forge {
    /// Stream identifiers with the offset of the byte that never leaves.
    withheld: Mutex<HashMap<u64, u64>>,
    /// What the transport parameters say instead of quinn's `max_datagram_frame_size`.
    datagram_limit: Option<u64>,
}

impl Forge {
    /// Claims to take datagram frames of up to `limit` bytes, and takes larger ones all the same.
    pub(crate) fn with_datagram_limit(limit: u64) -> Self {
        Self {
            datagram_limit: Some(limit),
            ..Self::default()
        }
    }

    fn parameters(&self, params: &TransportParameters) -> TransportParameters {
        let Some(limit) = self.datagram_limit else {
            return *params;
        };
        let mut before = Vec::new();
        params.write(&mut before);
        let mut after = Vec::new();
        let mut rest = &before[..];
        while !rest.is_empty() {
            let mut reader = Reader {
                payload: rest,
                at: 0,
            };
            let id = reader.varint().expect("quinn wrote it");
            let len = reader.varint().expect("quinn wrote it");
            reader.skip(len).expect("quinn wrote it");
            let (parameter, others) = rest.split_at(reader.at);
            if id != MAX_DATAGRAM_FRAME_SIZE {
                after.extend_from_slice(parameter);
            }
            rest = others;
        }
        after.extend(crate::wire::varints(&[
            MAX_DATAGRAM_FRAME_SIZE,
            varint::len(limit) as u64,
            limit,
        ]));
        TransportParameters::read(Side::Server, &mut &after[..]).expect("valid as before")
    }

    /// Keeps back the byte at `offset` of a stream from here on.
    pub(crate) fn withhold(&self, stream: quinn::StreamId, offset: u64) {
        let id = quinn::VarInt::from(stream).into_inner();
        self.withheld
            .lock()
            .expect("no holder panics")
            .insert(id, offset);
    }

    fn keeps_back(&self, stream: u64, offset: u64, len: u64) -> bool {
        let withheld = self.withheld.lock().expect("no holder panics");
        withheld
            .get(&stream)
            .is_some_and(|byte| (offset..offset + len).contains(byte))
    }
}

/// Sends raw QUIC frames in a packet of their own; waits for room, not for delivery.
pub(crate) async fn inject(connection: &Connection, frames: &[u8]) {
    assert!(frames.len() <= MAX_RAW);
    let disguised = [MAGIC, frames].concat();
    // Fails when the server closed, which is for the caller to see.
    let _ = connection.send_datagram_wait(disguised.into()).await;
}

/// Wraps a client's crypto configuration.
pub(crate) struct ForgedCrypto(
    pub(crate) Arc<dyn crypto::ClientConfig>,
    pub(crate) Arc<Forge>,
);

impl crypto::ClientConfig for ForgedCrypto {
    fn start_session(
        self: Arc<Self>,
        version: u32,
        server_name: &str,
        params: &TransportParameters,
    ) -> Result<Box<dyn Session>, ConnectError> {
        Ok(Box::new(ForgedSession {
            inner: Arc::clone(&self.0).start_session(
                version,
                server_name,
                &self.1.parameters(params),
            )?,
            forge: Arc::clone(&self.1),
        }))
    }
}

struct ForgedSession {
    inner: Box<dyn Session>,
    forge: Arc<Forge>,
}

impl ForgedSession {
    fn wrap(&self, mut keys: KeyPair<Box<dyn PacketKey>>) -> KeyPair<Box<dyn PacketKey>> {
        keys.local = Box::new(ForgedKey {
            inner: keys.local,
            forge: Arc::clone(&self.forge),
        });
        keys
    }
}

impl Session for ForgedSession {
    fn initial_keys(&self, dst_cid: &ConnectionId, side: Side) -> Keys {
        self.inner.initial_keys(dst_cid, side)
    }
    fn handshake_data(&self) -> Option<Box<dyn Any>> {
        self.inner.handshake_data()
    }
    fn peer_identity(&self) -> Option<Box<dyn Any>> {
        self.inner.peer_identity()
    }
    fn early_crypto(&self) -> Option<(Box<dyn HeaderKey>, Box<dyn PacketKey>)> {
        self.inner.early_crypto()
    }
    fn early_data_accepted(&self) -> Option<bool> {
        self.inner.early_data_accepted()
    }
    fn is_handshaking(&self) -> bool {
        self.inner.is_handshaking()
    }
    fn read_handshake(&mut self, buf: &[u8]) -> Result<bool, TransportError> {
        self.inner.read_handshake(buf)
    }
    fn transport_parameters(&self) -> Result<Option<TransportParameters>, TransportError> {
        self.inner.transport_parameters()
    }
    fn write_handshake(&mut self, buf: &mut Vec<u8>) -> Option<Keys> {
        let mut keys = self.inner.write_handshake(buf)?;
        keys.packet = self.wrap(keys.packet);
        Some(keys)
    }
    fn next_1rtt_keys(&mut self) -> Option<KeyPair<Box<dyn PacketKey>>> {
        let keys = self.inner.next_1rtt_keys()?;
        Some(self.wrap(keys))
    }
    fn is_valid_retry(&self, orig_dst_cid: &ConnectionId, header: &[u8], payload: &[u8]) -> bool {
        self.inner.is_valid_retry(orig_dst_cid, header, payload)
    }
    fn export_keying_material(
        &self,
        output: &mut [u8],
        label: &[u8],
        context: &[u8],
    ) -> Result<(), ExportKeyingMaterialError> {
        self.inner.export_keying_material(output, label, context)
    }
}

struct ForgedKey {
    inner: Box<dyn PacketKey>,
    forge: Arc<Forge>,
}

impl PacketKey for ForgedKey {
    fn encrypt(&self, packet: u64, buf: &mut [u8], header_len: usize) {
        let end = buf.len() - self.inner.tag_len();
        rewrite(&mut buf[header_len..end], &self.forge);
        self.inner.encrypt(packet, buf, header_len);
    }
    fn decrypt(
        &self,
        packet: u64,
        header: &[u8],
        payload: &mut BytesMut,
    ) -> Result<(), CryptoError> {
        self.inner.decrypt(packet, header, payload)
    }
    fn tag_len(&self) -> usize {
        self.inner.tag_len()
    }
    fn confidentiality_limit(&self) -> u64 {
        self.inner.confidentiality_limit()
    }
    fn integrity_limit(&self) -> u64 {
        self.inner.integrity_limit()
    }
}

/// Changes the frames of one packet; stops at the first one that it does not know.
fn rewrite(payload: &mut [u8], forge: &Forge) {
    let mut start = 0;
    while let Some((frame, len)) = parse(&payload[start..]) {
        let bytes = &mut payload[start..start + len];
        match frame {
            Frame::Stream { id, offset, len } if forge.keeps_back(id, offset, len) => {
                bytes.fill(PADDING);
                bytes[0] = PING;
            }
            Frame::Datagram { data } if bytes[data..].starts_with(MAGIC) => {
                let raw = Bytes::copy_from_slice(&bytes[data + MAGIC.len()..]);
                bytes.fill(PADDING);
                bytes[..raw.len()].copy_from_slice(&raw);
            }
            Frame::Stream { .. } | Frame::Datagram { .. } | Frame::Other => {}
        }
        start += len;
        if start == payload.len() {
            return;
        }
    }
}

/// Transport parameter (RFC 9221, section 3).
const MAX_DATAGRAM_FRAME_SIZE: u64 = 0x20;

const PADDING: u8 = 0x00;
const PING: u8 = 0x01;

enum Frame {
    Stream {
        id: u64,
        offset: u64,
        len: u64,
    },
    /// With the place of its data.
    Datagram {
        data: usize,
    },
    Other,
}

/// Returns the first frame and its length (RFC 9000, section 19, and RFC 9221).
fn parse(payload: &[u8]) -> Option<(Frame, usize)> {
    let mut reader = Reader { payload, at: 0 };
    let kind = reader.varint()?;
    let mut frame = Frame::Other;
    match kind {
        0x00 | 0x01 | 0x1e | 0x1f => {}
        0x02 | 0x03 => {
            reader.skip_varints(2)?;
            let ranges = reader.varint()?;
            let counts = if kind == 0x03 { 3 } else { 0 };
            reader.skip_varints(1 + 2 * ranges + counts)?;
        }
        0x04 => reader.skip_varints(3)?,
        0x05 | 0x11 | 0x15 => reader.skip_varints(2)?,
        0x06 => {
            reader.varint()?;
            let len = reader.varint()?;
            reader.skip(len)?;
        }
        0x08..=0x0f => {
            let id = reader.varint()?;
            let offset = if kind & 4 == 0 { 0 } else { reader.varint()? };
            let len = if kind & 2 == 0 {
                reader.left()
            } else {
                reader.varint()?
            };
            reader.skip(len)?;
            frame = Frame::Stream { id, offset, len };
        }
        0x10 | 0x12..=0x14 | 0x16 | 0x17 | 0x19 => reader.skip_varints(1)?,
        0x18 => {
            reader.skip_varints(2)?;
            let len = reader.varint()?;
            reader.skip(len + 16)?;
        }
        0x1a | 0x1b => reader.skip(8)?,
        0x30 | 0x31 => {
            let len = if kind == 0x30 {
                reader.left()
            } else {
                reader.varint()?
            };
            frame = Frame::Datagram { data: reader.at };
            reader.skip(len)?;
        }
        _ => return None,
    }
    Some((frame, reader.at))
}

struct Reader<'a> {
    payload: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn left(&self) -> u64 {
        (self.payload.len() - self.at) as u64
    }

    fn varint(&mut self) -> Option<u64> {
        let (value, used) = varint::decode(&self.payload[self.at..]).ok()?;
        self.at += used;
        Some(value)
    }

    fn skip_varints(&mut self, count: u64) -> Option<()> {
        for _ in 0..count {
            self.varint()?;
        }
        Some(())
    }

    fn skip(&mut self, len: u64) -> Option<()> {
        self.at = self.at.checked_add(usize::try_from(len).ok()?)?;
        (self.at <= self.payload.len()).then_some(())
    }
}

#[test]
fn only_the_withheld_byte_and_the_disguised_frames_change() {
    let forge = Forge::default();
    forge.withheld.lock().expect("free").insert(4, 10);
    // PING, STREAM 4 at 8 with "abc", STREAM 4 at 11 with "d", PING.
    let before = b"\x01\x0e\x04\x08\x03abc\x0e\x04\x0b\x01d\x01";
    let mut packet = before.to_vec();
    rewrite(&mut packet, &forge);
    assert_eq!(packet, b"\x01\x01\0\0\0\0\0\0\x0e\x04\x0b\x01d\x01");
    let mut packet = [b"\x30", &MAGIC[..], b"\x1a12345678"].concat();
    rewrite(&mut packet, &forge);
    assert_eq!(packet[..10], *b"\x1a12345678\0");
    assert!(packet[9..].iter().all(|byte| *byte == PADDING));
}
