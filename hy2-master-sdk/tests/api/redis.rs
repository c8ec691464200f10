//! A master on a real Redis that is killed, stopped and emptied: nothing but cache is lost.

use std::time::{Duration, Instant};

use hy2_master_sdk::cache::Cache;
use hy2_master_sdk::ratelimit::{Limit, RateLimiter, SharedLimiter};
use hy2_master_sdk::redis::Redis;
use hy2_master_sdk::store::{Store, StoreOptions};
use serde_json::{Value, json};

use crate::harness::{Client, Fleet};
use crate::redis_server::RedisServer;
use crate::subscriptions::subscribed;

/// Requests of each kind while Redis is out of order.
const REQUESTS: usize = 50;

const THREE: Limit = Limit::new("three", 3, 3_600);

async fn fleet(redis: &Redis) -> Fleet {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("master.db");
    let store = Store::open_sqlite(&path, &StoreOptions::default())
        .await
        .unwrap();
    Fleet::start_with(store, directory, |config| {
        config.cache = Cache::shared(redis.clone());
        config.limiter = RateLimiter::shared(SharedLimiter::new(redis.clone()));
    })
    .await
}

fn limiter(redis: &Redis) -> RateLimiter {
    RateLimiter::shared(SharedLimiter::new(redis.clone()))
}

