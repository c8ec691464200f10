//! Who is told which events: those of things that they may read.
//!
//! A topic begins with the kind of thing that it is about, and the table of rights says who may read that kind. Live
//! streams are filtered by their caller. Webhooks outlive who made them, and every operator may turn one to another
//! address: they are told what operators may read, whoever made them.

use super::access::{Caller, Credential, Denied, Grant, Operation, Role};
use crate::domain::AdminId;

/// With what each kind of topic begins, and the operation that reads its things.
const READ_BY: &[(&str, Operation)] = &[
    ("admin.", Operation::GetAdmin),
    ("alert.", Operation::ListAlerts),
    ("api_token.", Operation::ListApiTokens),
    ("assignment.", Operation::ListAssignments),
    ("authority.", Operation::ListNodes),
    // That there was one stands in the audit log; what is in it, nobody reads by an event.
    ("backup.", Operation::ListAudit),
    ("config.", Operation::GetConfig),
    ("enrolment_token.", Operation::ListEnrolmentTokens),
    ("node.", Operation::GetNode),
    ("node_pool.", Operation::GetNodePool),
    ("plan.", Operation::GetPlan),
    ("region.", Operation::GetRegion),
    ("setting.", Operation::GetSetting),
    ("signing_key.", Operation::ListAudit),
    ("user.", Operation::GetUser),
    ("webhook.", Operation::GetWebhook),
];

/// Returns the operation that reads what a topic is about.
fn read_by(topic: &str) -> Option<Operation> {
    let mut kinds = READ_BY.iter();
    let found = kinds.find(|(kind, _)| topic.starts_with(kind));
    found.map(|(_, operation)| *operation)
}

/// Returns whether a topic is among those named, where `user.*` names all of `user`; none named is all.
pub(crate) fn matches(topics: &[String], topic: &str) -> bool {
    topics.is_empty()
        || topics.iter().any(|wanted| match wanted.strip_suffix('*') {
            Some(start) => topic.starts_with(start),
            None => wanted == topic,
        })
}

/// Returns whether a topic changes what administrators or their tokens may do.
pub(crate) fn changes_rights(topic: &str) -> bool {
    topic.starts_with("admin.") || topic.starts_with("api_token.")
}

/// Returns whether webhooks are told events of a topic.
pub(crate) fn webhooks_hear(topic: &str) -> bool {
    read_by(topic).is_some_and(operators_read)
}

fn operators_read(operation: Operation) -> bool {
    operation.grant(Role::Operator) == Grant::Any
}

/// Checks that a caller may have all told to an address that a webhook with these topics is told: an API token that may
/// make webhooks reads no more by them than by itself.
///
/// # Errors
///
/// The right that is missing.
pub(crate) fn check_webhook(caller: &Caller, topics: &[String]) -> Result<(), Denied> {
    let may_match = |kind: &str| {
        topics.is_empty()
            || topics.iter().any(|topic| match topic.strip_suffix('*') {
                Some(start) => start.starts_with(kind) || kind.starts_with(start),
                None => topic.starts_with(kind),
            })
    };
    for (kind, operation) in READ_BY {
        if operators_read(*operation) && may_match(kind) {
            caller.access(*operation)?;
        }
    }
    Ok(())
}

/// Returns the topics that a caller may have told to an address, as `user.*`.
pub(crate) fn of_webhooks(caller: &Caller) -> Vec<String> {
    let readable = READ_BY
        .iter()
        .filter(|(_, operation)| operators_read(*operation) && caller.access(*operation).is_ok());
    readable.map(|(kind, _)| format!("{kind}*")).collect()
}

