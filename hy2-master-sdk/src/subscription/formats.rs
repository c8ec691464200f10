//! How clients want a subscription written.

use std::collections::HashSet;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use qrcode::QrCode;
use serde_json::{Value, json};

use super::servers::Server;
use crate::service::ServiceError;

/// A way to write a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Format {
    /// Share links, one a line.
    Plain,
    /// The same in base64, as most clients want it.
    Base64,
    /// A configuration of sing-box.
    SingBox,
    /// A configuration of Clash's heirs, such as mihomo.
    Clash,
    /// A configuration of the official client, for the first server.
    Hysteria,
    /// QR code of the subscription's address, SVG.
    Qr,
    /// What users see of themselves, JSON.
    Info,
}

/// The name in the address is none of a format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("unknown format")]
pub struct UnknownFormat;

impl FromStr for Format {
    type Err = UnknownFormat;

    fn from_str(name: &str) -> Result<Self, UnknownFormat> {
        Ok(match name {
            "plain" => Self::Plain,
            "base64" => Self::Base64,
            "sing-box" => Self::SingBox,
            "clash" => Self::Clash,
            "hysteria" => Self::Hysteria,
            "qr" => Self::Qr,
            "info" => Self::Info,
            _ => return Err(UnknownFormat),
        })
    }
}

impl Format {
    /// Returns what a client wants, by its `User-Agent`.
    #[must_use]
    pub fn of_client(agent: &str) -> Self {
        let agent = agent.to_ascii_lowercase();
        let has = |names: &[&str]| names.iter().any(|name| agent.contains(name));
        if has(&["sing-box", "sfa/", "sfi/", "sfm/", "sft/", "karing"]) {
            Self::SingBox
        } else if has(&["clash", "mihomo", "stash", "flclash"]) {
            Self::Clash
        } else if has(&["hysteria", "hy2/"]) {
            Self::Hysteria
        } else {
            Self::Base64
        }
    }

    /// Returns the media type.
    #[must_use]
    pub const fn media_type(self) -> &'static str {
        match self {
            Self::Plain | Self::Base64 => "text/plain; charset=utf-8",
            Self::SingBox | Self::Info => "application/json",
            Self::Clash | Self::Hysteria => "application/yaml; charset=utf-8",
            Self::Qr => "image/svg+xml",
        }
    }

    /// Writes servers; `link` is the address of the subscription.
    ///
    /// # Errors
    ///
    /// A server cannot be written, which is a fault of ours.
    pub fn write(self, servers: &[Server], link: &str) -> Result<String, ServiceError> {
        match self {
            Self::Plain => plain(servers),
            Self::Base64 => Ok(STANDARD.encode(plain(servers)?)),
            Self::SingBox => {
                serde_json::to_string_pretty(&sing_box(servers)).map_err(ServiceError::internal)
            }
            Self::Clash => yaml(&clash(servers)),
            Self::Hysteria => match servers.first() {
                Some(server) => yaml(&hysteria(server)),
                None => Ok("# no server\n{}\n".to_owned()),
            },
            Self::Qr => {
                let code = QrCode::new(link.as_bytes()).map_err(ServiceError::internal)?;
                let mut svg = code.render::<qrcode::render::svg::Color<'_>>();
                Ok(svg.min_dimensions(240, 240).build())
            }
            Self::Info => Err(ServiceError::internal("not written from servers")),
        }
    }
}

fn plain(servers: &[Server]) -> Result<String, ServiceError> {
    let mut lines = String::new();
    for server in servers {
        lines.push_str(&server.uri()?.to_string());
        lines.push('\n');
    }
    Ok(lines)
}

/// JSON is YAML, but people read these files.
fn yaml(value: &Value) -> Result<String, ServiceError> {
    serde_saphyr::to_string(value).map_err(ServiceError::internal)
}

fn names(servers: &[Server]) -> Vec<String> {
    servers.iter().map(|server| server.name.clone()).collect()
}

/// Returns `wanted`, or with `kind` behind it what is not taken, and takes it: a file with one name twice does not load.
fn free_name(taken: &mut HashSet<String>, wanted: &str, kind: &str) -> String {
    let mut name = wanted.to_owned();
    let mut number = 1;
    while !taken.insert(name.clone()) {
        name = match number {
            1 => format!("{wanted} ({kind})"),
            _ => format!("{wanted} ({kind} {number})"),
        };
        number += 1;
    }
    name
}

