//! One table of the target: its statements, and how it is made.

use crate::{
    client::{list, literal, of_table, quoted},
    inspect::{
        ddl,
        shape::{Affinity, TableShape},
    },
};
use crossfade_connector::{TargetTable, WriteMode};
use crossfade_event::{
    Identity, TableId, TableSchema,
    catalog::{Catalog, ColumnDef, Dialect, ForeignKeyDef, IndexDef, TableDef},
};
use std::sync::Arc;

/// A table as the sink writes it.
#[derive(Debug, Clone)]
pub(super) struct Table {
    pub(super) target: TargetTable,
    pub(super) schema: Arc<TableSchema>,
    pub(super) key: Vec<usize>,
    /// Whether the migration made it. Rows of a table that it did not make are saved before they are overwritten.
    pub(super) ours: bool,
    /// A row that gets another key is moved, with what its other columns hold.
    pub(super) moves: bool,
    pub(super) sql: Sql,
}

/// The statements of a table; prepared once and kept by the connection.
#[derive(Debug, Clone, Default)]
pub(super) struct Sql {
    pub(super) insert: String,
    pub(super) insert_new: String,
    pub(super) upsert: String,
    pub(super) delete: String,
    pub(super) select: String,
    pub(super) shadow: String,
    pub(super) truncate: String,
}

impl Table {
    pub(super) fn new(target: TargetTable, ours: bool) -> Self {
        let schema = target.schema.clone();
        let key = if schema.identity == Identity::Key { schema.key_columns() } else { Vec::new() };
        let sql = statements(&target, &key);
        Self { target, schema, key, ours, moves: false, sql }
    }

    pub(super) fn id(&self) -> TableId {
        self.schema.id
    }

    pub(super) fn name(&self) -> &str {
        &self.schema.name.name
    }

    /// The columns that we write.
    pub(super) fn written(&self) -> Vec<usize> {
        match &self.target.mode {
            WriteMode::Columns { columns } => columns.clone(),
            _ => (0..self.schema.columns.len()).collect(),
        }
    }

    fn column(&self, index: usize) -> String {
        self.schema.columns.get(index).map(|column| quoted(&column.name)).unwrap_or_default()
    }

    /// An update of some columns by the key: `?1…` the columns, then the key.
    pub(super) fn partial_update(&self, columns: &[usize]) -> String {
        let set: Vec<String> =
            columns.iter().enumerate().map(|(n, index)| format!("{} = ?{}", self.column(*index), n + 1)).collect();
        format!("UPDATE {} SET {} WHERE {}", quoted(self.name()), set.join(", "), self.by_key(columns.len()))
    }

    fn by_key(&self, offset: usize) -> String {
        by_key(&self.schema, &self.key, offset)
    }

    /// One row that is equal to the whole image in every byte: how rows without a key are found.
    pub(super) fn delete_equal(&self) -> String {
        let same: Vec<String> = self
            .schema
            .columns
            .iter()
            .enumerate()
            .map(|(n, column)| {
                let (name, mark) = (of_table(self.name(), &column.name), n + 1);
                match Affinity::of(&column.type_.name, false) {
                    Affinity::Blob => {
                        format!("({name} IS ?{mark} COLLATE BINARY AND typeof({name}) = typeof(?{mark}))")
                    }
                    _ => format!("{name} IS ?{mark} COLLATE BINARY"),
                }
            })
            .collect();
        let (table, rowid) = (quoted(self.name()), self.rowid());
        format!(
            "DELETE FROM {table} WHERE {rowid} = (SELECT {rowid} FROM {table} WHERE {} LIMIT 1)",
            same.join(" AND ")
        )
    }

    fn rowid(&self) -> &'static str {
        ["rowid", "_rowid_", "oid"]
            .into_iter()
            .find(|alias| !self.schema.columns.iter().any(|column| column.name.eq_ignore_ascii_case(alias)))
            .unwrap_or("rowid")
    }
}

