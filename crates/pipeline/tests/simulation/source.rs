//! A source whose whole history is known: every state it ever had can be asked for.

use crossfade_connector::{Failure, Resume, Source, SourceHealth};
use crossfade_event::{
    Backfill, Batch, Cell, Change, ChunkId, ChunkPlan, Cut, Durable, Event, Key, Offset, Op, Position, Row, RowBlock,
    SourceId, Stamped, TableId, TableSchema, Transaction,
};
use crossfade_log::{Entry, EventLog, Lane, LogReader, memory::Memory};
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

const CHUNKS: u32 = 4;

/// One row change as the model knows it: whole images, and whether the large value was part of it.
#[derive(Debug, Clone)]
pub(crate) struct ModelChange {
    before: Option<(u32, Row)>,
    after: Option<(u32, Row)>,
    large_unchanged: bool,
}

/// All transactions, and the state after each.
#[derive(Debug)]
pub(crate) struct History {
    transactions: Vec<Vec<ModelChange>>,
    states: Vec<BTreeMap<u32, Row>>,
}

fn row(id: u32, small: u32, large: u32) -> Row {
    let (id, small, large) = (id.to_string(), small.to_string(), format!("large-{large}"));
    [Cell::Bytes(id.as_bytes()), Cell::Bytes(small.as_bytes()), Cell::Bytes(large.as_bytes())].into_iter().collect()
}

fn cells(row: &Row) -> Vec<Vec<u8>> {
    row.cells().map(|cell| if let Cell::Bytes(bytes) = cell { bytes.to_vec() } else { Vec::new() }).collect()
}

impl History {
    pub(crate) fn random(random: &mut StdRng, transactions: usize, ids: u32) -> Self {
        let mut history = Self { transactions: Vec::new(), states: vec![BTreeMap::new()] };
        let mut unique = 0;
        for _ in 0..random.random_range(1..transactions) {
            let mut state = history.states.last().unwrap().clone();
            let mut changes = Vec::new();
            for _ in 0..random.random_range(1..6) {
                unique += 1;
                let id = random.random_range(0..ids);
                let other = random.random_range(0..ids);
                let change = match (state.get(&id).cloned(), random.random_range(0..4)) {
                    (None, _) => {
                        ModelChange { before: None, after: Some((id, row(id, unique, unique))), large_unchanged: false }
                    }
                    (Some(old), 0) => ModelChange { before: Some((id, old)), after: None, large_unchanged: false },
                    (Some(old), 1) if !state.contains_key(&other) => {
                        let large = large_of(&old);
                        ModelChange {
                            before: Some((id, old)),
                            after: Some((other, row(other, unique, large))),
                            large_unchanged: random.random(),
                        }
                    }
                    (Some(old), 2) => ModelChange {
                        after: Some((id, row(id, unique, large_of(&old)))),
                        before: Some((id, old)),
                        large_unchanged: true,
                    },
                    (Some(old), _) => ModelChange {
                        before: Some((id, old)),
                        after: Some((id, row(id, unique, unique))),
                        large_unchanged: false,
                    },
                };
                if let Some((id, _)) = &change.before {
                    state.remove(id);
                }
                if let Some((id, row)) = &change.after {
                    state.insert(*id, row.clone());
                }
                changes.push(change);
            }
            history.transactions.push(changes);
            history.states.push(state);
        }
        history
    }

    pub(crate) fn len(&self) -> usize {
        self.transactions.len()
    }

    pub(crate) fn state(&self, after: usize) -> BTreeMap<Key, Row> {
        self.states[after].iter().map(|(id, row)| (crate::key(*id), row.clone())).collect()
    }
}

fn large_of(row: &Row) -> u32 {
    let cells = cells(row);
    String::from_utf8_lossy(&cells[2]).trim_start_matches("large-").parse().unwrap()
}

/// Reads the history: a backfill from a random place on, whose chunks are read at random later moments.
pub(crate) struct ModelSource {
    history: Arc<History>,
    schema: Arc<TableSchema>,
    random: StdRng,
    budget: u32,
    faults: u32,
    queue: VecDeque<Batch>,
    next: usize,
    backfill: Option<VecDeque<ChunkId>>,
    started: bool,
    finished: bool,
}

impl ModelSource {
    pub(crate) fn new(history: Arc<History>, schema: Arc<TableSchema>, seed: u64, budget: u32, faults: u32) -> Self {
        Self {
            history,
            schema,
            random: StdRng::seed_from_u64(seed),
            budget,
            faults,
            queue: VecDeque::new(),
            next: 0,
            backfill: None,
            started: false,
            finished: false,
        }
    }

    /// Whether everything has been handed over.
    pub(crate) fn is_finished(&self) -> bool {
        self.finished
    }

    fn at(&self, transaction: usize, ordinal: u32) -> Position {
        Position { source: SourceId(7), timeline: 1, commit: transaction as u64, ordinal }
    }

    fn stamped(&self, transaction: usize, event: Event) -> Stamped {
        Stamped { position: self.at(transaction, u32::MAX), event }
    }

