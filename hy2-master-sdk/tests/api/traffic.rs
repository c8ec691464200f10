//! Traffic as it is asked for.

use serde_json::{Value, json};

use crate::harness::on_both;

on_both! {
    async fn what_is_not_kept_is_refused_with_the_reason(fleet) {
        let owner = fleet.owner().await;
        let node = fleet.node("ny").await;
        let user = owner.post("/api/v1/users", &json!({"username": "ann"})).await.expect(201)["id"].clone();
        let ask = async |path: &str| {
            let answer = owner.get(&format!("/api/v1/traffic/{path}")).await;
            match answer.status {
                200 => String::new(),
                _ => {
                    let body: Value = answer.expect(422);
                    assert_eq!(body["errors"][0]["path"], "from", "{body}");
                    body["errors"][0]["message"].as_str().unwrap().to_owned()
                }
            }
        };
        // The clock stands at 2027-01-15 08:00; 90 days before that is 2026-10-17 08:00.
        let (kept, gone) = ("from=2026-10-17T08:00:00Z", "from=2026-10-17T07:00:00Z");
        let year = "from=2026-01-01T00:00:00Z";
        assert_eq!(ask(&format!("series?{kept}")).await, "");
        assert_eq!(ask(&format!("series?{gone}")).await, "hours are kept 90 days; ask by day for more");
        for path in ["series?step=day&", "summary?", "top?"] {
            let both = format!("{path}user_id={user}&node_id={node}&");
            assert_eq!(ask(&format!("{path}{kept}")).await, "");
            assert_eq!(ask(&format!("{both}{kept}")).await, "");
            assert_eq!(ask(&format!("{path}{year}")).await, "");
            let midnight = "hours are kept 90 days; before that let it begin and end at a midnight (UTC)";
            assert_eq!(ask(&format!("{path}{gone}")).await, midnight);
            let why = ask(&format!("{both}{year}")).await;
            assert!(why.ends_with("not those of users through a node"), "{why}");
            let long_ago = format!("{path}from=2024-06-01T00:00:00Z&to=2025-06-01T00:00:00Z");
            assert_eq!(ask(&long_ago).await, "days are kept 730 days");
        }
        assert_eq!(ask(&format!("series?step=day&node_id={node}&{year}")).await, "");
        assert!(!ask(&format!("top?node_id={node}&{year}")).await.is_empty());
        fleet.stop().await;
    }
}
