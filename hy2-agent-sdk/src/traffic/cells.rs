//! Counters in files that are mapped into memory: what was counted survives the process, however
//! it ends.
//!
//! A cell is one cache line: the user, bytes both ways since the spool was made, and how much of
//! them is in the spool already. Cells are never given to another user. The files are written in
//! full before they are mapped, so a full disk cannot turn into a fault while counting.
#![allow(
    unsafe_code,
    reason = "mapping a file, and reading it as atomics, has no safe form; the two uses are here"
)]

use std::{
    collections::HashMap,
    fmt,
    fs::{self, File, OpenOptions},
    io,
    path::{Path, PathBuf},
    slice,
    sync::{
        Arc,
        atomic::{
            AtomicU64,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
    time::SystemTime,
};

use memmap2::{MmapOptions, MmapRaw};
use parking_lot::RwLock;

use crate::files;

const WORDS: usize = 8;
const CELL_BYTES: usize = WORDS * 8;
/// Cells of one file; the first is its header.
const CELLS: usize = 8192;
pub(super) const FILE_BYTES: usize = CELLS * CELL_BYTES;
const MAGIC: u64 = u64::from_ne_bytes(*b"hy2cell1");

/// One mapped file.
struct Segment {
    map: MmapRaw,
}

impl Segment {
    fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let damaged = || io::Error::new(io::ErrorKind::InvalidData, "damaged counter file");
        if file.metadata()?.len() != FILE_BYTES as u64 {
            return Err(damaged());
        }
        let segment = Self {
            map: MmapOptions::new().len(FILE_BYTES).map_raw(&file)?,
        };
        if segment.words()[0].load(Acquire) != MAGIC {
            return Err(damaged());
        }
        Ok(segment)
    }

    /// Writes every byte of a new file, so that its blocks are there.
    fn create(path: &Path) -> io::Result<Self> {
        let mut bytes = vec![0; FILE_BYTES];
        bytes[..8].copy_from_slice(&MAGIC.to_ne_bytes());
        files::write_atomic(path, &bytes)?;
        Self::open(path)
    }

    fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is aligned to a page and `FILE_BYTES` long for as long as `self`
        // lives. The file keeps its length: this agent holds the folder's lock and never shortens
        // it. All access, here and in the kernel, is to memory that is shared; every access of
        // ours goes through these atomics.
        unsafe { slice::from_raw_parts(self.map.as_ptr().cast::<AtomicU64>(), FILE_BYTES / 8) }
    }
}

/// One user's counters. Cheap to clone; clones are one.
#[derive(Clone)]
pub struct Cell {
    segment: Arc<Segment>,
    at: usize,
}

impl fmt::Debug for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cell")
            .field("user", &self.word(0).load(Relaxed))
            .field("tx", &self.tx())
            .field("rx", &self.rx())
            .finish()
    }
}

impl Cell {
    fn word(&self, word: usize) -> &AtomicU64 {
        &self.segment.words()[self.at * WORDS + word]
    }

    /// Counts bytes client → target.
    pub fn add_tx(&self, bytes: u64) {
        self.word(1).fetch_add(bytes, Relaxed);
    }

    /// Counts bytes target → client.
    pub fn add_rx(&self, bytes: u64) {
        self.word(2).fetch_add(bytes, Relaxed);
    }

    /// Returns bytes client → target since the spool was made.
    pub fn tx(&self) -> u64 {
        self.word(1).load(Relaxed)
    }

    /// Returns bytes target → client since the spool was made.
    pub fn rx(&self) -> u64 {
        self.word(2).load(Relaxed)
    }

    /// Returns both together.
    pub fn total(&self) -> u64 {
        self.tx().wrapping_add(self.rx())
    }

    /// What of it is in the spool, `(tx, rx)`.
    pub(super) fn spooled(&self) -> (u64, u64) {
        (self.word(3).load(Relaxed), self.word(4).load(Relaxed))
    }

    pub(super) fn set_spooled(&self, tx: u64, rx: u64) {
        self.word(3).store(tx, Relaxed);
        self.word(4).store(rx, Relaxed);
    }

    /// Brings the cell up to what the spool says was counted and cut: behind it only after the
    /// power went.
    pub(super) fn raise(&self, tx: u64, rx: u64) {
        self.word(1).fetch_max(tx, Relaxed);
        self.word(2).fetch_max(rx, Relaxed);
        self.word(3).fetch_max(tx, Relaxed);
        self.word(4).fetch_max(rx, Relaxed);
    }
}

/// All cells of a node.
pub(crate) struct Cells {
    folder: PathBuf,
    inner: RwLock<Inner>,
}

#[derive(Default)]
struct Inner {
    segments: Vec<Arc<Segment>>,
    index: HashMap<u64, Cell>,
    /// Next cell of the last segment.
    next: usize,
}

impl fmt::Debug for Cells {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cells")
            .field("users", &self.inner.read().index.len())
            .finish_non_exhaustive()
    }
}

