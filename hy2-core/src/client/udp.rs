//! UDP sessions of a client.

use std::{
    any::Any,
    collections::HashMap,
    fmt,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use hy2_proto::{
    address::AddressRef,
    frag::{Defragmenter, fragment},
    udp::{MAX_ADDRESS_LEN, MAX_MESSAGE_LEN, UdpMessage, max_payload},
};
use parking_lot::Mutex;
use quinn::{Connection, SendDatagramError};
use tokio::{
    sync::{Mutex as AsyncMutex, mpsc},
    task::JoinSet,
    time::{Instant, sleep_until},
};

use crate::{error::UdpSendError, relay::share::UdpShare};

#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;

/// Datagrams that wait for the application, per session; more are dropped (reference: 1024).
const QUEUE: usize = 1024;

/// Unfinished fragments over all sessions, in bytes.
const MAX_FRAGMENTS: usize = 4 << 20;

/// How often unfinished fragments are looked at, while there are any.
const SWEEP: Duration = Duration::from_secs(1);

/// A datagram from a target.
#[derive(Clone, PartialEq, Eq)]
pub struct UdpPacket {
    /// The payload.
    pub data: Bytes,
    source: Bytes,
}

impl UdpPacket {
    /// Returns where it came from, as `ip:port`: the address, even when a name was asked for.
    pub fn source(&self) -> &str {
        // It was text when it was cut out of the message.
        std::str::from_utf8(&self.source).unwrap_or_default()
    }
}

impl fmt::Debug for UdpPacket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UdpPacket")
            .field("source", &self.source())
            .field("len", &self.data.len())
            .finish()
    }
}

type Table = Arc<Mutex<HashMap<u32, Entry, ahash::RandomState>>>;

struct Entry {
    queue: mpsc::Sender<UdpPacket>,
    fragments: Defragmenter,
}

/// The UDP side of a connection.
pub(super) struct UdpSessions {
    connection: Connection,
    share: Arc<UdpShare>,
    table: Table,
    _reader: JoinSet<()>,
}

impl fmt::Debug for UdpSessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UdpSessions").finish_non_exhaustive()
    }
}

impl UdpSessions {
    pub(super) fn start(connection: Connection, share: Arc<UdpShare>) -> Self {
        let table = Table::default();
        let mut reader = JoinSet::new();
        reader.spawn(read(connection.clone(), Arc::clone(&table)));
        Self {
            connection,
            share,
            table,
            _reader: reader,
        }
    }

    pub(super) fn open(&self, id: u32, owner: Arc<dyn Any + Send + Sync>) -> UdpSession {
        let packets = enter(&self.table, id);
        UdpSession {
            id,
            connection: self.connection.clone(),
            share: Arc::clone(&self.share),
            table: Arc::clone(&self.table),
            packets: AsyncMutex::new(packets),
            next_packet: AtomicU16::new(rand::random()),
            _owner: owner,
        }
    }
}

/// Begins a session; returns what comes in for it.
fn enter(table: &Table, id: u32) -> mpsc::Receiver<UdpPacket> {
    let (queue, packets) = mpsc::channel(QUEUE);
    let entry = Entry {
        queue,
        fragments: Defragmenter::new(),
    };
    table.lock().insert(id, entry);
    packets
}

/// Hands the connection's datagrams to their sessions.
async fn read(connection: Connection, table: Table) {
    let mut sweep = pin!(sleep_until(Instant::now()));
    // Only while there are unfinished fragments: a connection without them sleeps.
    let mut sweeping = false;
    loop {
        // Both arms are cancel safe.
        let unfinished = tokio::select! {
            datagram = connection.read_datagram() => match datagram {
                Ok(datagram) => dispatch(&table, &datagram) || sweeping,
                Err(_) => break,
            },
            () = &mut sweep, if sweeping => {
                sweeping = false;
                expire(&table)
            }
        };
        if unfinished && !sweeping {
            sweep.as_mut().reset(Instant::now() + SWEEP);
        }
        sweeping = unfinished;
    }
    // Ends every waiting receiver.
    table.lock().clear();
}

/// Drops fragments that never became a message in time; tells whether others are left.
fn expire(table: &Table) -> bool {
    let now = Instant::now().into_std();
    let mut table = table.lock();
    table.values_mut().fold(false, |left, entry| {
        entry.fragments.expire(now);
        left || entry.fragments.held_bytes() > 0
    })
}

