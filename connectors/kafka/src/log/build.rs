//! Batches become rounds of records, in memory, before anything is sent: what was built can be sent again.

use super::meta::Says;
use crate::codec::{HEAD, Head, What, partition_of, put_key};
use crossfade_event::{Batch, Change, Event, Partition, Position, Row, SchemaVersion, Stamped, TableId, TableSchema};
use crossfade_log::{
    LogError,
    provider::{Schemas, check, check_lanes, divide, unknown_schema},
    record::encode_event,
};
use std::{ops::Range, sync::Arc};

/// A round is closed once it holds so many bytes, and one larger event makes a larger round. A reader is given whole
/// rounds, and they fit into what it may be given at once.
const ROUND_BYTES: usize = 448 * 1024;

/// Or so many records.
const ROUND_RECORDS: u32 = 8_000;

/// One record of a group.
#[derive(Debug, Clone)]
pub(super) struct Record {
    pub(super) partition: Partition,
    key: Option<Range<usize>>,
    value: Range<usize>,
    /// For a mark, its round.
    pub(super) mark: Option<u64>,
}

/// What goes to the broker in one transaction.
#[derive(Debug, Default)]
pub(super) struct Group {
    bytes: Vec<u8>,
    records: Vec<Record>,
    /// The first and the last of its rounds, if it has any.
    pub(super) rounds: Option<(u64, u64)>,
    /// The last of its rounds that leaves nothing open.
    pub(super) whole: Option<u64>,
    /// The position changed.
    pub(super) moved: bool,
    /// Heads were abandoned.
    pub(super) abandoned: bool,
    /// Notes for the compacted topic, beside the tail.
    pub(super) notes: Vec<Says>,
}

impl Group {
    /// Notes alone; and, where a crash left a head, that it is abandoned.
    pub(super) fn of_notes(notes: Vec<Says>, abandoned: bool) -> Self {
        Self { notes, abandoned, ..Self::default() }
    }

    pub(super) fn records(&self) -> impl Iterator<Item = (&Record, Option<&[u8]>, &[u8])> {
        self.records.iter().map(|record| {
            let key = record.key.clone().and_then(|range| self.bytes.get(range));
            (record, key, self.bytes.get(record.value.clone()).unwrap_or_default())
        })
    }

    pub(super) fn size_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there is anything to be said.
    pub(super) fn is_empty(&self) -> bool {
        self.rounds.is_none() && !self.moved && !self.abandoned && self.notes.is_empty()
    }

    /// Whether the tail must be written.
    pub(super) fn moves_the_tail(&self) -> bool {
        self.whole.is_some() || self.moved || self.abandoned
    }
}

/// The round being built.
#[derive(Debug, Clone)]
struct Open {
    number: u64,
    bytes: usize,
    place: u32,
    counts: Vec<u32>,
}

impl Open {
    /// Whether other partitions than the first have records of it.
    fn is_divided(&self) -> bool {
        self.counts.iter().skip(1).any(|count| *count > 0)
    }
}

/// Builds groups; knows what the batches before have left open.
#[derive(Debug)]
pub(super) struct Builder {
    partitions: u32,
    group: Group,
    open: Option<Open>,
    last_round: u64,
    /// Parts of a transaction have come whose last part has not.
    inside: bool,
    /// Rounds that are not whole have been closed since the last whole one.
    headed: bool,
    /// Schemas that came since the last whole round.
    head_schemas: Vec<Arc<TableSchema>>,
    position: Option<Position>,
}

/// What a refused batch must not leave behind.
struct Before {
    records: usize,
    bytes: usize,
    open: Option<Open>,
    last_round: u64,
    rounds: Option<(u64, u64)>,
    whole: Option<u64>,
    notes: usize,
}

impl Builder {
    pub(super) fn new(partitions: u32, last_round: u64, position: Option<Position>) -> Self {
        Self {
            partitions,
            group: Group::default(),
            open: None,
            last_round,
            inside: false,
            headed: false,
            head_schemas: Vec::new(),
            position,
        }
    }

    /// The highest position that a whole batch has brought.
    pub(super) fn position(&self) -> Option<Position> {
        self.position
    }

