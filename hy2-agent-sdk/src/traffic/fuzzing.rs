//! The spool, for the fuzz targets.

use std::{io, path::Path, time::UNIX_EPOCH};

use hy2_proto::control::rpc::{TrafficBatch, UserTraffic};
use prost::Message;

use super::spool::{self, Resync, Spool};

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
        self.0.contents()
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
