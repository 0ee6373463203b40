//! The backfill: tables cut into chunks, read by several sessions at once beside the stream.
//!
//! A chunk is a range of pages (`ctid`). Rows that move, vanish or change their key while chunks are read need no care
//! here: every change since the backfill's beginning is in the stream, which is applied afterwards. What each chunk
//! needs is a snapshot that sees everything that the stream does not bring; see [`super::visibility`].

mod chunk;
mod plan;

use super::{SourceConfig, slot::END_OF_WAL};
use crate::client::{
    replication::Lsn,
    wire::{Kind, Wire},
};
use chunk::Read;
use crossfade_connector::{Failure, SnapshotState};
use crossfade_event::{ChunkPlan, Event, Identity, TableId, TableSchema, Visibility};
use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{sync::mpsc, task::JoinSet};

const SHAPE_POLL: Duration = Duration::from_millis(50);

/// What the backfill hands over.
pub(super) enum Output {
    /// Some events, in order.
    Events(Vec<Event>),
    /// A table is done; changes up to `until` may still have moved rows past its chunks.
    TableEnded { table: TableId, events: Vec<Event>, until: Lsn },
    /// A table's columns (by its oid) are not what its schema says; the stream will say so by `until`.
    Stale { table: u32, until: Lsn },
    /// All tables are done, but for those that were abandoned: they need another backfill before this one has ended.
    Finished { generation: u32, abandoned: Vec<TableId> },
}

/// What is to be copied.
pub(super) struct Plan {
    pub(super) config: Arc<SourceConfig>,
    pub(super) version: u32,
    pub(super) state: SnapshotState,
    pub(super) schemas: Vec<Arc<TableSchema>>,
}

/// A running backfill. Dropping it ends its sessions.
pub(super) struct SnapshotRun {
    outputs: mpsc::Receiver<Result<Output, Failure>>,
    shared: Arc<Shared>,
    _workers: JoinSet<()>,
}

/// One chunk to read.
#[derive(Clone)]
struct Job {
    table: TableId,
    chunk: ChunkPlan,
    /// Which plan of the table it belongs to: a table that was rewritten is planned anew.
    plan: u32,
}

struct Progress {
    queue: VecDeque<Job>,
    tables: HashMap<TableId, TableProgress>,
}

struct TableProgress {
    schema: Arc<TableSchema>,
    plan: u32,
    /// Chunks of this plan that are not in yet.
    left: usize,
    next_chunk: u32,
    ended: bool,
    abandoned: bool,
}

struct Shared {
    config: Arc<SourceConfig>,
    version: u32,
    generation: u32,
    visible: Visibility,
    progress: Mutex<Progress>,
    out: mpsc::Sender<Result<Output, Failure>>,
}

impl Shared {
    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn send(&self, output: Output) -> bool {
        self.out.send(Ok(output)).await.is_ok()
    }
}

impl SnapshotRun {
    pub(super) fn start(plan: Plan) -> Self {
        let workers = plan.config.snapshot.workers;
        let (out, outputs) = mpsc::channel(workers * 2);
        let shared = Arc::new(Shared {
            config: plan.config,
            version: plan.version,
            generation: plan.state.generation,
            visible: plan.state.visible.clone().unwrap_or_default(),
            progress: Mutex::new(Progress { queue: VecDeque::new(), tables: HashMap::new() }),
            out,
        });
        let mut tasks = JoinSet::new();
        let coordinator = shared.clone();
        tasks.spawn(async move {
            let worked = coordinate(&coordinator, plan.state, plan.schemas).await;
            if let Err(failure) = worked {
                // If nobody listens, the failure concerns nobody.
                let _ = coordinator.out.send(Err(failure)).await;
            }
        });
        Self { outputs, shared, _workers: tasks }
    }

    /// Safe to cancel.
    pub(super) async fn next(&mut self) -> Result<Output, Failure> {
        match self.outputs.recv().await {
            Some(output) => output,
            // Only after `Finished`, or after a failure: neither is followed by another call.
            None => std::future::pending().await,
        }
    }

    /// The table's rows changed without an event: what was read of it is worth nothing, and reading on is, too.
    pub(super) fn abandon(&self, table: TableId) {
        let mut all = self.shared.progress();
        let Progress { queue, tables } = &mut *all;
        if let Some(progress) = tables.get_mut(&table).filter(|progress| !progress.ended) {
            progress.abandoned = true;
            progress.plan += 1;
            queue.retain(|job| job.table != table);
        }
    }

    /// The stream has a new shape for a table: chunks that begin from now on are read under it.
    pub(super) fn reshape(&self, schema: &Arc<TableSchema>) {
        if let Some(table) = self.shared.progress().tables.get_mut(&schema.id) {
            table.schema = schema.clone();
        }
    }
}

