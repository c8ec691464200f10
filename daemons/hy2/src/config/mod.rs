//! The official configuration files, read into settings that cannot be wrong.
//!
//! A file becomes a tree (`tree`), the tree is read section by section (`section`), and every
//! mistake is noted with its path; settings come out only if there was none. Keys, units and
//! defaults are the reference's. Keys whose feature this version lacks are accepted while they
//! ask for nothing and refused by name otherwise.

mod address;
mod auth;
mod client;
mod duration;
mod inbound;
mod masquerade;
mod obfs;
mod quic;
mod rate;
mod section;
mod server;
mod tls;
mod tree;

use std::{
    fmt,
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use self::section::{Mistakes, Section};
pub(crate) use self::{
    address::{Listen, ServerAddress},
    auth::Auth,
    client::Client,
    inbound::{HttpInbound, Inbounds, Login, Socks5Inbound},
    masquerade::{Masquerade, Site},
    obfs::Obfs,
    quic::Quic,
    rate::{Congestion, Profile, Rate},
    section::Mistake,
    server::Server,
    tls::{ClientTls, ServerTls, SniGuard},
    tree::Format,
};

/// Longest file that is read, in bytes.
const MAX_FILE: u64 = 4 << 20;

/// Why a file gives no settings.
#[derive(Debug)]
pub(crate) enum ConfigError {
    /// None of the default files exists.
    NotFound,
    /// The file cannot be read.
    Unreadable(PathBuf, io::Error),
    /// The file says things that are wrong.
    Wrong(Vec<Mistake>),
}

impl fmt::Display for ConfigError {
    /// Writes one line per mistake.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFound => f.write_str(
                "no configuration file: name one with --config, or put config.yaml, config.yml \
                 or config.json here",
            ),
            Self::Unreadable(path, error) => write!(f, "cannot read {}: {error}", path.display()),
            Self::Wrong(mistakes) => {
                for (index, mistake) in mistakes.iter().enumerate() {
                    if index > 0 {
                        f.write_str("\n")?;
                    }
                    write!(f, "{mistake}")?;
                }
                Ok(())
            }
        }
    }
}

impl std::error::Error for ConfigError {}

/// Reads the settings of a server.
pub(crate) fn server(path: &Path) -> Result<Server, ConfigError> {
    load(path, server::read)
}

/// Reads the settings of a client. With `inbounds`, having nothing to listen on is a mistake.
pub(crate) fn client(path: &Path, inbounds: bool) -> Result<Client, ConfigError> {
    load(path, |root| client::read(root, inbounds))
}

/// Returns the file to read: the given one, or the first default that exists. The places are the
/// reference's: here, `~/.hysteria`, `/etc/hysteria`.
pub(crate) fn locate(given: Option<&Path>) -> Result<PathBuf, ConfigError> {
    if let Some(path) = given {
        return Ok(path.to_owned());
    }
    let home = std::env::var_os("HOME").map(|home| Path::new(&home).join(".hysteria"));
    [Some(PathBuf::new()), home, Some("/etc/hysteria".into())]
        .into_iter()
        .flatten()
        .flat_map(|folder| {
            ["config.yaml", "config.yml", "config.json"].map(|name| folder.join(name))
        })
        .find(|path| path.is_file())
        .ok_or(ConfigError::NotFound)
}

fn load<T>(path: &Path, read: impl FnOnce(&Section<'_>) -> Option<T>) -> Result<T, ConfigError> {
    let whole = |reason: String| {
        let name = path.file_name().unwrap_or(path.as_os_str());
        let path = name.to_string_lossy().into_owned();
        ConfigError::Wrong(vec![Mistake { path, reason }])
    };
    let format = Format::of(path).map_err(|reason| whole(reason.into()))?;
    let unreadable = |error| ConfigError::Unreadable(path.to_owned(), error);
    // A pipe or a device has no length to ask for.
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(unreadable)?;
    let read_bytes = file.take(MAX_FILE + 1).read_to_end(&mut bytes);
    if read_bytes.map_err(unreadable)? as u64 > MAX_FILE {
        return Err(whole("the file is larger than 4 MiB".into()));
    }
    let text = String::from_utf8(bytes).map_err(|_| whole("the file is not UTF-8".into()))?;
    interpret(&text, format, whole, read)
}

/// Reads the text of a file; `whole` makes a mistake of the file out of a reason.
fn interpret<T>(
    text: &str,
    format: Format,
    whole: impl FnOnce(String) -> ConfigError,
    read: impl FnOnce(&Section<'_>) -> Option<T>,
) -> Result<T, ConfigError> {
    let root = tree::parse(text.trim_start_matches('\u{feff}'), format).map_err(whole)?;
    let mistakes = Mistakes::default();
    let settings = Section::read_root(&root, &mistakes, read);
    let mistakes = mistakes.into_inner();
    match settings {
        Some(settings) if mistakes.is_empty() => Ok(settings),
        // A reader that returns nothing has noted why.
        _ => Err(ConfigError::Wrong(mistakes)),
    }
}

/// Reads the settings of a server from the text of a file.
#[cfg(feature = "fuzzing")]
pub(crate) fn server_text(text: &str, format: Format) -> Result<Server, ConfigError> {
    interpret(text, format, whole_text, server::read)
}

/// Reads the settings of a client from the text of a file.
#[cfg(feature = "fuzzing")]
pub(crate) fn client_text(
    text: &str,
    format: Format,
    inbounds: bool,
) -> Result<Client, ConfigError> {
    let read = |root: &Section<'_>| client::read(root, inbounds);
    interpret(text, format, whole_text, read)
}

#[cfg(feature = "fuzzing")]
fn whole_text(reason: String) -> ConfigError {
    let path = "config".to_owned();
    ConfigError::Wrong(vec![Mistake { path, reason }])
}

/// Reads a duration such as `1m30s`.
pub(crate) fn duration(text: &str) -> Result<std::time::Duration, String> {
    duration::parse(text).map_err(Into::into)
}

/// A secret: usable, but not printable.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(String);

impl Secret {
    /// Returns the secret itself.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}
