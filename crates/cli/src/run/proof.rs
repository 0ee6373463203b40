//! The proof that both sides agree, as far as it can be carried on: from a comparison of everything, by what the log says has
//! changed since, to where the sink stands now; as long as nobody else writes the target.
//!
//! ```text
//!  log   ──┬───────────────┬──────────────────┬──────────▶
//!          begun           upto               the sink
//!          └ everything ───┘
//!            was compared   └ to be compared ─┘   by the keys that the log names
//!  target  mark ─────────── has anybody else written since? ──▶
//! ```

use super::{
    control::Shared,
    verify::{Both, Dropped, Shape, left_of},
};
use crate::{
    error::{CliError, Exit},
    event_log::{AnyLog, AnyReader},
    registry::{self, AnyInspect},
};
use crossfade_connector::{Failure, Progress};
use crossfade_event::{Cut, Event, Position, SchemaVersion, SourceId, TableId, TableName};
use crossfade_log::{EventLog, Lane, LogError, LogReader};
use crossfade_pipeline::Routes;
use crossfade_postgres::switch::SwitchEnd;
use crossfade_verify::{
    Difference, Expected, Keys, LiveViews, Options, ROWS_CHANGED_MAX, Report, SinkPosition, VerifyError,
};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// So many entries of the log are read for one comparison at most: most may be of other lanes, or of the same rows.
const ENTRIES_MAX: usize = 50_000;

/// Where the sink stood, and what the target was marked with, when a comparison of everything was begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Begun {
    /// Changes from here on are not covered by it.
    pub(super) from: Cut,
    pub(super) position: Option<Position>,
    pub(super) mark: Option<String>,
    /// What [`Shared::voids`] said, and the shapes of the tables then.
    pub(super) voids: u64,
    pub(super) schemas: String,
}

/// The shapes of tables, in a word: a value of the state is small.
pub(super) fn named(schemas: &[(TableId, SchemaVersion)]) -> String {
    let listed: Vec<String> = schemas.iter().map(|(table, version)| format!("{} {}", table.0, version.0)).collect();
    format!("{:?}", SourceId::of(&listed.join(",")).0)
}

/// What came of carrying the proof on.
#[derive(Debug)]
pub(super) enum Carried {
    /// Up to here, with so many rows compared.
    Upto { cut: Cut, rows: u64 },
    /// These rows differ.
    Differs(Vec<(String, Difference)>),
    /// It cannot be carried over this: everything is to be compared again.
    Not(String),
}

/// The sink's word, as the run has heard it.
pub(super) struct Heard(watch::Receiver<Option<Progress>>);

impl SinkPosition for Heard {
    async fn position(&mut self) -> Result<Option<Position>, Failure> {
        Ok(self.0.borrow().as_ref().and_then(|progress| progress.position))
    }
}

/// Both ends, looked at.
pub(super) struct Looking {
    pub(super) source: AnyInspect,
    pub(super) target: AnyInspect,
    pub(super) shape: Shape,
    pub(super) sink: Heard,
    log: AnyLog,
    /// The log's reader, and where it stands: to look for a place anew is to go through a whole file.
    reader: Option<(Cut, AnyReader)>,
    /// Where the target can tell who else writes it.
    end: Option<SwitchEnd>,
    tables: Vec<TableName>,
    keys: Keys,
    pub(super) views: LiveViews,
    /// Tables that the source no longer has, and the plan of before.
    dropped: Vec<TableName>,
    whole: Option<Routes>,
}

impl Looking {
    /// Looks at the tables of both ends as they are now.
    pub(super) async fn open(shared: &Shared) -> Result<Self, CliError> {
        let both = Both::look(&shared.spec).await?;
        let whole = both.whole(&shared.spec)?;
        let Both { source, target, shape, dropped, .. } = both;
        // On the way back the target stands behind a fence: there is nobody to watch for.
        let end = match shared.spec.reverse {
            Some(_) => None,
            None => Some(registry::postgres_switch_ends(&shared.spec, "comparing both sides all the time")?.1),
        };
        Ok(Self {
            source,
            target,
            tables: shape.target_tables(),
            shape,
            sink: Heard(shared.watcher.progress.subscribe()),
            log: shared.log().clone(),
            reader: None,
            end,
            keys: Keys::default(),
            views: LiveViews::default(),
            dropped,
            whole,
        })
    }

