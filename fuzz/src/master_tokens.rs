//! What strangers hold up to the master: access, API and refresh tokens, cookies, origins, addresses of proxies, revisions,
//! cursors and bodies. What is taken is what was given out, to the letter, and nothing else passes for it.
//!
//! Planted bug: an access token could last for as long as its claims said.

use std::{net::IpAddr, sync::LazyLock};

use arbitrary::Unstructured;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use hy2_master_sdk::{
    auth::{
        api_token::{ApiToken, PREFIX},
        jwt::{AUDIENCE, Claims, TokenKey, TokenSigner},
        session::SessionKeys,
    },
    fuzzing::{credentials, http as requests},
    service::page::{Page, PageRequest},
};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{read, take};

/// Takes a byte that chooses what it is, and that.
pub fn target(data: &[u8]) {
    let mut input = Unstructured::new(data);
    match read::<u8>(&mut input) % 8 {
        0 => access_token(&mut input),
        1 => taken(&String::from_utf8_lossy(input.take_rest())),
        2 => api_token(&mut input),
        3 => refresh_token(&mut input),
        4 => cursor(&String::from_utf8_lossy(input.take_rest())),
        5 | 6 => head(&mut input),
        _ => body(input.take_rest()),
    }
}

const NOW: i64 = 1_800_000_000;

const ISSUER: &str = "cluster";

const KEY: Uuid = Uuid::from_u128(5);

/// The PKCS#8 of the key that signs.
static PKCS8: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut key = vec![
        0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20,
    ];
    key.extend([7; 32]);
    key
});

static SIGNER: LazyLock<TokenSigner> = LazyLock::new(|| {
    let key = TokenKey::from_pkcs8(KEY, &PKCS8).expect("a key");
    TokenSigner::new(ISSUER, key, Vec::new())
});

static SESSIONS: LazyLock<SessionKeys> = LazyLock::new(|| credentials::session_keys([9; 32]));

/// Signs what a holder of the key might, right or wrong.
fn access_token(input: &mut Unstructured<'_>) {
    let flaw = read::<u8>(input);
    let (issued, lasts) = (read::<i16>(input), read::<i16>(input));
    let iat = NOW + i64::from(issued);
    let mut header = vec![
        ("typ", json!("JWT")),
        ("alg", json!("EdDSA")),
        ("kid", json!(KEY)),
    ];
    let mut claims = vec![
        ("iss", json!(ISSUER)),
        ("aud", json!(AUDIENCE)),
        ("sub", json!("7")),
        ("sid", json!(Uuid::nil())),
        ("epoch", json!(3)),
        ("iat", json!(iat)),
        ("exp", json!(iat + i64::from(lasts))),
        ("jti", json!(Uuid::nil())),
    ];
    let at = read::<u16>(input);
    let left = input.len();
    let rest = take(input, left);
    let value = || serde_json::from_slice(rest).unwrap_or(Value::Null);
    let place = usize::from(flaw >> 4);
    match flaw % 8 {
        1 => claims[place % 8].1 = value(),
        2 => drop(claims.remove(place % 8)),
        3 => claims.push((claims[place % 8].0, value())),
        4 => claims.push(("nbf", value())),
        5 => header[place % 3].1 = value(),
        6 => header.push((["jwk", "jku", "x5u", "x5c"][place % 4], value())),
        _ => {}
    }
    let (header, claims) = (object(&header), object(&claims));
    let mut token = credentials::sign(&PKCS8, &header, &claims);
    if flaw % 8 == 7 {
        // Somebody else's change of any letter.
        let mut bytes = token.clone().into_bytes();
        let place = usize::from(at) % bytes.len();
        bytes[place] = rest.first().copied().unwrap_or(b'.') & 0x7f;
        let changed = String::from_utf8(bytes).expect("ASCII");
        let is_same = changed == token;
        token = changed;
        assert!(is_same || SIGNER.check(&token, NOW).is_err(), "{token}");
        return;
    }
    let found = SIGNER.check(&token, NOW);
    let said = serde_json::from_str::<Claims>(&claims).ok();
    let holds = said.as_ref().is_some_and(|claims| {
        let lifetime = claims.exp.saturating_sub(claims.iat);
        let lasts = claims.exp > NOW - 5 && claims.iat <= NOW + 5 && (1..=900).contains(&lifetime);
        claims.iss == ISSUER && claims.aud == AUDIENCE && lasts
    });
    let head = serde_json::from_str::<Value>(&header).expect("an object");
    let is_ours = head["alg"] == "EdDSA"
        && head["kid"] == KEY.to_string()
        && ["jwk", "jku", "x5u", "x5c"].iter().all(|name| head[name].is_null());
    match found {
        Ok(found) => {
            assert!(holds && is_ours, "taken: {header} {claims}");
            assert_eq!(Some(found), said);
        }
        // A type of token that cannot be read is no flaw of ours.
        Err(error) => assert!(
            !holds || !is_ours || flaw % 8 == 5,
            "{error}: {header} {claims}"
        ),
    }
}