fn sing_box(servers: &[Server]) -> Value {
    let mut taken: HashSet<String> = names(servers).into_iter().collect();
    let [proxy, auto, direct] =
        ["proxy", "auto", "direct"].map(|name| free_name(&mut taken, name, "group"));
    let mut outbounds = Vec::new();
    if !servers.is_empty() {
        let mut choices = vec![auto.clone()];
        choices.extend(names(servers));
        outbounds.push(json!({"type": "selector", "tag": proxy, "outbounds": choices}));
        outbounds.push(json!({"type": "urltest", "tag": auto, "outbounds": names(servers)}));
    }
    for server in servers {
        let mut tls = json!({"enabled": true, "alpn": ["h3"]});
        tls["server_name"] = json!(server.sni.as_ref().unwrap_or(&server.host));
        if let Some((_, der)) = &server.pinned {
            let body = STANDARD.encode(der);
            let mut pem = vec!["-----BEGIN CERTIFICATE-----".to_owned()];
            let lines = body.as_bytes().chunks(64);
            pem.extend(lines.map(|line| String::from_utf8_lossy(line).into_owned()));
            pem.push("-----END CERTIFICATE-----".to_owned());
            tls["certificate"] = json!(pem);
        }
        let mut outbound = json!({
            "type": "hysteria2", "tag": server.name, "server": server.host,
            "server_port": server.port, "password": server.credential.as_str(), "tls": tls,
        });
        if let Some((kind, password)) = server.obfuscation() {
            outbound["obfs"] = json!({"type": kind, "password": password});
        }
        outbounds.push(outbound);
    }
    outbounds.push(json!({"type": "direct", "tag": direct}));
    let last = if servers.is_empty() { direct } else { proxy };
    json!({
        "log": {"level": "warn"},
        "inbounds": [{"type": "mixed", "tag": "mixed", "listen": "127.0.0.1", "listen_port": 2080}],
        "outbounds": outbounds,
        "route": {"final": last, "auto_detect_interface": true},
    })
}

/// What Clash's heirs have without being told.
const BUILT_IN: [&str; 7] = [
    "DIRECT",
    "REJECT",
    "REJECT-DROP",
    "PASS",
    "PASS-RULE",
    "COMPATIBLE",
    "GLOBAL",
];

fn clash(servers: &[Server]) -> Value {
    let built_in = BUILT_IN.iter().map(|name| (*name).to_owned());
    let mut taken: HashSet<String> = built_in.chain(names(servers)).collect();
    let servers: Vec<(String, &Server)> = servers
        .iter()
        .map(|server| match BUILT_IN.contains(&server.name.as_str()) {
            true => (free_name(&mut taken, &server.name, "server"), server),
            false => (server.name.clone(), server),
        })
        .collect();
    let proxies: Vec<Value> = servers
        .iter()
        .map(|(name, server)| {
            let mut proxy = json!({
                "name": name, "type": "hysteria2", "server": server.host,
                "port": server.port, "password": server.credential.as_str(), "alpn": ["h3"],
                "sni": server.sni.as_ref().unwrap_or(&server.host),
            });
            if let Some((hash, _)) = &server.pinned {
                proxy["fingerprint"] = json!(hex::encode(hash));
            }
            if let Some((kind, password)) = server.obfuscation() {
                proxy["obfs"] = json!(kind);
                proxy["obfs-password"] = json!(password);
            }
            proxy
        })
        .collect();
    if proxies.is_empty() {
        return json!({"mixed-port": 7890, "mode": "rule", "proxies": [], "rules": ["MATCH,DIRECT"]});
    }
    let [proxy, auto] = ["proxy", "auto"].map(|name| free_name(&mut taken, name, "group"));
    let names: Vec<String> = servers.into_iter().map(|(name, _)| name).collect();
    let mut choices = vec![auto.clone()];
    choices.extend_from_slice(&names);
    json!({
        "mixed-port": 7890,
        "mode": "rule",
        "proxies": proxies,
        "rules": [format!("MATCH,{proxy}")],
        "proxy-groups": [
            {"name": proxy, "type": "select", "proxies": choices},
            {"name": auto, "type": "url-test", "proxies": names,
             "url": "https://www.gstatic.com/generate_204", "interval": 300},
        ],
    })
}

