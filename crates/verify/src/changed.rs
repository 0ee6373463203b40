//! Rows that the log says were changed: are they on both sides what they should be? Asked by their keys alone, so what has
//! changed since everything was compared is compared at the cost of what has changed.
//!
//! The log's images are not enough to tell what the target must hold (an update may come without the old row, or without
//! cells that did not change), so only keys are taken from it. A key's row is right if the source's row, taken through the
//! transforms, is the target's. Where it is not, its newer change may be on its way: then that one stands behind in the log,
//! and whoever reads on comes to it. What is neither is judged as any suspect is.

use crate::{
    Difference, Options, SinkPosition, Subject, VerifyError,
    drill::{Suspect, Suspects},
    judge::{self, ByKey, FETCH_KEYS_MAX, in_order},
    report,
    side::Expected,
};
use crossfade_connector::Inspect;
use crossfade_event::{Change, Identity, Key, Position, Row, SchemaVersion, TableId, TableSchema};
use crossfade_transform::{Bound, Output, Views};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, hash_map::Entry},
    sync::Arc,
};

/// So many rows of the target are compared at once, whatever they hold.
pub const ROWS_CHANGED_MAX: usize = 4096;

/// Bytes of rows that are held of one side at once, about.
const BYTES_AT_ONCE: usize = 8 << 20;

/// Keys of rows that were changed, at both ends.
#[derive(Debug, Default)]
pub struct Keys {
    /// Target rows, with the source rows that they may come from.
    by_target: BTreeMap<(TableId, Key), BTreeSet<(TableId, Key)>>,
    bound: HashMap<(TableId, SchemaVersion), (Bound, Arc<TableSchema>, TableId)>,
}

/// What came of comparing them.
#[derive(Debug, Default)]
pub struct Changed {
    /// How many rows of the target were compared.
    pub rows: u64,
    /// The rows that differ, with the name of their table.
    pub differences: Vec<(String, Difference)>,
    /// Rows of which nothing can be said: they differ, and in ever other ways.
    pub unjudged: u64,
}

impl Keys {
    /// How many rows of the target.
    pub fn len(&self) -> usize {
        self.by_target.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.by_target.is_empty()
    }

    /// Forgets the rows, and keeps what is known of their tables.
    pub fn clear(&mut self) {
        self.by_target.clear();
    }

    /// Notes the rows that a change of the log touches at both ends.
    ///
    /// # Errors
    /// [`VerifyError::Unfit`] where it cannot be told which rows these are.
    pub fn note(
        &mut self,
        subject: &Subject<'_>,
        expected: &Expected<'_>,
        logged: &Arc<TableSchema>,
        change: &Change,
    ) -> Result<(), VerifyError> {
        let place = (logged.id, change.schema);
        let (bound, schema, source) = match self.bound.entry(place) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(free) => free.insert(bind(subject, expected, logged)?),
        };
        let of_source: Vec<(TableId, Key)> =
            [change.key(schema), change.replaced_key(schema)].into_iter().flatten().map(|key| (*source, key)).collect();
        let mut outputs = Vec::new();
        bound.apply(change, &Nothing, &mut outputs);
        for output in outputs {
            let (table, keys) = match output {
                Output::Change(change) => {
                    let Some(side) = expected.targets.get(&change.table) else { continue };
                    (change.table, [change.key(&side.schema), change.replaced_key(&side.schema)])
                }
                Output::Rejected { table, key, .. } => (table, [key, None]),
                Output::Filtered => continue,
            };
            for key in keys.into_iter().flatten() {
                self.by_target.entry((table, key)).or_default().extend(of_source.iter().cloned());
            }
        }
        Ok(())
    }

    /// Compares the rows. With `settled` nobody writes the source and the sink has everything: what differs then is a
    /// difference. Else what differs is judged by position, and a row that goes on changing is left to its newer changes.
    ///
    /// # Errors
    /// See [`VerifyError`].
    pub async fn compare<A: Inspect, B: Inspect, P: SinkPosition>(
        &self,
        expected: &Expected<'_>,
        source: &mut A,
        target: &mut B,
        sink: &mut P,
        settled: bool,
        options: &Options,
    ) -> Result<Changed, VerifyError> {
        let mut told = Changed { rows: self.by_target.len() as u64, ..Changed::default() };
        let (mut at_once, mut left) = (256, self.by_target.iter().peekable());
        while left.peek().is_some() {
            let some: Places<'_> = left.by_ref().take(at_once).collect();
            let (wrong, bytes) = look(expected, source, target, &some, settled).await?;
            at_once = (BYTES_AT_ONCE * some.len() / bytes.max(1)).clamp(1, FETCH_KEYS_MAX);
            if wrong.by_key.is_empty() {
                continue;
            }
            let real = match settled {
                true => wrong.by_key,
                false => {
                    let options = Options { leave_changed: true, ..options.clone() };
                    let judged = judge::judge(expected, source, target, sink, wrong, &options).await?;
                    told.unjudged += judged.unjudged;
                    judged.real
                }
            };
            for ((table, key), suspect) in real {
                if let Some(side) = expected.targets.get(&table) {
                    let found = report::difference(&side.schema, &key, &suspect, options.show_keys);
                    told.differences.push((side.schema.name.to_string(), found));
                }
            }
        }
        Ok(told)
    }
}

type Places<'k> = BTreeMap<&'k (TableId, Key), &'k BTreeSet<(TableId, Key)>>;