/// Writes fields in their order, also one that stands twice.
fn object(fields: &[(&str, Value)]) -> String {
    let fields = fields.iter().map(|(name, value)| format!("{name:?}:{value}"));
    format!("{{{}}}", fields.collect::<Vec<_>>().join(","))
}

/// Takes any text for each kind of token.
fn taken(text: &str) {
    if let Ok(claims) = SIGNER.check(text, NOW) {
        assert_eq!((&*claims.iss, &*claims.aud), (ISSUER, AUDIENCE));
    }
    if let Ok(token) = text.parse::<ApiToken>() {
        let shown = token.reveal();
        // The id may be in capitals.
        let (id, secret) = text.split_at(PREFIX.len() + 32);
        assert_eq!(shown, format!("{}{secret}", id.to_ascii_lowercase()));
        assert!(shown.starts_with(&token.prefix()));
        assert!(!format!("{token:?}").contains(&secret[1..]));
    }
    if let Some(token) = SESSIONS.read_refresh_token(text) {
        assert_eq!(token.reveal(), text);
    }
    let own = SESSIONS.csrf_token(Uuid::nil());
    assert_eq!(SESSIONS.is_csrf_token(Uuid::nil(), text), own == text);
}

fn api_token(input: &mut Unstructured<'_>) {
    let (id, secret) = (read::<u128>(input), read::<[u8; 32]>(input));
    let secret = URL_SAFE_NO_PAD.encode(secret);
    let text = format!("{PREFIX}{}_{secret}", Uuid::from_u128(id).simple());
    let token: ApiToken = text.parse().expect("a token");
    assert_eq!((token.id().as_u128(), token.reveal()), (id, text.clone()));
    assert!(token.matches(&token.hash()));
    let mut changed = text.into_bytes();
    let at = usize::from(read::<u8>(input)) % changed.len();
    changed[at] = read::<u8>(input) & 0x7f;
    let changed = String::from_utf8(changed).expect("ASCII");
    taken(&changed);
    if let Ok(other) = changed.parse::<ApiToken>() {
        let is_same = other.reveal() == token.reveal();
        assert_eq!(token.matches(&other.hash()), is_same);
    }
}

fn refresh_token(input: &mut Unstructured<'_>) {
    static TOKEN: LazyLock<String> =
        LazyLock::new(|| SESSIONS.refresh_token(Uuid::from_u128(3)).reveal());
    let token = SESSIONS.read_refresh_token(&TOKEN).expect("our own");
    assert_eq!(token.session(), Uuid::from_u128(3));
    let mut changed = TOKEN.clone().into_bytes();
    let at = usize::from(read::<u8>(input)) % changed.len();
    changed[at] = read::<u8>(input) & 0x7f;
    let changed = String::from_utf8(changed).expect("ASCII");
    let is_same = changed == *TOKEN;
    assert_eq!(SESSIONS.read_refresh_token(&changed).is_some(), is_same);
    // For another session, a stranger has no mark.
    let made = [read::<[u8; 32]>(input), read(input)].concat();
    let made = URL_SAFE_NO_PAD.encode(made);
    taken(&format!("hy2r_{made}"));
}

fn cursor(text: &str) {
    let page = |after: String| PageRequest {
        size: None,
        after: Some(after),
    };
    let given = page(text.to_owned());
    let _ = (given.key::<i64>(), given.key::<(Option<i64>, i64)>());
    let _ = (given.key::<String>(), given.key::<(i64, Uuid)>());
    // No key of a list is longer than a name.
    let name: String = text.chars().filter(char::is_ascii_graphic).take(64).collect();
    let next = Page::new(vec![(), ()], 1, |()| name.clone()).next;
    let key = page(next.expect("there is more")).key::<String>();
    assert_eq!(key.expect("our own"), Some(name));
}

const ACCESS_COOKIE: &str = "__Host-hy2_access=";

