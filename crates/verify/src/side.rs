//! Reading both sides: the source through the transforms, the target as it is.

use crate::{Buckets, Digest, Options, Subject, VerifyError};
use crossfade_connector::{Digesting, Failure, Inspect};
use crossfade_event::{Cell, Change, Identity, Key, Op, Position, Row, TableId, TableSchema};
use crossfade_transform::{Bound, Output, Plan, Views, Writing};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::ControlFlow,
    sync::Arc,
};

/// Goes through a table as it is now, row by row, until `take` has seen enough. Returns the position at which it was read,
/// where the system has one.
///
/// # Errors
/// When the table cannot be read.
pub async fn scan_rows<A: Inspect>(
    inspect: &mut A,
    schema: &TableSchema,
    mut take: impl FnMut(Row) -> ControlFlow<()> + Send,
) -> Result<Option<Position>, Failure> {
    let position = inspect.scan(schema).await?;
    take_pages(inspect, &mut take).await?;
    Ok(position)
}

async fn take_pages<A: Inspect>(
    inspect: &mut A,
    take: &mut (impl FnMut(Row) -> ControlFlow<()> + Send),
) -> Result<(), Failure> {
    loop {
        let page = inspect.scan_next().await?;
        if page.is_empty() || page.into_iter().try_for_each(&mut *take).is_break() {
            return Ok(());
        }
    }
}

/// The rows of these buckets, as the database shares its rows out.
pub(crate) async fn scan_buckets<A: Inspect>(
    inspect: &mut A,
    schema: &TableSchema,
    (how, buckets): (Digesting, &[u32]),
    mut take: impl FnMut(Row) + Send,
) -> Result<Option<Position>, Failure> {
    let position = inspect.scan_buckets(schema, how, buckets).await?;
    let mut all = |row| {
        take(row);
        ControlFlow::Continue(())
    };
    take_pages(inspect, &mut all).await?;
    Ok(position)
}

/// The same, to the last row.
pub(crate) async fn scan_all<A: Inspect>(
    inspect: &mut A,
    schema: &TableSchema,
    mut take: impl FnMut(Row) + Send,
) -> Result<Option<Position>, Failure> {
    scan_rows(inspect, schema, |row| {
        take(row);
        ControlFlow::Continue(())
    })
    .await
}

/// The rows that lookups read, as the source has them now.
#[derive(Debug, Default)]
pub struct LiveViews {
    rows: HashMap<u32, HashMap<Key, Row>>,
    tables: Vec<LookedUp>,
}

/// A table that lookups read.
#[derive(Debug, Clone)]
struct LookedUp {
    view: u32,
    schema: Arc<TableSchema>,
    key: Vec<String>,
    keep: Vec<String>,
}

impl LiveViews {
    /// Reads every table that the plan looks up.
    ///
    /// # Errors
    /// When the source cannot be read.
    pub async fn read<A: Inspect>(subject: &Subject<'_>, source: &mut A) -> Result<Self, VerifyError> {
        let looked_up = subject.plan.lookups().iter().filter_map(|lookup| {
            let is_looked_up = |schema: &&Arc<TableSchema>| *subject.planned_name(&schema.name) == lookup.table;
            let schema = subject.source_tables.iter().find(is_looked_up)?.clone();
            Some(LookedUp { view: lookup.view, schema, key: lookup.key.clone(), keep: lookup.keep.clone() })
        });
        Self { rows: HashMap::new(), tables: looked_up.collect() }.again(source).await
    }

    /// The same, as the source has them now.
    pub(crate) async fn again<A: Inspect>(&self, source: &mut A) -> Result<Self, VerifyError> {
        let mut rows: HashMap<u32, HashMap<Key, Row>> = HashMap::new();
        for LookedUp { view, schema, key, keep } in &self.tables {
            let kept = rows.entry(*view).or_default();
            let scanned = scan_all(source, schema, |row| {
                if let (Some(key), Some(row)) = (pick(schema, &row, key), pick(schema, &row, keep)) {
                    kept.insert(Key::from(key), row);
                }
            });
            scanned.await.map_err(VerifyError::Source)?;
        }
        Ok(Self { rows, tables: self.tables.clone() })
    }
}

