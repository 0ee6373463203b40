//! Quarantine: changes that cannot be written, and those that wait behind them, in the sink's own topic. What goes in goes
//! in with the transaction of its batch; what leaves, with the records that it becomes.
//!
//! Topics know no references between tables, so no child waits for its parent.

use super::{
    apply::keys_of,
    live::Sent,
    notes::{Held, Says, held_key},
    prepared::Prepared,
    writer::{Broken, Writer, not_prepared},
};
use crossfade_connector::{Applied, Failure, QuarantineFilter, QuarantineOutcome, QuarantinedChange, Rejection};
use crossfade_event::{Change, Identity, Key, Op, Row, RowBuilder, SchemaVersion, Sequence, TableId, Version};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

/// A key of a table.
type Place = (TableId, Vec<u8>);

/// The keys that changes in quarantine hold, each with the reason of the first.
pub(super) fn held_keys<'a>(held: impl Iterator<Item = &'a Held>) -> HashMap<Place, String> {
    let mut keys = HashMap::new();
    for one in held {
        for key in &one.keys {
            keys.entry((one.table.id, key.clone())).or_insert_with(|| one.reason.clone());
        }
    }
    keys
}

impl Writer {
    /// Why a change must wait: an earlier one of a key of it is in quarantine.
    pub(super) fn waits_behind(&self, change: &Change) -> Result<Option<String>, Failure> {
        let live = self.live.as_ref().ok_or_else(not_prepared)?;
        if live.held.is_empty() {
            return Ok(None);
        }
        let keys = keys_of(self.table(change.table)?, change);
        let first = keys.into_iter().find_map(|key| live.held.get(&(change.table, key)));
        Ok(first.map(|_| "an earlier change of its key is in quarantine".to_owned()))
    }

    pub(super) fn reject(&mut self, rejection: Rejection, refused: bool, applied: &mut Applied) -> Result<(), Broken> {
        if self.config.on_error == super::OnError::Stop {
            let name = &self.table(rejection.table)?.schema.name;
            return Err(Failure::halt(
                format!("writing a change of {name} at {}", rejection.at.sequence),
                rejection.reason,
                "Mend the row in the source, or write on_error = \"quarantine\" in [sink]",
            )
            .into());
        }
        let mut keys: Vec<Vec<u8>> = rejection.key.iter().map(|key| key.as_bytes().to_vec()).collect();
        if !refused {
            keys.extend(keys_of(self.table(rejection.table)?, &rejection.change));
        }
        keys.sort();
        keys.dedup();
        self.put(&rejection, keys, refused, "rejected")?;
        applied.rejected.push(rejection);
        Ok(())
    }

    pub(super) fn hold(
        &mut self,
        at: Version,
        change: Change,
        kind: &str,
        reason: &str,
        applied: &mut Applied,
    ) -> Result<(), Broken> {
        let keys = keys_of(self.table(change.table)?, &change);
        let rejection = Rejection { at, table: change.table, key: None, change, reason: reason.to_owned() };
        self.put(&rejection, keys, false, kind)?;
        applied.held += 1;
        Ok(())
    }

    fn put(&mut self, rejection: &Rejection, keys: Vec<Vec<u8>>, refused: bool, kind: &str) -> Result<(), Broken> {
        let own = self.own.clone();
        let table = self.table(rejection.table)?.schema.clone();
        let live = self.live.as_mut().ok_or_else(not_prepared)?;
        let id = live.next_held;
        live.next_held += 1;
        for key in &keys {
            live.held.entry((rejection.table, key.clone())).or_insert_with(|| rejection.reason.clone());
        }
        let bytes = |row: &Option<Row>| row.as_ref().map(|row| row.as_bytes().to_vec());
        let change = &rejection.change;
        let says = Says::Held(Box::new(Held {
            id,
            table: (*table).clone(),
            keys,
            refused,
            sequence: rejection.at.sequence.0,
            ordinal: rejection.at.ordinal,
            op: change.op,
            of_table: change.table.0,
            version: change.schema.0,
            old: bytes(&change.old),
            new: bytes(&change.new),
            kind: kind.to_owned(),
            reason: rejection.reason.clone(),
            at: jiff::Timestamp::now().to_string(),
        }));
        let (key, value) = (says.key(), says.to_bytes()?);
        live.send(Sent { topic: &own, partition: 0, key: Some(key.as_bytes()), value: Some(&value), headers: None })
    }

