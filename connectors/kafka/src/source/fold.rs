//! The rows that a table's topic amounts to, put together from its changes.

use super::{
    DebeziumConfig,
    envelope::{self, Change, Op},
    record::{Moved, What, decode},
    shape::{Misfit, Shape},
    types,
    value::Placeholder,
};
use crossfade_event::{Cell, Identity, Key, Row, RowBuilder, TableSchema};
use std::{
    borrow::Cow,
    collections::{HashMap, HashSet},
    sync::Arc,
};

/// Bytes of rows that one look at a table may hold.
const BYTES_MAX: usize = 1 << 30;

/// A transaction, and a place in the history.
type Place = (u64, u64);

/// Whose values are still to come.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Owed {
    Row(Key),
    Gone(Place),
}

/// A table's rows, put together from its changes.
pub(super) struct Fold {
    shape: Shape,
    reader: envelope::Reader,
    placeholder: Placeholder,
    keyed: HashMap<Key, Row>,
    /// Without a key: how many of each.
    counted: HashMap<Row, i64>,
    bytes: usize,
    last: HashMap<u64, u64>,
    /// A row that moves to another key is deleted and created at one place in the history, in either order as the
    /// partitions are read: what it had, until it comes, and where it is, until it goes.
    gone: HashMap<Place, Row>,
    awaited: HashMap<Place, Owed>,
    /// What rows from before a column read in it, and the schemas that were asked.
    constants: Vec<Option<Option<String>>>,
    asked: HashSet<u64>,
    /// The keys that rows have in the topic of the other key version.
    others: HashMap<Key, Vec<u8>>,
    /// Both key versions stand in one record.
    both: bool,
}

impl Fold {
    pub(super) fn new(schema: &TableSchema, config: &DebeziumConfig) -> Self {
        Self {
            shape: Shape::new(Arc::new(schema.clone()), config.handling),
            reader: envelope::Reader::default(),
            placeholder: Placeholder::new(&config.unavailable),
            keyed: HashMap::new(),
            counted: HashMap::new(),
            bytes: 0,
            last: HashMap::new(),
            gone: HashMap::new(),
            awaited: HashMap::new(),
            constants: vec![None; schema.columns.len()],
            asked: HashSet::new(),
            others: HashMap::new(),
            both: false,
        }
    }

    /// Of records that tell both key versions; the schema has the columns of both, as `v1.NAME` and `v2.NAME`.
    pub(super) fn of_both(schema: &TableSchema, config: &DebeziumConfig) -> Self {
        Self { both: true, ..Self::new(schema, config) }
    }

    pub(super) fn take(&mut self, message: &rdkafka::message::BorrowedMessage<'_>) -> Result<(), String> {
        let record = decode(&mut self.reader, message, 0, false).map_err(|foreign| foreign.to_string())?;
        if self.bytes > BYTES_MAX {
            return Err("the table's rows are more than one look at it may hold (1 GiB)".to_owned());
        }
        match record.what {
            What::Change(moved) if self.both => self.apply(&flat(*moved)).map_err(|misfit| misfit.to_string()),
            What::Change(moved) => self.apply(&moved).map_err(|misfit| misfit.to_string()),
            What::Tombstone | What::Mark(_) => Ok(()),
        }
    }

    fn apply(&mut self, moved: &Moved) -> Result<(), Misfit> {
        let change = &moved.change;
        let wires = self.shape.wires_now(change)?;
        if let Some(seen) = &change.schema
            && self.asked.insert(seen.number)
        {
            let said = self.shape.constants(&wires, seen)?;
            for (known, said) in self.constants.iter_mut().zip(said) {
                *known = known.take().or(said);
            }
        }
        let row = |image: &Option<envelope::Image>| match image {
            Some(image) => self.shape.row_now(&wires, image, &self.placeholder).map(Some),
            None => Ok(None),
        };
        if change.op == Op::Truncate {
            self.keyed.clear();
            self.counted.clear();
            return Ok(());
        }
        if self.shape.schema.identity != Identity::Key {
            return self.count(change, row(&change.before)?, row(&change.after)?);
        }
        let Some(key) = &moved.key else { return Ok(()) };
        let at = self.shape.key_now(&wires, &key.cells, &self.placeholder)?;
        let place = (change.origin.xid.unwrap_or_default(), change.origin.lsn.unwrap_or_default());
        match (&change.after, &moved.other) {
            (Some(_), Some(other)) => drop(self.others.insert(at.clone(), other.clone())),
            _ => drop(self.others.remove(&at)),
        }
        match row(&change.after)? {
            Some(new) => self.comes(at, new, place, moved.comes),
            None => self.goes(&at, place, moved.goes),
        }
        Ok(())
    }

