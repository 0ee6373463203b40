//! What is told of changes: their records, with the source transaction that they belong to, and that one's marks.

use super::{
    envelope::{Draft, Manner, Origin, Table},
    live::{Live, Sent},
    shape, topics,
    writer::Broken,
};
use crate::dual;
use crossfade_event::Version;
use rdkafka::message::{Header, OwnedHeaders};
use std::collections::BTreeMap;

/// A source transaction under way.
pub(super) struct Under {
    pub(super) id: String,
    pub(super) xid: u64,
    pub(super) commit: u64,
    pub(super) commit_time_us: i64,
    /// Its first mark is written.
    pub(super) begun: bool,
    pub(super) total: u64,
    pub(super) of_tables: BTreeMap<String, u64>,
}

impl Live {
    pub(super) fn write_draft(
        &mut self,
        table: &Table,
        draft: &Draft,
        at: Version,
        is_copy: bool,
        manner: &Manner,
        marks: Option<&String>,
    ) -> Result<(), Broken> {
        if let Some(prefix) = marks
            && let Some(under) = self.transaction.as_mut().filter(|under| !under.begun)
        {
            under.begun = true;
            let mark = under.mark(false, manner.schemas);
            self.mark(&topics::transactions(prefix), &mark)?;
        }
        let mut block = None;
        if let Some(under) = self.transaction.as_mut().filter(|_| !is_copy) {
            under.total += 1;
            let of_table = under.of_tables.entry(table.collection.clone()).or_default();
            *of_table += 1;
            block = marks.map(|_| (under.id.clone(), under.total, *of_table));
        }
        let under = self.transaction.as_ref().filter(|_| !is_copy);
        let origin = Origin {
            snapshot: is_copy,
            xid: under.map(|under| under.xid),
            commit: under.map(|under| under.commit),
            sequence: (!is_copy).then_some(at.sequence.0),
            commit_time_us: under.map_or(self.now_us, |under| under.commit_time_us),
            now_us: self.now_us,
            block: block.as_ref().map(|(id, total, of_table)| (id.as_str(), *total, *of_table)),
        };
        let value = table.value(draft, origin, manner);
        let partition = table.partition(draft.key.as_deref());
        let key = draft.key.as_deref().map(str::as_bytes);
        let commit = under.map(|under| under.commit);
        let of_versions = versions(table, draft, commit, at);
        let mut headers = of_versions.clone();
        if let Some((name, key)) = &draft.moved {
            let moved = Header { key: name, value: Some(key.as_bytes()) };
            headers = Some(headers.unwrap_or_default().insert(moved));
        }
        self.send(Sent { topic: &table.topic, partition, key, value: Some(value.as_bytes()), headers })?;
        if draft.goes {
            self.send(Sent { topic: &table.topic, partition, key, value: None, headers: of_versions })?;
        }
        Ok(())
    }

    /// That the row of a key is gone with all others.
    pub(super) fn write_gone(
        &mut self,
        table: &Table,
        key: &[u8],
        at: Version,
        manner: &Manner,
        marks: Option<&String>,
    ) -> Result<(), Broken> {
        let draft = table.gone_key(&String::from_utf8_lossy(key));
        self.write_draft(table, &draft, at, false, manner, marks)
    }

    /// That a table without a key was emptied.
    pub(super) fn write_emptied(&mut self, table: &Table, at: Version, manner: &Manner) -> Result<(), Broken> {
        let origin = Origin {
            snapshot: false,
            xid: None,
            commit: None,
            sequence: Some(at.sequence.0),
            commit_time_us: self.now_us,
            now_us: self.now_us,
            block: None,
        };
        let value = table.emptied(origin, manner);
        self.send(Sent { topic: &table.topic, partition: 0, key: None, value: Some(value.as_bytes()), headers: None })
    }

    pub(super) fn mark(&mut self, topic: &str, (key, value): &(String, String)) -> Result<(), Broken> {
        let (key, value) = (Some(key.as_bytes()), Some(value.as_bytes()));
        self.send(Sent { topic, partition: 0, key, value, headers: None })
    }
}

/// The headers of a record that tells a key version.
fn versions(table: &Table, draft: &Draft, commit: Option<u64>, at: Version) -> Option<OwnedHeaders> {
    let version = table.view.version()?;
    let commit = commit.map_or_else(|| "-".to_owned(), |commit| commit.to_string());
    let position = format!("{commit}/{}/{}", at.sequence.0, at.ordinal);
    let shape = format!("{:016x}", table.shape);
    let op = draft.op.to_string();
    let all = [
        (dual::POSITION, Some(&*position)),
        (dual::SCHEMA, Some(&*shape)),
        (dual::KEY_VERSION, Some(version)),
        (dual::OP, Some(&*op)),
        (dual::OTHER_KEY, draft.other_key.as_deref()),
    ];
    let told = all.into_iter().filter_map(|(key, value)| Some((key, value?)));
    Some(told.fold(OwnedHeaders::new(), |headers, (key, value)| headers.insert(Header { key, value: Some(value) })))
}

impl Under {
    /// The mark of its begin or of its end, as a key and a value.
    pub(super) fn mark(&self, is_end: bool, schemas: bool) -> (String, String) {
        let wrapped = |schema: &str, payload: String| match schemas {
            true => format!("{{\"schema\":{schema},\"payload\":{payload}}}"),
            false => payload,
        };
        let collections: Vec<serde_json::Value> = self
            .of_tables
            .iter()
            .map(|(table, count)| serde_json::json!({ "data_collection": table, "event_count": count }))
            .collect();
        let value = serde_json::json!({
            "status": if is_end { "END" } else { "BEGIN" },
            "id": self.id,
            "event_count": is_end.then_some(self.total),
            "data_collections": is_end.then_some(collections),
            "ts_ms": self.commit_time_us.div_euclid(1_000),
        });
        let key = serde_json::json!({ "id": self.id });
        (wrapped(shape::MARK_KEY, key.to_string()), wrapped(shape::MARK, value.to_string()))
    }
}
