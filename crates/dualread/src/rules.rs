//! When two answers are the same: what is ignored, and what is brought into one form first.

use crate::{Answer, Field, normal::Normal};
use serde::{Deserialize, Serialize};
use std::{cmp::Ordering, collections::BTreeSet, fmt, sync::Arc};

/// Some columns of an answer, by name; `*` stands for all.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Columns(BTreeSet<String>);

impl Columns {
    /// Whether a column is among them.
    pub fn has(&self, column: &str) -> bool {
        self.0.contains(column) || self.0.contains("*")
    }
}

impl<const N: usize> From<[&str; N]> for Columns {
    fn from(names: [&str; N]) -> Self {
        Self(names.into_iter().map(str::to_owned).collect())
    }
}

/// Whether the order of the rows is a part of the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// It is.
    #[default]
    Kept,
    /// It is not: the same rows as often are the same answer.
    Any,
}

/// How exact moments are compared: what is finer is cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Precision {
    /// Microseconds
    #[default]
    #[serde(rename = "us")]
    Micros,
    /// Milliseconds
    #[serde(rename = "ms")]
    Millis,
    /// Seconds
    #[serde(rename = "s")]
    Seconds,
}

/// When two answers are the same. By default columns go by name, in any order of columns, rows in order, and values by
/// PostgreSQL's text form, whatever their types; raw bytes are never text, and NULL is only NULL.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Rules {
    /// Columns that are not compared.
    pub ignore: Columns,
    /// Columns compared as numbers: 1, 1.0 and 1.00 are the same, also where one side has them as text.
    pub numbers: Columns,
    /// Digits behind the point to which those numbers are rounded.
    pub digits: Option<u32>,
    /// Columns compared as moments, however they are written; without a zone they are taken for UTC.
    pub moments: Columns,
    /// How exact moments are.
    pub precision: Precision,
    /// Columns compared as true or false: `t`, `true` and 1 are the same.
    pub booleans: Columns,
    /// Columns whose texts are compared without white space around them.
    pub trim: Columns,
    /// Whether the order of rows counts.
    pub order: Order,
    /// Columns go by their place, not by their name.
    pub by_place: bool,
    /// A column that one answer lacks is NULL there.
    pub absent_is_null: bool,
}

/// How two answers differ. Never holds a value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Mismatch {
    /// In what.
    pub kind: MismatchKind,
    /// How many rows differ; those that only one side has are among them.
    pub rows: u64,
    /// The columns in which they do, as far as that is known.
    pub columns: Vec<String>,
}

/// In what two answers differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum MismatchKind {
    /// They do not have the same columns.
    Columns,
    /// They do not have as many rows.
    RowCount,
    /// Values differ, or the order of rows does.
    Values,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            MismatchKind::Columns => f.write_str("other columns")?,
            MismatchKind::RowCount | MismatchKind::Values => {
                if self.kind == MismatchKind::RowCount {
                    f.write_str("another number of rows, ")?;
                }
                match self.rows {
                    1 => f.write_str("1 row differs")?,
                    rows => write!(f, "{rows} rows differ")?,
                }
            }
        }
        if self.columns.is_empty() { Ok(()) } else { write!(f, ": {}", self.columns.join(", ")) }
    }
}

impl Mismatch {
    /// Of two things that are only known to differ.
    pub fn whole() -> Self {
        Self { kind: MismatchKind::Values, rows: 1, columns: Vec::new() }
    }
}

/// Compares by equality: for answers of the application's own types.
pub fn exactly<T: PartialEq>(control: &T, candidate: &T) -> Option<Mismatch> {
    (control != candidate).then(Mismatch::whole)
}

/// A column of both answers: its name, and its place in either; none where that one lacks it.
struct Paired {
    name: Arc<str>,
    control: Option<usize>,
    candidate: Option<usize>,
}

type Normals = Vec<Vec<Normal>>;

impl Rules {
    /// These rules as a comparison of things that `answer` makes answers of.
    pub fn comparing<T>(
        self,
        answer: impl Fn(&T) -> Answer + Send + Sync + 'static,
    ) -> impl Fn(&T, &T) -> Option<Mismatch> + Clone + Send + Sync + 'static
    where
        T: 'static,
    {
        let known = Arc::new((self, answer));
        move |control, candidate| {
            let (rules, answer) = &*known;
            rules.difference(&answer(control), &answer(candidate))
        }
    }

