//! The quarantine: changes that could not be applied, and those that wait behind them.

use super::{
    OnError,
    apply::{Fault, keys_of},
    layout,
    table::Table,
    writer::Writer,
};
use crate::client::failure;
use bytes::Bytes;
use crossfade_connector::{
    Applied, COLLISION, Failure, QuarantineFilter, QuarantineOutcome, QuarantinedChange, Rejection,
};
use crossfade_event::{
    Cell, Change, Identity, Key, Op, Row, RowBuilder, SchemaVersion, TableId, TableName, TableSchema, Version,
};
use rusqlite::Connection;
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

/// All keys of which a change is in quarantine.
pub(super) fn held_keys(connection: &Connection, migration: &str) -> rusqlite::Result<HashMap<TableId, HashSet<Key>>> {
    let mut statement = connection.prepare_cached(
        "SELECT DISTINCT tbl, key FROM _crossfade_quarantine WHERE migration = ?1 AND key IS NOT NULL",
    )?;
    let mut rows = statement.query([migration])?;
    let mut held: HashMap<TableId, HashSet<Key>> = HashMap::new();
    while let Some(row) = rows.next()? {
        if let Ok(key) = Row::parse(Bytes::from(row.get::<_, Vec<u8>>(1)?)) {
            held.entry(TableId(row.get(0)?)).or_default().insert(Key::from(key));
        }
    }
    Ok(held)
}

/// By whom a change was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// The transforms.
    Transform,
    /// The target, for its own sake.
    Target,
    /// The target, for another row has a value that must be unique.
    Other,
}

impl Refused {
    pub(super) fn by_row(unique: bool) -> Self {
        if unique { Self::Other } else { Self::Target }
    }

    fn kind(self) -> &'static str {
        match self {
            Self::Other => COLLISION,
            Self::Transform | Self::Target => "rejected",
        }
    }
}

impl Writer {
    /// Puts a change on record as refused, and holds its key.
    pub(super) fn reject(
        &mut self,
        rejection: Rejection,
        refused: Refused,
        applied: &mut Applied,
    ) -> Result<(), Failure> {
        let by_transform = refused == Refused::Transform;
        if self.on_error == OnError::Stop {
            return Err(self.stopped(rejection, by_transform));
        }
        if self.healing {
            applied.rejected.push(rejection);
            return Ok(());
        }
        // A change that moves a row leaves its old key behind: later changes of either wait.
        let replaced =
            if by_transform { None } else { rejection.change.replaced_key(&self.table(rejection.table)?.schema) };
        self.record(&rejection, refused.kind(), by_transform)?;
        for key in rejection.key.iter().chain(replaced.as_ref()) {
            self.held.entry(rejection.table).or_default().insert(key.clone());
        }
        if let (Some(replaced), Some(_)) = (replaced, &rejection.key) {
            self.record_place(&rejection, &replaced)?;
        }
        applied.rejected.push(rejection);
        Ok(())
    }

    /// The failure that a refused change is where the migration is to stop.
    fn stopped(&self, rejection: Rejection, by_transform: bool) -> Failure {
        let name = self.table(rejection.table).map_or_else(|_| String::new(), |table| table.schema.name.to_string());
        let doing = if by_transform { "transforming a change of" } else { "writing" };
        Failure::halt(
            format!("{doing} {name} (log offset {})", rejection.at.sequence),
            rejection.reason,
            "Change the spec or what the target demands of the row, or set on_error = \"quarantine\"",
        )
    }

    /// Puts a change on record behind another one.
    pub(super) fn hold(
        &mut self,
        at: Version,
        change: Change,
        kind: &str,
        reason: &str,
        applied: &mut Applied,
    ) -> Result<(), Failure> {
        if self.healing {
            applied.held += 1;
            return Ok(());
        }
        let table = self.table(change.table)?;
        let (key, keys) = (change.key(&table.schema), keys_of(table, &change));
        let rejection = Rejection { at, table: change.table, key, change, reason: reason.to_owned() };
        self.record(&rejection, kind, false)?;
        for key in &keys {
            if Some(key) != rejection.key.as_ref() {
                self.record_place(&rejection, key)?;
            }
        }
        self.held.entry(rejection.table).or_default().extend(keys);
        applied.held += 1;
        Ok(())
    }

