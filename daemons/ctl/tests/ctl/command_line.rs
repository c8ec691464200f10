//! What the command line itself takes, refuses and says.

use std::fs;

use serde_json::{Value, json};

use crate::support::{Ctl, Fleet};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_refused_names_the_field_and_the_exit_code_says_why() {
    // An address of its own: no other test's orchestrator gets the port when this one is gone.
    let fleet = Fleet::with(|config| config.api = Some(([127, 93, 71, 3], 0).into())).await;
    let ctl = fleet.owner();
    let refused = ctl.run(&["users", "create", "no such name!"]);
    assert_eq!((refused.code, refused.stdout.as_str()), (5, ""));
    assert!(
        refused.stderr.contains("\n  username: "),
        "{}",
        refused.stderr
    );
    let refused = ctl.run(&["--json", "users", "create", "no such name!"]);
    let problem: Value = serde_json::from_str(&refused.stderr).unwrap();
    assert_eq!(
        (&problem["code"], &problem["errors"][0]["path"]),
        (&json!("invalid"), &json!("username"))
    );
    ctl.run(&["users", "create", "ann"]).ok();
    assert_eq!(ctl.run(&["users", "create", "ann"]).code, 5, "exists");
    assert_eq!(ctl.run(&["users", "show", "99"]).code, 4);
    assert_eq!(ctl.run(&["users", "show", "nobody"]).code, 4);
    assert_eq!(ctl.run(&["users", "fly"]).code, 2);
    assert_eq!(
        ctl.run(&["users", "create", "x", "--quota", "much"]).code,
        2
    );
    assert!(ctl.run(&["--help"]).ok().contains("Exit codes:"));
    let version = ctl.json(&["version"]);
    assert_eq!(version["hy2ctl"], env!("CARGO_PKG_VERSION"));
    assert!(version["api"].is_string());

    let url = fleet.url();
    let _folder = fleet.stop().await;
    let down = ctl.run(&["users", "list"]);
    assert_eq!(down.code, 6);
    assert!(down.stderr.contains(&url), "{}", down.stderr);
    let down = ctl.run(&["--json", "users", "list"]);
    assert_eq!(
        serde_json::from_str::<Value>(&down.stderr).unwrap()["code"],
        "unreachable"
    );
    assert!(ctl.run(&["version"]).stderr.contains("the orchestrator: "));
    assert_eq!(
        ctl.run(&["events"]).code,
        6,
        "what never worked is not tried again"
    );
    // Nobody to tell, and still logged out.
    assert_eq!(ctl.run(&["logout"]).code, 0);
    assert_eq!(ctl.run(&["logout"]).code, 3);
    let plain = ctl.with("HY2CTL_PASSWORD", "x").run(&[
        "login",
        "--url",
        "http://192.0.2.1",
        "--username",
        "x",
    ]);
    assert_eq!(plain.code, 2);
    assert!(plain.stderr.contains("https"), "{}", plain.stderr);
    let nobody = ctl.run(&["login", "--url", &url, "--username", "x"]);
    assert_eq!(nobody.code, 2, "nobody to ask for a password");
}

#[test]
fn completions_are_valid_and_complete() {
    let folder = tempfile::tempdir().unwrap();
    let ctl = Ctl::new(
        env!("CARGO_BIN_EXE_hy2ctl").as_ref(),
        folder.path().join("ctl.json"),
    );
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = ctl.run(&["completions", shell]).ok();
        assert!(script.contains("rotate-credentials"), "{shell}");
    }
    let script = folder.path().join("hy2ctl.bash");
    fs::write(&script, ctl.run(&["completions", "bash"]).ok()).unwrap();
    let ask = "source \"$1\"; COMP_WORDS=(hy2ctl users cre); COMP_CWORD=2; \
               _hy2ctl hy2ctl cre users; echo \"${COMPREPLY[*]}\"; complete -p hy2ctl";
    let asked = std::process::Command::new("bash")
        .args(["--norc", "-c", ask, "bash"])
        .arg(&script)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&asked.stdout).into_owned();
    assert!(
        text.starts_with("create\n"),
        "{text}{}",
        String::from_utf8_lossy(&asked.stderr)
    );
    assert!(text.contains("_hy2ctl"), "{text}");
}

#[test]
fn a_command_line_that_is_not_right_is_told_in_json_to_programs() {
    let directory = tempfile::tempdir().unwrap();
    let ctl = Ctl::new(
        env!("CARGO_BIN_EXE_hy2ctl").as_ref(),
        directory.path().join("ctl.json"),
    );
    for (arguments, detail) in [
        (&["--json", "foo"][..], "unrecognized subcommand 'foo'"),
        (&["--json", "nodes", "get", "n1"], "unrecognized subcommand"),
        (
            &["users", "list", "--json", "--size", "x"],
            "invalid value 'x' for '--size",
        ),
        (
            &["--json", "users", "show"],
            "required arguments were not provided",
        ),
        (
            &["--json", "--nonsense"],
            "unexpected argument '--nonsense'",
        ),
        (&["--json"], "a command is missing"),
        (&["--json", "nodes"], "a command is missing"),
    ] {
        let ran = ctl.run(arguments);
        assert_eq!((ran.code, ran.stdout.as_str()), (2, ""), "{arguments:?}");
        let told: Value = serde_json::from_str(&ran.stderr).expect(&ran.stderr);
        assert_eq!(told["code"], "usage", "{told}");
        let told = told["detail"].as_str().unwrap();
        assert!(told.contains(detail), "{told}");
        assert!(
            !told.contains("Usage:") && !told.contains("For more"),
            "{told}"
        );
    }
    // To people as before.
    let ran = ctl.run(&["foo"]);
    assert_eq!(ran.code, 2);
    assert!(ran.stderr.contains("Usage: hy2ctl"), "{}", ran.stderr);
    let ran = ctl.run(&["users", "show", "--", "--json", "x"]);
    assert!(
        ran.code == 2 && ran.stderr.contains("Usage:"),
        "{}",
        ran.stderr
    );
    for asked in ["--help", "--version"] {
        let ran = ctl.run(&["--json", asked]);
        assert_eq!(ran.stderr, "");
        assert!(ran.ok().contains("hy2ctl"), "{}", ran.stdout);
    }
}