    fn comes(&mut self, at: Key, new: Row, place: Place, moved: bool) {
        let before = match self.keyed.get(&at) {
            Some(before) => Some(before.clone()),
            None if moved => self.gone.remove(&place),
            None => None,
        };
        let new = match &before {
            Some(before) => filled(&new, before),
            None => new,
        };
        if moved && is_torn(&new) {
            match before {
                Some(_) => self.hand_on(&Owed::Gone(place), &Owed::Row(at.clone())),
                None => drop(self.awaited.insert(place, Owed::Row(at.clone()))),
            }
        }
        self.bytes += new.as_bytes().len() + 128;
        self.keyed.insert(at, new);
    }

    fn goes(&mut self, at: &Key, place: Place, moved: bool) {
        let Some(old) = self.keyed.remove(at) else { return };
        let awaited = self.awaited.remove(&place);
        if is_torn(&old) {
            // What is still owed to it goes straight to whoever was waiting for it.
            self.hand_on(&Owed::Row(at.clone()), awaited.as_ref().unwrap_or(&Owed::Gone(place)));
        }
        let owed = match awaited {
            Some(Owed::Row(key)) => self.keyed.get_mut(&key),
            Some(Owed::Gone(place)) => self.gone.get_mut(&place),
            None => None,
        };
        match owed {
            Some(new) => *new = filled(new, &old),
            None if moved => drop(self.gone.insert(place, old)),
            None => {}
        }
    }

    /// What was owed to one row is owed to where it has gone.
    fn hand_on(&mut self, from: &Owed, to: &Owed) {
        for owed in self.awaited.values_mut().filter(|owed| *owed == from) {
            *owed = to.clone();
        }
    }

    fn count(&mut self, change: &Change, old: Option<Row>, new: Option<Row>) -> Result<(), Misfit> {
        // Sent twice: the same place in the same transaction.
        if let Some(block) = &change.block
            && let Some(xid) = envelope::xid(&block.id)
            && self.last.insert(xid, block.total_order).is_some_and(|last| last >= block.total_order)
        {
            self.last.insert(xid, block.total_order);
            return Ok(());
        }
        let new = match (new, &old) {
            (Some(new), Some(old)) => Some(filled(&new, old)),
            (new, _) => new,
        };
        for (row, by) in [(old, -1), (new, 1)] {
            if let Some(row) = row {
                self.bytes += if by > 0 { row.as_bytes().len() + 64 } else { 0 };
                *self.counted.entry(row).or_default() += by;
            }
        }
        Ok(())
    }

    pub(super) fn rows(self) -> Vec<Row> {
        let several = self
            .counted
            .into_iter()
            .flat_map(|(row, count)| std::iter::repeat_n(row, usize::try_from(count).unwrap_or_default()));
        let whole = Whole::new(&self.shape.schema, self.constants);
        self.keyed.into_values().chain(several).map(|row| whole.row(&row)).collect()
    }

    /// The rows with their keys, and the keys that they have in the topic of the other key version.
    pub(super) fn pairs(mut self) -> Vec<(Key, Option<Vec<u8>>, Row)> {
        let whole = Whole::new(&self.shape.schema, self.constants);
        let mut pairs = Vec::with_capacity(self.keyed.len());
        for (key, row) in self.keyed {
            let other = self.others.remove(&key);
            pairs.push((key, other, whole.row(&row)));
        }
        pairs
    }
}

/// How a row of now is made of what was read.
struct Whole {
    constants: Vec<Option<Option<String>>>,
    spellings: Vec<Spelling>,
}

