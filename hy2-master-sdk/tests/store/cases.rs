//! What the store promises.

use std::time::Duration;

use hy2_master_sdk::MasterConfig;
use hy2_master_sdk::domain::{
    AdminId, AssignmentSource, ConfigScope, DesiredState, LeaseId, NodeId, ObservedState, PlanId,
    Timestamp, UserId, UserStatus,
};
use hy2_master_sdk::store::assignments::{self, NewAssignment};
use hy2_master_sdk::store::certificates::{self, NewToken};
use hy2_master_sdk::store::leases::{self, Grant, Want};
use hy2_master_sdk::store::nodes::{self, Bump, NewNode, NodeChange};
use hy2_master_sdk::store::observed::{self, MetricsRow, Opening, Seen};
use hy2_master_sdk::store::published::{self, NewConfig};
use hy2_master_sdk::store::traffic::{Batch, BatchRow};
use hy2_master_sdk::store::users::{self, NewUser, UserChange};
use hy2_master_sdk::store::{
    Db, Store, StoreError, Topic, alerts, cluster, due, events, idempotency, pools, upkeep,
};
use uuid::Uuid;

use crate::backend::Backend;

pub(crate) const NOW: Timestamp = Timestamp(1_800_000_000_000);

pub(crate) async fn what_is_written_is_read_back(backend: &Backend) {
    let store = &backend.store;
    let node = node(store, "one").await;
    let user = user(store, "ann").await;
    let reopened = backend.reopen().await;
    let row = reopened.node(node).await.unwrap();
    assert_eq!(
        (row.name.as_str(), row.listen_port, row.desired_state),
        ("one", 8080, DesiredState::Active)
    );
    assert_eq!(row.tags.0, ["a"]);
    assert_eq!(reopened.node_by_uid(row.uid).await.unwrap().id, node);
    let row = reopened.user(user).await.unwrap();
    assert_eq!(
        (row.username.as_str(), row.status, row.used()),
        ("ann", UserStatus::Active, 0)
    );
    assert_eq!(row.created_at, NOW);
    assert_eq!(reopened.user_by_name("ann").await.unwrap().id, user);
    assert_eq!(reopened.users(None, 10).await.unwrap().len(), 1);
    assert!(reopened.users(Some(user), 10).await.unwrap().is_empty());
    assert!(matches!(
        reopened.user(UserId(99)).await,
        Err(StoreError::NotFound("user"))
    ));
}

pub(crate) async fn who_is_kept_to_pools_is_short_of_nodes_of_these_only(backend: &Backend) {
    let store = &backend.store;
    let (one, two, three) = (
        node(store, "one").await,
        node(store, "two").await,
        node(store, "three").await,
    );
    execute(store, "update vps_nodes set observed_state = 'online'").await;
    for plan in [
        "insert into plans (name, created_at, updated_at) values ('pooled', 1, 1)",
        "insert into plans (name, created_at, updated_at) values ('empty', 1, 1)",
        "insert into plans (name, created_at, updated_at) values ('free', 1, 1)",
    ] {
        execute(store, plan).await;
    }
    let mut users = Vec::new();
    for (name, plan) in [("ann", 1), ("bob", 2), ("cyd", 3), ("dan", 0)] {
        let plan = (plan > 0).then_some(PlanId(plan));
        users.push(user_with(store, name, |user| user.plan_id = plan).await);
    }
    let mut tx = store.begin().await.unwrap();
    let pool = pools::create(&mut tx, "pool", NOW).await.unwrap().id;
    assert!(matches!(
        pools::set_members(&mut tx, pool, &[NodeId(99)]).await,
        Err(StoreError::Reference(_))
    ));
    tx.rollback().await.unwrap();
    let mut tx = store.begin().await.unwrap();
    assert!(pools::get_in(&mut tx, pool).await.is_err(), "nothing of it");
    let pool = pools::create(&mut tx, "pool", NOW).await.unwrap().id;
    let other = pools::create(&mut tx, "other", NOW).await.unwrap().id;
    let empty = pools::create(&mut tx, "empty", NOW).await.unwrap().id;
    pools::set_members(&mut tx, pool, &[one, two])
        .await
        .unwrap();
    pools::set_members(&mut tx, other, &[two]).await.unwrap();
    pools::set_of_plan(&mut tx, PlanId(1), &[pool, other])
        .await
        .unwrap();
    pools::set_of_plan(&mut tx, PlanId(2), &[empty])
        .await
        .unwrap();
    tx.commit().await.unwrap();
    let nodes = pools::nodes_of_plans(store).await.unwrap();
    assert_eq!(nodes[&PlanId(1)], [one, two].into());
    assert!(nodes[&PlanId(2)].is_empty());
    assert_eq!(nodes.len(), 2);

    let short = async || -> Vec<UserId> {
        let rows = store.short_of_nodes(UserId(0), 3, 10).await.unwrap();
        rows.into_iter().map(|row| row.id).collect()
    };
    // Of an empty pool nobody waits for anything.
    assert_eq!(short().await, [users[0], users[2], users[3]]);
    // Nodes beside the pools do not stand for those in them.
    assign(store, users[0], three).await;
    assert_eq!(short().await, [users[0], users[2], users[3]]);
    for user in [users[0], users[2]] {
        for node in [one, two] {
            assign(store, user, node).await;
        }
    }
    assert_eq!(short().await, [users[2], users[3]]);
    // A plan forgets a pool that is removed.
    let mut tx = store.begin().await.unwrap();
    pools::delete(&mut tx, empty).await.unwrap();
    assert!(pools::of_plan(&mut tx, PlanId(2)).await.unwrap().is_empty());
    tx.commit().await.unwrap();
    assert_eq!(short().await, [users[1], users[2], users[3]]);
}

