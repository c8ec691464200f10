//! Loads what settings refer to, and notes what is of no use with its path in the file.
//!
//! Shared by server and client; `--check` finds everything that is found here.

use std::{error::Error, path::Path};

use hy2_core::{
    client::FallbackCongestion, congestion::BbrProfile, quic::QuicConfig, socket::Obfuscation,
    tls::CertificateError,
};

use crate::config::{ConfigError, Congestion, Mistake, Obfs, Profile, Quic};

/// Collects what cannot be used.
#[derive(Debug, Default)]
pub(crate) struct Loading(Vec<Mistake>);

impl Loading {
    /// Takes a value, or notes why there is none.
    pub(crate) fn keep<T>(
        &mut self,
        path: &str,
        result: Result<T, impl Into<Box<dyn Error>>>,
    ) -> Option<T> {
        result
            .map_err(|error| self.note(path, chain(&*error.into())))
            .ok()
    }

    /// Takes what was made of certificate files; `files` are their paths and keys.
    pub(crate) fn keep_certificate<T>(
        &mut self,
        result: Result<T, CertificateError>,
        files: &[(&str, &Path)],
    ) -> Option<T> {
        let error = match result {
            Ok(value) => return Some(value),
            Err(error) => error,
        };
        let named = match &error {
            CertificateError::Read { path, .. } | CertificateError::Pem { path, .. } => {
                files.iter().find(|(_, file)| file == path)
            }
            _ => files.first(),
        };
        let key = named.map_or("tls", |(key, _)| *key);
        self.note(key, chain(&error));
        None
    }

    /// Returns what was made, if nothing was wrong.
    pub(crate) fn finish<T>(self, made: Option<T>) -> Result<T, ConfigError> {
        made.filter(|_| self.0.is_empty())
            .ok_or(ConfigError::Wrong(self.0))
    }

    fn note(&mut self, path: &str, reason: String) {
        self.0.push(Mistake {
            path: path.to_owned(),
            reason,
        });
    }
}

/// Writes an error and its causes in one line.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}

pub(crate) fn obfuscation(obfs: &Obfs) -> Result<Obfuscation, Box<dyn Error>> {
    Ok(match obfs {
        Obfs::Plain => Obfuscation::Plain,
        Obfs::Salamander(password) => Obfuscation::salamander(password.reveal())?,
        Obfs::Gecko(password, sizes) => {
            Obfuscation::gecko(password.reveal(), sizes.min(), sizes.max())?
        }
    })
}

pub(crate) fn quic(settings: &Quic) -> QuicConfig {
    let mut quic = QuicConfig::default();
    quic.stream_receive_window = settings.stream_window;
    quic.receive_window = settings.connection_window;
    quic.max_idle_timeout = settings.max_idle_timeout;
    quic.keep_alive = settings.keep_alive;
    quic.max_incoming_streams = settings.max_incoming_streams;
    quic.path_mtu_discovery = settings.path_mtu_discovery;
    quic
}

pub(crate) fn congestion(settings: Congestion) -> FallbackCongestion {
    match settings {
        Congestion::Reno => FallbackCongestion::Reno,
        Congestion::Bbr(profile) => FallbackCongestion::Bbr(match profile {
            Profile::Standard => BbrProfile::Standard,
            Profile::Conservative => BbrProfile::Conservative,
            Profile::Aggressive => BbrProfile::Aggressive,
        }),
    }
}
