//! The stream shared among several processes: what the lead does (docs/adr/0016).
//!
//! ```text
//!  crossfade.positions      worker 0: stage `streaming` ──share──▶ `shared` ──take back──▶ `streaming`
//!                           worker -1 - p, for each partition p:
//!                             epoch   the number of its owner; raised by whoever takes it over, and by taking it back
//!                             stage   `back` while nobody has it · `streaming` · `asks` for the lead
//! ```
//! Everybody locks the migration's own row before those of partitions.

use super::{
    Apply, PostgresSink,
    link::{Link, Param},
    own, store,
};
use crate::client::quote_literal;
use crossfade_connector::{Failure, Gathered, LEADING, Lead, Overseen, Progress, Stage, Verdict, WriteMode};
use crossfade_event::{Cut, Identity, Partition, Sequence};
use std::time::Duration;
use tokio::time::Instant;

/// How long a partition's owner may go on with a transaction that can no longer be committed, before its session is ended.
const LEAVES_WITHIN: Duration = Duration::from_secs(1);

/// How often the lead says that it is there, if nothing else is to be said.
const NOTE_EVERY: Duration = Duration::from_secs(1);

/// The row of a partition.
pub(super) fn worker_of(partition: u32) -> i32 {
    -1 - partition.cast_signed()
}

/// The name of the sessions that write a partition; without one, how they all begin.
pub(super) fn session_name(migration: &str, partition: Option<u32>) -> String {
    let which = partition.map_or_else(String::new, |partition| partition.to_string());
    format!("crossfade share {migration}/{which}")
}

