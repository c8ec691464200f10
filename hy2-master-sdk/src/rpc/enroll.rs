//! How a node gets its identity, and keeps it.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, ED25519, UnparsedPublicKey,
};
use hy2_proto::control::{RENEW_SIGNATURE_CONTEXT, rpc};
use ipnet::IpNet;
use tonic::Status;
use uuid::Uuid;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::error::{authority, chain, store};
use super::peers::Peer;
use crate::auth::ca::{Issued, NODE_VALIDITY, NodeRequest, read_node};
use crate::core::Core;
use crate::domain::{NodeId, ObservedState, Timestamp};
use crate::secrets::sha256;
use crate::store::certificates::{self, TokenRow};
use crate::store::nodes::{self, NewNode, NodeRow};
use crate::store::{StoreError, Tx, rotation};

/// Trades a token and a request for an identity.
pub(super) async fn enroll(
    core: &Core,
    peer: &Peer,
    request: rpc::EnrollRequest,
) -> Result<rpc::EnrollResponse, Status> {
    if request.token.len() > MAX_TEXT {
        return Err(refused());
    }
    let csr = NodeRequest::parse(&request.csr).map_err(|error| authority(&error))?;
    let public_host = public_host(&request, peer.address)?;
    let listen_port = match request.listen_port {
        0 => 8080,
        port => {
            u16::try_from(port).map_err(|_| Status::invalid_argument("listen_port: not a port"))?
        }
    };
    let now = core.now();
    let mut tx = core.store.begin().await.map_err(|error| store(&error))?;
    let token = certificates::token(&mut tx, &sha256(request.token.as_bytes()))
        .await
        .map_err(|error| store(&error))?
        .ok_or_else(refused)?;
    check_address(&token, peer)?;
    let fresh = certificates::use_token(&mut tx, token.id, csr.spki_sha256(), now)
        .await
        .map_err(|error| store(&error))?;
    let node = if fresh {
        make_node(&mut tx, &token, &request, public_host, listen_port, now).await?
    } else {
        // The answer may have been lost: the same key gets another certificate for the same node.
        let token = certificates::token(&mut tx, &sha256(request.token.as_bytes()))
            .await
            .map_err(|error| store(&error))?
            .ok_or_else(refused)?;
        let same = token.used_spki_sha256.as_deref() == Some(csr.spki_sha256().as_slice());
        match token.node_id {
            Some(node) if same && token.revoked_at.is_none() => {
                let node = nodes::get(&mut tx, node)
                    .await
                    .map_err(|error| store(&error))?;
                if node.observed_state == ObservedState::Revoked {
                    return Err(refused());
                }
                node
            }
            _ => return Err(refused()),
        }
    };
    let trust = core.trust.load();
    let issued = trust
        .authority
        .issue_node(node.uid, &csr, now)
        .map_err(|error| authority(&error))?;
    certificates::insert(&mut tx, node.id, &issued, now)
        .await
        .map_err(|error| store(&error))?;
    if fresh {
        certificates::set_token_node(&mut tx, token.id, node.id)
            .await
            .map_err(|error| store(&error))?;
    }
    tx.commit().await.map_err(|error| store(&error))?;
    tracing::info!(node = node.id.0, name = node.name, "node enrolled");
    Ok(rpc::EnrollResponse {
        node_uid: node.uid.as_bytes().to_vec().into(),
        name: node.name,
        certificate: Some(wire(core, &issued, now)),
        trusted_cas: trust.trusted_cas(),
        signing_keys: trust.signing_keys.clone(),
        cluster_epoch: core.epoch().unsigned_abs(),
    })
}

