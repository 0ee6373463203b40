//! From differing buckets to suspect keys: both sides are read again, keeping only the rows of those buckets.

use crate::{
    Options, VerifyError,
    side::{Digests, Expected, scan_all, scan_buckets},
};
use crossfade_connector::Inspect;
use crossfade_event::{Key, Position, Row, TableId, TableSchema};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

/// A key whose two rows differ as read; whether they really do is for [`crate::judge`] to say.
#[derive(Debug, Clone)]
pub(crate) struct Suspect {
    /// The source row's own table and key, where there is exactly one source row.
    pub(crate) origin: Option<(Arc<TableSchema>, Key)>,
    /// The rows that the target should hold; several only where the table has no key.
    pub(crate) expected: Vec<Row>,
    pub(crate) found: Vec<Row>,
}

impl Suspect {
    fn none_yet() -> Self {
        Self { origin: None, expected: Vec::new(), found: Vec::new() }
    }

    /// A row that the target should hold, and where it comes from. With a second source row on the same key there is no
    /// one place any more at which to look again.
    fn expect(&mut self, origin: Option<(Arc<TableSchema>, Key)>, row: Row) {
        let place =
            |origin: &Option<(Arc<TableSchema>, Key)>| origin.as_ref().map(|(schema, key)| (schema.id, key.clone()));
        if self.expected.is_empty() {
            self.origin = origin;
        } else if place(&self.origin) != place(&origin) {
            self.origin = None;
        }
        self.expected.push(row);
    }
}

/// Which rows are to be read again: those of some buckets where the database shares them out as its digests did, else (inner
/// `None`) all; `None` where none of the table's buckets differ and nothing else can come from it.
fn of_buckets(wanted: &BTreeMap<TableId, BTreeSet<usize>>, table: TableId, in_place: bool) -> Option<Option<Vec<u32>>> {
    if !in_place {
        return Some(None);
    }
    wanted.get(&table).map(|buckets| Some(buckets.iter().map(|bucket| *bucket as u32).collect()))
}

/// Suspects by target table and key, with the position at which their source rows were read.
#[derive(Debug, Default)]
pub(crate) struct Suspects {
    pub(crate) by_key: BTreeMap<(TableId, Key), Suspect>,
    pub(crate) position: Option<Position>,
}

/// Buckets of target tables.
pub(crate) type Wanted = BTreeMap<TableId, BTreeSet<usize>>;

/// The buckets in which both sides differ, in portions whose rows fit into memory together.
pub(crate) fn differing(digests: &Digests, rows_at_once: u64) -> Vec<Wanted> {
    let (mut portions, mut rows) = (vec![Wanted::new()], 0);
    for (table, buckets) in &digests.source {
        let Some(other) = digests.target.get(table) else { continue };
        for bucket in buckets.differing(other) {
            let more = buckets.rows_of(bucket).saturating_add(other.rows_of(bucket));
            if rows > 0 && rows + more > rows_at_once {
                portions.push(Wanted::new());
                rows = 0;
            }
            rows += more;
            if let Some(last) = portions.last_mut() {
                last.entry(*table).or_default().insert(bucket);
            }
        }
    }
    portions.retain(|portion| !portion.is_empty());
    portions
}

pub(crate) async fn suspects<A: Inspect, B: Inspect>(
    expected: &Expected<'_>,
    source: &mut A,
    target: &mut B,
    digests: &Digests,
    wanted: &Wanted,
    options: &Options,
) -> Result<Suspects, VerifyError> {
    let is_wanted = |table: TableId, key: &Key| {
        // Of a table that was digested where it is, only rows of the buckets that differ are read at all.
        digests.in_place.contains(&table)
            || wanted
                .get(&table)
                .is_some_and(|set| set.contains(&((key.hash64() % u64::from(options.buckets.max(1))) as usize)))
    };
    let mut found = Suspects::default();
    let mut rows: HashMap<(TableId, Key), Suspect> = HashMap::new();
    for (schema, bound) in &expected.sources {
        let in_place = digests.in_place.contains(&bound.table());
        let Some(of_these) = of_buckets(wanted, bound.table(), in_place) else { continue };
        let take = |row: Row| {
            let own = schema.key_of(&row);
            expected.rows(bound, schema, row, &mut |table, key, row| {
                if is_wanted(table, &key) {
                    let origin = own.clone().map(|own| (schema.clone(), own));
                    rows.entry((table, key)).or_insert_with(Suspect::none_yet).expect(origin, row);
                }
            });
        };
        let position = match of_these {
            Some(buckets) => scan_buckets(source, schema, (options.digesting(), &buckets), take).await,
            None => scan_all(source, schema, take).await,
        };
        found.position = found.position.max(position.map_err(VerifyError::Source)?);
    }
    for (table, side) in expected.targets.iter().filter(|(table, _)| wanted.contains_key(table)) {
        let take = |row: Row| {
            if let Some(key) = expected.key(*table, &row)
                && is_wanted(*table, &key)
            {
                rows.entry((*table, key)).or_insert_with(Suspect::none_yet).found.push(row);
            }
        };
        let scanned = match of_buckets(wanted, *table, digests.in_place.contains(table)).flatten() {
            Some(buckets) => scan_buckets(target, &side.schema, (options.digesting(), &buckets), take).await,
            None => scan_all(target, &side.schema, take).await,
        };
        scanned.map_err(VerifyError::Target)?;
    }
    found.by_key = rows
        .into_iter()
        .filter(|((table, _), suspect)| {
            suspect.expected != suspect.found && !(suspect.expected.is_empty() && expected.may_have_more(*table))
        })
        .collect();
    Ok(found)
}
