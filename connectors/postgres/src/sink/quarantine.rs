//! Looking into the quarantine, and emptying it.

use super::{
    OnError, PostgresSink,
    link::{Link, Param, Raw},
    record,
};
use bytes::Bytes;
use crossfade_connector::{
    COLLISION, Delivery, Failure, Guard, Quarantine, QuarantineFilter, QuarantineOutcome, QuarantinedChange, Write,
};
use crossfade_event::{Cell, Change, Column, Format, Key, Row, Sequence, TableId, TableName, TableSchema, Version};
use std::collections::{BTreeMap, HashSet};

/// Notes the shape that a quarantined change is written in; returns its number.
pub(super) async fn note_shape(link: &mut Link, migration: &str, schema: &TableSchema) -> Result<i64, Failure> {
    let doing = "noting the shape of a quarantined change";
    let text = serde_json::to_string(schema).map_err(|error| Failure::halt(doing, error, "Report this"))?;
    let hash = format!("{:016x}", xxhash_rust::xxh3::xxh3_64(text.as_bytes()));
    let table = i64::from(schema.id.0);
    let sql = "INSERT INTO crossfade.shapes (migration, table_id, hash, shape) VALUES ($1, $2, $3, $4) \
               ON CONFLICT (migration, table_id, hash) DO UPDATE SET hash = excluded.hash RETURNING id";
    let rows = link.query(doing, sql, &[&migration, &table, &hash, &text]).await?;
    Ok(rows.first().map_or(0, |row| row.get(0)))
}

/// The keys that are held, with their tables.
pub(super) async fn held_keys(link: &mut Link, migration: &str) -> Result<Vec<(TableId, Key)>, Failure> {
    let sql = "SELECT DISTINCT table_id, key FROM crossfade.quarantine WHERE migration = $1 AND key IS NOT NULL";
    let rows = link.query("reading which keys are held", sql, &[&migration]).await?;
    rows.iter()
        .map(|row| {
            let key: Vec<u8> = row.get(1);
            Ok((TableId(row.get::<_, i64>(0) as u32), Key::from(Row::parse(key.into()).map_err(|_| damaged())?)))
        })
        .collect()
}

fn damaged() -> Failure {
    Failure::lost(
        "reading the quarantine",
        "a row of crossfade.quarantine is damaged or was written by a newer release",
        "Use the release that wrote it, or restore crossfade.quarantine from a backup of the target",
    )
}

const LISTED: &str = "SELECT q.id, q.log_offset, q.ordinal, q.table_schema, q.table_name, q.key_hash, q.kind, q.reason, \
     to_char(q.at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'), q.table_id, q.change, s.shape, q.origin, q.key \
     FROM crossfade.quarantine q JOIN crossfade.shapes s ON s.id = q.shape WHERE q.migration = $1";

/// The keys that a filter names, or all of them: those changes, and every other change of their keys.
const FILTERED: &str = " AND ($2::text IS NULL OR (q.table_schema = $2 AND q.table_name = $3)) \
     AND (cardinality($4::int8[]) = 0 OR q.id = ANY ($4) OR EXISTS (SELECT FROM crossfade.quarantine o \
          WHERE o.migration = q.migration AND o.table_id = q.table_id AND o.key = q.key AND o.id = ANY ($4) AND $5))";

struct Entry {
    listed: QuarantinedChange,
    table: TableId,
    change: Change,
    shape: TableSchema,
    origin: String,
    key: Option<Key>,
}

async fn entries(
    link: &mut Link,
    migration: &str,
    filter: &QuarantineFilter,
    with_siblings: bool,
) -> Result<Vec<Entry>, Failure> {
    if !super::store::exists(link).await? {
        return Ok(Vec::new());
    }
    let (schema, name) = match &filter.table {
        Some(table) => (Some(&*table.schema), Some(&*table.name)),
        None => (None, None),
    };
    let sql = format!("{LISTED}{FILTERED} ORDER BY q.log_offset, q.ordinal, q.id");
    let rows =
        link.query("reading the quarantine", &sql, &[&migration, &schema, &name, &filter.ids, &with_siblings]).await?;
    rows.iter()
        .map(|row| {
            let table = TableId(row.get::<_, i64>(9) as u32);
            let change: Vec<u8> = row.get(10);
            let key: Option<Vec<u8>> = row.get(13);
            Ok(Entry {
                listed: QuarantinedChange {
                    id: row.get(0),
                    sequence: row.get::<_, i64>(1) as u64,
                    ordinal: row.get::<_, i64>(2) as u32,
                    table: TableName::new(row.get::<_, &str>(3), row.get::<_, &str>(4)),
                    key_hash: row.get(5),
                    kind: row.get(6),
                    reason: row.get(7),
                    at: row.get(8),
                },
                table,
                change: record::decode(table, Bytes::from(change)).map_err(|_| damaged())?,
                shape: serde_json::from_str(row.get(11)).map_err(|_| damaged())?,
                origin: row.get(12),
                key: key.map(|key| Row::parse(key.into()).map(Key::from)).transpose().map_err(|_| damaged())?,
            })
        })
        .collect()
}