/// Renews a node's certificate.
pub(super) async fn renew(
    core: &Core,
    peer: &Peer,
    request: rpc::RenewCertificateRequest,
) -> Result<rpc::RenewCertificateResponse, Status> {
    let csr = NodeRequest::parse(&request.csr).map_err(|error| authority(&error))?;
    let now = core.now();
    let (node, uid) = match peer.identity {
        Some(identity) => (identity.node, identity.uid),
        None => prove(core, &request, now).await?,
    };
    let trust = core.trust.load();
    let issued = trust
        .authority
        .issue_node(uid, &csr, now)
        .map_err(|error| authority(&error))?;
    let mut tx = core.store.begin().await.map_err(|error| store(&error))?;
    // Locks the node, so that a revocation comes before or after, not between.
    let row = nodes::get_for_update(&mut tx, node)
        .await
        .map_err(|error| store(&error))?;
    if row.observed_state == ObservedState::Revoked {
        return Err(Status::permission_denied("the node is revoked"));
    }
    // One of the authority before would pass for one of the new, and be worth nothing when the former is removed.
    let active = rotation::lock_active_authority(&mut tx)
        .await
        .map_err(|error| store(&error))?;
    if active.is_none_or(|row| row.spki_sha256 != trust.authority.spki_sha256()) {
        return Err(Status::unavailable(
            "another authority takes over; try again in a moment",
        ));
    }
    certificates::insert(&mut tx, node, &issued, now)
        .await
        .map_err(|error| store(&error))?;
    let grace = now.plus(core.config.certificate_grace);
    certificates::replace_others(&mut tx, node, &issued.fingerprint, grace, now)
        .await
        .map_err(|error| store(&error))?;
    tx.commit().await.map_err(|error| store(&error))?;
    Ok(rpc::RenewCertificateResponse {
        certificate: Some(wire(core, &issued, now)),
        trusted_cas: trust.trusted_cas(),
        signing_keys: trust.signing_keys.clone(),
    })
}

/// Checks the proof of who has an expired certificate: it is known, not revoked, and its key signed
/// this request a moment ago.
async fn prove(
    core: &Core,
    request: &rpc::RenewCertificateRequest,
    now: Timestamp,
) -> Result<(NodeId, Uuid), Status> {
    let at = claim(request, now)?;
    // Known by its fingerprint: the authority issued it, whatever it says. Or, in a store that was restored from a backup
    // of before, by its name and its key, with which the request is signed.
    let found = core
        .store
        .identity(&sha256(&request.expired_certificate))
        .await
        .map_err(|error| store(&error))?;
    let found = match (found, read_node(&request.expired_certificate)) {
        (None, Some((uid, issued))) => core
            .store
            .identity_of_key(uid, &issued.spki_sha256)
            .await
            .map_err(|error| store(&error))?,
        (found, _) => found,
    };
    let row = found
        .filter(|row| row.revoked_at.is_none())
        .ok_or_else(denied)?;
    check_signature(request, at)?;
    Ok((row.node_id, row.node_uid))
}

/// One answer for proofs of who is not known and of who is not who it claims to be.
fn denied() -> Status {
    Status::unauthenticated("a client certificate, or proof of an expired one, is required")
}

/// Checks whether a request has an expired certificate and is of this moment; returns the moment.
pub(super) fn claim(
    request: &rpc::RenewCertificateRequest,
    now: Timestamp,
) -> Result<&prost_types::Timestamp, Status> {
    if request.expired_certificate.is_empty() {
        return Err(denied());
    }
    if request.expired_certificate.len() > MAX_CERTIFICATE {
        return Err(Status::invalid_argument(
            "expired_certificate: larger than 8 KiB",
        ));
    }
    let at = request
        .at
        .as_ref()
        .ok_or_else(|| Status::invalid_argument("at: missing"))?;
    let age = now
        .0
        .saturating_sub(Timestamp::from_proto(at).0)
        .saturating_abs();
    if age > PROOF_AGE_MS {
        return Err(Status::failed_precondition(
            "at: the node's clock is off by more than 5 minutes",
        ));
    }
    Ok(at)
}

/// Checks whether the key of the expired certificate signed a request, and that moment with it.
pub(super) fn check_signature(
    request: &rpc::RenewCertificateRequest,
    at: &prost_types::Timestamp,
) -> Result<(), Status> {
    let (_, certificate) =
        X509Certificate::from_der(&request.expired_certificate).map_err(|_| denied())?;
    let spki = certificate.public_key();
    let key = &spki.subject_public_key.data;
    let algorithm: &dyn aws_lc_rs::signature::VerificationAlgorithm = match key.len() {
        32 => &ED25519,
        65 => &ECDSA_P256_SHA256_ASN1,
        97 => &ECDSA_P384_SHA384_ASN1,
        _ => return Err(denied()),
    };
    let signed = [
        RENEW_SIGNATURE_CONTEXT,
        &request.csr,
        at.seconds.to_string().as_bytes(),
    ]
    .concat();
    UnparsedPublicKey::new(algorithm, key)
        .verify(&signed, &request.signature)
        .map_err(|_| denied())
}

