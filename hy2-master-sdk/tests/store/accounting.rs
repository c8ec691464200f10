//! Traffic, exactly once.

use std::time::Duration;

use hy2_master_sdk::domain::Timestamp;
use hy2_master_sdk::store::StoreError;
use hy2_master_sdk::store::assignments;
use hy2_master_sdk::store::traffic_report::{self, Sums, TrafficFilter};
use hy2_master_sdk::store::users;
use uuid::Uuid;

use crate::backend::Backend;
use crate::rows::{NOW, assign, batch, node, user};
use crate::upkeep::execute;

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

pub(crate) async fn a_node_that_reports_what_cannot_be_stops_nobodys_accounts(backend: &Backend) {
    const HUGE: i64 = 1 << 50;
    let store = &backend.store;
    let (liar, honest) = (node(store, "liar").await, node(store, "honest").await);
    let ann = user(store, "ann").await;
    assign(store, ann, liar).await;
    assign(store, ann, honest).await;
    let of_liar = |seq, rows: &[(i64, i64, i64)]| batch(liar, Uuid::from_u128(1), seq, seq, rows);
    // The first could be. Of all that follow nothing counts, whether of a user or of nobody.
    let done = store
        .ingest(&of_liar(1, &[(ann.0, HUGE, 0)]), NOW)
        .await
        .unwrap();
    assert_eq!(done.quarantined, 0);
    for seq in 2..=20 {
        let rows = [(ann.0, HUGE, 0), (999, 0, HUGE), (1000 + seq, 1, 0)];
        let done = store.ingest(&of_liar(seq, &rows), NOW).await.unwrap();
        assert_eq!((done.durable_seq, done.quarantined), (seq, 3));
    }
    let sums = store.node_counters(liar).await.unwrap();
    assert_eq!(
        (sums.tx, sums.quarantined_tx, sums.quarantined_rx),
        (HUGE, 0, 0)
    );
    // Time makes it believable again, and so to speak only.
    let later = NOW.plus(Duration::from_secs(2));
    let done = store
        .ingest(&of_liar(21, &[(ann.0, 1 << 35, 0)]), later)
        .await
        .unwrap();
    assert_eq!(done.quarantined, 0);
    let rows = [(ann.0, 7, 0)];
    let of_honest = batch(honest, Uuid::from_u128(2), 1, 1, &rows);
    assert_eq!(store.ingest(&of_honest, NOW).await.unwrap().quarantined, 0);
    assert_eq!(store.user(ann).await.unwrap().tx, HUGE + (1 << 35) + 7);
    // What a multiplier makes too large for its counter stays at the most that it holds.
    for seq in 2..=11 {
        let mut batch = batch(
            honest,
            Uuid::from_u128(2),
            seq,
            seq,
            &[(ann.0, HUGE / 16, 0)],
        );
        batch.multiplier = 1_000_000_000_000_000;
        assert!(store.ingest(&batch, NOW).await.unwrap().added);
    }
    assert_eq!(store.user(ann).await.unwrap().billed, i64::MAX);
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

pub(crate) async fn days_answer_what_hours_are_kept_no_more_for(backend: &Backend) {
    let store = &backend.store;
    let (one, two) = (node(store, "one").await, node(store, "two").await);
    let (ann, bob) = (user(store, "ann").await, user(store, "bob").await);
    for node in [one, two] {
        assign(store, ann, node).await;
        assign(store, bob, node).await;
    }
    let day = |number: i64| NOW.day().plus_days(number);
    let hour = |number: i64, hours: i64| Timestamp(day(number).0 + hours * Timestamp::HOUR);
    let mut spools = [0; 2];
    let mut send = async |at: Timestamp, on: usize, rows: &[(i64, i64, i64)]| {
        spools[on] += 1;
        let spool = Uuid::from_u128(on as u128);
        let mut batch = batch([one, two][on], spool, spools[on], spools[on], rows);
        batch.at = at;
        assert!(store.ingest(&batch, NOW.plus_days(9)).await.unwrap().added);
    };
    send(hour(0, 23), 0, &[(ann.0, 1, 1)]).await;
    send(hour(1, 3), 0, &[(ann.0, 10, 0), (bob.0, 7, 0)]).await;
    send(hour(2, 5), 1, &[(ann.0, 100, 0)]).await;
    send(hour(3, 1), 1, &[(ann.0, 1_000, 5)]).await;
    // Days 1 and 2 are there as days only.
    let whole = TrafficFilter {
        from: hour(0, 22),
        to: hour(3, 2),
        ..TrafficFilter::default()
    };
    let of = |user| TrafficFilter {
        user: Some(user),
        ..whole
    };
    let on = |node| TrafficFilter {
        node: Some(node),
        ..whole
    };
    let ask = async || {
        let mut sums = Vec::new();
        for filter in [whole, of(ann), of(bob), on(one), on(two)] {
            sums.push(traffic_report::sums(store, filter).await.unwrap());
        }
        let mut days = Vec::new();
        for filter in [whole, on(one)] {
            let series = traffic_report::series(store, filter, true).await.unwrap();
            days.push(
                series
                    .iter()
                    .map(|day| (day.at, day.tx, day.rx))
                    .collect::<Vec<_>>(),
            );
        }
        let top = traffic_report::top(store, whole, 9).await.unwrap();
        let top: Vec<_> = top
            .iter()
            .map(|user| (user.user_id, user.tx, user.rx))
            .collect();
        (sums, days, top)
    };
    let before = ask().await;
    let sum = |tx, rx| Sums { tx, rx };
    let want = [
        sum(1_118, 6),
        sum(1_111, 6),
        sum(7, 0),
        sum(18, 1),
        sum(1_100, 5),
    ];
    assert_eq!(before.0, want);
    let days = [
        (day(0), 1, 1),
        (day(1), 17, 0),
        (day(2), 100, 0),
        (day(3), 1_000, 5),
    ];
    assert_eq!(before.1, [days.to_vec(), days[..2].to_vec()]);
    assert_eq!(before.2, [(ann, 1_111, 6), (bob, 7, 0)]);
    execute(store, "delete from traffic_hourly where tx in (10, 7, 100)").await;
    assert_eq!(ask().await, before);
    // Hours are what they are, and so is what only they know.
    let hours = traffic_report::series(store, whole, false).await.unwrap();
    assert_eq!(
        hours.iter().map(|hour| hour.at).collect::<Vec<_>>(),
        [hour(0, 23), hour(3, 1)]
    );
    let both = TrafficFilter {
        node: Some(two),
        ..of(ann)
    };
    assert_eq!(
        traffic_report::sums(store, both).await.unwrap(),
        sum(1_000, 5)
    );
}