    /// How the two differ; `None` where they are the same.
    pub fn difference(&self, control: &Answer, candidate: &Answer) -> Option<Mismatch> {
        let columns = match self.paired(control, candidate) {
            Ok(columns) => columns,
            Err(columns) => return Some(Mismatch { kind: MismatchKind::Columns, rows: 0, columns }),
        };
        let mut one = self.normals(control, &columns, |column| column.control);
        let mut two = self.normals(candidate, &columns, |column| column.candidate);
        if one == two {
            return None;
        }
        if self.order == Order::Any {
            one.sort_unstable();
            two.sort_unstable();
            if one == two {
                return None;
            }
        }
        let kind = if one.len() == two.len() { MismatchKind::Values } else { MismatchKind::RowCount };
        let (rows, places) = match self.order {
            Order::Kept => side_by_side(&one, &two),
            Order::Any => (only_in_one(&one, &two), BTreeSet::new()),
        };
        let columns = places.into_iter().filter_map(|place| Some(columns.get(place)?.name.to_string())).collect();
        Some(Mismatch { kind, rows, columns })
    }

    /// The columns that are compared; those that only one side has are the error.
    fn paired(&self, control: &Answer, candidate: &Answer) -> Result<Vec<Paired>, Vec<String>> {
        let (one, two) = (&control.columns, &candidate.columns);
        if self.by_place {
            let most = one.len().max(two.len());
            let all = (0..most).filter_map(|place| {
                let name = one.get(place).or_else(|| two.get(place))?.clone();
                let there = |columns: &[Arc<str>]| (place < columns.len()).then_some(place);
                Some(Paired { name, control: there(one), candidate: there(two) })
            });
            return self.kept(all);
        }
        let place = |columns: &[Arc<str>], name: &str| columns.iter().position(|column| **column == *name);
        let of_control = one.iter().enumerate().map(|(at, name)| Paired {
            name: name.clone(),
            control: Some(at),
            candidate: place(two, name),
        });
        let of_candidate = two.iter().enumerate().filter(|(_, name)| place(one, name).is_none());
        let of_candidate =
            of_candidate.map(|(at, name)| Paired { name: name.clone(), control: None, candidate: Some(at) });
        self.kept(of_control.chain(of_candidate))
    }

    fn kept(&self, all: impl Iterator<Item = Paired>) -> Result<Vec<Paired>, Vec<String>> {
        let kept: Vec<Paired> = all.filter(|column| !self.ignore.has(&column.name)).collect();
        let lacking = |column: &&Paired| column.control.is_none() || column.candidate.is_none();
        let lacking: Vec<String> = kept.iter().filter(lacking).map(|column| column.name.to_string()).collect();
        if lacking.is_empty() || self.absent_is_null { Ok(kept) } else { Err(lacking) }
    }

    fn normals(&self, answer: &Answer, columns: &[Paired], place: impl Fn(&Paired) -> Option<usize>) -> Normals {
        let normal = |row: &Vec<Field>| -> Vec<Normal> {
            columns
                .iter()
                .map(|column| {
                    let value = place(column).and_then(|place| row.get(place)).and_then(|field| field.0.as_ref());
                    value.map_or(Normal::Null, |value| self.normal(&column.name, value))
                })
                .collect()
        };
        answer.rows.iter().map(normal).collect()
    }

    fn normal(&self, column: &str, value: &crossfade_event::Value) -> Normal {
        if self.numbers.has(column)
            && let Some(number) = Normal::number(value, self.digits)
        {
            return number;
        }
        if self.moments.has(column)
            && let Some(moment) = Normal::moment(value, self.precision)
        {
            return moment;
        }
        if self.booleans.has(column)
            && let Some(truth) = Normal::truth(value)
        {
            return truth;
        }
        match Normal::plain(value) {
            Normal::Text(text) if self.trim.has(column) => Normal::Text(trimmed(text)),
            other => other,
        }
    }
}

fn trimmed(text: String) -> String {
    if text.trim().len() == text.len() { text } else { text.trim().to_owned() }
}

/// Rows that differ place by place, and the columns in which they do.
fn side_by_side(one: &Normals, two: &Normals) -> (u64, BTreeSet<usize>) {
    let mut rows = one.len().abs_diff(two.len()) as u64;
    let mut places = BTreeSet::new();
    for (one, two) in one.iter().zip(two).filter(|(one, two)| one != two) {
        rows += 1;
        places.extend(one.iter().zip(two).enumerate().filter(|(_, (one, two))| one != two).map(|(place, _)| place));
    }
    (rows, places)
}

/// Of two sorted lists, how many rows the side has over that has more of them over.
fn only_in_one(one: &Normals, two: &Normals) -> u64 {
    let (mut left, mut right) = (one.iter().peekable(), two.iter().peekable());
    let (mut only_left, mut only_right) = (0, 0);
    loop {
        let order = match (left.peek(), right.peek()) {
            (None, None) => return only_left.max(only_right),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(one), Some(two)) => one.cmp(two),
        };
        if order.is_le() {
            left.next();
        }
        if order.is_ge() {
            right.next();
        }
        only_left += u64::from(order.is_lt());
        only_right += u64::from(order.is_gt());
    }
}

#[cfg(test)]
mod tests;
