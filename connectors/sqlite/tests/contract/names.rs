//! Columns of the source that get other names: a column is known by its place in the record, whatever it is called.

use crate::{
    fixture::SourceFile,
    source::{Followed, PATIENCE},
};
use crossfade_connector::Source;
use crossfade_testkit::source_suite::{Model, SourceFixture, assert_same};

const EXCHANGE: &str = "ALTER TABLE a RENAME COLUMN x TO aside; ALTER TABLE a RENAME COLUMN y TO x; ALTER TABLE a RENAME COLUMN aside TO y";

async fn columns_are(it: &mut Followed, names: &[&str]) {
    let is = |it: &Followed| {
        it.model.schema("a").columns.iter().map(|column| column.name.to_string()).eq(names.iter().copied())
    };
    while !is(it) {
        it.next().await;
    }
    it.settle("a").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_that_exchange_their_names_are_told_apart_also_while_nobody_runs() {
    for key in ["id INTEGER PRIMARY KEY", "id TEXT PRIMARY KEY", "id TEXT"] {
        let made = format!(
            "CREATE TABLE a ({key}, x TEXT, y TEXT); INSERT INTO a VALUES ('1', 'ex', 'why'), ('2', 'ex', 'why')"
        );
        let mut it = Followed::new(&made, &["a"]).await;
        // In one transaction: nobody sees the name in between.
        it.file.run(&format!("BEGIN; {EXCHANGE}; COMMIT"));
        columns_are(&mut it, &["id", "y", "x"]).await;
        it.file.run("INSERT INTO a VALUES ('3', 'is y', 'is x')");
        it.settle("a").await;
        drop(std::mem::replace(&mut it.source, it.file.source(&["a"])));
        it.file.run(&format!(
            "{EXCHANGE}; ALTER TABLE a RENAME COLUMN x TO X; ALTER TABLE a ADD COLUMN \"from\" DEFAULT 'new'"
        ));
        if key != "id TEXT" {
            it.file.run("UPDATE a SET y = 'changed' WHERE id = '2'; DELETE FROM a WHERE id = '1'; INSERT INTO a VALUES ('4', 'p', 'q', 'r')");
        }
        it.reopen(&["a"]).await.unwrap();
        columns_are(&mut it, &["id", "X", "y", "from"]).await;
        let numbers: Vec<u32> = it.model.schema("a").columns.iter().map(|column| column.native_id).collect();
        assert_eq!(numbers, [1, 2, 3, 4]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_cannot_go_while_it_is_recorded() {
    let it = Followed::new("CREATE TABLE a (id INTEGER PRIMARY KEY, x TEXT, y TEXT)", &["a"]).await;
    let refused = it.file.writer.execute_batch("ALTER TABLE a DROP COLUMN y").unwrap_err();
    assert!(refused.to_string().contains("_crossfade_test_1"), "{refused}");
}

/// Reads some of a copy, has the table changed, and reads on to its end and the stream's.
async fn changed_while_copied(journal: &str, made: &str, change: &str) {
    println!("{made}; {change}");
    // Pages are small without a WAL: the chunk has many.
    let mut file = SourceFile::new(journal);
    file.options.workers = 1;
    file.options.chunk_rows = if journal == "wal" { 2_000 } else { 1_000_000 };
    file.run(&format!(
        "{made}; WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)
         INSERT INTO a SELECT printf('%05d', i), 'ex ' || i, 'why ' || i, hex(zeroblob(400)) FROM n"
    ));
    let mut source = file.source(&["a"]);
    let mut model = Model::default();
    source.open(model.resume()).await.unwrap();
    // What waits between the threads holds less than the table, so the rest is read after the change.
    while !model.events().iter().any(|stamped| matches!(stamped.event, crossfade_event::Event::Rows(_))) {
        model.take(tokio::time::timeout(PATIENCE, source.next()).await.expect("a batch in time").unwrap().unwrap());
    }
    file.run(change);
    let mut it = Followed { file, source, model };
    while !it.model.backfill_ended() {
        it.next().await;
    }
    it.settle("a").await;
    assert_eq!(it.model.rows("a").len(), 20_000);
    assert_same("a", &it.model.rows("a"), &it.file.read("a"));
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_that_get_other_names_while_they_are_copied_keep_their_values() {
    for key in ["id INTEGER PRIMARY KEY", "id TEXT PRIMARY KEY", "id TEXT NOT NULL PRIMARY KEY"] {
        let without_rowid = if key.contains("NOT NULL") { " WITHOUT ROWID" } else { "" };
        let made = format!("CREATE TABLE a ({key}, x TEXT, y TEXT, z TEXT){without_rowid}");
        for journal in ["wal", "delete"] {
            changed_while_copied(journal, &made, &format!("BEGIN; {EXCHANGE}; COMMIT")).await;
        }
        changed_while_copied("delete", &made, "ALTER TABLE a RENAME COLUMN y TO other").await;
        changed_while_copied(
            "delete",
            &made,
            "ALTER TABLE a RENAME COLUMN id TO y2; ALTER TABLE a ADD COLUMN w DEFAULT 'w'",
        )
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_was_cut_off_goes_on_under_other_names() {
    let mut file = SourceFile::new("wal");
    file.options.workers = 1;
    file.options.chunk_rows = 500;
    file.run(
        "CREATE TABLE a (id TEXT PRIMARY KEY, x TEXT, y TEXT); WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5000)
         INSERT INTO a SELECT printf('%05d', i), 'ex ' || i, hex(zeroblob(400)) FROM n",
    );
    let mut source = file.source(&["a"]);
    let mut model = Model::default();
    source.open(model.resume()).await.unwrap();
    while !model.events().iter().any(|stamped| matches!(stamped.event, crossfade_event::Event::ChunkEnded { .. })) {
        model.take(tokio::time::timeout(PATIENCE, source.next()).await.expect("a batch in time").unwrap().unwrap());
    }
    drop(source);
    file.run(&format!("BEGIN; {EXCHANGE}; ALTER TABLE a RENAME COLUMN id TO k; COMMIT"));
    let source = file.source(&["a"]);
    let mut it = Followed { file, source, model };
    it.reopen(&["a"]).await.unwrap();
    while !it.model.backfill_ended() {
        it.next().await;
    }
    columns_are(&mut it, &["k", "y", "x"]).await;
    assert_eq!(it.model.rows("a").len(), 5000);
}
