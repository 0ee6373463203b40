//! Who else writes the target: whoever does meets no error for it and is noticed, by whatever way; we are not.

use crate::rig::server_version;
use crossfade_event::{Side, TableName};
use crossfade_postgres::{Config, switch::SwitchEnd};
use crossfade_testkit::postgres::{Database, Postgres};

const TABLES: &str = "CREATE SCHEMA app;
CREATE TABLE app.plain (id int PRIMARY KEY, note text);
CREATE TABLE app.child (id int PRIMARY KEY, parent int REFERENCES app.plain ON DELETE CASCADE);
CREATE TABLE app.tree (id int PRIMARY KEY, note text) PARTITION BY RANGE (id);
CREATE TABLE app.leaf PARTITION OF app.tree FOR VALUES FROM (0) TO (100);
INSERT INTO app.plain SELECT i, 'n' FROM generate_series(1, 50) i;
INSERT INTO app.child SELECT i, i FROM generate_series(1, 50) i;
INSERT INTO app.tree SELECT i, 'n' FROM generate_series(1, 50) i;
DO $$ BEGIN CREATE ROLE clerk; EXCEPTION WHEN duplicate_object THEN NULL; END $$;
GRANT USAGE ON SCHEMA app TO clerk;
GRANT ALL ON app.plain, app.child, app.tree, app.leaf TO clerk";

/// A target and whoever watches it.
struct Watched {
    database: Database,
    end: SwitchEnd,
    tables: Vec<TableName>,
}

impl Watched {
    async fn new(name: &str) -> Option<Self> {
        let database = Postgres::shared_target(server_version())?.create_database(name).await;
        database.execute(TABLES).await;
        let mut end = SwitchEnd::new(Config::parse(&database.url).unwrap(), "move-1", Side::New);
        end.install(0).await.unwrap();
        let tables = ["plain", "child", "tree"].map(|name| TableName::new("app", name)).to_vec();
        Some(Self { database, end, tables })
    }

    async fn mark(&mut self) -> String {
        self.end.watch(&self.tables, None).await.unwrap()
    }

    async fn since(&mut self, mark: &str) -> Option<String> {
        self.end.written_since(&self.tables, mark).await.unwrap()
    }

    async fn count(&self, sql: &str) -> i64 {
        self.database.value(&format!("SELECT count(*) {sql}")).await.unwrap().parse().unwrap()
    }