fn by_key(schema: &TableSchema, key: &[usize], offset: usize) -> String {
    key.iter()
        .enumerate()
        .filter_map(|(n, index)| Some((n, schema.columns.get(*index)?)))
        .map(|(n, column)| format!("{} = ?{}", of_table(&schema.name.name, &column.name), offset + n + 1))
        .collect::<Vec<_>>()
        .join(" AND ")
}

fn read(schema: &TableSchema) -> String {
    let columns = schema.columns.iter().map(|column| of_table(&schema.name.name, &column.name));
    columns.collect::<Vec<_>>().join(", ")
}

fn statements(target: &TargetTable, key: &[usize]) -> Sql {
    let schema = &target.schema;
    let table = quoted(&schema.name.name);
    let names = list(schema.columns.iter().map(|column| &column.name));
    let marks = (1..=schema.columns.len()).map(|n| format!("?{n}")).collect::<Vec<_>>().join(", ");
    let plain = format!("INSERT INTO {table} ({names}) VALUES ({marks})");
    let keys = list(key.iter().filter_map(|index| schema.columns.get(*index)).map(|column| &column.name));
    let set: Vec<String> = schema
        .columns
        .iter()
        .filter(|column| column.key.is_none() || collates(&target.def, &column.name))
        .map(|column| format!("{0} = excluded.{0}", quoted(&column.name)))
        .collect();
    let keyed = !key.is_empty();
    let ignore = format!("{plain} ON CONFLICT ({keys}) DO NOTHING");
    let upsert = match (keyed, set.is_empty()) {
        (false, _) => plain.clone(),
        (true, true) => ignore.clone(),
        (true, false) => format!("{plain} ON CONFLICT ({keys}) DO UPDATE SET {}", set.join(", ")),
    };
    let shadow = match &target.mode {
        WriteMode::Columns { columns } => {
            let set: Vec<String> = columns
                .iter()
                .enumerate()
                .filter_map(|(n, index)| Some(format!("{} = ?{}", quoted(&schema.columns.get(*index)?.name), n + 1)))
                .collect();
            format!("UPDATE {table} SET {} WHERE {}", set.join(", "), by_key(schema, key, columns.len()))
        }
        _ => String::new(),
    };
    Sql {
        insert: if keyed { ignore } else { plain.clone() },
        insert_new: plain,
        upsert,
        delete: format!("DELETE FROM {table} WHERE {}", by_key(schema, key, 0)),
        select: format!("SELECT {} FROM {table} WHERE {}", read(schema), by_key(schema, key, 0)),
        shadow,
        truncate: format!("DELETE FROM {table}"),
    }
}

/// What keeps a table that somebody else made from holding our rows as they are, and the remedy.
pub(super) fn misfit(target: &TargetTable, shape: &TableShape) -> Option<(String, String)> {
    let (schema, table) = (&target.schema, quoted(&target.schema.name.name));
    let is_written = |index: usize| match &target.mode {
        WriteMode::Columns { columns } => columns.contains(&index),
        _ => true,
    };
    for (index, column) in schema.columns.iter().enumerate() {
        let Some(have) = shape.columns.iter().find(|have| have.name.eq_ignore_ascii_case(&column.name)) else {
            let remedy = format!("ALTER TABLE {table} ADD COLUMN {} {}", quoted(&column.name), column.type_.name);
            return Some((format!("it has no column {}", column.name), remedy));
        };
        let wanted = Affinity::of(&column.type_.name, false);
        if is_written(index) && !have.affinity.keeps(wanted) {
            return Some((
                format!("its column {} is declared {}, and SQLite would convert values", column.name, have.declared),
                format!(
                    "declare {} as {}, or give the target another name",
                    column.name,
                    shown_type(&column.type_.name)
                ),
            ));
        }
    }
    let key: Vec<&str> =
        schema.key_columns().into_iter().filter_map(|at| schema.columns.get(at)).map(|column| &*column.name).collect();
    let finds_rows = matches!(target.mode, WriteMode::Columns { .. }) || shape.is_unique(&key);
    (!finds_rows).then(|| {
        (
            format!("nothing keeps ({}) unique, by which our rows are found", key.join(", ")),
            format!("CREATE UNIQUE INDEX {} ON {table} ({})", quoted(&format!("{}_key", schema.name.name)), list(&key)),
        )
    })
}

