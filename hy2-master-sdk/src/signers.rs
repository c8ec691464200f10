//! Renewing the keys that sign what nodes obey.
//!
//! Nodes take the signatures of every key that they have been told of and that a trusted authority
//! certifies at the time. So the next key is made and told long before it signs, it signs long before
//! the one before ends, and nobody has to be there at a certain moment: a node that comes back hears of
//! the keys of the day before anything that they sign.

use uuid::Uuid;

use crate::auth::ca::{CertificateAuthority, SIGNER_VALIDITY};
use crate::core::{AUTHORITY_KEY, KeysError, insert_signer};
use crate::domain::Timestamp;
use crate::secrets::Vault;
use crate::store::audit::{self, NewEntry};
use crate::store::cluster::SigningKeyRow;
use crate::store::{StoreError, Tx, rotation as store};

/// How long before a key's end the next one is made and nodes are told of it, in milliseconds.
pub(crate) const ANNOUNCE: i64 = 60 * Timestamp::DAY;

/// How long before a key's end the next one signs, in milliseconds. A node that is cut off meanwhile
/// holds a state whose signer is good for at least that long; a connected one has renewed its
/// certificate, and been told of the keys again, between [`ANNOUNCE`] and this.
pub(crate) const TAKE_OVER: i64 = 30 * Timestamp::DAY;

/// After how long every master has read a key that one of them made and has told its nodes, in
/// milliseconds. Masters look at least once a minute.
const KNOWN_AFTER: i64 = 600_000;

/// For how long after its end nodes hear of a key, in milliseconds. It signs nothing new; a node that
/// refuses its newer states starts from one that this key signed in its time.
pub(crate) const KEEP: i64 = 365 * Timestamp::DAY;

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// Nothing.
    Wait,
    /// Make the next key.
    Announce,
    /// The next key signs.
    TakeOver(Uuid),
    /// Make a key that signs at once.
    Replace,
}

/// Makes the next key, or lets it sign, when it is time, and forgets the keys that ended long ago.
/// `starting`: no node is connected to this master; a key that has all but ended is replaced on the
/// spot then, because nodes hear of the new one before anything else when they connect.
pub(crate) async fn keep(
    tx: &mut Tx,
    vault: &Vault,
    now: Timestamp,
    starting: bool,
) -> Result<(), KeysError> {
    // Locked: an exchange of the authority comes before or after, not between. None: one came between.
    let Some(active) = store::lock_active_authority(tx).await? else {
        return Ok(());
    };
    let rows = store::signers(tx).await?;
    let step = step(&rows, now, starting);
    let made = match step {
        Step::Announce | Step::Replace => {
            let key = vault
                .open(AUTHORITY_KEY, active.id.as_bytes(), &active.private_key_enc)
                .map_err(|source| KeysError::Open {
                    what: "certificate authority",
                    source,
                })?;
            let authority = CertificateAuthority::load(active.certificate.into(), &key)?;
            let state = if step == Step::Announce {
                "next"
            } else {
                store::retire_signers(tx, now).await?;
                "active"
            };
            Some(insert_signer(tx, vault, &authority, state, now).await?)
        }
        Step::Wait | Step::TakeOver(_) => None,
    };
    let noted = match step {
        Step::Wait => None,
        Step::Announce => Some("announce_signing_key"),
        Step::TakeOver(id) => {
            store::retire_signers(tx, now).await?;
            store::set_signer_state(tx, id, "active", now).await?;
            Some("activate_signing_key")
        }
        Step::Replace => Some("replace_signing_key"),
    };
    let taken = match step {
        Step::TakeOver(id) => rows.into_iter().find(|row| row.id == id),
        _ => made,
    };
    if let (Some(action), Some(key)) = (noted, taken) {
        note(tx, action, &key, now).await?;
    }
    store::remove_signers_ended_before(tx, Timestamp(now.0.saturating_sub(KEEP))).await?;
    Ok(())
}

/// Decides, of rows with the newest first.
fn step(rows: &[SigningKeyRow], now: Timestamp, starting: bool) -> Step {
    let left = |row: &SigningKeyRow| row.not_after.0.saturating_sub(now.0);
    let known = |row: &SigningKeyRow| validity().saturating_sub(left(row)) >= KNOWN_AFTER;
    let in_state = |state: &str| rows.iter().find(|row| row.state == state);
    let Some(signs) = in_state("active") else {
        return Step::Replace;
    };
    // One that has waited until its own end, while all masters were away, is none.
    let next = in_state("next").filter(|row| left(row) > KNOWN_AFTER);
    match next {
        Some(next) if left(signs) < TAKE_OVER && known(next) => Step::TakeOver(next.id),
        _ if starting && left(signs) < KNOWN_AFTER => Step::Replace,
        None if left(signs) < ANNOUNCE => Step::Announce,
        _ => Step::Wait,
    }
}

