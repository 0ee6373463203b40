//! Which transform a row takes, and what the target looks like: the plan, followed through the schemas that travel in
//! the log.
//!
//! The plan is made from the catalog as it was when the migration was planned, then *followed*: every later schema in
//! the stream changes the catalog, and with it the plan and the target. The target always has the newest shape that
//! was followed; rows written under an older schema are laid out in the newer one before they are transformed.

use crate::{PipelineError, evolve::evolve_catalog, made, views::Scratch};
use bytes::Bytes;
use crossfade_connector::{Target, TargetTable, WriteMode};
use crossfade_event::{
    Cell, Change, Column, Op, Row, SchemaVersion, TableId, TableName, TableSchema,
    catalog::{Catalog, ColumnDef, Dialect, TableDef},
};
use crossfade_log::EventLog;
use crossfade_transform::{Bound, Plan, PlanOptions, PlannedTable, Rules, Writing, default_cell, plan};
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

/// What is needed to route rows; cheap to clone, so that every restart of a loop begins afresh.
#[derive(Debug, Clone)]
pub struct Routes {
    rules: Arc<Rules>,
    options: Arc<PlanOptions>,
    catalog: Catalog,
    plan: Arc<Plan>,
    target: Target,
    followed: BTreeMap<TableId, Arc<TableSchema>>,
    /// Tells the shapes followed so far from all others.
    shapes: u64,
    bound: HashMap<(TableId, SchemaVersion), Arc<Route>>,
    scratch: Scratch,
}

/// The way of one source table's rows under one schema.
#[derive(Debug)]
pub(crate) struct Route {
    pub(crate) schema: Arc<TableSchema>,
    pub(crate) bound: Bound,
    layout: Option<Vec<Place>>,
}

/// Where a cell of the newer layout comes from.
#[derive(Debug)]
enum Place {
    /// The cell that stands there in the older one.
    Cell(usize),
    /// The column came later: rows from before read this constant in it, or NULL.
    Later(Option<Bytes>),
}

impl Route {
    /// The target table that takes the rows byte for byte, if there is one.
    pub(crate) fn passthrough(&self) -> Option<TableId> {
        if self.layout.is_some() { None } else { self.bound.passthrough() }
    }

    /// The change in the layout of the schema that the route is bound to.
    pub(crate) fn laid_out(&self, change: &Change) -> Option<Change> {
        let layout = self.layout.as_ref()?;
        let arrange = |row: &Row, later: Option<Cell<'static>>| -> Row {
            let cells: Vec<Cell<'_>> = row.cells().collect();
            let cell = |place| match (place, later) {
                (&Place::Cell(index), _) => cells.get(index).copied().unwrap_or(Cell::Absent),
                (Place::Later(_), Some(cell)) => cell,
                (Place::Later(constant), None) => constant.as_deref().map_or(Cell::Null, Cell::Bytes),
            };
            layout.iter().map(cell).collect()
        };
        // An update leaves the column what it is; a row that comes reads in it what all rows from before read.
        let later = (change.op != Op::Insert).then_some(Cell::Unchanged);
        Some(Change {
            old: change.old.as_ref().map(|row| arrange(row, Some(Cell::Absent))),
            new: change.new.as_ref().map(|row| arrange(row, later)),
            schema: self.schema.version,
            ..*change
        })
    }
}

/// What a sink must do before rows of a newer schema come.
#[derive(Debug, Clone)]
pub(crate) enum Follow {
    /// A table is new: prepare the whole target again.
    Prepare(Target),
    /// Tables changed their shape.
    Alter(Vec<(TargetTable, TargetTable)>),
}

impl Routes {
    /// Plans.
    ///
    /// # Errors
    /// What [`plan`] refuses.
    pub fn new(
        catalog: Catalog,
        rules: Arc<Rules>,
        options: Arc<PlanOptions>,
        migration: &str,
        epoch: u64,
        into_existing: bool,
    ) -> Result<Self, PipelineError> {
        let plan = Arc::new(plan(&catalog, &rules, &options)?);
        let target = target_of(&plan, migration, epoch, into_existing);
        Ok(Self {
            rules,
            options,
            catalog,
            plan,
            target,
            followed: BTreeMap::new(),
            shapes: made::shapes(&[]),
            bound: HashMap::new(),
            scratch: Scratch::default(),
        })
    }

    /// Says where rows that are looked up may go when they are too many for memory; the system's folder for passing
    /// files unless said.
    #[must_use]
    pub fn with_scratch(self, scratch: Scratch) -> Self {
        Self { scratch, ..self }
    }

    /// Lets the sink write tables that hold somebody else's rows.
    #[must_use]
    pub fn into_existing(mut self) -> Self {
        self.target.into_existing = true;
        self
    }