pub(crate) async fn an_alert_is_open_once_and_news_when_it_gets_worse(backend: &Backend) {
    let store = &backend.store;
    let node = node(store, "one").await;
    let mut tx = store.begin().await.unwrap();
    for of in [None, Some(node)] {
        let mut news = Vec::new();
        for severity in ["warning", "warning", "critical", "critical", "warning"] {
            news.push(
                alerts::raise(&mut tx, of, "rule", severity, "text", NOW)
                    .await
                    .unwrap(),
            );
        }
        assert_eq!(news, [true, false, true, false, false], "{of:?}");
    }
    alerts::close_others(&mut tx, "rule", &[None], NOW)
        .await
        .unwrap();
    assert!(
        !alerts::raise(&mut tx, None, "rule", "warning", "text", NOW)
            .await
            .unwrap()
    );
    assert!(
        alerts::raise(&mut tx, Some(node), "rule", "warning", "text", NOW)
            .await
            .unwrap()
    );
    alerts::close_others(&mut tx, "rule", &[], NOW)
        .await
        .unwrap();
    assert!(
        alerts::raise(&mut tx, None, "rule", "warning", "text", NOW)
            .await
            .unwrap()
    );
    tx.commit().await.unwrap();
}

pub(crate) async fn a_taken_name_is_named_the_same_way(backend: &Backend) {
    let store = &backend.store;
    node(store, "one").await;
    user(store, "ann").await;
    let mut tx = store.begin().await.unwrap();
    let error = users::create(&mut tx, &new_user("ann"), NOW)
        .await
        .unwrap_err();
    assert!(error.is_duplicate_of("users_username_key"), "{error:?}");
    tx.rollback().await.unwrap();
    let mut tx = store.begin().await.unwrap();
    let error = nodes::create(&mut tx, &new_node("one"), NOW)
        .await
        .unwrap_err();
    assert!(error.is_duplicate_of("vps_nodes_name_key"), "{error:?}");
    tx.rollback().await.unwrap();
    let mut tx = store.begin().await.unwrap();
    let mut wrong = new_user("bob");
    wrong.plan_id = Some(PlanId(77));
    let error = users::create(&mut tx, &wrong, NOW).await.unwrap_err();
    assert!(matches!(error, StoreError::Reference(_)), "{error:?}");
}

pub(crate) async fn a_deleted_user_frees_the_name_and_keeps_no_secret(backend: &Backend) {
    let store = &backend.store;
    let node = node(store, "one").await;
    let ann = user(store, "ann").await;
    assign(store, ann, node).await;
    let mut tx = store.begin().await.unwrap();
    users::delete(&mut tx, ann, None, NOW).await.unwrap();
    tx.commit().await.unwrap();
    assert!(matches!(
        store.user(ann).await,
        Err(StoreError::NotFound(_))
    ));
    assert!(
        store
            .assignments(Some(ann), None, false, None, 9)
            .await
            .unwrap()
            .is_empty()
    );
    assert_eq!(
        store
            .assignments(Some(ann), None, true, None, 9)
            .await
            .unwrap()
            .len(),
        1
    );
    let again = user(store, "ann").await;
    assert_ne!(again, ann);
    let mut tx = store.snapshot().await.unwrap();
    let entry = &published::entries(&mut tx, node, 1, UserId(0), 9)
        .await
        .unwrap()[0];
    assert_eq!((entry.user_id, entry.assigned), (ann, 0));
    assert!(entry.seed_enc.is_empty());
}

pub(crate) async fn a_change_of_a_user_bumps_every_node_that_serves_and_marks_the_entry(
    backend: &Backend,
) {
    let store = &backend.store;
    let nodes = [
        node(store, "one").await,
        node(store, "two").await,
        node(store, "three").await,
    ];
    let (ann, bob) = (user(store, "ann").await, user(store, "bob").await);
    for node in &nodes[..2] {
        assign(store, ann, *node).await;
        assign(store, bob, *node).await;
    }
    let before = revs(store, &nodes).await;
    let mut tx = store.begin().await.unwrap();
    let change = UserChange {
        status: Some(UserStatus::Disabled),
        ..UserChange::default()
    };
    users::update(&mut tx, ann, None, &change, NOW)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    let after = revs(store, &nodes).await;
    assert_eq!(after, [before[0] + 1, before[1] + 1, before[2]]);
    let mut tx = store.snapshot().await.unwrap();
    let changed = published::entries(&mut tx, nodes[0], before[0], UserId(0), 9)
        .await
        .unwrap();
    assert_eq!(changed.len(), 1);
    assert_eq!((changed[0].user_id, changed[0].rev), (ann, after[0]));
    let all = published::entries(&mut tx, nodes[0], 0, UserId(0), 9)
        .await
        .unwrap();
    assert_eq!(all.len(), 2);
    let row = nodes::get(&mut tx, nodes[0]).await.unwrap();
    assert_eq!((row.users_rev, row.config_rev), (after[0], 1));
}

