//! The record format by itself: every event comes back, and no bytes make the decoder panic.

use bytes::Bytes;
use crossfade_event::{
    Backfill, Batch, Cell, Change, ChunkId, ChunkPlan, Event, Mark, Offset, Op, Row, RowBlock, SchemaVersion, Stamped,
    TableId, Transaction, Truncate, Visibility,
};
use crossfade_log::record::{Encoder, FRAME_HEADER, FrameHeader, Records, flags};
use crossfade_testkit::log_suite::{at, insert, schema, transaction};
use proptest::{collection::vec, option, prelude::*};
use rand::{Rng, SeedableRng, rngs::StdRng};

/// Cuts a buffer into frames, checks each, and decodes everything.
fn decode(mut buffer: Bytes) -> Vec<(FrameHeader, Vec<Stamped>)> {
    let mut frames = Vec::new();
    while !buffer.is_empty() {
        let header = FrameHeader::parse(buffer.first_chunk::<FRAME_HEADER>().unwrap()).unwrap();
        let body = buffer.split_to(header.frame_bytes() as usize).slice(FRAME_HEADER..);
        assert!(header.matches(&body));
        let mut events = Vec::new();
        for (record, n) in Records::new(header, body).zip(0..) {
            let record = record.unwrap();
            assert_eq!(record.offset, Offset(header.base.0 + n));
            events.push(Stamped { position: record.position, event: record.event().unwrap() });
        }
        frames.push((header, events));
    }
    frames
}

fn encode(batch: &Batch, base: u64) -> Bytes {
    let (mut encoder, mut out) = (Encoder::default(), Vec::new());
    encoder.learn(&schema(1, 1));
    encoder.learn(&schema(2, 1));
    encoder.encode(batch, &mut out, Offset(base), Offset(base), |_, _, _| Ok(())).unwrap();
    Bytes::from(out)
}

fn row() -> impl Strategy<Value = Row> {
    let cell = prop_oneof![
        Just(None).prop_map(|_: Option<()>| Err(Cell::Null)),
        Just(Err(Cell::Unchanged)),
        Just(Err(Cell::Absent)),
        vec(any::<u8>(), 0..40).prop_map(Ok),
    ];
    vec(cell, 0..6).prop_map(|cells| {
        let cells = cells.iter().map(|cell| match cell {
            Ok(bytes) => Cell::Bytes(bytes),
            Err(cell) => *cell,
        });
        cells.collect()
    })
}

fn visibility() -> impl Strategy<Value = Option<Visibility>> {
    let fields = (any::<u64>(), any::<u64>(), vec(any::<u64>(), 0..5));
    option::of(fields.prop_map(|(xmin, xmax, in_progress)| Visibility { xmin, xmax, in_progress }))
}

fn tables() -> impl Strategy<Value = Vec<TableId>> {
    vec(any::<u32>().prop_map(TableId), 0..5)
}

fn change() -> impl Strategy<Value = Event> {
    let op = prop_oneof![Just(Op::Insert), Just(Op::Update), Just(Op::Delete)];
    let images = prop_oneof![
        row().prop_map(|row| (Some(row), None)),
        row().prop_map(|row| (None, Some(row))),
        (row(), row()).prop_map(|(old, new)| (Some(old), Some(new))),
    ];
    (1u32..3, op, images).prop_map(|(table, op, (old, new))| {
        Event::Changed(Change { table: TableId(table), schema: SchemaVersion(1), op, old, new })
    })
}

