//! The two ends of a migration under test, of either system, asked and told in plain SQL.

use crossfade_testkit::{
    compare::{self, Rows},
    postgres::Database,
};
use rusqlite::Connection;
use std::path::{Path, PathBuf};

/// One end.
#[derive(Debug, Clone)]
pub(crate) enum End {
    /// A database of its own on a server.
    Postgres(Database),
    /// A file.
    Sqlite(PathBuf),
}

impl End {
    /// Runs statements.
    pub(crate) async fn execute(&self, sql: &str) {
        match self {
            Self::Postgres(database) => database.execute(sql).await,
            Self::Sqlite(path) => {
                open_sqlite(path).execute_batch(sql).unwrap_or_else(|error| panic!("{error}\nin: {sql}"));
            }
        }
    }

    /// Runs a statement beside a run that writes the same rows: one of the two may be the victim of a deadlock.
    pub(crate) async fn execute_at_last(&self, sql: &str) {
        let Self::Postgres(database) = self else { return self.execute(sql).await };
        let client = database.connect().await;
        crossfade_testkit::wait::wait_until("a statement not to be the victim of a deadlock", async || {
            match client.batch_execute(sql).await {
                Ok(()) => true,
                Err(error) => {
                    let deadlock = error.code() == Some(&tokio_postgres::error::SqlState::T_R_DEADLOCK_DETECTED);
                    assert!(deadlock, "{error:?}\nin: {sql}");
                    false
                }
            }
        })
        .await;
    }

    /// The first value of a query as a number; `None` when there is no row, no table, or no file yet.
    pub(crate) async fn number(&self, sql: &str) -> Option<i64> {
        match self {
            Self::Postgres(database) => {
                let client = database.connect().await;
                client.query_opt(sql, &[]).await.ok()??.try_get(0).ok()?
            }
            Self::Sqlite(path) => {
                if !path.exists() {
                    return None;
                }
                compare::sqlite_reader(path).query_row(sql, [], |row| row.get(0)).ok()
            }
        }
    }

    /// The first value of a query as text; `None` as for [`End::number`].
    pub(crate) async fn text(&self, sql: &str) -> Option<String> {
        match self {
            Self::Postgres(database) => {
                let client = database.connect().await;
                client.query_opt(sql, &[]).await.ok()??.try_get(0).ok()?
            }
            Self::Sqlite(path) => {
                if !path.exists() {
                    return None;
                }
                compare::sqlite_reader(path).query_row(sql, [], |row| row.get(0)).ok()
            }
        }
    }

    /// All rows of a query, each value in full: by its text form in PostgreSQL, by type and bits in SQLite.
    pub(crate) async fn rows(&self, sql: &str) -> Rows {
        match self {
            Self::Postgres(database) => compare::postgres_rows(&database.connect().await, sql).await,
            Self::Sqlite(path) => compare::sqlite_rows(&compare::sqlite_reader(path), sql),
        }
    }

    /// All rows of a query in text forms that both systems share.
    pub(crate) async fn texts(&self, sql: &str) -> Rows {
        match self {
            Self::Postgres(database) => compare::postgres_rows(&database.connect().await, sql).await,
            Self::Sqlite(path) => compare::sqlite_texts(&compare::sqlite_reader(path), sql),
        }
    }

    /// How the end stands in a spec, under `[source]` or `[sink]`.
    pub(crate) fn spec(&self) -> String {
        match self {
            Self::Postgres(database) => format!("kind = \"postgres\"\nurl = \"{}\"\n", database.url),
            Self::Sqlite(path) => format!("kind = \"sqlite\"\npath = \"{}\"\n", path.display()),
        }
    }

    /// The schema that its own tables are in, as table patterns and names say it.
    pub(crate) fn schema(&self) -> &'static str {
        match self {
            Self::Postgres(_) => "public",
            Self::Sqlite(_) => "main",
        }
    }

    /// Whether nothing of a migration is left in it, and nothing but what `kept` counts of others.
    pub(crate) async fn leftovers(&self) -> Rows {
        match self {
            Self::Postgres(_) => {
                self.rows(
                    "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
                     WHERE c.relkind IN ('r', 'p', 'v', 'S') AND n.nspname !~ '^(pg_|information_schema)'",
                )
                .await
            }
            Self::Sqlite(_) => self.rows("SELECT type, name FROM sqlite_schema WHERE name NOT LIKE 'sqlite_%'").await,
        }
    }
}

/// A connection that writes beside others.
pub(crate) fn open_sqlite(path: &Path) -> Connection {
    let connection = Connection::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let ready = connection
        .busy_timeout(crossfade_testkit::wait::GENEROUS)
        .and_then(|()| connection.execute_batch("PRAGMA synchronous = NORMAL"));
    ready.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    connection
}
