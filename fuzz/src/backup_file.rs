//! Backups: what was changed, cut off or made by a stranger does not open; and of rows behind the key either all are
//! restored, and a dump of them restores to the same, or nothing is in the store.
//!
//! Planted bug: a last chunk could be missing where the one before it was whole.

use std::{fs, sync::LazyLock, time::Duration};

use arbitrary::Unstructured;
use hy2_master_sdk::{
    backup::{
        BackupError, dump,
        envelope::{BackupKey, CHUNK, Decryptor, Encryptor, HEADER, MAGIC},
        restore,
    },
    domain::Timestamp,
    fuzzing::backup,
    store::{Store, StoreOptions},
};
use tokio::{runtime::Runtime, sync::mpsc};

use crate::{folder::Folder, pattern, read, take};

/// Takes a byte that chooses what the rest is.
pub fn target(data: &[u8]) {
    let mut input = Unstructured::new(data);
    match read::<u8>(&mut input) % 3 {
        0 => stranger(input.take_rest()),
        1 => damaged(&mut input),
        _ => behind_the_key(input.take_rest()),
    }
}

fn key() -> BackupKey {
    backup::key([7; 32])
}

/// Nobody without the key has made what opens.
fn stranger(file: &[u8]) {
    assert!(open(&key(), file, 100).is_err());
    // A passphrase costs what the header says; what takes long is left out.
    let cost = file
        .get(MAGIC.len() + 1..MAGIC.len() + 9)
        .and_then(|cost| cost.split_first_chunk::<4>());
    if let Some((memory, passes)) = cost {
        let passes = passes.first_chunk().copied().map(u32::from_be_bytes);
        let (memory, passes) = (u32::from_be_bytes(*memory), passes.unwrap_or(0));
        if memory > 1 << 20 || passes > 16 || (memory <= 64 && passes <= 2) {
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
    let plain = pattern(1, len);
    let pieces = 1 + usize::from(read::<u16>(input));
    let sealed = seal(&plain, pieces);
    let pieces = 1 + usize::from(read::<u16>(input));
    let opened = open(&key(), &sealed, pieces).expect("what was sealed");
    assert!(opened == plain, "other bytes");
    assert!(open(&backup::key([8; 32]), &sealed, pieces).is_err());

    let at = read::<u32>(input) as usize % sealed.len();
    let mut changed = sealed.clone();
    match read::<u8>(input) % 5 {
        bit @ 0..=1 => changed[at] ^= 1 << (at + usize::from(bit)) % 8,
        2 => changed.truncate(at),
        // Where an end would be well placed.
        3 => changed.truncate(HEADER + at / (CHUNK + 16) * (CHUNK + 16)),
        _ => changed.extend_from_slice(take(input, 40)),
    }
    if changed != sealed {
        assert!(open(&key(), &changed, pieces).is_err(), "{len}, {at}");
    }
}

fn seal(plain: &[u8], pieces: usize) -> Vec<u8> {
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

/// An empty store: its file, and the dump of it.
struct Empty {
    runtime: Runtime,
    file: Vec<u8>,
    dump: String,
}

static EMPTY: LazyLock<Empty> = LazyLock::new(|| {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let folder = Folder::new();
    let dump = runtime.block_on(async {
        let store = opened(&folder).await;
        store.migrate().await.expect("a new store");
        let dump = dumped(&store).await;
        store.close().await;
        dump
    });
    let file = fs::read(folder.path().join("db")).expect("the store");
    Empty {
        runtime,
        file,
        dump,
    }
});

async fn opened(folder: &Folder) -> Store {
    let mut options = StoreOptions::default();
    options.max_connections = 1;
    // On a machine that does much else as well, an opening may take its time.
    options.acquire_timeout = Duration::from_secs(60);
    let store = Store::open_sqlite(folder.path().join("db"), &options).await;
    store.expect("a store")
}

async fn dumped(store: &Store) -> String {
    let (lines, mut dump) = mpsc::channel::<String>(64);
    let collect = async {
        let mut all = String::new();
        while let Some(line) = dump.recv().await {
            all.push_str(&line);
        }
        all
    };
    let (done, all) = tokio::join!(dump::dump(store, lines), collect);
    done.expect("what is in a store can be dumped");
    all
}

/// Returns the line of a dump that tells a table's columns.
fn head_of<'a>(dump: &'a str, table: &str) -> Option<&'a str> {
    let name = format!("\"table\":\"{table}\"");
    dump.lines().find(|line| line.contains(&name))
}

/// Restores lines. One that begins with `@` stands for the head of that table, `@@` for the first line and `@.` for the
/// last: they change with the schema.
fn behind_the_key(text: &[u8]) {
    let Ok(text) = std::str::from_utf8(text) else {
        return;
    };
    let mut plain = String::new();
    let mut rows = 0;
    for line in text.split_inclusive('\n') {
        let stands_for = match line.trim_end_matches('\n').strip_prefix('@') {
            Some("@") => EMPTY.dump.lines().next(),
            Some(".") => EMPTY.dump.lines().last(),
            Some(table) => head_of(&EMPTY.dump, table),
            None => None,
        };
        match stands_for {
            Some(line) => plain.extend([line, "\n"]),
            None => plain.push_str(line),
        }
        rows += u64::from(line.trim_start().starts_with('['));
    }
    EMPTY.runtime.block_on(async {
        if let Some((restored, dump)) = restored(plain.as_bytes()).await {
            // Those of tables that the schema does not have are passed over.
            assert!(restored <= rows, "rows made up");
            let (again, same) = restored_again(&dump).await;
            assert!(again >= restored, "some are made by the schema");
            assert_eq!(lasting(&same), lasting(&dump));
        }
    });
}

/// Leaves out the row of the cluster and the number of the last event: each restore begins an epoch, which they go by.
fn lasting(dump: &str) -> Vec<&str> {
    let head = head_of(dump, "cluster").expect("a table");
    let mut lines: Vec<_> = dump.lines().collect();
    let at = lines.iter().position(|line| *line == head).expect("there");
    lines.remove(at + 1);
    lines.retain(|line| !line.starts_with("[\"internal.event_seq\","));
    lines
}

async fn restored_again(dump: &str) -> (u64, String) {
    restored(dump.as_bytes()).await.expect("our own dump")
}

/// Restores into a new store; returns how many rows that were, and the dump of what is there then.
async fn restored(plain: &[u8]) -> Option<(u64, String)> {
    let folder = Folder::new();
    fs::write(folder.path().join("db"), &EMPTY.file).expect("room");
    let store = opened(&folder).await;
    let sealed = seal(plain, 1 << 12);
    let done = restore::read(&store, &key(), &sealed[..], Timestamp(9)).await;
    let dump = dumped(&store).await;
    store.close().await;
    let Ok(restored) = done else {
        assert_eq!(dump, EMPTY.dump, "left behind");
        return None;
    };
    Some((restored.rows, dump))
}
