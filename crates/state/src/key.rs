//! Typed keys: a kind byte, then fields written so that the order of the bytes is the order of the fields and no two
//! keys are written alike.

use crate::{Record, StateError};
use std::marker::PhantomData;

/// The longest key, kind byte included; far below a page of the store.
pub const KEY_BYTES_MAX: usize = 256;

/// The key of one kind of value.
pub trait Key: Sized {
    /// What is stored under it.
    type Value: Record;

    /// The first byte of every key of this kind; never given to another kind.
    const KIND: u8;

    /// The kind's name, for errors and `state ls`.
    const NAME: &'static str;

    /// Writes the fields.
    fn write(&self, out: &mut KeyWriter);

    /// Reads what [`Key::write`] wrote; `None` when it is not such a key.
    fn read(fields: &mut KeyReader<'_>) -> Option<Self>;

    /// The whole key.
    ///
    /// # Errors
    /// [`StateError::TooLarge`].
    fn to_bytes(&self) -> Result<Vec<u8>, StateError> {
        let mut out = KeyWriter(vec![Self::KIND]);
        self.write(&mut out);
        if out.0.len() > KEY_BYTES_MAX {
            let what = format!("a key of kind {}", Self::NAME);
            return Err(StateError::TooLarge { what, bytes: out.0.len(), limit: KEY_BYTES_MAX });
        }
        Ok(out.0)
    }

    /// Reads a whole key.
    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (kind, fields) = bytes.split_first()?;
        let mut fields = KeyReader(fields);
        let key = Self::read(&mut fields).filter(|_| *kind == Self::KIND)?;
        fields.0.is_empty().then_some(key)
    }
}

/// All keys of a kind that begin with some fields.
pub struct Prefix<K>(pub(crate) Vec<u8>, PhantomData<K>);

impl<K: Key> Prefix<K> {
    /// Every key of the kind.
    pub fn all() -> Self {
        Self(vec![K::KIND], PhantomData)
    }

    /// Those whose first fields are what `fields` writes.
    pub fn starting(fields: impl FnOnce(&mut KeyWriter)) -> Self {
        let mut out = KeyWriter(vec![K::KIND]);
        fields(&mut out);
        Self(out.0, PhantomData)
    }
}

/// Writes a key's fields.
pub struct KeyWriter(Vec<u8>);

impl KeyWriter {
    /// A number.
    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }

    /// A signed number; negative ones come first.
    pub fn i64(&mut self, value: i64) -> &mut Self {
        self.0.extend_from_slice(&((value as u64) ^ (1 << 63)).to_be_bytes());
        self
    }

    /// A text: its bytes with 0 as `0 255`, then `0 0`.
    pub fn text(&mut self, value: &str) -> &mut Self {
        for byte in value.bytes() {
            self.0.push(byte);
            if byte == 0 {
                self.0.push(255);
            }
        }
        self.0.extend_from_slice(&[0, 0]);
        self
    }
}

/// Reads a key's fields.
pub struct KeyReader<'a>(&'a [u8]);

impl KeyReader<'_> {
    /// A number.
    pub fn u32(&mut self) -> Option<u32> {
        let (head, rest) = self.0.split_first_chunk::<4>()?;
        self.0 = rest;
        Some(u32::from_be_bytes(*head))
    }

    /// A signed number.
    pub fn i64(&mut self) -> Option<i64> {
        let (head, rest) = self.0.split_first_chunk::<8>()?;
        self.0 = rest;
        Some((u64::from_be_bytes(*head) ^ (1 << 63)) as i64)
    }

    /// A text.
    pub fn text(&mut self) -> Option<String> {
        let mut text = Vec::new();
        loop {
            let (byte, rest) = self.0.split_first()?;
            self.0 = rest;
            if *byte == 0 {
                let (escape, rest) = self.0.split_first()?;
                self.0 = rest;
                match escape {
                    0 => return String::from_utf8(text).ok(),
                    255 => {}
                    _ => return None,
                }
            }
            text.push(*byte);
        }
    }
}
