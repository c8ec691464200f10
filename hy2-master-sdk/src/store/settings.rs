//! Settings as operators see them; they are written by [`super::cluster::put_setting`].

use super::cluster::SettingRow;
use super::{Store, StoreError, on};

/// Lists all settings by name. Names that begin with `internal.` are the master's own.
///
/// # Errors
///
/// The database refuses.
pub async fn list(store: &Store) -> Result<Vec<SettingRow>, StoreError> {
    let rows = on!(read store, |ex| sqlx::query_as(
        "select key, value, rev, updated_at from settings where key not like 'internal.%' \
         order by key limit 1000",
    )
    .fetch_all(ex)
    .await)?;
    Ok(rows)
}

/// Returns a setting, if it was ever set.
///
/// # Errors
///
/// The database refuses.
pub async fn find(store: &Store, key: &str) -> Result<Option<SettingRow>, StoreError> {
    let row = on!(read store, |ex| sqlx::query_as(
        "select key, value, rev, updated_at from settings where key = $1",
    )
    .bind(key)
    .fetch_optional(ex)
    .await)?;
    Ok(row)
}
