//! What users moved: counted in cells that outlive the process, cut into numbered batches, sent
//! until the master has committed them. Every byte arrives exactly once.
//!
//! A cut reads the cells, writes the difference to the cut before as a batch, and then notes in
//! the cells what is spooled. Killed in between, the batch itself says what it holds: at the next
//! start the cells catch up with it.

mod cells;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod spool;

use std::{io, path::Path, sync::Arc, time::SystemTime};

use hy2_proto::control::rpc::UserTraffic;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

pub use cells::Cell;
pub(crate) use cells::{Cells, lock};
pub(crate) use spool::{Outgoing, Resync};
use spool::{Spool, USERS_MAX};

use crate::{clock::Clock, leases::Intervals};

/// Counters and spool of a node.
#[derive(Debug)]
pub(crate) struct Traffic {
    pub(crate) cells: Cells,
    spool: Mutex<Spool>,
    last_cut: Mutex<SystemTime>,
    /// When the counters that were found here were last counted up, and so when what is not cut of them passed at the latest.
    found: SystemTime,
    clock: Arc<dyn Clock>,
    /// Something waits in the spool.
    pub(crate) spooled: Notify,
}

/// What waits for the master.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Waiting {
    pub(crate) spool_id: [u8; 16],
    pub(crate) durable: u64,
    pub(crate) batches: u64,
    pub(crate) bytes: u64,
}

/// Nothing is cut while it lives.
#[derive(Debug)]
pub(crate) struct NoCut<'a> {
    _spool: Option<MutexGuard<'a, Spool>>,
}

#[cfg(any(test, feature = "fuzzing"))]
impl NoCut<'_> {
    /// Where there are no counters that could be cut.
    pub(crate) const NO_COUNTERS: Self = Self { _spool: None };
}

impl Traffic {
    /// Opens cells and spool in `folder`.
    pub(crate) fn open(folder: &Path, cap: u64, clock: Arc<dyn Clock>) -> io::Result<Self> {
        let now = clock.now();
        let found = cells::changed(folder)?.map_or(now, |changed| changed.min(now));
        let cells = Cells::open(folder)?;
        let spool = Spool::open(&folder.join("spool"), cap)?;
        for batch in spool.contents() {
            for row in &batch?.users {
                cells.of(row.user_id)?.raise(row.total_tx, row.total_rx);
            }
        }
        Ok(Self {
            cells,
            spool: Mutex::new(spool),
            last_cut: Mutex::new(found),
            found,
            clock,
            spooled: Notify::new(),
        })
    }

    /// Writes what was counted since the cut before into the spool and returns for how many users.
    /// Blocks.
    ///
    /// # Errors
    ///
    /// When the disk does not take it: nothing is lost, the next cut has it.
    pub(crate) fn cut(&self, leases: &dyn Intervals) -> io::Result<usize> {
        self.cut_until(leases, self.clock.now())
    }

    /// As [`Self::cut`], of what an earlier process left uncut; to be called before anything is counted. Its batch is of when
    /// it passed: on a disk that was set back, the master has these bytes already, and sees it by that.
    pub(crate) fn cut_found(&self, leases: &dyn Intervals) -> io::Result<usize> {
        self.cut_until(leases, self.found)
    }

