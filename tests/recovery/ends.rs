//! The two ends of a migration under test, of either system, asked and told in plain SQL.

use crossfade_testkit::{
    compare::{self, Rows},
    postgres::{Database, Postgres, Version},
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

/// Which systems, from where to where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    PostgresToPostgres,
    SqliteToSqlite,
    PostgresToSqlite,
    SqliteToPostgres,
}

impl Direction {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::PostgresToPostgres => "PostgreSQL to PostgreSQL",
            Self::SqliteToSqlite => "SQLite to SQLite",
            Self::PostgresToSqlite => "PostgreSQL to SQLite",
            Self::SqliteToPostgres => "SQLite to PostgreSQL",
        }
    }

    /// Fresh ends: databases of their own on the shared servers, files in `folder`. `None` where a server cannot be had,
    /// which has been said.
    pub(crate) async fn ends(self, folder: &Path) -> Option<(End, End)> {
        let source = match self {
            Self::PostgresToPostgres | Self::PostgresToSqlite => {
                End::Postgres(Postgres::shared(Version::V15)?.create_database("source").await)
            }
            Self::SqliteToSqlite | Self::SqliteToPostgres => End::Sqlite(folder.join("source.db")),
        };
        let target = match self {
            Self::PostgresToPostgres | Self::SqliteToPostgres => {
                End::Postgres(Postgres::shared_target(Version::V15)?.create_database("target").await)
            }
            Self::SqliteToSqlite | Self::PostgresToSqlite => End::Sqlite(folder.join("target.db")),
        };
        Some((source, target))
    }

    /// Whether both ends are of one system, so that every value can be held against its twin bit for bit.
    pub(crate) fn is_straight(self) -> bool {
        matches!(self, Self::PostgresToPostgres | Self::SqliteToSqlite)
    }
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
