//! What only SQLite has: REPLACE, rowids, values without a type, files that are swapped, schemas that change.

use crate::fixture::SourceFile;
use crossfade_connector::Source;
use crossfade_event::Event;
use crossfade_sqlite::SqliteSource;
use crossfade_testkit::source_suite::{Model, SourceFixture, assert_lost, assert_same};
use std::time::Duration;

pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A file with a source that has copied it.
pub(crate) struct Followed {
    pub(crate) file: SourceFile,
    pub(crate) source: SqliteSource,
    pub(crate) model: Model,
}

impl Followed {
    pub(crate) async fn new(schema: &str, tables: &[&str]) -> Self {
        let file = SourceFile::new("wal");
        file.run(schema);
        Self::of(file, tables).await
    }

    pub(crate) async fn of(file: SourceFile, tables: &[&str]) -> Self {
        let source = file.source(tables);
        let mut followed = Self { file, source, model: Model::default() };
        followed.source.open(followed.model.resume()).await.unwrap();
        while !followed.model.backfill_ended() {
            followed.next().await;
        }
        followed
    }

    pub(crate) async fn next(&mut self) {
        let batch = tokio::time::timeout(PATIENCE, self.source.next()).await.expect("a batch in time");
        self.model.take(batch.unwrap().unwrap());
    }

    /// Reads until everything is there, and compares.
    pub(crate) async fn settle(&mut self, table: &str) {
        self.catch_up().await;
        assert_same(table, &self.model.rows(table), &self.file.read(table));
    }

    /// Reads until everything is there that is on record now.
    pub(crate) async fn catch_up(&mut self) {
        let end: i64 =
            self.file.writer.query_row("SELECT max(seq) FROM _crossfade_changes_test", [], |row| row.get(0)).unwrap();
        while self.model.position().unwrap().commit < end as u64 {
            self.next().await;
        }
    }

