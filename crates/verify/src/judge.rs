//! Which suspects are real differences. By position, never by a timer.
//!
//! A suspect is judged in a round: (1) read the source row, at position P; (2) wait until the sink has passed P;
//! (3) read the target row; (4) read the source row again. If the source row was the same in (1) and (4), the target
//! row of (3) must be what it becomes: the sink had everything up to P, and nothing newer existed. If the source row
//! changed meanwhile, the round says nothing and the suspect goes into the next one.
//!
//! A row that many write may have changed between (1) and (4), and changed back: then the target rightly held something else
//! in (3). So one round is no proof of a difference. It is one that differs in the same way in several rounds, or in so many
//! that chance is no explanation.

use crate::{
    Options, SinkPosition, VerifyError,
    drill::{Suspect, Suspects},
    side::{Expected, scan_all},
};
use crossfade_connector::Inspect;
use crossfade_event::{Key, Position, Row, TableId, TableSchema};
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Instant,
};

/// So many rounds with the same two rows make a difference.
const ROUNDS_ALIKE: u32 = 4;

/// And so many in which they differed, whatever they were: a row that is written all the time.
const ROUNDS_DIFFERING: u32 = 24;

/// How many rows are fetched at once.
pub(crate) const FETCH_KEYS_MAX: usize = 500;

