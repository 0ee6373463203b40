//! The bytes of every kind of value, as they were first written; and nothing else is taken for one.
//!
//! To add a kind: run with `CROSSFADE_WRITE_GOLDEN=1` once. A file that is there is never written again.

use crossfade_event::{Backfill, ChunkId, ChunkPlan, Cut, Offset, Position, SourceId, TableId, TableName, Visibility};
use crossfade_state::{
    Checkpoint, CheckpointKey, ChunkDone, ChunkKey, Cursor, CursorKey, Digest, DigestKey, Epoch, EpochKey, FoldMarks,
    FoldMarksKey, IdentityKey, IdentityPin, IngestFold, IngestFoldKey, JournalFold, JournalFoldKey, Key,
    MarkedBackfill, PART_BYTES_MAX, QuarantineKey, QuarantineRecord, Record, Setting, SettingKey, TableFold,
    TableFoldKey, decode_parts, encode_parts,
};
use proptest::prelude::*;
use std::{fmt::Write, fs, path::Path};

fn position() -> Position {
    Position { source: SourceId(0x0102_0304_0506_0708), timeline: 3, commit: 0x16B_3748, ordinal: u32::MAX }
}

fn cut() -> Cut {
    Cut(vec![Offset(5), Offset(1 << 40)])
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

/// The key, then each part, in hexadecimal, one a line.
fn same_as_golden<K: Key>(key: &K, value: &K::Value)
where
    K::Value: PartialEq,
{
    let key_bytes = key.to_bytes().unwrap();
    let parts = encode_parts(&key_bytes, value).unwrap();
    let lines: Vec<String> = std::iter::once(&key_bytes).chain(&parts).map(|bytes| hex(bytes)).collect();
    let now = lines.join("\n") + "\n";
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(format!(
        "{}-v{}.hex",
        K::NAME,
        K::Value::VERSION
    ));
    if !file.exists() && std::env::var_os("CROSSFADE_WRITE_GOLDEN").is_some() {
        fs::write(&file, &now).unwrap();
    }
    let golden = fs::read_to_string(&file).unwrap_or_else(|_| panic!("{} has no golden file", K::NAME));
    assert_eq!(now, golden, "the bytes of {} have changed: give it a new version", K::NAME);
    assert_eq!(decode_parts::<K::Value>(&key_bytes, &parts).as_ref(), Some(value));
    assert!(K::from_bytes(&key_bytes).is_some());
}

#[test]
fn every_kind_is_written_as_it_was_first_written() {
    let table = TableName::new("public", "straße \"x\"");
    same_as_golden(&CursorKey::new("sink"), &Cursor { cut: cut(), position: Some(position()) });
    let visible = Visibility { xmin: 10, xmax: 20, in_progress: vec![12, 15] };
    let fold = IngestFold { upto: cut(), generation: 2, ended: true, visible: Some(visible), tables: vec![TableId(4)] };
    same_as_golden(&IngestFoldKey, &fold);
    let backfill = Backfill { generation: 2, tables: vec![TableId(4)], visible: None };
    let marks = FoldMarks {
        log: 0x0123_4567_89ab_cdef,
        backfills: vec![MarkedBackfill { backfill, position: position(), from: cut() }],
        visible: vec![(TableId(4), Visibility { xmin: 3, xmax: 9, in_progress: vec![5] })],
    };
    same_as_golden(&FoldMarksKey, &marks);
    let chunks = vec![ChunkPlan { id: ChunkId(1), range: "(0,0)..(99,0)".into() }];
    same_as_golden(&TableFoldKey { generation: 2, table: TableId(4) }, &TableFold { chunks, ended: false });
    let chunk = ChunkKey { generation: 2, table: TableId(4), chunk: ChunkId(1) };
    same_as_golden(&chunk, &ChunkDone { rows: 250_000 });
    let checkpoint = Checkpoint { cut: cut(), position: None, at_us: 1_700_000_000_000_000 };
    same_as_golden(&CheckpointKey::new("before-import"), &checkpoint);
    same_as_golden(&JournalFoldKey, &JournalFold { upto: cut(), fold: b"{}".to_vec() });
    let record = QuarantineRecord {
        offset: 99,
        ordinal: 1,
        table: table.clone(),
        key_hash: "00ff00ff00ff00ff".into(),
        kind: "held".into(),
        reason: "an earlier change of its key is in quarantine".into(),
        at: "2026-01-02T03:04:05Z".into(),
    };
    same_as_golden(&QuarantineKey(-7), &record);
    let digest = Digest { at: cut(), rows: 3, sum: u128::MAX - 1 };
    same_as_golden(&DigestKey { side: "source".into(), table, bucket: 17 }, &digest);
    let pin = IdentityPin { identity: "system 7123 database shop".into(), at_us: 5 };
    same_as_golden(&IdentityKey::new("source"), &pin);
    same_as_golden(&SettingKey::new("spec-hash"), &Setting("y".repeat(PART_BYTES_MAX)));
    same_as_golden(&EpochKey, &Epoch(8));
}

proptest! {
    #[test]
    fn random_bytes_are_never_a_value(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(decode_parts::<Epoch>(b"key", std::slice::from_ref(&bytes)).is_none());
        let framed = [b"CFst\x01\x0b\x00\x01\x00\x00\x00\x01".as_slice(), &bytes].concat();
        prop_assert!(decode_parts::<Epoch>(b"key", &[framed]).is_none());
    }

    #[test]
    fn one_flipped_bit_is_never_a_value(text in ".{0,40}", bit in any::<prop::sample::Index>()) {
        let mut parts = encode_parts(b"key", &Setting(text)).unwrap();
        let bit = bit.index(parts[0].len() * 8);
        parts[0][bit / 8] ^= 1 << (bit % 8);
        prop_assert!(decode_parts::<Setting>(b"key", &parts).is_none());
    }

    #[test]
    fn a_value_is_only_its_own_keys_value_and_needs_all_its_parts(size in 0usize..20_000) {
        let value = Setting("z".repeat(size));
        let parts = encode_parts(b"key", &value).unwrap();
        prop_assert!(parts.iter().all(|part| part.len() <= 4096));
        prop_assert!(decode_parts::<Setting>(b"other", &parts).is_none());
        prop_assert!(decode_parts::<Setting>(b"key", &parts[1..]).is_none());
        prop_assert!(decode_parts::<Epoch>(b"key", &parts).is_none());
        prop_assert_eq!(decode_parts::<Setting>(b"key", &parts), Some(value));
    }

    #[test]
    fn keys_are_read_as_they_were_written_and_keep_their_order(a in ".{0,20}", b in ".{0,20}", n in any::<i64>(), m in any::<i64>()) {
        let (left, right) = (SettingKey::new(a), SettingKey::new(b));
        let (left_bytes, right_bytes) = (left.to_bytes().unwrap(), right.to_bytes().unwrap());
        prop_assert_eq!(left.cmp(&right), left_bytes.cmp(&right_bytes));
        prop_assert_eq!(SettingKey::from_bytes(&left_bytes), Some(left));
        prop_assert_eq!(n.cmp(&m), QuarantineKey(n).to_bytes().unwrap().cmp(&QuarantineKey(m).to_bytes().unwrap()));
        prop_assert_eq!(QuarantineKey::from_bytes(&QuarantineKey(n).to_bytes().unwrap()), Some(QuarantineKey(n)));
    }
}
