//! What is lent to nodes: slices of quotas and device slots.

use std::time::Duration;

use hy2_master_sdk::domain::{LeaseId, NodeId, Timestamp, UserId, UserStatus};
use hy2_master_sdk::store::leases::{self, Grant, Want};
use hy2_master_sdk::store::{Store, assignments, certificates, cluster, nodes, traffic, users};
use uuid::Uuid;

use crate::backend::Backend;
use crate::rows::{NOW, assign, batch, node, user, user_with};

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
            let mut hand = None;
            while let Grant::Slice {
                lease,
                granted: slice,
                ..
            } = grant(&store, node, ann, hand, 0).await
            {
                hand = Some(lease);
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
    // One of them may have had everything.
    let hand = |of: NodeId| {
        let leases = taken.iter().filter(|(node, ..)| *node == of);
        leases.map(|(_, lease, _)| *lease).max()
    };
    let exhausted = grant(store, nodes[0], ann, hand(nodes[0]), 0).await;
    assert_eq!(exhausted, Grant::Exhausted);
    // One node uses its first slice up: the quota is used, not free again.
    let (node, lease, slice) = taken[0];
    let mut batch = batch(node, Uuid::from_u128(1), 1, 1, &[(ann.0, slice, 0)]);
    batch.rows[0].leases = vec![(lease, slice + 5)];
    store.ingest(&batch, NOW).await.unwrap();
    assert_eq!(store.user(ann).await.unwrap().used(), slice);
    let exhausted = grant(store, nodes[0], ann, hand(nodes[0]), 0).await;
    assert_eq!(exhausted, Grant::Exhausted);
    let open = store.open_leases(Some(ann), 100).await.unwrap();
    assert_eq!(open.len(), taken.len() - 1, "a spent lease is closed");
    assert!(open.iter().all(|row| row.consumed == 0));
    // What a lost node held comes back when an operator forfeits it.
    let lost = open[0].node_id;
    let other = nodes.into_iter().find(|node| *node != lost).unwrap();
    let mut tx = store.begin().await.unwrap();
    leases::forfeit(&mut tx, lost, None, NOW).await.unwrap();
    tx.commit().await.unwrap();
    let freed = grant(store, other, ann, hand(other), 0).await;
    assert!(matches!(freed, Grant::Slice { .. }), "{freed:?}");
}

pub(crate) async fn a_slice_in_hand_goes_on_when_its_time_is_over(backend: &Backend) {
    let store = &backend.store;
    const MIB: i64 = 1 << 20;
    let nodes = [node(store, "one").await, node(store, "two").await];
    let ann = user_with(store, "ann", |user| user.quota_bytes = Some(8 * MIB)).await;
    for node in nodes {
        assign(store, ann, node).await;
    }
    let first = grant(store, nodes[0], ann, None, 0).await;
    let Grant::Slice {
        lease,
        granted,
        expires_at,
        ..
    } = first
    else {
        panic!("{first:?}");
    };
    let days = |days: u64| NOW.plus(Duration::from_secs(days * 86_400));
    let ask = |remaining, now| async move {
        let want = Want {
            user: ann,
            lease: Some(lease),
            remaining,
            release: false,
            used: None,
        };
        let mut tx = store.begin().await.unwrap();
        let answer = leases::grant(&mut tx, nodes[0], 1_000_000_000, want, now)
            .await
            .unwrap();
        tx.commit().await.unwrap();
        answer
    };
    assert_eq!(ask(granted - 5, days(1)).await, Grant::Enough);
    // Soon over, and over for long.
    for now in [days(6), days(40)] {
        let longer = ask(granted - 5, now).await;
        let Grant::Slice {
            lease: same,
            granted: all,
            expires_at: end,
            ..
        } = longer
        else {
            panic!("{longer:?}");
        };
        assert_eq!((same, all), (lease, granted));
        assert!(end > now && end > expires_at);
    }
    let open = store.open_leases(Some(ann), 10).await.unwrap();
    assert_eq!(open.len(), 1, "none beside it");
    // Nothing left of it: another one, as always.
    let next = ask(0, days(80)).await;
    assert!(
        matches!(next, Grant::Slice { lease: other, .. } if other != lease),
        "{next:?}"
    );
}

