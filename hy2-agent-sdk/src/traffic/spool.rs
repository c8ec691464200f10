//! Batches on disk between the cut and the master's commit.
//!
//! A batch is a file named by its numbers. It is written beside, synced and renamed, so it is
//! whole or not there. Before its first journey it is renamed to say so; from then on it never
//! changes, because the master may have committed exactly these numbers. The newest batch stays
//! when it is acknowledged: it says up to where the counters were cut.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use hy2_proto::control::rpc::{TrafficBatch, UserTraffic};
use prost::Message;

use crate::{clock::moment, files};

/// Users in one batch at most; the encoded batch stays far below the largest message.
pub(super) const USERS_MAX: usize = 20_000;

const MAGIC: &[u8; 4] = b"hy2b";
const HEAD: usize = 8;

/// One batch on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stored {
    first: u64,
    last: u64,
    size: u64,
    sent: bool,
}

/// A batch on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Outgoing {
    pub(crate) first: u64,
    pub(crate) last: u64,
    pub(crate) batch: Vec<u8>,
    pub(crate) crc32c: u32,
}

impl Outgoing {
    /// Tells whether a master's cursor can be its answer to this batch, when `durable` is what it
    /// had acknowledged before. A cursor never goes back in front of one connection, and a batch
    /// that follows `durable` moves it: what says no more than before is an earlier answer that
    /// came once more.
    pub(crate) fn is_answered_by(&self, cursor: u64, durable: u64) -> bool {
        cursor > durable || cursor == durable && self.first != durable + 1
    }
}

/// The batches of a node.
#[derive(Debug)]
pub(crate) struct Spool {
    root: PathBuf,
    folder: PathBuf,
    id: [u8; 16],
    /// In ascending order.
    batches: Vec<Stored>,
    next: u64,
    /// What the master has committed, as far as it is known.
    durable: u64,
    cap: u64,
}

/// What became of the spool when it met the master's cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Resync {
    /// They fit.
    Fits,
    /// They did not, and a new spool was made of what the master lacks. `lost` batches before
    /// that are neither here nor there.
    Restarted { lost: u64 },
}

impl Spool {
    /// Opens the spool in `root`, or makes one.
    pub(crate) fn open(root: &Path, cap: u64) -> io::Result<Self> {
        files::private_folder(root)?;
        let current = root.join("current");
        let noted = files::read(&current)?;
        let id = match noted.as_deref().map(hex_id) {
            Some(Some(id)) => id,
            // Also where it is missing: what is in a spool must not go with it.
            noted if noted.is_some() || !spools(root)?.is_empty() => {
                let id = only_one(root, &current)?;
                tracing::error!(path = %current.display(), "damaged or missing; the only spool there is goes on");
                files::write_atomic(&current, hex::encode(id).as_bytes())?;
                id
            }
            _ => {
                let id: [u8; 16] = rand::random();
                files::private_folder(&root.join(hex::encode(id)))?;
                files::write_atomic(&current, hex::encode(id).as_bytes())?;
                id
            }
        };
        let folder = root.join(hex::encode(id));
        files::private_folder(&folder)?;
        let mut spool = Self {
            root: root.to_owned(),
            folder,
            id,
            batches: Vec::new(),
            next: 1,
            durable: 0,
            cap,
        };
        spool.forget_others();
        spool.scan()?;
        Ok(spool)
    }

