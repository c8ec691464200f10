//! The two schemas say the same.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Instant;

use sqlx::Row;

use crate::backend::{Backend, Place, open_postgres, open_sqlite};

/// What can be compared: per table its columns with nullability and family of types, its primary
/// key, its unique column sets, its foreign keys.
#[derive(Debug, Default, PartialEq)]
struct Table {
    columns: BTreeMap<String, (String, bool)>,
    primary_key: BTreeSet<String>,
    unique: BTreeSet<Vec<String>>,
    references: BTreeSet<(String, String, String, String)>,
}

#[tokio::test]
async fn postgres_and_sqlite_have_the_same_schema() {
    let sqlite = sqlite_schema(&Backend::sqlite().await).await;
    let postgres = postgres_schema(&Backend::postgres().await).await;
    assert!(sqlite.len() > 40, "{} tables", sqlite.len());
    assert_eq!(
        sqlite.keys().collect::<Vec<_>>(),
        postgres.keys().collect::<Vec<_>>()
    );
    for (name, table) in &sqlite {
        assert_eq!(
            table, &postgres[name],
            "table {name}: SQLite left, PostgreSQL right"
        );
    }
}

/// What the databases themselves do not tell alike: checks, defaults and the conditions of indexes, from the migrations. For
/// searches of names the two have parts of their own.
#[test]
fn postgres_and_sqlite_have_the_same_checks_defaults_and_conditions() {
    const SEARCHES: [&str; 2] = ["users_search", "user_name_parts"];
    let (postgres, sqlite) = (
        sqlx::migrate!("migrations/postgres"),
        sqlx::migrate!("migrations/sqlite"),
    );
    let mut compared = 0;
    for (postgres, sqlite) in postgres.iter().zip(sqlite.iter()) {
        let said = |sql: &str, plain: fn(&str) -> String| -> (BTreeSet<String>, BTreeSet<String>) {
            let statements: Vec<String> = statements(sql).map(|text| plain(&text)).collect();
            let is_table =
                |text: &&String| text.starts_with("create table ") || text.contains(" add column ");
            let tables = statements.iter().filter(is_table).cloned().collect();
            let indexes = statements.iter().filter_map(|text| condition(text));
            let indexes =
                indexes.filter(|index| !SEARCHES.iter().any(|name| index.starts_with(name)));
            (tables, indexes.collect())
        };
        let (left, right) = (
            said(sqlite.sql.as_str(), of_sqlite),
            said(postgres.sql.as_str(), of_postgres),
        );
        for (left, right) in [(&left.0, &right.0), (&left.1, &right.1)] {
            let differ: Vec<_> = left.symmetric_difference(right).collect();
            assert!(differ.is_empty(), "{}: {differ:#?}", sqlite.description);
            compared += left.len();
        }
    }
    assert!(compared > 90, "{compared}");
    // And a difference of each kind is seen.
    let one = "create table a (b text not null default '' check (b in ('x', 'y')))";
    for other in [one.replace("''", "'x'"), one.replace(", 'y'", "")] {
        assert_ne!(of_sqlite(one), of_sqlite(&other));
    }
    let index = "create unique index c on a (b) where b is null";
    for other in [" where b is null", "unique "] {
        assert_ne!(condition(index), condition(&index.replace(other, "")));
    }
}

/// The statements of a migration, each on one line, without comments.
fn statements(sql: &str) -> impl Iterator<Item = String> {
    let lines = sql.lines().filter(|line| !line.trim().starts_with("--"));
    let text = lines.collect::<Vec<_>>().join("\n") + "\n";
    let statements = text.split(";\n").map(|statement| {
        let words: Vec<_> = statement.split_whitespace().collect();
        words.join(" ").replace("( ", "(").replace(" )", ")")
    });
    statements.collect::<Vec<_>>().into_iter()
}

/// An index's name and table, whether it is unique, and its condition; what it has of columns may differ.
fn condition(statement: &str) -> Option<String> {
    let (unique, rest) = match statement.strip_prefix("create unique index ") {
        Some(rest) => ("unique", rest),
        None => ("", statement.strip_prefix("create index ")?),
    };
    let (name, rest) = rest.split_once(" on ")?;
    let table = rest.split_whitespace().next()?;
    let condition = rest.split_once(" where ").map_or("", |(_, text)| text);
    Some(format!("{name} {table} {unique} where {condition}"))
}

/// Takes out what only SQLite has: JSON is text that is checked.
fn of_sqlite(sql: &str) -> String {
    let sql = without(sql, " check (json_valid(", "))");
    without_references(&sql.replace(") strict", ")"))
}

