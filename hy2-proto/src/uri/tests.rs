use proptest::option;
use proptest::prelude::*;

use super::*;

#[track_caller]
fn parse(text: &str) -> ShareUri {
    text.parse().unwrap()
}

fn host(name: &str) -> ShareUri {
    ShareUri::new(name.parse::<Host>().unwrap())
}

/// Reference `client_test.go`: both ways.
#[test]
fn reference_vectors() {
    for (text, expected) in [
        (
            "hysteria2://god@zilla.jp/",
            ShareUri {
                auth: Some("god".into()),
                ..host("zilla.jp")
            },
        ),
        (
            "hysteria2://john:wick@continental.org:4443/",
            ShareUri {
                auth: Some("john:wick".into()),
                ports: Some(4443.into()),
                ..host("continental.org")
            },
        ),
        (
            "hysteria2://saul@better.call:7000-10000,20000/",
            ShareUri {
                auth: Some("saul".into()),
                ports: Some("7000-10000,20000".parse().unwrap()),
                ..host("better.call")
            },
        ),
        (
            "hysteria2://noauth.com/?ech=AAj%2BDQAEAAAAAA%3D%3D&insecure=1&obfs=salamander\
             &obfs-password=66ccff&pinSHA256=deadbeef&sni=crap.cc",
            ShareUri {
                ech: Some("AAj+DQAEAAAAAA==".into()),
                insecure: true,
                obfs: Some(Obfs::Salamander("66ccff".into())),
                pin_sha256: Some("deadbeef".into()),
                sni: Some("crap.cc".into()),
                ..host("noauth.com")
            },
        ),
        (
            "hysteria2://pw@geckotown.com:8443/?obfs=gecko&obfs-password=hidden",
            ShareUri {
                auth: Some("pw".into()),
                ports: Some(8443.into()),
                obfs: Some(Obfs::Gecko("hidden".into())),
                ..host("geckotown.com")
            },
        ),
    ] {
        assert_eq!(parse(text), expected);
        assert_eq!(expected.to_string(), text);
    }
    for text in ["invalid.bs", "https://www.google.com/search?q=test"] {
        assert_eq!(text.parse::<ShareUri>(), Err(UriError::Scheme), "{text}");
    }
}

#[test]
fn both_schemes_in_any_case() {
    for scheme in ["hysteria2", "hy2", "HY2", "Hysteria2"] {
        let uri = parse(&format!("{scheme}://a@b.c:1"));
        assert_eq!(uri.to_string(), "hysteria2://a@b.c:1/");
    }
    for scheme in [
        "hysteria",
        "hysteria2+realm",
        "hysteria2+realm+http",
        "hy2 ",
        "",
    ] {
        let text = format!("{scheme}://a@b.c:1");
        assert_eq!(text.parse::<ShareUri>(), Err(UriError::Scheme), "{text}");
    }
}

#[test]
fn parts_may_be_missing() {
    for text in ["hy2://h", "hy2://h/", "hy2://h?", "hy2://h/?#", "hy2://@h/"] {
        assert_eq!(parse(text), host("h"), "{text}");
    }
    let uri = parse("hy2://h");
    assert_eq!(uri.server_ports().single(), Some(DEFAULT_PORT));
    assert_eq!(parse("hy2://h#a?b/c@d").name.as_deref(), Some("a?b/c@d"));
    assert_eq!(parse("hy2://h?sni=a/b").sni.as_deref(), Some("a/b"));
}

#[test]
fn ipv6_hosts_stand_in_brackets() {
    let uri = parse("hy2://pw@[2001:db8::1]:443,500-600/");
    assert_eq!(uri.host, "2001:db8::1".parse().unwrap());
    assert_eq!(uri.server_ports().count(), 102);
    assert_eq!(uri.to_string(), "hysteria2://pw@[2001:db8::1]:443,500-600/");
    assert_eq!(parse("hy2://[::1]").ports, None);
    assert!("hy2://::1".parse::<ShareUri>().is_err());
    assert!("hy2://[::1]443".parse::<ShareUri>().is_err());
}

#[test]
fn escapes_are_decoded_and_made() {
    let uri =
        parse("hy2://p%40ss%2Fw%3Aord%25@h/?obfs=salamander&obfs-password=a+b%2Bc#caf%C3%A9+1");
    assert_eq!(uri.auth.as_deref(), Some("p@ss/w:ord%"));
    assert_eq!(uri.obfs, Some(Obfs::Salamander("a b+c".into())));
    assert_eq!(uri.name.as_deref(), Some("café+1"));
    assert_eq!(
        uri.to_string(),
        "hysteria2://p%40ss%2Fw:ord%25@h/?obfs=salamander&obfs-password=a%20b%2Bc#caf%C3%A9%2B1"
    );
    assert_eq!(parse("hy2://a+b@h").auth.as_deref(), Some("a+b"));
    assert_eq!(parse("hy2://a@b@h").auth.as_deref(), Some("a@b"));
}

