//! Where a migration's log ends, whatever it is kept in: segments on disk, or topics of the broker that
//! `CROSSFADE_TEST_LOG=kafka` asks for.

use crossfade_event::Cut;
use crossfade_kafka::{Connection, LogOptions, log::KafkaLog};
use crossfade_log::{EventLog, embedded::Embedded};
use crossfade_testkit::kafka::Kafka;
use std::{
    path::Path,
    sync::{Mutex, PoisonError},
};

/// The broker of a test whose log is on topics.
pub(crate) fn broker() -> Option<&'static Kafka> {
    let asked = std::env::var("CROSSFADE_TEST_LOG").is_ok_and(|kind| kind == "kafka");
    asked.then(|| Kafka::shared().expect("CROSSFADE_TEST_LOG asks for a broker"))
}

/// `[log]` of a spec.
pub(crate) fn spec() -> String {
    let kept = |kafka: &Kafka| format!("[log]\nkind = \"kafka\"\nbrokers = \"{}\"\n", kafka.brokers());
    broker().map_or_else(|| "[log]\nsegment_bytes = \"1MiB\"\n".to_owned(), kept)
}

/// Looks where a log ends; works beside a run.
#[derive(Debug, Default)]
pub(crate) struct Tail(Mutex<Option<KafkaLog>>);

impl Tail {
    /// The end of this migration's log, by its work folder; the very beginning where there is none.
    pub(crate) fn cut(&self, work: &Path, name: &str) -> Cut {
        let cut = match broker() {
            Some(kafka) => self.of_topics(kafka, work, name),
            None => Embedded::open_read_only(work.join("log")).ok().map(|log| log.tail().cut),
        };
        cut.unwrap_or_default()
    }

    /// The log is opened once, and again when its topics were deleted.
    fn of_topics(&self, kafka: &Kafka, work: &Path, name: &str) -> Option<Cut> {
        let mut opened = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(log) = opened.take_if(|log| log.look_again().is_err()) {
            drop(log);
        }
        if opened.is_none() {
            let prefix = format!("crossfade_{}", name.replace('-', "_"));
            let options = LogOptions::new(Connection::plain(kafka.brokers()), prefix);
            let pinned = LogOptions { pin: Some(work.join("topics.json")), ..options };
            *opened = KafkaLog::open_read_only(pinned).ok();
        }
        opened.as_ref().map(|log| log.tail().cut)
    }
}
