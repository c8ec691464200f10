//! A server's side of the handshake, and what it takes from peers that nobody let in.
//!
//! quinn's own TLS session writes quinn's transport parameters, puts texts of its TLS library on the
//! wire, and keeps its TLS for the connection's life. This one says what an ordinary web server says
//! and lets go of TLS.

use std::{
    any::Any,
    io::Cursor,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
};

use bytes::BytesMut;
use quinn::crypto::rustls::{HandshakeData, QuicServerConfig};
use quinn_proto::{
    ConnectionId, Side, TransportError, TransportErrorCode,
    crypto::{
        self, CryptoError, ExportKeyingMaterialError, HeaderKey, KeyPair, Keys, PacketKey, Session,
        UnsupportedVersion,
    },
    transport_parameters::TransportParameters,
};
use rustls::{
    CipherSuite,
    quic::{self, KeyChange, Secrets, ServerConnection, Suite, Version},
};
use tokio::sync::Notify;

use super::parameters::{self, Rule};

/// Bytes of packets after which a peer that nobody let in is looked at.
const LOOK: usize = 32 << 10;

/// Bytes of packets that it may send before it is looked at; what comes beyond is dropped as if the
/// network had lost it.
const UNSEEN: usize = 128 << 10;

/// What a packet costs beside its payload.
const PACKET_COST: usize = 64;

/// Guards the memory of a connection until its peer is let in.
#[derive(Debug, Default)]
pub(crate) struct Vigil {
    over: AtomicBool,
    unseen: AtomicUsize,
    due: Notify,
}

impl Vigil {
    /// Waits until the peer has sent so much that it should be looked at.
    ///
    /// Cancel safe: a call that is not awaited to its end leaves the next one ready.
    pub(crate) async fn due(&self) {
        self.due.notified().await;
    }

    /// The peer has been looked at and may go on.
    pub(crate) fn seen(&self) {
        self.unseen.store(0, Relaxed);
    }

    /// The peer was let in: nothing is counted any more.
    pub(crate) fn end(&self) {
        self.over.store(true, Relaxed);
    }

    /// Counts a packet; `false` when it is too much.
    fn takes(&self, len: usize) -> bool {
        let len = len + PACKET_COST;
        let before = self.unseen.fetch_add(len, Relaxed);
        if before + len > LOOK {
            self.due.notify_one();
        }
        if before + len > UNSEEN {
            self.unseen.fetch_sub(len, Relaxed);
            return false;
        }
        true
    }
}

/// A server's crypto configuration.
#[derive(Clone)]
pub(crate) struct ServerCrypto {
    tls: Arc<rustls::ServerConfig>,
    initial: Suite,
    /// Makes what has nothing to do with a session.
    quinns: Arc<QuicServerConfig>,
    vigil: Arc<Vigil>,
}

impl ServerCrypto {
    /// Takes TLS settings.
    ///
    /// # Errors
    ///
    /// When they lack what QUIC needs: TLS 1.3 and AES-128-GCM.
    pub(crate) fn new(tls: rustls::ServerConfig) -> Result<Self, rustls::Error> {
        let tls = Arc::new(tls);
        let unusable = || rustls::Error::General("no QUIC cipher suite".into());
        let initial = tls
            .crypto_provider()
            .cipher_suites
            .iter()
            .filter(|suite| suite.suite() == CipherSuite::TLS13_AES_128_GCM_SHA256)
            .find_map(|suite| suite.tls13()?.quic_suite())
            .ok_or_else(unusable)?;
        let quinns =
            QuicServerConfig::with_initial(Arc::clone(&tls), initial).map_err(|_| unusable())?;
        // What could be wrong with the settings shows with the first session.
        ServerConnection::new(Arc::clone(&tls), Version::V1, Vec::new())?;
        Ok(Self {
            tls,
            initial,
            quinns: Arc::new(quinns),
            vigil: Arc::default(),
        })
    }

    /// The same for one connection, which `vigil` guards.
    pub(crate) fn guarded(&self, vigil: &Arc<Vigil>) -> Self {
        Self {
            vigil: Arc::clone(vigil),
            ..self.clone()
        }
    }
}

impl crypto::ServerConfig for ServerCrypto {
    fn initial_keys(
        &self,
        version: u32,
        dst_cid: &ConnectionId,
    ) -> Result<Keys, UnsupportedVersion> {
        if version != 1 {
            return Err(UnsupportedVersion);
        }
        Ok(copying(self.initial.keys(
            dst_cid,
            rustls::Side::Server,
            Version::V1,
        )))
    }