pub(crate) async fn a_stale_revision_is_refused_and_changes_nothing(backend: &Backend) {
    let store = &backend.store;
    let ann = user(store, "ann").await;
    let node = node(store, "one").await;
    let mut tx = store.begin().await.unwrap();
    let error = users::update(&mut tx, ann, Some(9), &UserChange::default(), NOW)
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            StoreError::StaleRevision {
                expected: 9,
                actual: 1,
                ..
            }
        ),
        "{error:?}"
    );
    let change = NodeChange {
        name: Some("uno".to_owned()),
        ..NodeChange::default()
    };
    assert!(
        nodes::update(&mut tx, node, Some(2), &change, NOW)
            .await
            .is_err()
    );
    let row = nodes::update(&mut tx, node, Some(1), &change, NOW)
        .await
        .unwrap();
    assert_eq!((row.name.as_str(), row.rev, row.desired_rev), ("uno", 2, 1));
    tx.commit().await.unwrap();
    assert_eq!(store.user(ann).await.unwrap().rev, 1);
}

pub(crate) async fn a_token_is_used_once_by_a_hundred_at_once(backend: &Backend) {
    let store = &backend.store;
    let token = NewToken {
        secret_hash: [7; 32],
        label: String::new(),
        bind_cidr: None,
        region_id: None,
        tags: Vec::new(),
        expires_at: NOW.plus(Duration::from_secs(900)),
        created_by: None,
    };
    let mut tx = store.begin().await.unwrap();
    let row = certificates::create_token(&mut tx, &token, NOW)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    let tries = (0..100_u8).map(|key| {
        let store = store.clone();
        tokio::spawn(async move {
            let mut tx = store.begin().await.unwrap();
            let used = certificates::use_token(&mut tx, row.id, &[key; 32], NOW)
                .await
                .unwrap();
            tx.commit().await.unwrap();
            used
        })
    });
    let mut used = 0;
    for attempt in tries.collect::<Vec<_>>() {
        used += usize::from(attempt.await.unwrap());
    }
    assert_eq!(used, 1);
    let mut tx = store.begin().await.unwrap();
    assert!(
        certificates::revoke_token(&mut tx, row.id, NOW)
            .await
            .is_err()
    );
    let late = NewToken {
        secret_hash: [8; 32],
        expires_at: NOW,
        ..token
    };
    let late = certificates::create_token(&mut tx, &late, NOW)
        .await
        .unwrap();
    assert!(
        !certificates::use_token(&mut tx, late.id, &[1; 32], NOW)
            .await
            .unwrap()
    );
}

pub(crate) async fn batches_count_once_in_every_order_and_number_of_deliveries(backend: &Backend) {
    let store = &backend.store;
    let node = node(store, "one").await;
    let ann = user(store, "ann").await;
    assign(store, ann, node).await;
    let spool = Uuid::from_u128(5);
    // A cheap generator with a fixed seed: duplicates, gaps, merged batches.
    let mut random = 0x1234_5678_u64;
    let mut next = move |below: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % below
    };
    let mut cursor = 0_i64;
    let mut expected = 0_i64;
    for _ in 0..200 {
        let first = match next(4) {
            0 => (cursor - 1).max(1),
            1 => cursor + 2,
            _ => cursor + 1,
        };
        let last = first + i64::try_from(next(3)).unwrap();
        let sent = batch(node, spool, first, last, &[(ann.0, first, last)]);
        let done = store.ingest(&sent, NOW).await.unwrap();
        let fits = first == cursor + 1;
        assert_eq!(done.added, fits, "{first}..{last} at {cursor}");
        if fits {
            cursor = last;
            expected += first + last;
        }
        assert_eq!(done.durable_seq, cursor);
    }
    let row = store.user(ann).await.unwrap();
    assert_eq!(row.tx + row.rx, expected);
    assert_eq!(row.used(), expected);
    let sums = store.node_counters(node).await.unwrap();
    assert_eq!((sums.tx, sums.rx), (row.tx, row.rx));
    let range = (Timestamp(0), Timestamp(i64::MAX));
    let hours = store.user_hourly(ann, range.0, range.1).await.unwrap();
    let days = store.user_daily(ann, range.0, range.1).await.unwrap();
    let of_node = store.node_daily(node, range.0, range.1).await.unwrap();
    for buckets in [hours, days, of_node] {
        assert_eq!(
            buckets
                .iter()
                .map(|bucket| bucket.tx + bucket.rx)
                .sum::<i64>(),
            expected
        );
    }
    assert_eq!(store.cursors(node).await.unwrap()[0].last_seq, cursor);
    // Another spool of the node begins at 1, whatever the first is at.
    let other = batch(node, Uuid::from_u128(6), 2, 2, &[(ann.0, 1, 1)]);
    assert!(!store.ingest(&other, NOW).await.unwrap().added);
    let again = batch(node, Uuid::from_u128(6), 1, 1, &[(ann.0, 1, 1)]);
    assert!(store.ingest(&again, NOW).await.unwrap().added);
}

pub(crate) async fn concurrent_deliveries_of_a_batch_count_once(backend: &Backend) {
    let store = &backend.store;
    let nodes = [node(store, "one").await, node(store, "two").await];
    let mut people = Vec::new();
    for number in 0..20 {
        let user = user(store, &format!("u{number}")).await;
        for node in nodes {
            assign(store, user, node).await;
        }
        people.push(user);
    }
    let mut deliveries = Vec::new();
    // Both nodes report all users at once, in opposite orders, each batch four times.
    for _ in 0..4 {
        for (index, node) in nodes.iter().enumerate() {
            let (store, node, mut people) = (store.clone(), *node, people.clone());
            if index == 1 {
                people.reverse();
            }
            deliveries.push(tokio::spawn(async move {
                let mut added = 0;
                for seq in 1..=10 {
                    let rows = people.iter().map(|user| (user.0, 1, 2)).collect::<Vec<_>>();
                    let batch = batch(node, Uuid::from_u128(1), seq, seq, &rows);
                    added += u32::from(store.ingest(&batch, NOW).await.unwrap().added);
                }
                added
            }));
        }
    }
    let mut added = 0;
    for delivery in deliveries {
        added += delivery.await.unwrap();
    }
    assert_eq!(added, 20);
    for user in people {
        let row = store.user(user).await.unwrap();
        assert_eq!((row.tx, row.rx), (20, 40));
    }
}

