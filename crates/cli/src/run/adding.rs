//! `resume --add`: new tables of the source are taken in while everything else goes on.
//!
//! ```text
//! looked at, planned ─▶ wish in the journal ─▶ made in the target ─▶ plan.json ─▶ captured: SchemaSeen, BackfillBegan
//!                           │                                                          in the log ─▶ wish is over
//!                           └── ended anywhere: the next run begins again here; every step may be repeated
//! ```
//! The plan comes before the capture: deliver must know a table's keys, references and rules before its first row.

use super::{
    control::Shared,
    ends::SinkJob,
    growth::{Growth, grow},
    plan_file::{PlanFile, secret_of},
    session::{Session, routes},
};
use crate::{error::CliError, event_log::AnyLog, registry::AnySource, spec::Spec, wiring};
use crossfade_connector::{Failure, Inspect};
use crossfade_control::Command;
use crossfade_event::{Event, TableName};
use crossfade_log::{EventLog, Lane, LogError, LogReader};
use crossfade_pipeline::Routes;
use std::{path::PathBuf, sync::Arc, time::Duration};
use tokio::sync::{mpsc, oneshot};

/// How long whoever asks is kept waiting for the copy to begin; it waits for one that is under way.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);

/// How long to wait before a step that failed for a passing reason is tried again: longer each time, for trying may
/// hold up the stream.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// And at most; less than whoever asks is kept waiting.
const AGAIN_MAX: Duration = Duration::from_secs(16);

/// How long to wait for the log to say that a copy has begun before the source is asked once more: it may have begun
/// anew, and have forgotten what it was about to say.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// What is told to whoever asked.
#[derive(Debug, Clone)]
pub(super) struct Added {
    /// The tables that are taken in.
    pub(super) tables: Vec<String>,
    /// Whether their copy has begun.
    pub(super) begun: bool,
}

/// Somebody who asks for new tables.
pub(super) type Asker = oneshot::Sender<Result<Added, CliError>>;

/// The source's own way of taking tables in.
pub(super) enum Adder {
    /// PostgreSQL
    Postgres(crossfade_postgres::TableAdder),
    /// SQLite
    Sqlite(crossfade_sqlite::TableAdder),
    /// Debezium's topics: the tables are those that were planned.
    #[cfg(feature = "kafka")]
    Never,
}

impl Adder {
    pub(super) fn of(source: &AnySource) -> Self {
        match source {
            AnySource::Postgres(source) => Self::Postgres(source.adder()),
            AnySource::Sqlite(source) => Self::Sqlite(source.adder()),
            #[cfg(feature = "kafka")]
            AnySource::Debezium(_) => Self::Never,
        }
    }

    async fn add(&self, only: Vec<TableName>) -> Result<Vec<TableName>, Failure> {
        match self {
            Self::Postgres(adder) => adder.add_tables(Some(only)).await,
            Self::Sqlite(adder) => adder.add_tables(only).await,
            #[cfg(feature = "kafka")]
            Self::Never => Err(Failure::misconfigured(
                "taking in new tables",
                "`resume --add` is not built for kind = \"debezium\"",
                "Move the new tables by a migration of their own",
            )),
        }
    }
}

/// Takes tables in, one wish after another, for as long as a run lasts.
pub(super) struct Adding {
    spec: Spec,
    folder: PathBuf,
    log: AnyLog,
    plan: PlanFile,
    epoch: u64,
    adder: Adder,
    shared: Arc<Shared>,
    asked: mpsc::Receiver<Asker>,
    /// What deliver knows of already, and the target has.
    adopted: Vec<TableName>,
}

impl Adding {
    pub(super) fn new(session: &Session, adder: Adder, shared: Arc<Shared>, asked: mpsc::Receiver<Asker>) -> Self {
        Self {
            spec: session.spec.clone(),
            folder: session.folder.dir().to_owned(),
            log: session.log.clone(),
            plan: session.plan.clone(),
            epoch: session.journal.migration().epoch,
            adder,
            shared,
            asked,
            adopted: Vec::new(),
        }
    }

    /// Ends with the run.
    pub(super) async fn run(mut self) {
        let mut closed = self.shared.closed();
        tokio::select! {
            () = self.work() => {}
            () = closed.wait() => {}
        }
    }

    async fn work(&mut self) {
        let mut pause = AGAIN_AFTER;
        loop {
            // A wish of an earlier run, or of somebody who asked while nobody ran.
            let asker = match self.shared.journal.migration().adding {
                true => self.asked.try_recv().ok(),
                false => match self.asked.recv().await {
                    Some(asker) => Some(asker),
                    None => return,
                },
            };
            let mut asker = asker;
            match self.take_in(&mut asker).await {
                Ok(()) => {}
                Err(error) if error.passing => {
                    tracing::warn!("new tables could not be taken in: {error}");
                    answer(&mut asker, Err(error));
                }
                Err(error) => {
                    tracing::warn!("new tables are not taken in: {error}");
                    let refused = Command::TablesAdded { tables: Vec::new(), refused: Some(error.to_string()) };
                    self.note(refused).await;
                    answer(&mut asker, Err(error));
                }
            }
            // The wish is still there: something failed, if only the journal.
            if self.shared.journal.migration().adding {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(AGAIN_MAX);
            } else {
                pause = AGAIN_AFTER;
            }
        }
    }

