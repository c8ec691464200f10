//! Every field of a node's configuration, set wrong, is refused by its path.

use std::sync::Arc;

use hy2_agent_sdk::{
    hy2_proto::control::rpc::{self, NodeConfig, masquerade::Site},
    settings::NodeSettings,
};
use prost_types::{Duration, Timestamp};

fn good() -> NodeConfig {
    NodeConfig {
        listen: vec![":8080".into(), "127.0.0.1:443".into(), "[::1]:443".into()],
        tls: Some(rpc::Tls {
            source: Some(rpc::tls::Source::Issued(rpc::TlsIssued {
                chain: vec![vec![1].into()],
                key: vec![1].into(),
            })),
            sni_guard: 0,
        }),
        verifier_keys: Some(rpc::VerifierKeys {
            fleet_key: vec![1; 32].into(),
            node_key: vec![2; 32].into(),
        }),
        ..Default::default()
    }
}

fn salamander(password: &str) -> rpc::Obfuscation {
    rpc::Obfuscation {
        kind: Some(rpc::obfuscation::Kind::Salamander(rpc::Salamander {
            password: password.into(),
        })),
    }
}

fn gecko(password: &str, min_packet_size: u32, max_packet_size: u32) -> rpc::Obfuscation {
    rpc::Obfuscation {
        kind: Some(rpc::obfuscation::Kind::Gecko(rpc::Gecko {
            password: password.into(),
            min_packet_size,
            max_packet_size,
        })),
    }
}

fn text(status: u32, header: (&str, &str)) -> rpc::Masquerade {
    rpc::Masquerade {
        site: Some(Site::String(rpc::MasqueradeString {
            content: "x".into(),
            headers: [(header.0.to_owned(), header.1.to_owned())].into(),
            status,
        })),
    }
}

fn proxy(url: &str) -> rpc::Masquerade {
    rpc::Masquerade {
        site: Some(Site::Proxy(rpc::MasqueradeProxy {
            url: url.into(),
            ..Default::default()
        })),
    }
}

fn files(certificate: &str, key: &str) -> rpc::Tls {
    rpc::Tls {
        source: Some(rpc::tls::Source::Files(rpc::TlsFiles {
            certificate: certificate.into(),
            key: key.into(),
        })),
        sni_guard: 0,
    }
}

fn seconds(seconds: i64) -> Option<Duration> {
    Some(Duration { seconds, nanos: 0 })
}

type Change = fn(&mut NodeConfig);

