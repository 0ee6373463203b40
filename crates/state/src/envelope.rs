//! How a value is written: bincode inside an envelope that says what it is and whether it is whole.
//!
//! ```text
//! "CFst" | format u8 | type u8 | version u16 | part u16 | parts u16 | length u32 | crc32c u32 | payload
//! ```
//! All numbers are big-endian. The checksum covers the header before it, the key and the payload, so that a value
//! found under another key is not taken for that key's. The store writes whole pages of sixteen entries, and a page
//! beyond 128 KiB leaves its safe path, so a value of more than 4 KiB is written in parts under consecutive keys.

use bincode::Options;
use serde::{Serialize, de::DeserializeOwned};
use std::fmt::Debug;

/// The most payload that one part carries: 4 KiB with its header.
pub const PART_BYTES_MAX: usize = 4096 - HEADER;

/// The most payload that one value may have.
pub const VALUE_BYTES_MAX: usize = 16 << 20;

const MAGIC: [u8; 4] = *b"CFst";
const FORMAT: u8 = 1;
const HEADER: usize = 20;

/// What is stored under a key. Its fields are its bytes: a changed field is a new `VERSION`.
pub trait Record: Serialize + DeserializeOwned + Debug + Send + Sync + 'static {
    /// The type's number in the envelope; never given to another type.
    const TYPE: u8;
    /// The newest version of its bytes; the one that is written.
    const VERSION: u16;
}

/// A payload and what it is, out of its envelope.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Payload {
    pub(crate) type_: u8,
    pub(crate) version: u16,
    pub(crate) bytes: Vec<u8>,
}

/// Why an envelope cannot be opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Flaw {
    /// Not what was written.
    Damaged(&'static str),
    /// Written by a newer program: what, found, known.
    TooNew(&'static str, u32, u32),
}

fn options() -> impl Options {
    bincode::DefaultOptions::new()
        .with_fixint_encoding()
        .with_little_endian()
        .with_limit(VALUE_BYTES_MAX as u64)
        .reject_trailing_bytes()
}

impl Payload {
    /// A value's bytes; `Err` with its size when it is too large.
    pub(crate) fn of<V: Record>(value: &V) -> Result<Self, usize> {
        let size = || options().with_no_limit().serialized_size(value).map_or(usize::MAX, |size| size as usize);
        let bytes = options().serialize(value).map_err(|_| size())?;
        Ok(Self { type_: V::TYPE, version: V::VERSION, bytes })
    }

    /// The value.
    pub(crate) fn value<V: Record>(&self) -> Result<V, Flaw> {
        if self.type_ != V::TYPE {
            return Err(Flaw::Damaged("a value of another type"));
        }
        if self.version > V::VERSION {
            return Err(Flaw::TooNew("a value", self.version.into(), V::VERSION.into()));
        }
        if self.version != V::VERSION {
            return Err(Flaw::Damaged("a value of a version that was never written"));
        }
        options().deserialize(&self.bytes).map_err(|_| Flaw::Damaged("a value that does not fit its type"))
    }

    /// The envelopes of its parts, at least one.
    pub(crate) fn seal(&self, key: &[u8]) -> Vec<Vec<u8>> {
        let parts = self.bytes.len().div_ceil(PART_BYTES_MAX).max(1) as u16;
        (0..parts).map(|part| self.seal_part(key, part, parts)).collect()
    }

    fn seal_part(&self, key: &[u8], part: u16, parts: u16) -> Vec<u8> {
        let from = usize::from(part) * PART_BYTES_MAX;
        let payload = self.bytes.get(from..).unwrap_or_default();
        let payload = payload.get(..PART_BYTES_MAX).unwrap_or(payload);
        let mut out = Vec::with_capacity(HEADER + payload.len());
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&[FORMAT, self.type_]);
        out.extend_from_slice(&self.version.to_be_bytes());
        out.extend_from_slice(&part.to_be_bytes());
        out.extend_from_slice(&parts.to_be_bytes());
        out.extend_from_slice(&(payload.len() as u32).to_be_bytes());
        let crc = checksum(&out, key, payload);
        out.extend_from_slice(&crc.to_be_bytes());
        out.extend_from_slice(payload);
        out
    }
}

fn checksum(head: &[u8], key: &[u8], payload: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c_append(crc32c::crc32c(head), key), payload)
}

/// One part, opened.
#[derive(Debug)]
pub(crate) struct Part<'a> {
    pub(crate) type_: u8,
    pub(crate) version: u16,
    pub(crate) part: u16,
    pub(crate) parts: u16,
    pub(crate) payload: &'a [u8],
}

/// Opens one envelope found under `key`.
pub(crate) fn open_part<'a>(key: &[u8], bytes: &'a [u8]) -> Result<Part<'a>, Flaw> {
    let (head, payload) = bytes.split_first_chunk::<HEADER>().ok_or(Flaw::Damaged("an envelope that is cut short"))?;
    let [m0, m1, m2, m3, format, type_, v0, v1, p0, p1, n0, n1, l0, l1, l2, l3, c0, c1, c2, c3] = *head;
    if [m0, m1, m2, m3] != MAGIC {
        return Err(Flaw::Damaged("bytes that are no envelope"));
    }
    if format > FORMAT {
        return Err(Flaw::TooNew("an envelope", format.into(), FORMAT.into()));
    }
    let (covered, _) = head.split_at(HEADER - 4);
    if u32::from_be_bytes([c0, c1, c2, c3]) != checksum(covered, key, payload) {
        return Err(Flaw::Damaged("a value whose checksum does not fit"));
    }
    if format != FORMAT || u32::from_be_bytes([l0, l1, l2, l3]) as usize != payload.len() {
        return Err(Flaw::Damaged("an envelope that contradicts itself"));
    }
    let (part, parts) = (u16::from_be_bytes([p0, p1]), u16::from_be_bytes([n0, n1]));
    Ok(Part { type_, version: u16::from_be_bytes([v0, v1]), part, parts, payload })
}

/// Puts a value's parts together again, in order.
pub(crate) fn join(key: &[u8], envelopes: &[impl AsRef<[u8]>]) -> Result<Payload, Flaw> {
    let mut whole: Option<Payload> = None;
    for (index, bytes) in envelopes.iter().enumerate() {
        let part = open_part(key, bytes.as_ref())?;
        if usize::from(part.part) != index || usize::from(part.parts) != envelopes.len() {
            return Err(Flaw::Damaged("a value of which a part is missing"));
        }
        let whole = whole.get_or_insert(Payload { type_: part.type_, version: part.version, bytes: Vec::new() });
        if (whole.type_, whole.version) != (part.type_, part.version) {
            return Err(Flaw::Damaged("a value whose parts do not belong together"));
        }
        whole.bytes.extend_from_slice(part.payload);
    }
    whole.ok_or(Flaw::Damaged("a value without parts"))
}

/// The envelopes of a value under a key, as they stand on disk. For tests of the format.
///
/// # Errors
/// The value's size, when it is beyond [`VALUE_BYTES_MAX`].
pub fn encode_parts<V: Record>(key: &[u8], value: &V) -> Result<Vec<Vec<u8>>, usize> {
    Ok(Payload::of(value)?.seal(key))
}

/// Reads what [`encode_parts`] wrote; `None` for anything else. For tests of the format.
pub fn decode_parts<V: Record>(key: &[u8], parts: &[Vec<u8>]) -> Option<V> {
    join(key, parts).and_then(|payload| payload.value()).ok()
}
