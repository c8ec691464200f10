//! Runs every target over its committed corpus: no fuzzer, no nightly compiler.

use std::{
    collections::BTreeSet,
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use hy2_fuzz::{TARGETS, admin_fields::METHODS, control_messages::MESSAGES};

#[test]
fn every_corpus_passes() {
    let mut failed = Vec::new();
    // Some of them, for who asks what their inputs reach.
    let only = std::env::var("HY2_FUZZ_TARGETS").ok();
    for (name, target) in TARGETS {
        if let Some(only) = &only
            && !only.split_whitespace().any(|it| it == *name)
        {
            continue;
        }
        let inputs = files(&root().join("corpus").join(name));
        assert!(!inputs.is_empty(), "{name} has no corpus");
        for path in inputs {
            let input = fs::read(&path).expect("an input");
            // The panic's own message has been printed by then.
            if catch_unwind(AssertUnwindSafe(|| target(&input))).is_err() {
                failed.push(path);
            }
        }
    }
    assert!(failed.is_empty(), "inputs that fail: {failed:#?}");
}

#[test]
fn every_target_has_a_fuzzer_and_every_fuzzer_a_target() {
    let names: BTreeSet<_> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    let stem = |path: PathBuf| Some(path.file_stem()?.to_str()?.to_owned());
    let sources: BTreeSet<_> = files(&root().join("fuzz_targets"))
        .into_iter()
        .filter_map(stem)
        .collect();
    assert_eq!(sources, names);
    let manifest = fs::read_to_string(root().join("Cargo.toml")).expect("the manifest");
    let (_, binaries) = manifest.split_once("[[bin]]").expect("fuzzers");
    let binaries: BTreeSet<_> = binaries
        .lines()
        .filter_map(|line| line.strip_prefix("name = \"")?.strip_suffix('"'))
        .map(str::to_owned)
        .collect();
    assert_eq!(binaries, names);
}

/// A patch whose lines are no longer there plants nothing.
#[test]
fn every_target_has_a_bug_to_plant_where_the_code_still_is() {
    for (name, _) in TARGETS {
        let patch = root().join(format!("planted/{name}.patch"));
        let patch = fs::read_to_string(&patch).unwrap_or_else(|error| panic!("{patch:?}: {error}"));
        let mut lines = patch.lines();
        let path = lines.next().and_then(|line| line.strip_prefix("--- a/"));
        let path = root().join("..").join(path.expect("a file"));
        let source = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
        assert!(patch.contains(&format!("planted(\"{name}\")")), "{name}");
        for hunk in patch.split("\n@@ ").skip(1) {
            let before: Vec<_> = hunk
                .lines()
                .skip(1)
                .filter(|line| !line.starts_with('+'))
                .map(|line| line.get(1..).unwrap_or_default())
                .collect();
            let before = before.join("\n");
            assert!(
                source.contains(&before),
                "{name}: the code has changed\n{before}"
            );
        }
        let module = root().join(format!("src/{name}.rs"));
        let module = fs::read_to_string(&module).expect("a module");
        assert!(
            module.contains("//! Planted bug: "),
            "{name} does not name it"
        );
    }
}

#[test]
fn every_message_of_the_contracts_is_fuzzed() {
    let generated = root().join("../hy2-proto/src/control/gen/hy2.control.v1.rs");
    let generated = fs::read_to_string(generated).expect("the generated code");
    let messages: Vec<_> = generated
        .split("::prost::Message)]")
        .skip(1)
        .filter_map(|after| after.split_once("pub struct ")?.1.split([' ', '{']).next())
        .collect();
    let listed: Vec<_> = MESSAGES.iter().map(|(name, _)| *name).collect();
    assert_eq!(listed, messages);
    assert!(listed.len() <= 256, "one byte chooses");
}

#[test]
fn every_request_of_administrators_is_fuzzed() {
    let contract = root().join("../hy2-proto/proto/hy2/control/v1/admin.proto");
    let contract = fs::read_to_string(contract).expect("the contract");
    let methods: Vec<_> = contract
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("rpc ")?.split('(').next())
        .collect();
    let listed: Vec<_> = METHODS.iter().map(|(name, _)| *name).collect();
    assert_eq!(listed, methods);
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All files of a folder by name, but hidden ones.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{folder:?}: {error}"));
    let mut paths: Vec<_> = entries
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| {
            !path
                .file_name()
                .is_some_and(|name| name.as_encoded_bytes()[0] == b'.')
        })
        .collect();
    paths.sort();
    paths
}
