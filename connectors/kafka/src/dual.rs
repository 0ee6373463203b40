//! Reading what a sink with `write = "dual-records"` writes: each change in both key versions, in two topics or in one
//! record. [`read`] reads a record of either layout, [`Rows`] puts the rows together that they amount to.
//!
//! What this module deliberately does not do: it asks no broker. Whoever consumes brings key, value and headers, read with
//! `isolation.level = read_committed`.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// The header that says where in the history a record stands: `COMMIT/SEQUENCE/ORDINAL`, as in [`Place`].
pub const POSITION: &str = "crossfade.position";
/// The header with a number that only the same columns have, as 16 hexadecimal digits: another one, another shape.
pub const SCHEMA: &str = "crossfade.schema";
/// The header that says which key version a record tells: `v1`, `v2` or `both`.
pub const KEY_VERSION: &str = "crossfade.key-version";
/// The header with the operation: `r`, `c`, `u` or `d`. A tombstone has that of the deletion that it follows.
pub const OP: &str = "crossfade.op";
/// The header with the key that the row has in the topic of the other key version.
pub const OTHER_KEY: &str = "crossfade.other-key";

/// What stands where an update left a large value alone.
const PLACEHOLDER: &str = crate::UNAVAILABLE;

/// A record that the sink did not write so. Never holds a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("this is no record in two key versions: {0}")]
pub struct NotDual(String);

/// What happened to the row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum Operation {
    /// It was there when its table was copied.
    #[serde(rename = "r")]
    Copied,
    /// It came.
    #[serde(rename = "c")]
    Created,
    /// It changed.
    #[serde(rename = "u")]
    Updated,
    /// It went.
    #[serde(rename = "d")]
    Deleted,
}

/// Where in the history a record stands. Of two records of a key the later one has the higher sequence, or the same and the
/// higher ordinal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The end of its transaction in the source's history; none for rows of the copy.
    pub commit: Option<u64>,
    /// Its number in Crossfade's log.
    pub sequence: u64,
    /// Its number in that entry.
    pub ordinal: u32,
}

/// One key version of a change.
#[derive(Debug, Clone, PartialEq)]
pub struct Told {
    /// The row's key.
    pub key: Map<String, Value>,
    /// The row as it was, as far as it is known.
    pub before: Option<Map<String, Value>>,
    /// The row as it is now; none when it has gone.
    pub after: Option<Map<String, Value>>,
}

/// One record.
#[derive(Debug, Clone, PartialEq)]
pub struct DualRecord {
    /// What happened.
    pub op: Operation,
    /// It has no value: compaction may now forget the key.
    pub is_tombstone: bool,
    /// Where it stands.
    pub place: Place,
    /// A number that only the same columns have.
    pub schema: String,
    /// The row as the source has it, where this record tells that.
    pub v1: Option<Told>,
    /// The row as the plan makes it, where this record tells that.
    pub v2: Option<Told>,
    /// The key that the row has in the topic of the other version. A row that went with all others (`TRUNCATE`) names none.
    pub other_key: Option<Map<String, Value>>,
}

/// A record's value, without the schema that may stand around it.
#[derive(Debug, Deserialize, JsonSchema)]
struct Envelope {
    /// The row as it was, as far as it is known.
    before: Option<Image>,
    /// The row as it is now.
    after: Option<Image>,
    /// What happened.
    op: Operation,
    /// Where it comes from, as Debezium's PostgreSQL connector says it.
    #[expect(dead_code, reason = "it is described, and the headers say what is needed of it")]
    source: Source,
    /// When it was written, in milliseconds since 1970.
    #[expect(dead_code, reason = "it is described, and nothing depends on it")]
    ts_ms: i64,
    /// With `transactions = true` the transaction's name, and the record's number in it and within its topic.
    #[expect(dead_code, reason = "it is described, and nothing depends on it")]
    transaction: Option<Block>,
}

/// A row: its columns; in a record of both versions `{"v1": {…}, "v2": {…}}`, the columns of each in its own part.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(transparent)]
struct Image(Map<String, Value>);