    /// Removes spools that are not in use: half made, or left behind.
    fn forget_others(&self) {
        let Ok(entries) = fs::read_dir(&self.root) else {
            return;
        };
        for entry in entries.flatten() {
            if entry.path() != self.folder && entry.path().is_dir() {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }

    fn scan(&mut self) -> io::Result<()> {
        let mut found = Vec::new();
        let mut damaged = 0;
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            let name = entry.file_name();
            let Some(stored) = name.to_str().and_then(|name| {
                let (numbers, kind) = name.split_once('.')?;
                let (first, last) = numbers.split_once('-')?;
                let (first, last) = (first.parse().ok()?, last.parse().ok()?);
                // There is always a next number.
                if first == 0 || first > last || last == u64::MAX {
                    return None;
                }
                Some(Stored {
                    first,
                    last,
                    size: entry.metadata().ok()?.len(),
                    sent: match kind {
                        "batch" => false,
                        "sent" => true,
                        _ => return None,
                    },
                })
            }) else {
                let path = entry.path();
                if path.extension().is_some_and(|kind| kind == "tmp") {
                    // Half written.
                    let _ = fs::remove_file(path);
                } else {
                    damaged = damaged.max(last_of_damaged(&path).unwrap_or(0));
                }
                continue;
            };
            // Numbers written in another way are not found again by them.
            if self.path(&stored) == entry.path() {
                found.push(stored);
            }
        }
        // A merge that was cut short left its parts beside it: the widest counts.
        found.sort_by_key(|stored| (stored.first, std::cmp::Reverse(stored.last)));
        for stored in found {
            match self.batches.last() {
                Some(before) if stored.last <= before.last => {
                    let _ = fs::remove_file(self.path(&stored));
                }
                _ => self.batches.push(stored),
            }
        }
        // A number that was given out is not given out again.
        let newest = self.batches.last().map_or(0, |newest| newest.last);
        self.next = newest.max(damaged) + 1;
        self.set_damaged_aside()
    }

    /// Keeps the agent from stumbling over a batch that cannot be read: its numbers are a gap from
    /// here on, which the master is told of.
    fn set_damaged_aside(&mut self) -> io::Result<()> {
        for stored in self.batches.clone() {
            match self
                .read(&stored)
                .and_then(|batch| checked(&stored, &batch))
            {
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    self.set_aside(&stored, &error)?;
                }
                Err(error) => return Err(error),
                Ok(_) => {}
            }
        }
        Ok(())
    }

    fn set_aside(&mut self, stored: &Stored, error: &io::Error) -> io::Result<()> {
        tracing::error!(%error, "batch is set aside");
        let path = self.path(stored);
        fs::rename(&path, path.with_extension("damaged"))?;
        self.batches.retain(|one| one != stored);
        Ok(())
    }

    pub(crate) fn id(&self) -> [u8; 16] {
        self.id
    }

    pub(crate) fn durable(&self) -> u64 {
        self.durable
    }

    /// Batches and bytes that the master has not acknowledged.
    pub(crate) fn waiting(&self) -> (u64, u64) {
        let waiting = self.batches.iter().filter(|one| one.last > self.durable);
        waiting.fold((0, 0), |(batches, bytes), one| {
            (batches + 1, bytes + one.size)
        })
    }

    /// Reads the batches that are here, oldest first, each when it is asked for: together they may be larger than memory.
    pub(crate) fn contents(&self) -> impl Iterator<Item = io::Result<TrafficBatch>> {
        let batches = self.batches.iter();
        batches.map(|stored| decode(&self.read(stored)?))
    }

    /// Appends what was counted between two cuts. When this returns, it survives a power cut;
    /// when it fails, nothing was appended.
    pub(crate) fn append(
        &mut self,
        users: Vec<UserTraffic>,
        from: SystemTime,
        to: SystemTime,
    ) -> io::Result<()> {
        let batch = TrafficBatch {
            spool_id: self.id.to_vec().into(),
            first_seq: self.next,
            last_seq: self.next,
            from: Some(from.into()),
            to: Some(to.into()),
            users,
        };
        let stored = write(&self.folder, &batch)?;
        self.batches.push(stored);
        self.next += 1;
        if self.waiting().1 > self.cap {
            self.merge();
        }
        Ok(())
    }

    /// Merges neighbours that were never sent until the spool is below its cap. What cannot be
    /// merged stays: nothing is ever dropped.
    fn merge(&mut self) {
        let mut at = 0;
        while self.waiting().1 > self.cap && at + 1 < self.batches.len() {
            let (one, two) = (self.batches[at], self.batches[at + 1]);
            if one.sent || two.sent || two.last <= self.durable {
                at += 1;
                continue;
            }
            match self.merge_two(&one, &two) {
                Ok(Some(merged)) => {
                    let _ = fs::remove_file(self.path(&one));
                    let _ = fs::remove_file(self.path(&two));
                    self.batches.splice(at..=at + 1, [merged]);
                    // Its neighbour next, so that no batch grows over all others.
                    at += 1;
                    if at + 1 >= self.batches.len() {
                        at = 0;
                        if !self.can_merge() {
                            break;
                        }
                    }
                }
                Ok(None) => at += 1,
                Err(error) => {
                    tracing::warn!(%error, "batches not merged");
                    break;
                }
            }
        }
    }

