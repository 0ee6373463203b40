//! An event as a Kafka record. Version 1, and of version 2 one kind.
//!
//! The record's **key** is the table's number (`u32`, big-endian) and behind it the key of the changed row as
//! [`crossfade_event::Key`] lays it out; for a row that cannot be identified the number alone. Its **partition** is the
//! one that Kafka's own Java client gives to that key ([`partition_of`]), so changes of one key stay in order. Blocks of
//! rows are divided by the keys of their rows; they, and all that belongs to no row, have no Kafka key, and the latter is
//! in partition 0.
//!
//! The record's **value** is a head of 64 bytes and behind it the payload of the log's own record format
//! ([`crossfade_log::record`]), the same bytes as in the embedded log. All integers are little-endian.
//!
//! | at | size | head |
//! |---|---|---|
//! | 0 | 3 | the letters `CFK` |
//! | 3 | 1 | the format's version: 1, and 2 for a seam |
//! | 4 | 1 | kind, see [`crossfade_log::record::Kind`]; 64 for a mark, 65 for a seam |
//! | 5 | 1 | for a change: operation and images, as in the log's record format |
//! | 6 | 2 | for a mark: 1 whole · 2 has a position; else zero |
//! | 8 | 8 | round: everything up to the round's mark becomes readable together; rounds rise by one |
//! | 16 | 4 | place in the round, over all partitions; for a mark how many records its partition has of the round |
//! | 20 | 4 | table, zero for none |
//! | 24 | 4 | schema version, zero for none |
//! | 28 | 4 | timeline of the position |
//! | 32 | 8 | source of the position |
//! | 40 | 8 | commit of the position |
//! | 48 | 4 | ordinal of the position |
//! | 52 | 12 | zero |
//!
//! An entry's **sequence** is its round times ten million and its place: the order of the whole log.
//!
//! A **mark** ends every round in every partition: "everything up to this position is in". It is *whole* where every
//! source transaction begun in the round, or in the rounds before it, ends there too.
//!
//! A **seam** says nothing, and readers pass it over: it stands where a broker had committed a transaction in some of its
//! partitions only, and had to be made to commit it in this one too ([`crate::log`]). It is version 2, so a program that
//! does not know it stops there by name.

use bytes::Bytes;
use crossfade_event::{Event, Key, Partition, Position, SchemaVersion, Sequence, SourceId, TableId};
use crossfade_log::record::{Kind, Malformed, RecordHeader, decode_event};

/// The newest version that this program writes and reads.
pub const FORMAT: u8 = 2;

/// The version of all records but a seam.
const FORMAT_1: u8 = 1;

/// How many sequences a round has: more than it can have records, however many partitions divide them.
const SEQUENCES: u64 = 10_000_000;

/// More partitions than this are refused: a round of so many has room for its records' sequences.
pub const PARTITIONS_MAX: u32 = 1_000;

/// How long a head is.
pub const HEAD: usize = 64;

const LETTERS: [u8; 3] = *b"CFK";
const MARK: u8 = 64;
const SEAM: u8 = 65;
const WHOLE: u16 = 1;
const HAS_POSITION: u16 = 2;

/// What a record says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// An event.
    Event {
        /// Which kind.
        kind: Kind,
        /// Operation and images of a change.
        bits: u8,
        /// Which table, zero for none.
        table: TableId,
        /// Which of its schemas, zero for none.
        schema: SchemaVersion,
        /// Where in the source's history.
        position: Position,
    },
    /// The end of a round in this partition.
    Mark {
        /// Whether no source transaction is left open.
        whole: bool,
        /// Everything of the stream up to here is in.
        upto: Option<Position>,
    },
    /// Nothing: behind the last mark of a transaction that had to be committed once more.
    Seam,
}

/// The head of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Which round.
    pub round: u64,
    /// Which place in it; for a mark how many records its partition has of it.
    pub place: u32,
    /// What it says.
    pub what: What,
}