/// Hands a datagram to its session; tells whether it was a fragment.
fn dispatch(table: &Table, datagram: &Bytes) -> bool {
    let Ok(message) = UdpMessage::decode(datagram) else {
        return false;
    };
    let is_fragment = message.is_fragment();
    let mut table = table.lock();
    let packet = if is_fragment {
        let held: usize = table
            .values()
            .map(|entry| entry.fragments.held_bytes())
            .sum();
        if held > MAX_FRAGMENTS {
            return true;
        }
        let Some(entry) = table.get_mut(&message.session_id) else {
            return true;
        };
        let Some(whole) = entry.fragments.push(&message) else {
            return true;
        };
        UdpPacket {
            data: whole.data,
            source: whole.address.into(),
        }
    } else {
        UdpPacket {
            data: datagram.slice_ref(message.data),
            source: datagram.slice_ref(message.address.as_bytes()),
        }
    };
    if let Some(entry) = table.get(&message.session_id) {
        // Dropped when the application does not keep up: UDP.
        let _ = entry.queue.try_send(packet);
    }
    is_fragment
}

/// A UDP socket at the server: one source port, any number of destinations.
///
/// The server forgets it after its idle timeout; the next datagram sent makes it anew, with
/// another source port. Dropping it ends it on this side.
pub struct UdpSession {
    id: u32,
    connection: Connection,
    share: Arc<UdpShare>,
    table: Table,
    packets: AsyncMutex<mpsc::Receiver<UdpPacket>>,
    next_packet: AtomicU16,
    /// Keeps the connection open.
    _owner: Arc<dyn Any + Send + Sync>,
}

impl fmt::Debug for UdpSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UdpSession")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl UdpSession {
    /// Sends one datagram to `target` (`host:port`). UDP: it may be lost, and it is when more is
    /// sent than a fixed rate carries; 70 % of it while TCP streams are open.
    ///
    /// # Errors
    ///
    /// [`UdpSendError::Size`] when it cannot be carried, others when the address is invalid or
    /// the tunnel is gone.
    pub fn send(&self, data: &[u8], target: &str) -> Result<(), UdpSendError> {
        if target.len() > MAX_ADDRESS_LEN {
            return Err(UdpSendError::Address(format!(
                "longer than {MAX_ADDRESS_LEN} bytes"
            )));
        }
        AddressRef::parse(target).map_err(|error| UdpSendError::Address(error.to_string()))?;
        let message = UdpMessage::whole(self.id, target, data);
        if data.is_empty() || message.encoded_len() > MAX_MESSAGE_LEN {
            return Err(UdpSendError::Size {
                len: data.len(),
                max: max_payload(target.len()),
            });
        }
        if !self.share.try_take(message.encoded_len()) {
            return Ok(());
        }
        let max = self.connection.max_datagram_size().unwrap_or(0);
        if message.encoded_len() <= max {
            match self.send_one(&message) {
                Err(SendDatagramError::TooLarge) => {}
                other => return other.map_err(|error| self.failed(&error)),
            }
        }
        let packet_id = loop {
            let id = self.next_packet.fetch_add(1, Relaxed);
            if id != 0 {
                break id;
            }
        };
        let max = self.connection.max_datagram_size().unwrap_or(0);
        for part in fragment(&message, max, packet_id).map_err(|_| UdpSendError::PeerLimit)? {
            self.send_one(&part).map_err(|error| self.failed(&error))?;
        }
        Ok(())
    }

    fn send_one(&self, message: &UdpMessage<'_>) -> Result<(), SendDatagramError> {
        let mut encoded = BytesMut::with_capacity(message.encoded_len());
        message.encode(&mut encoded);
        self.connection.send_datagram(encoded.freeze())
    }

    fn failed(&self, error: &SendDatagramError) -> UdpSendError {
        match error {
            SendDatagramError::ConnectionLost(error) => UdpSendError::Lost(error.clone()),
            _ => UdpSendError::PeerLimit,
        }
    }

    /// Waits for the next datagram; `None` when the tunnel is gone.
    ///
    /// # Cancel safety
    ///
    /// Safe.
    pub async fn recv(&self) -> Option<UdpPacket> {
        self.packets.lock().await.recv().await
    }
}

impl Drop for UdpSession {
    fn drop(&mut self) {
        self.table.lock().remove(&self.id);
    }
}
