//! What is written is read again, by the source's own reader; and what is not written.

use super::*;
use crate::source::{
    value::{PLACEHOLDER, Placeholder, Read, read},
    wire::DecimalMode,
};
use serde_json::Value as Json;

fn column(type_: &str) -> Column {
    Column {
        name: "c".into(),
        type_: ColumnType { name: type_.into(), native_id: 0, logical: types::logical(type_), format: Format::PgText },
        key: None,
        nullable: true,
        native_id: 0,
        default: None,
    }
}

fn written(type_: &str, handling: Handling, text: &str) -> Result<Json, Fault> {
    let mut out = String::new();
    Form::of(&column(type_), handling).write(text.as_bytes(), &mut out)?;
    Ok(serde_json::from_str(&out).unwrap_or_else(|error| panic!("{type_} {text}: {error} in {out}")))
}

/// As the source's own reader reads it.
fn again(type_: &str, handling: Handling, text: &str) -> String {
    let json = written(type_, handling, text).unwrap_or_else(|fault| panic!("{type_} {text}: {fault}"));
    let wire = Wire::of_type(type_, handling);
    match read(&wire, type_, types::logical(type_), &json, &Placeholder::new(PLACEHOLDER)) {
        Ok(Read::Text(text)) => text,
        other => panic!("{type_} {text} as {json}: {other:?}"),
    }
}

#[test]
fn each_value_is_read_again_as_it_was() {
    let precise = Handling::default();
    for (type_, texts) in [
        ("boolean", &["t", "f"] as &[&str]),
        ("smallint", &["-32768"]),
        ("bigint", &["-9223372036854775808", "0"]),
        ("real", &["1.5000001e+10", "NaN", "-Infinity", "-0", "1.1"]),
        ("double precision", &["1e-05", "Infinity", "0.1", "1.7976931348623157e+308"]),
        (
            "numeric",
            &["0", "-0.0001000", "10", "123456789012345678901234567890.12", "-1", "128", "-128", "-129", "0.00"],
        ),
        ("numeric(10,2)", &["12345678.90", "-0.01", "0.00", "-1.28"]),
        ("text", &["", "snöw \"\\\n\t\u{1}", "\u{1F600}"]),
        ("character varying(20)", &["NULL"]),
        ("bytea", &["\\x", "\\x00ff10", "\\x00ff1011"]),
        ("date", &["2026-02-28", "0044-03-15 BC", "5874897-12-31", "1582-10-10"]),
        ("time without time zone", &["23:59:59.999999", "00:00:00"]),
        ("time(3) without time zone", &["01:02:03.004"]),
        ("time with time zone", &["04:05:06.789-08", "00:00:00+05:30", "23:59:59.999999+15:59:59", "01:00:00+00"]),
        (
            "timestamp without time zone",
            &["0044-03-15 12:00:00 BC", "2026-01-02 03:04:05.678901", "1969-12-31 23:59:59.5"],
        ),
        ("timestamp(3) without time zone", &["2026-01-02 03:04:05.678", "0001-01-01 00:00:00"]),
        (
            "timestamp with time zone",
            &[
                "infinity",
                "-infinity",
                "0044-03-15 12:00:00+00 BC",
                "12026-01-01 00:00:00+00",
                "2026-01-02 03:04:05.67+00",
            ],
        ),
        (
            "interval",
            &[
                "1 year 2 mons 3 days 04:05:06.7",
                "-3 days",
                "00:00:00",
                "-1 years -2 mons +3 days -04:05:06.000007",
                "-00:00:00.5",
                "178000000 years",
            ],
        ),
        ("uuid", &["a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"]),
        ("json", &["{\"a\": 1,  \"a\": 2}"]),
        ("jsonb", &["{\"b\": [1, null]}"]),
        ("xml", &["<a/>"]),
        ("bit(3)", &["110", "001", "000"]),
        ("bit(1)", &["1", "0"]),
        ("bit(12)", &["100000000110"]),
        ("bit varying(8)", &["1", "0", "10000000"]),
        ("inet", &["10.0.0.1/8"]),
        ("point", &["(1,2.5)", "(-0.5,1e+20)"]),
        ("int4range", &["[1,5)"]),
        ("hstore", &["", "\"a\"=>\"1\", \"b\"=>NULL", "\"a\\\"b\"=>\"c\\\\d, \""]),
        ("oid", &["4294967295"]),
        ("mood", &["happy"]),
        ("integer[]", &["{}", "{1,2,NULL}"]),
        ("text[]", &["{\"a,b\",NULL,\"c\\\"d\",\"\",\"null\",x}"]),
        ("bytea[]", &["{\"\\\\x01\",NULL}"]),
        ("double precision[]", &["{1.5,NaN,NULL}"]),
        ("uuid[]", &["{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}"]),
        ("date[]", &["{2026-01-01}"]),
        ("interval[]", &["{\"1 day 02:00:00\"}"]),
        ("numeric[]", &["{1.50,NULL,-3}"]),
    ] {
        for text in texts {
            assert_eq!(again(type_, precise, text), *text, "{type_}");
        }
    }
    let texts = Handling { decimal: DecimalMode::String, ..precise };
    for text in ["NaN", "Infinity", "-0.0001000"] {
        assert_eq!(again("numeric", texts, text), text);
    }
    assert_eq!(again("money", precise, "-$1,234.50"), "-1234.50");
}

