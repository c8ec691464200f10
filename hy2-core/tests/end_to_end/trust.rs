//! Certificates, pins, names and keys: who talks to whom.

use std::{sync::Arc, time::Duration};

use hy2_core::{
    Client, ClientConfig,
    error::ConnectError,
    rustls::{
        RootCertStore,
        crypto::CryptoProvider,
        pki_types::{CertificateDer, PrivateKeyDer},
    },
    server::ServerConfig,
    socket::Obfuscation,
    tls::{ClientIdentity, ServerTls, SniGuard},
};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{origin::Origin, pair::Pair};

#[tokio::test]
async fn a_pin_is_checked_in_addition_to_the_chain() {
    let made = Made::new("localhost");
    let pair = made.pair(|tls| tls);
    let pin: [u8; 32] = Sha256::digest(&made.certificate).into();
    let mut config = made.client(&pair);
    config.tls.pin_sha256 = Some(pin);
    Client::connect(config.clone())
        .await
        .expect("the pinned one");
    config.tls.pin_sha256 = Some([7; 32]);
    let error = Client::connect(config.clone()).await.expect_err("another");
    assert!(matches!(error, ConnectError::PinMismatch), "{error}");
    config.tls.insecure = true;
    let error = Client::connect(config.clone())
        .await
        .expect_err("still another");
    assert!(matches!(error, ConnectError::PinMismatch), "{error}");
    config.tls.pin_sha256 = Some(pin);
    Client::connect(config)
        .await
        .expect("self-signed and pinned");
}

#[tokio::test]
async fn an_untrusted_certificate_or_a_wrong_name_is_a_tls_error() {
    let made = Made::new("localhost");
    let pair = made.pair(|tls| tls.sni_guard(SniGuard::Disable));
    let mut config = made.client(&pair);
    config.tls.roots = Some(Made::new("localhost").roots());
    let error = Client::connect(config).await.expect_err("untrusted");
    assert!(matches!(error, ConnectError::Tls(_)), "{error}");
    let said = "TLS: the server's certificate is not signed by the authority that is trusted here";
    assert_eq!(error.to_string(), said);
    let mut config = made.client(&pair);
    config.tls.sni = Some("other.example".to_owned());
    let error = Client::connect(config).await.expect_err("wrong name");
    assert!(matches!(error, ConnectError::Tls(_)), "{error}");
    let said = "TLS: the server's certificate is not for other.example, it is for ";
    assert!(error.to_string().starts_with(said), "{error}");
}

#[tokio::test]
async fn the_sni_guard_turns_away_other_names() {
    let made = Made::new("localhost");
    for (guard, name, passes) in [
        (SniGuard::DnsSan, Some("localhost"), true),
        (SniGuard::DnsSan, Some("other.example"), false),
        (SniGuard::DnsSan, None, false),
        (SniGuard::Strict, Some("localhost"), true),
        (SniGuard::Strict, Some("other.example"), false),
        (SniGuard::Disable, Some("other.example"), true),
        (SniGuard::Disable, None, true),
    ] {
        let pair = made.pair(|tls| tls.sni_guard(guard));
        let mut config = made.client(&pair);
        config.tls.insecure = true;
        // Without a name of its own the client asks for the host, an address here.
        config.tls.sni = name.map(str::to_owned);
        match Client::connect(config).await {
            Ok(_) => assert!(passes, "{guard:?} let {name:?} pass"),
            Err(ConnectError::Tls(_)) => assert!(!passes, "{guard:?} refused {name:?}"),
            Err(error) => panic!("{guard:?}, {name:?}: {error}"),
        }
    }
}

