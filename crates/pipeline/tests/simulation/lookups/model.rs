//! The source, the log and what lookups must find, as the test knows them.

use super::*;

pub(super) type Texts = Vec<Option<String>>;

/// The source as it is, what the target must hold, and the log that says it.
pub(super) struct Model {
    pub(super) random: StdRng,
    pub(super) log: Memory,
    pub(super) zones_schema: Arc<TableSchema>,
    /// By id: code and name.
    pub(super) zones: BTreeMap<String, (String, String)>,
    /// By id: zone and note.
    pub(super) items: BTreeMap<String, (String, String)>,
    /// By id: zone, note, and the name that was looked up when the row last changed.
    pub(super) wanted: BTreeMap<String, (String, String, Option<String>)>,
    /// Items that were touched since each transaction's end.
    pub(super) touched: Vec<(Cut, BTreeSet<String>)>,
    pub(super) by_id: bool,
    pub(super) misses: u64,
    pub(super) commit: u64,
    pub(super) generation: u32,
}

impl Model {
    pub(super) fn new(seed: u64, by_id: bool) -> Self {
        Self {
            random: StdRng::seed_from_u64(seed),
            log: crate::log(seed / 2),
            zones_schema: zones(),
            zones: BTreeMap::new(),
            items: BTreeMap::new(),
            wanted: BTreeMap::new(),
            touched: Vec::new(),
            by_id,
            misses: 0,
            commit: 1,
            generation: 0,
        }
    }

    pub(super) fn position(&self, ordinal: u32) -> Position {
        Position { source: SourceId(7), timeline: 1, commit: self.commit, ordinal }
    }

    pub(super) async fn append(&mut self, events: Vec<Event>, of_backfill: bool) {
        let at = self.position(u32::MAX);
        let events = events.into_iter().map(|event| Stamped { position: at, event }).collect();
        self.log.append(Batch { events, upto: (!of_backfill).then_some(at), whole: true }).await.unwrap();
    }

    pub(super) fn found(&mut self, zone: &str) -> Option<String> {
        let found = if self.by_id {
            self.zones.get(zone).map(|(_, name)| name.clone())
        } else {
            self.zones.values().find(|(code, _)| code == zone).map(|(_, name)| name.clone())
        };
        self.misses += u64::from(found.is_none());
        found
    }

    /// Copies these tables as they are now.
    pub(super) async fn backfill(&mut self, tables: &[TableId]) {
        self.generation += 1;
        let backfill = Backfill { generation: self.generation, tables: tables.to_vec(), visible: None };
        // Now and then behind a transaction that comes with it in one batch.
        let mut head = if self.generation > 1 && self.random.random() { self.changes_of_one() } else { Vec::new() };
        if self.generation == 1 {
            head.extend([Event::SchemaSeen(items()), Event::SchemaSeen(self.zones_schema.clone())]);
        }
        head.push(Event::BackfillBegan(backfill));
        self.append(head, false).await;
        for table in tables {
            let rows: Vec<Row> = if *table == ITEMS {
                self.items.iter().map(|(id, (zone, note))| row(&[Some(id), Some(zone), Some(note)])).collect()
            } else {
                self.zones.iter().map(|(id, (code, name))| row(&[Some(id), Some(code), Some(name)])).collect()
            };
            let chunks = vec![ChunkPlan { id: ChunkId(0), range: "all".into() }];
            let block = RowBlock {
                table: *table,
                schema: SchemaVersion(1),
                chunk: ChunkId(0),
                count: rows.len() as u32,
                rows: rows.iter().flat_map(|row| row.as_bytes().to_vec()).collect::<Vec<u8>>().into(),
            };
            let mut events = vec![Event::SnapshotBegan { table: *table, chunks }];
            if !rows.is_empty() {
                events.push(Event::Rows(block));
            }
            events.push(Event::ChunkEnded { table: *table, chunk: ChunkId(0), rows: rows.len() as u64 });
            events.push(Event::SnapshotEnded { table: *table, visible: None });
            self.append(events, true).await;
        }
        self.append(vec![Event::BackfillEnded { generation: self.generation }], true).await;
        if tables.contains(&ITEMS) {
            self.touch(self.wanted.keys().cloned().collect());
            self.wanted.clear();
            for (id, (zone, note)) in self.items.clone() {
                let name = self.found(&zone);
                self.wanted.insert(id, (zone, note, name));
            }
            self.touch(self.wanted.keys().cloned().collect());
        }
    }

    pub(super) fn touch(&mut self, ids: Vec<String>) {
        for (_, touched) in &mut self.touched {
            touched.extend(ids.iter().cloned());
        }
    }

    /// One transaction of the source.
    pub(super) async fn transaction(&mut self) {
        let events = self.changes_of_one();
        self.append(events, false).await;
        self.touched.push((self.log.tail().cut, BTreeSet::new()));
    }

