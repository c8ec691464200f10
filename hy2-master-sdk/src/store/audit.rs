//! The audit log: who did what, in one order, each entry bound to the one before.
//!
//! Entries are written unsealed in the transaction of what they record. The sealer numbers and
//! chains them under a lock, so that the order is that of the seal and no number is missing even
//! though transactions commit in any order.

use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};
use sqlx::types::Json;
use uuid::Uuid;

use super::{Store, StoreError, Topic, Tx, on};
use crate::domain::Timestamp;

/// Entries sealed in one transaction.
const SEAL_BATCH: i64 = 500;

/// Entries read at once by a verification.
const VERIFY_BATCH: i64 = 1_000;

/// What the hash of every entry begins with.
const CONTEXT: &[u8] = b"hy2 audit v1\0";

/// The setting that holds a signed note of the newest entry: its revision is the entry's number.
const HEAD: &str = "internal.audit_head";

/// PostgreSQL's advisory lock of the sealer.
const SEAL_LOCK: i64 = 0x6879_325f_7365_616c;

/// An entry to write.
#[derive(Debug, Clone)]
pub struct NewEntry {
    /// When.
    pub at: Timestamp,
    /// `admin`, `token`, `node`, `system` or `host`.
    pub actor_kind: &'static str,
    /// Who, by a name that stays readable when the account is gone.
    pub actor: String,
    /// From where.
    pub address: Option<String>,
    /// What: the name of the operation.
    pub action: String,
    /// To what kind of object.
    pub object_kind: &'static str,
    /// To which.
    pub object_id: String,
    /// What changed, as it was. Never a secret.
    pub before: Option<Value>,
    /// What changed, as it is. Never a secret.
    pub after: Option<Value>,
    /// The request that asked for it.
    pub request_id: Option<Uuid>,
}

/// A sealed entry.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Entry {
    /// Position in the chain, from 1 without a gap.
    pub seq: i64,
    /// When.
    pub at: Timestamp,
    /// `admin`, `token`, `node`, `system` or `host`.
    pub actor_kind: String,
    /// Who.
    pub actor: String,
    /// From where.
    pub address: Option<String>,
    /// What.
    pub action: String,
    /// To what kind of object.
    pub object_kind: String,
    /// To which.
    pub object_id: String,
    /// As it was.
    pub before: Option<Json<Value>>,
    /// As it is.
    pub after: Option<Json<Value>>,
    /// The request.
    pub request_id: Option<Uuid>,
    /// Hash of the entry before; zeros for the first.
    pub previous_hash: Vec<u8>,
    /// Hash over the entry before and this one.
    pub hash: Vec<u8>,
}

#[derive(sqlx::FromRow)]
struct Unsealed {
    id: i64,
    at: Timestamp,
    actor_kind: String,
    actor: String,
    address: Option<String>,
    action: String,
    object_kind: String,
    object_id: String,
    before: Option<Json<Value>>,
    after: Option<Json<Value>>,
    request_id: Option<Uuid>,
}

/// What a verification found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verification {
    /// Entries that fit.
    pub entries: i64,
    /// The first that does not.
    pub broken_at: Option<i64>,
    /// Checkpoints that agree with the chain.
    pub checkpoints: i64,
}

/// A signed statement about the chain.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Checkpoint {
    /// Entry that it is about.
    pub seq: i64,
    /// Its hash.
    pub hash: Vec<u8>,
    /// Names the key.
    pub key_id: Vec<u8>,
    /// Ed25519 over [`checkpoint_message`]; of the note of the newest entry over [`head_message`].
    pub signature: Vec<u8>,
    /// When.
    pub at: Timestamp,
}

/// Which entries to list.
#[derive(Debug, Clone, Default)]
pub struct AuditFilter {
    /// Only those by this actor.
    pub actor: Option<String>,
    /// Only this action.
    pub action: Option<String>,
    /// Only about this kind of object.
    pub object_kind: Option<String>,
    /// Only about this object.
    pub object_id: Option<String>,
}

/// Writes an entry in the transaction of what it records.
///
/// # Errors
///
/// The database refuses.
pub async fn append(tx: &mut Tx, entry: &NewEntry) -> Result<(), StoreError> {
    tx.call(Topic::Events);
    on!(tx, |ex| sqlx::query(
        "insert into audit_log (at, actor_kind, actor, address, action, object_kind, object_id, \
         before, after, request_id) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
    )
    .bind(entry.at)
    .bind(entry.actor_kind)
    .bind(&entry.actor)
    .bind(&entry.address)
    .bind(&entry.action)
    .bind(entry.object_kind)
    .bind(&entry.object_id)
    .bind(entry.before.as_ref().map(Json))
    .bind(entry.after.as_ref().map(Json))
    .bind(entry.request_id)
    .execute(ex)
    .await
    .map(drop))?;
    Ok(())
}

