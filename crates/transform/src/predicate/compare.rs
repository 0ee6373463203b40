//! How two values of a kind compare, as their database compares them; and from words to operands of one kind.

use super::{Expr, Operand, ParseError, Predicate, Relation, parse::Word};
use crate::{
    cast,
    types::{Affinity, affinity},
};
use crossfade_event::{ColumnType, Interval, Logical, Numeric, Value, codec};
use std::cmp::Ordering;

/// What is compared, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Comparable {
    Bool,
    /// Integers and numerics: exactly.
    Exact,
    /// As soon as a float takes part.
    Float,
    /// Only for equality; `pads`: surplus blanks do not count (`char(n)`).
    Text {
        pads: bool,
    },
    Bytes,
    /// Kinds that order as their numbers do.
    Moment,
    Interval,
    Uuid,
    /// SQLite's own rules.
    Dynamic,
    /// Only asked for NULL.
    None,
}

impl Comparable {
    fn of(type_: &ColumnType) -> Self {
        match type_.logical {
            Logical::Bool => Self::Bool,
            Logical::Int16 | Logical::Int32 | Logical::Int64 | Logical::Numeric => Self::Exact,
            Logical::Float32 | Logical::Float64 => Self::Float,
            Logical::Text if type_.name.contains("citext") => Self::None,
            Logical::Text => Self::Text { pads: type_.name.starts_with("character(") || &*type_.name == "bpchar" },
            Logical::Bytes => Self::Bytes,
            Logical::Date | Logical::Time | Logical::Timestamp | Logical::TimestampTz => Self::Moment,
            Logical::Interval => Self::Interval,
            Logical::Uuid => Self::Uuid,
            Logical::Dynamic => Self::Dynamic,
            Logical::TimeTz | Logical::Json | Logical::Jsonb | Logical::Opaque => Self::None,
        }
    }

    /// `None` when the two are not of this kind.
    pub(crate) fn compare(self, left: &Value, right: &Value) -> Option<Ordering> {
        Some(match (self, left, right) {
            (Self::Exact, Value::Int(left), Value::Int(right)) => left.cmp(right),
            (Self::Exact, left, right) => numerics(&exact(left)?, &exact(right)?),
            (Self::Float, left, right) => floats(double(left)?, double(right)?),
            (Self::Text { pads: true }, Value::Text(left), Value::Text(right)) => {
                left.trim_end_matches(' ').cmp(right.trim_end_matches(' '))
            }
            (Self::Text { .. }, Value::Text(left), Value::Text(right)) => left.cmp(right),
            (Self::Bool, Value::Bool(left), Value::Bool(right)) => left.cmp(right),
            (Self::Bytes, Value::Bytes(left), Value::Bytes(right)) => left.cmp(right),
            (Self::Uuid, Value::Uuid(left), Value::Uuid(right)) => left.cmp(right),
            (Self::Interval, Value::Interval(left), Value::Interval(right)) => span(left).cmp(&span(right)),
            (Self::Moment, Value::Date(left), Value::Date(right)) => left.cmp(right),
            (Self::Moment, Value::Time(left), Value::Time(right))
            | (Self::Moment, Value::Timestamp(left), Value::Timestamp(right))
            | (Self::Moment, Value::TimestampTz(left), Value::TimestampTz(right)) => left.cmp(right),
            (Self::Dynamic, left, right) => sqlite(left, right)?,
            _ => return None,
        })
    }

    /// The text that LIKE looks at.
    pub(crate) fn text(self, value: &Value) -> Option<String> {
        match (self, value) {
            (Self::Text { .. } | Self::Dynamic, Value::Text(text)) => Some(text.clone()),
            (Self::Dynamic, Value::Int(_) | Value::Float64(_)) => Some(codec::to_text(value)),
            _ => None,
        }
    }
}

fn exact(value: &Value) -> Option<Numeric> {
    match value {
        Value::Numeric(numeric) => Some(numeric.clone()),
        Value::Int(int) => Some(Numeric::Finite(int.to_string())),
        Value::Float64(_) | Value::Float32(_) => Numeric::parse(&codec::to_text(value)),
        _ => None,
    }
}

fn double(value: &Value) -> Option<f64> {
    match value {
        Value::Float64(float) => Some(*float),
        Value::Float32(float) => Some(f64::from(*float)),
        Value::Int(int) => Some(*int as f64),
        Value::Numeric(_) => codec::to_text(value).parse().ok(),
        _ => None,
    }
}

/// NaN equals itself and is above everything, as in PostgreSQL.
fn floats(left: f64, right: f64) -> Ordering {
    left.partial_cmp(&right).unwrap_or_else(|| left.is_nan().cmp(&right.is_nan()))
}

