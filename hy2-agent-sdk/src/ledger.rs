//! The last good signed state of this node, in memory and on disk.
//!
//! What a master sends becomes the node's state only here: the manifest's signature, the signer's
//! certificate, epoch and revision, the hashes of everything it names, and its validity are
//! checked first. The disk copy is encrypted under a key derived from the node's, so that a copy
//! of the disk without the key shows no secret.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    signature::{ED25519, UnparsedPublicKey},
};
use bytes::Bytes;
use hy2_proto::control::{
    MANIFEST_SIGNATURE_CONTEXT, RESOURCE_CONFIG, RESOURCE_USERS, hash,
    rpc::{
        ErrorCode, FieldError, Manifest, NodeConfig, ResourceRef, ResourceUpdate, SignedManifest,
        UserEntry,
    },
};
use prost::Message;

use crate::{
    clock::moment,
    files,
    identity::{Credentials, Identity, verify_signer},
};

/// One user as the master encoded it, with its hash.
#[derive(Debug, Clone)]
pub(crate) struct StoredUser {
    pub(crate) entry: UserEntry,
    encoded: Bytes,
    digest: [u8; 32],
}

#[cfg(feature = "bench")]
impl StoredUser {
    /// A user whom no master has signed.
    pub(crate) fn unsigned(entry: UserEntry) -> Self {
        let encoded = Bytes::from(entry.encode_to_vec());
        Self {
            digest: hash::blob(&encoded),
            entry,
            encoded,
        }
    }
}

/// A complete, verified state.
#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    pub(crate) manifest: Manifest,
    signed: SignedManifest,
    config_blob: Bytes,
    pub(crate) config: Arc<NodeConfig>,
    pub(crate) users: Arc<BTreeMap<u64, StoredUser>>,
}

impl Snapshot {
    pub(crate) fn valid_until(&self) -> Option<SystemTime> {
        moment(self.manifest.valid_until.as_ref())
    }

    pub(crate) fn rev_of(&self, kind: &str) -> u64 {
        reference(&self.manifest, kind).map_or(0, |reference| reference.rev)
    }
}

/// What became of an update.
#[derive(Debug)]
pub(crate) enum Judged {
    /// The node has exactly this already.
    Known,
    /// A new state, verified and not yet applied. `users` says which differ from before.
    New {
        snapshot: Box<Snapshot>,
        users: UserChanges,
    },
}

/// Users that differ between two states.
#[derive(Debug, Default)]
pub(crate) struct UserChanges {
    pub(crate) upsert: Vec<u64>,
    pub(crate) remove: Vec<u64>,
    /// Everything may differ.
    pub(crate) all: bool,
}

/// The state in force, and where it is kept.
pub(crate) struct Ledger {
    path: PathBuf,
    /// Where the last update is kept that was verified and could not run.
    refused: PathBuf,
    key: LessSafeKey,
    pub(crate) current: Option<Snapshot>,
}

impl std::fmt::Debug for Ledger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ledger")
            .field("path", &self.path)
            .field("current", &self.current.as_ref().map(|s| s.manifest.rev))
            .finish_non_exhaustive()
    }
}

/// A state on its way to the disk, encrypted.
#[derive(Debug)]
pub(crate) struct Copy {
    path: PathBuf,
    bytes: Vec<u8>,
}

impl Copy {
    /// Replaces the copy on disk.
    pub(crate) async fn write(self) -> io::Result<()> {
        let written =
            tokio::task::spawn_blocking(move || files::write_atomic(&self.path, &self.bytes));
        written
            .await
            .unwrap_or_else(|error| Err(io::Error::other(error)))
    }
}

/// Why the copy on disk is not used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LedgerError {
    #[error("cannot read the ledger")]
    Read(#[source] io::Error),
    #[error("the ledger is damaged or belongs to another node key")]
    Damaged,
    #[error("the ledger is not acceptable: {0}")]
    Refused(String),
}

impl Ledger {
    /// Opens the ledger in `folder` without reading it.
    pub(crate) fn new(folder: &Path, identity: &Identity) -> Self {
        Self::with_key(folder, &identity.key().derive(b"ledger v1"))
    }