    fn retry_tag(&self, version: u32, orig_dst_cid: &ConnectionId, packet: &[u8]) -> [u8; 16] {
        self.quinns.retry_tag(version, orig_dst_cid, packet)
    }

    fn start_session(
        self: Arc<Self>,
        _version: u32,
        params: &TransportParameters,
    ) -> Box<dyn Session> {
        let said = parameters::of_server(params);
        let tls = ServerConnection::new(Arc::clone(&self.tls), Version::V1, said)
            .expect("the settings made a session before");
        Box::new(ServerSession {
            initial: self.initial,
            hello: None,
            next: None,
            vigil: Arc::clone(&self.vigil),
            stage: Stage::Tls(Box::new(tls)),
        })
    }
}

/// A server's TLS session, which lets go of TLS when the handshake is over: what is left to do
/// then, deriving the keys of the next phase, needs the secrets only. rustls would keep several
/// kilobytes for the connection's life.
struct ServerSession {
    initial: Suite,
    /// Known early in the handshake.
    hello: Option<Hello>,
    next: Option<Box<Secrets>>,
    vigil: Arc<Vigil>,
    stage: Stage,
}

/// What the client asked for.
struct Hello {
    protocol: Option<Box<[u8]>>,
    server_name: Option<Box<str>>,
}

enum Stage {
    Tls(Box<ServerConnection>),
    /// The handshake is over and its last words are sent.
    Done(Late),
}

/// What a client says in CRYPTO frames after the handshake: nothing it may say exists, so its
/// first whole message is an error (RFC 9001 section 6, RFC 8446 section 6.2).
#[derive(Default)]
struct Late {
    /// The message's type and length, as far as they came.
    header: [u8; 4],
    received: usize,
}

impl Late {
    /// Takes some bytes; `true` when a message is whole.
    fn take(&mut self, bytes: &[u8]) -> bool {
        let missing = self.header.get_mut(self.received..).unwrap_or_default();
        for (to, from) in missing.iter_mut().zip(bytes) {
            *to = *from;
        }
        self.received = self.received.saturating_add(bytes.len());
        let [_, a, b, c] = self.header;
        let len = usize::try_from(u32::from_be_bytes([0, a, b, c])).unwrap_or(usize::MAX);
        self.received >= len.saturating_add(self.header.len())
    }
}

/// The alert for a message that has no place where it came (RFC 8446 section 6.2).
const UNEXPECTED_MESSAGE: u8 = 10;

impl ServerSession {
    /// A key for what the peer sends once the handshake is over.
    fn watched(&self, remote: Box<dyn quic::PacketKey>) -> Watched {
        Watched {
            remote,
            vigil: Some(Arc::clone(&self.vigil)),
        }
    }
}

impl Session for ServerSession {
    fn initial_keys(&self, dst_cid: &ConnectionId, side: Side) -> Keys {
        let side = match side {
            Side::Client => rustls::Side::Client,
            Side::Server => rustls::Side::Server,
        };
        copying(self.initial.keys(dst_cid, side, Version::V1))
    }

    fn handshake_data(&self) -> Option<Box<dyn Any>> {
        let hello = self.hello.as_ref()?;
        Some(Box::new(HandshakeData {
            protocol: hello.protocol.as_deref().map(Vec::from),
            server_name: hello.server_name.as_deref().map(String::from),
        }))
    }

    /// Known while the handshake lasts, which is when it is judged.
    fn peer_identity(&self) -> Option<Box<dyn Any>> {
        None
    }

    /// There is no early data.
    fn early_crypto(&self) -> Option<(Box<dyn HeaderKey>, Box<dyn PacketKey>)> {
        None
    }

    /// A client's question.
    fn early_data_accepted(&self) -> Option<bool> {
        None
    }

    fn is_handshaking(&self) -> bool {
        matches!(&self.stage, Stage::Tls(tls) if tls.is_handshaking())
    }