    /// What is held of a table comes before its emptying: a delete behind it keeps that order for a retry.
    pub(super) fn hold_emptied(&mut self, at: Version, id: TableId, applied: &mut Applied) -> Result<(), Broken> {
        let schema = self.table(id)?.schema.clone();
        let live = self.live.as_ref().ok_or_else(not_prepared)?;
        let keys: Vec<Vec<u8>> =
            live.held.keys().filter(|(table, _)| *table == id).map(|(_, key)| key.clone()).collect();
        for (ordinal, key) in keys.into_iter().enumerate() {
            let Ok(key) = Row::parse(key.into()) else { continue };
            let old = key_image(&schema, &Key::from(key));
            let change = Change { table: id, schema: schema.version, op: Op::Delete, old: Some(old), new: None };
            let at = Version { ordinal: at.ordinal + ordinal as u32, ..at };
            self.hold(at, change, "held", "the table was emptied", applied)?;
        }
        Ok(())
    }

    fn records(&mut self) -> Result<BTreeMap<i64, Held>, Failure> {
        Ok(self.notes()?.map(|notes| notes.held).unwrap_or_default())
    }

    pub(super) fn list(&mut self, filter: &QuarantineFilter) -> Result<Vec<QuarantinedChange>, Failure> {
        Ok(self.records()?.values().filter(|held| is_meant(filter, held)).map(described).collect())
    }

    pub(super) fn show(&mut self, id: i64) -> Result<Option<(QuarantinedChange, Change)>, Failure> {
        let records = self.records()?;
        records.get(&id).map(|held| Ok((described(held), change_of(held)?))).transpose()
    }

    /// Those that a filter means, with all others of their keys.
    fn meant(&mut self, filter: &QuarantineFilter) -> Result<(BTreeMap<i64, Held>, HashSet<i64>), Failure> {
        let records = self.records()?;
        let mut meant: HashSet<i64> =
            records.values().filter(|held| is_meant(filter, held)).map(|held| held.id).collect();
        loop {
            let keys: HashSet<(TableId, &[u8])> = records
                .values()
                .filter(|held| meant.contains(&held.id))
                .flat_map(|held| held.keys.iter().map(|key| (held.table.id, key.as_slice())))
                .collect();
            let more: Vec<i64> = records
                .values()
                .filter(|held| !meant.contains(&held.id))
                .filter(|held| held.keys.iter().any(|key| keys.contains(&(held.table.id, key.as_slice()))))
                .map(|held| held.id)
                .collect();
            if more.is_empty() {
                break;
            }
            meant.extend(more);
        }
        Ok((records, meant))
    }

    pub(super) fn retry(&mut self, filter: &QuarantineFilter) -> Result<QuarantineOutcome, Failure> {
        self.live.as_ref().ok_or_else(not_prepared)?;
        let (records, meant) = self.meant(filter)?;
        let done = self.retried(&records, &meant);
        self.finished(done)
    }

    fn retried(&mut self, records: &BTreeMap<i64, Held>, meant: &HashSet<i64>) -> Result<QuarantineOutcome, Broken> {
        let mut outcome = QuarantineOutcome::default();
        let places = |held: &Held| -> Vec<Place> { held.keys.iter().map(|key| (held.table.id, key.clone())).collect() };
        let mut blocked: HashSet<Place> = HashSet::new();
        for held in records.values() {
            let waits =
                !meant.contains(&held.id) || held.refused || places(held).iter().any(|place| blocked.contains(place));
            let written = if waits { None } else { Some(self.write_held(held)?) };
            match written {
                Some(Ok(())) => {
                    self.forget(held.id)?;
                    outcome.applied += 1;
                    continue;
                }
                Some(Err(reason)) => self.set_reason(held, reason)?,
                None => {}
            }
            blocked.extend(places(held));
            outcome.remaining += 1;
        }
        self.commit(None)?;
        Ok(outcome)
    }

    /// Writes a change as it would have been written then: under its own schema, into the topic that its table has now.
    fn write_held(&mut self, held: &Held) -> Result<Result<(), String>, Broken> {
        let change = change_of(held)?;
        let at = Version { sequence: Sequence(held.sequence), ordinal: held.ordinal };
        let now = self.table(held.table.id)?.clone();
        if now.schema.columns != held.table.columns {
            let partitions =
                |topic: &str| now.topics.iter().find(|one| one.topic == topic).map_or(1, |one| one.partitions);
            let then = Prepared::new(&now.under(Arc::new(held.table.clone())), &self.manner, partitions);
            self.tables.insert(held.table.id, Arc::new(then));
        }
        let written = self.write_change(at, &change, false);
        self.tables.insert(held.table.id, now);
        Ok(written?.map_err(|reason| reason.0))
    }