/// A record that cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// Not one of ours.
    #[error("it was not written by Crossfade")]
    Foreign,
    /// Of a newer version.
    #[error("it has format {0}, this program reads up to {FORMAT}")]
    TooNew(u8),
    /// Ours, but not as it was written.
    #[error("it is damaged: {0}")]
    Damaged(#[from] Malformed),
}

impl Head {
    /// The head's bytes.
    pub fn to_bytes(&self) -> [u8; HEAD] {
        let nowhere = Position::origin(SourceId(0));
        let (kind, bits, flags, table, schema, position) = match self.what {
            What::Event { kind, bits, table, schema, position } => (kind as u8, bits, 0, table.0, schema.0, position),
            What::Mark { whole, upto } => {
                let flags = if whole { WHOLE } else { 0 } | if upto.is_some() { HAS_POSITION } else { 0 };
                (MARK, 0, flags, 0, 0, upto.unwrap_or(nowhere))
            }
            What::Seam => (SEAM, 0, 0, 0, 0, nowhere),
        };
        let mut head = [0u8; HEAD];
        head[..3].copy_from_slice(&LETTERS);
        head[3] = if self.what == What::Seam { FORMAT } else { FORMAT_1 };
        head[4] = kind;
        head[5] = bits;
        head[6..8].copy_from_slice(&flags.to_le_bytes());
        head[8..16].copy_from_slice(&self.round.to_le_bytes());
        head[16..20].copy_from_slice(&self.place.to_le_bytes());
        head[20..24].copy_from_slice(&table.to_le_bytes());
        head[24..28].copy_from_slice(&schema.to_le_bytes());
        head[28..32].copy_from_slice(&position.timeline.to_le_bytes());
        head[32..40].copy_from_slice(&position.source.0.to_le_bytes());
        head[40..48].copy_from_slice(&position.commit.to_le_bytes());
        head[48..52].copy_from_slice(&position.ordinal.to_le_bytes());
        head
    }

    /// Reads the head of a record's value.
    ///
    /// # Errors
    /// When it is none, or of a newer version.
    pub fn parse(value: &[u8]) -> Result<Self, Unreadable> {
        let Some((letters, [version, ..])) = value.split_first_chunk::<3>() else { return Err(Unreadable::Foreign) };
        if *letters != LETTERS {
            return Err(Unreadable::Foreign);
        }
        if *version > FORMAT || *version == 0 {
            return Err(Unreadable::TooNew(*version));
        }
        let head = value.first_chunk::<HEAD>().ok_or(Malformed("it is shorter than its head"))?;
        let position = Position {
            source: SourceId(u64_at(head, 32)),
            timeline: u32_at(head, 28),
            commit: u64_at(head, 40),
            ordinal: u32_at(head, 48),
        };
        let what = if head[4] == SEAM && *version == FORMAT {
            What::Seam
        } else if head[4] == MARK {
            let flags = u16::from_le_bytes([head[6], head[7]]);
            What::Mark { whole: flags & WHOLE != 0, upto: (flags & HAS_POSITION != 0).then_some(position) }
        } else {
            What::Event {
                kind: Kind::from_number(head[4]).ok_or(Malformed("it is of an unknown kind"))?,
                bits: head[5],
                table: TableId(u32_at(head, 20)),
                schema: SchemaVersion(u32_at(head, 24)),
                position,
            }
        };
        Ok(Self { round: u64_at(head, 8), place: u32_at(head, 16), what })
    }

    /// The place in its round of an entry with this sequence.
    pub(crate) fn place_of(sequence: Sequence) -> u32 {
        (sequence.0 % SEQUENCES) as u32
    }

    /// The record's place in the order of the whole log.
    pub fn sequence(&self) -> Sequence {
        Sequence(self.round.saturating_mul(SEQUENCES).saturating_add(u64::from(self.place)))
    }

