//! Whether somebody who may not know can tell which administrators there are: by what is done, which is counted, and by
//! how long it takes, which is measured in the long run only.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hy2_master_sdk::auth::password::DEFAULT_COST;
use hy2_master_sdk::auth::totp::SecondFactor;
use hy2_master_sdk::store::{Store, StoreOptions};
use serde_json::{Value, json};

use crate::harness::{Client, Fleet};
use crate::postgres;

/// Somebody with a second factor, and somebody without.
const GUARDED: &str = "guarded";
const PLAIN: &str = "plain";
const NOBODY: &str = "nobody";

/// Makes administrators of whom some have a second factor; returns their names.
async fn administrators(fleet: &Fleet, count: usize) -> (Vec<String>, Vec<String>) {
    let owner = fleet.owner().await;
    let (mut guarded, mut plain) = (Vec::new(), Vec::new());
    for at in 0..count {
        for (kind, names) in [(GUARDED, &mut guarded), (PLAIN, &mut plain)] {
            let name = format!("{kind}-{at}");
            let given = "given by somebody";
            let new = json!({"username": name, "password": given, "role": "auditor"});
            owner.post("/api/v1/admins", &new).await.expect(201);
            let change = json!({"old": given, "new": crate::harness::OWN_PASSWORD});
            let client = from(fleet, at, kind).log_in(&name, given).await;
            client
                .post("/api/v1/auth/password", &change)
                .await
                .expect(204);
            if kind == GUARDED {
                let own = crate::harness::OWN_PASSWORD;
                let client = from(fleet, at, kind).log_in(&name, own).await;
                let begun = client
                    .post("/api/v1/auth/totp", &Value::Null)
                    .await
                    .expect(200);
                let secret = crate::accounts::totp_rs_secret(begun["secret"].as_str().unwrap());
                let factor = SecondFactor::new(&secret, "hy2", "x").unwrap();
                let code = json!({"code": factor.code(fleet.master.now().0 / 1_000)});
                client
                    .post("/api/v1/auth/totp/confirm", &code)
                    .await
                    .expect(204);
            }
            names.push(name);
        }
    }
    (guarded, plain)
}

/// A client from an address that nobody else has.
fn from(fleet: &Fleet, at: usize, kind: &str) -> Client {
    let address = format!("2001:db8:{:x}:{at:x}::1", kind.len());
    fleet.client().with("x-forwarded-for", &address)
}

/// The database itself says what it was asked: names that there are and names that there are not make it do the same,
/// and the hasher, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_wrong_login_runs_the_same_statements_and_one_hash() {
    let server = tokio::task::spawn_blocking(|| postgres::Server::start(false))
        .await
        .unwrap();
    let url = postgres::database_on(&server.url).await;
    let admin = sqlx::PgPool::connect(&url).await.unwrap();
    for setting in [
        "alter system set log_statement = 'all'",
        "select pg_reload_conf()",
    ] {
        sqlx::query(setting).execute(&admin).await.unwrap();
    }
    admin.close().await;
    let store = Store::open_postgres(&url, &StoreOptions::default())
        .await
        .unwrap();
    let fleet = Fleet::start_with(store, tempfile::tempdir().unwrap(), |_| {}).await;
    let (guarded, plain) = administrators(&fleet, 1).await;
    let password = "a wrong password";
    let tries = [
        (
            "without a second factor",
            json!({"username": plain[0], "password": password}),
        ),
        (
            "with a second factor",
            json!({"username": guarded[0], "password": password}),
        ),
        (
            "with a code",
            json!({"username": guarded[0], "password": password, "code": "000000"}),
        ),
        (
            "a code for nothing",
            json!({"username": plain[0], "password": password, "code": "000000"}),
        ),
        ("nobody", json!({"username": NOBODY, "password": password})),
        (
            "nobody with a code",
            json!({"username": NOBODY, "password": password, "code": "000000"}),
        ),
        (
            "a name that nobody can have",
            json!({"username": "x".repeat(300), "password": password}),
        ),
        ("no name", json!({"username": "", "password": password})),
    ];
    let passwords = fleet.front.service().passwords().clone();
    let mut seen = BTreeMap::new();
    for (at, (what, login)) in tries.iter().enumerate() {
        // Nothing else asks about administrators, and nothing but logins writes their entries.
        let (before, hashes) = (of_logins(&server.log()), passwords.checks());
        let client = from(&fleet, 100 + at, what);
        let answer = client.post("/api/v1/auth/login", login).await;
        assert_eq!(answer.problem(401), "wrong_credentials", "{what}");
        assert_eq!(passwords.checks() - hashes, 1, "{what}");
        let mut ran = of_logins(&server.log());
        for (statement, times) in before {
            *ran.get_mut(&statement).unwrap() -= times;
        }
        ran.retain(|_, times| *times > 0);
        seen.insert(*what, ran);
    }
    let first = &seen["nobody"];
    assert_eq!(
        first.values().sum::<usize>(),
        2,
        "one is read, one is written: {first:?}"
    );
    for (what, ran) in &seen {
        assert_eq!(ran, first, "{what}");
    }
    fleet.stop().await;
    tokio::task::spawn_blocking(|| server.stop()).await.unwrap();
}

