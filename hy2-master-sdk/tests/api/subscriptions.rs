//! What clients fetch with a user's token, and what strangers get.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hy2_master_sdk::domain::{Clock as _, NodeId, ObservedState};
use hy2_master_sdk::store::{Store, published};
use hy2_proto::uri::{Obfs, ShareUri};
use serde_json::{Value, json};

use crate::harness::{Client, Fleet, on_both};

/// Makes a user on two nodes that serve; returns the user's number and the path of the subscription.
pub(crate) async fn subscribed(fleet: &Fleet) -> (i64, String) {
    let owner = fleet.owner().await;
    let nodes = [fleet.node("ny").await, fleet.node("fra").await];
    for node in nodes {
        set_observed(fleet.master.store(), node, ObservedState::Online).await;
    }
    let obfs = json!({"salamander": {"password": "a long obfuscation password"}});
    let body = json!({"body": {"obfs": obfs}});
    owner
        .put("/api/v1/configs/fleet/0", &body)
        .await
        .expect(200);
    let user = json!({
        "username": "ann", "quota_bytes": 5000, "expires_at": "2030-01-01T00:00:00Z",
        "node_ids": nodes.map(|node| node.0),
    });
    let user = owner.post("/api/v1/users", &user).await.expect(201)["id"]
        .as_i64()
        .unwrap();
    (user, path_of(&owner, user).await)
}

async fn path_of(owner: &Client, user: i64) -> String {
    let path = format!("/api/v1/users/{user}/subscription");
    let url = owner.get(&path).await.expect(200)["url"]
        .as_str()
        .unwrap()
        .to_owned();
    url.strip_prefix("https://sub.example.org")
        .unwrap()
        .to_owned()
}

async fn set_observed(store: &Store, node: NodeId, state: ObservedState) {
    let sql = "update vps_nodes set observed_state = $1 where id = $2";
    match store.db() {
        hy2_master_sdk::store::Db::Pg(pool) => {
            sqlx::query(sql)
                .bind(state)
                .bind(node)
                .execute(pool)
                .await
                .unwrap();
        }
        hy2_master_sdk::store::Db::Sqlite { write, .. } => {
            sqlx::query(sql)
                .bind(state)
                .bind(node)
                .execute(write)
                .await
                .unwrap();
        }
    }
}