/// The rows that differ as they are read now, and about how many bytes those of one side had.
async fn look<A: Inspect, B: Inspect>(
    expected: &Expected<'_>,
    source: &mut A,
    target: &mut B,
    some: &Places<'_>,
    settled: bool,
) -> Result<(Suspects, usize), VerifyError> {
    let (before, position) = expect(expected, source, some).await?;
    let found = find(expected, target, some.keys().copied()).await?;
    let bytes = |rows: &ByKey| rows.values().flatten().map(|row| row.as_bytes().len()).sum::<usize>();
    let bytes = bytes(&before).max(bytes(&found));
    let none = Vec::new();
    let differs = |place: &(TableId, Key)| {
        let (want, have) = (before.get(place).unwrap_or(&none), found.get(place).unwrap_or(&none));
        want != have && !(want.is_empty() && expected.may_have_more(place.0))
    };
    let mut open: Places<'_> =
        some.iter().filter(|(place, _)| differs(place)).map(|(place, from)| (*place, *from)).collect();
    if !settled && !open.is_empty() {
        // A row that has changed meanwhile stands behind in the log with that change.
        let (after, _) = expect(expected, source, &open).await?;
        open.retain(|place, _| before.get(*place) == after.get(*place));
    }
    let suspect = |(place, from): (&&(TableId, Key), &&BTreeSet<(TableId, Key)>)| {
        let mut from = from.iter();
        let origin = match (from.next(), from.next()) {
            (Some((table, key)), None) => schema_of(expected, *table).map(|schema| (schema, key.clone())),
            _ => None,
        };
        let rows = |side: &ByKey| side.get(*place).cloned().unwrap_or_default();
        ((*place).clone(), Suspect { origin, expected: rows(&before), found: rows(&found) })
    };
    Ok((Suspects { by_key: open.iter().map(suspect).collect(), position }, bytes))
}

fn schema_of(expected: &Expected<'_>, table: TableId) -> Option<Arc<TableSchema>> {
    expected.sources.iter().find(|(schema, _)| schema.id == table).map(|(schema, _)| schema.clone())
}

/// What the target should hold under these keys, by the source as it is now.
async fn expect<A: Inspect>(
    expected: &Expected<'_>,
    source: &mut A,
    some: &Places<'_>,
) -> Result<(ByKey, Option<Position>), VerifyError> {
    let (mut rows, mut position) = (ByKey::new(), None);
    for (schema, bound) in &expected.sources {
        let keys: BTreeSet<&Key> = some
            .values()
            .flat_map(|from| from.iter())
            .filter(|(table, _)| *table == schema.id)
            .map(|(_, key)| key)
            .collect();
        let keys: Vec<Key> = keys.into_iter().cloned().collect();
        for some_keys in keys.chunks(FETCH_KEYS_MAX) {
            let (page, at) = source.fetch(schema, some_keys).await.map_err(VerifyError::Source)?;
            position = position.max(at);
            for row in page {
                expected.rows(bound, schema, row, &mut |table, key, row| {
                    let place = (table, key);
                    if some.contains_key(&place) {
                        rows.entry(place).or_default().push(row);
                    }
                });
            }
        }
    }
    Ok((in_order(rows), position))
}

/// What the target holds under these keys now.
async fn find<B: Inspect>(
    expected: &Expected<'_>,
    target: &mut B,
    places: impl Iterator<Item = &(TableId, Key)>,
) -> Result<ByKey, VerifyError> {
    let mut by_table: BTreeMap<TableId, Vec<Key>> = BTreeMap::new();
    for (table, key) in places {
        by_table.entry(*table).or_default().push(key.clone());
    }
    let mut rows = ByKey::new();
    for (table, keys) in by_table {
        let Some(side) = expected.targets.get(&table) else { continue };
        for some in keys.chunks(FETCH_KEYS_MAX) {
            for row in target.fetch(&side.schema, some).await.map_err(VerifyError::Target)?.0 {
                if let Some(key) = expected.key(table, &row) {
                    rows.entry((table, key)).or_default().push(row);
                }
            }
        }
    }
    Ok(in_order(rows))
}

/// The plan for a table as the log has it, and the number that the same table has for whoever asks the source now.
fn bind(
    subject: &Subject<'_>,
    expected: &Expected<'_>,
    logged: &Arc<TableSchema>,
) -> Result<(Bound, Arc<TableSchema>, TableId), VerifyError> {
    let name = subject.planned_name(&logged.name).clone();
    let now = expected.sources.iter().find(|(schema, _)| *subject.planned_name(&schema.name) == name);
    let as_planned = Arc::new(TableSchema { name, ..(**logged).clone() });
    let unfit = |why: &str| VerifyError::Unfit { table: logged.name.clone(), why: why.to_owned() };
    let bound = subject.plan.bind(&as_planned)?;
    let Some((schema, _)) = now else { return Err(unfit("the source has no such table any more")) };
    if logged.identity != Identity::Key || schema.identity != Identity::Key {
        return Err(unfit("it has no key by which a changed row could be looked up"));
    }
    let is_keyed = |side: &crate::side::TargetSide| side.schema.identity == Identity::Key;
    if !expected.targets.get(&bound.table()).is_some_and(is_keyed) {
        return Err(unfit("its rows have no key in the target by which one could be looked up"));
    }
    let key = |schema: &TableSchema| -> Vec<_> {
        let columns = schema.key_columns();
        let of = |index: &usize| schema.columns.get(*index).map(|column| (column.name.clone(), column.type_.format));
        columns.iter().filter_map(of).collect()
    };
    if key(logged) != key(schema) {
        return Err(unfit("its key is not what it was when the change was made"));
    }
    Ok((bound, logged.clone(), schema.id))
}

/// Lookups find nothing: of what is made here only the keys are looked at.
struct Nothing;

impl Views for Nothing {
    fn get(&self, _view: u32, _key: &Key) -> Option<Row> {
        None
    }
}
