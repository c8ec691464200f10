//! Notices that files changed, by looking at them now and then.
//!
//! Looking works on every file system and through the symbolic links that certificate tools swap.

use std::{
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use tokio::time::{MissedTickBehavior, interval};

/// What a file looks like from outside; `None` if it cannot be looked at.
type Look = Option<(SystemTime, u64)>;

/// Watches a set of files.
#[derive(Debug)]
pub struct FileWatch {
    files: Vec<PathBuf>,
    period: Duration,
    known: Vec<Look>,
}

impl FileWatch {
    /// Watches `files` from now on, looking every `period`.
    pub fn new(files: impl IntoIterator<Item = impl AsRef<Path>>, period: Duration) -> Self {
        let files: Vec<_> = files
            .into_iter()
            .map(|file| file.as_ref().to_owned())
            .collect();
        Self {
            known: look(&files),
            files,
            period,
        }
    }

    /// Waits until a file changed and all of them looked the same twice in a row, so that a set
    /// that is being replaced is whole. Never returns for an empty set.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: a change that was not returned is found by the next call.
    pub async fn changed(&mut self) {
        let mut ticks = interval(self.period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut before = self.known.clone();
        loop {
            ticks.tick().await;
            let now = look(&self.files);
            if now != self.known && now == before && now.iter().all(Option::is_some) {
                self.known = now;
                return;
            }
            before = now;
        }
    }
}

fn look(files: &[PathBuf]) -> Vec<Look> {
    files
        .iter()
        .map(|file| {
            let data = std::fs::metadata(file).ok()?;
            Some((data.modified().ok()?, data.len()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::{fs, task::Poll};

    use super::*;

    const PERIOD: Duration = Duration::from_secs(1);

    async fn is_pending(watch: &mut FileWatch, time: Duration) -> bool {
        tokio::time::timeout(time, watch.changed()).await.is_err()
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_is_noticed_once_it_has_settled() {
        let folder = tempfile::tempdir().expect("folder");
        let files = ["cert", "key"].map(|name| folder.path().join(name));
        for file in &files {
            fs::write(file, "1").expect("write");
        }
        let mut watch = FileWatch::new(&files, PERIOD);
        assert!(is_pending(&mut watch, 5 * PERIOD).await, "nothing changed");

        fs::write(&files[0], "22").expect("write");
        {
            let mut changed = std::pin::pin!(watch.changed());
            let first = std::future::poll_fn(|cx| Poll::Ready(changed.as_mut().poll(cx))).await;
            assert!(first.is_pending(), "seen once is not settled");
            fs::remove_file(&files[1]).expect("remove");
            let half = tokio::time::timeout(5 * PERIOD, changed.as_mut()).await;
            assert!(half.is_err(), "half a set is not a change to act on");
            fs::write(&files[1], "22").expect("write");
            changed.await;
        }
        assert!(is_pending(&mut watch, 5 * PERIOD).await, "reported once");
    }
}