/// Numbers and chains entries that are not yet, at most one batch; returns how many.
///
/// # Errors
///
/// The database refuses; nothing is sealed then.
pub async fn seal(store: &Store) -> Result<usize, StoreError> {
    let mut tx = store.begin().await?;
    lock_sealer(&mut tx).await?;
    let last: Option<(i64, Vec<u8>)> = on!(tx, |ex| sqlx::query_as(
        "select seq, hash from audit_log where seq is not null order by seq desc limit 1",
    )
    .fetch_optional(ex)
    .await)?;
    let (mut seq, mut previous) = last.unwrap_or_else(|| (0, vec![0; 32]));
    let rows: Vec<Unsealed> = on!(tx, |ex| {
        sqlx::query_as(
        "select id, at, actor_kind, actor, address, action, object_kind, object_id, before, after, \
         request_id from audit_log where seq is null order by id limit $1",
    )
    .bind(SEAL_BATCH)
    .fetch_all(ex)
    .await
    })?;
    let sealed = rows.len();
    for row in rows {
        seq += 1;
        let id = row.id;
        let mut entry = row.into_entry(seq, previous);
        entry.hash = hash(&entry);
        on!(tx, |ex| sqlx::query(
            "update audit_log set seq = $1, previous_hash = $2, hash = $3 where id = $4",
        )
        .bind(entry.seq)
        .bind(&entry.previous_hash)
        .bind(&entry.hash)
        .bind(id)
        .execute(ex)
        .await
        .map(drop))?;
        previous = entry.hash;
    }
    tx.commit().await?;
    Ok(sealed)
}

/// Takes the lock under which numbers are given out. On SQLite the transaction is the lock.
pub(super) async fn lock_sealer(tx: &mut Tx) -> Result<(), StoreError> {
    if let super::Connection::Pg(pg) = tx.connection() {
        sqlx::query("select pg_advisory_xact_lock($1)")
            .bind(SEAL_LOCK)
            .execute(&mut **pg)
            .await?;
    }
    Ok(())
}

/// Lists sealed entries from the newest, older than `before`.
///
/// # Errors
///
/// The database refuses.
pub async fn list(
    store: &Store,
    filter: &AuditFilter,
    before: Option<i64>,
    limit: i64,
) -> Result<Vec<Entry>, StoreError> {
    let rows = on!(read store, |ex| sqlx::query_as(
        "select seq, at, actor_kind, actor, address, action, object_kind, object_id, before, after, \
         request_id, previous_hash, hash from audit_log where seq is not null and seq < $1 \
         and ($2 is null or actor = $2) and ($3 is null or action = $3) \
         and ($4 is null or object_kind = $4) and ($5 is null or object_id = $5) \
         order by seq desc limit $6",
    )
    .bind(before.unwrap_or(i64::MAX))
    .bind(&filter.actor)
    .bind(&filter.action)
    .bind(&filter.object_kind)
    .bind(&filter.object_id)
    .bind(limit)
    .fetch_all(ex)
    .await)?;
    Ok(rows)
}

/// Recomputes the whole chain and compares the checkpoints with it; `check` judges a checkpoint's
/// signature.
///
/// # Errors
///
/// The database refuses.
pub async fn verify(
    store: &Store,
    check: impl Fn(&Checkpoint) -> bool,
) -> Result<Verification, StoreError> {
    let checkpoints: Vec<Checkpoint> = on!(read store, |ex| sqlx::query_as(
        "select seq, hash, key_id, signature, at from audit_checkpoints order by seq",
    )
    .fetch_all(ex)
    .await)?;
    let mut checkpoints = checkpoints.into_iter().peekable();
    let mut found = Verification {
        entries: 0,
        broken_at: None,
        checkpoints: 0,
    };
    let mut previous = vec![0; 32];
    loop {
        let rows: Vec<Entry> = on!(read store, |ex| sqlx::query_as(
            "select seq, at, actor_kind, actor, address, action, object_kind, object_id, before, \
             after, request_id, previous_hash, hash from audit_log where seq > $1 \
             order by seq limit $2",
        )
        .bind(found.entries)
        .bind(VERIFY_BATCH)
        .fetch_all(ex)
        .await)?;
        if rows.is_empty() {
            break;
        }
        for entry in rows {
            let expected = found.entries + 1;
            let fits = entry.seq == expected
                && entry.previous_hash == previous
                && hash(&entry) == entry.hash;
            let promised = match checkpoints.next_if(|point| point.seq == expected) {
                Some(point) => {
                    let agrees = point.hash == entry.hash && check(&point);
                    found.checkpoints += i64::from(agrees);
                    agrees
                }
                None => true,
            };
            if !fits || !promised {
                found.broken_at = Some(expected);
                return Ok(found);
            }
            previous = entry.hash;
            found.entries = expected;
        }
    }
    // A checkpoint beyond the end: entries were cut off.
    if checkpoints.peek().is_some() {
        found.broken_at = Some(found.entries + 1);
    }
    Ok(found)
}