    /// About how large the group has become.
    pub(super) fn size_bytes(&self) -> usize {
        self.group.size_bytes()
    }

    /// Takes a batch into the group.
    ///
    /// # Errors
    /// [`LogError::Contract`]; the group is then as it was before, and nothing may be taken any more.
    pub(super) fn take(&mut self, batch: Batch, schemas: &mut Schemas) -> Result<(), LogError> {
        check_lanes(&batch, self.inside)?;
        let before = Before {
            records: self.group.records.len(),
            bytes: self.group.bytes.len(),
            open: self.open.clone(),
            last_round: self.last_round,
            rounds: self.group.rounds,
            whole: self.group.whole,
            notes: self.group.notes.len(),
        };
        let seen = self.head_schemas.len();
        let taken = self.take_events(batch, schemas);
        if taken.is_err() {
            for schema in self.head_schemas.drain(seen..) {
                schemas.remove(schema.id, schema.version);
            }
            self.group.records.truncate(before.records);
            self.group.bytes.truncate(before.bytes);
            self.group.notes.truncate(before.notes);
            (self.group.rounds, self.group.whole) = (before.rounds, before.whole);
            (self.open, self.last_round) = (before.open, before.last_round);
        }
        taken
    }

    fn take_events(&mut self, batch: Batch, schemas: &mut Schemas) -> Result<(), LogError> {
        // What may take several rounds does not begin behind others, so that those can be told as whole.
        let (bytes, records) = (batch.size_bytes(), batch.events.len() as u32);
        let spans = self.inside || !batch.whole || bytes > ROUND_BYTES || records > ROUND_RECORDS;
        let is_full = |open: &Open| open.bytes + bytes > ROUND_BYTES || open.place + records > ROUND_RECORDS;
        if !self.inside && self.open.as_ref().is_some_and(|open| spans || is_full(open)) {
            self.close(true);
        }
        let (had_events, mut is_first) = (!batch.events.is_empty(), true);
        for stamped in batch.events {
            if let Event::SchemaSeen(schema) = &stamped.event
                && schemas.insert(schema)?
            {
                self.head_schemas.push(schema.clone());
            }
            check(&stamped.event, schemas)?;
            let is_full = |open: &Open| open.bytes >= ROUND_BYTES || open.place >= ROUND_RECORDS;
            // What the other partitions have of a round stands behind a backfill's beginning, never before it.
            let apart = |open: &Open| matches!(stamped.event, Event::BackfillBegan(_)) && open.is_divided();
            if self.open.as_ref().is_some_and(|open| spans && is_full(open) || apart(open)) {
                self.close(!self.inside && is_first);
            }
            is_first = false;
            self.put(stamped, schemas)?;
        }
        if !batch.whole {
            self.inside |= had_events;
            return Ok(());
        }
        if let Some(upto) = batch.upto
            && self.position.is_none_or(|position| position < upto)
        {
            self.position = Some(upto);
            self.group.moved = true;
        }
        self.inside = false;
        self.group.notes.extend(self.head_schemas.drain(..).map(Says::Schema));
        if spans || self.headed {
            self.close(true);
        }
        Ok(())
    }

    /// Drops an unfinished head; the rounds of it that were sent, if any.
    pub(super) fn abandon(&mut self, last_whole: u64, schemas: &mut Schemas) -> Option<(u64, u64)> {
        for schema in self.head_schemas.drain(..) {
            schemas.remove(schema.id, schema.version);
        }
        self.inside = false;
        let headed = std::mem::take(&mut self.headed);
        self.group.abandoned |= headed;
        headed.then_some((last_whole + 1, self.last_round))
    }

    /// Ends the group, and begins the next one.
    pub(super) fn finish(&mut self) -> Group {
        if self.open.is_some() {
            self.close(!self.inside);
        }
        std::mem::take(&mut self.group)
    }

