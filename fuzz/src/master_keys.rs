//! The file of the master keys: a line is a key or is named as none, every key stays what it was, also when another is
//! added, and no other can be taken for one. Without state.
//!
//! Planted bug: of two keys of one version the latter was taken.

use std::collections::BTreeMap;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use hy2_master_sdk::{
    fuzzing::keys::{text, with_one_more},
    secrets::{KeyFileError, MasterKeys, Vault},
};

/// Takes the text of a file.
pub fn target(data: &[u8]) {
    let Ok(file) = std::str::from_utf8(data) else {
        return;
    };
    let wanted = model(file);
    let keys = match MasterKeys::parse(file) {
        Ok(keys) => keys,
        Err(KeyFileError::Empty) => return assert_eq!(wanted, Ok(BTreeMap::new())),
        Err(KeyFileError::Invalid { line, reason }) => {
            assert!(!reason.is_empty());
            return assert_eq!(wanted, Err(line));
        }
        Err(other) => panic!("{other}"),
    };
    let wanted = wanted.expect("a line is no key");
    let written = text(&keys);
    assert_eq!(model(&written).as_ref(), Ok(&wanted), "what is written");
    let again = MasterKeys::parse(&written).expect("our own file");
    assert_eq!(text(&again), written);
    let printed = format!("{keys:?}");
    let said = wanted.values().map(|key| URL_SAFE_NO_PAD.encode(key));
    assert!(said.into_iter().all(|key| !printed.contains(&key)));

    let sealed = Vault::new(keys.clone()).seal("place", b"row", data);
    opens(again, &sealed, data);
    let most = wanted.keys().last().copied().expect("one at least");
    match with_one_more(&keys) {
        Ok((version, more)) => {
            assert_eq!(Some(version), most.checked_add(1));
            let mut now = model(&text(&more)).expect("our own file");
            let added = now.remove(&version).expect("the new key");
            assert_eq!(now, wanted, "a key was lost");
            assert!(wanted.values().all(|key| *key != added));
            opens(more, &sealed, data);
        }
        Err(KeyFileError::NoVersion) => assert_eq!(most, u32::MAX),
        Err(other) => panic!("{other}"),
    }
}

fn opens(keys: MasterKeys, sealed: &[u8], plain: &[u8]) {
    let opened = Vault::new(keys).open("place", b"row", sealed);
    assert_eq!(opened.expect("the same key").as_slice(), plain);
}

/// The keys of a file, or the first line that is none.
fn model(file: &str) -> Result<BTreeMap<u32, Vec<u8>>, usize> {
    let mut keys = BTreeMap::new();
    for (at, line) in file.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let key = line.split_once(' ').and_then(|(version, key)| {
            let version: u32 = version.parse().ok()?;
            let key = URL_SAFE_NO_PAD.decode(key.trim()).ok()?;
            let random = key.windows(2).any(|pair| pair[0] != pair[1]);
            (version > 0 && key.len() == 32 && random).then_some((version, key))
        });
        match key {
            Some((version, key)) if !keys.contains_key(&version) => keys.insert(version, key),
            _ => return Err(at + 1),
        };
    }
    Ok(keys)
}
