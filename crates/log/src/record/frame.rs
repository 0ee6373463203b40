//! The header of a frame.

use super::{Fields, Malformed};
use crossfade_event::{Offset, Position, SourceId};

/// How long a frame's header is.
pub const FRAME_HEADER: usize = 72;

const MAGIC: [u8; 4] = *b"CFRM";

/// The bits of [`FrameHeader::flags`].
pub mod flags {
    /// Some records are of a snapshot.
    pub const SNAPSHOT: u16 = 1;
    /// Some records are of the stream.
    pub const STREAM: u16 = 2;
    /// Some records are of both lanes.
    pub const BOTH: u16 = 4;
    /// The batch ends here, and so does every source transaction in it.
    pub const WHOLE: u16 = 8;
    /// There is an `upto`.
    pub const UPTO: u16 = 16;
}

/// What a frame says of itself, readable without its body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// CRC-32C of the body.
    pub body_crc: u32,
    /// Length of the body.
    pub body_bytes: u32,
    /// Offset of the first record.
    pub base: Offset,
    /// How many records.
    pub count: u32,
    /// See [`flags`].
    pub flags: u16,
    /// Of all records, and of `upto`.
    pub source: SourceId,
    /// Likewise.
    pub timeline: u32,
    /// Where `upto` points; meaningful with [`flags::UPTO`].
    pub upto_commit: u64,
    /// Likewise.
    pub upto_ordinal: u32,
    /// The latest commit time of the transactions that begin here; `i64::MIN` for none.
    pub latest_time_us: i64,
    /// All below this was durable when the frame was made.
    pub durable: Offset,
}

impl FrameHeader {
    /// Reads a header and checks its own checksum, not the body's.
    ///
    /// # Errors
    /// When the bytes are no header.
    pub fn parse(bytes: &[u8; FRAME_HEADER]) -> Result<Self, Malformed> {
        let mut fields = Fields(bytes);
        if *fields.take::<4>()? != MAGIC {
            return Err(Malformed("no frame begins here"));
        }
        let crc = fields.u32()?;
        if crc != crc32c::crc32c(fields.0) {
            return Err(Malformed("a frame's header does not match its checksum"));
        }
        let (body_crc, body_bytes) = (fields.u32()?, fields.u32()?);
        let (base, count) = (Offset(fields.u64()?), fields.u32()?);
        let flags = fields.u16()?;
        let _zero = fields.u16()?;
        let (source, timeline) = (SourceId(fields.u64()?), fields.u32()?);
        let (upto_ordinal, upto_commit) = (fields.u32()?, fields.u64()?);
        let (latest_time_us, durable) = (fields.i64()?, Offset(fields.u64()?));
        Ok(Self {
            body_crc,
            body_bytes,
            base,
            count,
            flags,
            source,
            timeline,
            upto_commit,
            upto_ordinal,
            latest_time_us,
            durable,
        })
    }

    /// The header's bytes.
    pub fn to_bytes(&self) -> [u8; FRAME_HEADER] {
        let mut out = [0u8; FRAME_HEADER];
        let mut rest = out.as_mut_slice();
        let mut put = |bytes: &[u8]| {
            if let Some((head, tail)) = std::mem::take(&mut rest).split_at_mut_checked(bytes.len()) {
                head.copy_from_slice(bytes);
                rest = tail;
            }
        };
        put(&MAGIC);
        put(&[0; 4]);
        put(&self.body_crc.to_le_bytes());
        put(&self.body_bytes.to_le_bytes());
        put(&self.base.0.to_le_bytes());
        put(&self.count.to_le_bytes());
        put(&self.flags.to_le_bytes());
        put(&[0; 2]);
        put(&self.source.0.to_le_bytes());
        put(&self.timeline.to_le_bytes());
        put(&self.upto_ordinal.to_le_bytes());
        put(&self.upto_commit.to_le_bytes());
        put(&self.latest_time_us.to_le_bytes());
        put(&self.durable.0.to_le_bytes());
        let crc = crc32c::crc32c(out.get(8..).unwrap_or_default());
        if let Some(slot) = out.get_mut(4..8) {
            slot.copy_from_slice(&crc.to_le_bytes());
        }
        out
    }

    /// Whether a flag is set.
    pub fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    /// The offset after the last record.
    pub fn next(&self) -> Offset {
        Offset(self.base.0.saturating_add(u64::from(self.count)))
    }

    /// Everything of the stream up to here is in the log with this frame.
    pub fn upto(&self) -> Option<Position> {
        self.has(flags::UPTO).then_some(Position {
            source: self.source,
            timeline: self.timeline,
            commit: self.upto_commit,
            ordinal: self.upto_ordinal,
        })
    }

    /// The frame's length with its header.
    pub fn frame_bytes(&self) -> u64 {
        FRAME_HEADER as u64 + u64::from(self.body_bytes)
    }

    /// Whether `body` is what was written.
    pub fn matches(&self, body: &[u8]) -> bool {
        body.len() == self.body_bytes as usize && crc32c::crc32c(body) == self.body_crc
    }
}
