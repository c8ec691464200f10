//! The HTTP proxy for local programs: any bytes of the program, any bytes of the origin.
//!
//! Planted bug: `Proxy-Connection` was handed on to the origin.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use arbitrary::Unstructured;
use bytes::Bytes;
use hy2_core::{
    Address,
    fuzzing::inbound::serve_http,
    inbound::{Credentials, DialFailure, Dialer, DialerUdp, HttpProxyConfig},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    task, time,
};

use crate::{read, take};

/// `john:wick` in base64.
const TOKEN: &[u8] = b"am9objp3aWNr";

/// Takes flags, what the origin answers, and what the program sends.
pub fn target(data: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without drivers");
    runtime.block_on(program(data));
}

async fn program(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let flags = read::<u8>(&mut input);
    let len = usize::from(read::<u8>(&mut input));
    let answer = take(&mut input, len).to_vec();
    let sent = input.take_rest();
    let mut config = HttpProxyConfig::new(([127, 0, 0, 1], 0).into());
    if flags & 1 != 0 {
        config.credentials = Some(Credentials::new("john", "wick"));
    }
    let tunnel = Tunnel {
        answer: answer.into(),
        fails: flags & 2 != 0,
        dialled: Arc::default(),
        heads: Arc::default(),
    };
    let (mut near, far) = duplex(1 << 16);
    let served = task::spawn(serve_http(Arc::new(config), tunnel.clone(), far));
    let chunk = if flags & 4 == 0 { sent.len().max(1) } else { 7 };
    for chunk in sent.chunks(chunk) {
        if near.write_all(chunk).await.is_err() {
            break;
        }
        task::yield_now().await;
    }
    let mut received = Vec::new();
    // Ends by the end of the program's bytes, or by the timeout for a request.
    let _ = near.shutdown().await;
    let all = time::timeout(Duration::from_secs(600), near.read_to_end(&mut received));
    all.await.expect("an end").expect("no error of a pipe");
    drop(near);
    served.await.expect("no panic");

    assert!(received.is_empty() || received.starts_with(b"HTTP/1."));
    let dialled = tunnel.dialled.load(Relaxed);
    let shown = sent.windows(TOKEN.len()).any(|part| part == TOKEN);
    assert!(
        dialled == 0 || flags & 1 == 0 || shown,
        "let in without password"
    );
    let connect = sent.windows(7).any(|part| part == b"CONNECT");
    for head in tunnel.heads.lock().expect("no panic").iter() {
        // Behind CONNECT anything goes.
        if !connect {
            check_head(&String::from_utf8_lossy(head));
        }
    }
}

/// What the origin is asked: in origin form, and without what concerns the proxy.
fn check_head(head: &str) {
    let Some(end) = head.find("\r\n\r\n") else {
        return;
    };
    let mut lines = head[..end].split("\r\n");
    let first = lines.next().unwrap_or_default();
    let asked = first.split(' ').nth(1).unwrap_or_default();
    assert!(asked.starts_with('/') || asked.starts_with('*'), "{first}");
    let names: Vec<_> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, _)| name.to_ascii_lowercase())
        .collect();
    assert_eq!(names.iter().filter(|name| *name == "host").count(), 1);
    for private in ["proxy-authorization", "proxy-connection", "keep-alive"] {
        assert!(!names.iter().any(|name| name == private), "{head}");
    }
}

#[derive(Clone)]
struct Tunnel {
    answer: Bytes,
    fails: bool,
    dialled: Arc<AtomicUsize>,
    heads: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Dialer for Tunnel {
    type Stream = DuplexStream;
    type Udp = NoUdp;

    async fn tcp(&self, target: &Address) -> Result<DuplexStream, DialFailure> {
        assert_eq!(target.to_string().parse(), Ok(target.clone()));
        self.dialled.fetch_add(1, Relaxed);
        if self.fails {
            return Err(DialFailure::Refused);
        }
        let (near, mut far) = duplex(1 << 14);
        let (answer, heads) = (self.answer.clone(), Arc::clone(&self.heads));
        task::spawn(async move {
            let mut head = vec![0; 4096];
            let len = far.read(&mut head).await.unwrap_or(0);
            head.truncate(len);
            heads.lock().expect("no panic").push(head);
            let _ = far.write_all(&answer).await;
            let _ = far.shutdown().await;
            let mut rest = Vec::new();
            let _ = far.read_to_end(&mut rest).await;
        });
        Ok(near)
    }

    async fn udp(&self) -> Result<NoUdp, DialFailure> {
        Err(DialFailure::UdpDisabled)
    }
}

/// HTTP proxies carry none.
#[derive(Debug)]
struct NoUdp;

impl DialerUdp for NoUdp {
    async fn send(&self, _: &[u8], _: &Address) -> Result<(), DialFailure> {
        Err(DialFailure::UdpDisabled)
    }

    async fn recv(&self) -> Option<(Bytes, Address)> {
        None
    }
}