impl Views for LiveViews {
    fn get(&self, view: u32, key: &Key) -> Option<Row> {
        self.rows.get(&view)?.get(key).cloned()
    }
}

fn pick(schema: &TableSchema, row: &Row, names: &[String]) -> Option<Row> {
    let cells: Vec<Cell<'_>> = row.cells().collect();
    names.iter().map(|name| cells.get(schema.column_index(name)?).copied()).collect()
}

/// One table of the target, as far as comparing goes.
#[derive(Debug, Clone)]
pub(crate) struct TargetSide {
    pub(crate) schema: Arc<TableSchema>,
    /// Rows that only the target has are no difference: a mapping outlives its row, and a table in which only columns
    /// are ours has rows of its own.
    pub(crate) may_have_more: bool,
}

/// What the target should hold.
pub struct Expected<'a> {
    pub(crate) sources: Vec<(Arc<TableSchema>, Bound)>,
    pub(crate) targets: BTreeMap<TableId, TargetSide>,
    views: &'a LiveViews,
}

impl std::fmt::Debug for Expected<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Expected").field("targets", &self.targets.len()).finish_non_exhaustive()
    }
}

impl<'a> Expected<'a> {
    /// Binds the plan to the source's tables.
    ///
    /// # Errors
    /// When they do not fit.
    pub fn of(subject: &Subject<'_>, views: &'a LiveViews) -> Result<Self, VerifyError> {
        let sources = subject
            .source_tables
            .iter()
            .map(|schema| {
                let name = subject.planned_name(&schema.name).clone();
                let as_planned = Arc::new(TableSchema { name, ..(**schema).clone() });
                Ok((schema.clone(), subject.plan.bind(&as_planned)?))
            })
            .collect::<Result<_, VerifyError>>()?;
        Ok(Self { sources, targets: targets(subject.plan), views })
    }

    /// What one source row becomes: target table, key there, row there. Rows that the transforms refuse are not
    /// expected in the target (they are in quarantine, and the target lacks them).
    pub(crate) fn rows(
        &self,
        bound: &Bound,
        schema: &TableSchema,
        row: Row,
        take: &mut dyn FnMut(TableId, Key, Row),
    ) -> u64 {
        if let Some(table) = bound.passthrough() {
            if let Some(key) = self.key(table, &row) {
                take(table, key, row);
            }
            return 0;
        }
        let change = Change { table: schema.id, schema: schema.version, op: Op::Insert, old: None, new: Some(row) };
        let mut outputs = Vec::new();
        bound.apply(&change, self.views, &mut outputs);
        let mut refused = 0;
        for output in outputs {
            match output {
                Output::Change(Change { table, new: Some(row), .. }) => {
                    if let Some(key) = self.key(table, &row) {
                        take(table, key, row);
                    }
                }
                Output::Rejected { .. } => refused += 1,
                Output::Change(_) | Output::Filtered => {}
            }
        }
        refused
    }

    /// The same of some tables of the target alone.
    pub(crate) fn only(&self, tables: &BTreeSet<TableId>) -> Self {
        let is_of_them = |table: &TableId| tables.contains(table);
        let sources = self.sources.iter().filter(|(_, bound)| is_of_them(&bound.table())).cloned().collect();
        let targets = self.targets.iter().filter(|(table, _)| is_of_them(table));
        Self { sources, targets: targets.map(|(table, side)| (*table, side.clone())).collect(), views: self.views }
    }

    /// What lookups have read for it.
    pub(crate) fn views(&self) -> &LiveViews {
        self.views
    }

    /// The same by what lookups have read meanwhile.
    pub(crate) fn by<'v>(&self, views: &'v LiveViews) -> Expected<'v> {
        Expected { sources: self.sources.clone(), targets: self.targets.clone(), views }
    }

    /// Whether a row under a key for which no source row stands is no difference there.
    pub(crate) fn may_have_more(&self, table: TableId) -> bool {
        self.targets.get(&table).is_some_and(|side| side.may_have_more)
    }

    /// The key under which a row is compared: its own, or the whole row where there is none.
    pub(crate) fn key(&self, table: TableId, row: &Row) -> Option<Key> {
        let target = self.targets.get(&table)?;
        Some(target.schema.key_of(row).unwrap_or_else(|| Key::from(row.clone())))
    }
}

