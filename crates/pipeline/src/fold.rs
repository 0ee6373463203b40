//! Where the backfills of a log stand: a fold of its snapshot records. There is no second bookkeeping.

use crate::PipelineError;
use crossfade_connector::{SnapshotState, TableSnapshot};
use crossfade_event::{Cut, Event, Offset, Position, TableId, Visibility};
use crossfade_log::{Entry, EventLog, Lane, LogReader};
use std::collections::BTreeMap;

/// What the log's snapshot records say.
#[derive(Debug, Clone, Default)]
pub struct SnapshotFold {
    /// The last backfill, as the source wants to know it.
    pub state: SnapshotState,
    /// The entry with which the last backfill began.
    pub began: Option<Offset>,
    /// The source position from which the stream has everything that the last backfill may lack.
    pub began_at: Option<Position>,
    /// What the copies of tables without a key could see: changes of those transactions are in the copy already.
    pub visible: BTreeMap<TableId, Visibility>,
    /// The place after the last entry folded.
    pub folded: Cut,
}

impl SnapshotFold {
    /// Takes one entry in.
    pub fn absorb(&mut self, entry: &Entry) {
        match &entry.event {
            Event::BackfillBegan(backfill) => {
                self.began = Some(entry.offset);
                self.began_at = Some(entry.position);
                self.state = SnapshotState {
                    generation: backfill.generation,
                    ended: false,
                    visible: backfill.visible.clone(),
                    tables: backfill.tables.iter().map(|table| (*table, TableSnapshot::default())).collect(),
                };
            }
            Event::SnapshotBegan { table, chunks } => {
                if let Some(snapshot) = self.table(*table) {
                    // Begun again (the table was rewritten, or has no key): what was copied before counts no more.
                    *snapshot = TableSnapshot { chunks: chunks.clone(), ..TableSnapshot::default() };
                }
            }
            Event::ChunkEnded { table, chunk, .. } => {
                if let Some(snapshot) = self.table(*table) {
                    snapshot.done.insert(*chunk);
                }
            }
            Event::SnapshotEnded { table, visible } => {
                if let Some(snapshot) = self.table(*table) {
                    snapshot.ended = true;
                }
                match visible {
                    Some(visible) => self.visible.insert(*table, visible.clone()),
                    None => self.visible.remove(table),
                };
            }
            Event::BackfillEnded { generation } if *generation == self.state.generation => self.state.ended = true,
            _ => {}
        }
        self.folded.set_next(entry.partition, Offset(entry.offset.0 + 1));
    }

    fn table(&mut self, table: TableId) -> Option<&mut TableSnapshot> {
        self.state.tables.iter_mut().find(|(id, _)| *id == table).map(|(_, snapshot)| snapshot)
    }
}

/// Folds everything that is in the log now.
///
/// # Errors
/// When the log cannot be read.
pub fn fold_snapshots<L: EventLog>(log: &L) -> Result<SnapshotFold, PipelineError> {
    let mut fold = SnapshotFold { folded: log.start(), ..SnapshotFold::default() };
    let mut reader = log.read(&log.start(), Lane::Snapshot)?;
    while let Some(entries) = reader.try_next()? {
        for entry in &entries.entries {
            fold.absorb(entry);
        }
    }
    Ok(fold)
}