pub(crate) async fn rows_of_unknown_and_foreign_users_are_set_aside_and_do_not_block(
    backend: &Backend,
) {
    let store = &backend.store;
    let (one, two) = (node(store, "one").await, node(store, "two").await);
    let (ann, bob) = (user(store, "ann").await, user(store, "bob").await);
    assign(store, ann, one).await;
    assign(store, bob, two).await;
    let rows = [
        (ann.0, 1, 2),
        (bob.0, 10, 20),
        (999, 100, 200),
        (0, 5, 5),
        (ann.0, 3, 4),
    ];
    let done = store
        .ingest(&batch(one, Uuid::from_u128(1), 1, 1, &rows), NOW)
        .await
        .unwrap();
    assert!(done.added);
    assert_eq!((done.quarantined, done.durable_seq), (3, 1));
    let row = store.user(ann).await.unwrap();
    assert_eq!((row.tx, row.rx), (4, 6));
    assert_eq!(store.user(bob).await.unwrap().tx, 0);
    let sums = store.node_counters(one).await.unwrap();
    assert_eq!((sums.tx, sums.rx), (4, 6));
    assert_eq!((sums.quarantined_tx, sums.quarantined_rx), (115, 225));
    // Out of range: set aside, the rest counts.
    let rows = [(ann.0, -1, 0), (ann.0, i64::MAX, i64::MAX)];
    let done = store
        .ingest(&batch(one, Uuid::from_u128(1), 2, 2, &rows), NOW)
        .await
        .unwrap();
    assert_eq!((done.added, done.quarantined), (true, 1));
    assert_eq!(store.user(ann).await.unwrap().tx, 4);
}

pub(crate) async fn late_traffic_of_a_released_user_counts(backend: &Backend) {
    let store = &backend.store;
    let node = node(store, "one").await;
    let ann = user(store, "ann").await;
    assign(store, ann, node).await;
    let mut tx = store.begin().await.unwrap();
    assignments::release(&mut tx, ann, node, NOW).await.unwrap();
    tx.commit().await.unwrap();
    let done = store
        .ingest(
            &batch(node, Uuid::from_u128(1), 1, 1, &[(ann.0, 7, 0)]),
            NOW,
        )
        .await
        .unwrap();
    assert_eq!(done.quarantined, 0);
    assert_eq!(store.user(ann).await.unwrap().tx, 7);
    let mut tx = store.begin().await.unwrap();
    assert!(matches!(
        assignments::release(&mut tx, ann, node, NOW).await,
        Err(StoreError::NotFound("assignment"))
    ));
    drop(tx);
    // Again: a second active row beside the released one.
    assign(store, ann, node).await;
    assign(store, ann, node).await;
    assert_eq!(
        store
            .assignments(Some(ann), Some(node), true, None, 9)
            .await
            .unwrap()
            .len(),
        2
    );
}

pub(crate) async fn the_multiplier_bills_and_a_reset_never_takes_counters_back(backend: &Backend) {
    let store = &backend.store;
    let node = node(store, "one").await;
    let ann = user(store, "ann").await;
    assign(store, ann, node).await;
    let mut batch = batch(node, Uuid::from_u128(1), 1, 1, &[(ann.0, 100, 100)]);
    batch.multiplier = 1_500_000_000;
    store.ingest(&batch, NOW).await.unwrap();
    let row = store.user(ann).await.unwrap();
    assert_eq!(
        (row.tx, row.rx, row.billed, row.used()),
        (100, 100, 300, 300)
    );
    let mut tx = store.begin().await.unwrap();
    let row = users::reset_traffic(&mut tx, ann, "asked", "admin:1", NOW)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    assert_eq!((row.tx, row.billed, row.used()), (100, 300, 0));
    (batch.first_seq, batch.last_seq) = (2, 2);
    store.ingest(&batch, NOW).await.unwrap();
    let row = store.user(ann).await.unwrap();
    assert_eq!((row.billed, row.used()), (600, 300));
}