    fn cut_until(&self, leases: &dyn Intervals, to: SystemTime) -> io::Result<usize> {
        let mut spool = self.spool.lock();
        let from = *self.last_cut.lock();
        let mut rows: Vec<(Cell, UserTraffic)> = Vec::new();
        for (user, cell) in self.cells.all() {
            let (mut total_tx, mut total_rx) = (cell.tx(), cell.rx());
            let (spooled_tx, spooled_rx) = cell.spooled();
            // A damaged counter file may say that more was cut than counted: nothing is billed
            // until it was.
            let mut tx = total_tx.saturating_sub(spooled_tx);
            let mut rx = total_rx.saturating_sub(spooled_rx);
            let total = total_tx.saturating_add(total_rx);
            // The rest is in the next cut.
            let rest = total - leases.complete(user, total).min(total);
            let (of_rx, of_tx) = (rest.min(rx), rest.saturating_sub(rx).min(tx));
            (tx, rx) = (tx - of_tx, rx - of_rx);
            (total_tx, total_rx) = (total_tx - of_tx, total_rx - of_rx);
            if tx == 0 && rx == 0 {
                continue;
            }
            let before = spooled_tx.saturating_add(spooled_rx);
            let row = UserTraffic {
                user_id: user,
                tx,
                rx,
                total_tx,
                total_rx,
                leases: leases.used(user, before, total_tx.saturating_add(total_rx)),
                last_seen: Some(to.into()),
            };
            rows.push((cell, row));
        }
        let count = rows.len();
        if count > 0 {
            // What the batch says was counted must not be less on the disk after a power cut.
            self.cells.flush()?;
        }
        rows.sort_by_key(|(_, row)| row.user_id);
        for rows in rows.chunks(USERS_MAX) {
            let batch = rows.iter().map(|(_, row)| row.clone()).collect();
            spool.append(batch, from, to)?;
            for (cell, row) in rows {
                cell.set_spooled(row.total_tx, row.total_rx);
            }
        }
        *self.last_cut.lock() = to;
        if count > 0 {
            self.spooled.notify_one();
        }
        Ok(count)
    }

