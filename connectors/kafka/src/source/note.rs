//! How far the topics have been read: written into the log with each batch, so that there is no second bookkeeping.

use super::topics::Found;
use bytes::Bytes;
use crossfade_connector::Failure;
use crossfade_event::Mark;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Whose mark it is.
pub(crate) const PREFIX: &str = "debezium";

const FORMAT: u32 = 1;

/// One topic: which one it is, and the next offset of each partition.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Place {
    pub(crate) id: String,
    pub(crate) next: Vec<u64>,
}

/// All topics, and what must be known to go on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Note {
    format: u32,
    pub(crate) topics: BTreeMap<String, Place>,
    /// Whether whole transactions are put together.
    pub(crate) transactions: bool,
    /// Where the connector's snapshot stands in the history of its database.
    pub(crate) snapshot: Option<u64>,
    /// Where the last transaction ended in that history.
    #[serde(default)]
    pub(crate) commit: Option<u64>,
    /// The database that the records are of.
    pub(crate) database: Option<String>,
}

const AGAIN: &str = "Begin again: `crossfade rollback --wipe`, then let Debezium take another snapshot into topics of another prefix, name that one, and `crossfade run`";

/// Where nothing helps but to begin again.
pub(crate) fn lost(what: impl Into<String>) -> Failure {
    Failure::lost("reading the topics that Debezium writes", what.into(), AGAIN)
}

impl Note {
    pub(crate) fn new(transactions: bool) -> Self {
        Self { format: FORMAT, transactions, ..Self::default() }
    }

    /// Reads what was written.
    pub(crate) fn read(mark: Option<&Mark>) -> Result<Self, Failure> {
        let mark = mark.ok_or_else(|| lost("the log does not say how far the topics were read"))?;
        let note: Self = serde_json::from_slice(&mark.content)
            .map_err(|error| lost(format!("what the log says of how far the topics were read is damaged: {error}")))?;
        if note.format > FORMAT {
            return Err(lost(format!(
                "the log was written by a newer crossfade (its notes have format {})",
                note.format
            )));
        }
        Ok(note)
    }

    pub(crate) fn mark(&self) -> Mark {
        Mark { prefix: PREFIX.into(), content: Bytes::from(serde_json::to_vec(self).unwrap_or_default()) }
    }

    /// Checks that the topics are still the ones that were read, and hold what has not been read yet.
    pub(crate) fn check(&self, found: &[Found]) -> Result<(), Failure> {
        for (name, place) in &self.topics {
            let Some(topic) = found.iter().find(|topic| topic.name == *name) else {
                return Err(lost(format!("the topic {name} (id {}) has been deleted", place.id)));
            };
            if topic.id != place.id {
                return Err(lost(format!(
                    "the topic {name} was deleted and made anew: its id was {}, and is {} now",
                    place.id, topic.id
                )));
            }
            if topic.bounds.len() < place.next.len() {
                return Err(lost(format!("the topic {name} has fewer partitions than it had")));
            }
            if topic.bounds.len() > place.next.len() {
                return Err(lost(format!(
                    "the topic {name} had {} partitions, and has {} now: keys may have changed their partition, and their order is lost",
                    place.next.len(),
                    topic.bounds.len()
                )));
            }
            for (partition, (next, (low, high))) in place.next.iter().zip(&topic.bounds).enumerate() {
                kept(name, partition, *next, *low, *high)?;
            }
        }
        Ok(())
    }
}

/// Refuses a partition that no longer holds what comes next.
pub(crate) fn kept(name: &str, partition: usize, next: u64, low: u64, high: u64) -> Result<(), Failure> {
    if low > next {
        return Err(lost(format!(
            "partition {partition} of the topic {name} begins at offset {low} now: records from {next} on expired before they were read"
        )));
    }
    if high < next {
        return Err(lost(format!(
            "partition {partition} of the topic {name} ends at offset {high}, and was read up to {next}: the brokers have lost records"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossfade_connector::Verdict;

    fn found(id: &str, bounds: &[(u64, u64)]) -> Vec<Found> {
        vec![Found { name: "t".into(), id: id.into(), bounds: bounds.to_vec() }]
    }

    #[test]
    fn a_place_is_good_for_the_same_topic_only() {
        let mut note = Note::new(true);
        note.topics.insert("t".into(), Place { id: "a".into(), next: vec![5, 7] });
        assert_eq!(Note::read(Some(&note.mark())).unwrap(), note);
        note.check(&found("a", &[(0, 5), (7, 9)])).unwrap();
        for (topics, word) in [
            (found("b", &[(0, 5), (0, 9)]), "made anew"),
            (Vec::new(), "deleted"),
            (found("a", &[(6, 9), (0, 9)]), "expired"),
            (found("a", &[(0, 4), (0, 9)]), "lost records"),
            (found("a", &[(0, 9), (0, 9), (0, 0)]), "3 now"),
            (found("a", &[(0, 9)]), "fewer"),
        ] {
            let failure = note.check(&topics).unwrap_err();
            assert!(matches!(failure.verdict, Verdict::Lost { .. }), "{failure}");
            assert!(failure.to_string().contains(word), "{failure}");
        }
        assert!(Note::read(None).is_err());
    }
}
