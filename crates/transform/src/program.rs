//! What is done to a row: its cells are loaded into registers, operations change registers, outputs read them.
//!
//! A cell that did not change stays unchanged through everything that does not touch it, and through everything that
//! depends on unchanged cells only. An operation that needs both a changed cell and one that was not sent is refused.

use crate::{
    adopted::AdoptedKeys,
    bind::Views,
    cast::{carry, cast},
    document,
    jsonpath::Path,
    keys::{self, Maker, Part},
    predicate::{Predicate, Truth, ask},
    step::{Mask, Normalise},
    types::{Affinity, TypeSpec, affinity},
};
use bytes::BytesMut;
use crossfade_event::{Cell, ColumnType, Key, Logical, Numeric, RowBuilder, Value, codec};
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

pub(crate) const NOT_SENT: &str = "a value that this row's transform needs was not sent, for it did not change; \
     give the source's table REPLICA IDENTITY FULL";
const MICROSECONDS_FROM_1970_TO_2000: i64 = 946_684_800_000_000;

/// One register.
#[derive(Debug, Clone)]
pub(crate) enum Reg<'a> {
    Absent,
    Unchanged,
    Null,
    /// The source's own bytes, in the register's type.
    Raw(&'a [u8]),
    Value(Value),
}

impl<'a> Reg<'a> {
    pub(crate) fn load(cell: Cell<'a>) -> Self {
        match cell {
            Cell::Absent => Self::Absent,
            Cell::Unchanged => Self::Unchanged,
            Cell::Null => Self::Null,
            Cell::Bytes(bytes) => Self::Raw(bytes),
        }
    }

    /// The value; `None` for NULL (and for what is not there: ask before).
    pub(crate) fn value(&self, type_: Option<&ColumnType>) -> Result<Option<Value>, String> {
        match (self, type_) {
            (Self::Value(value), _) => Ok(Some(value.clone())),
            (Self::Raw(bytes), Some(type_)) => codec::decode(type_, bytes).map(Some).map_err(|error| error.to_string()),
            _ => Ok(None),
        }
    }

    fn of(value: Option<Value>) -> Self {
        value.map_or(Self::Null, Self::Value)
    }
}

/// One operation. A canonical key says of each part how it is normalised. What is packed and the same in every row is there
/// already where the document has not changed; what is unpacked goes out of the document.
#[derive(Debug, Clone)]
pub(crate) enum Op {
    Extract { from: usize, path: Path, to: usize, type_: TypeSpec, keep_existing: bool },
    Cast { register: usize, to: TypeSpec },
    Constant { to: usize, value: Value },
    NullIf { register: usize, any_of: Vec<Value>, type_: TypeSpec },
    MapValues { register: usize, with: Vec<(Value, Value)>, otherwise: Option<Value>, type_: TypeSpec },
    Split { from: usize, by: String, into: Vec<usize> },
    Merge { from: Vec<usize>, with: String, to: usize },
    Lookup(Lookup),
    Mask { register: usize, with: Mask, secret: Arc<Vec<u8>> },
    CanonicalKey { to: usize, of: Vec<(usize, Vec<Normalise>)>, version: u32 },
    Pack { from: usize, name: String, into: usize, constant: bool },
    Unpack { from: usize, name: String },
    Filter(Predicate),
}

impl Op {
    /// Whether it gives the register a value.
    pub(crate) fn writes(&self, register: usize) -> bool {
        match self {
            Self::Extract { to, .. }
            | Self::Constant { to, .. }
            | Self::Merge { to, .. }
            | Self::CanonicalKey { to, .. }
            | Self::Pack { into: to, .. }
            | Self::Cast { register: to, .. }
            | Self::NullIf { register: to, .. }
            | Self::MapValues { register: to, .. }
            | Self::Mask { register: to, .. }
            | Self::Unpack { from: to, .. } => *to == register,
            Self::Split { into, .. } => into.contains(&register),
            Self::Lookup(lookup) => lookup.take.iter().any(|(to, ..)| *to == register),
            Self::Filter(_) => false,
        }
    }
}

