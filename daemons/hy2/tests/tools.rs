//! `cert`, `share` and `version`, and how the command line answers mistakes.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
};

#[test]
fn certificates_are_made_and_not_replaced_by_accident() {
    let folder = tempfile::tempdir().expect("folder");
    let made = hy2(
        folder.path(),
        &["cert", "--host", "example.com", "--host", "127.0.0.1"],
    );
    assert!(made.status.success(), "{made:?}");
    let said = String::from_utf8(made.stdout).expect("text");
    let pin = said
        .lines()
        .find_map(|line| line.strip_prefix("pinSHA256: "))
        .expect("a pin");
    assert!(
        pin.len() == 64 && pin.bytes().all(|c| c.is_ascii_hexdigit()),
        "{pin}"
    );
    let key = folder.path().join("key.pem");
    let before = fs::read(&key).expect("key");
    assert!(before.starts_with(b"-----BEGIN PRIVATE KEY-----"));
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = fs::metadata(&key).expect("key").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    let again = hy2(folder.path(), &["cert", "--host", "example.com"]);
    assert_eq!(again.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&again.stderr).contains("cert.pem exists; --overwrite"));
    assert_eq!(fs::read(&key).expect("key"), before);

    let replaced = hy2(
        folder.path(),
        &["cert", "--host", "example.com", "--overwrite"],
    );
    assert!(replaced.status.success(), "{replaced:?}");
    assert_ne!(fs::read(&key).expect("key"), before);

    for host in ["exa mple", "exämple", "a..b", ""] {
        let arguments = ["cert", "--host", host, "--cert", "x", "--key", "y"];
        let wrong = hy2(folder.path(), &arguments);
        assert_eq!(wrong.status.code(), Some(1), "{host}");
        let says = String::from_utf8_lossy(&wrong.stderr);
        assert!(
            says.contains(&format!("{host:?} is neither a DNS name nor an IP address")),
            "{says}"
        );
    }
    let arguments = [
        "cert",
        "--host",
        "*.example.com",
        "--cert",
        "x",
        "--key",
        "y",
    ];
    let wildcard = hy2(folder.path(), &arguments);
    assert!(wildcard.status.success(), "{wildcard:?}");
}

#[test]
fn links_say_what_the_file_says() {
    let folder = tempfile::tempdir().expect("folder");
    let pin = "ab".repeat(32);
    for (file, link) in [
        (
            "server: example.com\nauth: pass\n",
            "hysteria2://pass@example.com/".to_owned(),
        ),
        (
            "server: example.com:8443\nauth: 'john:wi/ck'\n",
            "hysteria2://john:wi%2Fck@example.com:8443/".to_owned(),
        ),
        (
            "server: '[2001:db8::1]:443,5000-6000'\n",
            "hysteria2://[2001:db8::1]:443,5000-6000/".to_owned(),
        ),
        (
            &format!(
                "server: a\nobfs: {{type: gecko, gecko: {{password: hidden}}}}\ntls: {{sni: b, insecure: true, pinSHA256: '{}'}}\n",
                pin.to_uppercase()
            ),
            format!(
                "hysteria2://a/?insecure=1&obfs=gecko&obfs-password=hidden&pinSHA256={pin}&sni=b"
            ),
        ),
        (
            "server: hy2://pass@example.com/?sni=b#name\n",
            "hysteria2://pass@example.com/?sni=b".to_owned(),
        ),
    ] {
        fs::write(folder.path().join("config.yaml"), file).expect("write");
        let shared = hy2(folder.path(), &["share"]);
        assert_eq!(
            String::from_utf8_lossy(&shared.stdout),
            format!("{link}\n"),
            "{shared:?}"
        );
        assert!(shared.stderr.is_empty(), "{shared:?}");
    }
    let qr = hy2(folder.path(), &["share", "--notext", "--qr"]);
    let qr = String::from_utf8(qr.stdout).expect("text");
    assert!(qr.contains('█') && !qr.contains("hysteria2"), "{qr}");
}

