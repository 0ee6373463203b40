//! The status: one description of a migration for people, programs and metrics. Its JSON is stable: fields are added,
//! never renamed or taken away while `version` stays.

use crate::{Conservation, Rates, SwitchStatus, TableTotals, Totals, VerifyStatus, eta_s};
use crossfade_control::{Migration, Overlay, Phase, Verdict};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// A migration at one moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The version of this shape: 1.
    pub version: u32,
    /// The migration's name.
    pub name: String,
    /// What this process does of the migration, where it does not do all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// When, ISO 8601 UTC.
    pub at: String,
    /// The process that runs it; `null` when none does.
    pub pid: Option<u32>,
    /// The phase in words: `draft`, `planned`, `expanded`, `capturing`, `backfilling`, `catching up`, `shadowing`,
    /// `verified`, `dual reading`, `ready`, `freezing`, `draining`, `switching`, `switched`, `soaking`, `contracting`,
    /// `done`, `undoing`, `wiping`, `undone`, `wiped`.
    pub phase: String,
    /// Whether it goes on.
    pub standing: Standing,
    /// Why it is paused, failed or lost.
    pub reason: Option<String>,
    /// What to do about it.
    pub remedy: Option<String>,
    /// The fence: a worker with a lower one is refused.
    pub epoch: u64,
    /// The copy as a whole; `null` once it is in the sink.
    pub overall: Option<Overall>,
    /// Table by table, sorted by name.
    pub tables: Vec<TableStatus>,
    /// How far the sink is behind the source.
    pub lag: LagStatus,
    /// Where every change is.
    pub conservation: Conservation,
    /// Lookups of this run that found no row; what they would have filled was left as it was.
    #[serde(default)]
    pub lookup_misses: u64,
    /// Changes and rows of this run that transform workers had transformed already.
    #[serde(default)]
    pub made: u64,
    /// The transform workers that run on this machine.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub workers: Vec<WorkerStatus>,
    /// The processes that share the stream, on whatever machine; none while one applies all of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub delivers: Vec<DeliverStatus>,
    /// All processes that work on the migration, wherever they run, as they say themselves; where one does all of it, none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub processes: Vec<ProcessStatus>,
    /// False when a change is missing from the line above (or counted twice).
    pub conserved: bool,
    /// Rates over the last ten seconds.
    pub rates: Rates,
    /// What the source says of its own health; the shape is the connector's.
    pub source: Value,
    /// Where the sink stands.
    pub sink: SinkStatus,
    /// The event log.
    pub log: LogStatus,
    /// What the gates say.
    pub gates: Vec<Verdict>,
    /// A side that waits and tries again.
    pub retrying: Option<Retrying>,
    /// Named places.
    pub checkpoints: Vec<CheckpointStatus>,
    /// How far comparing both sides all the time has come; where the spec asks for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verify: Option<VerifyStatus>,
    /// Who has the authority, what stands in the way of a switch, and what to do next; once the sink follows the source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub switch: Option<SwitchStatus>,
    /// What this process's clients of the servers that hold the log have counted, by what they are for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub clients: Vec<ClientStatus>,
    /// The other process of the migration, where it is on the same machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beside: Option<Box<Self>>,
}

/// Whether a migration goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    /// A process runs it.
    Running,
    /// Nobody runs it; `crossfade run` goes on.
    Stopped,
    /// Paused by a person or a gate.
    Paused,
    /// Failed; the next `crossfade run` tries again.
    Failed,
    /// Identity changed or history is missing.
    Lost,
}

/// A copy as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overall {
    /// Rows of copies that are in the sink.
    pub rows_loaded: u64,
    /// Rows of copies that are in the log.
    pub rows_copied: u64,
    /// About how many there are.
    pub rows_total: u64,
    /// Seconds still, as it looks.
    pub eta_s: Option<u64>,
}

/// One table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableStatus {
    /// Its name in the source.
    pub table: String,
    /// `waiting`, `copying`, `copied` (all of it is in the log), `loaded` (all of it is in the sink).
    pub state: String,
    /// About how many rows it has.
    pub rows_estimate: u64,
    /// Rows of its copy that are in the log.
    pub rows_copied: u64,
    /// Rows of its copy that are in the sink.
    pub rows_loaded: u64,
    /// Chunks as planned.
    pub chunks: u64,
    /// Chunks that are in the log.
    pub chunks_done: u64,
    /// Changes of the stream that were delivered in this run.
    pub changes: u64,
}

