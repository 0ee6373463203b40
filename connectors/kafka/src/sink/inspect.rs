//! Asks the sink's topics: what their records amount to, as rows in the target's formats.

use super::{
    Layout, SinkConfig,
    prepared::{View, half, is_dual},
};
use crate::{
    DebeziumInspect,
    source::{Versions, types},
};
use crossfade_connector::{Failure, Inspect, RowPage};
use crossfade_event::{
    Cell, Column, ColumnType, Format, Key, Position, Row, RowBuilder, TableName, TableSchema, catalog::Catalog, codec,
};

/// Asks the topics that a sink wrote. A look at a table reads its topic from its beginning.
#[derive(Debug)]
pub struct KafkaSinkInspect {
    topics: DebeziumInspect,
    columns: Vec<Column>,
    layout: Layout,
}

impl KafkaSinkInspect {
    /// Nothing is asked yet.
    pub fn new(config: &SinkConfig) -> Self {
        Self { topics: DebeziumInspect::new(config.as_source(), None), columns: Vec::new(), layout: config.layout }
    }

    async fn begin(&mut self, schema: &TableSchema) -> Result<(), Failure> {
        self.columns.clone_from(&schema.columns);
        let text = as_text(schema);
        match (is_dual(schema), self.layout) {
            (None, _) => self.topics.scan(&text).await.map(drop),
            (Some(_), Layout::OneRecord) => self.topics.scan_versions(Versions::InOne(text)).await,
            (Some(second), Layout::TwoTopics) => {
                let (first, second) = (half(&text, second, View::First), half(&text, second, View::Second));
                self.topics.scan_versions(Versions::InTwo(first, second)).await
            }
        }
    }

    fn rows(&self, rows: Vec<Row>) -> Result<Vec<Row>, Failure> {
        rows.into_iter().map(|row| in_formats(&self.columns, &row)).collect()
    }
}

/// The table with all its cells as texts, as topics have them.
fn as_text(schema: &TableSchema) -> TableSchema {
    let mut schema = schema.clone();
    for column in &mut schema.columns {
        column.type_.format = Format::PgText;
        // As the columns were written: by their types' names alone.
        column.type_.logical = types::logical(&column.type_.name);
    }
    schema
}

fn in_formats(columns: &[Column], row: &Row) -> Result<Row, Failure> {
    let mut out = RowBuilder::with_capacity(columns.len(), row.as_bytes().len());
    for (column, cell) in columns.iter().zip(row.cells()) {
        match cell {
            Cell::Bytes(text) if column.type_.format != Format::PgText => {
                out.push(Cell::Bytes(&in_format(&column.type_, text).ok_or_else(|| {
                    let what =
                        format!("a value of the column {} is none of its type {}", column.name, column.type_.name);
                    Failure::halt("reading the sink's topics", what, "Look whether somebody else writes to them")
                })?));
            }
            cell => out.push(cell),
        }
    }
    Ok(out.finish())
}

fn in_format(type_: &ColumnType, text: &[u8]) -> Option<bytes::BytesMut> {
    let text = std::str::from_utf8(text).ok()?;
    let mut out = bytes::BytesMut::new();
    codec::encode(type_, &codec::from_text(type_.logical, text)?, &mut out).ok()?;
    Some(out)
}

impl Inspect for KafkaSinkInspect {
    async fn catalog(&mut self, patterns: &[String]) -> Result<Catalog, Failure> {
        self.topics.catalog(patterns).await
    }

    async fn scan(&mut self, schema: &TableSchema) -> Result<Option<Position>, Failure> {
        self.begin(schema).await?;
        // The position of the topics is none of the source's.
        Ok(None)
    }

    async fn scan_next(&mut self) -> Result<RowPage, Failure> {
        let rows = self.topics.scan_next().await?;
        self.rows(rows)
    }

    async fn fetch(&mut self, schema: &TableSchema, keys: &[Key]) -> Result<(Vec<Row>, Option<Position>), Failure> {
        // All rows are read: the keys are written in the target's formats, and those of the topics are texts.
        self.begin(schema).await?;
        let mut found = Vec::new();
        loop {
            let page = self.topics.scan_next().await?;
            if page.is_empty() {
                return Ok((found, None));
            }
            let page = self.rows(page)?;
            found.extend(page.into_iter().filter(|row| schema.key_of(row).is_some_and(|key| keys.contains(&key))));
        }
    }

    async fn barrier(&mut self) -> Result<Option<Position>, Failure> {
        Ok(None)
    }

    async fn count(&mut self, table: &TableName) -> Result<u64, Failure> {
        self.topics.count(table).await
    }
}