    /// Lets nothing be cut while the result lives.
    pub(crate) fn no_cut(&self) -> NoCut<'_> {
        NoCut {
            _spool: Some(self.spool.lock()),
        }
    }

    /// Returns how far a user's counter is in the spool.
    pub(crate) fn spooled_total(&self, user: u64) -> u64 {
        self.cells.of(user).map_or(0, |cell| {
            let (tx, rx) = cell.spooled();
            tx.saturating_add(rx)
        })
    }

    /// Returns the first batch that the master lacks. Blocks.
    pub(crate) fn next(&self) -> io::Result<Option<Outgoing>> {
        self.spool.lock().next()
    }

    /// Notes what the master has committed. Blocks.
    pub(crate) fn acknowledged(&self, durable: u64) {
        self.spool.lock().acknowledged(durable);
    }

    /// Takes the master's cursor over, which moved last at `moved_at`, or starts a new spool where nothing follows it.
    /// Blocks.
    pub(crate) fn rewind(&self, cursor: u64, moved_at: Option<SystemTime>) -> io::Result<Resync> {
        let mut spool = self.spool.lock();
        if spool.rewind(cursor, moved_at) {
            return Ok(Resync::Fits);
        }
        spool.resync(cursor, moved_at)
    }

    /// Writes what was counted to the disk. Blocks.
    pub(crate) fn flush(&self) -> io::Result<()> {
        self.cells.flush()
    }

    /// Compares with the master's cursor. Blocks.
    pub(crate) fn resync(&self, cursor: u64) -> io::Result<Resync> {
        self.spool.lock().resync(cursor, None)
    }

    pub(crate) fn waiting(&self) -> Waiting {
        let spool = self.spool.lock();
        let (batches, bytes) = spool.waiting();
        Waiting {
            spool_id: spool.id(),
            durable: spool.durable(),
            batches,
            bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use hy2_proto::control::rpc::{LeaseUse, TrafficBatch};
    use prost::Message;

    use super::*;
    use crate::{clock::SystemClock, leases::Leases};

    /// Ends every user's slice at one place of the counter.
    struct Until(u64);

    impl Intervals for Until {
        fn complete(&self, _: u64, total: u64) -> u64 {
            self.0.min(total)
        }

        fn used(&self, _: u64, from: u64, to: u64) -> Vec<LeaseUse> {
            vec![LeaseUse {
                lease_id: 1,
                billed_bytes: to - from,
            }]
        }
    }

    #[test]
    fn what_waits_for_a_slice_is_in_a_later_cut() {
        let folder = tempfile::tempdir().unwrap();
        let traffic = Traffic::open(folder.path(), 1 << 20, Arc::new(SystemClock)).unwrap();
        let cell = traffic.cells.of(1).unwrap();
        let mut cuts = Vec::new();
        for (tx, rx, until) in [
            (70, 50, 100),
            (0, 0, 100),
            (5, 5, 60),
            (0, 0, 125),
            (0, 0, 999),
        ] {
            cell.add_tx(tx);
            cell.add_rx(rx);
            if traffic.cut(&Until(until)).unwrap() > 0 {
                let row = traffic
                    .spool
                    .lock()
                    .contents()
                    .last()
                    .unwrap()
                    .unwrap()
                    .users[0]
                    .clone();
                cuts.push((row.tx, row.rx, row.leases[0].billed_bytes));
                assert_eq!(traffic.spooled_total(1), row.total_tx + row.total_rx);
            }
        }
        assert_eq!(cuts, [(70, 30, 100), (5, 20, 25), (0, 5, 5)]);
        // A new start finds the same.
        drop(traffic);
        let traffic = Traffic::open(folder.path(), 1 << 20, Arc::new(SystemClock)).unwrap();
        assert_eq!(traffic.cut(&Until(999)).unwrap(), 0);
        assert_eq!(traffic.spooled_total(1), 130);
    }

    #[test]
    fn what_a_set_back_disk_had_not_cut_is_not_billed_twice() {
        let (folder, earlier) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let open = |folder: &Path| Traffic::open(folder, 1 << 20, Arc::new(SystemClock)).unwrap();
        let no_end = Until(u64::MAX);
        let mut billed = 0;
        let mut deliver = |traffic: &Traffic| {
            while let Some(outgoing) = traffic.next().unwrap() {
                let batch = TrafficBatch::decode(&*outgoing.batch).unwrap();
                billed += batch.users.iter().map(|row| row.tx).sum::<u64>();
                traffic.acknowledged(outgoing.last);
            }
            (billed, traffic.waiting().durable)
        };
        let traffic = open(folder.path());
        traffic.cells.of(1).unwrap().add_tx(100);
        traffic.cut(&no_end).unwrap();
        assert_eq!(deliver(&traffic), (100, 1));
        traffic.cells.of(1).unwrap().add_tx(20);
        let copied = std::process::Command::new("cp")
            .arg("-a")
            .args([folder.path().join("."), earlier.path().to_owned()])
            .status();
        assert!(copied.unwrap().success());
        traffic.cells.of(1).unwrap().add_tx(5);
        traffic.cut(&no_end).unwrap();
        assert_eq!(deliver(&traffic), (125, 2));
        let moved_at = SystemTime::now();
        drop(traffic);
        // The earlier state goes on: 20 are not cut there.
        let traffic = open(earlier.path());
        traffic.cut_found(&no_end).unwrap();
        traffic.cells.of(1).unwrap().add_tx(7);
        traffic.cut(&no_end).unwrap();
        traffic.rewind(2, Some(moved_at)).unwrap();
        assert_eq!(deliver(&traffic), (132, 3));
    }

    #[test]
    fn what_a_killed_process_had_not_cut_is_billed() {
        let folder = tempfile::tempdir().unwrap();
        let open = || Traffic::open(folder.path(), 1 << 20, Arc::new(SystemClock)).unwrap();
        let traffic = open();
        traffic.cells.of(1).unwrap().add_tx(100);
        drop(traffic);
        let traffic = open();
        assert_eq!(traffic.cut_found(&Until(u64::MAX)).unwrap(), 1);
        assert_eq!(traffic.rewind(0, None).unwrap(), Resync::Fits);
        let batch = traffic.next().unwrap().unwrap().batch;
        let batch = TrafficBatch::decode(&*batch).unwrap();
        assert_eq!(batch.users[0].tx, 100);
    }

    #[test]
    fn counters_that_were_cut_beyond_what_was_counted_are_not_billed() {
        let folder = tempfile::tempdir().unwrap();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let leases = Leases::open(folder.path(), Arc::clone(&clock)).unwrap();
        let traffic = Traffic::open(folder.path(), 1 << 20, clock).unwrap();
        let cell = traffic.cells.of(1).unwrap();
        cell.add_tx(10);
        cell.set_spooled(1000, u64::MAX);
        assert_eq!(traffic.cut(&leases).unwrap(), 0);
        assert_eq!(traffic.spooled_total(1), u64::MAX);
        cell.add_tx(995);
        assert_eq!(traffic.cut(&leases).unwrap(), 1);
        let batch = traffic.spool.lock().contents().next().unwrap().unwrap();
        assert_eq!((batch.users[0].tx, batch.users[0].rx), (5, 0));
    }
}
