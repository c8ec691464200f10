//! Rows in: one transaction, on an empty store of the same schema, and a new epoch of the cluster.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;
use sqlx::AssertSqlSafe;
use tokio::io::{AsyncRead, AsyncReadExt};

use super::BackupError;
use super::envelope::{BackupKey, CHUNK, Decryptor, HEADER};
use super::tables::{Kind, Schema, Table, schema as schema_of};
use crate::core::FLEET_KEYS;
use crate::domain::Timestamp;
use crate::secrets::Vault;
use crate::store::events::COUNTER as EVENT_COUNTER;
use crate::store::{Connection, Store, Tx, cluster};

/// Rows inserted by one statement.
const BATCH: usize = 200;

/// After a restore numbers go on from the next multiple of this at least. What was made after the backup is lost, but not
/// everywhere: nodes still report traffic of users that only they know, which must not become somebody else's.
const NUMBERS_LEFT_OUT: i64 = 1_000_000;

/// They grow by this with each second that epochs differ: after another restore of the same backup other numbers are given
/// out than after the first. Far more than can be made in a second.
const NUMBERS_A_SECOND: i64 = 100_000;

/// The epoch at which those begin, 2025: numbers stay as short as they can be.
const NUMBERS_SINCE: i64 = 1_735_689_600;

/// Longest line of a dump, in bytes.
const MAX_LINE: usize = 16 << 20;

/// What a restore brought back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Restored {
    /// Rows.
    pub rows: u64,
    /// The epoch that begins.
    pub epoch: i64,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Row(Vec<Value>),
    Head { hy2: u32, schema: i64 },
    Table { table: String, columns: Vec<String> },
    End { end: bool },
}

/// Restores a backup into an empty store. One that was never migrated gets the schema of the
/// backup first, and the newest in the end: so a backup of an older version can be restored. Nodes
/// take the new epoch's revisions whatever theirs are.
///
/// # Errors
///
/// [`BackupError`]; nothing is in the store then.
pub async fn read(
    store: &Store,
    key: &BackupKey,
    from: impl AsyncRead + Unpin,
    now: Timestamp,
) -> Result<Restored, BackupError> {
    read_checked(store, key, None, false, from, now).await
}

/// Does the same, but only if the secrets in the backup open with these master keys.
///
/// # Errors
///
/// [`BackupError`], above all [`BackupError::MasterKeys`]; nothing is in the store then.
pub async fn read_sealed(
    store: &Store,
    key: &BackupKey,
    vault: &Vault,
    from: impl AsyncRead + Unpin,
    now: Timestamp,
) -> Result<Restored, BackupError> {
    read_checked(store, key, Some(vault), false, from, now).await
}

/// Does the same; `for_postgres`: only if a PostgreSQL takes it too.
pub(crate) async fn read_checked(
    store: &Store,
    key: &BackupKey,
    vault: Option<&Vault>,
    for_postgres: bool,
    from: impl AsyncRead + Unpin,
    now: Timestamp,
) -> Result<Restored, BackupError> {
    read_known(store, key, vault, for_postgres, None, from, now).await
}

/// Does the same; a schema that is known is not read again.
pub(super) async fn read_known(
    store: &Store,
    key: &BackupKey,
    vault: Option<&Vault>,
    for_postgres: bool,
    known: Option<&Schema>,
    from: impl AsyncRead + Unpin,
    now: Timestamp,
) -> Result<Restored, BackupError> {
    let mut source = Source::open(key, from).await?;
    let schema = source.schema().await?;
    let newest = Store::newest_schema();
    if schema > newest {
        return Err(BackupError::Newer {
            backup: schema,
            newest,
        });
    }
    if store.schema().await?.is_none() {
        store.migrate_to(schema).await?;
    }
    let mut tx = store.begin().await?;
    // Where it comes from may be slow.
    tx.may_pause().await?;
    let schema = match known {
        Some(known) => known.clone(),
        None => schema_of(&mut tx).await?,
    };
    let mut restore = Restore::begin(&mut tx, schema).await?;
    restore.for_postgres |= for_postgres;
    restore.lines(&mut tx, &mut source.plain).await?;
    while source.more().await? {
        restore.lines(&mut tx, &mut source.plain).await?;
    }
    restore.lines(&mut tx, &mut source.plain).await?;
    restore.finish(&mut tx, &source.plain).await?;
    if let Some(vault) = vault {
        check_keys(&mut tx, vault).await?;
    }
    let epoch = cluster::bump_epoch(&mut tx, now).await?;
    restore.number(&mut tx, epoch).await?;
    tx.commit().await?;
    store.migrate().await?;
    Ok(Restored {
        rows: restore.rows,
        epoch,
    })
}

