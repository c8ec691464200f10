//! Wrong configuration files, each with the exact line it gives.

use std::{fs, process::Command};

/// What the rows for servers stand on.
const SERVER: &str = "tls: {cert: c.pem, key: k.pem}\nauth: {type: password, password: secret-7}\n";

/// What the rows for clients stand on.
const CLIENT: &str = "server: example.com:443\nauth: secret-7\nsocks5: {listen: 127.0.0.1:1080}\n";

/// What each row adds to a server's file, and what the command says.
const SERVER_ROWS: &[(&str, &str)] = &[
    (
        "lisen: :443",
        "lisen: unknown key; did you mean \"listen\"?",
    ),
    ("colour: blue", "colour: unknown key"),
    (
        "quic: {maxIdleTimout: 30s}",
        "quic.maxIdleTimout: unknown key; did you mean \"maxIdleTimeout\"?",
    ),
    (
        "listen: 443",
        "listen: must be an address to listen on such as \":443\" (no port in address), not \"443\"",
    ),
    (
        "listen: :70000",
        "listen: port must be from 0 to 65535, not \":70000\"",
    ),
    (
        "listen: ::1:443",
        "listen: port must be from 0 to 65535, not \"::1:443\"",
    ),
    (
        "listen: :20000-50000",
        "listen: not supported in this version: listening on several ports (listen on one and redirect the others to it), not \":20000-50000\"",
    ),
    (
        "listen: realm://token@example.com/room",
        "listen: not supported in this version: realm, not \"realm://token@example.com/room\"",
    ),
    ("listen: [a]", "listen: must be text, not a list"),
    (
        "obfs: {type: salamnder}",
        "obfs.type: must be one of plain, salamander, gecko, not \"salamnder\"; did you mean \"salamander\"?",
    ),
    (
        "obfs: {type: salamander}",
        "obfs.salamander.password: missing: the password that both ends share",
    ),
    (
        "obfs: {type: salamander, salamander: {password: abc}}",
        "obfs.salamander.password: must have at least 4 bytes",
    ),
    (
        "obfs: {type: salamander, salamander: {password: 1.5}}",
        "obfs.salamander.password: put this value in quotes; it reads as a fraction",
    ),
    (
        "obfs: {type: gecko, gecko: {password: hidden, minPacketSize: 1300}}",
        "obfs.gecko.minPacketSize: must not be above maxPacketSize (1200)",
    ),
    (
        "obfs: {type: gecko, gecko: {password: hidden, maxPacketSize: 9000}}",
        "obfs.gecko.maxPacketSize: must be from 1 to 2048, not 9000",
    ),
    (
        "obfs: salamander",
        "obfs: must be a section of keys, not text",
    ),
    (
        "quic: {maxIdleTimeout: 1s}",
        "quic.maxIdleTimeout: must be from 4s to 120s, not 1s",
    ),
    (
        "quic: {maxIdleTimeout: 30}",
        "quic.maxIdleTimeout: a duration needs a unit, such as \"30s\"",
    ),
    (
        "quic: {maxIdleTimeout: 30 seconds}",
        "quic.maxIdleTimeout: must be a duration such as \"30s\" or \"1m30s\", not \"30 seconds\"",
    ),
    (
        "quic: {maxIncomingStreams: 4}",
        "quic.maxIncomingStreams: must be from 8 to 65535, not 4",
    ),
    (
        "quic: {maxIncomingStreams: many}",
        "quic.maxIncomingStreams: must be a whole number",
    ),
    (
        "quic: {initStreamReceiveWindow: 1000}",
        "quic.initStreamReceiveWindow: must be from 16384 to 4611686018427387903, not 1000",
    ),
    (
        "quic: {maxConnReceiveWindow: -1}",
        "quic.maxConnReceiveWindow: must be from 16384 to 4611686018427387903, not -1",
    ),
    (
        "quic: {disableStatelessReset: true}",
        "quic.disableStatelessReset: not supported in this version: stateless resets are always sent, so that clients notice a restart",
    ),
    (
        "bandwidth: {up: 5.4 mbps}",
        "bandwidth.up: bandwidth unit must be one of bps, kbps, mbps, gbps, tbps, not \"5.4 mbps\"",
    ),
    (
        "bandwidth: {up: 100}",
        "bandwidth.up: a bandwidth needs a unit, such as \"100 mbps\"",
    ),
    (
        "bandwidth: {down: 8 kbps}",
        "bandwidth.down: must be at least 65536 bytes per second, not 8 kbps",
    ),
    (
        "bandwidth: {down: fast}",
        "bandwidth.down: bandwidth must start with a whole number, as in \"100 mbps\", not \"fast\"",
    ),
    (
        "congestion: {type: cubic}",
        "congestion.type: must be one of bbr, reno, not \"cubic\"",
    ),
    (
        "congestion: {bbrProfile: agressive}",
        "congestion.bbrProfile: must be one of standard, conservative, aggressive, not \"agressive\"; did you mean \"aggressive\"?",
    ),
    (
        "udpIdleTimeout: 1h",
        "udpIdleTimeout: must be from 2s to 600s, not 1h",
    ),
    (
        "speedTest: sometimes",
        "speedTest: must be true or false, not \"sometimes\"",
    ),
    (
        "disableUDP: 2",
        "disableUDP: must be true or false, not a number",
    ),
    (
        "allowPrivateTargets: []",
        "allowPrivateTargets: must be true or false, not a list",
    ),
    (
        "masquerade: {type: flie}",
        "masquerade.type: must be one of 404, file, proxy, string, not \"flie\"; did you mean \"file\"?",
    ),
    (
        "masquerade: {type: file}",
        "masquerade.file.dir: missing: the folder of the site",
    ),
    (
        "masquerade: {type: proxy, proxy: {url: ftp://example.com}}",
        "masquerade.proxy.url: must be an http:// or https:// URL or the path of a socket, not \"ftp://example.com\"",
    ),
    (
        "masquerade: {type: string}",
        "masquerade.string.content: missing: the text to show",
    ),
    (
        "masquerade: {type: string, string: {content: hi, statusCode: 233}}",
        "masquerade.string.statusCode: must not be 233, which tells clients that they are in",
    ),
    (
        "masquerade: {type: string, string: {content: hi, statusCode: 100}}",
        "masquerade.string.statusCode: must be from 200 to 599, not 100",
    ),
    (
        "masquerade: {type: string, string: {content: hi, headers: {Content-Length: 99}}}",
        "masquerade.string.headers.Content-Length: cannot be set: it follows from the content and the connection",
    ),
    (
        "masquerade: {type: string, string: {content: hi, headers: {a b: c}}}",
        "masquerade.string.headers.a b: is not an HTTP header",
    ),
    (
        "masquerade: {listenHTTP: :80}",
        "masquerade.listenHTTP: needs listenHTTPS as well",
    ),
    (
        "masquerade: {forceHTTPS: true}",
        "masquerade.forceHTTPS: needs listenHTTPS",
    ),
    (
        "acme: {domains: [example.com], email: me@example.com}",
        "acme: not supported in this version: ACME; certificates come from files (tls.cert and tls.key)",
    ),
    (
        "ech: {keyPath: ech.pem}",
        "ech: not supported in this version: encrypted ClientHello",
    ),
    (
        "mimic: {enabled: true, interface: eth0}",
        "mimic: not supported in this version: mimic",
    ),
    (
        "sniff: {enable: true}",
        "sniff: not supported in this version: sniffing",
    ),
    (
        "resolver: {type: udp, udp: {addr: 8.8.8.8:53}}",
        "resolver: not supported in this version: resolvers other than the system's",
    ),
    (
        "acl: {inline: [reject(all)]}",
        "acl: not supported in this version: ACL rules",
    ),
    (
        "outbounds: [{name: a, type: socks5, socks5: {addr: 127.0.0.1:1}}]",
        "outbounds: not supported in this version: outbounds other than a plain direct one",
    ),
    (
        "outbounds: [{name: a, type: direct, direct: {bindDevice: eth1}}]",
        "outbounds: not supported in this version: outbounds other than a plain direct one",
    ),
    (
        "trafficStats: {listen: :9999}",
        "trafficStats: not supported in this version: the traffic statistics API",
    ),
    // What asks for one of these with a slip of the pen must not be ignored.
    (
        "acl: {flie: rules.txt}",
        "acl.flie: unknown key; did you mean \"file\"?",
    ),
    (
        "acme: {domain: [example.com]}",
        "acme.domain: unknown key; did you mean \"domains\"?",
    ),
    (
        "sniff: {enabel: true}",
        "sniff.enabel: unknown key; did you mean \"enable\"?",
    ),
    (
        "resolver: {udp: {adr: 8.8.8.8:53}}",
        "resolver.udp.adr: unknown key; did you mean \"addr\"?",
    ),
    (
        "outbounds: [{type: direct, direct: {bindIP4: 192.0.2.1}}]",
        "outbounds[0].direct.bindIP4: unknown key; did you mean \"bindIPv4\"?",
    ),
    (
        "trafficStats: {lisen: :9999}",
        "trafficStats.lisen: unknown key; did you mean \"listen\"?",
    ),
    ("realm: a", "realm: must be a section of keys, not text"),
];

