//! The end of a backfill: said once the stream has brought everything that any chunk could see.
//!
//! A chunk sees the source as it is when it is read, the stream may be far behind that. Were the end said at once, whoever
//! reads the log would take it for the place from which the rows are states that the source had, and would make unique
//! constraints that the changes still to come cannot keep: two rows that exchanged a unique value, one read before and
//! one read after.
//!
//! ```text
//! chunks   ░░░░░░░░░░▓ last snapshot ─▶ the end of WAL then: `until`
//! stream   ──────▶ ┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄▶│ passed: BackfillEnded
//! ```
//! Where nobody writes, the stream gets there by a mark of our own, for the server sends only what it has flushed.

use super::Engine;
use crate::{client::failure, client::replication::Lsn, quote_literal};
use crossfade_connector::Failure;
use crossfade_event::{Event, TableId};
use std::time::Duration;
use tokio::time::Instant;

/// How long the end waits before a leaf that was locked is looked at again.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// A backfill whose rows are all handed over, and which has not been said to have ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ending {
    generation: u32,
    /// Whatever a chunk saw was committed before this place. `None` where another backfill must begin first.
    until: Option<Lsn>,
    nudged: bool,
}

impl Engine {
    /// All chunks are handed over; some tables need another backfill, in one batch with this one's end.
    pub(super) fn copied_all(&mut self, generation: u32, abandoned: Vec<TableId>) {
        self.snapshot = None;
        let until = abandoned.is_empty().then_some(self.copied);
        self.ending = Some(Ending { generation, until, nudged: false });
        self.again.extend(abandoned);
    }

    /// Whether a backfill is under way, up to its end in the log.
    pub(super) fn is_copying(&self) -> bool {
        self.snapshot.is_some() || self.ending.is_some()
    }

    /// Says the end where it may be said now.
    pub(super) async fn end_backfill(&mut self) -> Result<(), Failure> {
        let Some(Ending { generation, until: Some(until), nudged }) = self.ending else { return Ok(()) };
        if self.held.is_some() || self.assembler.is_open() {
            return Ok(());
        }
        if self.assembler.seen() < until {
            if !nudged {
                self.ending = Some(Ending { generation, until: Some(until), nudged: true });
                Box::pin(self.nudge()).await?;
            }
            return Ok(());
        }
        // Rows that came or went without an event while they were copied: the end is said with the next beginning.
        if self.looks.is_empty() && !self.roots.is_empty() {
            let now = Instant::now();
            if self.look_due.is_some_and(|due| now < due) {
                return Ok(());
            }
            if !Box::pin(self.look_at_roots()).await? {
                self.look_due = Some(now + LOOK_AGAIN);
                return Ok(());
            }
        }
        if !self.looks.is_empty() {
            return Box::pin(self.copy_roots_again()).await;
        }
        self.ending = None;
        self.assembler.push_outside(Event::BackfillEnded { generation });
        // With a place behind it, so that a sink can record that it has come this far even if nobody writes any more.
        self.assembler.push_resolved();
        Ok(())
    }

    /// Says the end of a backfill that is not to be waited for, right before the beginning of the next one.
    pub(super) fn end_before_the_next(&mut self, tables: &[TableId]) {
        let Some(Ending { generation, .. }) = self.ending.take() else { return };
        let schema = self.assembler.tables.values().find(|captured| tables.contains(&captured.schema.id));
        if let Some(schema) = schema.map(|captured| captured.schema.clone()) {
            // Something must stand between the last transaction and the end: a reader that has applied that transaction
            // would otherwise stand at the end already, and take the rows for states that the source had.
            self.assembler.push_outside(Event::SchemaSeen(schema));
        }
        self.assembler.push_outside(Event::BackfillEnded { generation });
    }

    /// Writes something that the server flushes, and with it everything before.
    pub(super) async fn nudge(&self) -> Result<(), Failure> {
        let content = quote_literal(&self.config.migration);
        let mark = format!("SELECT pg_catalog.pg_logical_emit_message(true, 'crossfade.heartbeat', {content})");
        for sql in [mark.as_str(), "SELECT pg_catalog.txid_current()"] {
            // A standby that replicates synchronously and is gone must not hold us up.
            match self.session.batch_execute(&format!("SET LOCAL synchronous_commit = local; {sql}")).await {
                Ok(()) => return Ok(()),
                // A standby, on which everything is flushed, or a role without the right.
                Err(error) if error.code().is_some() => {
                    tracing::debug!(%error, "no mark can be written: the stream comes by keepalives");
                }
                Err(error) => return Err(failure("writing a mark into the stream", error)),
            }
        }
        Ok(())
    }
}