fn head(input: &mut Unstructured<'_>) {
    const NAMES: [HeaderName; 7] = [
        header::AUTHORIZATION,
        header::COOKIE,
        header::HOST,
        header::ORIGIN,
        HeaderName::from_static("sec-fetch-site"),
        HeaderName::from_static("x-forwarded-for"),
        header::IF_MATCH,
    ];
    let peer = match read::<u8>(input) % 3 {
        0 => "203.0.113.9",
        1 => "10.0.0.1",
        _ => "::ffff:10.0.0.1",
    };
    let peer: IpAddr = peer.parse().expect("an address");
    let mut headers = HeaderMap::new();
    for _ in 0..8 {
        if input.is_empty() {
            break;
        }
        let (name, len) = (read::<u8>(input), read::<u8>(input));
        if let Ok(value) = HeaderValue::from_bytes(take(input, len.into())) {
            headers.append(NAMES[usize::from(name) % 7].clone(), value);
        }
    }
    bearer(&headers);
    cookie(&headers);
    if requests::is_same_origin(&headers) {
        let (host, origin) = (&headers[header::HOST], &headers[header::ORIGIN]);
        let schemes = [&b"http://"[..], b"https://"];
        let urls = schemes.map(|scheme| [scheme, host.as_bytes()].concat());
        assert!(urls.iter().any(|url| url == origin.as_bytes()));
        let site = headers.get("sec-fetch-site");
        assert!(site.is_none_or(|site| site == "same-origin"));
    }
    address(peer, headers.clone());
    revision(&headers);
}

fn bearer(headers: &HeaderMap) {
    let given: Vec<_> = headers.get_all(header::AUTHORIZATION).iter().collect();
    match requests::bearer(headers) {
        Ok(None) => assert!(given.is_empty()),
        Ok(Some(token)) => {
            let [one] = given[..] else {
                panic!("one of several")
            };
            let text = one.to_str().expect("text");
            let (scheme, rest) = text.split_at(7);
            assert_eq!(scheme.to_ascii_lowercase(), "bearer ");
            assert_eq!(rest.trim(), token);
        }
        Err(()) => assert!(!given.is_empty()),
    }
}

fn cookie(headers: &HeaderMap) {
    let values = headers.get_all(header::COOKIE).iter();
    let texts = values.filter_map(|value| value.to_str().ok());
    let pairs = texts.flat_map(|text| text.split(';'));
    let ours: Vec<_> = pairs
        .filter_map(|pair| pair.trim().strip_prefix(ACCESS_COOKIE))
        .collect();
    let expected = match ours[..] {
        [one] => Some(one),
        _ => None,
    };
    assert_eq!(requests::access_cookie(headers), expected);
}

fn address(peer: IpAddr, mut headers: HeaderMap) {
    let name = HeaderName::from_static("x-forwarded-for");
    let is_trusted = |address: IpAddr| address.to_string().starts_with("10.");
    let found = requests::client_address(peer, &headers);
    assert_eq!(found, found.to_canonical());
    if !is_trusted(peer.to_canonical()) {
        assert_eq!(found, peer);
        return;
    }
    let mut hops = Vec::new();
    for value in headers.get_all(&name) {
        let text = value.to_str().unwrap_or_default();
        hops.extend(text.split(',').map(|hop| hop.trim().to_owned()));
    }
    let is = |hop: &String| hop.parse::<IpAddr>().is_ok_and(|hop| hop.to_canonical() == found);
    assert!(found == peer.to_canonical() || hops.iter().any(is));
    if !is_trusted(found) {
        // What the client itself wrote there says nothing.
        let mut given: Vec<_> = headers.get_all(&name).iter().cloned().collect();
        given.insert(0, HeaderValue::from_static("192.0.2.1"));
        headers.remove(&name);
        for value in given {
            headers.append(&name, value);
        }
        assert_eq!(requests::client_address(peer, &headers), found);
    }
}

fn revision(headers: &HeaderMap) {
    let given: Vec<_> = headers.get_all(header::IF_MATCH).iter().collect();
    let text = |value: &HeaderValue| value.to_str().unwrap_or_default().trim().to_owned();
    match requests::revision(headers) {
        Ok(Some(rev)) => {
            let [one] = given[..] else {
                panic!("one of several")
            };
            assert_eq!(text(one), format!("\"{rev}\""), "no ETag of ours");
        }
        Ok(None) => assert!(match given[..] {
            [] => true,
            [one] => text(one) == "*",
            _ => false,
        }),
        Err(()) => assert!(!given.is_empty()),
    }
}

/// Checks that no text with NUL is let in, and none is refused for what is no NUL.
fn body(json: &[u8]) {
    let Ok(value) = serde_json::from_slice::<Value>(json) else {
        // It goes no further, but has been looked at.
        let _ = requests::has_nul(json);
        return;
    };
    let wrong = has_nul(&value);
    // A field that stands twice counts the last time only, but the first is looked at as well.
    assert!(requests::has_nul(json) || !wrong);
    assert_eq!(requests::has_nul(value.to_string().as_bytes()), wrong);
}

fn has_nul(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Array(values) => values.iter().any(has_nul),
        Value::Object(fields) => fields
            .iter()
            .any(|(name, value)| name.contains('\0') || has_nul(value)),
        _ => false,
    }
}