fn shown_type(declared: &str) -> &str {
    if declared.is_empty() { "BLOB" } else { declared }
}

/// Whether a column compares by another collation than byte by byte.
fn collates(def: &TableDef, column: &str) -> bool {
    def.column(column).and_then(|def| def.collation.as_deref()).is_some_and(|name| !name.eq_ignore_ascii_case("BINARY"))
}

/// The statement that makes a table, without its secondary indexes.
pub(super) fn create(target: &TargetTable, support: &Catalog) -> String {
    let (schema, def) = (&target.schema, &target.def);
    let own_words = support.dialect == Dialect::Sqlite;
    let key = def.primary_key.as_ref().map(|key| key.columns.as_slice()).unwrap_or_default();
    let rowid_key = match key {
        [only] => schema
            .columns
            .iter()
            .any(|column| *column.name == **only && column.type_.name.eq_ignore_ascii_case("INTEGER")),
        _ => false,
    };
    let mut parts: Vec<String> = def
        .columns
        .iter()
        .filter_map(|column| {
            column_definition(target, column, own_words, rowid_key && key.contains(&column.column.name.to_string()))
        })
        .collect();
    if !key.is_empty() && !rowid_key {
        parts.push(format!("PRIMARY KEY ({})", list(key)));
    }
    if own_words {
        parts.extend(
            def.checks.iter().map(|check| format!("CONSTRAINT {} CHECK ({})", quoted(&check.name), check.expression)),
        );
    }
    parts.extend(def.foreign_keys.iter().map(foreign_key));
    format!("CREATE TABLE {} (\n  {}\n)", quoted(&schema.name.name), parts.join(",\n  "))
}

fn column_definition(target: &TargetTable, def: &ColumnDef, own_words: bool, rowid_key: bool) -> Option<String> {
    let name = &def.column.name;
    let carried = target.schema.columns.iter().find(|column| column.name == *name);
    let mut sql = quoted(name);
    let type_ = carried.map_or(&*def.column.type_.name, |column| &*column.type_.name);
    if !type_.is_empty() {
        sql.push(' ');
        sql.push_str(type_);
    }
    if let Some(expression) = &def.generated {
        // Another system's expression is not ours to guess; the plan says that such a column is left out.
        return own_words.then(|| format!("{sql} GENERATED ALWAYS AS ({expression})"));
    }
    // The mapping has a column that rows do not carry, for the target fills it; it was planned in SQLite's own words.
    let ours = target.mode == WriteMode::InsertOnce;
    let own_words = own_words || ours;
    let column = carried.or(ours.then_some(&def.column))?;
    if rowid_key {
        sql.push_str(if def.sequence.is_some() { " PRIMARY KEY AUTOINCREMENT" } else { " PRIMARY KEY" });
        return Some(sql);
    }
    if !column.nullable {
        sql.push_str(" NOT NULL");
    }
    if let Some(default) = def.default.as_deref().and_then(|default| default_words(default, own_words)) {
        sql.push_str(&format!(" DEFAULT ({default})"));
    }
    if let Some(collation) = def.collation.as_deref().filter(|_| own_words) {
        sql.push_str(&format!(" COLLATE {}", quoted(collation)));
    }
    Some(sql)
}

/// A default in SQLite's words; of another system's only plain constants mean the same here.
fn default_words(default: &str, own_words: bool) -> Option<String> {
    if own_words {
        return Some(default.to_owned());
    }
    let constant = ddl::without_cast(default);
    let number = constant.parse::<f64>().is_ok_and(f64::is_finite);
    let text = ddl::is_string(constant);
    let word = ["true", "false", "null", "current_date", "current_timestamp"]
        .iter()
        .any(|word| constant.eq_ignore_ascii_case(word));
    (number || text || word).then(|| constant.to_owned())
}

