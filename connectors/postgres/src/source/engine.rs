//! The engine: one task that reads the stream, runs the backfill beside it, and hands over batches.

mod ending;
mod grow;
mod roots;
mod shapes;

pub(super) use grow::Command;

use super::{
    SourceConfig,
    assemble::Assembler,
    capture,
    catalog::{self, CapturedNames},
    fetch,
    heaps::{Heap, Heaps},
    relations::{self, Captured, Followed},
    setup::Prepared,
    snapshot::{Output, Plan, SnapshotRun},
    spool::{Replay, Spools, StreamEnd},
    tree::Trees,
};
use crate::{
    Patterns, Session,
    client::{
        failure,
        replication::{Lsn, WalStream},
        wire::CopyData,
    },
    codec::pgoutput::{self, Message, Relation},
};
use bytes::Bytes;
use crossfade_connector::Failure;
use crossfade_event::{Batch, Event, Stamped, TableId, TableSchema};
use ending::Ending;
use grow::Tree;
use roots::Look;
use shapes::Suspects;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior},
};

/// How often an idle engine looks whether its position may move.
const IDLE_EVERY: Duration = Duration::from_millis(500);

pub(super) struct Engine {
    config: Arc<SourceConfig>,
    session: Session,
    stream: WalStream,
    durable: Arc<AtomicU64>,
    assembler: Assembler,
    spools: Spools,
    snapshot: Option<SnapshotRun>,
    /// A batch of the backfill that waits for its turn.
    held: Option<Batch>,
    out: mpsc::Sender<Result<Batch, Failure>>,
    commands: mpsc::Receiver<Command>,
    patterns: Patterns,
    captured: Arc<CapturedNames>,
    version: u32,
    text: bool,
    /// The number of the last backfill.
    generation: u32,
    /// Tables that begin a backfill once the transaction being read has ended.
    again: BTreeSet<TableId>,
    /// Tables of the running backfill whose copy is not in.
    copying: BTreeSet<TableId>,
    /// A backfill of which all rows are handed over, but whose end is not said yet.
    ending: Option<Ending>,
    /// Whatever the chunks saw so far was committed before this place.
    copied: Lsn,
    /// Tables whose shape a chunk found changed before the stream said so, and when the stream must have come to it.
    stale: Vec<(u32, Lsn)>,
    /// Those of `again` whose new shape is to be taken from the catalog.
    refresh: BTreeSet<u32>,
    suspects: Suspects,
    shapes_due: Option<Instant>,
    /// Published tables that are not captured, as the stream said them.
    passed_over: HashMap<u32, Relation>,
    tree: Tree,
    /// Captured roots of partition trees, by oid.
    roots: BTreeSet<u32>,
    trees: Trees,
    heaps: Heaps,
    /// How tables of `again` were, by oid, at a place that the stream has passed.
    passed_heaps: BTreeMap<u32, Heap>,
    /// Roots that are to be copied again, by oid.
    looks: BTreeMap<u32, Look>,
    /// Roots with a new leaf that is locked, so that nobody can say what it brought.
    unsure: BTreeSet<u32>,
    /// When such a leaf is looked at again by whoever waits for it.
    look_due: Option<Instant>,
    heartbeat_due: Option<Instant>,
}

/// Why the engine ends.
enum End {
    Failed(Failure),
    /// Nobody listens any more.
    Unheard,
}