/// How far the sink is behind the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LagStatus {
    /// Bytes of the source's history between its end and what the sink has, where the source can say.
    pub bytes: Option<u64>,
    /// The age of the last transaction that is in, while others wait.
    pub ms: Option<u64>,
    /// Changes and rows in the log that are not in the sink.
    pub events: u64,
}

/// Where the sink stands.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SinkStatus {
    /// The source position up to which it is exact.
    pub position: Option<String>,
    /// Its place in the log.
    pub cut: Option<String>,
    /// `loading` or `streaming`.
    pub stage: Option<String>,
}

/// The event log.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LogStatus {
    /// The first place that can still be read.
    pub start: String,
    /// The place after the last entry.
    pub end: String,
    /// The last source position that is durably in it.
    pub position: Option<String>,
    /// Its size on disk; zero where it is kept elsewhere.
    pub bytes: u64,
    /// Where it is kept, unless it is in the migration's folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub elsewhere: Option<String>,
    /// Records of each partition that the sink does not have, where the log is kept elsewhere.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub behind: BTreeMap<u32, u64>,
}

/// The clients for one purpose, together.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientStatus {
    /// What they are for: `writer`, `reader`, `made`, `follower` or `worker` of a log; `source`, `sink`.
    pub purpose: String,
    /// How many there are now.
    pub clients: u64,
    /// Records in their queues.
    pub queued_records: u64,
    /// Bytes of them.
    pub queued_bytes: u64,
    /// Records sent since the process began.
    pub sent_records: u64,
    /// Bytes of them.
    pub sent_bytes: u64,
    /// Records received since the process began.
    pub received_records: u64,
    /// Bytes of them.
    pub received_bytes: u64,
    /// How many have a transaction in which state.
    pub transactions: BTreeMap<String, u64>,
    /// The brokers, by their numbers.
    pub brokers: BTreeMap<i32, BrokerStatus>,
}

/// One broker, as the clients for one purpose see it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrokerStatus {
    /// Connections that are up.
    pub connected: u64,
    /// Requests that wait to be sent or answered.
    pub outstanding: u64,
    /// How long answers took lately, in microseconds.
    pub rtt_us: u64,
    /// And the slowest hundredth of them at least.
    pub rtt_p99_us: u64,
    /// Requests that failed or were not answered in time, since the process began.
    pub errors: u64,
}

/// A transform worker.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// The process.
    pub pid: u32,
    /// When it said so, ISO 8601 UTC.
    pub at: String,
    /// The partitions that the group has given it, and how many records of each are still before it.
    pub partitions: BTreeMap<u32, u64>,
    /// Changes and blocks of rows that it has been through in this run.
    pub made: u64,
    /// What it waits for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting: Option<String>,
    /// What its clients of the servers that hold the log have counted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub clients: Vec<ClientStatus>,
}

/// A process that works on the migration, on whatever machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessStatus {
    /// Its number and its machine, in words.
    pub who: String,
    /// `ingest`, `transform` or `deliver`.
    pub role: String,
    /// When it said so by its own clock, ISO 8601 UTC.
    pub at: String,
    /// The partitions that it has been given, and how many records of each are still before it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub partitions: BTreeMap<u32, u64>,
    /// Records of the log that are still before it.
    pub behind: u64,
    /// What it waits for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting: Option<String>,
}

/// A side that waits and tries again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retrying {
    /// `source`, `sink` or `log`.
    pub side: String,
    /// What failed.
    pub failure: String,
    /// How often in a row; zero for one that tries all the time.
    pub times: u32,
    /// How long it waits.
    pub wait_ms: u64,
}

/// One of several that deliver.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeliverStatus {
    /// The process and its machine.
    pub process: String,
    /// The process's number on its machine.
    pub pid: u32,
    /// Whether it has the lead: what concerns the whole sink is asked of it.
    pub leads: bool,
    /// The partitions that it applies, and how many entries of each are still before it.
    pub partitions: BTreeMap<u32, u64>,
    /// When it last said something new, ISO 8601 UTC.
    pub at: String,
}

/// A named place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointStatus {
    /// Its name.
    pub name: String,
    /// Its place in the log.
    pub cut: String,
    /// Its place in the source's history.
    pub position: Option<String>,
    /// When it was named, ISO 8601 UTC.
    pub at: String,
}

