//! What rows from before a column read in it: the constant that the source gave them, taken the way that rows take,
//! and written in the words of the target.

use crate::{
    bind::Views,
    cast::{carry, parse},
    predicate::Truth,
    program::{Op, Reg, Run},
    types::{Affinity, affinity},
};
use bytes::{Bytes, BytesMut};
use crossfade_event::{Column, ColumnType, Key, Logical, Row, Value, catalog::Dialect, codec};

/// So many digits of a decimal every release of SQLite reads as the float that was meant.
const SURE_DIGITS: usize = 15;

/// The way of one column's values.
pub(super) struct Way<'w> {
    pub(super) from: Dialect,
    pub(super) to: Dialect,
    pub(super) register: usize,
    pub(super) types: &'w [ColumnType],
    pub(super) ops: &'w [Op],
    pub(super) out: &'w ColumnType,
}

struct NoViews;

impl Views for NoViews {
    fn get(&self, _: u32, _: &Key) -> Option<Row> {
        None
    }
}

impl Way<'_> {
    /// The default as the target's literal; `None` when old rows read NULL.
    ///
    /// # Errors
    /// Why it cannot be said, without the value.
    pub(super) fn literal(&self, column: &Column, default: &str) -> Result<Option<String>, String> {
        let value = constant(self.from, &column.type_, default)
            .ok_or_else(|| "it is no constant that can be read".to_owned())?;
        let mut run = Run { regs: vec![Reg::Absent; self.types.len()], types: self.types, views: &NoViews, old: true };
        if let Some(slot) = run.regs.get_mut(self.register) {
            *slot = value.map_or(Reg::Null, Reg::Value);
        }
        if run.all(self.ops)? == Truth::False {
            return Err("a filter asks for the column".to_owned());
        }
        let value = match run.regs.get(self.register) {
            Some(Reg::Null) => return Ok(None),
            Some(Reg::Value(value)) => carry(value.clone(), self.out)?,
            _ => return Err("its value needs other columns of the row".to_owned()),
        };
        let kind = value.kind();
        let written = match self.to {
            Dialect::Postgres => in_postgres(&value, &self.out.name),
            Dialect::Sqlite => in_sqlite(&value),
        };
        written.map(Some).ok_or_else(|| format!("a {kind} value like this one has no literal in the target"))
    }
}

/// What rows from before a column read in it, as a cell: `Some(None)` for NULL, `None` where its default is no constant that
/// can be read.
pub fn default_cell(source: Dialect, column: &Column) -> Option<Option<Bytes>> {
    let Some(default) = column.default.as_deref() else { return Some(None) };
    let Some(value) = constant(source, &column.type_, default)? else { return Some(None) };
    let mut cell = BytesMut::new();
    codec::encode(&column.type_, &value, &mut cell).ok()?;
    Some(Some(cell.freeze()))
}

/// The value that a literal of the source stands for in a column of this type.
fn constant(source: Dialect, type_: &ColumnType, default: &str) -> Option<Option<Value>> {
    match source {
        Dialect::Postgres => of_postgres(type_, default),
        Dialect::Sqlite => of_sqlite(&type_.name, default),
    }
}

/// Reads `'x'::text`, `E'a\\b'::text` and `NULL::text`, as the source writes what it found.
fn of_postgres(type_: &ColumnType, default: &str) -> Option<Option<Value>> {
    let body = default.strip_suffix(&*type_.name)?.strip_suffix("::")?;
    if body == "NULL" {
        return Some(None);
    }
    let inside = |start: &str| body.strip_prefix(start)?.strip_suffix('\'').map(|text| text.replace("''", "'"));
    let text = inside("E'").map(|text| text.replace("\\\\", "\\")).or_else(|| inside("'"))?;
    if type_.logical == Logical::Opaque {
        return Some(Some(Value::Other(text)));
    }
    codec::from_text(type_.logical, &text).map(Some)
}

/// Reads a literal of SQLite as a row of a column with that declared type reads it.
fn of_sqlite(declared: &str, default: &str) -> Option<Option<Value>> {
    let text = default.trim();
    let lower = text.to_lowercase();
    let quoted = |quote: char| {
        let inside = text.strip_prefix(quote)?.strip_suffix(quote)?;
        let mut rest = inside.replace(&format!("{quote}{quote}"), "");
        rest.retain(|c| c == quote);
        rest.is_empty().then(|| inside.replace(&format!("{quote}{quote}"), &quote.to_string()))
    };
    let value = match lower.as_str() {
        "null" => return Some(None),
        "true" => Value::Int(1),
        "false" => Value::Int(0),
        _ if lower.starts_with("x'") => {
            let digits = lower.strip_prefix("x'")?.strip_suffix('\'')?;
            parse(&format!("\\x{digits}"), Logical::Bytes)?
        }
        _ => match quoted('\'').or_else(|| quoted('"')) {
            Some(text) => Value::Text(text),
            None => number(&lower)?,
        },
    };
    with_affinity(affinity(declared), value).map(Some)
}

/// A whole number or a decimal, with a sign perhaps.
fn number(text: &str) -> Option<Value> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit() || b"+-.e".contains(&byte));
    if !plain || !text.bytes().any(|byte| byte.is_ascii_digit()) {
        return None;
    }
    if let Ok(int) = text.parse() {
        return Some(Value::Int(int));
    }
    let float: f64 = text.parse().ok()?;
    (float.is_finite() && text.bytes().filter(u8::is_ascii_digit).count() <= SURE_DIGITS)
        .then_some(Value::Float64(float))
}