impl Caller {
    /// Returns whether this caller is told an event of a topic, about an object that belongs to `owner`. What no kind
    /// is known of, owners are told, in person.
    pub(crate) fn hears(&self, topic: &str, owner: Option<AdminId>) -> bool {
        match read_by(topic) {
            Some(operation) => self
                .access(operation)
                .is_ok_and(|access| access.reaches(owner)),
            None => {
                let in_person = !matches!(self.credential, Credential::Token { .. });
                in_person && self.role == Role::Owner
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use uuid::Uuid;

    use super::*;

    fn caller(role: Role, scopes: Option<&[&str]>) -> Caller {
        let id = Uuid::nil();
        let credential = match scopes {
            None => Credential::Session { id },
            Some(scopes) => Credential::Token {
                id,
                scopes: scopes.iter().map(ToString::to_string).collect(),
            },
        };
        Caller {
            role,
            credential,
            admin: AdminId(7),
            ..Caller::host()
        }
    }

    #[test]
    fn topics_match_by_name_or_beginning() {
        let topics = ["user.*".to_owned(), "node.revoked".to_owned()];
        assert!(matches(&topics, "user.created"));
        assert!(matches(&topics, "node.revoked"));
        assert!(!matches(&topics, "node.updated"));
        assert!(matches(&[], "anything"));
    }

    #[test]
    fn an_event_is_told_to_whom_may_read_what_it_is_about() {
        let hears = |role, topic| caller(role, None).hears(topic, None);
        let heard_by = |topic| Role::ALL.map(|role| hears(role, topic));
        assert_eq!(
            heard_by("user.created"),
            [true, true, true, false, true],
            "a user of nobody's is no reseller's"
        );
        assert_eq!(
            heard_by("webhook.created"),
            [true, true, false, false, true]
        );
        assert_eq!(heard_by("admin.created"), [true, false, false, false, true]);
        assert_eq!(
            heard_by("config.changed"),
            [true, true, false, false, false]
        );
        assert_eq!(heard_by("what.is_this"), [true, false, false, false, false]);
        let reseller = caller(Role::Reseller, None);
        assert!(reseller.hears("user.created", Some(AdminId(7))));
        assert!(!reseller.hears("user.created", Some(AdminId(8))));
        let token = caller(Role::Owner, Some(&["events:read", "nodes:read"]));
        assert!(token.hears("node.updated", None));
        for topic in ["user.created", "api_token.created", "what.is_this"] {
            assert!(!token.hears(topic, None), "{topic}");
        }
    }

    #[test]
    fn webhooks_are_told_what_operators_read_and_tokens_ask_for_no_more_than_they_may() {
        assert!(webhooks_hear("user.created") && webhooks_hear("setting.changed"));
        for topic in ["admin.created", "api_token.created", "what.is_this"] {
            assert!(!webhooks_hear(topic), "{topic}");
        }
        let check = |scopes: &[&str], topics: &[&str]| {
            let topics: Vec<String> = topics.iter().map(ToString::to_string).collect();
            check_webhook(&caller(Role::Owner, Some(scopes)), &topics).is_ok()
        };
        let users = ["webhooks:write", "users:read"];
        assert!(check(&users, &["user.*", "user.created"]));
        let of_users = of_webhooks(&caller(Role::Owner, Some(&users)));
        assert_eq!(of_users, ["assignment.*", "user.*"]);
        assert!(check(&users, &["user.*"]));
        for topics in [
            &[][..],
            &["*"],
            &["user.*", "node.revoked"],
            &["n*"],
            &["node.s*"],
        ] {
            assert!(!check(&users, topics), "{topics:?}");
        }
        // What webhooks are not told anyway needs no right.
        assert!(check(&users, &["admin.*", "nothing"]));
        for role in [Role::Owner, Role::Operator] {
            check_webhook(&caller(role, None), &[]).unwrap();
        }
    }

    #[test]
    fn every_topic_of_the_code_is_of_a_known_kind() {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let mut found = Vec::new();
        for folder in ["auth", "reconcile", "rpc", "service", "store"] {
            topics_in(&source.join(folder), &mut found);
        }
        for file in [
            "core.rs",
            "events.rs",
            "master.rs",
            "rotation.rs",
            "webhook/mod.rs",
        ] {
            topics_of(&source.join(file), &mut found);
        }
        assert!(found.len() > 40, "{found:?}");
        for topic in [
            "user.created",
            "admin.refresh_reused",
            "node.certificate_expiring",
        ] {
            assert!(found.iter().any(|found| found == topic), "{topic}");
        }
        let unknown: Vec<_> = found
            .iter()
            .filter(|text| read_by(text).is_none() && !NO_TOPICS.contains(&text.as_str()))
            .collect();
        assert!(unknown.is_empty(), "no kind in READ_BY: {unknown:?}");
    }

    /// Texts that look like topics and are none.
    const NO_TOPICS: &[&str] = &[
        "admins.totp",
        "api.sessions",
        "body.listen",
        "body.obfs",
        "certificate_authorities.private_key",
        "check.db",
        "cluster.fleet_keys",
        "internal.audit_head",
        "internal.event_seq",
        "node_tls.private_key",
        "secrets.value",
        "signing_keys.private_key",
        "u.created_at",
        "u.id",
        "u.username",
        "webhooks.secret",
    ];

    fn topics_in(folder: &Path, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => topics_in(&path, found),
                // What stands here is no evidence of what is told.
                false if path.ends_with("auth/topics.rs") => {}
                false => topics_of(&path, found),
            }
        }
    }

    /// Adds what stands between quotes in a file and has the form of a topic.
    fn topics_of(file: &Path, found: &mut Vec<String>) {
        let text = std::fs::read_to_string(file).unwrap();
        let word = |word: &str| {
            !word.is_empty()
                && word
                    .bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte == b'_')
        };
        for line in text.lines() {
            let quoted = line.split('"').skip(1).step_by(2);
            let topics = quoted.filter(|text| {
                let parts = text.split_once('.');
                parts.is_some_and(|(kind, what)| word(kind) && word(what))
            });
            found.extend(topics.map(str::to_owned));
        }
    }
}
