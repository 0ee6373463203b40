//! What the topics say of their tables, and the rows that they amount to.

use super::{
    DebeziumConfig, GROUP, blocking,
    envelope::{self, Change, Op},
    fold::Fold,
    note::kept,
    shape::{Described, Shape, table_def},
    source_id, topics,
    topics::{Found, failure, is_meant, of_prefix, topic_of},
    value::Placeholder,
    wire::{Wire, losses},
};
use crate::client::{Clients, LogConsumer, scan};
use crossfade_connector::{Failure, Inspect, RowPage};
use crossfade_event::{
    Cell, Identity, Key, Position, Row, TableName, TableSchema,
    catalog::{Catalog, Dialect, TableDef},
};
use crossfade_log::LogError;
use rdkafka::Message;
use serde::Serialize;
use std::{collections::HashMap, sync::Arc};

/// Rows of a page.
const PAGE: usize = 1_024;

/// A column of which Debezium has lost something before anybody reads it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Loss {
    /// The table.
    pub table: TableName,
    /// The column.
    pub column: String,
    /// What is lost.
    pub text: String,
}

/// Asks the topics about the tables.
#[derive(Debug)]
pub struct DebeziumInspect {
    config: DebeziumConfig,
    /// The target's tables, and the schema that all of them are in where that is not the source's own.
    target: Option<(Catalog, Option<String>)>,
    /// The tables that are read, once that is settled.
    begun: Option<Vec<TableName>>,
    rows: Vec<Row>,
    losses: Vec<Loss>,
}

/// A table that is told in two key versions, as far as reading it goes.
#[derive(Debug)]
pub(crate) enum Versions {
    /// Both in one record: its columns are called `v1.NAME` and `v2.NAME`.
    InOne(TableSchema),
    /// Each in a topic of its own.
    InTwo(TableSchema, TableSchema),
}

/// What one record says of a table.
pub(super) struct Sample {
    pub(super) name: TableName,
    pub(super) key: Vec<String>,
    change: Change,
}

/// Clients for a few questions.
pub(super) struct Asking {
    pub(super) clients: Clients,
    pub(super) consumer: LogConsumer,
}

impl Asking {
    pub(super) fn new(config: &DebeziumConfig) -> Result<Self, Failure> {
        let clients = Clients::new(config.connection.clone()).map_err(failure)?;
        let consumer = clients.asking(GROUP).map_err(failure)?;
        Ok(Self { clients, consumer })
    }

    pub(super) fn look(&self, topic: &str) -> Result<Found, Failure> {
        let found = topics::look(&self.clients, &self.consumer, &[topic])?.pop();
        found.ok_or_else(|| {
            Failure::misconfigured(
                format!("looking for the topic {topic}"),
                "there is none",
                "Let Debezium make it, or leave the table out",
            )
        })
    }

    /// The first change with an image in a topic; the last one with `last`. `None` where there is none yet.
    pub(super) fn sample(&self, topic: &Found, last: bool) -> Result<Option<Sample>, Failure> {
        let mut reader = envelope::Reader::default();
        let mut found: Option<(i64, Sample)> = None;
        // Newer records stand at the end; if there is none among so many, all are read.
        let depths: &[u64] = if last { &[200, u64::MAX] } else { &[u64::MAX] };
        for depth in depths {
            for (partition, (low, high)) in topic.bounds.iter().enumerate() {
                let from = (*low).max(high.saturating_sub(*depth));
                if from >= *high {
                    continue;
                }
                let mut misread = None;
                scan(&self.consumer, &topic.name, &[(partition as i32, from..*high)], |message| {
                    match sample(&mut reader, message) {
                        Ok(Some((time, sample))) => {
                            let newer = found.as_ref().is_none_or(|(known, _)| *known <= time);
                            if newer || !last {
                                found = Some((time, sample));
                            }
                            Ok(!last)
                        }
                        Ok(None) => Ok(false),
                        Err(foreign) => {
                            misread = Some((message.offset(), foreign));
                            Ok(true)
                        }
                    }
                })
                .map_err(failure)?;
                if let Some((offset, foreign)) = misread {
                    return Err(Failure::misconfigured(
                        format!(
                            "reading the record at offset {offset} of partition {partition} of the topic {}",
                            topic.name
                        ),
                        foreign,
                        "Name a topic_prefix under which Debezium's PostgreSQL connector writes its own envelope, as JSON",
                    ));
                }
                if found.is_some() && !last {
                    break;
                }
            }
            if found.is_some() {
                break;
            }
        }
        Ok(found.map(|(_, sample)| sample))
    }
}