/// A row laid out as the table is now: columns are found by the source's number, or where it has none, by name.
fn laid_out<'c>(row: &Row, from: &TableSchema, to: &TableSchema, missing: &dyn Fn(usize) -> Cell<'c>) -> Row {
    let cells: Vec<Cell<'_>> = row.cells().collect();
    let places = to.columns.iter().map(|column| place(from, column)).enumerate();
    places.map(|(index, old)| old.and_then(|old| cells.get(old)).copied().unwrap_or_else(|| missing(index))).collect()
}

/// Where a column of now stands in an older shape.
fn place(from: &TableSchema, column: &Column) -> Option<usize> {
    let find = |same: &dyn Fn(&Column) -> bool| from.columns.iter().position(same);
    let numbered = |old: &Column| old.native_id != 0 && old.native_id == column.native_id;
    // Two columns of the target may come from one of the source: then the name tells them apart, or the type.
    find(&|old| numbered(old) && old.name == column.name)
        .or_else(|| find(&|old| numbered(old) && old.type_ == column.type_))
        .or_else(|| find(&numbered))
        .or_else(|| find(&|old| old.name == column.name && (old.native_id == 0 || column.native_id == 0)))
}

impl Quarantine for PostgresSink {
    async fn list(&mut self, filter: &QuarantineFilter) -> Result<Vec<QuarantinedChange>, Failure> {
        let migration = self.config.migration.clone();
        let link = self.link().await?;
        Ok(entries(link, &migration, filter, false).await?.into_iter().map(|entry| entry.listed).collect())
    }

    async fn collisions(&mut self) -> Result<u64, Failure> {
        let migration = self.config.migration.clone();
        let link = self.link().await?;
        if !super::store::exists(link).await? {
            return Ok(0);
        }
        let sql = "SELECT count(*) FROM crossfade.quarantine WHERE migration = $1 AND kind = $2";
        let rows = link.query("counting the collisions in the quarantine", sql, &[&migration, &COLLISION]).await?;
        Ok(rows.first().map_or(0, |row| row.get::<_, i64>(0)) as u64)
    }

    async fn show(&mut self, id: i64) -> Result<Option<(QuarantinedChange, Change)>, Failure> {
        let migration = self.config.migration.clone();
        let link = self.link().await?;
        let filter = QuarantineFilter { table: None, ids: vec![id] };
        let found = entries(link, &migration, &filter, false).await?.pop();
        Ok(found.map(|entry| (entry.listed, entry.change)))
    }

    async fn retry(&mut self, filter: &QuarantineFilter) -> Result<QuarantineOutcome, Failure> {
        let migration = self.config.migration.clone();
        let mut outcome = QuarantineOutcome::default();
        self.must_be_prepared()?;
        let link = self.alone().await?;
        let found = entries(link, &migration, filter, true).await?;
        // Key by key, in the order in which the first change of each came: parents before their children.
        let mut keys: BTreeMap<usize, Vec<&Entry>> = BTreeMap::new();
        let mut first: Vec<(TableId, Option<&Key>, usize)> = Vec::new();
        for (place, entry) in found.iter().enumerate() {
            let known = first
                .iter()
                .find(|(table, key, _)| entry.key.is_some() && *table == entry.table && *key == entry.key.as_ref());
            let place = match known {
                Some((_, _, place)) => *place,
                None => {
                    first.push((entry.table, entry.key.as_ref(), place));
                    place
                }
            };
            keys.entry(place).or_default().push(entry);
        }
        // A child stands before its parent where an earlier retry was cut off in the middle of the parent's changes: as
        // long as something goes in, the rest is tried again.
        let mut left: Vec<&[&Entry]> = keys.values().map(Vec::as_slice).collect();
        loop {
            let (before, tried) = (outcome.applied, std::mem::take(&mut left));
            for changes in tried {
                let done = self.retry_key(changes).await?;
                outcome.applied += done;
                left.extend(changes.get(done as usize..).filter(|rest| !rest.is_empty()));
            }
            if left.is_empty() || outcome.applied == before {
                outcome.remaining = left.iter().map(|rest| rest.len() as u64).sum();
                return Ok(outcome);
            }
        }
    }