/// Checks that a secret of the restored cluster opens.
async fn check_keys(tx: &mut Tx, vault: &Vault) -> Result<(), BackupError> {
    const UID: &str = "select uid from cluster where id = 1";
    const SEALED: &str = "select value_enc from secrets where name = $1";
    let (uid, sealed): (Option<uuid::Uuid>, Option<Vec<u8>>) = match tx.connection() {
        Connection::Pg(pg) => (
            sqlx::query_scalar(UID).fetch_optional(&mut **pg).await?,
            sqlx::query_scalar(SEALED)
                .bind(FLEET_KEYS)
                .fetch_optional(&mut **pg)
                .await?,
        ),
        Connection::Sqlite(sqlite) => (
            sqlx::query_scalar(UID)
                .fetch_optional(&mut **sqlite)
                .await?,
            sqlx::query_scalar(SEALED)
                .bind(FLEET_KEYS)
                .fetch_optional(&mut **sqlite)
                .await?,
        ),
    };
    // Masters make it at their first start: a backup without it is of no cluster.
    let (uid, sealed) = uid.zip(sealed).ok_or(BackupError::Format)?;
    match vault.open(FLEET_KEYS, uid.as_bytes(), &sealed) {
        Ok(_) => Ok(()),
        Err(_) => Err(BackupError::MasterKeys),
    }
}

/// The plain lines of a backup, as they open.
struct Source<R> {
    from: R,
    /// None once the end has been seen.
    decryptor: Option<Decryptor>,
    plain: Vec<u8>,
    buffer: Vec<u8>,
}

impl<R: AsyncRead + Unpin> Source<R> {
    async fn open(key: &BackupKey, mut from: R) -> Result<Self, BackupError> {
        let mut header = [0; HEADER];
        from.read_exact(&mut header)
            .await
            .map_err(|_| BackupError::Format)?;
        let secret = key.clone();
        // Stretching a passphrase takes a while.
        let made = tokio::task::spawn_blocking(move || Decryptor::new(&secret, header));
        Ok(Self {
            from,
            decryptor: Some(made.await.map_err(|_| BackupError::Format)??),
            plain: Vec::new(),
            buffer: vec![0; CHUNK],
        })
    }

    /// Opens more. Returns whether there may be more still.
    async fn more(&mut self) -> Result<bool, BackupError> {
        let read = self.from.read(&mut self.buffer).await?;
        if read > 0 {
            if let Some(decryptor) = &mut self.decryptor {
                let sealed = self.buffer.get(..read).unwrap_or_default();
                decryptor.push(sealed, &mut self.plain)?;
            }
            return Ok(true);
        }
        if let Some(decryptor) = self.decryptor.take() {
            decryptor.finish(&mut self.plain)?;
        }
        Ok(false)
    }

    /// Returns the schema, which the first line tells. The line stays.
    async fn schema(&mut self) -> Result<i64, BackupError> {
        let end = loop {
            if let Some(end) = self.plain.iter().position(|byte| *byte == b'\n') {
                break end;
            }
            if self.plain.len() > MAX_LINE || !self.more().await? && !self.plain.contains(&b'\n') {
                return Err(BackupError::Format);
            }
        };
        let line = self.plain.get(..end).unwrap_or_default();
        match serde_json::from_slice(line) {
            Ok(Line::Head { hy2: 1, schema }) => Ok(schema),
            _ => Err(BackupError::Format),
        }
    }
}

struct Restore {
    tables: Arc<[Table]>,
    /// Whether a text with NUL is refused.
    for_postgres: bool,
    schema: i64,
    begun: bool,
    ended: bool,
    current: Option<Table>,
    /// Where the columns of the current table are in its rows, and how many a row has.
    places: (Vec<usize>, usize),
    /// Whether the rows are of a table that is not the master's.
    skips: bool,
    /// What of the backup is passed over.
    others: Vec<String>,
    batch: Vec<Value>,
    /// Columns that refer to their own table: statement and rows, for the end.
    later: Vec<(String, Vec<Value>)>,
    rows: u64,
    row: usize,
}

