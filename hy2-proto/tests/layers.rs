//! What depends on what (docs/architecture.md), as the manifests and the lock file have it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Names of packages, each with those that it is built with; of the workspace's own without what only tests use.
type Packages = BTreeMap<String, BTreeSet<String>>;

#[test]
fn the_two_halves_meet_in_the_contract_alone_and_the_orchestrator_links_no_quic() {
    let packages = packages();
    for (package, never) in [
        (
            "hy2-proto",
            &[
                "hy2-core",
                "hy2-agent-sdk",
                "hy2-master-sdk",
                "quinn-proto",
                "quinn-udp",
            ][..],
        ),
        ("hy2-core", &["hy2-agent-sdk", "hy2-master-sdk"]),
        ("hy2-agent-sdk", &["hy2-master-sdk"]),
        (
            "hy2-master-sdk",
            &[
                "hy2-agent-sdk",
                "hy2-core",
                "quinn",
                "quinn-proto",
                "quinn-udp",
            ],
        ),
        (
            "hy2-orchestrator",
            &[
                "hy2-agent-sdk",
                "hy2-core",
                "quinn",
                "quinn-proto",
                "quinn-udp",
            ],
        ),
        ("hy2-agent", &["hy2-master-sdk"]),
    ] {
        let reached = reached(&packages, package);
        assert!(reached.len() > 3, "{package}: {reached:?}");
        for other in never {
            assert!(!reached.contains(*other), "{package} depends on {other}");
        }
    }
    // The names above are those of today, and the walk finds what is there.
    let agent = reached(&packages, "hy2-agent");
    for there in [
        "hy2-agent-sdk",
        "hy2-core",
        "hy2-proto",
        "quinn",
        "quinn-proto",
        "quinn-udp",
    ] {
        assert!(agent.contains(there), "{there}");
    }
    assert!(reached(&packages, "hy2-orchestrator").contains("hy2-master-sdk"));
}

/// Everything that a package is built with, at any distance.
fn reached<'a>(packages: &'a Packages, package: &'a str) -> BTreeSet<&'a str> {
    let mut reached = BTreeSet::new();
    let mut left = vec![package];
    while let Some(name) = left.pop() {
        let uses = packages
            .get(name)
            .unwrap_or_else(|| panic!("{name} is locked"));
        for other in uses {
            if reached.insert(other.as_str()) {
                left.push(other);
            }
        }
    }
    reached
}

fn packages() -> Packages {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let lock = std::fs::read_to_string(root.join("Cargo.lock")).unwrap();
    let mut packages = Packages::new();
    for package in lock.split("[[package]]").skip(1) {
        let name = package.split('"').nth(1).unwrap().to_owned();
        let uses = package.split_once("dependencies = [");
        let uses = uses.map_or("", |(_, uses)| uses.split(']').next().unwrap());
        // A name alone, or with a version where there are several: then what any of them uses counts.
        let uses = uses.lines().filter_map(|line| {
            line.split(['"', ' '])
                .find(|part| !part.is_empty() && *part != ",")
        });
        packages
            .entry(name)
            .or_default()
            .extend(uses.map(str::to_owned));
    }
    // The lock file has what tests use as well.
    let members = std::fs::read_to_string(root.join("Cargo.toml")).unwrap();
    let members = members
        .lines()
        .find(|line| line.starts_with("members = "))
        .unwrap();
    for member in members.split('"').skip(1).step_by(2) {
        let (name, uses) = manifest(root.join(member).join("Cargo.toml"));
        packages.insert(name, uses);
    }
    packages
}

/// Returns a package's name, and what it is built with: optional or not, on any target.
fn manifest(path: PathBuf) -> (String, BTreeSet<String>) {
    let text = std::fs::read_to_string(path).unwrap();
    let (mut name, mut uses, mut section) = (String::new(), BTreeSet::new(), "");
    for line in text.lines() {
        if line.starts_with('[') {
            section = line.trim_matches(['[', ']']);
            assert!(
                !section.contains("dependencies."),
                "{section}: not a line of its own"
            );
            continue;
        }
        let Some((key, value)) = line.split_once('=') else {
            continue;
        };
        if section == "package" && key.trim() == "name" {
            name = value.trim().trim_matches('"').to_owned();
        }
        let tests = section.ends_with("dev-dependencies");
        if section.ends_with("dependencies") && !tests && !key.starts_with([' ', '#']) {
            assert!(!value.contains("package ="), "{line}: renamed");
            uses.insert(key.trim().trim_end_matches(".workspace").to_owned());
        }
    }
    (name, uses)
}
