//! New tables and columns beside the old ones, in one schema of one database. Tables are taken by a pattern that means the
//! new ones as well: what the migration made is no table of the application. And whoever writes the same rows comes first.

use crate::desk::{Desk, SPEC, Writer, postgres, rows, two_databases};
use crossfade_testkit::compare::assert_same;

const FILL: &str = "
CREATE SCHEMA app; CREATE TABLE app.people (id integer PRIMARY KEY, name text NOT NULL);
CREATE TABLE app.notes (id integer PRIMARY KEY, person_id integer NOT NULL REFERENCES app.people, body text);
INSERT INTO app.people SELECT n, 'p' || n FROM generate_series(1, 500) n;
INSERT INTO app.notes SELECT n, n, 'n' || n FROM generate_series(1, 500) n";

const RULES: &str = "
[keys.default]
make = \"uuid-v5\"
namespace = \"6f1c1f0e-6f2b-4b57-9a34-0d5be4c7a001\"
[rekey]
tables = [\"app.people\", \"app.notes\"]
with = \"default\"
[[table]]
from = \"app.people\"
to = \"people_v2\"
[[table]]
from = \"app.notes\"
to = \"notes_v2\"
";

fn work(number: u64) -> String {
    let (id, new) = (1 + number * 7 % 400, 1000 + number);
    match number % 3 {
        0 => format!("INSERT INTO app.people VALUES ({new}, 'new'); INSERT INTO app.notes VALUES ({new}, {new}, NULL)"),
        1 => format!("UPDATE app.notes SET body = 'then {number}' WHERE person_id = {id}"),
        _ => format!("DELETE FROM app.notes WHERE id = {}", 401 + number % 100),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn new_tables_in_the_schema_of_the_old_ones_are_not_taken_for_tables_of_the_application() {
    let Some((database, _)) = two_databases().await else { return };
    database.execute(FILL).await;
    let desk = Desk::new();
    let both = postgres(&database);
    desk.write_spec(&format!("{both}\ntables = [\"app.*\"]"), &format!("{both}\nschema = \"app\""), RULES);
    desk.expect(0, &["check"], &[]);
    let writer = Writer::start(&database, work);
    let mut running = desk.start();
    writer.wait_for_more(50);
    desk.wait(&mut running);
    // From its beginning on, and started again.
    desk.stop(running);
    let mut running = desk.start();
    writer.wait_for_more(50);
    writer.stop();
    desk.wait(&mut running);
    desk.verify();

    let status = desk.crossfade.json(&["status", SPEC]);
    assert_eq!(status["source"]["uncaptured_tables"], serde_json::json!([]), "{status}");
    desk.expect(0, &["plan"], &[]);
    desk.expect(0, &["resume", "--add"], &[]);
    desk.wait(&mut running);
    let taken = "SELECT tablename::text FROM pg_publication_tables WHERE schemaname = 'app' ORDER BY 1";
    let tables = rows(&database, taken).await;
    assert_same("what is published", &rows(&database, "VALUES ('notes'), ('people')").await, &tables);

    let key = |table: &str, column: &str| {
        format!(
            "(SELECT new_id FROM app.uuid_migration_mapping WHERE table_name LIKE '%.{table}' AND old_id = {column}::text)"
        )
    };
    let wanted = format!("SELECT {}::text, name FROM app.people", key("people", "id"));
    let found = "SELECT id::text, name FROM app.people_v2";
    assert_same("people", &rows(&database, &wanted).await, &rows(&database, found).await);
    let wanted =
        format!("SELECT {}::text, {}::text, body FROM app.notes", key("notes", "id"), key("people", "person_id"));
    let found = "SELECT id::text, person_id::text, body FROM app.notes_v2";
    assert_same("notes", &rows(&database, &wanted).await, &rows(&database, found).await);
    desk.stop(running);
    desk.expect(0, &["rollback"], &["--wipe", "--yes"]);
    let left = "SELECT tablename::text FROM pg_tables WHERE schemaname = 'app' ORDER BY 1";
    let tables = rows(&database, left).await;
    assert_same("what is left", &rows(&database, "VALUES ('notes'), ('people')").await, &tables);
}

const SHADOWS: &str = "write = \"shadow-columns\"
[[table]]
from = \"app.people\"
steps = [{ rename = \"name\", to = \"name_copy\" }]
";

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_that_meets_a_deadlock_with_the_application_gives_way_and_is_done_again() {
    let Some((database, _)) = two_databases().await else { return };
    database.execute(FILL).await;
    let desk = Desk::new();
    let both = postgres(&database);
    desk.write_spec(&format!("{both}\ntables = [\"app.people\"]"), &both, SHADOWS);
    let mut running = desk.start();
    desk.wait(&mut running);
    desk.expect(0, &["checkpoint"], &["before"]);
    database.execute("UPDATE app.people SET name = 'one' WHERE id = 1").await;
    database.execute("UPDATE app.people SET name = 'two' WHERE id = 2").await;
    desk.wait(&mut running);
    desk.stop(running);
    database.execute("UPDATE app.people SET name_copy = 'damaged' WHERE id < 3").await;

    // The replay takes row 1 and waits for row 2; then the application wants row 1. Whoever looks for a deadlock first once
    // there is one gives way: that is the replay, unless this machine stood still meanwhile. Then it is tried again.
    let name = &database.name;
    database.execute(&format!("ALTER DATABASE {name} SET deadlock_timeout = '2s'")).await;
    let mut met = false;
    for _ in 0..5 {
        let application = database.connect().await;
        application
            .batch_execute("SET deadlock_timeout = '2min'; BEGIN; UPDATE app.people SET id = id WHERE id = 2")
            .await
            .unwrap();
        let mut replay = desk.crossfade.spawn(&["replay", SPEC, "--from", "checkpoint:before"]);
        let waiting = "SELECT 1 FROM pg_stat_activity WHERE cardinality(pg_blocking_pids(pid)) > 0 AND datname = current_database()";
        desk.until("the replay to wait for the application", &mut replay, async || {
            rows(&database, waiting).await.count() > 0
        })
        .await;
        let went_on = application.batch_execute("UPDATE app.people SET id = id WHERE id = 1").await;
        let ended = application.batch_execute(if went_on.is_ok() { "COMMIT" } else { "ROLLBACK" }).await;
        assert!(ended.is_ok(), "{ended:?}");
        let finished = replay.wait();
        assert_eq!(finished.code, Some(0), "{finished}");
        met = went_on.is_ok();
        if met {
            break;
        }
    }
    assert!(met, "the replay never met the deadlock");
    let copies = rows(&database, "SELECT id, name_copy FROM app.people WHERE id < 4 ORDER BY 1").await;
    assert_same("healed", &rows(&database, "VALUES (1, 'one'), (2, 'two'), (3, 'p3')").await, &copies);
}
