//! Webhooks against receivers that hang, drip, refuse and come back.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_lc_rs::hmac::{HMAC_SHA256, Key, verify};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::harness::{Client, Fleet, on_both};

/// What a receiver does with a request that it has read.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Manner {
    Answers(u16),
    /// Says nothing, for longer than any test takes.
    Hangs,
    /// The head says 200; the body comes byte by byte and never ends.
    Drips,
}

/// Longer than any test takes.
const FOR_EVER: Duration = Duration::from_secs(3_600);

#[derive(Debug, Clone)]
struct Received {
    head: String,
    body: String,
}

impl Received {
    fn event(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }

    fn header(&self, name: &str) -> &str {
        let start = format!("{name}: ");
        self.head
            .lines()
            .find_map(|line| line.strip_prefix(&start))
            .unwrap()
    }

    fn is_signed_with(&self, secret: &str) -> bool {
        let (at, mac) = self.header("hy2-signature").split_once(",v1=").unwrap();
        let signed = format!("{}.{}", at.strip_prefix("t=").unwrap(), self.body);
        let key = Key::new(HMAC_SHA256, secret.as_bytes());
        verify(&key, signed.as_bytes(), &hex::decode(mac).unwrap()).is_ok()
    }
}

/// A receiver on loopback; it ends with this.
struct Receiver {
    url: String,
    manner: Arc<Mutex<Manner>>,
    received: Arc<Mutex<Vec<Received>>>,
    most_at_once: Arc<AtomicUsize>,
    _accepts: JoinSet<()>,
}