#[test]
fn first_of_equal_parameters_counts_and_unknown_ones_do_not() {
    let uri = parse("hy2://h/?sni=first&sni=second&upmbps=100&&=&x");
    assert_eq!(uri.sni.as_deref(), Some("first"));
    assert_eq!(uri.to_string(), "hysteria2://h/?sni=first");
}

#[test]
fn insecure_is_read_as_go_reads_booleans() {
    for (value, insecure) in [
        ("1", true),
        ("true", true),
        ("T", true),
        ("0", false),
        ("false", false),
        ("yes", false),
        ("", false),
    ] {
        let uri = parse(&format!("hy2://h/?insecure={value}"));
        assert_eq!(uri.insecure, insecure, "{value}");
    }
}

#[test]
fn obfuscation_names_mind_no_case_and_need_a_password() {
    let uri = parse("hy2://h/?obfs=Salamander&obfs-password=x");
    assert_eq!(uri.obfs, Some(Obfs::Salamander("x".into())));
    for text in [
        "hy2://h/?obfs=",
        "hy2://h/?obfs=plain",
        "hy2://h/?obfs-password=x",
    ] {
        assert_eq!(parse(text).obfs, None, "{text}");
    }
}

#[test]
fn wrong_links_say_what_is_wrong() {
    let long = format!("hy2://h#{}", "x".repeat(MAX_LEN));
    for (text, error) in [
        ("", UriError::Scheme),
        ("hy2:h", UriError::Scheme),
        ("hy2://", UriError::Host(AddressError::NoHost)),
        ("hy2://:443", UriError::Host(AddressError::NoHost)),
        ("hy2://pw@/", UriError::Host(AddressError::NoHost)),
        ("hy2://[::1", UriError::Host(AddressError::Host)),
        ("hy2://a b", UriError::Host(AddressError::Host)),
        ("hy2://h:", UriError::Ports(PortUnionError)),
        ("hy2://h:65536", UriError::Ports(PortUnionError)),
        ("hy2://h:1-2-3", UriError::Ports(PortUnionError)),
        ("hy2://%zz@h", UriError::Encoding),
        ("hy2://%f@h", UriError::Encoding),
        ("hy2://%ff@h", UriError::Encoding),
        ("hy2://h?sni=%", UriError::Encoding),
        ("hy2://h#%+1", UriError::Encoding),
        (
            "hy2://h?obfs=rot13&obfs-password=x",
            UriError::UnknownObfs("rot13".into()),
        ),
        ("hy2://h?obfs=gecko", UriError::NoObfsPassword),
        (long.as_str(), UriError::TooLong),
    ] {
        assert_eq!(text.parse::<ShareUri>(), Err(error), "{text:.40}");
    }
}

#[test]
fn secrets_are_not_printed_for_debugging() {
    let uri = parse("hy2://hunter2@h/?obfs=gecko&obfs-password=swordfish");
    let debug = format!("{uri:?}");
    assert!(
        !debug.contains("hunter2") && !debug.contains("swordfish"),
        "{debug}"
    );
    assert!(debug.contains("***"));
}

#[test]
fn pins_are_normalised() {
    assert_eq!(normalise_pin("DE:AD-be:EF"), "deadbeef");
    assert_eq!(normalise_pin("deadbeef"), "deadbeef");
}

fn any_uri() -> impl Strategy<Value = ShareUri> {
    let text = || option::of(".{1,20}");
    let host = prop_oneof![
        "[a-zA-Z0-9-]{1,20}(\\.[a-z0-9]{1,10}){0,2}".prop_map(|name| name.parse().unwrap()),
        any::<std::net::IpAddr>().prop_map(Host::from),
    ];
    let ports = option::of(
        proptest::collection::vec((any::<u16>(), any::<u16>()), 1..5).prop_map(|ranges| {
            let parts: Vec<_> = ranges.iter().map(|(a, b)| format!("{a}-{b}")).collect();
            parts.join(",").parse::<PortUnion>().unwrap()
        }),
    );
    let obfs = option::of((any::<bool>(), ".{1,20}").prop_map(|(gecko, password)| {
        if gecko {
            Obfs::Gecko(password)
        } else {
            Obfs::Salamander(password)
        }
    }));
    let rest = (text(), text(), text(), text(), text(), any::<bool>());
    (host, ports, obfs, rest).prop_map(
        |(host, ports, obfs, (auth, sni, pin_sha256, ech, name, insecure))| ShareUri {
            auth,
            host,
            ports,
            obfs,
            sni,
            insecure,
            pin_sha256,
            ech,
            name,
        },
    )
}

proptest! {
    #[test]
    fn what_is_printed_parses_back(uri in any_uri()) {
        let text = uri.to_string();
        prop_assert!(text.is_ascii());
        prop_assert_eq!(text.parse(), Ok(uri));
    }

    #[test]
    fn any_text_is_judged(text in "(hy2://)?[ -~é]{0,60}") {
        if let Ok(uri) = text.parse::<ShareUri>() {
            prop_assert_eq!(uri.to_string().parse(), Ok(uri));
        }
    }
}