#[test]
fn what_the_form_has_no_word_for_is_not_written() {
    for (type_, text) in [
        ("numeric", "NaN"),
        ("numeric", "-Infinity"),
        ("numeric(10,2)", "NaN"),
        ("date", "infinity"),
        ("time without time zone", "24:00:00"),
        ("time with time zone", "24:00:00+00"),
        ("timestamp without time zone", "-infinity"),
        ("timestamp without time zone", "294276-12-31 23:59:59.999999"),
        ("interval", "infinity"),
        ("bit varying(8)", "01"),
        ("integer[]", "{{1,2},{3,4}}"),
        ("integer[]", "[0:1]={1,2}"),
        ("date[]", "{infinity}"),
        ("numeric[]", "{NaN}"),
        ("money", "1.234,50 €"),
        ("geometry", "0101"),
    ] {
        let form = Form::of(&column(type_), Handling::default());
        let mut out = String::from("before");
        let fault = form.write(text.as_bytes(), &mut out).unwrap_err();
        assert!(matches!(fault, Fault::Unsayable(_)), "{type_} {text}: {fault}");
        assert_eq!(out, "before");
        assert!(form.unsayable().is_some(), "{type_} is not said to lack a word");
    }
    for (type_, text) in [("integer", "x"), ("date", "yesterday"), ("boolean", "maybe"), ("integer[]", "1,2")] {
        assert!(matches!(written(type_, Handling::default(), text), Err(Fault::NotOfType(_))), "{type_}");
    }
}

#[test]
fn characters_are_filled_up_as_debezium_has_them() {
    assert_eq!(written("character(5)", Handling::default(), "ab").unwrap(), Json::from("ab   "));
}

#[test]
fn a_value_in_binary_is_written_like_its_text() {
    let mut binary = column("timestamp with time zone");
    binary.type_.format = Format::PgBinary;
    let mut bytes = bytes::BytesMut::new();
    let value = codec::from_text(Logical::TimestampTz, "2026-01-02 03:04:05.67+00").unwrap();
    codec::encode(&binary.type_, &value, &mut bytes).unwrap();
    let mut out = String::new();
    Form::of(&binary, Handling::default()).write(&bytes, &mut out).unwrap();
    assert_eq!(out, "\"2026-01-02T03:04:05.67Z\"");
}

#[test]
fn what_an_update_left_alone_has_a_word_that_the_reader_knows() {
    let placeholder = Placeholder::new(PLACEHOLDER);
    for type_ in ["text", "jsonb", "bytea", "hstore", "text[]"] {
        let mut out = String::new();
        assert!(Form::of(&column(type_), Handling::default()).write_unchanged(PLACEHOLDER, &mut out), "{type_}");
        let json: Json = serde_json::from_str(&out).unwrap();
        let wire = Wire::of_type(type_, Handling::default());
        assert_eq!(read(&wire, type_, types::logical(type_), &json, &placeholder), Ok(Read::Unchanged), "{type_}");
    }
    for type_ in ["numeric", "integer[]", "geometry"] {
        let mut out = String::new();
        assert!(!Form::of(&column(type_), Handling::default()).write_unchanged(PLACEHOLDER, &mut out), "{type_}");
    }
}
