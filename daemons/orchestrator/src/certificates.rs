//! Certificates of the listeners, from files that may change.

use std::{fs, time::Duration};

use anyhow::Context;
use hy2_daemon_runtime::FileWatch;
use hy2_master_sdk::tls::ListenerTls;
use tracing::{info, warn};

use crate::config::TlsFiles;

/// How often the files are looked at.
const PERIOD: Duration = Duration::from_secs(2);

/// Files, and the listeners that use them.
pub(crate) struct Certificates<const N: usize> {
    loaded: [Option<(TlsFiles, ListenerTls)>; N],
}

impl<const N: usize> Certificates<N> {
    /// Reads the files of each listener that has some.
    pub(crate) fn read(files: [Option<&TlsFiles>; N]) -> anyhow::Result<Self> {
        let mut loaded = [const { None }; N];
        for (place, files) in loaded.iter_mut().zip(files) {
            if let Some(files) = files {
                let (chain, key) = contents(files)?;
                let tls = ListenerTls::from_pem(&chain, &key)
                    .with_context(|| format!("{}", files.cert.display()))?;
                *place = Some((files.clone(), tls));
            }
        }
        Ok(Self { loaded })
    }

    /// Returns what listeners take.
    pub(crate) fn listeners(&self) -> [Option<ListenerTls>; N] {
        self.loaded
            .each_ref()
            .map(|loaded| loaded.as_ref().map(|(_, tls)| tls.clone()))
    }

    /// Returns what notices that a file changed.
    pub(crate) fn watch(&self) -> FileWatch {
        let files = self.loaded.iter().flatten();
        let files = files.flat_map(|(files, _)| [&files.cert, &files.key]);
        FileWatch::new(files, PERIOD)
    }

    /// Reads the files again. What cannot be used changes nothing.
    pub(crate) fn reload(&self) {
        for (files, tls) in self.loaded.iter().flatten() {
            let replaced = contents(files).and_then(|(chain, key)| Ok(tls.replace(&chain, &key)?));
            let cert = files.cert.display();
            match replaced {
                Ok(()) => info!(%cert, "certificate read"),
                Err(error) => {
                    let error = format!("{error:#}");
                    warn!(%cert, error, "the certificate is not taken; the one before stays");
                }
            }
        }
    }
}

fn contents(files: &TlsFiles) -> anyhow::Result<(Vec<u8>, Vec<u8>)> {
    let read = |path| fs::read(path).with_context(|| format!("cannot read {path:?}"));
    Ok((read(&files.cert)?, read(&files.key)?))
}