/// Exactly, whatever the scale; NaN equals itself and is above everything.
pub(super) fn numerics(left: &Numeric, right: &Numeric) -> Ordering {
    let rank = |numeric: &Numeric| match numeric {
        Numeric::NegInfinity => 0,
        Numeric::Finite(text) if text.starts_with('-') => 1,
        Numeric::Finite(_) => 2,
        Numeric::Infinity => 3,
        Numeric::NaN => 4,
    };
    let (Numeric::Finite(a), Numeric::Finite(b)) = (left, right) else { return rank(left).cmp(&rank(right)) };
    let by_sign = rank(left).cmp(&rank(right));
    if by_sign.is_ne() {
        return by_sign;
    }
    let parts = |text: &str| {
        let digits = text.strip_prefix('-').unwrap_or(text);
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        (whole.len(), whole.to_owned(), fraction.trim_end_matches('0').to_owned())
    };
    let magnitude = parts(a).cmp(&parts(b));
    if a.starts_with('-') { magnitude.reverse() } else { magnitude }
}

/// A month counts 30 days and a day 24 hours, as PostgreSQL compares.
fn span(interval: &Interval) -> i128 {
    let days = i128::from(interval.months) * 30 + i128::from(interval.days);
    days * 86_400_000_000 + i128::from(interval.microseconds)
}

/// Numbers before texts before blobs; texts by their bytes.
fn sqlite(left: &Value, right: &Value) -> Option<Ordering> {
    let class = |value: &Value| match value {
        Value::Int(_) | Value::Float64(_) | Value::Numeric(_) => Some(0),
        Value::Text(_) | Value::RawText(_) => Some(1),
        Value::Bytes(_) => Some(2),
        _ => None,
    };
    let by_class = class(left)?.cmp(&class(right)?);
    if by_class.is_ne() {
        return Some(by_class);
    }
    let bytes = |value: &Value| match value {
        Value::Text(text) => text.clone().into_bytes(),
        Value::RawText(bytes) | Value::Bytes(bytes) => bytes.clone(),
        _ => Vec::new(),
    };
    match (left, right) {
        (Value::Int(left), Value::Int(right)) => Some(left.cmp(right)),
        (Value::Float64(left), Value::Float64(right)) => Some(floats(*left, *right)),
        _ if class(left) == Some(0) => Some(numerics(&binary_exact(left)?, &binary_exact(right)?)),
        _ => Some(bytes(left).cmp(&bytes(right))),
    }
}

/// SQLite compares an integer with a float by the float's exact value, not by its shortest digits.
fn binary_exact(value: &Value) -> Option<Numeric> {
    match value {
        Value::Float64(float) if float.is_finite() => Numeric::parse(format!("{float:.1100}").trim_end_matches('0')),
        other => exact(other),
    }
}

/// Looks a column's register and type up.
pub(crate) type Resolve<'a> = dyn Fn(&str) -> Result<(usize, ColumnType), String> + 'a;

/// Makes a condition ready for the columns at hand.
///
/// # Errors
/// When it is no condition, names an unknown column, or compares what cannot be compared.
pub(crate) fn compile(text: &str, resolve: &Resolve<'_>) -> Result<Predicate, String> {
    let tree = super::parse(text).map_err(|error: ParseError| error.to_string())?;
    ready(&tree, resolve)
}

/// The condition that no row meets.
pub(crate) fn never() -> Predicate {
    Expr::Truth((Operand::Value(Some(Value::Bool(false))), Comparable::Bool))
}

fn ready(tree: &Expr<Word>, resolve: &Resolve<'_>) -> Result<Predicate, String> {
    let both = |left: &Expr<Word>, right: &Expr<Word>| -> Result<_, String> {
        Ok((Box::new(ready(left, resolve)?), Box::new(ready(right, resolve)?)))
    };
    Ok(match tree {
        Expr::And(left, right) => both(left, right).map(|(left, right)| Expr::And(left, right))?,
        Expr::Or(left, right) => both(left, right).map(|(left, right)| Expr::Or(left, right))?,
        Expr::Not(inner) => Expr::Not(Box::new(ready(inner, resolve)?)),
        Expr::Is(inner, wanted) => Expr::Is(Box::new(ready(inner, resolve)?), *wanted),
        Expr::IsNull(word) => Expr::IsNull(alone(word, resolve)?),
        Expr::Truth(word) => {
            let (operand, how) = alone(word, resolve)?;
            match (&operand, how) {
                (_, Comparable::Bool | Comparable::Dynamic) | (Operand::Value(None | Some(Value::Bool(_))), _) => {
                    Expr::Truth((operand, how))
                }
                _ => {
                    return Err(
                        "a condition was expected, and a value that is neither true nor false stands there".to_owned()
                    );
                }
            }
        }
        Expr::Like(word, pattern) => {
            let (operand, how) = alone(word, resolve)?;
            if !matches!(how, Comparable::Text { .. } | Comparable::Dynamic) {
                return Err("LIKE works on text only".to_owned());
            }
            let pattern = super::Pattern { folds_ascii: how == Comparable::Dynamic, ..pattern.clone() };
            Expr::Like((operand, how), pattern)
        }
        Expr::Compare(relation, left, right) => compared(*relation, left, right, resolve)?,
    })
}