fn sample(
    reader: &mut envelope::Reader,
    message: &rdkafka::message::BorrowedMessage<'_>,
) -> Result<Option<(i64, Sample)>, envelope::Foreign> {
    let Some(value) = message.payload().filter(|value| *value != b"null") else { return Ok(None) };
    let change = reader.change(value)?;
    if matches!(change.op, Op::Truncate | Op::Message) || (change.after.is_none() && change.schema.is_none()) {
        return Ok(None);
    }
    let key = message.key().filter(|key| *key != b"null").map(envelope::key).transpose()?;
    let name = TableName::new(
        change.origin.schema.clone().unwrap_or_default(),
        change.origin.table.clone().unwrap_or_default(),
    );
    let key = key.map_or_else(Vec::new, |key| key.cells.keys().cloned().collect());
    Ok(Some((change.origin.time_us(), Sample { name, key, change })))
}

/// A broker shows nobody a topic that he may not ask for: where none is shown, it is asked for one by its name.
fn may_ask(clients: &Clients, prefix: &str, patterns: &[String]) -> Result<(), Failure> {
    let name = patterns.iter().find(|pattern| !pattern.starts_with('!'));
    let name = name.map_or_else(String::new, |name| name.replace(['*', '?'], "x"));
    match clients.describe_one(&format!("{prefix}.{name}"), "Read") {
        Err(LogError::Denied { said, .. }) => Err(Failure::refused(
            format!("looking for the topics of {}", patterns.join(", ")),
            format!("the brokers show this user no topic that begins with {prefix}, and do not let it ask ({said})"),
            format!(
                "Grant Read on the topic {prefix}.* (kafka-acls --bootstrap-server HOST:PORT --add --allow-principal User:NAME --operation Read --resource-pattern-type prefixed --topic {prefix}.); or name the connector's topic.prefix"
            ),
        )),
        asked => asked.map(drop).map_err(failure),
    }
}

impl DebeziumInspect {
    /// Asks the topics of `config`; `begun` holds the tables of a migration that has begun.
    pub fn new(config: DebeziumConfig, begun: Option<&Catalog>) -> Self {
        let begun = begun.map(|catalog| catalog.tables.iter().map(|table| table.name.clone()).collect());
        Self { config, target: None, begun, rows: Vec::new(), losses: Vec::new() }
    }

    /// What the target has: where it has a table already, its columns' types count. `schema` is the one that all its tables
    /// are in, where that is not the source's own.
    pub fn know_target(&mut self, catalog: Catalog, schema: Option<String>) {
        self.target = Some((catalog, schema));
    }

    /// The columns of which Debezium has lost something; known once the catalog has been read.
    pub fn losses(&self) -> &[Loss] {
        &self.losses
    }

    /// The topics that are read: those of a migration that has begun, else those that are meant now.
    fn topics(&self, asking: &Asking) -> Result<Vec<String>, Failure> {
        let mut topics: Vec<String> = match &self.begun {
            Some(tables) => tables.iter().map(|table| topic_of(&self.config.topic_prefix, table)).collect(),
            None => of_prefix(&asking.consumer, asking.clients.brokers(), &self.config.topic_prefix)?
                .into_iter()
                .filter(|(_, name)| is_meant(&self.config.tables, name))
                .map(|(topic, _)| topic)
                .collect(),
        };
        // Asked first here and last by the source: so no transaction's end is in our sum that is not in the source's too.
        topics.splice(0..0, self.config.transactions.clone());
        Ok(topics)
    }