#[tokio::test]
async fn a_server_may_ask_for_a_client_certificate() {
    let made = Made::new("localhost");
    let (authority, roots) = authority();
    let pair = made.pair(|tls| tls.client_ca(roots));
    let error = Client::connect(made.client(&pair))
        .await
        .expect_err("no certificate");
    assert!(
        matches!(&error, ConnectError::Tls(text) if text == "the server wants a client certificate"),
        "{error}"
    );

    let stranger = Made::new("client");
    let mut config = made.client(&pair);
    config.tls.identity = Some(stranger.identity());
    let error = Client::connect(config)
        .await
        .expect_err("not of the authority");
    assert!(matches!(error, ConnectError::Tls(_)), "{error}");

    let mut config = made.client(&pair);
    config.tls.identity = Some(issued(&authority));
    let client = Client::connect(config)
        .await
        .expect("issued by the authority");
    client.info().await.expect("info");
}

#[tokio::test]
async fn a_new_certificate_is_for_new_connections() {
    let origin = Origin::echo().await;
    let (old, new) = (Made::new("localhost"), Made::new("localhost"));
    let tls = old.tls();
    let pair = Pair::served_by(tls.clone(), ServerConfig::default(), |builder| builder);
    let early = Client::connect(old.client(&pair))
        .await
        .expect("old certificate");
    let mut stream = early.tcp(&origin.target()).await.expect("stream");

    tls.replace(vec![new.certificate.clone()], new.key())
        .expect("replace");
    let error = Client::connect(old.client(&pair)).await.expect_err("gone");
    assert!(matches!(error, ConnectError::Tls(_)), "{error}");
    let late = Client::connect(new.client(&pair))
        .await
        .expect("new certificate");
    late.tcp(&origin.target()).await.expect("stream");
    stream.write_all(b"x").await.expect("write");
    assert_eq!(stream.read_u8().await.expect("read"), b'x');
    early
        .tcp(&origin.target())
        .await
        .expect("one more on the old connection");

    // What does not fit together is not taken.
    tls.replace(vec![old.certificate.clone()], new.key())
        .expect_err("not its key");
    Client::connect(new.client(&pair))
        .await
        .expect("still the new one");
}

#[tokio::test]
async fn another_obfuscation_is_silence() {
    let of = |password: &str| Obfuscation::salamander(password).expect("password");
    let gecko = Obfuscation::gecko("the password of both", 512, 1200).expect("password");
    let cases = [
        (of("the password of both"), of("the password of one")),
        (of("the password of both"), Obfuscation::Plain),
        (Obfuscation::Plain, of("the password of both")),
        (gecko, of("the password of one")),
    ];
    for (server, client) in cases {
        let mut config = ServerConfig::default();
        config.obfuscation = server;
        let pair = Pair::with(config, |builder| builder);
        let mut config = pair.config.clone();
        config.obfuscation = client;
        config.connect_timeout = Duration::from_millis(250);
        let error = Client::connect(config).await.expect_err("silence");
        assert!(matches!(error, ConnectError::Silence), "{error}");
    }
}

#[tokio::test]
async fn nothing_global_is_installed() {
    let origin = Origin::echo().await;
    let pair = Pair::start();
    let client = pair.client().await;
    let mut stream = client.tcp(&origin.target()).await.expect("stream");
    stream.write_all(b"x").await.expect("write");
    assert_eq!(stream.read_u8().await.expect("read"), b'x');
    // Neither by this test nor by any other in this process.
    assert!(CryptoProvider::get_default().is_none());
    assert!(!tracing::dispatcher::has_been_set());
}

/// As `openssl req -x509` makes them, at both ends, for servers and for clients.
#[tokio::test]
async fn an_authority_that_is_trusted_itself_may_be_shown() {
    let made = Made::authority("localhost", |_| ());
    let pair = made.pair(|tls| tls.client_ca((*made.roots()).clone()));
    let mut config = made.client(&pair);
    config.tls.identity = Some(made.identity());
    Client::connect(config.clone()).await.expect("trusted");
    // Another authority's, of the same name.
    let mut other = config.clone();
    other.tls.identity = Some(Made::authority("localhost", |_| ()).identity());
    let client = Client::connect(other).await;
    assert!(matches!(client, Err(ConnectError::Tls(_))), "{client:?}");
    config.tls.roots = Some(Made::authority("localhost", |_| ()).roots());
    let error = Client::connect(config.clone())
        .await
        .expect_err("untrusted");
    assert!(matches!(error, ConnectError::Tls(_)), "{error}");
}

