//! Finds secrets in files, however they were written down.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    path::{Path, PathBuf},
};

use aho_corasick::{AhoCorasick, MatchKind};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD},
};

/// Shortest text that is looked for: what is shorter is found by chance.
const MIN: usize = 12;

/// Of a long secret its end is looked for, so that a part of it is found, too.
const TAIL: usize = 24;

/// Secrets by name, and everything that could be one of them.
#[derive(Debug, Default)]
pub(crate) struct Needles {
    names: Vec<String>,
    patterns: Vec<(Vec<u8>, usize)>,
}

/// Ready to look.
#[derive(Debug)]
pub(crate) struct Searcher {
    names: Vec<String>,
    owners: Vec<usize>,
    automaton: AhoCorasick,
}

impl Needles {
    /// Adds a secret as it is written: a password or a token.
    pub(crate) fn text(&mut self, name: &str, value: &str) {
        assert!(value.len() >= MIN, "{name} is too short to be found");
        let tail = &value.as_bytes()[value.len().saturating_sub(TAIL)..];
        self.add(name, tail);
    }

    /// Adds a token: its text, and the bytes that its end stands for.
    pub(crate) fn token(&mut self, name: &str, value: &str) {
        self.text(name, value);
        // 256 bits or 128 bits, base64url.
        for length in [43, 22] {
            let Some(at) = value.len().checked_sub(length) else {
                continue;
            };
            if let Ok(bytes) = URL_SAFE_NO_PAD.decode(&value[at..]) {
                self.bytes(name, &bytes);
                return;
            }
        }
        panic!("{name} is no token: nothing at its end is base64url");
    }

    /// Adds a secret that is no text: a key.
    pub(crate) fn bytes(&mut self, name: &str, value: &[u8]) {
        assert!(value.len() >= MIN, "{name} is too short to be found");
        self.add(name, value);
    }

    fn add(&mut self, name: &str, value: &[u8]) {
        let owner = self.names.len();
        self.names.push(name.to_owned());
        for form in forms(value) {
            self.patterns.push((form, owner));
        }
    }

    pub(crate) fn searcher(&self) -> Searcher {
        let automaton = AhoCorasick::builder()
            .match_kind(MatchKind::Standard)
            .build(self.patterns.iter().map(|(pattern, _)| pattern))
            .expect("few and short");
        Searcher {
            names: self.names.clone(),
            owners: self.patterns.iter().map(|(_, owner)| *owner).collect(),
            automaton,
        }
    }
}

impl Searcher {
    /// Returns the names of what is in `bytes`.
    pub(crate) fn find(&self, bytes: &[u8]) -> BTreeSet<&str> {
        self.automaton
            .find_overlapping_iter(bytes)
            .map(|found| self.names[self.owners[found.pattern()]].as_str())
            .collect()
    }

    /// Returns how often anything of that name is in `bytes`.
    pub(crate) fn count(&self, name: &str, bytes: &[u8]) -> usize {
        self.automaton
            .find_overlapping_iter(bytes)
            .filter(|found| self.names[self.owners[found.pattern()]] == name)
            .count()
    }

    /// Returns where the first of that name is in `bytes`.
    pub(crate) fn position(&self, name: &str, bytes: &[u8]) -> Option<usize> {
        self.automaton
            .find_overlapping_iter(bytes)
            .find(|found| self.names[self.owners[found.pattern()]] == name)
            .map(|found| found.start())
    }

    /// Returns what is found in a file or in anything in a folder, by file. Also how many bytes
    /// were read.
    pub(crate) fn search(&self, place: &Path) -> (Vec<(PathBuf, String)>, u64) {
        let (mut found, mut read) = (Vec::new(), 0);
        let mut places = vec![place.to_owned()];
        while let Some(path) = places.pop() {
            let Ok(kind) = std::fs::symlink_metadata(&path).map(|data| data.file_type()) else {
                // Databases remove files of theirs at any time.
                continue;
            };
            if kind.is_dir() {
                let entries = std::fs::read_dir(&path).expect("a folder of ours");
                places.extend(entries.flatten().map(|entry| entry.path()));
            } else if kind.is_file() {
                let Ok(bytes) = std::fs::read(&path) else {
                    continue;
                };
                read += bytes.len() as u64;
                for name in self.find(&bytes) {
                    found.push((path.clone(), name.to_owned()));
                }
            }
        }
        (found, read)
    }
}