    /// The event of this head and `payload`, which are the bytes behind it; `None` for a mark and a seam.
    ///
    /// # Errors
    /// When the payload is not what the head says.
    pub fn event(&self, payload: &Bytes) -> Result<Option<Event>, Unreadable> {
        let What::Event { kind, bits, table, schema, position } = self.what else { return Ok(None) };
        let payload_bytes = payload.len() as u32;
        let (commit, ordinal) = (position.commit, position.ordinal);
        let header = RecordHeader { payload_bytes, kind, bits, table, schema, commit, key_hash: 0, ordinal };
        Ok(Some(decode_event(&header, payload)?))
    }
}

fn u32_at(head: &[u8; HEAD], at: usize) -> u32 {
    head.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

fn u64_at(head: &[u8; HEAD], at: usize) -> u64 {
    head.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// Writes the Kafka key of a row of `table` behind what `out` has.
pub fn put_key(table: TableId, key: Option<&Key>, out: &mut Vec<u8>) {
    out.extend_from_slice(&table.0.to_be_bytes());
    if let Some(key) = key {
        out.extend_from_slice(key.as_bytes());
    }
}

/// The partition that Kafka's Java client gives to a record with this key.
pub fn partition_of(key: &[u8], partitions: u32) -> Partition {
    Partition((murmur2(key) & 0x7fff_ffff) % partitions.max(1))
}

/// MurmurHash2 as `org.apache.kafka.common.utils.Utils.murmur2` computes it.
fn murmur2(data: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    let mut hash = 0x9747_b28c ^ data.len() as u32;
    let (words, tail) = data.as_chunks::<4>();
    for word in words {
        let mut word = u32::from_le_bytes(*word).wrapping_mul(M);
        word ^= word >> 24;
        hash = hash.wrapping_mul(M) ^ word.wrapping_mul(M);
    }
    if !tail.is_empty() {
        let rest = tail.iter().enumerate().fold(0, |rest, (place, byte)| rest | u32::from(*byte) << (8 * place));
        hash = (hash ^ rest).wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^ hash >> 15
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_go_where_the_java_client_puts_them() {
        // The expectations of Kafka's own `UtilsTest.testMurmur2`.
        let cases: [(&[u8], i32); 6] = [
            (b"21", -973_932_308),
            (b"foobar", -790_332_482),
            (b"a-little-bit-long-string", -985_981_536),
            (b"a-little-bit-longer-string", -1_486_304_829),
            (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            (b"abc", 479_470_107),
        ];
        for (key, expected) in cases {
            assert_eq!(murmur2(key) as i32, expected, "{}", String::from_utf8_lossy(key));
        }
        assert_eq!(partition_of(b"21", 7), Partition((-973_932_308_i32 & 0x7fff_ffff) as u32 % 7));
    }

    #[test]
    fn what_is_not_ours_is_told_from_what_is_newer_and_what_is_damaged() {
        let head = Head { round: 7, place: 3, what: What::Mark { whole: true, upto: None } }.to_bytes();
        assert_eq!(Head::parse(b""), Err(Unreadable::Foreign));
        assert_eq!(Head::parse(b"{\"before\":null}"), Err(Unreadable::Foreign));
        let mut newer = head;
        newer[3] = 3;
        assert_eq!(Head::parse(&newer), Err(Unreadable::TooNew(3)));
        assert!(matches!(Head::parse(&head[..40]), Err(Unreadable::Damaged(_))));
        let mut unknown = head;
        unknown[4] = 99;
        assert!(matches!(Head::parse(&unknown), Err(Unreadable::Damaged(_))));
    }

    #[test]
    fn a_seam_is_written_as_ever_and_version_1_has_none() {
        let seam = Head { round: 0x0102, place: 0, what: What::Seam };
        let bytes = seam.to_bytes();
        let golden = include_str!("../tests/formats/seam-2.txt").trim();
        assert_eq!(bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>(), golden);
        assert_eq!(Head::parse(&bytes), Ok(seam));
        assert_eq!(seam.event(&Bytes::new()), Ok(None));
        let mut older = bytes;
        older[3] = 1;
        assert!(matches!(Head::parse(&older), Err(Unreadable::Damaged(_))));
    }
}