    /// A comparison of everything begins: whoever else writes the target is noticed from here on.
    pub(super) async fn begin(&mut self, shared: &Shared, before: Option<&str>) -> Result<Begun, CliError> {
        let voids = shared.voids();
        let mark = match &mut self.end {
            Some(end) => {
                end.install(shared.journal.migration().authority.epoch).await?;
                Some(end.watch(&self.tables, before).await?)
            }
            None => None,
        };
        let progress = shared.watcher.progress.borrow().clone();
        let Some(Progress { cut, position, schemas, .. }) = progress else {
            return Err(CliError::failed("the sink does not follow yet").passing());
        };
        Ok(Begun { from: cut, position, mark, voids, schemas: named(&schemas) })
    }

    /// Rows that are left in the target of tables that the source no longer has: differences.
    pub(super) async fn left(&mut self, shared: &Shared) -> Result<(Report, Vec<Dropped>), CliError> {
        let (mut report, mut dropped) = (Report::default(), Vec::new());
        if let Some(whole) = &self.whole {
            let by_root = shared.spec.source.by_root();
            dropped = left_of(&self.dropped, whole.plan(), by_root, &mut self.target, &mut report).await?;
        }
        Ok((report, dropped))
    }

    /// Who else has written the target since, in words.
    pub(super) async fn written_since(&mut self, mark: Option<&str>) -> Result<Option<String>, CliError> {
        match (&mut self.end, mark) {
            (Some(end), Some(mark)) => Ok(end.written_since(&self.tables, mark).await?),
            _ => Ok(None),
        }
    }

    /// Compares rows that the log says were changed from `from` on, up to `upto` or to as many as are compared at once. The
    /// sink must have passed `upto`. With `settled` nobody writes the source.
    pub(super) async fn carry(&mut self, from: &Cut, upto: &Cut, settled: bool) -> Result<Carried, CliError> {
        let subject = self.shape.subject();
        let expected = Expected::of(&subject, &self.views)?;
        self.keys.clear();
        let mut reader = match self.reader.take().filter(|(at, _)| at == from) {
            Some((_, reader)) => reader,
            None => match self.log.read_aside(from, Lane::Stream) {
                Ok(reader) => reader,
                Err(LogError::Trimmed { .. }) => {
                    return Ok(Carried::Not("the log no longer has all that has changed since".to_owned()));
                }
                Err(error) => return Err(error.into()),
            },
        };
        let (mut at, mut read) = (from.clone(), 0);
        while !at.covers(upto) && self.keys.len() < ROWS_CHANGED_MAX && read < ENTRIES_MAX {
            let Some(entries) = reader.try_next()? else { break };
            read += entries.entries.len();
            for entry in &entries.entries {
                match &entry.event {
                    Event::Changed(change) => {
                        let Some(schema) = self.log.schema(change.table, change.schema) else { continue };
                        match self.keys.note(&subject, &expected, &schema, change) {
                            Ok(()) => {}
                            Err(error @ VerifyError::Unfit { .. }) => return Ok(Carried::Not(error.to_string())),
                            Err(error) => return Err(error.into()),
                        }
                    }
                    Event::SchemaSeen(_) => {
                        return Ok(Carried::Not("the shape of a table has changed".to_owned()));
                    }
                    Event::Truncated(_) => return Ok(Carried::Not("a table was emptied".to_owned())),
                    Event::BackfillBegan(_) => return Ok(Carried::Not("tables are copied anew".to_owned())),
                    _ => {}
                }
            }
            at = entries.next;
        }
        let (source, target, sink) = (&mut self.source, &mut self.target, &mut self.sink);
        let options = Options { patience: PATIENCE, ..Options::default() };
        let found = self.keys.compare(&expected, source, target, sink, settled, &options).await?;
        self.reader = Some((at.clone(), reader));
        Ok(match (found.differences.is_empty(), found.unjudged) {
            (true, 0) => Carried::Upto { cut: at, rows: found.rows },
            (true, rows) => Carried::Not(format!("nothing can be said of {rows} rows that differ in ever other ways")),
            (false, _) => Carried::Differs(found.differences),
        })
    }
}