impl Status {
    /// What the journal and the counters say. The caller adds what only it knows: `source`, `sink`, `log`, `gates`,
    /// `retrying`, and the lag in bytes and milliseconds.
    pub fn new(name: &str, at_us: i64, migration: &Migration, totals: &Totals, rates: Rates) -> Self {
        let (standing, reason, remedy) = standing(migration);
        let checkpoint = |(name, place): (&String, &crossfade_control::Checkpoint)| CheckpointStatus {
            name: name.clone(),
            cut: place.cut.to_string(),
            position: place.position.map(|position| position.to_string()),
            at: iso(place.at_us),
        };
        Self {
            version: 1,
            name: name.to_owned(),
            role: None,
            at: iso(at_us),
            pid: None,
            phase: migration.phase.to_string(),
            standing,
            reason,
            remedy,
            epoch: migration.epoch,
            overall: overall(&totals.tables, rates),
            tables: totals.tables.iter().map(table_status).collect(),
            lag: LagStatus { events: u64::try_from(totals.conservation.pending).unwrap_or(0), ..LagStatus::default() },
            conservation: totals.conservation,
            lookup_misses: totals.lookup_misses,
            made: totals.made,
            workers: Vec::new(),
            delivers: Vec::new(),
            processes: Vec::new(),
            conserved: totals.conservation.holds(),
            rates,
            source: Value::Null,
            sink: SinkStatus::default(),
            log: LogStatus::default(),
            gates: Vec::new(),
            retrying: None,
            checkpoints: migration.checkpoints.iter().map(checkpoint).collect(),
            verify: None,
            switch: SwitchStatus::of(migration, iso),
            clients: Vec::new(),
            beside: None,
        }
    }

    /// The same, with the process that runs it: only then is it running.
    #[must_use]
    pub fn run_by(mut self, pid: u32) -> Self {
        self.pid = Some(pid);
        if self.standing == Standing::Stopped {
            self.standing = Standing::Running;
        }
        self
    }

    /// The same, read from a file after its process ended: nobody runs it.
    #[must_use]
    pub fn not_running(mut self) -> Self {
        self.pid = None;
        self.retrying = None;
        self.clients = Vec::new();
        self.processes = Vec::new();
        self.rates = Rates::default();
        self.verify = self.verify.map(VerifyStatus::ended);
        if self.standing == Standing::Running {
            self.standing = Standing::Stopped;
        }
        self
    }
}

fn standing(migration: &Migration) -> (Standing, Option<String>, Option<String>) {
    if let Some(fall) = &migration.fallen {
        let remedy = match migration.phase {
            Phase::Undone => {
                "rows that somebody else changed since were left alone, if `crossfade run` says so: mend them, or `crossfade rollback --wipe`; then `crossfade resume`, and `crossfade run` begins anew"
            }
            Phase::Wiped => "mend the cause, then `crossfade resume`; `crossfade run` begins anew",
            _ => "`crossfade run` completes the rollback",
        };
        let (standing, reason) = match &migration.overlay {
            Some(failed @ Overlay::Failed { .. }) => (Standing::Failed, format!("{fall}; {failed}")),
            _ => (Standing::Stopped, fall.to_string()),
        };
        return (standing, Some(reason), Some(remedy.to_owned()));
    }
    match &migration.overlay {
        None => (Standing::Stopped, None, None),
        Some(paused @ Overlay::Paused { .. }) => {
            (Standing::Paused, Some(paused.to_string()), Some("`crossfade resume` goes on".to_owned()))
        }
        Some(Overlay::Failed { reason }) => (Standing::Failed, Some(reason.clone()), None),
        Some(Overlay::Lost { reason, remedy }) => (Standing::Lost, Some(reason.clone()), Some(remedy.clone())),
    }
}

fn table_status(totals: &TableTotals) -> TableStatus {
    let state = match totals {
        TableTotals { loaded: true, .. } => "loaded",
        TableTotals { copied: true, .. } => "copied",
        TableTotals { rows_copied: 0, chunks_done: 0, .. } => "waiting",
        _ => "copying",
    };
    TableStatus {
        table: totals.table.to_string(),
        state: state.to_owned(),
        rows_estimate: totals.rows_estimate,
        rows_copied: totals.rows_copied,
        rows_loaded: totals.rows_loaded,
        chunks: totals.chunks,
        chunks_done: totals.chunks_done,
        changes: totals.changes,
    }
}