#[test]
fn every_wrong_field_is_named_by_its_path() {
    let cases: &[(&str, Change)] = &[
        ("listen", |c| c.listen.clear()),
        ("listen", |c| {
            c.listen = (1..=65).map(|n| format!(":{n}")).collect()
        }),
        ("listen[0]", |c| c.listen = vec!["nonsense".into()]),
        ("listen[0]", |c| c.listen = vec![":99999".into()]),
        ("listen[0]", |c| c.listen = vec!["example.com:443".into()]),
        ("listen[1]", |c| c.listen = vec![":1".into(), ":1".into()]),
        ("tls", |c| c.tls = None),
        ("tls", |c| c.tls = Some(rpc::Tls::default())),
        ("tls.files.certificate", |c| c.tls = Some(files("", "key"))),
        ("tls.files.key", |c| c.tls = Some(files("cert", ""))),
        ("tls.issued.chain", |c| {
            c.tls = Some(rpc::Tls {
                source: Some(rpc::tls::Source::Issued(rpc::TlsIssued {
                    chain: vec![],
                    key: vec![1].into(),
                })),
                sni_guard: 0,
            });
        }),
        ("tls.issued.key", |c| {
            c.tls = Some(rpc::Tls {
                source: Some(rpc::tls::Source::Issued(rpc::TlsIssued {
                    chain: vec![vec![1].into()],
                    key: vec![].into(),
                })),
                sni_guard: 0,
            });
        }),
        ("tls.sni_guard", |c| c.tls.as_mut().unwrap().sni_guard = 77),
        ("obfuscation", |c| {
            c.obfuscation = Some(rpc::Obfuscation::default())
        }),
        ("obfuscation.salamander.password", |c| {
            c.obfuscation = Some(salamander("abc"))
        }),
        ("obfuscation.gecko.password", |c| {
            c.obfuscation = Some(gecko("abc", 0, 0))
        }),
        ("obfuscation.gecko.min_packet_size", |c| {
            c.obfuscation = Some(gecko("long enough", 900, 800));
        }),
        ("obfuscation.gecko.max_packet_size", |c| {
            c.obfuscation = Some(gecko("long enough", 0, 70_000));
        }),
        ("previous_obfuscation.until", |c| {
            c.previous_obfuscation = Some(rpc::PreviousObfuscation {
                obfuscation: Some(salamander("long enough")),
                until: None,
            });
        }),
        (
            "previous_obfuscation.obfuscation.salamander.password",
            |c| {
                c.previous_obfuscation = Some(rpc::PreviousObfuscation {
                    obfuscation: Some(salamander("abc")),
                    until: Some(Timestamp {
                        seconds: 1,
                        nanos: 0,
                    }),
                });
            },
        ),
        ("bandwidth.up_bytes_per_s", |c| {
            c.bandwidth = Some(rpc::ServerBandwidth {
                up_bytes_per_s: 1,
                ..Default::default()
            });
        }),
        ("bandwidth.down_bytes_per_s", |c| {
            c.bandwidth = Some(rpc::ServerBandwidth {
                down_bytes_per_s: 65_535,
                ..Default::default()
            });
        }),
        ("congestion.type", |c| {
            c.congestion = Some(rpc::Congestion {
                r#type: 9,
                ..Default::default()
            });
        }),
        ("congestion.bbr_profile", |c| {
            c.congestion = Some(rpc::Congestion {
                bbr_profile: -1,
                ..Default::default()
            });
        }),
        ("quic.stream_receive_window", |c| {
            c.quic = Some(rpc::Quic {
                stream_receive_window: 1000,
                ..Default::default()
            });
        }),
        ("quic.connection_receive_window", |c| {
            c.quic = Some(rpc::Quic {
                connection_receive_window: u64::MAX,
                ..Default::default()
            });
        }),
        ("quic.max_idle_timeout", |c| {
            c.quic = Some(rpc::Quic {
                max_idle_timeout: seconds(1),
                ..Default::default()
            });
        }),
        ("quic.max_incoming_streams", |c| {
            c.quic = Some(rpc::Quic {
                max_incoming_streams: 7,
                ..Default::default()
            });
        }),
        ("udp.idle_timeout", |c| {
            c.udp = Some(rpc::UdpRelay {
                disabled: false,
                idle_timeout: seconds(-5),
            });
        }),
        ("masquerade", |c| {
            c.masquerade = Some(rpc::Masquerade::default())
        }),
        ("masquerade.string.status", |c| {
            c.masquerade = Some(text(233, ("a", "b")))
        }),
        ("masquerade.string.status", |c| {
            c.masquerade = Some(text(99_999, ("a", "b")))
        }),
        ("masquerade.string.headers[\"a b\"]", |c| {
            c.masquerade = Some(text(0, ("a b", "c")))
        }),
        ("masquerade.file.directory", |c| {
            c.masquerade = Some(rpc::Masquerade {
                site: Some(Site::File(rpc::MasqueradeFile::default())),
            });
        }),
        ("masquerade.proxy.url", |c| {
            c.masquerade = Some(proxy("ftp://example.com"))
        }),
        ("masquerade.proxy.url", |c| c.masquerade = Some(proxy(""))),
        ("drain_grace", |c| c.drain_grace = seconds(1 << 40)),
        ("verifier_keys", |c| c.verifier_keys = None),
        ("verifier_keys.fleet_key", |c| {
            c.verifier_keys.as_mut().unwrap().fleet_key = vec![1; 31].into();
        }),
        ("verifier_keys.node_key", |c| {
            c.verifier_keys.as_mut().unwrap().node_key = vec![].into();
        }),
        ("expiry_policy", |c| c.expiry_policy = 3),
    ];
    NodeSettings::parse(&Arc::new(good())).expect("good");
    for (path, change) in cases {
        let mut config = good();
        change(&mut config);
        let errors = NodeSettings::parse(&Arc::new(config)).expect_err(path);
        let paths: Vec<_> = errors.iter().map(|error| &*error.path).collect();
        assert_eq!(paths, [*path], "{errors:?}");
        assert!(!errors[0].message.is_empty());
    }
}

#[test]
fn all_mistakes_are_told_together_and_no_secret_is() {
    let mut config = good();
    config.listen.clear();
    config.obfuscation = Some(salamander("abc"));
    config.expiry_policy = 9;
    let errors = NodeSettings::parse(&Arc::new(config)).expect_err("three");
    assert_eq!(errors.len(), 3);
    let settings = NodeSettings::parse(&Arc::new(good())).expect("good");
    assert!(!format!("{settings:?} {:?}", settings.keys).contains("2, 2"));
    assert!(!format!("{errors:?}").contains("abc"));
}
