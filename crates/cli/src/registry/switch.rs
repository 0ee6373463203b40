//! The two sides of a switch, whichever kind of database they are: the same call to either.

use super::{sink_connection, source_connection, sqlite};
use crate::{
    error::CliError,
    spec::{SinkSpec, SourceSpec, Spec},
};
use crossfade_connector::{
    Failure, Refusal, Target,
    switch::{Born, Given, Locked, Look, Reverse, Written},
};
use crossfade_event::{Side, TableName, catalog::Catalog};
use crossfade_postgres::switch as postgres;
use crossfade_sqlite::{OldRows, switch as sqlite_switch};
use std::time::{Duration, Instant};

/// One side of a switch.
#[derive(Debug)]
pub(crate) enum AnySwitchEnd {
    /// PostgreSQL
    Postgres(Box<postgres::SwitchEnd>),
    /// SQLite
    Sqlite(Box<sqlite_switch::SwitchEnd>),
}

/// Writers that are held up.
#[derive(Debug)]
pub(crate) enum AnyFreeze {
    /// PostgreSQL
    Postgres(Box<postgres::Freeze>),
    /// SQLite
    Sqlite(Box<sqlite_switch::Freeze>),
}

/// A side that one commit opens.
#[derive(Debug)]
pub(crate) enum AnyOpening {
    /// PostgreSQL
    Postgres(Box<postgres::Opening>),
    /// SQLite
    Sqlite(Box<sqlite_switch::Opening>),
}

/// Both sides of a switch, the old one first, for what only PostgreSQL at both ends has: `what` names it where it is not so.
pub(crate) fn postgres_switch_ends(
    spec: &Spec,
    what: &str,
) -> Result<(postgres::SwitchEnd, postgres::SwitchEnd), CliError> {
    match switch_ends(spec)? {
        (AnySwitchEnd::Postgres(old), AnySwitchEnd::Postgres(new)) => Ok((*old, *new)),
        _ => Err(CliError::not_built(&format!("{what} between other systems than two PostgreSQL servers"))),
    }
}

/// Both sides of a switch, the old one first; for PostgreSQL at both ends, or SQLite at both.
pub(crate) fn switch_ends(spec: &Spec) -> Result<(AnySwitchEnd, AnySwitchEnd), CliError> {
    let name = spec.name.as_str();
    match (&spec.source, &spec.sink) {
        (SourceSpec::Postgres(source), SinkSpec::Postgres(sink)) => {
            let old = postgres::SwitchEnd::new(source_connection(source)?, name, Side::Old);
            let new = postgres::SwitchEnd::new(sink_connection(sink)?, name, Side::New);
            Ok((AnySwitchEnd::Postgres(Box::new(old)), AnySwitchEnd::Postgres(Box::new(new))))
        }
        (SourceSpec::Sqlite(source), SinkSpec::Sqlite(sink)) => {
            let end = |path, busy, side| sqlite_switch::SwitchEnd::new(sqlite(path, busy), name, side);
            let old = end(&source.path, source.busy_timeout, Side::Old);
            let new = end(&sink.path, sink.busy_timeout, Side::New);
            Ok((AnySwitchEnd::Sqlite(Box::new(old)), AnySwitchEnd::Sqlite(Box::new(new))))
        }
        _ => Err(CliError::not_built("a switch between other systems than two PostgreSQL servers or two SQLite files")),
    }
}

/// The same call, whichever it is.
macro_rules! each {
    ($any:expr, $one:ident => $call:expr) => {
        match $any {
            Self::Postgres($one) => $call,
            Self::Sqlite($one) => $call,
        }
    };
}

impl AnySwitchEnd {
    /// Nobody looks any more who else writes the tables; nobody ever did in a file.
    pub(crate) async fn unwatch(&mut self) -> Result<(), Failure> {
        match self {
            Self::Postgres(one) => one.unwatch().await,
            Self::Sqlite(_) => Ok(()),
        }
    }

    pub(crate) async fn identity(&mut self) -> Result<String, Failure> {
        each!(self, one => one.identity().await)
    }

    pub(crate) async fn install(&mut self, epoch: u64) -> Result<(), Failure> {
        each!(self, one => one.install(epoch).await)
    }

    pub(crate) async fn authority(&mut self) -> Result<Option<Written>, Failure> {
        each!(self, one => one.authority().await)
    }

    pub(crate) async fn age(&mut self) -> Result<Option<Duration>, Failure> {
        each!(self, one => one.age().await)
    }

    pub(crate) async fn take_back(&mut self, epoch: u64) -> Result<Option<Written>, Failure> {
        each!(self, one => one.take_back(epoch).await)
    }

    pub(crate) async fn follow(&mut self, written: Written) -> Result<(), Failure> {
        each!(self, one => one.follow(written).await)
    }

    pub(crate) async fn settle(&mut self) -> Result<(), Failure> {
        each!(self, one => one.settle().await)
    }

    pub(crate) async fn lift(&mut self) -> Result<(), Failure> {
        each!(self, one => one.lift().await)
    }

