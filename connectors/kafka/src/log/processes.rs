//! Who works on the migration, wherever: each process notes itself in the compacted topic from time to time, and takes the note
//! back when it ends. One that was killed leaves its note, which grows old.

use super::{
    KafkaLog,
    meta::Says,
    shared::{Shared, lock},
    who,
};
use crossfade_log::LogError;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// How often a process notes itself.
const EVERY: Duration = Duration::from_secs(10);

/// How often at most, when something has changed that people want to see at once.
const AT_MOST_EVERY: Duration = Duration::from_secs(1);

/// One whose note is older counts as gone.
const GONE_AFTER: Duration = Duration::from_secs(60);

/// A process that works on the migration, as it says itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Drawn when it opened the log.
    pub id: u64,
    /// For people.
    pub who: String,
    /// What it does: `ingest`, `transform` or `deliver`.
    pub role: String,
    /// When it said so by its own clock, in milliseconds since 1970.
    pub at_ms: i64,
    /// The partitions that it has been given, and how many records of each are before it.
    pub partitions: BTreeMap<u32, u64>,
    /// Records of the log before it, over all partitions.
    pub behind: u64,
    /// What it waits for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting: Option<String>,
}

impl Process {
    /// What people want to see at once when it changes.
    fn shape(&self) -> (Vec<u32>, bool) {
        (self.partitions.keys().copied().collect(), self.waiting.is_some())
    }
}

impl KafkaLog {
    /// Says what this process does; others see it within ten seconds.
    pub fn tell(&self, role: &str, partitions: BTreeMap<u32, u64>, behind: u64, waiting: Option<String>) {
        let shared = &self.0.shared;
        let process =
            Process { id: shared.own, who: who(), role: role.to_owned(), at_ms: now_ms(), partitions, behind, waiting };
        *lock(&shared.told) = Some(process);
    }

    /// The processes that have said within the last minute that they work on the migration, by role. This one says so of
    /// itself as well.
    pub fn processes(&self) -> Vec<Process> {
        let shared = &self.0.shared;
        let mut all = lock(&shared.processes).clone();
        if let Some(own) = lock(&shared.told).clone() {
            all.insert(own.id, own);
        }
        let oldest = now_ms() - GONE_AFTER.as_millis() as i64;
        let mut all: Vec<Process> = all.into_values().filter(|process| process.at_ms >= oldest).collect();
        all.sort_by(|a, b| (&a.role, &a.who).cmp(&(&b.role, &b.who)));
        all
    }
}

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

pub(super) fn key(id: u64) -> String {
    format!("process/{id:016x}")
}

/// Notes what this process says of itself.
#[derive(Default)]
pub(super) struct Telling {
    last: Option<(Process, Instant)>,
    /// People have been told that it is not allowed: nothing more is noted.
    denied: bool,
}

impl Telling {
    /// Notes it where it is time for it.
    pub(super) fn tell(&mut self, shared: &Shared) {
        let Some(process) = lock(&shared.told).clone().filter(|_| !self.denied) else { return };
        let is_noted = |(last, at): &(Process, Instant)| {
            at.elapsed() < if last.shape() == process.shape() { EVERY } else { AT_MOST_EVERY }
        };
        if self.last.as_ref().is_some_and(is_noted) {
            return;
        }
        match shared.say(&Says::Process(process.clone())) {
            Ok(_) => self.last = Some((process, Instant::now())),
            Err(error) => self.complain(&error),
        }
    }

    /// It ends: nobody needs to wait until the note is old.
    pub(super) fn end(&mut self, shared: &Shared) {
        if let Some((process, _)) = self.last.take()
            && let Err(error) = shared.take_back(&key(process.id))
        {
            self.complain(&error);
        }
    }

    fn complain(&mut self, error: &LogError) {
        if let LogError::Denied { .. } = error {
            self.denied = true;
            tracing::warn!("`status` elsewhere does not show this process: {error}");
        } else {
            tracing::debug!(%error, "what this process does is not noted yet");
        }
    }
}
