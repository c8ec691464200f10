//! What searches find is what a comparison of every name finds, whichever way the store goes.

use std::collections::BTreeSet;

use hy2_master_sdk::domain::{Timestamp, UserId, UserStatus};
use hy2_master_sdk::store::user_list::{self, UserFilter, UserSort};
use hy2_master_sdk::store::users::{self, UserChange, UserRow};
use hy2_master_sdk::store::{Db, Store};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use uuid::Uuid;

use crate::backend::Backend;
use crate::rows::new_user;

/// Letters with and without case, in one to four bytes; what is special to a pattern, to a query of
/// parts, to SQL, and what the store itself appends to names in its index.
const LETTERS: &str = "aAbBzZ019._@-%_\\'\"*^() ßẞÄäΣσςİıéÉЖж中😀\u{1}\u{fffd}\u{10ffff}";

/// Searches that no random one need hit upon.
const SPECIAL: [&str; 20] = [
    "",
    "%",
    "_",
    "%%",
    "\\",
    "'",
    "\"",
    "\"\"",
    "*",
    "^",
    "a*",
    "AND",
    "a OR b",
    "late",
    "LATE",
    "user-",
    "e",
    "q",
    "\u{1}\u{1}",
    "\u{10ffff}\u{10ffff}\u{10ffff}",
];

/// How many searches beside the special ones.
const SEARCHES: usize = 150;