impl From<Failure> for End {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl Engine {
    /// Begins to stream. Returns the engine and the place where the durable position is told to it.
    pub(super) async fn start(
        config: Arc<SourceConfig>,
        patterns: Patterns,
        prepared: Prepared,
        out: mpsc::Sender<Result<Batch, Failure>>,
        commands: mpsc::Receiver<Command>,
    ) -> Result<(Self, Arc<AtomicU64>), Failure> {
        let Prepared {
            session,
            replication,
            origin,
            snapshot,
            schemas,
            announce,
            text,
            captured,
            version,
            current,
            near_xid,
            roots,
            trees,
            heaps,
        } = prepared;
        let spools = Spools::new(&config.spool_dir).await?;
        let tree = Tree::read(&config.spool_dir).await;
        let name = config.object_name();
        let options = stream_options(&name, version, text);
        let stream = replication.start(&name, Lsn(origin.commit), &options).await?;
        let durable = stream.durable();
        let mut assembler = Assembler::new(origin, &config.migration, name, near_xid);
        for schema in &schemas {
            assembler.tables.insert(schema.native_id, Captured { schema: schema.clone(), rules: None });
        }
        for event in announce {
            assembler.push_outside(event);
        }
        for (table, state) in &snapshot.tables {
            // A change that the stream has not reached yet may have moved a row past the chunks that are done.
            let until = if state.ended { current } else { Lsn(u64::MAX) };
            assembler.resolving.insert(*table, until);
        }
        let generation = snapshot.generation;
        let copying = snapshot.tables.iter().filter(|(_, state)| !state.ended).map(|(table, _)| *table).collect();
        let snapshot = if snapshot.generation > 0 && !snapshot.ended {
            let plan = Plan { config: config.clone(), version, state: snapshot, schemas };
            Some(SnapshotRun::start(plan))
        } else {
            None
        };
        let heartbeat_due = (!config.heartbeat.is_zero()).then(|| Instant::now() + config.heartbeat);
        let engine = Self {
            config,
            session,
            stream,
            durable: durable.clone(),
            assembler,
            spools,
            snapshot,
            held: None,
            out,
            commands,
            patterns,
            captured,
            version,
            text,
            generation,
            again: BTreeSet::new(),
            copying,
            ending: None,
            copied: current,
            stale: Vec::new(),
            refresh: BTreeSet::new(),
            suspects: Suspects::new(),
            shapes_due: None,
            passed_over: HashMap::new(),
            tree,
            roots,
            trees,
            heaps,
            passed_heaps: BTreeMap::new(),
            looks: BTreeMap::new(),
            unsure: BTreeSet::new(),
            look_due: None,
            heartbeat_due,
        };
        Ok((engine, durable))
    }

    pub(super) async fn run(mut self) {
        if let Err(End::Failed(failure)) = self.work().await {
            // If nobody listens, the failure concerns nobody.
            let _ = self.out.send(Err(failure)).await;
        }
    }

    async fn work(&mut self) -> Result<(), End> {
        let mut idle = tokio::time::interval(IDLE_EVERY);
        idle.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // What the log must know first goes first.
        self.hand_over().await?;
        let out = self.out.clone();
        loop {
            // What a backfill says comes after its beginning, and between transactions.
            let may_hold = !self.assembler.in_parts() && !self.assembler.backfill_waits();
            let may_grow = !self.is_copying() && !self.assembler.is_open();
            let waiting = self.assembler.has_batch() || (self.held.is_some() && may_hold);
            tokio::select! {
                chunk = self.stream.next(), if !self.assembler.is_full() => {
                    let chunk = chunk?;
                    self.read(chunk.frames.clone()).await?;
                }
                permit = out.reserve(), if waiting => {
                    let permit = permit.map_err(|_| End::Unheard)?;
                    if let Some(batch) = self.next_batch(may_hold).await? {
                        permit.send(Ok(batch));
                    }
                }
                output = next_output(&mut self.snapshot), if self.held.is_none() && may_hold => {
                    self.take_output(output?);
                }
                Some(command) = self.commands.recv(), if may_grow => Box::pin(self.obey(command)).await?,
                _ = idle.tick() => self.when_idle().await?,
            }
            self.end_backfill().await?;
            if !self.looks.is_empty() && !self.is_copying() {
                Box::pin(self.copy_roots_again()).await?;
            }
        }
    }

    /// A batch of the backfill and one of the stream take turns.
    async fn next_batch(&mut self, may_hold: bool) -> Result<Option<Batch>, Failure> {
        if may_hold && let Some(batch) = self.held.take() {
            return Ok(Some(batch));
        }
        self.take_batch().await
    }

    /// The stream's next batch, as complete as the sink needs it.
    async fn take_batch(&mut self) -> Result<Option<Batch>, Failure> {
        self.resolve_unchanged().await?;
        let batch = self.assembler.take_batch();
        if let Some(batch) = batch.as_ref().filter(|_| self.config.seen_first) {
            let xids: Vec<u64> = batch.events.iter().filter_map(|stamped| began(&stamped.event)).collect();
            fetch::wait_visible(&self.session, &xids).await?;
        }
        Ok(batch)
    }

    /// Hands over everything that makes a batch; waits until it is taken.
    async fn hand_over(&mut self) -> Result<(), End> {
        while self.assembler.has_batch() {
            let Some(batch) = self.take_batch().await? else { break };
            self.out.send(Ok(batch)).await.map_err(|_| End::Unheard)?;
        }
        Ok(())
    }

