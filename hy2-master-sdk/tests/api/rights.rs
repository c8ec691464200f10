//! Who may do what: every role, every route of the committed document, one's own and others' objects, over REST and over
//! AdminService, against a table that is written down here and nowhere else.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hy2_master_sdk::auth::access::{Operation, Role};
use hy2_master_sdk::domain::NodeId;
use hy2_master_sdk::store::alerts;
use hy2_proto::control::rpc as pb;
use hy2_proto::control::rpc::admin_service_client::AdminServiceClient;
use prost::Message;
use serde_json::{Value, json};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use uuid::Uuid;

use crate::harness::{Answer, Client, Fleet, OWN_PASSWORD, START, on_both};

/// Of each operation what owner, operator, support, reseller and auditor may: with anybody's objects (`A`), with their own
/// (`O`), nothing (`-`). A route without a line here fails the tests below.
const RIGHTS: &str = "
    get_me OOOOO                    logout OOOOO                    change_password OOOOO
    begin_totp OOOOO                confirm_totp OOOOO              disable_totp OOOOO
    list_my_sessions OOOOO          revoke_my_session OOOOO
    list_api_tokens AOOOO           create_api_token OOOOO          revoke_api_token AOOOO

    list_nodes AAA-A                get_node AAA-A                  update_node AA---
    delete_node AA---               set_node_state AA---            get_node_metrics AAA-A
    list_node_sessions AAA--        get_node_logs AA---             list_node_certificates AA--A
    forfeit_node AA---              list_alerts AAA-A               close_alert AA---
    revoke_node_certificates AA---
    list_node_pools AAA-A           create_node_pool AA---          update_node_pool AA---
    delete_node_pool AA---           get_node_pool AAA-A
    list_regions AAAAA              get_region AAAAA                create_region AA---
    update_region AA---             delete_region AA---
    list_enrolment_tokens AA--A     create_enrolment_token AA---    revoke_enrolment_token AA---

    list_users AAAOA                get_user AAAOA                  create_user AA-O-
    update_user AA-O-               delete_user AA-O-               batch_users AA-O-
    import_users AA-O-              export_users AA-O-              get_user_traffic AAAOA
    list_user_sessions AAAO-        list_user_assignments AAAOA     get_user_subscription AAAO-
    rotate_user_subscription AAAO-  rotate_user_credentials AA-O-   reset_user_traffic AAAO-
    kick_user AAAO-                 set_user_rate AAAO-

    list_plans AAAAA                get_plan AAAAA                  create_plan AA---
    update_plan AA---               delete_plan AA---               get_plan_pools AAA-A
    set_plan_pools AA---
    list_assignments AAAOA          assign_user AA---               release_user AA---
    get_traffic AAAOA               get_traffic_series AAAOA        get_traffic_top AAAOA

    get_config AA---                put_config AA---                list_revisions AA--A
    get_revision AA---              diff_revisions AA---            rollback_config AA---

    list_admins A---A               get_admin A---A                 create_admin A----
    update_admin A----              delete_admin A----
    list_audit A---A                verify_audit A---A              watch_events AAA-A
    list_webhooks AA--A             get_webhook AA--A               create_webhook AA---
    update_webhook AA---            delete_webhook AA---            list_webhook_deliveries AA--A
    rotate_webhook AA---            retry_webhook_delivery AA---
    list_settings AA--A             get_setting AA--A               put_setting A----
    create_backup A----             get_openapi AAAAA               get_metrics AA--A
";

/// Routes that are no JSON resources and not in the document, and whom they ask.
const UNDOCUMENTED: &[(&str, Option<&str>)] = &[
    ("/api/v1/events", Some("watch_events")),
    ("/api/v1/events/ws", Some("watch_events")),
    ("/api/v1/openapi.json", Some("get_openapi")),
    ("/metrics", Some("get_metrics")),
    ("/healthz", None),
    ("/readyz", None),
];

/// Routes that give a credential, or say no.
const PUBLIC: &[&str] = &["login", "refresh"];

fn rights() -> BTreeMap<&'static str, &'static str> {
    let mut words = RIGHTS.split_whitespace();
    let mut rights = BTreeMap::new();
    while let (Some(name), Some(grants)) = (words.next(), words.next()) {
        assert!(
            grants.len() == 5 && grants.chars().all(|grant| "AO-".contains(grant)),
            "{name} {grants}"
        );
        assert!(rights.insert(name, grants).is_none(), "{name} twice");
    }
    rights
}

