//! Round trips over all kinds, edge values, and what PostgreSQL itself printed (`tests/pg-values.tsv`).

use super::*;
use crate::{Interval, Numeric, TimeTz};
use proptest::prelude::*;
use std::sync::Arc;

const ALL: [Logical; 18] = [
    Logical::Bool,
    Logical::Int16,
    Logical::Int32,
    Logical::Int64,
    Logical::Float32,
    Logical::Float64,
    Logical::Numeric,
    Logical::Text,
    Logical::Bytes,
    Logical::Date,
    Logical::Time,
    Logical::TimeTz,
    Logical::Timestamp,
    Logical::TimestampTz,
    Logical::Interval,
    Logical::Uuid,
    Logical::Json,
    Logical::Jsonb,
];

fn type_of(logical: Logical, format: Format) -> ColumnType {
    ColumnType { name: Arc::from(format!("{logical:?}")), native_id: 0, logical, format }
}

fn bytes_of(logical: Logical, format: Format, value: &Value) -> Vec<u8> {
    let mut out = BytesMut::new();
    encode(&type_of(logical, format), value, &mut out).unwrap();
    out.to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

/// NaN differs from itself, so values are compared by their binary bytes.
fn assert_all_forms_agree(logical: Logical, value: &Value) {
    let binary = bytes_of(logical, Format::PgBinary, value);
    let text = bytes_of(logical, Format::PgText, value);
    let back = decode(&type_of(logical, Format::PgBinary), &binary).unwrap();
    assert_eq!(bytes_of(logical, Format::PgBinary, &back), binary);
    let back =
        decode(&type_of(logical, Format::PgText), &text).unwrap_or_else(|_| panic!("{logical:?} {}", to_text(value)));
    assert_eq!(bytes_of(logical, Format::PgText, &back), text);
    if !matches!(value, Value::Float32(f) if f.is_nan()) && !matches!(value, Value::Float64(f) if f.is_nan()) {
        assert_eq!(bytes_of(logical, Format::PgBinary, &back), binary, "{}", to_text(value));
    }
}

#[test]
fn every_value_is_printed_and_packed_as_postgres_itself_does() {
    let mut seen = 0;
    for line in include_str!("../../tests/pg-values.tsv").lines() {
        let [kind, binary, text] = line.splitn(3, '\t').collect::<Vec<_>>()[..] else { panic!("{line}") };
        let logical = *ALL.iter().find(|logical| format!("{logical:?}").to_lowercase() == kind).unwrap();
        let value = decode(&type_of(logical, Format::PgBinary), &unhex(binary)).unwrap();
        assert_eq!(to_text(&value), text, "{kind} {binary}");
        assert_eq!(hex(&bytes_of(logical, Format::PgBinary, &value)), binary, "{kind} {text}");
        let parsed = from_text(logical, text).unwrap_or_else(|| panic!("{kind} {text}"));
        assert_eq!(hex(&bytes_of(logical, Format::PgBinary, &parsed)), binary, "{kind} {text}");
        seen += 1;
    }
    assert!(seen > 1000, "{seen}");
}

#[test]
fn the_largest_numerics_survive() {
    let whole = format!("9{}", "7".repeat(131_071));
    let long = format!("-{whole}.{}", "3".repeat(16_383));
    let small = format!("0.{}1", "0".repeat(16_382));
    for text in [whole.clone(), long, small, "0".to_owned(), "0.00".to_owned(), "10000".to_owned()] {
        let value = Value::Numeric(Numeric::parse(&text).unwrap());
        assert_eq!(to_text(&value), text);
        assert_all_forms_agree(Logical::Numeric, &value);
    }
    assert_eq!(Numeric::parse(&format!("{whole}0")), None);
}

#[test]
fn numerics_are_read_as_postgres_reads_them() {
    for (text, expected) in [
        (" 1.50 ", "1.50"),
        ("+.5", "0.5"),
        ("5.", "5"),
        ("1e3", "1000"),
        ("1.5E-3", "0.0015"),
        ("-0.00", "0.00"),
        ("007", "7"),
        ("12e-1", "1.2"),
    ] {
        assert_eq!(Numeric::parse(text), Some(Numeric::Finite(expected.to_owned())), "{text}");
    }
    assert_eq!(Numeric::parse("-inf"), Some(Numeric::NegInfinity));
    for text in ["", ".", "1 2", "0x10", "1e", "--1", "-nan", "٣"] {
        assert_eq!(Numeric::parse(text), None, "{text}");
    }
}

#[test]
fn an_opaque_binary_value_is_never_guessed() {
    let error = decode(&type_of(Logical::Opaque, Format::PgBinary), b"x").unwrap_err();
    assert_eq!(error, CodecError::NeedsText { type_: "Opaque".to_owned() });
    let text = decode(&type_of(Logical::Opaque, Format::PgText), b"(1,2)").unwrap();
    assert_eq!(text, Value::Other("(1,2)".to_owned()));
    assert_eq!(bytes_of(Logical::Opaque, Format::PgText, &text), b"(1,2)");
}

#[test]
fn what_does_not_fit_is_refused_and_leaves_nothing_behind() {
    let mut out = BytesMut::from(&b"before"[..]);
    let error = encode(&type_of(Logical::Int16, Format::PgBinary), &Value::Int(40_000), &mut out).unwrap_err();
    assert_eq!(error, CodecError::OutOfRange { found: "int", type_: "Int16".to_owned() });
    let error = encode(&type_of(Logical::Text, Format::PgText), &Value::Text("a\0".to_owned()), &mut out).unwrap_err();
    assert!(matches!(error, CodecError::Nul { .. }));
    let error = encode(&type_of(Logical::Date, Format::PgBinary), &Value::Int(1), &mut out).unwrap_err();
    assert!(matches!(error, CodecError::Mismatch { .. }));
    let error = encode(&type_of(Logical::Dynamic, Format::Tagged), &Value::Float64(f64::NAN), &mut out).unwrap_err();
    assert!(matches!(error, CodecError::OutOfRange { .. }));
    assert_eq!(&out[..], b"before");
}

#[test]
fn text_that_is_not_utf8_survives_in_sqlite() {
    let tagged = type_of(Logical::Dynamic, Format::Tagged);
    let raw = [5u8, 0xff, b'a'];
    let value = decode(&tagged, &raw).unwrap();
    assert_eq!(value, Value::RawText(vec![0xff, b'a']));
    assert_eq!(bytes_of(Logical::Dynamic, Format::Tagged, &value), raw);
    assert!(decode(&tagged, &[3, 0xff]).is_err());
}

fn numeric() -> impl Strategy<Value = Value> {
    (any::<bool>(), "[0-9]{1,40}", 0i64..30)
        .prop_map(|(negative, digits, scale)| Value::Numeric(Numeric::from_digits(negative, &digits, scale).unwrap()))
}

fn any_value() -> impl Strategy<Value = (Logical, Value)> {
    prop_oneof![
        any::<bool>().prop_map(|v| (Logical::Bool, Value::Bool(v))),
        any::<i16>().prop_map(|v| (Logical::Int16, Value::Int(v.into()))),
        any::<i32>().prop_map(|v| (Logical::Int32, Value::Int(v.into()))),
        any::<i64>().prop_map(|v| (Logical::Int64, Value::Int(v))),
        any::<u32>().prop_map(|v| (Logical::Float32, Value::Float32(f32::from_bits(v)))),
        any::<u64>().prop_map(|v| (Logical::Float64, Value::Float64(f64::from_bits(v)))),
        numeric().prop_map(|v| (Logical::Numeric, v)),
        "[^\0]*".prop_map(|v| (Logical::Text, Value::Text(v))),
        any::<Vec<u8>>().prop_map(|v| (Logical::Bytes, Value::Bytes(v))),
        any::<i32>().prop_map(|v| (Logical::Date, Value::Date(v))),
        (0i64..=86_400_000_000).prop_map(|v| (Logical::Time, Value::Time(v))),
        (0i64..=86_400_000_000, -57_599i32..=57_599).prop_map(|(microseconds, seconds_west)| (
            Logical::TimeTz,
            Value::TimeTz(TimeTz { microseconds, seconds_west })
        )),
        any::<i64>().prop_map(|v| (Logical::Timestamp, Value::Timestamp(v))),
        any::<i64>().prop_map(|v| (Logical::TimestampTz, Value::TimestampTz(v))),
        (any::<i32>(), any::<i32>(), any::<i64>()).prop_map(|(months, days, microseconds)| (
            Logical::Interval,
            Value::Interval(Interval { months, days, microseconds })
        )),
        any::<[u8; 16]>().prop_map(|v| (Logical::Uuid, Value::Uuid(v))),
        "[^\0]*".prop_map(|v| (Logical::Json, Value::Json(v))),
        "[^\0]*".prop_map(|v| (Logical::Jsonb, Value::Jsonb(v))),
    ]
}

proptest! {
    #[test]
    fn binary_value_and_text_agree_for_every_kind((logical, value) in any_value()) {
        assert_all_forms_agree(logical, &value);
    }

    #[test]
    fn random_bytes_never_panic_and_what_decodes_encodes_again(bytes in any::<Vec<u8>>(), kind in 0usize..18) {
        for format in [Format::PgBinary, Format::PgText, Format::Tagged] {
            let type_ = type_of(ALL[kind], format);
            if let Ok(value) = decode(&type_, &bytes) {
                let mut out = BytesMut::new();
                // A text with NUL may come in as bytes, but does not go out; a NaN does not go into SQLite.
                if encode(&type_, &value, &mut out).is_ok() && format != Format::PgText && ALL[kind] != Logical::Numeric {
                    prop_assert_eq!(&out[..], &bytes[..]);
                }
            }
        }
    }

    #[test]
    fn random_text_never_panics(text in "\\PC*", kind in 0usize..18) {
        if let Some(value) = from_text(ALL[kind], &text) {
            let _ = to_text(&value);
        }
    }

    #[test]
    fn tagged_values_come_back(int in any::<i64>(), bits in any::<u64>(), text in ".*", blob in any::<Vec<u8>>()) {
        let float = f64::from_bits(bits);
        let mut values = vec![Value::Int(int), Value::Text(text), Value::Bytes(blob.clone()), Value::RawText(blob)];
        if !float.is_nan() {
            values.push(Value::Float64(float));
        }
        for value in values {
            let bytes = bytes_of(Logical::Dynamic, Format::Tagged, &value);
            prop_assert_eq!(decode(&type_of(Logical::Dynamic, Format::Tagged), &bytes).unwrap(), value);
        }
    }
}
