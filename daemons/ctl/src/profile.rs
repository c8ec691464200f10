//! Where the orchestrator is and who asks: a file of named profiles, readable by its owner only.

use std::{
    collections::BTreeMap,
    fmt, fs,
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

/// One orchestrator and one account on it.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Profile {
    pub(crate) url: String,
    /// Authorities in PEM that the orchestrator's certificate has to come from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ca: Option<String>,
    /// `sha256:` of the public key of the orchestrator's certificate or of its authority.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) pin: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) username: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) api_token: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) session: Option<Session>,
}

/// Tokens of a session.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Session {
    pub(crate) access_token: String,
    /// RFC 3339.
    pub(crate) access_expires_at: String,
    pub(crate) refresh_token: String,
}

impl fmt::Debug for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Profile")
            .field("url", &self.url)
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

/// The file.
#[derive(Debug, Clone)]
pub(crate) struct Profiles {
    path: PathBuf,
}

pub(crate) type Entries = BTreeMap<String, Profile>;

/// Reads what a file holds.
pub(crate) fn parse(bytes: &[u8]) -> serde_json::Result<Entries> {
    serde_json::from_slice(bytes)
}

/// Returns what a file is to hold.
pub(crate) fn to_text(entries: &Entries) -> serde_json::Result<Vec<u8>> {
    serde_json::to_vec_pretty(entries)
}

impl Profiles {
    /// Uses this file, or the one of this account on this host.
    pub(crate) fn at(path: Option<PathBuf>) -> anyhow::Result<Self> {
        if let Some(path) = path {
            return Ok(Self { path });
        }
        let home = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let base = home("XDG_CONFIG_HOME")
            .map(PathBuf::from)
            .or_else(|| home("HOME").map(|home| Path::new(&home).join(".config")))
            .context("no HOME: name the file of profiles with --profiles")?;
        Ok(Self {
            path: base.join("hy2").join("ctl.json"),
        })
    }

    /// Returns a profile.
    pub(crate) fn find(&self, name: &str) -> anyhow::Result<Option<Profile>> {
        Ok(self.read()?.remove(name))
    }

    /// Writes a profile.
    pub(crate) fn put(&self, name: &str, profile: Profile) -> anyhow::Result<()> {
        let _lock = self.lock()?;
        let mut entries = self.read()?;
        entries.insert(name.to_owned(), profile);
        self.write(&entries)
    }

    /// Removes a profile. Returns whether there was one.
    pub(crate) fn remove(&self, name: &str) -> anyhow::Result<bool> {
        let _lock = self.lock()?;
        let mut entries = self.read()?;
        let found = entries.remove(name).is_some();
        if found {
            self.write(&entries)?;
        }
        Ok(found)
    }

    /// Keeps other processes out until the result is dropped: a refresh token is spent once, and
    /// spent twice it ends the session.
    pub(crate) fn lock(&self) -> anyhow::Result<fs::File> {
        self.make_directory()?;
        let path = self.path.with_extension("lock");
        let file = private(fs::OpenOptions::new().create(true).truncate(false)).open(&path);
        let file = file.with_context(|| format!("cannot open {}", path.display()))?;
        file.lock()
            .with_context(|| format!("cannot lock {}", path.display()))?;
        Ok(file)
    }

    /// Writes the session of a profile; the caller holds the lock.
    pub(crate) fn put_session(&self, name: &str, session: Session) -> anyhow::Result<()> {
        let mut entries = self.read()?;
        if let Some(profile) = entries.get_mut(name) {
            profile.session = Some(session);
            self.write(&entries)?;
        }
        Ok(())
    }

    fn read(&self) -> anyhow::Result<Entries> {
        let shown = self.path.display();
        #[cfg(unix)]
        if let Ok(data) = fs::metadata(&self.path) {
            use std::os::unix::fs::PermissionsExt;
            let mode = data.permissions().mode() & 0o777;
            if mode & 0o077 != 0 {
                bail!("{shown} is open to others than its owner (mode {mode:o}); chmod 600 it");
            }
        }
        match fs::read(&self.path) {
            Ok(bytes) => parse(&bytes)
                .map_err(|error| anyhow::anyhow!("{shown} is not a file of profiles: {error}")),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Entries::new()),
            Err(error) => Err(error).with_context(|| format!("cannot read {shown}")),
        }
    }

    fn write(&self, entries: &Entries) -> anyhow::Result<()> {
        self.make_directory()?;
        let temporary = self
            .path
            .with_extension(format!("{}.new", std::process::id()));
        let written = (|| {
            let mut file =
                private(fs::OpenOptions::new().create(true).truncate(true)).open(&temporary)?;
            file.write_all(&to_text(entries)?)?;
            file.sync_all()?;
            fs::rename(&temporary, &self.path)
        })();
        written.with_context(|| format!("cannot write {}", self.path.display()))
    }

    fn make_directory(&self) -> anyhow::Result<()> {
        let Some(parent) = self.path.parent().filter(|at| !at.as_os_str().is_empty()) else {
            return Ok(());
        };
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true);
        #[cfg(unix)]
        {
            use std::os::unix::fs::DirBuilderExt;
            builder.mode(0o700);
        }
        let made = builder.create(parent);
        made.with_context(|| format!("cannot make {}", parent.display()))
    }
}

/// Opens for writing, readable by its owner only.
fn private(options: &mut fs::OpenOptions) -> &mut fs::OpenOptions {
    options.write(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(0o600);
    }
    options
}