    async fn take_in(&mut self, asker: &mut Option<Asker>) -> Result<(), CliError> {
        let found = wiring::source_inspect(&self.spec)?.catalog(self.spec.source.tables()).await?;
        let growth = grow(&self.plan.catalog, found, &self.log.latest_schemas())?;
        let tables: Vec<String> = growth.uncaptured.iter().map(ToString::to_string).collect();
        if tables.is_empty() {
            self.note(Command::TablesAdded { tables: Vec::new(), refused: None }).await;
            answer(asker, Ok(Added { tables, begun: true }));
            return Ok(());
        }
        let grown = PlanFile::unsaved(&self.spec, growth.catalog.clone());
        // Deliver stops for a moment to adopt routes: not again for what it has adopted.
        let is_adopted = growth.planned.is_empty() && growth.uncaptured.iter().all(|name| self.adopted.contains(name));
        let planned = if is_adopted { None } else { Some(self.planned(&grown, &growth).await?) };
        self.shared.journal.command(Command::AddTables, &self.shared.now()).await?;
        if let Some(planned) = planned {
            self.adopt(planned).await?;
            if !growth.planned.is_empty() {
                self.plan = PlanFile::write(&self.folder, &self.spec, growth.catalog.clone())?;
            }
            self.adopted.extend(growth.uncaptured.iter().cloned());
        }
        for table in self.plan.catalog.tables.iter().filter(|table| growth.uncaptured.contains(&table.name)) {
            self.shared.watcher.counters.estimate(&table.name, table.rows_estimate);
        }
        tracing::info!(tables = tables.join(", "), "new tables are taken in");
        self.capture(growth.uncaptured, tables, asker).await
    }

    /// The routes of everything together; refused where the new tables would not only add to what is there.
    async fn planned(&self, grown: &PlanFile, growth: &Growth) -> Result<Routes, CliError> {
        let secret = secret_of(&self.folder)?;
        let before = routes(&self.spec, &self.plan, secret.clone(), self.epoch)?;
        let after = routes(&self.spec, grown, secret, self.epoch)?;
        growth.check(before.plan(), after.plan())?;
        if !growth.planned.is_empty() {
            wiring::preflight_new(&self.spec, &growth.planned, before.target(), after.target()).await?;
        }
        Ok(after)
    }

    /// Deliver goes on with these routes; the new tables are made in the target.
    async fn adopt(&self, routes: Routes) -> Result<(), CliError> {
        let (reply, answered) = oneshot::channel();
        let gone = || CliError::failed("the run is ending").passing();
        self.shared.jobs.send(SinkJob::Adopt(Box::new(routes), reply)).await.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }

    /// The source captures them. The wish is over once the log says that their copy has begun.
    async fn capture(
        &self,
        names: Vec<TableName>,
        tables: Vec<String>,
        asker: &mut Option<Asker>,
    ) -> Result<(), CliError> {
        let unread = |error: LogError| CliError::from(error).passing();
        let mut reader = self.log.read(&self.log.tail().cut, Lane::Snapshot).map_err(unread)?;
        let mut late = Box::pin(tokio::time::sleep(ANSWER_WITHIN));
        let adding = async {
            let added = self.add(&names).await?;
            let mut again = Box::pin(self.add_late(&names));
            while !added.is_empty() {
                // Neither loses anything where the other is first.
                let entries = tokio::select! {
                    entries = reader.next() => entries.map_err(unread)?,
                    // What is captured already, and only not in the log yet, is not added again.
                    asked = &mut again => {
                        asked?;
                        again.set(self.add_late(&names));
                        continue;
                    }
                };
                let begun = entries.entries.iter().any(|entry| match &entry.event {
                    Event::BackfillBegan(backfill) => {
                        let known = self.log.latest_schemas();
                        let of = |name: &TableName| {
                            known.iter().any(|schema| schema.name == *name && backfill.tables.contains(&schema.id))
                        };
                        added.iter().all(of)
                    }
                    _ => false,
                });
                if begun {
                    break;
                }
            }
            Ok::<_, CliError>(())
        };
        let mut adding = std::pin::pin!(adding);
        loop {
            tokio::select! {
                done = &mut adding => {
                    done?;
                    break;
                }
                () = &mut late, if asker.is_some() => {
                    answer(asker, Ok(Added { tables: tables.clone(), begun: false }));
                }
            }
        }
        self.note(Command::TablesAdded { tables: tables.clone(), refused: None }).await;
        answer(asker, Ok(Added { tables, begun: true }));
        Ok(())
    }

    /// Asks the source until it can.
    async fn add(&self, names: &[TableName]) -> Result<Vec<TableName>, CliError> {
        let mut pause = AGAIN_AFTER;
        loop {
            match self.adder.add(names.to_vec()).await {
                Err(failure) if failure.is_transient() => {
                    tracing::debug!(%failure, "new tables wait for the source");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(AGAIN_MAX);
                }
                done => return Ok(done?),
            }
        }
    }

    async fn add_late(&self, names: &[TableName]) -> Result<Vec<TableName>, CliError> {
        tokio::time::sleep(ASK_AGAIN).await;
        self.add(names).await
    }

    async fn note(&self, command: Command) {
        if let Err(error) = self.shared.journal.command(command, &self.shared.now()).await {
            tracing::warn!("the journal could not take what became of new tables: {error}");
        }
    }
}

/// Whoever asked may have gone away; then the answer has no taker.
fn answer(asker: &mut Option<Asker>, what: Result<Added, CliError>) {
    if let Some(asker) = asker.take() {
        let _ = asker.send(what);
    }
}