fn grant(rights: &BTreeMap<&str, &str>, name: &str, role: Role) -> char {
    let grants = rights
        .get(name)
        .unwrap_or_else(|| panic!("{name} has no line in RIGHTS"));
    char::from(grants.as_bytes()[role as usize])
}

/// Method, path and name of every operation of the committed document.
fn documented() -> Vec<(String, String, String)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi.json");
    let document: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let mut all = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let name = operation["operationId"].as_str().unwrap();
            all.push((method.to_uppercase(), path.clone(), name.to_owned()));
        }
    }
    all
}

#[test]
fn every_route_and_every_operation_has_its_line_and_no_line_is_left_over() {
    let rights = rights();
    let mut routed: BTreeSet<String> = documented().into_iter().map(|(_, _, name)| name).collect();
    for name in PUBLIC {
        assert!(routed.remove(*name), "{name}");
        assert!(!rights.contains_key(name), "{name}");
    }
    routed.extend(
        UNDOCUMENTED
            .iter()
            .filter_map(|(_, name)| name.map(str::to_owned)),
    );
    let lines: BTreeSet<String> = rights.keys().map(ToString::to_string).collect();
    assert_eq!(lines, routed, "lines left, routes right");
    let operations: BTreeSet<String> = Operation::ALL
        .iter()
        .map(|operation| operation.name().to_owned())
        .collect();
    assert_eq!(lines, operations, "lines left, operations right");
}

#[test]
fn no_route_is_added_beside_the_document_unseen() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/api");
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let Ok(text) = std::fs::read_to_string(&path) else {
            continue;
        };
        // `.route("/path", ..)`, whatever stands between.
        for part in text.split(".route(").skip(1) {
            let path = part.split('"').nth(1).unwrap_or_default();
            found.insert(path.to_owned());
        }
        for other in [".nest(", ".route_service(", ".fallback_service("] {
            let allowed = path.ends_with("openapi.rs") && other == ".nest(";
            assert!(
                allowed || !text.contains(other),
                "{} {other}",
                path.display()
            );
        }
    }
    let known: BTreeSet<String> = UNDOCUMENTED
        .iter()
        .map(|(path, _)| (*path).to_owned())
        .collect();
    assert_eq!(found, known);
}