    fn changes_of_one(&mut self) -> Vec<Event> {
        self.commit += 1;
        let mut events = vec![Event::Began(Transaction { xid: self.commit, commit_time_us: self.commit as i64 })];
        for _ in 0..self.random.random_range(1..5) {
            match self.random.random_range(0..30) {
                0 => {
                    self.zones.clear();
                    events.push(Event::Truncated(Truncate { tables: vec![ZONES], restart_identity: false }));
                }
                1..12 => self.zone_changes(&mut events),
                _ => self.item_changes(&mut events),
            }
        }
        events.push(Event::Committed);
        events
    }

    pub(super) fn change(table: TableId, op: Op, old: Option<Row>, new: Option<Row>) -> Event {
        Event::Changed(Change { table, schema: SchemaVersion(1), op, old, new })
    }

    pub(super) fn item_changes(&mut self, events: &mut Vec<Event>) {
        let id = self.random.random_range(0..8u32).to_string();
        let old = row(&[Some(&id)]).cells().chain([Cell::Absent, Cell::Absent]).collect::<Row>();
        self.touch(vec![id.clone()]);
        if self.items.contains_key(&id) && self.random.random_range(0..4) == 0 {
            self.items.remove(&id);
            self.wanted.remove(&id);
            events.push(Self::change(ITEMS, Op::Delete, Some(old), None));
            return;
        }
        let (zone, note) = (self.code(), self.random.random_range(0..1_000u32).to_string());
        let new = row(&[Some(&id), Some(&zone), Some(&note)]);
        let name = self.found(&zone);
        let op = if self.items.contains_key(&id) { Op::Update } else { Op::Insert };
        self.items.insert(id.clone(), (zone.clone(), note.clone()));
        self.wanted.insert(id, (zone, note, name));
        events.push(Self::change(ITEMS, op, None, Some(new)));
    }

    pub(super) fn code(&mut self) -> String {
        let kind = if self.by_id { "z" } else { "c" };
        format!("{kind}{}", self.random.random_range(0..6u32))
    }

    pub(super) fn zone_changes(&mut self, events: &mut Vec<Event>) {
        let id = format!("z{}", self.random.random_range(0..6u32));
        let name = format!("name {}", self.random.random_range(0..1_000u32));
        let free: Vec<String> = (0..6u32)
            .map(|code| format!("c{code}"))
            .filter(|code| self.zones.values().all(|(taken, _)| taken != code))
            .collect();
        let Some((code, before)) = self.zones.get(&id).cloned() else {
            let Some(code) = free.first().cloned() else { return };
            events.push(Self::change(ZONES, Op::Insert, None, Some(row(&[Some(&id), Some(&code), Some(&name)]))));
            self.zones.insert(id, (code, name));
            return;
        };
        let whole = self.random.random::<bool>().then(|| row(&[Some(&id), Some(&code), Some(&before)]));
        let key: Row = row(&[Some(&id)]).cells().chain([Cell::Absent, Cell::Absent]).collect();
        match self.random.random_range(0..5) {
            // Its end; the old image is the key, or all of it.
            0 => {
                self.zones.remove(&id);
                events.push(Self::change(ZONES, Op::Delete, Some(whole.unwrap_or(key)), None));
            }
            // Another name.
            1 => {
                let new = row(&[Some(&id), Some(&code), Some(&name)]);
                self.zones.insert(id, (code, name));
                events.push(Self::change(ZONES, Op::Update, whole, Some(new)));
            }
            // Another code, the name not sent.
            2 if !free.is_empty() => {
                let code = free[self.random.random_range(0..free.len())].clone();
                let new = row(&[Some(&id), Some(&code)]).cells().chain([Cell::Unchanged]).collect();
                self.zones.insert(id, (code, before));
                events.push(Self::change(ZONES, Op::Update, whole, Some(new)));
            }
            // Another id, the name not sent.
            3 => {
                let other = format!("z{}", self.random.random_range(0..6u32));
                if self.zones.contains_key(&other) {
                    return;
                }
                let new = row(&[Some(&other), Some(&code)]).cells().chain([Cell::Unchanged]).collect();
                self.zones.remove(&id);
                self.zones.insert(other, (code, before));
                events.push(Self::change(ZONES, Op::Update, Some(whole.unwrap_or(key)), Some(new)));
            }
            // Two zones swap their codes.
            _ => {
                let Some((other, (code_of_other, name_of_other))) =
                    self.zones.iter().find(|(other, _)| **other != id).map(|(id, zone)| (id.clone(), zone.clone()))
                else {
                    return;
                };
                for (id, code) in [(&id, &code_of_other), (&other, &code)] {
                    let new = row(&[Some(id), Some(code)]).cells().chain([Cell::Unchanged]).collect();
                    events.push(Self::change(ZONES, Op::Update, None, Some(new)));
                }
                self.zones.insert(id, (code_of_other, before));
                self.zones.insert(other, (code, name_of_other));
            }
        }
    }

    pub(super) fn wanted_texts(&self) -> BTreeMap<String, Texts> {
        let whole = |(id, (zone, note, name)): (&String, &(String, String, Option<String>))| {
            (id.clone(), vec![Some(id.clone()), Some(zone.clone()), Some(note.clone()), name.clone()])
        };
        self.wanted.iter().map(whole).collect()
    }
}
