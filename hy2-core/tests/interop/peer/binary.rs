//! Builds the Go peers, once per test process and one process at a time.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use tokio::sync::OnceCell;
use tokio::task::spawn_blocking;

/// Which reference library the peer runs on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Version {
    /// Core 2.12.1.
    #[default]
    Current,
    /// Core 2.10.0: no Chrome parrot, omits `max_datagram_frame_size`.
    Core210,
}

/// The peer binary of a version, built if it is missing or out of date.
pub(crate) async fn path(version: Version) -> PathBuf {
    static BUILT: OnceCell<PathBuf> = OnceCell::const_new();
    let dir = BUILT
        .get_or_init(|| async {
            spawn_blocking(build)
                .await
                .expect("the build did not panic")
        })
        .await;
    dir.join(match version {
        Version::Current => "peer",
        Version::Core210 => "peer-2.10",
    })
}

fn build() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("hy2-core lies in the workspace");
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("interop");
    std::fs::create_dir_all(&dir).expect("the target directory is writable");
    // Test binaries may run side by side; the lock goes with the file.
    let lock = File::create(dir.join("lock")).expect("the target directory is writable");
    lock.lock().expect("the build lock can be taken");

    let script = root.join("interop/build.sh");
    let run = Command::new("sh")
        .arg(&script)
        .arg(&dir)
        .output()
        .unwrap_or_else(|e| panic!("cannot run {}: {e}", script.display()));
    assert!(
        run.status.success(),
        "the interop tests need the Go peers, and {} failed ({}):\n{}{}",
        script.display(),
        run.status,
        String::from_utf8_lossy(&run.stdout),
        String::from_utf8_lossy(&run.stderr),
    );
    dir
}