pub(crate) async fn slices_never_exceed_the_quota_and_consumption_frees_nothing_twice(
    backend: &Backend,
) {
    let store = &backend.store;
    const MIB: i64 = 1 << 20;
    let nodes = [node(store, "one").await, node(store, "two").await];
    let ann = user_with(store, "ann", |user| user.quota_bytes = Some(16 * MIB)).await;
    let free = user(store, "free").await;
    for node in nodes {
        assign(store, ann, node).await;
        assign(store, free, node).await;
    }
    assert_eq!(grant(store, nodes[0], free, None, 0).await, Grant::None);
    let foreign = node(store, "three").await;
    assert_eq!(grant(store, foreign, ann, None, 0).await, Grant::None);
    // Both nodes take as much as they can, at once.
    let takers = nodes.map(|node| {
        let store = store.clone();
        tokio::spawn(async move {
            let mut granted = Vec::new();
            while let Grant::Slice {
                lease,
                granted: slice,
                ..
            } = grant(&store, node, ann, None, 0).await
            {
                granted.push((lease, slice));
            }
            granted
        })
    });
    let mut taken = Vec::new();
    for (taker, node) in takers.into_iter().zip(nodes) {
        taken.extend(
            taker
                .await
                .unwrap()
                .into_iter()
                .map(|(lease, slice)| (node, lease, slice)),
        );
    }
    assert_eq!(
        taken.iter().map(|(_, _, slice)| slice).sum::<i64>(),
        16 * MIB
    );
    assert_eq!(
        taken.iter().map(|(_, _, slice)| *slice).max(),
        Some(4 * MIB)
    );
    assert_eq!(grant(store, nodes[0], ann, None, 0).await, Grant::Exhausted);
    // One node uses its first slice up: the quota is used, not free again.
    let (node, lease, slice) = taken[0];
    let mut batch = batch(node, Uuid::from_u128(1), 1, 1, &[(ann.0, slice, 0)]);
    batch.rows[0].leases = vec![(lease, slice + 5)];
    store.ingest(&batch, NOW).await.unwrap();
    assert_eq!(store.user(ann).await.unwrap().used(), slice);
    assert_eq!(grant(store, nodes[0], ann, None, 0).await, Grant::Exhausted);
    let open = store.open_leases(Some(ann), 100).await.unwrap();
    assert_eq!(open.len(), taken.len() - 1, "a spent lease is closed");
    assert!(open.iter().all(|row| row.consumed == 0));
    // What a lost node held comes back when an operator forfeits it.
    let mut tx = store.begin().await.unwrap();
    leases::forfeit(&mut tx, nodes[1], None, NOW).await.unwrap();
    tx.commit().await.unwrap();
    assert!(matches!(
        grant(store, nodes[0], ann, None, 0).await,
        Grant::Slice { .. }
    ));
}

pub(crate) async fn a_released_slice_goes_back_but_what_was_used_stays_debited(backend: &Backend) {
    let store = &backend.store;
    const MIB: i64 = 1 << 20;
    let node = node(store, "one").await;
    let ann = user_with(store, "ann", |user| user.quota_bytes = Some(MIB)).await;
    assign(store, ann, node).await;
    let Grant::Slice { lease, granted, .. } = grant(store, node, ann, None, 0).await else {
        panic!("a first slice");
    };
    assert_eq!(granted, MIB);
    assert_eq!(
        grant(store, node, ann, Some(lease), MIB).await,
        Grant::Exhausted
    );
    let mut tx = store.begin().await.unwrap();
    let want = Want {
        user: ann,
        lease: Some(lease),
        remaining: MIB - 1000,
        release: true,
    };
    leases::grant(&mut tx, node, 1_000_000_000, want, NOW)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    // 1,000 bytes are used and not reported yet.
    let Grant::Slice { granted, .. } = grant(store, node, ann, None, 0).await else {
        panic!("the rest is free again");
    };
    assert_eq!(granted, MIB - 1000);
}

pub(crate) async fn device_slots_are_fleet_wide(backend: &Backend) {
    let store = &backend.store;
    let nodes = [node(store, "one").await, node(store, "two").await];
    let ann = user_with(store, "ann", |user| user.max_devices = Some(3)).await;
    for node in nodes {
        assign(store, ann, node).await;
    }
    let slots = async |node: NodeId, wanted: i64, now: Timestamp| {
        let mut tx = store.begin().await.unwrap();
        let granted = leases::grant_devices(&mut tx, node, ann, 0, wanted, now)
            .await
            .unwrap();
        tx.commit().await.unwrap();
        granted.map(|(slots, _)| slots)
    };
    assert_eq!(slots(nodes[0], 2, NOW).await, Some(2));
    assert_eq!(slots(nodes[1], 2, NOW).await, Some(1));
    assert_eq!(slots(nodes[0], 3, NOW).await, Some(2));
    assert_eq!(slots(nodes[0], 1, NOW).await, Some(1));
    assert_eq!(slots(nodes[1], 2, NOW).await, Some(2));
    // A node that does not renew loses them.
    let later = NOW.plus(Duration::from_secs(3_600));
    assert_eq!(slots(nodes[0], 3, later).await, Some(3));
    let free = user(store, "free").await;
    let mut tx = store.begin().await.unwrap();
    assert!(
        leases::grant_devices(&mut tx, nodes[0], free, 0, 1, NOW)
            .await
            .unwrap()
            .is_none()
    );
}