impl Restore {
    async fn begin(tx: &mut Tx, schema: Schema) -> Result<Self, BackupError> {
        if let Connection::Sqlite(sqlite) = tx.connection() {
            sqlx::query("pragma defer_foreign_keys = on")
                .execute(&mut **sqlite)
                .await?;
        }
        // Roles are made by the first start, before anybody can restore.
        let tables = schema.tables.iter().map(|table| table.name.as_str());
        if !are_empty(tx, tables.filter(|table| *table != "admin_roles")).await? {
            return Err(BackupError::NotEmpty);
        }
        execute(tx, "delete from admin_roles".to_owned(), None).await?;
        Ok(Self {
            tables: schema.tables,
            for_postgres: tx.is_postgres(),
            schema: schema.version,
            begun: false,
            ended: false,
            current: None,
            places: (Vec::new(), 0),
            skips: false,
            others: Vec::new(),
            batch: Vec::new(),
            later: Vec::new(),
            rows: 0,
            row: 0,
        })
    }

    /// Takes whole lines out of `plain`.
    async fn lines(&mut self, tx: &mut Tx, plain: &mut Vec<u8>) -> Result<(), BackupError> {
        let mut from = 0;
        while let Some(length) = plain
            .get(from..)
            .and_then(|rest| rest.iter().position(|byte| *byte == b'\n'))
        {
            let line = plain.get(from..from + length).unwrap_or_default().to_vec();
            from += length + 1;
            self.line(tx, &line).await?;
        }
        plain.drain(..from);
        if plain.len() > MAX_LINE {
            return Err(BackupError::Format);
        }
        Ok(())
    }

    async fn line(&mut self, tx: &mut Tx, line: &[u8]) -> Result<(), BackupError> {
        let read: Line = serde_json::from_slice(line).map_err(|_| BackupError::Format)?;
        if self.ended {
            return Err(BackupError::Format);
        }
        match read {
            Line::Head { hy2: 1, schema } if !self.begun => {
                if schema != self.schema {
                    return Err(BackupError::Schema {
                        backup: schema,
                        store: self.schema,
                    });
                }
                self.begun = true;
            }
            Line::Table { table, columns } if self.begun => {
                self.flush(tx).await?;
                self.row = 0;
                self.turn_to(&table, &columns)?;
            }
            Line::Row(_) if self.skips => {}
            Line::Row(values) => {
                self.row += 1;
                let table = self.current.as_ref().ok_or(BackupError::Format)?;
                let (places, width) = &self.places;
                if values.len() != *width {
                    return Err(self.misfit("wrong number of columns"));
                }
                let values: Vec<Value> = places
                    .iter()
                    .filter_map(|place| values.get(*place).cloned())
                    .collect();
                if self.for_postgres
                    && let Some(column) = with_nul(table, line, &values)
                {
                    let reason = format!(
                        "its column {column} has the character NUL in it, which PostgreSQL does not take and versions \
                         before let in: restore the backup into SQLite"
                    );
                    return Err(self.misfit(&reason));
                }
                self.batch.push(Value::Array(values));
                self.rows += 1;
                if self.batch.len() >= BATCH {
                    self.flush(tx).await?;
                }
            }
            Line::End { end: true } if self.begun => self.ended = true,
            _ => return Err(BackupError::Format),
        }
        Ok(())
    }

    /// Begins with the rows of a table. Backups may hold tables and columns that somebody else made in the database of the
    /// master: versions before wrote them.
    fn turn_to(&mut self, table: &str, columns: &[String]) -> Result<(), BackupError> {
        let known = self.tables.iter().find(|known| known.name == table);
        self.skips = known.is_none();
        self.current = known.cloned();
        let Some(known) = known else {
            self.others.push(table.to_owned());
            return Ok(());
        };
        let place = |name: &String| columns.iter().position(|column| column == name);
        let places = known.columns.iter().map(|column| place(&column.name));
        let places: Option<Vec<usize>> = places.collect();
        self.places = (places.ok_or(BackupError::Format)?, columns.len());
        let is_known = |name: &&String| known.columns.iter().any(|column| column.name == **name);
        let others = columns.iter().filter(|name| !is_known(name));
        self.others
            .extend(others.map(|name| format!("{table}.{name}")));
        Ok(())
    }

