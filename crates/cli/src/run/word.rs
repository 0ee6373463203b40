//! What a sink's database says of the migration that it is a copy of: how far it has come, and of which tables that is
//! said. A copy beside those tables is not among them.

use crate::{
    error::CliError,
    registry::AnySink,
    spec::{SinkSpec, Spec},
    wiring,
};
use crossfade_connector::{Progress, Quarantine, QuarantineFilter, QuarantinedChange, Sink, Target};
use crossfade_event::{
    Cell, Column, ColumnType, Format, Identity, Logical, SchemaVersion, TableId, TableName, TableSchema, Value, codec,
};
use crossfade_verify::scan_rows;
use std::{collections::BTreeSet, ops::ControlFlow};

/// What stands in the sink's database of the migration that it is a copy of.
pub(super) struct Word {
    pub(super) progress: Progress,
    /// Changes in quarantine.
    pub(super) held: Vec<QuarantinedChange>,
    /// The tables that it speaks of.
    tables: BTreeSet<TableName>,
}

impl Word {
    /// Whether it speaks of all these tables, and not of others that they were copied from.
    pub(super) fn is_of(&self, target: &Target) -> bool {
        target.tables.iter().all(|table| self.tables.contains(&table.schema.name))
    }
}

/// Reads it; `None` where nothing stands of that migration.
pub(super) async fn own_word(from: &Spec, into: &Spec) -> Result<Option<Word>, CliError> {
    let mut as_copied = into.clone();
    as_copied.name = from.name.clone();
    let mut copied = AnySink::for_looking(&as_copied)?;
    let Some(progress) = copied.progress().await? else { return Ok(None) };
    let held = copied.list(&QuarantineFilter::default()).await?;
    Ok(Some(Word { progress, held, tables: noted_tables(from, into).await? }))
}

/// The tables that `from` noted in the sink's database as made or taken over by it.
async fn noted_tables(from: &Spec, into: &Spec) -> Result<BTreeSet<TableName>, CliError> {
    let (notes, format, columns) = match &into.sink {
        SinkSpec::Postgres(_) => {
            (TableName::new("crossfade", "objects"), Format::PgBinary, &["migration", "kind", "name", "schema"][..])
        }
        SinkSpec::Sqlite(_) => {
            (TableName::new("main", "_crossfade_objects"), Format::Tagged, &["migration", "kind", "name"][..])
        }
        SinkSpec::Kafka(_) => return Err(CliError::not_built("a copy of topics as the base of a replay")),
    };
    let type_ = ColumnType { name: "text".into(), native_id: 25, logical: Logical::Text, format };
    let column = |name: &&str| Column {
        name: (*name).into(),
        type_: type_.clone(),
        key: None,
        nullable: false,
        native_id: 0,
        default: None,
    };
    let schema = TableSchema {
        id: TableId(1),
        version: SchemaVersion(1),
        name: notes,
        columns: columns.iter().map(column).collect(),
        identity: Identity::FullRow,
        native_id: 0,
    };
    let mut tables = BTreeSet::new();
    let mut inspect = wiring::sink_inspect(into)?;
    scan_rows(&mut inspect, &schema, |row| {
        let words: Vec<String> = row.cells().filter_map(|cell| text_of(&type_, cell)).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        if let [migration, "table" | "rows" | "column" | "existing", name, schema @ ..] = words.as_slice()
            && *migration == from.name.as_str()
        {
            tables.insert(TableName::new(schema.first().copied().unwrap_or("main"), *name));
        }
        ControlFlow::Continue(())
    })
    .await?;
    Ok(tables)
}

fn text_of(type_: &ColumnType, cell: Cell<'_>) -> Option<String> {
    match cell {
        Cell::Bytes(bytes) => match codec::decode(type_, bytes) {
            Ok(Value::Text(text)) => Some(text),
            _ => None,
        },
        _ => None,
    }
}
