//! The master key file: `<version> <key>` on each line, base64url of 32 bytes, the highest version
//! seals, all of them open. Made at the first run, readable by its owner only, backed up apart from
//! the database.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use thiserror::Error;
use zeroize::Zeroizing;

use super::random;

/// The keys that seal the store's secrets, by version.
#[derive(Clone)]
pub struct MasterKeys {
    keys: BTreeMap<u32, Zeroizing<[u8; 32]>>,
}

/// The key file cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum KeyFileError {
    /// It cannot be read.
    #[error("cannot read the master key file {path}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It cannot be made.
    #[error("cannot make the master key file {path}")]
    Write {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Others than its owner may read it.
    #[error(
        "the master key file {path} is open to others than its owner (mode {mode:o}); chmod 600 it"
    )]
    Exposed {
        /// Which file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// The store has secrets, and the file that opens them is not there.
    #[error(
        "the master key file {path} is missing, and the database has secrets that only it opens; \
         put it back from where you keep it"
    )]
    Missing {
        /// Which file.
        path: PathBuf,
    },
    /// A line is not a key.
    #[error("line {line} of the master keys: {reason}")]
    Invalid {
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// There is no key.
    #[error("the master keys are empty")]
    Empty,
    /// The last version has a key, and it would be lost with all that it sealed.
    #[error("no master key can be added: the last version there is, 4294967295, has one")]
    NoVersion,
    /// The system gives no random bytes.
    #[error(transparent)]
    Random(#[from] super::RandomError),
}

impl MasterKeys {
    /// Makes a first key, for stores that live no longer than the process.
    ///
    /// # Errors
    ///
    /// The system gives no random bytes.
    pub fn generate() -> Result<Self, super::RandomError> {
        Ok(Self {
            keys: BTreeMap::from([(1, random()?)]),
        })
    }

    /// Reads the keys of a file; makes the file with a first key if there is none.
    ///
    /// # Errors
    ///
    /// The file cannot be read or made, is open to others, or holds no valid keys.
    pub fn load_or_create(path: &Path) -> Result<Self, KeyFileError> {
        match Self::load(path) {
            Err(KeyFileError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                let keys = Self::generate()?;
                match keys.create_file(path) {
                    Ok(()) => Ok(keys),
                    // Another master of this host was first.
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Self::load(path),
                    Err(source) => Err(KeyFileError::Write {
                        path: path.to_owned(),
                        source,
                    }),
                }
            }
            other => other,
        }
    }

    /// Reads the keys of a file.
    ///
    /// # Errors
    ///
    /// The file cannot be read, is open to others, or holds no valid keys.
    pub fn load(path: &Path) -> Result<Self, KeyFileError> {
        let read = |source| KeyFileError::Read {
            path: path.to_owned(),
            source,
        };
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = fs::metadata(path).map_err(read)?.permissions().mode() & 0o777;
            if mode & 0o077 != 0 {
                return Err(KeyFileError::Exposed {
                    path: path.to_owned(),
                    mode,
                });
            }
        }
        Self::parse(&Zeroizing::new(fs::read_to_string(path).map_err(read)?))
    }

    /// Reads keys from text, as the file holds them: for keys that come by the environment.
    ///
    /// # Errors
    ///
    /// A line is not a key, or there is none.
    pub fn parse(text: &str) -> Result<Self, KeyFileError> {
        let mut keys = BTreeMap::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let invalid = |reason| KeyFileError::Invalid {
                line: number + 1,
                reason,
            };
            let (version, key) = line
                .split_once(' ')
                .ok_or_else(|| invalid("expected a version and a key"))?;
            let version = version
                .parse::<u32>()
                .ok()
                .filter(|version| *version > 0)
                .ok_or_else(|| invalid("the version is not a positive number"))?;
            let bytes = Zeroizing::new(
                URL_SAFE_NO_PAD
                    .decode(key.trim())
                    .map_err(|_| invalid("the key is not base64url"))?,
            );
            let mut key = Zeroizing::new([0; 32]);
            if bytes.len() != key.len() {
                return Err(invalid("the key is not 32 bytes"));
            }
            key.copy_from_slice(&bytes);
            if key.iter().all(|byte| *byte == key[0]) {
                return Err(invalid("the key is not random"));
            }
            if keys.insert(version, key).is_some() {
                return Err(invalid("the version is there twice"));
            }
        }
        if keys.is_empty() {
            return Err(KeyFileError::Empty);
        }
        Ok(Self { keys })
    }

    /// Adds a key, which seals from then on, and writes the file anew.
    ///
    /// # Errors
    ///
    /// The file cannot be written, the system gives no random bytes, or there is no version left.
    pub fn rotate(&mut self, path: &Path) -> Result<u32, KeyFileError> {
        let (version, next) = self.with_one_more()?;
        let temporary = path.with_extension("new");
        let write = |source| KeyFileError::Write {
            path: path.to_owned(),
            source,
        };
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(write(error)),
            _ => {}
        }
        next.create_file(&temporary).map_err(write)?;
        fs::rename(&temporary, path).map_err(write)?;
        sync_directory(path).map_err(write)?;
        *self = next;
        Ok(version)
    }

    /// Returns these keys and another, and its version.
    pub(crate) fn with_one_more(&self) -> Result<(u32, Self), KeyFileError> {
        let version = self.current().0.checked_add(1);
        let version = version.ok_or(KeyFileError::NoVersion)?;
        let mut next = self.clone();
        next.keys.insert(version, random()?);
        Ok((version, next))
    }

    /// Returns what the file holds.
    pub(crate) fn to_text(&self) -> Zeroizing<String> {
        let mut text = Zeroizing::new(String::new());
        for (version, key) in &self.keys {
            let key = Zeroizing::new(URL_SAFE_NO_PAD.encode(key.as_slice()));
            text.push_str(&format!("{version} "));
            text.push_str(&key);
            text.push('\n');
        }
        text
    }

    /// Returns the version and key that seal.
    pub(super) fn current(&self) -> (u32, &[u8; 32]) {
        let (version, key) = self
            .keys
            .last_key_value()
            .expect("never empty: checked where it is made");
        (*version, key)
    }

    pub(super) fn version(&self, version: u32) -> Option<&[u8; 32]> {
        self.keys.get(&version).map(|key| &**key)
    }

    fn create_file(&self, path: &Path) -> io::Result<()> {
        let mut options = fs::OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        {
            use std::os::unix::fs::OpenOptionsExt;
            options.mode(0o600);
        }
        let mut file = options.open(path)?;
        file.write_all(self.to_text().as_bytes())?;
        file.sync_all()?;
        sync_directory(path)
    }
}

