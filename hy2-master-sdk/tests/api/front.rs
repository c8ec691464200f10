//! What the ports bear of people who mean no good, and what they say of themselves.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, StreamBody};
use hy2_master_sdk::Master;
use hy2_master_sdk::front::{Front, FrontConfig};
use hy2_master_sdk::store::{Store, StoreOptions};
use hy2_master_sdk::tls::ListenerTls;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::harness::{Client, Fleet, on_both};

on_both! {
    async fn bodies_that_never_end_keep_nobody_out(fleet) {
        let owner = fleet.owner().await;
        let mut slow = Vec::new();
        for at in 0..300 {
            let mut stream = TcpStream::connect(fleet.api).await.unwrap();
            let head = format!(
                "POST /api/v1/auth/login HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 198.51.100.{}\r\n\
                 Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{{",
                at % 20
            );
            stream.write_all(head.as_bytes()).await.unwrap();
            slow.push(stream);
        }
        owner.get("/api/v1/nodes").await.expect(200);
        let again = fleet.owner().await;
        again.post("/api/v1/users", &json!({"username": "ann"})).await.expect(201);
        drop(slow);
        fleet.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_whoever_is_nobody_admin_service_reads_nothing() {
    let fleet = Fleet::sqlite().await;
    let socket = TcpStream::connect(fleet.api).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(socket))
            .await
            .unwrap();
    let driving = tokio::spawn(connection);
    let endless = StreamBody::new(futures_util::stream::pending::<
        Result<http_body::Frame<Bytes>, Infallible>,
    >());
    let request = http::Request::post(format!(
        "http://{}/hy2.control.v1.AdminService/ListUsers",
        fleet.api
    ))
    .header("content-type", "application/grpc")
    .header("te", "trailers")
    .body(endless)
    .unwrap();
    let answer = tokio::time::timeout(Duration::from_secs(30), sender.send_request(request));
    let answer = answer.await.expect("told before the end").unwrap();
    assert_eq!(answer.headers()["grpc-status"], "16");
    driving.abort();
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_in_cookies_work_over_http_2() {
    let signed = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let key = signed.signing_key.serialize_pem();
    let tls = ListenerTls::from_pem(signed.cert.pem().as_bytes(), key.as_bytes()).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("master.db");
    let store = Store::open_sqlite(&path, &StoreOptions::default())
        .await
        .unwrap();
    let shape = move |config: &mut FrontConfig| config.api_tls = Some(tls);
    let fleet = Fleet::start_with(store, directory, shape).await;

    let mut roots = rustls::RootCertStore::empty();
    roots.add(signed.cert.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let socket = TcpStream::connect(fleet.api).await.unwrap();
    let stream = tokio_rustls::TlsConnector::from(Arc::new(config))
        .connect("localhost".try_into().unwrap(), socket)
        .await
        .unwrap();
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    let driving = tokio::spawn(connection);
    let host = format!("localhost:{}", fleet.api.port());
    let ask = async |path: &str, origin: &str, headers: &[(&str, &str)], body: Value| {
        let mut request = http::Request::post(format!("https://{host}/api/v1{path}"))
            .header("origin", origin)
            .header("content-type", "application/json");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request
            .body(Full::new(Bytes::from(body.to_string())))
            .unwrap();
        let answer = sender.clone().send_request(request).await.unwrap();
        assert_eq!(answer.version(), http::Version::HTTP_2);
        let (parts, body) = answer.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let body = serde_json::from_slice::<Value>(&body).unwrap();
        (parts, body)
    };
    let login = json!({"username": "admin", "password": fleet.owner_password(), "cookies": true});
    let (refused, _) = ask("/auth/login", "https://evil.example", &[], login.clone()).await;
    assert_eq!(refused.status, 403);
    let origin = format!("https://{host}");
    let (parts, body) = ask("/auth/login", &origin, &[], login).await;
    assert_eq!(parts.status, 200, "{body}");
    let cookies: Vec<&str> = parts
        .headers
        .get_all("set-cookie")
        .iter()
        .map(|cookie| cookie.to_str().unwrap().split(';').next().unwrap())
        .collect();
    let cookies = cookies.join("; ");
    let csrf = body["csrf_token"].as_str().unwrap();
    let headers = [("cookie", &*cookies), ("x-csrf-token", csrf)];
    let (parts, body) = ask("/users", &origin, &headers, json!({"username": "ann"})).await;
    assert_eq!(parts.status, 201, "{body}");
    driving.abort();
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_ports_say_whether_the_store_is_there() {
    let fleet = Fleet::sqlite().await;
    let public = Client::new(fleet.public);
    for port in [&public, &fleet.client()] {
        assert_eq!(port.get("/healthz").await.status, 200);
        assert_eq!(port.get("/readyz").await.status, 200);
    }
    fleet.master.store().close().await;
    for port in [&public, &fleet.client()] {
        fleet
            .until("it is said that the store is gone", async || {
                (port.get("/readyz").await.status == 503).then_some(())
            })
            .await;
        assert_eq!(port.get("/healthz").await.status, 200);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_owner_is_made_by_a_start_that_shows_the_password() {
    let directory = tempfile::tempdir().unwrap();
    let start = async |first: bool| {
        let master = Master::sqlite(directory.path().join("master.db"))
            .key_file(directory.path().join("master.key"))
            .start()
            .await
            .unwrap();
        let mut config = FrontConfig::without_public();
        config.api = None;
        config.make_first_admin = first;
        config.password_cost = hy2_master_sdk::auth::password::Cost {
            memory_kib: 64,
            passes: 1,
        };
        let front = Front::start(&master, config).await.unwrap();
        (master, front)
    };
    let (master, front) = start(false).await;
    assert!(front.first_admin().is_none());
    front.service().rotate_token_keys().await.unwrap();
    front.shutdown().await;
    master.shutdown().await;
    let (master, front) = start(true).await;
    assert!(front.first_admin().is_some());
    front.shutdown().await;
    master.shutdown().await;
}
