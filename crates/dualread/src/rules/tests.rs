use super::*;
use crossfade_event::{Numeric, Value};
use proptest::prelude::*;

fn numeric(text: &str) -> Field {
    Field(Some(Value::Numeric(Numeric::Finite(text.to_owned()))))
}

fn one(field: impl Into<Field>) -> Answer {
    Answer::of(["a"]).row([field.into()])
}

fn same(rules: &Rules, left: impl Into<Field>, right: impl Into<Field>) -> bool {
    rules.difference(&one(left), &one(right)).is_none()
}

#[test]
fn without_rules_values_are_their_text_and_null_is_only_null() {
    let rules = Rules::default();
    assert!(same(&rules, 5_i64, "5") && same(&rules, numeric("1.50"), "1.50"));
    assert!(!same(&rules, numeric("1.5"), numeric("1.50")), "the scale is a part of a numeric");
    assert!(!same(&rules, "", Field(None)) && !same(&rules, "a", "a ") && !same(&rules, "a", "A"));
    assert!(!same(&rules, "abc", b"abc".as_slice()), "bytes are no text");
    assert!(!same(&rules, true, 1_i64));
}

#[test]
fn numbers_are_compared_without_their_scale_and_rounded_where_asked() {
    let rules = Rules { numbers: ["a"].into(), ..Rules::default() };
    assert!(same(&rules, numeric("1.50"), numeric("1.5")) && same(&rules, "12.00", 12_i64));
    assert!(same(&rules, 0.1_f64, "0.1") && same(&rules, numeric("-0.00"), 0_i64) && same(&rules, "007", 7_i64));
    assert!(!same(&rules, numeric("1.51"), numeric("1.5")) && !same(&rules, "x", 1_i64));
    let cents = Rules { digits: Some(2), ..rules };
    assert!(same(&cents, numeric("1.005"), numeric("1.01")) && same(&cents, numeric("9.999"), 10_i64));
    assert!(same(&cents, numeric("-9.999"), -10_i64) && !same(&cents, numeric("1.004"), numeric("1.01")));
}

#[test]
fn moments_are_compared_whatever_their_form() {
    let rules = Rules { moments: ["a"].into(), ..Rules::default() };
    let stored = Value::TimestampTz(0);
    for form in [
        "2000-01-01T00:00:00Z",
        "2000-01-01 00:00:00+00",
        "2000-01-01 02:00:00+02",
        "2000-01-01T00:00:00",
        "2000-01-01 00:00:00.000",
    ] {
        assert!(same(&rules, stored.clone(), form), "{form}");
    }
    assert!(!same(&rules, stored.clone(), "2000-01-01T00:00:00.001Z") && !same(&rules, stored.clone(), "yesterday"));
    let seconds = Rules { precision: Precision::Seconds, ..rules };
    assert!(same(&seconds, stored.clone(), "2000-01-01T00:00:00.999Z"));
    assert!(!same(&seconds, stored, "1999-12-31T23:59:59.999Z"), "what is finer is cut off, also before the epoch");
}

#[test]
fn booleans_and_white_space_are_normalised_only_where_asked() {
    let rules = Rules { booleans: ["a"].into(), ..Rules::default() };
    assert!(same(&rules, true, 1_i64) && same(&rules, "t", true) && same(&rules, "false", 0_i64));
    assert!(!same(&rules, true, 0_i64) && !same(&rules, 2_i64, true));
    let rules = Rules { trim: ["*"].into(), ..Rules::default() };
    assert!(same(&rules, "a  ", " a") && !same(&rules, "a b", "ab"));
}

#[test]
fn columns_go_by_name_unless_said_and_some_are_ignored() {
    let left = Answer::of(["id", "mail", "seen"]).row([1_i64.into(), "a@b".into(), "monday".into()]);
    let right = Answer::of(["mail", "id", "touched"]).row(["a@b".into(), 1_i64.into(), "tuesday".into()]);
    let found = Rules::default().difference(&left, &right).unwrap();
    assert_eq!((found.kind, found.columns), (MismatchKind::Columns, vec!["seen".to_owned(), "touched".to_owned()]));
    let ignoring = Rules { ignore: ["seen", "touched"].into(), ..Rules::default() };
    assert_eq!(ignoring.difference(&left, &right), None);
    let by_place = Rules { by_place: true, ..Rules::default() };
    let found = by_place.difference(&left, &right).unwrap();
    assert_eq!((found.kind, found.rows, found.columns.len()), (MismatchKind::Values, 1, 3));

    let absent = Rules { absent_is_null: true, ..Rules::default() };
    let with_null = Answer::of(["id", "gone"]).row([1_i64.into(), Field(None)]);
    let without = Answer::of(["id"]).row([1_i64.into()]);
    assert_eq!(absent.difference(&with_null, &without), None);
    assert!(absent.difference(&left, &without).is_some(), "a value is not absent");
}

