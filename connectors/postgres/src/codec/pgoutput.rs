//! The decoder of `pgoutput`, the server's own logical output, for protocol versions 1 to 4
//! (<https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html>).
//!
//! Every read is bounds-checked: damaged bytes are an error, never a panic. Nothing is copied: tuples are slices of the
//! message, and become a row's bytes in [`Tuple::write_row`].

use crate::client::replication::{EPOCH_2000_US, Lsn};
use bytes::{BufMut, BytesMut};

/// Bytes that are not a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DecodeError {
    #[error("the message ends too early")]
    Short,
    #[error("{0} bytes follow the end of the message")]
    Trailing(usize),
    #[error("`{}` is not a kind of message that is known", char::from(*.0).escape_default())]
    Kind(u8),
    #[error("`{}` has no place where a tuple is expected", char::from(*.0).escape_default())]
    Tuple(u8),
    #[error("a text is not UTF-8")]
    Utf8,
    #[error("a value is in another format than the column's")]
    Format,
    #[error("a row has {0} values, its relation {1} columns")]
    Columns(u16, usize),
}

/// A column of a relation message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RelationColumn {
    pub(crate) name: String,
    pub(crate) type_oid: u32,
    pub(crate) type_modifier: i32,
    pub(crate) is_key: bool,
}

/// The shape under which the following tuples of a relation are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Relation {
    pub(crate) oid: u32,
    pub(crate) schema: String,
    pub(crate) name: String,
    /// `d`, `n`, `f` or `i`.
    pub(crate) identity: u8,
    pub(crate) columns: Vec<RelationColumn>,
}

/// Which old image came with a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OldKind {
    /// The identity's columns; all others read NULL and mean nothing.
    Key,
    /// The whole row.
    Full,
}

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Message<'a> {
    Begin { final_lsn: Lsn, commit_time_us: i64, xid: u32 },
    Commit { end_lsn: Lsn },
    Origin { name: &'a str },
    Relation(Relation),
    Type,
    Insert { relation: u32, new: Tuple<'a> },
    Update { relation: u32, old: Option<(OldKind, Tuple<'a>)>, new: Tuple<'a> },
    Delete { relation: u32, kind: OldKind, old: Tuple<'a> },
    Truncate { relations: Vec<u32>, restart_identity: bool },
    Logical { transactional: bool, lsn: Lsn, prefix: &'a str, content: &'a [u8] },
    StreamStart { xid: u32 },
    StreamStop,
    StreamCommit { xid: u32, commit_lsn: Lsn, end_lsn: Lsn, commit_time_us: i64 },
    StreamAbort { xid: u32, subxid: u32 },
}

/// One tuple, checked to be whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tuple<'a> {
    count: u16,
    cells: &'a [u8],
}

const NULL: u8 = b'n';
const UNCHANGED: u8 = b'u';
const TEXT: u8 = b't';
const BINARY: u8 = b'b';

/// A reader over a message's bytes.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(DecodeError::Short)?;
        self.0 = rest;
        Ok(*head)
    }

    fn u8(&mut self) -> Result<u8, DecodeError> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Result<u16, DecodeError> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_be_bytes)
    }

    fn i32(&mut self) -> Result<i32, DecodeError> {
        self.array().map(i32::from_be_bytes)
    }

    fn lsn(&mut self) -> Result<Lsn, DecodeError> {
        self.array().map(u64::from_be_bytes).map(Lsn)
    }

    /// A moment, in microseconds since 1970.
    fn time(&mut self) -> Result<i64, DecodeError> {
        self.array().map(i64::from_be_bytes).map(|time| time.saturating_add(EPOCH_2000_US))
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], DecodeError> {
        let (head, rest) = self.0.split_at_checked(length).ok_or(DecodeError::Short)?;
        self.0 = rest;
        Ok(head)
    }

    fn text(&mut self) -> Result<&'a str, DecodeError> {
        let end = self.0.iter().position(|byte| *byte == 0).ok_or(DecodeError::Short)?;
        let text = self.take(end)?;
        self.u8()?;
        std::str::from_utf8(text).map_err(|_| DecodeError::Utf8)
    }

    fn tuple(&mut self) -> Result<Tuple<'a>, DecodeError> {
        let count = self.u16()?;
        let start = self.0;
        for _ in 0..count {
            match self.u8()? {
                NULL | UNCHANGED => {}
                TEXT | BINARY => {
                    let length = self.i32()?;
                    self.take(usize::try_from(length).map_err(|_| DecodeError::Short)?)?;
                }
                other => return Err(DecodeError::Tuple(other)),
            }
        }
        let (cells, _) = start.split_at_checked(start.len() - self.0.len()).ok_or(DecodeError::Short)?;
        Ok(Tuple { count, cells })
    }
}

