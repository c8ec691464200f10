//! What can go wrong with the store.

use thiserror::Error;

/// An operation of the store failed; nothing of it has happened.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StoreError {
    /// There is no such row.
    #[error("there is no such {0}")]
    NotFound(&'static str),
    /// The row is not at the revision that the caller saw.
    #[error("{what} is at revision {actual}, not {expected}")]
    StaleRevision {
        /// What kind of row.
        what: &'static str,
        /// The caller's.
        expected: i64,
        /// The store's.
        actual: i64,
    },
    /// A unique value is taken. The name is `<table>_<columns>_key` or the index's, the same on
    /// both backends.
    #[error("{0} is taken")]
    Duplicate(String),
    /// Something refers to the row, or the row refers to something that is not there.
    #[error("the reference does not hold: {0}")]
    Reference(String),
    /// A value that the store does not take.
    #[error("the value is out of range: {0}")]
    Check(String),
    /// Another holder has taken over; the write has not happened.
    #[error("this master no longer holds {0}")]
    Fenced(&'static str),
    /// The store does not answer; the same may succeed later.
    #[error("the store is not available")]
    Unavailable(#[source] sqlx::Error),
    /// A stored value is not what it has to be.
    #[error("the store holds an invalid {what}")]
    Corrupt {
        /// Which value.
        what: &'static str,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Migrating failed.
    #[error("cannot migrate the store")]
    Migrate(#[source] sqlx::migrate::MigrateError),
    /// Anything else.
    #[error("the store failed")]
    Database(#[source] sqlx::Error),
}

impl StoreError {
    /// The store has not answered in time.
    pub(crate) fn late() -> Self {
        Self::Unavailable(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into()))
    }

    /// Returns whether trying again later makes sense.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable(_))
    }

    /// Returns whether `constraint` was violated by a value that is taken.
    pub fn is_duplicate_of(&self, constraint: &str) -> bool {
        matches!(self, Self::Duplicate(name) if name == constraint)
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        use sqlx::error::ErrorKind;
        match &error {
            sqlx::Error::Database(database) => {
                let name = || {
                    database
                        .constraint()
                        .map_or_else(|| sqlite_constraint(database.message()), str::to_owned)
                };
                match database.kind() {
                    ErrorKind::UniqueViolation => Self::Duplicate(name()),
                    ErrorKind::ForeignKeyViolation => Self::Reference(name()),
                    ErrorKind::CheckViolation | ErrorKind::NotNullViolation => Self::Check(name()),
                    _ if database.code().is_some_and(|code| is_transient_code(&code)) => {
                        Self::Unavailable(error)
                    }
                    _ => Self::Database(error),
                }
            }
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed
            | sqlx::Error::Protocol(_) => Self::Unavailable(error),
            _ => Self::Database(error),
        }
    }
}

/// PostgreSQL: serialisation, deadlock, connection exceptions (08), resources (53), shutdown and
/// start (57P), a statement that was cancelled (57014), a lock not got in time (55P03), no writing for now, as on a
/// standby (25006), trouble of the system (58). SQLite: busy, locked, the disk is read-only, as after an error of the
/// disk, fails, is full or cannot be opened, with their extended forms.
fn is_transient_code(code: &str) -> bool {
    matches!(code, "40001" | "40P01" | "57014" | "55P03" | "25006")
        || code.len() == 5
            && ["08", "53", "57P", "58"]
                .iter()
                .any(|class| code.starts_with(class))
        || code.len() < 5
            && code
                .parse::<u32>()
                .is_ok_and(|code| matches!(code & 0xff, 5 | 6 | 8 | 10 | 13 | 14))
}

/// SQLite names columns ("UNIQUE constraint failed: users.username"), or an index; PostgreSQL names
/// the constraint. Brought to PostgreSQL's form.
fn sqlite_constraint(message: &str) -> String {
    let what = message
        .rsplit_once("failed: ")
        .map_or(message, |(_, what)| what);
    if let Some(index) = what.strip_prefix("index ") {
        return index.trim_matches('\'').to_owned();
    }
    let mut table = None;
    let mut columns = Vec::new();
    for part in what.split(", ") {
        match part.split_once('.') {
            Some((name, column)) => {
                table = Some(name);
                columns.push(column);
            }
            None => return what.to_owned(),
        }
    }
    match table {
        Some(table) => format!("{table}_{}_key", columns.join("_")),
        None => what.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constraints_have_one_name_on_both_backends() {
        assert_eq!(
            sqlite_constraint("UNIQUE constraint failed: users.username"),
            "users_username_key"
        );
        assert_eq!(
            sqlite_constraint(
                "UNIQUE constraint failed: node_assignments.user_id, node_assignments.node_id"
            ),
            "node_assignments_user_id_node_id_key"
        );
        assert_eq!(
            sqlite_constraint("CHECK constraint failed: listen_port between 1 and 65535"),
            "listen_port between 1 and 65535"
        );
        assert_eq!(
            sqlite_constraint("UNIQUE constraint failed: index 'users_x'"),
            "users_x"
        );
    }

    #[test]
    fn codes_that_pass_by_themselves_are_told_apart() {
        for code in [
            "40001", "40P01", "08006", "53300", "57P01", "57014", "55P03", "25006", "58030", "5",
            "6", "517", "8", "776", "13", "10", "778", "14",
        ] {
            assert!(is_transient_code(code), "{code}");
        }
        for code in ["23505", "42601", "1", "19", "2067"] {
            assert!(!is_transient_code(code), "{code}");
        }
    }
}