fn hysteria(server: &Server) -> Value {
    let host = match server.host.contains(':') {
        true => format!("[{}]:{}", server.host, server.port),
        false => format!("{}:{}", server.host, server.port),
    };
    let mut config = json!({
        "server": host,
        "auth": server.credential.as_str(),
        "socks5": {"listen": "127.0.0.1:1080"},
        "http": {"listen": "127.0.0.1:8118"},
    });
    let mut tls = serde_json::Map::new();
    if let Some(sni) = &server.sni {
        tls.insert("sni".to_owned(), json!(sni));
    }
    if let Some((hash, _)) = &server.pinned {
        tls.insert("insecure".to_owned(), json!(true));
        tls.insert("pinSHA256".to_owned(), json!(hex::encode(hash)));
    }
    if !tls.is_empty() {
        config["tls"] = Value::Object(tls);
    }
    if let Some((kind, password)) = server.obfuscation() {
        let mut obfs = json!({"type": kind});
        obfs[kind] = json!({"password": password});
        config["obfs"] = obfs;
    }
    config
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::config::ObfsBody;
    use crate::secrets::Credential;
    use hy2_proto::uri::{Obfs, ShareUri};

    fn server() -> Server {
        Server {
            name: "New York: #1".into(),
            host: "2001:db8::1".into(),
            port: 8443,
            credential: Credential::chosen("p@ss/w:rd +%"),
            sni: Some("node.example".into()),
            pinned: Some(([0xab; 32], vec![0x30; 100])),
            obfs: Some(ObfsBody::Salamander {
                password: "- \"salt\": yes #\n&*".into(),
            }),
        }
    }

    fn read_yaml(text: &str) -> Value {
        serde_saphyr::from_str(text).unwrap()
    }

    #[test]
    fn links_read_back_as_they_were_meant() {
        let text = Format::Plain.write(&[server(), server()], "").unwrap();
        assert_eq!(text.lines().count(), 2);
        let uri: ShareUri = text.lines().next().unwrap().parse().unwrap();
        assert_eq!(uri.auth.as_deref(), Some("p@ss/w:rd +%"));
        assert_eq!(uri.server_ports().single(), Some(8443));
        assert_eq!(uri.sni.as_deref(), Some("node.example"));
        assert_eq!(uri.pin_sha256.as_deref(), Some("ab".repeat(32).as_str()));
        assert_eq!(uri.name.as_deref(), Some("New York: #1"));
        assert_eq!(
            uri.obfs,
            Some(Obfs::Salamander("- \"salt\": yes #\n&*".into()))
        );
        let encoded = Format::Base64.write(&[server()], "").unwrap();
        assert!(
            STANDARD
                .decode(encoded)
                .unwrap()
                .starts_with(b"hysteria2://")
        );
    }

    #[test]
    fn sing_box_gets_the_certificate_and_all_choices() {
        let text = Format::SingBox.write(&[server()], "").unwrap();
        let config: Value = serde_json::from_str(&text).unwrap();
        let outbound = &config["outbounds"][2];
        assert_eq!(outbound["type"], "hysteria2");
        assert_eq!(outbound["server_port"], 8443);
        assert_eq!(outbound["password"], "p@ss/w:rd +%");
        assert_eq!(outbound["tls"]["server_name"], "node.example");
        let pem = outbound["tls"]["certificate"].as_array().unwrap();
        assert_eq!(pem[0], "-----BEGIN CERTIFICATE-----");
        assert!(pem.iter().all(|line| line.as_str().unwrap().len() <= 64));
        assert_eq!(
            config["outbounds"][0]["outbounds"],
            json!(["auto", "New York: #1"])
        );
    }

    #[test]
    fn clash_survives_names_and_passwords_that_look_like_yaml() {
        let config = read_yaml(&Format::Clash.write(&[server()], "").unwrap());
        let proxy = &config["proxies"][0];
        assert_eq!(proxy["name"], "New York: #1");
        assert_eq!(proxy["obfs-password"], "- \"salt\": yes #\n&*");
        assert_eq!(proxy["fingerprint"], json!("ab".repeat(32)));
        assert_eq!(
            config["proxy-groups"][1]["proxies"],
            json!(["New York: #1"])
        );
    }

    #[test]
    fn the_official_client_gets_brackets_around_ipv6_and_the_pin() {
        let config = read_yaml(&Format::Hysteria.write(&[server()], "").unwrap());
        assert_eq!(config["server"], "[2001:db8::1]:8443");
        assert_eq!(config["auth"], "p@ss/w:rd +%");
        assert_eq!(config["tls"]["insecure"], true);
        assert_eq!(config["obfs"]["type"], "salamander");
        assert_eq!(
            config["obfs"]["salamander"]["password"],
            "- \"salt\": yes #\n&*"
        );
    }

    #[test]
    fn groups_have_other_names_than_servers() {
        let named = |names: &[&str]| -> Vec<Server> {
            let with = |name: &&str| Server {
                name: (*name).to_owned(),
                ..server()
            };
            names.iter().map(with).collect()
        };
        let distinct = |names: &[String]| {
            let all: HashSet<_> = names.iter().collect();
            assert_eq!(all.len(), names.len(), "{names:?}");
        };
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        for names in [
            &["ny", "auto", "proxy", "direct"][..],
            &[
                "auto",
                "auto (group)",
                "auto (group 2)",
                "proxy (group)",
                "proxy",
            ],
            &[
                "DIRECT",
                "REJECT",
                "GLOBAL",
                "PASS",
                "COMPATIBLE",
                "REJECT-DROP",
                "direct",
            ],
            &["DIRECT", "DIRECT (server)"],
        ] {
            let servers = named(names);
            let config: Value =
                serde_json::from_str(&Format::SingBox.write(&servers, "").unwrap()).unwrap();
            let outbounds = config["outbounds"].as_array().unwrap();
            let tags: Vec<String> = outbounds.iter().map(|out| text(&out["tag"])).collect();
            distinct(&tags);
            assert_eq!(tags[2..tags.len() - 1], *names, "servers keep their names");
            assert_eq!(config["route"]["final"], outbounds[0]["tag"]);
            for group in &outbounds[..2] {
                for choice in group["outbounds"].as_array().unwrap() {
                    assert!(
                        tags.contains(&text(choice)) && *choice != group["tag"],
                        "{group}"
                    );
                }
            }

            let config = read_yaml(&Format::Clash.write(&servers, "").unwrap());
            let built_in = [
                "DIRECT",
                "REJECT",
                "REJECT-DROP",
                "PASS",
                "COMPATIBLE",
                "GLOBAL",
            ];
            let mut all: Vec<String> = built_in.map(str::to_owned).to_vec();
            let groups = config["proxy-groups"].as_array().unwrap();
            for it in config["proxies"].as_array().unwrap().iter().chain(groups) {
                all.push(text(&it["name"]));
            }
            distinct(&all);
            assert_eq!(
                config["rules"],
                json!([format!("MATCH,{}", text(&groups[0]["name"]))])
            );
            for group in groups {
                for choice in group["proxies"].as_array().unwrap() {
                    let choice = text(choice);
                    assert!(all[built_in.len()..].contains(&choice), "{choice}");
                    assert_ne!(choice, text(&group["name"]));
                }
            }
        }
    }

    #[test]
    fn without_servers_every_format_is_still_whole() {
        for format in [
            Format::Plain,
            Format::Base64,
            Format::Clash,
            Format::Hysteria,
        ] {
            format.write(&[], "https://sub.example/sub/x").unwrap();
        }
        let text = Format::SingBox.write(&[], "").unwrap();
        let config: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(config["route"]["final"], "direct");
        let svg = Format::Qr.write(&[], "https://sub.example/sub/x").unwrap();
        assert!(svg.contains("<svg"));
    }

    #[test]
    fn clients_are_known_by_their_names() {
        for (agent, format) in [
            ("sing-box 1.14.4", Format::SingBox),
            (
                "SFA/1.14.4 (594; sing-box 1.14.4; language en)",
                Format::SingBox,
            ),
            ("clash-verge/v2.4", Format::Clash),
            ("mihomo/1.19", Format::Clash),
            ("Stash/3.0", Format::Clash),
            ("hysteria/2.13.0", Format::Hysteria),
            ("v2rayN/7.0", Format::Base64),
            ("", Format::Base64),
        ] {
            assert_eq!(Format::of_client(agent), format, "{agent}");
        }
    }
}
