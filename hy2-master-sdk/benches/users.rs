//! The list of 100,000 users over REST, a page of 50 at a time: its first, middle and last page in every
//! order, and searches for a part of the name, of one letter up, that everybody, many, few or nobody
//! has, or many but none of the first. Milliseconds from request to the last byte of the answer, one
//! request at a time, through authentication, rate limit, store and JSON.
//!
//! `cargo bench -p hy2-master-sdk --bench users -- [sqlite|postgres] [users] [rounds]`; `HY2_BARS=1`: an
//! error if a case is above the bar.

#![allow(clippy::print_stdout, reason = "figures for people")]

#[path = "../tests/api/harness.rs"]
#[allow(
    dead_code,
    unused_imports,
    unused_macros,
    reason = "shared with the tests"
)]
mod harness;

#[path = "../tests/support/bars.rs"]
mod bars;

use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hy2_master_sdk::domain::{Timestamp, UserStatus};
use hy2_master_sdk::secrets::UserSecrets;
use hy2_master_sdk::store::users::{self, NewUser};
use hy2_master_sdk::store::{Db, Store};
use serde_json::json;
use uuid::Uuid;

use crate::bars::Bars;
use crate::harness::{Client, Fleet, START};

/// What the slowest of a hundred requests may take.
const BAR: Duration = Duration::from_millis(20);

/// Tokens that requests take turns with: one may ask 100 times a second.
const TOKENS: usize = 25;

fn main() {
    let words: Vec<String> = std::env::args()
        .skip(1)
        .filter(|word| !word.starts_with("--"))
        .collect();
    let mut numbers = words.iter().filter_map(|word| word.parse::<usize>().ok());
    let users = numbers.next().unwrap_or(100_000);
    let rounds = numbers.next().unwrap_or(200);
    let backends: Vec<&str> = ["sqlite", "postgres"]
        .into_iter()
        .filter(|backend| {
            let named = |word: &String| ["sqlite", "postgres"].contains(&word.as_str());
            !words.iter().any(named) || words.iter().any(|word| word == backend)
        })
        .collect();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let mut bars = Bars::start();
    for backend in backends {
        let (case, worst) = runtime.block_on(run(backend, users, rounds));
        bars.judge(
            &format!("list of {users} users on {backend}, slowest case ({case})"),
            &format!("p99 {worst:.2?}"),
            &format!("{BAR:?}"),
            worst < BAR,
        );
    }
    bars.end();
}

/// Returns the slowest case and its p99.
async fn run(backend: &str, count: usize, rounds: usize) -> (String, Duration) {
    let fleet = match backend {
        "postgres" => Fleet::postgres().await,
        _ => Fleet::sqlite().await,
    };
    fill(&fleet, count).await;
    let clients = clients(&fleet).await;
    println!("{backend}: {count} users, {rounds} requests each");
    let mut worst = (String::new(), Duration::ZERO);
    let mut turn = 0;
    for (name, path) in cases(fleet.master.store(), count).await {
        let mut took = Vec::with_capacity(rounds);
        let before = processor_time();
        for _ in 0..rounds {
            turn += 1;
            let client = &clients[turn % TOKENS];
            let start = Instant::now();
            let answer = client.get(&path).await;
            took.push(start.elapsed());
            assert_eq!(answer.status, 200, "{}", answer.text());
            if name.ends_with("page") {
                assert!(
                    answer.text().matches("\"username\"").count() == 50,
                    "{name}"
                );
            }
        }
        took.sort_unstable();
        let (middle, slow) = (took[rounds / 2], took[rounds * 99 / 100]);
        if slow > worst.1 {
            worst = (name.clone(), slow);
        }
        let mark = if slow < BAR { "" } else { "  ABOVE THE BAR" };
        let rounds = u32::try_from(rounds).expect("few");
        let busy = processor_time().saturating_sub(before) / rounds;
        println!("  {name:<44} p50 {middle:>9.2?}  p99 {slow:>9.2?}  processor {busy:>9.2?}{mark}");
    }
    fleet.stop().await;
    worst
}

