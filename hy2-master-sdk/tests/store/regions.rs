//! Regions.

use std::time::Duration;

use hy2_master_sdk::domain::RegionId;
use hy2_master_sdk::store::certificates::{self, NewToken};
use hy2_master_sdk::store::nodes;
use hy2_master_sdk::store::regions::{self, NewRegion, RegionRow, RegionUses};
use hy2_master_sdk::store::users;
use hy2_master_sdk::store::{Store, StoreError};

use crate::backend::Backend;
use crate::rows::{NOW, new_node, user_with};
use crate::upkeep::execute;

pub(crate) async fn a_region_is_read_back_as_it_was_written_and_its_code_is_taken(
    backend: &Backend,
) {
    let store = &backend.store;
    // A whole number too: SQLite may not take it for an integer.
    let east = make(store, "us-east", Some((40.712_8, -74.0))).await;
    let far = make(store, "us1", None).await;
    let edge = make(store, "eu", Some((-90.0, 180.0))).await;
    assert_eq!(
        (east.latitude, east.longitude),
        (Some(40.712_8), Some(-74.0))
    );
    assert_eq!((far.latitude, far.longitude), (None, None));
    // By the bytes of the codes: a hyphen is before a digit.
    let listed = regions::list(store).await.unwrap();
    assert_eq!(listed, [edge.clone(), east.clone(), far.clone()]);
    assert_eq!(regions::get(store, east.id).await.unwrap(), east);
    assert_eq!(regions::code(store, far.id).await.unwrap(), "us1");
    assert_eq!(regions::by_code(store, "us1").await.unwrap(), Some(far.id));
    assert_eq!(regions::by_code(store, "US1").await.unwrap(), None);
    let codes = regions::codes(store).await.unwrap();
    assert_eq!((codes.len(), codes[&edge.id].as_str()), (3, "eu"));

    let mut tx = store.begin().await.unwrap();
    assert_eq!(regions::count(&mut tx).await.unwrap(), 3);
    let taken = regions::create(&mut tx, &new("eu", None), NOW).await;
    let error = taken.unwrap_err();
    assert!(error.is_duplicate_of("regions_code_key"), "{error:?}");
    tx.rollback().await.unwrap();

    let later = NOW.plus_days(1);
    let mut tx = store.begin().await.unwrap();
    let moved = new("us-west", Some((1.5, 2.5)));
    let changed = regions::update(&mut tx, far.id, &moved, later)
        .await
        .unwrap();
    let nowhere = regions::update(&mut tx, RegionId(99), &moved, later).await;
    assert!(
        matches!(nowhere, Err(StoreError::NotFound(_))),
        "{nowhere:?}"
    );
    tx.commit().await.unwrap();
    let expected = RegionRow {
        code: "us-west".to_owned(),
        name: "the us-west".to_owned(),
        latitude: Some(1.5),
        longitude: Some(2.5),
        updated_at: later,
        ..far
    };
    assert_eq!(changed, expected);
    assert_eq!(regions::get(store, expected.id).await.unwrap(), expected);
}

pub(crate) async fn a_region_stays_while_something_uses_it_and_what_is_over_forgets_it(
    backend: &Backend,
) {
    let store = &backend.store;
    let region = make(store, "eu", None).await.id;
    let other = make(store, "us", None).await.id;
    let ann = user_with(store, "ann", |user| user.home_region_id = Some(region)).await;
    let bob = user_with(store, "bob", |user| user.home_region_id = Some(other)).await;
    let mut tx = store.begin().await.unwrap();
    let mut node = new_node("one");
    node.region_id = Some(region);
    let node = nodes::create(&mut tx, &node, NOW).await.unwrap().id;
    let token = |number: u8| NewToken {
        secret_hash: [number; 32],
        label: String::new(),
        bind_cidr: None,
        region_id: Some(region),
        tags: Vec::new(),
        expires_at: NOW.plus(Duration::from_secs(900)),
        created_by: None,
    };
    let mut tokens = Vec::new();
    for number in 0..4 {
        let row = certificates::create_token(&mut tx, &token(number), NOW).await;
        tokens.push(row.unwrap().id);
    }
    let used = certificates::use_token(&mut tx, tokens[0], &[1; 32], NOW).await;
    assert!(used.unwrap());
    certificates::revoke_token(&mut tx, tokens[1], NOW)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    assert_eq!(uses(store, region, 0).await, expected(1, 1, 2));
    assert_eq!(uses(store, region, 900).await, expected(1, 1, 0));
    assert_eq!(uses(store, other, 0).await, expected(0, 1, 0));

    // What goes away by itself or is deleted is in nobody's way; what is there is.
    let mut tx = store.begin().await.unwrap();
    users::delete(&mut tx, ann, None, NOW).await.unwrap();
    tx.commit().await.unwrap();
    for seconds in [0, 900] {
        let error = delete(store, region, seconds).await.unwrap_err();
        assert!(matches!(error, StoreError::Reference(_)), "{error:?}");
    }
    let mut tx = store.begin().await.unwrap();
    nodes::delete(&mut tx, node, None, NOW).await.unwrap();
    tx.commit().await.unwrap();
    // Two tokens are open until their time is over.
    assert_eq!(uses(store, region, 899).await, expected(0, 0, 2));
    let error = delete(store, region, 899).await.unwrap_err();
    assert!(matches!(error, StoreError::Reference(_)), "{error:?}");
    assert_eq!(store.enrolment_tokens(9).await.unwrap().len(), 4);
    assert!(uses(store, region, 900).await.is_none());
    delete(store, region, 900).await.unwrap();
    let left = store.enrolment_tokens(9).await.unwrap();
    assert!(left.iter().all(|token| token.region_id.is_none()));
    assert_eq!(left.len(), 4);
    let gone = delete(store, region, 900).await.unwrap_err();
    assert!(matches!(gone, StoreError::NotFound(_)), "{gone:?}");

    // Others keep theirs.
    assert_eq!(store.user(bob).await.unwrap().home_region_id, Some(other));
    execute(store, "update users set home_region_id = null").await;
    assert!(uses(store, other, 0).await.is_none());
}

fn new(code: &str, at: Option<(f64, f64)>) -> NewRegion {
    NewRegion {
        code: code.to_owned(),
        name: format!("the {code}"),
        latitude: at.map(|(latitude, _)| latitude),
        longitude: at.map(|(_, longitude)| longitude),
    }
}

async fn make(store: &Store, code: &str, at: Option<(f64, f64)>) -> RegionRow {
    let mut tx = store.begin().await.unwrap();
    let row = regions::create(&mut tx, &new(code, at), NOW).await.unwrap();
    tx.commit().await.unwrap();
    row
}

fn expected(nodes: i64, users: i64, tokens: i64) -> RegionUses {
    RegionUses {
        nodes,
        users,
        tokens,
    }
}

async fn uses(store: &Store, region: RegionId, seconds: u64) -> RegionUses {
    let now = NOW.plus(Duration::from_secs(seconds));
    let mut tx = store.begin().await.unwrap();
    let found = regions::uses(&mut tx, region, now).await.unwrap();
    tx.rollback().await.unwrap();
    found
}

async fn delete(store: &Store, region: RegionId, seconds: u64) -> Result<(), StoreError> {
    let now = NOW.plus(Duration::from_secs(seconds));
    let mut tx = store.begin().await?;
    regions::get_for_update(&mut tx, region).await?;
    regions::delete(&mut tx, region, now).await?;
    tx.commit().await
}
