//! What becomes of a delivery: its rows and changes as records, its transactions as marks, its end as a commit.

use super::{
    envelope::Reason,
    live::{MESSAGE_BYTES_MAX, STEP, Sent},
    notes::{Says, Standing},
    prepared::Prepared,
    settled,
    told::Under,
    topics,
    writer::{Broken, Writer, not_prepared, superseded},
};
use crate::client::flush;
use crossfade_connector::{Applied, Delivery, Failure, Guard, Progress, Rejection, Write, WriteMode};
use crossfade_event::{Change, Key, Op, Position, Row, Rows, TableId, Transaction, Version};
use rdkafka::producer::Producer;
use std::{
    collections::BTreeMap,
    time::{SystemTime, UNIX_EPOCH},
};

impl Writer {
    pub(super) fn apply(&mut self, delivery: Delivery, guard: Guard) -> Result<Applied, Failure> {
        let mut applied = Applied::default();
        if self.shut_out {
            return Err(superseded(&self.own));
        }
        match self.try_apply(delivery, guard, &mut applied) {
            Ok(()) => Ok(applied),
            Err(broken) => {
                self.abandon();
                Err(self.judged(broken))
            }
        }
    }
    fn try_apply(&mut self, delivery: Delivery, guard: Guard, applied: &mut Applied) -> Result<(), Broken> {
        let Delivery { writes, upto, commits } = delivery;
        self.live.as_mut().ok_or_else(not_prepared)?.now_us = now_us();
        for write in writes {
            match write {
                Write::Rows { table, at, count, rows } => self.rows(table, at, count, rows, applied)?,
                Write::Change { at, change } => self.change(at, change, false, applied)?,
                Write::Truncate { at, tables } => {
                    for table in tables {
                        self.truncate(at, table, applied)?;
                    }
                }
                Write::Reject(rejection) => self.reject(rejection, true, applied)?,
                Write::Began { position, transaction } => self.begins(position, transaction)?,
                Write::Boundary => self.ends()?,
            }
        }
        if commits {
            self.commit((guard == Guard::Forward).then_some(upto))?;
        }
        Ok(())
    }

    fn rows(
        &mut self,
        table: TableId,
        at: Version,
        count: u32,
        rows: bytes::Bytes,
        applied: &mut Applied,
    ) -> Result<(), Broken> {
        let version = self.table(table)?.schema.version;
        let damaged = |what: &str| {
            let doing = format!("applying the rows at {}", at.sequence);
            Failure::halt(doing, what.to_owned(), "Run `crossfade log verify`")
        };
        let mut found = 0u32;
        for row in Rows::new(rows) {
            let row = row.map_err(|error| damaged(&error.to_string()))?;
            let change = Change { table, schema: version, op: Op::Insert, old: None, new: Some(row) };
            self.change(Version { ordinal: at.ordinal + found, ..at }, change, true, applied)?;
            found += 1;
        }
        if found == count {
            Ok(())
        } else {
            Err(damaged("a block of rows holds another number of rows than it says").into())
        }
    }

    fn change(&mut self, at: Version, change: Change, is_copy: bool, applied: &mut Applied) -> Result<(), Broken> {
        if let Some(reason) = self.waits_behind(&change)? {
            return self.hold(at, change, "held", &reason, applied);
        }
        match self.write_change(at, &change, is_copy)? {
            Ok(()) => applied.applied += 1,
            Err(Reason(reason)) => {
                let table = self.table(change.table)?;
                let key = change.key(&table.schema);
                self.reject(Rejection { at, table: change.table, key, change, reason }, false, applied)?;
            }
        }
        Ok(())
    }

    /// Writes one change, wholly or not at all.
    pub(super) fn write_change(
        &mut self,
        at: Version,
        change: &Change,
        is_copy: bool,
    ) -> Result<Result<(), Reason>, Broken> {
        let table = self.table(change.table)?.clone();
        // The first new key stays: what comes later of the same old key is the same.
        if table.mode == WriteMode::InsertOnce && change.op != Op::Insert {
            return Ok(Ok(()));
        }
        let drafts = match table.drafts(change, is_copy) {
            Ok(drafts) => drafts,
            Err(reason) => return Ok(Err(reason)),
        };
        let most = MESSAGE_BYTES_MAX as usize - (1 << 20);
        if drafts.iter().any(|(_, draft)| draft.size_bytes() > most) {
            return Ok(Err(Reason(format!("its record is larger than {most} bytes, which is all that a topic takes"))));
        }
        let transactions = self.config.transactions;
        let prefix = &self.config.topic_prefix;
        let Some(live) = &mut self.live else { return Err(not_prepared().into()) };
        for (topic, draft) in &drafts {
            live.write_draft(topic, draft, at, is_copy, &self.manner, transactions.then_some(prefix))?;
        }
        Ok(Ok(()))
    }

    fn begins(&mut self, position: Position, transaction: Transaction) -> Result<(), Broken> {
        let live = self.live.as_mut().ok_or_else(not_prepared)?;
        let xid = if transaction.xid == 0 { position.commit } else { transaction.xid };
        live.transaction = Some(Under {
            id: format!("{xid}:{}", position.commit),
            xid,
            commit: position.commit,
            commit_time_us: transaction.commit_time_us,
            begun: false,
            total: 0,
            of_tables: BTreeMap::new(),
        });
        Ok(())
    }

    fn ends(&mut self) -> Result<(), Broken> {
        let live = self.live.as_mut().ok_or_else(not_prepared)?;
        let Some(under) = live.transaction.take().filter(|under| under.begun) else { return Ok(()) };
        live.mark(&topics::transactions(&self.config.topic_prefix), &under.mark(true, self.manner.schemas))
    }

    /// Commits what was sent, with the sink's place; without one it stays.
    pub(super) fn commit(&mut self, upto: Option<Progress>) -> Result<(), Broken> {
        let own = self.own.clone();
        let (Some(asking), Some(live)) = (&self.asking, &mut self.live) else { return Err(not_prepared().into()) };
        if upto.is_none() && !live.open {
            return Ok(());
        }
        live.begin()?;
        let failed = |error| Broken::Kafka("writing to the sink's topics".to_owned(), error);
        let mut standing = None;
        if let Some(progress) = upto {
            flush(&live.producer, STEP).map_err(failed)?;
            let noted = Standing { progress, reaches: live.reaches()? };
            live.send(Sent {
                topic: &own,
                partition: 0,
                key: Some(b"progress"),
                value: Some(&Says::Progress(noted.clone()).to_bytes()?),
                headers: None,
            })?;
            standing = Some(noted);
        }
        flush(&live.producer, STEP).map_err(failed)?;
        let reaches = live.reaches()?;
        live.producer.commit_transaction(STEP).map_err(failed)?;
        live.open = false;
        settled::until_readable(&asking.stable, &reaches)?;
        live.standing = standing.or(live.standing.take());
        Ok(())
    }
}

fn now_us() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as i64)
}

/// Every key that a change touches, as bytes.
pub(super) fn keys_of(table: &Prepared, change: &Change) -> Vec<Vec<u8>> {
    let whole = |row: &Option<Row>| row.as_ref().and_then(|row| table.schema.key_of(row));
    let keys: [Option<Key>; 2] = [whole(&change.new), whole(&change.old)];
    let mut keys: Vec<Vec<u8>> = keys.into_iter().flatten().map(|key| key.as_bytes().to_vec()).collect();
    keys.dedup();
    keys
}
