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
    let opened = Connection::open(master, node, Dial::Pinned(enrolment.ca_pin)).await;
    let mut connection = opened.map_err(|error| match error.is_about_their_issuer() {
        true => LinkError::Pin(Box::new(error)),
        false => error,
    })?;
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

/// By what the master knows a node that renews.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Proof {
    /// By its certificate, unless that has run out.
    Certificate,
    /// By its key: the master does not take the certificate.
    Key,
}

/// Renews the certificate; with one that has run out or is not taken, the known key is proof enough.
pub(super) async fn renew(node: &Node, master: &str, proof: Proof) -> Result<(), LinkError> {
    let now = node.clock.now();
    let request = renewal_request(&node.identity, now, proof == Proof::Key)?;
    let by_key = !request.signature.is_empty();
    let dial = if by_key { Dial::Anonymous } else { Dial::Node };
    let mut connection = Connection::open(master, node, dial).await?;
    let renewed = bounded(connection.master.renew_certificate(request)).await?;
    let kept = node.identity.renewed(
        renewed.certificate.as_ref(),
        &renewed.trusted_cas,
        &renewed.signing_keys,
    );
    match kept {
        // The master lets the one before run out now, so this one is good until it can be written.
        Err(error @ IdentityError::File { .. }) => tracing::error!(
            error = crate::engine::chain_of(&error),
            "certificate renewed, but not on disk"
        ),
        kept => {
            kept?;
            tracing::info!("certificate renewed");
        }
    }
    Ok(())
}