    /// Where everything ends now, as the source will name it.
    fn end(&self) -> Result<Position, Failure> {
        let asking = Asking::new(&self.config)?;
        let topics = self.topics(&asking)?;
        let names: Vec<&str> = topics.iter().map(String::as_str).collect();
        let found = topics::look(&asking.clients, &asking.consumer, &names)?;
        let commit = found.iter().flat_map(|topic| &topic.bounds).map(|(_, high)| high).sum();
        Ok(Position { source: source_id(&self.config), timeline: 0, commit, ordinal: 0 })
    }

    fn read_catalog(&self, patterns: &[String]) -> Result<(Catalog, Vec<Loss>), Failure> {
        let asking = Asking::new(&self.config)?;
        let prefix = &self.config.topic_prefix;
        let all = of_prefix(&asking.consumer, asking.clients.brokers(), prefix)?;
        let meant: Vec<_> = all.iter().filter(|(_, name)| is_meant(patterns, name)).collect();
        if meant.is_empty() {
            if all.is_empty() {
                may_ask(&asking.clients, prefix, patterns)?;
            }
            let known = all.iter().map(|(_, name)| name.to_string()).collect::<Vec<_>>().join(", ");
            let known = if known.is_empty() { "none at all".to_owned() } else { known };
            return Err(Failure::misconfigured(
                format!("looking for the topics of {}", patterns.join(", ")),
                format!(
                    "{} has none that begin with {prefix} and are called like one of these tables",
                    asking.clients.brokers()
                ),
                format!("Name the connector's topic.prefix, and tables that it captures; there are: {known}"),
            ));
        }
        let (mut tables, mut lost) = (Vec::new(), Vec::new());
        for (topic, name) in meant {
            let found = asking.look(topic)?;
            let Some(sample) = asking.sample(&found, self.begun.is_some())? else {
                tables.push(empty(name, topic));
                continue;
            };
            let (def, losses) = self.describe(&sample, topic)?;
            tables.push(def);
            lost.extend(losses);
        }
        self.check_types(&all, &tables)?;
        tables.sort_by(|one: &TableDef, other| one.name.cmp(&other.name));
        let (types, extensions) = (Vec::new(), Vec::new());
        Ok((Catalog { dialect: Dialect::Postgres, tables, types, sequences: Vec::new(), extensions }, lost))
    }

    /// Types are said of columns that there are.
    fn check_types(&self, all: &[(String, TableName)], tables: &[TableDef]) -> Result<(), Failure> {
        for (name, columns) in &self.config.types {
            let unknown = match tables.iter().find(|table| table.name.to_string() == *name) {
                Some(table) if table.columns.is_empty() => None,
                Some(table) => columns.keys().find(|column| table.column(column).is_none()),
                // The name in a topic's name may be spelled otherwise; and other tables may be asked for now.
                None if all.iter().any(|(_, other)| other.to_string() == *name) => None,
                None => Some(name),
            };
            if let Some(unknown) = unknown {
                return Err(Failure::misconfigured(
                    format!("reading the types of {name}"),
                    format!("the spec says a type of {unknown}, and there is none in the topics"),
                    "Mend [source.types] in the spec",
                ));
            }
        }
        Ok(())
    }

