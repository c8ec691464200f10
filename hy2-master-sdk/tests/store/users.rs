//! Users: names, secrets, revisions, what time and traffic make of them.

use std::time::Duration;

use hy2_master_sdk::domain::{AdminId, PlanId, Timestamp, UserId, UserStatus};
use hy2_master_sdk::store::nodes::{self, NodeChange};
use hy2_master_sdk::store::published;
use hy2_master_sdk::store::users::{self, UserChange};
use hy2_master_sdk::store::{Store, StoreError, due, events};
use uuid::Uuid;

use crate::backend::Backend;
use crate::rows::{NOW, assign, batch, new_node, new_user, node, revs, user, user_with};
use crate::upkeep::execute;

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
        user.hold_duration_ms = Some(60_000);
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
        Some(Timestamp(NOW.0 + 60_000))
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

pub(crate) async fn what_time_and_traffic_do_is_told_once_to_whose_users_they_are(
    backend: &Backend,
) {
    let store = &backend.store;
    execute(
        store,
        "insert into admin_roles (name, permissions, built_in, created_at, updated_at) values ('r', '[]', true, 1, 1)",
    )
    .await;
    execute(
        store,
        "insert into admins (username, password_hash, role_id, recovery_hashes, created_at, updated_at) \
         select 'a', 'x', min(id), '[]', 1, 1 from admin_roles",
    )
    .await;
    let node = node(store, "one").await;
    let end = NOW.plus(Duration::from_secs(10));
    let expiring = user_with(store, "expiring", |user| {
        user.expires_at = Some(end);
        user.admin_id = Some(AdminId(1));
    })
    .await;
    let metered = user_with(store, "metered", |user| user.quota_bytes = Some(100)).await;
    let held = user_with(store, "held", |user| user.status = UserStatus::OnHold).await;
    for user in [expiring, metered, held] {
        assign(store, user, node).await;
    }
    let rows = [(metered.0, 60, 40), (held.0, 1, 0)];
    store
        .ingest(&batch(node, Uuid::from_u128(1), 1, 1, &rows), NOW)
        .await
        .unwrap();
    for _ in 0..3 {
        run_due(store, end).await;
    }
    let more = UserChange {
        expires_at: Some(None),
        quota_bytes: Some(None),
        ..UserChange::default()
    };
    let mut tx = store.begin().await.unwrap();
    for user in [expiring, metered] {
        users::update(&mut tx, user, None, &more, end)
            .await
            .unwrap();
    }
    tx.commit().await.unwrap();
    for _ in 0..3 {
        run_due(store, end).await;
    }
    let mut tx = store.begin().await.unwrap();
    due::tell_renewed(&mut tx, &[metered], end).await.unwrap();
    tx.commit().await.unwrap();

    let told = told(store).await;
    let said: Vec<_> = told
        .iter()
        .map(|event| {
            (
                event.topic.as_str(),
                event.payload["username"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        said,
        [
            ("user.activated", "held"),
            ("user.expired", "expiring"),
            ("user.limited", "metered"),
            ("user.activated", "expiring"),
            ("user.activated", "metered"),
            ("user.renewed", "metered"),
        ]
    );
    let expired = &told[1];
    assert_eq!(
        (expired.key.clone(), expired.admin_id, expired.at),
        (expiring.to_string(), Some(AdminId(1)), end)
    );
    let row = store.user(expiring).await.unwrap();
    assert_eq!(
        expired.payload.0,
        serde_json::json!({
            "id": expiring.0, "uid": row.uid, "username": "expiring", "status": "expired",
            "status_reason": "the time is over", "plan_id": null, "admin_id": 1,
            "expires_at": end.to_string(),
        })
    );
    assert_eq!(
        (told[2].admin_id, told[2].payload["expires_at"].is_null()),
        (None, true)
    );
}

pub(crate) async fn what_is_rolled_back_is_not_told_and_many_are_told_at_once(backend: &Backend) {
    let store = &backend.store;
    for at in 0..250 {
        user_with(store, &format!("user-{at}"), |user| {
            user.expires_at = Some(NOW)
        })
        .await;
    }
    let mut tx = store.begin().await.unwrap();
    assert_eq!(due::expiry(&mut tx, NOW).await.unwrap().len(), 250);
    tx.rollback().await.unwrap();
    assert_eq!(told(store).await.len(), 0);
    run_due(store, NOW).await;
    let told = told(store).await;
    let keys: Vec<i64> = told
        .iter()
        .map(|event| event.key.parse().unwrap())
        .collect();
    assert_eq!(
        keys,
        (keys[0]..keys[0] + 250).collect::<Vec<_>>(),
        "each once, in order"
    );
}

/// Every event, numbered.
pub(crate) async fn told(store: &Store) -> Vec<events::Event> {
    while events::seal(store).await.unwrap() > 0 {}
    events::after(store, 0, 1_000).await.unwrap()
}

pub(crate) async fn a_plan_that_ends_is_followed_by_the_next_without_a_gap(backend: &Backend) {
    let store = &backend.store;
    let node = node(store, "one").await;
    for plan in [
        "insert into plans (name, duration_days, created_at, updated_at) values ('free', null, 1, 1)",
        "insert into plans (name, duration_days, next_plan_id, created_at, updated_at) values ('month', 30, 1, 1, 1)",
        "insert into plans (name, duration_days, next_plan_id, created_at, updated_at) values ('trial', 7, 2, 1, 1)",
        "insert into plans (name, duration_days, created_at, updated_at) values ('short', 1, 1, 1)",
    ] {
        execute(store, plan).await;
    }
    let end = NOW.plus_days(7);
    let with = |plan| {
        user_with(store, plan, move |user| {
            user.plan_id = Some(PlanId(if plan == "trial" { 3 } else { 4 }));
            user.expires_at = Some(end);
        })
    };
    let (trial, short) = (with("trial").await, with("short").await);
    assign(store, trial, node).await;
    run_due(store, Timestamp(end.0 - 60_001)).await;
    assert_eq!(store.user(trial).await.unwrap().plan_id, Some(PlanId(3)));
    let before = store.node(node).await.unwrap().desired_rev;
    run_due(store, Timestamp(end.0 - 60_000)).await;
    let row = store.user(trial).await.unwrap();
    assert_eq!(row.plan_id, Some(PlanId(2)));
    assert_eq!(row.expires_at, Some(end.plus_days(30)), "no time is lost");
    assert!(store.node(node).await.unwrap().desired_rev > before);
    // After a master that was away for long, and into a plan without an end.
    let late = end.plus_days(90);
    run_due(store, late).await;
    let row = store.user(trial).await.unwrap();
    assert_eq!((row.plan_id, row.expires_at), (Some(PlanId(1)), None));
    run_due(store, late.plus_days(900)).await;
    assert_eq!(statuses(store, [trial, short]).await, ["active", "expired"]);
}

pub(crate) async fn a_hold_begins_when_the_user_was_seen_and_its_period_with_it(backend: &Backend) {
    let store = &backend.store;
    let node = node(store, "one").await;
    execute(
        store,
        "insert into plans (name, period, created_at, updated_at) values ('m', 'month', 1, 1)",
    )
    .await;
    let held = user_with(store, "held", |user| {
        user.status = UserStatus::OnHold;
        user.hold_duration_ms = Some(10 * Timestamp::DAY);
        user.plan_id = Some(PlanId(1));
    })
    .await;
    assign(store, held, node).await;
    let seen = NOW.plus_days(40);
    let mut late = batch(node, Uuid::from_u128(1), 1, 1, &[(held.0, 5, 0)]);
    late.rows[0].seen = seen;
    let told = seen.plus(Duration::from_secs(3_600));
    store.ingest(&late, told).await.unwrap();
    run_due(store, told).await;
    let row = store.user(held).await.unwrap();
    assert_eq!(row.status, UserStatus::Active);
    assert_eq!(
        (row.activated_at, row.period_started_at, row.expires_at),
        (Some(seen), seen, Some(seen.plus_days(10)))
    );
    // The month of the hold, not that in which the user was made.
    let mut tx = store.begin().await.unwrap();
    assert_eq!(due::periods(&mut tx, told).await.unwrap(), []);
}

pub(crate) async fn a_hold_with_an_end_of_its_own_ends(backend: &Backend) {
    let store = &backend.store;
    let node = node(store, "one").await;
    let end = NOW.plus_days(3);
    let held = |name| {
        user_with(store, name, move |user| {
            user.status = UserStatus::OnHold;
            user.hold_duration_ms = Some(30 * Timestamp::DAY);
            user.expires_at = Some(end);
        })
    };
    let (seen, never) = (held("seen").await, held("never").await);
    assign(store, seen, node).await;
    store
        .ingest(
            &batch(node, Uuid::from_u128(1), 1, 1, &[(seen.0, 5, 0)]),
            NOW,
        )
        .await
        .unwrap();
    run_due(store, NOW).await;
    assert_eq!(statuses(store, [seen, never]).await, ["active", "on_hold"]);
    assert_eq!(
        store.user(seen).await.unwrap().expires_at,
        Some(end),
        "the earlier of the two"
    );
    run_due(store, end).await;
    assert_eq!(statuses(store, [seen, never]).await, ["expired", "expired"]);
    // With more time, who never started is on hold again.
    let mut tx = store.begin().await.unwrap();
    let more = UserChange {
        expires_at: Some(Some(end.plus_days(9))),
        ..UserChange::default()
    };
    for user in [seen, never] {
        users::update(&mut tx, user, None, &more, end)
            .await
            .unwrap();
    }
    tx.commit().await.unwrap();
    for _ in 0..2 {
        run_due(store, end).await;
    }
    assert_eq!(statuses(store, [seen, never]).await, ["active", "on_hold"]);
}

pub(crate) async fn a_period_of_a_clock_that_was_ahead_begins_now_and_gives_nothing(
    backend: &Backend,
) {
    let store = &backend.store;
    let node = node(store, "one").await;
    execute(
        store,
        "insert into plans (name, period, created_at, updated_at) values ('d', 'day', 1, 1)",
    )
    .await;
    let ann = user_with(store, "ann", |user| user.plan_id = Some(PlanId(1))).await;
    assign(store, ann, node).await;
    store
        .ingest(
            &batch(node, Uuid::from_u128(1), 1, 1, &[(ann.0, 5, 0)]),
            NOW,
        )
        .await
        .unwrap();
    let mut tx = store.begin().await.unwrap();
    let ahead = NOW.plus_days(900);
    users::reset_traffic(&mut tx, ann, "a new period", "system", ahead)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    store
        .ingest(
            &batch(node, Uuid::from_u128(1), 2, 2, &[(ann.0, 7, 0)]),
            NOW,
        )
        .await
        .unwrap();
    let mut tx = store.begin().await.unwrap();
    assert_eq!(due::periods_ahead(&mut tx, NOW).await.unwrap(), [ann]);
    assert_eq!(due::periods_ahead(&mut tx, NOW).await.unwrap(), []);
    assert_eq!(due::periods(&mut tx, NOW).await.unwrap(), []);
    tx.commit().await.unwrap();
    let row = store.user(ann).await.unwrap();
    assert_eq!((row.period_started_at, row.used()), (NOW, 7));
    let mut tx = store.begin().await.unwrap();
    assert_eq!(
        due::periods(&mut tx, NOW.plus_days(1)).await.unwrap(),
        [ann]
    );
}

async fn run_due(store: &Store, now: Timestamp) {
    let mut tx = store.begin().await.unwrap();
    due::holds(&mut tx, now).await.unwrap();
    due::next_plans(&mut tx, now).await.unwrap();
    due::expiry(&mut tx, now).await.unwrap();
    due::time_again(&mut tx, now).await.unwrap();
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
