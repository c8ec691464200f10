//! What administrators configure of nodes: bodies of fleet, region and node, one laid over the other. What is wrong is
//! named by a field that is there, what is accepted a node takes, and a password is neither stored nor printed in clear.
//! Without state.
//!
//! Planted bug: a time to drain that no node takes was accepted.

use std::sync::{Arc, LazyLock};

use hy2_agent_sdk::settings::NodeSettings;
use hy2_master_sdk::{
    domain::config::{ConfigBody, ConfigError, NodeParts, merge, open, seal},
    secrets::{MasterKeys, Vault},
};
use serde_json::{Value, json};

/// Takes up to three JSON texts with a zero byte between them.
pub fn target(data: &[u8]) {
    let mut merged = json!({});
    for text in data.splitn(3, |byte| *byte == 0) {
        let Ok(body) = serde_json::from_slice::<Value>(text) else {
            return;
        };
        stored(&body);
        merge(&mut merged, &body);
        let once = merged.clone();
        merge(&mut merged, &body);
        assert_eq!(merged, once, "laid over twice");
        if once.is_object() {
            merge(&mut merged, &json!({}));
            assert_eq!(merged, once, "nothing laid over it");
        }
    }
    let body = match ConfigBody::parse(merged.clone()) {
        Ok(body) => body,
        Err(errors) => return named(&errors, &merged),
    };
    let shown = serde_json::to_value(&body).expect("JSON");
    assert_eq!(ConfigBody::parse(shown), Ok(body.clone()), "shown");
    let mut other = merged.clone();
    passwords(&mut other, &mut |password| *password = "another password".to_owned());
    let other = ConfigBody::parse(other).expect("as good");
    assert_eq!(format!("{other:?}"), format!("{body:?}"), "a secret");

    let checked = body.check_for_nodes();
    let mut parts = NodeParts::new(8443, [1; 32], [2; 32]);
    parts.issued = Some((vec![1], vec![2]));
    let taken = NodeSettings::parse(&Arc::new(body.to_proto(&parts)));
    match (checked, taken) {
        (Ok(()), Ok(settings)) => assert_eq!(settings.listen.len(), body.listen.len().max(1)),
        (Err(errors), Err(_)) => named(&errors, &merged),
        (checked, taken) => panic!("{checked:?}, and the node: {:?}", taken.map(drop)),
    }
}

/// A body is stored with its passwords sealed, and they open again.
fn stored(body: &Value) {
    static VAULT: LazyLock<Vault> =
        LazyLock::new(|| Vault::new(MasterKeys::generate().expect("a key")));
    let mut sealed = body.clone();
    let mut any_sealed = false;
    passwords(&mut sealed, &mut |password| any_sealed |= password.starts_with("sealed:"));
    seal(&VAULT, &mut sealed);
    passwords(&mut sealed, &mut |password| assert!(password.starts_with("sealed:")));
    let once = sealed.clone();
    seal(&VAULT, &mut sealed);
    assert_eq!(sealed, once, "sealed twice");
    let opened = open(&VAULT, &mut sealed);
    // What only looks sealed is refused before it is stored.
    assert_eq!(opened.is_err(), any_sealed);
    assert!(any_sealed || sealed == *body, "another password");
}

/// Visits the passwords of a body.
fn passwords(value: &mut Value, visit: &mut dyn FnMut(&mut String)) {
    match value {
        Value::Object(fields) => {
            for (key, field) in fields {
                match field {
                    Value::String(text) if key == "password" => visit(text),
                    other => passwords(other, visit),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| passwords(item, visit)),
        _ => {}
    }
}

/// Each mistake is a field that the body has, and a reason.
fn named(errors: &[ConfigError], body: &Value) {
    assert!(!errors.is_empty(), "refused without a reason");
    for error in errors {
        assert!(!error.message.is_empty());
        let is_there = body.as_object().is_none_or(|fields| {
            let mut keys = fields.keys();
            error.path == "." || keys.any(|key| error.path.starts_with(key.as_str()))
        });
        assert!(is_there, "{error:?}");
    }
}