/// Everything that a careless program could make of `value`.
fn forms(value: &[u8]) -> BTreeSet<Vec<u8>> {
    let mut forms = BTreeSet::from([value.to_vec()]);
    forms.insert(hex::encode(value).into_bytes());
    forms.insert(hex::encode_upper(value).into_bytes());
    for (before, dropped) in [(0, 0), (1, 2), (2, 3)] {
        // In the middle of something longer, at each place that it may have there: without the
        // characters that the neighbours decide.
        let mut padded = vec![0; before];
        padded.extend_from_slice(value);
        let whole = padded.len() * 8 / 6;
        for engine in [&STANDARD_NO_PAD, &URL_SAFE_NO_PAD] {
            forms.insert(engine.encode(&padded).as_bytes()[dropped..whole].to_vec());
        }
    }
    let escaped = |keep: fn(u8) -> bool, write: fn(&mut String, u8)| {
        let mut text = String::new();
        for byte in value {
            if keep(*byte) {
                text.push(char::from(*byte));
            } else {
                write(&mut text, *byte);
            }
        }
        text.into_bytes()
    };
    let nothing = |_| false;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    forms.insert(escaped(nothing, |text, byte| {
        let _ = write!(text, "%{byte:02x}");
    }));
    forms.insert(escaped(nothing, |text, byte| {
        let _ = write!(text, "%{byte:02X}");
    }));
    forms.insert(escaped(plain, |text, byte| {
        let _ = write!(text, "%{byte:02x}");
    }));
    forms.insert(escaped(plain, |text, byte| {
        let _ = write!(text, "%{byte:02X}");
    }));
    // As `Debug` prints bytes, and text.
    let list: Vec<String> = value.iter().map(ToString::to_string).collect();
    forms.insert(list.join(", ").into_bytes());
    forms.insert(value.escape_ascii().to_string().into_bytes());
    forms.insert(escaped(
        |byte| !b"\"\\".contains(&byte),
        |text, byte| {
            let _ = write!(text, "\\{}", char::from(byte));
        },
    ));
    forms
}

#[test]
fn a_secret_is_found_however_it_is_written_and_a_similar_one_is_not() {
    let mut needles = Needles::default();
    let secret = "canary: \"a/b+c\\d\" ~ 50%";
    needles.text("secret", secret);
    let key: [u8; 32] = std::array::from_fn(|at| (at * 37 + 11) as u8);
    let token = URL_SAFE_NO_PAD.encode(key);
    needles.token("token", &format!("hy2_{token}"));
    let searcher = needles.searcher();
    let list = |bytes: &[u8]| format!("{bytes:?}");
    let quoted = |text: &str| format!("{text:?}");
    for around in ["", "x", "xy", "xyz"] {
        let long = format!("{around}{secret}{around}");
        let written = [
            long.clone(),
            hex::encode(&long),
            hex::encode_upper(&long),
            STANDARD_NO_PAD.encode(&long),
            URL_SAFE_NO_PAD.encode(&long),
            list(long.as_bytes()),
            quoted(&long),
            serde_json::to_string(&long).expect("text"),
        ];
        for (at, text) in written.iter().enumerate() {
            assert_eq!(
                searcher.find(text.as_bytes()),
                ["secret"].into(),
                "{at} {text}"
            );
        }
        let mut raw = around.as_bytes().to_vec();
        raw.extend_from_slice(&key);
        raw.extend_from_slice(around.as_bytes());
        let written = [
            raw.clone(),
            hex::encode(&raw).into_bytes(),
            STANDARD_NO_PAD.encode(&raw).into_bytes(),
            URL_SAFE_NO_PAD.encode(&raw).into_bytes(),
            list(&raw).into_bytes(),
            format!("{:?}", bytes::Bytes::from(raw.clone())).into_bytes(),
        ];
        for (at, bytes) in written.iter().enumerate() {
            assert_eq!(searcher.find(bytes), ["token"].into(), "{at}");
        }
    }
    let percent: String = secret.bytes().map(|byte| format!("%{byte:02X}")).collect();
    assert_eq!(searcher.find(percent.as_bytes()), ["secret"].into());
    assert_eq!(
        searcher.count("secret", format!("{secret} {secret}").as_bytes()),
        2
    );
    for other in [
        secret.to_uppercase(),
        hex::encode(&secret[1..]),
        token[1..24].to_owned(),
    ] {
        assert!(searcher.find(other.as_bytes()).is_empty(), "{other}");
    }
}