    /// Whether a pass over the spool could still find a pair that is worth merging.
    fn can_merge(&self) -> bool {
        let pairs = self.batches.windows(2);
        pairs
            .filter(|pair| !pair[0].sent && !pair[1].sent)
            .any(|pair| pair[0].size + pair[1].size < MERGED_MAX)
    }

    fn merge_two(&self, one: &Stored, two: &Stored) -> io::Result<Option<Stored>> {
        if one.size + two.size >= MERGED_MAX {
            return Ok(None);
        }
        let (one, two) = (decode(&self.read(one)?)?, decode(&self.read(two)?)?);
        let merged = merged(one, two);
        if merged.users.len() > USERS_MAX {
            return Ok(None);
        }
        write(&self.folder, &merged).map(Some)
    }

    /// Returns the first batch that the master lacks, marked as sent. One that was damaged meanwhile is set aside.
    pub(crate) fn next(&mut self) -> io::Result<Option<Outgoing>> {
        let durable = self.durable;
        let (at, batch) = loop {
            let Some(at) = self.batches.iter().position(|one| one.last > durable) else {
                return Ok(None);
            };
            let stored = self.batches[at];
            match self.read(&stored) {
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    self.set_aside(&stored, &error)?;
                }
                batch => break (at, batch?),
            }
        };
        if !self.batches[at].sent {
            let before = self.path(&self.batches[at]);
            let mut stored = self.batches[at];
            stored.sent = true;
            let after = self.path(&stored);
            fs::rename(before, &after)?;
            files::sync_folder(&after)?;
            self.batches[at] = stored;
        }
        Ok(Some(Outgoing {
            first: self.batches[at].first,
            last: self.batches[at].last,
            crc32c: crc32c::crc32c(&batch),
            batch,
        }))
    }

    /// Notes what the master has committed, and forgets it here but for the newest batch.
    pub(crate) fn acknowledged(&mut self, durable: u64) {
        self.durable = self.durable.max(durable);
        let newest = self.batches.last().copied();
        let (gone, kept): (Vec<_>, Vec<_>) = self
            .batches
            .iter()
            .partition(|one| one.last <= self.durable && Some(**one) != newest);
        for stored in gone {
            // What stays is found again and acknowledged again.
            let _ = fs::remove_file(self.path(stored));
        }
        self.batches = kept.into_iter().copied().collect();
    }

    /// Takes the master's cursor over where something can be sent from it: also over a gap, which
    /// a master that was restored from a backup may record and step over. `false` when nothing
    /// here can follow it.
    pub(crate) fn rewind(&mut self, cursor: u64, moved_at: Option<SystemTime>) -> bool {
        if !self.never_sent(cursor, moved_at).is_empty() {
            return false;
        }
        let follows = match self.batches.iter().find(|one| one.last > cursor) {
            Some(batch) => batch.first > cursor,
            None => cursor < self.next,
        };
        if follows {
            self.durable = cursor;
            self.acknowledged(cursor);
        }
        follows
    }

    /// Returns batches that the master cannot have although it has their numbers: they were never sent, and cut after
    /// its cursor moved last. This disk is an earlier state of the one that sent those.
    fn never_sent(&self, cursor: u64, moved_at: Option<SystemTime>) -> Vec<Stored> {
        let Some(moved_at) = moved_at else {
            return Vec::new();
        };
        let unsent = self
            .batches
            .iter()
            .filter(|one| !one.sent && one.first <= cursor);
        let is_later = |one: &&Stored| {
            let batch = self.read(one).and_then(|batch| decode(&batch));
            let cut = batch.ok().and_then(|batch| moment(batch.to.as_ref()));
            cut.is_some_and(|cut| cut > moved_at)
        };
        unsent.filter(is_later).copied().collect()
    }

    /// Compares with the master's cursor. When they cannot go on from there, because the master
    /// was restored from a backup or this disk was, starts a new spool with what the master lacks. `moved_at` is when the
    /// cursor moved last.
    pub(crate) fn resync(
        &mut self,
        cursor: u64,
        moved_at: Option<SystemTime>,
    ) -> io::Result<Resync> {
        let never_sent = self.never_sent(cursor, moved_at);
        let fits = match self.first_missing(cursor) {
            _ if !never_sent.is_empty() => false,
            Some(batch) => batch.first == cursor + 1,
            None => cursor < self.next,
        };
        if fits {
            self.durable = cursor;
            self.acknowledged(cursor);
            return Ok(Resync::Fits);
        }
        self.set_damaged_aside()?;
        let first_missing = self.first_missing(cursor);
        let lost = first_missing.map_or(0, |batch| batch.first.saturating_sub(cursor + 1));
        // A batch that reaches over the cursor is in part there: never billed twice.
        let missing: Vec<_> = self
            .batches
            .iter()
            .filter(|one| one.first > cursor || never_sent.contains(one))
            .collect();
        let id: [u8; 16] = rand::random();
        let folder = self.root.join(hex::encode(id));
        let batches = match self.copied(&missing, id, &folder) {
            Ok(batches) => batches,
            Err(error) => {
                // It may hold the space that is missing; not where it is noted already, and only that is not certain to last.
                let noted = files::read(&self.root.join("current"));
                if noted.is_ok_and(|noted| noted.as_deref().and_then(hex_id) != Some(id)) {
                    let _ = fs::remove_dir_all(&folder);
                }
                return Err(error);
            }
        };
        self.next = batches.len() as u64 + 1;
        (self.id, self.folder, self.batches, self.durable) = (id, folder, batches, 0);
        self.forget_others();
        Ok(Resync::Restarted { lost })
    }

    fn first_missing(&self, cursor: u64) -> Option<Stored> {
        self.batches.iter().find(|one| one.last > cursor).copied()
    }

    /// Writes batches into a new spool, numbered anew, and notes that it is the one in use.
    fn copied(&self, batches: &[&Stored], id: [u8; 16], folder: &Path) -> io::Result<Vec<Stored>> {
        files::private_folder(folder)?;
        let mut copies = Vec::new();
        for stored in batches {
            let mut batch = decode(&self.read(stored)?)?;
            let seq = copies.len() as u64 + 1;
            (batch.first_seq, batch.last_seq) = (seq, seq);
            batch.spool_id = id.to_vec().into();
            copies.push(write(folder, &batch)?);
        }
        files::sync_folder(folder)?;
        // From here on the new spool counts.
        files::write_atomic(&self.root.join("current"), hex::encode(id).as_bytes())?;
        Ok(copies)
    }

    fn path(&self, stored: &Stored) -> PathBuf {
        path_of(&self.folder, stored)
    }

    /// Reads an encoded batch and checks it.
    fn read(&self, stored: &Stored) -> io::Result<Vec<u8>> {
        let path = self.path(stored);
        let mut bytes = fs::read(&path)?;
        if body(&bytes).is_none() {
            let text = format!("{}: damaged batch", path.display());
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        bytes.drain(..HEAD);
        Ok(bytes)
    }
}