/// What each row adds to a client's file, and what the command says.
const CLIENT_ROWS: &[(&str, &str)] = &[
    (
        "sock5: {listen: :1}",
        "sock5: unknown key; did you mean \"socks5\"?",
    ),
    (
        "transport: {type: tcp}",
        "transport.type: must be udp, not \"tcp\"",
    ),
    (
        "transport: {udp: {hopInterval: 2s}}",
        "transport.udp.hopInterval: must be at least 5s, not 2s",
    ),
    (
        "transport: {udp: {minHopInterval: 20s, maxHopInterval: 10s}}",
        "transport.udp: minHopInterval must not be above maxHopInterval",
    ),
    (
        "transport: {udp: {hopInterval: 20s, maxHopInterval: 30s}}",
        "transport.udp: set either hopInterval or minHopInterval and maxHopInterval",
    ),
    (
        "transport: {udp: {minHopInterval: 20s}}",
        "transport.udp: minHopInterval and maxHopInterval need each other",
    ),
    (
        "tls: {pinSHA256: abcd}",
        "tls.pinSHA256: must be a SHA-256 fingerprint of 64 hexadecimal digits, not \"abcd\"",
    ),
    (
        "tls: {clientCertificate: a.pem}",
        "tls.clientKey: missing: clientCertificate needs its key",
    ),
    (
        "tls: {clientKey: a.pem}",
        "tls.clientCertificate: missing: clientKey needs its certificate",
    ),
    (
        "tls: {ech: AAj+DQAEAAAAAA==}",
        "tls.ech: not supported in this version: encrypted ClientHello",
    ),
    (
        "tls: {sni: a b}",
        "tls.sni: must be a host name, a name outside ASCII in its xn-- form, not \"a b\"",
    ),
    (
        "tls: {insecure: maybe}",
        "tls.insecure: must be true or false, not \"maybe\"",
    ),
    (
        "quic: {keepAlivePeriod: 90s}",
        "quic.keepAlivePeriod: must be from 2s to 60s, not 90s",
    ),
    (
        "quic: {sockopts: {fdControlUnixSocket: /run/a.sock}}",
        "quic.sockopts.fdControlUnixSocket: not supported in this version: handing sockets to another process",
    ),
    (
        "quic: {sockopts: {fwmark: 4294967296}}",
        "quic.sockopts.fwmark: must be from 0 to 4294967295, not 4294967296",
    ),
    ("http: {}", "http.listen: missing: the address to listen on"),
    (
        "http: {listen: :8080, username: john}",
        "http.password: missing: a username needs a password",
    ),
    (
        "http: {listen: :8080, password: secret-7}",
        "http.username: missing: a password needs a username",
    ),
    (
        "http: {listen: :8080, realm: \"a\\nb\"}",
        "http.realm: must be text without control characters, not \"a\\nb\"",
    ),
    (
        "tcpForwarding: [{listen: :1}]",
        "tcpForwarding[0].remote: missing: where connections go",
    ),
    (
        "tcpForwarding: [{listen: :1, remote: example.com}]",
        "tcpForwarding[0].remote: must be a target such as \"example.com:80\" (no port in address), not \"example.com\"",
    ),
    (
        "tcpForwarding: {listen: :1}",
        "tcpForwarding: must be a list, not a section",
    ),
    (
        "tcpForwarding: [here]",
        "tcpForwarding[0]: must be a section of keys, not text\ntcpForwarding[0].listen: missing: the address to listen on\ntcpForwarding[0].remote: missing: where connections go",
    ),
    (
        "udpForwarding: [{listen: :1, remote: a:2}, {listen: :1, remote: a:2, timeout: 5}]",
        "udpForwarding[1].timeout: a duration needs a unit, such as \"5s\"",
    ),
    (
        "udpForwarding: [{listen: :1, remote: 'a:99999'}]",
        "udpForwarding[0].remote: must be a target such as \"example.com:80\" (port is not a number from 0 to 65535), not \"a:99999\"",
    ),
    (
        "tcpTProxy: {listen: :2500}",
        "tcpTProxy: not supported in this version: transparent proxying and TUN",
    ),
    (
        "udpTProxy: {listen: :2500}",
        "udpTProxy: not supported in this version: transparent proxying and TUN",
    ),
    (
        "tcpRedirect: {listen: :3500}",
        "tcpRedirect: not supported in this version: transparent proxying and TUN",
    ),
    (
        "tun: {name: hytun}",
        "tun: not supported in this version: transparent proxying and TUN",
    ),
    (
        "mimic: {enabled: true}",
        "mimic: not supported in this version: mimic",
    ),
    (
        "mimic: {enabeld: true}",
        "mimic.enabeld: unknown key; did you mean \"enabled\"?",
    ),
];

