//! A checked stream from one end of the tunnel to the other.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    sync::watch,
    task::JoinHandle,
    time::{Instant, timeout},
};

use crate::{
    origin::PIPE,
    pattern::Pattern,
    world::{World, seconds},
};

/// Which way, and in what strokes the sender writes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FlowKind {
    pub(crate) download: bool,
    pub(crate) write_size: usize,
}

impl FlowKind {
    pub(crate) const fn new(download: bool) -> Self {
        Self {
            download,
            write_size: 64 << 10,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        if self.download { "download" } else { "upload" }
    }
}

/// A stream that runs until it is finished. Application and origin are pipes; the bytes between them are
/// a seeded pattern, compared at every offset.
pub(crate) struct Flow {
    received: watch::Receiver<u64>,
    reading: watch::Sender<bool>,
    sending: watch::Sender<bool>,
    sender: JoinHandle<u64>,
    receiver: JoinHandle<u64>,
    relay: JoinHandle<()>,
}

impl Flow {
    /// Opens a stream to a new origin on `port`.
    pub(crate) async fn start(world: &World, port: u16, kind: FlowKind) -> Self {
        let mut accepted = world.origins.listen(port);
        let stream = world
            .client
            .tcp(&format!("origin.test:{port}"))
            .await
            .expect("stream");
        let origin = accepted.recv().await.expect("origin");
        let (application, local) = duplex(PIPE);
        let relay = tokio::spawn(async move {
            stream.relay(local).await.expect("clean end");
        });
        let (source, sink) = if kind.download {
            (origin, application)
        } else {
            (application, origin)
        };
        let pattern = Pattern::new(u64::from(port));
        let (report, received) = watch::channel(0);
        let (reading, may_read) = watch::channel(true);
        let (sending, may_send) = watch::channel(true);
        Self {
            received,
            reading,
            sending,
            sender: tokio::spawn(send(source, pattern.clone(), kind.write_size, may_send)),
            receiver: tokio::spawn(receive(sink, pattern, report, may_read)),
            relay,
        }
    }

    /// Bytes that arrived, all of them right.
    pub(crate) fn received(&self) -> u64 {
        // A wrong byte ends the receiver by a panic, which `finish` passes on.
        *self.received.borrow()
    }

    /// Stops or continues taking bytes out at the receiving end.
    pub(crate) fn set_reading(&self, on: bool) {
        self.reading.send_replace(on);
    }

    /// Ends the sender and checks that every byte arrives.
    pub(crate) async fn finish(self) -> u64 {
        self.sending.send_replace(false);
        self.reading.send_replace(true);
        let all = async {
            let sent = self.sender.await.expect("sender");
            let received = self.receiver.await.expect("receiver");
            self.relay.await.expect("relay");
            (sent, received)
        };
        let (sent, received) = timeout(seconds(120), all).await.expect("the end arrives");
        assert_eq!(sent, received);
        sent
    }
}

async fn send(
    mut source: DuplexStream,
    pattern: Pattern,
    write_size: usize,
    mut may_send: watch::Receiver<bool>,
) -> u64 {
    let mut sent = 0;
    while *may_send.borrow_and_update() {
        let chunk = pattern.chunk(sent, write_size);
        tokio::select! {
            // Cancel safe: nothing is written when the other arm wins.
            written = source.write(&chunk) => sent += written.expect("the relay reads") as u64,
            _ = may_send.changed() => {}
        }
        if write_size < PIPE / 16 {
            // Small writes come one by one.
            tokio::task::yield_now().await;
        }
    }
    source.shutdown().await.expect("shutdown");
    // Until the other side ends too.
    let mut rest = Vec::new();
    let _ = source.read_to_end(&mut rest).await;
    sent
}

async fn receive(
    mut sink: DuplexStream,
    pattern: Pattern,
    report: watch::Sender<u64>,
    mut may_read: watch::Receiver<bool>,
) -> u64 {
    let mut received = 0;
    let mut buffer = vec![0; PIPE];
    loop {
        may_read.wait_for(|on| *on).await.expect("flow");
        let count = sink.read(&mut buffer).await.expect("the relay writes");
        if count == 0 {
            break;
        }
        assert!(
            pattern.matches(received, &buffer[..count]),
            "wrong bytes at {received}"
        );
        received += count as u64;
        report.send_replace(received);
    }
    sink.shutdown().await.expect("shutdown");
    received
}

/// What a flow did between two moments.
pub(crate) async fn measure(
    world: &World,
    flow: &Flow,
    from: Duration,
    to: Duration,
) -> (u64, Duration) {
    world.until(from).await;
    let before = (flow.received(), Instant::now());
    world.until(to).await;
    (flow.received() - before.0, before.1.elapsed())
}