impl Cells {
    /// Opens the cells in `folder`. A damaged file is set aside.
    pub(crate) fn open(folder: &Path) -> io::Result<Self> {
        let mut inner = Inner::default();
        for number in 0.. {
            let path = file_of(folder, number);
            if !path.exists() {
                break;
            }
            let segment = match Segment::open(&path) {
                Ok(segment) => segment,
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    tracing::error!(path = %path.display(), "damaged counter file is set aside");
                    fs::rename(&path, path.with_extension("damaged"))?;
                    Segment::create(&path)?
                }
                Err(error) => return Err(error),
            };
            inner.adopt(segment);
        }
        if inner.segments.is_empty() {
            inner.adopt(Segment::create(&file_of(folder, 0))?);
        }
        Ok(Self {
            folder: folder.to_owned(),
            inner: RwLock::new(inner),
        })
    }

    /// Returns a user's cell, a new one when the user has none.
    ///
    /// # Errors
    ///
    /// When all files are full and the disk has no room for another.
    pub(crate) fn of(&self, user: u64) -> io::Result<Cell> {
        if let Some(cell) = self.inner.read().index.get(&user) {
            return Ok(cell.clone());
        }
        let mut inner = self.inner.write();
        if let Some(cell) = inner.index.get(&user) {
            return Ok(cell.clone());
        }
        if inner.next >= CELLS {
            let path = file_of(&self.folder, inner.segments.len());
            inner.adopt(Segment::create(&path)?);
        }
        let segment = inner.segments.last().expect("there is always one");
        let cell = Cell {
            segment: Arc::clone(segment),
            at: inner.next,
        };
        inner.next += 1;
        // Nobody's cell holds nothing, unless the file is damaged: what is there then is not this user's.
        for word in 1..WORDS {
            cell.word(word).store(0, Relaxed);
        }
        cell.word(0).store(user, Release);
        inner.index.insert(user, cell.clone());
        Ok(cell)
    }

    pub(super) fn all(&self) -> Vec<(u64, Cell)> {
        let inner = self.inner.read();
        inner
            .index
            .iter()
            .map(|(user, cell)| (*user, cell.clone()))
            .collect()
    }

    /// Returns the bytes of all users since the spool was made, `(tx, rx)`.
    pub(crate) fn totals(&self) -> (u64, u64) {
        let inner = self.inner.read();
        inner.index.values().fold((0, 0), |(tx, rx), cell| {
            (tx.wrapping_add(cell.tx()), rx.wrapping_add(cell.rx()))
        })
    }

    /// Writes what was counted to the disk, so that it survives a power cut. Blocks.
    pub(super) fn flush(&self) -> io::Result<()> {
        let segments = self.inner.read().segments.clone();
        segments.iter().try_for_each(|segment| segment.map.flush())
    }
}

impl Inner {
    fn adopt(&mut self, segment: Segment) {
        let segment = Arc::new(segment);
        self.next = 1;
        for at in 1..CELLS {
            let cell = Cell {
                segment: Arc::clone(&segment),
                at,
            };
            let user = cell.word(0).load(Acquire);
            if user != 0 {
                self.next = at + 1;
                self.index.insert(user, cell);
            }
        }
        self.segments.push(segment);
    }
}

/// Returns when the counters in `folder` were last written to, if there are any. Memory that is mapped counts as written
/// at the first change after a flush, and every cut flushes.
pub(super) fn changed(folder: &Path) -> io::Result<Option<SystemTime>> {
    let mut newest = None;
    for number in 0.. {
        match fs::metadata(file_of(folder, number)) {
            Ok(found) => newest = newest.max(Some(found.modified()?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => break,
            Err(error) => return Err(error),
        }
    }
    Ok(newest)
}

fn file_of(folder: &Path, number: usize) -> PathBuf {
    folder.join(format!("cells-{number:04}"))
}

/// Holds a folder for one agent; released when the process ends, however it does.
pub(crate) fn lock(folder: &Path) -> io::Result<File> {
    let path = folder.join("lock");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(io::Error::new(
            io::ErrorKind::WouldBlock,
            "another agent uses this folder",
        )),
        Err(fs::TryLockError::Error(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_found_again_and_grow_into_further_files() {
        let folder = tempfile::tempdir().unwrap();
        let cells = Cells::open(folder.path()).unwrap();
        for user in 1..=20_000 {
            let cell = cells.of(user).unwrap();
            cell.add_tx(user);
            cell.add_rx(2 * user);
            cell.set_spooled(1, 2);
        }
        drop(cells);
        let cells = Cells::open(folder.path()).unwrap();
        assert_eq!(cells.inner.read().segments.len(), 3);
        for user in 1..=20_000 {
            let cell = cells.of(user).unwrap();
            assert_eq!((cell.tx(), cell.rx()), (user, 2 * user));
            assert_eq!(cell.spooled(), (1, 2));
        }
        assert_eq!(cells.totals(), (200_010_000, 400_020_000));
    }

    #[test]
    fn a_new_user_begins_at_nothing_whatever_the_file_holds() {
        let folder = tempfile::tempdir().unwrap();
        drop(Cells::open(folder.path()).unwrap());
        let path = folder.path().join("cells-0000");
        let mut file = fs::read(&path).unwrap();
        file[CELL_BYTES + 8..2 * CELL_BYTES].fill(9);
        fs::write(&path, file).unwrap();
        let cell = Cells::open(folder.path()).unwrap().of(7).unwrap();
        assert_eq!((cell.tx(), cell.rx(), cell.spooled()), (0, 0, (0, 0)));
    }

    #[test]
    fn a_damaged_file_is_set_aside_and_one_folder_has_one_agent() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("cells-0000"), b"short").unwrap();
        let cells = Cells::open(folder.path()).unwrap();
        cells.of(7).unwrap().add_tx(1);
        assert!(folder.path().join("cells-0000.damaged").exists());
        let held = lock(folder.path()).unwrap();
        assert!(lock(folder.path()).is_err());
        drop(held);
        lock(folder.path()).unwrap();
    }
}
