//! Sockets and descriptors that cannot be had.

use std::{
    fs, io,
    net::{SocketAddr, UdpSocket},
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::Duration,
};

use anyhow::{Result, ensure};
use hy2_core::socket::{DirectSocketFactory, SocketFactory};

/// Opens so many sockets for a client and no more.
#[derive(Debug)]
pub(crate) struct FewSockets {
    left: AtomicU32,
    direct: DirectSocketFactory,
}

impl FewSockets {
    pub(crate) fn new(count: u32) -> Self {
        Self {
            left: AtomicU32::new(count),
            direct: DirectSocketFactory::default(),
        }
    }
}

impl SocketFactory for FewSockets {
    fn open(&self, remote: SocketAddr) -> io::Result<UdpSocket> {
        let left = self
            .left
            .fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1));
        match left {
            Ok(_) => self.direct.open(remote),
            Err(_) => Err(io::Error::from_raw_os_error(libc::EMFILE)),
        }
    }
}

/// For this long the process gets no new descriptor; those that are open stay.
pub(crate) async fn starve(time: Duration) -> Result<()> {
    let before = limit(None)?;
    let few = libc::rlimit {
        // Of the next free one, which is not below the standard three.
        rlim_cur: 3,
        ..before
    };
    limit(Some(few))?;
    let refused = fs::File::open("/dev/null").is_err();
    tokio::time::sleep(time).await;
    limit(Some(before))?;
    ensure!(refused, "descriptors were to be had");
    Ok(())
}

/// Sets the limit of descriptors, and returns the one from before.
fn limit(new: Option<libc::rlimit>) -> Result<libc::rlimit> {
    let mut before = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: both pointers are to live structures of the type that is asked for, or null.
    let result = unsafe {
        let new = new.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        libc::prlimit(0, libc::RLIMIT_NOFILE, new, &raw mut before)
    };
    ensure!(result == 0, "{}", io::Error::last_os_error());
    Ok(before)
}