#[derive(Debug, Deserialize, JsonSchema)]
#[expect(dead_code, reason = "it is described, and the headers say what is needed of it")]
struct Source {
    /// The migration.
    db: String,
    /// The table's schema.
    schema: String,
    /// The table; in a topic of one version with `.v1` or `.v2` behind its name.
    table: String,
    /// `true` for rows of the copy.
    snapshot: String,
    /// The source's transaction.
    #[serde(rename = "txId")]
    xid: Option<u64>,
    /// The change's number in Crossfade's log.
    lsn: Option<u64>,
    /// When it was committed, in milliseconds since 1970.
    ts_ms: i64,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[expect(dead_code, reason = "it is described, and nothing depends on it")]
struct Block {
    /// The transaction's name.
    id: String,
    /// The record's number in it.
    total_order: u64,
    /// The record's number in it within its topic.
    data_collection_order: u64,
}

/// A record's headers, all of them texts.
#[derive(Debug, JsonSchema)]
#[expect(dead_code, reason = "it is described; the headers are read one by one")]
struct Headers {
    /// Where in the history it stands: `COMMIT/SEQUENCE/ORDINAL`, `-` as the commit for rows of the copy.
    #[serde(rename = "crossfade.position")]
    #[schemars(regex(pattern = r"^(-|\d+)/\d+/\d+$"))]
    position: String,
    /// A number that only the same columns have.
    #[serde(rename = "crossfade.schema")]
    #[schemars(regex(pattern = r"^[0-9a-f]{16}$"))]
    schema: String,
    /// Which key version the record tells.
    #[serde(rename = "crossfade.key-version")]
    key_version: KeyVersion,
    /// What happened.
    #[serde(rename = "crossfade.op")]
    op: Operation,
    /// In a topic of one version: the row's key in the other, written as that topic's keys are.
    #[serde(rename = "crossfade.other-key")]
    other_key: Option<String>,
}

#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum KeyVersion {
    V1,
    V2,
    Both,
}

/// One record of a topic that is written with `write = "dual-records"`, either layout.
#[derive(Debug, JsonSchema)]
#[expect(dead_code, reason = "it is the root of the description")]
struct Record {
    /// The columns of the key; in a record of both versions `{"v1": {…}, "v2": {…}}`. With `schemas = true` in a
    /// `{"schema": …, "payload": …}`, as Kafka Connect's JSON converter reads it.
    key: Map<String, Value>,
    /// Nothing in a tombstone. With `schemas = true` in a `{"schema": …, "payload": …}`.
    value: Option<Envelope>,
    headers: Headers,
}

/// What the records look like, as a JSON Schema.
pub fn json_schema() -> Value {
    schemars::schema_for!(Record).to_value()
}

#[derive(Deserialize)]
struct Wrapped {
    #[expect(dead_code, reason = "that it is there tells that the payload is wrapped")]
    schema: Map<String, Value>,
    payload: Value,
}

fn payload(bytes: &[u8], what: &str) -> Result<Value, NotDual> {
    if let Ok(wrapped) = serde_json::from_slice::<Wrapped>(bytes) {
        return Ok(wrapped.payload);
    }
    serde_json::from_slice(bytes).map_err(|_| NotDual(format!("its {what} is no JSON")))
}

fn object(bytes: &[u8], what: &str) -> Result<Map<String, Value>, NotDual> {
    match payload(bytes, what)? {
        Value::Object(map) => Ok(map),
        _ => Err(NotDual(format!("its {what} is no JSON object"))),
    }
}