/// Returns the newest sealed entry's number and hash, if it is newer than the newest checkpoint.
///
/// # Errors
///
/// The database refuses.
pub async fn unsigned_head(store: &Store) -> Result<Option<(i64, Vec<u8>)>, StoreError> {
    let head = on!(read store, |ex| sqlx::query_as(
        "select seq, hash from audit_log where seq is not null \
         and seq > (select coalesce(max(seq), 0) from audit_checkpoints) \
         order by seq desc limit 1",
    )
    .fetch_optional(ex)
    .await)?;
    Ok(head)
}

/// What a note of the newest entry holds, in hexadecimal.
#[derive(Serialize)]
struct Note {
    hash: String,
    key_id: String,
    signature: String,
}

/// Returns the note of the newest entry that was signed, if there is one. Entries that were cut off at the end with their
/// checkpoints are missed by it.
///
/// # Errors
///
/// The database refuses.
pub async fn head(store: &Store) -> Result<Option<Checkpoint>, StoreError> {
    let mut tx = store.snapshot().await?;
    let head = head_in(&mut tx).await?;
    tx.rollback().await?;
    Ok(head)
}

async fn head_in(tx: &mut Tx) -> Result<Option<Checkpoint>, StoreError> {
    let row: Option<(i64, Json<Value>, Timestamp)> = on!(tx, |ex| sqlx::query_as(
        "select rev, value, updated_at from settings where key = $1",
    )
    .bind(HEAD)
    .fetch_optional(ex)
    .await)?;
    Ok(row.map(|(seq, Json(value), at)| {
        // Of what nobody here has written nothing holds.
        let bytes = |name: &str| {
            let text = value.get(name).and_then(Value::as_str);
            hex::decode(text.unwrap_or_default()).unwrap_or_default()
        };
        Checkpoint {
            seq,
            hash: bytes("hash"),
            key_id: bytes("key_id"),
            signature: bytes("signature"),
            at,
        }
    }))
}

/// Returns the hash of an entry, if it is there.
///
/// # Errors
///
/// The database refuses.
pub async fn hash_of(store: &Store, seq: i64) -> Result<Option<Vec<u8>>, StoreError> {
    let mut tx = store.snapshot().await?;
    let hash = hash_in(&mut tx, seq).await?;
    tx.rollback().await?;
    Ok(hash)
}

async fn hash_in(tx: &mut Tx, seq: i64) -> Result<Option<Vec<u8>>, StoreError> {
    let hash = on!(tx, |ex| sqlx::query_scalar(
        "select hash from audit_log where seq = $1"
    )
    .bind(seq)
    .fetch_optional(ex)
    .await)?;
    Ok(hash)
}

/// Stores a signed statement about the chain, and the note that its entry is the newest. A note whose entry is not there any
/// more stays: it says that entries are gone.
///
/// # Errors
///
/// The database refuses.
pub async fn add_checkpoint(
    store: &Store,
    point: &Checkpoint,
    head: &Checkpoint,
) -> Result<(), StoreError> {
    let mut tx = store.begin().await?;
    on!(tx, |ex| sqlx::query(
        "insert into audit_checkpoints (seq, hash, key_id, signature, at) \
         values ($1, $2, $3, $4, $5) on conflict (seq) do nothing",
    )
    .bind(point.seq)
    .bind(&point.hash)
    .bind(&point.key_id)
    .bind(&point.signature)
    .bind(point.at)
    .execute(ex)
    .await
    .map(drop))?;
    let before = head_in(&mut tx).await?;
    let holds = match &before {
        Some(before) => hash_in(&mut tx, before.seq).await?.as_ref() == Some(&before.hash),
        None => true,
    };
    if holds {
        let note = Note {
            hash: hex::encode(&head.hash),
            key_id: hex::encode(&head.key_id),
            signature: hex::encode(&head.signature),
        };
        on!(tx, |ex| sqlx::query(
            "insert into settings (key, value, rev, updated_at) values ($1, $2, $3, $4) \
             on conflict (key) do update set value = excluded.value, rev = excluded.rev, \
             updated_at = excluded.updated_at where settings.rev < excluded.rev",
        )
        .bind(HEAD)
        .bind(Json(&note))
        .bind(head.seq)
        .bind(head.at)
        .execute(ex)
        .await
        .map(drop))?;
    } else {
        tracing::error!("entries of the audit log are gone that were there");
    }
    tx.commit().await
}

