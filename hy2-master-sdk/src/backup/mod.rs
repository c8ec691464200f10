//! Backups: the whole store as rows that either database takes, encrypted and authenticated.
//!
//! - [`crate::Builder::backup`], [`crate::Builder::restore`] on the host · [`envelope`] chunks under AES-256-GCM, a key or a passphrase · `tables` the schema, as the
//!   database itself describes it · [`dump`] rows out · [`restore`] rows in
//!
//! What the store keeps sealed stays sealed: a backup is worth nothing without the master key file,
//! which is backed up apart. Sessions, leases and what masters say of themselves are not in it.

pub mod dump;
pub mod envelope;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
pub mod restore;
mod tables;

use thiserror::Error;

use crate::store::StoreError;

/// A backup cannot be made or restored. Nothing of a failed restore has happened.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BackupError {
    /// The store fails.
    #[error("the store fails")]
    Store(#[from] StoreError),
    /// Not a backup, or of a format that this version does not know.
    #[error("not a backup of a known format")]
    Format,
    /// Wrong key or passphrase, or the backup was changed or cut off.
    #[error("the backup does not open: wrong key or passphrase, or it was changed")]
    Tampered,
    /// Passphrases shorter than 12 characters protect nothing.
    #[error("the passphrase must have at least 12 characters")]
    WeakPassphrase,
    /// The schema of the backup is not that of the store.
    #[error(
        "the backup is of schema {backup}, the store of {store}: restore it with that version, then upgrade"
    )]
    Schema {
        /// Of the backup.
        backup: i64,
        /// Of the store.
        store: i64,
    },
    /// The backup was made by a newer version.
    #[error(
        "the backup is of schema {backup}, this version knows {newest} at most: restore it with the \
         version that made it"
    )]
    Newer {
        /// Of the backup.
        backup: i64,
        /// That this version brings about.
        newest: i64,
    },
    /// There is nothing to back up.
    #[error("there is no store to back up")]
    NoStore,
    /// The secrets in a backup are sealed with another master key.
    #[error(
        "the secrets in the backup do not open with this master key file: it has to be the one of \
         the host that the backup is from"
    )]
    MasterKeys,
    /// There is no master key file, and a restore must not make one.
    #[error(
        "cannot use the master keys; the file has to be the one of the host that the backup is from"
    )]
    KeyFile(#[from] crate::secrets::KeyFileError),
    /// The store that was to be restored into is not empty.
    #[error("the store is not empty")]
    NotEmpty,
    /// A row of the backup does not fit.
    #[error("row {row} of table {table} does not fit: {reason}")]
    Row {
        /// Table.
        table: String,
        /// Counted from 1.
        row: usize,
        /// What is wrong.
        reason: String,
    },
    /// Reading or writing the file failed.
    #[error("reading or writing the backup failed")]
    Io(#[from] std::io::Error),
}

impl From<sqlx::Error> for BackupError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}