    fn put(&mut self, stamped: Stamped, schemas: &Schemas) -> Result<(), LogError> {
        let position = stamped.position;
        match stamped.event {
            Event::Changed(change) if change.old.is_none() || change.new.is_none() => {
                let schema = schema_of(&change, schemas)?;
                self.put_change(Event::Changed(change), &schema, position)
            }
            event @ (Event::Changed(_) | Event::Rows(_)) => {
                let partitions = self.partitions;
                let place = |row: &Row, schema: &TableSchema| {
                    let mut key = Vec::with_capacity(32);
                    put_key(schema.id, schema.key_of(row).as_ref(), &mut key);
                    partition_of(&key, partitions)
                };
                for (partition, event) in divide(event, schemas, place)? {
                    match &event {
                        Event::Changed(change) => {
                            let schema = schema_of(change, schemas)?;
                            self.put_change(event, &schema, position)?;
                        }
                        _ => self.record(&event, partition, None, position)?,
                    }
                }
                Ok(())
            }
            event => self.record(&event, Partition(0), None, position),
        }
    }

    fn put_change(&mut self, event: Event, schema: &TableSchema, position: Position) -> Result<(), LogError> {
        let Event::Changed(change) = &event else { return Ok(()) };
        let start = self.group.bytes.len();
        put_key(change.table, change.key(schema).as_ref(), &mut self.group.bytes);
        let key = start..self.group.bytes.len();
        let partition = partition_of(self.group.bytes.get(key.clone()).unwrap_or_default(), self.partitions);
        self.record(&event, partition, Some(key), position)
    }

    fn record(
        &mut self,
        event: &Event,
        partition: Partition,
        key: Option<Range<usize>>,
        position: Position,
    ) -> Result<(), LogError> {
        let (last_round, partitions) = (&mut self.last_round, self.partitions);
        let open = self.open.get_or_insert_with(|| {
            *last_round += 1;
            Open { number: *last_round, bytes: 0, place: 0, counts: vec![0; partitions as usize] }
        });
        let bytes = &mut self.group.bytes;
        let start = bytes.len();
        bytes.extend_from_slice(&[0; HEAD]);
        let header = encode_event(event, bytes)?;
        let (kind, bits, table, schema) = (header.kind, header.bits, header.table, header.schema);
        let what = What::Event { kind, bits, table, schema, position };
        let head = Head { round: open.number, place: open.place, what };
        if let Some(slot) = bytes.get_mut(start..start + HEAD) {
            slot.copy_from_slice(&head.to_bytes());
        }
        open.place += 1;
        open.bytes += event.size_bytes();
        if let Some(count) = open.counts.get_mut(partition.0 as usize) {
            *count += 1;
        }
        let value = start..bytes.len();
        self.group.records.push(Record { partition, key, value, mark: None });
        Ok(())
    }

    /// Ends the round with its marks; one is made where there is none, to make the head before it whole.
    fn close(&mut self, whole: bool) {
        let open = match self.open.take() {
            Some(open) => open,
            None if whole && self.headed => {
                self.last_round += 1;
                Open { number: self.last_round, bytes: 0, place: 0, counts: vec![0; self.partitions as usize] }
            }
            None => return,
        };
        let what = What::Mark { whole, upto: self.position };
        for (partition, count) in (0u32..).zip(&open.counts) {
            let start = self.group.bytes.len();
            self.group.bytes.extend_from_slice(&Head { round: open.number, place: *count, what }.to_bytes());
            let value = start..self.group.bytes.len();
            let partition = Partition(partition);
            self.group.records.push(Record { partition, key: None, value, mark: Some(open.number) });
        }
        let first = self.group.rounds.map_or(open.number, |(first, _)| first);
        self.group.rounds = Some((first, open.number));
        if whole {
            self.group.whole = Some(open.number);
        }
        self.headed = !whole;
    }
}

