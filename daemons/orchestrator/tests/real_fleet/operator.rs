//! NodeManager on a port of the node's host, with the certificate that `ca issue-operator` writes.

use std::{io::Write, net::SocketAddr, sync::Arc};

use hy2_agent_sdk::hy2_proto::control::rpc::{
    GetInfoRequest, NodeInfo, node_manager_client::NodeManagerClient,
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use tokio::net::TcpStream;
use tonic::transport::Endpoint;

use crate::{
    delivery::Once,
    fleet::{Fleet, Store},
    ports,
    restored::{command, orchestrator},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operators_certificate_opens_the_port_of_a_nodes_host() {
    let mut fleet = Fleet::start(Store::Sqlite, 1).await;
    let address = SocketAddr::from(([127, 0, 0, 1], ports::free()));
    fleet.stop_agent(0).await;
    let config = fleet.path().join(format!("{}.yaml", fleet.nodes[0].name));
    let mut file = std::fs::OpenOptions::new()
        .append(true)
        .open(config)
        .expect("there");
    writeln!(file, "loopback: {address}").expect("written");
    fleet.start_agent(0);
    let node = fleet
        .rest
        .get(&format!("/nodes/{}", fleet.nodes[0].id))
        .await;
    let name = format!("{}.node.hy2.internal", node["uid"].as_str().expect("an id"));

    let out = fleet.path().join("ann.pem");
    let shown = out.to_str().expect("text");
    let asked = ["ca", "issue-operator", "--name", "ann", "--out", shown];
    let said = orchestrator(fleet.path(), &asked).await;
    assert!(said.contains("valid until"), "{said}");
    let pem = std::fs::read(&out).expect("there");
    let info = crate::until("an answer", || async { info(address, &name, &pem).await }).await;
    assert_eq!(info.name, fleet.nodes[0].name);
    crate::until("the audit log", || async {
        let audit = fleet.rest.look("/audit").await?.to_string();
        match audit.contains("issue_operator") {
            true => Ok(()),
            false => Err(audit),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operators_certificate_has_a_plain_name_and_ends_soon() {
    let fleet = Fleet::start(Store::Sqlite, 0).await;
    let path = fleet.path();
    let asked = ["ca", "issue-operator", "--out", "-", "--name"];
    let said = orchestrator(path, &[&asked[..], &["ann.b-2"]].concat()).await;
    assert!(said.starts_with("-----BEGIN PRIVATE KEY-----\n"), "{said}");
    assert_eq!(said.matches("-----END CERTIFICATE-----\n").count(), 2);

    for (last, reason) in [
        (&["ann", "--days", "91"][..], "1 to 90 days"),
        (&["ann", "--days", "0"], "1 to 90 days"),
        (&["ann,CN=x"], "ann,CN=x"),
        (&[""], "name"),
    ] {
        let output = command(path, &[&asked[..], last].concat()).await;
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{last:?}");
        assert!(error.contains(reason), "{last:?}: {error}");
        assert!(output.stdout.is_empty(), "{last:?}");
    }
}

/// Asks as an operator's gRPC client does.
async fn info(address: SocketAddr, name: &str, pem: &[u8]) -> Result<NodeInfo, String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let mut certificates = CertificateDer::pem_slice_iter(pem);
    let mut next = || {
        certificates
            .next()
            .ok_or("no certificate")?
            .map_err(|error| text(&error))
    };
    let (own, authority) = (next()?, next()?);
    let key = PrivateKeyDer::from_pem_slice(pem).map_err(|error| text(&error))?;
    let mut roots = RootCertStore::empty();
    roots.add(authority).map_err(|error| text(&error))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![own], key)
        .map_err(|error| text(&error))?;
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let connector = tokio_rustls::TlsConnector::from(Arc::new(tls));
    let name = ServerName::try_from(name.to_owned()).expect("a name");
    let tcp = TcpStream::connect(address)
        .await
        .map_err(|error| text(&error))?;
    let stream = connector
        .connect(name, tcp)
        .await
        .map_err(|error| text(&error))?;
    let channel = Endpoint::from_static("http://node.invalid")
        .connect_with_connector(Once(Some(stream)))
        .await
        .map_err(|error| text(&error))?;
    let answer = NodeManagerClient::new(channel)
        .get_info(GetInfoRequest {})
        .await;
    let answer = answer.map_err(|error| text(&error))?.into_inner();
    answer.info.ok_or_else(|| "an empty answer".to_owned())
}
