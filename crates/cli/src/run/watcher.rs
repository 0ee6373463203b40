//! What the loops tell, passed on: counters, where the sink stands, and facts for the journal.

use crate::{event_log::AnyLog, spec::Part};
use crossfade_connector::{Failure, Progress, SnapshotState, SourceHealth, Stage};
use crossfade_control::Command;
use crossfade_event::{TableId, TableName};
use crossfade_log::EventLog;
use crossfade_observe::{Committed, Counters, Retrying};
use crossfade_pipeline::{Backfilling, Copying, Delivered, Ingested, Watch};
use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicI64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::sync::{mpsc, watch};

/// Watches the loops of one run: both, or the one that is its part.
pub(super) struct Watcher {
    log: AnyLog,
    part: Option<Part>,
    pub(super) counters: Counters,
    /// Where the sink stands, by its own commits.
    pub(super) progress: watch::Sender<Option<Progress>>,
    pub(super) health: Mutex<SourceHealth>,
    pub(super) retrying: Mutex<Option<Retrying>>,
    pub(super) last_commit_us: AtomicI64,
    loading: AtomicBool,
    names: RwLock<HashMap<TableId, TableName>>,
    facts: mpsc::UnboundedSender<Command>,
}

impl Watcher {
    /// A watcher; the facts are for the journal, in order.
    pub(super) fn new(log: AnyLog, part: Option<Part>) -> (Self, mpsc::UnboundedReceiver<Command>) {
        let (facts, receiver) = mpsc::unbounded_channel();
        let watcher = Self {
            log,
            part,
            counters: Counters::new(),
            progress: watch::Sender::new(None),
            health: Mutex::default(),
            retrying: Mutex::default(),
            last_commit_us: AtomicI64::new(0),
            loading: AtomicBool::new(false),
            names: RwLock::default(),
            facts,
        };
        (watcher, receiver)
    }

    /// Where a backfill stands that an earlier run began. Ingest by itself notes in its journal that it has ended: what the
    /// log says of it may be gone one day, and none may be begun again for that.
    pub(super) fn resumed(&self, state: &SnapshotState) {
        if self.part == Some(Part::Ingest) && state.generation > 0 {
            self.heard(match state.ended {
                true => Backfilling::Ended(state.generation),
                false => Backfilling::Began(state.generation),
            });
        }
    }

    fn heard(&self, backfill: Backfilling) {
        self.loading.store(matches!(backfill, Backfilling::Began(_)), Relaxed);
        if let Backfilling::Ended(generation) = backfill {
            self.captures();
            self.fact(Command::StartBackfill { generation });
            self.fact(Command::BackfillDone { generation });
        }
    }

    fn captures(&self) {
        self.fact(Command::Expand);
        self.fact(Command::StartCapture);
    }

    /// Whether a backfill's rows are being applied, or by an ingest alone are being copied.
    pub(super) fn is_loading(&self) -> bool {
        self.loading.load(Relaxed)
    }

    fn name(&self, table: TableId) -> TableName {
        if let Some(name) = self.names.read().unwrap_or_else(PoisonError::into_inner).get(&table) {
            return name.clone();
        }
        let schemas = self.log.latest_schemas();
        let mut names = self.names.write().unwrap_or_else(PoisonError::into_inner);
        names.extend(schemas.iter().map(|schema| (schema.id, schema.name.clone())));
        names.get(&table).cloned().unwrap_or_else(|| TableName::new("?", format!("table {}", table.0)))
    }

    fn named(&self, tables: &BTreeMap<TableId, u64>) -> Vec<(TableName, u64)> {
        tables.iter().map(|(table, count)| (self.name(*table), *count)).collect()
    }

    /// Where facts for the journal are told.
    pub(super) fn facts(&self) -> mpsc::UnboundedSender<Command> {
        self.facts.clone()
    }

    fn count(&self, what: &Delivered) {
        if self.part == Some(Part::Deliver) {
            // Nobody here has seen it come.
            self.counters.backlog(what.read);
        }
        self.counters.committed(&Committed {
            loading: what.progress.stage == Stage::Loading,
            read: what.read,
            applied: what.applied,
            filtered: what.filtered,
            quarantined: what.quarantined,
            lookup_misses: what.misses,
            made: what.made,
            tables: self.named(&what.tables),
        });
        if let Some(at) = what.commit_time_us {
            self.last_commit_us.fetch_max(at, Relaxed);
        }
    }

