//! Enrolment and renewal at the master: requests for certificates, certificates that ran out with the proof that who shows
//! them has their key, and what a node says of itself. What a node makes is accepted; of a request only the key counts; a
//! proof that was changed anywhere proves nothing, nor does one of another time. Without state.
//!
//! Planted bug: a proof was good at any time.

use std::{net::SocketAddr, sync::LazyLock};

use arbitrary::Unstructured;
use bytes::Bytes;
use hy2_agent_sdk::{
    fuzzing::identity::{renewal_request, request},
    identity::Identity,
};
use hy2_master_sdk::{
    auth::ca::{CaError, CertificateAuthority, Issued, NODE_VALIDITY, NodeRequest},
    domain::Timestamp,
    fuzzing::enrolment::{check_signature, claim, public_host, read_node, wanted_name},
};
use hy2_proto::control::rpc::{
    EnrollRequest, EnrollResponse, IssuedCertificate, RenewCertificateRequest,
};
use prost::Message;
use uuid::Uuid;
use x509_parser::prelude::{FromDer, X509Certificate, X509CertificationRequest};

use crate::{folder::Folder, read, take};

/// Takes a request for a certificate, a certificate, a proof, or what a node says of itself.
pub fn target(data: &[u8]) {
    let mut input = Unstructured::new(data);
    match read::<u8>(&mut input) % 5 {
        0 => {
            let rest = input.len();
            let _ = requested(take(&mut input, rest));
        }
        1 => own_request(&mut input),
        2 => certificate(&mut input),
        3 => proof(&mut input),
        _ => introduction(&mut input),
    }
}

const NOW: Timestamp = Timestamp(1_800_000_000_000);

struct Node {
    identity: Identity,
    uid: Uuid,
    /// What it proves with at [`NOW`].
    proof: RenewCertificateRequest,
}

/// An authority and two of its nodes; made once.
static FLEET: LazyLock<(CertificateAuthority, [Node; 2])> = LazyLock::new(|| {
    let (authority, _) = CertificateAuthority::generate(NOW).expect("an authority");
    let nodes = [1, 2].map(|number| {
        let folder = Folder::new();
        let identity = Identity::open(folder.path()).expect("a new key");
        let uid = Uuid::from_u128(number);
        let csr = request(identity.key(), "node").expect("a request");
        let csr = NodeRequest::parse(&csr).expect("our own request");
        let issued = authority.issue_node(uid, &csr, NOW).expect("a certificate");
        let chain = [&issued.certificate, authority.certificate()];
        let answer = EnrollResponse {
            node_uid: uid.as_bytes().to_vec().into(),
            name: "node".to_owned(),
            certificate: Some(IssuedCertificate {
                chain: chain.map(|der| der.to_vec().into()).to_vec(),
                not_after: Some(issued.not_after.to_proto()),
                renew_after: None,
            }),
            trusted_cas: vec![authority.certificate().to_vec().into()],
            ..EnrollResponse::default()
        };
        identity.accept(&answer).expect("what the master issues");
        let proof = renewal_request(&identity, NOW.to_system(), true).expect("a proof");
        Node {
            identity,
            uid,
            proof,
        }
    });
    let foreign = [
        authority.issue_master(&[], NOW).expect("a certificate"),
        authority.issue_signer(NOW).expect("a certificate"),
        authority
            .issue_hysteria("node.example.org", NOW)
            .expect("a certificate"),
    ];
    for issued in foreign {
        let read = read_node(&issued.issued.certificate);
        assert!(read.is_none(), "of another kind");
    }
    (authority, nodes)
});