    fn read_handshake(&mut self, buf: &[u8]) -> Result<bool, TransportError> {
        // As an ordinary web server, which sends the alert without a text of its TLS library.
        let alert = |alert: u8| TransportError::from(TransportErrorCode::crypto(alert));
        let tls = match &mut self.stage {
            Stage::Tls(tls) => tls,
            Stage::Done(late) => {
                return match late.take(buf) {
                    true => Err(alert(UNEXPECTED_MESSAGE)),
                    false => Ok(false),
                };
            }
        };
        if tls.read_hs(buf).is_err() {
            return Err(match tls.alert() {
                Some(code) => alert(code.into()),
                None => TransportErrorCode::PROTOCOL_VIOLATION.into(),
            });
        }
        if self.hello.is_some() {
            return Ok(false);
        }
        let (protocol, name) = (tls.alpn_protocol(), tls.server_name());
        if protocol.is_none() && name.is_none() && tls.is_handshaking() {
            return Ok(false);
        }
        self.hello = Some(Hello {
            protocol: protocol.map(Into::into),
            server_name: name.map(Into::into),
        });
        Ok(true)
    }

    fn transport_parameters(&self) -> Result<Option<TransportParameters>, TransportError> {
        let Stage::Tls(tls) = &self.stage else {
            return Ok(None);
        };
        let Some(bytes) = tls.quic_transport_parameters() else {
            return Ok(None);
        };
        let params = TransportParameters::read(Side::Server, &mut Cursor::new(bytes))?;
        Ok(Some(parameters::with_datagram_size(
            &params,
            Side::Server,
            Rule::AddIfMissing,
        )))
    }

    fn write_handshake(&mut self, buf: &mut Vec<u8>) -> Option<Keys> {
        let Stage::Tls(tls) = &mut self.stage else {
            return None;
        };
        let before = buf.len();
        let Some(change) = tls.write_hs(buf) else {
            if buf.len() == before && !tls.is_handshaking() && self.next.is_some() {
                self.stage = Stage::Done(Late::default());
            }
            return None;
        };
        match change {
            KeyChange::Handshake { keys } => Some(copying(keys)),
            KeyChange::OneRtt { keys, next } => {
                self.next = Some(Box::new(next));
                Some(convert(keys, |remote| self.watched(remote)))
            }
        }
    }

    fn next_1rtt_keys(&mut self) -> Option<KeyPair<Box<dyn PacketKey>>> {
        let keys = self.next.as_mut()?.next_packet_keys();
        Some(KeyPair {
            local: Box::new(keys.local),
            remote: Box::new(self.watched(keys.remote)),
        })
    }

    /// Only clients are sent away to try again.
    fn is_valid_retry(&self, _: &ConnectionId, _: &[u8], _: &[u8]) -> bool {
        false
    }

    /// Not offered: it would need what is let go of.
    fn export_keying_material(
        &self,
        _: &mut [u8],
        _: &[u8],
        _: &[u8],
    ) -> Result<(), ExportKeyingMaterialError> {
        Err(ExportKeyingMaterialError)
    }
}

/// Keys of a handshake, whose few packets are all copied.
fn copying(keys: quic::Keys) -> Keys {
    convert(keys, |remote| Watched {
        remote,
        vigil: None,
    })
}

fn convert(keys: quic::Keys, watch: impl FnOnce(Box<dyn quic::PacketKey>) -> Watched) -> Keys {
    Keys {
        header: KeyPair {
            local: Box::new(keys.local.header),
            remote: Box::new(keys.remote.header),
        },
        packet: KeyPair {
            local: Box::new(keys.local.packet),
            remote: Box::new(watch(keys.remote.packet)),
        },
    }
}

/// Frames of one byte (RFC 9000 sections 19.1 and 19.2, draft-ietf-quic-ack-frequency section 5).
const PADDING: u8 = 0x00;
const PING: u8 = 0x01;
const IMMEDIATE_ACK: u8 = 0x1f;

/// Makes the PING that a packet starts with ask for an acknowledgement at once.
///
/// quinn waits 25 ms with the acknowledgement of a single packet, for which it has no setting. A
/// keep-alive is followed by nothing that the acknowledgement could wait for, so that a connection at
/// rest would be looked at twice, each time with its memory cold. A loss probe is better answered soon.
fn acknowledge_at_once(payload: &mut BytesMut) {
    if let Some(first) = payload.first_mut().filter(|first| **first == PING) {
        *first = IMMEDIATE_ACK;
    }
}