/// Returns the processor time of this process's threads: client, master and SQLite. What a busy machine
/// does not change.
fn processor_time() -> Duration {
    let threads = std::fs::read_dir("/proc/self/task").expect("threads");
    let time = |thread: std::io::Result<std::fs::DirEntry>| {
        let text = std::fs::read_to_string(thread.ok()?.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    };
    Duration::from_nanos(threads.filter_map(time).sum())
}

/// Every order both ways, at its beginning, middle and end; searches; a filter that leaves nobody.
async fn cases(store: &Store, count: usize) -> Vec<(String, String)> {
    const SQL: &str =
        "select id, username, created_at, coalesce(expires_at, 9223372036854775807) from users";
    let mut users: Vec<(i64, String, i64, i64)> = match store.db() {
        Db::Pg(pool) => sqlx::query_as(SQL).fetch_all(pool).await,
        Db::Sqlite { read, .. } => sqlx::query_as(SQL).fetch_all(read).await,
    }
    .expect("users");
    let mut cases = Vec::new();
    for sort in ["id", "username", "created_at", "expires_at"] {
        users.sort_by_cached_key(|(id, name, created, end)| match sort {
            "id" => (*id, String::new(), *id),
            "username" => (0, name.clone(), *id),
            "created_at" => (*created, String::new(), *id),
            _ => (*end, String::new(), *id),
        });
        for descending in [false, true] {
            let way = if descending { "down" } else { "up" };
            let list = format!("/api/v1/users?sort={sort}&descending={descending}&size=50");
            cases.push((format!("{sort} {way}, first page"), list.clone()));
            for (place, before) in [("middle", count / 2), ("last", count - 50)] {
                let at = if descending {
                    count - before
                } else {
                    before - 1
                };
                let (id, name, created, end) = &users[at];
                // As the list itself gives it out.
                let cursor = match sort {
                    "id" => json!([id, id]),
                    "username" => json!(name),
                    "created_at" => json!([created, id]),
                    _ => json!([end, id]),
                };
                let after = URL_SAFE_NO_PAD.encode(cursor.to_string());
                let path = format!("{list}&after={after}");
                cases.push((format!("{sort} {way}, {place} page"), path));
            }
        }
    }
    let searches = [
        ("rare", "04217"),
        ("common", "ann"),
        ("everybody's", "example"),
        ("nobody's", "zzzz"),
        ("upper case", "BORIS.0001"),
        ("two letters", "42"),
        ("two letters, nobody's", "zq"),
        ("one letter", "e"),
        ("one letter, nobody's", "q"),
        ("of the last users", "zoe"),
    ];
    for sort in ["id", "username", "created_at", "expires_at"] {
        for (name, search) in searches {
            let path = format!("/api/v1/users?sort={sort}&size=50&search={search}");
            cases.push((format!("search {name}, by {sort}"), path));
        }
        let path = format!("/api/v1/users?sort={sort}&size=50&status=expired");
        cases.push((format!("filter that leaves nobody, by {sort}"), path));
    }
    cases
}

async fn clients(fleet: &Fleet) -> Vec<Client> {
    let owner = fleet.owner().await;
    let mut clients = Vec::new();
    for number in 0..TOKENS {
        let new = json!({"name": format!("bench {number}"), "scopes": ["users:read"]});
        let made = owner.post("/api/v1/api-tokens", &new).await.expect(201);
        let token = made["token"].as_str().expect("a token");
        let client = fleet.client();
        clients.push(client.with("authorization", &format!("Bearer {token}")));
    }
    clients
}

/// Users as an operator has them: made in batches, half of them without an end, many with the same.
async fn fill(fleet: &Fleet, count: usize) {
    const NAMES: [&str; 5] = ["anna", "boris", "chen", "dilara", "eve"];
    let store = fleet.master.store();
    for batch in 0..count.div_ceil(1_000) {
        let mut tx = store.begin().await.expect("a transaction");
        for number in batch * 1_000..((batch + 1) * 1_000).min(count) {
            let uid = Uuid::new_v4();
            let secrets = UserSecrets::generate(fleet.master.vault(), uid).expect("secrets");
            // A step without a common divisor: names are not in the order of numbers.
            let mixed = number * 61_627 % count;
            let days = i64::try_from(mixed % 365).expect("few");
            // The last ones have a name of their own, last in every order but by end: a search walks far.
            let name = match number * 100 / count {
                97.. => "zoe",
                _ => NAMES[number % NAMES.len()],
            };
            let new = NewUser {
                uid,
                username: format!("{name}.{mixed:06}@example"),
                admin_id: None,
                plan_id: None,
                status: UserStatus::Active,
                seed_enc: secrets.seed_enc,
                credential_enc: None,
                auth_hash: None,
                subscription_hash: secrets.subscription_hash,
                subscription_enc: secrets.subscription_enc,
                expires_at: (number % 2 == 0).then_some(Timestamp(START.0 + days * 86_400_000)),
                hold_duration_ms: None,
                hold_deadline: None,
                quota_bytes: Some(100 << 30),
                max_devices: Some(3),
                max_connections: None,
                up_bytes_per_s: None,
                down_bytes_per_s: None,
                home_region_id: None,
                email: Some(format!("{mixed}@example.org")),
                telegram_id: None,
                note: String::new(),
                tags: vec!["batch".to_owned()],
            };
            let at = Timestamp(START.0 + i64::try_from(batch).expect("few") * 1_000);
            users::create(&mut tx, &new, at).await.expect("a user");
        }
        tx.commit().await.expect("a commit");
    }
    if let Db::Pg(pool) = store.db() {
        // What autovacuum does within a minute.
        sqlx::query("vacuum analyze users, user_counters")
            .execute(pool)
            .await
            .expect("analysed");
    }
}
