//! What holds of the fields of every request, before anything is done with it: texts are without NUL, which no text of
//! PostgreSQL can hold, and moments are ones that the contract's type has.
//!
//! The contract's descriptor says which fields are texts and moments. So nothing is listed here, and a field that is new
//! in the contract is checked like the others.

use std::collections::HashMap;
use std::sync::LazyLock;

use hy2_proto::control::DESCRIPTOR;
use prost::Message;
use prost_types::field_descriptor_proto::Type;
use prost_types::{DescriptorProto, FileDescriptorSet, Timestamp};

use crate::service::FieldIssue;

/// Messages within each other that the decoder takes.
const MAX_DEPTH: u32 = 100;

/// Seconds since 1970 of the years 1 to 9999: what google.protobuf.Timestamp may say.
const SECONDS: std::ops::RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;

static CONTRACT: LazyLock<Contract> = LazyLock::new(|| {
    let set = FileDescriptorSet::decode(DESCRIPTOR);
    Contract::of(&set.expect("a test compares the descriptor with the contracts"))
});

/// Returns what is wrong with a request, as it came, to the method with that path; the first of it. Of what does not
/// decode nothing is said: the decoder refuses it.
pub(super) fn wrong(path: &str, body: &[u8]) -> Option<FieldIssue> {
    let message = CONTRACT.requests.get(path.trim_start_matches('/'))?;
    // Whether it is compressed, which nothing here takes, and how long it is.
    let (frame, rest) = body.split_first_chunk::<5>()?;
    let [_, length @ ..] = *frame;
    let length = usize::try_from(u32::from_be_bytes(length)).ok()?;
    CONTRACT.wrong(message, rest.get(..length)?, "", MAX_DEPTH)
}

struct Contract {
    /// Of each method, its request's type.
    requests: HashMap<String, String>,
    /// Of each type, the fields by their numbers.
    messages: HashMap<String, HashMap<u64, Field>>,
}

/// A field that is looked at.
struct Field {
    name: String,
    kind: Kind,
}

enum Kind {
    Text,
    Moment,
    /// A message of that type.
    Message(String),
}

impl Contract {
    fn of(set: &FileDescriptorSet) -> Self {
        let mut contract = Self {
            requests: HashMap::new(),
            messages: HashMap::new(),
        };
        for file in &set.file {
            for message in &file.message_type {
                contract.add(&format!(".{}.", file.package()), message);
            }
            for service in &file.service {
                for method in &service.method {
                    let path = format!("{}.{}/{}", file.package(), service.name(), method.name());
                    contract
                        .requests
                        .insert(path, method.input_type().to_owned());
                }
            }
        }
        contract
    }

    fn add(&mut self, within: &str, message: &DescriptorProto) {
        let name = format!("{within}{}", message.name());
        for nested in &message.nested_type {
            self.add(&format!("{name}."), nested);
        }
        let looked_at = message.field.iter().filter_map(|field| {
            let kind = match (field.r#type(), field.type_name()) {
                (Type::String, _) => Kind::Text,
                (Type::Message, ".google.protobuf.Timestamp") => Kind::Moment,
                (Type::Message, name) => Kind::Message(name.to_owned()),
                _ => return None,
            };
            let name = field.name().to_owned();
            let number = u64::from(field.number().unsigned_abs());
            Some((number, Field { name, kind }))
        });
        self.messages.insert(name, looked_at.collect());
    }

    fn wrong(
        &self,
        message: &str,
        mut encoded: &[u8],
        within: &str,
        depth: u32,
    ) -> Option<FieldIssue> {
        let fields = self.messages.get(message)?;
        let depth = depth.checked_sub(1)?;
        // Groups that are open. The decoder passes over what is in one, whatever it would be elsewhere.
        let mut groups = 0_usize;
        while !encoded.is_empty() {
            let key = varint(&mut encoded)?;
            let length = match key & 7 {
                0 => {
                    varint(&mut encoded)?;
                    continue;
                }
                1 => 8,
                2 => usize::try_from(varint(&mut encoded)?).ok()?,
                3 => {
                    groups += 1;
                    continue;
                }
                4 => {
                    groups = groups.checked_sub(1)?;
                    continue;
                }
                5 => 4,
                _ => return None,
            };
            let (value, rest) = encoded.split_at_checked(length)?;
            encoded = rest;
            let Some(field) = fields
                .get(&(key >> 3))
                .filter(|_| key & 7 == 2 && groups == 0)
            else {
                continue;
            };
            let path = format!("{within}{}", field.name);
            match &field.kind {
                Kind::Text if value.contains(&0) => {
                    return Some(FieldIssue::new(path, "must not contain NUL"));
                }
                Kind::Text => {}
                Kind::Moment => {
                    let at = Timestamp::decode(value).ok()?;
                    if !SECONDS.contains(&at.seconds) {
                        let message = "must be between the years 1 and 9999";
                        return Some(FieldIssue::new(path, message));
                    }
                    if !(0..=999_999_999).contains(&at.nanos) {
                        let path = format!("{path}.nanos");
                        return Some(FieldIssue::new(path, "must be between 0 and 999999999"));
                    }
                }
                Kind::Message(name) => {
                    let found = self.wrong(name, value, &format!("{path}."), depth);
                    if found.is_some() {
                        return found;
                    }
                }
            }
        }
        None
    }
}