/// Reads a message. Inside a stream block (`in_stream`) row messages carry the transaction they belong to, which may
/// be a subtransaction: it is returned beside the message.
pub(crate) fn decode(bytes: &[u8], in_stream: bool) -> Result<(Option<u32>, Message<'_>), DecodeError> {
    let mut bytes = Bytes(bytes);
    let kind = bytes.u8()?;
    let belongs = in_stream && matches!(kind, b'R' | b'Y' | b'I' | b'U' | b'D' | b'T' | b'M');
    let xid = if belongs { Some(bytes.u32()?) } else { None };
    let message = match kind {
        b'B' => Message::Begin { final_lsn: bytes.lsn()?, commit_time_us: bytes.time()?, xid: bytes.u32()? },
        b'C' => {
            let (_flags, _commit_lsn) = (bytes.u8()?, bytes.lsn()?);
            let end_lsn = bytes.lsn()?;
            bytes.time()?;
            Message::Commit { end_lsn }
        }
        b'O' => {
            bytes.lsn()?;
            Message::Origin { name: bytes.text()? }
        }
        b'R' => Message::Relation(relation(&mut bytes)?),
        b'Y' => {
            bytes.u32()?;
            bytes.text()?;
            bytes.text()?;
            Message::Type
        }
        b'I' => {
            let relation = bytes.u32()?;
            expect_new(bytes.u8()?)?;
            Message::Insert { relation, new: bytes.tuple()? }
        }
        b'U' => update(&mut bytes)?,
        b'D' => {
            let relation = bytes.u32()?;
            let kind = old_kind(bytes.u8()?)?;
            Message::Delete { relation, kind, old: bytes.tuple()? }
        }
        b'T' => {
            let (count, flags) = (bytes.u32()?, bytes.u8()?);
            let relations = (0..count).map(|_| bytes.u32()).collect::<Result<_, _>>()?;
            Message::Truncate { relations, restart_identity: flags & 2 != 0 }
        }
        b'M' => {
            let (flags, lsn, prefix) = (bytes.u8()?, bytes.lsn()?, bytes.text()?);
            let length = bytes.u32()? as usize;
            Message::Logical { transactional: flags & 1 != 0, lsn, prefix, content: bytes.take(length)? }
        }
        b'S' => {
            let xid = bytes.u32()?;
            bytes.u8()?;
            Message::StreamStart { xid }
        }
        b'E' => Message::StreamStop,
        b'c' => {
            let (xid, _flags) = (bytes.u32()?, bytes.u8()?);
            let (commit_lsn, end_lsn, commit_time_us) = (bytes.lsn()?, bytes.lsn()?, bytes.time()?);
            Message::StreamCommit { xid, commit_lsn, end_lsn, commit_time_us }
        }
        b'A' => {
            let (xid, subxid) = (bytes.u32()?, bytes.u32()?);
            // Protocol 4 with parallel streaming adds the abort's place and time.
            if !bytes.0.is_empty() {
                bytes.lsn()?;
                bytes.time()?;
            }
            Message::StreamAbort { xid, subxid }
        }
        other => return Err(DecodeError::Kind(other)),
    };
    if bytes.0.is_empty() { Ok((xid, message)) } else { Err(DecodeError::Trailing(bytes.0.len())) }
}

fn relation(bytes: &mut Bytes<'_>) -> Result<Relation, DecodeError> {
    let oid = bytes.u32()?;
    let schema = match bytes.text()? {
        // The server writes nothing for pg_catalog.
        "" => "pg_catalog".to_owned(),
        schema => schema.to_owned(),
    };
    let name = bytes.text()?.to_owned();
    let (identity, count) = (bytes.u8()?, bytes.u16()?);
    let columns = (0..count)
        .map(|_| {
            let flags = bytes.u8()?;
            Ok(RelationColumn {
                name: bytes.text()?.to_owned(),
                type_oid: bytes.u32()?,
                type_modifier: bytes.i32()?,
                is_key: flags & 1 != 0,
            })
        })
        .collect::<Result<_, DecodeError>>()?;
    Ok(Relation { oid, schema, name, identity, columns })
}