/// For how long a key is certified, in milliseconds.
fn validity() -> i64 {
    i64::try_from(SIGNER_VALIDITY.as_millis()).unwrap_or(i64::MAX)
}

/// The audit log knows it as done by the master itself.
async fn note(
    tx: &mut Tx,
    action: &str,
    row: &SigningKeyRow,
    now: Timestamp,
) -> Result<(), StoreError> {
    let key = hex::encode(&row.key_id);
    tracing::info!(key, action, "signing key of nodes");
    let entry = NewEntry {
        at: now,
        actor_kind: "system",
        actor: "system".to_owned(),
        address: None,
        action: action.to_owned(),
        object_kind: "signing_key",
        object_id: row.id.to_string(),
        before: None,
        after: Some(serde_json::json!({"key_id": key})),
        request_id: None,
    };
    audit::append(tx, &entry).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::load_keys;
    use crate::secrets::MasterKeys;
    use crate::store::{Store, StoreOptions};

    const NOW: Timestamp = Timestamp(1_800_000_000_000);

    fn row(id: u128, state: &str, left: i64) -> SigningKeyRow {
        SigningKeyRow {
            id: Uuid::from_u128(id),
            purpose: "manifest".to_owned(),
            key_id: Vec::new(),
            public_key: Vec::new(),
            private_key_enc: Vec::new(),
            certificate: None,
            state: state.to_owned(),
            not_after: Timestamp(NOW.0 + left),
        }
    }

    fn decide(rows: &[SigningKeyRow]) -> (Step, Step) {
        (step(rows, NOW, false), step(rows, NOW, true))
    }

    #[test]
    fn the_next_key_is_made_sixty_days_before_the_end_and_signs_thirty_before() {
        let next = |left| row(2, "next", left);
        let active = |left| row(1, "active", left);
        let both = |one: Step, other: Step| (one, other);
        let wait = || both(Step::Wait, Step::Wait);
        assert_eq!(decide(&[active(ANNOUNCE)]), wait());
        let announce = both(Step::Announce, Step::Announce);
        assert_eq!(decide(&[active(ANNOUNCE - 1)]), announce);
        let fresh = next(validity());
        assert_eq!(decide(&[fresh.clone(), active(ANNOUNCE - 1)]), wait());
        let month = next(validity() - TAKE_OVER);
        assert_eq!(decide(&[month.clone(), active(TAKE_OVER)]), wait());
        let take = || {
            let id = Uuid::from_u128(2);
            both(Step::TakeOver(id), Step::TakeOver(id))
        };
        assert_eq!(decide(&[month, active(TAKE_OVER - 1)]), take());
        // However late it is, a key signs only when nodes have been told of it.
        assert_eq!(decide(&[fresh, active(TAKE_OVER - 1)]), wait());
        let told = next(validity() - KNOWN_AFTER);
        assert_eq!(decide(&[told, active(-1)]), take());
    }

    #[test]
    fn a_key_that_ended_while_all_masters_were_away_is_replaced_at_the_start() {
        let ended = || row(1, "active", -1);
        let replaced = (Step::Announce, Step::Replace);
        assert_eq!(decide(&[ended()]), replaced);
        // Neither does a next one help that has ended, too, or has only been made.
        assert_eq!(decide(&[row(2, "next", -1), ended()]), replaced);
        let fresh = row(2, "next", validity());
        assert_eq!(decide(&[fresh, ended()]), (Step::Wait, Step::Replace));
        assert_eq!(decide(&[row(1, "retired", 5)]).1, Step::Replace);
    }

    #[tokio::test]
    async fn masters_that_were_all_away_for_years_start_with_a_key_that_is_good() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("master.db");
        let store = Store::open_sqlite(path, &StoreOptions::default())
            .await
            .unwrap();
        store.migrate().await.unwrap();
        let vault = Vault::new(MasterKeys::generate().unwrap());
        let first = load_keys(&store, &vault, NOW).await.unwrap().trust;
        let same = load_keys(&store, &vault, NOW).await.unwrap().trust;
        assert_eq!(first.signing_keys, same.signing_keys);
        let later = Timestamp(NOW.0 + 2 * validity());
        let anew = load_keys(&store, &vault, later).await.unwrap().trust;
        assert_ne!(anew.signer.key_id(), first.signer.key_id());
        assert_eq!(anew.signing_keys, [anew.signer.to_wire()]);
    }
}
