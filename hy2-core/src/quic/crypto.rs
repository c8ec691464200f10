//! Handshake adjustments around quinn's rustls sessions.
//!
//! quinn ties the advertised datagram size to its receive buffer, refuses to send datagrams to a
//! peer that omits `max_datagram_frame_size`, and puts TLS error texts on the wire. Peers of this
//! protocol need otherwise, so the session is wrapped: parameters are re-encoded on their way in
//! and out. Only parameter 0x20 is touched; quinn keeps its own copy of the flow-control ones and
//! would deadlock if they differed on the wire.

use std::{any::Any, io::Cursor, sync::Arc};

use hy2_proto::varint;
use quinn_proto::{
    ConnectError, ConnectionId, Side, TransportError,
    crypto::{
        self, ExportKeyingMaterialError, HeaderKey, KeyPair, Keys, PacketKey, Session,
        UnsupportedVersion,
    },
    transport_parameters::TransportParameters,
};

use super::MAX_DATAGRAM_FRAME;

/// Transport parameter `max_datagram_frame_size` (RFC 9221 §3).
const DATAGRAM_PARAMETER: u64 = 0x20;

/// Wraps a server's crypto configuration.
pub(crate) struct ServerCrypto(pub(crate) Arc<dyn crypto::ServerConfig>);

impl crypto::ServerConfig for ServerCrypto {
    fn initial_keys(
        &self,
        version: u32,
        dst_cid: &ConnectionId,
    ) -> Result<Keys, UnsupportedVersion> {
        self.0.initial_keys(version, dst_cid)
    }

    fn retry_tag(&self, version: u32, orig_dst_cid: &ConnectionId, packet: &[u8]) -> [u8; 16] {
        self.0.retry_tag(version, orig_dst_cid, packet)
    }

    fn start_session(
        self: Arc<Self>,
        version: u32,
        params: &TransportParameters,
    ) -> Box<dyn Session> {
        let params = with_datagram_size(params, Side::Client, Rule::Replace);
        Box::new(WrappedSession {
            inner: Arc::clone(&self.0).start_session(version, &params),
            side: Side::Server,
        })
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
        Ok(Box::new(WrappedSession {
            inner: Arc::clone(&self.0).start_session(version, server_name, &params)?,
            side: Side::Client,
        }))
    }
}

struct WrappedSession {
    inner: Box<dyn Session>,
    side: Side,
}

impl Session for WrappedSession {
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
        self.inner.read_handshake(buf).map_err(|mut error| {
            if self.side.is_server() {
                // An ordinary web server sends the alert without a text of its TLS library.
                error.reason.clear();
            }
            error
        })
    }

    fn transport_parameters(&self) -> Result<Option<TransportParameters>, TransportError> {
        let params = self.inner.transport_parameters()?;
        Ok(params.map(|params| with_datagram_size(&params, self.side, Rule::AddIfMissing)))
    }

    fn write_handshake(&mut self, buf: &mut Vec<u8>) -> Option<Keys> {
        self.inner.write_handshake(buf)
    }

    fn next_1rtt_keys(&mut self) -> Option<KeyPair<Box<dyn PacketKey>>> {
        self.inner.next_1rtt_keys()
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
