//! What nodes accept when their obfuscation changes, whichever scope the change comes from.

use std::time::Duration;

use hy2_master_sdk::domain::NodeId;
use hy2_master_sdk::domain::config::{self, ConfigBody};
use hy2_master_sdk::secrets::Vault;
use hy2_master_sdk::store::{nodes, published};
use hy2_proto::control::rpc as pb;
use hy2_proto::control::rpc::admin_service_client::AdminServiceClient;
use serde_json::{Value, json};
use tonic::Request;
use tonic::transport::Endpoint;

use crate::harness::{Client, Fleet, on_both};
use crate::regions::{node_in, paths, region};

const FLEET: &str = "/api/v1/configs/fleet/0";
/// A day after the tests' clock begins.
const DAY: i64 = 1_800_086_400_000;

fn salamander(letter: char) -> Value {
    json!({"salamander": {"password": letter.to_string().repeat(16)}})
}

fn gecko(letter: char) -> Value {
    json!({"gecko": {"password": letter.to_string().repeat(16), "min_packet_size": 600, "max_packet_size": 1000}})
}

fn of_region(region: i64) -> String {
    format!("/api/v1/configs/region/{region}")
}

fn of_node(node: i64) -> String {
    format!("/api/v1/configs/node/{node}")
}

async fn put(client: &Client, path: &str, body: Value) -> Value {
    let answer = client.put(path, &json!({"body": body})).await;
    answer.expect(200)["body"].clone()
}

/// Returns the obfuscation that a node runs with, the one that it accepts beside, and until when.
async fn accepted(fleet: &Fleet, node: i64) -> (Value, Option<(Value, i64)>) {
    let mut tx = fleet.master.store().begin().await.unwrap();
    let node = nodes::get(&mut tx, NodeId(node)).await.unwrap();
    let mut merged = json!({});
    for body in published::configs_of(&mut tx, node.id, node.region_id)
        .await
        .unwrap()
    {
        config::merge(&mut merged, &body);
    }
    tx.rollback().await.unwrap();
    config::open(&Vault::new(fleet.keys.clone()), &mut merged).unwrap();
    let body = ConfigBody::parse(merged).unwrap();
    let value = |obfs| serde_json::to_value(obfs).unwrap();
    let previous = body.previous_obfs;
    (
        value(body.obfs),
        previous.map(|previous| (value(previous.obfs), previous.until.0)),
    )
}