pub(crate) async fn time_and_traffic_change_users_and_bring_them_back(backend: &Backend) {
    let store = &backend.store;
    let node = node(store, "one").await;
    let expiring = user_with(store, "expiring", |user| {
        user.expires_at = Some(NOW.plus(Duration::from_secs(10)))
    })
    .await;
    let metered = user_with(store, "metered", |user| user.quota_bytes = Some(100)).await;
    let held = user_with(store, "held", |user| {
        user.status = UserStatus::OnHold;
        user.hold_duration_ms = Some(1_000);
    })
    .await;
    for user in [expiring, metered, held] {
        assign(store, user, node).await;
    }
    run_due(store, NOW).await;
    assert_eq!(
        statuses(store, [expiring, metered, held]).await,
        ["active", "active", "on_hold"]
    );
    let rows = [(metered.0, 60, 40), (held.0, 1, 0)];
    store
        .ingest(&batch(node, Uuid::from_u128(1), 1, 1, &rows), NOW)
        .await
        .unwrap();
    let before = store.node(node).await.unwrap().desired_rev;
    let later = NOW.plus(Duration::from_secs(10));
    run_due(store, later).await;
    assert_eq!(
        statuses(store, [expiring, metered, held]).await,
        ["expired", "limited", "active"]
    );
    assert!(store.node(node).await.unwrap().desired_rev > before);
    assert_eq!(
        store.user(held).await.unwrap().expires_at,
        Some(Timestamp(later.0 + 1_000))
    );
    // More time, a higher quota: both are back.
    let mut tx = store.begin().await.unwrap();
    let more = UserChange {
        expires_at: Some(None),
        quota_bytes: Some(Some(101)),
        ..UserChange::default()
    };
    for user in [expiring, metered] {
        users::update(&mut tx, user, None, &more, later)
            .await
            .unwrap();
    }
    tx.commit().await.unwrap();
    run_due(store, later).await;
    assert_eq!(
        statuses(store, [expiring, metered, held]).await,
        ["active", "active", "active"]
    );
}

pub(crate) async fn silence_makes_a_node_suspect_then_offline_and_a_heartbeat_brings_it_back(
    backend: &Backend,
) {
    let store = &backend.store;
    let node = node(store, "one").await;
    let opening = Opening {
        agent_version: "1".to_owned(),
        capabilities: Vec::new(),
        hostname: "h".to_owned(),
        listening: Vec::new(),
        boot_id: None,
        engine_state: hy2_master_sdk::domain::EngineState::Serving,
    };
    let master = Uuid::from_u128(1);
    let first = store
        .open_session(node, master, &opening, NOW)
        .await
        .unwrap()
        .unwrap();
    let second = store
        .open_session(node, master, &opening, NOW)
        .await
        .unwrap()
        .unwrap();
    assert!(second > first);
    assert!(matches!(
        store.note_applied(node, first, 1, 1, NOW).await,
        Err(StoreError::Fenced(_))
    ));
    store.note_applied(node, second, 1, 1, NOW).await.unwrap();
    let state = async || store.node(node).await.unwrap().observed_state;
    let silent = async |seconds: u64| {
        let now = NOW.plus(Duration::from_secs(seconds));
        let mut tx = store.begin().await.unwrap();
        let (suspect, offline) = (
            now.minus(Duration::from_secs(25)),
            now.minus(Duration::from_secs(40)),
        );
        observed::expire_silent(&mut tx, suspect, offline, now)
            .await
            .unwrap();
        tx.commit().await.unwrap();
    };
    silent(24).await;
    assert_eq!(state().await, ObservedState::Online);
    silent(25).await;
    assert_eq!(state().await, ObservedState::Suspect);
    silent(40).await;
    assert_eq!(state().await, ObservedState::Offline);
    let seen = Seen {
        node,
        at: NOW.plus(Duration::from_secs(50)),
        connections: 3,
        users_online: 2,
    };
    store.note_seen(&[seen], seen.at).await.unwrap();
    let row = store.node(node).await.unwrap();
    assert_eq!(
        (row.observed_state, row.connections),
        (ObservedState::Online, 3)
    );
    assert_eq!(row.last_seen_at, Some(seen.at));
    let mut tx = store.begin().await.unwrap();
    certificates::revoke_node(&mut tx, node, "stolen", NOW)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    assert_eq!(
        store
            .open_session(node, master, &opening, NOW)
            .await
            .unwrap(),
        None
    );
}

pub(crate) async fn a_lease_has_one_holder_and_an_old_token_writes_nothing(backend: &Backend) {
    let store = &backend.store;
    let (a, b) = (Uuid::from_u128(1), Uuid::from_u128(2));
    let first = store
        .acquire_lease("task", a, NOW, 1_000)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        store.acquire_lease("task", b, NOW, 1_000).await.unwrap(),
        None
    );
    assert_eq!(
        store.acquire_lease("task", a, NOW, 1_000).await.unwrap(),
        Some(first.clone())
    );
    let later = Timestamp(NOW.0 + 1_000);
    let second = store
        .acquire_lease("task", b, later, 1_000)
        .await
        .unwrap()
        .unwrap();
    assert!(second.token > first.token);
    let mut tx = store.begin().await.unwrap();
    assert!(matches!(
        cluster::check_fence(&mut tx, &first).await,
        Err(StoreError::Fenced("task"))
    ));
    cluster::check_fence(&mut tx, &second).await.unwrap();
    tx.commit().await.unwrap();
    store.release_leases(b, later).await.unwrap();
    assert!(
        store
            .acquire_lease("task", a, later, 1_000)
            .await
            .unwrap()
            .is_some()
    );
}

