//! AdminService beside REST: the same rights, the same operations.

use hy2_proto::control::rpc as pb;
use hy2_proto::control::rpc::admin_service_client::AdminServiceClient;
use serde_json::json;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request};

use crate::harness::{Client, Fleet, on_both};

async fn connect(fleet: &Fleet) -> AdminServiceClient<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{}", fleet.api)).unwrap();
    AdminServiceClient::new(endpoint.connect().await.unwrap())
}

fn ask<T>(client: &Client, message: T) -> Request<T> {
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
