//! Rows of a backup, behind its key: either all are restored, and a dump of them restores to the same, or nothing is in
//! the store. Has state: a store.
//!
//! Planted bug: of a table that came twice in a row, the rows of the first time were lost.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    sync::{LazyLock, Mutex},
    time::Duration,
};

use hy2_master_sdk::{
    backup::BackupError,
    domain::Timestamp,
    fuzzing::backup::{self, Schema},
    store::{Db, Store, StoreOptions},
};
use serde_json::Value;
use sqlx::AssertSqlSafe;
use tokio::{runtime::Runtime, sync::mpsc};

use crate::{
    backup_file::{key, seal},
    folder::Folder,
};

/// Takes the lines of a backup. One that begins with `@` stands for the head of that table, `@@` for the first line and
/// `@.` for the last: they change with the schema.
pub fn target(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let mut plain = String::new();
    for line in text.split_inclusive('\n') {
        let stands_for = match line.trim_end_matches('\n').strip_prefix('@') {
            Some("@") => EMPTY.dump.lines().next(),
            Some(".") => EMPTY.dump.lines().last(),
            Some(table) => EMPTY.heads.get(table).map(String::as_str),
            None => None,
        };
        match stands_for {
            Some(line) => plain.extend([line, "\n"]),
            None => plain.push_str(line),
        }
    }
    EMPTY.runtime.block_on(restored_or_nothing(&plain));
}

async fn restored_or_nothing(plain: &str) {
    // After a panic, and now and then, a new one.
    let kept = Kept::take();
    let mut kept = match kept {
        Some(kept) => kept,
        None => Kept::new().await,
    };
    if let Some((rows, dump)) = kept.restored(plain).await {
        let expected = Rows::of(plain);
        // Those of tables that the schema does not have are passed over, and the number of the last event is always there.
        assert_eq!(rows, expected.known, "rows made up");
        let there = rows + u64::from(!expected.last_event);
        assert_eq!(Rows::of(&dump).known, there, "rows lost");
        // What the same dump restores to is known.
        if !kept.seen.contains(&dump) {
            let (again, same) = kept.restored(&dump).await.expect("our own dump");
            assert_eq!(again, there, "rows of a dump");
            assert_eq!(lasting(&same), lasting(&dump));
            kept.seen.insert(dump);
        }
    }
    kept.give_back().await;
}

/// The rows of lines that were restored.
struct Rows {
    /// Those of tables that the schema has.
    known: u64,
    /// Whether the number of the last event is one of them.
    last_event: bool,
}

impl Rows {
    fn of(plain: &str) -> Self {
        let mut lines = plain.lines();
        let first: Value = serde_json::from_str(lines.next().expect("a line")).expect("a line");
        assert_eq!(first["hy2"], 1, "without a beginning");
        let (mut known, mut last_event, mut ended) = (0, false, false);
        // The place of the column `key`, in the table of settings.
        let mut table: Option<Option<usize>> = None;
        for line in lines {
            assert!(!ended, "behind the end: {line}");
            match serde_json::from_str(line).expect("a line") {
                Value::Array(row) => {
                    let Some(key) = table else { continue };
                    known += 1;
                    last_event |= key.is_some_and(|key| row[key] == "internal.event_seq");
                }
                line => match (line["table"].as_str(), line["columns"].as_array()) {
                    (Some(name), Some(columns)) if columns.iter().all(Value::is_string) => {
                        let key = columns.iter().position(|column| column == "key");
                        let head = EMPTY.heads.contains_key(name);
                        table = head.then_some(key.filter(|_| name == "settings"));
                    }
                    _ => ended = line["end"] == true,
                },
            }
        }
        assert!(ended, "without an end");
        Self { known, last_event }
    }
}

/// Leaves out the row of the cluster and the number of the last event: each restore begins an epoch, which they go by.
fn lasting(dump: &str) -> Vec<&str> {
    let head = EMPTY.heads["cluster"].as_str();
    let mut lines: Vec<_> = dump.lines().collect();
    let at = lines.iter().position(|line| *line == head).expect("there");
    lines.remove(at + 1);
    lines.retain(|line| !line.starts_with("[\"internal.event_seq\","));
    lines
}

/// An empty store: its file and schema, the dump of it and, by table, the lines that tell columns.
struct Empty {
    runtime: Runtime,
    file: Vec<u8>,
    schema: Schema,
    dump: String,
    heads: BTreeMap<String, String>,
}