fn targets(plan: &Plan) -> BTreeMap<TableId, TargetSide> {
    plan.tables()
        .iter()
        .map(|planned| {
            let may_have_more = matches!(planned.write, Writing::Columns { .. } | Writing::InsertOnce);
            (planned.schema.id, TargetSide { schema: planned.schema.clone(), may_have_more })
        })
        .collect()
}

/// The digests of both sides.
#[derive(Debug)]
pub(crate) struct Digests {
    pub(crate) source: BTreeMap<TableId, Buckets>,
    pub(crate) target: BTreeMap<TableId, Buckets>,
    /// The newest position at which a source table was read.
    pub(crate) position: Option<Position>,
    /// Source rows that the transforms refuse.
    pub(crate) refused: u64,
    /// Tables of which both sides made the digests where the rows are: their buckets are the databases' own.
    pub(crate) in_place: BTreeSet<TableId>,
}

/// Tables whose rows both sides can digest by themselves: what one prints is what the other should.
pub(crate) fn in_place<A: Inspect, B: Inspect>(expected: &Expected<'_>, source: &A, target: &B) -> BTreeSet<TableId> {
    if source.digests().is_none() || source.digests() != target.digests() {
        return BTreeSet::new();
    }
    let of_source = |table: &TableId| expected.sources.iter().filter(|(_, bound)| bound.table() == *table).count();
    let is_the_same = |(schema, bound): &(Arc<TableSchema>, Bound)| {
        let table = bound.passthrough()?;
        let side = expected.targets.get(&table)?;
        let keyed = |schema: &TableSchema| schema.identity == Identity::Key;
        let fits =
            schema.columns.len() == side.schema.columns.len() && schema.key_columns() == side.schema.key_columns();
        let alone = of_source(&table) == 1 && !side.may_have_more;
        (fits && alone && keyed(schema) && keyed(&side.schema)).then_some(table)
    };
    expected.sources.iter().filter_map(is_the_same).collect()
}

pub(crate) async fn digest_source<A: Inspect>(
    expected: &Expected<'_>,
    source: &mut A,
    in_place: BTreeSet<TableId>,
    options: &Options,
) -> Result<Digests, VerifyError> {
    let empty = || expected.targets.keys().map(|table| (*table, Buckets::new(options.buckets))).collect();
    let mut digests = Digests { source: empty(), target: empty(), position: None, refused: 0, in_place };
    for (schema, bound) in &expected.sources {
        if digests.in_place.contains(&bound.table()) {
            let made = source.digest(schema, options.digesting()).await.map_err(VerifyError::Source)?;
            digests.position = digests.position.max(made.1);
            if let Some(buckets) = digests.source.get_mut(&bound.table()) {
                made.0.iter().for_each(|digest| buckets.put(digest));
            }
            continue;
        }
        let Digests { source: buckets, refused, .. } = &mut digests;
        let scanned = scan_all(source, schema, |row| {
            *refused += expected.rows(bound, schema, row, &mut |table, key, row| {
                if let Some(buckets) = buckets.get_mut(&table) {
                    buckets.add(&key, Digest::hash(options.seed, &row));
                }
            });
        });
        let position = scanned.await.map_err(VerifyError::Source)?;
        digests.position = digests.position.max(position);
    }
    Ok(digests)
}

pub(crate) async fn digest_target<B: Inspect>(
    expected: &Expected<'_>,
    target: &mut B,
    options: &Options,
    digests: &mut Digests,
) -> Result<(), VerifyError> {
    for (table, side) in &expected.targets {
        if digests.in_place.contains(table) {
            let made = target.digest(&side.schema, options.digesting()).await.map_err(VerifyError::Target)?;
            if let Some(buckets) = digests.target.get_mut(table) {
                made.0.iter().for_each(|digest| buckets.put(digest));
            }
            continue;
        }
        let scanned = scan_all(target, &side.schema, |row| {
            if let (Some(key), Some(buckets)) = (expected.key(*table, &row), digests.target.get_mut(table)) {
                buckets.add(&key, Digest::hash(options.seed, &row));
            }
        });
        scanned.await.map_err(VerifyError::Target)?;
    }
    Ok(())
}