/// What SQLite makes of a value that is stored in such a column; `None` where it cannot be told for sure.
fn with_affinity(affinity: Affinity, value: Value) -> Option<Value> {
    Some(match (affinity, value) {
        (Affinity::Blob, value) | (_, value @ Value::Bytes(_)) => value,
        (Affinity::Text, Value::Int(int)) => Value::Text(int.to_string()),
        (Affinity::Text, Value::Float64(_)) => return None,
        (Affinity::Text, value) => value,
        (numeric, Value::Text(text)) => {
            // Text that is a number becomes one. Words stay text; what is neither for sure is left to others.
            let trimmed = text.trim().to_lowercase();
            if trimmed.chars().next().is_some_and(|first| first.is_ascii_digit() || "+-.".contains(first)) {
                match number(&trimmed) {
                    Some(value) => return with_affinity(numeric, value),
                    None if trimmed.parse::<f64>().is_ok() => return None,
                    None => {}
                }
            }
            Value::Text(text)
        }
        (Affinity::Real, Value::Int(int)) => Value::Float64(int as f64),
        (Affinity::Integer | Affinity::Numeric, Value::Float64(float)) if float.fract() == 0.0 => {
            if float.abs() >= 9e15 {
                return None;
            }
            Value::Int(float as i64)
        }
        (_, value) => value,
    })
}

fn in_postgres(value: &Value, type_name: &str) -> Option<String> {
    if matches!(value, Value::RawText(_)) {
        return None;
    }
    let text = codec::to_text(value);
    let quoted = text.replace('\'', "''");
    // PostgreSQL has no character zero.
    (!text.contains('\0')).then(|| match text.contains('\\') {
        true => format!("E'{}'::{type_name}", quoted.replace('\\', "\\\\")),
        false => format!("'{quoted}'::{type_name}"),
    })
}

fn in_sqlite(value: &Value) -> Option<String> {
    Some(match value {
        Value::Int(int) => int.to_string(),
        Value::Float64(float) if float.is_infinite() => if *float > 0.0 { "9e999" } else { "-9e999" }.to_owned(),
        Value::Float64(float) => {
            let text = format!("{float:?}");
            let digits = text.split('e').next()?.bytes().filter(u8::is_ascii_digit).count();
            return (digits <= SURE_DIGITS).then_some(text);
        }
        Value::Text(text) if !text.contains('\0') => format!("'{}'", text.replace('\'', "''")),
        Value::Bytes(_) => format!("x'{}'", codec::to_text(value).strip_prefix("\\x")?),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{TypeSpec, for_sqlite_declared, sqlite_column};

    fn column(type_: ColumnType) -> Column {
        Column { name: "c".into(), type_, key: None, nullable: true, native_id: 9, default: None }
    }

    fn to_sqlite(type_name: &str, declared: &str, default: &str) -> Result<Option<String>, String> {
        let type_ = TypeSpec::postgres(type_name).unwrap().postgres_column();
        let (types, out) = ([type_.clone()], sqlite_column(declared));
        let (from, to) = (Dialect::Postgres, Dialect::Sqlite);
        Way { from, to, register: 0, types: &types, ops: &[], out: &out }.literal(&column(type_), default)
    }

    fn to_postgres(declared: &str, default: &str) -> Result<Option<String>, String> {
        let type_ = sqlite_column(declared);
        let (types, out) = ([type_.clone()], for_sqlite_declared(declared).postgres_column());
        let (from, to) = (Dialect::Sqlite, Dialect::Postgres);
        Way { from, to, register: 0, types: &types, ops: &[], out: &out }.literal(&column(type_), default)
    }

    #[test]
    fn postgres_constants_become_what_rows_hold_in_sqlite() {
        for (type_name, declared, default, expected) in [
            ("text", "TEXT", "'it''s'::text", "'it''s'"),
            ("text", "TEXT", r"E'a\\b''c'::text", r"'a\b''c'"),
            ("integer", "INTEGER", "'-5'::integer", "-5"),
            ("numeric(8,2)", "TEXT", "'1.50'::numeric(8,2)", "'1.50'"),
            ("boolean", "INTEGER", "'t'::boolean", "1"),
            ("double precision", "REAL", "'0.25'::double precision", "0.25"),
            ("bytea", "BLOB", r"E'\\x00ff'::bytea", "x'00ff'"),
        ] {
            assert_eq!(to_sqlite(type_name, declared, default), Ok(Some(expected.to_owned())), "{default}");
        }
        assert_eq!(to_sqlite("text", "TEXT", "NULL::text"), Ok(None));
        assert!(to_sqlite("text", "TEXT", "now()").is_err());
        assert!(to_sqlite("double precision", "REAL", "'NaN'::double precision").is_err());
    }

    #[test]
    fn sqlite_constants_become_what_rows_hold_in_postgres() {
        for (declared, default, expected) in [
            ("TEXT", r"'it''s a\b'", r"E'it''s a\\b'::text"),
            ("TEXT", "5", "'5'::text"),
            ("INTEGER", "-7", "'-7'::bigint"),
            ("INTEGER", "'12'", "'12'::bigint"),
            ("DECIMAL(8,2)", "1.5", "'1.5'::numeric"),
            ("BOOLEAN", "TRUE", "'t'::boolean"),
            ("BLOB", "x'00FF'", r"E'\\x00ff'::bytea"),
            ("DATETIME", "'2024-01-02 03:04:05'", "'2024-01-02 03:04:05'::timestamp without time zone"),
        ] {
            assert_eq!(to_postgres(declared, default), Ok(Some(expected.to_owned())), "{default}");
        }
        assert_eq!(to_postgres("TEXT", "NULL"), Ok(None));
        for (declared, default) in
            [("TEXT", "CURRENT_TIMESTAMP"), ("INTEGER", "1 + 1"), ("INTEGER", "'many'"), ("TEXT", "'a' || 'b'")]
        {
            assert!(to_postgres(declared, default).is_err(), "{default}");
        }
    }
}