/// Whole files: the command that reads them, their name, their text, and what it says.
const FILES: &[(&str, &str, &str, &str)] = &[
    (
        "server",
        "c.yaml",
        "",
        "tls.cert: missing: the certificate file (PEM)\ntls.key: missing: the key file (PEM)\nauth.type: missing: how clients authenticate (password or userpass)",
    ),
    (
        "server",
        "c.yaml",
        "tls: {cert: c, key: k}\nauth: {type: password}",
        "auth.password: missing: the password that clients show",
    ),
    (
        "server",
        "c.yaml",
        "tls: {cert: c, key: k}\nauth: {type: pasword}",
        "auth.type: must be one of password, userpass, not \"pasword\"; did you mean \"password\"?",
    ),
    (
        "server",
        "c.yaml",
        "tls: {cert: c, key: k}\nauth: {type: http, http: {url: http://127.0.0.1}}",
        "auth.type: not supported in this version: authentication by HTTP",
    ),
    (
        "server",
        "c.yaml",
        "tls: {cert: c, key: k}\nauth: {type: command, command: /bin/true}",
        "auth.type: not supported in this version: authentication by a command",
    ),
    (
        "server",
        "c.yaml",
        "tls: {cert: c, key: k}\nauth: {type: password, password: p, http: {ulr: http://127.0.0.1}}",
        "auth.http.ulr: unknown key; did you mean \"url\"?",
    ),
    (
        "server",
        "c.yaml",
        "tls: {cert: c, key: k}\nauth: {type: userpass}",
        "auth.userpass: missing: users and their passwords",
    ),
    (
        "server",
        "c.yaml",
        "tls: {cert: c, key: k}\nauth: {type: userpass, userpass: {'a:b': c}}",
        "auth.userpass.a:b: a user name must not be empty or contain a colon",
    ),
    (
        "server",
        "c.yaml",
        "tls: {cert: c, key: k, sniGuard: loose}\nauth: {type: password, password: p}",
        "tls.sniGuard: must be one of dns-san, strict, disable, not \"loose\"",
    ),
    (
        "server",
        "c.yaml",
        "listen: :1\nlisten: :2",
        "c.yaml: key \"listen\" is given twice",
    ),
    (
        "server",
        "c.yaml",
        "listen: :1\nListen: :2",
        "c.yaml: key \"Listen\" is given twice",
    ),
    (
        "server",
        "c.yaml",
        "listen: [",
        "c.yaml: line 1, column 9: unclosed bracket '['",
    ),
    (
        "server",
        "c.yaml",
        "- listen",
        "c.yaml: the file must be a section of keys, not a list",
    ),
    (
        "server",
        "c.json",
        "{\"listen\": \":1\",}",
        "c.json: line 1, column 17: trailing comma",
    ),
    (
        "server",
        "c.json",
        "{\"listen\": \":1\", \"listen\": \":2\"}",
        "c.json: line 1, column 25: key \"listen\" is given twice",
    ),
    (
        "server",
        "c.json",
        "[]",
        "c.json: the file must be a section of keys, not a list",
    ),
    (
        "server",
        "c.json",
        "listen: :1",
        "c.json: line 1, column 1: expected value",
    ),
    (
        "server",
        "c.json",
        "{\"tls\": {\"cert\": \"c\", \"key\": \"k\"}, \"auth\": {\"type\": \"password\", \"password\": {}}}",
        "auth.password: must be text, not a section",
    ),
    (
        "server",
        "c.toml",
        "listen = \":1\"",
        "c.toml: configuration files are YAML or JSON",
    ),
    (
        "server",
        "c.yaml",
        "listen: 1\nobfs: {type: no}\nspeedTest: 7",
        "listen: must be an address to listen on such as \":443\" (no port in address), not \"1\"\nobfs.type: must be one of plain, salamander, gecko, not \"no\"\ntls.cert: missing: the certificate file (PEM)\ntls.key: missing: the key file (PEM)\nauth.type: missing: how clients authenticate (password or userpass)\nspeedTest: must be true or false, not a number",
    ),
    (
        "client",
        "c.yaml",
        "server: a:1",
        "socks5: missing: a client needs socks5, http, tcpForwarding or udpForwarding",
    ),
    (
        "client",
        "c.yaml",
        "socks5: {listen: :1}",
        "server: missing: the server's address",
    ),
    (
        "client",
        "c.yaml",
        "server: a:b\nsocks5: {listen: :1}",
        "server: must be a server address such as \"example.com:443\" (ports must be a list such as \"443,20000-50000\", or \"all\"), not \"a:b\"",
    ),
    (
        "client",
        "c.yaml",
        "server: a:99999\nsocks5: {listen: :1}",
        "server: must be a server address such as \"example.com:443\" (ports must be a list such as \"443,20000-50000\", or \"all\"), not \"a:99999\"",
    ),
    (
        "client",
        "c.yaml",
        "server: a:0-5\nsocks5: {listen: :1}",
        "server: must be a server address such as \"example.com:443\" (port 0 is no port of a server), not \"a:0-5\"",
    ),
    (
        "client",
        "c.yaml",
        "server: hysteria2://secret@a:1,99999/\nsocks5: {listen: :1}",
        "server: ports in link: ports must be a list such as \"443,20000-50000\", or \"all\"",
    ),
    (
        "client",
        "c.yaml",
        "server: hysteria2://secret@a:0/\nsocks5: {listen: :1}",
        "server: port 0 is no port of a server",
    ),
    (
        "client",
        "c.yaml",
        "server: '@a:443'\nsocks5: {listen: :1}",
        "server: must be a server address such as \"example.com:443\" (host is neither an IP address nor a name), not \"@a:443\"",
    ),
    (
        "client",
        "c.yaml",
        "server: https://example.com\nsocks5: {listen: :1}",
        "server: link must begin with hysteria2:// or hy2://",
    ),
    (
        "client",
        "c.yaml",
        "server: hysteria2+realm://token@example.com/room\nsocks5: {listen: :1}",
        "server: not supported in this version: realm",
    ),
    (
        "client",
        "c.yaml",
        "server: 'hy2://secret-7@a/?obfs=salamander'\nsocks5: {listen: :1}",
        "server: link asks for obfuscation without obfs-password",
    ),
    (
        "client",
        "c.yaml",
        "server: 'hy2://secret-7@a/?obfs=salamander&obfs-password=abc'\nsocks5: {listen: :1}",
        "server: the obfuscation password must have at least 4 bytes",
    ),
    (
        "server",
        "c.yaml",
        "tls: {cert: c.pem, key: k.pem}\nauth: {type: userpass, userpass: {Ä: first, ä: second}}",
        "auth.userpass.ä: is given twice: names must differ in more than case",
    ),
    (
        "client",
        "c.yaml",
        "auth: one\n---\nauth: two",
        "c.yaml: line 3, column 1: the file holds more than one document",
    ),
    (
        "client",
        "c.json",
        "{\"server\": \"a:1\", \"socks5\": {\"listen\": \"127.0.0.1\"}}",
        "socks5.listen: must be an address to listen on such as \":443\" (no port in address), not \"127.0.0.1\"",
    ),
];

