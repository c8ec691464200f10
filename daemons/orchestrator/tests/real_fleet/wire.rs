//! The wire between an agent and its master, which can lose answers and break in the middle of a
//! request.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream, tcp},
    sync::watch,
    task::JoinSet,
};

#[derive(Debug)]
struct State {
    /// Answers stay on the wire.
    hold: watch::Sender<bool>,
    /// Connections of an older number are cut.
    number: watch::Sender<u64>,
    /// Bytes towards the master until the wire breaks; negative: it does not.
    until_break: AtomicI64,
    breaks: AtomicU64,
}

/// A TCP proxy.
#[derive(Debug)]
pub(crate) struct Wire {
    pub(crate) address: SocketAddr,
    state: Arc<State>,
    _tasks: JoinSet<()>,
}

impl Wire {
    pub(crate) async fn start(master: SocketAddr) -> Self {
        Self::start_from(master, None).await
    }

    /// As [`Self::start`]; the master sees connections come from `source`.
    pub(crate) async fn start_from(master: SocketAddr, source: Option<IpAddr>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let state = Arc::new(State {
            hold: watch::Sender::new(false),
            number: watch::Sender::new(0),
            until_break: AtomicI64::new(-1),
            breaks: AtomicU64::new(0),
        });
        let mut tasks = JoinSet::new();
        let shared = Arc::clone(&state);
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let Ok((agent, _)) = listener.accept().await else {
                    continue;
                };
                let state = Arc::clone(&shared);
                connections.spawn(async move {
                    let mut number = state.number.subscribe();
                    let own = *number.borrow_and_update();
                    let Ok(master) = dial(master, source).await else {
                        return;
                    };
                    let (agent, master) = (agent.into_split(), master.into_split());
                    tokio::select! {
                        () = up(&state, agent.0, master.1) => {}
                        () = down(&state, master.0, agent.1) => {}
                        _ = number.wait_for(|number| *number != own) => {}
                    }
                });
                while connections.try_join_next().is_some() {}
            }
        });
        Self {
            address,
            state,
            _tasks: tasks,
        }
    }

    /// From here on, requests arrive and answers do not.
    pub(crate) fn hold_answers(&self) {
        self.state.hold.send_replace(true);
    }

    /// Cuts every connection; what was held is lost. New ones work.
    pub(crate) fn cut(&self) {
        self.state.number.send_modify(|number| *number += 1);
        self.state.hold.send_replace(false);
    }

    /// Breaks the wire after so many more bytes towards the master, and waits for it.
    pub(crate) async fn break_after(&self, bytes: u64) {
        let before = self.state.breaks.load(SeqCst);
        let bytes = i64::try_from(bytes).expect("a small number");
        self.state.until_break.store(bytes, SeqCst);
        crate::soon("a request to break in", async {
            while self.state.breaks.load(SeqCst) == before {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }
}

async fn dial(to: SocketAddr, source: Option<IpAddr>) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    if let Some(source) = source {
        socket.bind((source, 0).into())?;
    }
    let stream = socket.connect(to).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn up(state: &State, mut from: tcp::OwnedReadHalf, mut to: tcp::OwnedWriteHalf) {
    let mut buf = vec![0; 16 << 10];
    while let Ok(read @ 1..) = from.read(&mut buf).await {
        let taken = i64::try_from(read).expect("small");
        let before = state
            .until_break
            .fetch_update(SeqCst, SeqCst, |left| {
                (left >= 0).then(|| if left < taken { -1 } else { left - taken })
            })
            .unwrap_or(i64::MAX);
        let passed = usize::try_from(before.min(taken)).expect("not negative");
        if to.write_all(&buf[..passed]).await.is_err() {
            return;
        }
        if passed < read {
            state.breaks.fetch_add(1, SeqCst);
            return;
        }
    }
}

async fn down(state: &State, mut from: tcp::OwnedReadHalf, mut to: tcp::OwnedWriteHalf) {
    let mut hold = state.hold.subscribe();
    let mut buf = vec![0; 16 << 10];
    while let Ok(read @ 1..) = from.read(&mut buf).await {
        if hold.wait_for(|hold| !*hold).await.is_err() || to.write_all(&buf[..read]).await.is_err()
        {
            return;
        }
    }
}
