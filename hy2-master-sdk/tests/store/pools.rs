//! Pools of nodes, and alerts.

use hy2_master_sdk::MasterConfig;
use hy2_master_sdk::domain::{NodeId, PlanId, UserId};
use hy2_master_sdk::store::users::NewUser;
use hy2_master_sdk::store::{StoreError, alerts, assignments, due, pools, upkeep};

use crate::backend::Backend;
use crate::rows::{NOW, assign, node, user_with};
use crate::upkeep::execute;

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

pub(crate) async fn nodes_that_are_taken_out_leave_their_users_short_of_nodes(backend: &Backend) {
    let store = &backend.store;
    let (one, two) = (node(store, "one").await, node(store, "two").await);
    execute(store, "update vps_nodes set observed_state = 'online'").await;
    execute(
        store,
        "insert into plans (name, nodes_per_user, created_at, updated_at) values ('one', 1, 1, 1)",
    )
    .await;
    let of_plan = |plan: i64| move |user: &mut NewUser| user.plan_id = Some(PlanId(plan));
    let ann = user_with(store, "ann", of_plan(1)).await;
    let pooled = "insert into plans (name, nodes_per_user, created_at, updated_at) values ('pooled', 1, 1, 1)";
    execute(store, pooled).await;
    let bob = user_with(store, "bob", of_plan(2)).await;
    let mut tx = store.begin().await.unwrap();
    let pool = pools::create(&mut tx, "pool", NOW).await.unwrap().id;
    pools::set_members(&mut tx, pool, &[one, two])
        .await
        .unwrap();
    pools::set_of_plan(&mut tx, PlanId(2), &[pool])
        .await
        .unwrap();
    tx.commit().await.unwrap();
    assign(store, ann, one).await;
    assign(store, bob, one).await;
    let after = |sql: &'static str| async move {
        execute(store, sql).await;
        let available = i64::try_from(store.candidates().await.unwrap().len()).unwrap();
        let short = store
            .short_of_nodes(UserId(0), available, 10)
            .await
            .unwrap();
        let mut tx = store.begin().await.unwrap();
        let has = due::nodes_of(&mut tx, &[ann, bob]).await.unwrap();
        let short: Vec<_> = short.into_iter().map(|row| row.id).collect();
        (short, has.len())
    };
    const BACK: &str = "update vps_nodes set desired_state = 'active'";
    const OUT: [&str; 3] = [
        "update vps_nodes set desired_state = 'cordoned' where name = 'one'",
        "update vps_nodes set desired_state = 'draining' where name = 'one'",
        "update vps_nodes set desired_state = 'disabled' where name = 'one'",
    ];
    assert_eq!(after(BACK).await, (vec![], 2));
    for out in OUT {
        assert_eq!(after(out).await, (vec![ann, bob], 0), "{out}");
    }
    // Once they have another they wait for nothing, and keep both when the first is back.
    assign(store, ann, two).await;
    assign(store, bob, two).await;
    assert_eq!(after(OUT[0]).await, (vec![], 2));
    assert_eq!(after(BACK).await, (vec![], 2));
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

pub(crate) async fn who_was_taken_off_a_node_stays_off_until_somebody_assigns_it(
    backend: &Backend,
) {
    let store = &backend.store;
    let (one, two) = (node(store, "one").await, node(store, "two").await);
    let ann = user_with(store, "ann", |_| ()).await;
    let off = async || {
        let mut tx = store.begin().await.unwrap();
        due::taken_off(&mut tx, &[ann]).await.unwrap().remove(&ann)
    };
    for node in [one, two] {
        assign(store, ann, node).await;
    }
    let mut tx = store.begin().await.unwrap();
    assignments::take_off(&mut tx, ann, one, NOW).await.unwrap();
    // Not by hand.
    assignments::release(&mut tx, ann, two, NOW).await.unwrap();
    let again = assignments::take_off(&mut tx, ann, one, NOW).await;
    assert!(matches!(again, Err(StoreError::NotFound(_))), "{again:?}");
    tx.commit().await.unwrap();
    assert_eq!(off().await, Some(vec![one]));
    // Not forgotten with the other released assignments.
    let mut tx = store.begin().await.unwrap();
    let later = NOW.plus_days(4_000);
    upkeep::expire(&mut tx, &MasterConfig::default(), later)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    let left = store.assignments(Some(ann), None, true, None, 10).await;
    assert_eq!(left.unwrap().len(), 1);
    assert_eq!(off().await, Some(vec![one]));
    assign(store, ann, one).await;
    assert_eq!(off().await, None);
}