    fn fact(&self, command: Command) {
        // The journal's task outlives the loops; when it has gone, the process is ending.
        let _ = self.facts.send(command);
    }
}

/// What is behind a lock that only short sections hold.
pub(super) fn held<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Watch for Watcher {
    fn ingested(&self, what: &Ingested) {
        for (table, heard) in &what.copying {
            let name = self.name(*table);
            match heard {
                Copying::Began(chunks) => self.counters.copy_began(&name, *chunks),
                Copying::ChunkEnded => self.counters.chunk_ended(&name),
                Copying::Ended => self.counters.copied(&name),
            }
        }
        let rows = self.named(&what.rows);
        if self.part == Some(Part::Ingest) {
            what.backfills.iter().for_each(|backfill| self.heard(*backfill));
        }
        self.counters.ingested(what.events, what.bytes, rows.iter().map(|(name, count)| (name, *count)));
    }

    fn delivered(&self, what: &Delivered) {
        let before = self.progress.borrow().as_ref().map(|before| before.schemas.clone());
        if before.is_some_and(|before| !before.is_empty() && before != what.progress.schemas) {
            self.fact(Command::Void { why: "the shape of a table has changed".to_owned() });
        }
        self.count(what);
        self.progress.send_replace(Some(what.progress.clone()));
    }

    fn shared(&self, what: &Delivered) {
        self.count(what);
    }

    fn elsewhere(&self, progress: &Progress) {
        self.progress.send_if_modified(|held| {
            let is_news = held.as_ref() != Some(progress);
            if is_news {
                *held = Some(progress.clone());
            }
            is_news
        });
    }

    fn stage(&self, stage: Stage) {
        match stage {
            Stage::Loading => {
                self.loading.store(true, Relaxed);
                self.captures();
            }
            Stage::Streaming => {
                self.captures();
                self.loading.store(false, Relaxed);
                let tables = self.log.latest_schemas();
                self.counters.loaded(tables.iter().map(|schema| &schema.name));
            }
        }
    }

    fn at_tail(&self, progress: &Progress) {
        let generation = progress.generation;
        if self.part == Some(Part::Deliver) {
            // The log is the right one, and has everything after the sink's place.
            self.fact(Command::Found);
        }
        if generation > 0 {
            self.fact(Command::StartBackfill { generation });
        }
        if progress.stage == Stage::Streaming {
            self.fact(Command::BackfillDone { generation });
            self.fact(Command::CaughtUp);
            self.progress.send_if_modified(|held| {
                let newer =
                    held.as_ref().is_none_or(|held| held.position < progress.position || held.stage != progress.stage);
                if newer {
                    *held = Some(progress.clone());
                }
                newer
            });
        }
    }

    fn health(&self, health: &SourceHealth) {
        let before = std::mem::replace(&mut *held(&self.health), health.clone());
        let new: Vec<&str> = health
            .uncaptured_tables
            .iter()
            .filter(|table| !before.uncaptured_tables.contains(table))
            .map(String::as_str)
            .collect();
        if !new.is_empty() {
            let tables = new.join(", ");
            tracing::warn!(%tables, "new tables match the spec and are not captured; `crossfade resume --add` takes them in");
        }
    }

    fn opened(&self) {
        if self.part == Some(Part::Ingest) {
            self.captures();
        }
        self.fact(Command::Found);
    }

    fn retrying(&self, side: &'static str, failure: &Failure, wait: Duration) {
        {
            let mut retrying = held(&self.retrying);
            let times = retrying.as_ref().filter(|before| before.side == side).map_or(0, |before| before.times) + 1;
            *retrying = Some(Retrying {
                side: side.to_owned(),
                failure: failure.to_string(),
                times,
                wait_ms: wait.as_millis() as u64,
            });
        }
        // Said last: whoever has read the line may ask for the status at once.
        tracing::warn!(side, wait_ms = wait.as_millis() as u64, "{failure}; trying again");
    }

    fn recovered(&self, side: &'static str) {
        *held(&self.retrying) = None;
        tracing::info!(side, "works again");
    }
}