    fn with_key(folder: &Path, secret: &[u8; 32]) -> Self {
        let key = UnboundKey::new(&AES_256_GCM, secret).expect("the key has 32 bytes");
        Self {
            path: folder.join("ledger"),
            refused: folder.join("ledger-refused"),
            key: LessSafeKey::new(key),
            current: None,
        }
    }

    /// Reads the copy on disk and checks it like an update from the master, but for its validity:
    /// what to do past it is policy. `Ok(false)` without one.
    pub(crate) fn load(
        &mut self,
        credentials: &Credentials,
        now: SystemTime,
    ) -> Result<bool, LedgerError> {
        let Some(bytes) = files::read(&self.path).map_err(LedgerError::Read)? else {
            return Ok(false);
        };
        let stored = self.unseal(bytes)?;
        match self.judge(&stored, credentials, now, Freshness::Any) {
            Ok(Judged::New { snapshot, .. }) => {
                self.current = Some(*snapshot);
                Ok(true)
            }
            Ok(Judged::Known) => Ok(true),
            Err(errors) => Err(LedgerError::Refused(
                errors
                    .first()
                    .map(|e| e.message.clone())
                    .unwrap_or_default(),
            )),
        }
    }

    /// Reads the update that was refused last, and checks it as [`Self::load`] does. `Ok(None)` without one that is
    /// newer than the state in force.
    pub(crate) fn load_refused(
        &self,
        credentials: &Credentials,
        now: SystemTime,
    ) -> Result<Option<Box<Snapshot>>, LedgerError> {
        let Some(bytes) = files::read(&self.refused).map_err(LedgerError::Read)? else {
            return Ok(None);
        };
        let stored = self.unseal(bytes)?;
        // What is not newer was followed by the state in force.
        match self.judge(&stored, credentials, now, Freshness::Any) {
            Ok(Judged::New { snapshot, .. }) => Ok(Some(snapshot)),
            Ok(Judged::Known) => Ok(None),
            Err(errors)
                if errors
                    .iter()
                    .all(|one| one.code() == ErrorCode::StaleRevision) =>
            {
                Ok(None)
            }
            Err(errors) => Err(LedgerError::Refused(
                errors
                    .first()
                    .map(|e| e.message.clone())
                    .unwrap_or_default(),
            )),
        }
    }

    /// Forgets the update that was refused last: a later one is on disk.
    pub(crate) fn forget_refused(&self) {
        if let Err(error) = std::fs::remove_file(&self.refused)
            && error.kind() != io::ErrorKind::NotFound
        {
            // The next start sees that it is older.
            tracing::debug!(%error, "an update that was refused stays on the disk");
        }
    }