#[tokio::test]
async fn a_root_that_is_shown_is_still_judged_by_name_time_and_purpose() {
    type Change = fn(&mut CertificateParams);
    let cases: [(&str, Change, &str); 4] = [
        ("other.example", |_| (), "is not for localhost"),
        (
            "localhost",
            |params| params.not_after = rcgen::date_time_ymd(2020, 1, 1),
            "has expired",
        ),
        (
            "localhost",
            |params| params.not_before = rcgen::date_time_ymd(2999, 1, 1),
            "is not valid yet",
        ),
        (
            "localhost",
            |params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning],
            "is not meant for servers",
        ),
    ];
    for (name, change, expected) in cases {
        let made = Made::authority(name, change);
        let pair = made.pair(|tls| tls.sni_guard(SniGuard::Disable));
        let error = Client::connect(made.client(&pair))
            .await
            .expect_err(expected);
        assert!(error.to_string().contains(expected), "{error}");
    }
    let made = Made::authority("localhost", |params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    });
    let pair = made.pair(|tls| tls.client_ca((*made.roots()).clone()));
    let mut config = made.client(&pair);
    config.tls.identity = Some(made.identity());
    let client = Client::connect(config).await;
    assert!(client.is_err(), "it is not meant for clients");
}

/// A self-signed certificate.
struct Made {
    certificate: CertificateDer<'static>,
    key: KeyPair,
}

impl Made {
    fn new(name: &str) -> Self {
        let made = rcgen::generate_simple_self_signed([name.to_owned()]).expect("certificate");
        Self {
            certificate: made.cert.der().clone(),
            key: made.signing_key,
        }
    }

    /// One that may issue others.
    fn authority(name: &str, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("parameters");
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        change(&mut params);
        let key = KeyPair::generate().expect("key");
        let certificate = params.self_signed(&key).expect("certificate");
        Self {
            certificate: certificate.der().clone(),
            key,
        }
    }

    fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::try_from(self.key.serialize_der()).expect("key")
    }

    fn tls(&self) -> ServerTls {
        ServerTls::from_der(vec![self.certificate.clone()], self.key()).expect("tls")
    }

    fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).expect("root");
        Arc::new(roots)
    }

    fn identity(&self) -> ClientIdentity {
        ClientIdentity::from_der(vec![self.certificate.clone()], self.key())
    }

    fn pair(&self, change: impl FnOnce(ServerTls) -> ServerTls) -> Pair {
        Pair::served_by(change(self.tls()), ServerConfig::default(), |builder| {
            builder
        })
    }

    /// A client that trusts this certificate.
    fn client(&self, pair: &Pair) -> ClientConfig {
        let mut config = pair.config.clone();
        config.tls.roots = Some(self.roots());
        config
    }
}

fn authority() -> (Issuer<'static, KeyPair>, RootCertStore) {
    let mut params = CertificateParams::new(Vec::new()).expect("parameters");
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let key = KeyPair::generate().expect("key");
    let certificate = params.self_signed(&key).expect("certificate");
    let mut roots = RootCertStore::empty();
    roots.add(certificate.der().clone()).expect("root");
    (Issuer::new(params, key), roots)
}

fn issued(authority: &Issuer<'static, KeyPair>) -> ClientIdentity {
    let key = KeyPair::generate().expect("key");
    let params = CertificateParams::new(vec!["client".to_owned()]).expect("parameters");
    let certificate = params.signed_by(&key, authority).expect("certificate");
    let key = PrivateKeyDer::try_from(key.serialize_der()).expect("key");
    ClientIdentity::from_der(vec![certificate.der().clone()], key)
}