/// Columns taken from another table of the source.
#[derive(Debug, Clone)]
pub(crate) struct Lookup {
    pub(crate) view: u32,
    /// Our registers, and the types of the view's key.
    pub(crate) on: Vec<(usize, ColumnType)>,
    /// Our register, the place among the view's kept cells, that cell's type, and what it becomes.
    pub(crate) take: Vec<(usize, usize, ColumnType, TypeSpec)>,
    pub(crate) keep_existing: bool,
    pub(crate) misses: Arc<AtomicU64>,
}

/// Where the time of a v7 key comes from.
#[derive(Debug, Clone)]
pub(crate) enum Time {
    None,
    /// A register of the same row; where an old image lacks it, the row in the view.
    Own(usize, Kept),
    /// The row that is referred to.
    Referred(Kept),
}

/// Where a view keeps the time of a row.
#[derive(Debug, Clone)]
pub(crate) struct Kept {
    pub(crate) view: u32,
    /// The types of the view's key.
    pub(crate) key: Vec<ColumnType>,
    /// The type of the time.
    pub(crate) time: ColumnType,
}

/// A new key made from old ones.
#[derive(Debug, Clone)]
pub(crate) struct KeyFrom {
    /// The source's table whose key it is.
    pub(crate) table: Arc<str>,
    /// Our registers and the types of the key's own columns.
    pub(crate) parts: Vec<(usize, ColumnType)>,
    pub(crate) maker: Arc<Maker>,
    /// The keys that rows of that table have already.
    pub(crate) adopted: Option<Arc<AdoptedKeys>>,
    pub(crate) time: Time,
}

impl KeyFrom {
    /// The key that the row has already; none of several columns is ever drawn.
    fn adopted(&self, parts: &[Part<'_>]) -> Option<Value> {
        match (&self.adopted, parts) {
            (Some(adopted), [Some(Value::Int(old))]) => adopted.get(*old, self.maker.makes_uuid()),
            _ => None,
        }
    }
}

/// Where an output cell comes from.
#[derive(Debug, Clone)]
pub(crate) enum From {
    Register(usize),
    Key(KeyFrom),
}

/// What rows see of the world while they are transformed.
pub(crate) struct Run<'r, 'a> {
    pub(crate) regs: Vec<Reg<'a>>,
    pub(crate) types: &'r [ColumnType],
    pub(crate) views: &'r dyn Views,
    /// An old image: only its key matters, so nothing is looked up for it.
    pub(crate) old: bool,
}

enum Inputs {
    Ready,
    Absent,
    Unchanged,
}

impl Run<'_, '_> {
    fn reg(&self, register: usize) -> &Reg<'_> {
        self.regs.get(register).unwrap_or(&Reg::Absent)
    }

    fn value(&self, register: usize) -> Result<Option<Value>, String> {
        self.reg(register).value(self.types.get(register))
    }

    fn set(&mut self, register: usize, value: Option<Value>) {
        if let Some(slot) = self.regs.get_mut(register) {
            *slot = Reg::of(value);
        }
    }

    /// Marks what could not be worked out like its inputs.
    fn pass_on(&mut self, inputs: &Inputs, to: usize) {
        if let Some(slot) = self.regs.get_mut(to) {
            *slot = if matches!(inputs, Inputs::Unchanged) { Reg::Unchanged } else { Reg::Absent };
        }
    }