    async fn flush(&mut self, tx: &mut Tx) -> Result<(), BackupError> {
        let Some(table) = self.current.clone() else {
            return Ok(());
        };
        if self.batch.is_empty() {
            return Ok(());
        }
        let batch = std::mem::take(&mut self.batch);
        let postgres = tx.is_postgres();
        if postgres && let Some(update) = update_own(&table) {
            self.later.push((update, batch.clone()));
        }
        let inserted = execute(tx, insert(&table, postgres), Some(Value::Array(batch))).await;
        inserted.map_err(|error| self.misfit(&error.to_string()))
    }

    async fn finish(&mut self, tx: &mut Tx, rest: &[u8]) -> Result<(), BackupError> {
        self.flush(tx).await?;
        if !self.ended || !rest.is_empty() {
            return Err(BackupError::Format);
        }
        for (update, batch) in std::mem::take(&mut self.later) {
            execute(tx, update, Some(Value::Array(batch))).await?;
        }
        if !self.others.is_empty() {
            tracing::warn!(
                left_out = self.others.join(", "),
                "what no migration of the master makes is not restored"
            );
        }
        Ok(())
    }

    /// Lets numbers go on where none was given out before, in whatever became of the fleet after the backup.
    async fn number(&self, tx: &mut Tx, epoch: i64) -> Result<(), BackupError> {
        let by_time = epoch
            .saturating_sub(NUMBERS_SINCE)
            .saturating_mul(NUMBERS_A_SECOND)
            .max(0);
        let numbered = self
            .tables
            .iter()
            // Those have the numbers of their epoch.
            .filter(|table| table.name != "quota_leases")
            .flat_map(|table| table.columns.iter().map(move |column| (table, column)))
            .filter(|(_, column)| column.identity);
        for (table, column) in numbered {
            let (table, column) = (&table.name, &column.name);
            let next = format!(
                "((coalesce(max(\"{column}\"), 0) / {NUMBERS_LEFT_OUT} + 1) * {NUMBERS_LEFT_OUT})"
            );
            let last = format!(
                "(select case when {next} < {by_time} then {by_time} else {next} end from \"{table}\")"
            );
            let set = match tx.is_postgres() {
                true => vec![format!(
                    "select setval(pg_get_serial_sequence('public.{table}', '{column}'), {last})"
                )],
                false => vec![
                    format!("delete from sqlite_sequence where name = '{table}'"),
                    format!("insert into sqlite_sequence (name, seq) values ('{table}', {last})"),
                ],
            };
            for statement in set {
                execute(tx, statement, None).await?;
            }
        }
        // Events are numbered by a counter of their own. Entries of the audit log are not: their numbers are their places
        // in a chain without a gap.
        let next = format!("((settings.rev / {NUMBERS_LEFT_OUT} + 1) * {NUMBERS_LEFT_OUT})");
        let first = by_time.max(NUMBERS_LEFT_OUT);
        let counter = format!(
            "insert into settings (key, value, rev, updated_at) values ('{EVENT_COUNTER}', '0', {first}, 0) \
             on conflict (key) do update set \
             rev = case when {next} < {by_time} then {by_time} else {next} end"
        );
        execute(tx, counter, None).await?;
        Ok(())
    }

    fn misfit(&self, reason: &str) -> BackupError {
        BackupError::Row {
            table: self
                .current
                .as_ref()
                .map(|table| table.name.clone())
                .unwrap_or_default(),
            row: self.row,
            reason: reason.to_owned(),
        }
    }
}

/// Returns the first column of a row that has NUL in a text, which no text and no JSON of PostgreSQL can hold. It is not
/// replaced: the audit log has the same texts, and its hashes are over them.
fn with_nul<'a>(table: &'a Table, line: &[u8], values: &[Value]) -> Option<&'a str> {
    // Only as an escape, in the JSON of a JSON column too.
    if !line.windows(5).any(|part| part == b"u0000") {
        return None;
    }
    let mut columns = table.columns.iter().zip(values);
    let found = columns.find(|(column, value)| match (column.kind, value) {
        (Kind::Json, Value::String(text)) => {
            serde_json::from_str(text).is_ok_and(|value| has_nul(&value))
        }
        (_, value) => has_nul(value),
    });
    found.map(|(column, _)| column.name.as_str())
}

