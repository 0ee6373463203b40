//! The sink: one writer on a thread of its own, one transaction per committing delivery, the position in it.
//!
//! A file takes one writer at a time, so there is nothing to gain from more than one connection. The thread takes
//! jobs in order; a caller who gives up before the answer comes leaves nothing behind: the thread sees that nobody
//! listens and takes the open transaction back.
//!
//! References are declared but not enforced on our connection: rows come in the order of the source's transactions,
//! which a load does not follow, and a target must not cascade what the source has sent already. What refers to a row
//! in quarantine waits with it.

mod alter;
mod apply;
mod back;
mod change;
mod ddl;
mod finish;
mod layout;
mod mapping;
mod own;
mod quarantine;
mod rollback;
mod table;
mod undo;
mod writer;

use crate::Config;
use crossfade_connector::{
    Applied, Ddl, Delivery, Failure, Guard, MappingEntry, Progress, Quarantine, QuarantineFilter, QuarantineOutcome,
    QuarantinedChange, Rollback, Sink, StoredMapping, Target, TargetSql, TargetTable, UndoReport,
};
use crossfade_event::{Change, Key, Row, TableId};
use std::sync::mpsc;
use tokio::sync::oneshot;
use writer::Writer;

pub use back::{Back, OldKey};
pub(crate) use table::counters;

type Job = Box<dyn FnOnce(&mut Writer) + Send>;

/// What is done about a change that cannot be applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnError {
    /// It goes to quarantine, its key and its children wait behind it, everything else goes on.
    #[default]
    Quarantine,
    /// The migration stops.
    Stop,
}

/// Writes to a file.
pub struct SqliteSink {
    config: Config,
    migration: String,
    on_error: OnError,
    back: Option<Back>,
    jobs: Option<mpsc::Sender<Job>>,
}

impl std::fmt::Debug for SqliteSink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SqliteSink").field("path", &self.config.path).finish_non_exhaustive()
    }
}

impl SqliteSink {
    /// A sink for the migration of that name. Nothing is opened yet.
    pub fn new(config: Config, migration: &str) -> Self {
        Self { config, migration: migration.to_owned(), on_error: OnError::default(), back: None, jobs: None }
    }

    /// What the sink does about a change that cannot be applied; quarantine unless said.
    #[must_use]
    pub fn on_error(self, on_error: OnError) -> Self {
        Self { on_error, ..self }
    }

    /// The target is the side that another migration came from, and what is written there is taken back to it.
    #[must_use]
    pub fn taking_back(self, back: Option<Back>) -> Self {
        Self { back, ..self }
    }

    /// Runs a job on the writer's thread and waits for its answer.
    async fn call<T: Send + 'static>(
        &mut self,
        doing: &'static str,
        job: impl FnOnce(&mut Writer) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |writer| {
            if answer.is_closed() {
                return;
            }
            let done = job(writer);
            if answer.send(done).is_err() {
                // The caller has gone and does not know what became of it: it will ask for the progress.
                writer.abandon();
            }
        });
        let gone = || Failure::reconnect(doing, "the thread that writes to the file has ended");
        self.jobs()?.send(job).map_err(|_| gone())?;
        match answered.await {
            Ok(done) => done,
            Err(_) => {
                self.jobs = None;
                Err(gone())
            }
        }
    }

    fn jobs(&mut self) -> Result<mpsc::Sender<Job>, Failure> {
        if let Some(jobs) = &self.jobs {
            return Ok(jobs.clone());
        }
        let (sender, receiver) = mpsc::channel::<Job>();
        let mut writer = Writer::new(self.config.clone(), self.migration.clone(), self.on_error, self.back.clone());
        std::thread::Builder::new()
            .name("sqlite-sink".to_owned())
            .spawn(move || {
                for job in receiver {
                    job(&mut writer);
                }
                writer.abandon();
            })
            .map_err(|error| Failure::retry("starting the thread that writes to the file", error))?;
        self.jobs = Some(sender.clone());
        Ok(sender)
    }
}

