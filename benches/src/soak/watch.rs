//! What is watched.

use std::{fmt, fs};

use anyhow::{Context, Result};
use hy2_core::ServerHandle;
use tokio::runtime::Handle;

use crate::world::World;

/// One look at the process and its servers.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Reading {
    /// What is allocated, where the allocator tells.
    pub(crate) heap_kib: Option<u64>,
    pub(crate) resident_kib: u64,
    pub(crate) tasks: usize,
    pub(crate) descriptors: usize,
    pub(crate) connections: usize,
    pub(crate) streams: u32,
    pub(crate) udp_sessions: u32,
    pub(crate) reserved: usize,
}

impl Reading {
    pub(crate) fn take(worlds: &[World; 2]) -> Result<Self> {
        let handles = worlds.each_ref().map(World::handle);
        let users: Vec<_> = handles.iter().flat_map(ServerHandle::users).collect();
        Ok(Self {
            heap_kib: heap_kib(),
            resident_kib: resident_kib()?,
            tasks: Handle::current().metrics().num_alive_tasks(),
            // Without the one that reads the folder.
            descriptors: fs::read_dir("/proc/self/fd")?.count() - 1,
            connections: handles.iter().map(ServerHandle::connection_count).sum(),
            streams: users.iter().map(|user| user.traffic.streams).sum(),
            udp_sessions: users.iter().map(|user| user.traffic.udp_sessions).sum(),
            reserved: worlds.iter().map(World::reserved).sum(),
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

    pub(crate) fn no_more_than(&self, most: [usize; 6]) -> bool {
        let pairs = self.counts().into_iter().zip(most);
        pairs.into_iter().all(|(now, most)| now <= most)
    }
}

/// Names of what [`Reading::counts`] returns.
pub(crate) const COUNTS: [&str; 6] = [
    "tasks",
    "descriptors",
    "connections",
    "streams",
    "UDP sessions",
    "reserved bytes",
];

/// What the process has allocated and not freed, of all arenas and mappings of glibc: it moves by
/// a few KiB from pause to pause where resident memory moves by MiB.
fn heap_kib() -> Option<u64> {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // SAFETY: the function takes nothing and locks the heap itself.
        let heap = unsafe { libc::mallinfo2() };
        Some((heap.uordblks + heap.hblkhd) as u64 / 1024)
    }
    #[cfg(not(all(target_os = "linux", target_env = "gnu")))]
    None
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
        if let Some(heap) = self.heap_kib {
            write!(f, "{heap} KiB allocated, ")?;
        }
        write!(
            f,
            "{:.1} MiB resident, {} tasks, {} descriptors, {} connections, {} streams, {} UDP sessions, {} B reserved",
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
