//! What the golden files of version 1 say. Never change a line here: the files were written with it.

use bytes::Bytes;
use crossfade_event::{
    Backfill, Batch, Cell, Change, ChunkId, ChunkPlan, Column, ColumnType, Event, Format, Identity, Logical, Mark, Op,
    Position, Row, RowBlock, SchemaVersion, SourceId, Stamped, TableId, TableName, TableSchema, Transaction, Truncate,
    Visibility,
};
use std::sync::Arc;

pub(super) fn at(commit: u64, ordinal: u32) -> Position {
    Position { source: SourceId(0xfeed), timeline: 3, commit, ordinal }
}

pub(super) fn schema(table: u32, version: u32) -> Arc<TableSchema> {
    let column = |name: &str, key, default: Option<&str>| Column {
        name: name.into(),
        type_: ColumnType {
            name: "character varying(20)".into(),
            native_id: 1043,
            logical: Logical::Text,
            format: Format::PgBinary,
        },
        key,
        nullable: key.is_none(),
        native_id: 1,
        default: default.map(Into::into),
    };
    let mut columns = vec![column("id", Some(0), None), column("größe \"x\"", None, None)];
    if version > 1 {
        columns.push(column("added", None, Some("'new'::character varying")));
    }
    Arc::new(TableSchema {
        id: TableId(table),
        version: SchemaVersion(version),
        name: TableName::new("public", format!("table_{table}")),
        columns,
        identity: Identity::Key,
        native_id: 16_400 + table,
    })
}

fn row(cells: &[Cell<'_>]) -> Row {
    cells.iter().copied().collect()
}

fn change(op: Op, old: Option<Row>, new: Option<Row>) -> Event {
    Event::Changed(Change { table: TableId(1), schema: SchemaVersion(1), op, old, new })
}

fn visible() -> Visibility {
    Visibility { xmin: 700, xmax: 1 << 40, in_progress: vec![701, 703, 70_000] }
}

/// One event for every kind of record and every shape of a change, named as its file, sorted.
pub(super) fn kinds() -> Vec<(&'static str, Stamped)> {
    let table = TableId(1);
    let whole = || row(&[Cell::Bytes(b"key"), Cell::Bytes(b"value")]);
    let block = RowBlock {
        table,
        schema: SchemaVersion(1),
        chunk: ChunkId(5),
        count: 2,
        rows: Bytes::from([whole().as_bytes().as_ref(), row(&[Cell::Bytes(b"k2"), Cell::Null]).as_bytes()].concat()),
    };
    let chunks = vec![
        ChunkPlan { id: ChunkId(0), range: "(0,0)..(128,0)".into() },
        ChunkPlan { id: ChunkId(1), range: "größer".into() },
    ];
    let backfill = |visible| Backfill { generation: 2, tables: vec![table, TableId(9)], visible };
    let events = [
        ("01-schema-seen.frame", Event::SchemaSeen(schema(1, 2))),
        ("02-backfill-began-all-visible.frame", Event::BackfillBegan(backfill(None))),
        ("02-backfill-began.frame", Event::BackfillBegan(backfill(Some(visible())))),
        ("03-snapshot-began.frame", Event::SnapshotBegan { table, chunks }),
        ("04-rows.frame", Event::Rows(block)),
        ("05-chunk-ended.frame", Event::ChunkEnded { table, chunk: ChunkId(5), rows: 3_000_000_000 }),
        ("06-snapshot-ended.frame", Event::SnapshotEnded { table, visible: Some(visible()) }),
        ("07-backfill-ended.frame", Event::BackfillEnded { generation: 2 }),
        ("08-began.frame", Event::Began(Transaction { xid: 1 << 33, commit_time_us: -1 })),
        ("09-delete.frame", change(Op::Delete, Some(row(&[Cell::Bytes(b"key"), Cell::Absent])), None)),
        ("09-insert.frame", change(Op::Insert, None, Some(whole()))),
        ("09-update-both.frame", change(Op::Update, Some(whole()), Some(row(&[Cell::Bytes(b"new"), Cell::Null])))),
        ("09-update.frame", change(Op::Update, None, Some(row(&[Cell::Bytes(b"key"), Cell::Unchanged])))),
        ("10-truncated.frame", Event::Truncated(Truncate { tables: vec![table], restart_identity: true })),
        (
            "11-marked.frame",
            Event::Marked(Mark { prefix: "crossfade/barrier".into(), content: Bytes::from_static(b"\0\xff") }),
        ),
        ("12-committed.frame", Event::Committed),
        ("13-resolved.frame", Event::Resolved),
    ];
    events.into_iter().map(|(name, event)| (name, Stamped { position: at(7, 4), event })).collect()
}

fn batch(commit: u64, events: Vec<Event>, upto: bool, whole: bool) -> Batch {
    let events = events.into_iter().zip(0..).map(|(event, n)| Stamped { position: at(commit, n), event }).collect();
    Batch { events, upto: upto.then(|| at(commit, u32::MAX)), whole }
}

fn transaction(commit: u64) -> Vec<Batch> {
    let began = Event::Began(Transaction { xid: commit, commit_time_us: 1_700_000_000_000_000 + commit as i64 });
    let insert = |n: u64| {
        let (key, value) = (format!("{commit}-{n}"), "v".repeat(30));
        change(Op::Insert, None, Some(row(&[Cell::Bytes(key.as_bytes()), Cell::Bytes(value.as_bytes())])))
    };
    let mut events = vec![began];
    events.extend((0..8).map(insert));
    if commit.is_multiple_of(20) {
        // In two parts.
        let rest = events.split_off(4);
        let mut last = batch(commit, rest, true, true);
        last.events.push(Stamped { position: at(commit, u32::MAX), event: Event::Committed });
        return vec![batch(commit, events, false, false), last];
    }
    events.push(Event::Committed);
    vec![batch(commit, events, true, true)]
}

/// What is appended before and after the log is opened a second time.
pub(super) fn batches() -> (Vec<Batch>, Vec<Batch>) {
    let is =
        |event: &Event| event.is_snapshot() || matches!(event, Event::BackfillBegan(_) | Event::BackfillEnded { .. });
    let all = || kinds().into_iter().map(|(_, stamped)| stamped.event);
    let mut early = vec![batch(1, vec![Event::SchemaSeen(schema(1, 1))], true, true)];
    early.push(batch(2, all().filter(is).collect(), false, true));
    let seen = |event: &Event| matches!(event, Event::SchemaSeen(_));
    early.push(batch(3, all().filter(|event| !is(event) && !seen(event)).collect(), true, true));
    early.extend((10..60).step_by(10).flat_map(transaction));
    let seen = vec![Event::SchemaSeen(schema(2, 1)), Event::SchemaSeen(schema(1, 2))];
    let mut late = vec![batch(59, seen, false, true)];
    late.extend((60..90).step_by(10).flat_map(transaction));
    late.push(batch(90, vec![Event::Resolved], true, true));
    (early, late)
}

/// A head whose rest never comes.
pub(super) fn head() -> Vec<Batch> {
    let mut parts = vec![batch(99, vec![Event::SchemaSeen(schema(2, 1))], false, false)];
    for commit in [100, 120, 140] {
        parts.push(Batch { whole: false, upto: None, ..transaction(commit + 10).remove(0) });
    }
    parts
}