/// The encoded batch in a file; `None` when the file is damaged.
pub(super) fn body(file: &[u8]) -> Option<&[u8]> {
    let (head, batch) = file.split_at_checked(HEAD)?;
    let crc = crc32c::crc32c(batch).to_le_bytes();
    (head[..4] == *MAGIC && head[4..] == crc).then_some(batch)
}

/// A merged batch does not grow beyond this, in bytes.
const MERGED_MAX: u64 = 2 << 20;

fn path_of(folder: &Path, stored: &Stored) -> PathBuf {
    let kind = if stored.sent { "sent" } else { "batch" };
    folder.join(format!("{:020}-{:020}.{kind}", stored.first, stored.last))
}

fn write(folder: &Path, batch: &TrafficBatch) -> io::Result<Stored> {
    let bytes = file(&batch.encode_to_vec());
    let stored = Stored {
        first: batch.first_seq,
        last: batch.last_seq,
        size: bytes.len() as u64,
        sent: false,
    };
    files::write_atomic(&path_of(folder, &stored), &bytes)?;
    Ok(stored)
}

/// The file of an encoded batch.
pub(super) fn file(batch: &[u8]) -> Vec<u8> {
    let crc = crc32c::crc32c(batch).to_le_bytes();
    [MAGIC.as_slice(), &crc, batch].concat()
}