/// Returns what a checkpoint's signature is over.
#[must_use]
pub fn checkpoint_message(seq: i64, hash: &[u8]) -> Vec<u8> {
    [b"hy2 audit checkpoint v1\0", &seq.to_be_bytes()[..], hash].concat()
}

/// Returns what the signature of a note of the newest entry is over: no checkpoint passes for one.
#[must_use]
pub fn head_message(seq: i64, hash: &[u8]) -> Vec<u8> {
    [b"hy2 audit head v1\0", &seq.to_be_bytes()[..], hash].concat()
}

impl Unsealed {
    fn into_entry(self, seq: i64, previous_hash: Vec<u8>) -> Entry {
        Entry {
            seq,
            at: self.at,
            actor_kind: self.actor_kind,
            actor: self.actor,
            address: self.address,
            action: self.action,
            object_kind: self.object_kind,
            object_id: self.object_id,
            before: self.before,
            after: self.after,
            request_id: self.request_id,
            previous_hash,
            hash: Vec::new(),
        }
    }
}

/// Hashes an entry: each part with its length in front, absent parts told from empty ones.
fn hash(entry: &Entry) -> Vec<u8> {
    let mut hasher = Sha256::new();
    hasher.update(CONTEXT);
    let mut part = |bytes: Option<&[u8]>| match bytes {
        None => hasher.update([0]),
        Some(bytes) => {
            hasher.update([1]);
            hasher.update(u64::try_from(bytes.len()).unwrap_or(u64::MAX).to_be_bytes());
            hasher.update(bytes);
        }
    };
    let json = |value: &Option<Json<Value>>| value.as_ref().map(|Json(value)| canonical(value));
    part(Some(&entry.previous_hash));
    part(Some(&entry.seq.to_be_bytes()));
    part(Some(&entry.at.0.to_be_bytes()));
    part(Some(entry.actor_kind.as_bytes()));
    part(Some(entry.actor.as_bytes()));
    part(entry.address.as_deref().map(str::as_bytes));
    part(Some(entry.action.as_bytes()));
    part(Some(entry.object_kind.as_bytes()));
    part(Some(entry.object_id.as_bytes()));
    part(json(&entry.before).as_deref().map(str::as_bytes));
    part(json(&entry.after).as_deref().map(str::as_bytes));
    part(entry.request_id.as_ref().map(|id| id.as_bytes().as_slice()));
    hasher.finalize().to_vec()
}

/// Writes JSON with sorted keys: databases keep no order.
pub(crate) fn canonical(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let mut fields: Vec<_> = map.iter().collect();
            fields.sort_by_key(|(key, _)| *key);
            let fields: Vec<_> = fields
                .into_iter()
                .map(|(key, value)| format!("{}:{}", Value::from(key.as_str()), canonical(value)))
                .collect();
            format!("{{{}}}", fields.join(","))
        }
        Value::Array(items) => {
            let items: Vec<_> = items.iter().map(canonical).collect();
            format!("[{}]", items.join(","))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn json_is_hashed_without_regard_to_the_order_of_keys() {
        let one: Value = serde_json::from_str(r#"{"b":[1,{"y":null,"x":"\n"}],"a":true}"#).unwrap();
        assert_eq!(canonical(&one), r#"{"a":true,"b":[1,{"x":"\n","y":null}]}"#);
    }

    #[test]
    fn every_part_is_in_the_hash() {
        let entry = Entry {
            seq: 3,
            at: Timestamp(5),
            actor_kind: "admin".into(),
            actor: "ann".into(),
            address: Some("::1".into()),
            action: "create_user".into(),
            object_kind: "user".into(),
            object_id: "7".into(),
            before: None,
            after: Some(Json(json!({"a": 1}))),
            request_id: Some(Uuid::nil()),
            previous_hash: vec![0; 32],
            hash: Vec::new(),
        };
        let changes: [fn(&mut Entry); 12] = [
            |e| e.seq = 4,
            |e| e.at = Timestamp(6),
            |e| e.actor_kind = "host".into(),
            |e| e.actor = "bob".into(),
            |e| e.address = None,
            |e| e.action = "delete_user".into(),
            |e| e.object_kind = "node".into(),
            |e| e.object_id = "8".into(),
            |e| e.before = Some(Json(Value::Null)),
            |e| e.after = Some(Json(json!({"a": 2}))),
            |e| e.request_id = None,
            |e| e.previous_hash = vec![1; 32],
        ];
        for (at, change) in changes.into_iter().enumerate() {
            let mut changed = entry.clone();
            change(&mut changed);
            assert_ne!(hash(&changed), hash(&entry), "change {at}");
        }
        let mut moved = entry.clone();
        moved.actor = "an".into();
        moved.action = "ncreate_user".into();
        assert_ne!(
            hash(&moved),
            hash(&entry),
            "parts do not run into each other"
        );
    }
}