/// Plans every table, then lets the workers loose.
async fn coordinate(shared: &Arc<Shared>, state: SnapshotState, schemas: Vec<Arc<TableSchema>>) -> Result<(), Failure> {
    let mut wire = connect(shared).await?;
    for (table, done) in state.tables {
        let Some(schema) = schemas.iter().find(|schema| schema.id == table).cloned() else { continue };
        let planned = plan::plan(shared, &mut wire, &schema, &done).await?;
        if let Some(event) = planned.announce {
            shared.send(Output::Events(vec![event])).await;
        }
        let jobs: Vec<Job> = planned
            .chunks
            .into_iter()
            .filter(|chunk| !done.done.contains(&chunk.id))
            .map(|chunk| Job { table, chunk, plan: 0 })
            .collect();
        let progress = TableProgress {
            schema,
            plan: 0,
            left: jobs.len(),
            next_chunk: planned.next_chunk,
            ended: done.ended,
            abandoned: false,
        };
        {
            let mut all = shared.progress();
            all.tables.insert(table, progress);
            if !done.ended {
                all.queue.extend(jobs);
            }
        }
    }
    let finished: Vec<TableId> = {
        let all = shared.progress();
        all.tables.iter().filter(|(_, table)| table.left == 0 && !table.ended).map(|(id, _)| *id).collect()
    };
    for table in finished {
        end_table(shared, &mut wire, table, Vec::new(), None).await?;
    }
    drop(wire);
    let mut workers = JoinSet::new();
    for _ in 0..shared.config.snapshot.workers {
        let shared = shared.clone();
        workers.spawn(async move { work(&shared).await });
    }
    while let Some(ended) = workers.join_next().await {
        match ended {
            Ok(worked) => worked?,
            Err(_) => return Err(Failure::reconnect("copying tables", "a worker ended unexpectedly")),
        }
    }
    let abandoned = {
        let all = shared.progress();
        all.tables.iter().filter(|(_, table)| table.abandoned).map(|(id, _)| *id).collect()
    };
    shared.send(Output::Finished { generation: shared.generation, abandoned }).await;
    Ok(())
}

async fn connect(shared: &Shared) -> Result<Wire, Failure> {
    Wire::connect(&shared.config.connection, &shared.config.application_name(), Kind::Plain).await
}

async fn work(shared: &Arc<Shared>) -> Result<(), Failure> {
    if shared.progress().queue.is_empty() {
        return Ok(());
    }
    let mut wire = connect(shared).await?;
    loop {
        let job = {
            let mut all = shared.progress();
            let Some(job) = all.queue.pop_front() else { return Ok(()) };
            let schema = all.tables.get(&job.table).filter(|table| table.plan == job.plan);
            schema.map(|table| (job.clone(), table.schema.clone()))
        };
        // A job of a plan that was thrown away is passed over.
        let Some((job, schema)) = job else { continue };
        match chunk::read(shared, &mut wire, &schema, &job).await? {
            Read::Whole { ended, visible } => {
                let (last, keyless) = {
                    let mut all = shared.progress();
                    let table = all.tables.get_mut(&job.table).filter(|table| table.plan == job.plan);
                    table.map_or((false, false), |table| {
                        table.left -= 1;
                        (table.left == 0, table.schema.identity != Identity::Key)
                    })
                };
                if last && keyless {
                    // The chunk and what it could see are said in one batch, or a restart would not know the latter.
                    end_table(shared, &mut wire, job.table, vec![ended], Some(visible)).await?;
                    continue;
                }
                shared.send(Output::Events(vec![ended])).await;
                if last {
                    end_table(shared, &mut wire, job.table, Vec::new(), None).await?;
                }
            }
            Read::SchemaIsStale { until } => {
                shared.send(Output::Stale { table: schema.native_id, until }).await;
                let Some(()) = wait_for_shape(shared, &schema, &job).await else { return Ok(()) };
                shared.progress().queue.push_front(job);
            }
            Read::PlanIsVoid => replan(shared, &mut wire, &schema, &job).await?,
            Read::Unheard => return Ok(()),
        }
    }
}

/// Waits until the engine has a newer shape of the table, or abandons it; `None` when nobody listens any more.
async fn wait_for_shape(shared: &Shared, schema: &TableSchema, job: &Job) -> Option<()> {
    loop {
        let known = shared.progress().tables.get(&schema.id).map(|table| (table.schema.version, table.plan));
        if known != Some((schema.version, job.plan)) {
            return Some(());
        }
        if shared.out.is_closed() {
            return None;
        }
        tokio::time::sleep(SHAPE_POLL).await;
    }
}

/// The table was rewritten (`VACUUM FULL`, `CLUSTER`, `ALTER TABLE`): its rows lie elsewhere now.
async fn replan(shared: &Shared, wire: &mut Wire, schema: &Arc<TableSchema>, job: &Job) -> Result<(), Failure> {
    let first = {
        let mut all = shared.progress();
        let Some(table) = all.tables.get_mut(&job.table).filter(|table| table.plan == job.plan) else { return Ok(()) };
        table.plan += 1;
        // Held back until the new chunks are known.
        table.left = usize::MAX;
        table.next_chunk
    };
    tracing::info!(table = %schema.name, "the table was rewritten while it was copied: it is copied from its beginning");
    let (chunks, next_chunk) = plan::cut(shared, wire, schema, first).await?;
    shared.send(Output::Events(vec![Event::SnapshotBegan { table: job.table, chunks: chunks.clone() }])).await;
    let mut all = shared.progress();
    let Progress { queue, tables } = &mut *all;
    queue.retain(|queued| queued.table != job.table);
    if let Some(table) = tables.get_mut(&job.table) {
        table.left = chunks.len();
        table.next_chunk = next_chunk;
        let plan = table.plan;
        queue.extend(chunks.into_iter().map(|chunk| Job { table: job.table, chunk, plan }));
    }
    Ok(())
}

/// `visible` is what the only chunk of a keyless table could see; `events` go before the table's end.
async fn end_table(
    shared: &Shared,
    wire: &mut Wire,
    table: TableId,
    mut events: Vec<Event>,
    visible: Option<Visibility>,
) -> Result<(), Failure> {
    if let Some(progress) = shared.progress().tables.get_mut(&table) {
        progress.ended = true;
    }
    let rows = wire.query(&format!("SELECT {END_OF_WAL}")).await?;
    let until = rows.first().and_then(|row| row.first()?.as_deref().and_then(Lsn::parse));
    let until = until.ok_or_else(|| Failure::reconnect("asking for the end of WAL", "the answer is not a position"))?;
    events.push(Event::SnapshotEnded { table, visible });
    shared.send(Output::TableEnded { table, events, until }).await;
    Ok(())
}