async fn until_up(redis: &Redis) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !redis.is_up() {
        assert!(Instant::now() < deadline, "Redis is never found up again");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Reads, writes and subscriptions, each to succeed; the subscription from many addresses, because
/// one may ask only so often. How long one may wait is the business of a test in virtual time,
/// beside [`Redis`].
async fn work(fleet: &Fleet, owner: &Client, path: &str, body: &str, round: u8) {
    for number in 0..REQUESTS {
        let name = format!("made-{round}-{number}");
        let new = json!({"username": name});
        owner.post("/api/v1/users", &new).await.expect(201);
        owner.get("/api/v1/users?search=made").await.expect(200);
        let from = format!("2001:db8:{round:x}:{number:x}::1");
        let client = Client::new(fleet.public).with("x-forwarded-for", &from);
        let answer = client.get(path).await;
        assert_eq!((answer.status, answer.text().as_str()), (200, body));
    }
}

async fn users(owner: &Client) -> Vec<Value> {
    let mut all = Vec::new();
    let mut path = "/api/v1/users?size=500".to_owned();
    loop {
        let page = owner.get(&path).await.expect(200);
        all.extend(page["items"].as_array().unwrap().iter().cloned());
        let Some(next) = page["next"].as_str() else {
            return all;
        };
        path = format!("/api/v1/users?size=500&after={next}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_but_cache_is_lost_when_redis_is_killed_stopped_paused_and_flushed() {
    let mut server = RedisServer::start().await;
    let redis = Redis::new(&server.url(), "test:").unwrap();
    let fleet = fleet(&redis).await;
    let owner = fleet.owner().await;
    let (_, path) = subscribed(&fleet).await;
    let body = Client::new(fleet.public).get(&path).await.text();
    let kept: Vec<String> = server.command(&["KEYS", "test:cache:*"]).await;
    assert_eq!(kept.len(), 1, "the subscription is kept in Redis");
    let kept: Vec<u8> = server.command(&["GET", &kept[0]]).await;
    let part = body.as_bytes().get(..32).unwrap();
    let clear = kept.windows(part.len()).any(|window| window == part);
    assert!(!clear, "credentials are sealed there");
    work(&fleet, &owner, &path, &body, 0).await;

    server.kill();
    work(&fleet, &owner, &path, &body, 1).await;
    assert!(!redis.is_up());
    server.resume().await;
    until_up(&redis).await;
    work(&fleet, &owner, &path, &body, 2).await;

    server.signal("STOP");
    work(&fleet, &owner, &path, &body, 3).await;
    assert!(!redis.is_up());
    server.signal("CONT");
    until_up(&redis).await;

    let _: String = server.command(&["CLIENT", "PAUSE", "3600000"]).await;
    work(&fleet, &owner, &path, &body, 4).await;
    assert!(!redis.is_up());
    // Only CLIENT UNPAUSE goes through, and only over a connection without a handshake: a restart.
    server.kill();
    server.resume().await;
    until_up(&redis).await;

    let _: String = server.command(&["FLUSHALL"]).await;
    work(&fleet, &owner, &path, &body, 5).await;
    assert!(redis.is_up());

    let names: Vec<_> = users(&owner).await;
    assert_eq!(names.len(), 1 + 6 * REQUESTS, "every user that was made");
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn buckets_are_shared_between_masters_and_each_remembers_what_it_let_through() {
    let mut server = RedisServer::start().await;
    let redis = Redis::new(&server.url(), "test:").unwrap();
    let (one, two) = (limiter(&redis), limiter(&redis));
    one.check(THREE, "a").await.unwrap();
    two.check(THREE, "a").await.unwrap();
    one.check(THREE, "a").await.unwrap();
    let limited = two.check(THREE, "a").await.unwrap_err();
    assert!(limited.retry_after > Duration::from_secs(600));
    assert!(limited.retry_after <= Duration::from_secs(1_200));
    two.check(THREE, "b").await.unwrap();

    // Emptied or gone, each master goes on with its own count: 2 of 3 were used at `one`. At `two`
    // it was 2 as well: a refusal in Redis does not give back what was taken here.
    let _: String = server.command(&["FLUSHALL"]).await;
    one.check(THREE, "a").await.unwrap();
    one.check(THREE, "a").await.unwrap_err();
    server.kill();
    two.check(THREE, "a").await.unwrap();
    two.check(THREE, "a").await.unwrap_err();
    assert!(!redis.is_up());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_master_gives_back_another_may_take_and_no_more() {
    let mut server = RedisServer::start().await;
    let redis = Redis::new(&server.url(), "test:").unwrap();
    let (one, two) = (limiter(&redis), limiter(&redis));
    for _ in 0..9 {
        one.check(THREE, "a").await.unwrap();
        one.give_back(THREE, "a").await;
    }
    one.give_back(THREE, "a").await;
    for _ in 0..3 {
        two.check(THREE, "a").await.unwrap();
    }
    one.check(THREE, "a").await.unwrap_err();
    two.give_back(THREE, "a").await;
    one.check(THREE, "a").await.unwrap();
    one.check(THREE, "a").await.unwrap_err();
    // Without Redis nothing hangs.
    server.kill();
    two.give_back(THREE, "a").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_master_keeps_another_finds_and_a_master_starts_without_redis() {
    let mut server = RedisServer::start().await;
    let (one, two) = (
        Redis::new(&server.url(), "test:").unwrap(),
        Redis::new(&server.url(), "test:").unwrap(),
    );
    let (first, second) = (Cache::shared(one), Cache::shared(two.clone()));
    first.put("key".into(), "value".into()).await;
    assert_eq!(second.get("key").await.as_deref(), Some(&b"value"[..]));
    let expiry: i64 = server.command(&["TTL", "test:cache:key"]).await;
    assert!((1..=300).contains(&expiry), "{expiry}");

    server.kill();
    let redis = Redis::new(&server.url(), "test:").unwrap();
    let cache = Cache::shared(redis.clone());
    cache.put("key".into(), "value".into()).await;
    assert_eq!(cache.get("key").await.as_deref(), Some(&b"value"[..]));
    assert_eq!(cache.get("other").await, None);
    server.resume().await;
    until_up(&redis).await;
    cache.put("key".into(), "value".into()).await;
    let kept: i64 = server.command(&["EXISTS", "test:cache:key"]).await;
    assert_eq!(kept, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_that_was_wrong_for_a_while_is_tried_again() {
    let mut server = RedisServer::start().await;
    server.kill();
    server.resume_with("right").await;
    let redis = Redis::new(&server.url(), "test:").unwrap();
    let limiter = limiter(&redis);
    limiter.check(THREE, "a").await.unwrap();
    assert!(redis.is_up());

    server.kill();
    server.resume_with("wrong").await;
    // Until it is seen that nobody is let in any more, and for longer than any one connection is tried.
    let deadline = Instant::now() + Duration::from_secs(60);
    while redis.is_up() {
        assert!(Instant::now() < deadline, "Redis is never found down");
        limiter.give_back(THREE, "a").await;
    }
    let refused = |stats: String| {
        let errors = stats
            .lines()
            .find_map(|line| line.strip_prefix("errorstat_WRONGPASS:count="));
        errors.map_or(0, |count| count.trim().parse::<u32>().unwrap())
    };
    while refused(server.command(&["INFO", "errorstats"]).await) < 3 {
        assert!(Instant::now() < deadline, "Redis is not asked again");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(!redis.is_up());
    server.kill();
    server.resume_with("right").await;
    until_up(&redis).await;
    limiter.check(THREE, "a").await.unwrap();
    assert!(redis.is_up());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_without_memory_is_left_alone_until_it_can_write() {
    let server = RedisServer::start().await;
    let redis = Redis::new(&server.url(), "test:").unwrap();
    let limiter = limiter(&redis);
    limiter.check(THREE, "a").await.unwrap();
    let set = async |bytes| {
        let _: String = server.command(&["CONFIG", "SET", "maxmemory", bytes]).await;
    };
    set("1").await;
    limiter.check(THREE, "a").await.unwrap();
    assert!(!redis.is_up());
    // Asked some times, it is not found up because it answers.
    let asked = |stats: String| {
        let errors = stats
            .lines()
            .find_map(|line| line.strip_prefix("errorstat_OOM:count="));
        errors.map_or(0, |count| count.trim().parse::<u32>().unwrap())
    };
    let first = asked(server.command(&["INFO", "errorstats"]).await);
    let deadline = Instant::now() + Duration::from_secs(60);
    while asked(server.command(&["INFO", "errorstats"]).await) < first + 4 {
        assert!(!redis.is_up(), "found up, and cannot write");
        assert!(Instant::now() < deadline, "Redis is not asked again");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    set("0").await;
    until_up(&redis).await;
    limiter.check(THREE, "a").await.unwrap();
    assert!(redis.is_up());
}
