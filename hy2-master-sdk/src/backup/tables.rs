//! The schema, as the database describes it: tables in an order in which rows can be inserted, their
//! columns, keys and references. Only what the migrations make: what else somebody keeps in the database is theirs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::store::{Connection, Store, StoreError, Tx};

/// What a backup does not hold: sessions and leases end with a restore, masters speak for
/// themselves, answers to repeated requests are of the moment.
const LEFT_OUT: &[&str] = &[
    "_sqlx_migrations",
    "admin_sessions",
    "idempotency_keys",
    "leases",
    "masters",
];

/// How a column's values are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Integer,
    Real,
    /// 0 or 1.
    Boolean,
    Text,
    /// Hexadecimal.
    Bytes,
    /// Hexadecimal; in PostgreSQL a type of its own.
    Uuid,
    /// JSON in a string, keys sorted.
    Json,
}

#[derive(Debug, Clone)]
pub(super) struct Column {
    pub(super) name: String,
    pub(super) kind: Kind,
    /// Refers to another row of the same table: written after all rows are there.
    pub(super) own_table: bool,
    /// Numbered by the database.
    pub(super) identity: bool,
}

#[derive(Debug, Clone)]
pub(super) struct Table {
    pub(super) name: String,
    pub(super) columns: Vec<Column>,
    pub(super) key: Vec<String>,
}

/// A reference: table, column, table referred to.
type Reference = (String, String, String);

/// What a store holds.
#[derive(Debug, Clone)]
pub(super) struct Schema {
    /// Its newest migration.
    pub(super) version: i64,
    /// The master's tables in the order in which rows can be inserted.
    pub(super) tables: Arc<[Table]>,
    /// Tables, and columns of the master's, that no migration makes.
    pub(super) others: Vec<String>,
}

/// Reads the schema of a store.
pub(super) async fn schema(tx: &mut Tx) -> Result<Schema, StoreError> {
    let version = schema_version(tx).await?;
    let (tables, references) = match tx.connection() {
        Connection::Pg(_) => read_postgres(tx).await?,
        Connection::Sqlite(_) => read_sqlite(tx).await?,
    };
    let mut tables: Vec<Table> = tables
        .into_iter()
        .filter(|table| !LEFT_OUT.contains(&table.name.as_str()))
        .collect();
    let mut others = Vec::new();
    // Of a newer schema nobody here knows what belongs to it: better too much than too little.
    if version <= Store::newest_schema() {
        others = keep_made(&mut tables, &Store::made_by(version).await?);
    }
    let tables = in_order(tables, &references).into();
    Ok(Schema {
        version,
        tables,
        others,
    })
}

/// Takes out what the migrations do not make, and returns its names.
fn keep_made(tables: &mut Vec<Table>, made: &BTreeMap<String, BTreeSet<String>>) -> Vec<String> {
    let mut others = Vec::new();
    tables.retain_mut(|table| {
        let Some(columns) = made.get(&table.name) else {
            others.push(table.name.clone());
            return false;
        };
        table.columns.retain(|column| {
            let known = columns.contains(&column.name);
            if !known {
                others.push(format!("{}.{}", table.name, column.name));
            }
            known
        });
        true
    });
    others
}

/// Returns the newest migration of a store.
async fn schema_version(tx: &mut Tx) -> Result<i64, StoreError> {
    const SQL: &str = "select max(version) from _sqlx_migrations";
    Ok(match tx.connection() {
        Connection::Pg(pg) => sqlx::query_scalar(SQL).fetch_one(&mut **pg).await?,
        Connection::Sqlite(sqlite) => sqlx::query_scalar(SQL).fetch_one(&mut **sqlite).await?,
    })
}