static EMPTY: LazyLock<Empty> = LazyLock::new(|| {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let folder = Folder::new();
    let (schema, dump) = runtime.block_on(async {
        let store = opened(&folder).await;
        store.migrate().await.expect("a new store");
        let schema = backup::schema(&store).await.expect("a schema");
        let dump = dumped(&store, &schema).await;
        store.close().await;
        (schema, dump)
    });
    let file = fs::read(folder.path().join("db")).expect("the store");
    let heads = dump.lines().filter_map(|line| {
        let head: Value = serde_json::from_str(line).expect("a line");
        Some((head["table"].as_str()?.to_owned(), line.to_owned()))
    });
    let heads: BTreeMap<_, _> = heads.collect();
    // What is put back has no rows.
    assert_eq!(dump.lines().count(), 2 + heads.len(), "{dump}");
    Empty {
        runtime,
        file,
        schema,
        dump,
        heads,
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

async fn dumped(store: &Store, schema: &Schema) -> String {
    let (lines, mut dump) = mpsc::channel::<String>(64);
    let collect = async {
        let mut all = String::new();
        while let Some(line) = dump.recv().await {
            all.push_str(&line);
        }
        all
    };
    let (done, all) = tokio::join!(backup::dump(store, schema, lines), collect);
    done.expect("what is in a store can be dumped");
    all
}

/// A store that is empty before each restore, for many of them.
struct Kept {
    store: Store,
    /// What was last seen committed.
    version: i64,
    /// Inputs that it may still take.
    left: u32,
    /// Dumps whose restore was looked at.
    seen: BTreeSet<String>,
}

static KEPT: Mutex<Option<Kept>> = Mutex::new(None);

impl Kept {
    async fn new() -> Self {
        let folder = Folder::new();
        fs::write(folder.path().join("db"), &EMPTY.file).expect("room");
        let store = opened(&folder).await;
        assert_eq!(dumped(&store, &EMPTY.schema).await, EMPTY.dump);
        emptied(&store, &[]).await.expect("a new store");
        // Both connections have their files open; without names these end with the process.
        drop(folder);
        Self {
            version: version(&store).await,
            store,
            left: 10_000,
            seen: BTreeSet::new(),
        }
    }

    fn take() -> Option<Self> {
        KEPT.lock().expect("no panic").take()
    }

    async fn give_back(mut self) {
        self.left -= 1;
        if self.left > 0 {
            *KEPT.lock().expect("no panic") = Some(self);
        } else {
            self.store.close().await;
        }
    }

    /// Restores; returns how many rows that were, and the dump of what is there then.
    async fn restored(&mut self, plain: &str) -> Option<(u64, String)> {
        let sealed = seal(plain.as_bytes(), 1 << 12);
        let done = backup::restore(
            &self.store,
            &key(),
            &EMPTY.schema,
            &sealed[..],
            Timestamp(9),
        )
        .await;
        match done {
            Err(error) => {
                assert!(!matches!(error, BackupError::NotEmpty), "not put back");
                self.is_as_before().await;
                None
            }
            Ok(restored) => {
                let dump = dumped(&self.store, &EMPTY.schema).await;
                self.put_back(&dump).await;
                Some((restored.rows, dump))
            }
        }
    }

    /// Checks that nothing was committed; if it seems so, whether there is anything.
    async fn is_as_before(&mut self) {
        let version = version(&self.store).await;
        if version != self.version {
            self.version = version;
            let dump = dumped(&self.store, &EMPTY.schema).await;
            assert_eq!(dump, EMPTY.dump, "left behind");
        }
    }

    /// Takes the rows of a dump out.
    async fn put_back(&mut self, dump: &str) {
        let mut tables = Vec::new();
        let mut lines = dump.lines().peekable();
        while let Some(line) = lines.next() {
            let filled = lines.peek().is_some_and(|next| next.starts_with('['));
            if filled && line.starts_with('{') {
                let head: Value = serde_json::from_str(line).expect("a line");
                tables.push(head["table"].as_str().expect("a head").to_owned());
            }
        }
        if emptied(&self.store, &tables).await.is_ok() {
            self.version = version(&self.store).await;
        } else {
            // Rows that hold each other.
            self.store.close().await;
            let seen = std::mem::take(&mut self.seen);
            *self = Self {
                seen,
                ..Self::new().await
            };
        }
    }
}

/// Takes the rows of some tables out of a store, those that refer to others first, and what it remembers of their numbers.
async fn emptied(store: &Store, tables: &[String]) -> Result<(), sqlx::Error> {
    let Db::Sqlite { write, .. } = store.db() else {
        unreachable!("a file")
    };
    let mut tx = write.begin().await?;
    for table in tables.iter().rev().map(String::as_str).chain(["sqlite_sequence"]) {
        let delete = AssertSqlSafe(format!("delete from \"{table}\""));
        sqlx::query(delete).execute(&mut *tx).await?;
    }
    tx.commit().await
}

/// What changes whenever something is committed.
async fn version(store: &Store) -> i64 {
    let Db::Sqlite { read, .. } = store.db() else {
        unreachable!("a file")
    };
    let version = sqlx::query_scalar("pragma data_version");
    version.fetch_one(read).await.expect("a store")
}
