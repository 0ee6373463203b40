//! Every way of writing a value, and what is none.

use super::*;
use serde_json::json;

fn one(wire: Wire, type_: &str, json: Json) -> Result<Read, Fault> {
    read(&wire, type_, types::logical(type_), &json, &Placeholder::new(PLACEHOLDER))
}

fn is(wire: Wire, type_: &str, json: Json, text: &str) {
    assert_eq!(one(wire, type_, json), Ok(Read::Text(text.to_owned())), "{type_}");
}

#[test]
fn what_an_update_leaves_alone_is_told_from_every_value() {
    let bytes: Vec<Json> = PLACEHOLDER.bytes().map(|byte| json!(byte)).collect();
    for (wire, type_, json) in [
        (Wire::Text, "text", json!(PLACEHOLDER)),
        (Wire::Base64, "bytea", json!("X19kZWJleml1bV91bmF2YWlsYWJsZV92YWx1ZQ==")),
        (Wire::Array(Box::new(Wire::Text)), "text[]", json!([PLACEHOLDER])),
        (Wire::Array(Box::new(Wire::Int)), "bigint[]", json!(bytes)),
        (Wire::Array(Box::new(Wire::Days)), "date[]", json!(bytes)),
        (Wire::Array(Box::new(Wire::Text)), "uuid[]", json!([PLACEHOLDER_UUID])),
        (Wire::Hstore, "hstore", json!({ PLACEHOLDER: PLACEHOLDER })),
        (Wire::Hstore, "hstore", json!(json!({ PLACEHOLDER: PLACEHOLDER }).to_string())),
    ] {
        assert_eq!(one(wire, type_, json), Ok(Read::Unchanged), "{type_}");
    }
    is(Wire::Text, "text", json!("__debezium_unavailable_valu"), "__debezium_unavailable_valu");
    is(
        Wire::Array(Box::new(Wire::Text)),
        "text[]",
        json!([PLACEHOLDER, PLACEHOLDER]),
        &format!("{{{PLACEHOLDER},{PLACEHOLDER}}}"),
    );
    let other = Placeholder::new("gone");
    assert_eq!(read(&Wire::Text, "text", Logical::Text, &json!("gone"), &other), Ok(Read::Unchanged));
    assert_eq!(
        read(&Wire::Text, "text", Logical::Text, &json!(PLACEHOLDER), &other),
        Ok(Read::Text(PLACEHOLDER.into()))
    );
}

#[test]
fn every_way_of_writing_a_time_gives_what_postgresql_prints() {
    is(Wire::Time(Unit::Milli), "time(3) without time zone", json!(45_296_789), "12:34:56.789");
    is(Wire::Time(Unit::Nano), "time without time zone", json!(45_296_789_012_000i64), "12:34:56.789012");
    is(Wire::Time(Unit::Micro), "time without time zone", json!(86_400_000_000i64), "24:00:00");
    is(Wire::Timestamp(Unit::Milli), "timestamp(3) without time zone", json!(0), "1970-01-01 00:00:00");
    is(Wire::Timestamp(Unit::Nano), "timestamp without time zone", json!(1_000i64), "1970-01-01 00:00:00.000001");
    is(Wire::IsoDate, "date", json!("2026-02-28Z"), "2026-02-28");
    is(Wire::IsoTime, "time without time zone", json!("12:34:56.7Z"), "12:34:56.7");
    is(
        Wire::IsoTimestamp,
        "timestamp without time zone",
        json!("2026-02-28T01:02:03.000004Z"),
        "2026-02-28 01:02:03.000004",
    );
    is(Wire::ZonedTimestamp, "timestamp with time zone", json!("2026-02-28T01:02:03+02:00"), "2026-02-27 23:02:03+00");
    is(Wire::ZonedTimestamp, "timestamp with time zone", json!("-0043-03-15T12:00:00Z"), "0044-03-15 12:00:00+00 BC");
    is(Wire::ZonedTimestamp, "timestamp with time zone", json!("+12345-03-15T12:00:00Z"), "12345-03-15 12:00:00+00");
    is(Wire::IsoInterval, "interval", json!("P1Y2M3DT4H5M6.78S"), "1 year 2 mons 3 days 04:05:06.78");
    is(Wire::IsoInterval, "interval", json!("P-1Y-2M3DT-4H-5M-6.000001S"), "-1 years -2 mons +3 days -04:05:06.000001");
    is(Wire::AnyInterval, "interval", json!(61_000_000), "00:01:01");
    // As Debezium 3.6 writes the infinities: in the stream, in a snapshot or an array, in milliseconds.
    for (wire, type_, json, text) in [
        (Wire::Days, "date", json!(-2_147_472_692i64), "infinity"),
        (Wire::Days, "date", json!(-2_147_472_691i64), "-infinity"),
        (Wire::Days, "date", json!(-622_191_234), "infinity"),
        (Wire::Days, "date", json!(-625_821_272), "-infinity"),
        (Wire::Days, "date", json!(2_145_042_905i64), "5874897-12-31"),
        (Wire::Days, "date", json!(-2_440_550), "4713-01-01 BC"),
        (Wire::Timestamp(Unit::Micro), "timestamp", json!(9_223_372_036_825_200_000i64), "infinity"),
        (Wire::Timestamp(Unit::Micro), "timestamp", json!(-9_223_372_036_832_400_000i64), "-infinity"),
        (Wire::Timestamp(Unit::Milli), "timestamp(3)", json!(9_223_372_036_825_200i64), "infinity"),
        (Wire::Timestamp(Unit::Milli), "timestamp(3)", json!(-9_223_372_036_832_400i64), "-infinity"),
        (Wire::Timestamp(Unit::Milli), "timestamp(3)", json!(9_224_317_929_600_000i64), "294276-12-31 00:00:00"),
        (Wire::Timestamp(Unit::Micro), "timestamp", json!(-62_135_596_800_000_001i64), "0001-12-31 23:59:59.999999 BC"),
        (Wire::ZonedTimestamp, "timestamptz", json!("+294276-12-31T00:00:00.000000Z"), "294276-12-31 00:00:00+00"),
        (Wire::ZonedTimestamp, "timestamptz", json!("0000-12-31T00:00:00.000000Z"), "0001-12-31 00:00:00+00 BC"),
        (Wire::ZonedTimestamp, "timestamptz", json!("+292269055-12-02T23:00:00.000000Z"), "-infinity"),
    ] {
        is(wire, type_, json, text);
    }
    assert!(one(Wire::Timestamp(Unit::Micro), "timestamp", json!(i64::MAX)).is_err());
    assert!(one(Wire::Days, "date", json!(-600_000_000)).is_err());
    for (wire, type_, json) in [
        (Wire::Time(Unit::Nano), "time", json!(1)),
        (Wire::Time(Unit::Micro), "time", json!(86_400_000_001i64)),
        (Wire::Time(Unit::Micro), "time", json!(-1)),
        (Wire::Timestamp(Unit::Milli), "timestamp", json!(i64::MAX)),
        (Wire::Timestamp(Unit::Micro), "timestamp", json!("2026-01-01")),
        (Wire::ZonedTimestamp, "timestamptz", json!("2026-02-30T00:00:00Z")),
        (Wire::ZonedTime, "timetz", json!("25:00:00Z")),
        (Wire::IsoInterval, "interval", json!("P1W")),
    ] {
        assert!(one(wire, type_, json.clone()).is_err(), "{type_} {json}");
    }
}