/// Asks again for as long as the credential's limit of requests says so: it is real time, and a fast machine meets it.
async fn patiently(ask: impl AsyncFn() -> Answer) -> Answer {
    loop {
        let answer = ask().await;
        if answer.status != 429 {
            return answer;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Whose the object is that is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Whose {
    Own,
    Others,
}

/// What a request needs: objects that are there, one's own or somebody else's.
struct World<'a> {
    fleet: &'a Fleet,
    owner: Client,
    /// Whose others' objects are.
    stranger: Client,
    next: Cell<u32>,
}

impl<'a> World<'a> {
    async fn new(fleet: &'a Fleet) -> Self {
        Self {
            owner: fleet.owner().await,
            stranger: fleet.as_role("stranger", "reseller").await,
            fleet,
            next: Cell::new(0),
        }
    }

    /// A name that nothing has.
    fn name(&self, of: &str) -> String {
        self.next.set(self.next.get() + 1);
        format!("{of}-{}", self.next.get())
    }

    async fn actors(&self) -> Vec<(Role, Client)> {
        let mut actors = Vec::new();
        for role in Role::ALL {
            let name = format!("an-{}", role.as_str());
            actors.push((role, self.fleet.as_role(&name, role.as_str()).await));
        }
        actors
    }

    async fn made(&self, by: &Client, path: &str, body: Value) -> Value {
        patiently(async || by.post(&format!("/api/v1{path}"), &body).await)
            .await
            .expect(201)
    }

    async fn user(&self, of: &Client) -> i64 {
        let user = json!({"username": self.name("user")});
        self.made(of, "/users", user).await["id"].as_i64().unwrap()
    }

    async fn node(&self) -> i64 {
        self.fleet.node(&self.name("node")).await.0
    }

    async fn region(&self) -> i64 {
        let region = json!({"code": self.name("region"), "name": "a region"});
        let made = self.made(&self.owner, "/regions", region).await;
        made["id"].as_i64().unwrap()
    }

    /// Makes a webhook with a delivery.
    async fn delivery(&self) -> (String, String) {
        let hook = json!({"url": "http://127.0.0.1:9/", "topics": ["region.created"]});
        let hook = self.made(&self.owner, "/webhooks", hook).await;
        let hook = hook["id"].as_str().unwrap().to_owned();
        self.region().await;
        let list = format!("/api/v1/webhooks/{hook}/deliveries");
        let delivery = self
            .fleet
            .until("there is a delivery", async || {
                let page = patiently(async || self.owner.get(&list).await).await;
                let id = page.expect(200)["items"][0]["id"].clone();
                id.as_str().map(str::to_owned)
            })
            .await;
        // No more of it than this one.
        let off = json!({"enabled": false});
        let at = format!("/api/v1/webhooks/{hook}");
        patiently(async || self.owner.patch(&at, &off).await)
            .await
            .expect(200);
        (hook, delivery)
    }

    /// Makes what an operation is about, and says how it is asked for.
    async fn request(&self, name: &str, path: &str, of: &Client) -> (String, Option<Value>) {
        let owner = &self.owner;
        let id = |value: Value| match &value["id"] {
            Value::String(text) => text.clone(),
            number => number.to_string(),
        };
        let mut path = path.to_owned();
        let put = |path: &mut String, what: &str, value: String| {
            assert!(path.contains(what), "{path} {what}");
            *path = path.replace(what, &value);
        };
        if path.contains("/users/{id}") {
            let user = self.user(of).await;
            put(&mut path, "{id}", user.to_string());
        } else if path.contains("/nodes/{id}") {
            let node = self.node().await;
            put(&mut path, "{id}", node.to_string());
        } else if path.contains("/node-pools/{id}") {
            let pool = json!({"name": self.name("pool")});
            put(
                &mut path,
                "{id}",
                id(self.made(owner, "/node-pools", pool).await),
            );
        } else if path.contains("/regions/{id}") {
            put(&mut path, "{id}", self.region().await.to_string());
        } else if path.contains("/plans/{id}") {
            let plan = json!({"name": self.name("plan")});
            put(
                &mut path,
                "{id}",
                id(self.made(owner, "/plans", plan).await),
            );
        } else if path.contains("/admins/{id}") {
            let name = self.name("admin");
            let admin =
                json!({"username": name, "password": "a given password", "role": "auditor"});
            put(
                &mut path,
                "{id}",
                id(self.made(owner, "/admins", admin).await),
            );
        } else if path.contains("/deliveries/{delivery}") {
            let (hook, delivery) = self.delivery().await;
            put(&mut path, "{id}", hook);
            put(&mut path, "{delivery}", delivery);
        } else if path.contains("/webhooks/{id}") {
            let hook = json!({"url": "https://hooks.example.org/", "topics": ["nothing"]});
            put(
                &mut path,
                "{id}",
                id(self.made(owner, "/webhooks", hook).await),
            );
        } else if path.contains("/alerts/{id}") {
            let store = self.fleet.master.store();
            let node = NodeId(self.node().await);
            let raised = store.raise_alert(node, "a_rule", "warning", "a text", START);
            raised.await.unwrap();
            let open = alerts::open_of(store, node).await.unwrap();
            put(&mut path, "{id}", open[0].id.to_string());
        } else if path.contains("/enrolment-tokens/{id}") {
            let token = self.made(owner, "/enrolment-tokens", json!({})).await;
            put(&mut path, "{id}", id(token));
        } else if path.contains("/api-tokens/{id}") {
            let token = json!({"name": self.name("token"), "scopes": ["users:read"]});
            put(
                &mut path,
                "{id}",
                id(self.made(of, "/api-tokens", token).await),
            );
        } else if path.contains("/sessions/{id}") {
            // A refresh token begins with its session.
            let token = of.refresh.strip_prefix("hy2r_").unwrap();
            let bytes = URL_SAFE_NO_PAD.decode(token).unwrap();
            let session = Uuid::from_slice(&bytes[..16]).unwrap();
            put(&mut path, "{id}", session.to_string());
        } else if path.contains("/revisions/{id}") {
            let config = json!({"body": {"drain_grace_s": 7}});
            owner
                .put("/api/v1/configs/fleet/0", &config)
                .await
                .expect(200);
            let all = owner
                .get("/api/v1/configs/fleet/0/revisions")
                .await
                .expect(200);
            let revision = all["items"][0].clone();
            put(&mut path, "{id}", id(revision.clone()));
            if name == "diff_revisions" {
                path = format!("{path}?to={}", id(revision));
            }
        } else if path.contains("{user_id}") {
            let (user, node) = (self.user(of).await, self.node().await);
            let assignment = json!({"user_id": user, "node_id": node});
            self.made(owner, "/assignments", assignment).await;
            put(&mut path, "{user_id}", user.to_string());
            put(&mut path, "{node_id}", node.to_string());
        } else if path.contains("{scope}") {
            let config = json!({"body": {"drain_grace_s": 7}});
            owner
                .put("/api/v1/configs/fleet/0", &config)
                .await
                .expect(200);
            put(&mut path, "{scope}", "fleet".to_owned());
            put(&mut path, "{scope_id}", "0".to_owned());
        } else if path.contains("{key}") {
            let key = self.name("test.key");
            owner
                .put(&format!("/api/v1/settings/{key}"), &json!({"value": 1}))
                .await
                .expect(200);
            put(&mut path, "{key}", key);
        }
        if OF_A_USER.contains(&name) {
            path = format!("{path}?user_id={}", self.user(of).await);
        }
        assert!(!path.contains('{'), "{path}: what is to be put there?");
        let body = match name {
            "create_user" => json!({"username": self.name("user")}),
            "update_user"
            | "update_plan"
            | "update_node"
            | "update_webhook"
            | "update_admin"
            | "update_node_pool"
            | "update_region"
            | "reset_user_traffic"
            | "set_user_rate"
            | "revoke_node_certificates"
            | "create_enrolment_token" => json!({}),
            "batch_users" => json!({"ids": [self.user(of).await], "action": "disable"}),
            "import_users" => {
                json!({"format": "csv", "data": format!("username\n{}\n", self.name("user"))})
            }
            "create_plan" => json!({"name": self.name("plan")}),
            "create_node_pool" => json!({"name": self.name("pool")}),
            "create_region" => json!({"code": self.name("region"), "name": "a region"}),
            "set_plan_pools" => json!({"pool_ids": []}),
            "assign_user" => {
                json!({"user_id": self.user(&self.owner).await, "node_id": self.node().await})
            }
            "put_config" => json!({"body": {"drain_grace_s": 9}}),
            "create_admin" => {
                json!({"username": self.name("admin"), "password": "a given password", "role": "auditor"})
            }
            "create_webhook" => json!({"url": "https://hooks.example.org/", "topics": ["nothing"]}),
            "put_setting" => json!({"value": 2}),
            "create_backup" => json!({"passphrase": "a passphrase for backups"}),
            "create_api_token" => json!({"name": self.name("token"), "scopes": ["users:read"]}),
            "set_node_state" => json!({"state": "active"}),
            "change_password" => json!({"old": "not the old one", "new": "another password"}),
            "confirm_totp" | "disable_totp" => json!({"code": "000000"}),
            _ => return (path, None),
        };
        (path, Some(body))
    }
}

/// Operations that are asked about one user by a parameter.
const OF_A_USER: &[&str] = &[
    "list_assignments",
    "get_traffic",
    "get_traffic_series",
    "get_traffic_top",
];

fn is_of_a_user(name: &str, path: &str) -> bool {
    path.contains("/users/{id}") || OF_A_USER.contains(&name)
}

/// Whether an operation is about an object that somebody has.
fn has_owner(name: &str, path: &str) -> bool {
    is_of_a_user(name, path) || path.contains("/api-tokens/{id}") || path.contains("/sessions/{id}")
}

/// What an operation answers to whoever may.
fn is_fine(name: &str, status: u16) -> bool {
    match name {
        // No code and no password fits; nobody has a second factor here.
        "change_password" | "confirm_totp" | "disable_totp" => [401, 409].contains(&status),
        // No agent is there to ask.
        "get_node_logs" => status == 409,
        _ => (200..300).contains(&status),
    }
}

on_both! {
    async fn every_role_gets_what_is_written_down_on_every_route(fleet) {
        let rights = rights();
        let world = World::new(&fleet).await;
        let actors = world.actors().await;
        let nobody = fleet.client().with("x-forwarded-for", "192.0.2.77");
        let mut asked = HashMap::<(Role, Whose), u32>::new();
        for (method, path, name) in documented() {
            if PUBLIC.contains(&name.as_str()) {
                continue;
            }
            let (target, body) = world.request(&name, &path, &world.stranger).await;
            // From an address of its own each: how often nobody may ask is limited.
            let from = format!("2001:db8:1:{}::1", world.name("x").rsplit('-').next().unwrap());
            let answer = nobody
                .clone()
                .with("x-forwarded-for", &from)
                .send(&method, &target, body.as_ref())
                .await;
            assert_eq!(answer.status, 401, "nobody: {method} {target}");
            for (role, client) in &actors {
                let grant = grant(&rights, &name, *role);
                for whose in [Whose::Own, Whose::Others] {
                    let makes_users = matches!(role, Role::Owner | Role::Operator | Role::Reseller);
                    let of = match whose {
                        Whose::Others if !has_owner(&name, &path) && grant != '-' => continue,
                        Whose::Others => world.stranger.clone(),
                        Whose::Own if is_of_a_user(&name, &path) && !makes_users => continue,
                        // An ended session is of no more use.
                        Whose::Own if name == "logout" || name == "revoke_my_session" => {
                            let username = format!("an-{}", role.as_str());
                            let from = format!("203.0.113.{}", asked.len() + 1);
                            let again = fleet.client().with("x-forwarded-for", &from);
                            again.log_in(&username, OWN_PASSWORD).await.without("x-forwarded-for")
                        }
                        Whose::Own if *role == Role::Reseller || grant != '-' => client.clone(),
                        Whose::Own => world.owner.clone(),
                    };
                    let asks = if name == "logout" { of.clone() } else { client.clone() };
                    let (target, body) = world.request(&name, &path, &of).await;
                    let answer = asks.send(&method, &target, body.as_ref()).await;
                    let what = format!(
                        "{} {whose:?} {method} {target}: {} {}",
                        role.as_str(),
                        answer.status,
                        String::from_utf8_lossy(&answer.body[..answer.body.len().min(300)]),
                    );
                    match (grant, whose) {
                        ('-', _) => assert_eq!(answer.problem(403), "forbidden", "{what}"),
                        ('O', Whose::Others) => assert_eq!(answer.problem(404), "not_found", "{what}"),
                        _ => assert!(is_fine(&name, answer.status), "{what}"),
                    }
                    *asked.entry((*role, whose)).or_default() += 1;
                }
            }
        }
        for role in Role::ALL {
            let (own, others) = (asked[&(role, Whose::Own)], asked[&(role, Whose::Others)]);
            assert!(own > 50 && others > 15, "{} {own} {others}", role.as_str());
        }
        fleet.stop().await;
    }

    async fn no_request_takes_a_field_that_it_does_not_name(fleet) {
        let world = World::new(&fleet).await;
        let fields = [
            "id", "uid", "rev", "role", "admin_id", "owner", "created_by", "created_at", "is_admin", "session_epoch",
            "password_hash", "seed_enc", "used_bytes", "observed_state", "applied_rev", "$ref", "__proto__",
        ];
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi.json");
        let document: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let mut tried = 0;
        for (method, path, name) in documented() {
            let operation = &document["paths"][&path][method.to_lowercase()];
            let schema = &operation["requestBody"]["content"]["application/json"]["schema"]["$ref"];
            let Some(schema) = schema.as_str().and_then(|name| name.rsplit('/').next()) else {
                continue;
            };
            let known = &document["components"]["schemas"][schema]["properties"];
            let (target, body) = if PUBLIC.contains(&name.as_str()) {
                let login = json!({"username": "nobody", "password": "nothing"});
                (path.clone(), if name == "login" { login } else { json!({"refresh_token": "x"}) })
            } else {
                let (target, body) = world.request(&name, &path, &world.owner).await;
                (target, body.unwrap_or_else(|| panic!("{name} wants a body")))
            };
            for field in fields {
                if known.get(field).is_some() {
                    continue;
                }
                let mut body = body.clone();
                body[field] = json!("owner");
                let answer = world.owner.send(&method, &target, Some(&body)).await;
                assert!([400, 422].contains(&answer.status), "{method} {path} {field}: {}", answer.text());
                let named = answer.text();
                assert!(named.contains(field), "{method} {path} {field}: {named}");
                tried += 1;
            }
        }
        assert!(tried > 300, "{tried}");
        fleet.stop().await;
    }

    async fn sql_in_any_parameter_is_text(fleet) {
        let world = World::new(&fleet).await;
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi.json");
        let document: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let texts = ["'", "' or '1'='1", "1; drop table users; --", "1 union select 1", "\"", "%' --", "\\", "$1", "?1"];
        let before = world.owner.get("/api/v1/admins").await.expect(200)["items"].as_array().unwrap().len();
        let mut tried = 0;
        for (method, path, name) in documented() {
            if method != "GET" {
                continue;
            }
            let (target, _) = world.request(&name, &path, &world.owner).await;
            let target = target.split('?').next().unwrap().to_owned();
            let parameters = document["paths"][&path]["get"]["parameters"].as_array();
            for parameter in parameters.into_iter().flatten() {
                let field = parameter["name"].as_str().unwrap();
                for text in texts {
                    let encoded: String = text.bytes().map(|byte| format!("%{byte:02x}")).collect();
                    let asked = match parameter["in"].as_str().unwrap() {
                        "query" => format!("{target}?{field}={encoded}"),
                        "path" => path
                            .replace(&format!("{{{field}}}"), &encoded)
                            .replace("{scope}", "node")
                            .replace("{scope_id}", "1"),
                        _ => continue,
                    };
                    let answer = patiently(async || world.owner.get(&asked).await).await;
                    assert!(answer.status < 500, "{asked}: {}", answer.text());
                    tried += 1;
                }
            }
        }
        assert!(tried > 200, "{tried}");
        let after = patiently(async || world.owner.get("/api/v1/admins").await).await;
        let after = after.expect(200)["items"].as_array().unwrap().len();
        // One more was made on the way.
        assert_eq!(after, before + 1);
        fleet.stop().await;
    }

    async fn routes_beside_the_document_ask_for_their_rights_too(fleet) {
        let rights = rights();
        let world = World::new(&fleet).await;
        let actors = world.actors().await;
        for (path, name) in UNDOCUMENTED {
            let nobody = fleet.client().with("x-forwarded-for", "192.0.2.78");
            let Some(name) = name else {
                assert_eq!(nobody.status(path).await, 200, "{path}");
                continue;
            };
            assert_eq!(nobody.status(path).await, 401, "nobody: {path}");
            for (role, client) in &actors {
                let status = client.status(path).await;
                match grant(&rights, name, *role) {
                    '-' => assert_eq!(status, 403, "{} {path}", role.as_str()),
                    _ => assert!([200, 101].contains(&status), "{} {path}: {status}", role.as_str()),
                }
            }
        }
        fleet.stop().await;
    }

    async fn lists_and_sums_of_a_reseller_hold_own_users_only(fleet) {
        let world = World::new(&fleet).await;
        let ann = fleet.as_role("ann", "reseller").await;
        let node = world.node().await;
        let mut users = Vec::new();
        for of in [&ann, &world.stranger, &world.owner] {
            let user = world.user(of).await;
            let assignment = json!({"user_id": user, "node_id": node});
            world.made(&world.owner, "/assignments", assignment).await;
            users.push(user);
        }
        // What each used: one, ten, a hundred bytes.
        let hour = fleet.master.now().0.div_euclid(3_600_000) * 3_600_000;
        for (user, bytes) in users.iter().zip([1_i64, 10, 100]) {
            for sql in [
                format!("insert into traffic_hourly (bucket, node_id, user_id, tx, rx) values ({hour}, {node}, {user}, {bytes}, 0)"),
                format!("update user_counters set tx = {bytes} where user_id = {user}"),
            ] {
                execute(&fleet, sql).await;
            }
        }
        let everybody = world.owner.get("/api/v1/traffic/top").await.expect(200);
        assert_eq!(everybody["items"].as_array().unwrap().len(), 3, "{everybody}");
        let ids = |list: &Value, key: &str| -> Vec<i64> {
            list["items"].as_array().unwrap().iter().map(|item| item[key].as_i64().unwrap()).collect()
        };
        let own = vec![users[0]];
        assert_eq!(ann.get("/api/v1/assignments").await.problem(422), "invalid");
        let list = ann.get(&format!("/api/v1/assignments?user_id={}", users[0])).await.expect(200);
        assert_eq!(ids(&list, "user_id"), own, "{list}");
        let list = ann.get("/api/v1/traffic/top").await.expect(200);
        assert_eq!(ids(&list, "user_id"), own, "{list}");
        let list = ann.get("/api/v1/users").await.expect(200);
        assert_eq!(ids(&list, "id"), own, "{list}");
        let series = ann.get("/api/v1/traffic/series").await.expect(200);
        assert_eq!(ids(&series, "tx_bytes").iter().sum::<i64>(), 1, "{series}");
        let sum = ann.get("/api/v1/traffic/summary").await.expect(200);
        assert_eq!(sum["tx_bytes"], 1, "{sum}");
        for foreign in &users[1..] {
            for path in ["summary", "series", "top"] {
                let path = format!("/api/v1/traffic/{path}?user_id={foreign}");
                assert_eq!(ann.get(&path).await.problem(404), "not_found", "{path}");
            }
            let path = format!("/api/v1/assignments?user_id={foreign}");
            assert_eq!(ann.get(&path).await.problem(404), "not_found", "{path}");
        }
        let tokens = ann.get("/api/v1/api-tokens").await.expect(200);
        assert_eq!(tokens["items"], json!([]));
        fleet.stop().await;
    }

    async fn every_role_gets_what_is_written_down_on_every_method_of_admin_service(fleet) {
        let rights = rights();
        let world = World::new(&fleet).await;
        let actors = world.actors().await;
        let endpoint = Endpoint::from_shared(format!("http://{}", fleet.api)).unwrap();
        let grpc = AdminServiceClient::new(endpoint.connect().await.unwrap());
        let methods = admin_methods();
        assert!(methods.len() > 20, "{methods:?}");
        for name in &methods {
            let of_user = ["get_user", "update_user", "delete_user", "kick_user", "reset_user_traffic",
                "list_assignments", "get_traffic"];
            let owned = of_user.contains(&name.as_str());
            let nobody = call(&world, &grpc, name, None, &world.stranger).await;
            assert_eq!(nobody.unwrap_err().code(), Code::Unauthenticated, "{name}");
            for (role, client) in &actors {
                let grant = grant(&rights, name, *role);
                for whose in [Whose::Own, Whose::Others] {
                    let makes_users = matches!(role, Role::Owner | Role::Operator | Role::Reseller);
                    let of = match whose {
                        Whose::Others if !owned => continue,
                        Whose::Others => &world.stranger,
                        Whose::Own if owned && !makes_users => continue,
                        Whose::Own if owned => client,
                        Whose::Own => &world.owner,
                    };
                    let answer = call(&world, &grpc, name, Some(client), of).await;
                    let what = format!("{} {whose:?} {name}: {answer:?}", role.as_str());
                    let code = answer.map_or_else(|status| status.code(), |()| Code::Ok);
                    let wanted = match (grant, whose) {
                        ('-', _) => Code::PermissionDenied,
                        ('O', Whose::Others) => Code::NotFound,
                        _ => Code::Ok,
                    };
                    assert_eq!(code, wanted, "{what}");
                }
            }
        }
        fleet.stop().await;
    }
}

/// Names of the methods that the committed contract gives AdminService, as operations are named.
fn admin_methods() -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../hy2-proto/proto/descriptor.binpb");
    let bytes = std::fs::read(path).unwrap();
    let files = prost_types::FileDescriptorSet::decode(bytes.as_slice()).unwrap();
    let mut services = files.file.iter().flat_map(|file| &file.service);
    let admin = services
        .find(|service| service.name() == "AdminService")
        .unwrap();
    let snake = |name: &str| {
        let mut text = String::new();
        for letter in name.chars() {
            if letter.is_uppercase() && !text.is_empty() {
                text.push('_');
            }
            text.push(letter.to_ascii_lowercase());
        }
        text
    };
    admin
        .method
        .iter()
        .map(|method| snake(method.name()))
        .collect()
}

/// Calls a method by its name, about objects that are there.
async fn call(
    world: &World<'_>,
    grpc: &AdminServiceClient<Channel>,
    name: &str,
    client: Option<&Client>,
    of: &Client,
) -> Result<(), Status> {
    let mut grpc = grpc.clone();
    let wire = |number: i64| u64::try_from(number).unwrap();
    macro_rules! ask {
        ($method:ident, $message:expr) => {{
            let mut request = Request::new($message);
            if let Some(client) = client {
                let token = client.headers["authorization"].parse().unwrap();
                request.metadata_mut().insert("authorization", token);
            }
            grpc.$method(request).await.map(drop)
        }};
    }
    let request_id = world.name("request");
    match name {
        "list_nodes" => ask!(list_nodes, pb::ListNodesRequest::default()),
        "get_node" => {
            let id = wire(world.node().await);
            ask!(get_node, pb::GetNodeRequest { id })
        }
        "update_node" => {
            let id = wire(world.node().await);
            let weight = Some(50);
            ask!(
                update_node,
                pb::UpdateNodeRequest {
                    request_id,
                    id,
                    weight,
                    ..Default::default()
                }
            )
        }
        "delete_node" => {
            let id = wire(world.node().await);
            ask!(
                delete_node,
                pb::DeleteNodeRequest {
                    request_id,
                    id,
                    ..Default::default()
                }
            )
        }
        "set_node_state" => {
            let id = wire(world.node().await);
            let state = pb::NodeDesiredState::Cordoned.into();
            ask!(
                set_node_state,
                pb::SetNodeStateRequest {
                    request_id,
                    id,
                    state,
                    ..Default::default()
                }
            )
        }
        "revoke_node_certificates" => {
            let id = wire(world.node().await);
            let reason = String::new();
            ask!(
                revoke_node_certificates,
                pb::RevokeNodeCertificatesRequest {
                    request_id,
                    id,
                    reason
                }
            )
        }
        "forfeit_node" => {
            let id = wire(world.node().await);
            ask!(forfeit_node, pb::ForfeitNodeRequest { request_id, id })
        }
        "create_enrolment_token" => ask!(
            create_enrolment_token,
            pb::CreateEnrolmentTokenRequest {
                request_id,
                valid_seconds: 600,
                ..Default::default()
            }
        ),
        "list_regions" => ask!(list_regions, pb::ListRegionsRequest {}),
        "create_region" => ask!(
            create_region,
            pb::CreateRegionRequest {
                request_id,
                code: world.name("region"),
                name: "a region".to_owned(),
                ..Default::default()
            }
        ),
        "update_region" => {
            let id = wire(world.region().await);
            ask!(
                update_region,
                pb::UpdateRegionRequest {
                    request_id,
                    id,
                    ..Default::default()
                }
            )
        }
        "delete_region" => {
            let id = wire(world.region().await);
            ask!(delete_region, pb::DeleteRegionRequest { request_id, id })
        }
        "list_users" => ask!(list_users, pb::ListUsersRequest::default()),
        "get_user" => {
            let id = wire(world.user(of).await);
            ask!(get_user, pb::GetUserRequest { id })
        }
        "create_user" => {
            let username = world.name("user");
            ask!(
                create_user,
                pb::CreateUserRequest {
                    request_id,
                    username,
                    ..Default::default()
                }
            )
        }
        "update_user" => {
            let id = wire(world.user(of).await);
            let note = Some("changed".to_owned());
            ask!(
                update_user,
                pb::UpdateUserRequest {
                    request_id,
                    id,
                    note,
                    ..Default::default()
                }
            )
        }
        "delete_user" => {
            let id = wire(world.user(of).await);
            ask!(
                delete_user,
                pb::DeleteUserRequest {
                    request_id,
                    id,
                    ..Default::default()
                }
            )
        }
        "kick_user" => {
            let id = wire(world.user(of).await);
            ask!(kick_user, pb::KickUserRequest { request_id, id })
        }
        "reset_user_traffic" => {
            let id = wire(world.user(of).await);
            ask!(
                reset_user_traffic,
                pb::ResetUserTrafficRequest {
                    request_id,
                    id,
                    ..Default::default()
                }
            )
        }
        "list_plans" => ask!(list_plans, pb::ListPlansRequest::default()),
        "create_plan" => {
            let name = world.name("plan");
            let plan = pb::Plan {
                name,
                nodes_per_user: 3,
                ..Default::default()
            };
            ask!(
                create_plan,
                pb::CreatePlanRequest {
                    request_id,
                    plan: Some(plan)
                }
            )
        }
        "list_assignments" => {
            let user_id = wire(world.user(of).await);
            ask!(
                list_assignments,
                pb::ListAssignmentsRequest {
                    user_id,
                    ..Default::default()
                }
            )
        }
        "assign_user" | "release_user" => {
            let (user_id, node_id) = (world.user(of).await, world.node().await);
            if name == "release_user" {
                let assignment = json!({"user_id": user_id, "node_id": node_id});
                world.made(&world.owner, "/assignments", assignment).await;
                let (user_id, node_id) = (wire(user_id), wire(node_id));
                ask!(
                    release_user,
                    pb::ReleaseUserRequest {
                        request_id,
                        user_id,
                        node_id
                    }
                )
            } else {
                let (user_id, node_id) = (wire(user_id), wire(node_id));
                ask!(
                    assign_user,
                    pb::AssignUserRequest {
                        request_id,
                        user_id,
                        node_id
                    }
                )
            }
        }
        "get_traffic" => {
            let user_id = wire(world.user(of).await);
            ask!(
                get_traffic,
                pb::GetTrafficRequest {
                    user_id,
                    ..Default::default()
                }
            )
        }
        "watch_events" => ask!(watch_events, pb::WatchEventsRequest::default()),
        "verify_audit" => ask!(verify_audit, pb::VerifyAuditRequest {}),
        other => panic!("{other} is not asked for here"),
    }
}

async fn execute(fleet: &Fleet, sql: String) {
    let sql = sqlx::AssertSqlSafe(sql);
    let done = match fleet.master.store().db() {
        hy2_master_sdk::store::Db::Pg(pool) => sqlx::query(sql).execute(pool).await.map(drop),
        hy2_master_sdk::store::Db::Sqlite { write, .. } => {
            sqlx::query(sql).execute(write).await.map(drop)
        }
    };
    done.unwrap();
}