pub(crate) async fn a_revoked_node_owes_nothing(backend: &Backend) {
    let store = &backend.store;
    const MIB: i64 = 1 << 20;
    let nodes = [node(store, "one").await, node(store, "two").await];
    let ann = user_with(store, "ann", |user| user.quota_bytes = Some(MIB)).await;
    for node in nodes {
        assign(store, ann, node).await;
    }
    assert!(matches!(
        grant(store, nodes[0], ann, None, 0).await,
        Grant::Slice { .. }
    ));
    assert_eq!(grant(store, nodes[1], ann, None, 0).await, Grant::Exhausted);
    let mut tx = store.begin().await.unwrap();
    certificates::revoke_node(&mut tx, nodes[0], "stolen", NOW)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    assert!(matches!(
        grant(store, nodes[1], ann, None, 0).await,
        Grant::Slice { .. }
    ));
}

pub(crate) async fn a_slice_that_a_node_never_heard_of_is_granted_again(backend: &Backend) {
    let store = &backend.store;
    const MIB: i64 = 1 << 20;
    let nodes = [node(store, "one").await, node(store, "two").await];
    let ann = user_with(store, "ann", |user| user.quota_bytes = Some(3 * MIB)).await;
    for node in nodes {
        assign(store, ann, node).await;
    }
    // The answer is lost, the node asks again with what it had: nothing.
    let first = grant(store, nodes[0], ann, None, 0).await;
    assert_eq!(grant(store, nodes[0], ann, None, 0).await, first);
    let Grant::Slice { lease, granted, .. } = first else {
        panic!("{first:?}");
    };
    // With that in hand, another; which is lost too.
    let second = grant(store, nodes[0], ann, Some(lease), 0).await;
    assert_eq!(grant(store, nodes[0], ann, Some(lease), 0).await, second);
    assert_ne!(first, second);
    let open = store.open_leases(Some(ann), 100).await.unwrap();
    assert_eq!(open.len(), 2);
    // What is used was heard of, and another node hears of nothing of it.
    let mut batch = batch(nodes[0], Uuid::from_u128(1), 1, 1, &[(ann.0, granted, 0)]);
    batch.rows[0].leases = vec![(lease, granted)];
    store.ingest(&batch, NOW).await.unwrap();
    let Grant::Slice { lease: third, .. } = grant(store, nodes[1], ann, None, 0).await else {
        panic!("there is a rest");
    };
    assert!(open.iter().all(|row| row.id != third));
    assert_eq!(grant(store, nodes[0], ann, None, 0).await, second);
}

pub(crate) async fn a_rest_that_moves_no_byte_is_none_and_rounding_leaves_none(backend: &Backend) {
    let store = &backend.store;
    let node = node(store, "one").await;
    let ann = user_with(store, "ann", |user| user.quota_bytes = Some(301)).await;
    assign(store, ann, node).await;
    let third = 333_333_333;
    let ask = async |lease, multiplier| {
        let want = Want {
            user: ann,
            lease,
            remaining: 0,
            release: false,
            used: None,
        };
        let mut tx = store.begin().await.unwrap();
        let granted = leases::grant(&mut tx, node, multiplier, want, NOW).await;
        tx.commit().await.unwrap();
        granted.unwrap()
    };
    let Grant::Slice { lease, granted, .. } = ask(None, third).await else {
        panic!("a slice");
    };
    assert_eq!(granted, 301);
    // Two raw bytes at a time are less than a byte for the master, and add up for the node.
    let mut told = 0;
    for seq in 1..=452_i64 {
        let mut batch = batch(node, Uuid::from_u128(1), seq, seq, &[(ann.0, 2, 0)]);
        batch.multiplier = third;
        let so_far = (seq * 2 * third / 1_000_000_000).min(301);
        batch.rows[0].leases = vec![(lease, so_far - told)];
        told = so_far;
        store.ingest(&batch, NOW).await.unwrap();
    }
    assert_eq!(told, 301);
    assert!(store.open_leases(Some(ann), 100).await.unwrap().is_empty());
    // What the master's own rounding left can be used, but for less than a byte.
    let Grant::Slice { granted, .. } = ask(Some(lease), third).await else {
        panic!("a rest");
    };
    assert_eq!(granted, 301);
    let bob = user_with(store, "bob", |user| user.quota_bytes = Some(4)).await;
    assign(store, bob, node).await;
    let want = Want {
        user: bob,
        lease: None,
        remaining: 0,
        release: false,
        used: None,
    };
    let mut tx = store.begin().await.unwrap();
    let none = leases::grant(&mut tx, node, 5_000_000_000, want, NOW).await;
    assert_eq!(none.unwrap(), Grant::Exhausted);
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
        used: None,
    };
    leases::grant(&mut tx, node, 1_000_000_000, want, NOW)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    // 1,000 bytes are used and not reported yet.
    let Grant::Slice { granted, .. } = grant(store, node, ann, Some(lease), 0).await else {
        panic!("the rest is free again");
    };
    assert_eq!(granted, MIB - 1000);
}

