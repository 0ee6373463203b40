//! What is tried: between which systems, in which versions, and how the target is written.

use crate::{ends::End, shadow, yard};
use crossfade_testkit::postgres::{Postgres, Version};
use std::path::Path;

/// Which systems, from where to where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    PostgresToPostgres,
    SqliteToSqlite,
    PostgresToSqlite,
    SqliteToPostgres,
}

/// How the target is written, and what is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// The bank and the shop, as a spec without further words writes them.
    Plain,
    /// The same by several connections; movements have a key, for rows without one are not dealt out to workers.
    Parallel,
    /// The yard's tables as well, with changes in quarantine all the time.
    Yard { parallel: bool },
    /// New columns beside the old ones, in the source's own tables.
    Shadow,
}

/// All of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Setup {
    pub(crate) direction: Direction,
    /// The versions of the servers; of no meaning to a file.
    source: Version,
    target: Version,
    pub(crate) mode: Mode,
}

impl From<Direction> for Setup {
    fn from(direction: Direction) -> Self {
        Self { direction, source: Version::V15, target: Version::V15, mode: Mode::Plain }
    }
}

impl Setup {
    /// Between two servers.
    pub(crate) fn between(source: Version, target: Version, mode: Mode) -> Self {
        Self { direction: Direction::PostgresToPostgres, source, target, mode }
    }

    /// As a report names it.
    pub(crate) fn name(self) -> String {
        let (source, target) = (self.source, self.target);
        let ends = match self.direction {
            Direction::PostgresToPostgres if self.mode == Mode::Shadow => format!("within {source}"),
            Direction::PostgresToPostgres => format!("{source} to {target}"),
            Direction::SqliteToSqlite => "SQLite to SQLite".to_owned(),
            Direction::PostgresToSqlite => format!("{source} to SQLite"),
            Direction::SqliteToPostgres => format!("SQLite to {target}"),
        };
        let mode = match self.mode {
            Mode::Plain => "",
            Mode::Parallel => ", apply in parallel",
            Mode::Yard { parallel: false } => ", tables of all kinds and a quarantine",
            Mode::Yard { parallel: true } => ", tables of all kinds and a quarantine, apply in parallel",
            Mode::Shadow => ", shadow columns",
        };
        ends + mode
    }

    /// Fresh ends: databases of their own on the shared servers, files in `folder`. `None` where a server cannot be had,
    /// which has been said.
    pub(crate) async fn ends(self, folder: &Path) -> Option<(End, End)> {
        let source = match self.direction {
            Direction::PostgresToPostgres | Direction::PostgresToSqlite => {
                End::Postgres(Postgres::shared(self.source)?.create_database("source").await)
            }
            Direction::SqliteToSqlite | Direction::SqliteToPostgres => End::Sqlite(folder.join("source.db")),
        };
        let target = match self.direction {
            Direction::PostgresToPostgres if self.mode == Mode::Shadow => source.clone(),
            Direction::PostgresToPostgres | Direction::SqliteToPostgres => {
                End::Postgres(Postgres::shared_target(self.target)?.create_database("target").await)
            }
            Direction::SqliteToSqlite | Direction::PostgresToSqlite => End::Sqlite(folder.join("target.db")),
        };
        Some((source, target))
    }

    /// Whether both ends are of one system, so that every value can be held against its twin bit for bit.
    pub(crate) fn is_straight(self) -> bool {
        matches!(self.direction, Direction::PostgresToPostgres | Direction::SqliteToSqlite)
    }

    /// Whether several connections write.
    pub(crate) fn is_parallel(self) -> bool {
        matches!(self.mode, Mode::Parallel | Mode::Yard { parallel: true })
    }

    /// The rest of the spec after the sink's address: further keys of the sink, then rules.
    pub(crate) fn rules(self) -> String {
        let mut rules = String::new();
        if self.direction == Direction::SqliteToPostgres {
            // A file has no schema of its own to name the target's.
            rules.push_str("schema = \"public\"\n");
        }
        if self.is_parallel() {
            rules.push_str("apply = \"parallel\"\nworkers = 3\n");
        }
        match self.mode {
            Mode::Plain | Mode::Parallel => {}
            Mode::Yard { .. } => rules.push_str(yard::RULES),
            Mode::Shadow => rules.push_str(shadow::RULES),
        }
        rules
    }
}