    async fn read(&mut self, frames: Bytes) -> Result<(), End> {
        for frame in CopyData(frames) {
            match frame.first() {
                // Start, end and clock of the WAL data stand in front of the message.
                Some(b'w') => self.message(frame.get(25..).unwrap_or_default()).await?,
                Some(b'k') => {
                    let end = frame.get(1..).and_then(|rest| rest.first_chunk::<8>());
                    self.assembler.keepalive(Lsn(end.map_or(0, |end| u64::from_be_bytes(*end))));
                }
                _ => {}
            }
            if self.assembler.is_full() {
                self.hand_over().await?;
            }
        }
        Ok(())
    }

    async fn message(&mut self, bytes: &[u8]) -> Result<(), End> {
        if self.spools.is_in_block() {
            return Ok(self.in_block(bytes).await?);
        }
        match decode(bytes, false)?.1 {
            Message::Relation(relation) => Box::pin(self.relation(&relation)).await?,
            Message::StreamStart { xid } => self.spools.start(xid),
            Message::StreamAbort { xid, subxid } => self.spools.abort(xid, subxid).await?,
            Message::StreamCommit { xid, end_lsn, commit_time_us, .. } => {
                let replay = self.spools.commit(xid).await?;
                Box::pin(self.replay(replay, StreamEnd { xid, end_lsn, commit_time_us })).await?;
            }
            Message::Commit { end_lsn } => self.commit(end_lsn).await?,
            message => self.assembler.take(message)?,
        }
        Ok(())
    }

    async fn commit(&mut self, end: Lsn) -> Result<(), Failure> {
        self.assembler.commit(end)?;
        if !self.again.is_empty() {
            Box::pin(self.begin_again()).await?;
        }
        // A stream that never rests says the end all the same.
        Box::pin(self.end_backfill()).await
    }

    /// Inside a block of a running transaction nothing is decoded, only kept.
    async fn in_block(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        match bytes.split_first() {
            Some((b'E', _)) => {
                self.spools.stop();
                Ok(())
            }
            Some((b'O', _)) => self.spools.keep(0, bytes).await,
            Some((_, rest)) => {
                let subxid = rest.first_chunk::<4>().map_or(0, |xid| u32::from_be_bytes(*xid));
                self.spools.keep(subxid, bytes).await
            }
            None => Ok(()),
        }
    }

    /// A streamed transaction committed: its messages are read as if they came now.
    async fn replay(&mut self, mut replay: Replay, end: StreamEnd) -> Result<(), End> {
        self.assembler.begin(end.xid, end.commit_time_us, end.end_lsn.0)?;
        while let Some(bytes) = replay.next().await? {
            match decode(&bytes, true)?.1 {
                Message::Relation(relation) => Box::pin(self.relation(&relation)).await?,
                message => self.assembler.take(message)?,
            }
            if self.assembler.is_full() {
                self.hand_over().await?;
            }
        }
        Ok(self.commit(end.end_lsn).await?)
    }

    /// The stream says a table's shape: always before the first change under it.
    async fn relation(&mut self, relation: &Relation) -> Result<(), End> {
        // The change of shape may be this transaction's own.
        if let Some(xid) = self.assembler.xid() {
            fetch::wait_visible(&self.session, &[xid]).await?;
        }
        let Some(captured) = self.assembler.tables.get(&relation.oid) else {
            return self.unknown_relation(relation).await;
        };
        let old = captured.schema.clone();
        let live = catalog::live_tables(&self.session, &[relation.oid]).await?;
        let types = catalog::column_types(&self.session, live.values()).await?;
        self.check_text(&old.name, &live, &types)?;
        let schema = match relations::follow(&old, relation, live.get(&relation.oid), &types, self.text)? {
            Followed::Same => {
                let numbers = old.columns.iter().map(|column| column.native_id);
                if live.get(&relation.oid).is_some_and(|live| live.columns.iter().map(|live| live.attnum).ne(numbers)) {
                    // It may be another one that looks the same: the catalog will tell.
                    self.shapes_due = None;
                }
                old
            }
            Followed::Changed(next) => self.announce(next),
            Followed::Rewritten(next, why) => {
                self.rewritten(&next, &why).await?;
                self.note_own_rewrite(live.get(&relation.oid));
                self.announce(next)
            }
        };
        let rules = Some(relations::rules(&schema, relation));
        self.assembler.tables.insert(relation.oid, Captured { schema, rules });
        Ok(())
    }

