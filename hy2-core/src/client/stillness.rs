//! Asks for a sign of life when a download stops.
//!
//! A client that only receives has nothing to say once it has acknowledged what came. When a NAT on
//! the path forgets it in such a moment, the server cannot find it, and both wait for the client's
//! next keep-alive.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use quinn::{Connection, VarInt};
use tokio::{
    sync::Notify,
    time::{sleep, timeout},
};

/// A download stands still when nothing comes for this long, or for three round trips.
const QUIET: Duration = Duration::from_millis(500);

/// Bytes within that time that make a download, whatever a few answers take.
const MOVING: u64 = 4 << 10;

/// How often to look at most while streams are open and nothing moves; below the keep-alive.
const RARELY: Duration = Duration::from_secs(8);

/// Relay streams that are open.
#[derive(Debug, Default)]
pub(super) struct Streams {
    open: AtomicU32,
    opened: Notify,
}

/// One of them; counted for as long as it lives.
pub(super) struct OpenStream(Arc<Streams>);

impl Streams {
    /// Counts a stream for as long as the guard lives.
    pub(super) fn enter(self: &Arc<Self>) -> OpenStream {
        self.open.fetch_add(1, Relaxed);
        self.opened.notify_one();
        OpenStream(Arc::clone(self))
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Relaxed);
    }
}

/// Watches `connection`, whose receive window is `window`, until it ends.
pub(super) async fn watch(connection: Connection, streams: Arc<Streams>, window: VarInt) {
    tokio::select! {
        () = look(&connection, &streams, window) => {}
        _ = connection.closed() => {}
    }
}

async fn look(connection: &Connection, streams: &Streams, window: VarInt) {
    let mut before = connection.stats();
    let mut moving = false;
    let mut pause = QUIET;
    loop {
        if streams.open.load(Relaxed) == 0 {
            // Costs nothing while the tunnel is idle.
            streams.opened.notified().await;
            before = connection.stats();
            (moving, pause) = (false, QUIET);
        }
        let shortest = QUIET.max(connection.rtt() * 3);
        if moving {
            sleep(shortest).await;
        } else if timeout(pause.max(shortest), streams.opened.notified())
            .await
            .is_ok()
        {
            pause = QUIET;
        } else {
            pause = RARELY.min(pause * 2);
        }
        let stats = connection.stats();
        let came = stats.udp_rx.bytes - before.udp_rx.bytes;
        let silent = stats.udp_tx.datagrams == before.udp_tx.datagrams;
        before = stats;
        if moving && came == 0 && silent {
            // Once: like all that must be acknowledged, it is repeated until that happens.
            ask(connection, window);
        }
        // Where something was sent, the server has heard of the client.
        moving = came >= MOVING;
        if moving {
            pause = QUIET;
        }
    }
}

/// Sends the smallest thing that must be acknowledged and that a downloading client sends anyway:
/// credit, for one byte more, which is taken back from the credit to come.
fn ask(connection: &Connection, window: VarInt) {
    if let Ok(more) = VarInt::from_u64(window.into_inner() + 1) {
        connection.set_receive_window(more);
        connection.set_receive_window(window);
    }
}
