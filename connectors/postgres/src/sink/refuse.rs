//! What cannot be applied goes to quarantine, in the same transaction as everything else.

use super::{
    apply::{OnError, Writer},
    attempt::Point,
    fold::Unit,
    link::{Param, Trouble},
    quarantine, record,
};
use crate::client::failure;
use crossfade_connector::{COLLISION, Failure, Guard, Rejection, WriteMode};
use crossfade_event::{Change, Key, Version};

/// A change that goes to quarantine.
pub(super) struct Record {
    pub(super) at: Version,
    pub(super) table: usize,
    pub(super) key: Option<Key>,
    pub(super) change: Change,
    pub(super) kind: &'static str,
    pub(super) origin: &'static str,
    pub(super) reason: String,
}

impl Writer<'_> {
    /// A change that the server refuses by itself.
    pub(super) fn reject(&mut self, unit: &Unit, trouble: Trouble) -> Result<(), Failure> {
        let Some(table) = self.tables.get(unit.table) else { return Ok(()) };
        let schema = &table.target.schema;
        if self.on_error == OnError::Stop {
            let doing = format!("writing {} (log offset {})", schema.name, unit.at.sequence);
            return Err(trouble.into_failure(doing));
        }
        let key = unit.change.key(schema);
        for key in key.iter().cloned().chain(unit.change.replaced_key(schema)) {
            self.held.add(schema.id, key);
        }
        if table.target.mode == WriteMode::InsertOnce && !self.loading {
            // The row whose key it maps is the next output of the same change.
            self.collided.insert((unit.at.sequence, unit.at.ordinal + 1));
        }
        let kind = if trouble.is_unique_violation() { COLLISION } else { "rejected" };
        let reason = trouble.reason();
        self.applied.rejected.push(Rejection {
            at: unit.at,
            table: schema.id,
            key: key.clone(),
            change: unit.change.clone(),
            reason: reason.clone(),
        });
        self.records.push(Record {
            at: unit.at,
            table: unit.table,
            key,
            change: unit.change.clone(),
            kind,
            origin: "sink",
            reason,
        });
        Ok(())
    }

    /// A change that the transforms refused.
    pub(super) fn refused(&mut self, rejection: Rejection) -> Result<(), Failure> {
        let table = self.table_index(rejection.table)?;
        if self.on_error == OnError::Stop {
            let name = self.tables.get(table).map_or_else(String::new, |table| table.target.schema.name.to_string());
            let doing = format!("transforming a change of {name} (log offset {})", rejection.at.sequence);
            return Err(Failure::halt(doing, rejection.reason, "Change the spec, or set on_error = \"quarantine\""));
        }
        if let Some(key) = &rejection.key {
            self.held.add(rejection.table, key.clone());
        }
        self.records.push(Record {
            at: rejection.at,
            table,
            key: rejection.key.clone(),
            change: rejection.change.clone(),
            kind: "rejected",
            origin: "transform",
            reason: rejection.reason.clone(),
        });
        self.applied.rejected.push(rejection);
        Ok(())
    }

    /// Writes what was rejected or held in this delivery, in the same transaction.
    pub(super) async fn file_records(&mut self) -> Result<(), Failure> {
        // A replay has them on record already.
        let records = std::mem::take(&mut self.records);
        if records.is_empty() || self.guard == Guard::Heal {
            return Ok(());
        }
        if !self.link.open {
            self.link.execute("beginning a transaction", &self.prelude(Point::Begin)).await?;
            self.link.open = true;
        }
        let sql = "INSERT INTO crossfade.quarantine (migration, log_offset, ordinal, table_id, table_schema, table_name, \
                   key, key_hash, kind, origin, reason, shape, change) \
                   VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13) \
                   ON CONFLICT (migration, log_offset, ordinal, table_id) DO NOTHING";
        let mut binds = Vec::with_capacity(records.len());
        for record in records {
            let Some(table) = self.tables.get(record.table) else { continue };
            let schema = table.target.schema.clone();
            let shape = match self.shapes.get(&record.table) {
                Some(shape) => *shape,
                None => {
                    let shape = quarantine::note_shape(self.link, self.migration, &schema).await?;
                    self.shapes.insert(record.table, shape);
                    shape
                }
            };
            let hash = record.key.as_ref().map_or_else(String::new, |key| format!("{:016x}", key.hash64()));
            let params = vec![
                Param::text(self.migration),
                Param::i64(record.at.sequence.0 as i64),
                Param::i64(i64::from(record.at.ordinal)),
                Param::i64(i64::from(schema.id.0)),
                Param::text(&schema.name.schema),
                Param::text(&schema.name.name),
                record.key.map_or(Param::Null, |key| Param::Bytes(key.as_bytes().clone())),
                Param::text(&hash),
                Param::text(record.kind),
                Param::text(record.origin),
                Param::text(&record.reason),
                Param::i64(shape),
                Param::Bytes(record::encode(&record.change)),
            ];
            binds.push(self.link.bind(sql, params).await?);
        }
        for some in binds.chunks(256) {
            self.link.pipeline(None, some).await.map_err(|(_, error)| failure("writing the quarantine", error))?;
        }
        Ok(())
    }
}
