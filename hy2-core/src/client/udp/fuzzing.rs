//! The sessions of a client without the connection, for the fuzz targets.

use super::*;

/// Datagrams that wait for the application, per session.
pub const QUEUE: usize = super::QUEUE;

/// Unfinished fragments over all sessions, in bytes.
pub const MAX_FRAGMENTS: usize = super::MAX_FRAGMENTS;

/// What a connection's datagrams are handed to.
#[derive(Default)]
pub struct Sessions {
    table: Table,
    open: HashMap<u32, mpsc::Receiver<UdpPacket>>,
}

impl fmt::Debug for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sessions").finish_non_exhaustive()
    }
}

impl Sessions {
    /// Opens a session.
    pub fn open(&mut self, id: u32) {
        self.open.insert(id, enter(&self.table, id));
    }

    /// Closes a session as dropping it does.
    pub fn close(&mut self, id: u32) {
        self.open.remove(&id);
        self.table.lock().remove(&id);
    }

    /// Hands a datagram to its session; tells whether it was a fragment.
    pub fn dispatch(&self, datagram: &Bytes) -> bool {
        dispatch(&self.table, datagram)
    }

    /// Looks at unfinished fragments; tells whether there are any.
    pub fn expire(&self) -> bool {
        expire(&self.table)
    }

    /// Takes what came in for a session.
    pub fn recv(&mut self, id: u32) -> Option<UdpPacket> {
        self.open.get_mut(&id)?.try_recv().ok()
    }

    /// Bytes that unfinished fragments hold.
    pub fn held(&self) -> usize {
        let table = self.table.lock();
        let entries = table.values();
        entries.map(|entry| entry.fragments.held_bytes()).sum()
    }
}
