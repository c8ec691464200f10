//! Keys, and dumps and restores one after the other in a store whose schema is read once, for the fuzz targets.

use tokio::io::AsyncRead;
use tokio::sync::mpsc;
use zeroize::Zeroizing;

use super::envelope::BackupKey;
use super::restore::Restored;
use super::{BackupError, dump as rows_out, restore as rows_in, tables};
use crate::domain::Timestamp;
use crate::store::Store;

/// A key of 32 bytes.
pub fn key(bytes: [u8; 32]) -> BackupKey {
    BackupKey::Key(Zeroizing::new(bytes))
}

/// A passphrase.
pub fn passphrase(phrase: &str) -> BackupKey {
    BackupKey::Passphrase(phrase.into())
}

/// The schema of a store.
#[derive(Debug)]
pub struct Schema(tables::Schema);

/// Reads the schema of a store.
///
/// # Errors
///
/// The store fails.
pub async fn schema(store: &Store) -> Result<Schema, BackupError> {
    let mut tx = store.snapshot().await?;
    let schema = tables::schema(&mut tx).await?;
    tx.rollback().await?;
    Ok(Schema(schema))
}

/// Writes the plain lines of a dump of a store that has this schema.
///
/// # Errors
///
/// The store fails.
pub async fn dump(
    store: &Store,
    schema: &Schema,
    lines: mpsc::Sender<String>,
) -> Result<(), BackupError> {
    rows_out::dump_known(store.snapshot().await?, &schema.0, &lines).await
}

/// Restores a backup into a store that has this schema.
///
/// # Errors
///
/// Those of a restore.
pub async fn restore(
    store: &Store,
    key: &BackupKey,
    schema: &Schema,
    from: impl AsyncRead + Unpin,
    now: Timestamp,
) -> Result<Restored, BackupError> {
    rows_in::read_known(store, key, None, false, Some(&schema.0), from, now).await
}
