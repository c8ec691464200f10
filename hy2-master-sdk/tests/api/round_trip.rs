//! What leaves as an export comes back as it was, whatever it is.

use serde_json::{Value, json};

use crate::harness::on_both;

/// Notes and tags as somebody may write them.
const ODD: &[&str] = &[
    "'tis",
    "'",
    "''",
    "'=x",
    "''+x",
    "=1+1",
    "+1",
    "-1",
    "@a",
    " @a",
    "\tx",
    "\rx",
    "'\tx",
    " outer ",
    "  ",
    "\n",
    "line\nline\r\nline\r",
    "say \"so\", he said",
    "\"",
    "a;b",
    ";",
    "\\",
    "\\;",
    "a\\;b\\\\",
    "\\'",
    "\u{a0}wide\u{a0}",
    "\u{feff}mark",
    "نام",
];

fn kept(user: &Value) -> Vec<Value> {
    let fields = [
        "username",
        "note",
        "tags",
        "email",
        "telegram_id",
        "quota_bytes",
    ];
    fields.map(|field| user[field].clone()).into()
}

on_both! {
    async fn odd_texts_come_back_from_either_format(fleet) {
        let owner = fleet.owner().await;
        let mut made = Vec::new();
        let mut tag_lists: Vec<Vec<&str>> = ODD.iter().map(|text| vec![*text]).collect();
        tag_lists.extend(ODD.windows(3).map(<[&str]>::to_vec));
        tag_lists.push(ODD.to_vec());
        for (at, tags) in tag_lists.iter().enumerate() {
            let name = format!("{}{at}", ["-u", "@u", "u", ".u"][at % 4]);
            let note = ODD[at % ODD.len()];
            let new = json!({
                "username": name, "note": note, "tags": tags, "email": "=a@example.org",
                "telegram_id": -5, "quota_bytes": 7,
            });
            let answer = owner.post("/api/v1/users", &new).await.expect(201);
            made.push(kept(&answer));
        }
        for format in ["csv", "json"] {
            let text = owner.get(&format!("/api/v1/users:export?format={format}")).await.text();
            let page = owner.get("/api/v1/users?size=500").await.expect(200);
            let ids: Vec<_> = page["items"].as_array().unwrap().iter().map(|user| user["id"].clone()).collect();
            assert_eq!(ids.len(), made.len());
            let delete = json!({"ids": ids, "action": "delete"});
            owner.post("/api/v1/users:batch", &delete).await.expect(200);
            let back = json!({"format": format, "data": text});
            let report = owner.post("/api/v1/users:import", &back).await.expect(200);
            assert_eq!(report["created"], made.len(), "{report}");
            let page = owner.get("/api/v1/users?size=500").await.expect(200);
            let users: Vec<_> = page["items"].as_array().unwrap().iter().map(kept).collect();
            for (user, made) in users.iter().zip(&made) {
                assert_eq!(user, made, "{format}");
            }
        }
        let spaced = json!({"username": "v", "email": " ann@example.org"});
        owner.post("/api/v1/users", &spaced).await.problem(422);
        fleet.stop().await;
    }
}