async fn make_node(
    tx: &mut Tx,
    token: &TokenRow,
    request: &rpc::EnrollRequest,
    public_host: String,
    listen_port: u16,
    now: Timestamp,
) -> Result<NodeRow, Status> {
    let wanted = wanted_name(request);
    let uid = Uuid::new_v4();
    let taken = nodes::name_taken(tx, &wanted)
        .await
        .map_err(|error| store(&error))?;
    let name = if taken {
        format!("{wanted}-{}", &uid.simple().to_string()[..6])
    } else {
        wanted
    };
    let new = NewNode {
        uid,
        name,
        public_host,
        listen_port,
        region_id: token.region_id,
        tags: token.tags.0.clone(),
    };
    let node = match nodes::create(tx, &new, now).await {
        // Two nodes of one name enrol at once: the token is as it was, and the next try finds the name
        // taken.
        Err(error @ StoreError::Duplicate(_)) => {
            tracing::debug!(error = chain(&error), "enrolment races for a name");
            return Err(Status::unavailable(
                "another node enrols with this name; try again",
            ));
        }
        other => other.map_err(|error| store(&error))?,
    };
    nodes::set_observed_state(tx, node.id, ObservedState::Enrolling, "", now)
        .await
        .map_err(|error| store(&error))?;
    Ok(node)
}

/// Returns the name that a node would have, were it nobody else's.
pub(super) fn wanted_name(request: &rpc::EnrollRequest) -> String {
    let hostname = request.info.as_ref().map_or("", |info| &info.hostname);
    [&request.name, hostname, "node"]
        .into_iter()
        .map(clean_name)
        .find(|name| !name.is_empty())
        .unwrap_or_default()
}

/// Returns the address under which clients reach the node.
pub(super) fn public_host(
    request: &rpc::EnrollRequest,
    peer: SocketAddr,
) -> Result<String, Status> {
    let host = if request.public_host.is_empty() {
        peer.ip().to_canonical().to_string()
    } else {
        request.public_host.clone()
    };
    let in_brackets = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    let valid = host.len() <= 253
        && (host.parse::<IpAddr>().is_ok()
            || in_brackets.is_some_and(|host| host.parse::<Ipv6Addr>().is_ok())
            || rustls_pki_types::DnsName::try_from(host.as_str()).is_ok());
    if !valid {
        return Err(Status::invalid_argument(
            "public_host: neither an address nor a name",
        ));
    }
    Ok(host)
}

fn check_address(token: &TokenRow, peer: &Peer) -> Result<(), Status> {
    let Some(cidr) = &token.bind_cidr else {
        return Ok(());
    };
    let allowed = cidr
        .parse::<IpNet>()
        .is_ok_and(|cidr| cidr.contains(&peer.address.ip().to_canonical()));
    if allowed { Ok(()) } else { Err(refused()) }
}

/// One answer for unknown, used, revoked and expired tokens.
fn refused() -> Status {
    Status::permission_denied("the enrolment token is not valid")
}

/// Keeps letters, digits, `-`, `_` and `.`, at most 40 of them.
fn clean_name(name: &str) -> String {
    let kept = name
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
    kept.take(40).collect()
}

fn wire(core: &Core, issued: &Issued, now: Timestamp) -> rpc::IssuedCertificate {
    let trust = core.trust.load();
    rpc::IssuedCertificate {
        chain: vec![
            issued.certificate.to_vec().into(),
            trust.authority.certificate().to_vec().into(),
        ],
        not_after: Some(issued.not_after.to_proto()),
        // The agent adds its jitter.
        renew_after: Some(now.plus(NODE_VALIDITY * 2 / 3).to_proto()),
    }
}

const MAX_TEXT: usize = 256;
const MAX_CERTIFICATE: usize = 8 << 10;
const PROOF_AGE_MS: i64 = 5 * 60_000;
