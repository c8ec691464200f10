//! Logins, sessions, second factors, tokens, and whom the command talks to.

use std::fs;

use serde_json::{Value, json};

use crate::support::{Ctl, Fleet, OWNER};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_is_kept_for_its_owner_only_and_logout_ends_it() {
    let fleet = Fleet::start().await;
    let ctl = fleet.ctl();
    let wrong = ctl.with("HY2CTL_PASSWORD", "not the password").run(&[
        "login",
        "--url",
        &fleet.url(),
        "--username",
        OWNER,
    ]);
    assert_eq!((wrong.code, wrong.stdout.as_str()), (3, ""));
    assert!(wrong.stderr.contains("hy2ctl: "), "{}", wrong.stderr);
    assert_eq!(ctl.run(&["whoami"]).code, 3, "nothing was kept");

    let password = fleet.file("password", &format!("{}\n", fleet.password()));
    let login = ctl.run(&[
        "login",
        "--url",
        &fleet.url(),
        "--username",
        OWNER,
        "--password-file",
        &password,
    ]);
    assert_eq!(login.ok(), "logged in as admin (owner)\n");
    assert_eq!(ctl.json(&["whoami"])["username"], OWNER);
    assert!(ctl.run(&["whoami"]).ok().contains("owner"));

    let kept = fs::read_to_string(&ctl.profiles).unwrap();
    let kept: Value = serde_json::from_str(&kept).unwrap();
    assert!(kept["default"]["session"]["refresh_token"].is_string());
    assert!(!kept.to_string().contains(fleet.password()));
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode =
            |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&ctl.profiles), 0o600);
        fs::set_permissions(&ctl.profiles, fs::Permissions::from_mode(0o644)).unwrap();
        let exposed = ctl.run(&["whoami"]);
        assert_eq!(exposed.code, 1);
        assert!(exposed.stderr.contains("chmod 600"), "{}", exposed.stderr);
        fs::set_permissions(&ctl.profiles, fs::Permissions::from_mode(0o600)).unwrap();
    }

    let token = kept["default"]["session"]["access_token"].as_str().unwrap();
    assert_eq!(ctl.run(&["logout"]).ok(), "logged out\n");
    assert_eq!(ctl.run(&["whoami"]).code, 3);
    let stolen = ctl
        .with("HY2CTL_URL", &fleet.url())
        .with("HY2CTL_TOKEN", token);
    assert_eq!(
        stolen.run(&["whoami"]).code,
        3,
        "the session is over on the other side too"
    );
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_is_renewed_once_however_many_ask_at_once() {
    let fleet = Fleet::start().await;
    let ctl = fleet.owner();
    let age = |change: &dyn Fn(&mut Value)| {
        let mut kept: Value = serde_json::from_slice(&fs::read(&ctl.profiles).unwrap()).unwrap();
        change(&mut kept["default"]["session"]);
        fs::write(&ctl.profiles, kept.to_string()).unwrap();
        kept["default"]["session"]["refresh_token"].clone()
    };
    let refresh = |ctl: &Ctl| {
        let kept: Value = serde_json::from_slice(&fs::read(&ctl.profiles).unwrap()).unwrap();
        kept["default"]["session"]["refresh_token"].clone()
    };
    // By the clock.
    let before = age(&|session| session["access_expires_at"] = json!("2020-01-01T00:00:00Z"));
    let asking: Vec<_> = (0..4).map(|_| ctl.start(&["--json", "whoami"])).collect();
    for child in asking {
        let output = child.wait_with_output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let after = refresh(&ctl);
    assert_ne!(before, after);
    assert_eq!(
        ctl.run(&["whoami"]).code,
        0,
        "no refresh token was spent twice"
    );
    // By the answer.
    age(&|session| session["access_token"] = json!("x.y.z"));
    assert_eq!(ctl.run(&["whoami"]).code, 0);
    assert_ne!(refresh(&ctl), after);
    // A session that was ended elsewhere.
    age(&|session| {
        session["access_token"] = json!("x.y.z");
        session["refresh_token"] = json!("hy2r_nonsense");
    });
    let over = ctl.run(&["whoami"]);
    assert_eq!(over.code, 3);
    assert!(over.stderr.contains("hy2ctl login"), "{}", over.stderr);
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn passwords_second_factors_and_api_tokens_are_managed() {
    let fleet = Fleet::start().await;
    let ctl = fleet.owner();
    let weak = ctl
        .with("HY2CTL_PASSWORD", fleet.password())
        .with("HY2CTL_NEW_PASSWORD", "short")
        .run(&["passwd"]);
    assert_eq!(weak.code, 5, "{}", weak.stderr);
    let changed = ctl
        .with("HY2CTL_PASSWORD", fleet.password())
        .with("HY2CTL_NEW_PASSWORD", "chosen by oneself")
        .run(&["passwd"]);
    assert_eq!(changed.ok(), "the password is changed\n");
    assert_eq!(ctl.json(&["whoami"])["username"], OWNER);

    let made = ctl.json(&["totp", "begin"]);
    assert!(ctl.run(&["totp", "begin", "--qr"]).ok().contains('█'));
    assert_eq!(ctl.run(&["totp", "confirm", "000000"]).code, 3);
    let made = ctl
        .json(&["totp", "begin"])
        .as_object()
        .map_or(made, |again| again.clone().into());
    let code = || crate::support::totp(made["uri"].as_str().unwrap());
    assert_eq!(
        ctl.run(&["totp", "confirm", &code()]).ok(),
        "the second factor is in force\n"
    );
    let url = fleet.url();
    let login = ["login", "--url", &url, "--username", OWNER];
    let other = ctl.with("HY2CTL_PASSWORD", "chosen by oneself");
    let asked = other.run(&login);
    assert_eq!(asked.code, 2, "{}", asked.stderr);
    assert!(asked.stderr.contains("--code"), "{}", asked.stderr);
    let wrong = other.with("HY2CTL_CODE", "000000").run(&login);
    assert_eq!(wrong.code, 3, "{}", wrong.stderr);

    assert_eq!(ctl.run(&["api-tokens", "create", "x"]).code, 2);
    let refused = ctl.run(&["api-tokens", "create", "x", "--scope", "everything:write"]);
    assert_eq!(refused.code, 5);
    assert!(refused.stderr.contains("scopes"), "{}", refused.stderr);
    let token = ctl
        .run(&[
            "api-tokens",
            "create",
            "ci",
            "--scope",
            "users:read",
            "--scope",
            "account:read",
            "--expires",
            "1d",
        ])
        .ok();
    let listed = ctl.json(&["api-tokens", "list"]);
    assert_eq!(listed["items"][0]["name"], "ci");

    // By the environment, and by a profile.
    let ci = ctl
        .with("HY2CTL_URL", &url)
        .with("HY2CTL_TOKEN", token.trim());
    assert_eq!(ci.json(&["users", "list"])["items"], json!([]));
    // Who names a profile means it, and half of the two is no answer to where.
    assert_eq!(ci.run(&["whoami"]).code, 0);
    let named = ci.run(&["--profile", "none", "whoami"]);
    assert_eq!(named.code, 3);
    assert!(named.stderr.contains("no profile none"), "{}", named.stderr);
    let half = ctl.with("HY2CTL_TOKEN", token.trim()).run(&["whoami"]);
    assert_eq!(half.code, 2);
    assert!(half.stderr.contains("HY2CTL_URL"), "{}", half.stderr);
    let elsewhere = ctl
        .with("HY2CTL_URL", "http://127.0.0.1:9")
        .run(&["whoami"]);
    assert_eq!(elsewhere.code, 2);
    assert!(
        elsewhere.stderr.contains("HY2CTL_TOKEN"),
        "{}",
        elsewhere.stderr
    );
    ctl.with("HY2CTL_URL", &url).run(&["whoami"]).ok();
    let denied = ci.run(&["nodes", "list"]);
    assert_eq!(denied.code, 3);
    let file = fleet.file("token", &token);
    let login = ctl.run(&[
        "--profile",
        "ci",
        "login",
        "--url",
        &url,
        "--token-file",
        &file,
    ]);
    assert_eq!(login.ok(), "logged in as admin (owner)\n");
    assert_eq!(ctl.run(&["--profile", "ci", "users", "list"]).code, 0);
    // One that may not ask whose it is serves for what it may.
    let narrow = ["api-tokens", "create", "narrow", "--scope", "users:read"];
    let narrow = fleet.file("narrow", &ctl.run(&narrow).ok());
    let kept = ctl.run(&[
        "--profile",
        "narrow",
        "login",
        "--url",
        &url,
        "--token-file",
        &narrow,
    ]);
    assert!(kept.ok().starts_with("token kept"));
    assert_eq!(ctl.run(&["--profile", "narrow", "users", "list"]).code, 0);
    let id = listed["items"][0]["id"].as_str().unwrap();
    assert_eq!(ctl.run(&["--yes", "api-tokens", "revoke", id]).code, 0);
    assert_eq!(ctl.run(&["--profile", "ci", "users", "list"]).code, 3);
    assert_eq!(
        ctl.run(&["--yes", "api-tokens", "revoke", "../users/1"])
            .code,
        2
    );
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_tls_the_orchestrator_proves_who_it_is() {
    let (authority, own, stranger) = (
        crate::support::authority(),
        crate::support::authority(),
        crate::support::authority(),
    );
    let tls = crate::support::tls(&authority, "localhost");
    let fleet = Fleet::with(|config| config.api_tls = Some(tls)).await;
    let url = fleet.url().replace("http://127.0.0.1", "https://localhost");
    let ctl = fleet.ctl().with("HY2CTL_PASSWORD", fleet.password());
    let login =
        |more: &[&str]| ctl.run(&[&["login", "--url", &url, "--username", OWNER], more].concat());

    let unknown = login(&[]);
    assert_eq!(unknown.code, 6, "{}", unknown.stderr);
    let wrong = fleet.file("wrong.pem", &own.pem());
    assert_eq!(login(&["--ca", &wrong]).code, 6);
    let nonsense = fleet.file("nonsense.pem", "nonsense");
    assert_eq!(login(&["--ca", &nonsense]).code, 1);
    let right = fleet.file("right.pem", &authority.pem());
    assert_eq!(
        login(&["--ca", &right]).ok(),
        "logged in as admin (owner)\n"
    );
    fs::remove_file(&right).unwrap();
    assert_eq!(
        ctl.json(&["whoami"])["username"],
        OWNER,
        "the profile keeps it"
    );

    assert_eq!(login(&["--ca-pin", "sha256:12"]).code, 2);
    assert_eq!(
        login(&["--ca-pin", &crate::support::pin(&stranger)]).code,
        6
    );
    assert_eq!(
        login(&["--ca-pin", &crate::support::pin(&authority)]).code,
        0
    );
    assert_eq!(ctl.run(&["whoami"]).code, 0);
    // The authority is the right one, the name is not.
    let other = url.replace("localhost", "127.0.0.1");
    let pin = crate::support::pin(&authority);
    let named = ctl.run(&[
        "login",
        "--url",
        &other,
        "--username",
        OWNER,
        "--ca-pin",
        &pin,
    ]);
    assert_eq!(named.code, 6, "{}", named.stderr);
    fleet.stop().await;
}
