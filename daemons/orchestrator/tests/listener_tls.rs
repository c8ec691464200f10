//! TLS on both ports, with certificates that change while connections are open.

mod support;

use std::{fs, sync::Arc, time::Duration};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::support::Host;

const FILES: &str = "\
api: {listen: '127.0.0.1:0', tls: {cert: FOLDER/api.pem, key: FOLDER/api.key}}
public: {url: 'https://localhost/', listen: '127.0.0.1:0', tls: {cert: FOLDER/public.pem, key: FOLDER/public.key}}
";

/// An authority that clients trust.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    connector: TlsConnector,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(issuer.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        Self {
            issuer,
            connector: TlsConnector::from(Arc::new(config)),
        }
    }

    /// Writes a new certificate; returns it.
    fn write(&self, host: &Host, name: &str) -> Vec<u8> {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        fs::write(host.path(&format!("{name}.pem")), certificate.pem()).unwrap();
        fs::write(host.path(&format!("{name}.key")), key.serialize_pem()).unwrap();
        certificate.der().to_vec()
    }

    async fn connect(&self, address: &str) -> TlsStream<TcpStream> {
        let stream = TcpStream::connect(address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        self.connector.connect(name, stream).await.unwrap()
    }

    async fn shown(&self, address: &str) -> Vec<u8> {
        let stream = self.connect(address).await;
        stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
    }
}

/// Asks over a connection that stays open; returns the head of the answer.
async fn ask(stream: &mut TlsStream<TcpStream>, path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut read = Vec::new();
    while !read.windows(4).any(|window| window == b"\r\n\r\n") {
        let mut buffer = [0; 4096];
        let count = stream.read(&mut buffer).await.unwrap();
        assert!(count > 0, "closed");
        read.extend_from_slice(&buffer[..count]);
    }
    String::from_utf8_lossy(&read).to_lowercase()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_replaced_under_open_connections() {
    let authority = Authority::new();
    let host = Host::new(None, "placeholder");
    let text = fs::read_to_string(&host.config).unwrap();
    let files = FILES.replace("FOLDER", host.folder.path().to_str().unwrap());
    fs::write(&host.config, text.replace("placeholder", &files)).unwrap();
    let missing = host.refused(&["run"]);
    assert!(missing.contains("api.pem"), "{missing}");
    let api = authority.write(&host, "api");
    let public = authority.write(&host, "public");
    let running = host.start();

    assert_eq!(authority.shown(&running.api).await, api);
    assert_eq!(authority.shown(&running.public).await, public);
    let mut open = authority.connect(&running.api).await;
    let answer = ask(&mut open, "/readyz").await;
    assert!(answer.starts_with("http/1.1 200"), "{answer}");
    assert!(
        answer.contains("strict-transport-security: max-age="),
        "{answer}"
    );
    let mut subscription = authority.connect(&running.public).await;
    let answer = ask(&mut subscription, "/nothing").await;
    assert!(answer.starts_with("http/1.1 404"), "{answer}");

    // In clear there is no answer.
    let mut plain = TcpStream::connect(&running.api).await.unwrap();
    plain
        .write_all(b"GET /readyz HTTP/1.1\r\nhost: localhost\r\n\r\n")
        .await
        .unwrap();
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    // One that says nothing holds up nobody.
    let _silent = TcpStream::connect(&running.api).await.unwrap();

    // Half a change, and nonsense, change nothing.
    let newer = Authority::write(&authority, &host, "newer");
    fs::copy(host.path("newer.pem"), host.path("api.pem")).unwrap();
    running.hang_up();
    fs::write(host.path("public.pem"), "nonsense").unwrap();
    running.hang_up();
    for _ in 0..5 {
        assert_eq!(authority.shown(&running.api).await, api);
        assert_eq!(authority.shown(&running.public).await, public);
    }
    fs::copy(host.path("newer.key"), host.path("api.key")).unwrap();
    running.hang_up();
    let mut tries = 0;
    while authority.shown(&running.api).await != newer {
        tries += 1;
        assert!(tries < 300, "the new certificate is never shown");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let answer = ask(&mut open, "/readyz").await;
    assert!(
        answer.starts_with("http/1.1 200"),
        "the old connection stays: {answer}"
    );
    // Without a signal, too.
    let newest = authority.write(&host, "public");
    let mut tries = 0;
    while authority.shown(&running.public).await != newest {
        tries += 1;
        assert!(tries < 300, "the newest certificate is never shown");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    drop((open, subscription));
    running.stop();
}