    /// Whether a change must wait: an earlier one of its key does, or one of a row that it refers to.
    pub(super) fn holds(&self, change: &Change) -> Result<Option<(&'static str, String)>, Failure> {
        let table = self.table(change.table)?;
        if let Some(held) = self.held.get(&change.table)
            && keys_of(table, change).iter().any(|key| held.contains(key))
        {
            return Ok(Some(("held", "an earlier change of this key is in quarantine".to_owned())));
        }
        let Some(new) = &change.new else { return Ok(None) };
        for reference in &table.target.def.foreign_keys {
            let parent = self.tables.values().find(|parent| parent.schema.name.name == reference.references.name);
            let Some(parent) = parent else { continue };
            let Some(held) = self.held.get(&parent.id()) else { continue };
            let refers = referenced_key(table, new, &reference.columns, parent, &reference.referenced_columns);
            let own = parent.id() == table.id() && refers.as_ref() == change.key(&table.schema).as_ref();
            if !own && refers.is_some_and(|key| held.contains(&key)) {
                return Ok(Some(("child", format!("the row of {} that it refers to is in quarantine", parent.name()))));
            }
        }
        Ok(None)
    }

    fn record(&mut self, rejection: &Rejection, kind: &str, by_transform: bool) -> Result<i64, Failure> {
        // What the transforms refused is in the source's layout, and is never written from here.
        let layout = if by_transform { None } else { Some(self.note_layout(rejection.table)?) };
        let table = self.table(rejection.table)?;
        let connection = self.connection()?;
        let change = &rejection.change;
        let bytes = |row: &Option<Row>| row.as_ref().map(|row| row.as_bytes().to_vec());
        let op = match change.op {
            Op::Insert => "insert",
            Op::Update => "update",
            Op::Delete => "delete",
        };
        let hash = rejection.key.as_ref().map_or_else(String::new, |key| format!("{:016x}", key.hash64()));
        let insert = || {
            connection
                .prepare_cached(
                    "INSERT INTO _crossfade_quarantine (migration, log_offset, ordinal, tbl, table_name, key, key_hash, kind,
                       refused, reason, op, source_tbl, schema_version, old, new, layout, at)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, strftime('%Y-%m-%dT%H:%M:%fZ'))",
                )?
                .insert(rusqlite::params![
                    self.migration,
                    rejection.at.sequence.0 as i64,
                    rejection.at.ordinal,
                    rejection.table.0,
                    table.name(),
                    rejection.key.as_ref().map(|key| key.as_bytes().to_vec()),
                    hash,
                    kind,
                    by_transform,
                    rejection.reason,
                    op,
                    change.table.0,
                    change.schema.0,
                    bytes(&change.old),
                    bytes(&change.new),
                    layout,
                ])
        };
        insert().map_err(|error| failure("recording a change in quarantine", error))
    }

    /// Holds another key of the same change across restarts.
    fn record_place(&mut self, rejection: &Rejection, key: &Key) -> Result<(), Failure> {
        let place = Rejection {
            key: Some(key.clone()),
            reason: "its row was to take another key".to_owned(),
            ..rejection.clone()
        };
        self.record(&place, "moved", false).map(|_| ())
    }
}

/// The key of the parent's row that a child's row refers to; `None` where it refers to none, or not by the key.
fn referenced_key(child: &Table, row: &Row, columns: &[String], parent: &Table, referenced: &[String]) -> Option<Key> {
    if parent.schema.identity != Identity::Key {
        return None;
    }
    let cells: Vec<Cell<'_>> = row.cells().collect();
    let mut key = RowBuilder::with_capacity(parent.key.len(), 32);
    for index in &parent.key {
        let name = &parent.schema.columns.get(*index)?.name;
        let place = referenced.iter().position(|column| **column == **name)?;
        match cells.get(child.schema.column_index(columns.get(place)?)?)? {
            Cell::Bytes(bytes) => key.push(Cell::Bytes(bytes)),
            _ => return None,
        }
    }
    Some(Key::from(key.finish()))
}

/// One record, with what a retry needs.
struct Record {
    id: i64,
    table: TableId,
    key: Option<Vec<u8>>,
    kind: String,
    refused: bool,
    at: Version,
    change: Change,
    /// The columns that its images have; `None` for the table's own, in records of an earlier release.
    layout: Option<Arc<TableSchema>>,
}

impl Writer {
    pub(super) fn quarantined(&self, filter: &QuarantineFilter) -> Result<Vec<QuarantinedChange>, Failure> {
        let read = || {
            let connection =
                self.connection().map_err(|failure| rusqlite::Error::ToSqlConversionFailure(failure.into()))?;
            let mut statement = connection.prepare_cached(
                "SELECT id, log_offset, ordinal, table_name, key_hash, kind, reason, at FROM _crossfade_quarantine
                 WHERE migration = ?1 AND kind <> 'moved' ORDER BY id",
            )?;
            let rows = statement.query_map([&self.migration], |row| {
                Ok(QuarantinedChange {
                    id: row.get(0)?,
                    sequence: row.get::<_, i64>(1)? as u64,
                    ordinal: row.get(2)?,
                    table: TableName::new("main", row.get::<_, String>(3)?),
                    key_hash: row.get(4)?,
                    kind: row.get(5)?,
                    reason: row.get(6)?,
                    at: row.get(7)?,
                })
            })?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        };
        let all = read().map_err(|error| failure("reading the quarantine", error))?;
        Ok(all
            .into_iter()
            .filter(|change| filter.table.as_ref().is_none_or(|table| table.name == change.table.name))
            .filter(|change| filter.ids.is_empty() || filter.ids.contains(&change.id))
            .collect())
    }