/// So long the sink may take to come to where a row was read, before it is asked again another time.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);

/// Rows that differ, in a sentence without their values.
pub(super) fn said(differences: &[(String, Difference)]) -> String {
    let first = differences.first().map(|(table, one)| format!(", as {table} key {}", one.key_hash));
    format!("{} rows differ{}", differences.len(), first.unwrap_or_default())
}

/// A clean pass, carried on to a switch: first while the writers go on, until little is left, and then in the freeze.
pub(super) struct Proof {
    looking: Looking,
    mark: Option<String>,
    upto: Cut,
    /// Why it holds no more.
    pub(super) broken: Option<String>,
}

/// Before a switch what is left is compared so often, each time what has come meanwhile.
const ROUNDS_MAX: usize = 50;

/// So few entries of the log are compared in the freeze.
const LEFT_FOR_THE_FREEZE: u64 = 500;

impl Proof {
    /// Takes up the clean pass of the run's journal.
    pub(super) async fn take_up(shared: &Shared) -> Result<Self, CliError> {
        let pass = shared.journal.migration().clean_pass;
        let again = || {
            CliError::refused("the last comparison of both sides cannot be carried on to a switch")
                .hint("run `crossfade verify` again, while `crossfade run` runs")
        };
        let pass = pass.ok_or_else(again)?;
        let from = pass.from.clone().ok_or_else(again)?;
        if pass.mark.is_none() && shared.spec.reverse.is_none() {
            return Err(again());
        }
        let upto = shared.verified_upto(&from).unwrap_or(from);
        Ok(Self { looking: Looking::open(shared).await?, mark: pass.mark, upto, broken: None })
    }

    /// Compares what has changed since, while the writers go on, until little is left.
    pub(super) async fn catch_up(&mut self, shared: &Shared) -> Result<(), CliError> {
        for round in 0..ROUNDS_MAX {
            let sink = shared.watcher.progress.borrow().as_ref().map(|progress| progress.cut.clone());
            let Some(sink) = sink else { break };
            // Once in any case: the sessions that the freeze needs are open then.
            if round > 0 && sink.total().saturating_sub(self.upto.total()) <= LEFT_FOR_THE_FREEZE {
                break;
            }
            while !self.upto.covers(&sink) {
                self.step(&sink, false).await?;
            }
        }
        self.unwritten().await
    }

    /// In the freeze: nobody writes the source, and the sink has everything.
    pub(super) async fn settle(&mut self, shared: &Shared) -> Result<u64, CliError> {
        let sink = shared.watcher.progress.borrow().as_ref().map(|progress| progress.cut.clone());
        let mut rows = 0;
        while let Some(sink) = sink.as_ref().filter(|sink| !self.upto.covers(sink)) {
            rows += self.step(sink, true).await?;
        }
        self.unwritten().await?;
        Ok(rows)
    }

    async fn step(&mut self, sink: &Cut, settled: bool) -> Result<u64, CliError> {
        let why = match self.looking.carry(&self.upto, sink, settled).await? {
            Carried::Upto { cut, rows } => {
                let stuck = cut == self.upto;
                self.upto = cut;
                if !stuck {
                    return Ok(rows);
                }
                "the log ends before the sink's place".to_owned()
            }
            Carried::Differs(differences) => format!("of what has changed since then {}", said(&differences)),
            Carried::Not(why) => why,
        };
        Err(self.breaks(why))
    }

    async fn unwritten(&mut self) -> Result<(), CliError> {
        match self.looking.written_since(self.mark.as_deref()).await? {
            None => Ok(()),
            Some(why) => Err(self.breaks(why)),
        }
    }

    fn breaks(&mut self, why: String) -> CliError {
        let said = format!("both sides agreed once, and are not proven to agree now: {why}");
        self.broken = Some(why);
        CliError::new(Exit::Refused, said)
            .hint("`crossfade verify` names the rows, `crossfade verify --repair` mends them; then ask again")
    }
}