    /// Decrypts and decodes the file.
    fn unseal(&self, mut bytes: Vec<u8>) -> Result<ResourceUpdate, LedgerError> {
        let Some((head, sealed)) = bytes.split_at_mut_checked(MAGIC.len() + NONCE_LEN) else {
            return Err(LedgerError::Damaged);
        };
        let (magic, nonce) = head.split_at(MAGIC.len());
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| LedgerError::Damaged)?;
        if magic != MAGIC {
            return Err(LedgerError::Damaged);
        }
        let plain = self
            .key
            .open_in_place(nonce, Aad::from(MAGIC), sealed)
            .map_err(|_| LedgerError::Damaged)?;
        let stored = ResourceUpdate::decode(&*plain).map_err(|_| LedgerError::Damaged)?;
        zeroize::Zeroize::zeroize(plain);
        Ok(stored)
    }

    /// Makes `snapshot` the state in force, and returns its copy for the disk. It is in force when
    /// this returns: a revocation must not wait for a full disk.
    pub(crate) fn commit(&mut self, snapshot: Snapshot) -> io::Result<Copy> {
        let copy = self.copy(&snapshot, &self.path);
        self.current = Some(snapshot);
        copy
    }

    /// Returns the copy for the disk of an update that was verified and cannot run.
    pub(crate) fn refuse(&self, snapshot: &Snapshot) -> io::Result<Copy> {
        self.copy(snapshot, &self.refused)
    }

    fn copy(&self, snapshot: &Snapshot, path: &Path) -> io::Result<Copy> {
        let users = snapshot.users.values();
        let update = ResourceUpdate {
            manifest: Some(snapshot.signed.clone()),
            config: snapshot.config_blob.clone(),
            has_config: true,
            users_snapshot: true,
            upsert_users: users.map(|user| user.encoded.clone()).collect(),
            last: true,
            ..Default::default()
        };
        let mut sealed = update.encode_to_vec();
        let mut nonce = [0; NONCE_LEN];
        rand::fill(&mut nonce);
        let (head, at) = (
            [MAGIC, &nonce].concat(),
            Nonce::assume_unique_for_key(nonce),
        );
        self.key
            .seal_in_place_append_tag(at, Aad::from(MAGIC), &mut sealed)
            .map_err(|_| io::Error::other("encryption failed"))?;
        Ok(Copy {
            path: path.to_owned(),
            bytes: [head, sealed].concat(),
        })
    }

    /// Checks a complete update against the state in force.
    pub(crate) fn judge(
        &self,
        update: &ResourceUpdate,
        credentials: &Credentials,
        now: SystemTime,
        freshness: Freshness,
    ) -> Result<Judged, Vec<FieldError>> {
        let signed = update
            .manifest
            .as_ref()
            .ok_or_else(|| one(ErrorCode::InvalidField, "manifest", "missing"))?;
        let at = match freshness {
            Freshness::Valid => now,
            Freshness::Any => while_valid(signed, now),
        };
        let manifest = verified(signed, credentials, at)?;
        self.judge_verified(update, manifest, &credentials.node_uid, now, freshness)
    }

    /// Checks what a trusted key has signed.
    fn judge_verified(
        &self,
        update: &ResourceUpdate,
        manifest: Manifest,
        node_uid: &[u8],
        now: SystemTime,
        freshness: Freshness,
    ) -> Result<Judged, Vec<FieldError>> {
        let signed = update.manifest.clone().unwrap_or_default();
        if manifest.node_uid != node_uid {
            return Err(one(
                ErrorCode::InvalidField,
                "manifest.node_uid",
                "names another node",
            ));
        }
        let valid_until = moment(manifest.valid_until.as_ref());
        if matches!(freshness, Freshness::Valid) && valid_until.is_none_or(|until| until <= now) {
            return Err(one(
                ErrorCode::Expired,
                "manifest.valid_until",
                "has passed",
            ));
        }
        if let Some(current) = &self.current {
            let ours = &current.manifest;
            match (manifest.cluster_epoch, manifest.rev).cmp(&(ours.cluster_epoch, ours.rev)) {
                std::cmp::Ordering::Less => {
                    let text = format!(
                        "revision {} of epoch {} is older than {} of epoch {}",
                        manifest.rev, manifest.cluster_epoch, ours.rev, ours.cluster_epoch
                    );
                    return Err(one(ErrorCode::StaleRevision, "manifest.rev", &text));
                }
                std::cmp::Ordering::Equal if current.signed.manifest == signed.manifest => {
                    return Ok(Judged::Known);
                }
                std::cmp::Ordering::Equal => {
                    let text = "the same revision with another content";
                    return Err(one(ErrorCode::ConflictingRevision, "manifest.rev", text));
                }
                std::cmp::Ordering::Greater => {}
            }
        }
        let (config_blob, config) = self.judge_config(update, &manifest)?;
        let (users, changes) = self.judge_users(update, &manifest)?;
        Ok(Judged::New {
            snapshot: Box::new(Snapshot {
                signed,
                manifest,
                config_blob,
                config,
                users: Arc::new(users),
            }),
            users: changes,
        })
    }

    fn judge_config(
        &self,
        update: &ResourceUpdate,
        manifest: &Manifest,
    ) -> Result<(Bytes, Arc<NodeConfig>), Vec<FieldError>> {
        let wanted = reference(manifest, RESOURCE_CONFIG)
            .ok_or_else(|| one(ErrorCode::InvalidField, "manifest.resources", "no config"))?;
        let blob = match (&self.current, update.has_config) {
            (_, true) => update.config.clone(),
            (Some(current), false) => current.config_blob.clone(),
            (None, false) => {
                return Err(one(ErrorCode::BaseMissing, "config", "is not known here"));
            }
        };
        if hash::blob(&blob) != *wanted.sha256 {
            return Err(one(
                ErrorCode::HashMismatch,
                "config",
                "is not what the manifest names",
            ));
        }
        let config = match &self.current {
            Some(current) if current.config_blob == blob => Arc::clone(&current.config),
            _ => Arc::new(
                NodeConfig::decode(blob.clone())
                    .map_err(|error| one(ErrorCode::InvalidField, "config", &error.to_string()))?,
            ),
        };
        Ok((blob, config))
    }

    fn judge_users(
        &self,
        update: &ResourceUpdate,
        manifest: &Manifest,
    ) -> Result<(BTreeMap<u64, StoredUser>, UserChanges), Vec<FieldError>> {
        let wanted = reference(manifest, RESOURCE_USERS)
            .ok_or_else(|| one(ErrorCode::InvalidField, "manifest.resources", "no users"))?;
        let mut changes = UserChanges::default();
        let mut users = match &self.current {
            _ if update.users_snapshot => BTreeMap::new(),
            Some(current) => BTreeMap::clone(&current.users),
            None => BTreeMap::new(),
        };
        if update.users_snapshot {
            changes.all = true;
        } else {
            let base = self
                .current
                .as_ref()
                .map_or(0, |current| current.rev_of(RESOURCE_USERS));
            let changed = !update.upsert_users.is_empty() || !update.remove_users.is_empty();
            if changed && base != update.users_base_rev {
                let text = format!("base {} is not here, {base} is", update.users_base_rev);
                return Err(one(ErrorCode::BaseMissing, "users", &text));
            }
        }
        for (at, encoded) in update.upsert_users.iter().enumerate() {
            let entry = UserEntry::decode(encoded.clone()).map_err(|error| {
                one(
                    ErrorCode::InvalidField,
                    &format!("users[{at}]"),
                    &error.to_string(),
                )
            })?;
            if let Some((field, text)) = mistake(&entry) {
                let path = format!("users[{at}].{field}");
                return Err(one(ErrorCode::InvalidField, &path, text));
            }
            changes.upsert.push(entry.user_id);
            let digest = hash::blob(encoded);
            let encoded = encoded.clone();
            users.insert(
                entry.user_id,
                StoredUser {
                    entry,
                    encoded,
                    digest,
                },
            );
        }
        for id in &update.remove_users {
            users.remove(id);
            changes.remove.push(*id);
        }
        if hash::user_set(users.values().map(|user| &user.digest)) != *wanted.sha256 {
            return Err(one(
                ErrorCode::HashMismatch,
                "users",
                "are not what the manifest names",
            ));
        }
        Ok((users, changes))
    }
}

