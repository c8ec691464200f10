//! An honest user of the server under attack: a download at 50 Mbit/s and a question every 20 ms.

use std::time::{Duration, Instant};

use hy2_core::Client;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
    time::{MissedTickBehavior, interval, timeout},
};

use crate::{
    full, say,
    server::{HONEST, ServerProcess},
};

/// What the origin sends per second: 50 Mbit/s.
const RATE: usize = 6_250_000;
const TICK: Duration = Duration::from_millis(5);

/// How much worse it may get for the user.
const MAX_LOSS: f64 = 0.05;
const MAX_DELAY: Duration = Duration::from_millis(20);

/// The user at work; stops when dropped.
pub(crate) struct Honest {
    progress: watch::Receiver<Progress>,
    before: Progress,
    calm: Measure,
    _client: Client,
    _tasks: JoinSet<()>,
}

#[derive(Debug, Clone)]
struct Progress {
    at: Instant,
    bytes: u64,
    delays: Vec<Duration>,
}

/// How it went over some time.
#[derive(Debug, Clone, Copy)]
struct Measure {
    rate: f64,
    p99: Duration,
}

impl Progress {
    fn since(&self, before: &Self) -> Measure {
        let mut delays = self.delays[before.delays.len()..].to_vec();
        delays.sort();
        Measure {
            rate: (self.bytes - before.bytes) as f64 / (self.at - before.at).as_secs_f64(),
            p99: delays
                .get(delays.len() * 99 / 100)
                .copied()
                .unwrap_or_default(),
        }
    }
}

impl Honest {
    /// Starts working, and measures how that goes while all is calm.
    pub(crate) async fn start(server: &ServerProcess) -> Self {
        let mut tasks = JoinSet::new();
        let client = Client::connect(server.client_config(HONEST))
            .await
            .expect("let in");
        let origin = origin(&mut tasks, send_at_rate).await;
        let mirror = origin_echo(&mut tasks).await;
        let mut download = client.tcp(&origin).await.expect("a stream");
        let mut questions = client.tcp(&mirror).await.expect("a stream");
        let (sender, progress) = watch::channel(Progress {
            at: Instant::now(),
            bytes: 0,
            delays: Vec::new(),
        });
        let also = sender.clone();
        tasks.spawn(async move {
            let mut buffer = vec![0; 64 << 10];
            let mut expected = 0u64;
            loop {
                let count = match download.read(&mut buffer).await {
                    Ok(count @ 1..) => count,
                    ended => {
                        // Why it starves, for whoever reads that it does.
                        say(format_args!(
                            "the download ended after {expected} bytes: {ended:?}"
                        ));
                        return;
                    }
                };
                let right = buffer[..count]
                    .iter()
                    .zip(expected..)
                    .all(|(byte, at)| *byte == pattern(at));
                assert!(right, "wrong bytes after {expected}");
                expected += count as u64;
                sender.send_modify(|progress| {
                    progress.at = Instant::now();
                    progress.bytes = expected;
                });
            }
        });
        tasks.spawn(async move {
            let mut tick = interval(Duration::from_millis(20));
            tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
            for number in 0u64.. {
                tick.tick().await;
                let asked = Instant::now();
                if questions.write_all(&number.to_be_bytes()).await.is_err() {
                    return;
                }
                let Ok(answer) = questions.read_u64().await else {
                    return;
                };
                assert_eq!(answer, number);
                also.send_modify(|progress| progress.delays.push(asked.elapsed()));
            }
        });
        let before = progress.borrow().clone();
        let mut honest = Self {
            before,
            calm: Measure {
                rate: 0.0,
                p99: Duration::ZERO,
            },
            progress,
            _client: client,
            _tasks: tasks,
        };
        honest.goes_on(if full() { 10.0 } else { 1.0 }).await;
        let now = honest.progress.borrow().clone();
        honest.calm = now.since(&honest.before);
        honest.before = now;
        honest
    }

    /// Waits until the user got as much as fits into `seconds`, from here on.
    pub(crate) async fn goes_on(&mut self, seconds: f64) {
        let (bytes, answers) = {
            let now = self.progress.borrow();
            (now.bytes, now.delays.len())
        };
        let wanted = |now: &Progress| {
            now.bytes >= bytes + (RATE as f64 * seconds) as u64
                && now.delays.len() >= answers + (5.0 * seconds) as usize
        };
        timeout(Duration::from_secs(60), self.progress.wait_for(wanted))
            .await
            .expect("the honest user starves")
            .expect("the honest user's connection lives");
    }

    /// Tells how the attack was for the user, and judges it where time counts.
    pub(crate) async fn survived(mut self, attack: &str) {
        self.goes_on(if full() { 5.0 } else { 0.3 }).await;
        let stormy = self.progress.borrow().since(&self.before);
        let loss = 1.0 - stormy.rate / self.calm.rate;
        let delay = stormy.p99.saturating_sub(self.calm.p99);
        say(format_args!(
            "{attack}: honest user {:.1} -> {:.1} Mbit/s ({:+.1} %), p99 {:.1} -> {:.1} ms",
            self.calm.rate * 8e-6,
            stormy.rate * 8e-6,
            -loss * 100.0,
            self.calm.p99.as_secs_f64() * 1e3,
            stormy.p99.as_secs_f64() * 1e3,
        ));
        if full() {
            assert!(loss <= MAX_LOSS, "{attack}: {:.1} % lost", loss * 100.0);
            assert!(delay <= MAX_DELAY, "{attack}: p99 rose by {delay:?}");
        }
    }
}

fn pattern(at: u64) -> u8 {
    (at % 251) as u8
}

async fn origin<F, Fut>(tasks: &mut JoinSet<()>, serve: F) -> String
where
    F: Fn(TcpStream) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("bound").to_string();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            connections.spawn(serve(stream));
            while connections.try_join_next().is_some() {}
        }
    });
    address
}

/// Starts a target that sends back what it gets, and returns its address.
pub(crate) async fn origin_echo(tasks: &mut JoinSet<()>) -> String {
    origin(tasks, |mut stream| async move {
        let (mut read, mut write) = stream.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
    })
    .await
}

/// Starts a target that takes connections and reads nothing, and returns its address.
pub(crate) async fn origin_stalled(tasks: &mut JoinSet<()>) -> String {
    origin(tasks, |stream| async move {
        let _held = stream;
        std::future::pending().await
    })
    .await
}

async fn send_at_rate(mut stream: TcpStream) {
    let start = Instant::now();
    let mut sent = 0u64;
    let mut tick = interval(TICK);
    loop {
        tick.tick().await;
        let due = (start.elapsed().as_secs_f64() * RATE as f64) as u64;
        let chunk: Vec<u8> = (sent..due).map(pattern).collect();
        sent = due;
        if stream.write_all(&chunk).await.is_err() {
            return;
        }
    }
}
