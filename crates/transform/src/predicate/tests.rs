//! Truth tables, held against what PostgreSQL itself answered (`tests/predicates.tsv`).

use super::*;
use crate::types::TypeSpec;
use crossfade_event::Format;
use proptest::prelude::*;

const COLUMNS: [(&str, &str); 9] = [
    ("i", "integer"),
    ("n", "numeric"),
    ("f", "double precision"),
    ("s", "text"),
    ("b", "boolean"),
    ("d", "date"),
    ("ts", "timestamptz"),
    ("u", "uuid"),
    ("c", "character(5)"),
];

fn types() -> Vec<ColumnType> {
    COLUMNS
        .iter()
        .map(|(_, name)| ColumnType { format: Format::PgText, ..TypeSpec::postgres(name).unwrap().postgres_column() })
        .collect()
}

fn resolve(name: &str) -> Result<(usize, ColumnType), String> {
    let at = COLUMNS.iter().position(|(known, _)| *known == name).ok_or_else(|| format!("no {name}"))?;
    Ok((at, types()[at].clone()))
}

fn letter(truth: Truth) -> char {
    match truth {
        Truth::True => 't',
        Truth::False => 'f',
        Truth::Null => '?',
        Truth::Unknown => 'u',
    }
}

#[test]
fn every_condition_is_answered_as_postgres_answers_it() {
    let (types, mut rows, mut asked) = (types(), Vec::new(), 0);
    for line in include_str!("../../tests/predicates.tsv").lines() {
        let fields: Vec<&str> = line.split('\t').collect();
        if fields[0] == "row" {
            rows.push(fields[1..].to_vec());
            continue;
        }
        let condition = compile(fields[1], &resolve).unwrap_or_else(|error| panic!("{}: {error}", fields[1]));
        let answer: String = rows
            .iter()
            .map(|row| {
                let regs: Vec<Reg<'_>> =
                    row.iter().map(|text| if *text == "~" { Reg::Null } else { Reg::Raw(text.as_bytes()) }).collect();
                letter(ask(&condition, &regs, &types).unwrap())
            })
            .collect();
        assert_eq!(answer, fields[2], "{}", fields[1]);
        asked += 1;
    }
    assert!(asked > 200, "{asked}");
}

#[test]
fn what_is_no_condition_is_refused_with_the_place() {
    for (text, expected) in [
        ("i =", "at character 4: a column or a value was expected"),
        ("i = 1 1", "at character 7: AND, OR or the end was expected"),
        ("(i = 1", "at character 7: `)` was expected"),
        ("s = 'abc", "at character 5: a quote is not closed"),
        ("lower(s) = 'a'", "at character 1: functions are not part of the subset of SQL that filters may use"),
        ("i ~ 1", "at character 3: `~` has no meaning here; the guide to filters lists what may be used"),
        ("x = 1", "no x"),
        ("i = 'one'", "`one` is not a value of type integer"),
        ("s < 'b'", "the order of texts depends on the database's collation; only =, <>, IN and LIKE compare texts"),
        ("i = s", "`i` (integer) and `s` (text) cannot be compared; cast one of them"),
        ("i like '1%'", "LIKE works on text only"),
        ("i", "a condition was expected, and a value that is neither true nor false stands there"),
    ] {
        assert_eq!(compile(text, &resolve).unwrap_err(), expected, "{text}");
    }
    assert!(compile(&"(".repeat(10_000), &resolve).is_err());
    assert!(compile(&"not ".repeat(10_000), &resolve).is_err());
}

#[test]
fn an_unsent_cell_leaves_the_answer_open_only_where_it_matters() {
    let types = types();
    let condition = compile("i = 1 and s = 'abc'", &resolve).unwrap();
    let mut regs = vec![Reg::Null; 9];
    regs[3] = Reg::Unchanged;
    regs[0] = Reg::Raw(b"2");
    assert_eq!(ask(&condition, &regs, &types), Ok(Truth::False));
    regs[0] = Reg::Raw(b"1");
    assert_eq!(ask(&condition, &regs, &types), Ok(Truth::Unknown));
}