/// The tables whose copy is not wholly in the sink; a table's total is its estimate until the copy knows better.
fn overall(tables: &[TableTotals], rates: Rates) -> Option<Overall> {
    let mut sum = Overall { rows_loaded: 0, rows_copied: 0, rows_total: 0, eta_s: None };
    let mut unfinished = false;
    for table in tables {
        unfinished |= !table.loaded;
        let total = if table.copied { table.rows_copied } else { table.rows_estimate.max(table.rows_copied) };
        sum.rows_total += total.max(table.rows_loaded);
        sum.rows_copied += table.rows_copied;
        sum.rows_loaded += table.rows_loaded;
    }
    // Copying and loading overlap: what is slower, each over what is left of it, is the time still to go.
    let copying = eta_s(sum.rows_copied, sum.rows_total, rates.copied_rows_per_s);
    let loading = eta_s(sum.rows_loaded, sum.rows_total, rates.loaded_rows_per_s);
    sum.eta_s = if sum.rows_copied >= sum.rows_total { loading } else { copying.max(loading) };
    unfinished.then_some(sum)
}

/// ISO 8601, UTC, to the millisecond.
pub(crate) fn iso(at_us: i64) -> String {
    match jiff::Timestamp::from_microsecond(at_us) {
        Ok(at) => format!("{at:.3}"),
        Err(_) => "-".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Committed, Counters};
    use crossfade_control::{Command, decide, evolve};
    use crossfade_event::TableName;

    fn migration(commands: Vec<Command>) -> Migration {
        commands.into_iter().fold(Migration::default(), |migration, command| {
            decide(&migration, command).unwrap().iter().fold(migration, evolve)
        })
    }

    #[test]
    fn the_shape_of_the_json_is_stable() {
        let counters = Counters::new();
        let table = TableName::new("public", "orders");
        counters.estimate(&table, 100);
        counters.ingested(40, 4_000, [(&table, 40)]);
        let tables = vec![(table.clone(), 10)];
        counters.committed(&Committed {
            loading: true,
            read: 10,
            applied: 9,
            quarantined: 1,
            tables,
            filtered: 0,
            lookup_misses: 0,
            made: 0,
        });
        let rates = Rates { copied_rows_per_s: 20.0, loaded_rows_per_s: 10.0, ..Rates::default() };
        let status = Status::new("shop", 1_700_000_000_123_456, &Migration::default(), &counters.totals(), rates);
        let found = serde_json::to_string_pretty(&status.clone().run_by(7)).unwrap();
        let golden = include_str!("../tests/status-v1.json");
        assert_eq!(found.trim(), golden.trim());
        let read: Status = serde_json::from_str(golden).unwrap();
        assert_eq!(read, status.run_by(7));
    }

    #[test]
    fn the_time_left_is_that_of_the_slower_half() {
        let table = |copied, loaded, rows_copied, rows_loaded| TableTotals {
            table: TableName::new("main", "t"),
            rows_estimate: 1_000,
            rows_copied,
            rows_loaded,
            changes: 0,
            chunks: 0,
            chunks_done: 0,
            copied,
            loaded,
        };
        let rates = Rates { copied_rows_per_s: 100.0, loaded_rows_per_s: 50.0, ..Rates::default() };
        let eta = |table| overall(&[table], rates).map(|overall| (overall.rows_total, overall.eta_s));
        assert_eq!(eta(table(false, false, 500, 0)), Some((1_000, Some(20))));
        assert_eq!(eta(table(true, false, 800, 400)), Some((800, Some(8))), "the estimate gives way to the count");
        assert_eq!(eta(table(false, false, 1_500, 0)), Some((1_500, Some(30))));
        assert_eq!(eta(table(true, true, 800, 800)), None);
    }

    #[test]
    fn what_stands_in_the_way_is_said_with_the_remedy() {
        let plan = Command::Plan { spec_hash: "a".into(), secret_id: "b".into() };
        let lose = Command::Lose { reason: "the slot is gone".into(), remedy: "begin anew".into() };
        let lost = migration(vec![plan.clone(), lose]);
        let status = |migration: &Migration| Status::new("x", 0, migration, &Totals::default(), Rates::default());
        let said = status(&lost).run_by(1);
        assert_eq!((said.standing, said.remedy.as_deref()), (Standing::Lost, Some("begin anew")));
        let pause = Command::Pause { by: "operator".into(), reason: String::new() };
        let paused = status(&migration(vec![plan, Command::Expand, pause])).run_by(1);
        assert_eq!((paused.standing, paused.reason.as_deref()), (Standing::Paused, Some("paused by operator")));
        let stopped = status(&Migration::default());
        assert_eq!(stopped.standing, Standing::Stopped);
        assert_eq!(stopped.clone().run_by(1).not_running(), stopped);
    }
}