    pub(crate) async fn forget(&mut self) -> Result<(), Failure> {
        each!(self, one => one.forget().await)
    }

    pub(crate) async fn has_pairs(&mut self) -> Result<bool, Failure> {
        each!(self, one => one.has_pairs().await)
    }

    pub(crate) async fn look(&mut self, tables: &[TableName]) -> Result<Look, Failure> {
        each!(self, one => one.look(tables).await)
    }

    pub(crate) async fn look_for_the_way_back(&mut self, tables: &[TableName]) -> Result<Vec<Refusal>, Failure> {
        each!(self, one => one.look_for_the_way_back(tables).await)
    }

    /// The tables here that have a fence, but for these. A file has one lock, so there they are nobody's matter.
    pub(crate) async fn fenced_but(&mut self, tables: &[TableName]) -> Result<Vec<TableName>, Failure> {
        match self {
            Self::Postgres(one) => one.fenced_but(tables).await,
            Self::Sqlite(_) => Ok(Vec::new()),
        }
    }

    pub(crate) async fn freeze(
        &mut self,
        tables: &[TableName],
        ends: Instant,
        lock_timeout: Duration,
    ) -> Result<AnyFreeze, Failure> {
        match self {
            Self::Postgres(one) => Ok(AnyFreeze::Postgres(Box::new(one.freeze(tables, ends, lock_timeout).await?))),
            // To wait for a file's lock holds nobody up: there are no tries to be cut short.
            Self::Sqlite(one) => Ok(AnyFreeze::Sqlite(Box::new(one.freeze(tables, ends).await?))),
        }
    }

    pub(crate) async fn ready_to_open(&mut self, written: Written, ends: Instant) -> Result<AnyOpening, Failure> {
        match self {
            Self::Postgres(one) => Ok(AnyOpening::Postgres(Box::new(one.ready_to_open(written, ends).await?))),
            Self::Sqlite(one) => Ok(AnyOpening::Sqlite(Box::new(one.ready_to_open(written, ends).await?))),
        }
    }

    /// Makes what keeps the writes of this side from a switch on; with whole old rows where the way back needs those.
    pub(crate) async fn prepare_reverse(&mut self, tables: &[TableName], whole_old: bool) -> Result<(), Failure> {
        match self {
            // Its tables have been told already.
            Self::Postgres(one) => one.prepare_reverse(tables).await,
            Self::Sqlite(one) => {
                let old_rows = if whole_old { OldRows::Full } else { OldRows::Key };
                one.prepare_reverse(tables, old_rows).await
            }
        }
    }

    pub(crate) async fn reverse_from_here(&mut self) -> Result<Reverse, Failure> {
        each!(self, one => one.reverse_from_here().await)
    }

    pub(crate) async fn drop_reverse(&mut self) -> Result<(), Failure> {
        each!(self, one => one.drop_reverse().await)
    }

    pub(crate) async fn born(&mut self, after: Option<&Born>, limit: u32) -> Result<Vec<Born>, Failure> {
        each!(self, one => one.born(after, limit).await)
    }

    pub(crate) async fn with_last_values(&mut self, catalog: Catalog) -> Result<Catalog, Failure> {
        each!(self, one => one.with_last_values(catalog).await)
    }

    pub(crate) async fn given_out(
        &mut self,
        columns: &[(TableName, String, Option<TableName>)],
    ) -> Result<Vec<Option<i64>>, Failure> {
        each!(self, one => one.given_out(columns).await)
    }

    pub(crate) async fn carry_sequences(&mut self, target: &Target) -> Result<(), Failure> {
        each!(self, one => one.carry_sequences(target).await)
    }
}

impl AnyFreeze {
    pub(crate) fn locked(&self) -> Locked {
        each!(self, one => one.locked)
    }

    /// That it holds still; only what is compared in a freeze asks, which files are not.
    pub(crate) async fn holds(&self) -> Result<(), Failure> {
        match self {
            Self::Postgres(one) => one.holds().await,
            Self::Sqlite(one) if one.locked.left().is_zero() => {
                Err(Failure::retry("asking whether the writers are still held up", "the deadline has passed"))
            }
            Self::Sqlite(_) => Ok(()),
        }
    }

    pub(crate) async fn open_the_other_side(&self) -> Result<(), Failure> {
        match self {
            Self::Postgres(one) => one.open_the_other_side().await,
            Self::Sqlite(_) => Err(one_file()),
        }
    }

    pub(crate) async fn give(self, epoch: u64) -> Given {
        each!(self, one => one.give(epoch).await)
    }

    pub(crate) async fn release(self) {
        each!(self, one => one.release().await)
    }
}

impl AnyOpening {
    pub(crate) async fn open(self) -> Result<(), Failure> {
        each!(self, one => one.open().await)
    }

    pub(crate) async fn leave(self) {
        each!(self, one => one.leave().await)
    }
}

/// A file has no schemas, so both shapes in one would be told apart by nothing that a fence or a stream could go by.
pub(crate) fn one_file() -> Failure {
    Failure::refused(
        "switching",
        "source and sink are one SQLite file",
        "Write the new shape to a file of its own: `path` in [sink]",
    )
}