#[test]
fn sqlite_values_compare_by_sqlites_rules() {
    let column = |declared: &str| crate::types::sqlite_column(declared);
    let truth = |declared: &str, value: Value, text: &str| {
        let types = [column(declared)];
        let condition = compile(text, &|_| Ok((0, column(declared)))).unwrap();
        letter(ask(&condition, &[Reg::Value(value)], &types).unwrap())
    };
    assert_eq!(truth("INTEGER", Value::Int(5), "x = '5'"), 't');
    assert_eq!(truth("INTEGER", Value::Text("five".into()), "x > 1000000"), 't');
    assert_eq!(truth("TEXT", Value::Text("5".into()), "x = 5"), 't');
    assert_eq!(truth("TEXT", Value::Text("b".into()), "x > 'a'"), 't');
    assert_eq!(truth("TEXT", Value::Text("ABC".into()), "x like 'a%'"), 't');
    assert_eq!(truth("", Value::Text("5".into()), "x = 5"), 'f');
    assert_eq!(truth("REAL", Value::Float64(0.5), "x < 1"), 't');
    assert_eq!(truth("INTEGER", Value::Int(i64::MAX), "x < 9223372036854775808"), 't');
    assert_eq!(truth("INTEGER", Value::Int(1), "x"), 't');
    assert_eq!(truth("BLOB", Value::Bytes(vec![1]), "x = 'a'"), 'f');
}

proptest! {
    #[test]
    fn no_text_makes_the_parser_panic(text in "[a-z0-9'\"()=<>!%., -]{0,40}") {
        let _ = compile(&text, &resolve);
    }

    #[test]
    fn a_condition_and_its_negation_are_never_both_true(
        i in proptest::option::of(-3i64..3),
        wanted in -3i64..3,
        other in -3i64..3,
    ) {
        let types = types();
        let text = i.map(|i| i.to_string());
        let mut regs = vec![Reg::Null; 9];
        if let Some(text) = &text {
            regs[0] = Reg::Raw(text.as_bytes());
        }
        let condition = format!("i = {wanted} or i > {other}");
        let yes = ask(&compile(&condition, &resolve).unwrap(), &regs, &types).unwrap();
        let no = ask(&compile(&format!("not ({condition})"), &resolve).unwrap(), &regs, &types).unwrap();
        prop_assert_eq!(yes == Truth::Null, i.is_none());
        prop_assert_eq!(yes.not(), no);
    }

    #[test]
    fn like_agrees_with_a_plain_recursion(pattern in "[ab%_]{0,7}", text in "[ab]{0,8}") {
        fn plain(pattern: &[u8], text: &[u8]) -> bool {
            match (pattern.split_first(), text.split_first()) {
                (None, None) => true,
                (Some((b'%', rest)), _) => plain(rest, text) || (!text.is_empty() && plain(pattern, &text[1..])),
                (Some((b'_', rest)), Some((_, after))) => plain(rest, after),
                (Some((a, rest)), Some((b, after))) => a == b && plain(rest, after),
                _ => false,
            }
        }
        prop_assert_eq!(Pattern::parse(&pattern).unwrap().matches(&text), plain(pattern.as_bytes(), text.as_bytes()));
    }
}

#[test]
fn numbers_of_different_kinds_compare_exactly() {
    let numeric = |text: &str| Value::Numeric(crossfade_event::Numeric::parse(text).unwrap());
    for (left, right, expected) in [
        ("1.10", "1.1", Ordering::Equal),
        ("-2", "-10", Ordering::Greater),
        ("10", "9", Ordering::Greater),
        ("0.1", "0.09", Ordering::Greater),
        ("NaN", "Infinity", Ordering::Greater),
        ("-Infinity", "-1e100", Ordering::Less),
    ] {
        assert_eq!(Comparable::Exact.compare(&numeric(left), &numeric(right)), Some(expected), "{left} {right}");
    }
}