#[test]
fn a_link_that_lacks_something_is_given_with_a_warning() {
    let folder = tempfile::tempdir().expect("folder");
    let pin = "ab".repeat(32);
    for (tls, link, warning) in [
        ("ca: ca.pem", "hysteria2://a/", Some("tls.ca")),
        (
            &format!("ca: ca.pem, pinSHA256: {pin}"),
            &format!("hysteria2://a/?pinSHA256={pin}"),
            Some("tls.ca"),
        ),
        (
            &format!("ca: ca.pem, insecure: true, pinSHA256: {pin}"),
            &format!("hysteria2://a/?insecure=1&pinSHA256={pin}"),
            None,
        ),
        (
            "clientCertificate: c.pem, clientKey: k.pem",
            "hysteria2://a/",
            Some("tls.clientCertificate"),
        ),
        (
            // Not of tls.
            "{}, auth: Zk9+x",
            "hysteria2://Zk9%2Bx@a/",
            Some("'+'"),
        ),
    ] {
        let file = match tls.strip_prefix("{}, ") {
            Some(auth) => format!("server: a\n{auth}\n"),
            None => format!("server: a\ntls: {{{tls}}}\n"),
        };
        fs::write(folder.path().join("config.yaml"), file).expect("write");
        let shared = hy2(folder.path(), &["share"]);
        assert!(shared.status.success(), "{shared:?}");
        assert_eq!(String::from_utf8_lossy(&shared.stdout), format!("{link}\n"));
        let said = String::from_utf8_lossy(&shared.stderr);
        match warning {
            Some(key) => assert!(said.contains(key) && said.lines().count() == 1, "{said}"),
            None => assert_eq!(said, ""),
        }
    }
}

#[test]
fn the_command_line_is_told_about_mistakes() {
    let folder = tempfile::tempdir().expect("folder");
    let version = hy2(folder.path(), &["version"]);
    let expected = format!("hy2 {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(String::from_utf8_lossy(&version.stdout), expected);
    for wrong in [
        &["serve"][..],
        &["server", "--log-level", "loud"],
        &["server", "--threads", "0"],
        &["cert"],
        &["speedtest", "--duration", "10"],
        &["speedtest", "--skip-download", "--skip-upload"],
        &["ping"],
    ] {
        let answer = hy2(folder.path(), wrong);
        assert_eq!(answer.status.code(), Some(2), "{wrong:?}: {answer:?}");
    }
}

#[test]
fn flags_win_over_the_environment() {
    let folder = tempfile::tempdir().expect("folder");
    let settings = "server: a\nlazy: true\nsocks5: {listen: 127.0.0.1:0}\n";
    fs::write(folder.path().join("config.yaml"), settings).expect("write");
    let first_line = |arguments: &[&str]| {
        let mut client = Command::new(assert_cmd::cargo::cargo_bin!("hy2"))
            .arg("client")
            .args(arguments)
            .current_dir(folder.path())
            .env("HYSTERIA_LOG_FORMAT", "json")
            .stderr(Stdio::piped())
            .spawn()
            .expect("starts");
        let mut line = String::new();
        let mut log = BufReader::new(client.stderr.take().expect("piped"));
        log.read_line(&mut line).expect("a line");
        client.kill().expect("runs");
        client.wait().expect("ends");
        line
    };
    assert!(first_line(&[]).starts_with('{'));
    let console = first_line(&["--log-format", "console"]);
    assert!(console.contains("INFO listening kind="), "{console}");

    let wrong = Command::new(assert_cmd::cargo::cargo_bin!("hy2"))
        .arg("version")
        .env("HYSTERIA_LOG_LEVEL", "loud")
        .output()
        .expect("runs");
    assert_eq!(wrong.status.code(), Some(2), "{wrong:?}");
    // Set to nothing is not set.
    let unset = Command::new(assert_cmd::cargo::cargo_bin!("hy2"))
        .arg("version")
        .env("HYSTERIA_LOG_LEVEL", "")
        .env("HYSTERIA_LOG_FORMAT", "")
        .output()
        .expect("runs");
    assert!(unset.status.success(), "{unset:?}");
}

#[test]
fn without_a_command_a_client_runs_as_with_the_official_program() {
    let folder = tempfile::tempdir().expect("folder");
    fs::write(
        folder.path().join("c.yaml"),
        "server: a\nsocks5: {listen: nonsense}\n",
    )
    .expect("write");
    let client = hy2(folder.path(), &["client", "-c", "c.yaml"]);
    let official = hy2(folder.path(), &["-c", "c.yaml"]);
    assert_eq!(official.status.code(), Some(1));
    let said = String::from_utf8_lossy(&official.stderr).into_owned();
    assert!(said.contains("socks5.listen"), "{said}");
    assert_eq!(said, String::from_utf8_lossy(&client.stderr));
}

fn hy2(folder: &Path, arguments: &[&str]) -> std::process::Output {
    Command::new(assert_cmd::cargo::cargo_bin!("hy2"))
        .args(arguments)
        .current_dir(folder)
        .env("HOME", folder)
        .output()
        .expect("runs")
}