/// Takes any request. Returns whether it was accepted.
fn requested(der: &[u8]) -> Option<[u8; 32]> {
    let request = match NodeRequest::parse(der) {
        Ok(request) => request,
        Err(CaError::Request(reason)) => {
            assert!(!reason.is_empty());
            return None;
        }
        Err(other) => panic!("{other}"),
    };
    assert!(der.len() <= 8 << 10);
    let (authority, [node, _]) = &*FLEET;
    let issued = authority.issue_node(node.uid, &request, NOW);
    let issued = issued.expect("a key that was accepted");
    assert_eq!(&issued.spki_sha256, request.spki_sha256());
    assert_eq!(issued.not_after, NOW.plus(NODE_VALIDITY));
    assert_eq!(issued.serial.len(), 16);
    let (uid, read) = read_node(&issued.certificate).expect("a node's certificate");
    assert_eq!(uid, node.uid);
    same(&read, &issued);
    // Whatever else was asked for.
    let (rest, parsed) = X509Certificate::from_der(&issued.certificate).expect("a certificate");
    assert!(rest.is_empty() && !parsed.is_ca());
    assert!(parsed.extensions().len() <= 6 && issued.certificate.len() < 1024);
    let names = parsed.subject_alternative_name().ok().flatten();
    assert_eq!(names.map(|names| names.value.general_names.len()), Some(2));
    Some(issued.spki_sha256)
}

fn same(one: &Issued, other: &Issued) {
    let parts = |of: &Issued| (of.fingerprint, of.serial.clone(), of.spki_sha256);
    assert_eq!(parts(one), parts(other));
    assert_eq!(one.certificate, other.certificate);
    assert_eq!(
        (one.not_before, one.not_after),
        (other.not_before, other.not_after)
    );
}

/// A node's own request, with any name, and one that was changed on its way.
fn own_request(input: &mut Unstructured<'_>) {
    let key = FLEET.1[0].identity.key();
    let (how, at, byte) = (
        read::<u8>(input),
        usize::from(read::<u16>(input)),
        read::<u8>(input),
    );
    let rest = input.len();
    let name = String::from_utf8_lossy(take(input, rest)).into_owned();
    let mut der = request(key, &name).expect("whatever the node is called");
    match how % 4 {
        0 => {
            assert_eq!(requested(&der), Some(key.spki_sha256()));
            return;
        }
        1 => {
            let (_, parsed) = X509CertificationRequest::from_der(&der).expect("our own");
            let info = parsed.certification_request_info.raw;
            // The name of the signature's algorithm is not signed, nor what the signature is wrapped in.
            let start = info.as_ptr().addr() - der.as_ptr().addr() + info.len();
            let wrapping = start..start + 15;
            let at = at % der.len();
            if wrapping.contains(&at) || byte == 0 {
                let _ = requested(&der);
                return;
            }
            der[at] ^= byte;
        }
        2 => der.push(byte),
        _ => der.truncate(at % der.len()),
    }
    assert_eq!(requested(&der), None, "it was changed");
}

/// A certificate, or a node's with some bytes changed.
fn certificate(input: &mut Unstructured<'_>) {
    let mut der = Vec::new();
    if read::<u8>(input) % 2 == 0 {
        let rest = input.len();
        der.extend_from_slice(take(input, rest));
    } else {
        der.extend_from_slice(&FLEET.1[0].proof.expired_certificate);
        for _ in 0..4 {
            let at = usize::from(read::<u16>(input)) % der.len();
            der[at] ^= read::<u8>(input);
        }
    }
    let Some((uid, issued)) = read_node(&der) else {
        return;
    };
    assert_eq!(issued.certificate.as_ref(), der);
    let (_, parsed) = X509Certificate::from_der(&der).expect("it was read");
    let names = parsed.subject_alternative_name().ok().flatten();
    let names = names.expect("names").value.general_names.iter();
    let mut names = names.map(|name| format!("{name:?}").to_lowercase());
    let uid = [uid.to_string(), uid.simple().to_string()];
    assert!(names.any(|name| uid.iter().any(|uid| name.contains(uid))));
}

