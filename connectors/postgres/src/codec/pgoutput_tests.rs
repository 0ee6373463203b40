use super::*;
use crossfade_event::{Cell, Row};
use proptest::prelude::*;

const KEY: CellRule = CellRule { format: TEXT, in_old_key: true };
const REST: CellRule = CellRule { format: TEXT, in_old_key: false };

fn tuple(cells: &[(u8, &str)]) -> Vec<u8> {
    let mut out = (cells.len() as u16).to_be_bytes().to_vec();
    for (kind, value) in cells {
        out.push(*kind);
        if matches!(*kind, TEXT | BINARY) {
            out.extend((value.len() as u32).to_be_bytes());
            out.extend(value.as_bytes());
        }
    }
    out
}

fn row(tuple: Tuple<'_>, old: Option<(OldKind, Tuple<'_>)>) -> (Row, bool) {
    let mut out = BytesMut::new();
    let unchanged = tuple.write_row(&[KEY, REST, REST], old, &mut out).unwrap();
    (Row::parse(out.freeze()).unwrap(), unchanged)
}

#[test]
fn a_transaction_is_read_message_by_message() {
    let begin = b"B\0\0\0\0\x01\x67\x01\x28\0\x02\xa0\x6f\x3c\x7a\x5e\0\0\0\x02\xde";
    let Message::Begin { final_lsn, xid, .. } = decode(begin, false).unwrap().1 else { panic!("a begin") };
    assert_eq!((final_lsn, xid), (Lsn(0x0167_0128), 0x2de));
    let commit = b"C\0\0\0\0\0\x01\x67\x01\x28\0\0\0\0\x01\x67\x01\x58\0\x02\xa0\x6f\x3c\x7a\x5e\0";
    assert_eq!(decode(commit, false).unwrap().1, Message::Commit { end_lsn: Lsn(0x0167_0158) });
    let relation =
        b"R\0\0\x40\x02public\0t\0d\0\x02\x01id\0\0\0\0\x17\xff\xff\xff\xff\0note\0\0\0\0\x19\xff\xff\xff\xff";
    let Message::Relation(relation) = decode(relation, false).unwrap().1 else { panic!("a relation") };
    assert_eq!((relation.oid, relation.identity, relation.columns.len()), (0x4002, b'd', 2));
    assert!(relation.columns[0].is_key && !relation.columns[1].is_key);
    assert_eq!(relation.columns[1].type_oid, 25);
    let truncate = b"T\0\0\0\x02\x03\0\0\0\x07\0\0\0\x09";
    assert_eq!(decode(truncate, false).unwrap().1, Message::Truncate { relations: vec![7, 9], restart_identity: true });
    let logical = b"M\x01\0\0\0\0\0\0\0\x05crossfade\0\0\0\0\x02hi";
    assert_eq!(
        decode(logical, false).unwrap().1,
        Message::Logical { transactional: true, lsn: Lsn(5), prefix: "crossfade", content: b"hi" }
    );
}

#[test]
fn inside_a_stream_block_a_change_names_its_subtransaction() {
    let change = [&b"I\0\0\0\x09\0\0\0\x07N"[..], &tuple(&[(TEXT, "1")])].concat();
    let (xid, message) = decode(&change, true).unwrap();
    assert_eq!(xid, Some(9));
    assert!(matches!(message, Message::Insert { relation: 7, .. }));
    assert_eq!(decode(b"A\0\0\0\x09\0\0\0\x0a", false).unwrap().1, Message::StreamAbort { xid: 9, subxid: 10 });
    let with_place = b"A\0\0\0\x09\0\0\0\x0a\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x02";
    assert_eq!(decode(with_place, false).unwrap().1, Message::StreamAbort { xid: 9, subxid: 10 });
}

#[test]
fn null_unchanged_and_empty_stay_three_things() {
    let bytes = [&b"I\0\0\0\x07N"[..], &tuple(&[(NULL, ""), (UNCHANGED, ""), (TEXT, "")])].concat();
    let Message::Insert { new, .. } = decode(&bytes, false).unwrap().1 else { panic!("an insert") };
    let (row, unchanged) = row(new, None);
    assert_eq!(row.cells().collect::<Vec<_>>(), [Cell::Null, Cell::Unchanged, Cell::Bytes(b"")]);
    assert!(unchanged);
}

#[test]
fn what_did_not_change_is_taken_from_the_old_image_where_that_has_it() {
    let old = tuple(&[(TEXT, "k"), (TEXT, "big"), (NULL, "")]);
    let new = tuple(&[(UNCHANGED, ""), (UNCHANGED, ""), (TEXT, "x")]);
    let full = [&b"U\0\0\0\x07O"[..], &old, b"N", &new].concat();
    let Message::Update { old, new, .. } = decode(&full, false).unwrap().1 else { panic!("an update") };
    let (whole, unchanged) = row(new, old);
    assert_eq!(whole.cells().collect::<Vec<_>>(), [Cell::Bytes(b"k"), Cell::Bytes(b"big"), Cell::Bytes(b"x")]);
    assert!(!unchanged);
    let by_key = old.map(|(_, tuple)| (OldKind::Key, tuple));
    let (partial, unchanged) = row(new, by_key);
    assert_eq!(partial.cells().collect::<Vec<_>>(), [Cell::Bytes(b"k"), Cell::Unchanged, Cell::Bytes(b"x")]);
    assert!(unchanged);
}

#[test]
fn an_old_key_has_absent_cells_outside_the_key() {
    let bytes = [&b"D\0\0\0\x07K"[..], &tuple(&[(TEXT, "k"), (NULL, ""), (NULL, "")])].concat();
    let Message::Delete { kind, old, .. } = decode(&bytes, false).unwrap().1 else { panic!("a delete") };
    let mut out = BytesMut::new();
    old.write_old(kind, &[KEY, REST, REST], &mut out).unwrap();
    let row = Row::parse(out.freeze()).unwrap();
    assert_eq!(row.cells().collect::<Vec<_>>(), [Cell::Bytes(b"k"), Cell::Absent, Cell::Absent]);
}

#[test]
fn a_value_in_another_format_and_a_row_of_another_width_are_refused() {
    let bytes = [&b"I\0\0\0\x07N"[..], &tuple(&[(BINARY, "1"), (NULL, ""), (NULL, "")])].concat();
    let Message::Insert { new, .. } = decode(&bytes, false).unwrap().1 else { panic!("an insert") };
    let mut out = BytesMut::new();
    assert_eq!(new.write_row(&[KEY, REST, REST], None, &mut out), Err(DecodeError::Format));
    assert_eq!(new.write_row(&[KEY], None, &mut out), Err(DecodeError::Columns(3, 1)));
}

proptest! {
    #[test]
    fn no_bytes_make_the_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), in_stream: bool) {
        let _ = decode(&bytes, in_stream);
    }

    #[test]
    fn no_bytes_behind_a_known_kind_make_it_panic(
        kind in proptest::sample::select(b"BCORYIUDTMSEcA".to_vec()),
        bytes in proptest::collection::vec(prop_oneof![Just(0u8), Just(b'n'), Just(b't'), Just(b'N'), any::<u8>()], 0..120),
        in_stream: bool,
    ) {
        let bytes = [&[kind][..], &bytes].concat();
        if let Ok((_, Message::Insert { new, .. })) = decode(&bytes, in_stream) {
            let _ = new.write_row(&[KEY, REST, REST], None, &mut BytesMut::new());
        }
    }
}
