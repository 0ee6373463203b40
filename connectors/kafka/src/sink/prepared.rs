//! A table of the target and the topics in which its rows are told: one, or one for each key version.

use super::{
    Layout,
    envelope::{Draft, Manner, Reason, Table},
    topics,
};
use crossfade_connector::{TargetTable, WriteMode};
use crossfade_event::{Change, Column, Identity, TableName, TableSchema};
use std::{ops::Range, sync::Arc};

/// What the names of the first version's columns begin with.
const FIRST: &str = "v1.";
/// What the names of the second version's columns begin with.
const SECOND: &str = "v2.";

/// Which of a table's columns a topic tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum View {
    /// All of them, under their names.
    All,
    /// The first key version.
    First,
    /// The second key version.
    Second,
    /// Both, as two parts of one record.
    Both,
}

impl View {
    /// As the headers call it.
    pub(super) fn version(self) -> Option<&'static str> {
        match self {
            Self::All => None,
            Self::First => Some("v1"),
            Self::Second => Some("v2"),
            Self::Both => Some("both"),
        }
    }
}

/// Columns that stand together in a record.
#[derive(Debug, Clone)]
pub(super) struct Group {
    /// The field that holds them; they are the record's own where there is none.
    pub(super) name: Option<&'static str>,
    pub(super) columns: Range<usize>,
    /// Those of the key, in its order.
    pub(super) key: Vec<usize>,
}

impl Group {
    fn new(schema: &TableSchema, name: Option<&'static str>, columns: Range<usize>) -> Self {
        let mut key = if schema.identity == Identity::Key { schema.key_columns() } else { Vec::new() };
        key.retain(|index| columns.contains(index));
        Self { name, columns, key }
    }
}

/// The groups of a table's columns in a topic.
pub(super) fn groups(target: &TargetTable, view: View) -> Vec<Group> {
    let schema = &target.schema;
    let all = 0..schema.columns.len();
    let second = match (&target.mode, view) {
        (WriteMode::Dual { second }, View::First | View::Second | View::Both) => *second,
        _ => return vec![Group::new(schema, None, all)],
    };
    let first = |name| Group::new(schema, name, 0..second);
    let second = |name| Group::new(schema, name, second..all.end);
    match view {
        View::First => vec![first(None)],
        View::Second => vec![second(None)],
        View::All | View::Both => vec![first(Some("v1")), second(Some("v2"))],
    }
}

/// A column as records call it.
pub(super) fn told_name(name: &str, view: View) -> &str {
    let stripped = match view {
        View::All => None,
        View::First | View::Second | View::Both => name.strip_prefix(FIRST).or_else(|| name.strip_prefix(SECOND)),
    };
    stripped.unwrap_or(name)
}

/// Whether a schema has both key versions in it.
pub(super) fn is_dual(schema: &TableSchema) -> Option<usize> {
    let second = schema.columns.iter().take_while(|column| column.name.starts_with(FIRST)).count();
    let rest = schema.columns.iter().skip(second);
    (second > 0 && second < schema.columns.len() && rest.clone().all(|column| column.name.starts_with(SECOND)))
        .then_some(second)
}

/// One key version of a schema that has both, by itself: its columns under their own names.
pub(super) fn half(schema: &TableSchema, second: usize, view: View) -> TableSchema {
    let of_first = schema.columns.iter().take(second).filter(|column| column.key.is_some()).count() as u16;
    let (first, rest) = schema.columns.split_at(second.min(schema.columns.len()));
    let columns = if view == View::First { first } else { rest };
    let own = |column: &Column| {
        let key = if view == View::First { column.key } else { column.key.map(|place| place - of_first) };
        Column { name: Arc::from(told_name(&column.name, view)), key, ..column.clone() }
    };
    TableSchema { name: told_table(&schema.name, view), columns: columns.iter().map(own).collect(), ..schema.clone() }
}

/// The table as the records of a topic call it.
pub(super) fn told_table(name: &TableName, view: View) -> TableName {
    match view {
        View::First => TableName::new(name.schema.clone(), format!("{}.v1", name.name)),
        View::Second => TableName::new(name.schema.clone(), format!("{}.v2", name.name)),
        View::All | View::Both => name.clone(),
    }
}

/// In which topics a table is told.
pub(super) fn views(mode: &WriteMode, layout: Layout) -> &'static [View] {
    match (mode, layout) {
        (WriteMode::Dual { .. }, Layout::TwoTopics) => &[View::First, View::Second],
        (WriteMode::Dual { .. }, Layout::OneRecord) => &[View::Both],
        _ => &[View::All],
    }
}

/// The names of a table's topics.
pub(super) fn topics_of(prefix: &str, name: &TableName, mode: &WriteMode, layout: Layout) -> Vec<(View, String)> {
    let of = |view: &View| (*view, topics::of_table(prefix, &told_table(name, *view)));
    views(mode, layout).iter().map(of).collect()
}

/// A table of the target, ready to be written.
#[derive(Debug, Clone)]
pub(super) struct Prepared {
    pub(super) schema: Arc<TableSchema>,
    pub(super) mode: WriteMode,
    pub(super) topics: Vec<Table>,
}

impl Prepared {
    /// With the number of partitions of each topic.
    pub(super) fn new(target: &TargetTable, manner: &Manner, partitions: impl Fn(&str) -> u32) -> Self {
        let topics = topics_of(&manner.prefix, &target.schema.name, &target.mode, manner.layout);
        let table = |(view, topic): (View, String)| {
            let count = partitions(&topic);
            Table::new(target, view, topic, count, manner)
        };
        let topics = topics.into_iter().map(table).collect();
        Self { schema: target.schema.clone(), mode: target.mode.clone(), topics }
    }

    /// The records of one change, by topic, in the order in which they are written: all of them, or the reason why not.
    pub(super) fn drafts(&self, change: &Change, is_copy: bool) -> Result<Vec<(&Table, Draft)>, Reason> {
        let all: Vec<Vec<Draft>> =
            self.topics.iter().map(|topic| topic.drafts(change, is_copy)).collect::<Result<_, _>>()?;
        // Each names the key that its row has in the other topic: what goes that of before, what comes that of now.
        let ends = |drafts: &[Draft]| {
            (drafts.first().and_then(|one| one.key.clone()), drafts.last().and_then(|one| one.key.clone()))
        };
        let keys: Vec<_> = all.iter().map(|drafts| ends(drafts)).collect();
        let mut out = Vec::new();
        for (index, (topic, drafts)) in self.topics.iter().zip(all).enumerate() {
            let other = (self.topics.len() == 2).then(|| keys.get(1 - index)).flatten();
            for mut draft in drafts {
                draft.other_key = other.and_then(|(before, now)| if draft.goes { before.clone() } else { now.clone() });
                out.push((topic, draft));
            }
        }
        Ok(out)
    }

    /// The same table under another schema.
    pub(super) fn under(&self, schema: Arc<TableSchema>) -> TargetTable {
        let mode = match (&self.mode, is_dual(&schema)) {
            (WriteMode::Dual { .. }, Some(second)) => WriteMode::Dual { second },
            _ => WriteMode::Table,
        };
        let def = crossfade_event::catalog::TableDef::plain(schema.name.clone(), schema.identity, Vec::new(), None);
        TargetTable { schema, def, mode }
    }
}
