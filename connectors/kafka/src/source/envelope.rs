//! Debezium's records: the envelope around a row's images, with and without the schema of Kafka Connect's JSON converter.

use super::connect::Schema;
use serde::Deserialize;
use serde_json::{Map, Value as Json, value::RawValue};
use std::{collections::HashMap, sync::Arc};

/// A row as JSON.
pub(crate) type Image = Map<String, Json>;

/// A record that Debezium did not write, or not so that it could be read here. Never holds a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Foreign(pub(crate) String);

fn foreign(what: impl Into<String>) -> Foreign {
    Foreign(what.into())
}

/// What happened, in Debezium's letter for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(crate) enum Op {
    /// Created.
    #[serde(rename = "c")]
    Create,
    /// Updated.
    #[serde(rename = "u")]
    Update,
    /// Deleted.
    #[serde(rename = "d")]
    Delete,
    /// Read by a snapshot.
    #[serde(rename = "r")]
    Read,
    /// The table was emptied.
    #[serde(rename = "t")]
    Truncate,
    /// A message of `pg_logical_emit_message`.
    #[serde(rename = "m")]
    Message,
}

/// Where a change comes from, by the connector's word.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct Origin {
    pub(crate) connector: String,
    pub(crate) db: Option<String>,
    pub(crate) schema: Option<String>,
    pub(crate) table: Option<String>,
    #[serde(default)]
    snapshot: Json,
    #[serde(rename = "txId")]
    pub(crate) xid: Option<u64>,
    pub(crate) lsn: Option<u64>,
    ts_ms: Option<i64>,
    ts_us: Option<i64>,
}

impl Origin {
    /// Whether the row was read by a snapshot that was asked for while the connector ran: chunk by chunk, beside the stream.
    pub(crate) fn is_incremental(&self) -> bool {
        self.snapshot.as_str() == Some("incremental")
    }

    /// When it happened, in microseconds since 1970.
    pub(crate) fn time_us(&self) -> i64 {
        self.ts_us.or_else(|| self.ts_ms.and_then(|ms| ms.checked_mul(1_000))).unwrap_or_default()
    }
}

/// Which transaction a change is of, and its place in it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct Block {
    pub(crate) id: String,
    pub(crate) total_order: u64,
}

#[derive(Debug, Deserialize)]
struct Payload {
    op: Op,
    source: Origin,
    #[serde(default)]
    before: Option<Image>,
    #[serde(default)]
    after: Option<Image>,
    #[serde(default)]
    transaction: Option<Block>,
}

/// The schema of a row's image, and a number that only the same text has.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Seen {
    pub(crate) number: u64,
    pub(crate) schema: Schema,
}

/// One change.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Change {
    pub(crate) op: Op,
    pub(crate) origin: Origin,
    pub(crate) before: Option<Image>,
    pub(crate) after: Option<Image>,
    pub(crate) block: Option<Block>,
    /// Of the images, where the record has one.
    pub(crate) schema: Option<Arc<Seen>>,
}

/// A record's key.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RecordKey {
    pub(crate) cells: Image,
    pub(crate) schema: Option<Schema>,
}

/// What the topic of transactions says.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Marked {
    Began,
    Ended(Ended),
}

/// A transaction that is complete.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Ended {
    pub(crate) xid: u64,
    /// Where in the database's history it ended.
    pub(crate) lsn: Option<u64>,
    pub(crate) time_us: i64,
    /// How many changes there are, by `schema.table`.
    pub(crate) counts: Vec<(String, u64)>,
}

#[derive(Deserialize)]
struct Wrapped<'a> {
    #[serde(borrow, default)]
    schema: Option<&'a RawValue>,
    #[serde(borrow, default)]
    payload: Option<&'a RawValue>,
}

/// The two halves; without a schema the whole record is the payload.
fn unwrap(bytes: &[u8]) -> Result<(Option<&str>, &str), Foreign> {
    let text =
        std::str::from_utf8(bytes).map_err(|_| foreign("it is no text: only the JSON converter's records are read"))?;
    let no_object = |_| foreign("it is no JSON object: only the JSON converter's records are read");
    if !text.trim_start().starts_with('{') {
        return Err(foreign("it is no JSON object: only the JSON converter's records are read"));
    }
    let wrapped: Wrapped<'_> = serde_json::from_str(text).map_err(no_object)?;
    Ok(match (wrapped.schema, wrapped.payload) {
        (Some(schema), Some(payload)) => (Some(schema.get()), payload.get()),
        _ => (None, text),
    })
}