#[test]
fn each_wrong_server_file_gives_its_line() {
    let rows = SERVER_ROWS.iter();
    judge(rows.map(|(added, says)| ("server", "c.yaml", format!("{SERVER}{added}\n"), *says)));
}

#[test]
fn each_wrong_client_file_gives_its_line() {
    let rows = CLIENT_ROWS.iter();
    judge(rows.map(|(added, says)| ("client", "c.yaml", format!("{CLIENT}{added}\n"), *says)));
}

#[test]
fn whole_files_and_json_give_their_lines() {
    let rows = FILES.iter();
    judge(rows.map(|(command, name, text, says)| (*command, *name, (*text).to_owned(), *says)));
}

#[test]
fn files_that_cannot_be_read_say_so() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("none.yaml");
    let (code, says) = run(
        &["server", "--check", "-c", &path.to_string_lossy()],
        folder.path(),
    );
    assert_eq!(code, Some(1));
    assert_eq!(
        says,
        format!(
            "cannot read {}: No such file or directory (os error 2)",
            path.display()
        )
    );

    let (code, says) = run(&["client", "--check"], folder.path());
    assert_eq!(code, Some(1));
    assert!(
        says.starts_with("no configuration file: name one with --config"),
        "{says}"
    );

    fs::write(&path, b"listen: \xff\xfe").expect("write");
    let (_, says) = run(
        &["server", "--check", "-c", &path.to_string_lossy()],
        folder.path(),
    );
    assert_eq!(says, "none.yaml: the file is not UTF-8");
}