    async fn discard(&mut self, filter: &QuarantineFilter) -> Result<QuarantineOutcome, Failure> {
        let migration = self.config.migration.clone();
        let link = self.alone().await?;
        let found = entries(link, &migration, filter, true).await?;
        let ids: Vec<i64> = found.iter().map(|entry| entry.listed.id).collect();
        let sql = "DELETE FROM crossfade.quarantine WHERE migration = $1 AND id = ANY ($2)";
        let statement = link
            .statement(sql)
            .await
            .map_err(|error| crate::client::failure("discarding quarantined changes", error))?;
        let discarded = link
            .session
            .execute(&statement, &[&migration, &ids])
            .await
            .map_err(|error| crate::client::failure("discarding quarantined changes", error))?;
        self.reload_held().await?;
        let sql = "SELECT count(*) FROM crossfade.quarantine WHERE migration = $1";
        let left = self.link().await?.query("counting what is left in the quarantine", sql, &[&migration]).await?;
        let remaining = left.first().map_or(0, |row| row.get::<_, i64>(0)) as u64;
        Ok(QuarantineOutcome { discarded, remaining, ..QuarantineOutcome::default() })
    }
}

impl PostgresSink {
    /// The session, for work that must not mix with a delivery's, here or in another process.
    async fn alone(&mut self) -> Result<&mut Link, Failure> {
        let migration = self.config.migration.clone();
        let link = self.link().await?;
        if link.open {
            let told = "a large transaction is being applied";
            return Err(Failure::retry("changing the quarantine", told));
        }
        if !link.locked {
            super::store::lock(link, &migration).await?;
            link.locked = true;
        }
        Ok(link)
    }

    /// Applies one key's changes in order, in one transaction; stops at the first that fails again.
    async fn retry_key(&mut self, changes: &[&Entry]) -> Result<u64, Failure> {
        let keys: HashSet<(TableId, &Key)> =
            changes.iter().filter_map(|entry| Some((entry.table, entry.key.as_ref()?))).collect();
        let mut done: Vec<i64> = Vec::new();
        for entry in changes {
            // What the transforms refused is not in the target's shape: only a change of the spec helps it.
            if entry.origin != "sink" {
                break;
            }
            let Some(schema) = self.schema_of(entry.table, &entry.listed.table) else { break };
            let is_new = entry.change.op == crossfade_event::Op::Insert;
            let given = if is_new { self.given_since(&entry.shape, &schema).await? } else { Vec::new() };
            let missing = |index: usize| match given.get(index) {
                _ if !is_new => Cell::Unchanged,
                Some(Some(constant)) => Cell::Bytes(constant),
                _ => Cell::Null,
            };
            let change = Change {
                table: schema.id,
                schema: schema.version,
                op: entry.change.op,
                old: entry.change.old.as_ref().map(|row| laid_out(row, &entry.shape, &schema, &|_| Cell::Absent)),
                new: entry.change.new.as_ref().map(|row| laid_out(row, &entry.shape, &schema, &missing)),
            };
            let at = Version { sequence: Sequence(entry.listed.sequence), ordinal: entry.listed.ordinal };
            if !self.apply_retried(at, change, entry.listed.id, &keys).await? {
                break;
            }
            done.push(entry.listed.id);
        }
        self.reload_held().await?;
        Ok(done.len() as u64)
    }

    /// What columns that came after a shape gave to the rows that were there.
    async fn given_since(&mut self, from: &TableSchema, to: &TableSchema) -> Result<Vec<Option<Bytes>>, Failure> {
        let mut given = Vec::with_capacity(to.columns.len());
        for column in &to.columns {
            let Some(default) = column.default.as_deref().filter(|_| place(from, column).is_none()) else {
                given.push(None);
                continue;
            };
            let text = if column.type_.format == Format::PgText { "::text" } else { "" };
            let sql = format!("SELECT CAST({default} AS {}){text}", column.type_.name);
            let link = self.link().await?;
            let bind = link.bind(&sql, Vec::new()).await?;
            let rows = link.rows(&format!("reading the default of {}", column.name), bind).await?;
            given.push(rows.first().and_then(|row| row.get::<_, Raw>(0).0));
        }
        Ok(given)
    }

    /// One change, in a transaction with its way out of the quarantine.
    async fn apply_retried(
        &mut self,
        at: Version,
        change: Change,
        id: i64,
        keys: &HashSet<(TableId, &Key)>,
    ) -> Result<bool, Failure> {
        self.release_keys(keys);
        let doing = "applying a quarantined change again";
        let delivery = Delivery { writes: vec![Write::Change { at, change }], upto: self.standing(), commits: false };
        let mut link = self.take_link().await?;
        let applied = self.deliver_on(&mut link, delivery, OnError::Quarantine, Guard::Forward, None).await?;
        let is_in = applied.rejected.is_empty() && applied.held == 0;
        if is_in {
            let sql = "DELETE FROM crossfade.quarantine WHERE migration = $1 AND id = $2";
            let params = vec![Param::text(&self.config.migration), Param::i64(id)];
            link.run(doing, sql, params).await?;
        }
        if link.open {
            link.execute(doing, if is_in { "COMMIT" } else { "ROLLBACK" }).await?;
            link.open = false;
        }
        self.give_back(link);
        Ok(is_in)
    }
}