pub(crate) async fn searches_equal_a_comparison_of_every_name(backend: &Backend) {
    let seed =
        std::env::var("HY2_SEED").map_or(7, |seed| seed.parse().expect("HY2_SEED: a number"));
    eprintln!("HY2_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let store = &backend.store;
    let users = people(store, &mut random).await;
    let mut searches: Vec<String> = SPECIAL.into_iter().map(str::to_owned).collect();
    while searches.len() < SPECIAL.len() + SEARCHES {
        searches.push(search(&users, &mut random));
    }
    // Few, many among the first users, many but none among them: otherwise a way was not gone.
    let (mut few, mut first, mut late) = (0, 0, 0);
    for search in searches {
        let part = fold(&search);
        let status = random.random_bool(0.2).then_some(UserStatus::Disabled);
        let mut expected: Vec<&UserRow> = users
            .iter()
            .filter(|user| fold(&user.username).contains(&part))
            .filter(|user| status.is_none_or(|status| user.status == status))
            .collect();
        let (mut sort, descending) = (UserSort::Id, part != "late" && random.random_bool(0.5));
        if status.is_none() {
            match expected.len() {
                0..=500 => few += 1,
                4_100.. if expected[0].id.0 > 2_000 => late += 1,
                1_100.. => first += 1,
                _ => {}
            }
        }
        if part != "late" {
            let sorts = [
                UserSort::Id,
                UserSort::Username,
                UserSort::CreatedAt,
                UserSort::ExpiresAt,
            ];
            sort = *sorts.choose(&mut random).unwrap();
        }
        expected.sort_by_key(|user| match sort {
            UserSort::Id => (user.id.0, user.id),
            UserSort::CreatedAt => (user.created_at.0, user.id),
            UserSort::ExpiresAt => (user.expires_at.map_or(i64::MAX, |at| at.0), user.id),
            // The order of names is the collation's.
            UserSort::Username => (0, user.id),
        });
        if descending && sort != UserSort::Username {
            expected.reverse();
        }
        let filter = UserFilter {
            status,
            search: Some(search.clone()),
            ..UserFilter::default()
        };
        let size = i64::try_from(expected.len() / 4).unwrap().max(3);
        let mut found = pages(store, &filter, sort, descending, size).await;
        if sort == UserSort::Username {
            found.sort();
        }
        let expected: Vec<UserId> = expected.iter().map(|user| user.id).collect();
        let name = |id: &UserId| users.iter().find(|user| user.id == *id).unwrap();
        let missing = expected.iter().filter(|id| !found.contains(id)).map(name);
        let wrong = found.iter().filter(|id| !expected.contains(id)).map(name);
        assert!(
            found == expected,
            "{search:?} {status:?} {sort:?} {descending}: missing {:?}, wrong {:?}; {} found, {} expected",
            missing.map(|user| &user.username).collect::<Vec<_>>(),
            wrong.map(|user| &user.username).collect::<Vec<_>>(),
            found.len(),
            expected.len(),
        );
    }
    assert!(few > 20 && first > 5 && late > 0, "{few} {first} {late}");
}

pub(crate) async fn users_of_an_older_schema_are_found(backend: &Backend) {
    let old = match &backend.store.db() {
        Db::Pg(_) => Backend::empty_postgres().await,
        Db::Sqlite { .. } => Backend::empty_sqlite().await,
    };
    old.store.migrate_to(5).await.unwrap();
    for (name, gone) in [
        ("Old.Anna", false),
        ("old-boris", false),
        ("old.gone", true),
    ] {
        const SQL: &str = "insert into users (uid, username, seed_enc, subscription_hash, subscription_enc, \
                           subscription_rotated_at, period_started_at, tags, created_at, updated_at, deleted_at) \
                           values ($1, $2, $3, $4, $3, 1, 1, '[]', 1, 1, $5)";
        let uid = Uuid::new_v4();
        let hash = uid.as_bytes().to_vec();
        let deleted_at = gone.then_some(1_i64);
        match old.store.db() {
            Db::Pg(pool) => {
                let query = sqlx::query(SQL).bind(uid).bind(name).bind(vec![1_u8]);
                query
                    .bind(hash)
                    .bind(deleted_at)
                    .execute(pool)
                    .await
                    .unwrap();
            }
            Db::Sqlite { write, .. } => {
                let query = sqlx::query(SQL).bind(uid).bind(name).bind(vec![1_u8]);
                query
                    .bind(hash)
                    .bind(deleted_at)
                    .execute(write)
                    .await
                    .unwrap();
            }
        }
    }
    old.store.migrate().await.unwrap();
    for (search, count) in [
        ("OLD", 2),
        ("d.a", 1),
        ("s", 1),
        ("gone", 0),
        ("ld-boris", 1),
    ] {
        let filter = UserFilter {
            search: Some(search.to_owned()),
            ..UserFilter::default()
        };
        for sort in [
            UserSort::Id,
            UserSort::Username,
            UserSort::CreatedAt,
            UserSort::ExpiresAt,
        ] {
            let found = pages(&old.store, &filter, sort, false, 10).await;
            assert_eq!(found.len(), count, "{search} {sort:?}");
        }
    }
}

/// Makes users: two in three with a name that many have, then some with names of all letters, then
/// many with a name that none of the first has. Some change their names, some go, some are disabled.
async fn people(store: &Store, random: &mut StdRng) -> Vec<UserRow> {
    let letters: Vec<char> = LETTERS.chars().collect();
    let mut names: BTreeSet<String> = BTreeSet::new();
    let mut order: Vec<String> = Vec::new();
    for number in 0..1_600 {
        order.push(format!("User-{number:04}"));
    }
    while order.len() < 2_400 {
        let length = random.random_range(1..=12);
        let name: String = (0..length)
            .map(|_| *letters.choose(random).unwrap())
            .collect();
        if names.insert(name.clone()) {
            order.insert(random.random_range(0..order.len()), name);
        }
    }
    for number in 0..4_600 {
        order.push(format!("LATE.{number:04}"));
    }
    let mut tx = store.begin().await.unwrap();
    let mut made = Vec::new();
    for (number, name) in (0_i64..).zip(order) {
        let mut new = new_user(&name);
        new.expires_at = (number % 3 > 0).then_some(Timestamp(number % 5));
        if number % 17 == 0 {
            new.status = UserStatus::Disabled;
        }
        let at = Timestamp(number / 100);
        made.push(users::create(&mut tx, &new, at).await.unwrap());
    }
    let mut left = Vec::new();
    for (number, user) in made.into_iter().enumerate() {
        match number % 40 {
            1 => {
                let username = match user.username.to_uppercase() {
                    // As before, but for the case; or wholly another.
                    upper if number % 80 == 1 && upper.chars().count() <= 64 => upper,
                    _ => format!("renamed é {number}"),
                };
                let change = UserChange {
                    username: Some(username),
                    ..UserChange::default()
                };
                // Upper case may be taken: of ß and ẞ there is one.
                if names.contains(change.username.as_ref().unwrap()) {
                    left.push(user);
                    continue;
                }
                left.push(
                    users::update(&mut tx, user.id, None, &change, Timestamp(9))
                        .await
                        .unwrap(),
                );
            }
            2 => {
                users::delete(&mut tx, user.id, None, Timestamp(9))
                    .await
                    .unwrap();
            }
            _ => left.push(user),
        }
    }
    tx.commit().await.unwrap();
    left
}

/// A part of somebody's name in another case, or some letters.
fn search(users: &[UserRow], random: &mut StdRng) -> String {
    let letters: Vec<char> = LETTERS.chars().collect();
    if random.random_bool(0.3) {
        let length = random.random_range(1..=4);
        return (0..length)
            .map(|_| *letters.choose(random).unwrap())
            .collect();
    }
    let name: Vec<char> = users.choose(random).unwrap().username.chars().collect();
    let start = random.random_range(0..name.len());
    let length = random.random_range(1..=8.min(name.len() - start));
    let part = name[start..start + length].iter();
    part.flat_map(|letter| {
        let changed: Vec<char> = match random.random_range(0..3) {
            // Several letters are folded to one: what has one in upper case may have another in lower.
            0 if letter.is_lowercase()
                && letter
                    .to_uppercase()
                    .flat_map(char::to_lowercase)
                    .eq([*letter]) =>
            {
                letter.to_uppercase().collect()
            }
            1 => letter.to_lowercase().collect(),
            _ => vec![*letter],
        };
        changed
    })
    .collect()
}

/// What the store promises to compare: letter by letter in small letters.
fn fold(text: &str) -> String {
    text.chars().flat_map(char::to_lowercase).collect()
}

async fn pages(
    store: &Store,
    filter: &UserFilter,
    sort: UserSort,
    descending: bool,
    size: i64,
) -> Vec<UserId> {
    let mut ids = Vec::new();
    let mut after = None;
    loop {
        let page = user_list::list(store, filter, sort, descending, after, size)
            .await
            .unwrap();
        assert!(i64::try_from(page.len()).unwrap() <= size);
        let Some(last) = page.last() else { return ids };
        after = Some(sort.key(last));
        ids.extend(page.iter().map(|user| user.id));
        assert!(ids.len() < 10_000, "pages go round in a circle");
    }
}
