//! One record of a topic, decoded.

use super::envelope::{self, Change, Marked, RecordKey};
use crate::dual::OTHER_KEY;
use rdkafka::{
    Message,
    message::{BorrowedMessage, Headers},
};

/// A record, decoded.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) offset: u64,
    pub(super) bytes: usize,
    pub(super) what: What,
}

#[derive(Debug)]
pub(super) enum What {
    Tombstone,
    Mark(Marked),
    Change(Box<Moved>),
}

/// A change with its key; and whether it is one half of a row's move to another key.
#[derive(Debug)]
pub(super) struct Moved {
    pub(super) change: Change,
    pub(super) key: Option<RecordKey>,
    pub(super) goes: bool,
    pub(super) comes: bool,
    /// The key that the row has in the topic of the other key version.
    pub(super) other: Option<Vec<u8>>,
    pub(super) offset: u64,
}

/// Decodes it; a record of the topic of transactions is a mark.
pub(super) fn decode(
    reader: &mut envelope::Reader,
    message: &BorrowedMessage<'_>,
    offset: u64,
    is_mark: bool,
) -> Result<Record, envelope::Foreign> {
    let bytes = message.payload_len() + message.key_len();
    let what = match message.payload() {
        None | Some(b"null") => What::Tombstone,
        Some(value) if is_mark => What::Mark(envelope::mark(value)?),
        Some(value) => {
            let key = message.key().filter(|key| *key != b"null").map(envelope::key).transpose()?;
            let has = |name: &str| message.headers().is_some_and(|headers| headers.iter().any(|one| one.key == name));
            let change = reader.change(value)?;
            let (goes, comes) = (has("__debezium.newkey"), has("__debezium.oldkey"));
            let other = message.headers().and_then(|headers| headers.iter().find(|one| one.key == OTHER_KEY)?.value);
            let other = other.map(<[u8]>::to_vec);
            What::Change(Box::new(Moved { change, key, goes, comes, other, offset }))
        }
    };
    Ok(Record { offset, bytes, what })
}