    fn inputs(&self, registers: impl Iterator<Item = usize>) -> Result<Inputs, String> {
        let (mut sent, mut unchanged, mut absent) = (false, false, false);
        for register in registers {
            match self.reg(register) {
                Reg::Absent => absent = true,
                Reg::Unchanged => unchanged = true,
                Reg::Null | Reg::Raw(_) | Reg::Value(_) => sent = true,
            }
        }
        match (absent, unchanged, sent) {
            (true, ..) => Ok(Inputs::Absent),
            (false, true, true) if self.old => Ok(Inputs::Absent),
            (false, true, true) => Err(NOT_SENT.to_owned()),
            (false, true, false) => Ok(Inputs::Unchanged),
            (false, false, _) => Ok(Inputs::Ready),
        }
    }

    /// Runs all operations; what the filters say of the row.
    pub(crate) fn all(&mut self, ops: &[Op]) -> Result<Truth, String> {
        let mut passes = Truth::True;
        for op in ops {
            if let Op::Filter(condition) = op {
                match ask(condition, &self.regs, self.types)? {
                    Truth::False | Truth::Null => return Ok(Truth::False),
                    Truth::Unknown => passes = Truth::Unknown,
                    Truth::True => {}
                }
            } else {
                self.one(op)?;
            }
        }
        Ok(passes)
    }

    /// Runs what can be run of an image that was refused, for the sake of its key.
    pub(crate) fn salvage(&mut self, ops: &[Op]) {
        for op in ops {
            // What fails here was reported as the reason of the refusal.
            self.one(op).unwrap_or_default();
        }
    }