    /// Some moment between what has been streamed and the end of history.
    fn moment(&mut self) -> usize {
        self.random.random_range(self.next..=self.history.len())
    }

    fn begin_backfill(&mut self) {
        let start = self.random.random_range(0..=self.history.len());
        self.next = start;
        let events = vec![
            self.stamped(start, Event::SchemaSeen(self.schema.clone())),
            self.stamped(
                start,
                Event::BackfillBegan(Backfill { generation: 1, tables: vec![TableId(1)], visible: None }),
            ),
        ];
        self.queue.push_back(Batch { events, upto: Some(self.at(start, u32::MAX)), whole: true });
        let chunks =
            (0..CHUNKS).map(|id| ChunkPlan { id: ChunkId(id), range: format!("{id} of {CHUNKS}").into() }).collect();
        let planned = self.stamped(start, Event::SnapshotBegan { table: TableId(1), chunks });
        self.queue.push_back(Batch { events: vec![planned], upto: None, whole: true });
        self.backfill = Some((0..CHUNKS).map(ChunkId).collect());
    }

    fn read_chunk(&mut self, chunk: ChunkId) {
        let moment = self.moment();
        let rows: Vec<Row> = self.history.states[moment]
            .iter()
            .filter(|(id, _)| *id % CHUNKS == chunk.0)
            .map(|(_, row)| row.clone())
            .collect();
        for some in rows.chunks(2) {
            let block = RowBlock {
                table: TableId(1),
                schema: self.schema.version,
                chunk,
                count: some.len() as u32,
                rows: some.iter().flat_map(|row| row.as_bytes().to_vec()).collect::<Vec<u8>>().into(),
            };
            let events = vec![self.stamped(self.next, Event::Rows(block))];
            self.queue.push_back(Batch { events, upto: None, whole: true });
        }
        let ended = Event::ChunkEnded { table: TableId(1), chunk, rows: rows.len() as u64 };
        let events = vec![self.stamped(self.next, ended)];
        self.queue.push_back(Batch { events, upto: None, whole: true });
    }

    fn end_backfill(&mut self) {
        let events = vec![self.stamped(self.next, Event::SnapshotEnded { table: TableId(1), visible: None })];
        self.queue.push_back(Batch { events, upto: None, whole: true });
        let events = vec![self.stamped(self.next, Event::BackfillEnded { generation: 1 })];
        self.queue.push_back(Batch { events, upto: None, whole: true });
        self.backfill = None;
    }

    /// The change as the wire brings it: unchanged large values left out, resolved while the backfill is unfinished.
    fn wire(&mut self, change: &ModelChange, resolve: bool) -> Change {
        let old = change.before.as_ref().map(|(_, row)| {
            let cells = cells(row);
            [Cell::Bytes(&cells[0]), Cell::Absent, Cell::Absent].into_iter().collect::<Row>()
        });
        let mut op = match (&change.before, &change.after) {
            (None, _) => Op::Insert,
            (_, Some(_)) => Op::Update,
            (_, None) => Op::Delete,
        };
        let mut new = change.after.as_ref().map(|(_, row)| row.clone());
        let mut old = old
            .filter(|_| op == Op::Delete || change.before.as_ref().map(|b| b.0) != change.after.as_ref().map(|a| a.0));
        if change.large_unchanged
            && let Some((id, row)) = &change.after
        {
            let whole = cells(row);
            let mut partial: Row =
                [Cell::Bytes(&whole[0]), Cell::Bytes(&whole[1]), Cell::Unchanged].into_iter().collect();
            if resolve {
                let now = self.moment();
                match self.history.states[now].get(id) {
                    Some(current) => {
                        let current = cells(current);
                        partial = [Cell::Bytes(&whole[0]), Cell::Bytes(&whole[1]), Cell::Bytes(&current[2])]
                            .into_iter()
                            .collect();
                    }
                    None => {
                        // Gone by now: its end is in the stream still to come. The old key goes too.
                        if old.is_none() {
                            old = Some([Cell::Bytes(&whole[0]), Cell::Absent, Cell::Absent].into_iter().collect());
                        }
                        op = Op::Delete;
                    }
                }
            }
            new = (op != Op::Delete).then_some(partial);
        }
        Change { table: TableId(1), schema: self.schema.version, op, old, new }
    }

    fn stream(&mut self) {
        let transaction = self.next;
        self.next += 1;
        let changes = self.history.transactions[transaction].clone();
        let resolve = self.backfill.is_some() || !self.backfill_ended_before(transaction);
        let head = Transaction { xid: transaction as u64 + 1, commit_time_us: transaction as i64 };
        let mut events = vec![Stamped { position: self.at(transaction + 1, 0), event: Event::Began(head) }];
        for (ordinal, change) in changes.iter().enumerate() {
            let change = self.wire(change, resolve);
            events.push(Stamped { position: self.at(transaction + 1, ordinal as u32), event: Event::Changed(change) });
        }
        events.push(self.stamped(transaction + 1, Event::Committed));
        let upto = Some(self.at(transaction + 1, u32::MAX));
        if events.len() > 3 && self.random.random() {
            let rest = events.split_off(self.random.random_range(1..events.len()));
            self.queue.push_back(Batch { events, upto: None, whole: false });
            self.queue.push_back(Batch { events: rest, upto, whole: true });
        } else {
            self.queue.push_back(Batch { events, upto, whole: true });
        }
    }

