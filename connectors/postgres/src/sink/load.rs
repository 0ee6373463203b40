//! Rows of a backfill, and tables that are emptied.

use super::{
    apply::Writer, attempt::CAUTION, fold::Unit, link::Trouble, refuse::Record, sets, store, strip, undo, write::Tail,
};
use bytes::Bytes;
use crossfade_connector::{Failure, Guard, WriteMode};
use crossfade_event::{Cell, Change, Op, Rows, Version};

impl Writer<'_> {
    /// Rows of a backfill: straight into the table where it can take them as they are.
    /// True when `tail` went with them, but for the commit.
    pub(super) async fn rows(
        &mut self,
        table: usize,
        count: u64,
        blocks: &[(Version, Bytes)],
        tail: Option<Tail<'_>>,
    ) -> Result<bool, Failure> {
        match self.copy_rows(table, count, blocks, tail).await {
            Ok(true) => return Ok(tail.is_some()),
            Ok(false) => {}
            Err(Trouble::Failure(failure)) => return Err(failure),
            Err(trouble) => {
                if trouble.is_unique_violation()
                    && let Some(table) = self.tables.get_mut(table)
                {
                    table.cautious = CAUTION;
                }
            }
        }
        let units = self.units_of(table, blocks)?;
        self.changes(&units, None).await
    }

    /// One `COPY` of whole blocks; false where the table cannot take them untouched.
    pub(super) async fn copy_rows(
        &mut self,
        table: usize,
        count: u64,
        blocks: &[(Version, Bytes)],
        tail: Option<Tail<'_>>,
    ) -> Result<bool, Trouble> {
        let Some(found) = self.tables.get(table) else { return Ok(false) };
        let direct = found.binary
            && found.target.mode == WriteMode::Table
            && !found.tracked
            && (found.bulk || found.cautious == 0)
            && self.guard == Guard::Forward
            && !self.held.has(found.id())
            && !found.parents.iter().any(|parent| self.held.has(parent.table));
        if !direct {
            return Ok(false);
        }
        let sql = found.sql.copy.clone();
        let doing = format!("copying rows into {}", found.target.schema.name);
        let point = self.point();
        let trouble = |error| Trouble::of(doing.clone(), error);
        let mut pieces = Vec::with_capacity(blocks.len() + 2);
        pieces.push(Bytes::from_static(sets::COPY_HEAD));
        for (_, block) in blocks {
            pieces.push(block.clone());
        }
        pieces.push(Bytes::from_static(sets::COPY_TAIL));
        let position: Vec<_> = tail.into_iter().map(|tail| tail.position.clone()).collect();
        let prelude = self.prelude(point);
        self.link.open = true;
        let copied = match self.link.pipeline(Some(&prelude), &position).await {
            Ok(counts) if counts.first() == Some(&0) => Err(Trouble::Failure(store::fenced(self.epoch))),
            Ok(_) => self.link.copy(&sql, pieces, false).await.map_err(trouble),
            Err((_, error)) => Err(trouble(error)),
        };
        let copied = match copied {
            Ok(copied) => self.settle(point).await.map(|()| copied),
            Err(trouble) => Err(trouble),
        };
        match copied {
            Ok(copied) if copied == count => {
                self.applied.applied += copied;
                Ok(true)
            }
            Ok(copied) => {
                let told = format!("{copied} rows arrived of {count}");
                let advice = "Run `crossfade log verify`: a block of rows is damaged";
                Err(Trouble::Failure(Failure::halt(doing, told, advice)))
            }
            Err(Trouble::Failure(failure)) => Err(Trouble::Failure(failure)),
            Err(trouble) => {
                self.take_back(point).await?;
                Err(trouble)
            }
        }
    }

    /// Rows as inserts, each with its own version.
    fn units_of(&self, table: usize, blocks: &[(Version, Bytes)]) -> Result<Vec<Unit>, Failure> {
        let mut units = Vec::new();
        let Some(found) = self.tables.get(table) else { return Ok(units) };
        for (at, block) in blocks {
            for (number, row) in Rows::new(block.clone()).enumerate() {
                let row = row.map_err(|error| {
                    let doing = format!("reading a block of rows for {}", found.target.schema.name);
                    Failure::lost(doing, error, "Run `crossfade log verify`")
                })?;
                let change = Change {
                    table: found.id(),
                    schema: found.target.schema.version,
                    op: Op::Insert,
                    old: None,
                    new: Some(row),
                };
                self.check(table, &change)?;
                let at = Version { sequence: at.sequence, ordinal: at.ordinal + number as u32 };
                units.push(Unit { at, table, change });
            }
        }
        Ok(units)
    }

    /// Empties tables. Those that others own, or refer to, are emptied row by row.
    pub(super) async fn truncate(&mut self, at: Version, tables: &[usize]) -> Result<(), Failure> {
        let (mut at_once, mut by_row) = (Vec::new(), Vec::new());
        for index in tables {
            let Some(table) = self.tables.get(*index) else { continue };
            match table.target.mode {
                // In place the source's own TRUNCATE emptied them; a mapping outlives its rows.
                WriteMode::Columns { .. } | WriteMode::InsertOnce => {}
                // Both key versions of a row are for records; the plan gives no table here such a mode.
                WriteMode::Dual { .. } => {}
                WriteMode::Table if table.tracked => by_row.push(table.clone()),
                WriteMode::Table => at_once.push(table.quoted.clone()),
            }
        }
        let point = self.point();
        self.link.execute("beginning a transaction", &self.prelude(point)).await?;
        self.link.open = true;
        if self.loading {
            for index in tables {
                if let Some(table) = self.tables.get_mut(*index) {
                    strip::strip(self.link, self.migration, table).await?;
                }
            }
        }
        if !at_once.is_empty() {
            strip::empty(self.link, &at_once).await?;
        }
        for table in by_row {
            undo::save_all(self.link, self.migration, &table).await?;
            let sql = format!("DELETE FROM {}", table.quoted);
            self.link.execute(&format!("emptying {}", table.target.schema.name), &sql).await?;
        }
        self.settle(point).await.map_err(|trouble| trouble.into_failure("emptying tables"))?;
        for index in tables {
            self.empty_held(at, *index);
        }
        Ok(())
    }

    /// What is held of a table comes before its emptying: a delete behind it keeps that order for a retry.
    fn empty_held(&mut self, at: Version, index: usize) {
        let Some(table) = self.tables.get(index).filter(|table| table.target.mode == WriteMode::Table) else { return };
        let schema = &table.target.schema;
        for (number, key) in self.held.of(schema.id).into_iter().enumerate() {
            let cells: Vec<Cell<'_>> = key.cells().collect();
            let cell = |index| {
                let place = table.key.iter().position(|column| *column == index);
                place.and_then(|place| cells.get(place)).copied().unwrap_or(Cell::Absent)
            };
            let old = Some((0..table.columns.len()).map(cell).collect());
            self.applied.held += 1;
            self.records.push(Record {
                at: Version { sequence: at.sequence, ordinal: at.ordinal + number as u32 },
                table: index,
                change: Change { table: schema.id, schema: schema.version, op: Op::Delete, old, new: None },
                key: Some(key),
                kind: "held",
                origin: "sink",
                reason: "the table was emptied".to_owned(),
            });
        }
    }
}