    fn one(&mut self, op: &Op) -> Result<(), String> {
        match op {
            Op::Filter(_) => {}
            Op::Constant { to, value } => self.set(*to, Some(value.clone())),
            Op::Cast { register, to } => {
                self.change(*register, *register, |value| cast(value, to).map(Some))?;
            }
            Op::NullIf { register, any_of, type_ } => self.change(*register, *register, |value| {
                let seen = cast(value.clone(), type_);
                Ok(if seen.is_ok_and(|seen| any_of.contains(&seen)) { None } else { Some(value) })
            })?,
            Op::MapValues { register, with, otherwise, type_ } => self.change(*register, *register, |value| {
                let value = cast(value, type_)?;
                let found = with.iter().find(|(old, _)| *old == value).map(|(_, new)| new.clone());
                Ok(Some(found.or_else(|| otherwise.clone()).unwrap_or(value)))
            })?,
            Op::Extract { from, path, to, type_, keep_existing } => {
                if *keep_existing && self.has_value(*to) {
                    return Ok(());
                }
                self.change(*from, *to, |value| extract(&value, path, type_))?;
            }
            Op::Split { from, by, into } => self.split(*from, by, into)?,
            Op::Merge { from, with, to } => self.merge(from, with, *to)?,
            Op::Mask { register, with, secret } => self.change(*register, *register, |value| {
                let text = codec::to_text(&value);
                Ok(match with {
                    Mask::Null => None,
                    Mask::Stars => Some(Value::Text("*".repeat(text.chars().count()))),
                    Mask::Hmac => Some(Value::Text(keys::masked(secret, &text))),
                })
            })?,
            Op::CanonicalKey { to, of, version } => match self.inputs(of.iter().map(|(register, _)| *register))? {
                Inputs::Ready => {
                    let values: Vec<Option<Value>> =
                        of.iter().map(|(register, _)| self.value(*register)).collect::<Result<_, _>>()?;
                    let parts: Vec<(Part<'_>, &[Normalise])> =
                        values.iter().zip(of).map(|(value, (_, how))| (value.as_ref(), how.as_slice())).collect();
                    let key = keys::canonical_sha256(*version, None, &parts);
                    self.set(*to, Some(Value::Text(key)));
                }
                inputs => self.pass_on(&inputs, *to),
            },
            Op::Pack { from, name, into, constant } => self.pack(*from, name, *into, *constant)?,
            Op::Unpack { from, name } => self.change(*from, *from, |value| {
                let Value::Jsonb(object) = &value else { return Ok(Some(value)) };
                Ok(Some(document::without(object, name).map_or(value, Value::Jsonb)))
            })?,
            Op::Lookup(lookup) => self.look_up(lookup)?,
        }
        Ok(())
    }

    /// An unchanged cell counts as one: whatever the target holds there stays.
    fn has_value(&self, register: usize) -> bool {
        matches!(self.reg(register), Reg::Unchanged | Reg::Raw(_) | Reg::Value(_))
    }

    /// A value made of one other; NULL stays NULL.
    fn change(
        &mut self,
        from: usize,
        to: usize,
        make: impl FnOnce(Value) -> Result<Option<Value>, String>,
    ) -> Result<(), String> {
        match self.inputs(std::iter::once(from))? {
            Inputs::Ready => {
                let made = match self.value(from)? {
                    Some(value) => make(value)?,
                    None => None,
                };
                self.set(to, made);
            }
            inputs => self.pass_on(&inputs, to),
        }
        Ok(())
    }

    /// A member of the document: none where the value is NULL. A document that is NULL becomes one.
    fn pack(&mut self, from: usize, name: &str, into: usize, constant: bool) -> Result<(), String> {
        let inputs = [into].into_iter().chain((!constant).then_some(from));
        let inputs = self.inputs(inputs)?;
        if !matches!(inputs, Inputs::Ready) {
            self.pass_on(&inputs, into);
            return Ok(());
        }
        let object = match self.value(into)? {
            None => "{}".to_owned(),
            Some(Value::Jsonb(object)) => object,
            Some(other) => return Err(format!("a {} value is no jsonb document", other.kind())),
        };
        let packed = match self.value(from)? {
            None => document::without(&object, name),
            Some(value) => document::with(&object, name, &as_json(&value)?),
        };
        let packed = packed.ok_or("the document that a column is packed into is no object")?;
        self.set(into, Some(Value::Jsonb(packed)));
        Ok(())
    }

    fn split(&mut self, from: usize, by: &str, into: &[usize]) -> Result<(), String> {
        match self.inputs(std::iter::once(from))? {
            Inputs::Ready => {
                let text = self.value(from)?.map(|value| codec::to_text(&value));
                let mut parts = text.as_deref().map(|text| text.splitn(into.len(), by)).into_iter().flatten();
                for register in into {
                    let part = parts.next().map(|part| Value::Text(part.to_owned()));
                    self.set(*register, part);
                }
            }
            inputs => into.iter().for_each(|register| self.pass_on(&inputs, *register)),
        }
        Ok(())
    }

    /// NULLs are left out; NULL when all are.
    fn merge(&mut self, from: &[usize], with: &str, to: usize) -> Result<(), String> {
        match self.inputs(from.iter().copied())? {
            Inputs::Ready => {
                let mut texts = Vec::with_capacity(from.len());
                for register in from {
                    texts.extend(self.value(*register)?.map(|value| codec::to_text(&value)));
                }
                self.set(to, (!texts.is_empty()).then(|| Value::Text(texts.join(with))));
            }
            inputs => self.pass_on(&inputs, to),
        }
        Ok(())
    }

    fn look_up(&mut self, lookup: &Lookup) -> Result<(), String> {
        let wanted: Vec<&(usize, usize, ColumnType, TypeSpec)> =
            lookup.take.iter().filter(|(register, ..)| !(lookup.keep_existing && self.has_value(*register))).collect();
        if self.old {
            wanted.iter().for_each(|(register, ..)| self.pass_on(&Inputs::Absent, *register));
            return Ok(());
        }
        let inputs = self.inputs(lookup.on.iter().map(|(register, _)| *register))?;
        if !matches!(inputs, Inputs::Ready) {
            wanted.iter().for_each(|(register, ..)| self.pass_on(&inputs, *register));
            return Ok(());
        }
        let row = self.key_in_view(&lookup.on)?.and_then(|key| self.views.get(lookup.view, &key));
        if row.is_none() {
            lookup.misses.fetch_add(1, Ordering::Relaxed);
        }
        for (register, place, type_, to) in wanted {
            let taken = match row.as_ref().and_then(|row| row.cell(*place)) {
                Some(Cell::Bytes(bytes)) => {
                    let value = codec::decode(type_, bytes).map_err(|error| error.to_string())?;
                    Some(cast(value, to)?)
                }
                _ => None,
            };
            // A miss leaves what is there.
            if taken.is_some() || row.is_some() || matches!(self.reg(*register), Reg::Absent) {
                self.set(*register, taken);
            }
        }
        Ok(())
    }

    /// The key as the view has it; `None` when a part is NULL or is no value of the view's type.
    fn key_in_view(&self, on: &[(usize, ColumnType)]) -> Result<Option<Key>, String> {
        let mut key = RowBuilder::with_capacity(on.len(), 32);
        let mut bytes = BytesMut::new();
        for (register, type_) in on {
            let Some(value) = self.value(*register)? else { return Ok(None) };
            let Some(value) = same_kind(value, type_) else { return Ok(None) };
            bytes.clear();
            if codec::encode(type_, &value, &mut bytes).is_err() {
                return Ok(None);
            }
            key.push(Cell::Bytes(&bytes));
        }
        Ok(Some(Key::from(key.finish())))
    }

    /// An old key as people read it; `None` where the image does not have all of it.
    pub(crate) fn shown(&self, registers: &[usize]) -> Result<Option<String>, String> {
        if !matches!(self.inputs(registers.iter().copied())?, Inputs::Ready) {
            return Ok(None);
        }
        let values: Vec<Option<Value>> =
            registers.iter().map(|register| self.value(*register)).collect::<Result<_, _>>()?;
        let parts: Vec<Part<'_>> = values.iter().map(Option::as_ref).collect();
        Ok(Some(keys::shown(&parts)))
    }

    /// A new key, or how it is not there.
    pub(crate) fn make_key(&self, from: &KeyFrom) -> Result<Made, String> {
        match self.inputs(from.parts.iter().map(|(register, _)| *register))? {
            Inputs::Absent => return Ok(Made::Absent),
            Inputs::Unchanged => return Ok(Made::Unchanged),
            Inputs::Ready => {}
        }
        let mut values = Vec::with_capacity(from.parts.len());
        for (register, type_) in &from.parts {
            let Some(value) = self.value(*register)? else { return Ok(Made::Null) };
            let kind = value.kind();
            values.push(
                same_kind(value, type_).ok_or_else(|| {
                    format!("a {kind} value is no key of {}, whose keys are {}", from.table, type_.name)
                })?,
            );
        }
        let parts: Vec<Part<'_>> = values.iter().map(Some).collect();
        if let Some(new) = from.adopted(&parts) {
            return Ok(Made::Key { new, old: keys::shown(&parts) });
        }
        let time = match &from.time {
            Time::None => 0,
            Time::Own(register, kept) => match self.reg(*register) {
                Reg::Absent => match self.kept_time(from, kept)? {
                    Some(time) => time,
                    None => return Ok(Made::Absent),
                },
                Reg::Unchanged => return Err(NOT_SENT.to_owned()),
                _ => milliseconds(self.value(*register)?)?,
            },
            Time::Referred(kept) => self
                .kept_time(from, kept)?
                .ok_or_else(|| format!("it refers to a row of {} that is not there", from.table))?,
        };
        Ok(Made::Key { new: from.maker.make(&from.table, &parts, time), old: keys::shown(&parts) })
    }
}

impl Run<'_, '_> {
    /// The time of the row that the key belongs to; `None` when there is no such row.
    fn kept_time(&self, from: &KeyFrom, kept: &Kept) -> Result<Option<u64>, String> {
        let on: Vec<(usize, ColumnType)> =
            from.parts.iter().zip(&kept.key).map(|((register, _), type_)| (*register, type_.clone())).collect();
        let Some(row) = self.key_in_view(&on)?.and_then(|key| self.views.get(kept.view, &key)) else {
            return Ok(None);
        };
        let time = match row.cell(0) {
            Some(Cell::Bytes(bytes)) => Some(codec::decode(&kept.time, bytes).map_err(|error| error.to_string())?),
            _ => None,
        };
        milliseconds(time).map(Some)
    }
}

/// What became of a new key.
pub(crate) enum Made {
    Absent,
    Unchanged,
    Null,
    Key {
        /// The new key.
        new: Value,
        /// The old one, as people read it.
        old: String,
    },
}

/// A reference's value as a value of the key's own type: 7 as `bigint` and as `integer` is one key, and SQLite's
/// `'7'` refers to the integer 7.
fn same_kind(value: Value, type_: &ColumnType) -> Option<Value> {
    if type_.logical == Logical::Dynamic {
        return Some(match (affinity(&type_.name), value) {
            (Affinity::Integer | Affinity::Numeric, Value::Text(text)) => {
                text.trim().parse().map_or(Value::Text(text), Value::Int)
            }
            (Affinity::Text, Value::Int(int)) => Value::Text(int.to_string()),
            (_, Value::Float64(float)) if float.fract() == 0.0 && float.abs() < 9e15 => Value::Int(float as i64),
            (_, value) => value,
        });
    }
    let column = ColumnType { format: crossfade_event::Format::PgBinary, ..type_.clone() };
    carry(value, &column).ok().map(|value| match value {
        // 7 and 7.0 are one numeric key.
        Value::Numeric(crossfade_event::Numeric::Finite(text)) if text.contains('.') => Value::Numeric(
            crossfade_event::Numeric::Finite(text.trim_end_matches('0').trim_end_matches('.').to_owned()),
        ),
        value => value,
    })
}

/// A value as PostgreSQL's `to_jsonb` has it.
fn as_json(value: &Value) -> Result<String, String> {
    Ok(match value {
        Value::Jsonb(text) => text.clone(),
        Value::Int(_) | Value::Numeric(Numeric::Finite(_)) => codec::to_text(value),
        Value::Bool(value) => value.to_string(),
        Value::Text(text) => document::quoted(text),
        Value::Uuid(_) => document::quoted(&codec::to_text(value)),
        other => return Err(format!("a {} value has no one form in a document", other.kind())),
    })
}

fn extract(document: &Value, path: &Path, type_: &TypeSpec) -> Result<Option<Value>, String> {
    let text = match document {
        Value::Json(text) | Value::Jsonb(text) | Value::Text(text) | Value::Other(text) => text,
        other => return Err(format!("a {} value is no JSON document", other.kind())),
    };
    let document: serde_json::Value =
        serde_json::from_str(text).map_err(|_| "a text that should be JSON is not".to_owned())?;
    path.text_of(&document).map(|text| cast(Value::Text(text), type_)).transpose()
}

/// Milliseconds since 1970 of a moment.
fn milliseconds(time: Option<Value>) -> Result<u64, String> {
    let at = match time.map(|value| match value {
        Value::Text(text) => crate::cast::parse(&text, Logical::TimestampTz),
        value => Some(value),
    }) {
        Some(Some(Value::Timestamp(at) | Value::TimestampTz(at))) if at != i64::MAX && at != i64::MIN => at,
        Some(Some(Value::Date(days))) if days != i32::MAX && days != i32::MIN => i64::from(days) * 86_400_000_000,
        _ => return Err("the column that gives its key the time holds no moment".to_owned()),
    };
    let since_1970 = at.checked_add(MICROSECONDS_FROM_1970_TO_2000).map(|at| at.div_euclid(1_000));
    since_1970
        .and_then(|ms| u64::try_from(ms).ok())
        .filter(|ms| *ms < 1 << 48)
        .ok_or_else(|| "the time that its key is made of is before 1970 or too far ahead".to_owned())
}