/// Gives PostgreSQL's types SQLite's names, and takes out what only PostgreSQL has.
fn of_postgres(sql: &str) -> String {
    let mut sql = sql.to_owned();
    for (theirs, ours) in [
        (
            "bigint generated always as identity primary key",
            "integer primary key autoincrement",
        ),
        (
            "boolean not null default false",
            "integer not null default 0",
        ),
        (
            "boolean not null default true",
            "integer not null default 1",
        ),
        (" boolean", " integer"),
        (" bigint", " integer"),
        (" jsonb", " text"),
        (" bytea", " blob"),
        (" uuid", " blob"),
        (" double precision", " real"),
        (" with (fillfactor = 50)", ""),
    ] {
        sql = sql.replace(theirs, ours);
    }
    without_references(&sql)
}

/// References are compared as the databases have them: PostgreSQL gets some of them later.
fn without_references(sql: &str) -> String {
    let sql = without(sql, " references ", ")");
    sql.replace(" on delete cascade", "")
        .replace(" on delete set null", "")
}

fn without(sql: &str, from: &str, to: &str) -> String {
    let mut parts = sql.split(from);
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| {
        text + part.split_once(to).map_or("", |(_, rest)| rest)
    })
}

#[tokio::test]
async fn migrations_that_were_killed_in_the_middle_run_to_the_same_schema() {
    // SQLite: killed after each statement of the script, by cutting the connection in a transaction.
    let whole = sqlite_schema(&Backend::sqlite().await).await;
    for killed_after in [1, 3, 10, 25, 60] {
        let backend = Backend::empty_sqlite().await;
        let Place::Sqlite(path) = &backend.place else {
            unreachable!()
        };
        let mut connection = {
            use sqlx::ConnectOptions;
            sqlx::sqlite::SqliteConnectOptions::new()
                .filename(path)
                .connect()
                .await
                .unwrap()
        };
        let mut statements = 0;
        sqlx::query("begin").execute(&mut connection).await.unwrap();
        let mut left = killed_after;
        'files: for entry in sqlx::migrate!("migrations/sqlite").iter() {
            for statement in entry.sql.as_str().split(";\n") {
                if left == 0 {
                    break 'files;
                }
                sqlx::query(sqlx::AssertSqlSafe(statement.to_owned()))
                    .execute(&mut connection)
                    .await
                    .unwrap();
                left -= 1;
                statements += 1;
            }
        }
        assert!(statements > 0);
        drop(connection);
        backend.store.migrate().await.unwrap();
        backend.store.migrate().await.unwrap();
        assert_eq!(sqlite_schema(&backend).await, whole);
    }
}

