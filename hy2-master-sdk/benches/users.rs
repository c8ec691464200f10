//! The list of 100,000 users over REST, a page of 50 at a time: its first, middle and last page in every
//! order, and searches for a part of the name. Milliseconds from request to the last byte of the
//! answer, one request at a time, through authentication, rate limit, store and JSON.
//!
//! `cargo bench -p hy2-master-sdk --bench users -- [sqlite|postgres] [users] [rounds]`

#[path = "../tests/api/harness.rs"]
#[allow(
    dead_code,
    unused_imports,
    unused_macros,
    reason = "shared with the tests"
)]
mod harness;

use std::time::{Duration, Instant};

use hy2_master_sdk::domain::{Timestamp, UserStatus};
use hy2_master_sdk::secrets::UserSecrets;
use hy2_master_sdk::store::users::{self, NewUser};
use serde_json::json;
use uuid::Uuid;

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
    let mut good = true;
    for backend in backends {
        good &= runtime.block_on(run(backend, users, rounds));
    }
    assert!(good, "a case is above the bar of {BAR:?}");
}

async fn run(backend: &str, count: usize, rounds: usize) -> bool {
    let fleet = match backend {
        "postgres" => Fleet::postgres().await,
        _ => Fleet::sqlite().await,
    };
    fill(&fleet, count).await;
    let clients = clients(&fleet).await;
    println!("{backend}: {count} users, {rounds} requests each");
    let mut worst = Duration::ZERO;
    let mut turn = 0;
    for (name, path) in cases(&clients[0], count).await {
        let mut took = Vec::with_capacity(rounds);
        for _ in 0..rounds {
            turn += 1;
            let client = &clients[turn % TOKENS];
            let start = Instant::now();
            let answer = client.get(&path).await;
            took.push(start.elapsed());
            assert_eq!(answer.status, 200, "{}", answer.text());
        }
        took.sort_unstable();
        let (middle, slow) = (took[rounds / 2], took[rounds * 99 / 100]);
        worst = worst.max(slow);
        let mark = if slow < BAR { "" } else { "  ABOVE THE BAR" };
        println!("  {name:<34} p50 {middle:>9.2?}  p99 {slow:>9.2?}{mark}");
    }
    println!("  worst p99 {worst:.2?}");
    fleet.stop().await;
    worst < BAR
}

/// Every order both ways, at its beginning, middle and end; searches.
async fn cases(client: &Client, count: usize) -> Vec<(String, String)> {
    let mut cases = Vec::new();
    for sort in ["id", "username", "created_at", "expires_at"] {
        for descending in [false, true] {
            let base = format!("/api/v1/users?sort={sort}&descending={descending}");
            let way = if descending { "down" } else { "up" };
            let list = format!("{base}&size=50");
            cases.push((format!("{sort} {way}, first page"), list.clone()));
            let places = [("middle", count / 2), ("last", count - 50)];
            let mut after = String::new();
            let mut at = 0;
            for (place, wanted) in places {
                while at < wanted {
                    let size = (wanted - at).min(500);
                    let path = format!("{base}&size={size}&after={after}");
                    let page = client.get(&path).await.expect(200);
                    after = page["next"].as_str().expect("there is more").to_owned();
                    at += size;
                }
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
    ];
    for (name, search) in searches {
        for sort in ["id", "username", "created_at", "expires_at"] {
            let path = format!("/api/v1/users?sort={sort}&size=50&search={search}");
            cases.push((format!("search {name}, by {sort}"), path));
        }
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
            let new = NewUser {
                uid,
                username: format!("{}.{mixed:06}@example", NAMES[number % NAMES.len()]),
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
    if let hy2_master_sdk::store::Db::Pg(pool) = store.db() {
        // What autovacuum does within a minute.
        sqlx::query("analyze users")
            .execute(pool)
            .await
            .expect("analysed");
    }
}