/// Whether a manifest past its validity will do.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Freshness {
    /// From the master: it must be valid.
    Valid,
    /// From our own disk.
    Any,
}

fn mistake(entry: &UserEntry) -> Option<(&'static str, &'static str)> {
    if entry.user_id == 0 {
        return Some(("user_id", "must not be 0"));
    }
    if entry.verifier.len() != 32 {
        return Some(("verifier", "must have 32 bytes"));
    }
    if entry.expires_at.is_some() && moment(entry.expires_at.as_ref()).is_none() {
        return Some(("expires_at", "must be after 1970"));
    }
    None
}

/// The moment at which the signer of the copy on disk has to be certified: keys end and are renewed
/// while a node is cut off, and what one of them signed in its time stays this node's state. The
/// host's clock may be behind that time, too.
fn while_valid(signed: &SignedManifest, now: SystemTime) -> SystemTime {
    let Ok(manifest) = Manifest::decode(signed.manifest.clone()) else {
        return now;
    };
    let (issued, until) = (manifest.issued_at.as_ref(), manifest.valid_until.as_ref());
    let not_before = moment(issued).map_or(now, |issued| issued.max(now));
    moment(until).map_or(not_before, |until| until.min(not_before))
}

fn verified(
    signed: &SignedManifest,
    credentials: &Credentials,
    now: SystemTime,
) -> Result<Manifest, Vec<FieldError>> {
    let bad = |text: &str| one(ErrorCode::BadSignature, "manifest.signature", text);
    let keys = credentials.signing_keys.iter();
    let key = keys
        .filter(|key| key.key_id == signed.key_id)
        .find_map(|key| verify_signer(key, credentials, now))
        .ok_or_else(|| bad("is by no key that a trusted CA certifies"))?;
    let message = [MANIFEST_SIGNATURE_CONTEXT, &signed.manifest].concat();
    UnparsedPublicKey::new(&ED25519, key)
        .verify(&message, &signed.signature)
        .map_err(|_| bad("does not fit"))?;
    Manifest::decode(signed.manifest.clone())
        .map_err(|error| one(ErrorCode::InvalidField, "manifest", &error.to_string()))
}