impl Receiver {
    async fn start(manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let manner = Arc::new(Mutex::new(manner));
        let received = Arc::new(Mutex::new(Vec::new()));
        let most_at_once = Arc::new(AtomicUsize::new(0));
        let open = Arc::new(AtomicUsize::new(0));
        let parts = (
            Arc::clone(&manner),
            Arc::clone(&received),
            Arc::clone(&most_at_once),
        );
        let mut accepts = JoinSet::new();
        accepts.spawn(async move {
            let mut connections = JoinSet::new();
            let (manner, received, most) = parts;
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (manner, received) = (Arc::clone(&manner), Arc::clone(&received));
                let (most, open) = (Arc::clone(&most), Arc::clone(&open));
                connections.spawn(async move {
                    let now = open.fetch_add(1, Ordering::SeqCst) + 1;
                    most.fetch_max(now, Ordering::SeqCst);
                    serve(stream, &manner, &received).await;
                    open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Self {
            url,
            manner,
            received,
            most_at_once,
            _accepts: accepts,
        }
    }

    fn becomes(&self, manner: Manner) {
        *self.manner.lock().unwrap() = manner;
    }

    fn received(&self) -> Vec<Received> {
        self.received.lock().unwrap().clone()
    }

    /// Waits until there is a request that fits, and returns it.
    async fn until(&self, fleet: &Fleet, what: &str, fits: impl Fn(&Received) -> bool) -> Received {
        let found = async || self.received().into_iter().find(|received| fits(received));
        fleet.until(what, found).await
    }
}

/// Reads one request and does with it what the receiver does then. Until the other side is gone.
async fn serve(mut stream: TcpStream, manner: &Mutex<Manner>, received: &Mutex<Vec<Received>>) {
    let mut read = Vec::new();
    let request = loop {
        let mut buffer = [0; 4_096];
        let Ok(count @ 1..) = stream.read(&mut buffer).await else {
            return;
        };
        read.extend_from_slice(&buffer[..count]);
        let text = String::from_utf8_lossy(&read).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length: "));
            if body.len() >= length.unwrap().parse().unwrap() {
                let (head, body) = (head.to_owned(), body.to_owned());
                break Received { head, body };
            }
        }
    };
    let manner = *manner.lock().unwrap();
    received.lock().unwrap().push(request);
    match manner {
        Manner::Answers(status) => {
            let answer =
                format!("HTTP/1.1 {status} X\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            let _ = stream.write_all(answer.as_bytes()).await;
        }
        Manner::Hangs => {
            let _ = tokio::time::timeout(FOR_EVER, stream.read(&mut [0; 1])).await;
        }
        Manner::Drips => {
            let head = b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n";
            let mut alive = stream.write_all(head).await.is_ok();
            while alive {
                tokio::time::sleep(Duration::from_millis(100)).await;
                alive = stream.write_all(b".").await.is_ok();
            }
        }
    }
}

async fn hook(owner: &Client, receiver: &Receiver, topics: &[&str]) -> Value {
    let new = json!({"url": receiver.url, "topics": topics});
    owner.post("/api/v1/webhooks", &new).await.expect(201)
}

fn path(hook: &Value, rest: &str) -> String {
    format!("/api/v1/webhooks/{}{rest}", hook["id"].as_str().unwrap())
}

async fn make_user(owner: &Client, name: &str) {
    owner
        .post("/api/v1/users", &json!({"username": name}))
        .await
        .expect(201);
}

/// Waits until the newest delivery of a webhook fits, and returns it.
async fn delivery(
    fleet: &Fleet,
    owner: &Client,
    hook: &Value,
    fits: impl Fn(&Value) -> bool,
) -> Value {
    let newest = async || {
        let page = owner.get(&path(hook, "/deliveries")).await.expect(200);
        Some(page["items"][0].clone()).filter(|delivery| delivery.is_object() && fits(delivery))
    };
    fleet.until("the delivery is so", newest).await
}

on_both! {
    async fn a_receiver_that_hangs_holds_up_nobody_else(fleet) {
        let owner = fleet.owner().await;
        let (hanging, healthy) = (Receiver::start(Manner::Hangs).await, Receiver::start(Manner::Answers(204)).await);
        hook(&owner, &hanging, &["user.created"]).await;
        hook(&owner, &healthy, &["user.created"]).await;
        let rows = (0..100).fold("username\n".to_owned(), |rows, at| format!("{rows}user-{at}\n"));
        let import = json!({"format": "csv", "data": rows});
        owner.post("/api/v1/users:import", &import).await.expect(200);
        fleet
            .until("the healthy receiver has all", async || {
                let mut ids: Vec<_> = healthy.received().iter().map(|one| one.header("hy2-delivery").to_owned()).collect();
                ids.sort_unstable();
                ids.dedup();
                (ids.len() == 100).then_some(())
            })
            .await;
        let at_once = hanging.most_at_once.load(Ordering::SeqCst);
        assert!((1..=4).contains(&at_once), "{at_once}");
        fleet.stop().await;
    }

    async fn a_disabled_webhook_is_not_sent_to_and_what_waits_is_sent_when_it_is_enabled(fleet) {
        let owner = fleet.owner().await;
        let (receiver, marker) = (Receiver::start(Manner::Answers(500)).await, Receiver::start(Manner::Answers(200)).await);
        let off = hook(&owner, &receiver, &["user.*"]).await;
        hook(&owner, &marker, &["region.*"]).await;
        make_user(&owner, "ann").await;
        delivery(&fleet, &owner, &off, |delivery| delivery["error"].is_string()).await;
        owner.patch(&path(&off, ""), &json!({"enabled": false})).await.expect(200);
        receiver.becomes(Manner::Answers(200));
        fleet.clock.advance(Duration::from_secs(60));
        // Whoever is due is sent to meanwhile.
        for code in ["one", "two"] {
            owner.post("/api/v1/regions", &json!({"code": code, "name": code})).await.expect(201);
            marker.until(&fleet, code, |received| received.body.contains(code)).await;
        }
        let waiting = delivery(&fleet, &owner, &off, |_| true).await;
        assert_eq!((&waiting["status"], &waiting["attempts"]), (&json!("pending"), &json!(1)));
        owner.patch(&path(&off, ""), &json!({"enabled": true})).await.expect(200);
        let sent = delivery(&fleet, &owner, &off, |delivery| delivery["status"] == "delivered").await;
        assert_eq!((&sent["id"], &sent["attempts"]), (&waiting["id"], &json!(2)));

        // Nobody waits for longer than a day.
        receiver.becomes(Manner::Answers(500));
        make_user(&owner, "bob").await;
        delivery(&fleet, &owner, &off, |delivery| delivery["id"] != sent["id"] && delivery["error"].is_string()).await;
        owner.patch(&path(&off, ""), &json!({"enabled": false})).await.expect(200);
        fleet.clock.advance(Duration::from_secs(25 * 3_600));
        let owner = fleet.owner().await;
        let over = delivery(&fleet, &owner, &off, |delivery| delivery["status"] == "failed").await;
        assert_eq!(over["attempts"], 1);
        fleet.stop().await;
    }

    async fn what_happened_before_a_webhook_is_switched_off_is_sent_and_what_happens_while_it_is_off_is_not(fleet) {
        let owner = fleet.owner().await;
        let receiver = Receiver::start(Manner::Answers(200)).await;
        let made = hook(&owner, &receiver, &["user.created"]).await;
        let switch = async |on: bool| owner.patch(&path(&made, ""), &json!({"enabled": on})).await.expect(200);
        for round in 0..12 {
            make_user(&owner, &format!("told-{round}")).await;
            switch(false).await;
            // At once, numbered or not: nobody plans for a webhook that is off.
            let planned = owner.get(&path(&made, "/deliveries?size=500")).await.expect(200);
            assert_eq!(planned["items"].as_array().unwrap().len(), round + 1);
            make_user(&owner, &format!("kept-{round}")).await;
            switch(true).await;
        }
        make_user(&owner, "told-last").await;
        let names = || -> std::collections::BTreeSet<String> {
            let received = receiver.received();
            let names = received.iter().map(|one| one.event()["payload"]["username"].as_str().unwrap().to_owned());
            names.collect()
        };
        fleet.until("all are told", async || (names().len() >= 13).then_some(())).await;
        let told = (0..12).map(|round| format!("told-{round}")).chain(["told-last".to_owned()]);
        assert_eq!(names(), told.collect());
        fleet.stop().await;
    }

    async fn what_happened_before_a_webhook_is_told_other_topics_goes_by_the_old_ones(fleet) {
        let owner = fleet.owner().await;
        let receiver = Receiver::start(Manner::Answers(200)).await;
        let made = hook(&owner, &receiver, &["user.created"]).await;
        let count = async || owner.get(&path(&made, "/deliveries?size=500")).await.expect(200)["items"].as_array().unwrap().len();
        for round in 0..6 {
            let region = |code: String| json!({"code": code, "name": code});
            make_user(&owner, &format!("told-{round}")).await;
            owner.post("/api/v1/regions", &region(format!("kept-{round}"))).await.expect(201);
            owner.patch(&path(&made, ""), &json!({"topics": ["region.created"]})).await.expect(200);
            assert_eq!(count().await, 2 * round + 1);
            make_user(&owner, &format!("kept-{round}")).await;
            owner.post("/api/v1/regions", &region(format!("told-{round}"))).await.expect(201);
            owner.patch(&path(&made, ""), &json!({"topics": ["user.created"]})).await.expect(200);
            assert_eq!(count().await, 2 * round + 2);
        }
        fleet.until("all are told", async || (receiver.received().len() >= 12).then_some(())).await;
        assert!(receiver.received().iter().all(|one| one.body.contains("told-") && !one.body.contains("kept-")));
        fleet.stop().await;
    }

    async fn a_delivery_is_given_up_after_a_day_told_of_and_sent_again_by_hand(fleet) {
        let owner = fleet.owner().await;
        let (receiver, watcher) = (Receiver::start(Manner::Answers(500)).await, Receiver::start(Manner::Answers(200)).await);
        // Without topics: also what happens to webhooks.
        let away = hook(&owner, &receiver, &["user.*", "webhook.failed"]).await;
        hook(&owner, &watcher, &["webhook.*"]).await;
        make_user(&owner, "ann").await;
        delivery(&fleet, &owner, &away, |delivery| delivery["error"].is_string()).await;
        fleet.clock.advance(Duration::from_secs(23 * 3_600));
        let owner = fleet.owner().await;
        let waiting = delivery(&fleet, &owner, &away, |delivery| delivery["attempts"] == 2 && delivery["error"] == "answered 500").await;
        assert_eq!(waiting["status"], "pending", "not before the day is over");
        fleet.clock.advance(Duration::from_secs(3_600));
        let owner = fleet.owner().await;
        let failed = delivery(&fleet, &owner, &away, |delivery| delivery["status"] == "failed").await;

        let told = watcher.until(&fleet, "the event", |received| received.event()["topic"] == "webhook.failed").await.event();
        assert_eq!(told["key"], away["id"]);
        let of = json!({"deliveries": 1, "first_event": failed["event"], "last_event": failed["event"], "error": "answered 500"});
        assert_eq!(told["payload"], of);
        // Not the webhook itself.
        let past = async || (owner.get(&path(&away, "")).await.expect(200)["cursor"].as_i64() >= told["seq"].as_i64()).then_some(());
        fleet.until("the event is planned", past).await;
        let all = owner.get(&path(&away, "/deliveries")).await.expect(200);
        assert!(all["items"].as_array().unwrap().iter().all(|delivery| delivery["event"] != told["seq"]), "{all}");
        let listed = owner.get(&path(&away, "/deliveries?status=failed")).await.expect(200);
        assert_eq!(listed["items"].as_array().unwrap().len(), 1);
        let listed = owner.get(&path(&away, "/deliveries?status=delivered")).await.expect(200);
        assert_eq!(listed["items"], json!([]));
        owner.get(&path(&away, "/deliveries?status=lost")).await.problem(422);

        receiver.becomes(Manner::Answers(200));
        let retry = path(&away, &format!("/deliveries/{}/retry", failed["id"].as_str().unwrap()));
        let again = owner.post(&retry, &json!({})).await.expect(200);
        assert_eq!((&again["status"], &again["id"]), (&json!("pending"), &failed["id"]));
        let sent = delivery(&fleet, &owner, &away, |delivery| delivery["status"] == "delivered").await;
        assert_eq!(sent["attempts"], failed["attempts"].as_i64().unwrap() + 1);
        let of_another = retry.replace(away["id"].as_str().unwrap(), "00000000-0000-0000-0000-000000000000");
        owner.post(&of_another, &json!({})).await.problem(404);
        let audit = owner.get("/api/v1/audit?action=retry_webhook_delivery").await.expect(200);
        assert_eq!(audit["items"][0]["object_id"], failed["id"]);
        fleet.stop().await;
    }

    async fn a_webhook_is_given_another_key_and_signs_with_it_at_once(fleet) {
        let owner = fleet.owner().await;
        let receiver = Receiver::start(Manner::Answers(500)).await;
        let made = hook(&owner, &receiver, &["user.*"]).await;
        let first = made["secret"].as_str().unwrap();
        make_user(&owner, "ann").await;
        delivery(&fleet, &owner, &made, |delivery| delivery["error"].is_string()).await;
        assert!(receiver.received()[0].is_signed_with(first));
        let rotated = owner.post(&path(&made, "/rotate"), &json!({})).await.expect(200);
        let second = rotated["secret"].as_str().unwrap();
        assert!(second.starts_with("whsec_") && second != first);
        assert_eq!((&rotated["id"], &rotated["rev"]), (&made["id"], &json!(2)));
        assert!(owner.get(&path(&made, "")).await.expect(200)["secret"].is_null());
        receiver.becomes(Manner::Answers(200));
        // What waits as well.
        fleet.clock.advance(Duration::from_secs(60));
        let again = receiver.until(&fleet, "the second try", |received| received.header("hy2-attempt") == "2").await;
        assert!(again.is_signed_with(second) && !again.is_signed_with(first));
        let audit = owner.get("/api/v1/audit?action=rotate_webhook").await.expect(200);
        assert_eq!((&audit["items"][0]["object_id"], audit.to_string().contains("whsec_")), (&made["id"], false));
        fleet.stop().await;
    }

    async fn the_head_of_an_answer_decides_however_long_its_body_takes(fleet) {
        let owner = fleet.owner().await;
        let receiver = Receiver::start(Manner::Drips).await;
        let made = hook(&owner, &receiver, &["user.*"]).await;
        make_user(&owner, "ann").await;
        let noted = |delivery: &Value| delivery["status"] != "pending" || delivery["error"].is_string();
        let sent = delivery(&fleet, &owner, &made, noted).await;
        assert_eq!((&sent["status"], &sent["attempts"], &sent["response_status"]), (&json!("delivered"), &json!(1), &json!(200)));
        fleet.stop().await;
    }
}