/// How often each statement about administrators ran, and each that writes the audit log.
fn of_logins(log: &str) -> BTreeMap<String, usize> {
    let mut statements = BTreeMap::new();
    for line in log.lines() {
        let Some((_, rest)) = line.split_once("LOG:  execute ") else {
            continue;
        };
        let statement = rest
            .split_once(": ")
            .map_or(rest, |(_, statement)| statement);
        let about = statement.contains("admins") || statement.starts_with("insert into audit_log");
        if about {
            *statements.entry(statement.to_owned()).or_default() += 1;
        }
    }
    statements
}

/// Interleaved, so that whatever else the machine does meets both alike.
async fn samples(
    fleet: &Fleet,
    round: usize,
    count: usize,
    logins: [&dyn Fn(usize) -> Value; 2],
) -> [Vec<Duration>; 2] {
    let mut times = [Vec::new(), Vec::new()];
    let client = fleet.client();
    for at in 0..count {
        // Which goes first changes, too.
        for turn in 0..2 {
            let which = (at + turn) % 2;
            let body = logins[which](at);
            let address = format!("2001:db8:{:x}:{:x}::1", 0x1000 + round * 2 + which, at);
            let client = client.clone().with("x-forwarded-for", &address);
            let started = Instant::now();
            let answer = client.post("/api/v1/auth/login", &body).await;
            times[which].push(started.elapsed());
            assert_eq!(answer.status, 401, "{}", answer.text());
        }
    }
    times
}

/// The two-sided p of the Mann–Whitney test that neither sample is larger than the other, by the normal approximation.
fn mann_whitney(one: &[Duration], other: &[Duration]) -> f64 {
    let mut all: Vec<(Duration, bool)> = one
        .iter()
        .map(|time| (*time, true))
        .chain(other.iter().map(|time| (*time, false)))
        .collect();
    all.sort();
    let mut rank_sum = 0.0;
    let mut at = 0;
    while at < all.len() {
        let end = (at..all.len())
            .find(|next| all[*next].0 != all[at].0)
            .unwrap_or(all.len());
        // Equal ones share the mean of their ranks.
        let rank = (at + 1 + end) as f64 / 2.0;
        rank_sum += rank * all[at..end].iter().filter(|(_, first)| *first).count() as f64;
        at = end;
    }
    let (n, m) = (one.len() as f64, other.len() as f64);
    let u = rank_sum - n * (n + 1.0) / 2.0;
    let z = (u - n * m / 2.0) / (n * m * (n + m + 1.0) / 12.0).sqrt();
    complementary_error(z.abs() / std::f64::consts::SQRT_2)
}

/// erfc for what is not negative, to 1.5e-7 (Abramowitz and Stegun, 7.1.26).
fn complementary_error(x: f64) -> f64 {
    let t = 1.0 / (1.0 + 0.327_591_1 * x);
    let series = [
        0.254_829_592,
        -0.284_496_736,
        1.421_413_741,
        -1.453_152_027,
        1.061_405_429,
    ];
    let sum = series
        .iter()
        .rev()
        .fold(0.0, |sum, factor| (sum + factor) * t);
    sum * (-x * x).exp()
}