    pub(super) fn discard(&mut self, filter: &QuarantineFilter) -> Result<QuarantineOutcome, Failure> {
        self.live.as_ref().ok_or_else(not_prepared)?;
        let (records, meant) = self.meant(filter)?;
        let mut outcome = QuarantineOutcome::default();
        let mut dropped = || -> Result<(), Broken> {
            for id in records.keys() {
                if meant.contains(id) {
                    self.forget(*id)?;
                    outcome.discarded += 1;
                } else {
                    outcome.remaining += 1;
                }
            }
            self.commit(None)
        };
        let done = dropped();
        self.finished(done.map(|()| outcome))
    }

    /// What is held now is what the topic says.
    fn finished(&mut self, done: Result<QuarantineOutcome, Broken>) -> Result<QuarantineOutcome, Failure> {
        match done {
            Ok(outcome) => {
                let records = self.records()?;
                let live = self.live.as_mut().ok_or_else(not_prepared)?;
                live.held = held_keys(records.values());
                Ok(outcome)
            }
            Err(broken) => {
                self.abandon();
                Err(self.judged(broken))
            }
        }
    }

    fn forget(&mut self, id: i64) -> Result<(), Broken> {
        let own = self.own.clone();
        let live = self.live.as_mut().ok_or_else(not_prepared)?;
        let key = held_key(id);
        live.send(Sent { topic: &own, partition: 0, key: Some(key.as_bytes()), value: None, headers: None })
    }

    fn set_reason(&mut self, held: &Held, reason: String) -> Result<(), Broken> {
        let own = self.own.clone();
        let says = Says::Held(Box::new(Held { reason, kind: "rejected".to_owned(), ..held.clone() }));
        let (key, value) = (says.key(), says.to_bytes()?);
        let live = self.live.as_mut().ok_or_else(not_prepared)?;
        live.send(Sent { topic: &own, partition: 0, key: Some(key.as_bytes()), value: Some(&value), headers: None })
    }
}

fn is_meant(filter: &QuarantineFilter, held: &Held) -> bool {
    filter.table.as_ref().is_none_or(|table| *table == held.table.name)
        && (filter.ids.is_empty() || filter.ids.contains(&held.id))
}

fn described(held: &Held) -> QuarantinedChange {
    let hash = |key: &Vec<u8>| Row::parse(key.clone().into()).map(|row| Key::from(row).hash64());
    let key_hash = held.keys.first().and_then(|key| hash(key).ok());
    QuarantinedChange {
        id: held.id,
        sequence: held.sequence,
        ordinal: held.ordinal,
        table: held.table.name.clone(),
        key_hash: key_hash.map_or_else(String::new, |hash| format!("{hash:016x}")),
        kind: held.kind.clone(),
        reason: held.reason.clone(),
        at: held.at.clone(),
    }
}

fn change_of(held: &Held) -> Result<Change, Failure> {
    let image = |bytes: &Option<Vec<u8>>| {
        bytes.clone().map(|bytes| Row::parse(bytes.into())).transpose().map_err(|error| {
            Failure::halt("reading the quarantine", error, "Discard the change, and take its table in anew")
        })
    };
    Ok(Change {
        table: TableId(held.of_table),
        schema: SchemaVersion(held.version),
        op: held.op,
        old: image(&held.old)?,
        new: image(&held.new)?,
    })
}

/// An old image that carries the key alone; of a table without one, the whole row.
fn key_image(schema: &crossfade_event::TableSchema, key: &Key) -> Row {
    if schema.identity != Identity::Key {
        return key.cells().collect();
    }
    let places = schema.key_columns();
    let cells: Vec<crossfade_event::Cell<'_>> = key.cells().collect();
    let mut row = RowBuilder::with_capacity(schema.columns.len(), 64);
    for index in 0..schema.columns.len() {
        let cell = places.iter().position(|place| *place == index).and_then(|at| cells.get(at));
        row.push(cell.copied().unwrap_or(crossfade_event::Cell::Absent));
    }
    row.finish()
}
