//! Repair: rows of the target that differ from what they should be are written as they should be, and no newer write is touched.
//!
//! What a row should be was read from the source at some place of its history. Of that place the sink is behind, or it has
//! passed it; what lies between the sink and the end of the log says which rows that concerns. A row that no entry there
//! changes is the same at the sink's place as it was where it was read (the log must hold all up to there: the
//! caller sees to it), so writing it is exact. One that is changed there is left to the stream, which writes it anyway.
//!
//! Live apply must wait meanwhile: the caller owns the sink.

use crate::{
    PipelineError,
    fold::fold_snapshots,
    heal::{Replay, in_steps, streaming},
    route::Routes,
};
use crossfade_connector::{Progress, Sink, Write};
use crossfade_event::{Change, Event, Key, Op, Row, SchemaVersion, Sequence, TableId, Version};
use crossfade_log::EventLog;
use std::collections::{BTreeMap, HashSet};

/// Rows that are written in one transaction.
const STEP_ROWS: usize = 500;

/// One row of the target, and what it should be.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Which table.
    pub table: TableId,
    /// Its key there.
    pub key: Key,
    /// The row that should be under it; `None`: none should.
    pub row: Option<Row>,
    /// The row that was found under it, where one was.
    pub found: Option<Row>,
}

/// What a repair did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RepairReport {
    /// Rows that were written as they should be.
    pub written: u64,
    /// Rows that should not be there, and were deleted.
    pub deleted: u64,
    /// Rows with newer changes on their way: they are left to those.
    pub newer: u64,
    /// Rows that the target refuses, or whose changes wait in quarantine.
    pub refused: u64,
}

/// Writes rows as they should be. The log must hold everything up to where they were read.
///
/// # Errors
/// When the sink is not streaming yet, or when log or sink fails.
pub async fn repair<K: Sink, L: EventLog>(
    log: &L,
    routes: &Routes,
    sink: &mut K,
    wanted: &[Wanted],
) -> Result<RepairReport, PipelineError> {
    let progress = streaming(sink, "a repair would change nothing").await?;
    let mut routes = routes.clone();
    routes.restore(log, &progress.schemas)?;
    sink.prepare(routes.target()).await.map_err(PipelineError::Sink)?;
    let ahead = Ahead::of(log, &routes, &progress).await?;
    let widths: BTreeMap<TableId, usize> =
        routes.target().tables.iter().map(|table| (table.schema.id, table.schema.columns.len())).collect();
    let mut report = RepairReport::default();
    let mut writes = Vec::new();
    for one in wanted {
        let width = widths.get(&one.table).copied();
        let fits = |row: &Option<Row>| row.as_ref().is_none_or(|row| Some(row.cells().count()) == width);
        // A row of another shape was read before or after a change of shape that the sink has not come to, or has.
        if width.is_none() || !fits(&one.row) || !fits(&one.found) || ahead.changes(one) {
            report.newer += 1;
            continue;
        }
        let at = Version { sequence: Sequence::default(), ordinal: writes.len() as u32 };
        let (table, schema) = (one.table, SchemaVersion(1));
        let change = match (&one.row, &one.found) {
            (Some(row), _) => {
                report.written += 1;
                Change { table, schema, op: Op::Update, old: None, new: Some(row.clone()) }
            }
            (None, Some(found)) => {
                report.deleted += 1;
                Change { table, schema, op: Op::Delete, old: Some(found.clone()), new: None }
            }
            (None, None) => continue,
        };
        writes.push(Write::Change { at, change });
    }
    report.refused = in_steps(sink, &writes, STEP_ROWS, &progress).await?;
    Ok(report)
}

/// What the log changes behind the sink's place.
enum Ahead {
    Rows(HashSet<(TableId, Key)>),
    /// More than single rows: a table is emptied, copied or gets another shape.
    Everything,
}

impl Ahead {
    async fn of<L: EventLog>(log: &L, routes: &Routes, progress: &Progress) -> Result<Self, PipelineError> {
        let upto = Progress { cut: log.tail().cut, ..progress.clone() };
        let mut replay = Replay::new(log.clone(), routes.clone(), progress.cut.clone(), upto, fold_snapshots(log)?);
        let rows_alone = replay.entries(&mut |event| {
            matches!(event, Event::Began(_) | Event::Changed(_) | Event::Marked(_) | Event::Committed | Event::Resolved)
        })?;
        Ok(match rows_alone {
            true => Self::Rows(replay.keys().await?),
            false => Self::Everything,
        })
    }

    fn changes(&self, one: &Wanted) -> bool {
        match self {
            Self::Rows(keys) => keys.contains(&(one.table, one.key.clone())),
            Self::Everything => true,
        }
    }
}