impl Whole {
    fn new(schema: &TableSchema, constants: Vec<Option<Option<String>>>) -> Self {
        let spellings = schema.columns.iter().map(|column| Spelling::of(&column.type_.name)).collect();
        Self { constants, spellings }
    }

    fn row(&self, row: &Row) -> Row {
        let mut whole = RowBuilder::with_capacity(self.constants.len(), row.as_bytes().len());
        for ((cell, constant), spelling) in row.cells().zip(&self.constants).zip(&self.spellings) {
            match (cell, constant) {
                (Cell::Absent, Some(Some(text))) => whole.push(Cell::Bytes(&spelling.spell(text.as_bytes()))),
                (Cell::Absent, _) => whole.push(Cell::Null),
                (Cell::Bytes(text), _) => whole.push(Cell::Bytes(&spelling.spell(text))),
                (cell, _) => whole.push(cell),
            }
        }
        whole.finish()
    }
}

/// A change that tells both key versions, with its columns as `v1.NAME` and `v2.NAME`.
fn flat(mut moved: Moved) -> Moved {
    let flat = |image: envelope::Image| -> envelope::Image {
        let parts = image.into_iter().flat_map(|(version, part)| match part {
            serde_json::Value::Object(part) => {
                part.into_iter().map(|(name, json)| (format!("{version}.{name}"), json)).collect()
            }
            json => vec![(version, json)],
        });
        parts.collect()
    };
    moved.change.before = moved.change.before.map(flat);
    moved.change.after = moved.change.after.map(flat);
    moved.change.schema = None;
    moved.key = moved.key.map(|key| envelope::RecordKey { cells: flat(key.cells), schema: None });
    moved
}

/// Where PostgreSQL prints a value, which is how the other side is read, in another way than a topic has it.
enum Spelling {
    Same,
    /// `character(n)`: filled up to so many characters.
    Padded(usize),
    Money,
}

impl Spelling {
    fn of(type_: &str) -> Self {
        let length = || types::arguments(type_).first().and_then(|length| usize::try_from(*length).ok());
        match types::base(type_).as_str() {
            "char" | "character" | "bpchar" => length().map_or(Self::Same, Self::Padded),
            "money" => Self::Money,
            _ => Self::Same,
        }
    }

    fn spell<'a>(&self, text: &'a [u8]) -> Cow<'a, [u8]> {
        let Ok(words) = std::str::from_utf8(text) else { return Cow::Borrowed(text) };
        match self {
            Self::Padded(length) => match length.saturating_sub(words.chars().count()) {
                0 => Cow::Borrowed(text),
                missing => Cow::Owned([text, " ".repeat(missing).as_bytes()].concat()),
            },
            Self::Money => Cow::Owned(money(words)),
            Self::Same => Cow::Borrowed(text),
        }
    }
}

/// `-1234.50` as `-$1,234.50`: as PostgreSQL spells it where `lc_monetary` is `C`.
fn money(text: &str) -> Vec<u8> {
    let (sign, digits) = text.strip_prefix('-').map_or(("", text), |digits| ("-", digits));
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, "00"));
    let mut grouped = String::new();
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    format!("{sign}${grouped}.{fraction}").into_bytes()
}

fn is_torn(row: &Row) -> bool {
    row.cells().any(|cell| cell == Cell::Unchanged)
}

/// What an update left alone is what it was.
fn filled(new: &Row, old: &Row) -> Row {
    new.cells().zip(old.cells()).map(|(new, old)| if new == Cell::Unchanged { old } else { new }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_spelled_as_postgresql_prints_them() {
        for (type_, text, printed) in [
            ("boolean", "t", "t"),
            ("character(5)", "ab   ", "ab   "),
            ("character(5)", "äb", "äb   "),
            ("bpchar", "ab", "ab"),
            ("character varying(5)", "ab", "ab"),
            ("money", "1234.50", "$1,234.50"),
            ("money", "-1234567.00", "-$1,234,567.00"),
            ("money", "0.05", "$0.05"),
            ("text", "t", "t"),
        ] {
            assert_eq!(Spelling::of(type_).spell(text.as_bytes()).as_ref(), printed.as_bytes(), "{type_}");
        }
    }
}
