//! Handshake adjustments around quinn's rustls sessions.
//!
//! quinn ties the advertised datagram size to its receive buffer, refuses to send datagrams to a
//! peer that omits `max_datagram_frame_size`, and puts TLS error texts on the wire. Peers of this
//! protocol need otherwise, so the session is wrapped: parameters are re-encoded on their way in
//! and out. Only parameter 0x20 is touched; quinn keeps its own copy of the flow-control ones and
//! would deadlock if they differed on the wire.

use std::{any::Any, io::Cursor, sync::Arc};

use hy2_proto::varint;
use quinn::crypto::rustls::{HandshakeData, QuicServerConfig};
use quinn_proto::{
    ConnectError, ConnectionId, Side, TransportError, TransportErrorCode,
    crypto::{
        self, ExportKeyingMaterialError, HeaderKey, KeyPair, Keys, PacketKey, Session,
        UnsupportedVersion,
    },
    transport_parameters::TransportParameters,
};
use rustls::quic::{KeyChange, Secrets, ServerConnection, Version};

use super::MAX_DATAGRAM_FRAME;

/// Transport parameter `max_datagram_frame_size` (RFC 9221 §3).
const DATAGRAM_PARAMETER: u64 = 0x20;

/// A server's crypto configuration.
pub(crate) struct ServerCrypto {
    quic: Arc<QuicServerConfig>,
    tls: Arc<rustls::ServerConfig>,
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
        let quic = QuicServerConfig::try_from(Arc::clone(&tls)).map_err(|_| unusable())?;
        // What could be wrong with the settings shows with the first session.
        ServerConnection::new(Arc::clone(&tls), Version::V1, Vec::new())?;
        Ok(Self {
            quic: Arc::new(quic),
            tls,
        })
    }
}

impl crypto::ServerConfig for ServerCrypto {
    fn initial_keys(
        &self,
        version: u32,
        dst_cid: &ConnectionId,
    ) -> Result<Keys, UnsupportedVersion> {
        crypto::ServerConfig::initial_keys(&*self.quic, version, dst_cid)
    }

    fn retry_tag(&self, version: u32, orig_dst_cid: &ConnectionId, packet: &[u8]) -> [u8; 16] {
        self.quic.retry_tag(version, orig_dst_cid, packet)
    }

    fn start_session(
        self: Arc<Self>,
        version: u32,
        params: &TransportParameters,
    ) -> Box<dyn Session> {
        let params = with_datagram_size(params, Side::Client, Rule::Replace);
        let mut encoded = Vec::with_capacity(256);
        params.write(&mut encoded);
        let tls = ServerConnection::new(Arc::clone(&self.tls), Version::V1, encoded)
            .expect("the settings made a session before");
        Box::new(ServerSession {
            config: Arc::clone(&self.quic),
            version,
            hello: None,
            next: None,
            stage: Stage::Tls(Box::new(tls)),
        })
    }
}

