//! What is watched.

use std::{fmt, fs};

use anyhow::{Context, Result};
use tokio::runtime::Handle;

use crate::world::World;

/// One look at the process and its server.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Reading {
    pub(crate) resident_kib: u64,
    pub(crate) tasks: usize,
    pub(crate) descriptors: usize,
    pub(crate) connections: usize,
    pub(crate) streams: u32,
    pub(crate) udp_sessions: u32,
    pub(crate) reserved: usize,
}

impl Reading {
    pub(crate) fn take(world: &World) -> Result<Self> {
        let handle = world.handle();
        let users = handle.users();
        Ok(Self {
            resident_kib: resident_kib()?,
            tasks: Handle::current().metrics().num_alive_tasks(),
            // Without the one that reads the folder.
            descriptors: fs::read_dir("/proc/self/fd")?.count() - 1,
            connections: handle.connection_count(),
            streams: users.iter().map(|user| user.traffic.streams).sum(),
            udp_sessions: users.iter().map(|user| user.traffic.udp_sessions).sum(),
            reserved: world.reserved(),
        })
    }

    /// All that must be back at what it was.
    pub(crate) fn counts(&self) -> [usize; 6] {
        [
            self.tasks,
            self.descriptors,
            self.connections,
            self.streams as usize,
            self.udp_sessions as usize,
            self.reserved,
        ]
    }

    pub(crate) fn no_more_than(&self, baseline: &Self) -> bool {
        let pairs = self.counts().into_iter().zip(baseline.counts());
        pairs.into_iter().all(|(now, then)| now <= then)
    }
}

/// Resident memory of this process.
pub(crate) fn resident_kib() -> Result<u64> {
    let statm = fs::read_to_string("/proc/self/statm")?;
    let pages: u64 = statm.split_whitespace().nth(1).context("statm")?.parse()?;
    Ok(pages * 4)
}

/// Makes the allocator return what it only keeps: up to 30 MiB here, more or less by chance, which
/// would hide a leak. A leak stays.
pub(crate) fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: the function takes no pointers and locks the heap itself.
    unsafe {
        libc::malloc_trim(0);
    }
}

impl fmt::Display for Reading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:.1} MiB, {} tasks, {} descriptors, {} connections, {} streams, {} UDP sessions, {} B reserved",
            self.resident_kib as f64 / 1024.0,
            self.tasks,
            self.descriptors,
            self.connections,
            self.streams,
            self.udp_sessions,
            self.reserved
        )
    }
}