fn decode(batch: &[u8]) -> io::Result<TrafficBatch> {
    TrafficBatch::decode(batch).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Checks that a file holds what its name says.
fn checked(stored: &Stored, batch: &[u8]) -> io::Result<()> {
    let batch = decode(batch)?;
    if (batch.first_seq, batch.last_seq) == (stored.first, stored.last) {
        return Ok(());
    }
    let text = format!(
        "the file of batches {} to {} holds {} to {}",
        stored.first, stored.last, batch.first_seq, batch.last_seq
    );
    Err(io::Error::new(io::ErrorKind::InvalidData, text))
}

/// Returns the ids of the spools in a folder.
fn spools(root: &Path) -> io::Result<Vec<[u8; 16]>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        if entry.path().is_dir()
            && let Some(id) = entry
                .file_name()
                .to_str()
                .and_then(|name| hex_id(name.as_bytes()))
        {
            found.push(id);
        }
    }
    Ok(found)
}

/// Returns the only spool in a folder whose note of it cannot be read.
fn only_one(root: &Path, current: &Path) -> io::Result<[u8; 16]> {
    let found = spools(root)?;
    match found.as_slice() {
        [id] => Ok(*id),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!(
                "{}: no spool id; write the name of the folder beside it that is to be delivered into it, or remove \
                 it if there is none ({} are there)",
                current.display(),
                found.len()
            ),
        )),
    }
}

/// Returns the last number of a batch that was set aside.
fn last_of_damaged(path: &Path) -> Option<u64> {
    let kind = path.extension()?;
    let (_, last) = path.file_stem()?.to_str()?.split_once('-')?;
    let last = last.parse::<u64>().ok()?;
    (kind == "damaged" && last < u64::MAX).then_some(last)
}

fn hex_id(text: &[u8]) -> Option<[u8; 16]> {
    let mut id = [0; 16];
    hex::decode_to_slice(text.trim_ascii(), &mut id).ok()?;
    Some(id)
}

/// Adds two neighbours up.
pub(super) fn merged(one: TrafficBatch, two: TrafficBatch) -> TrafficBatch {
    let mut users: std::collections::BTreeMap<u64, UserTraffic> = one
        .users
        .into_iter()
        .map(|user| (user.user_id, user))
        .collect();
    for newer in two.users {
        match users.entry(newer.user_id) {
            std::collections::btree_map::Entry::Vacant(entry) => {
                entry.insert(newer);
            }
            std::collections::btree_map::Entry::Occupied(mut entry) => {
                let older = entry.get_mut();
                let mut leases = std::mem::take(&mut older.leases);
                for used in newer.leases {
                    match leases.iter_mut().find(|one| one.lease_id == used.lease_id) {
                        Some(known) => {
                            let sum = known.billed_bytes.saturating_add(used.billed_bytes);
                            known.billed_bytes = sum;
                        }
                        None => leases.push(used),
                    }
                }
                *older = UserTraffic {
                    tx: older.tx.saturating_add(newer.tx),
                    rx: older.rx.saturating_add(newer.rx),
                    leases,
                    ..newer
                };
            }
        }
    }
    TrafficBatch {
        last_seq: two.last_seq,
        to: two.to,
        users: users.into_values().collect(),
        spool_id: one.spool_id,
        first_seq: one.first_seq,
        from: one.from,
    }
}

#[cfg(test)]
#[path = "spool_tests.rs"]
mod tests;
