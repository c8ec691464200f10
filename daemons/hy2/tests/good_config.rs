//! Correct files in the official format pass `--check`.

use std::{fs, path::Path, process::Command};

const SAMPLES: &[(&str, &str, &str)] = &[
    (
        "server",
        "full.yaml",
        include_str!("samples/server_full.yaml"),
    ),
    (
        "server",
        "minimal.json",
        include_str!("samples/server_minimal.json"),
    ),
    (
        "client",
        "full.yml",
        include_str!("samples/client_full.yaml"),
    ),
    (
        "client",
        "minimal.json",
        include_str!("samples/client_minimal.json"),
    ),
    // Keys are taken in any case, as the reference takes them.
    (
        "server",
        "case.yaml",
        "TLS: {Cert: cert.pem, KEY: key.pem}\nauth: {type: PassWord, password: 7}\nmasquerade: {type: file, file: {dir: .}}\n",
    ),
    (
        "server",
        "proxy.yaml",
        "tls: {cert: cert.pem, key: key.pem}\nauth: {type: password, password: 0123}\nmasquerade: {type: proxy, proxy: {url: 'unix:///run/web.sock'}}\n",
    ),
    (
        "server",
        "dual.yaml",
        "\u{feff}listen: :443\ntls: {cert: cert.pem, key: key.pem}\nauth: {type: password, password: a}\nresolver: {type: ''}\nacl: {file: '', inline:}\n",
    ),
    (
        "client",
        "anchors.yaml",
        "server: example.com\nauth: x\nsocks5: &here {listen: ':1080'}\nhttp: *here\n",
    ),
    // A client's bandwidth has no least value.
    (
        "client",
        "slow.yaml",
        "server: 1.2.3.4:5\nbandwidth: {up: 400 kbps, down: 64 kbps}\nsocks5: {listen: ':1'}\n",
    ),
    (
        "client",
        "forward.yaml",
        "server: 1.2.3.4:5\ntcpForwarding: [{listen: :1, remote: 'a:2'}]\n",
    ),
];

#[test]
fn samples_pass() {
    let folder = tempfile::tempdir().expect("folder");
    let made = hy2(folder.path(), &["cert", "--host", "example.com"]);
    assert!(made.status.success(), "{made:?}");
    for (command, name, text) in SAMPLES {
        fs::write(folder.path().join(name), text).expect("write");
        let checked = hy2(folder.path(), &[command, "--check", "-c", name]);
        assert!(checked.status.success(), "{command} {name}: {checked:?}");
        assert_eq!(
            String::from_utf8_lossy(&checked.stdout),
            format!("{name}: ok\n")
        );
        assert!(checked.stderr.is_empty(), "{checked:?}");
    }
}

#[test]
fn default_files_are_found() {
    for name in ["config.yaml", "config.yml", "config.json"] {
        let folder = tempfile::tempdir().expect("folder");
        let client = r#"{"server": "a", "socks5": {"listen": ":1"}}"#;
        fs::write(folder.path().join(name), client).expect("write");
        let checked = hy2(folder.path(), &["client", "--check"]);
        assert_eq!(
            String::from_utf8_lossy(&checked.stdout),
            format!("{name}: ok\n"),
            "{checked:?}"
        );
    }
}

#[test]
fn files_that_the_settings_name_are_checked_too() {
    let folder = tempfile::tempdir().expect("folder");
    let made = hy2(
        folder.path(),
        &["cert", "--host", "a", "--cert", "a.pem", "--key", "a.key"],
    );
    assert!(made.status.success(), "{made:?}");
    let other = hy2(
        folder.path(),
        &["cert", "--host", "a", "--cert", "b.pem", "--key", "b.key"],
    );
    assert!(other.status.success(), "{other:?}");
    fs::write(folder.path().join("empty"), "").expect("write");
    let auth = "auth: {type: password, password: x}\n";
    for (command, text, says) in [
        (
            "server",
            "tls: {cert: none, key: a.key}",
            "tls.cert: cannot read none: No such file or directory (os error 2)",
        ),
        (
            "server",
            "tls: {cert: a.pem, key: none}",
            "tls.key: cannot read none: No such file or directory (os error 2)",
        ),
        (
            "server",
            "tls: {cert: empty, key: a.key}",
            "tls.cert: empty: no usable certificate in PEM form",
        ),
        (
            "server",
            "tls: {cert: a.pem, key: empty}",
            "tls.key: empty: no usable private key in PEM form",
        ),
        (
            "server",
            "tls: {cert: a.pem, key: b.key}",
            "tls.cert: certificate and key are not usable together: keys may not be consistent: KeyMismatch",
        ),
        (
            "server",
            "tls: {cert: a.pem, key: a.key, clientCA: empty}",
            "tls.clientCA: empty: no usable certificate in PEM form",
        ),
        (
            "server",
            "tls: {cert: a.pem, key: a.key}\nmasquerade: {type: file, file: {dir: none}}",
            "masquerade: none: No such file or directory (os error 2)",
        ),
        (
            "client",
            "tls: {ca: none}",
            "tls.ca: cannot read none: No such file or directory (os error 2)",
        ),
        (
            "client",
            "tls: {clientCertificate: a.pem, clientKey: empty}",
            "tls.clientKey: empty: no usable private key in PEM form",
        ),
        (
            "client",
            "tls: {clientCertificate: a.pem, clientKey: b.key}",
            "tls.clientCertificate: certificate and key are not usable together: keys may not be consistent: KeyMismatch",
        ),
    ] {
        let base = match command {
            "server" => auth,
            _ => "server: a\nsocks5: {listen: :1}\n",
        };
        fs::write(folder.path().join("c.yaml"), format!("{base}{text}\n")).expect("write");
        let checked = hy2(folder.path(), &[command, "--check", "-c", "c.yaml"]);
        assert_eq!(checked.status.code(), Some(1), "{text}: {checked:?}");
        assert_eq!(
            String::from_utf8_lossy(&checked.stderr).trim_end(),
            says,
            "{text}"
        );
        assert!(checked.stdout.is_empty(), "{checked:?}");
    }
}

fn hy2(folder: &Path, arguments: &[&str]) -> std::process::Output {
    Command::new(assert_cmd::cargo::cargo_bin!("hy2"))
        .args(arguments)
        .current_dir(folder)
        .env("HOME", folder)
        .output()
        .expect("runs")
}