#[test]
fn decimals_keep_every_digit() {
    is(Wire::Decimal { scale: 2 }, "numeric(10,2)", json!("SZYC0g=="), "12345678.90");
    is(Wire::Decimal { scale: 0 }, "numeric(3,0)", json!("gA=="), "-128");
    is(Wire::VariableDecimal, "numeric", json!({"scale": 4, "value": "/w=="}), "-0.0001");
    is(Wire::DecimalText, "numeric", json!("-0.0001000"), "-0.0001000");
    is(Wire::DecimalText, "numeric", json!("1E+3"), "1000");
    is(Wire::DecimalText, "numeric", json!("NaN"), "NaN");
    is(Wire::DecimalDouble, "numeric", json!(1.5), "1.5");
    let digits = "9".repeat(200);
    let bytes = digits.parse::<BigInt>().unwrap().to_signed_bytes_be();
    assert_eq!(decimal(&bytes, 100).unwrap().replace('.', ""), digits);
    assert!(one(Wire::Decimal { scale: 2 }, "numeric", json!("no base64!")).is_err());
    assert!(one(Wire::Decimal { scale: 2 }, "numeric", json!(1.5)).is_err());
    assert!(one(Wire::VariableDecimal, "numeric", json!("SZYC0g==")).is_err());
}

#[test]
fn bits_maps_and_lists_are_written_as_postgresql_writes_them() {
    is(Wire::Bits { length: 3 }, "bit(3)", json!("Bg=="), "110");
    is(Wire::Bits { length: 10 }, "bit(10)", json!("AQI="), "1000000001");
    is(Wire::Bits { length: 8 }, "bit varying(8)", json!("AQ=="), "1");
    is(Wire::Bool, "bit(1)", json!(true), "1");
    is(Wire::Hstore, "hstore", json!({"bb": null, "a\"": "x\\"}), r#""a\""=>"x\\", "bb"=>NULL"#);
    is(Wire::Point, "point", json!({"x": 1.0, "y": -2.5}), "(1,-2.5)");
    let texts = Wire::Array(Box::new(Wire::Text));
    is(
        texts.clone(),
        "text[]",
        json!(["a", "", "null", "a b", null, "{", "\""]),
        r#"{a,"","null","a b",NULL,"{","\""}"#,
    );
    is(Wire::Array(Box::new(Wire::Float64)), "double precision[]", json!([1.0, "NaN"]), "{1,NaN}");
    assert!(one(Wire::Bits { length: 3 }, "bit(3)", json!("/w==")).is_err());
    assert!(one(texts, "text[]", json!([1])).is_err());
    assert!(one(Wire::Array(Box::new(Wire::Int)), "integer[]", json!([3_000_000_000i64])).is_err());
    assert!(one(Wire::Text, "text", json!("a\0b")).is_err());
    assert!(one(Wire::Int, "smallint", json!(40_000)).is_err());
    assert!(one(Wire::Bool, "boolean", json!(1)).is_err());
}
