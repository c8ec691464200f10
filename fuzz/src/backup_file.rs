//! Files of backups: what was changed, cut off or made by a stranger does not open, and what was sealed does, in whatever
//! pieces it comes. No state.
//!
//! Planted bug: a last chunk could be missing where the one before it was whole.

use std::sync::LazyLock;

use arbitrary::Unstructured;
use hy2_master_sdk::{
    backup::{
        BackupError,
        envelope::{BackupKey, CHUNK, Decryptor, Encryptor, HEADER, MAGIC},
    },
    fuzzing::backup,
};

use crate::{pattern, read, take};

/// Takes a byte that chooses what the rest is.
pub fn target(data: &[u8]) {
    let mut input = Unstructured::new(data);
    match read::<u8>(&mut input) % 2 {
        0 => stranger(input.take_rest()),
        _ => damaged(&mut input),
    }
}

pub(crate) fn key() -> BackupKey {
    backup::key([7; 32])
}

/// Nobody without the key has made what opens.
fn stranger(file: &[u8]) {
    assert!(open(&key(), file, 100).is_err());
    // A passphrase costs what the header says; what takes long is left out, and tried less often from 16 KiB on.
    let cost = file
        .get(MAGIC.len() + 1..MAGIC.len() + 9)
        .and_then(|cost| cost.split_first_chunk::<4>());
    if let Some((memory, passes)) = cost {
        let passes = passes.first_chunk().copied().map(u32::from_be_bytes);
        let (memory, passes) = (u32::from_be_bytes(*memory), passes.unwrap_or(0));
        let refused = memory > 1 << 20 || passes > 16;
        let rare = file.last() == Some(&0);
        if refused || (memory < 16 && passes <= 1) || (rare && memory <= 64 && passes <= 2) {
            let phrase = backup::passphrase("correct horse battery");
            assert!(open(&phrase, file, 1_000).is_err());
        }
    }
}

/// What is sealed opens again in any pieces; but not after a change.
fn damaged(input: &mut Unstructured<'_>) {
    // Lengths about the ends of chunks, and short ones.
    let near = usize::from(read::<u8>(input));
    let len = match read::<u8>(input) % 8 {
        chunks @ 1..=2 => (usize::from(chunks) * CHUNK + near).saturating_sub(128),
        _ => near,
    };
    let plain = &PLAIN[..len];
    let mut pieces = || (1 + usize::from(read::<u16>(input))).max(len / 128);
    let mut sealed = seal(plain, pieces());
    let pieces = pieces();
    let opened = open(&key(), &sealed, pieces).expect("what was sealed");
    assert!(opened == plain, "other bytes");
    assert!(open(&backup::key([8; 32]), &sealed, pieces).is_err());

    let (all, at) = (sealed.len(), read::<u32>(input) as usize % sealed.len());
    let kind = read::<u8>(input) % 5;
    match kind {
        bit @ 0..=1 => sealed[at] ^= 1 << (at + usize::from(bit)) % 8,
        2 => sealed.truncate(at),
        // Where an end would be well placed.
        3 => sealed.truncate(HEADER + at / (CHUNK + 16) * (CHUNK + 16)),
        _ => sealed.extend_from_slice(take(input, 40)),
    }
    if kind < 2 || sealed.len() != all {
        assert!(open(&key(), &sealed, pieces).is_err(), "{len}, {at}");
    }
}

/// As much as two chunks and a bit hold.
static PLAIN: LazyLock<Vec<u8>> = LazyLock::new(|| pattern(1, 2 * CHUNK + 128));

pub(crate) fn seal(plain: &[u8], pieces: usize) -> Vec<u8> {
    let mut encryptor = Encryptor::new(&key()).expect("a key");
    let mut sealed = encryptor.header().to_vec();
    for piece in plain.chunks(pieces) {
        encryptor.push(piece, &mut sealed).expect("short");
    }
    encryptor.finish(&mut sealed).expect("short");
    sealed
}

fn open(key: &BackupKey, file: &[u8], pieces: usize) -> Result<Vec<u8>, BackupError> {
    let (header, rest) = file.split_first_chunk().ok_or(BackupError::Format)?;
    let mut decryptor = Decryptor::new(key, *header)?;
    let mut plain = Vec::new();
    for piece in rest.chunks(pieces) {
        decryptor.push(piece, &mut plain)?;
    }
    decryptor.finish(&mut plain)?;
    Ok(plain)
}