fn snapshot_event() -> impl Strategy<Value = Event> {
    let chunk = (any::<u32>(), ".{0,20}").prop_map(|(id, range)| ChunkPlan { id: ChunkId(id), range: range.into() });
    prop_oneof![
        (any::<u32>(), vec(chunk, 0..4))
            .prop_map(|(table, chunks)| Event::SnapshotBegan { table: TableId(table), chunks }),
        (any::<u32>(), vec(row(), 0..5)).prop_map(|(chunk, rows)| {
            let count = rows.len() as u32;
            let rows: Vec<u8> = rows.iter().flat_map(|row| row.as_bytes().to_vec()).collect();
            let (table, schema, chunk) = (TableId(1), SchemaVersion(1), ChunkId(chunk));
            Event::Rows(RowBlock { table, schema, chunk, count, rows: rows.into() })
        }),
        (any::<u32>(), any::<u32>(), any::<u64>()).prop_map(|(table, chunk, rows)| Event::ChunkEnded {
            table: TableId(table),
            chunk: ChunkId(chunk),
            rows
        }),
        (any::<u32>(), visibility())
            .prop_map(|(table, visible)| Event::SnapshotEnded { table: TableId(table), visible }),
        any::<u32>().prop_map(|generation| Event::BackfillEnded { generation }),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    let mark = (".{0,9}", vec(any::<u8>(), 0..30));
    prop_oneof![
        4 => change(),
        2 => snapshot_event(),
        1 => (1u32..3).prop_map(|table| Event::SchemaSeen(schema(table, 1))),
        1 => (any::<u32>(), tables(), visibility()).prop_map(|(generation, tables, visible)| {
            Event::BackfillBegan(Backfill { generation, tables, visible })
        }),
        1 => (any::<u64>(), any::<i64>())
            .prop_map(|(xid, commit_time_us)| Event::Began(Transaction { xid, commit_time_us })),
        1 => (tables(), any::<bool>())
            .prop_map(|(tables, restart_identity)| Event::Truncated(Truncate { tables, restart_identity })),
        1 => mark.prop_map(|(prefix, content)| {
            Event::Marked(Mark { prefix: prefix.into(), content: content.into() })
        }),
        1 => Just(Event::Committed),
        1 => Just(Event::Resolved),
    ]
}

fn stamped() -> impl Strategy<Value = Stamped> {
    (any::<u64>(), any::<u32>(), 0u32..2, event()).prop_map(|(commit, ordinal, timeline, event)| {
        let position = crossfade_event::Position { timeline, ..at(commit, ordinal) };
        Stamped { position, event }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_batch_comes_back_as_it_was(
        events in vec(stamped(), 0..40),
        upto in option::of((any::<u64>(), any::<u32>(), 0u32..2)),
        whole: bool,
        base in 0u64..u64::MAX / 2,
    ) {
        let upto = upto.map(|(commit, ordinal, timeline)| crossfade_event::Position { timeline, ..at(commit, ordinal) });
        let batch = Batch { events, upto, whole };
        let frames = decode(encode(&batch, base));
        let decoded: Vec<Stamped> = frames.iter().flat_map(|(_, events)| events.clone()).collect();
        prop_assert_eq!(&decoded, &batch.events);
        let (last, before) = frames.split_last().unwrap();
        prop_assert_eq!((last.0.upto(), last.0.has(flags::WHOLE)), (upto, whole));
        prop_assert!(before.iter().all(|(header, _)| !header.has(flags::WHOLE) && header.upto().is_none()));
        prop_assert_eq!(last.0.next(), Offset(base + batch.events.len() as u64));
    }

    #[test]
    fn the_hash_in_the_header_is_that_of_the_key(change in change(), key_at in 0u16..4) {
        let Event::Changed(change) = change else { unreachable!() };
        let mut schema = (*schema(change.table.0, 1)).clone();
        let (first, second) = (schema.columns[0].clone(), schema.columns[1].clone());
        schema.columns = vec![first.clone(), second.clone(), first, second];
        for (index, column) in schema.columns.iter_mut().enumerate() {
            column.key = [Some(key_at % 2), None, (key_at > 1).then_some(1 - key_at % 2), None][index];
        }
        schema.identity = if key_at == 3 { crossfade_event::Identity::FullRow } else { crossfade_event::Identity::Key };
        let (mut encoder, mut out) = (Encoder::default(), Vec::new());
        encoder.learn(&schema);
        let event = Event::Changed(change.clone());
        let batch = Batch { events: vec![Stamped { position: at(1, 0), event }], upto: None, whole: true };
        encoder.encode(&batch, &mut out, Offset(0), Offset(0), |_, _, _| Ok(())).unwrap();
        let header = FrameHeader::parse(out.first_chunk().unwrap()).unwrap();
        let record = Records::new(header, Bytes::from(out).slice(FRAME_HEADER..)).next().unwrap().unwrap();
        let row = change.new.as_ref().or(change.old.as_ref()).unwrap();
        // A row of another width than its schema's has no key of all cells to compare with.
        prop_assume!(schema.identity == crossfade_event::Identity::Key || row.len() == 4);
        prop_assert_eq!(record.header.key_hash, change.key(&schema).map_or(0, |key| key.hash64()));
    }

    #[test]
    fn a_large_batch_is_divided_and_only_its_end_is_whole(sizes in vec(0usize..200_000, 1..12)) {
        let inserts = sizes.iter().map(|size| insert("k", &"x".repeat(*size))).collect();
        let batch = transaction(3, inserts);
        let frames = decode(encode(&batch, 0));
        let decoded: Vec<Stamped> = frames.iter().flat_map(|(_, events)| events.clone()).collect();
        prop_assert_eq!(&decoded, &batch.events);
        let whole: Vec<bool> = frames.iter().map(|(header, _)| header.has(flags::WHOLE)).collect();
        prop_assert!(whole.iter().rev().skip(1).all(|whole| !whole) && whole.last() == Some(&true), "{:?}", whole);
        let total: usize = sizes.iter().map(|size| size + 64).sum();
        prop_assert!(frames.len() <= 2 + total / (256 * 1024) && (total < 601_000 || frames.len() > 1));
    }
}

/// Random bytes, and valid frames with random damage whose checksums were made to fit again.
#[test]
fn no_bytes_make_the_decoder_panic() {
    let seed: u64 = std::env::var("SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(rand::random);
    eprintln!("SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let (mut decoded, mut refused) = (0u32, 0u32);
    let valid: Vec<Bytes> = crossfade_testkit::log_suite::every_kind().iter().map(|batch| encode(batch, 0)).collect();
    for _ in 0..40_000 {
        let mut bytes = valid[random.random_range(0..valid.len())].to_vec();
        if random.random_bool(0.2) {
            bytes = vec![0; random.random_range(0..400)];
            random.fill(&mut bytes[..]);
        } else {
            for _ in 0..random.random_range(1..6) {
                let at = random.random_range(FRAME_HEADER..bytes.len());
                bytes[at] =
                    if random.random_bool(0.5) { random.random() } else { [0, 1, 255, 127][random.random_range(0..4)] };
            }
        }
        let Some(head) = bytes.first_chunk::<FRAME_HEADER>() else { continue };
        let Ok(header) = FrameHeader::parse(head) else {
            refused += 1;
            continue;
        };
        let body = Bytes::from(bytes).slice(FRAME_HEADER..);
        let fitting = FrameHeader { body_bytes: body.len() as u32, body_crc: crc32c::crc32c(&body), ..header };
        assert_eq!(FrameHeader::parse(&fitting.to_bytes()), Ok(fitting));
        for record in Records::new(fitting, body) {
            match record.and_then(|record| record.event()) {
                Ok(_) => decoded += 1,
                Err(_) => refused += 1,
            }
        }
    }
    assert!(decoded > 1000 && refused > 1000, "both came up: {decoded}, {refused}");
}
