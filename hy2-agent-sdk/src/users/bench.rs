//! The user table for the benches (feature `bench`); no promise of any kind.

use std::{collections::BTreeMap, io, path::Path, sync::Arc};

use hy2_proto::control::rpc::UserEntry;

use super::table::UserTable;
use crate::{
    clock::{Clock, SystemClock},
    leases::Leases,
    ledger::{StoredUser, UserChanges},
    settings::VerifierKeys,
    traffic::Traffic,
};

/// A node's users.
#[derive(Debug)]
pub struct Users(UserTable);

impl Users {
    /// Makes `count` users, numbered from 1; their credentials are [`credential`]. What they cost is
    /// kept in `folder`.
    ///
    /// # Errors
    ///
    /// `folder` cannot be used.
    pub fn new(folder: &Path, count: u64) -> io::Result<Self> {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let traffic = Traffic::open(folder, 1 << 30, Arc::clone(&clock))?;
        let leases = Leases::open(folder, Arc::clone(&clock))?;
        let table = UserTable::new(clock, Arc::new(traffic), Arc::new(leases));
        table.set_keys(&VerifierKeys {
            fleet: [1; 32],
            node: [2; 32],
        });
        let mut users = BTreeMap::new();
        for id in 1..=count {
            let verifier = table.verifier(&credential(id)).unwrap_or_default();
            let entry = UserEntry {
                user_id: id,
                verifier: verifier.to_vec().into(),
                ..UserEntry::default()
            };
            users.insert(id, StoredUser::unsigned(entry));
        }
        let all = UserChanges {
            upsert: Vec::new(),
            remove: Vec::new(),
            all: true,
        };
        table.apply(&users, &all);
        Ok(Self(table))
    }

    /// Finds who has a credential.
    pub fn find(&self, credential: &str) -> Option<u64> {
        self.0.who(credential).map(|(user, _)| user.id)
    }
}

/// Returns the credential of a user.
#[must_use]
pub fn credential(user: u64) -> String {
    format!("a credential of 43 characters, number {user:04}")
}