    /// The same for who writes the sink under another epoch.
    #[must_use]
    pub fn with_epoch(mut self, epoch: u64) -> Self {
        self.target.epoch = epoch;
        self
    }

    /// Why several who deliver cannot share the stream, whatever it brings; `None` where they can.
    pub fn keeps_alone(&self) -> Option<String> {
        self.plan.keeps_alone(&self.catalog)
    }

    pub(crate) fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    /// The source's words.
    pub(crate) fn dialect(&self) -> Dialect {
        self.catalog.dialect
    }

    /// What the sink must make and know.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// True where applications write the same tables: nothing of theirs should be locked for long.
    pub fn writes_beside_others(&self) -> bool {
        self.target.tables.iter().any(|table| matches!(table.mode, WriteMode::Columns { .. }))
    }

    /// The plan as followed so far.
    pub fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }

    /// Which schemas the target's shape follows.
    pub fn followed(&self) -> Vec<(TableId, SchemaVersion)> {
        self.followed.iter().map(|(table, schema)| (*table, schema.version)).collect()
    }

    /// A number that two have in common who followed the same, with the same program.
    pub(crate) fn shapes(&self) -> u64 {
        self.shapes
    }

    /// Follows what a sink says it has followed already, without telling it again.
    ///
    /// # Errors
    /// When the log does not know one of the schemas.
    pub fn restore<L: EventLog>(
        &mut self,
        log: &L,
        followed: &[(TableId, SchemaVersion)],
    ) -> Result<(), PipelineError> {
        for (table, version) in followed {
            let schema = log.schema(*table, *version).ok_or_else(|| {
                PipelineError::Refused(format!(
                    "the sink follows schema {} of table {}, which this log does not know: it was filled from another log. Give the migration its own folder back, or wipe the target with `crossfade rollback --wipe`",
                    version.0, table.0
                ))
            })?;
            self.follow(&schema)?;
        }
        Ok(())
    }

    /// True when rows of this schema need no change of the target.
    pub(crate) fn follows(&self, schema: &TableSchema) -> bool {
        self.followed.get(&schema.id).is_some_and(|followed| followed.version >= schema.version)
    }

    /// Follows a schema. `None` when the target does not change.
    pub(crate) fn follow(&mut self, schema: &Arc<TableSchema>) -> Result<Option<Follow>, PipelineError> {
        if self.follows(schema) {
            return Ok(None);
        }
        let schema = &self.without_shadows(schema);
        let known = self.catalog.table(&schema.name).is_some()
            || self.catalog.tables.iter().any(|table| schema.native_id != 0 && table.native_id == schema.native_id);
        let first = !self.followed.contains_key(&schema.id);
        let mut catalog = self.catalog.clone();
        evolve_catalog(&mut catalog, schema);
        self.followed.insert(schema.id, schema.clone());
        self.shapes = made::shapes(&self.followed());
        self.bound.retain(|(table, _), _| *table != schema.id);
        if catalog == self.catalog {
            return Ok(None);
        }
        let plan = Arc::new(plan(&catalog, &self.rules, &self.options)?);
        check_added(&self.catalog, &catalog, &plan, schema)?;
        let target = target_of(&plan, &self.target.migration, self.target.epoch, self.target.into_existing);
        let before = std::mem::replace(&mut self.target, target.clone());
        self.plan = plan;
        self.catalog = catalog;
        self.bound.clear();
        // The first schema of a table only says more exactly what was planned (how its cells are written): nothing is
        // to be altered, unless somebody altered the table between the plan and the first row.
        if !known || (first && same_columns(&before, &target)) {
            return Ok(Some(Follow::Prepare(target)));
        }
        let changed: Vec<(TargetTable, TargetTable)> = before
            .tables
            .into_iter()
            .filter_map(|old| {
                let new = target.tables.iter().find(|new| new.schema.id == old.schema.id)?;
                (new.schema.columns != old.schema.columns || new.def != old.def).then(|| (old, new.clone()))
            })
            .collect();
        Ok((!changed.is_empty()).then_some(Follow::Alter(changed)))
    }

    /// The schema without the columns that we made beside the source's own: those are no part of what the rules speak of.
    fn without_shadows(&self, schema: &Arc<TableSchema>) -> Arc<TableSchema> {
        let planned = self.catalog.table(&schema.name);
        let target = self.target.tables.iter().find(|table| table.schema.name == schema.name);
        let Some((target, WriteMode::Columns { columns })) = target.map(|table| (table, &table.mode)) else {
            return schema.clone();
        };
        let is_ours = |name: &str| {
            columns.iter().any(|at| target.schema.columns.get(*at).is_some_and(|column| &*column.name == name))
                && planned.is_some_and(|table| table.columns.iter().all(|def| &*def.column.name != name))
        };
        let columns = schema.columns.iter().filter(|column| !is_ours(&column.name)).cloned().collect();
        Arc::new(TableSchema { columns, ..(**schema).clone() })
    }

    /// The way of rows written under `schema`.
    pub(crate) fn route(&mut self, schema: &Arc<TableSchema>) -> Result<Arc<Route>, PipelineError> {
        let key = (schema.id, schema.version);
        if let Some(route) = self.bound.get(&key) {
            return Ok(route.clone());
        }
        let newest = self.followed.get(&schema.id).cloned().unwrap_or_else(|| schema.clone());
        let layout = match newest.columns == schema.columns {
            true => None,
            false => Some(self.layout(&schema.columns, &newest)?),
        };
        let planned_name = self.planned_name(&newest);
        let as_planned = if planned_name == newest.name {
            newest.clone()
        } else {
            Arc::new(TableSchema { name: planned_name, ..(*newest).clone() })
        };
        let route = Arc::new(Route { bound: self.plan.bind(&as_planned)?, schema: newest, layout });
        self.bound.insert(key, route.clone());
        Ok(route)
    }

    /// For each column of `to`, where it stands in `from`, or what rows from before it read in it.
    fn layout(&self, from: &[Column], to: &TableSchema) -> Result<Vec<Place>, PipelineError> {
        let place = |wanted: &Column| {
            if let Some(at) = from.iter().position(|have| have.is_same(wanted)) {
                return Ok(Place::Cell(at));
            }
            default_cell(self.catalog.dialect, wanted).map(Place::Later).ok_or_else(|| {
                PipelineError::Refused(format!(
                    "rows of {} from before its column \"{}\" cannot be given what they read in it: its default is no constant that can be read. Take the table in anew: exclude it, run, and add it again with `crossfade resume --add`",
                    to.name, wanted.name
                ))
            })
        };
        to.columns.iter().map(place).collect()
    }

    /// A table renamed in the source keeps the name under which it was planned.
    fn planned_name(&self, schema: &TableSchema) -> TableName {
        if self.catalog.table(&schema.name).is_some() || schema.native_id == 0 {
            return schema.name.clone();
        }
        self.catalog
            .tables
            .iter()
            .find(|table| table.native_id == schema.native_id)
            .map_or_else(|| schema.name.clone(), |table| table.name.clone())
    }
}

