//! Becoming a node, and staying one.

use hy2_proto::control::rpc::EnrollRequest;

use super::{
    LinkError,
    channel::{Connection, Dial, bounded},
};
use crate::{
    agent::Node,
    identity::{IdentityError, renewal_request, spki_sha256},
};

/// Trades the token for an identity.
pub(super) async fn enrol(node: &Node, master: &str) -> Result<(), LinkError> {
    let enrolment = node.config.enrolment.as_ref().ok_or(LinkError::NoToken)?;
    let mut connection = Connection::open(master, node, Dial::Pinned(enrolment.ca_pin)).await?;
    let csr = node.identity.key().request(&node.config.name);
    let request = EnrollRequest {
        token: enrolment.token.to_string(),
        csr: csr.map_err(IdentityError::Crypto)?.into(),
        name: node.config.name.clone(),
        info: Some(node.info().await),
        public_host: node.config.public_host.clone(),
        listen_port: node.config.listen_port.into(),
    };
    let issued = bounded(connection.master.enroll(request)).await?;
    // The CA that was pinned has to be among those that are trusted from here on.
    let pinned = issued
        .trusted_cas
        .iter()
        .any(|ca| spki_sha256(ca) == Some(enrolment.ca_pin.0));
    if !pinned {
        let error = IdentityError::Answer("the pinned CA is not among those to trust");
        return Err(error.into());
    }
    node.identity.accept(&issued)?;
    tracing::info!(name = issued.name, "enrolled");
    Ok(())
}

/// Renews the certificate; with one that has run out, the known key is proof enough.
pub(super) async fn renew(node: &Node, master: &str) -> Result<(), LinkError> {
    let now = node.clock.now();
    let request = renewal_request(&node.identity, now)?;
    let expired = !request.signature.is_empty();
    let dial = if expired { Dial::Anonymous } else { Dial::Node };
    let mut connection = Connection::open(master, node, dial).await?;
    let renewed = bounded(connection.master.renew_certificate(request)).await?;
    node.identity.update(
        renewed.certificate.as_ref(),
        &renewed.trusted_cas,
        &renewed.signing_keys,
    )?;
    tracing::info!("certificate renewed");
    Ok(())
}