on_both! {
    async fn every_format_carries_the_same_servers_and_credentials(fleet) {
        let (_, path) = subscribed(&fleet).await;
        let client = Client::new(fleet.public);
        let answer = client.get(&path).await;
        let info = answer.header("subscription-userinfo");
        assert_eq!(info, "upload=0; download=0; total=5000; expire=1893456000");
        assert_eq!(answer.header("profile-update-interval"), "12");
        let links = String::from_utf8(STANDARD.decode(answer.text()).unwrap()).unwrap();
        let uris: Vec<ShareUri> = links.lines().map(|line| line.parse().unwrap()).collect();
        let names: Vec<_> = uris.iter().map(|uri| uri.name.as_deref().unwrap()).collect();
        assert_eq!(names, ["ny", "fra"]);
        let secrets: Vec<_> = uris.iter().map(|uri| uri.auth.clone().unwrap()).collect();
        assert_ne!(secrets[0], secrets[1], "each node has its own credential");
        assert_eq!(client.get(&format!("{path}/plain")).await.text(), links);

        let sing_box = client.clone().with("user-agent", "SFA/1.14 (sing-box 1.14)");
        let config: Value = serde_json::from_str(&sing_box.get(&path).await.text()).unwrap();
        let outbounds = config["outbounds"].as_array().unwrap();
        let passwords: Vec<_> = outbounds.iter().filter_map(|o| o["password"].as_str()).collect();
        assert_eq!(passwords, secrets);

        let clash = client.clone().with("user-agent", "mihomo/1.19").get(&path).await;
        assert_eq!(clash.header("content-type"), "application/yaml; charset=utf-8");
        let config: Value = serde_saphyr::from_str(&clash.text()).unwrap();
        assert_eq!(config["proxies"][1]["password"], secrets[1].as_str());
        assert_eq!(config["proxies"][1]["obfs-password"], "a long obfuscation password");

        let official = client.get(&format!("{path}/hysteria")).await.text();
        let config: Value = serde_saphyr::from_str(&official).unwrap();
        assert_eq!(config["server"], "ny.example.org:8080");
        assert_eq!(config["auth"], secrets[0].as_str());

        let qr = client.get(&format!("{path}/qr")).await;
        assert_eq!(qr.header("content-type"), "image/svg+xml");
        let info: Value = serde_json::from_str(&client.get(&format!("{path}/info")).await.text()).unwrap();
        assert_eq!((&info["status"], &info["servers"]), (&json!("active"), &json!(["ny", "fra"])));
        fleet.stop().await;
    }

    async fn a_change_shows_at_once_and_a_user_who_may_not_connect_gets_no_server(fleet) {
        let (user, path) = subscribed(&fleet).await;
        let owner = fleet.owner().await;
        let client = Client::new(fleet.public);
        let plain = format!("{path}/plain");
        assert_eq!(client.get(&plain).await.text().lines().count(), 2);
        let old = client.get(&plain).await.text();
        let rotate = format!("/api/v1/users/{user}/credentials/rotate");
        owner.post(&rotate, &Value::Null).await.expect(200);
        assert_ne!(client.get(&plain).await.text(), old);
        let user_path = format!("/api/v1/users/{user}");
        owner.patch(&user_path, &json!({"status": "disabled"})).await.expect(200);
        let answer = client.get(&plain).await;
        assert_eq!((answer.status, answer.text().as_str()), (200, ""));
        owner.patch(&user_path, &json!({"status": "active"})).await.expect(200);
        assert_eq!(client.get(&plain).await.text().lines().count(), 2);
        fleet.stop().await;
    }

    async fn a_node_that_is_to_be_empty_comes_last(fleet) {
        let (_, path) = subscribed(&fleet).await;
        let owner = fleet.owner().await;
        let client = Client::new(fleet.public);
        let order = async || {
            let info = client.get(&format!("{path}/info")).await.text();
            serde_json::from_str::<Value>(&info).unwrap()["servers"].take()
        };
        assert_eq!(order().await, json!(["ny", "fra"]));
        let list = owner.get("/api/v1/nodes").await.expect(200);
        let ny = list["items"].as_array().unwrap().iter().find(|node| node["name"] == "ny").unwrap();
        let state = format!("/api/v1/nodes/{}/state", ny["id"]);
        owner.put(&state, &json!({"state": "cordoned"})).await.expect(200);
        assert_eq!(order().await, json!(["fra", "ny"]));
        owner.put(&state, &json!({"state": "draining"})).await.expect(200);
        assert_eq!(order().await, json!(["fra"]));
        fleet.stop().await;
    }

    async fn a_node_whose_certificate_is_to_be_made_is_named_once_it_is_there(fleet) {
        let (_, path) = subscribed(&fleet).await;
        let owner = fleet.owner().await;
        let client = Client::new(fleet.public);
        let links = async || client.get(&format!("{path}/plain")).await.text();
        let list = owner.get("/api/v1/nodes").await.expect(200);
        let ny = list["items"].as_array().unwrap().iter().find(|node| node["name"] == "ny").unwrap();
        let node = NodeId(ny["id"].as_i64().unwrap());
        let made = fleet.master.store().node_tls(node).await.unwrap().unwrap();
        // Another host takes another certificate, which the next publication makes.
        let moved = json!({"public_host": "ny2.example.org"});
        owner.patch(&format!("/api/v1/nodes/{node}"), &moved).await.expect(200);
        let without = links().await;
        assert!(without.lines().count() == 1 && without.contains("#fra"), "{without}");
        let mut tx = fleet.master.store().begin().await.unwrap();
        let made = published::NodeTlsRow { host: "ny2.example.org".to_owned(), sha256: vec![9; 32], ..made };
        published::insert_node_tls(&mut tx, &made, fleet.clock.now()).await.unwrap();
        tx.commit().await.unwrap();
        let uris: Vec<ShareUri> = links().await.lines().map(|line| line.parse().unwrap()).collect();
        assert_eq!(uris[0].pin_sha256, Some("09".repeat(32)));
        assert_eq!(uris[1].pin_sha256, Some("07".repeat(32)));
        fleet.stop().await;
    }

    async fn a_node_that_lags_is_named_with_the_obfuscation_that_it_has(fleet) {
        let (user, path) = subscribed(&fleet).await;
        let owner = fleet.owner().await;
        let client = Client::new(fleet.public);
        let store = fleet.master.store();
        let named = async || -> Vec<Option<Obfs>> {
            let links = client.get(&format!("{path}/plain")).await.text();
            links.lines().map(|line| line.parse::<ShareUri>().unwrap().obfs).collect()
        };
        let list = owner.get("/api/v1/nodes").await.expect(200);
        let catch_up = async |name: &str| {
            let node = list["items"].as_array().unwrap().iter().find(|node| node["name"] == name).unwrap();
            let node = store.node(NodeId(node["id"].as_i64().unwrap())).await.unwrap();
            let (rev, epoch) = (node.desired_rev, node.applied_epoch);
            store.note_applied(node.id, node.owner_epoch, rev, epoch, fleet.clock.now()).await.unwrap();
        };
        catch_up("ny").await;
        catch_up("fra").await;
        let obfs = |password: &str| Some(Obfs::Salamander(password.to_owned()));
        let (old, new) = (obfs("a long obfuscation password"), obfs("another obfuscation password"));
        assert_eq!(named().await, [old.clone(), old.clone()]);
        // What was before the first is over.
        fleet.clock.advance(Duration::from_secs(86_401));
        let owner = fleet.owner().await;
        let body = json!({"body": {"obfs": {"salamander": {"password": "another obfuscation password"}}}});
        owner.put("/api/v1/configs/fleet/0", &body).await.expect(200);
        // Neither is known to have it, and for a day both accept the old one when they do.
        assert_eq!(named().await, [old.clone(), old.clone()]);
        catch_up("ny").await;
        assert_eq!(named().await, [new.clone(), old]);
        fleet.clock.advance(Duration::from_secs(86_401));
        // An answer is kept for some minutes, of a user who does not change.
        let owner = fleet.owner().await;
        let note = json!({"note": "another answer"});
        owner.patch(&format!("/api/v1/users/{user}"), &note).await.expect(200);
        assert_eq!(named().await, [new.clone(), new]);
        fleet.stop().await;
    }

    async fn clients_are_sent_to_no_port_that_a_node_stops_listening_at(fleet) {
        let owner = fleet.owner().await;
        let node = fleet.node("ny").await;
        let (path, body) = (format!("/api/v1/nodes/{node}"), format!("/api/v1/configs/node/{node}"));
        let port = owner.get(&path).await.expect(200)["listen_port"].as_i64().unwrap();
        let listen = |ports: &[i64]| {
            let ports: Vec<_> = ports.iter().map(|port| format!(":{port}")).collect();
            json!({"body": {"listen": ports}})
        };
        let refused = async |change: &Value| owner.put(&body, change).await.expect(422);
        let move_to = async |port: i64| owner.patch(&path, &json!({"listen_port": port})).await;
        // Without addresses it listens at the port, whichever it is.
        move_to(port + 1).await.expect(200);
        move_to(port).await.expect(200);
        let problem = refused(&listen(&[port + 1])).await;
        assert_eq!(problem["errors"][0]["path"], "body.listen", "{problem}");
        // Step by step.
        owner.put(&body, &listen(&[port, port + 1])).await.expect(200);
        let problem = move_to(port + 2).await.expect(422);
        assert_eq!(problem["errors"][0]["path"], "listen_port", "{problem}");
        move_to(port + 1).await.expect(200);
        owner.put(&body, &listen(&[port + 1])).await.expect(200);
        // For all nodes, of which one has a port of its own.
        let fleets = json!({"body": {"listen": [":1"]}});
        owner.put("/api/v1/configs/fleet/0", &fleets).await.expect(200);
        refused(&json!({"body": {}})).await;
        // What something in front of a node sends elsewhere is left alone.
        let other = fleet.node("fra").await;
        let other = format!("/api/v1/configs/node/{other}");
        owner.put(&other, &listen(&[2])).await.expect(200);
        fleet.stop().await;
    }

    async fn everything_unknown_gets_the_same_answer(fleet) {
        let (user, path) = subscribed(&fleet).await;
        let owner = fleet.owner().await;
        let rotate = format!("/api/v1/users/{user}/subscription/rotate");
        let url = owner.post(&rotate, &Value::Null).await.expect(200)["url"].clone();
        let fresh = url.as_str().unwrap().strip_prefix("https://sub.example.org").unwrap().to_owned();
        let client = Client::new(fleet.public);
        assert_eq!(client.get(&fresh).await.status, 200);
        let mut answers = Vec::new();
        for path in [
            path.clone(),
            format!("{fresh}/no-such-format"),
            "/sub/AAAAAAAAAAAAAAAAAAAAAA".to_owned(),
            "/sub/x".to_owned(),
            format!("/sub/{}", "y".repeat(2_000)),
            "/sub/%00%ff".to_owned(),
            "/sub/'%20or%201=1".to_owned(),
            "/sub/..%2f..%2fetc".to_owned(),
            "/".to_owned(),
        ] {
            let answer = client.get(&path).await;
            let mut headers: Vec<_> = answer.headers.keys().map(ToString::to_string).collect();
            headers.sort();
            answers.push((answer.status, answer.text(), headers));
        }
        let first = answers[0].clone();
        assert_eq!(first.0, 404);
        for (at, answer) in answers.iter().enumerate() {
            assert_eq!(answer, &first, "{at}");
        }
        owner.delete(&format!("/api/v1/users/{user}")).await.expect(204);
        assert_eq!(client.get(&fresh).await.text(), first.1);
        fleet.stop().await;
    }

    async fn one_address_asks_thirty_times_an_hour(fleet) {
        let client = Client::new(fleet.public).with("x-forwarded-for", "198.51.100.20");
        for _ in 0..30 {
            assert_eq!(client.get("/sub/AAAAAAAAAAAAAAAAAAAAAA").await.status, 404);
        }
        let limited = client.get("/sub/AAAAAAAAAAAAAAAAAAAAAA").await;
        assert_eq!(limited.status, 429);
        assert!(limited.header("retry-after").parse::<u64>().unwrap() > 0);
        let other = client.with("x-forwarded-for", "198.51.100.21");
        assert_eq!(other.get("/sub/AAAAAAAAAAAAAAAAAAAAAA").await.status, 404);
        fleet.stop().await;
    }
}
