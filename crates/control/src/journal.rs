//! The journal: every command that was followed or refused, what was decided, who asked and when. A second, small log
//! of the same make as the one that carries changes; its fold is the migration.
//!
//! A record is one [`Event::Marked`] with the prefix `journal` and a JSON text. One command's decisions are one
//! record, so they land together or not at all, and memory follows only what is durable. Records count from one
//! without a gap: a journal that was cut or joined from two is noticed.

use crate::{Command, Decision, Migration, Refusal, decide, evolve};
use crossfade_event::{Batch, Cut, Event, Mark, Position, SourceId, Stamped};
use crossfade_log::{Entry, EventLog, Lane, LogError, LogReader};
use crossfade_state::JournalFold;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use tokio::{
    sync::{Mutex, OwnedMutexGuard, watch},
    task::JoinError,
};

const PREFIX: &str = "journal";
/// The newest format that is read. A record is written in the oldest one that knows its words ([`Command::format`]), so that
/// an older program reads a journal until the first word that it does not know, and then says so.
const FORMAT: u32 = 5;
/// The one unit of this version; later ones move groups of tables by themselves.
const UNIT: &str = "all";

/// Who asks, and when; given from outside, for nothing here reads a clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct By {
    /// A user, a gate, `run`.
    pub who: String,
    /// In microseconds since 1970 UTC; for people, never for order.
    pub at_us: i64,
}

/// One command and what became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The format of the record.
    pub v: u32,
    /// Counts from one.
    pub number: u64,
    /// Which tables: `all`.
    pub unit: String,
    /// When, in microseconds since 1970 UTC.
    pub at_us: i64,
    /// Who asked.
    pub who: String,
    /// What was asked.
    pub command: Command,
    /// What followed; empty when it was refused.
    pub decisions: Vec<Decision>,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

/// What can go wrong with a command.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// It was refused; the journal says so too.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The log under the journal failed.
    #[error("the journal could not be read or written")]
    Log(#[from] LogError),
    /// A record is not what was written, or one is missing.
    #[error(
        "the journal is damaged at record {number}: {what}. Restore its folder from a copy, or begin anew: `crossfade rollback --wipe`, then `crossfade run`"
    )]
    Damaged {
        /// Which record.
        number: u64,
        /// What is wrong.
        what: String,
    },
    /// The process is ending; whether the command was written down, the next start says.
    #[error("the process ended before the journal had written the command")]
    Ending,
    /// Written by a newer Crossfade.
    #[error(
        "record {number} of the journal has format {found}, this program reads up to {FORMAT}. Use the newer crossfade that wrote it"
    )]
    TooNew {
        /// Which record.
        number: u64,
        /// Its format.
        found: u32,
    },
}

/// The journal of one migration, held open by the process that owns its folder. Cheap to clone; all clones are one.
#[derive(Debug)]
pub struct Journal<L> {
    log: L,
    writing: Arc<Mutex<Cut>>,
    state: Arc<watch::Sender<Folded>>,
}

impl<L: Clone> Clone for Journal<L> {
    fn clone(&self) -> Self {
        Self { log: self.log.clone(), writing: self.writing.clone(), state: self.state.clone() }
    }
}

/// A fold as the state keeps it. One of another format was folded by other rules, or without words that this program knows:
/// it is not used.
#[derive(Serialize, Deserialize)]
struct Cached {
    format: u32,
    folded: Folded,
}

/// The fold and how many records it holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Folded {
    records: u64,
    migration: Migration,
}

impl<L: EventLog> Journal<L> {
    /// Reads the journal, from the beginning or from a cached fold on. A cache that says more than the journal has is
    /// damage: records are missing.
    ///
    /// # Errors
    /// See [`JournalError`].
    pub fn open(log: L, cached: Option<JournalFold>) -> Result<Self, JournalError> {
        let (mut folded, mut at) = match cached.as_ref().and_then(read_fold) {
            Some((folded, cut)) => (folded, cut),
            None => (Folded::default(), log.start()),
        };
        if !log.tail().cut.covers(&at) {
            let what = "the state remembers records that are not there".to_owned();
            return Err(JournalError::Damaged { number: folded.records, what });
        }
        at = each_record(&log, at, |record| {
            folded = fold(std::mem::take(&mut folded), &record)?;
            Ok(())
        })?;
        let state = Arc::new(watch::Sender::new(folded));
        Ok(Self { log, writing: Arc::new(Mutex::new(at)), state })
    }

    /// Where the migration stands.
    pub fn migration(&self) -> Migration {
        self.state.borrow().migration.clone()
    }

    /// Waits until the migration is as `wanted` says, and returns it. Safe to cancel.
    pub async fn wait_until(&self, mut wanted: impl FnMut(&Migration) -> bool) -> Migration {
        let mut changes = self.state.subscribe();
        loop {
            let now = changes.borrow_and_update().migration.clone();
            // The sender lives as long as this journal does: only a new fold ends the wait.
            if wanted(&now) || changes.changed().await.is_err() {
                return now;
            }
        }
    }