    async fn notes(&self) -> i64 {
        self.count("FROM crossfade.foreign_writes").await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_writes_the_target_meets_no_error_and_is_noticed_by_whatever_way() {
    let Some(mut watched) = Watched::new("watched_ways").await else { return };
    for (way, table) in [
        ("INSERT INTO app.plain VALUES (60, 'x')", "app.plain"),
        ("UPDATE app.plain SET note = 'x' WHERE id = 1", "app.plain"),
        ("DELETE FROM app.plain WHERE id = 2", "app."),
        (
            "MERGE INTO app.plain p USING (VALUES (3)) v (id) ON p.id = v.id WHEN MATCHED THEN UPDATE SET note = 'm'",
            "app.plain",
        ),
        ("COPY app.child (id) FROM PROGRAM 'echo 70'", "app.child"),
        ("INSERT INTO app.tree VALUES (60, 'x')", "app.tree"),
        ("UPDATE app.leaf SET note = 'x' WHERE id = 1", "app.leaf"),
        // Told by the trigger, or by the table's new file: whichever is looked at first.
        ("TRUNCATE app.child", ""),
        ("TRUNCATE app.tree", ""),
        // Somebody who has no rights but on the tables, and looks nowhere for names.
        ("SET ROLE clerk; SET search_path = ''; UPDATE app.plain SET note = 'y' WHERE id = 1", "app.plain"),
        ("SET ROLE clerk; DELETE FROM app.plain WHERE id = 4; TRUNCATE app.tree", ""),
        ("SET session_replication_role = replica; DELETE FROM app.plain WHERE id = 5", "app.plain"),
        ("SET crossfade.pass = 'another'; DELETE FROM app.plain WHERE id = 6", "app.plain"),
        ("BEGIN ISOLATION LEVEL SERIALIZABLE; DELETE FROM app.plain WHERE id = 7; COMMIT", "app.plain"),
        (
            "BEGIN; SAVEPOINT a; DELETE FROM app.plain WHERE id = 8; ROLLBACK TO a; DELETE FROM app.plain WHERE id = 9; COMMIT",
            "app.plain",
        ),
        (
            "ALTER TABLE app.plain DISABLE TRIGGER ALL; DELETE FROM app.plain WHERE id = 10; ALTER TABLE app.plain ENABLE TRIGGER ALL",
            "watch was taken away",
        ),
        (
            "ALTER TABLE app.plain ALTER note TYPE text USING note || '!', ALTER id TYPE int USING id + 1000",
            "was rewritten",
        ),
    ] {
        if way.starts_with("MERGE") && server_version().major() < 15 {
            continue;
        }
        let mark = watched.mark().await;
        assert_eq!(watched.since(&mark).await, None, "before: {way}");
        let session = watched.database.connect().await;
        if let Err(error) = session.batch_execute(way).await {
            panic!("{way}: {error:?}");
        }
        let told = watched.since(&mark).await.unwrap_or_else(|| panic!("not noticed: {way}"));
        assert!(told.contains(table), "{way}: {told}");
        let after = watched.mark().await;
        assert_eq!(watched.since(&after).await, None, "after: {way}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_we_write_and_what_is_rolled_back_is_not_noted() {
    let Some(mut watched) = Watched::new("watched_own").await else { return };
    let mark = watched.mark().await;
    for way in [
        "SET crossfade.pass = 'move-1'; UPDATE app.plain SET note = 'x'; DELETE FROM app.child; INSERT INTO app.tree VALUES (90, 'x')",
        "SET crossfade.pass = 'move-1'; SET session_replication_role = replica; DELETE FROM app.leaf",
        "BEGIN; DELETE FROM app.child; ROLLBACK",
        "BEGIN; SAVEPOINT a; DELETE FROM app.child; ROLLBACK TO a; COMMIT",
        "SELECT * FROM app.plain FOR UPDATE; LOCK TABLE app.plain; ANALYZE app.plain; CREATE INDEX ON app.plain (note)",
    ] {
        watched.database.connect().await.batch_execute(way).await.unwrap();
        assert_eq!(watched.since(&mark).await, None, "{way}");
    }
    assert_eq!(watched.notes().await, 0);
    // Its writers are no foreigners once this side has the authority.
    watched.database.execute("UPDATE crossfade.authority SET side = 'new', epoch = 1").await;
    watched.database.execute("UPDATE app.plain SET note = 'theirs'").await;
    assert_eq!(watched.notes().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_was_open_at_the_mark_is_noticed_and_notes_do_not_pile_up() {
    let Some(mut watched) = Watched::new("watched_open").await else { return };
    let first = watched.mark().await;
    let open = watched.database.connect().await;
    open.batch_execute("BEGIN; UPDATE app.plain SET note = 'open' WHERE id = 1").await.unwrap();
    let second = watched.mark().await;
    assert_eq!(watched.since(&second).await, None, "nothing of it is there yet");
    // Others come and go, and their notes are let go but for the last ones.
    for _ in 0..30 {
        watched.database.execute("UPDATE app.plain SET note = 'other' WHERE id = 2").await;
    }
    watched.end.tidy_watch().await.unwrap();
    assert!(watched.notes().await <= 2, "{} notes are left", watched.notes().await);
    let third = watched.mark().await;
    for mark in [&first, &second] {
        assert!(watched.since(mark).await.is_some(), "a note that a mark needs was let go");
    }
    assert_eq!(watched.since(&third).await, None);
    open.batch_execute("COMMIT").await.unwrap();
    watched.end.tidy_watch().await.unwrap();
    for mark in [&first, &second, &third] {
        assert!(watched.since(mark).await.is_some(), "it ended after each of the marks");
    }
    let last = watched.end.watch(&watched.tables, Some(&third)).await.unwrap();
    assert_eq!(watched.since(&last).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_the_watch_is_left_and_nobody_fails_for_what_is_gone() {
    let Some(mut watched) = Watched::new("watched_gone").await else { return };
    let mark = watched.mark().await;
    // Somebody drops it by hand: no statement of theirs fails for it, and no proof holds any more.
    watched.database.execute("DROP TABLE crossfade.foreign_writes").await;
    watched.database.execute("UPDATE app.plain SET note = 'unseen' WHERE id = 1").await;
    let told = watched.since(&mark).await;
    assert!(told.is_some_and(|told| told.contains("watch was taken away")));
    let again = watched.mark().await;
    assert_eq!(watched.since(&again).await, None);
    assert!(watched.since(&mark).await.is_some(), "what was made anew knows nothing of before");
    watched.database.execute("UPDATE app.plain SET note = 'seen' WHERE id = 1").await;
    // A reader and a writer who come and go keep nobody from taking it away; one try keeps none of them waiting for long.
    let reader = watched.database.connect().await;
    reader.batch_execute("BEGIN; SELECT FROM app.plain").await.unwrap();
    let ends = tokio::spawn(async move {
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        reader.batch_execute("COMMIT").await.unwrap();
    });
    watched.end.unwatch().await.unwrap();
    ends.await.unwrap();
    assert_eq!(watched.count("FROM pg_trigger WHERE tgname LIKE 'crossfade%' AND NOT tgisinternal").await, 0);
    assert_eq!(watched.notes().await, 0);
    watched.end.forget().await.unwrap();
    assert_eq!(watched.count("FROM pg_namespace WHERE nspname = 'crossfade'").await, 0);
    watched.end.unwatch().await.unwrap();
    watched.end.tidy_watch().await.unwrap();
}
