//! A small disk that can be full: a memory file system, which only root may mount.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Unmounted when dropped.
#[derive(Debug)]
pub(crate) struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    /// # Errors
    ///
    /// Why there is none, as where that is not allowed.
    pub(crate) fn mount(path: &Path, mebibytes: u32) -> Result<Self, String> {
        fs::create_dir_all(path).expect("a folder");
        let size = format!("size={mebibytes}m,mode=700");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
            .arg(path)
            .output();
        match mounted {
            Ok(output) if output.status.success() => Ok(Self {
                path: path.to_owned(),
            }),
            other => Err(format!("mounting a small disk needs root: {other:?}")),
        }
    }

    /// Tells whether this process may have one.
    ///
    /// # Errors
    ///
    /// Why not.
    pub(crate) fn is_possible() -> Result<(), String> {
        let folder = tempfile::tempdir().expect("a folder");
        Self::mount(folder.path(), 1).map(drop)
    }

    /// Leaves no byte free.
    pub(crate) fn fill(&self) {
        use std::io::Write;
        let mut file = fs::File::create(self.path.join("filler")).expect("a file");
        let block = vec![1; 64 << 10];
        for size in [block.len(), 4096, 1] {
            while file.write_all(&block[..size]).is_ok() {}
        }
    }

    pub(crate) fn free(&self) {
        fs::remove_file(self.path.join("filler")).expect("removed");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
    }
}
