//! The task that lets a connection continue when the gate opens again.

use std::{future::poll_fn, pin::Pin, sync::Arc, task::Poll};

use quinn::{AsyncTimer, Runtime};

use super::shared::{NEVER, Shared};

/// Keeps a connection paced; see [`CongestionHandle::attach`](super::CongestionHandle::attach).
#[derive(Debug)]
pub struct Pacing {
    shared: Arc<Shared>,
}

impl Pacing {
    pub(super) fn start(
        shared: Arc<Shared>,
        connection: quinn::Connection,
        runtime: Arc<dyn Runtime>,
    ) -> Self {
        shared.set_attached(&runtime);
        // The task is owned by the guard: it ends when the guard clears `attached`.
        runtime.spawn(Box::pin(run(shared.clone(), connection, runtime.clone())));
        Self { shared }
    }
}

impl Drop for Pacing {
    fn drop(&mut self) {
        self.shared.set_detached();
    }
}

async fn run(shared: Arc<Shared>, connection: quinn::Connection, runtime: Arc<dyn Runtime>) {
    let mut timer = runtime.new_timer(runtime.now());
    let mut set_for = NEVER;
    let mut closed = std::pin::pin!(connection.closed());
    loop {
        let served = poll_fn(|cx| {
            if closed.as_mut().poll(cx).is_ready() {
                return Poll::Ready(None);
            }
            shared.waker.register(cx.waker());
            if !shared.is_attached() {
                return Poll::Ready(None);
            }
            poll_deadline(&shared, &*runtime, &mut timer, &mut set_for, cx).map(Some)
        })
        .await;
        if let Some(served) = served {
            shared.disarm(served);
        }
        // The one call of quinn's that wakes a connection's driver and is cheap; it is also where the
        // window that the rate needs is kept up to date.
        connection.set_send_window(shared.send_window_target());
        if served.is_none() {
            return;
        }
    }
}

/// Ready with the deadline that has passed.
fn poll_deadline(
    shared: &Shared,
    runtime: &dyn Runtime,
    timer: &mut Pin<Box<dyn AsyncTimer>>,
    set_for: &mut u64,
    cx: &mut std::task::Context<'_>,
) -> Poll<u64> {
    loop {
        let deadline = shared.deadline();
        if deadline == NEVER {
            return Poll::Pending;
        }
        let Some(at) = shared.instant(deadline) else {
            return Poll::Pending;
        };
        if deadline == 0 {
            return Poll::Ready(deadline);
        }
        if deadline != *set_for {
            timer.as_mut().reset(at);
            *set_for = deadline;
        }
        if timer.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        *set_for = NEVER;
        if runtime.now() >= at {
            return Poll::Ready(deadline);
        }
    }
}
