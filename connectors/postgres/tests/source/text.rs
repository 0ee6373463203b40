//! Values that travel as text: the text is the type's own output, in the copy, in the stream and in what is looked up.

use crate::support::*;
use crossfade_event::{Cell, Event, Format, Rows};
use crossfade_postgres::PostgresSource;
use crossfade_testkit::postgres::Version;

/// Columns, their types, and a value as its type writes it: a cast to text says something else for most of them.
const OUTPUTS: [(&str, &str, &str); 8] = [
    ("c", "char(6)", "ab    "),
    ("b", "bool", "t"),
    ("i", "inet", "10.1.2.3"),
    ("ci", "cidr", "10.1.0.0/16"),
    ("m", "app.mood", "happy"),
    ("d", "app.feeling", "sad"),
    ("db", "app.flag", "f"),
    ("n", "app.many", "{happy,sad}"),
];

fn sql() -> String {
    let columns: Vec<String> = OUTPUTS.iter().map(|(name, type_, _)| format!("{name} {type_}")).collect();
    let values: Vec<String> = OUTPUTS.iter().map(|(_, type_, value)| format!("'{value}'::{type_}")).collect();
    format!(
        "CREATE SCHEMA app; CREATE TYPE app.mood AS ENUM ('sad', 'happy');
         CREATE FUNCTION app.shout(app.mood) RETURNS text LANGUAGE sql IMMUTABLE
           AS $$ SELECT CASE $1 WHEN 'sad' THEN 'SAD!' ELSE 'HAPPY!' END $$;
         CREATE CAST (app.mood AS text) WITH FUNCTION app.shout(app.mood) AS ASSIGNMENT;
         CREATE DOMAIN app.feeling AS app.mood; CREATE DOMAIN app.flag AS bool; CREATE DOMAIN app.many AS app.mood[];
         CREATE TABLE app.t (id int PRIMARY KEY, {}, big text); ALTER TABLE app.t ALTER big SET STORAGE EXTERNAL;
         INSERT INTO app.t VALUES (1, {}, repeat('v', 9000)); INSERT INTO app.t (id) VALUES (2)",
        columns.join(", "),
        values.join(", ")
    )
}

fn check(cells: &[Cell<'_>], what: &str) {
    for (place, (name, type_, wanted)) in OUTPUTS.iter().enumerate() {
        let Cell::Bytes(bytes) = cells[place + 1] else { panic!("{name} has no value in {what}") };
        assert_eq!(String::from_utf8_lossy(bytes), *wanted, "{type_} in {what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn text_is_what_the_type_writes_and_no_cast_that_somebody_made() {
    for version in [Version::V15, Version::V18] {
        let Some(fixture) = Fixture::new(version, "text_forms", &sql()).await else { return };
        let mut config = fixture.config(&["app.*"]);
        config.snapshot.workers = 1;
        let mut source = PostgresSource::new(config).unwrap();
        let mut log = Log::default();
        open(&mut source, &mut log).await;
        // Taken as an update whose large value is looked up, for the copy is not through.
        fixture.database.execute("UPDATE app.t SET id = 3 WHERE id = 1").await;
        ingest_all(&fixture, &mut source, &mut log).await;
        assert!(log.schema("app.t").columns.iter().all(|column| column.type_.format == Format::PgText));
        let rows: Vec<_> = log
            .events
            .iter()
            .filter_map(|stamped| match &stamped.event {
                Event::Rows(block) => Some(Rows::new(block.rows.clone())),
                _ => None,
            })
            .flatten()
            .map(|row| row.unwrap())
            .filter(|row| row.cell(9).is_some_and(|cell| cell != Cell::Null))
            .collect();
        assert!(!rows.is_empty());
        rows.iter().for_each(|row| check(&row.cells().collect::<Vec<_>>(), "the copy"));
        fixture.database.execute("INSERT INTO app.t SELECT id + 10, c, b, i, ci, m, d, db, n, big FROM app.t").await;
        ingest_all(&fixture, &mut source, &mut log).await;
        let changed = log.changes();
        let images: Vec<_> = changed.iter().filter_map(|change| change.new.as_ref()).collect();
        let full = images.iter().filter(|row| row.cell(9).is_some_and(|cell| matches!(cell, Cell::Bytes(_))));
        for row in full {
            check(&row.cells().collect::<Vec<_>>(), "the stream");
        }
    }
}