pub(crate) async fn what_was_used_of_a_slice_may_be_said_twice(backend: &Backend) {
    let store = &backend.store;
    const MIB: i64 = 1 << 20;
    let node = node(store, "one").await;
    let ann = user_with(store, "ann", |user| user.quota_bytes = Some(8 * MIB)).await;
    assign(store, ann, node).await;
    let Grant::Slice { lease, granted, .. } = grant(store, node, ann, None, 0).await else {
        panic!("a first slice");
    };
    // A part is reported already.
    let mut first = batch(node, Uuid::from_u128(1), 1, 1, &[(ann.0, 400, 0)]);
    first.rows[0].leases = vec![(lease, 400)];
    store.ingest(&first, NOW).await.unwrap();
    for _ in 0..2 {
        let want = Want {
            user: ann,
            lease: Some(lease),
            remaining: granted - 1000,
            release: true,
            used: Some(1000),
        };
        let mut tx = store.begin().await.unwrap();
        let answer = leases::grant(&mut tx, node, 1_000_000_000, want, NOW).await;
        assert_eq!(answer.unwrap(), Grant::None);
        tx.commit().await.unwrap();
        let open = store.open_leases(Some(ann), 10).await.unwrap();
        assert_eq!(open.len(), 1, "600 bytes are to be reported");
        assert_eq!((open[0].granted, open[0].consumed), (1000, 400));
    }
    let mut second = batch(node, Uuid::from_u128(1), 2, 2, &[(ann.0, 600, 0)]);
    second.rows[0].leases = vec![(lease, 600)];
    store.ingest(&second, NOW).await.unwrap();
    assert!(store.open_leases(Some(ann), 10).await.unwrap().is_empty());
}

pub(crate) async fn what_users_left_on_a_node_that_they_are_not_on_is_known(backend: &Backend) {
    let store = &backend.store;
    let nodes = [node(store, "one").await, node(store, "two").await];
    let mut lent = Vec::new();
    for name in ["stays", "leaves", "is-disabled"] {
        let user = user_with(store, name, |user| user.quota_bytes = Some(64 << 20)).await;
        for node in nodes {
            assign(store, user, node).await;
            let Grant::Slice { lease, .. } = grant(store, node, user, None, 0).await else {
                panic!("a slice");
            };
            lent.push((user, lease));
        }
    }
    assert_eq!(leases::open_of_gone(store, nodes[0]).await.unwrap(), []);
    let (leaves, disabled) = (lent[2], lent[4]);
    let mut tx = store.begin().await.unwrap();
    assignments::release(&mut tx, leaves.0, nodes[0], NOW)
        .await
        .unwrap();
    let change = users::UserChange {
        status: Some(UserStatus::Disabled),
        ..users::UserChange::default()
    };
    users::update(&mut tx, disabled.0, None, &change, NOW)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    let gone = leases::open_of_gone(store, nodes[0]).await.unwrap();
    assert_eq!(gone, [leaves.1, disabled.1]);
    // Only the node's own leases are found.
    let mut tx = store.begin().await.unwrap();
    let all: Vec<LeaseId> = lent.iter().map(|(_, lease)| *lease).collect();
    let users = leases::users_of(&mut tx, nodes[0], &all).await.unwrap();
    tx.rollback().await.unwrap();
    let mine = [lent[0], lent[2], lent[4]];
    assert_eq!(users, mine.map(|(user, lease)| (lease, user)).into());
}

