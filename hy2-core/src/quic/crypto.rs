//! Handshake adjustments around quinn's rustls session of a client.
//!
//! quinn ties the advertised datagram size to its receive buffer and refuses to send datagrams to a
//! peer that omits `max_datagram_frame_size`. Peers of this protocol need otherwise, so the session
//! is wrapped: parameters are re-encoded on their way in and out.

use std::{any::Any, sync::Arc};

use quinn_proto::{
    ConnectError, ConnectionId, Side, TransportError,
    crypto::{self, ExportKeyingMaterialError, HeaderKey, KeyPair, Keys, PacketKey, Session},
    transport_parameters::TransportParameters,
};

use super::parameters::{Rule, with_datagram_size};

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
        }))
    }
}

struct WrappedSession {
    inner: Box<dyn Session>,
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
        self.inner.read_handshake(buf)
    }

    fn transport_parameters(&self) -> Result<Option<TransportParameters>, TransportError> {
        let params = self.inner.transport_parameters()?;
        Ok(params.map(|params| with_datagram_size(&params, Side::Client, Rule::AddIfMissing)))
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
