//! Share links.
//!
//! Planted bug: a plus sign was printed as it is, and read as a space.

use arbitrary::Unstructured;
use hy2_proto::{
    address::{Host, HostRef},
    ports::PortUnion,
    uri::{self, Obfs, ShareUri, normalise_pin},
};

use crate::{read, take};

/// Parses the input as a link, or with a first byte of 0 builds a link of the parts behind it.
pub fn target(data: &[u8]) {
    if let [0, parts @ ..] = data {
        return build(&mut Unstructured::new(parts));
    }
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let Ok(uri) = text.parse::<ShareUri>() else {
        return;
    };
    assert!(text.len() <= uri::MAX_LEN);
    for part in [&uri.auth, &uri.sni, &uri.pin_sha256, &uri.ech, &uri.name] {
        assert_ne!(part.as_deref(), Some(""), "empty is missing");
    }
    reparse(&uri);
    if let Some(pin) = &uri.pin_sha256 {
        let pin = normalise_pin(pin);
        assert_eq!(normalise_pin(&pin), pin);
    }
    let count = uri.server_ports().count();
    assert!((1..=65_536).contains(&count));
}

fn reparse(uri: &ShareUri) {
    let printed = uri.to_string();
    assert!(printed.is_ascii() || !uri.host.to_string().is_ascii());
    if printed.len() <= uri::MAX_LEN {
        let again: ShareUri = printed.parse().expect("what was printed");
        assert_eq!(again, *uri, "{printed}");
        assert_eq!(again.to_string(), printed);
    }
    let debug = format!("{uri:?}");
    for secret in [
        uri.auth.as_ref(),
        match &uri.obfs {
            Some(Obfs::Salamander(password) | Obfs::Gecko(password)) => Some(password),
            _ => None,
        },
    ]
    .into_iter()
    .flatten()
    {
        // Long enough that it cannot be there by chance.
        let public = [&uri.sni, &uri.pin_sha256, &uri.ech, &uri.name];
        // As it is, and as it is written there: a backslash is two.
        let elsewhere = public
            .into_iter()
            .flatten()
            .any(|text| text.contains(secret) || format!("{text:?}").contains(secret))
            || uri.host.to_string().contains(secret)
            || format!("{:?}", uri.host).contains(secret)
            || "ShareUri { auth: Some(\"***\"), host: Domain(".contains(secret);
        assert!(secret.len() < 24 || elsewhere || !debug.contains(secret));
    }
}

fn build(input: &mut Unstructured<'_>) {
    let host = text(input);
    // A leading `@` marks targets that a server answers itself; a link leads to none of them.
    let host: Host = match HostRef::parse(host.trim_start_matches('@')) {
        Ok(host) => host.to_owned(),
        Err(_) => "example.com".parse().expect("a name"),
    };
    let mut uri = ShareUri::new(host);
    let which = read::<u16>(input);
    let has = |bit: u32| which & (1 << bit) != 0;
    let some = |present: bool, input: &mut Unstructured<'_>| {
        Some(text(input)).filter(|text| present && !text.is_empty())
    };
    uri.auth = some(has(0), input);
    uri.sni = some(has(1), input);
    uri.pin_sha256 = some(has(2), input);
    uri.ech = some(has(3), input);
    uri.name = some(has(4), input);
    uri.insecure = has(5);
    uri.ports = has(6).then(|| {
        let (a, b) = (read::<u16>(input), read::<u16>(input));
        let ports: Result<PortUnion, _> = format!("{a}-{b},{}", a ^ 0x100).parse();
        ports.expect("ports")
    });
    let make = [Obfs::Salamander, Obfs::Gecko][usize::from(has(7))];
    uri.obfs = some(has(8), input).map(make);
    reparse(&uri);
}

fn text(input: &mut Unstructured<'_>) -> String {
    let len = read::<u8>(input);
    String::from_utf8_lossy(take(input, usize::from(len % 64))).into_owned()
}