    /// Chunks are read at moments up to the end of history, so only what comes after it is safe from them.
    fn backfill_ended_before(&self, _transaction: usize) -> bool {
        false
    }

    fn fill(&mut self) {
        if let Some(mut chunks) = self.backfill.take() {
            if chunks.is_empty() {
                return self.end_backfill();
            }
            if self.next >= self.history.len() || self.random.random() {
                let chunk = chunks.pop_front().unwrap();
                self.backfill = Some(chunks);
                return self.read_chunk(chunk);
            }
            self.backfill = Some(chunks);
        }
        if self.next < self.history.len() {
            self.stream();
        } else {
            self.finished = true;
        }
    }
}

impl Source for ModelSource {
    async fn open(&mut self, resume: Resume) -> Result<(), Failure> {
        self.queue.clear();
        self.finished = false;
        self.started = true;
        match resume.position {
            None => self.begin_backfill(),
            Some(position) => {
                self.next = position.commit as usize;
                self.backfill = None;
                if !resume.snapshot.ended {
                    let snapshot = &resume.snapshot.tables[0].1;
                    if snapshot.chunks.is_empty() {
                        let chunks = (0..CHUNKS)
                            .map(|id| ChunkPlan { id: ChunkId(id), range: format!("{id}").into() })
                            .collect();
                        let planned = self.stamped(self.next, Event::SnapshotBegan { table: TableId(1), chunks });
                        self.queue.push_back(Batch { events: vec![planned], upto: None, whole: true });
                    }
                    self.backfill = Some((0..CHUNKS).map(ChunkId).filter(|id| !snapshot.done.contains(id)).collect());
                }
            }
        }
        Ok(())
    }

    async fn next(&mut self) -> Result<Option<Batch>, Failure> {
        if self.budget == 0 {
            return Ok(None);
        }
        if self.faults > 0 && self.random.random_range(0..10) == 0 {
            self.faults -= 1;
            return Err(Failure::reconnect("reading the model", "a scripted fault"));
        }
        while self.queue.is_empty() && !self.finished {
            self.fill();
        }
        self.budget -= 1;
        Ok(self.queue.pop_front())
    }

    async fn confirm(&mut self, _durable: Durable) -> Result<(), Failure> {
        Ok(())
    }

    async fn health(&mut self) -> Result<SourceHealth, Failure> {
        Ok(SourceHealth::default())
    }
}

/// The places after each transaction of the stream.
pub(crate) fn transaction_ends(log: &Memory) -> Vec<Cut> {
    let mut at = log.start();
    let mut places = Vec::new();
    for entry in each(log, &log.start()) {
        at.set_next(entry.partition, Offset(entry.offset.0 + 1));
        if matches!(entry.event, Event::Committed | Event::BackfillBegan(_)) {
            places.push(at.clone());
        }
    }
    places
}

/// The keys that the stream touches from a place on, and those of the backfill's rows when it lies after that place.
pub(crate) fn keys_after(log: &Memory, from: &Cut) -> BTreeSet<Key> {
    let schema = crate::schema();
    let mut keys = BTreeSet::new();
    let all = each(log, &log.start());
    let backfill_at = all.iter().find(|entry| matches!(entry.event, Event::BackfillBegan(_)));
    let whole = backfill_at.is_some_and(|entry| from.next(entry.partition).0 <= entry.offset.0 + 1);
    for Entry { partition, offset, event, .. } in all {
        match event {
            Event::Changed(change) if offset >= from.next(partition) => {
                keys.extend(change.key(&schema));
                keys.extend(change.old.as_ref().and_then(|old| schema.key_of(old)));
            }
            Event::Rows(block) if whole => {
                keys.extend(block.iter().filter_map(|row| schema.key_of(&row.unwrap())));
            }
            _ => {}
        }
    }
    keys
}

/// Whether all that the stretch says of a key is a partial image: then its unchanged value cannot be healed.
pub(crate) fn only_partial_after(log: &Memory, from: &Cut, key: &Key) -> bool {
    let schema = crate::schema();
    each(log, from).into_iter().any(|entry| match entry.event {
        Event::Changed(change) => {
            change.key(&schema).as_ref() == Some(key) && change.new.as_ref().is_some_and(Row::has_unchanged)
        }
        _ => false,
    })
}

fn each(log: &Memory, from: &Cut) -> Vec<Entry> {
    let mut reader = log.read(from, Lane::All).unwrap();
    let mut events = Vec::new();
    while let Some(entries) = reader.try_next().unwrap() {
        events.extend(entries.entries);
    }
    events
}