    fn describe(&self, sample: &Sample, topic: &str) -> Result<(TableDef, Vec<Loss>), Failure> {
        let Sample { name, key, change } = sample;
        if topic_of(&self.config.topic_prefix, name) != topic {
            return Err(Failure::misconfigured(
                format!("reading the topic {topic}"),
                format!("its records are of the table {name}, which has its records elsewhere"),
                "Topics that hold several tables, or were renamed, cannot be read",
            ));
        }
        let target = self.target.as_ref().and_then(|(catalog, schema)| {
            let there = schema.as_deref().unwrap_or(&name.schema);
            catalog.table(&TableName::new(there, name.name.clone()))
        });
        let said = self.config.types.get(&name.to_string());
        let described = Described { key: key.clone(), change };
        let def = table_def(&described, name, said, target).map_err(|columns| {
            Failure::misconfigured(
                format!("reading the topic {topic}"),
                format!("the records do not say the types of these columns of {name}: {}", columns.join(", ")),
                format!("Make the table in the target first, with the types that the source has; or name them in the spec: [source.types.\"{name}\"]; or let the connector write schemas (value.converter.schemas.enable=true)"),
            )
        })?;
        let mut found = Vec::new();
        for column in &def.columns {
            let column = &column.column;
            let field = change.schema.as_ref().and_then(|seen| seen.schema.get(&column.name));
            let wire = match field {
                Some(field) => {
                    Wire::of_schema(field, Some(&column.type_.name), self.config.handling).map_err(|unread| {
                        Failure::misconfigured(
                            format!("reading the topic {topic}"),
                            format!("column {} of {name}: {unread}", column.name),
                            "Let the connector write the column otherwise, or leave it out (column.exclude.list)",
                        )
                    })?
                }
                None => Wire::of_type(&column.type_.name, self.config.handling),
            };
            found.extend(losses(&wire, &column.type_.name).into_iter().map(|text| Loss {
                table: name.clone(),
                column: column.name.to_string(),
                text: text.to_owned(),
            }));
        }
        Ok((def, found))
    }

    /// The rows that a table's topic amounts to.
    fn fold(&self, schema: &TableSchema) -> Result<(Vec<Row>, Position), Failure> {
        let position = self.end()?;
        Ok((self.folded(&schema.name, Fold::new(schema, &self.config))?.rows(), position))
    }

    /// The rows of a table that is told in two key versions, both in one record.
    fn fold_both(&self, schema: &TableSchema) -> Result<Vec<Row>, Failure> {
        Ok(self.folded(&schema.name, Fold::of_both(schema, &self.config))?.rows())
    }

    /// The rows of a table that is told in two topics, joined by the keys that the second one's records name. What is in
    /// one of them alone comes with nothing in the place of the other.
    fn fold_two(&self, first: &TableSchema, second: &TableSchema) -> Result<Vec<Row>, Failure> {
        let (shape, placeholder) =
            (Shape::new(Arc::new(first.clone()), self.config.handling), Placeholder::new(&self.config.unavailable));
        let wires: Vec<Wire> =
            first.columns.iter().map(|column| Wire::of_type(&column.type_.name, self.config.handling)).collect();
        let misread = |why: String| {
            let doing = format!("reading the topic of {}", second.name);
            Failure::halt(doing, why, "Look whether somebody else writes to it")
        };
        let mut partners: HashMap<Key, Row> = HashMap::new();
        for (_, other, row) in self.folded(&second.name, Fold::new(second, &self.config))?.pairs() {
            let other = other.ok_or_else(|| misread("a record does not name its row's other key".to_owned()))?;
            let key = envelope::key(&other).map_err(|foreign| misread(foreign.to_string()))?;
            let key = shape.key_now(&wires, &key.cells, &placeholder).map_err(|misfit| misread(misfit.to_string()))?;
            partners.insert(key, row);
        }
        let mut rows = Vec::new();
        for (key, _, row) in self.folded(&first.name, Fold::new(first, &self.config))?.pairs() {
            let missing = || std::iter::repeat_n(Cell::Null, second.columns.len()).collect::<Row>();
            let partner = partners.remove(&key).unwrap_or_else(missing);
            rows.push(row.cells().chain(partner.cells()).collect());
        }
        let missing: Row = std::iter::repeat_n(Cell::Null, first.columns.len()).collect();
        rows.extend(partners.into_values().map(|row| missing.cells().chain(row.cells()).collect::<Row>()));
        Ok(rows)
    }

    /// Reads rows that are told in two key versions: in two topics, or both in one record.
    pub(crate) async fn scan_versions(&mut self, versions: Versions) -> Result<(), Failure> {
        let this = self.asking();
        self.rows = blocking(move || match versions {
            Versions::InOne(schema) => this.fold_both(&schema),
            Versions::InTwo(first, second) => this.fold_two(&first, &second),
        })
        .await?;
        Ok(())
    }