fn foreign_key(key: &ForeignKeyDef) -> String {
    let sql = format!(
        "CONSTRAINT {} FOREIGN KEY ({}) REFERENCES {} ({}) {}",
        quoted(&key.name),
        list(&key.columns),
        quoted(&key.references.name),
        list(&key.referenced_columns),
        key.suffix.replace("NOT VALID", "")
    );
    sql.trim_end().to_owned()
}

/// An index that is held back until the load is done.
#[derive(Debug, Clone)]
pub(super) struct Index {
    pub(super) name: String,
    pub(super) unique: bool,
    definition: String,
}

impl Index {
    /// The name that it gets where another table's index has its own: in SQLite all indexes of a file share their names.
    pub(super) fn other_name(&self, table: &str) -> String {
        format!("{table}_{}", self.name)
    }

    /// The statement that makes it under a name.
    pub(super) fn sql(&self, name: &str, table: &str) -> String {
        let unique = if self.unique { "UNIQUE " } else { "" };
        let (name, table) = (quoted(name), quoted(table));
        format!("CREATE {unique}INDEX IF NOT EXISTS {name} ON {table} {}", self.definition)
    }
}

/// The indexes that are held back until the load is done.
pub(super) fn indexes(target: &TargetTable, dialect: Dialect) -> Vec<Index> {
    let def = &target.def;
    let uniques = def.uniques.iter().map(|key| Index {
        name: key.name.clone(),
        unique: true,
        definition: format!("({})", list(&key.columns)),
    });
    let others = def.indexes.iter().filter_map(|index| {
        let definition = index_words(index, dialect)?;
        Some(Index { name: index.name.clone(), unique: index.unique, definition })
    });
    uniques.chain(others).collect()
}

fn index_words(index: &IndexDef, dialect: Dialect) -> Option<String> {
    match dialect {
        Dialect::Sqlite => Some(index.definition.clone()),
        // Of another system's indexes, those over plain columns mean the same here; a predicate may not.
        Dialect::Postgres if index.plain && !index.definition.contains(" WHERE ") => {
            Some(format!("({})", list(&index.columns)))
        }
        Dialect::Postgres => None,
    }
}

/// The unique index without which a row cannot be found by its key, where the primary key is another one or none.
pub(super) fn key_index(target: &TargetTable) -> Option<String> {
    let schema = &target.schema;
    if schema.identity != Identity::Key {
        return None;
    }
    let columns = schema.key_columns().into_iter().filter_map(|index| schema.columns.get(index));
    let key: Vec<&str> = columns.map(|column| &*column.name).collect();
    let primary = target.def.primary_key.as_ref().map(|key| key.columns.as_slice()).unwrap_or_default();
    if key.is_empty() || primary == key.as_slice() {
        return None;
    }
    let table = &*schema.name.name;
    let name = quoted(&format!("_crossfade_key_{table}"));
    Some(format!("CREATE UNIQUE INDEX IF NOT EXISTS {name} ON {} ({})", quoted(table), list(&key)))
}

/// Room between the last number that a counter gave out in the source and the first that it gives out here.
const COUNTER_MARGIN: i64 = 10_000;

/// The statements that set the counters of a table's AUTOINCREMENT column, never backwards.
pub(crate) fn counters(target: &TargetTable, support: &Catalog) -> Vec<String> {
    let name = literal(&target.schema.name.name);
    let of = |column: &ColumnDef| {
        let fed = support.sequences.iter().filter(|sequence| Some(&sequence.name) == column.sequence.as_ref());
        fed.filter_map(|sequence| sequence.last_value).max()
    };
    let last = target.def.columns.iter().filter_map(of).map(|last| last.saturating_add(COUNTER_MARGIN));
    last.flat_map(|last| {
        [
            format!("UPDATE sqlite_sequence SET seq = max(seq, {last}) WHERE name = {name}"),
            format!(
                "INSERT INTO sqlite_sequence (name, seq) SELECT {name}, {last} \
                 WHERE NOT EXISTS (SELECT 1 FROM sqlite_sequence WHERE name = {name})"
            ),
        ]
    })
    .collect()
}
