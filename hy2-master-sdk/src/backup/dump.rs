//! Rows out: one JSON document a line. First the schema's version, then for each table its name and
//! columns, then its rows as arrays, in the order of their keys.

use futures_util::TryStreamExt;
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;
use tokio::sync::mpsc;

use super::BackupError;
use super::envelope::{BackupKey, CHUNK, Encryptor};
use super::tables::{Kind, Schema, Table, schema};
use crate::store::{Connection, Store, Tx};

/// Writes a backup of one state of the store into a channel, piece by piece.
///
/// # Errors
///
/// The store fails, or the passphrase is weak. When the receiver goes away, writing just ends.
///
/// # Cancel safety
///
/// Cancelled, the backup is cut off, and does not open.
pub async fn write(
    store: &Store,
    key: &BackupKey,
    out: mpsc::Sender<bytes::Bytes>,
) -> Result<(), BackupError> {
    let key = key.clone();
    // Stretching a passphrase takes a while.
    let made = tokio::task::spawn_blocking(move || Encryptor::new(&key));
    let mut encryptor = made.await.map_err(|_| BackupError::Format)??;
    let mut sealed = encryptor.header().to_vec();
    let (lines, mut rows) = mpsc::channel::<String>(64);
    let dumping = dump(store, lines);
    let sealing = async {
        while let Some(line) = rows.recv().await {
            encryptor.push(line.as_bytes(), &mut sealed)?;
            if sealed.len() >= CHUNK {
                let piece = bytes::Bytes::from(std::mem::take(&mut sealed));
                if out.send(piece).await.is_err() {
                    return Ok(None);
                }
            }
        }
        Ok::<_, BackupError>(Some((encryptor, sealed)))
    };
    let (dumped, finished) = tokio::join!(dumping, sealing);
    let finished = finished?;
    dumped?;
    if let Some((encryptor, mut sealed)) = finished {
        // Only a dump that is whole gets an end.
        encryptor.finish(&mut sealed)?;
        let _ = out.send(bytes::Bytes::from(sealed)).await;
    }
    Ok(())
}

/// Writes the plain lines of a dump into a channel.
///
/// # Errors
///
/// The store fails. When the receiver goes away, writing just ends.
pub async fn dump(store: &Store, lines: mpsc::Sender<String>) -> Result<(), BackupError> {
    let mut tx = store.snapshot().await?;
    // Who takes it may be slow.
    tx.may_pause().await?;
    let schema = schema(&mut tx).await?;
    if !schema.others.is_empty() {
        tracing::warn!(
            left_out = schema.others.join(", "),
            "what no migration of the master makes is not in the backup"
        );
    }
    dump_known(tx, &schema, &lines).await
}

/// Does the same for a store whose schema is known.
pub(super) async fn dump_known(
    mut tx: Tx,
    schema: &Schema,
    lines: &mpsc::Sender<String>,
) -> Result<(), BackupError> {
    let first = json!({"hy2": 1, "schema": schema.version}).to_string() + "\n";
    if lines.send(first).await.is_err() {
        return Ok(());
    }
    for table in schema.tables.iter() {
        let columns: Vec<&str> = table
            .columns
            .iter()
            .map(|column| column.name.as_str())
            .collect();
        let head = json!({"table": table.name, "columns": columns}).to_string() + "\n";
        if lines.send(head).await.is_err() || !dump_table(&mut tx, table, lines).await? {
            return Ok(());
        }
    }
    let _ = lines.send(json!({"end": true}).to_string() + "\n").await;
    tx.rollback().await?;
    Ok(())
}

/// Returns whether anybody still listens.
async fn dump_table(
    tx: &mut Tx,
    table: &Table,
    lines: &mpsc::Sender<String>,
) -> Result<bool, BackupError> {
    let sql = AssertSqlSafe(select(table, tx.is_postgres()));
    macro_rules! stream {
        ($connection:expr) => {{
            let mut rows = sqlx::query_scalar::<_, String>(sql).fetch(&mut **$connection);
            while let Some(row) = rows.try_next().await? {
                let line = canonical(table, &row)? + "\n";
                if lines.send(line).await.is_err() {
                    return Ok(false);
                }
            }
        }};
    }
    match tx.connection() {
        Connection::Pg(pg) => stream!(pg),
        Connection::Sqlite(sqlite) => stream!(sqlite),
    }
    Ok(true)
}

/// Makes the statement that reads a table's rows as JSON arrays. Names come from the schema.
fn select(table: &Table, postgres: bool) -> String {
    let value = |name: &str, kind: Kind| match (kind, postgres) {
        (Kind::Bytes, true) => format!("encode(\"{name}\", 'hex')"),
        (Kind::Uuid, true) => format!("replace(\"{name}\"::text, '-', '')"),
        (Kind::Boolean, true) => format!("\"{name}\"::int"),
        (Kind::Json, true) => format!("\"{name}\"::text"),
        (Kind::Bytes | Kind::Uuid, false) => {
            format!("case when \"{name}\" is null then null else lower(hex(\"{name}\")) end")
        }
        _ => format!("\"{name}\""),
    };
    let values: Vec<String> = table
        .columns
        .iter()
        .map(|column| value(&column.name, column.kind))
        .collect();
    let order: Vec<String> = table
        .key
        .iter()
        .map(|name| {
            let text = table
                .columns
                .iter()
                .any(|c| c.name == *name && c.kind == Kind::Text);
            match text && postgres {
                true => format!("\"{name}\" collate \"C\""),
                false => format!("\"{name}\""),
            }
        })
        .collect();
    let build = if postgres {
        "json_build_array"
    } else {
        "json_array"
    };
    let cast = if postgres { "::text" } else { "" };
    // A table of a newer schema, or of somebody else in it, may have no key.
    let order = match order.is_empty() {
        true => String::new(),
        false => format!(" order by {}", order.join(", ")),
    };
    let (name, values) = (&table.name, values.join(", "));
    format!("select {build}({values}){cast} from \"{name}\"{order}")
}

/// Writes a row the same on both databases: JSON columns with sorted keys, numbers as Rust writes
/// them.
fn canonical(table: &Table, row: &str) -> Result<String, BackupError> {
    let misfit = |reason: String| BackupError::Row {
        table: table.name.clone(),
        row: 0,
        reason,
    };
    let mut values: Vec<Value> =
        serde_json::from_str(row).map_err(|error| misfit(error.to_string()))?;
    for (column, value) in table.columns.iter().zip(&mut values) {
        match (column.kind, &mut *value) {
            (Kind::Json, Value::String(text)) => {
                let parsed: Value =
                    serde_json::from_str(text).map_err(|error| misfit(error.to_string()))?;
                *text = crate::store::audit::canonical(&parsed);
            }
            (Kind::Real, Value::Number(number)) => {
                if let Some(float) = number.as_f64() {
                    *value = json!(float);
                }
            }
            _ => {}
        }
    }
    Ok(Value::Array(values).to_string())
}