pub(crate) async fn wait_for<P: SinkPosition>(
    sink: &mut P,
    wanted: Option<Position>,
    options: &Options,
) -> Result<(), VerifyError> {
    let Some(wanted) = wanted else { return Ok(()) };
    let begun = Instant::now();
    loop {
        let at = sink.position().await.map_err(VerifyError::Target)?;
        if at.is_some_and(|at| at >= wanted) {
            return Ok(());
        }
        if begun.elapsed() > options.patience {
            let at = at.map_or_else(|| "no position yet".to_owned(), |at| at.to_string());
            return Err(VerifyError::Behind { at, wanted, waited_s: begun.elapsed().as_secs() });
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

/// What came of the suspects.
#[derive(Debug, Default)]
pub(crate) struct Judged {
    pub(crate) real: BTreeMap<(TableId, Key), Suspect>,
    /// Those that changed, or differed in ever other ways, whenever they were looked at: nothing can be said of them.
    pub(crate) unjudged: u64,
}

impl Judged {
    pub(crate) fn add(&mut self, more: Self) {
        self.real.extend(more.real);
        self.unjudged += more.unjudged;
    }
}

/// The suspects that are real differences.
pub(crate) async fn judge<A: Inspect, B: Inspect, P: SinkPosition>(
    expected: &Expected<'_>,
    source: &mut A,
    target: &mut B,
    sink: &mut P,
    suspects: Suspects,
    options: &Options,
) -> Result<Judged, VerifyError> {
    let mut open = suspects.by_key;
    let mut judged = Judged::default();
    let mut rounds = 0;
    let mut doubts: BTreeMap<(TableId, Key), Doubt> = BTreeMap::new();
    let begun = Instant::now();
    while !open.is_empty() {
        let (before, position) = expect_now(expected, source, &open).await?;
        crate::nudge(source).await?;
        wait_for(sink, position, options).await?;
        let found = find_now(expected, target, &open).await?;
        let (after, _) = expect_now(expected, source, &open).await?;
        let none = Vec::new();
        open.retain(|key, suspect| {
            let (before, after) = (before.get(key).unwrap_or(&none), after.get(key).unwrap_or(&none));
            if before != after {
                return !options.leave_changed;
            }
            let found = found.get(key).unwrap_or(&none);
            if before.is_empty() && expected.may_have_more(key.0) {
                // The source row has gone since it was suspected; what is left of it there may stay.
                return false;
            }
            if before.is_empty() && !found.is_empty() && suspect.origin.take().is_some() {
                // The source row that it came from has gone; another one may have taken its place.
                return true;
            }
            if before != found {
                if !doubts.entry(key.clone()).or_default().is_certain(before, found) {
                    return true;
                }
                let verdict = Suspect { expected: before.clone(), found: found.clone(), ..suspect.clone() };
                judged.real.insert(key.clone(), verdict);
            }
            false
        });
        rounds += 1;
        // A machine on which a round takes long is no reason to say anything of a row.
        if rounds >= ROUNDS_DIFFERING && begun.elapsed() > options.patience {
            judged.unjudged = open.len() as u64;
            break;
        }
    }
    Ok(judged)
}

/// What rounds have said against a suspect.
#[derive(Default)]
struct Doubt {
    before: Vec<Row>,
    found: Vec<Row>,
    alike: u32,
    differing: u32,
}

impl Doubt {
    fn is_certain(&mut self, before: &[Row], found: &[Row]) -> bool {
        self.differing += 1;
        if self.alike > 0 && self.before == before && self.found == found {
            self.alike += 1;
        } else {
            (self.before, self.found, self.alike) = (before.to_vec(), found.to_vec(), 1);
        }
        self.alike >= ROUNDS_ALIKE || self.differing >= ROUNDS_DIFFERING
    }
}

pub(crate) type ByKey = HashMap<(TableId, Key), Vec<Row>>;

/// What the target should hold under the suspects' keys, by the source as it is now.
pub(crate) async fn expect_now<A: Inspect>(
    expected: &Expected<'_>,
    source: &mut A,
    open: &BTreeMap<(TableId, Key), Suspect>,
) -> Result<(ByKey, Option<Position>), VerifyError> {
    let mut rows: ByKey = HashMap::new();
    let mut position = None;
    // A suspect without a source row can come from any row of its tables, and so can one of a table without a key:
    // then the whole table is read again.
    let all = open.values().any(|suspect| suspect.origin.is_none());
    let mut keys: HashMap<TableId, Vec<Key>> = HashMap::new();
    for suspect in open.values() {
        if let Some((schema, key)) = &suspect.origin {
            keys.entry(schema.id).or_default().push(key.clone());
        }
    }
    for (schema, bound) in &expected.sources {
        let mut take = |row: Row| {
            expected.rows(bound, schema, row, &mut |table, key, row| {
                if open.contains_key(&(table, key.clone())) {
                    rows.entry((table, key)).or_default().push(row);
                }
            });
        };
        if all || schema.identity != crossfade_event::Identity::Key {
            position = position.max(scan_all(source, schema, &mut take).await.map_err(VerifyError::Source)?);
        } else if let Some(keys) = keys.get(&schema.id) {
            for some in keys.chunks(FETCH_KEYS_MAX) {
                let (page, at) = source.fetch(schema, some).await.map_err(VerifyError::Source)?;
                position = position.max(at);
                page.into_iter().for_each(&mut take);
            }
        }
    }
    Ok((in_order(rows), position))
}

/// Several rows under one key, in an order that does not depend on how they were read.
pub(crate) fn in_order(mut rows: ByKey) -> ByKey {
    rows.values_mut().for_each(|rows| rows.sort_unstable_by(|one, two| one.as_bytes().cmp(two.as_bytes())));
    rows
}

/// What the target holds under the suspects' keys now.
pub(crate) async fn find_now<B: Inspect>(
    expected: &Expected<'_>,
    target: &mut B,
    open: &BTreeMap<(TableId, Key), Suspect>,
) -> Result<ByKey, VerifyError> {
    let mut by_table: BTreeMap<TableId, Vec<Key>> = BTreeMap::new();
    for (table, key) in open.keys() {
        by_table.entry(*table).or_default().push(key.clone());
    }
    let mut rows: ByKey = HashMap::new();
    for (table, keys) in by_table {
        let Some(schema) = expected.targets.get(&table).map(|side| side.schema.clone()) else { continue };
        let found = if schema.identity == crossfade_event::Identity::Key {
            fetch_all(target, &schema, &keys).await?
        } else {
            let mut rows = Vec::new();
            scan_all(target, &schema, |row| rows.push(row)).await.map_err(VerifyError::Target)?;
            rows
        };
        for row in found {
            if let Some(key) = expected.key(table, &row)
                && open.contains_key(&(table, key.clone()))
            {
                rows.entry((table, key)).or_default().push(row);
            }
        }
    }
    Ok(in_order(rows))
}

async fn fetch_all<B: Inspect>(
    target: &mut B,
    schema: &Arc<TableSchema>,
    keys: &[Key],
) -> Result<Vec<Row>, VerifyError> {
    let mut rows = Vec::with_capacity(keys.len());
    for some in keys.chunks(FETCH_KEYS_MAX) {
        rows.extend(target.fetch(schema, some).await.map_err(VerifyError::Target)?.0);
    }
    Ok(rows)
}