    fn announce(&mut self, schema: TableSchema) -> Arc<TableSchema> {
        let schema = Arc::new(schema);
        self.assembler.push_schema(Event::SchemaSeen(schema.clone()));
        if let Some(snapshot) = &self.snapshot {
            snapshot.reshape(&schema);
        }
        schema
    }

    /// A row that is gone went by a change that the stream has not brought yet. Whatever carries it on until then (a
    /// change of its key with unchanged cells) must be looked up as well, for the target has nothing to take them from.
    async fn resolve_unchanged(&mut self) -> Result<(), Failure> {
        loop {
            let wanted = self.assembler.take_unresolved();
            if wanted.is_empty() {
                break;
            }
            let gone = fetch::resolve(&self.session, &mut self.assembler, wanted).await?;
            if gone.is_empty() {
                break;
            }
            let now = self.end_of_wal().await?;
            self.assembler.resolve_until(&gone, now);
        }
        self.assembler.leave_unresolved();
        Ok(())
    }

    fn take_output(&mut self, output: Output) {
        match output {
            Output::Events(events) => self.hold(events),
            Output::TableEnded { events, table, until } => {
                let bound = if self.awaits_a_copy(table) { Lsn(u64::MAX) } else { until };
                self.assembler.resolving.insert(table, bound);
                self.copied = self.copied.max(until);
                self.copying.remove(&table);
                self.hold(events);
            }
            Output::Stale { table, until } => self.stale.push((table, until)),
            Output::Finished { generation, abandoned } => self.copied_all(generation, abandoned),
        }
    }

    fn hold(&mut self, events: Vec<Event>) {
        let position = self.assembler.position(self.assembler.upto().0);
        let events = events.into_iter().map(|event| Stamped { position, event }).collect();
        self.held = Some(Batch { events, upto: None, whole: true });
    }

    /// An idle stream moves, too: once everything handed over is durable, to where the server says it has read.
    async fn when_idle(&mut self) -> Result<(), Failure> {
        let durable = Lsn(self.durable.load(Ordering::Acquire));
        if self.assembler.idle_beyond().is_some() && durable >= self.assembler.upto() {
            self.assembler.push_resolved();
        }
        if !self.stale.is_empty() {
            Box::pin(self.reshape_from_catalog()).await?;
        }
        Box::pin(self.begin_again()).await?;
        Box::pin(self.watch_trees()).await?;
        Box::pin(self.watch_shapes()).await?;
        if !self.suspects.is_empty() {
            Box::pin(self.believe_shapes()).await?;
        }
        if self.heartbeat_due.is_some_and(|due| due <= Instant::now()) {
            self.heartbeat_due = Some(Instant::now() + self.config.heartbeat);
            self.heartbeat().await?;
        }
        Ok(())
    }

    async fn heartbeat(&self) -> Result<(), Failure> {
        match self.session.batch_execute(&capture::heartbeat(&self.config.migration)).await {
            Ok(()) => Ok(()),
            // A standby or a role without the right: keepalives move the position then.
            Err(error) if error.code().is_some() => {
                tracing::debug!("no heartbeat can be written: keepalives must do");
                Ok(())
            }
            Err(error) => Err(failure("writing a heartbeat", error)),
        }
    }
}

/// The transaction that begins with this event.
fn began(event: &Event) -> Option<u64> {
    match event {
        Event::Began(transaction) => Some(transaction.xid),
        _ => None,
    }
}

/// The backfill's next output; never where there is no backfill.
async fn next_output(snapshot: &mut Option<SnapshotRun>) -> Result<Output, Failure> {
    match snapshot {
        Some(run) => run.next().await,
        None => std::future::pending().await,
    }
}

fn decode(bytes: &[u8], in_stream: bool) -> Result<(Option<u32>, Message<'_>), Failure> {
    pgoutput::decode(bytes, in_stream).map_err(|error| {
        Failure::halt(
            "decoding the replication stream",
            error,
            "The server sent what its protocol does not allow: report this with the server's version",
        )
    })
}

/// The highest protocol that the server speaks. Its `origin` option is left alone: it would leave out whatever another
/// subscription writes into this database, too; our own writes are told by the origin's name.
fn stream_options(publication: &str, version: u32, text: bool) -> String {
    let protocol = match version {
        160_000.. => 4,
        150_000.. => 3,
        140_000.. => 2,
        _ => 1,
    };
    let mut options = format!("proto_version '{protocol}', publication_names '\"{publication}\"'");
    if version >= 140_000 {
        options.push_str(", messages 'true', streaming 'on'");
        if !text {
            options.push_str(", binary 'true'");
        }
    }
    options
}