#[tokio::test]
async fn migrations_whose_connection_is_killed_run_to_the_same_schema() {
    let whole = postgres_schema(&Backend::postgres().await).await;
    // Another transaction makes a table of each migration, so that the migration waits in its middle.
    for table in [
        "pool_members",
        "devices",
        "quota_leases",
        "api_tokens",
        "webhooks",
    ] {
        let backend = Backend::empty_postgres().await;
        let Place::Postgres(url) = &backend.place else {
            unreachable!()
        };
        let admin = sqlx::PgPool::connect(url).await.unwrap();
        let mut blocker = admin.begin().await.unwrap();
        sqlx::query(sqlx::AssertSqlSafe(format!("create table {table} (x int)")))
            .execute(&mut *blocker)
            .await
            .unwrap();
        let store = backend.reopen().await;
        let run = tokio::spawn(async move { store.migrate().await });
        let waiting = "select pg_terminate_backend(pid) from pg_stat_activity \
                       where datname = current_database() and wait_event_type = 'Lock'";
        while sqlx::query(waiting)
            .fetch_all(&admin)
            .await
            .unwrap()
            .is_empty()
        {
            assert!(!run.is_finished(), "the migration waits for {table}");
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        assert!(run.await.unwrap().is_err());
        blocker.rollback().await.unwrap();
        backend.store.migrate().await.unwrap();
        assert_eq!(postgres_schema(&backend).await, whole, "killed at {table}");
    }
}

/// How many processes are killed while they migrate, on each store.
const KILLS: usize = 10;

/// What the process does that is killed: migrates the store that the environment names.
#[allow(clippy::print_stdout, reason = "the test reads it")]
async fn migrate_until_killed(place: &str) {
    let store = match place.strip_prefix("postgres:") {
        Some(_) => open_postgres(place).await,
        None => open_sqlite(place.as_ref()).await,
    };
    println!("migrating begins");
    store.migrate().await.unwrap();
    println!("migrating is done");
}

#[tokio::test]
async fn a_process_killed_while_it_migrates_leaves_what_the_next_one_finishes() {
    const TEST: &str =
        "schema::a_process_killed_while_it_migrates_leaves_what_the_next_one_finishes";
    const PLACE: &str = "HY2_TEST_MIGRATE";
    // The same test is the process to kill, when the environment names a store.
    if let Ok(place) = std::env::var(PLACE) {
        return migrate_until_killed(&place).await;
    }
    let start = |place: &Place| {
        let place = match place {
            Place::Sqlite(path) => path.as_os_str(),
            Place::Postgres(url) => url.as_ref(),
        };
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", TEST, "--nocapture"])
            .env(PLACE, place)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let begun = lines.any(|line| line.unwrap().contains("migrating begins"));
        assert!(begun, "it migrates");
        (child, lines)
    };
    for postgres in [false, true] {
        let empty = || async {
            match postgres {
                true => Backend::empty_postgres().await,
                false => Backend::empty_sqlite().await,
            }
        };
        // How long it takes when nobody disturbs it, and what comes of it.
        let backend = empty().await;
        let begun = Instant::now();
        let (mut child, mut lines) = start(&backend.place);
        assert!(lines.any(|line| line.unwrap().contains("migrating is done")));
        let whole_time = begun.elapsed();
        assert!(child.wait().unwrap().success());
        let whole = schema(&backend).await;
        let (mut kills, mut versions) = (0, BTreeSet::new());
        for step in 1.. {
            assert!(step <= 50 * KILLS, "{kills} kills in {step} runs");
            let backend = empty().await;
            let (mut child, mut lines) = start(&backend.place);
            // Through the whole of it, and around again; a run may be faster than the first was.
            let part = u32::try_from(step % (2 * KILLS)).unwrap();
            std::thread::sleep(whole_time * part / u32::try_from(2 * KILLS).unwrap());
            child.kill().unwrap();
            child.wait().unwrap();
            if lines.any(|line| line.is_ok_and(|line| line.contains("migrating is done"))) {
                continue;
            }
            kills += 1;
            versions.insert(backend.store.schema().await.unwrap());
            backend.store.migrate().await.unwrap();
            assert_eq!(schema(&backend).await, whole, "run {step}");
            if kills >= KILLS && versions.len() > 1 {
                break;
            }
        }
    }
}

#[tokio::test]
async fn several_masters_migrate_at_once() {
    for backend in [
        Backend::empty_sqlite().await,
        Backend::empty_postgres().await,
    ] {
        let mut runs = Vec::new();
        for _ in 0..4 {
            let store = backend.reopen().await;
            runs.push(tokio::spawn(async move { store.migrate().await }));
        }
        for run in runs {
            run.await.unwrap().unwrap();
        }
    }
}

async fn schema(backend: &Backend) -> BTreeMap<String, Table> {
    match &backend.place {
        Place::Sqlite(_) => sqlite_schema(backend).await,
        Place::Postgres(_) => postgres_schema(backend).await,
    }
}

async fn sqlite_schema(backend: &Backend) -> BTreeMap<String, Table> {
    let Place::Sqlite(path) = &backend.place else {
        unreachable!()
    };
    let pool =
        sqlx::SqlitePool::connect_with(sqlx::sqlite::SqliteConnectOptions::new().filename(path))
            .await
            .unwrap();
    let names: Vec<String> = sqlx::query_scalar(
        // Not the index of parts of names, which is a virtual table with others below it.
        "select name from pragma_table_list where schema = 'main' and type = 'table' \
         and name not like 'sqlite_%' and name not like '_sqlx%' order by name",
    )
    .fetch_all(&pool)
    .await
    .unwrap();
    let mut schema = BTreeMap::new();
    for name in names {
        let mut table = Table::default();
        let sql: String = sqlx::query_scalar("select sql from sqlite_master where name = $1")
            .bind(&name)
            .fetch_one(&pool)
            .await
            .unwrap();
        for row in sqlx::query("select name, type, \"notnull\", pk from pragma_table_info($1)")
            .bind(&name)
            .fetch_all(&pool)
            .await
            .unwrap()
        {
            let column: String = row.get("name");
            let kind: String = row.get("type");
            let json = sql.contains(&format!("json_valid({column})"));
            let family = if json {
                "json".to_owned()
            } else {
                kind.to_lowercase()
            };
            let in_key = row.get::<i64, _>("pk") > 0;
            if in_key {
                table.primary_key.insert(column.clone());
            }
            table
                .columns
                .insert(column, (family, row.get::<i64, _>("notnull") > 0 || in_key));
        }
        for row in sqlx::query("select name, \"unique\", origin from pragma_index_list($1)")
            .bind(&name)
            .fetch_all(&pool)
            .await
            .unwrap()
        {
            if row.get::<i64, _>("unique") == 0 || row.get::<String, _>("origin") == "pk" {
                continue;
            }
            let mut columns: Vec<String> =
                sqlx::query_scalar("select name from pragma_index_info($1)")
                    .bind(row.get::<String, _>("name"))
                    .fetch_all(&pool)
                    .await
                    .unwrap();
            columns.sort();
            table.unique.insert(columns);
        }
        for row in sqlx::query(
            "select \"from\", \"table\", \"to\", on_delete from pragma_foreign_key_list($1)",
        )
        .bind(&name)
        .fetch_all(&pool)
        .await
        .unwrap()
        {
            table.references.insert((
                row.get("from"),
                row.get("table"),
                row.get("to"),
                row.get::<String, _>("on_delete").to_lowercase(),
            ));
        }
        schema.insert(name, table);
    }
    schema
}

async fn postgres_schema(backend: &Backend) -> BTreeMap<String, Table> {
    let Place::Postgres(url) = &backend.place else {
        unreachable!()
    };
    let pool = sqlx::PgPool::connect(url).await.unwrap();
    let mut schema = BTreeMap::<String, Table>::new();
    for row in sqlx::query(
        "select table_name::text, column_name::text, data_type::text, is_nullable = 'NO' as fixed \
         from information_schema.columns where table_schema = 'public' and table_name not like '\\_sqlx%'",
    )
    .fetch_all(&pool)
    .await
    .unwrap()
    {
        let family = match row.get::<&str, _>("data_type") {
            "bigint" | "boolean" => "integer",
            "bytea" | "uuid" => "blob",
            "jsonb" => "json",
            "double precision" => "real",
            "text" => "text",
            other => panic!("type {other}"),
        };
        schema
            .entry(row.get("table_name"))
            .or_default()
            .columns
            .insert(row.get("column_name"), (family.to_owned(), row.get("fixed")));
    }
    for row in sqlx::query(
        "select t.relname::text as name, i.indisprimary as is_primary, \
         array(select a.attname::text from pg_attribute a where a.attrelid = t.oid and a.attnum = any(i.indkey) \
         order by a.attname) as columns from pg_index i join pg_class t on t.oid = i.indrelid \
         join pg_namespace n on n.oid = t.relnamespace where n.nspname = 'public' and i.indisunique",
    )
    .fetch_all(&pool)
    .await
    .unwrap()
    {
        let Some(table) = schema.get_mut(row.get::<&str, _>("name")) else { continue };
        let columns: Vec<String> = row.get("columns");
        if row.get("is_primary") {
            table.primary_key.extend(columns);
        } else {
            table.unique.insert(columns);
        }
    }
    for row in sqlx::query(
        "select t.relname::text as name, a.attname::text as column, r.relname::text as target, \
         b.attname::text as target_column, c.confdeltype::text as on_delete from pg_constraint c \
         join pg_class t on t.oid = c.conrelid join pg_class r on r.oid = c.confrelid \
         join pg_attribute a on a.attrelid = c.conrelid and a.attnum = c.conkey[1] \
         join pg_attribute b on b.attrelid = c.confrelid and b.attnum = c.confkey[1] \
         where c.contype = 'f' and c.connamespace = 'public'::regnamespace",
    )
    .fetch_all(&pool)
    .await
    .unwrap()
    {
        let action = match row.get::<&str, _>("on_delete") {
            "a" => "no action",
            "c" => "cascade",
            "n" => "set null",
            other => panic!("action {other}"),
        };
        schema
            .get_mut(row.get::<&str, _>("name"))
            .unwrap()
            .references
            .insert((
                row.get("column"),
                row.get("target"),
                row.get("target_column"),
                action.to_owned(),
            ));
    }
    schema
}

#[cfg(unix)]
#[tokio::test]
async fn a_new_store_is_readable_for_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("new.db");
    let options = hy2_master_sdk::store::StoreOptions::default();
    let store = hy2_master_sdk::store::Store::open_sqlite(&path, &options);
    store.await.unwrap().migrate().await.unwrap();
    let mut names = Vec::new();
    for file in std::fs::read_dir(directory.path()).unwrap() {
        let file = file.unwrap();
        let mode = file.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{:?}", file.file_name());
        names.push(file.file_name());
    }
    assert!(names.len() >= 2, "the log is beside it: {names:?}");
}
