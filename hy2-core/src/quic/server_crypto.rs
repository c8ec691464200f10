//! A server's side of the handshake, and what it takes from peers that nobody let in.
//!
//! quinn's own TLS session writes quinn's transport parameters and puts texts of its TLS library on
//! the wire. This one says what an ordinary web server says.

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
    /// Answers what has nothing to do with a session.
    quinns: Arc<QuicServerConfig>,
    vigil: Arc<Vigil>,
}

impl ServerCrypto {
    /// Takes TLS settings; `None` when they are not fit for QUIC.
    pub(crate) fn new(tls: rustls::ServerConfig) -> Option<Self> {
        let tls = Arc::new(tls);
        let initial = tls
            .crypto_provider()
            .cipher_suites
            .iter()
            .filter(|suite| suite.suite() == CipherSuite::TLS13_AES_128_GCM_SHA256)
            .find_map(|suite| suite.tls13()?.quic_suite())?;
        let quinns = QuicServerConfig::with_initial(Arc::clone(&tls), initial).ok()?;
        // The first of its kind shows whether others can be made.
        ServerConnection::new(Arc::clone(&tls), Version::V1, Vec::new()).ok()?;
        Some(Self {
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
        version: u32,
        params: &TransportParameters,
    ) -> Box<dyn Session> {
        let said = parameters::of_server(params);
        match ServerConnection::new(Arc::clone(&self.tls), Version::V1, said) {
            Ok(tls) => Box::new(ServerSession {
                tls: tls.into(),
                initial: self.initial,
                announced: false,
                next: None,
                vigil: Arc::clone(&self.vigil),
            }),
            // Does not happen after the trial in `new`.
            Err(_) => Arc::clone(&self.quinns).start_session(version, params),
        }
    }
}

struct ServerSession {
    tls: quic::Connection,
    initial: Suite,
    /// Whether quinn was told that it can ask what the client wants.
    announced: bool,
    next: Option<Secrets>,
    vigil: Arc<Vigil>,
}

impl ServerSession {
    fn server_name(&self) -> Option<&str> {
        match &self.tls {
            quic::Connection::Server(tls) => tls.server_name(),
            quic::Connection::Client(_) => None,
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
        self.announced.then(|| -> Box<dyn Any> {
            Box::new(HandshakeData {
                protocol: self.tls.alpn_protocol().map(<[u8]>::to_vec),
                server_name: self.server_name().map(str::to_owned),
            })
        })
    }

    fn peer_identity(&self) -> Option<Box<dyn Any>> {
        let chain = self.tls.peer_certificates()?;
        let chain: Vec<_> = chain.iter().cloned().map(|one| one.into_owned()).collect();
        Some(Box::new(chain))
    }

    /// There are none: early data is off.
    fn early_crypto(&self) -> Option<(Box<dyn HeaderKey>, Box<dyn PacketKey>)> {
        None
    }

    /// A client's question.
    fn early_data_accepted(&self) -> Option<bool> {
        None
    }

    fn is_handshaking(&self) -> bool {
        self.tls.is_handshaking()
    }

    fn read_handshake(&mut self, buf: &[u8]) -> Result<bool, TransportError> {
        if self.tls.read_hs(buf).is_err() {
            // An ordinary web server sends the alert without a text of its TLS library.
            return Err(match self.tls.alert() {
                Some(alert) => TransportErrorCode::crypto(alert.into()).into(),
                None => TransportErrorCode::PROTOCOL_VIOLATION.into(),
            });
        }
        if self.announced {
            return Ok(false);
        }
        // rustls has read the client's hello when it knows one of these.
        self.announced = self.tls.alpn_protocol().is_some()
            || self.server_name().is_some()
            || !self.tls.is_handshaking();
        Ok(self.announced)
    }

    fn transport_parameters(&self) -> Result<Option<TransportParameters>, TransportError> {
        let Some(bytes) = self.tls.quic_transport_parameters() else {
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
        match self.tls.write_hs(buf)? {
            KeyChange::Handshake { keys } => Some(copying(keys)),
            KeyChange::OneRtt { keys, next } => {
                self.next = Some(next);
                let vigil = Some(Arc::clone(&self.vigil));
                Some(convert(keys, |remote| Watched { remote, vigil }))
            }
        }
    }

    fn next_1rtt_keys(&mut self) -> Option<KeyPair<Box<dyn PacketKey>>> {
        let keys = self.next.as_mut()?.next_packet_keys();
        Some(KeyPair {
            local: Box::new(keys.local),
            remote: Box::new(Watched {
                remote: keys.remote,
                vigil: Some(Arc::clone(&self.vigil)),
            }),
        })
    }

    /// Only clients are sent away to try again.
    fn is_valid_retry(&self, _dst_cid: &ConnectionId, _header: &[u8], _payload: &[u8]) -> bool {
        false
    }

    fn export_keying_material(
        &self,
        output: &mut [u8],
        label: &[u8],
        context: &[u8],
    ) -> Result<(), ExportKeyingMaterialError> {
        match self
            .tls
            .export_keying_material(output, label, Some(context))
        {
            Ok(_) => Ok(()),
            Err(_) => Err(ExportKeyingMaterialError),
        }
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
            if vigil.over.load(Relaxed) {
                return Ok(());
            }
            if !vigil.takes(payload.len()) {
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