/// Refuses columns that came with a constant which the rows in the target cannot be given.
fn check_added(before: &Catalog, after: &Catalog, plan: &Plan, schema: &TableSchema) -> Result<(), PipelineError> {
    let is_meant =
        |table: &&TableDef| table.name == schema.name || (schema.native_id != 0 && table.native_id == schema.native_id);
    let (Some(old), Some(new)) = (before.tables.iter().find(is_meant), after.tables.iter().find(is_meant)) else {
        return Ok(());
    };
    let was_there = |def: &ColumnDef| {
        let number = def.column.native_id;
        old.columns
            .iter()
            .any(|have| if number != 0 { have.column.native_id == number } else { have.column.name == def.column.name })
    };
    for def in new.columns.iter().filter(|def| !was_there(def)) {
        if let Some(why) = plan.unsaid_default(&new.name, &def.column.name) {
            return Err(PipelineError::Refused(format!(
                "{} has a new column \"{}\" whose default the rows in the target cannot be given: {why}. Take the table in anew: exclude it, run, and add it again with `crossfade resume --add`",
                new.name, def.column.name
            )));
        }
    }
    Ok(())
}

/// Whether two targets have the same tables with the same columns, by name.
fn same_columns(before: &Target, after: &Target) -> bool {
    let names = |target: &Target| -> Vec<(TableId, Vec<String>)> {
        let columns = |table: &TargetTable| table.schema.columns.iter().map(|column| column.name.to_string()).collect();
        target.tables.iter().map(|table| (table.schema.id, columns(table))).collect()
    };
    names(before) == names(after)
}

fn target_of(plan: &Plan, migration: &str, epoch: u64, into_existing: bool) -> Target {
    Target {
        migration: migration.to_owned(),
        epoch,
        tables: plan.tables().iter().map(target_table).collect(),
        support: plan.support().clone(),
        into_existing,
    }
}

fn target_table(planned: &PlannedTable) -> TargetTable {
    TargetTable {
        schema: planned.schema.clone(),
        def: planned.def.clone(),
        mode: match &planned.write {
            Writing::Table => WriteMode::Table,
            Writing::Columns { columns } => WriteMode::Columns { columns: columns.clone() },
            Writing::InsertOnce => WriteMode::InsertOnce,
            Writing::Dual { second } => WriteMode::Dual { second: *second },
        },
    }
}