fn update<'a>(bytes: &mut Bytes<'a>) -> Result<Message<'a>, DecodeError> {
    let relation = bytes.u32()?;
    let mark = bytes.u8()?;
    let old = match mark {
        b'K' | b'O' => {
            let old = (old_kind(mark)?, bytes.tuple()?);
            expect_new(bytes.u8()?)?;
            Some(old)
        }
        mark => {
            expect_new(mark)?;
            None
        }
    };
    Ok(Message::Update { relation, old, new: bytes.tuple()? })
}

fn expect_new(mark: u8) -> Result<(), DecodeError> {
    if mark == b'N' { Ok(()) } else { Err(DecodeError::Tuple(mark)) }
}

fn old_kind(mark: u8) -> Result<OldKind, DecodeError> {
    match mark {
        b'K' => Ok(OldKind::Key),
        b'O' => Ok(OldKind::Full),
        other => Err(DecodeError::Tuple(other)),
    }
}

/// What a row's cells must look like.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CellRule {
    /// `b` or `t`: the format of the column under the table's schema.
    pub(crate) format: u8,
    /// Whether the column belongs to what the server sends as the old key.
    pub(crate) in_old_key: bool,
}

impl CellRule {
    pub(crate) const BINARY: u8 = BINARY;
    pub(crate) const TEXT: u8 = TEXT;
}

impl<'a> Tuple<'a> {
    /// The cells as they stand: the kind, and the value's bytes with their length in front.
    fn cells(self) -> impl Iterator<Item = (u8, &'a [u8])> {
        let mut rest = self.cells;
        std::iter::from_fn(move || {
            let (kind, tail) = rest.split_first()?;
            let length = match *kind {
                TEXT | BINARY => {
                    let length = tail.first_chunk::<4>().map(|length| u32::from_be_bytes(*length))?;
                    length as usize + 4
                }
                _ => 0,
            };
            let (value, tail) = tail.split_at_checked(length)?;
            rest = tail;
            Some((*kind, value))
        })
    }

    /// Writes the tuple as a row (see `crossfade_event::Row`). `old` is the image before, for cells that did not
    /// change and were not sent: where the old image has the value, it is taken from there. Returns whether a cell
    /// is still unchanged.
    pub(crate) fn write_row(
        self,
        rules: &[CellRule],
        old: Option<(OldKind, Tuple<'_>)>,
        out: &mut BytesMut,
    ) -> Result<bool, DecodeError> {
        self.check(rules)?;
        out.put_u16(self.count);
        let mut unchanged = false;
        for (index, ((kind, value), rule)) in self.cells().zip(rules).enumerate() {
            if kind != UNCHANGED {
                put(kind, value, *rule, out)?;
                continue;
            }
            let known = old
                .filter(|(old_kind, _)| *old_kind == OldKind::Full || rule.in_old_key)
                .and_then(|(_, old)| old.cells().nth(index))
                .filter(|(kind, _)| *kind != UNCHANGED);
            match known {
                Some((kind, value)) => put(kind, value, *rule, out)?,
                None => {
                    unchanged = true;
                    out.put_i32(-2);
                }
            }
        }
        Ok(unchanged)
    }

    /// Writes an old image: what the server did not send is absent.
    pub(crate) fn write_old(self, kind: OldKind, rules: &[CellRule], out: &mut BytesMut) -> Result<(), DecodeError> {
        self.check(rules)?;
        out.put_u16(self.count);
        for ((cell, value), rule) in self.cells().zip(rules) {
            if cell == UNCHANGED || (kind == OldKind::Key && !rule.in_old_key) {
                out.put_i32(-3);
            } else {
                put(cell, value, *rule, out)?;
            }
        }
        Ok(())
    }

    fn check(self, rules: &[CellRule]) -> Result<(), DecodeError> {
        if usize::from(self.count) == rules.len() { Ok(()) } else { Err(DecodeError::Columns(self.count, rules.len())) }
    }
}

fn put(kind: u8, value: &[u8], rule: CellRule, out: &mut BytesMut) -> Result<(), DecodeError> {
    if kind == NULL {
        out.put_i32(-1);
        Ok(())
    } else if kind == rule.format {
        out.put_slice(value);
        Ok(())
    } else {
        Err(DecodeError::Format)
    }
}

#[cfg(test)]
#[path = "pgoutput_tests.rs"]
mod tests;
