//! Messages between master and node.

use std::hint::black_box;

use hy2_proto::control::rpc::{
    EngineState, Heartbeat, LeaseUse, SessionRequest, TrafficBatch, UserEntry, UserTraffic,
    session_request::Event,
};
use prost::Message;
use prost_types::{Duration, Timestamp};

use crate::Case;

/// Users in a batch, as of a busy node.
const USERS: u64 = 1_000;

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case::new("control/traffic batch encode", || {
            let batch = batch();
            let mut wire = Vec::with_capacity(batch.encoded_len());
            Box::new(move || {
                wire.clear();
                black_box(&batch).encode(&mut wire).expect("has room");
                black_box(&wire);
            })
        })
        .items(USERS),
        // Every row has a list of its own, and the list of rows grows.
        Case::new("control/traffic batch decode", || {
            let wire = batch().encode_to_vec();
            Box::new(move || {
                black_box(TrafficBatch::decode(black_box(&wire[..])).expect("valid"));
            })
        })
        .items(USERS)
        .allocates(1_010.0),
        Case::new("control/user entry decode", || {
            let wire = user(77).encode_to_vec();
            Box::new(move || {
                black_box(UserEntry::decode(black_box(&wire[..])).expect("valid"));
            })
        })
        .allocates(1.0),
        // As they come on a session.
        Case::new("control/heartbeat encode", || {
            let heartbeat = heartbeat();
            let mut wire = Vec::with_capacity(heartbeat.encoded_len());
            Box::new(move || {
                wire.clear();
                black_box(&heartbeat).encode(&mut wire).expect("has room");
                black_box(&wire);
            })
        }),
        Case::new("control/heartbeat decode", || {
            let wire = heartbeat().encode_to_vec();
            Box::new(move || {
                black_box(SessionRequest::decode(black_box(&wire[..])).expect("valid"));
            })
        }),
    ]
}

fn moment(seconds: i64) -> Option<Timestamp> {
    Some(Timestamp { seconds, nanos: 0 })
}

fn batch() -> TrafficBatch {
    let row = |user: u64| UserTraffic {
        user_id: user,
        tx: 123_456 + user,
        rx: 98_765_432 + user,
        total_tx: 1_234_567_890 + user,
        total_rx: 98_765_432_100 + user,
        leases: vec![LeaseUse {
            lease_id: 7_000_000 + user,
            billed_bytes: 98_888_888,
        }],
        last_seen: moment(1_790_000_000),
    };
    TrafficBatch {
        spool_id: vec![7; 16].into(),
        first_seq: 4_321,
        last_seq: 4_321,
        from: moment(1_790_000_000),
        to: moment(1_790_000_010),
        users: (1..=USERS).map(row).collect(),
    }
}

fn user(id: u64) -> UserEntry {
    UserEntry {
        user_id: id,
        verifier: vec![9; 32].into(),
        up_bytes_per_s: 12_500_000,
        down_bytes_per_s: 125_000_000,
        max_connections: 4,
        max_devices: 2,
        expires_at: moment(1_800_000_000),
        metered: true,
        rev: 3,
    }
}

fn heartbeat() -> SessionRequest {
    SessionRequest {
        event: Some(Event::Heartbeat(Heartbeat {
            uptime: Some(Duration {
                seconds: 1_234_567,
                nanos: 890_000_000,
            }),
            connections: 1_234,
            users_online: 567,
            tx_bytes_per_s: 12_345_678,
            rx_bytes_per_s: 123_456_789,
            cpu_permille: 345,
            memory_permille: 456,
            manifest_rev: 7_890,
            spool_bytes: 65_536,
            engine: EngineState::Serving.into(),
        })),
    }
}