async fn read_postgres(tx: &mut Tx) -> Result<(Vec<Table>, Vec<Reference>), StoreError> {
    let Connection::Pg(pg) = tx.connection() else {
        return Ok((Vec::new(), Vec::new()));
    };
    let columns: Vec<(String, String, String, String)> = sqlx::query_as(
        "select c.table_name::text, c.column_name::text, c.data_type::text, c.is_identity::text \
         from information_schema.columns c join information_schema.tables t \
         on t.table_schema = c.table_schema and t.table_name = c.table_name \
         where c.table_schema = 'public' and t.table_type = 'BASE TABLE' \
         order by c.table_name, c.column_name",
    )
    .fetch_all(&mut **pg)
    .await?;
    let keys: Vec<(String, String)> = sqlx::query_as(
        "select k.table_name::text, k.column_name::text \
         from information_schema.table_constraints t \
         join information_schema.key_column_usage k on k.constraint_name = t.constraint_name \
         and k.table_schema = t.table_schema and k.table_name = t.table_name \
         where t.table_schema = 'public' and t.constraint_type = 'PRIMARY KEY' \
         order by k.table_name, k.ordinal_position",
    )
    .fetch_all(&mut **pg)
    .await?;
    let references: Vec<Reference> = sqlx::query_as(
        "select o.relname::text, a.attname::text, r.relname::text from pg_constraint c \
         join pg_class o on o.oid = c.conrelid join pg_class r on r.oid = c.confrelid \
         join pg_attribute a on a.attrelid = c.conrelid and a.attnum = any(c.conkey) \
         join pg_namespace n on n.oid = o.relnamespace \
         where c.contype = 'f' and n.nspname = 'public'",
    )
    .fetch_all(&mut **pg)
    .await?;
    let mut tables = BTreeMap::<String, Table>::new();
    for (table, name, data_type, identity) in columns {
        let kind = match data_type.as_str() {
            "bigint" | "integer" | "smallint" => Kind::Integer,
            "double precision" | "real" => Kind::Real,
            "boolean" => Kind::Boolean,
            "bytea" => Kind::Bytes,
            "uuid" => Kind::Uuid,
            "jsonb" | "json" => Kind::Json,
            _ => Kind::Text,
        };
        let own_table = is_own(&references, &table, &name);
        let identity = identity == "YES";
        table_of(&mut tables, &table).columns.push(Column {
            name,
            kind,
            own_table,
            identity,
        });
    }
    for (table, column) in keys {
        table_of(&mut tables, &table).key.push(column);
    }
    Ok((tables.into_values().collect(), references))
}

async fn read_sqlite(tx: &mut Tx) -> Result<(Vec<Table>, Vec<Reference>), StoreError> {
    let Connection::Sqlite(sqlite) = tx.connection() else {
        return Ok((Vec::new(), Vec::new()));
    };
    let columns: Vec<(String, String, String, String, i64)> = sqlx::query_as(
        "select m.name, m.sql, c.name, lower(c.type), c.pk from sqlite_master m \
         join pragma_table_info(m.name) c join pragma_table_list(m.name) l \
         where m.type = 'table' and m.name not like 'sqlite_%' \
         and l.schema = 'main' and l.type = 'table' order by m.name, c.name",
    )
    .fetch_all(&mut **sqlite)
    .await?;
    let references: Vec<Reference> = sqlx::query_as(
        "select m.name, f.\"from\", f.\"table\" from sqlite_master m \
         join pragma_foreign_key_list(m.name) f where m.type = 'table'",
    )
    .fetch_all(&mut **sqlite)
    .await?;
    let mut tables = BTreeMap::<String, Table>::new();
    let mut keys = Vec::new();
    for (table, sql, name, data_type, key) in columns {
        // JSON and booleans are known by their checks: the database has no types for them.
        let kind = match data_type.as_str() {
            "integer" if sql.contains(&format!("{name} in (0, 1)")) => Kind::Boolean,
            "integer" => Kind::Integer,
            "real" => Kind::Real,
            "blob" => Kind::Bytes,
            _ if sql.contains(&format!("json_valid({name})")) => Kind::Json,
            _ => Kind::Text,
        };
        if key > 0 {
            keys.push((table.clone(), key, name.clone()));
        }
        let own_table = is_own(&references, &table, &name);
        let column = Column {
            identity: key > 0 && sql.contains("autoincrement"),
            name,
            kind,
            own_table,
        };
        table_of(&mut tables, &table).columns.push(column);
    }
    keys.sort();
    for (table, _, column) in keys {
        table_of(&mut tables, &table).key.push(column);
    }
    Ok((tables.into_values().collect(), references))
}

fn is_own(references: &[Reference], table: &str, column: &str) -> bool {
    references
        .iter()
        .any(|(from, by, to)| from == table && by == column && to == table)
}

fn table_of<'a>(tables: &'a mut BTreeMap<String, Table>, name: &str) -> &'a mut Table {
    tables.entry(name.to_owned()).or_insert_with(|| Table {
        name: name.to_owned(),
        columns: Vec::new(),
        key: Vec::new(),
    })
}

/// Brings tables into an order in which what is referred to comes first.
fn in_order(tables: Vec<Table>, references: &[Reference]) -> Vec<Table> {
    // Somebody else's tables may refer to the master's, and the other way nothing can.
    let names: BTreeSet<String> = tables.iter().map(|table| table.name.clone()).collect();
    let mut left = tables;
    let mut done = BTreeSet::<String>::new();
    let mut ordered = Vec::new();
    while !left.is_empty() {
        let ready = |table: &Table| {
            references
                .iter()
                .filter(|(from, _, to)| *from == table.name && *to != table.name)
                .all(|(_, _, to)| done.contains(to) || !names.contains(to))
        };
        let (now, later): (Vec<_>, Vec<_>) = left.into_iter().partition(ready);
        // A circle: the schema has none, and a restore would name the row.
        let (now, later) = if now.is_empty() {
            (later, Vec::new())
        } else {
            (now, later)
        };
        done.extend(now.iter().map(|table| table.name.clone()));
        ordered.extend(now);
        left = later;
    }
    ordered
}
