//! Control groups that limit the memory of a process, of version 1 or 2. Needs root.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{self, Command},
};

use anyhow::{Context, Result, bail};

use crate::pair::behind;

/// A group with a limit; removed when dropped, for which its processes must be gone.
#[derive(Debug)]
pub(crate) struct Group {
    directory: PathBuf,
    version: Version,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

impl Group {
    /// Makes a group whose processes may hold `bytes` together.
    pub(crate) fn new(name: &str, bytes: u64) -> Result<Self> {
        let name = format!("hy2-compare-{}-{name}", process::id());
        let (root, version, limit) = if Path::new("/sys/fs/cgroup/memory/cgroup.procs").exists() {
            let limit = "memory.limit_in_bytes";
            ("/sys/fs/cgroup/memory", Version::One, limit)
        } else {
            // Worst case it is not there, and the limit below cannot be written.
            let _ = fs::write("/sys/fs/cgroup/cgroup.subtree_control", "+memory");
            ("/sys/fs/cgroup", Version::Two, "memory.max")
        };
        let directory = Path::new(root).join(name);
        fs::create_dir(&directory).with_context(|| format!("making {}", directory.display()))?;
        let group = Self { directory, version };
        group.write(limit, &bytes.to_string())?;
        Ok(group)
    }

    /// Has a command run in the group from its first instruction.
    pub(crate) fn around(&self, command: &Command) -> Command {
        let mut inside = Command::new("sh");
        let enter = "echo $$ > \"$0\" && exec \"$@\"";
        inside.args(["-c", enter]);
        inside.arg(self.directory.join("cgroup.procs"));
        behind(inside, command)
    }

    /// Returns the most that its processes held at once, in bytes, files in memory included.
    pub(crate) fn peak(&self) -> Result<u64> {
        let text = self.read(match self.version {
            Version::One => "memory.max_usage_in_bytes",
            Version::Two => "memory.peak",
        })?;
        text.trim().parse().context("the peak")
    }

    /// Returns how many of its processes the kernel has killed.
    pub(crate) fn killed(&self) -> Result<u64> {
        let text = self.read(match self.version {
            Version::One => "memory.oom_control",
            Version::Two => "memory.events",
        })?;
        let Some(count) = text.lines().find_map(|line| line.strip_prefix("oom_kill ")) else {
            bail!("this kernel does not say how many it killed: {text}");
        };
        count.parse().context("oom_kill")
    }

    fn read(&self, file: &str) -> Result<String> {
        let path = self.directory.join(file);
        fs::read_to_string(&path).with_context(|| path.display().to_string())
    }

    fn write(&self, file: &str, text: &str) -> Result<()> {
        let path = self.directory.join(file);
        fs::write(&path, text).with_context(|| path.display().to_string())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // An empty group that stays costs nothing.
        let _ = fs::remove_dir(&self.directory);
    }
}