fn alone(word: &Word, resolve: &Resolve<'_>) -> Result<(Operand, Comparable), String> {
    Ok(match word {
        Word::Column(name) => {
            let (register, type_) = resolve(name)?;
            (Operand::Register(register), Comparable::of(&type_))
        }
        Word::Null => (Operand::Value(None), Comparable::None),
        Word::Bool(bool) => (Operand::Value(Some(Value::Bool(*bool))), Comparable::Bool),
        Word::Text(text) => (Operand::Value(Some(Value::Text(text.clone()))), Comparable::Text { pads: false }),
        Word::Number(text) => (Operand::Value(Some(number(text)?)), Comparable::Exact),
    })
}

fn number(text: &str) -> Result<Value, String> {
    Numeric::parse(text).map(Value::Numeric).ok_or_else(|| format!("`{text}` is not a number"))
}

fn compared(relation: Relation, left: &Word, right: &Word, resolve: &Resolve<'_>) -> Result<Predicate, String> {
    let (mut one, mut how) = alone(left, resolve)?;
    let (mut two, other) = alone(right, resolve)?;
    match (left, right) {
        (Word::Column(a), Word::Column(b)) => {
            let ((_, first), (_, second)) = (resolve(a)?, resolve(b)?);
            how = join(how, other, &first, &second).ok_or_else(|| {
                format!("`{a}` ({}) and `{b}` ({}) cannot be compared; cast one of them", first.name, second.name)
            })?;
        }
        (Word::Column(name), word) => {
            let (_, type_) = resolve(name)?;
            (two, how) = literal(word, &type_)?;
        }
        (word, Word::Column(name)) => {
            let (_, type_) = resolve(name)?;
            (one, how) = literal(word, &type_)?;
        }
        _ if how == other || matches!((left, right), (Word::Null, _) | (_, Word::Null)) => {}
        _ => return Err("two values of different kinds cannot be compared".to_owned()),
    }
    if relation.needs_order() && matches!(how, Comparable::Text { .. }) {
        return Err(
            "the order of texts depends on the database's collation; only =, <>, IN and LIKE compare texts".to_owned()
        );
    }
    if matches!((&one, &two), (Operand::Value(None), _) | (_, Operand::Value(None))) {
        return Ok(Expr::Compare(relation, (one, how), (two, how)));
    }
    if how == Comparable::None {
        return Err("two columns are compared whose types can only be asked IS NULL".to_owned());
    }
    Ok(Expr::Compare(relation, (one, how), (two, how)))
}

fn join(one: Comparable, two: Comparable, first: &ColumnType, second: &ColumnType) -> Option<Comparable> {
    match (one, two) {
        (Comparable::Exact, Comparable::Float) | (Comparable::Float, Comparable::Exact) => Some(Comparable::Float),
        (Comparable::Moment, Comparable::Moment) if first.logical != second.logical => None,
        // SQLite would apply one column's affinity to the other's values.
        (Comparable::Dynamic, Comparable::Dynamic) if affinity(&first.name) != affinity(&second.name) => None,
        (Comparable::Text { pads: a }, Comparable::Text { pads: b }) => Some(Comparable::Text { pads: a && b }),
        (one, two) => (one == two).then_some(one),
    }
}

/// A literal as a value of the column's type, as the database itself would read it.
fn literal(word: &Word, type_: &ColumnType) -> Result<(Operand, Comparable), String> {
    let how = Comparable::of(type_);
    let refuse = |text: &str| format!("`{text}` is not a value of type {}", type_.name);
    let value = match (word, how) {
        (Word::Null, _) => return Ok((Operand::Value(None), how)),
        (_, Comparable::None) | (Word::Column(_), _) => {
            return Err(format!("a column of type {} can only be asked IS NULL", type_.name));
        }
        (Word::Bool(bool), Comparable::Bool) => Value::Bool(*bool),
        (Word::Bool(bool), Comparable::Dynamic) => Value::Int((*bool).into()),
        (Word::Number(text), Comparable::Exact) => number(text)?,
        // PostgreSQL compares a float with a number as doubles.
        (Word::Number(text), Comparable::Float) => cast::parse(text, Logical::Float64).ok_or_else(|| refuse(text))?,
        (Word::Number(text), Comparable::Dynamic) => match affinity(&type_.name) {
            Affinity::Text => Value::Text(text.clone()),
            _ => sqlite_number(text).ok_or_else(|| refuse(text))?,
        },
        (Word::Text(text), Comparable::Dynamic) => match affinity(&type_.name) {
            Affinity::Text | Affinity::Blob => Value::Text(text.clone()),
            _ => sqlite_number(text).unwrap_or_else(|| Value::Text(text.clone())),
        },
        (Word::Text(text), _) => cast::parse(text, type_.logical).ok_or_else(|| refuse(text))?,
        (Word::Bool(_) | Word::Number(_), _) => {
            return Err(format!("a column of type {} is compared with a value of another kind", type_.name));
        }
    };
    Ok((Operand::Value(Some(value)), how))
}

/// An integer where it fits, a double otherwise: what SQLite makes of the same word.
fn sqlite_number(text: &str) -> Option<Value> {
    let text = text.trim();
    text.parse().ok().map(Value::Int).or_else(|| {
        cast::parse(text, Logical::Float64).filter(|v| matches!(v, Value::Float64(float) if float.is_finite()))
    })
}