pub(crate) async fn what_is_lent_and_what_passed_keep_their_multiplier(backend: &Backend) {
    let store = &backend.store;
    let node = node(store, "one").await;
    let ann = user_with(store, "ann", |user| user.quota_bytes = Some(1000)).await;
    let free = user(store, "free").await;
    assign(store, ann, node).await;
    assign(store, free, node).await;
    let set = async |multiplier: i64, now| {
        let mut tx = store.begin().await.unwrap();
        let change = nodes::NodeChange {
            billing_multiplier: Some(multiplier * ONE),
            ..nodes::NodeChange::default()
        };
        nodes::update(&mut tx, node, None, &change, now)
            .await
            .unwrap();
        tx.commit().await.unwrap();
    };
    let of = async |at| {
        let mut tx = store.begin().await.unwrap();
        traffic::multiplier_at(&mut tx, node, at).await.unwrap() / ONE
    };
    let after = |seconds| NOW.plus(Duration::from_secs(seconds));
    assert_eq!(of(NOW).await, 1, "as it always was");
    set(10, after(10)).await;
    assert_eq!((of(after(9)).await, of(after(10)).await), (1, 10));

    // Lent at 10, used when it is 1 again: 30 bytes of it cost 300, 5 beside it 5.
    let want = Want {
        user: ann,
        lease: None,
        remaining: 0,
        release: false,
        used: None,
    };
    let mut tx = store.begin().await.unwrap();
    let slice = leases::grant(&mut tx, node, 10 * ONE, want, after(11))
        .await
        .unwrap();
    tx.commit().await.unwrap();
    let Grant::Slice { lease, granted, .. } = slice else {
        panic!("{slice:?}");
    };
    assert_eq!(granted, 1000);
    set(1, after(20)).await;
    assert_eq!((of(after(19)).await, of(after(20)).await), (10, 1));
    let mut first = batch(
        node,
        Uuid::from_u128(1),
        1,
        1,
        &[(ann.0, 30, 5), (free.0, 7, 0)],
    );
    first.rows[0].leases = vec![(lease, 300)];
    store.ingest(&first, after(21)).await.unwrap();
    assert_eq!(store.user(ann).await.unwrap().used(), 305);
    assert_eq!(store.user(free).await.unwrap().used(), 7);
    let open = store.open_leases(Some(ann), 10).await.unwrap();
    assert_eq!((open[0].granted, open[0].consumed), (1000, 300));
    // All of it is spent in the end, with less left than a byte of it costs.
    let mut last = batch(node, Uuid::from_u128(1), 2, 2, &[(ann.0, 70, 0)]);
    last.rows[0].leases = vec![(lease, 691)];
    store.ingest(&last, after(22)).await.unwrap();
    assert!(store.open_leases(Some(ann), 10).await.unwrap().is_empty());
}