/// A server's TLS session, which lets go of TLS when the handshake is over: what is left to do
/// then, deriving the keys of the next phase, needs the secrets only. rustls would keep several
/// kilobytes for the connection's life.
struct ServerSession {
    config: Arc<QuicServerConfig>,
    version: u32,
    /// Known early in the handshake.
    hello: Option<Hello>,
    next: Option<Box<Secrets>>,
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

impl Session for ServerSession {
    fn initial_keys(&self, dst_cid: &ConnectionId, _side: Side) -> Keys {
        crypto::ServerConfig::initial_keys(&*self.config, self.version, dst_cid)
            .expect("quinn checks the version before it begins a session")
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

    fn early_data_accepted(&self) -> Option<bool> {
        None
    }

    fn is_handshaking(&self) -> bool {
        matches!(&self.stage, Stage::Tls(tls) if tls.is_handshaking())
    }

    fn read_handshake(&mut self, buf: &[u8]) -> Result<bool, TransportError> {
        // As an ordinary web server, which sends the alert without a text of its TLS library.
        let failed = |code| TransportError {
            code,
            frame: None,
            reason: String::new(),
        };
        let alert = |alert: u8| failed(TransportErrorCode::crypto(alert));
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
                None => failed(TransportErrorCode::PROTOCOL_VIOLATION),
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
        let Some(encoded) = tls.quic_transport_parameters() else {
            return Ok(None);
        };
        let params = TransportParameters::read(Side::Server, &mut Cursor::new(encoded))?;
        Ok(Some(with_datagram_size(
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
        let keys = match change {
            KeyChange::Handshake { keys } => keys,
            KeyChange::OneRtt { keys, next } => {
                self.next = Some(Box::new(next));
                keys
            }
        };
        Some(Keys {
            header: KeyPair {
                local: Box::new(keys.local.header),
                remote: Box::new(keys.remote.header),
            },
            packet: KeyPair {
                local: Box::new(keys.local.packet),
                remote: Box::new(keys.remote.packet),
            },
        })
    }

    fn next_1rtt_keys(&mut self) -> Option<KeyPair<Box<dyn PacketKey>>> {
        let keys = self.next.as_mut()?.next_packet_keys();
        Some(KeyPair {
            local: Box::new(keys.local),
            remote: Box::new(keys.remote),
        })
    }

    /// Servers get no Retry.
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

/// Wraps a client's crypto configuration.
pub(crate) struct ClientCrypto(pub(crate) Arc<dyn crypto::ClientConfig>);

impl crypto::ClientConfig for ClientCrypto {
    fn start_session(
        self: Arc<Self>,
        version: u32,
        server_name: &str,
        params: &TransportParameters,
    ) -> Result<Box<dyn Session>, ConnectError> {
        let params = with_datagram_size(params, Side::Server, Rule::Replace);
        Ok(Box::new(ClientSession(Arc::clone(&self.0).start_session(
            version,
            server_name,
            &params,
        )?)))
    }
}

struct ClientSession(Box<dyn Session>);

impl Session for ClientSession {
    fn initial_keys(&self, dst_cid: &ConnectionId, side: Side) -> Keys {
        self.0.initial_keys(dst_cid, side)
    }

    fn handshake_data(&self) -> Option<Box<dyn Any>> {
        self.0.handshake_data()
    }

    fn peer_identity(&self) -> Option<Box<dyn Any>> {
        self.0.peer_identity()
    }

    fn early_crypto(&self) -> Option<(Box<dyn HeaderKey>, Box<dyn PacketKey>)> {
        self.0.early_crypto()
    }

    fn early_data_accepted(&self) -> Option<bool> {
        self.0.early_data_accepted()
    }

    fn is_handshaking(&self) -> bool {
        self.0.is_handshaking()
    }

    fn read_handshake(&mut self, buf: &[u8]) -> Result<bool, TransportError> {
        self.0.read_handshake(buf)
    }

    fn transport_parameters(&self) -> Result<Option<TransportParameters>, TransportError> {
        let params = self.0.transport_parameters()?;
        Ok(params.map(|params| with_datagram_size(&params, Side::Client, Rule::AddIfMissing)))
    }

    fn write_handshake(&mut self, buf: &mut Vec<u8>) -> Option<Keys> {
        self.0.write_handshake(buf)
    }

    fn next_1rtt_keys(&mut self) -> Option<KeyPair<Box<dyn PacketKey>>> {
        self.0.next_1rtt_keys()
    }

    fn is_valid_retry(&self, orig_dst_cid: &ConnectionId, header: &[u8], payload: &[u8]) -> bool {
        self.0.is_valid_retry(orig_dst_cid, header, payload)
    }

    fn export_keying_material(
        &self,
        output: &mut [u8],
        label: &[u8],
        context: &[u8],
    ) -> Result<(), ExportKeyingMaterialError> {
        self.0.export_keying_material(output, label, context)
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Rule {
    Replace,
    AddIfMissing,
}

/// Re-encodes `params` with our datagram size. `reader` is the side that reads the parameters,
/// which decides which ones are legal.
fn with_datagram_size(
    params: &TransportParameters,
    reader: Side,
    rule: Rule,
) -> TransportParameters {
    let mut encoded = Vec::with_capacity(256);
    params.write(&mut encoded);
    let (mut kept, present) = without_parameter(&encoded, DATAGRAM_PARAMETER);
    if present && rule == Rule::AddIfMissing {
        return *params;
    }
    varint::encode(DATAGRAM_PARAMETER, &mut kept);
    varint::encode(varint::len(MAX_DATAGRAM_FRAME) as u64, &mut kept);
    varint::encode(MAX_DATAGRAM_FRAME, &mut kept);
    // What was just written from a valid set reads back; if a future quinn disagrees, its own
    // parameters still make a working connection.
    TransportParameters::read(reader, &mut Cursor::new(kept)).unwrap_or(*params)
}

/// Copies an encoded parameter list without parameter `id`; tells whether it was there.
fn without_parameter(encoded: &[u8], id: u64) -> (Vec<u8>, bool) {
    let mut kept = Vec::with_capacity(encoded.len() + 8);
    let mut present = false;
    let mut rest = encoded;
    while let Some((this, len, header)) = parameter_header(rest) {
        let Some((parameter, tail)) = rest.split_at_checked(header + len) else {
            break;
        };
        if this == id {
            present = true;
        } else {
            kept.extend_from_slice(parameter);
        }
        rest = tail;
    }
    (kept, present)
}

/// Reads `(id, value length, header length)` of the first parameter.
fn parameter_header(bytes: &[u8]) -> Option<(u64, usize, usize)> {
    let (id, id_len) = varint::decode(bytes).ok()?;
    let (len, len_len) = varint::decode(bytes.get(id_len..)?).ok()?;
    Some((id, usize::try_from(len).ok()?, id_len + len_len))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(hex_text: &str, reader: Side) -> TransportParameters {
        let bytes = hex::decode(hex_text).expect("hex");
        TransportParameters::read(reader, &mut Cursor::new(bytes)).expect("valid parameters")
    }

    fn encoded(params: &TransportParameters) -> Vec<u8> {
        let mut bytes = Vec::new();
        params.write(&mut bytes);
        bytes
    }

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
    fn a_missing_datagram_size_is_assumed() {
        // 0x1 = 30000, 0xf = empty: what the official client sends, shortened.
        let theirs = parse("010480007530 0f00".replace(' ', "").as_str(), Side::Server);
        let seen = encoded(&with_datagram_size(
            &theirs,
            Side::Server,
            Rule::AddIfMissing,
        ));
        let (_, present) = without_parameter(&seen, DATAGRAM_PARAMETER);
        assert!(present);
        assert!(
            seen.windows(4).any(|w| w == [0x20, 0x02, 0x44, 0xb0]),
            "{seen:02x?}"
        );
    }

    #[test]
    fn a_peer_that_says_its_size_is_believed() {
        // 0x20 = 65535 beside 0xf.
        let theirs = parse("20048000ffff0f00", Side::Server);
        let seen = with_datagram_size(&theirs, Side::Server, Rule::AddIfMissing);
        assert_eq!(encoded(&seen), encoded(&theirs));
    }

    #[test]
    fn our_own_size_is_replaced_and_nothing_else_changes() {
        let ours = parse(
            "010480007530 030245c0 20048000ffff 0f00"
                .replace(' ', "")
                .as_str(),
            Side::Server,
        );
        let (before, _) = without_parameter(&encoded(&ours), DATAGRAM_PARAMETER);
        let sent = encoded(&with_datagram_size(&ours, Side::Server, Rule::Replace));
        let (after, present) = without_parameter(&sent, DATAGRAM_PARAMETER);
        assert!(present);
        assert_eq!(before, after);
        assert!(sent.windows(4).any(|w| w == [0x20, 0x02, 0x44, 0xb0]));
    }

    #[test]
    fn a_truncated_list_does_not_panic() {
        let full = [0x20, 0x02, 0x44, 0xb0, 0x0f, 0x00];
        for len in 0..full.len() {
            let _ = without_parameter(&full[..len], DATAGRAM_PARAMETER);
        }
    }
}