fn has_nul(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Array(items) => items.iter().any(has_nul),
        Value::Object(fields) => fields
            .iter()
            .any(|(name, value)| name.contains('\0') || has_nul(value)),
        _ => false,
    }
}

/// Asks for all tables at once: there are many, and the database may be far away.
async fn are_empty(tx: &mut Tx, tables: impl Iterator<Item = &str>) -> Result<bool, BackupError> {
    let filled: Vec<String> = tables
        .map(|table| format!("exists (select 1 from \"{table}\")"))
        .collect();
    let sql = AssertSqlSafe(format!("select not ({})", filled.join(" or ")));
    Ok(match tx.connection() {
        Connection::Pg(pg) => sqlx::query_scalar(sql).fetch_one(&mut **pg).await?,
        Connection::Sqlite(sqlite) => sqlx::query_scalar(sql).fetch_one(&mut **sqlite).await?,
    })
}

/// Runs a statement made from names of the schema; values come in one JSON parameter.
async fn execute(tx: &mut Tx, sql: String, values: Option<Value>) -> Result<(), sqlx::Error> {
    let sql = AssertSqlSafe(sql);
    let values = values.map(|values| values.to_string());
    match tx.connection() {
        Connection::Pg(pg) => {
            let mut query = sqlx::query(sql);
            if let Some(values) = values {
                query = query.bind(values);
            }
            query.execute(&mut **pg).await?;
        }
        Connection::Sqlite(sqlite) => {
            let mut query = sqlx::query(sql);
            if let Some(values) = values {
                query = query.bind(values);
            }
            query.execute(&mut **sqlite).await?;
        }
    }
    Ok(())
}

/// Returns the expression that reads a column's value out of a row `r`.
fn value(at: usize, kind: Kind, postgres: bool) -> String {
    if postgres {
        let text = format!("(r->>{at})");
        return match kind {
            Kind::Integer => format!("{text}::bigint"),
            Kind::Real => format!("{text}::double precision"),
            Kind::Boolean => format!("({text}::int <> 0)"),
            Kind::Bytes => format!("decode({text}, 'hex')"),
            Kind::Uuid => format!("{text}::uuid"),
            Kind::Json => format!("{text}::jsonb"),
            Kind::Text => text,
        };
    }
    let extracted = format!("json_extract(r, '$[{at}]')");
    match kind {
        Kind::Bytes | Kind::Uuid => format!("unhex({extracted})"),
        Kind::Real => format!("cast({extracted} as real)"),
        _ => extracted,
    }
}

fn insert(table: &Table, postgres: bool) -> String {
    let names: Vec<String> = table
        .columns
        .iter()
        .map(|column| format!("\"{}\"", column.name))
        .collect();
    let values: Vec<String> = table
        .columns
        .iter()
        .enumerate()
        .map(|(at, column)| match postgres && column.own_table {
            true => "null".to_owned(),
            false => value(at, column.kind, postgres),
        })
        .collect();
    let (name, names, values) = (&table.name, names.join(", "), values.join(", "));
    if postgres {
        return format!(
            "insert into \"{name}\" ({names}) overriding system value \
             select {values} from jsonb_array_elements($1::jsonb) as rows(r)"
        );
    }
    format!(
        "insert into \"{name}\" ({names}) select {values} from (select value as r from json_each($1))"
    )
}

/// Returns the statement that writes the columns which refer to the table itself.
fn update_own(table: &Table) -> Option<String> {
    let [key] = table.key.as_slice() else {
        return None;
    };
    let place = |name: &str| table.columns.iter().position(|column| column.name == name);
    let key_at = place(key)?;
    let key_value = value(key_at, table.columns.get(key_at)?.kind, true);
    let sets: Vec<String> = table
        .columns
        .iter()
        .enumerate()
        .filter(|(_, column)| column.own_table)
        .map(|(at, column)| format!("\"{}\" = {}", column.name, value(at, column.kind, true)))
        .collect();
    if sets.is_empty() {
        return None;
    }
    let (name, sets) = (&table.name, sets.join(", "));
    Some(format!(
        "update \"{name}\" set {sets} from jsonb_array_elements($1::jsonb) as rows(r) \
         where \"{name}\".\"{key}\" = {key_value}"
    ))
}
