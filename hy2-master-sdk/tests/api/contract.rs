//! The OpenAPI document is the committed one, and says what the table of rights says.

use std::path::Path;

use hy2_master_sdk::api::openapi::{PUBLIC_OPERATIONS, document};
use hy2_master_sdk::auth::access::Operation;
use serde_json::Value;

/// Every documented operation: method, path, `operationId`.
pub(crate) fn operations() -> Vec<(String, String, String)> {
    let document: Value = serde_json::from_str(&document()).unwrap();
    let mut operations = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let id = operation["operationId"].as_str().unwrap().to_owned();
            operations.push((method.to_uppercase(), path.clone(), id));
        }
    }
    operations
}

#[test]
fn the_committed_document_is_the_one_the_routes_make() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi.json");
    let made = document();
    if std::env::var_os("HY2_WRITE_OPENAPI").is_some() {
        std::fs::write(&path, &made).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap();
    assert!(
        committed == made,
        "write it anew: HY2_WRITE_OPENAPI=1 cargo test --test api document"
    );
}

#[test]
fn every_operation_has_its_row_in_the_table_of_rights() {
    let operations = operations();
    assert!(operations.len() > 60, "{}", operations.len());
    for (method, path, id) in &operations {
        let known = Operation::from_name(id).is_some() || PUBLIC_OPERATIONS.contains(&id.as_str());
        assert!(known, "{method} {path}: {id}");
    }
    // Streams, the document and metrics are no JSON resources.
    let undocumented = ["watch_events", "get_openapi", "get_metrics"];
    for operation in Operation::ALL {
        let routed = operations.iter().any(|(_, _, id)| id == operation.name());
        assert!(
            routed || undocumented.contains(&operation.name()),
            "{}",
            operation.name()
        );
    }
}

#[test]
fn the_document_is_openapi_3_1_with_problem_documents_for_errors() {
    let document: Value = serde_json::from_str(&document()).unwrap();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let problem = &operation["responses"]["401"]["content"];
            assert!(
                problem.get("application/problem+json").is_some(),
                "{method} {path}"
            );
        }
    }
}
