//! Lists of users: every order is whole, every search finds what it should and nothing else.

use std::collections::BTreeSet;

use hy2_master_sdk::domain::{Timestamp, UserId};
use hy2_master_sdk::store::Store;
use hy2_master_sdk::store::user_list::{self, UserFilter, UserSort};
use hy2_master_sdk::store::users::{self, UserChange, UserRow};

use crate::backend::Backend;
use crate::rows::new_user;

const SORTS: [UserSort; 4] = [
    UserSort::Id,
    UserSort::Username,
    UserSort::CreatedAt,
    UserSort::ExpiresAt,
];

/// Makes users by name, with moments that repeat.
async fn make(store: &Store, names: impl IntoIterator<Item = String>) -> Vec<UserRow> {
    let mut tx = store.begin().await.unwrap();
    let mut made = Vec::new();
    for (number, name) in (0_i64..).zip(names) {
        let mut new = new_user(&name);
        // Never, at the end of time, and one of five moments.
        new.expires_at = match number % 7 {
            0 => None,
            1 => Some(Timestamp(i64::MAX)),
            other => Some(Timestamp(other)),
        };
        made.push(
            users::create(&mut tx, &new, Timestamp(number / 11))
                .await
                .unwrap(),
        );
    }
    tx.commit().await.unwrap();
    made
}

async fn pages(
    store: &Store,
    filter: &UserFilter,
    sort: UserSort,
    descending: bool,
    size: i64,
) -> Vec<UserRow> {
    let mut all: Vec<UserRow> = Vec::new();
    loop {
        let after = all.last().map(|row| sort.key(row));
        let page = user_list::list(store, filter, sort, descending, after, size)
            .await
            .unwrap();
        if page.is_empty() {
            return all;
        }
        all.extend(page);
        assert!(all.len() < 10_000, "pages go round in a circle");
    }
}

fn ids(rows: &[UserRow]) -> Vec<UserId> {
    rows.iter().map(|row| row.id).collect()
}

pub(crate) async fn pages_of_every_order_hold_every_user_once_and_in_order(backend: &Backend) {
    let store = &backend.store;
    let mixed = (0..200).map(|number| format!("user-{:03}", number * 77 % 200));
    let mut made = make(store, mixed).await;
    for sort in SORTS {
        made.sort_by_key(|row| match sort {
            UserSort::Id => (0, String::new(), row.id),
            UserSort::Username => (0, row.username.clone(), row.id),
            UserSort::CreatedAt => (row.created_at.0, String::new(), row.id),
            UserSort::ExpiresAt => {
                let end = row.expires_at.map_or(i64::MAX, |at| at.0);
                (end, String::new(), row.id)
            }
        });
        let mut expected = ids(&made);
        for descending in [false, true] {
            for size in [1, 7, 50, 500] {
                let all = pages(store, &UserFilter::default(), sort, descending, size).await;
                assert_eq!(ids(&all), expected, "{sort:?} {descending} {size}");
            }
            expected.reverse();
        }
    }
}

pub(crate) async fn searches_find_exactly_the_names_with_the_part(backend: &Backend) {
    let store = &backend.store;
    let named = [
        "Anna.Keller",
        "anna",
        "ANNIKA",
        "bo",
        "a_b%c\\d",
        "quote\"s'and;more",
        "a AND b NOT c",
        "müller-straße",
        "0123456789012345678901234567890123456789",
    ];
    // So many that SQLite gives up its index of parts and walks.
    let many = (0..2_300).map(|number| format!("many-{number:04}"));
    let made = make(store, named.map(str::to_owned).into_iter().chain(many)).await;
    let mut tx = store.begin().await.unwrap();
    let change = UserChange {
        username: Some("renamed".to_owned()),
        ..UserChange::default()
    };
    users::update(&mut tx, made[1].id, None, &change, Timestamp(1))
        .await
        .unwrap();
    users::delete(&mut tx, made[2].id, None, Timestamp(1))
        .await
        .unwrap();
    tx.commit().await.unwrap();
    let names: Vec<(UserId, String)> = made
        .iter()
        .filter(|row| row.id != made[2].id)
        .map(|row| match row.id == made[1].id {
            true => (row.id, "renamed".to_owned()),
            false => (row.id, row.username.to_lowercase()),
        })
        .collect();
    for search in [
        "",
        "a",
        "nn",
        "ann",
        "ANN",
        "keller",
        "anna.k",
        "renamed",
        "many",
        "many-01",
        "-0199",
        "b%c",
        "_b%",
        "\\d",
        "te\"s",
        "'and;",
        "and",
        "b NOT c",
        "\"ann\" OR \"many\"",
        "müller",
        "aße",
        "012345678901234567890123456789012345678",
        "nobody",
        "zz",
        "*",
        "\0",
        "ma\0ny",
    ] {
        let filter = UserFilter {
            search: Some(search.to_owned()),
            ..UserFilter::default()
        };
        let part = search.to_lowercase();
        let expected: BTreeSet<UserId> = names
            .iter()
            .filter(|(_, name)| name.contains(&part))
            .map(|(id, _)| *id)
            .collect();
        for sort in SORTS {
            let found = pages(store, &filter, sort, sort == UserSort::CreatedAt, 500).await;
            let keys: Vec<_> = found.iter().map(|row| row.id).collect();
            assert_eq!(keys.len(), expected.len(), "{search:?} {sort:?}");
            assert_eq!(
                keys.into_iter().collect::<BTreeSet<_>>(),
                expected,
                "{search:?} {sort:?}"
            );
        }
    }
}