on_both! {
    async fn a_node_leaves_what_its_region_gave_it_for_a_day(fleet) {
        let owner = fleet.owner().await;
        let east = region(&owner, "us-east").await;
        put(&owner, FLEET, json!({"obfs": gecko('f')})).await;
        put(&owner, &of_region(east), json!({"obfs": salamander('r')})).await;
        let node = node_in(&fleet, &owner, "ny", east).await;
        // It came from the fleet's, and that is over.
        fleet.clock.advance(Duration::from_secs(86_400));
        let owner = fleet.owner().await;
        put(&owner, &of_node(node), json!({"obfs": salamander('n')})).await;
        let kept = Some((salamander('r'), DAY + 86_400_000));
        assert_eq!(accepted(&fleet, node).await, (salamander('n'), kept));
        // And back to the region's: both of them still.
        put(&owner, &of_node(node), json!({})).await;
        let kept = Some((salamander('n'), DAY + 86_400_000));
        assert_eq!(accepted(&fleet, node).await, (salamander('r'), kept));
        fleet.stop().await;
    }

    async fn a_change_of_the_fleet_reaches_nodes_behind_windows_that_are_over(fleet) {
        let owner = fleet.owner().await;
        let east = region(&owner, "us-east").await;
        put(&owner, FLEET, json!({"obfs": gecko('f')})).await;
        let (there, here) = (node_in(&fleet, &owner, "e1", east).await, fleet.node("n1").await.0);
        put(&owner, &of_region(east), json!({"obfs": salamander('r')})).await;
        put(&owner, &of_node(here), json!({"obfs": salamander('n')})).await;
        for days in 1..=2 {
            fleet.clock.advance(Duration::from_secs(86_400));
            let owner = fleet.owner().await;
            let end = DAY + days * 86_400_000;
            if days == 1 {
                put(&owner, &of_region(east), json!({})).await;
                put(&owner, &of_node(here), json!({})).await;
                assert_eq!(accepted(&fleet, here).await, (gecko('f'), Some((salamander('n'), end))));
            } else {
                put(&owner, FLEET, json!({"obfs": gecko('g')})).await;
                for node in [there, here] {
                    assert_eq!(accepted(&fleet, node).await, (gecko('g'), Some((gecko('f'), end))));
                }
                // Nothing is left of theirs.
                for path in [of_region(east), of_node(here)] {
                    assert_eq!(owner.get(&path).await.expect(200)["body"], json!({}));
                }
            }
        }
        fleet.stop().await;
    }

    async fn a_node_that_goes_to_another_region_accepts_what_it_had_for_a_day(fleet) {
        let owner = fleet.owner().await;
        let (east, west) = (region(&owner, "us-east").await, region(&owner, "us-west").await);
        put(&owner, &of_region(east), json!({"obfs": gecko('e')})).await;
        put(&owner, &of_region(west), json!({"obfs": salamander('w')})).await;
        let node = fleet.node("ny").await;
        let path = format!("/api/v1/nodes/{node}");
        let moved = owner.patch(&path, &json!({"region_id": east})).await.expect(200);
        assert_eq!(accepted(&fleet, node.0).await, (gecko('e'), Some((Value::Null, DAY))));
        // What is answered is what there is, revision and all.
        assert_eq!(owner.get(&path).await.expect(200), moved);
        let written = owner.get(&of_node(node.0)).await.expect(200);
        assert_eq!(written["message"], "previous_obfs, after the move to another region");
        // Twice within a day is once too often, but for the way back.
        let refused = owner.patch(&path, &json!({"region_id": west})).await.expect(422);
        assert_eq!(paths(&refused), ["region_id"], "{refused}");
        let said = refused["errors"][0]["message"].as_str().unwrap();
        assert!(said.contains("until 2027-01-16T08:00:00Z"), "{said}");
        owner.patch(&path, &json!({"region_id": null})).await.expect(200);
        assert_eq!(accepted(&fleet, node.0).await, (Value::Null, Some((gecko('e'), DAY))));
        owner.patch(&path, &json!({"region_id": east})).await.expect(200);
        fleet.clock.advance(Duration::from_secs(86_400));
        let owner = fleet.owner().await;

        let endpoint = Endpoint::from_shared(format!("http://{}", fleet.api)).unwrap();
        let mut grpc = AdminServiceClient::new(endpoint.connect().await.unwrap());
        let mut ask = Request::new(pb::UpdateNodeRequest {
            id: node.0.unsigned_abs(),
            region: Some("us-west".into()),
            ..Default::default()
        });
        let token = owner.headers["authorization"].parse().unwrap();
        ask.metadata_mut().insert("authorization", token);
        grpc.update_node(ask).await.unwrap();
        let kept = Some((gecko('e'), DAY + 86_400_000));
        assert_eq!(accepted(&fleet, node.0).await, (salamander('w'), kept.clone()));
        // What is said of the node otherwise changes nothing of that.
        owner.patch(&path, &json!({"note": "n", "region_id": west})).await.expect(200);
        assert_eq!(accepted(&fleet, node.0).await, (salamander('w'), kept));
        fleet.stop().await;
    }

    async fn a_third_obfuscation_within_a_day_is_refused_unless_the_body_says_which_one_goes(fleet) {
        let owner = fleet.owner().await;
        put(&owner, FLEET, json!({"obfs": salamander('w')})).await;
        let node = fleet.node("ny").await.0;
        put(&owner, FLEET, json!({"obfs": salamander('x')})).await;
        let open = (salamander('x'), Some((salamander('w'), DAY)));
        assert_eq!(accepted(&fleet, node).await, open);
        let third = json!({"body": {"obfs": salamander('y')}});
        for path in [FLEET.to_owned(), of_node(node)] {
            let refused = owner.put(&path, &third).await.expect(422);
            assert_eq!(paths(&refused), ["body.obfs"], "{refused}");
            let said = refused["errors"][0]["message"].as_str().unwrap();
            assert!(said.contains("until 2027-01-16T08:00:00Z") && said.contains("previous_obfs"), "{said}");
        }
        let dry = json!({"body": {"obfs": salamander('y')}, "dry_run": true});
        owner.put(FLEET, &dry).await.expect(422);
        // A window that comes back as it was read is no decision on this change.
        let mut read = owner.get(FLEET).await.expect(200)["body"].clone();
        read["obfs"] = salamander('y');
        owner.put(FLEET, &json!({"body": read})).await.expect(422);
        assert_eq!(accepted(&fleet, node).await, open, "nothing has changed");

        // Back, by a body and by a rollback: both are accepted all the time.
        let first = put(&owner, FLEET, json!({"obfs": salamander('w')})).await;
        assert_eq!(first["previous_obfs"]["until"], DAY);
        assert_eq!(accepted(&fleet, node).await, (salamander('w'), Some((salamander('x'), DAY))));
        let listed = owner.get(&format!("{FLEET}/revisions")).await.expect(200);
        let before = listed["items"][1]["id"].clone();
        owner.post(&format!("/api/v1/revisions/{before}/rollback"), &Value::Null).await.expect(200);
        assert_eq!(accepted(&fleet, node).await, open);
        // What is said counts.
        let said = json!({"obfs": salamander('y'), "previous_obfs": {"obfs": salamander('x'), "until": DAY + 1}});
        put(&owner, FLEET, said).await;
        assert_eq!(accepted(&fleet, node).await, (salamander('y'), Some((salamander('x'), DAY + 1))));
        let refused = owner.post(&format!("/api/v1/revisions/{before}/rollback"), &Value::Null).await;
        refused.expect(200);
        let third = listed["items"][0]["id"].clone();
        let refused = owner.post(&format!("/api/v1/revisions/{third}/rollback"), &Value::Null).await.expect(422);
        assert_eq!(paths(&refused), ["obfs"]);
        put(&owner, FLEET, json!({"obfs": salamander('z'), "previous_obfs": null})).await;
        assert_eq!(accepted(&fleet, node).await, (salamander('z'), None));
        put(&owner, FLEET, json!({"obfs": salamander('a')})).await;
        fleet.clock.advance(Duration::from_secs(86_400));
        let owner = fleet.owner().await;
        // After a day the window may come along: it is over.
        let mut read = owner.get(FLEET).await.expect(200)["body"].clone();
        read["obfs"] = salamander('b');
        put(&owner, FLEET, read).await;
        let kept = Some((salamander('a'), DAY + 86_400_000));
        assert_eq!(accepted(&fleet, node).await, (salamander('b'), kept));
        fleet.stop().await;
    }

    async fn a_node_with_its_own_changes_it_whatever_the_fleet_did(fleet) {
        let owner = fleet.owner().await;
        put(&owner, FLEET, json!({"obfs": salamander('f')})).await;
        let node = fleet.node("ny").await.0;
        put(&owner, &of_node(node), json!({"obfs": gecko('n')})).await;
        fleet.clock.advance(Duration::from_secs(86_400));
        let owner = fleet.owner().await;
        put(&owner, FLEET, json!({"obfs": salamander('g')})).await;
        put(&owner, FLEET, json!({"obfs": salamander('h')})).await;
        put(&owner, &of_node(node), json!({"obfs": gecko('m')})).await;
        let kept = Some((gecko('n'), DAY + 86_400_000));
        assert_eq!(accepted(&fleet, node).await, (gecko('m'), kept));
        fleet.stop().await;
    }

    async fn scopes_may_have_different_kinds(fleet) {
        let owner = fleet.owner().await;
        let east = region(&owner, "us-east").await;
        put(&owner, FLEET, json!({"obfs": gecko('f')})).await;
        let node = node_in(&fleet, &owner, "ny", east).await;
        put(&owner, FLEET, json!({"obfs": salamander('f')})).await;
        // Back to what is still accepted, by the region and by the node: nothing is dropped.
        for path in [of_region(east), of_node(node)] {
            put(&owner, &path, json!({"obfs": gecko('f')})).await;
            assert_eq!(accepted(&fleet, node).await, (gecko('f'), Some((salamander('f'), DAY))));
            put(&owner, &path, json!({})).await;
            assert_eq!(accepted(&fleet, node).await, (salamander('f'), Some((gecko('f'), DAY))));
        }
        let window = json!({"obfs": salamander('r'), "previous_obfs": {"obfs": salamander('f'), "until": DAY}});
        put(&owner, &of_region(east), window).await;
        put(&owner, FLEET, json!({"obfs": gecko('g')})).await;
        assert_eq!(accepted(&fleet, node).await, (salamander('r'), Some((salamander('f'), DAY))));
        for (field, one, other) in [
            ("masquerade", json!({"file": {"directory": "/srv"}}), json!({"proxy": {"url": "https://a.example"}})),
            ("tls", json!({"files": {"certificate": "/c", "key": "/k"}}), json!("issued")),
        ] {
            put(&owner, &of_region(east), json!({"obfs": salamander('r'), field: one})).await;
            put(&owner, &of_node(node), json!({field: other})).await;
        }
        // A plain window of the node's own is plain.
        let plain = json!({"obfs": null, "previous_obfs": {"until": DAY}});
        put(&owner, &of_node(node), plain).await;
        assert_eq!(accepted(&fleet, node).await, (Value::Null, Some((Value::Null, DAY))));
        fleet.stop().await;
    }
}