/// Reads a record of either layout.
///
/// # Errors
/// When the sink did not write it so.
pub fn read<'a>(
    key: Option<&[u8]>,
    value: Option<&[u8]>,
    headers: impl IntoIterator<Item = (&'a str, Option<&'a [u8]>)>,
) -> Result<DualRecord, NotDual> {
    let headers: BTreeMap<&str, &[u8]> = headers.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
    let text = |name: &str| {
        let bytes = headers.get(name).ok_or_else(|| NotDual(format!("it has no header {name}")))?;
        std::str::from_utf8(bytes).map_err(|_| NotDual(format!("its header {name} is no text")))
    };
    let word = |name: &str| Ok(Value::String(text(name)?.to_owned()));
    let unknown = |name: &str| NotDual(format!("its header {name} has a word that is not known here"));
    let op: Operation = serde_json::from_value(word(OP)?).map_err(|_| unknown(OP))?;
    let version: KeyVersion = serde_json::from_value(word(KEY_VERSION)?).map_err(|_| unknown(KEY_VERSION))?;
    let place = place(text(POSITION)?).ok_or_else(|| unknown(POSITION))?;
    let schema = text(SCHEMA)?.to_owned();
    let other_key = headers.get(OTHER_KEY).map(|bytes| object(bytes, "header with the other key")).transpose()?;
    let key = object(key.ok_or_else(|| NotDual("it has no key".to_owned()))?, "key")?;
    let envelope = value.map(|bytes| {
        let payload = payload(bytes, "value")?;
        serde_json::from_value::<Envelope>(payload)
            .map_err(|_| NotDual("its value is not the envelope (op, source, before, after)".to_owned()))
    });
    let envelope = envelope.transpose()?;
    if envelope.as_ref().is_some_and(|envelope| envelope.op != op) {
        return Err(NotDual("its header and its value tell different operations".to_owned()));
    }
    let is_tombstone = envelope.is_none();
    let (before, after) =
        envelope.map_or((None, None), |it| (it.before.map(|image| image.0), it.after.map(|image| image.0)));
    let (v1, v2) = match version {
        KeyVersion::V1 => (Some(Told { key, before, after }), None),
        KeyVersion::V2 => (None, Some(Told { key, before, after })),
        KeyVersion::Both => {
            let of = |name: &str| -> Result<Option<Told>, NotDual> {
                let image = |image: &Option<Map<String, Value>>| {
                    image.as_ref().map(|image| part(image, name, "image")).transpose()
                };
                Ok(Some(Told { key: part(&key, name, "key")?, before: image(&before)?, after: image(&after)? }))
            };
            (of("v1")?, of("v2")?)
        }
    };
    Ok(DualRecord { op, is_tombstone, place, schema, v1, v2, other_key })
}

fn part(of: &Map<String, Value>, name: &str, what: &str) -> Result<Map<String, Value>, NotDual> {
    let part = of.get(name).and_then(Value::as_object).cloned();
    part.ok_or_else(|| NotDual(format!("its {what} has no part {name}")))
}

fn place(text: &str) -> Option<Place> {
    let mut parts = text.split('/');
    let (commit, sequence, ordinal) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() {
        return None;
    }
    let commit = if commit == "-" { None } else { Some(commit.parse().ok()?) };
    Some(Place { commit, sequence: sequence.parse().ok()?, ordinal: ordinal.parse().ok()? })
}

/// The rows of a table in both key versions, put together from its records: those of a key in the order of its partition.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rows {
    /// The rows as the source has them, by their keys there, as JSON.
    pub v1: BTreeMap<String, Map<String, Value>>,
    /// The rows as the plan makes them, by their new keys, as JSON.
    pub v2: BTreeMap<String, Map<String, Value>>,
}

