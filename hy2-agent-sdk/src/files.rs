//! Files that are whole or not there, whatever happens while they are written.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

/// Writes `bytes` to `path`, for the owner only: beside it first, then in its place. When this
/// returns, the new content survives a power cut; when it fails, the old content is there.
pub(crate) fn write_atomic(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let beside = path.with_extension("tmp");
    let written = write_new(&beside, bytes).and_then(|()| fs::rename(&beside, path));
    if let Err(error) = written {
        // It may hold the space that is missing.
        let _ = fs::remove_file(&beside);
        return Err(error);
    }
    sync_folder(path)
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Makes the names in the folder of `path` survive a power cut.
pub(crate) fn sync_folder(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(folder) if cfg!(unix) => File::open(folder)?.sync_all(),
        _ => Ok(()),
    }
}

/// Makes a folder for the owner only.
pub(crate) fn private_folder(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path)?;
    #[cfg(unix)]
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
    Ok(())
}

/// Reads a file; `None` when it is not there.
pub(crate) fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Content that is written in place, into one of two files in turn, and so needs no room on the disk while it does not
/// grow. What was written last and is whole counts.
#[derive(Debug)]
pub(crate) struct Pair {
    paths: [PathBuf; 2],
    /// Number of the last writing; the next goes into the file that this one is not in.
    number: u64,
}

/// What a pair of files holds.
#[derive(Debug, PartialEq)]
pub(crate) enum Content {
    /// It was never written.
    None,
    /// Neither file is whole.
    Damaged,
    Whole(Vec<u8>),
}

const MAGIC: &[u8; 8] = b"hy2pair1";

/// Magic, number, length, checksum of all but the magic.
const HEADER: usize = 8 + 8 + 8 + 4;

/// Least size of each file.
const ROOM: usize = 64 << 10;

impl Pair {
    /// Reads the files that are named `path` with `.0` and `.1` behind it, and makes them where there is room for them.
    pub(crate) fn open(path: &Path) -> io::Result<(Self, Content)> {
        let name = |end: &str| {
            let mut name = path.as_os_str().to_owned();
            name.push(end);
            PathBuf::from(name)
        };
        let mut pair = Self {
            paths: [name(".0"), name(".1")],
            number: 0,
        };
        let mut content = Content::None;
        for path in &pair.paths {
            let Some(bytes) = read(path)? else { continue };
            match whole(&bytes) {
                Some((number, found)) if number >= pair.number => {
                    pair.number = number;
                    content = Content::Whole(found.to_vec());
                }
                Some(_) => {}
                None if bytes.iter().all(|byte| *byte == 0) => {}
                None if content == Content::None => content = Content::Damaged,
                None => {}
            }
        }
        for path in &pair.paths {
            let made = open_private(path).and_then(|mut file| reserve(&mut file, 0));
            if let Err(error) = made {
                tracing::warn!(file = %path.display(), %error, "no room kept on the disk");
            }
        }
        Ok((pair, content))
    }

    /// Writes `bytes`. When this returns, they survive a power cut; when it fails, what was written before is there.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let number = self.number + 1;
        let mut record = Vec::with_capacity(HEADER + bytes.len());
        record.extend(MAGIC);
        record.extend(number.to_le_bytes());
        record.extend((bytes.len() as u64).to_le_bytes());
        record.extend(checksum(&record[8..24], bytes).to_le_bytes());
        record.extend(bytes);
        let mut file = open_private(&self.paths[(number % 2) as usize])?;
        reserve(&mut file, record.len())?;
        file.seek(SeekFrom::Start(0))?;
        file.write_all(&record)?;
        file.sync_data()?;
        self.number = number;
        Ok(())
    }
}

fn open_private(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let is_new = !path.exists();
    let file = options.open(path)?;
    if is_new {
        sync_folder(path)?;
    }
    Ok(file)
}

/// Makes a file so long that as much again fits behind `len` bytes, by writing: a length alone reserves nothing.
fn reserve(file: &mut File, len: usize) -> io::Result<()> {
    let there = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
    if there >= len.max(ROOM) {
        return Ok(());
    }
    let wanted = (2 * len).next_power_of_two().max(ROOM);
    file.seek(SeekFrom::End(0))?;
    let grown = file
        .write_all(&vec![0; wanted - there])
        .and_then(|()| file.sync_all());
    if grown.is_err() {
        // A part of it would be taken for room that is there.
        file.set_len(there as u64)?;
    }
    grown
}

fn checksum(head: &[u8], bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(head), bytes)
}

/// Returns the number and the content of a file that is whole.
fn whole(file: &[u8]) -> Option<(u64, &[u8])> {
    let rest = file.strip_prefix(MAGIC)?;
    let (head, rest) = rest.split_at_checked(16)?;
    let (sum, rest) = rest.split_first_chunk()?;
    let (number, len) = head.split_first_chunk()?;
    let len = u64::from_le_bytes(len.try_into().ok()?);
    let bytes = rest.get(..usize::try_from(len).ok()?)?;
    let is_whole = checksum(head, bytes) == u32::from_le_bytes(*sum);
    is_whole.then_some((u64::from_le_bytes(*number), bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(folder: &Path) -> Content {
        Pair::open(&folder.join("it")).expect("opens").1
    }

    fn whole(text: &str) -> Content {
        Content::Whole(text.as_bytes().to_vec())
    }

    #[test]
    fn what_was_written_last_is_there_also_after_a_writing_that_was_cut() {
        let folder = tempfile::tempdir().expect("a folder");
        let (mut pair, found) = Pair::open(&folder.path().join("it")).expect("opens");
        assert_eq!(found, Content::None);
        for text in ["one", "two, which is longer", "3"] {
            pair.write(text.as_bytes()).expect("room");
            assert_eq!(content(folder.path()), whole(text));
        }
        // The fourth goes into the file of the second, and is cut at every byte.
        let file = folder.path().join("it.0");
        let before = fs::read(&file).expect("a file");
        pair.write(b"the fourth of them").expect("room");
        let after = fs::read(&file).expect("a file");
        assert_eq!(content(folder.path()), whole("the fourth of them"));
        for cut in 0..HEADER + 18 {
            let torn = [&after[..cut], &before[cut..]].concat();
            fs::write(&file, torn).expect("room");
            assert_eq!(content(folder.path()), whole("3"), "{cut}");
        }
        fs::write(folder.path().join("it.1"), "neither").expect("room");
        assert_eq!(content(folder.path()), Content::Damaged);
        // What is written from then on counts.
        let (mut pair, _) = Pair::open(&folder.path().join("it")).expect("opens");
        pair.write(b"again").expect("room");
        assert_eq!(content(folder.path()), whole("again"));
    }

    #[test]
    fn what_grows_finds_its_room_and_keeps_as_much_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let (mut pair, _) = Pair::open(&folder.path().join("it")).expect("opens");
        let size = |name: &str| {
            fs::metadata(folder.path().join(name))
                .expect("a file")
                .len()
        };
        assert_eq!((size("it.0"), size("it.1")), (ROOM as u64, ROOM as u64));
        let long = "long ".repeat(40_000);
        pair.write(long.as_bytes()).expect("room");
        assert_eq!(content(folder.path()), whole(&long));
        assert_eq!(size("it.1"), 512 << 10);
        assert_eq!(size("it.0"), ROOM as u64);
    }
}