fn reference<'a>(manifest: &'a Manifest, kind: &str) -> Option<&'a ResourceRef> {
    manifest.resources.iter().find(|one| one.r#type == kind)
}

pub(crate) fn field_error(code: ErrorCode, path: &str, message: &str) -> FieldError {
    FieldError {
        code: code.into(),
        path: path.to_owned(),
        message: message.to_owned(),
    }
}

fn one(code: ErrorCode, path: &str, message: &str) -> Vec<FieldError> {
    vec![field_error(code, path, message)]
}

const MAGIC: &[u8] = b"hy2led1\n";

#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing {
    //! The ledger, for the fuzz targets: in memory, and behind the check of the signature.

    use super::*;

    /// A node's state.
    #[derive(Debug)]
    pub struct State(Ledger);

    impl Default for State {
        fn default() -> Self {
            Self(Ledger::with_key(Path::new(""), &[7; 32]))
        }
    }

    impl State {
        /// Judges an update whose manifest counts as signed; what is new is in force afterwards.
        /// Returns the file of the new state, or `None` when the update is known.
        ///
        /// # Errors
        ///
        /// Everything that is wrong with the update.
        pub fn take(
            &mut self,
            update: &ResourceUpdate,
            node_uid: &[u8],
            now: SystemTime,
            any_age: bool,
        ) -> Result<Option<(Vec<u8>, Changes)>, Vec<FieldError>> {
            let signed = update.manifest.as_ref().ok_or_else(Vec::new)?;
            let manifest = Manifest::decode(signed.manifest.clone()).map_err(|_| Vec::new())?;
            let freshness = if any_age {
                Freshness::Any
            } else {
                Freshness::Valid
            };
            let judged = self
                .0
                .judge_verified(update, manifest, node_uid, now, freshness)?;
            let Judged::New { snapshot, users } = judged else {
                return Ok(None);
            };
            let copy = self.0.commit(*snapshot).expect("encryption works");
            let changes = Changes {
                upsert: users.upsert,
                remove: users.remove,
                all: users.all,
            };
            Ok(Some((copy.bytes, changes)))
        }

        /// Decrypts and decodes a file.
        pub fn unseal(&self, file: Vec<u8>) -> Option<ResourceUpdate> {
            self.0.unseal(file).ok()
        }

        /// Encrypts any bytes as the file is.
        pub fn seal(&self, plain: &[u8]) -> Vec<u8> {
            let (nonce, mut sealed) = ([3; NONCE_LEN], plain.to_vec());
            let at = Nonce::assume_unique_for_key(nonce);
            self.0
                .key
                .seal_in_place_append_tag(at, Aad::from(MAGIC), &mut sealed)
                .expect("encryption works");
            [MAGIC, &nonce, &sealed].concat()
        }

        /// Epoch and revision in force, and the users by number.
        pub fn in_force(&self) -> Option<((u64, u64), Vec<u64>)> {
            let current = self.0.current.as_ref()?;
            let manifest = &current.manifest;
            let users = current.users.keys().copied().collect();
            Some(((manifest.cluster_epoch, manifest.rev), users))
        }
    }

    /// Users that differ from the state before.
    #[derive(Debug)]
    pub struct Changes {
        /// New or different.
        pub upsert: Vec<u64>,
        /// Gone.
        pub remove: Vec<u64>,
        /// Everything may differ.
        pub all: bool,
    }
}