pub(crate) async fn configurations_concern_their_nodes_and_going_back_is_going_on(
    backend: &Backend,
) {
    let store = &backend.store;
    let nodes = [node(store, "one").await, node(store, "two").await];
    let append = async |scope, scope_id, body: serde_json::Value| {
        let new = NewConfig {
            scope,
            scope_id,
            body,
            author: None,
            message: "m".to_owned(),
        };
        let mut tx = store.begin().await.unwrap();
        let row = published::append_config(&mut tx, &new, NOW).await.unwrap();
        tx.commit().await.unwrap();
        row
    };
    let first = append(
        ConfigScope::Fleet,
        0,
        serde_json::json!({"speed_test": true}),
    )
    .await;
    assert_eq!(revs(store, &nodes).await, [2, 2]);
    append(
        ConfigScope::Node,
        nodes[1].0,
        serde_json::json!({"udp_idle_s": 9}),
    )
    .await;
    assert_eq!(revs(store, &nodes).await, [2, 3]);
    let back = append(ConfigScope::Fleet, 0, first.body.0.clone()).await;
    assert_eq!(back.parent, Some(first.id));
    assert!(back.id > first.id);
    assert_eq!(back.sha256, first.sha256);
    let mut tx = store.snapshot().await.unwrap();
    let bodies = published::configs_of(&mut tx, nodes[1], None)
        .await
        .unwrap();
    assert_eq!(bodies.len(), 2);
    assert_eq!(bodies[1]["udp_idle_s"], 9);
    assert_eq!(
        store.configs(ConfigScope::Fleet, 0, None, 9).await.unwrap()[0].id,
        back.id
    );
}

pub(crate) async fn calls_arrive_after_the_commit_only(backend: &Backend) {
    let store = &backend.store;
    // On PostgreSQL another process hears it too.
    let other = backend.reopen().await;
    let mut heard = if store.is_postgres() {
        let heard = other.bus().listen();
        let relay = other.clone();
        tokio::spawn(async move { relay.relay_calls().await });
        heard
    } else {
        store.bus().listen()
    };
    let node = node(store, "one").await;
    let deadline = Duration::from_secs(30);
    // Whatever arrived until the listener was ready.
    tokio::time::timeout(deadline, heard.recv())
        .await
        .unwrap()
        .unwrap();
    let mut tx = store.begin().await.unwrap();
    nodes::bump(&mut tx, node, Bump::MANIFEST, NOW)
        .await
        .unwrap();
    tx.rollback().await.unwrap();
    let mut tx = store.begin().await.unwrap();
    tx.call(Topic::Revocations);
    tx.commit().await.unwrap();
    loop {
        let topic = tokio::time::timeout(deadline, heard.recv())
            .await
            .unwrap()
            .unwrap();
        if topic == Topic::Revocations {
            break;
        }
    }
}

pub(crate) async fn averages_and_retention(backend: &Backend) {
    let store = &backend.store;
    let node = node(store, "one").await;
    let start = Timestamp(NOW.0 - NOW.0 % 300_000);
    let samples = (0..20)
        .map(|number| MetricsRow {
            at: Timestamp(start.0 + number * 15_000),
            cpu_permille: number * 10,
            memory_used_bytes: 1,
            memory_total_bytes: 2,
            load1: 0.5,
            disk_free_bytes: 3,
            open_files: 4,
            tx_bytes_per_s: 5,
            rx_bytes_per_s: 6,
            connections: 7,
            users_online: 8,
            tcp_streams: 9,
            udp_sessions: 10,
            auth_accepted: 11,
            auth_rejected: 12,
            handshakes_failed: 13,
            rtt_p50_ms: 1.5,
            rtt_p95_ms: 2.5,
            loss_permille: 14,
            spool_bytes: 15,
            agent_memory_bytes: 16,
            panics: 0,
        })
        .collect::<Vec<_>>();
    store.insert_metrics(node, &samples).await.unwrap();
    store.insert_metrics(node, &samples[..3]).await.unwrap();
    let end = Timestamp(start.0 + 300_000);
    let mut tx = store.begin().await.unwrap();
    for _ in 0..2 {
        upkeep::average_metrics(&mut tx, 15, 300, start, end)
            .await
            .unwrap();
    }
    tx.commit().await.unwrap();
    let averages = store.metrics(node, 300, start, end, 9).await.unwrap();
    assert_eq!(averages.len(), 1);
    assert_eq!((averages[0].at, averages[0].cpu_permille), (start, 95));
    assert!((averages[0].load1 - 0.5).abs() < 1e-9);
    let config = MasterConfig::default();
    let mut tx = store.begin().await.unwrap();
    let later = end.plus(config.keep_metrics);
    let expired = upkeep::expire(&mut tx, &config, later).await.unwrap();
    assert_eq!((expired.rows, expired.more), (20, false));
    tx.commit().await.unwrap();
    assert!(
        store
            .metrics(node, 15, start, end, 99)
            .await
            .unwrap()
            .is_empty()
    );
    assert_eq!(
        store.metrics(node, 300, start, end, 9).await.unwrap().len(),
        1
    );
}

pub(crate) async fn retention_goes_in_pieces_and_keeps_what_is_needed(backend: &Backend) {
    let store = &backend.store;
    let config = MasterConfig::default();
    let many = upkeep::MAX_EXPIRED + 3;
    execute(
        store,
        "insert into traffic_daily (day, user_id, tx, rx) with recursive n (i) as \
         (select 1 union all select i + 1 from n where i < 5003) select 0, i, 1, 1 from n",
    )
    .await;
    assert_eq!(many, 5_003, "as many as the statement makes");
    let mut tx = store.begin().await.unwrap();
    for at in 0..3 {
        let payload = serde_json::json!({"at": at});
        events::emit(&mut tx, "user.created", "1", &payload, None, NOW)
            .await
            .unwrap();
    }
    tx.commit().await.unwrap();
    let claim = async |key, at: Timestamp| {
        let until = at.plus(Duration::from_secs(60));
        let claimed = idempotency::claim(store, AdminId(1), key, b"hash", at, until).await;
        claimed.unwrap().is_none()
    };
    assert!(claim("old", NOW).await);
    let later = NOW.plus(config.keep_events + Duration::from_secs(61));
    assert!(claim("new", later).await);
    let expire = async || {
        let mut tx = store.begin().await.unwrap();
        let expired = upkeep::expire(&mut tx, &config, later).await.unwrap();
        tx.commit().await.unwrap();
        (expired.rows, expired.more)
    };
    // What nobody has numbered yet, nobody has been told of: only the old claim goes.
    let piece = upkeep::MAX_EXPIRED;
    assert_eq!(expire().await, (piece + 1, true));
    assert_eq!(expire().await, (3, false));
    assert_eq!(events::seal(store).await.unwrap(), 3);
    assert_eq!(expire().await, (2, false));
    let left = events::after(store, 0, 10).await.unwrap();
    assert_eq!(left.len(), 1);
    assert_eq!((left[0].seq, events::newest(store).await.unwrap()), (3, 3));
    assert!(!claim("new", later).await, "kept");
    assert_eq!(expire().await, (0, false));
}