pub(crate) async fn what_was_lent_before_a_restore_ends_when_the_node_is_back(backend: &Backend) {
    let store = &backend.store;
    const MIB: i64 = 1 << 20;
    let nodes = [node(store, "one").await, node(store, "two").await];
    let ann = user_with(store, "ann", |user| user.quota_bytes = Some(16 * MIB)).await;
    for node in nodes {
        assign(store, ann, node).await;
        let slice = grant(store, node, ann, None, 0).await;
        assert!(matches!(slice, Grant::Slice { .. }));
    }
    let mut tx = store.begin().await.unwrap();
    cluster::init(&mut tx, Uuid::nil(), NOW).await.unwrap();
    let epoch = cluster::bump_epoch(&mut tx, NOW).await.unwrap();
    tx.commit().await.unwrap();
    let closed = leases::close_before_epoch(store, nodes[0], epoch, NOW)
        .await
        .unwrap();
    assert_eq!(closed, 1);
    let open = store.open_leases(Some(ann), 10).await.unwrap();
    assert_eq!(open.len(), 1, "the other node is not back");
    assert_eq!(open[0].node_id, nodes[1]);
    // No number comes twice, also where the node asks before what it had is closed.
    for node in nodes {
        let Grant::Slice { lease, .. } = grant(store, node, ann, None, 0).await else {
            panic!("a new slice");
        };
        assert!(lease.0 > leases::first_of_epoch(epoch), "{lease}");
    }
    assert_eq!(leases::first_of_epoch(1), 0);
    let again = leases::close_before_epoch(store, nodes[0], epoch, NOW)
        .await
        .unwrap();
    assert_eq!(again, 0);
}

/// A multiplier of 1.
const ONE: i64 = 1_000_000_000;

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

pub(crate) async fn device_slots_of_nodes_that_serve_the_user_no_more_are_free(backend: &Backend) {
    let store = &backend.store;
    let nodes = [node(store, "one").await, node(store, "two").await];
    let ann = user_with(store, "ann", |user| user.max_devices = Some(1)).await;
    for node in nodes {
        assign(store, ann, node).await;
    }
    let slots = async |node: NodeId, wanted: i64| {
        let mut tx = store.begin().await.unwrap();
        let granted = leases::grant_devices(&mut tx, node, ann, wanted, wanted, NOW)
            .await
            .unwrap();
        tx.commit().await.unwrap();
        granted.map(|(slots, _)| slots)
    };
    let take_off = async |node: NodeId| {
        let mut tx = store.begin().await.unwrap();
        assignments::release(&mut tx, ann, node, NOW).await.unwrap();
        tx.commit().await.unwrap();
    };
    let [one, two] = nodes;
    assert_eq!(slots(one, 1).await, Some(1));
    assert_eq!(slots(two, 1).await, Some(0));
    // Moved: whatever the node of before says or does not say.
    take_off(one).await;
    assert_eq!(slots(two, 1).await, Some(1));
    assert_eq!(slots(one, 1).await, None);
    assert_eq!(slots(two, 1).await, Some(1));
    // Back at once, and the device has not left the other: it has the only place.
    assign(store, ann, one).await;
    assert_eq!(slots(one, 1).await, Some(0));
    // Back after the node has heard of it: nothing counts that was lent before.
    take_off(two).await;
    assert_eq!(slots(two, 0).await, None);
    assign(store, ann, two).await;
    assert_eq!(slots(one, 1).await, Some(1));
    // The host of a node is lost: its places are written off with what it owes, by hand or when it is revoked.
    let mut tx = store.begin().await.unwrap();
    let slices = leases::forfeit(&mut tx, one, None, NOW).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(slices, 0, "places are no slices");
    assert_eq!(slots(two, 1).await, Some(1));
    let mut tx = store.begin().await.unwrap();
    certificates::revoke_node(&mut tx, two, "stolen", NOW)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    assert_eq!(slots(one, 1).await, Some(1));
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
        used: None,
    };
    let mut tx = store.begin().await.unwrap();
    let granted = leases::grant(&mut tx, node, 1_000_000_000, want, NOW)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    granted
}

#[test]
fn leases_of_a_later_epoch_have_greater_numbers_and_fit_into_json() {
    // Counted by versions before, and times since.
    let epochs = [1, 2, 3, 65_535, 1_764_000_000, 1_764_000_001, 4_000_000_000];
    let first = epochs.map(leases::first_of_epoch);
    assert!(first.is_sorted_by(|one, next| one < next), "{first:?}");
    assert!(first.iter().all(|first| *first < 1 << 53), "{first:?}");
    assert_eq!(leases::first_of_epoch(i64::MAX), i64::MAX);
}