/// Makes a new name in a directory survive a power failure.
fn sync_directory(path: &Path) -> io::Result<()> {
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    fs::File::open(parent.unwrap_or_else(|| Path::new(".")))?.sync_all()
}

impl fmt::Debug for MasterKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MasterKeys")
            .field("versions", &self.keys.keys().collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_made_once_for_its_owner_only_and_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("master.key");
        let made = MasterKeys::load_or_create(&path).unwrap();
        let read = MasterKeys::load_or_create(&path).unwrap();
        assert_eq!(made.current(), read.current());
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(
                fs::metadata(&path).unwrap().permissions().mode() & 0o777,
                0o600
            );
            fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
            assert!(matches!(
                MasterKeys::load(&path),
                Err(KeyFileError::Exposed { mode: 0o640, .. })
            ));
        }
    }

    #[test]
    fn a_rotated_key_seals_and_the_old_one_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("master.key");
        let mut keys = MasterKeys::load_or_create(&path).unwrap();
        let first = *keys.current().1;
        assert_eq!(keys.rotate(&path).unwrap(), 2);
        let read = MasterKeys::load(&path).unwrap();
        assert_eq!(read.current().0, 2);
        assert_eq!(read.version(1), Some(&first));
        assert_ne!(read.current().1, &first);
    }

    #[test]
    fn the_key_of_the_last_version_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("master.key");
        let key = URL_SAFE_NO_PAD.encode(*random::<32>().unwrap());
        let mut keys = MasterKeys::parse(&format!("{} {key}", u32::MAX)).unwrap();
        assert!(matches!(keys.rotate(&path), Err(KeyFileError::NoVersion)));
        assert_eq!(URL_SAFE_NO_PAD.encode(keys.current().1), key);
        assert!(!path.exists());
    }

    #[test]
    fn what_is_not_a_key_is_refused_by_line() {
        let good = URL_SAFE_NO_PAD.encode(*random::<32>().unwrap());
        for (text, expected) in [
            (String::new(), "the master keys are empty"),
            (
                format!("1 {good}\nx {good}"),
                "line 2 of the master keys: the version is not a positive number",
            ),
            (
                format!("1 {good}\n1 {good}"),
                "line 2 of the master keys: the version is there twice",
            ),
            (
                "1 abcd".to_owned(),
                "line 1 of the master keys: the key is not 32 bytes",
            ),
            (
                format!("1 {}", URL_SAFE_NO_PAD.encode([7; 32])),
                "line 1 of the master keys: the key is not random",
            ),
            (
                "1".to_owned(),
                "line 1 of the master keys: expected a version and a key",
            ),
        ] {
            assert_eq!(MasterKeys::parse(&text).unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn no_key_is_printed() {
        let keys = MasterKeys::generate().unwrap();
        assert_eq!(format!("{keys:?}"), "MasterKeys { versions: [1], .. }");
    }
}
