//! The committed gRPC code is what the `.proto` files give, and the contract only grows.
//!
//! `scripts/generate-proto.sh` runs this with `HY2_REGENERATE=1`, which writes in place of comparing.

use std::{collections::BTreeMap, env, fs, path::PathBuf};

use prost::Message;
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet,
    ServiceDescriptorProto,
};

const FILES: [&str; 4] = ["types", "master", "node", "admin"];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn compiled() -> FileDescriptorSet {
    let proto = root().join("proto");
    let files = FILES.map(|name| proto.join(format!("hy2/control/v1/{name}.proto")));
    protox::compile(files, [proto]).expect("the .proto files compile")
}

#[test]
fn committed_code_is_what_the_contracts_give() {
    let set = compiled();
    let out = tempfile::tempdir().expect("a directory");
    tonic_prost_build::configure()
        .codec_path("crate::control::Codec")
        .out_dir(out.path())
        .bytes(".")
        // A message is hashed and signed as it is encoded: the order of a map must not vary.
        .btree_map(".")
        .build_transport(false)
        .emit_rerun_if_changed(false)
        .compile_fds(set.clone())
        .expect("code is generated");
    let mut descriptor = set;
    for file in &mut descriptor.file {
        // Lines and columns say nothing about the contract.
        file.source_code_info = None;
    }
    let generated = fs::read(out.path().join("hy2.control.v1.rs")).expect("generated");
    let wanted = [
        ("src/control/gen/hy2.control.v1.rs", generated),
        ("proto/descriptor.binpb", descriptor.encode_to_vec()),
    ];
    for (path, bytes) in wanted {
        let path = root().join(path);
        if env::var_os("HY2_REGENERATE").is_some() {
            fs::create_dir_all(path.parent().expect("a file")).expect("writable");
            fs::write(&path, &bytes).expect("writable");
        }
        let committed = fs::read(&path).unwrap_or_default();
        assert!(
            committed == bytes,
            "{} is not what the .proto files give: run scripts/generate-proto.sh",
            path.display()
        );
    }
}

/// `proto/released.binpb` is the contract that agents and masters in the field speak. A release
/// replaces it by `descriptor.binpb`.
#[test]
fn the_contract_only_grows() {
    let released = fs::read(root().join("proto/released.binpb")).expect("the released contract");
    let released = FileDescriptorSet::decode(released.as_slice()).expect("a descriptor");
    assert_eq!(broken(&released, &compiled()), Vec::<String>::new());
}

#[test]
fn a_removed_field_a_changed_type_and_a_lost_method_are_seen() {
    let old = compiled();
    let mut new = old.clone();
    let ours = new
        .file
        .iter_mut()
        .filter(|file| file.package() == "hy2.control.v1");
    for file in ours {
        for message in &mut file.message_type {
            match message.name() {
                "UserEntry" => message.field.retain(|field| field.name() != "verifier"),
                "Heartbeat" => message.field[0].number = Some(99),
                "Cursor" => message.field[1].r#type = Some(9),
                _ => {}
            }
        }
        for service in &mut file.service {
            service.method.retain(|method| method.name() != "Enroll");
        }
        for e in &mut file.enum_type {
            e.value
                .retain(|value| value.name() != "ENGINE_STATE_FAILED");
        }
    }
    let found = broken(&old, &new).join("\n");
    for what in [
        "UserEntry.verifier",
        "Heartbeat.uptime",
        "Cursor.durable_seq",
        "MasterService.Enroll",
        "EngineState.ENGINE_STATE_FAILED",
    ] {
        assert!(found.contains(what), "{what} not in:\n{found}");
    }
}

/// What a peer that speaks `old` would miss in `new`.
fn broken(old: &FileDescriptorSet, new: &FileDescriptorSet) -> Vec<String> {
    let (old, new) = (flat(old), flat(new));
    old.iter()
        .filter(|(name, shape)| new.get(*name) != Some(shape))
        .map(|(name, shape)| format!("{name}: was {shape}, is {:?}", new.get(name)))
        .collect()
}

/// Every field, enum value and method of our package by its full name, with what must not change.
fn flat(set: &FileDescriptorSet) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    let ours = set
        .file
        .iter()
        .filter(|file| file.package() == "hy2.control.v1");
    for file in ours {
        file.message_type
            .iter()
            .for_each(|message| message_shape(message, "", &mut all));
        file.enum_type
            .iter()
            .for_each(|e| enum_shape(e, "", &mut all));
        file.service
            .iter()
            .for_each(|service| service_shape(service, &mut all));
    }
    assert!(all.len() > 300, "the contract was found: {}", all.len());
    all
}

fn message_shape(message: &DescriptorProto, outer: &str, all: &mut BTreeMap<String, String>) {
    let name = format!("{outer}{}", message.name());
    for field in &message.field {
        all.insert(format!("{name}.{}", field.name()), field_shape(field));
    }
    let inner = format!("{name}.");
    message
        .nested_type
        .iter()
        .for_each(|nested| message_shape(nested, &inner, all));
    message
        .enum_type
        .iter()
        .for_each(|e| enum_shape(e, &inner, all));
}

fn field_shape(field: &FieldDescriptorProto) -> String {
    format!(
        "{} {:?} {:?} {} oneof {:?}",
        field.number(),
        field.r#type(),
        field.label(),
        field.type_name(),
        field.oneof_index
    )
}

fn enum_shape(e: &EnumDescriptorProto, outer: &str, all: &mut BTreeMap<String, String>) {
    for value in &e.value {
        all.insert(
            format!("{outer}{}.{}", e.name(), value.name()),
            value.number().to_string(),
        );
    }
}

fn service_shape(service: &ServiceDescriptorProto, all: &mut BTreeMap<String, String>) {
    for method in &service.method {
        all.insert(
            format!("{}.{}", service.name(), method.name()),
            format!(
                "{} {} -> {} {}",
                method.client_streaming(),
                method.input_type(),
                method.server_streaming(),
                method.output_type()
            ),
        );
    }
}