    pub(crate) async fn reopen(&mut self, tables: &[&str]) -> Result<(), crossfade_connector::Failure> {
        self.source = self.file.source(tables);
        self.model.crash();
        self.source.open(self.model.resume()).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_value_in_every_column_arrives_as_it_is() {
    let mut it = Followed::new(
        "CREATE TABLE v (id INTEGER PRIMARY KEY, i INTEGER, t TEXT, r REAL, n NUMERIC, b BLOB, x)",
        &["v"],
    )
    .await;
    let values = [
        "NULL",
        "0",
        "-9223372036854775808",
        "9223372036854775807",
        "1.5",
        "-0.0",
        "9e999",
        "-9e999",
        "1e-320",
        "''",
        "'ü'",
        "'a' || char(0) || 'b'",
        "CAST(x'fffe41' AS TEXT)",
        "x''",
        "x'00ff'",
        "'12'",
        "'1e3'",
        "1.0",
        "9007199254740993",
        "123456789012345678901234567890.5",
    ];
    for (n, value) in values.iter().enumerate() {
        it.file.run(&format!("INSERT INTO v VALUES ({n}, {value}, {value}, {value}, {value}, {value}, {value})"));
    }
    it.file.run("UPDATE v SET x = t, b = r, n = i");
    it.settle("v").await;
    // The copy and the stream write the same bytes for the same row.
    let again = Followed::of(it.file, &["v"]).await;
    assert_eq!(again.model.rows("v"), it.model.rows("v"));
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_removed_by_replace_are_recorded_whatever_the_writers_pragma() {
    for recursive in ["OFF", "ON"] {
        let mut it = Followed::new(
            "CREATE TABLE u (id INTEGER PRIMARY KEY, a TEXT UNIQUE, b INTEGER, c TEXT);
             CREATE UNIQUE INDEX u_b ON u (b) WHERE b > 0;
             CREATE UNIQUE INDEX u_c ON u (lower(c) DESC);
             INSERT INTO u VALUES (1, 'a', 1, 'X'), (2, 'b', 2, 'Y'), (3, 'c', 3, 'Z'), (4, 'd', -1, 'W'), (5, 'e', -1, 'V')",
            &["u"],
        )
        .await;
        it.file.run(&format!("PRAGMA recursive_triggers = {recursive}"));
        it.file.run("INSERT OR REPLACE INTO u VALUES (10, 'a', 2, 'z')");
        it.settle("u").await;
        it.file.run("UPDATE OR REPLACE u SET a = 'e' WHERE id = 4");
        it.settle("u").await;
        it.file.run("INSERT OR IGNORE INTO u VALUES (11, 'a', 7, 'q'); INSERT INTO u VALUES (12, 'n', 8, 'r')");
        it.settle("u").await;
        it.file.run("INSERT INTO u VALUES (13, 'a', 9, 's') ON CONFLICT (a) DO UPDATE SET b = 99");
        it.settle("u").await;
        it.file.run("UPDATE OR REPLACE u SET id = 10 WHERE id = 12");
        it.file.run("REPLACE INTO u VALUES (10, 'again', -1, NULL)");
        it.file.run("DELETE FROM u WHERE id = 4; REPLACE INTO u VALUES (4, 'again', -1, 'W')");
        it.settle("u").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn replace_in_tables_of_every_kind_loses_nothing() {
    let tables = [
        "CREATE TABLE k (a TEXT PRIMARY KEY COLLATE NOCASE, b INTEGER UNIQUE) WITHOUT ROWID",
        "CREATE TABLE k (a TEXT COLLATE NOCASE PRIMARY KEY, b INTEGER UNIQUE)",
        "CREATE TABLE k (a PRIMARY KEY, b INTEGER UNIQUE)",
        "CREATE TABLE k (a TEXT, b INTEGER UNIQUE)",
        "CREATE TABLE k (a TEXT, b INTEGER, PRIMARY KEY (b, a), UNIQUE (b))",
        "CREATE TABLE k (a TEXT, b INTEGER UNIQUE NOT NULL)",
        "CREATE TABLE k (a ANY PRIMARY KEY, b INTEGER UNIQUE) STRICT",
    ];
    for table in tables {
        let mut it =
            Followed::new(&format!("{table}; INSERT INTO k VALUES ('a', 1), ('b', 2), ('c', 3)"), &["k"]).await;
        println!("{table}");
        for change in [
            "REPLACE INTO k VALUES ('A', 9)",
            "REPLACE INTO k VALUES ('d', 2)",
            "UPDATE OR REPLACE k SET b = 9 WHERE a = 'c'",
            "UPDATE OR REPLACE k SET a = 'D' WHERE a = 'c'",
            "UPDATE OR REPLACE k SET a = upper(a)",
            "REPLACE INTO k VALUES ('1', 20), ('1.0', 21), ('x', 22)",
            "DELETE FROM k WHERE b = 22",
            "UPDATE OR IGNORE k SET b = 20",
            "DELETE FROM k",
        ] {
            println!("  {change}");
            it.file.run(change);
            it.settle("k").await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_rowid_that_no_key_shows_is_recorded() {
    let mut it =
        Followed::new("CREATE TABLE h (a TEXT PRIMARY KEY); INSERT INTO h(rowid, a) VALUES (1, 'a'), (2, 'b')", &["h"])
            .await;
    it.file.run("REPLACE INTO h(rowid, a) VALUES (1, 'c')");
    it.settle("h").await;
    it.file.run("UPDATE OR REPLACE h SET rowid = 1 WHERE a = 'b'");
    it.settle("h").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn triggers_and_cascades_of_the_application_end_right() {
    let mut it = Followed::new(
        "CREATE TABLE p (id INTEGER PRIMARY KEY, up REFERENCES p ON DELETE CASCADE, n INTEGER DEFAULT 0, at TEXT);
         CREATE TRIGGER touch AFTER UPDATE OF n ON p BEGIN UPDATE p SET at = 'touched ' || NEW.n WHERE id = NEW.id; END;
         INSERT INTO p VALUES (1, NULL, 0, ''), (2, 1, 0, ''), (3, 2, 0, ''), (4, NULL, 0, '')",
        &["p"],
    )
    .await;
    it.file.run("PRAGMA foreign_keys = ON; UPDATE p SET n = 5");
    it.settle("p").await;
    // Newer than ours, so it runs before ours.
    it.file.run("CREATE TRIGGER born AFTER INSERT ON p BEGIN UPDATE p SET at = 'born', id = NEW.id + 100 WHERE id = NEW.id; END");
    it.file.run("INSERT INTO p VALUES (7, NULL, 1, ''); UPDATE p SET n = 6 WHERE id = 107");
    it.settle("p").await;
    it.file.run("DELETE FROM p WHERE id = 1");
    it.settle("p").await;
    it.file.run("DELETE FROM p");
    it.settle("p").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_added_and_a_renamed_column_are_followed_also_while_nobody_runs() {
    let mut it = Followed::new(
        "CREATE TABLE a (id INTEGER PRIMARY KEY, x TEXT); INSERT INTO a VALUES (1, 'one'), (2, 'two')",
        &["a"],
    )
    .await;
    it.file.run("ALTER TABLE a ADD COLUMN y TEXT DEFAULT 'none'; INSERT INTO a VALUES (3, 'three', 'with'); UPDATE a SET y = 'set' WHERE id = 1");
    it.next().await;
    while it.model.schema("a").columns.len() < 3 {
        it.next().await;
    }
    it.settle("a").await;
    drop(std::mem::replace(&mut it.source, it.file.source(&["a"])));
    it.file
        .run("ALTER TABLE a RENAME COLUMN x TO z; UPDATE a SET z = 'renamed' WHERE id = 2; ALTER TABLE a ADD COLUMN w");
    it.file.run("UPDATE a SET w = 7 WHERE id = 3; DELETE FROM a WHERE id = 1");
    it.reopen(&["a"]).await.unwrap();
    while it.model.schema("a").columns.len() < 4 {
        it.next().await;
    }
    it.settle("a").await;
    assert_eq!(it.model.schema("a").columns[1].native_id, 2, "a renamed column is the same one");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_followed_stops_with_advice() {
    for (change, lost) in [
        ("DROP TABLE a", false),
        ("ALTER TABLE a RENAME TO b", false),
        ("DROP TRIGGER _crossfade_test_1_au; UPDATE a SET x = 'unseen'", true),
        (
            // At once: between the two it would be a table that was renamed.
            "BEGIN; ALTER TABLE a RENAME TO b; CREATE TABLE a (id INTEGER PRIMARY KEY, x TEXT); \
             INSERT INTO a SELECT id, 'other' FROM b; COMMIT",
            true,
        ),
        ("DELETE FROM _crossfade_changes_test; INSERT INTO a VALUES (9, 'x')", true),
    ] {
        let mut it = Followed::new("CREATE TABLE a (id INTEGER PRIMARY KEY, x TEXT)", &["a"]).await;
        it.file.run("INSERT INTO a VALUES (1, 'one')");
        it.settle("a").await;
        it.file.run(change);
        let failure = loop {
            match tokio::time::timeout(PATIENCE, it.source.next()).await.expect("an answer in time") {
                Ok(_) => {}
                Err(failure) => break failure,
            }
        };
        assert!(failure.advice().is_some_and(|advice| !advice.is_empty()), "{failure}");
        if lost {
            assert_lost(&failure);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_file_in_its_place_is_lost_also_when_nobody_runs() {
    let mut it = Followed::new("CREATE TABLE a (id INTEGER PRIMARY KEY)", &["a"]).await;
    it.file.run("PRAGMA wal_checkpoint(TRUNCATE)");
    let backup = it.file.folder.path().join("backup.db");
    it.file.writer.execute("VACUUM INTO ?1", [backup.to_str().unwrap()]).unwrap();
    it.file.run("INSERT INTO a VALUES (1), (2)");
    it.settle("a").await;
    drop(std::mem::replace(&mut it.source, it.file.source(&["a"])));
    // An older copy of the same file.
    for name in ["source.db", "source.db-wal", "source.db-shm"] {
        let _ = std::fs::remove_file(it.file.folder.path().join(name));
    }
    std::fs::copy(&backup, it.file.path()).unwrap();
    assert_lost(&it.reopen(&["a"]).await.unwrap_err());
    // The record reaches as far as ours, and is another file's.
    it.file.writer = rusqlite::Connection::open(it.file.path()).unwrap();
    it.file.run("INSERT INTO a VALUES (11), (12), (13)");
    it.file.run("UPDATE _crossfade_meta SET value = 'another' WHERE key = 'identity'");
    assert_lost(&it.reopen(&["a"]).await.unwrap_err());
    // A file that never was ours.
    std::fs::remove_file(it.file.path()).unwrap();
    rusqlite::Connection::open(it.file.path())
        .unwrap()
        .execute_batch("CREATE TABLE a (id INTEGER PRIMARY KEY)")
        .unwrap();
    assert_lost(&it.reopen(&["a"]).await.unwrap_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_confirmed_is_cleared_from_the_file() {
    let mut it = Followed::new("CREATE TABLE a (id INTEGER PRIMARY KEY)", &["a"]).await;
    for id in 0..50 {
        it.file.run(&format!("INSERT INTO a VALUES ({id})"));
    }
    it.settle("a").await;
    let mut frontier = crossfade_event::Frontier::default();
    let ticket = frontier.begin(it.model.position());
    it.source.confirm(frontier.finish(ticket).unwrap()).await.unwrap();
    let left = || -> i64 {
        it.file.writer.query_row("SELECT count(*) FROM _crossfade_changes_test", [], |row| row.get(0)).unwrap()
    };
    let begun = std::time::Instant::now();
    while left() > 1 {
        assert!(begun.elapsed() < PATIENCE, "{} rows are left", left());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    it.file.run("INSERT INTO a VALUES (100)");
    it.settle("a").await;
    assert!(it.reopen(&["a"]).await.is_ok(), "the last row shows that it is the same history");
}

#[tokio::test(flavor = "multi_thread")]
async fn uninstalling_leaves_nothing_in_the_source() {
    let mut it = Followed::new("CREATE TABLE a (id INTEGER PRIMARY KEY, u TEXT UNIQUE)", &["a"]).await;
    it.file.run("INSERT INTO a VALUES (1, 'x')");
    it.settle("a").await;
    it.source.uninstall().await.unwrap();
    let left: i64 = it
        .file
        .writer
        .query_row(
            "SELECT count(*) FROM sqlite_schema WHERE name LIKE '%crossfade%' OR sql LIKE '%crossfade%'",
            [],
            |row| row.get(0),
        )
        .unwrap();
    assert_eq!(left, 0);
    it.file.run("INSERT INTO a VALUES (2, 'y')");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_copy_of_a_table_without_a_key_saw_is_told_from_what_came_after() {
    let mut file = SourceFile::new("wal");
    file.options.workers = 1;
    // The first table is larger than what waits between the threads, so the second one is copied after the changes.
    file.run(
        "CREATE TABLE a_big (id INTEGER PRIMARY KEY, b); CREATE TABLE heap (v TEXT);
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000) INSERT INTO a_big SELECT i, zeroblob(1000) FROM n;
         INSERT INTO heap VALUES ('first')",
    );
    file.options.chunk_rows = 1_000_000;
    let tables = ["a_big", "heap"];
    let mut source = file.source(&tables);
    let mut model = Model::default();
    source.open(model.resume()).await.unwrap();
    file.run("INSERT INTO heap VALUES ('before the copy'); UPDATE heap SET v = 'changed before' WHERE v = 'first'");
    // The log takes the rows, but stops before it has any change.
    let ended = |model: &Model| model.resume().snapshot.tables.iter().all(|(_, table)| table.ended);
    while model.position().is_none() || !ended(&model) {
        let batch = tokio::time::timeout(PATIENCE, source.next()).await.expect("a batch in time").unwrap().unwrap();
        if !batch.events.iter().any(|stamped| {
            matches!(stamped.event, Event::Began(_) | Event::Changed(_) | Event::BackfillEnded { .. } | Event::Resolved)
        }) {
            model.take(batch);
        }
    }
    drop(source);
    file.run("INSERT INTO heap VALUES ('after the copy'); DELETE FROM heap WHERE v = 'before the copy'");
    let mut it = Followed { source: file.source(&tables), file, model };
    it.reopen(&tables).await.unwrap();
    while !it.model.backfill_ended() {
        it.next().await;
    }
    it.settle("heap").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_whose_taking_in_was_cut_off_is_forgotten_and_taken_in_anew() {
    let mut it = Followed::new("CREATE TABLE a (id INTEGER PRIMARY KEY, x TEXT)", &["*"]).await;
    it.file.run("CREATE TABLE b (id INTEGER PRIMARY KEY, u TEXT UNIQUE); INSERT INTO b VALUES (1, 'one'), (2, 'two')");
    let wanted = || vec![crossfade_event::TableName::new("main", "b")];
    for cut_off in [true, false] {
        let adder = it.source.adder();
        let asked = tokio::spawn(async move { adder.add_tables(wanted()).await });
        let again = loop {
            match tokio::time::timeout(PATIENCE, it.source.next()).await.expect("an answer in time") {
                Ok(batch) => it.model.take(batch.unwrap()),
                Err(failure) => break failure,
            }
        };
        assert!(again.is_transient(), "{again}");
        it.source.open(it.model.resume()).await.unwrap();
        if cut_off {
            // The triggers are there, and the log has not heard of them.
            asked.abort();
            let ours = "SELECT count(*) FROM sqlite_schema WHERE type = 'trigger' AND tbl_name = 'b'";
            let triggers = |it: &Followed| -> i64 { it.file.writer.query_row(ours, [], |row| row.get(0)).unwrap() };
            assert!(triggers(&it) > 0);
            it.file.run(
                "INSERT INTO b VALUES (3, 'three'); INSERT INTO a VALUES (1, 'x'); REPLACE INTO b VALUES (4, 'two')",
            );
            it.reopen(&["*"]).await.unwrap();
            assert_eq!(triggers(&it), 0);
            it.settle("a").await;
            it.file.run("INSERT INTO b VALUES (5, 'nobody looks'); INSERT INTO a VALUES (2, 'x')");
            it.settle("a").await;
        } else {
            while !it.model.backfill_ended() || it.model.resume().snapshot.generation < 2 {
                it.next().await;
            }
            assert_eq!(asked.await.unwrap().unwrap(), wanted());
        }
    }
    it.file.run("UPDATE b SET u = 'five' WHERE id = 5; DELETE FROM b WHERE id = 1; INSERT INTO a VALUES (3, 'x')");
    it.settle("b").await;
    it.settle("a").await;
}