/// A device has no length that could be asked for.
#[cfg(unix)]
#[test]
fn a_file_without_an_end_is_given_up() {
    let folder = tempfile::tempdir().expect("folder");
    let arguments = ["client", "--check", "-c", "/dev/zero"];
    let (code, says) = run(&arguments, folder.path());
    assert_eq!(
        (code, &*says),
        (Some(1), "zero: the file is larger than 4 MiB")
    );
}

/// Checks every row before it complains about any.
fn judge<'t>(rows: impl Iterator<Item = (&'t str, &'t str, String, &'t str)>) {
    let folder = tempfile::tempdir().expect("folder");
    let mut wrong = String::new();
    for (command, name, text, expected) in rows {
        let path = folder.path().join(name);
        fs::write(&path, &text).expect("write");
        let arguments = [command, "--check", "-c", &path.to_string_lossy()];
        let (code, says) = run(&arguments, folder.path());
        // Secrets of the table are not repeated.
        if says != expected || code != Some(1) || says.contains("secret-7") {
            wrong +=
                &format!("{command} {name}, exit code {code:?}:\n{text}\n{says}\n{expected}\n\n");
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
}

fn run(arguments: &[&str], folder: &std::path::Path) -> (Option<i32>, String) {
    let output = Command::new(assert_cmd::cargo::cargo_bin!("hy2"))
        .args(arguments)
        .current_dir(folder)
        .env("HOME", folder)
        .output()
        .expect("runs");
    assert!(
        output.stdout.is_empty(),
        "{:?}",
        String::from_utf8_lossy(&output.stdout)
    );
    let says = String::from_utf8(output.stderr).expect("UTF-8");
    (output.status.code(), says.trim_end().to_owned())
}