impl Rows {
    /// Takes a record in. What an update left alone stays as it was, where that is known.
    pub fn take(&mut self, record: DualRecord) {
        for (told, rows) in [(record.v1, &mut self.v1), (record.v2, &mut self.v2)] {
            let Some(told) = told else { continue };
            let key = Value::Object(told.key).to_string();
            match told.after {
                None => drop(rows.remove(&key)),
                Some(mut after) => {
                    if let Some(known) = rows.get(&key) {
                        for (name, value) in &mut after {
                            if value.as_str() == Some(PLACEHOLDER)
                                && let Some(known) = known.get(name)
                            {
                                value.clone_from(known);
                            }
                        }
                    }
                    rows.insert(key, after);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers<'a>(version: &'a str, op: &'a str, other: Option<&'a str>) -> Vec<(&'a str, Option<&'a [u8]>)> {
        let mut all = vec![
            (POSITION, Some("77/5/0".as_bytes())),
            (SCHEMA, Some(b"0123456789abcdef".as_slice())),
            (KEY_VERSION, Some(version.as_bytes())),
            (OP, Some(op.as_bytes())),
        ];
        all.extend(other.map(|other| (OTHER_KEY, Some(other.as_bytes()))));
        all
    }

    fn value(op: &str, before: &str, after: &str) -> String {
        format!(
            r#"{{"before":{before},"after":{after},"source":{{"db":"m","schema":"public","table":"t","snapshot":"false","txId":1,"lsn":5,"ts_ms":1}},"transaction":null,"op":"{op}","ts_ms":1}}"#
        )
    }

    fn take(rows: &mut Rows, key: &str, value: Option<&str>, headers: Vec<(&str, Option<&[u8]>)>) {
        rows.take(read(Some(key.as_bytes()), value.map(str::as_bytes), headers).unwrap());
    }

    #[test]
    fn both_layouts_amount_to_the_same_rows() {
        let (mut one, mut two) = (Rows::default(), Rows::default());
        for (n, op) in [(1, "c"), (2, "c"), (2, "d")] {
            let (v1, v2) = (format!(r#"{{"id":{n}}}"#), format!(r#"{{"id":"k{n}"}}"#));
            let both = format!(r#"{{"v1":{v1},"v2":{v2}}}"#);
            let told = |image: &str| match op {
                "d" => value(op, image, "null"),
                _ => value(op, "null", image),
            };
            take(&mut one, &both, Some(&told(&both)), headers("both", op, None));
            take(&mut two, &v1, Some(&told(&v1)), headers("v1", op, Some(&v2)));
            let wrapped = format!(r#"{{"schema":{{}},"payload":{}}}"#, told(&v2));
            take(&mut two, &v2, Some(&wrapped), headers("v2", op, Some(&v1)));
            if op == "d" {
                take(&mut one, &both, None, headers("both", op, None));
                take(&mut two, &v1, None, headers("v1", op, Some(&v2)));
            }
        }
        assert_eq!(one, two);
        assert_eq!((one.v1.keys().cloned().collect::<Vec<_>>(), one.v2.len()), (vec![r#"{"id":1}"#.to_owned()], 1));
    }

    #[test]
    fn what_the_sink_did_not_write_so_is_refused_with_what_is_wrong() {
        let key = Some(br#"{"id":1}"#.as_slice());
        let good = value("c", "null", r#"{"id":1}"#);
        let told = |key: Option<&[u8]>, value: &str, headers: Vec<(&str, Option<&[u8]>)>| {
            read(key, Some(value.as_bytes()), headers).unwrap_err().to_string()
        };
        assert!(told(key, &good, Vec::new()).contains("no header crossfade.op"));
        assert!(told(None, &good, headers("v1", "c", None)).contains("no key"));
        assert!(told(key, &good, headers("v3", "c", None)).contains("a word that is not known"));
        assert!(told(key, &good, headers("v1", "d", None)).contains("different operations"));
        assert!(told(key, &good, headers("both", "c", None)).contains("has no part v1"));
        assert!(told(key, "{}", headers("v1", "c", None)).contains("not the envelope"));
    }

    #[test]
    fn the_kept_description_of_the_records_is_the_one_that_is_read() {
        let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../dual-records.schema.json");
        let made = format!("{}\n", serde_json::to_string_pretty(&json_schema()).unwrap());
        if std::env::var_os("CROSSFADE_UPDATE").is_some() {
            std::fs::write(&file, &made).unwrap();
        }
        let kept = std::fs::read_to_string(&file).unwrap_or_default();
        assert!(
            kept == made,
            "dual-records.schema.json is stale: run `CROSSFADE_UPDATE=1 cargo test -p crossfade-kafka dual`"
        );
    }
}