    /// What a table's topic amounts to.
    fn folded(&self, name: &TableName, mut fold: Fold) -> Result<Fold, Failure> {
        let asking = Asking::new(&self.config)?;
        let topic = topic_of(&self.config.topic_prefix, name);
        let found = asking.look(&topic)?;
        for (partition, (low, high)) in found.bounds.iter().enumerate() {
            kept(&topic, partition, 0, *low, *high)?;
            if low == high {
                continue;
            }
            let mut misread = None;
            scan(&asking.consumer, &topic, &[(partition as i32, *low..*high)], |message| {
                if let Err(why) = fold.take(message) {
                    misread = Some((message.offset(), why));
                }
                Ok(misread.is_some())
            })
            .map_err(failure)?;
            if let Some((offset, why)) = misread {
                return Err(Failure::halt(
                    format!("reading the record at offset {offset} of partition {partition} of the topic {topic}"),
                    why,
                    "Compare the target with the database that Debezium reads instead",
                ));
            }
        }
        Ok(fold)
    }
}

/// A table of which no record is there yet.
fn empty(name: &TableName, topic: &str) -> TableDef {
    TableDef {
        obstacle: Some(format!(
            "the topic {topic} has no record yet that says what {name} looks like: wait for one, or exclude the table"
        )),
        ..TableDef::plain(name.clone(), Identity::InsertOnly, Vec::new(), None)
    }
}

impl Inspect for DebeziumInspect {
    async fn catalog(&mut self, patterns: &[String]) -> Result<Catalog, Failure> {
        let (this, patterns) = (self.asking(), patterns.to_vec());
        let (catalog, losses) = blocking(move || this.read_catalog(&patterns)).await?;
        self.losses = losses;
        Ok(catalog)
    }

    async fn scan(&mut self, schema: &TableSchema) -> Result<Option<Position>, Failure> {
        let (this, schema) = (self.asking(), schema.clone());
        let (rows, position) = blocking(move || this.fold(&schema)).await?;
        self.rows = rows;
        Ok(Some(position))
    }

    async fn scan_next(&mut self) -> Result<RowPage, Failure> {
        let rest = self.rows.len().saturating_sub(PAGE);
        Ok(self.rows.split_off(rest))
    }

    async fn fetch(&mut self, schema: &TableSchema, keys: &[Key]) -> Result<(Vec<Row>, Option<Position>), Failure> {
        let (this, asked) = (self.asking(), schema.clone());
        let (rows, position) = blocking(move || this.fold(&asked)).await?;
        let wanted: std::collections::HashSet<&Key> = keys.iter().collect();
        let rows = rows.into_iter().filter(|row| schema.key_of(row).is_some_and(|key| wanted.contains(&key))).collect();
        Ok((rows, Some(position)))
    }

    async fn barrier(&mut self) -> Result<Option<Position>, Failure> {
        let this = self.asking();
        blocking(move || this.end().map(Some)).await
    }

    async fn count(&mut self, table: &TableName) -> Result<u64, Failure> {
        let (this, patterns) = (self.asking(), vec![table.to_string()]);
        let (catalog, _) = blocking(move || this.read_catalog(&patterns)).await?;
        let def = catalog.table(table).ok_or_else(|| {
            Failure::misconfigured(
                format!("counting the rows of {table}"),
                "there is no topic of it",
                "Name a table that the connector captures",
            )
        })?;
        let schema = super::shape::schema_of(crossfade_event::TableId(1), def);
        let this = self.asking();
        Ok(blocking(move || this.fold(&schema)).await?.0.len() as u64)
    }
}

impl DebeziumInspect {
    /// The same questions, to be asked on another thread.
    fn asking(&self) -> Self {
        Self {
            config: self.config.clone(),
            target: self.target.clone(),
            begun: self.begun.clone(),
            rows: Vec::new(),
            losses: Vec::new(),
        }
    }
}