/// Reads records; knows the schemas that it has met.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    known: HashMap<String, Arc<Seen>>,
}

/// So many schemas are remembered; a topic has as many as its table had shapes.
const KNOWN_MAX: usize = 4_096;

impl Reader {
    /// A record's value.
    pub(crate) fn change(&mut self, bytes: &[u8]) -> Result<Change, Foreign> {
        let (schema, payload) = unwrap(bytes)?;
        let payload: Payload = serde_json::from_str(payload).map_err(|error| {
            // The parser's own words may hold a value.
            let what = if error.is_data() {
                "it is not Debezium's envelope (op, source, before, after)"
            } else {
                "it is broken JSON"
            };
            foreign(format!("{what}; a topic whose records were flattened or rewritten cannot be read"))
        })?;
        if payload.source.connector != "postgresql" {
            return Err(foreign(format!(
                "the {} connector wrote it; only the records of the PostgreSQL connector are read",
                payload.source.connector
            )));
        }
        let schema = schema.map(|schema| self.seen(schema)).transpose()?;
        let Payload { op, source, before, after, transaction } = payload;
        Ok(Change { op, origin: source, before, after, block: transaction, schema })
    }

    fn seen(&mut self, text: &str) -> Result<Arc<Seen>, Foreign> {
        if let Some(seen) = self.known.get(text) {
            return Ok(seen.clone());
        }
        let envelope: Schema = serde_json::from_str(text).map_err(|_| foreign("its schema is not Kafka Connect's"))?;
        let row = envelope.get("after").or_else(|| envelope.get("before"));
        let schema = row.cloned().ok_or_else(|| foreign("its schema has no `after`"))?;
        let number = xxhash(text);
        let seen = Arc::new(Seen { number, schema });
        if self.known.len() >= KNOWN_MAX {
            self.known.clear();
        }
        self.known.insert(text.to_owned(), seen.clone());
        Ok(seen)
    }
}

/// The same text has the same number while the program runs.
fn xxhash(text: &str) -> u64 {
    crossfade_event::SourceId::of(text).0
}

/// A record's key.
pub(crate) fn key(bytes: &[u8]) -> Result<RecordKey, Foreign> {
    let (schema, payload) = unwrap(bytes)?;
    let cells = serde_json::from_str(payload).map_err(|_| foreign("its key is no JSON object"))?;
    let schema = schema.map(serde_json::from_str).transpose();
    Ok(RecordKey { cells, schema: schema.map_err(|_| foreign("its key's schema is not Kafka Connect's"))? })
}

#[derive(Deserialize)]
struct Mark {
    status: String,
    id: String,
    #[serde(default)]
    data_collections: Option<Vec<Collection>>,
    #[serde(default)]
    ts_ms: i64,
}

#[derive(Deserialize)]
struct Collection {
    data_collection: String,
    event_count: u64,
}

/// A record of the topic of transactions.
pub(crate) fn mark(bytes: &[u8]) -> Result<Marked, Foreign> {
    let (_, payload) = unwrap(bytes)?;
    let mark: Mark = serde_json::from_str(payload).map_err(|_| foreign("it is no mark of a transaction"))?;
    match mark.status.as_str() {
        "BEGIN" => Ok(Marked::Began),
        "END" => Ok(Marked::Ended(Ended {
            xid: xid(&mark.id).ok_or_else(|| foreign("its transaction has no number"))?,
            lsn: mark.id.split_once(':').and_then(|(_, lsn)| lsn.parse().ok()),
            time_us: mark.ts_ms.saturating_mul(1_000),
            counts: mark
                .data_collections
                .unwrap_or_default()
                .into_iter()
                .map(|one| (one.data_collection, one.event_count))
                .collect(),
        })),
        _ => Err(foreign("it is no mark of a transaction")),
    }
}

/// `7764:541744560` is a place in transaction 7764.
pub(crate) fn xid(id: &str) -> Option<u64> {
    id.split(':').next()?.parse().ok()
}
