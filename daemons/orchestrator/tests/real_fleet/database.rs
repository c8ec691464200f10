//! A database that is killed, stopped and started again under 200 requests a second, fewer in the short
//! run: no acknowledged write is lost, and whoever cannot be served hears when to come again.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::{
    fleet::{Fleet, Store},
    random::Random,
};

/// Requests a second; one in four writes. Not more in the short run than a debug build serves on a busy machine: what
/// comes in faster than it is served waits ever longer.
fn rate() -> u32 {
    if crate::full() { 200 } else { 20 }
}

/// Requests that are served between two faults.
fn served_between() -> u64 {
    if crate::full() { 100 } else { 25 }
}

/// Each may ask 100 times a second.
const TOKENS: usize = 4;

/// Longer than any request may wait.
const PATIENCE: Duration = Duration::from_secs(180);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// On SQLite with the master, which it is a part of.
    Killed,
    /// PostgreSQL's processes stand still; an SQLite file is locked by somebody else.
    Paused,
    /// In order.
    Restarted,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_paused_and_restarted_postgresql_loses_no_acknowledged_write() {
    run(Store::Postgres).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_locked_and_restarted_sqlite_loses_no_acknowledged_write() {
    run(Store::Sqlite).await;
}

async fn run(store: Store) {
    // The pause is longer than a request waits for the database.
    let (each, pause) = match crate::full() {
        true => (5, Duration::from_secs(30)),
        false => (1, Duration::from_secs(8)),
    };
    let mut random = Random::seeded(&format!("database on {store:?}"));
    let mut fleet = Fleet::start(store, 0).await;
    let load = Load::start(&fleet).await;
    let faults = [Fault::Killed, Fault::Paused, Fault::Restarted];
    for fault in random.order(&faults, each) {
        load.shared.more(served_between()).await;
        tokio::time::sleep(Duration::from_millis(random.below(300))).await;
        happen(&mut fleet, fault, pause, &load.shared).await;
        fleet.master_ready().await;
    }
    load.shared.more(served_between()).await;
    let (shared, elapsed) = load.finish().await;
    let wrong = shared.wrong.lock().expect("no panic").clone();
    assert_eq!(wrong, [""; 0], "answers that are neither yes nor 503");
    let silent = shared.silent.load(SeqCst);
    assert!(
        store == Store::Sqlite || silent == 0,
        "{silent} without an answer from a master that lived"
    );
    let there = users(&fleet).await;
    let acknowledged = shared.acknowledged.lock().expect("no panic").clone();
    let lost: Vec<_> = acknowledged.difference(&there).collect();
    assert_eq!(lost, [""; 0], "acknowledged and not there");
    crate::say(&format!(
        "database on {store:?}: {} faults; {} requests in {elapsed:.0?}; {} users acknowledged and \
         all there, {} are there; {} times 503, the slowest after {:.1?}; {silent} without an answer",
        each * faults.len(),
        shared.asked.load(SeqCst),
        acknowledged.len(),
        there.len(),
        shared.refused.load(SeqCst),
        Duration::from_millis(shared.slowest_refusal.load(SeqCst)),
    ));
}

async fn happen(fleet: &mut Fleet, fault: Fault, pause: Duration, load: &Shared) {
    let before = load.refused.load(SeqCst);
    // Goes on until somebody was told to come again.
    let paused = async {
        tokio::time::sleep(pause).await;
        crate::soon("a refusal", async {
            while load.refused.load(SeqCst) == before {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    };
    match (&fleet.postgres, fault) {
        (Some(postgres), Fault::Killed) => {
            tokio::task::block_in_place(|| postgres.kill_and_resume());
        }
        (Some(postgres), Fault::Paused) => {
            postgres.signal("STOP");
            paused.await;
            postgres.signal("CONT");
        }
        (Some(postgres), Fault::Restarted) => tokio::task::block_in_place(|| postgres.restart()),
        (None, Fault::Killed) => {
            fleet.kill_master().await;
            fleet.start_master();
        }
        (None, Fault::Paused) => {
            let path = fleet.path().join("master/fleet.db");
            let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path);
            let options = options.busy_timeout(PATIENCE);
            let pool = sqlx::SqlitePool::connect_with(options).await.expect("open");
            let lock = pool.begin_with("begin immediate").await.expect("locked");
            paused.await;
            lock.rollback().await.expect("let go");
            pool.close().await;
        }
        (None, Fault::Restarted) => {
            fleet.stop_master().await;
            fleet.start_master();
        }
    }
}

/// The names of all users that were made here.
async fn users(fleet: &Fleet) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut path = "/users?size=500".to_owned();
    loop {
        let page = fleet.rest.get(&path).await;
        let items = page["items"].as_array().expect("a list");
        names.extend(
            items
                .iter()
                .filter_map(|user| user["username"].as_str().map(str::to_owned)),
        );
        let Some(next) = page["next"].as_str() else {
            return names;
        };
        path = format!("/users?size=500&after={next}");
    }
}

type Http = Client<HttpConnector, Full<Bytes>>;

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    asked: AtomicU64,
    served: AtomicU64,
    refused: AtomicU64,
    /// Milliseconds.
    slowest_refusal: AtomicU64,
    /// Without an answer: the master was not there, or went away.
    silent: AtomicU64,
    acknowledged: Mutex<BTreeSet<String>>,
    wrong: Mutex<Vec<String>>,
}

impl Shared {
    /// Waits until so many more requests were served.
    async fn more(&self, requests: u64) {
        let wanted = self.served.load(SeqCst) + requests;
        crate::soon("requests to be served", async {
            while self.served.load(SeqCst) < wanted {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }
}

/// Requests at a fixed rate, whether those before were answered or not.
struct Load {
    shared: Arc<Shared>,
    started: Instant,
    tasks: JoinSet<()>,
}

impl Load {
    async fn start(fleet: &Fleet) -> Self {
        let mut tokens = Vec::new();
        for number in 0..TOKENS {
            let new =
                json!({"name": format!("load-{number}"), "scopes": ["users:read", "users:write"]});
            let made = fleet.rest.post("/api-tokens", new).await;
            tokens.push(made["token"].as_str().expect("a token").to_owned());
        }
        let (base, http) = (
            fleet.rest.base().to_owned(),
            Client::builder(TokioExecutor::new()).build_http(),
        );
        let shared = Arc::<Shared>::default();
        let mut tasks = JoinSet::new();
        let of_task = Arc::clone(&shared);
        tasks.spawn(async move {
            let mut tick = tokio::time::interval(Duration::from_secs(1) / rate());
            let mut running = JoinSet::new();
            while !of_task.stop.load(SeqCst) {
                tick.tick().await;
                let number = of_task.asked.fetch_add(1, SeqCst);
                let at = usize::try_from(number).expect("few") % tokens.len();
                let (http, base, token) = (Http::clone(&http), base.clone(), tokens[at].clone());
                let shared = Arc::clone(&of_task);
                running.spawn(async move { ask(&http, &base, &token, number, &shared).await });
                while running.try_join_next().is_some() {}
            }
            while let Some(ended) = running.join_next().await {
                ended.expect("no panic");
            }
        });
        Self {
            shared,
            started: Instant::now(),
            tasks,
        }
    }

    async fn finish(mut self) -> (Arc<Shared>, Duration) {
        let elapsed = self.started.elapsed();
        self.shared.stop.store(true, SeqCst);
        tokio::time::timeout(PATIENCE, self.tasks.join_next())
            .await
            .expect("every request ends")
            .expect("a task")
            .expect("no panic");
        (self.shared, elapsed)
    }
}

async fn ask(http: &Http, base: &str, token: &str, number: u64, shared: &Shared) {
    let name = format!("user-{number:06}");
    let writes = number.is_multiple_of(4);
    let (request, body) = match writes {
        true => (
            Request::post(format!("{base}/api/v1/users")),
            json!({"username": name}).to_string(),
        ),
        false => (
            Request::get(format!(
                "{base}/api/v1/users?size=5&search={:03}",
                number % 1000
            )),
            String::new(),
        ),
    };
    let request = request
        .header(header::AUTHORIZATION, format!("Bearer {token}"))
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::from(body))
        .expect("a request");
    let asked = Instant::now();
    let answered = async {
        let answer = http
            .request(request)
            .await
            .map_err(|error| format!("{error:?}"))?;
        let (parts, body) = answer.into_parts();
        let body = body.collect().await.map_err(|error| format!("{error:?}"))?;
        Ok::<_, String>((parts, body.to_bytes()))
    };
    let Ok((parts, body)) = answered.await else {
        shared.silent.fetch_add(1, SeqCst);
        return;
    };
    let retry = parts.headers.get(header::RETRY_AFTER);
    let retry = retry.and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    match (parts.status, retry) {
        (StatusCode::CREATED | StatusCode::OK, None) => {
            shared.served.fetch_add(1, SeqCst);
            if writes {
                shared.acknowledged.lock().expect("no panic").insert(name);
            }
        }
        (StatusCode::SERVICE_UNAVAILABLE, Some(1..)) => {
            shared.refused.fetch_add(1, SeqCst);
            let took = u64::try_from(asked.elapsed().as_millis()).expect("not for ever");
            shared.slowest_refusal.fetch_max(took, SeqCst);
        }
        (status, retry) => {
            let body: Value = serde_json::from_slice(&body).unwrap_or_default();
            let wrong = format!("{status}, Retry-After {retry:?}: {body}");
            shared.wrong.lock().expect("no panic").push(wrong);
        }
    }
}
