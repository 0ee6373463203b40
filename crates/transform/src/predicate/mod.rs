//! Conditions on rows: a documented subset of SQL with SQL's NULL rules.
//!
//! ```text
//! condition   := conjunction { OR conjunction }
//! conjunction := negation { AND negation }
//! negation    := [NOT] ( "(" condition ")" | test )
//! test        := operand [ = | <> | != | < | <= | > | >= operand
//!                        | IS [NOT] NULL | IS [NOT] TRUE | IS [NOT] FALSE
//!                        | [NOT] IN ( literal, … ) | [NOT] LIKE 'pattern' | [NOT] BETWEEN operand AND operand ]
//! operand     := column | "Column" | 'text' | number | TRUE | FALSE | NULL
//! ```
//!
//! A row passes only when the condition is true: not when it is false, and not when it is NULL. The order of texts
//! depends on the database's collation, so PostgreSQL's texts can only be compared for equality; SQLite compares bytes.

mod compare;
mod parse;

pub(crate) use compare::{Comparable, compile, never};
use parse::{ParseError, parse};

use crate::program::Reg;
use crossfade_event::{ColumnType, Value};
use std::cmp::Ordering;

/// A condition as written.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Expr<O> {
    And(Box<Self>, Box<Self>),
    Or(Box<Self>, Box<Self>),
    Not(Box<Self>),
    Compare(Relation, O, O),
    IsNull(O),
    /// `IS TRUE` or `IS FALSE`: never NULL.
    Is(Box<Self>, bool),
    Like(O, Pattern),
    /// A boolean by itself.
    Truth(O),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Relation {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

impl Relation {
    fn holds(self, ordering: Ordering) -> bool {
        match self {
            Self::Equal => ordering.is_eq(),
            Self::NotEqual => ordering.is_ne(),
            Self::Less => ordering.is_lt(),
            Self::LessOrEqual => ordering.is_le(),
            Self::Greater => ordering.is_gt(),
            Self::GreaterOrEqual => ordering.is_ge(),
        }
    }

    fn needs_order(self) -> bool {
        !matches!(self, Self::Equal | Self::NotEqual)
    }
}

/// A LIKE pattern, cut into its parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pattern {
    parts: Vec<Part>,
    folds_ascii: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Any,
    One,
    This(char),
}

impl Pattern {
    /// `None` when the pattern ends in its escape character.
    fn parse(text: &str) -> Option<Self> {
        let mut parts = Vec::new();
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            parts.push(match c {
                '%' => Part::Any,
                '_' => Part::One,
                '\\' => Part::This(chars.next()?),
                c => Part::This(c),
            });
        }
        Some(Self { parts, folds_ascii: false })
    }

    fn matches(&self, text: &str) -> bool {
        let text: Vec<char> = text.chars().collect();
        let same = |a: char, b: char| a == b || (self.folds_ascii && a.eq_ignore_ascii_case(&b));
        let (mut at, mut part) = (0, 0);
        let mut retry: Option<(usize, usize)> = None;
        while at < text.len() {
            let here = text.get(at).copied().unwrap_or_default();
            match self.parts.get(part) {
                Some(Part::Any) => {
                    retry = Some((part + 1, at));
                    part += 1;
                    continue;
                }
                Some(Part::One) => {}
                Some(Part::This(wanted)) if same(*wanted, here) => {}
                _ => match retry {
                    // Let the last `%` take one character more.
                    Some((after, from)) => {
                        (part, at) = (after, from + 1);
                        retry = Some((after, at));
                        continue;
                    }
                    None => return false,
                },
            }
            at += 1;
            part += 1;
        }
        self.parts.get(part..).unwrap_or_default().iter().all(|part| *part == Part::Any)
    }
}

/// True, false, NULL; or not to be known, for a cell that it depends on is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Truth {
    True,
    False,
    Null,
    /// All cells that it needs were not sent, for they did not change: neither did the condition because of them.
    Unknown,
}

impl Truth {
    fn of(value: Option<bool>) -> Self {
        match value {
            Some(true) => Self::True,
            Some(false) => Self::False,
            None => Self::Null,
        }
    }

    fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::False, _) | (_, Self::False) => Self::False,
            (Self::Unknown, _) | (_, Self::Unknown) => Self::Unknown,
            (Self::Null, _) | (_, Self::Null) => Self::Null,
            (Self::True, Self::True) => Self::True,
        }
    }

    fn not(self) -> Self {
        match self {
            Self::True => Self::False,
            Self::False => Self::True,
            other => other,
        }
    }
}

/// An operand, made ready: a register, or a value of the other side's type.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Operand {
    Register(usize),
    Value(Option<Value>),
}

/// A condition that can be asked.
pub(crate) type Predicate = Expr<(Operand, Comparable)>;

/// Asks a condition of the registers.
///
/// # Errors
/// When a cell's bytes cannot be read.
pub(crate) fn ask(condition: &Predicate, regs: &[Reg<'_>], types: &[ColumnType]) -> Result<Truth, String> {
    Ok(match condition {
        Expr::And(left, right) => ask(left, regs, types)?.and(ask(right, regs, types)?),
        Expr::Or(left, right) => ask(left, regs, types)?.not().and(ask(right, regs, types)?.not()).not(),
        Expr::Not(inner) => ask(inner, regs, types)?.not(),
        Expr::Is(inner, wanted) => match ask(inner, regs, types)? {
            Truth::Unknown => Truth::Unknown,
            truth => Truth::of(Some(truth == if *wanted { Truth::True } else { Truth::False })),
        },
        Expr::IsNull((operand, _)) => match value_of(operand, regs, types)? {
            Found::Missing => Truth::Unknown,
            Found::Null => Truth::True,
            Found::Value(_) => Truth::False,
        },
        Expr::Compare(relation, (left, how), (right, _)) => {
            let (left, right) = (value_of(left, regs, types)?, value_of(right, regs, types)?);
            match (left, right) {
                (Found::Missing, _) | (_, Found::Missing) => Truth::Unknown,
                (Found::Value(left), Found::Value(right)) => {
                    let ordering = how.compare(&left, &right).ok_or("two values cannot be compared")?;
                    Truth::of(Some(relation.holds(ordering)))
                }
                _ => Truth::Null,
            }
        }
        Expr::Like((operand, how), pattern) => match value_of(operand, regs, types)? {
            Found::Missing => Truth::Unknown,
            Found::Null => Truth::Null,
            Found::Value(value) => Truth::of(Some(how.text(&value).is_some_and(|text| pattern.matches(&text)))),
        },
        Expr::Truth((operand, _)) => match value_of(operand, regs, types)? {
            Found::Missing => Truth::Unknown,
            Found::Null => Truth::Null,
            Found::Value(Value::Bool(bool)) => Truth::of(Some(bool)),
            Found::Value(Value::Int(int)) => Truth::of(Some(int != 0)),
            Found::Value(_) => return Err("a value stands where true or false was expected".to_owned()),
        },
    })
}

enum Found {
    Missing,
    Null,
    Value(Value),
}

fn value_of(operand: &Operand, regs: &[Reg<'_>], types: &[ColumnType]) -> Result<Found, String> {
    match operand {
        Operand::Value(None) => Ok(Found::Null),
        Operand::Value(Some(value)) => Ok(Found::Value(value.clone())),
        Operand::Register(register) => match regs.get(*register) {
            None | Some(Reg::Absent | Reg::Unchanged) => Ok(Found::Missing),
            Some(Reg::Null) => Ok(Found::Null),
            Some(reg) => match (reg.value(types.get(*register)), reg) {
                (Ok(Some(value)), _) => Ok(Found::Value(value)),
                (Ok(None), _) => Ok(Found::Null),
                (Err(reason), _) => Err(reason),
            },
        },
    }
}

/// The registers that a condition looks at.
pub(crate) fn registers(condition: &Predicate, out: &mut Vec<usize>) {
    let mut add = |operand: &Operand| {
        if let Operand::Register(register) = operand {
            out.push(*register);
        }
    };
    match condition {
        Expr::And(left, right) | Expr::Or(left, right) => {
            registers(left, out);
            registers(right, out);
        }
        Expr::Not(inner) | Expr::Is(inner, _) => registers(inner, out),
        Expr::Compare(_, (left, _), (right, _)) => {
            add(left);
            add(right);
        }
        Expr::IsNull((operand, _)) | Expr::Like((operand, _), _) | Expr::Truth((operand, _)) => add(operand),
    }
}

#[cfg(test)]
mod tests;