#[test]
fn the_test_of_ranks_finds_a_small_shift_and_no_shift_where_there_is_none() {
    // A generator of its own: the same numbers every time.
    let mut state = 7_u64;
    let mut random = move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        state >> 44
    };
    let mut sample = |shift: u64| -> Vec<Duration> {
        (0..400)
            .map(|_| Duration::from_nanos(1_000_000 + random() + shift))
            .collect()
    };
    let (one, same, slower) = (sample(0), sample(0), sample(150_000));
    assert!(mann_whitney(&one, &same) > 0.05);
    assert!(mann_whitney(&one, &slower) < 0.000_1);
    assert!(mann_whitney(&slower, &one) < 0.000_1);
    assert!((mann_whitney(&one, &one) - 1.0).abs() < 1e-6);
    assert!((complementary_error(1.0) - 0.157_299_2).abs() < 1e-6);
}

/// Judges by the clock: with `HY2_FULL` only, on a machine that does nothing else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn how_long_a_wrong_login_takes_tells_nothing() {
    let full = std::env::var_os("HY2_FULL").is_some();
    let (rounds, count, accounts) = if full { (3, 150, 12) } else { (1, 4, 1) };
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open_sqlite(&directory.path().join("m.db"), &StoreOptions::default()).await;
    let fleet = Fleet::start_with(store.unwrap(), directory, |config| {
        // As it is run.
        config.password_cost = DEFAULT_COST;
    })
    .await;
    let (guarded, plain) = administrators(&fleet, accounts).await;
    // The passwords are all wrong. One account takes a hundred in an hour.
    let login = |name: &str, code: bool| {
        let mut body = json!({"username": name, "password": "a wrong password"});
        if code {
            body["code"] = json!("000000");
        }
        body
    };
    let known = |at: usize| login(&plain[at % plain.len()], false);
    let unknown = |at: usize| login(&format!("nobody-{}", at % 12), false);
    let factor = |at: usize| login(&guarded[at % guarded.len()], true);
    let no_factor = |at: usize| login(&plain[at % plain.len()], true);
    type Login<'a> = &'a dyn Fn(usize) -> Value;
    let pairs: [(&str, [Login<'_>; 2]); 2] = [
        (
            "a name that there is and one that there is not",
            [&known, &unknown],
        ),
        ("with a second factor and without", [&factor, &no_factor]),
    ];
    let mut round = 0;
    for (what, logins) in pairs {
        let mut told = 0;
        for _ in 0..rounds {
            round += 1;
            let [one, other] = samples(&fleet, round, count, logins).await;
            let p = mann_whitney(&one, &other);
            let median = |times: &[Duration]| {
                let mut times = times.to_vec();
                times.sort();
                times[times.len() / 2]
            };
            eprintln!(
                "{what}: {count} each, medians {:?} and {:?}, p = {p:.4}",
                median(&one),
                median(&other)
            );
            told += u32::from(p < 0.01);
        }
        // One round in a hundred says so by chance; two of three hardly ever do.
        assert!(!full || told < 2, "{what} can be told apart");
    }
    if full {
        // The same measurement sees a difference where there is one: no hash is computed for who asked too often.
        let limited = fleet.client().with("x-forwarded-for", "2001:db8:ffff::1");
        let (mut refused, mut judged) = (Vec::new(), Vec::new());
        for at in 0..40 {
            let started = Instant::now();
            let answer = limited
                .post("/api/v1/auth/login", &login("nobody", false))
                .await;
            let took = started.elapsed();
            if answer.status == 429 {
                refused.push(took);
            }
            let address = format!("2001:db8:fffe:{at:x}::1");
            let client = fleet.client().with("x-forwarded-for", &address);
            let started = Instant::now();
            client
                .post("/api/v1/auth/login", &login("somebody", false))
                .await;
            judged.push(started.elapsed());
        }
        assert!(
            mann_whitney(&refused, &judged) < 0.01,
            "the measurement sees nothing"
        );
    }
    fleet.stop().await;
}