    pub(super) fn collisions(&self) -> Result<u64, Failure> {
        let sql = "SELECT count(*) FROM _crossfade_quarantine WHERE migration = ?1 AND kind = ?2";
        let counted = self
            .connection()?
            .prepare_cached(sql)
            .and_then(|mut statement| statement.query_row((&self.migration, COLLISION), |row| row.get::<_, i64>(0)));
        counted.map(i64::cast_unsigned).map_err(|error| failure("counting the collisions in the quarantine", error))
    }

    pub(super) fn show(&self, id: i64) -> Result<Option<(QuarantinedChange, Change)>, Failure> {
        let filter = QuarantineFilter { ids: vec![id], table: None };
        let Some(head) = self.quarantined(&filter)?.pop() else { return Ok(None) };
        let record = self.records()?.into_iter().find(|record| record.id == id);
        Ok(record.map(|record| (head, record.change)))
    }

    fn records(&self) -> Result<Vec<Record>, Failure> {
        let doing = "reading the quarantine";
        let connection = self.connection()?;
        let layouts = layout::noted(connection, &self.migration).map_err(|error| failure(doing, error))?;
        let mut statement = connection
            .prepare_cached(
                "SELECT id, tbl, key, kind, refused, log_offset, ordinal, op, source_tbl, schema_version, old, new, layout
                 FROM _crossfade_quarantine WHERE migration = ?1 ORDER BY id",
            )
            .map_err(|error| failure(doing, error))?;
        let rows = statement
            .query_map([&self.migration], |row| {
                let image = |index: usize| -> rusqlite::Result<Option<Row>> {
                    let bytes: Option<Vec<u8>> = row.get(index)?;
                    bytes.map(|bytes| Row::parse(bytes.into())).transpose().map_err(|error| {
                        rusqlite::Error::FromSqlConversionFailure(index, rusqlite::types::Type::Blob, error.into())
                    })
                };
                Ok(Record {
                    id: row.get(0)?,
                    table: TableId(row.get(1)?),
                    key: row.get(2)?,
                    kind: row.get(3)?,
                    refused: row.get(4)?,
                    at: super::apply::version(row.get::<_, i64>(5)? as u64, row.get(6)?),
                    change: Change {
                        table: TableId(row.get(8)?),
                        schema: SchemaVersion(row.get(9)?),
                        op: match row.get::<_, String>(7)?.as_str() {
                            "insert" => Op::Insert,
                            "delete" => Op::Delete,
                            _ => Op::Update,
                        },
                        old: image(10)?,
                        new: image(11)?,
                    },
                    layout: match row.get::<_, Option<String>>(12)? {
                        Some(name) => {
                            let missing = || rusqlite::Error::InvalidColumnName(format!("the layout {name}"));
                            Some(layouts.get(&name).cloned().ok_or_else(missing)?)
                        }
                        None => None,
                    },
                })
            })
            .map_err(|error| failure(doing, error))?;
        rows.collect::<rusqlite::Result<Vec<_>>>().map_err(|error| failure(doing, error))
    }

    /// The records that a filter means, with all others of their keys.
    fn meant(&self, filter: &QuarantineFilter) -> Result<(Vec<Record>, HashSet<i64>), Failure> {
        let named: HashSet<i64> = self.quarantined(filter)?.into_iter().map(|change| change.id).collect();
        let records = self.records()?;
        let of_change: HashMap<(Version, TableId), Vec<i64>> =
            records.iter().fold(HashMap::new(), |mut map, record| {
                map.entry((record.at, record.table)).or_insert_with(Vec::new).push(record.id);
                map
            });
        let mut meant = named;
        // A key pulls in all changes of that key, and a change that moves a row pulls in its other key.
        loop {
            let keys: HashSet<(TableId, &[u8])> = records
                .iter()
                .filter(|record| meant.contains(&record.id))
                .filter_map(|record| Some((record.table, record.key.as_deref()?)))
                .collect();
            let more: Vec<i64> = records
                .iter()
                .filter(|record| record.key.as_deref().is_some_and(|key| keys.contains(&(record.table, key))))
                .flat_map(|record| of_change.get(&(record.at, record.table)).cloned().unwrap_or_default())
                .filter(|id| !meant.contains(id))
                .collect();
            if more.is_empty() {
                break;
            }
            meant.extend(more);
        }
        Ok((records, meant))
    }

