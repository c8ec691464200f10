//! The soak finds what it is there to find, and nothing where there is nothing.

use std::process::{Command, Output};

/// Soaks for a few rounds as short as they can be.
fn soak(arguments: &[&str]) -> (bool, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = Command::new(env!("CARGO_BIN_EXE_hy2-soak"))
        .args(["--minutes", "0", "--rounds", "6", "--churn", "1"])
        .args(["--actors", "10"])
        .args(arguments)
        .output()
        .expect("the soak runs");
    let text = [stdout, stderr].concat();
    (
        status.success(),
        String::from_utf8_lossy(&text).into_owned(),
    )
}

/// The sentences of a failed soak about what leaked.
fn leaks(text: &str) -> Vec<&str> {
    let failed = text.lines().find_map(|line| line.split_once("FAILED: "));
    failed.map_or(Vec::new(), |(_, leaks)| leaks.split("; ").collect())
}

#[test]
fn a_clean_run_passes() {
    let (passed, text) = soak(&[]);
    assert!(passed, "{text}");
    assert!(text.contains("PASSED after 6 rounds"), "{text}");
}

#[test]
fn leaked_memory_is_found() {
    // Of 2 MiB in each round.
    memory_is_found("memory");
}

/// Whatever becomes of other servers.
#[test]
fn memory_that_a_server_keeps_is_found() {
    memory_is_found("server");
}

fn memory_is_found(plant: &str) {
    let (passed, text) = soak(&["--plant", plant]);
    assert!(!passed, "{text}");
    let leaks = leaks(&text);
    assert!(!leaks.is_empty(), "{text}");
    let of_memory = |leak: &&str| leak.contains(" memory grew by ");
    assert!(leaks.iter().all(of_memory), "{text}");
}

#[test]
fn leaked_tasks_are_found() {
    let (passed, text) = soak(&["--plant", "task"]);
    assert!(!passed, "{text}");
    assert_eq!(leaks(&text), ["5 tasks are left over in pause 6"], "{text}");
}

#[test]
fn leaked_descriptors_are_found() {
    let (passed, text) = soak(&["--plant", "file"]);
    assert!(!passed, "{text}");
    assert_eq!(
        leaks(&text),
        ["5 descriptors are left over in pause 6"],
        "{text}"
    );
}