    /// Decides, writes it down, and returns what was decided once it is durable. A command that changes nothing
    /// writes nothing; one that is refused leaves a record of that.
    ///
    /// Dropped before its turn has come, a command leaves nothing; dropped later it is followed all the same, and the
    /// next one waits for its end: a record that reaches the disk is always in memory too, so no number comes twice.
    ///
    /// # Errors
    /// [`JournalError::Refused`] with the remedy; otherwise nothing has changed.
    pub async fn command(&self, command: Command, by: &By) -> Result<Vec<Decision>, JournalError> {
        let turn = self.writing.clone().lock_owned().await;
        let (journal, by) = (self.clone(), by.clone());
        match tokio::spawn(async move { journal.follow(command, by, turn).await }).await {
            Ok(followed) => followed,
            Err(ended) => Err(ending(ended)),
        }
    }

    /// From the decision to the fold, in one's own turn. Never dropped half-way.
    async fn follow(
        self,
        command: Command,
        by: By,
        mut at: OwnedMutexGuard<Cut>,
    ) -> Result<Vec<Decision>, JournalError> {
        let folded = self.state.borrow().clone();
        let decided = decide(&folded.migration, command.clone());
        let (decisions, refused) = match &decided {
            Ok(decisions) if decisions.is_empty() => return Ok(Vec::new()),
            Ok(decisions) => (decisions.clone(), None),
            Err(refusal) => (Vec::new(), Some(refusal.to_string())),
        };
        let record = Record {
            v: command.format(),
            number: folded.records + 1,
            unit: UNIT.to_owned(),
            at_us: by.at_us,
            who: by.who,
            command,
            decisions,
            refused,
        };
        *at = self.log.append(batch_of(&record)?).await?;
        let after = fold(folded, &record)?;
        self.state.send_replace(after);
        Ok(decided?)
    }

    /// Every record, oldest first.
    ///
    /// # Errors
    /// See [`JournalError`].
    pub fn records(&self) -> Result<Vec<Record>, JournalError> {
        let mut all = Vec::new();
        each_record(&self.log, self.log.start(), |record| {
            all.push(record);
            Ok(())
        })?;
        Ok(all)
    }

    /// The fold as the state keeps it, so that the next open reads only what came after.
    pub async fn fold(&self) -> Result<JournalFold, JournalError> {
        let at = self.writing.lock().await;
        let folded = self.state.borrow().clone();
        let records = folded.records;
        let cached = Cached { format: FORMAT, folded };
        let fold = serde_json::to_vec(&cached).map_err(|error| unwritable(records, &error))?;
        Ok(JournalFold { upto: at.clone(), fold })
    }
}

fn ending(ended: JoinError) -> JournalError {
    match ended.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(_) => JournalError::Ending,
    }
}

fn read_fold(cached: &JournalFold) -> Option<(Folded, Cut)> {
    // A cache that cannot be read, or that another release has folded, is no loss: the journal is folded from its beginning.
    let read: Cached = serde_json::from_slice(&cached.fold).ok()?;
    (read.format == FORMAT).then(|| (read.folded, cached.upto.clone()))
}

fn fold(mut folded: Folded, record: &Record) -> Result<Folded, JournalError> {
    if record.number != folded.records + 1 {
        let what = format!("record {} comes after record {}", record.number, folded.records);
        return Err(JournalError::Damaged { number: record.number, what });
    }
    if record.unit != UNIT {
        let what = format!("it speaks of the unit `{}`, which this version does not know", record.unit);
        return Err(JournalError::Damaged { number: record.number, what });
    }
    folded.records = record.number;
    folded.migration = record.decisions.iter().fold(folded.migration, evolve);
    Ok(folded)
}

fn batch_of(record: &Record) -> Result<Batch, JournalError> {
    let content = serde_json::to_vec(record).map_err(|error| unwritable(record.number, &error))?;
    let position = Position { source: SourceId::of(PREFIX), timeline: 0, commit: record.number, ordinal: 0 };
    let event = Event::Marked(Mark { prefix: PREFIX.into(), content: content.into() });
    Ok(Batch { events: vec![Stamped { position, event }], upto: Some(position), whole: true })
}

fn unwritable(number: u64, error: &serde_json::Error) -> JournalError {
    JournalError::Damaged { number, what: format!("it cannot be written: {error}") }
}

/// Reads to the tail as it is now; returns where that is.
fn each_record<L: EventLog>(
    log: &L,
    from: Cut,
    mut with: impl FnMut(Record) -> Result<(), JournalError>,
) -> Result<Cut, JournalError> {
    let mut reader = log.read(&from, Lane::All)?;
    let mut at = from;
    while let Some(entries) = reader.try_next()? {
        for entry in &entries.entries {
            if let Some(record) = record_of(entry)? {
                with(record)?;
            }
        }
        at = entries.next;
    }
    Ok(at)
}

#[derive(Deserialize)]
struct Head {
    v: u32,
}

fn record_of(entry: &Entry) -> Result<Option<Record>, JournalError> {
    let Event::Marked(mark) = &entry.event else { return Ok(None) };
    if &*mark.prefix != PREFIX {
        return Ok(None);
    }
    let number = entry.position.commit;
    let damaged = |error: serde_json::Error| JournalError::Damaged { number, what: error.to_string() };
    let head: Head = serde_json::from_slice(&mark.content).map_err(damaged)?;
    if head.v > FORMAT {
        return Err(JournalError::TooNew { number, found: head.v });
    }
    serde_json::from_slice(&mark.content).map(Some).map_err(damaged)
}