/// Takes a number of variable length.
fn varint(encoded: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for (at, byte) in encoded.iter().enumerate().take(10) {
        value |= u64::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            *encoded = encoded.get(at + 1..)?;
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use hy2_proto::control::rpc as pb;

    use super::*;

    fn issue(method: &str, message: &[u8]) -> Option<FieldIssue> {
        let length = u32::try_from(message.len()).unwrap().to_be_bytes();
        let body = [&[0][..], &length, message].concat();
        wrong(&format!("/hy2.control.v1.AdminService/{method}"), &body)
    }

    fn path(method: &str, message: &impl Message) -> Option<String> {
        issue(method, &message.encode_to_vec()).map(|issue| issue.path)
    }

    fn plan(name: &str) -> pb::CreatePlanRequest {
        pb::CreatePlanRequest {
            request_id: "r".into(),
            plan: Some(pb::Plan {
                name: name.into(),
                quota_bytes: 1 << 56,
                ..Default::default()
            }),
        }
    }

    #[test]
    fn every_method_is_known() {
        let methods = CONTRACT.requests.keys();
        let ours = methods.filter(|path| path.starts_with("hy2.control.v1.AdminService/"));
        assert!(ours.count() > 20);
        let known = |request: &String| CONTRACT.messages.contains_key(request);
        assert!(CONTRACT.requests.values().all(known));
    }

    #[test]
    fn nul_is_found_wherever_a_text_is() {
        let tags = pb::NodeTags {
            tags: vec!["a".into(), "b\0".into()],
        };
        let node = pb::UpdateNodeRequest {
            id: 256,
            tags: Some(tags),
            ..Default::default()
        };
        assert_eq!(path("UpdateNode", &node).as_deref(), Some("tags.tags"));
        assert_eq!(
            path("CreatePlan", &plan("a\0")).as_deref(),
            Some("plan.name")
        );
        // Numbers and places have bytes that are 0.
        let region = pb::CreateRegionRequest {
            code: "us".into(),
            latitude: Some(0.0),
            longitude: Some(2.0),
            ..Default::default()
        };
        assert_eq!(path("CreateRegion", &region), None);
        assert_eq!(path("CreatePlan", &plan("a")), None);
        let node = pb::UpdateNodeRequest {
            capacity_sessions: Some(0),
            tags: Some(pb::NodeTags::default()),
            ..Default::default()
        };
        assert_eq!(path("UpdateNode", &node), None);
    }

    #[test]
    fn nothing_in_front_hides_a_field() {
        let text = b"\x52\x01\0";
        let note = issue("CreateUser", text).map(|issue| issue.path);
        assert_eq!(note.as_deref(), Some("note"));
        let unknown: [&[u8]; 6] = [
            b"\xf8\x07\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
            b"\xf9\x07\0\0\0\0\0\0\0\0",
            b"\xfa\x07\x02\0\0",
            b"\xfb\x07\x08\x01\xfc\x07",
            b"\xfd\x07\0\0\0\0",
            b"\x52\x01a",
        ];
        for before in unknown {
            let message = [before, text].concat();
            // The decoder takes it too: it would come in.
            let decoded = pb::CreateUserRequest::decode(&message[..]).unwrap();
            assert_eq!(decoded.note, "\0");
            let note = issue("CreateUser", &message).map(|issue| issue.path);
            assert_eq!(note.as_deref(), Some("note"), "{before:?}");
        }
    }

    #[test]
    fn what_is_in_a_group_is_passed_over_as_by_the_decoder() {
        let note = |message: &[u8]| {
            let decoded = pb::CreateUserRequest::decode(message).unwrap();
            let found = issue("CreateUser", message).map(|issue| issue.path);
            (decoded.note, found)
        };
        // Every field there is, as bytes that are neither a text nor a message.
        let all: Vec<u8> = (1..16_u8)
            .flat_map(|number| [number << 3 | 2, 2, 0xff, 0xff])
            .collect();
        for inside in [&b"\x52\x01\0"[..], b"\x53\x52\x01\0\x54", &all] {
            let group = [b"\xfb\x07", inside, b"\xfc\x07"].concat();
            assert_eq!(note(&group), (String::new(), None), "{group:?}");
            // What follows is looked at.
            let before = [&group[..], b"\x52\x01\0"].concat();
            assert_eq!(note(&before), ("\0".into(), Some("note".into())));
        }
    }

    #[test]
    fn what_is_cut_off_is_left_to_the_decoder() {
        let whole = plan("a\0").encode_to_vec();
        for end in 0..whole.len() - 1 {
            let _ = issue("CreatePlan", &whole[..end]);
        }
        assert_eq!(issue("CreatePlan", b"\x12\xff\xff\xff\xff\x0f"), None);
        assert_eq!(
            wrong("/hy2.control.v1.AdminService/CreatePlan", b"\0\0"),
            None
        );
        assert_eq!(issue("NoSuch", &whole), None);
    }

    #[test]
    fn moments_are_those_that_the_contract_has() {
        let at = |seconds, nanos| {
            let to = Some(Timestamp { seconds, nanos });
            let request = pb::GetTrafficRequest {
                to,
                ..Default::default()
            };
            path("GetTraffic", &request)
        };
        for (seconds, nanos, want) in [
            (0, 0, None),
            (*SECONDS.start(), 0, None),
            (*SECONDS.end(), 999_999_999, None),
            (*SECONDS.start() - 1, 0, Some("to")),
            (*SECONDS.end() + 1, 0, Some("to")),
            (i64::MIN, 0, Some("to")),
            (0, -5, Some("to.nanos")),
            (0, 1_000_000_000, Some("to.nanos")),
            (0, i32::MAX, Some("to.nanos")),
        ] {
            assert_eq!(at(seconds, nanos).as_deref(), want, "{seconds} {nanos}");
        }
    }
}