/// Takes back what others write; nothing where nothing was ever shared.
pub(super) async fn take_all_back(link: &mut Link, migration: &str, epoch: u64) -> Result<(), Failure> {
    let doing = "taking the partitions back";
    let sql = "SELECT EXISTS (SELECT FROM crossfade.positions WHERE migration = $1 AND worker < 0)";
    let rows = link.query(doing, sql, &[&migration]).await?;
    if !rows.first().is_some_and(|row| row.get(0)) {
        return Ok(());
    }
    let name = quote_literal(migration);
    // One transaction, for it is one message. What nobody has is left as it is: numbers must not outrun the turns.
    let sql = format!(
        "UPDATE crossfade.positions SET stage = 'streaming' \
           WHERE migration = {name} AND worker = 0 AND stage = 'shared'; \
         UPDATE crossfade.positions SET stage = 'back', epoch = greatest(epoch + 1, {epoch}) \
           WHERE migration = {name} AND worker < 0 AND stage IS DISTINCT FROM 'back'"
    );
    match link.execute(doing, &sql).await {
        // Somebody stands still between writing a place and its commit.
        Err(Failure { verdict: Verdict::Retry { .. }, .. }) if !link.session.is_closed() => {
            end_sessions(link, migration, None).await?;
            link.execute(doing, &sql).await?;
        }
        done => done?,
    }
    let began = Instant::now();
    while are_writing(link, migration).await? {
        if began.elapsed() > LEAVES_WITHIN {
            return end_sessions(link, migration, None).await;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

/// Whether a session has a transaction open in which it has written some of a partition: rows in it are locked.
async fn are_writing(link: &mut Link, migration: &str) -> Result<bool, Failure> {
    let sql = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() \
               AND starts_with(application_name, $1) AND xact_start IS NOT NULL AND pid <> pg_backend_pid())";
    let name = session_name(migration, None);
    let rows = link.query("looking for sessions that still write partitions", sql, &[&name]).await?;
    Ok(rows.first().is_some_and(|row| row.get(0)))
}

/// Ends the sessions of others that write a partition, or any.
pub(super) async fn end_sessions(link: &mut Link, migration: &str, partition: Option<u32>) -> Result<(), Failure> {
    let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() \
               AND pid <> pg_backend_pid() AND usename = current_user \
               AND CASE WHEN $2 THEN application_name = $1 ELSE starts_with(application_name, $1) END";
    let name = session_name(migration, partition);
    link.query("ending sessions that were shut out", sql, &[&name, &partition.is_some()]).await.map(drop)
}

/// Ends the session of a lead that has not looked after a stream that is shared for so long; false where there is none.
async fn end_silent_lead(link: &mut Link, migration: &str, silent: Duration) -> Result<bool, Failure> {
    if !store::exists(link).await? {
        return Ok(false);
    }
    let sql = "SELECT pg_terminate_backend(l.pid) \
               FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid, crossfade.positions p \
               WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1 AND a.datname = current_database() \
               AND a.usename = current_user AND (l.classid::bigint << 32) | l.objid::bigint = $1 \
               AND p.migration = $2 AND p.worker = 0 AND p.stage = 'shared' \
               AND p.written_at < clock_timestamp() - make_interval(secs => $3)";
    let (lock, silent) = (store::lock_number(migration), silent.as_secs_f64());
    let ended = link.query("looking after the one that leads", sql, &[&lock, &migration, &silent]).await?;
    Ok(!ended.is_empty())
}

/// The places of all partitions, as their rows say them, and which of them ask for the lead.
async fn partitions(link: &mut Link, migration: &str) -> Result<(Vec<Progress>, Vec<u32>), Failure> {
    let sql = "SELECT worker, stage, progress, schemas FROM crossfade.positions \
               WHERE migration = $1 AND worker < 0 ORDER BY worker DESC";
    let rows = link.query("reading the places of the partitions", sql, &[&migration]).await?;
    let (mut places, mut asks) = (Vec::with_capacity(rows.len()), Vec::new());
    for (partition, row) in (0u32..).zip(&rows) {
        if row.get::<_, Option<&str>>(1) == Some("asks") {
            asks.push(partition);
        }
        match store::parsed(row.get(2), row.get(3))? {
            Some(place) if row.get::<_, i32>(0) == worker_of(partition) => places.push(place),
            _ => {
                let told = format!("the row of partition {partition} in crossfade.positions is missing or empty");
                let advice = "Wipe the target and begin again: `crossfade rollback --wipe`";
                return Err(Failure::lost("reading the places of the partitions", told, advice));
            }
        }
    }
    Ok((places, asks))
}

/// The lowest place, and what the partitions are ahead of it; nothing where they speak of another load.
fn combined(own: &Progress, partitions: &[Progress]) -> (Progress, Gathered) {
    let speaks = |place: &Progress| place.stage == Stage::Streaming && place.generation == own.generation;
    if own.stage != Stage::Streaming || partitions.is_empty() || !partitions.iter().all(speaks) {
        return (own.clone(), Gathered::default());
    }
    let (mut cut, mut level) = (own.cut.clone(), own.cut.clone());
    let raise = |cut: &mut Cut, partition: Partition, to| cut.set_next(partition, cut.next(partition).max(to));
    let first = Partition(0);
    for (partition, place) in (0u32..).map(Partition).zip(partitions).skip(1) {
        let at = place.cut.next(partition);
        raise(&mut cut, partition, at);
        raise(&mut level, partition, at);
        raise(&mut level, first, place.cut.next(first));
    }
    // What belongs to no row stands in the first one, and each has read it as far as itself.
    let lowest = partitions.iter().map(|place| place.cut.next(first)).min().unwrap_or_default();
    raise(&mut cut, first, lowest);
    raise(&mut level, first, partitions.first().map(|place| place.cut.next(first)).unwrap_or_default());
    let lowest = Progress {
        cut,
        sequence: own.sequence.max(partitions.iter().map(|place| place.sequence).min().flatten()),
        position: own.position.max(partitions.iter().map(|place| place.position).min().flatten()),
        ..own.clone()
    };
    let gathered = match level == lowest.cut {
        true => Gathered::default(),
        false => Gathered {
            ahead: partitions.iter().map(|place| place.sequence.unwrap_or(Sequence(0))).collect(),
            level: Some(level),
        },
    };
    (lowest, gathered)
}

/// Refuses whoever knows nothing of partitions while some of them are ahead of others: it would apply again what is in.
pub(super) async fn must_be_level(link: &mut Link, migration: &str, own: Option<&Progress>) -> Result<(), Failure> {
    let Some(own) = own else { return Ok(()) };
    let (places, _) = partitions(link, migration).await?;
    if combined(own, &places).1.level.is_none() {
        return Ok(());
    }
    Err(Failure::refused(
        "preparing the target",
        "several delivers have shared the stream, and not all partitions are at one place",
        "Start `crossfade run … --role deliver` with apply = \"parallel\" as before: it brings them there",
    ))
}

impl PostgresSink {
    /// Why the stream cannot be shared as the target stands.
    fn keeps_alone(&self, replica: bool) -> Option<String> {
        if self.target.is_none() || self.tables.is_empty() {
            return Some("the sink is not prepared yet".to_owned());
        }
        if !matches!(self.config.apply, Apply::Parallel { .. }) {
            return Some("apply = \"transactional\" needs one that merges".to_owned());
        }
        if !self.held.is_empty() {
            return Some("keys are held by the quarantine".to_owned());
        }
        if self.constraints_at.is_some() {
            return Some("the target's constraints are not all made yet".to_owned());
        }
        for table in &self.tables {
            let name = &table.target.schema.name;
            let why = match table.target.mode {
                WriteMode::Columns { .. } | WriteMode::Dual { .. } => "is not a table of its own",
                _ if table.target.schema.identity != Identity::Key => "has no key",
                _ if table.tracked => "holds rows of somebody else's",
                _ if table.bulk => "has not got its key yet",
                _ if !replica && !table.parents.is_empty() => {
                    "has foreign keys in force: GRANT SET ON PARAMETER session_replication_role TO the sink's role"
                }
                _ => continue,
            };
            return Some(format!("{name} {why}"));
        }
        None
    }

    async fn lead_link(&mut self) -> Result<Link, Failure> {
        match self.link.take() {
            Some(link) if !link.session.is_closed() && link.locked => Ok(link),
            _ => Err(Failure::reconnect(LEADING, "the session was lost")),
        }
    }

    async fn share_on(&mut self, link: &mut Link, count: u32) -> Result<Result<(), String>, Failure> {
        let doing = "beginning to share the stream";
        let (migration, Some(target)) = (self.config.migration.clone(), self.target.clone()) else {
            return Ok(Err("the sink is not prepared yet".to_owned()));
        };
        let Some(own) = store::progress(link, &migration, 0).await?.filter(|own| own.stage == Stage::Streaming) else {
            return Ok(Err("the target is still being filled".to_owned()));
        };
        if !own.cut.covers(&store::load_end(link, &migration).await?) {
            return Ok(Err("the target is still being filled".to_owned()));
        }
        let (places, _) = partitions(link, &migration).await?;
        if combined(&own, &places).1.level.is_some() {
            return Ok(Err("the partitions are not level yet".to_owned()));
        }
        link.execute(doing, "BEGIN").await?;
        link.open = true;
        let sql = "UPDATE crossfade.positions SET stage = 'shared', written_at = clock_timestamp() WHERE migration = $1 AND worker = 0 AND epoch = $2";
        let own = vec![Param::text(&migration), Param::i64(target.epoch.cast_signed())];
        if link.run(doing, sql, own.clone()).await? == 0 {
            return Err(store::fenced(target.epoch));
        }
        let sql = "INSERT INTO crossfade.positions AS p (migration, worker, epoch, stage, generation, cut, \
                     source_position, progress, schemas, written_at) \
                   SELECT o.migration, -1 - n, 0, 'back', o.generation, o.cut, o.source_position, o.progress, \
                     o.schemas, clock_timestamp() \
                   FROM crossfade.positions o, generate_series(0, $3 - 1) n \
                   WHERE o.migration = $1 AND o.worker = 0 AND o.epoch = $2 \
                   ON CONFLICT (migration, worker) DO UPDATE SET stage = 'back', generation = excluded.generation, \
                     cut = excluded.cut, source_position = excluded.source_position, progress = excluded.progress, \
                     schemas = excluded.schemas, written_at = excluded.written_at";
        let params = own.into_iter().chain([Param::i32(count.cast_signed())]).collect();
        link.run(doing, sql, params).await?;
        link.execute(doing, "COMMIT").await?;
        link.open = false;
        Ok(Ok(()))
    }

    async fn note_lowest(&self, link: &mut Link, lowest: &Progress, epoch: u64) -> Result<(), Failure> {
        let (sql, params) = store::lowest(&self.config.migration, epoch, lowest)?;
        match link.run("noting the lowest place of the partitions", sql, params).await? {
            0 => Err(store::fenced(epoch)),
            _ => Ok(()),
        }
    }
}

impl Lead for PostgresSink {
    async fn try_lead(&mut self, silent: Duration) -> Result<bool, Failure> {
        self.asks_for_lead = true;
        let migration = self.config.migration.clone();
        let mut link = self.take_link().await?;
        if !link.locked {
            link.locked = store::try_lock(&mut link, &migration).await?;
        }
        if !link.locked && end_silent_lead(&mut link, &migration, silent).await? {
            tracing::warn!("whoever had the lead has said nothing for long: its session in the target is ended");
        }
        let leads = link.locked;
        self.give_back(link);
        Ok(leads)
    }

    async fn take_back(&mut self, epoch: u64) -> Result<Gathered, Failure> {
        // Whatever was open is rolled back, and what was known of the place is read anew.
        self.told = None;
        let mut link = self.lead_link().await?;
        if link.open {
            link.execute("rolling back what was left open", "ROLLBACK").await?;
            link.open = false;
        }
        (self.in_part, self.lost) = (false, true);
        self.shaping.clear();
        let migration = self.config.migration.clone();
        let mut gathered = Gathered::default();
        store::install(&mut link).await?;
        store::fence(&mut link, &migration, 0, epoch).await?;
        if let Some(own) = store::progress(&mut link, &migration, 0).await? {
            let (places, _) = partitions(&mut link, &migration).await?;
            let (lowest, found) = combined(&own, &places);
            if lowest != own {
                self.note_lowest(&mut link, &lowest, epoch).await?;
            }
            gathered = found;
        }
        self.give_back(link);
        Ok(gathered)
    }

    async fn share(&mut self, partitions: u32) -> Result<Result<(), String>, Failure> {
        let mut link = self.lead_link().await?;
        if link.open {
            link.execute("rolling back what was left open", "ROLLBACK").await?;
            link.open = false;
        }
        let is_loaded = self.standing().cut.covers(&self.load_end);
        if is_loaded && self.constraints_at.is_some_and(|at| at <= Instant::now()) {
            self.complete_on(&mut link).await?;
        }
        if let Some(why) = self.keeps_alone(link.replica) {
            self.give_back(link);
            return Ok(Err(why));
        }
        let shared = self.share_on(&mut link, partitions).await?;
        self.give_back(link);
        Ok(shared)
    }

    async fn oversee(&mut self) -> Result<Overseen, Failure> {
        let epoch = self.target.as_ref().map_or(0, |target| target.epoch);
        let migration = self.config.migration.clone();
        let mut link = self.lead_link().await?;
        let own = store::progress(&mut link, &migration, 0).await?;
        let own = own.ok_or_else(|| store::fenced(epoch))?;
        let (places, asks) = partitions(&mut link, &migration).await?;
        let (lowest, _) = combined(&own, &places);
        // Also to say that somebody looks.
        if lowest != own || self.noted_at.is_none_or(|at| at.elapsed() >= NOTE_EVERY) {
            self.note_lowest(&mut link, &lowest, epoch).await?;
            self.noted_at = Some(Instant::now());
        }
        self.give_back(link);
        Ok(Overseen { progress: lowest, asks })
    }
}

/// A session for one partition.
pub(super) async fn connect(sink: &PostgresSink, partition: u32) -> Result<Link, Failure> {
    sink.connect_as(&session_name(&sink.config.migration, Some(partition))).await
}

/// Marks the session's transactions as those of other sessions of ours are.
pub(super) fn mark(link: &mut Link, migration: &str, target: &crossfade_connector::Target) {
    own::mark_by_message(link, migration, target);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossfade_event::{Offset, Position, SourceId};

    fn place(cut: [u64; 3], sequence: u64) -> Progress {
        Progress {
            cut: Cut(cut.into_iter().map(Offset).collect()),
            stage: Stage::Streaming,
            generation: 1,
            stream_from: Cut::start(3),
            sequence: Some(Sequence(sequence)),
            position: Some(Position { source: SourceId(1), timeline: 1, commit: sequence, ordinal: 0 }),
            schemas: Vec::new(),
        }
    }

    #[test]
    fn the_lowest_place_is_each_partitions_own_and_in_the_first_one_the_lowest_of_all() {
        let own = place([10, 10, 10], 100);
        // Each knows its own place and that in the first partition; of the others it knows where sharing began.
        let places = [place([40, 10, 10], 400), place([20, 25, 10], 200), place([30, 10, 35], 300)];
        let (lowest, gathered) = combined(&own, &places);
        assert_eq!(lowest.cut, Cut([20, 25, 35].map(Offset).to_vec()));
        assert_eq!((lowest.sequence, lowest.position.map(|at| at.commit)), (Some(Sequence(200)), Some(200)));
        assert_eq!(gathered.ahead, [400, 200, 300].map(Sequence));
        assert_eq!(gathered.level, Some(Cut([40, 25, 35].map(Offset).to_vec())));
    }

    #[test]
    fn whoever_has_gone_on_alone_since_is_not_put_back() {
        let own = place([50, 30, 36], 500);
        let places = [place([40, 10, 10], 400), place([20, 25, 10], 200), place([30, 10, 35], 300)];
        assert_eq!(combined(&own, &places), (own.clone(), Gathered::default()));
        // Nor by what is left of a sharing before another load.
        let (later, loading) = (
            Progress { generation: 2, ..place([5, 5, 5], 50) },
            Progress { stage: Stage::Loading, ..place([5, 5, 5], 50) },
        );
        assert_eq!(combined(&later, &places), (later.clone(), Gathered::default()));
        assert_eq!(combined(&loading, &places), (loading.clone(), Gathered::default()));
    }
}