    pub(super) fn retry(&mut self, filter: &QuarantineFilter) -> Result<QuarantineOutcome, Failure> {
        self.in_transaction("retrying quarantined changes", |writer| {
            let (records, meant) = writer.meant(filter)?;
            let mut outcome = QuarantineOutcome::default();
            let mut blocked: HashSet<(TableId, Vec<u8>)> = records
                .iter()
                .filter(|record| !meant.contains(&record.id) || record.refused)
                .filter_map(|record| Some((record.table, record.key.clone()?)))
                .collect();
            for record in records.iter().filter(|record| record.kind != "moved") {
                let places: Vec<(TableId, Vec<u8>)> = records
                    .iter()
                    .filter(|other| other.at == record.at && other.table == record.table)
                    .filter_map(|other| Some((other.table, other.key.clone()?)))
                    .collect();
                let waits =
                    !meant.contains(&record.id) || record.refused || places.iter().any(|place| blocked.contains(place));
                let change = writer.laid_out(record)?;
                let waits = waits || writer.waits_for_parent(&change, &blocked)?;
                if !waits {
                    match writer.write_change(&change) {
                        Ok(()) => {
                            writer.forget(record)?;
                            outcome.applied += 1;
                            continue;
                        }
                        Err(Fault::Stop(failure)) => return Err(failure),
                        Err(Fault::Row { reason, unique }) => {
                            writer.set_reason(record.id, &reason, Refused::by_row(unique))?;
                        }
                    }
                }
                blocked.extend(places);
                outcome.remaining += 1;
            }
            Ok(outcome)
        })
    }

    /// A change in the layout that its table has now.
    fn laid_out(&self, record: &Record) -> Result<Change, Failure> {
        match (&record.layout, self.tables.get(&record.table)) {
            (Some(layout), Some(table)) if layout.columns != table.schema.columns => {
                layout::changed(self.connection()?, &record.change, layout, &table.schema)
            }
            _ => Ok(record.change.clone()),
        }
    }

    fn waits_for_parent(&self, change: &Change, blocked: &HashSet<(TableId, Vec<u8>)>) -> Result<bool, Failure> {
        let table = self.table(change.table)?;
        let Some(new) = &change.new else { return Ok(false) };
        Ok(table.target.def.foreign_keys.iter().any(|reference| {
            let parent = self.tables.values().find(|parent| parent.schema.name.name == reference.references.name);
            parent.is_some_and(|parent| {
                let key = referenced_key(table, new, &reference.columns, parent, &reference.referenced_columns);
                key.is_some_and(|key| blocked.contains(&(parent.id(), key.as_bytes().to_vec())))
            })
        }))
    }

    pub(super) fn discard(&mut self, filter: &QuarantineFilter) -> Result<QuarantineOutcome, Failure> {
        self.in_transaction("discarding quarantined changes", |writer| {
            let (records, meant) = writer.meant(filter)?;
            let mut outcome = QuarantineOutcome::default();
            for record in records.iter().filter(|record| record.kind != "moved") {
                if meant.contains(&record.id) {
                    writer.forget(record)?;
                    outcome.discarded += 1;
                } else {
                    outcome.remaining += 1;
                }
            }
            Ok(outcome)
        })
    }

    fn forget(&self, record: &Record) -> Result<(), Failure> {
        self.connection()?
            .prepare_cached("DELETE FROM _crossfade_quarantine WHERE migration = ?1 AND log_offset = ?2 AND ordinal = ?3 AND tbl = ?4")
            .and_then(|mut statement| {
                statement.execute((&self.migration, record.at.sequence.0 as i64, record.at.ordinal, record.table.0))
            })
            .map(|_| ())
            .map_err(|error| failure("clearing the quarantine", error))
    }

    fn set_reason(&self, id: i64, reason: &str, refused: Refused) -> Result<(), Failure> {
        self.connection()?
            .prepare_cached("UPDATE _crossfade_quarantine SET kind = ?3, reason = ?2 WHERE id = ?1")
            .and_then(|mut statement| statement.execute((id, reason, refused.kind())))
            .map(|_| ())
            .map_err(|error| failure("recording why a change failed again", error))
    }

    /// A transaction of its own for work between deliveries.
    pub(super) fn in_transaction<T>(
        &mut self,
        doing: &str,
        work: impl FnOnce(&mut Self) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        self.abandon();
        let has_pass = crate::switch::has_pass(self.connection()?).map_err(|error| failure(doing, error))?;
        self.fenced = self.back.is_none() && has_pass;
        self.begin(doing)?;
        self.healing = false;
        let done = work(self).and_then(|done| {
            self.commit(doing)?;
            Ok(done)
        });
        match done {
            Ok(done) => {
                self.held = held_keys(self.connection()?, &self.migration).map_err(|error| failure(doing, error))?;
                Ok(done)
            }
            Err(error) => {
                self.abandon();
                Err(error)
            }
        }
    }
}