/// A proof, some of whose parts are another's, changed or missing.
fn proof(input: &mut Unstructured<'_>) {
    let [own, other] = &FLEET.1;
    let mut request = own.proof.clone();
    let now = Timestamp(NOW.0.saturating_add(i64::from(read::<i32>(input)) >> (read::<u8>(input) % 32)));
    for _ in 0..4 {
        if input.is_empty() {
            break;
        }
        let flip = |bytes: &mut Bytes, input: &mut Unstructured<'_>| {
            let mut changed = bytes.to_vec();
            let at = usize::from(read::<u16>(input)) % changed.len().max(1);
            if let Some(byte) = changed.get_mut(at) {
                *byte ^= read::<u8>(input);
            }
            *bytes = changed.into();
        };
        match read::<u8>(input) % 10 {
            0 => flip(&mut request.csr, input),
            1 => request.csr = other.proof.csr.clone(),
            2 => flip(&mut request.signature, input),
            3 => request.signature = other.proof.signature.clone(),
            4 => flip(&mut request.expired_certificate, input),
            5 => request.expired_certificate = other.proof.expired_certificate.clone(),
            6 => {
                if let Some(at) = &mut request.at {
                    at.seconds = at.seconds.wrapping_add(read::<i16>(input).into());
                }
            }
            7 => {
                request.at = Some(prost_types::Timestamp {
                    seconds: read(input),
                    nanos: read(input),
                });
            }
            8 => request.at = None,
            _ => {
                let rest = input.len();
                let any = take(input, rest);
                if let Ok(any) = RenewCertificateRequest::decode(any) {
                    request = any;
                }
            }
        }
    }
    let age = request.at.map(|at| now.0.abs_diff(Timestamp::from_proto(&at).0));
    let of_now = age.is_some_and(|age| age <= 300_000);
    let len = request.expired_certificate.len();
    let claimed = claim(&request, now);
    assert_eq!(claimed.is_ok(), of_now && (1..=8 << 10).contains(&len), "{age:?}");
    let signed = check_signature(&request);
    for refused in [claimed.err(), signed.as_ref().err().cloned()] {
        assert!(refused.is_none_or(|status| !status.message().is_empty()));
    }
    // Who signed this very request.
    let seconds = |of: &RenewCertificateRequest| of.at.map(|at| at.seconds);
    let signer = [own, other].into_iter().find(|node| {
        let proof = &node.proof;
        proof.csr == request.csr
            && proof.signature == request.signature
            && seconds(proof) == seconds(&request)
    });
    match signer {
        None => assert!(signed.is_err(), "nobody has signed this"),
        Some(node) if node.proof.expired_certificate == request.expired_certificate => {
            signed.expect("an honest proof");
        }
        // A certificate that was changed may have kept its key.
        Some(node) => {
            let key = |der: &[u8]| {
                let (_, parsed) = X509Certificate::from_der(der).ok()?;
                Some(parsed.public_key().subject_public_key.data.to_vec())
            };
            let own = key(&node.proof.expired_certificate);
            assert!(signed.is_err() || key(&request.expired_certificate) == own);
        }
    }
}

/// What a node says of itself.
fn introduction(input: &mut Unstructured<'_>) {
    let address: [u8; 16] = read(input);
    let peer = SocketAddr::from((address, read(input)));
    let rest = input.len();
    let Ok(request) = EnrollRequest::decode(take(input, rest)) else {
        return;
    };
    let name = wanted_name(&request);
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    assert!((1..=40).contains(&name.len()) && name.chars().all(plain));
    match public_host(&request, peer) {
        Ok(host) => {
            let said = &request.public_host;
            assert!(said.is_empty() || *said == host);
            assert!((1..=253).contains(&host.len()));
            // It can stand in the address of a subscription.
            let host = match host.parse::<std::net::Ipv6Addr>() {
                Ok(_) => format!("[{host}]"),
                Err(_) => host,
            };
            let uri = format!("https://{host}:8443/").parse::<http::Uri>();
            assert_eq!(uri.ok().and_then(|uri| uri.port_u16()), Some(8443), "{host}");
        }
        Err(status) => {
            assert!(!request.public_host.is_empty());
            assert!(status.message().starts_with("public_host: "));
        }
    }
}
