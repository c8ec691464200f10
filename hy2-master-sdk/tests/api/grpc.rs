//! AdminService beside REST: the same rights, the same operations.

use hy2_proto::control::rpc as pb;
use hy2_proto::control::rpc::admin_service_client::AdminServiceClient;
use serde_json::json;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request};

use crate::harness::{Client, Fleet, OWN_PASSWORD, on_both};

pub(crate) async fn connect(fleet: &Fleet) -> AdminServiceClient<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{}", fleet.api)).unwrap();
    AdminServiceClient::new(endpoint.connect().await.unwrap())
}

pub(crate) fn ask<T>(client: &Client, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let token = client.headers["authorization"].parse().unwrap();
    request.metadata_mut().insert("authorization", token);
    request
}

on_both! {
    async fn what_grpc_makes_rest_shows(fleet) {
        let owner = fleet.owner().await;
        let mut grpc = connect(&fleet).await;
        let new = pb::CreateUserRequest {
            request_id: "r-1".into(),
            username: "ann".into(),
            quota_bytes: Some(1000),
            ..Default::default()
        };
        let made = grpc.create_user(ask(&owner, new.clone())).await.unwrap().into_inner();
        assert!(made.subscription_url.starts_with("https://sub.example.org/sub/"));
        let user = made.user.clone().unwrap();
        let shown = owner.get(&format!("/api/v1/users/{}", user.id)).await.expect(200);
        assert_eq!((&shown["username"], &shown["quota_bytes"]), (&json!("ann"), &json!(1000)));
        // The same id again gets the same answer, also the address that is shown once.
        let again = grpc.create_user(ask(&owner, new.clone())).await.unwrap().into_inner();
        assert_eq!(again, made);
        let other = pb::CreateUserRequest { username: "bob".into(), ..new.clone() };
        let refused = grpc.create_user(ask(&owner, other)).await.unwrap_err();
        assert_eq!(refused.metadata().get("hy2-code").unwrap(), "idempotency_mismatch");

        let change = pb::UpdateUserRequest {
            id: user.id,
            expected_rev: 7,
            status: pb::UserStatus::Disabled.into(),
            ..Default::default()
        };
        let stale = grpc.update_user(ask(&owner, change.clone())).await.unwrap_err();
        assert_eq!(stale.code(), Code::Aborted);
        let change = pb::UpdateUserRequest { expected_rev: user.rev, ..change };
        let changed = grpc.update_user(ask(&owner, change)).await.unwrap().into_inner();
        assert_eq!(changed.user.unwrap().status(), pb::UserStatus::Disabled);
        fleet.stop().await;
    }

    async fn a_request_id_is_for_one_method_and_for_the_rights_it_came_with(fleet) {
        let owner = fleet.owner().await;
        let mut grpc = connect(&fleet).await;
        let made = owner.post("/api/v1/users", &json!({"username": "ann"})).await.expect(201);
        let id = made["id"].as_u64().unwrap();
        let kick = pb::KickUserRequest { request_id: "job".into(), id };
        grpc.kick_user(ask(&owner, kick)).await.unwrap();
        // The same bytes, but not the same request.
        let delete = pb::DeleteUserRequest { request_id: "job".into(), id, expected_rev: 0 };
        let refused = grpc.delete_user(ask(&owner, delete.clone())).await.unwrap_err();
        assert_eq!(refused.metadata().get("hy2-code").unwrap(), "idempotency_mismatch");
        owner.get(&format!("/api/v1/users/{id}")).await.expect(200);

        // Made by an operator who is a reseller by the time of the second.
        let ann = fleet.as_role("operator", "operator").await;
        let rename = pb::UpdateUserRequest {
            request_id: "note".into(),
            id,
            note: Some("the owner's".into()),
            ..Default::default()
        };
        grpc.update_user(ask(&ann, rename.clone())).await.unwrap();
        let me = ann.get("/api/v1/auth/me").await.expect(200)["id"].clone();
        owner.patch(&format!("/api/v1/admins/{me}"), &json!({"role": "reseller"})).await.expect(200);
        let ann = fleet.client().log_in("operator", OWN_PASSWORD).await;
        let refused = grpc.update_user(ask(&ann, rename)).await.unwrap_err();
        assert_eq!(refused.metadata().get("hy2-code").unwrap(), "idempotency_mismatch");

        let delete = pb::DeleteUserRequest { request_id: "another".into(), ..delete };
        grpc.delete_user(ask(&owner, delete.clone())).await.unwrap();
        // Again: told as the first time.
        grpc.delete_user(ask(&owner, delete)).await.unwrap();
        fleet.stop().await;
    }

    async fn moments_that_cannot_be_written_are_refused(fleet) {
        let owner = fleet.owner().await;
        let mut grpc = connect(&fleet).await;
        for seconds in [253_402_300_800, i64::MAX, i64::MIN] {
            let late = Some(prost_types::Timestamp { seconds, nanos: 0 });
            let new = pb::CreateUserRequest {
                username: "ann".into(),
                expires_at: late,
                ..Default::default()
            };
            let refused = grpc.create_user(ask(&owner, new)).await.unwrap_err();
            assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
            assert!(refused.message().contains("expires_at"), "{refused}");
        }
        let user = json!({"username": "bob", "hold_duration_s": 60});
        let user = owner.post("/api/v1/users", &user).await.expect(201);
        let past = pb::UpdateUserRequest {
            id: user["id"].as_u64().unwrap(),
            expires_at: Some(prost_types::Timestamp { seconds: 1, nanos: 0 }),
            ..Default::default()
        };
        let refused = grpc.update_user(ask(&owner, past)).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        assert!(refused.message().contains("expires_at"), "{refused}");
        fleet.stop().await;
    }

    async fn moments_are_those_that_the_contract_has(fleet) {
        let owner = fleet.owner().await;
        let mut grpc = connect(&fleet).await;
        let user = owner.post("/api/v1/users", &json!({"username": "ann"})).await.expect(201);
        let id = user["id"].as_u64().unwrap();
        let year_0 = Some(prost_types::Timestamp { seconds: -62_167_219_200, nanos: 0 });
        let at = |nanos| Some(prost_types::Timestamp { seconds: 4_000_000_000, nanos });
        for (at, field) in [(at(-5), "expires_at.nanos"), (at(1_000_000_000), "expires_at.nanos"), (year_0, "expires_at")] {
            let new = pb::CreateUserRequest { username: "bob".into(), expires_at: at, ..Default::default() };
            let of_new = grpc.create_user(ask(&owner, new)).await.unwrap_err();
            let change = pb::UpdateUserRequest { id, expires_at: at, ..Default::default() };
            let of_change = grpc.update_user(ask(&owner, change)).await.unwrap_err();
            for refused in [of_new, of_change] {
                assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
                assert!(refused.message().contains(&format!("; {field}: ")), "{refused}");
            }
        }
        let traffic = pb::GetTrafficRequest { from: at(-5), ..Default::default() };
        let refused = grpc.get_traffic(ask(&owner, traffic)).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        let change = pb::UpdateUserRequest { id, expires_at: at(999_999_999), ..Default::default() };
        grpc.update_user(ask(&owner, change)).await.unwrap();
        fleet.stop().await;
    }

    async fn texts_with_nul_are_refused_by_the_name_of_their_field(fleet) {
        let owner = fleet.owner().await;
        let mut grpc = connect(&fleet).await;
        let user = owner.post("/api/v1/users", &json!({"username": "ann"})).await.expect(201);
        let id = user["id"].as_u64().unwrap();
        let node = fleet.node("ny").await.0.unsigned_abs();
        let nul = || "a\0b".to_owned();
        let mut refused = Vec::new();
        let new = || pb::CreateUserRequest { username: "bob".into(), ..Default::default() };
        for (new, field) in [
            (pb::CreateUserRequest { username: nul(), ..new() }, "username"),
            (pb::CreateUserRequest { note: nul(), ..new() }, "note"),
            (pb::CreateUserRequest { tags: vec!["a".into(), nul()], ..new() }, "tags"),
            (pb::CreateUserRequest { password: nul(), ..new() }, "password"),
            (pb::CreateUserRequest { home_region: nul(), ..new() }, "home_region"),
            (pb::CreateUserRequest { request_id: nul(), ..new() }, "request_id"),
        ] {
            refused.push((grpc.create_user(ask(&owner, new)).await.unwrap_err(), field));
        }
        let change = pb::UpdateUserRequest { id, note: Some(nul()), ..Default::default() };
        refused.push((grpc.update_user(ask(&owner, change)).await.unwrap_err(), "note"));
        let reset = pb::ResetUserTrafficRequest { id, reason: nul(), ..Default::default() };
        refused.push((grpc.reset_user_traffic(ask(&owner, reset)).await.unwrap_err(), "reason"));
        let plan = pb::Plan { name: nul(), ..Default::default() };
        let plan = pb::CreatePlanRequest { plan: Some(plan), ..Default::default() };
        refused.push((grpc.create_plan(ask(&owner, plan)).await.unwrap_err(), "plan.name"));
        let token = pb::CreateEnrolmentTokenRequest { label: nul(), ..Default::default() };
        refused.push((grpc.create_enrolment_token(ask(&owner, token)).await.unwrap_err(), "label"));
        let change = || pb::UpdateNodeRequest { id: node, ..Default::default() };
        let tags = pb::NodeTags { tags: vec![nul()] };
        for (change, field) in [
            (pb::UpdateNodeRequest { note: Some(nul()), ..change() }, "note"),
            (pb::UpdateNodeRequest { provider: Some(nul()), ..change() }, "provider"),
            (pb::UpdateNodeRequest { tags: Some(tags), ..change() }, "tags.tags"),
        ] {
            refused.push((grpc.update_node(ask(&owner, change)).await.unwrap_err(), field));
        }
        let revoke = pb::RevokeNodeCertificatesRequest { id: node, reason: nul(), ..Default::default() };
        refused.push((grpc.revoke_node_certificates(ask(&owner, revoke)).await.unwrap_err(), "reason"));
        let list = pb::ListUsersRequest { search: nul(), ..Default::default() };
        refused.push((grpc.list_users(ask(&owner, list)).await.unwrap_err(), "search"));
        let page = Some(pb::PageRequest { after: nul(), ..Default::default() });
        refused.push((grpc.list_plans(ask(&owner, pb::ListPlansRequest { page })).await.unwrap_err(), "page.after"));
        let watch = pb::WatchEventsRequest { topics: vec![nul()], ..Default::default() };
        refused.push((grpc.watch_events(ask(&owner, watch)).await.unwrap_err(), "topics"));
        for (refused, field) in refused {
            assert_eq!(refused.code(), Code::InvalidArgument, "{field}: {refused}");
            assert!(refused.message().contains(&format!("; {field}: ")), "{field}: {refused}");
        }
        let nobody = grpc.list_users(Request::new(pb::ListUsersRequest { search: nul(), ..Default::default() }));
        assert_eq!(nobody.await.unwrap_err().code(), Code::Unauthenticated);
        let users = owner.get("/api/v1/users").await.expect(200);
        assert_eq!(users["items"].as_array().unwrap().len(), 1);
        fleet.stop().await;
    }

    async fn a_request_that_names_what_has_gone_since_has_its_answer_all_the_same(fleet) {
        let owner = fleet.owner().await;
        let mut grpc = connect(&fleet).await;
        let region = json!({"code": "eu", "name": "Europe"});
        let region = owner.post("/api/v1/regions", &region).await.expect(201)["id"].clone();
        let new = pb::CreateUserRequest {
            request_id: "r-1".into(),
            username: "ann".into(),
            home_region: "eu".into(),
            ..Default::default()
        };
        let made = grpc.create_user(ask(&owner, new.clone())).await.unwrap().into_inner();
        let id = made.user.as_ref().unwrap().id;
        let change = pb::UpdateUserRequest {
            request_id: "r-2".into(),
            id,
            home_region: Some("eu".into()),
            note: Some("n".into()),
            ..Default::default()
        };
        let changed = grpc.update_user(ask(&owner, change.clone())).await.unwrap().into_inner();
        let node = fleet.node("ny").await;
        let moved = pb::UpdateNodeRequest {
            request_id: "r-3".into(),
            id: node.0.unsigned_abs(),
            region: Some("eu".into()),
            ..Default::default()
        };
        let there = grpc.update_node(ask(&owner, moved.clone())).await.unwrap().into_inner();
        let token = pb::CreateEnrolmentTokenRequest {
            request_id: "r-4".into(),
            region: "eu".into(),
            ..Default::default()
        };
        let issued = grpc.create_enrolment_token(ask(&owner, token.clone())).await.unwrap().into_inner();
        let none = json!({"home_region_id": null});
        owner.patch(&format!("/api/v1/users/{id}"), &none).await.expect(200);
        owner.patch(&format!("/api/v1/nodes/{node}"), &json!({"region_id": null})).await.expect(200);
        owner.delete(&format!("/api/v1/enrolment-tokens/{}", issued.id)).await.expect(204);
        owner.delete(&format!("/api/v1/regions/{region}")).await.expect(204);

        let again = grpc.create_user(ask(&owner, new.clone())).await.unwrap().into_inner();
        assert_eq!(again, made);
        let again = grpc.update_user(ask(&owner, change)).await.unwrap().into_inner();
        assert_eq!(again, changed);
        let again = grpc.update_node(ask(&owner, moved)).await.unwrap().into_inner();
        assert_eq!(again, there);
        let again = grpc.create_enrolment_token(ask(&owner, token)).await.unwrap().into_inner();
        assert_eq!(again, issued);
        // What was refused gives its id back.
        let late = pb::CreateUserRequest { request_id: "r-5".into(), username: "bob".into(), ..new };
        let refused = grpc.create_user(ask(&owner, late.clone())).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        assert!(refused.message().contains("; home_region: "), "{refused}");
        let late = pb::CreateUserRequest { home_region: String::new(), ..late };
        grpc.create_user(ask(&owner, late)).await.unwrap();
        fleet.stop().await;
    }

    async fn regions_are_made_over_grpc_and_users_name_them_by_their_codes(fleet) {
        let owner = fleet.owner().await;
        let mut grpc = connect(&fleet).await;
        let new = pb::CreateRegionRequest {
            request_id: "r-1".into(),
            code: "us-east".into(),
            name: "New York".into(),
            latitude: Some(0.0),
            longitude: Some(-74.0),
        };
        let made = grpc.create_region(ask(&owner, new.clone())).await.unwrap().into_inner();
        let again = grpc.create_region(ask(&owner, new)).await.unwrap().into_inner();
        assert_eq!(made, again);
        let region = made.region.unwrap();
        let shown = owner.get(&format!("/api/v1/regions/{}", region.id)).await.expect(200);
        assert_eq!((&shown["code"], shown["latitude"].as_f64()), (&json!("us-east"), Some(0.0)));

        let user = pb::CreateUserRequest {
            username: "ann".into(),
            home_region: "us-east".into(),
            ..Default::default()
        };
        let ann = grpc.create_user(ask(&owner, user)).await.unwrap().into_inner().user.unwrap();
        assert_eq!(ann.home_region, "us-east");
        let bob = pb::CreateUserRequest { username: "bob".into(), ..Default::default() };
        grpc.create_user(ask(&owner, bob)).await.unwrap();
        let change = pb::UpdateRegionRequest {
            id: region.id,
            code: Some("us-2".into()),
            clear_location: true,
            ..Default::default()
        };
        let changed = grpc.update_region(ask(&owner, change)).await.unwrap().into_inner().region.unwrap();
        assert_eq!((changed.code.as_str(), changed.name.as_str()), ("us-2", "New York"));
        assert_eq!((changed.latitude, changed.longitude), (None, None));
        let listed = grpc.list_users(ask(&owner, pb::ListUsersRequest::default())).await.unwrap().into_inner();
        let homes: Vec<_> = listed.users.iter().map(|user| user.home_region.as_str()).collect();
        assert_eq!(homes, ["us-2", ""]);
        let change = |home: Option<&str>| pb::UpdateUserRequest {
            id: ann.id,
            home_region: home.map(str::to_owned),
            ..Default::default()
        };
        let unknown = grpc.update_user(ask(&owner, change(Some("us-east")))).await.unwrap_err();
        assert!(unknown.message().contains("home_region: there is no such region"), "{}", unknown.message());
        let kept = grpc.update_user(ask(&owner, change(None))).await.unwrap().into_inner();
        assert_eq!(kept.user.unwrap().home_region, "us-2");
        let delete = pb::DeleteRegionRequest { id: region.id, ..Default::default() };
        let used = grpc.delete_region(ask(&owner, delete.clone())).await.unwrap_err();
        assert_eq!(used.code(), Code::FailedPrecondition);
        assert!(used.message().contains("1 user"), "{}", used.message());
        let cleared = grpc.update_user(ask(&owner, change(Some("")))).await.unwrap().into_inner();
        assert_eq!(cleared.user.unwrap().home_region, "");
        grpc.delete_region(ask(&owner, delete)).await.unwrap();
        let listed = grpc.list_regions(ask(&owner, pb::ListRegionsRequest {})).await.unwrap().into_inner();
        assert_eq!(listed.regions, []);
        fleet.stop().await;
    }

    async fn what_rest_decides_of_a_node_grpc_decides_too(fleet) {
        let owner = fleet.owner().await;
        let mut grpc = connect(&fleet).await;
        let id = u64::try_from(fleet.node("ny").await.0).unwrap();
        let change = pb::UpdateNodeRequest {
            id,
            country: Some("US".into()),
            provider: Some("a host".into()),
            note: Some("in the cellar".into()),
            tags: Some(pb::NodeTags { tags: vec!["a".into(), "b".into()] }),
            ..Default::default()
        };
        let answer = grpc.update_node(ask(&owner, change)).await.unwrap().into_inner();
        let node = answer.node.unwrap();
        assert_eq!((&*node.provider, &*node.note), ("a host", "in the cellar"));
        let shown = owner.get(&format!("/api/v1/nodes/{id}")).await.expect(200);
        let told = [&shown["country"], &shown["provider"], &shown["note"], &shown["tags"]];
        assert_eq!(told, [&json!("US"), &json!("a host"), &json!("in the cellar"), &json!(["a", "b"])]);
        let change = pb::UpdateNodeRequest {
            id,
            country: Some(String::new()),
            tags: Some(pb::NodeTags::default()),
            ..Default::default()
        };
        grpc.update_node(ask(&owner, change)).await.unwrap();
        let shown = owner.get(&format!("/api/v1/nodes/{id}")).await.expect(200);
        assert_eq!([&shown["country"], &shown["tags"]], [&json!(null), &json!([])]);
        assert_eq!(shown["provider"], "a host");
        let forfeit = pb::ForfeitNodeRequest { id, ..Default::default() };
        assert_eq!(grpc.forfeit_node(ask(&owner, forfeit)).await.unwrap().into_inner().slices, 0);
        let revoke = pb::RevokeNodeCertificatesRequest { id, reason: "stolen".into(), ..Default::default() };
        let answer = grpc.revoke_node_certificates(ask(&owner, revoke)).await.unwrap().into_inner();
        let revoked: i32 = pb::NodeObservedState::Revoked.into();
        assert_eq!(answer.node.unwrap().observed_state, revoked);
        fleet.stop().await;
    }

    async fn rights_are_those_of_the_table(fleet) {
        let auditor = fleet.as_role("ann", "auditor").await;
        let mut grpc = connect(&fleet).await;
        let nobody = grpc.list_users(pb::ListUsersRequest::default()).await.unwrap_err();
        assert_eq!(nobody.code(), Code::Unauthenticated);
        grpc.list_users(ask(&auditor, pb::ListUsersRequest::default())).await.unwrap();
        let new = pb::CreateUserRequest { username: "bob".into(), ..Default::default() };
        let denied = grpc.create_user(ask(&auditor, new)).await.unwrap_err();
        assert_eq!(denied.code(), Code::PermissionDenied);
        let reseller = fleet.as_role("cy", "reseller").await;
        let owner = fleet.owner().await;
        let user = owner.post("/api/v1/users", &json!({"username": "dan"})).await.expect(201);
        let id = user["id"].as_u64().unwrap();
        let foreign = grpc.get_user(ask(&reseller, pb::GetUserRequest { id })).await.unwrap_err();
        assert_eq!(foreign.code(), Code::NotFound);
        fleet.stop().await;
    }

    async fn a_revision_that_cannot_be_is_none_that_was_seen(fleet) {
        let owner = fleet.owner().await;
        let mut grpc = connect(&fleet).await;
        let user = owner.post("/api/v1/users", &json!({"username": "ann"})).await.expect(201);
        let id = user["id"].as_u64().unwrap();
        for expected_rev in [1 << 63, u64::MAX] {
            let change = pb::UpdateUserRequest { id, expected_rev, note: Some("x".into()), ..Default::default() };
            let of_user = grpc.update_user(ask(&owner, change)).await.unwrap_err();
            let delete = pb::DeleteUserRequest { id, expected_rev, ..Default::default() };
            let of_deleted_user = grpc.delete_user(ask(&owner, delete)).await.unwrap_err();
            let change = pb::UpdateNodeRequest { id: 1, expected_rev, ..Default::default() };
            let of_node = grpc.update_node(ask(&owner, change)).await.unwrap_err();
            let delete = pb::DeleteNodeRequest { id: 1, expected_rev, ..Default::default() };
            let of_deleted_node = grpc.delete_node(ask(&owner, delete)).await.unwrap_err();
            for refused in [of_user, of_deleted_user, of_node, of_deleted_node] {
                assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
                assert!(refused.message().contains("expected_rev: "), "{refused}");
            }
        }
        let shown = owner.get(&format!("/api/v1/users/{id}")).await.expect(200);
        assert_eq!((&shown["note"], &shown["rev"]), (&json!(""), &user["rev"]));
        fleet.stop().await;
    }

    async fn what_is_cleared_has_no_value_in_the_same_request(fleet) {
        let owner = fleet.owner().await;
        let mut grpc = connect(&fleet).await;
        let end = "2099-01-01T00:00:00Z";
        let user = owner.post("/api/v1/users", &json!({"username": "ann", "expires_at": end})).await.expect(201);
        let region = json!({"code": "fra", "name": "Frankfurt", "latitude": 50, "longitude": 8});
        let region = owner.post("/api/v1/regions", &region).await.expect(201);
        let both = pb::UpdateUserRequest {
            id: user["id"].as_u64().unwrap(),
            clear_expires_at: true,
            expires_at: Some(prost_types::Timestamp { seconds: 4_000_000_000, nanos: 0 }),
            ..Default::default()
        };
        let refused = grpc.update_user(ask(&owner, both.clone())).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        assert!(refused.message().contains("clear_expires_at: cannot be set together with expires_at"), "{refused}");
        let shown = owner.get(&format!("/api/v1/users/{}", user["id"])).await.expect(200);
        assert_eq!(shown["expires_at"], user["expires_at"]);
        let clear = pb::UpdateUserRequest { expires_at: None, ..both };
        let cleared = grpc.update_user(ask(&owner, clear)).await.unwrap().into_inner();
        assert_eq!(cleared.user.unwrap().expires_at, None);
        for (latitude, longitude, field) in [(Some(1.0), None, "latitude"), (None, Some(1.0), "longitude")] {
            let both = pb::UpdateRegionRequest {
                id: region["id"].as_u64().unwrap(),
                clear_location: true,
                latitude,
                longitude,
                ..Default::default()
            };
            let refused = grpc.update_region(ask(&owner, both)).await.unwrap_err();
            let wanted = format!("clear_location: cannot be set together with {field}");
            assert!(refused.code() == Code::InvalidArgument && refused.message().contains(&wanted), "{refused}");
        }
        fleet.stop().await;
    }

    async fn fields_are_named_as_the_contract_names_them(fleet) {
        let owner = fleet.owner().await;
        let mut grpc = connect(&fleet).await;
        let page = |size: u32, after: &str| Some(pb::PageRequest { size, after: after.into() });
        let mut refused = Vec::new();
        for (page, field) in [(page(501, ""), "page.size"), (page(0, "!"), "page.after")] {
            let of_users = pb::ListUsersRequest { page: page.clone(), ..Default::default() };
            refused.push((grpc.list_users(ask(&owner, of_users)).await.unwrap_err(), field));
            let of_nodes = pb::ListNodesRequest { page: page.clone(), ..Default::default() };
            refused.push((grpc.list_nodes(ask(&owner, of_nodes)).await.unwrap_err(), field));
            let of_plans = pb::ListPlansRequest { page: page.clone() };
            refused.push((grpc.list_plans(ask(&owner, of_plans)).await.unwrap_err(), field));
            let of_assignments = pb::ListAssignmentsRequest { page, ..Default::default() };
            refused.push((grpc.list_assignments(ask(&owner, of_assignments)).await.unwrap_err(), field));
        }
        let short = pb::CreateEnrolmentTokenRequest { valid_seconds: 1, ..Default::default() };
        refused.push((grpc.create_enrolment_token(ask(&owner, short)).await.unwrap_err(), "valid_seconds"));
        for (plan, field) in [
            (pb::Plan::default(), "plan.name"),
            (pb::Plan { name: "p".into(), period: "aeon".into(), ..Default::default() }, "plan.period"),
            (pb::Plan { name: "p".into(), nodes_per_user: 65, ..Default::default() }, "plan.nodes_per_user"),
        ] {
            let new = pb::CreatePlanRequest { plan: Some(plan), ..Default::default() };
            refused.push((grpc.create_plan(ask(&owner, new)).await.unwrap_err(), field));
        }
        for (refused, field) in refused {
            assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
            assert!(refused.message().contains(&format!("; {field}: ")), "{refused}");
        }
        fleet.stop().await;
    }

    async fn invalid_fields_are_named(fleet) {
        let owner = fleet.owner().await;
        let mut grpc = connect(&fleet).await;
        let new = pb::CreateUserRequest { username: "not ok".into(), ..Default::default() };
        let refused = grpc.create_user(ask(&owner, new)).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().contains("username:"), "{}", refused.message());
        fleet.stop().await;
    }
}
