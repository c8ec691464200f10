//! `hy2-agent` as a program: what it prints and how it exits.
#![cfg(unix)]

use std::{
    fs,
    io::Write,
    path::Path,
    process::{Command, Output, Stdio},
};

fn agent(folder: &Path, arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(assert_cmd::cargo::cargo_bin!("hy2-agent"))
        .args(arguments)
        .current_dir(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    let mut stdin = child.stdin.take().expect("piped");
    // A program that does not read its input is no failure here.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    child.wait_with_output().expect("ends")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_right_configuration_is_said_to_be_and_a_wrong_one_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("agent.yaml");
    fs::write(&file, "dataDir: data\nmasters: ['127.0.0.1:1']\n").expect("written");
    let checked = agent(folder.path(), &["check", "-c", "agent.yaml"], "");
    assert!(checked.status.success(), "{}", text(&checked.stderr));
    assert_eq!(text(&checked.stdout), "agent.yaml: ok\n");

    fs::write(
        &file,
        "dataDir: data\nmasters: ['127.0.0.1:1']\ncolour: red\n",
    )
    .expect("written");
    let checked = agent(folder.path(), &["check", "-c", "agent.yaml"], "");
    assert!(!checked.status.success());
    let said = text(&checked.stderr);
    assert!(said.contains("colour"), "{said}");
    assert!(!said.contains("panicked"), "{said}");
}

#[test]
fn a_pin_that_is_none_and_an_empty_token_are_refused_before_anybody_is_asked() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("agent.yaml");
    fs::write(&file, "dataDir: data\nmasters: ['127.0.0.1:1']\n").expect("written");
    let pin = format!("sha256:{}", "ab".repeat(32));
    for (pin, token, wanted) in [
        ("sha256:12", "token", "--ca-pin"),
        (&*pin, "\n", "the token is empty"),
    ] {
        let arguments = ["enrol", "-c", "agent.yaml", "--ca-pin", pin];
        let refused = agent(folder.path(), &arguments, token);
        assert!(!refused.status.success());
        let said = text(&refused.stderr);
        assert!(said.contains(wanted), "{said}");
        assert!(!folder.path().join("data/agent.sock").exists());
    }
}

#[test]
fn status_without_an_agent_says_that_nobody_answers() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("agent.yaml");
    fs::write(&file, "dataDir: data\nmasters: ['127.0.0.1:1']\n").expect("written");
    let asked = agent(folder.path(), &["status", "-c", "agent.yaml"], "");
    assert!(!asked.status.success());
    let said = text(&asked.stderr);
    assert!(
        said.contains("no agent answers on data/agent.sock"),
        "{said}"
    );
}

#[test]
fn status_does_not_wait_for_ever_for_an_agent_that_hangs() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("agent.yaml");
    fs::write(&file, "dataDir: data\nmasters: ['127.0.0.1:1']\n").expect("written");
    fs::create_dir(folder.path().join("data")).expect("a folder");
    // Takes connections, and says nothing.
    let socket = folder.path().join("data/agent.sock");
    let _silent = std::os::unix::net::UnixListener::bind(socket).expect("a socket");
    let asked = agent(folder.path(), &["status", "-c", "agent.yaml"], "");
    assert!(!asked.status.success());
    let said = text(&asked.stderr);
    assert!(
        said.contains("the agent on data/agent.sock did not answer within 10 s"),
        "{said}"
    );
}
