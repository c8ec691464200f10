//! Alerts, over REST.

use hy2_master_sdk::domain::NodeId;
use serde_json::{Value, json};

use crate::harness::{Fleet, START, on_both};

async fn raise(fleet: &Fleet, node: NodeId, rule: &str, severity: &str) {
    let store = fleet.master.store();
    let raised = store.raise_alert(node, rule, severity, "look at it", START);
    raised.await.unwrap();
}

on_both! {
    async fn alerts_are_listed_counted_and_closed_by_hand(fleet) {
        let owner = fleet.owner().await;
        let (one, two) = (fleet.node("one").await, fleet.node("two").await);
        raise(&fleet, one, "clock_skew", "warning").await;
        raise(&fleet, one, "traffic_gap", "critical").await;
        raise(&fleet, two, "clock_skew", "warning").await;
        let listed = async |query: &str| {
            let mut found = Vec::new();
            let mut path = format!("/api/v1/alerts?size=2{query}");
            loop {
                let page = owner.get(&path).await.expect(200);
                found.extend(page["items"].as_array().unwrap().iter().cloned());
                match page["next"].as_str() {
                    Some(next) => path = format!("/api/v1/alerts?size=2{query}&after={next}"),
                    None => return found,
                }
            }
        };
        assert_eq!(listed("").await.len(), 3);
        let of_one = listed(&format!("&node_id={one}&open=true")).await;
        assert_eq!(of_one.len(), 2);
        let gap = of_one.iter().find(|alert| alert["rule"] == "traffic_gap").unwrap();
        assert_eq!(
            (&gap["node_id"], &gap["severity"], &gap["message"], &gap["closed_at"]),
            (&json!(one.0), &json!("critical"), &json!("look at it"), &Value::Null)
        );
        let counts = async || {
            let page = owner.get("/api/v1/nodes").await.expect(200);
            let nodes = page["items"].as_array().unwrap().clone();
            nodes.iter().map(|node| node["open_alerts"].as_i64()).collect::<Vec<_>>()
        };
        assert_eq!(counts().await, [Some(2), Some(1)]);
        assert_eq!(owner.get(&format!("/api/v1/nodes/{one}")).await.expect(200)["open_alerts"], 2);

        let path = format!("/api/v1/alerts/{}/close", gap["id"].as_str().unwrap());
        let closed = owner.send("POST", &path, None).await.expect(200);
        assert!(closed["closed_at"].is_string(), "{closed}");
        // Once more changes nothing.
        assert_eq!(owner.send("POST", &path, None).await.expect(200), closed);
        assert_eq!(listed("&open=false").await, [closed]);
        assert_eq!(listed("&open=true").await.len(), 2);
        assert_eq!(counts().await, [Some(1), Some(1)]);
        let nobody = "/api/v1/alerts/00000000-0000-0000-0000-000000000000/close";
        assert_eq!(owner.send("POST", nobody, None).await.problem(404), "not_found");
        let entries = fleet
            .until("the audit log has it", || async {
                let page = owner.get("/api/v1/audit?action=close_alert").await.expect(200);
                page["items"].as_array().filter(|items| !items.is_empty()).cloned()
            })
            .await;
        assert_eq!((entries.len(), &entries[0]["before"]["rule"]), (1, &json!("traffic_gap")));
        fleet.stop().await;
    }
}