#[test]
fn rows_are_counted_and_the_columns_named_and_no_value_is_shown() {
    let left = Answer::of(["id", "mail"]).row([1_i64.into(), "secret@b".into()]).row([2_i64.into(), "x".into()]);
    let right = Answer::of(["id", "mail"]).row([1_i64.into(), "other@b".into()]);
    let found = Rules::default().difference(&left, &right).unwrap();
    assert_eq!(found, Mismatch { kind: MismatchKind::RowCount, rows: 2, columns: vec!["mail".to_owned()] });
    let shown = format!("{found} {found:?} {left:?}");
    assert!(!shown.contains("secret") && !shown.contains("other@b"), "{shown}");
}

fn table() -> impl Strategy<Value = Vec<(i64, Option<i64>)>> {
    proptest::collection::vec((0i64..4, proptest::option::of(0i64..3)), 0..8)
}

fn answer(rows: &[(i64, Option<i64>)]) -> Answer {
    rows.iter().fold(Answer::of(["a", "b"]), |answer, (a, b)| answer.row([(*a).into(), (*b).into()]))
}

proptest! {
    #[test]
    fn any_order_is_exactly_equality_of_multisets(mut left in table(), mut right in table()) {
        let rules = Rules { order: Order::Any, ..Rules::default() };
        let found = rules.difference(&answer(&left), &answer(&right));
        let kept = Rules::default().difference(&answer(&left), &answer(&right));
        prop_assert_eq!(kept.is_none(), left == right);
        left.sort_unstable();
        right.sort_unstable();
        prop_assert_eq!(found.is_none(), left == right);
        if let Some(found) = found {
            prop_assert!(found.rows > 0 && found.rows <= left.len().max(right.len()) as u64);
            prop_assert!(kept.is_some(), "what differs in any order differs in order");
        }
    }

    #[test]
    fn a_number_is_the_same_at_any_scale(digits in 0u64..1_000_000, scale in 0usize..5, zeros in 0usize..5, negative: bool) {
        let sign = if negative { "-" } else { "" };
        let text = format!("{digits:06}");
        let (whole, part) = text.split_at(text.len() - scale);
        let written = |part: &str| match part { "" => format!("{sign}{whole}"), part => format!("{sign}{whole}.{part}") };
        let rules = Rules { numbers: ["*"].into(), ..Rules::default() };
        let padded = format!("{part}{}", "0".repeat(zeros));
        prop_assert!(same(&rules, written(part), written(&padded)));
        let more = format!("{part}{}1", "0".repeat(zeros));
        prop_assert!(!same(&rules, written(part), written(&more)));
    }

    #[test]
    fn the_comparison_does_not_care_which_side_comes_first(left in table(), right in table(), any_order: bool) {
        let rules = Rules { order: if any_order { Order::Any } else { Order::Kept }, ..Rules::default() };
        prop_assert_eq!(rules.difference(&answer(&left), &answer(&right)), rules.difference(&answer(&right), &answer(&left)));
    }
}

#[test]
fn rules_are_read_from_toml_and_an_unknown_one_is_refused() {
    let text = "ignore = [\"seen\"]\nnumbers = [\"*\"]\ndigits = 2\nmoments = [\"at\"]\nprecision = \"ms\"\norder = \"any\"\nby-place = true\nabsent-is-null = true";
    let rules: Rules = toml::from_str(text).unwrap();
    assert!(rules.ignore.has("seen") && rules.numbers.has("anything") && !rules.moments.has("seen"));
    assert_eq!((rules.digits, rules.precision, rules.order), (Some(2), Precision::Millis, Order::Any));
    assert!(toml::from_str::<Rules>("ignored = []").is_err());
}
