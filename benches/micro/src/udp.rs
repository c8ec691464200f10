//! The UDP side of a server connection: session table, way out, way back.

use std::{
    hint::black_box,
    io,
    net::SocketAddr,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use hy2_core::{
    Address, BoxFuture,
    event::EventSink,
    fuzzing::relay::{Answers, MAX_SESSIONS, Sent, Surroundings, Table},
    memory::MemoryBudget,
    meter::UserCounters,
    outbound::{DialError, Outbound, TcpConnection, UdpAssociation},
};
use hy2_proto::udp::UdpMessage;
use tokio::{io::ReadBuf, runtime, task};

use crate::{Case, payload};

/// Connections whose sessions make 100,000.
const CONNECTIONS: usize = 98;
const LEN: usize = 1200;

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case::new("sessions/out, one session", || out(1, 1)).bytes(LEN),
        Case::new("sessions/out, 1,024 sessions", || out(1, MAX_SESSIONS)).bytes(LEN),
        Case::new("sessions/out, 100,352 sessions", || {
            out(CONNECTIONS, MAX_SESSIONS)
        })
        .bytes(LEN),
        Case::new("sessions/back", || {
            let around = surroundings();
            let mut answers = Answers::new(&around);
            let association = Echo(payload(LEN));
            Box::new(move || {
                assert!(answers.pass(&association), "passed");
                let mut sent = around.sent.lock();
                // quinn holds them until they are sent, and lets go of many at once.
                if sent.len() == 64 {
                    sent.clear();
                }
            })
        })
        .bytes(LEN)
        // quinn owns what it sends. Eight datagrams share a buffer, which is an allocation, and
        // its count of owners, which is another.
        .allocates(BACK),
    ]
}

/// Allocations per datagram towards the client.
const BACK: f64 = 0.1;

fn surroundings() -> Surroundings {
    Surroundings {
        outbound: Arc::new(Nowhere),
        events: Arc::new(Nowhere),
        counters: Arc::new(UserCounters::new()),
        memory: MemoryBudget::new(1 << 30),
        sent: Sent::default(),
        max_datagram: Some(1400),
        idle_timeout: Duration::from_secs(600),
        node_sessions: usize::MAX,
    }
}

/// Datagrams of sessions that are open, each time of another one.
fn out(connections: usize, sessions: usize) -> Box<dyn FnMut()> {
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let data = payload(LEN);
    let around = surroundings();
    let datagrams: Vec<Bytes> = (0..sessions)
        .map(|session| {
            let mut wire = Vec::new();
            let session = u32::try_from(session).expect("few");
            UdpMessage::whole(session, "203.0.113.17:51820", &data).encode(&mut wire);
            wire.into()
        })
        .collect();
    let mut tables: Vec<Table> = runtime.block_on(async {
        let mut tables = Vec::new();
        for _ in 0..connections {
            let mut table = Table::new(&around);
            for datagram in &datagrams {
                table.accept(datagram);
            }
            while table.ready() < sessions {
                task::yield_now().await;
            }
            // The first datagram behind the opened socket finds out the destination.
            for datagram in &datagrams {
                table.accept(datagram);
            }
            tables.push(table);
        }
        tables
    });
    let mut random = 1_u64;
    Box::new(move || {
        // Keeps the sessions' tasks, which only wait.
        let _runtime = &runtime;
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let at = (random >> 33) as usize;
        let table = &mut tables[at / sessions % connections];
        table.accept(black_box(&datagrams[at % sessions]));
    })
}

/// Takes and answers nothing.
struct Nowhere;

impl EventSink for Nowhere {}

impl Outbound for Nowhere {
    fn tcp<'a>(
        &'a self,
        _: &'a Address,
    ) -> BoxFuture<'a, Result<Box<dyn TcpConnection>, DialError>> {
        Box::pin(async { Err(DialError::Denied) })
    }

    fn udp<'a>(
        &'a self,
        _: &'a Address,
    ) -> BoxFuture<'a, Result<Box<dyn UdpAssociation>, DialError>> {
        Box::pin(async { Ok(Box::new(Echo(Vec::new())) as Box<dyn UdpAssociation>) })
    }
}

/// Answers the same for ever; nothing when that is empty.
struct Echo(Vec<u8>);

impl UdpAssociation for Echo {
    fn try_send_to(&self, data: &[u8], destination: SocketAddr) -> io::Result<()> {
        black_box((data, destination));
        Ok(())
    }

    fn poll_recv_from(
        &self,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<SocketAddr>> {
        if self.0.is_empty() {
            return Poll::Pending;
        }
        buf.put_slice(&self.0);
        Poll::Ready(Ok(([203, 0, 113, 17], 51820).into()))
    }

    fn resolve<'a>(&'a self, target: &'a Address) -> BoxFuture<'a, Result<SocketAddr, DialError>> {
        Box::pin(async { target.socket_addr().ok_or(DialError::Unresolvable(None)) })
    }

    fn resolve_now(&self, target: &Address) -> Option<Result<SocketAddr, DialError>> {
        target.socket_addr().map(Ok)
    }
}