async fn execute(store: &Store, sql: &'static str) {
    match store.db() {
        Db::Pg(pool) => {
            sqlx::query(sql).execute(pool).await.unwrap();
        }
        Db::Sqlite { write, .. } => {
            sqlx::query(sql).execute(write).await.unwrap();
        }
    }
}

// ---------------------------------------------------------------- helpers

pub(crate) async fn node(store: &Store, name: &str) -> NodeId {
    let mut tx = store.begin().await.unwrap();
    let row = nodes::create(&mut tx, &new_node(name), NOW).await.unwrap();
    tx.commit().await.unwrap();
    row.id
}

pub(crate) async fn user(store: &Store, name: &str) -> UserId {
    user_with(store, name, |_| {}).await
}

async fn user_with(store: &Store, name: &str, shape: impl FnOnce(&mut NewUser)) -> UserId {
    let mut new = new_user(name);
    shape(&mut new);
    let mut tx = store.begin().await.unwrap();
    let row = users::create(&mut tx, &new, NOW).await.unwrap();
    tx.commit().await.unwrap();
    row.id
}

pub(crate) async fn assign(store: &Store, user: UserId, node: NodeId) {
    let new = NewAssignment {
        user_id: user,
        node_id: node,
        rank: 0,
        source: AssignmentSource::Manual,
        score: None,
    };
    let mut tx = store.begin().await.unwrap();
    assignments::assign(&mut tx, &new, NOW).await.unwrap();
    tx.commit().await.unwrap();
}

pub(crate) fn batch(
    node: NodeId,
    spool: Uuid,
    first: i64,
    last: i64,
    rows: &[(i64, i64, i64)],
) -> Batch {
    Batch {
        node,
        spool,
        first_seq: first,
        last_seq: last,
        at: NOW,
        multiplier: 1_000_000_000,
        rows: rows
            .iter()
            .map(|(user, tx, rx)| BatchRow {
                user: *user,
                tx: *tx,
                rx: *rx,
                seen: NOW,
                leases: Vec::new(),
            })
            .collect(),
    }
}

fn new_node(name: &str) -> NewNode {
    NewNode {
        uid: Uuid::new_v4(),
        name: name.to_owned(),
        public_host: "192.0.2.1".to_owned(),
        listen_port: 8080,
        region_id: None,
        tags: vec!["a".to_owned()],
    }
}

pub(crate) fn new_user(name: &str) -> NewUser {
    let uid = Uuid::new_v4();
    NewUser {
        uid,
        username: name.to_owned(),
        admin_id: None,
        plan_id: None,
        status: UserStatus::Active,
        seed_enc: vec![1],
        credential_enc: None,
        auth_hash: None,
        subscription_hash: uid.as_bytes().repeat(2),
        subscription_enc: vec![2],
        expires_at: None,
        hold_duration_ms: None,
        hold_deadline: None,
        quota_bytes: None,
        max_devices: None,
        max_connections: None,
        up_bytes_per_s: None,
        down_bytes_per_s: None,
        home_region_id: None,
        email: None,
        telegram_id: None,
        note: String::new(),
        tags: Vec::new(),
    }
}

async fn revs<const N: usize>(store: &Store, nodes: &[NodeId; N]) -> [i64; N] {
    let mut revs = [0; N];
    for (rev, node) in revs.iter_mut().zip(nodes) {
        *rev = store.node(*node).await.unwrap().desired_rev;
    }
    revs
}

async fn grant(
    store: &Store,
    node: NodeId,
    user: UserId,
    lease: Option<LeaseId>,
    remaining: i64,
) -> Grant {
    let want = Want {
        user,
        lease,
        remaining,
        release: false,
    };
    let mut tx = store.begin().await.unwrap();
    let granted = leases::grant(&mut tx, node, 1_000_000_000, want, NOW)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    granted
}

async fn run_due(store: &Store, now: Timestamp) {
    let mut tx = store.begin().await.unwrap();
    due::holds(&mut tx, now).await.unwrap();
    due::expiry(&mut tx, now).await.unwrap();
    due::quota_again(&mut tx, now).await.unwrap();
    due::used_up(&mut tx, None, now).await.unwrap();
    tx.commit().await.unwrap();
}

async fn statuses<const N: usize>(store: &Store, users: [UserId; N]) -> [&'static str; N] {
    let mut words = [""; N];
    for (word, user) in words.iter_mut().zip(users) {
        *word = store.user(user).await.unwrap().status.as_str();
    }
    words
}
