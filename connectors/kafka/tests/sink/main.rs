//! The sink on a real broker: what every sink must keep, as far as topics can.
//!
//! Of the suite's promises these are not made here. `a_refused_change_holds_later_ones_and_children`,
//! `a_refused_change_holds_what_comes_with_it`, `retry_applies_what_is_held_in_order` and
//! `discard_frees_the_key` begin with a row that a reference or a NOT NULL refuses, which a topic does not (what it refuses
//! is tested by the journeys); `a_partial_update_touches_nothing_else` ends with a part of a row that is not there, which
//! is written as it came; `a_mapping_is_written_once` writes another new key under an old one, and topics hold both;
//! `healing_writes_images_and_leaves_the_position`, `a_table_with_rows_of_others_is_refused_untouched`,
//! `undo_puts_back_what_was_there`, `shadow_columns_touch_nothing_else`, `wipe_leaves_nothing` and
//! `quarantine_survives_a_restart` begin with one of these, or are about tables that others write with SQL.
#![cfg(test)]

use crossfade_connector::Inspect;
use crossfade_event::{
    Cell, Column, ColumnType, Format, Identity, Logical, SchemaVersion, TableId, TableName, TableSchema,
    catalog::{Catalog, Dialect},
};
use crossfade_kafka::{Connection, KafkaSink, KafkaSinkInspect, SinkConfig};
use crossfade_testkit::{
    kafka::Kafka,
    sink_suite::{self, SinkFixture},
    source_suite::TextRow,
};

/// Topics of a test's own.
struct Topics {
    kafka: &'static Kafka,
    prefix: String,
}

fn type_of(logical: Logical) -> ColumnType {
    let name = match logical {
        Logical::Int64 => "bigint",
        _ => "text",
    };
    ColumnType { name: name.into(), native_id: 0, logical, format: Format::PgText }
}

/// The suite's tables, as far as reading goes.
fn schema(name: &str) -> TableSchema {
    let columns: &[(&str, Logical, bool)] = match name {
        "parent" => &[("id", Logical::Int64, true), ("name", Logical::Text, false)],
        "child" => {
            &[("id", Logical::Int64, true), ("parent_id", Logical::Int64, false), ("note", Logical::Text, false)]
        }
        "heap" => &[("a", Logical::Text, false), ("b", Logical::Int64, false)],
        other => panic!("the suite has no table {other} here"),
    };
    let column = |(name, logical, is_key): &(&str, Logical, bool)| Column {
        name: (*name).into(),
        type_: type_of(*logical),
        key: is_key.then_some(0),
        nullable: !is_key,
        native_id: 0,
        default: None,
    };
    TableSchema {
        id: TableId(1),
        version: SchemaVersion(1),
        name: TableName::new("app", name),
        columns: columns.iter().map(column).collect(),
        identity: if name == "heap" { Identity::FullRow } else { Identity::Key },
        native_id: 0,
    }
}

impl Topics {
    fn config(&self, migration: &str) -> SinkConfig {
        SinkConfig {
            partitions: Some(3),
            ..SinkConfig::new(Connection::plain(self.kafka.brokers()), migration, self.prefix.as_str())
        }
    }
}

impl SinkFixture for Topics {
    type Sink = KafkaSink;

    fn sink(&self, migration: &str) -> KafkaSink {
        KafkaSink::new(self.config(migration))
    }

    fn type_of(&self, logical: Logical) -> ColumnType {
        type_of(logical)
    }

    fn schema(&self) -> String {
        "app".to_owned()
    }

    fn support(&self) -> Catalog {
        Catalog {
            dialect: Dialect::Postgres,
            tables: Vec::new(),
            types: Vec::new(),
            sequences: Vec::new(),
            extensions: Vec::new(),
        }
    }

    async fn execute(&mut self, sql: &str) {
        panic!("topics know no SQL: {sql}");
    }

    async fn rows(&mut self, table: &str) -> Vec<TextRow> {
        let mut inspect = KafkaSinkInspect::new(&self.config("suite"));
        inspect.scan(&schema(table)).await.unwrap();
        let mut found = Vec::new();
        loop {
            let page = inspect.scan_next().await.unwrap();
            if page.is_empty() {
                found.sort();
                return found;
            }
            let text = |cell: Cell<'_>| match cell {
                Cell::Bytes(bytes) => Some(String::from_utf8(bytes.to_vec()).unwrap()),
                _ => None,
            };
            found.extend(page.iter().map(|row| row.cells().map(text).collect::<TextRow>()));
        }
    }

    async fn objects(&mut self) -> Vec<String> {
        let words = ["--bootstrap-server", &self.kafka.brokers(), "--list"];
        let out = self.kafka.tool("org.apache.kafka.tools.TopicCommand", &words);
        let text = String::from_utf8(out.stdout).unwrap();
        text.lines().filter(|topic| topic.starts_with(&self.prefix)).map(str::to_owned).collect()
    }
}

fn topics() -> Option<Topics> {
    let kafka = Kafka::shared()?;
    Some(Topics { kafka, prefix: kafka.prefix("suite") })
}

macro_rules! promises {
    ($($promise:ident),+ $(,)?) => {
        $(#[tokio::test(flavor = "multi_thread")]
        async fn $promise() {
            let Some(topics) = topics() else { return };
            sink_suite::$promise(topics).await;
        })+
    };
}

promises! {
    a_repeat_is_harmless,
    rows_and_progress_come_together,
    what_is_not_committed_leaves_nothing,
    a_cancelled_apply_leaves_nothing_or_all,
    two_rows_exchange_their_unique_values,
    a_changed_key_takes_its_row_along,
    rows_without_a_key_stay_as_many_as_they_are,
    a_change_that_transforms_refused_is_on_record,
    a_lower_epoch_is_refused,
    a_truncate_stands_between_before_and_after,
}