impl Ddl for SqliteSink {
    fn ddl(&self, target: &Target) -> Result<TargetSql, Failure> {
        Ok(ddl::whole(target))
    }
}

impl Sink for SqliteSink {
    async fn prepare(&mut self, target: &Target) -> Result<(), Failure> {
        let target = target.clone();
        self.call("preparing the target", move |writer| writer.prepare(&target)).await
    }

    async fn alter(&mut self, before: &TargetTable, after: &TargetTable) -> Result<(), Failure> {
        let (before, after) = (before.clone(), after.clone());
        self.call("following a change of the schema", move |writer| writer.alter(&before, &after)).await
    }

    async fn progress(&mut self) -> Result<Option<Progress>, Failure> {
        self.call("reading the position", Writer::progress).await
    }

    async fn apply(&mut self, delivery: Delivery, guard: Guard) -> Result<Applied, Failure> {
        self.call("applying changes", move |writer| writer.apply(delivery, guard)).await
    }

    async fn finish_load(&mut self) -> Result<(), Failure> {
        self.call("finishing the load", Writer::finish_load).await
    }

    async fn read_row(&mut self, table: TableId, key: &Key) -> Result<Option<Row>, Failure> {
        let key = key.clone();
        self.call("reading a row", move |writer| writer.read_row(table, &key)).await
    }
}

impl Quarantine for SqliteSink {
    async fn list(&mut self, filter: &QuarantineFilter) -> Result<Vec<QuarantinedChange>, Failure> {
        let filter = filter.clone();
        self.call("reading the quarantine", move |writer| {
            if writer.looks_at_its_own()? { writer.quarantined(&filter) } else { Ok(Vec::new()) }
        })
        .await
    }

    async fn show(&mut self, id: i64) -> Result<Option<(QuarantinedChange, Change)>, Failure> {
        self.call(
            "reading the quarantine",
            move |writer| {
                if writer.looks_at_its_own()? { writer.show(id) } else { Ok(None) }
            },
        )
        .await
    }

    async fn retry(&mut self, filter: &QuarantineFilter) -> Result<QuarantineOutcome, Failure> {
        let filter = filter.clone();
        self.call("retrying quarantined changes", move |writer| writer.retry(&filter)).await
    }

    async fn discard(&mut self, filter: &QuarantineFilter) -> Result<QuarantineOutcome, Failure> {
        let filter = filter.clone();
        self.call("discarding quarantined changes", move |writer| writer.discard(&filter)).await
    }
}

impl StoredMapping for SqliteSink {
    async fn mapping_page(
        &mut self,
        table: Option<&str>,
        after: Option<&MappingEntry>,
        limit: u32,
    ) -> Result<Vec<MappingEntry>, Failure> {
        let (table, after) = (table.map(str::to_owned), after.cloned());
        self.call("reading the mapping", move |writer| {
            if !writer.looks_at_its_own()? {
                return Err(mapping::none());
            }
            writer.mapping_page(table.as_deref(), after.as_ref(), limit)
        })
        .await
    }

    async fn mapping_lookup(&mut self, id: &str) -> Result<Vec<MappingEntry>, Failure> {
        let id = id.to_owned();
        self.call("reading the mapping", move |writer| {
            if writer.looks_at_its_own()? { writer.mapping_lookup(&id) } else { Err(mapping::none()) }
        })
        .await
    }
}

impl Rollback for SqliteSink {
    async fn undo(&mut self, target: &Target) -> Result<UndoReport, Failure> {
        let target = target.clone();
        self.call("putting rows back", move |writer| writer.undo(&target)).await
    }

    async fn wipe(&mut self, target: &Target) -> Result<UndoReport, Failure> {
        let target = target.clone();
        self.call("dropping what was made", move |writer| writer.wipe(&target)).await
    }
}
