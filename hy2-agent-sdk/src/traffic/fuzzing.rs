//! The spool and the counters, for the fuzz targets.

use std::{io, path::Path, time::UNIX_EPOCH};

use hy2_proto::control::rpc::{TrafficBatch, UserTraffic};
use prost::Message;

use super::{
    cells::{Cell, Cells},
    spool::{self, Resync, Spool},
};

/// Reads the batch in a file; `None` when the file is damaged.
pub fn batch(file: &[u8]) -> Option<TrafficBatch> {
    TrafficBatch::decode(spool::body(file)?).ok()
}

/// Makes the file of an encoded batch.
pub fn file(batch: &[u8]) -> Vec<u8> {
    spool::file(batch)
}

/// Adds two neighbours up.
pub fn merged(one: TrafficBatch, two: TrafficBatch) -> TrafficBatch {
    spool::merged(one, two)
}

/// The batches of a node.
#[derive(Debug)]
pub struct Batches(Spool);

impl Batches {
    /// Opens or makes them.
    ///
    /// # Errors
    ///
    /// Those of the disk, and what of the folder is not understood.
    pub fn open(root: &Path, cap: u64) -> io::Result<Self> {
        Spool::open(root, cap).map(Self)
    }

    /// See `Spool::contents`.
    ///
    /// # Errors
    ///
    /// Those of the disk.
    pub fn contents(&self) -> io::Result<Vec<TrafficBatch>> {
        self.0.contents().collect()
    }

    /// Appends one batch.
    ///
    /// # Errors
    ///
    /// Those of the disk.
    pub fn append(&mut self, users: Vec<UserTraffic>) -> io::Result<()> {
        self.0.append(users, UNIX_EPOCH, UNIX_EPOCH)
    }

    /// Returns the encoded batch that the master lacks.
    ///
    /// # Errors
    ///
    /// Those of the disk.
    pub fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        Ok(self.0.next()?.map(|outgoing| outgoing.batch))
    }

    /// See `Spool::acknowledged`.
    pub fn acknowledged(&mut self, durable: u64) {
        self.0.acknowledged(durable);
    }

    /// See `Spool::rewind`.
    pub fn rewind(&mut self, cursor: u64) -> bool {
        self.0.rewind(cursor, None)
    }

    /// Returns how many batches were lost, where a new spool was made.
    ///
    /// # Errors
    ///
    /// Those of the disk.
    pub fn resync(&mut self, cursor: u64) -> io::Result<Option<u64>> {
        self.0.resync(cursor, None).map(|resync| match resync {
            Resync::Fits => None,
            Resync::Restarted { lost } => Some(lost),
        })
    }

    /// Batches and bytes that the master has not acknowledged.
    pub fn waiting(&self) -> (u64, u64) {
        self.0.waiting()
    }

    /// What the master has committed.
    pub fn durable(&self) -> u64 {
        self.0.durable()
    }

    /// The name of this spool.
    pub fn id(&self) -> [u8; 16] {
        self.0.id()
    }
}

/// The counters of a node.
#[derive(Debug)]
pub struct Counters(Cells);

impl Counters {
    /// Bytes of a file.
    pub const FILE: usize = super::cells::FILE_BYTES;

    /// Opens or makes them.
    ///
    /// # Errors
    ///
    /// Those of the disk.
    pub fn open(folder: &Path) -> io::Result<Self> {
        Cells::open(folder).map(Self)
    }

    /// Counts bytes of a user as a relay does.
    ///
    /// # Errors
    ///
    /// Those of the disk.
    pub fn count(&self, user: u64, tx: u64, rx: u64) -> io::Result<()> {
        let cell = self.0.of(user)?;
        cell.add_tx(tx);
        cell.add_rx(rx);
        Ok(())
    }

    /// Notes what is in the spool.
    ///
    /// # Errors
    ///
    /// Those of the disk.
    pub fn set_spooled(&self, user: u64, tx: u64, rx: u64) -> io::Result<()> {
        self.0.of(user).map(|cell| cell.set_spooled(tx, rx))
    }

    /// See `Cell::raise`.
    ///
    /// # Errors
    ///
    /// Those of the disk.
    pub fn raise(&self, user: u64, tx: u64, rx: u64) -> io::Result<()> {
        self.0.of(user).map(|cell| cell.raise(tx, rx))
    }

    /// Both ways, and what of it is in the spool, of all users.
    pub fn all(&self) -> Vec<(u64, [u64; 4])> {
        let figures = |cell: &Cell| {
            let (tx, rx) = cell.spooled();
            [cell.tx(), cell.rx(), tx, rx]
        };
        let all = self.0.all().into_iter();
        all.map(|(user, cell)| (user, figures(&cell))).collect()
    }

    /// See `Cells::totals`.
    pub fn totals(&self) -> (u64, u64) {
        self.0.totals()
    }
}