fn schema_of(change: &Change, schemas: &Schemas) -> Result<Arc<TableSchema>, LogError> {
    let (table, version): (TableId, SchemaVersion) = (change.table, change.schema);
    schemas.get(table, version).ok_or_else(|| unknown_schema(table, version))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use crossfade_testkit::log_suite;
    use std::fmt::Write;

    /// What version 1 wrote: partition, key and value of every record of the suite's every kind of event, in two
    /// partitions. It must be read for ever.
    const GOLDEN: &str = include_str!("../../tests/formats/records-1.txt");

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    }

    fn bytes(hex: &str) -> Bytes {
        (0..hex.len() / 2).map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap()).collect()
    }

    fn every_kind() -> Group {
        let (mut builder, mut schemas) = (Builder::new(2, 0, None), Schemas::default());
        for batch in log_suite::every_kind() {
            builder.take(batch, &mut schemas).unwrap();
        }
        builder.finish()
    }

    #[test]
    fn records_of_version_1_are_written_as_ever() {
        let mut text = String::new();
        for (record, key, value) in every_kind().records() {
            let key = key.map_or_else(|| "-".to_owned(), hex);
            let _ = writeln!(text, "{} {key} {}", record.partition.0, hex(value));
        }
        assert!(text == GOLDEN, "the records are written otherwise than in version 1:\n{text}");
    }

    #[test]
    fn records_of_version_1_are_read() {
        let expected: Vec<Event> = log_suite::flat(
            log_suite::every_kind().into_iter().flat_map(|batch| batch.events).map(|stamped| stamped.event),
        );
        let (mut found, mut marks) = (Vec::new(), 0);
        for line in GOLDEN.lines() {
            let value = bytes(line.split(' ').nth(2).unwrap());
            let head = Head::parse(&value).unwrap();
            match head.event(&value.slice(HEAD..)).unwrap() {
                Some(event) => found.push(((head.round, head.place), event)),
                None => marks += 1,
            }
        }
        found.sort_by_key(|(place, _)| *place);
        assert_eq!(log_suite::flat(found.into_iter().map(|(_, event)| event)), expected);
        assert_eq!(marks % 2, 0, "every round ends in both partitions");
    }

    #[test]
    fn a_batch_that_is_refused_leaves_nothing_in_the_group() {
        let (mut builder, mut schemas) = (Builder::new(2, 0, None), Schemas::default());
        let seen = Event::SchemaSeen(log_suite::schema(1, 1));
        builder.take(log_suite::batch(1, vec![seen], None, true), &mut schemas).unwrap();
        let unknown = Event::SchemaSeen(log_suite::schema(3, 1));
        let mut damaged = log_suite::rows(0, &["a"]);
        if let Event::Rows(block) = &mut damaged {
            block.rows = block.rows.slice(..block.rows.len() - 1);
        }
        assert!(builder.take(log_suite::snapshot(vec![unknown, damaged]), &mut schemas).is_err());
        assert_eq!(schemas.get(TableId(3), SchemaVersion(1)), None);
        let group = builder.finish();
        assert_eq!((group.records().count(), group.notes.len()), (1 + 2, 1), "the schema, and its marks");
    }

    #[test]
    fn no_mark_says_whole_while_a_transaction_is_open() {
        let (mut builder, mut schemas) = (Builder::new(1, 0, None), Schemas::default());
        let seen = Event::SchemaSeen(log_suite::schema(1, 1));
        builder.take(log_suite::batch(1, vec![seen], None, true), &mut schemas).unwrap();
        let wide = || (0..60).map(|n| log_suite::insert(&n.to_string(), &"x".repeat(20_000))).collect::<Vec<_>>();
        for commit in 2..6 {
            // Small, large, and in parts.
            builder.take(log_suite::transaction(commit * 10, vec![log_suite::insert("k", "v")]), &mut schemas).unwrap();
            builder.take(log_suite::transaction(commit * 10 + 1, wide()), &mut schemas).unwrap();
            let began = log_suite::transaction(commit * 10 + 2, wide());
            let (mut head, mut rest) = (began.clone(), began);
            rest.events = head.events.split_off(20);
            (head.whole, head.upto) = (false, None);
            builder.take(head, &mut schemas).unwrap();
            builder.take(rest, &mut schemas).unwrap();
        }
        let (group, mut open) = (builder.finish(), false);
        let mut marks = 0;
        for (_, _, value) in group.records() {
            let head = Head::parse(value).unwrap();
            match (head.what, head.event(&Bytes::copy_from_slice(&value[HEAD..])).unwrap()) {
                (_, Some(Event::Began(_))) => open = true,
                (_, Some(Event::Committed)) => open = false,
                (What::Mark { whole, .. }, _) => {
                    marks += 1;
                    assert_eq!(whole, !open, "round {}", head.round);
                }
                _ => {}
            }
        }
        assert!(marks > 20, "{marks} rounds");
    }
}