/// Drops the padding of a PING, as which clients search for the largest packet that their path carries:
/// quinn looks at a thousand bytes of it one by one.
fn drop_padding(payload: &mut BytesMut) {
    if let [PING, padding @ ..] = &payload[..]
        && padding.iter().all(|byte| *byte == PADDING)
    {
        payload.truncate(1);
    }
}

/// A key for what a peer sends that may be a stranger.
///
/// quinn cuts packets out of one allocation per system call, up to 64 KiB of them, and a frame that
/// is kept keeps all of it, whoever sent the rest and whether or not it meant anything. From a
/// stranger each packet is therefore copied to memory of its own, and counted. Of a peer that was
/// let in, one flag is read.
struct Watched {
    remote: Box<dyn quic::PacketKey>,
    vigil: Option<Arc<Vigil>>,
}

impl PacketKey for Watched {
    fn encrypt(&self, packet: u64, buf: &mut [u8], header_len: usize) {
        self.remote.encrypt(packet, buf, header_len);
    }

    fn decrypt(
        &self,
        packet: u64,
        header: &[u8],
        payload: &mut BytesMut,
    ) -> Result<(), CryptoError> {
        self.remote.decrypt(packet, header, payload)?;
        if let Some(vigil) = &self.vigil {
            let len = payload.len();
            drop_padding(payload);
            if vigil.over.load(Relaxed) {
                acknowledge_at_once(payload);
                return Ok(());
            }
            if !vigil.takes(len) {
                // As if it was lost: it is not acknowledged and comes again.
                return Err(CryptoError);
            }
        }
        *payload = BytesMut::from(&payload[..]);
        Ok(())
    }

    fn tag_len(&self) -> usize {
        PacketKey::tag_len(&self.remote)
    }

    fn confidentiality_limit(&self) -> u64 {
        PacketKey::confidentiality_limit(&self.remote)
    }

    fn integrity_limit(&self) -> u64 {
        PacketKey::integrity_limit(&self.remote)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn a_late_message_counts_once_it_is_whole() {
        // A key update, which has no place in QUIC: type 24, length 1.
        let message = [24, 0, 0, 1, 0];
        for cut in 0..message.len() {
            let mut late = Late::default();
            let (first, rest) = message.split_at(cut);
            assert!(!late.take(first), "{cut}");
            assert!(late.take(rest), "{cut}");
        }
        let mut endless = Late::default();
        assert!(!endless.take(&[24, 255, 255, 255]));
        assert!(!endless.take(&[0; 4096]));
    }

    #[test]
    fn only_a_ping_at_the_front_is_made_another_frame() {
        // Alone, and before padding and other frames.
        for rest in [&[][..], &[0, 0, 0], &[1, 0], &[2, 7, 0, 0, 0]] {
            let mut payload = BytesMut::from(&[&[PING], rest].concat()[..]);
            acknowledge_at_once(&mut payload);
            assert_eq!(payload, [&[IMMEDIATE_ACK], rest].concat());
        }
        // Others, with a PING that is not in front.
        for other in [
            &[][..],
            &[0, 1],
            &[2, 1, 0, 0, 0],
            &[0x08, 1, 1],
            &[0x40, 1],
        ] {
            let mut payload = BytesMut::from(other);
            acknowledge_at_once(&mut payload);
            assert_eq!(payload, other);
        }
    }

    #[test]
    fn nothing_but_padding_behind_a_ping_is_dropped() {
        for len in [0, 1, 1400] {
            let mut payload = BytesMut::from(&[&[PING][..], &vec![PADDING; len]].concat()[..]);
            drop_padding(&mut payload);
            assert_eq!(payload, [PING][..]);
        }
        // A zero may be the last byte of another frame.
        for other in [
            &[][..],
            &[0, 0],
            &[PING, 0, 0, 2, 0, 0, 0, 0],
            &[0x30, 0, 0],
        ] {
            let mut payload = BytesMut::from(other);
            drop_padding(&mut payload);
            assert_eq!(payload, other);
        }
    }

    #[test]
    fn a_stranger_is_looked_at_and_then_held_back() {
        let vigil = Vigil::default();
        let mut taken = 0;
        while vigil.takes(1000) {
            taken += 1000 + PACKET_COST;
            assert_eq!(vigil.due().now_or_never().is_some(), taken > LOOK);
        }
        assert!((UNSEEN - 2000..=UNSEEN).contains(&taken), "{taken}");
        vigil.seen();
        assert!(vigil.takes(1000));
    }
}
