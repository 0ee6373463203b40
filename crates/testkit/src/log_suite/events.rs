//! Batches to append.

use bytes::Bytes;
use crossfade_event::{
    Backfill, Batch, Cell, Change, ChunkId, ChunkPlan, Column, ColumnType, Event, Format, Identity, Logical, Mark, Op,
    Position, Row, RowBlock, SchemaVersion, SourceId, Stamped, TableId, TableName, TableSchema, Transaction, Truncate,
    Visibility,
};
use std::sync::Arc;

/// The source of all events of the suite.
pub const SOURCE: SourceId = SourceId(7);

/// Offset of the commit times: transaction `n` was committed at `COMMON + n`.
pub const COMMON: i64 = 1_700_000_000_000_000;

/// A position.
pub fn at(commit: u64, ordinal: u32) -> Position {
    Position { source: SOURCE, timeline: 1, commit, ordinal }
}

/// A schema of two columns, the first of them the key.
pub fn schema(table: u32, version: u32) -> Arc<TableSchema> {
    let column = |name: &str, key| Column {
        name: name.into(),
        type_: ColumnType { name: "text".into(), native_id: 25, logical: Logical::Text, format: Format::PgText },
        key,
        nullable: key.is_none(),
        native_id: 0,
        default: None,
    };
    Arc::new(TableSchema {
        id: TableId(table),
        version: SchemaVersion(version),
        name: TableName::new("public", format!("table {table}")),
        columns: vec![column("id", Some(0)), column("note", None)],
        identity: Identity::Key,
        native_id: 0,
    })
}

/// A row of such a table.
pub fn row(key: &str, note: Cell<'_>) -> Row {
    [Cell::Bytes(key.as_bytes()), note].into_iter().collect()
}

/// A change of table 1.
pub fn change(op: Op, old: Option<Row>, new: Option<Row>) -> Event {
    Event::Changed(Change { table: TableId(1), schema: SchemaVersion(1), op, old, new })
}

/// An insert.
pub fn insert(key: &str, note: &str) -> Event {
    change(Op::Insert, None, Some(row(key, Cell::Bytes(note.as_bytes()))))
}

/// An update that leaves the key.
pub fn update(key: &str, note: &str) -> Event {
    change(Op::Update, None, Some(row(key, Cell::Bytes(note.as_bytes()))))
}

/// A delete.
pub fn delete(key: &str) -> Event {
    change(Op::Delete, Some(row(key, Cell::Absent)), None)
}

/// An update of the key.
pub fn key_change(old: &str, new: &str) -> Event {
    change(Op::Update, Some(row(old, Cell::Absent)), Some(row(new, Cell::Null)))
}

/// A batch of events that share a commit, their ordinals rising.
pub fn batch(commit: u64, events: Vec<Event>, upto: Option<Position>, whole: bool) -> Batch {
    let events = events.into_iter().zip(0..);
    Batch { events: events.map(|(event, n)| Stamped { position: at(commit, n), event }).collect(), upto, whole }
}

/// A whole source transaction.
pub fn transaction(commit: u64, changes: Vec<Event>) -> Batch {
    let mut events = vec![Event::Began(Transaction { xid: commit, commit_time_us: COMMON + commit as i64 })];
    events.extend(changes);
    events.push(Event::Committed);
    let mut batch = batch(commit, events, Some(at(commit, u32::MAX)), true);
    if let Some(last) = batch.events.last_mut() {
        last.position = at(commit, u32::MAX);
    }
    batch
}

/// Part of a source transaction that goes on.
pub fn part(commit: u64, events: Vec<Event>) -> Batch {
    batch(commit, events, None, false)
}

/// A block of rows of table 1.
pub fn rows(chunk: u32, keys: &[&str]) -> Event {
    let rows: Vec<u8> = keys.iter().flat_map(|key| row(key, Cell::Bytes(b"copied")).as_bytes().to_vec()).collect();
    Event::Rows(RowBlock {
        table: TableId(1),
        schema: SchemaVersion(1),
        chunk: ChunkId(chunk),
        count: keys.len() as u32,
        rows: Bytes::from(rows),
    })
}

/// A batch of a backfill.
pub fn snapshot(events: Vec<Event>) -> Batch {
    batch(1, events, None, true)
}

/// Batches that hold every kind of event, and every shape of a change.
pub fn every_kind() -> Vec<Batch> {
    let table = TableId(1);
    let visible = Visibility { xmin: 700, xmax: 705, in_progress: vec![701, 703] };
    let backfill = Backfill { generation: 1, tables: vec![table, TableId(2)], visible: Some(visible.clone()) };
    let chunk = |id, range: &str| ChunkPlan { id: ChunkId(id), range: range.into() };
    let whole_old = row("k", Cell::Bytes(b"before"));
    vec![
        snapshot(vec![Event::SchemaSeen(schema(1, 1)), Event::BackfillBegan(backfill)]),
        snapshot(vec![
            Event::SnapshotBegan { table, chunks: vec![chunk(0, "(0,0)..(9,0)"), chunk(1, "ab\u{e4}…")] },
            rows(0, &["a", "b", "c"]),
            Event::ChunkEnded { table, chunk: ChunkId(0), rows: 3 },
        ]),
        transaction(
            10,
            vec![
                insert("a", "first"),
                change(Op::Update, None, Some(row("a", Cell::Unchanged))),
                change(Op::Update, Some(whole_old.clone()), Some(row("k", Cell::Bytes(b"")))),
                change(Op::Update, None, Some(row("a", Cell::Null))),
                change(Op::Delete, Some(whole_old), None),
                delete("a"),
                Event::Marked(Mark { prefix: "crossfade".into(), content: Bytes::from_static(b"\0barrier\xff") }),
                Event::Truncated(Truncate { tables: vec![table, TableId(2)], restart_identity: true }),
            ],
        ),
        snapshot(vec![
            rows(1, &[]),
            Event::ChunkEnded { table, chunk: ChunkId(1), rows: 0 },
            Event::SnapshotEnded { table, visible: Some(visible) },
            Event::SnapshotEnded { table: TableId(2), visible: None },
            Event::BackfillEnded { generation: 1 },
        ]),
        batch(20, vec![Event::Resolved], Some(at(20, u32::MAX)), true),
    ]
}

/// The events, blocks of rows divided into single rows sorted by their bytes, so that a log may divide blocks.
pub fn flat(events: impl IntoIterator<Item = Event>) -> Vec<Event> {
    let mut flat: Vec<Event> = Vec::new();
    let mut run: Vec<RowBlock> = Vec::new();
    let settle = |run: &mut Vec<RowBlock>, flat: &mut Vec<Event>| {
        run.sort_by(|a, b| (a.chunk, &a.rows).cmp(&(b.chunk, &b.rows)));
        flat.extend(run.drain(..).map(Event::Rows));
    };
    for event in events {
        match event {
            Event::Rows(block) => {
                for row in block.iter() {
                    match row {
                        Ok(row) => run.push(RowBlock { count: 1, rows: row.as_bytes().clone(), ..block.clone() }),
                        Err(error) => panic!("a damaged row came out of the log: {error}"),
                    }
                }
            }
            event => {
                settle(&mut run, &mut flat);
                flat.push(event);
            }
        }
    }
    settle(&mut run, &mut flat);
    flat
}
