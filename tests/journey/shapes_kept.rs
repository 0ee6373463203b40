//! Views of both shapes, and the clean-up: within one database, by columns and by tables.

use crate::{
    clerks::{Clerks, Office},
    desk::{Desk, SPEC, postgres, rows},
};
use crossfade_testkit::{
    compare::assert_same,
    postgres::{Database, Postgres, Version},
    wait::wait_until,
};
use std::fs;

async fn views_are_there(database: &Database, schema: &str, count: usize) {
    wait_until("the views", async || {
        let sql = format!("SELECT count(*) FROM pg_views WHERE schemaname = '{schema}'");
        database.value(&sql).await == Some(count.to_string())
    })
    .await;
}

/// What both views show of the users: the same people with the same managers, in two shapes.
async fn assert_both_shapes(office: &Office) {
    let old = "SELECT u.email, m.email, u.balance::numeric(20,2)::text, pg_typeof(u.user_id)::text FROM app_v1.users u \
               LEFT JOIN app_v1.users m ON m.user_id = u.manager_id";
    let new = "SELECT u.email, m.email, u.balance::text, 'integer' FROM app_v2.users u \
               LEFT JOIN app_v2.users m ON m.user_id = u.manager_id WHERE pg_typeof(u.user_id)::text = 'uuid'";
    assert_same("users in both shapes", &rows(&office.database, old).await, &rows(&office.database, new).await);
    let old = "SELECT o.ref, o.note, u.email FROM app_v1.orders o JOIN app_v1.users u USING (user_id)";
    let new = "SELECT o.ref, o.remark, u.email FROM app_v2.orders o JOIN app_v2.users u USING (user_id)";
    assert_same("orders in both shapes", &rows(&office.database, old).await, &rows(&office.database, new).await);
}

async fn refused(database: &Database, sql: &str) {
    let error = database.connect().await.batch_execute(sql).await.unwrap_err();
    assert_eq!(error.code().map(|code| code.code()), Some("25006"), "{sql}: {error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn both_shapes_are_right_at_all_times_and_written_on_the_side_that_has_the_authority_until_the_clean_up() {
    let Some(office) = Office::open(Version::V15, "keep = \"1ms\"\n[views]\napp = \"app\"").await else { return };
    let plan = office.desk.expect(0, &["plan"], &[]);
    assert!(plan.stdout.contains("CREATE VIEW \"app_v2\".\"users\""), "{plan}");
    let mut run = office.desk.start();
    office.desk.wait(&mut run);
    for schema in ["app_v1", "app_v2"] {
        views_are_there(&office.database, schema, 3).await;
    }
    office.database.execute("INSERT INTO app_v1.users (email) VALUES ('by-view-1')").await;
    refused(&office.database, "UPDATE app_v2.users SET balance = 0 WHERE email = 'u1'").await;
    office.desk.wait(&mut run);
    assert_both_shapes(&office).await;

    let clerks = Clerks::start(&office, 2, 1);
    clerks.wait_for_more(30);
    office.desk.verify();
    office.desk.expect(0, &["cutover"], &[]);
    clerks.wait_for_more(30);
    office.database.execute("INSERT INTO app_v2.users (email, manager_id) SELECT 'by-view-2', user_id FROM app_v2.users WHERE email = 'u5'").await;
    refused(&office.database, "DELETE FROM app_v1.users WHERE email = 'u1'").await;

    let told = clerks.stop();
    assert_both_shapes(&office).await;
    office.desk.expect(0, &["failback"], &[]);
    office.database.execute("UPDATE app_v1.users SET balance = balance + 0 WHERE email = 'u1'").await;
    refused(&office.database, "DELETE FROM app_v2.users WHERE email = 'u1'").await;
    assert_both_shapes(&office).await;
    office.assert_nothing_lost(&told).await;
    office.desk.expect(0, &["rollback"], &["--wipe", "--yes"]);
    office.assert_as_it_was().await;
    let left = "SELECT nspname FROM pg_namespace WHERE nspname LIKE 'app!_v%' ESCAPE '!'";
    assert_eq!(rows(&office.database, left).await.count(), 0, "schemas of the views are left");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_clean_up_waits_is_confirmed_exports_and_leaves_only_the_new_columns() {
    let Some(office) = Office::open(Version::V18, "keep = \"7d\"\n[views]\napp = \"app\"").await else { return };
    let mut run = office.desk.start();
    office.desk.wait(&mut run);
    for schema in ["app_v1", "app_v2"] {
        views_are_there(&office.database, schema, 3).await;
    }
    office.desk.verify();
    office.desk.expect(75, &["cleanup"], &["--confirm", &office.desk.name]);
    office.desk.expect(0, &["cutover"], &[]);
    let clerks = Clerks::start(&office, 2, 0);
    clerks.wait_for_more(30);
    let early = office.desk.expect(3, &["cleanup"], &["--confirm", &office.desk.name]);
    assert!(early.stderr.contains("kept open for 7d"), "{early}");
    let spec = fs::read_to_string(office.desk.path(SPEC)).unwrap().replace("keep = \"7d\"", "keep = \"1ms\"");
    office.desk.crossfade.write(SPEC, &spec);
    let dry = office.desk.expect(0, &["cleanup"], &["--dry-run"]);
    assert!(dry.stdout.contains("DROP COLUMN \"legacy_user_id\""), "{dry}");
    office.desk.expect(3, &["cleanup"], &["--confirm", "another"]);
    // Somebody shows an old column: it is named, and nothing has gone.
    office.database.execute("CREATE VIEW public.mine AS SELECT legacy_user_id FROM users").await;
    let refused = office.desk.expect(3, &["cleanup"], &["--confirm", &office.desk.name]);
    assert!(refused.stderr.contains("mine"), "{refused}");
    office.assert_both_right().await;
    office.database.execute("DROP VIEW public.mine").await;

    let keys = rows(
        &office.database,
        "SELECT 'public.users', legacy_user_id::text, user_id::text FROM users WHERE email LIKE 'u%'",
    )
    .await;
    office.desk.expect(0, &["cleanup"], &["--confirm", &office.desk.name, "--drop-mapping"]);
    clerks.wait_for_more(30);
    let told = clerks.stop();
    office.assert_nothing_lost(&told).await;
    office.assert_new_shape().await;
    for (what, sql) in [
        ("old columns", "SELECT attname FROM pg_attribute WHERE attname LIKE 'legacy%' AND NOT attisdropped"),
        ("triggers", "SELECT tgname FROM pg_trigger WHERE tgname LIKE '%crossfade%' AND NOT tgisinternal"),
        ("names of before", "SELECT relname FROM pg_class WHERE relname LIKE '%!_new' ESCAPE '!'"),
        ("the mapping", "SELECT relname FROM pg_class WHERE relname = 'uuid_migration_mapping'"),
        ("the old views", "SELECT nspname FROM pg_namespace WHERE nspname = 'app_v1'"),
        (
            "checks that have gone",
            "SELECT 1 WHERE NOT EXISTS (SELECT FROM pg_constraint WHERE conname = 'users_balance_check')",
        ),
    ] {
        assert_eq!(rows(&office.database, sql).await.count(), 0, "{what}");
    }
    let exported = fs::read_to_string(office.desk.work().join("cleanup/keys.csv")).unwrap();
    for row in keys.iter() {
        let line: Vec<&str> = row.iter().map(|cell| cell.as_deref().unwrap()).collect();
        assert!(exported.lines().any(|exported| exported == line.join(",")), "{line:?} is not in the export");
    }
    let journal = fs::read_to_string(office.desk.work().join("cleanup/journal.jsonl")).unwrap();
    assert!(journal.contains("authority-moved"), "{journal}");
    assert_eq!(office.desk.crossfade.json(&["status", SPEC])["phase"], "done");
    office.desk.expect(0, &["cleanup"], &["--confirm", &office.desk.name]);
    office.desk.expect(3, &["failback"], &[]);
}

const BOOKS: &str =
    "CREATE TABLE books (book_id integer GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, title text NOT NULL);
    INSERT INTO books (title) SELECT 'b' || i FROM generate_series(1, 100) i";

const BOOK_RULES: &str = "[keys.default]
make = \"uuid-v5\"
namespace = \"6f1c1f0e-6f2b-4b57-9a34-0d5be4c7a001\"
[rekey]
tables = [\"public.books\"]
with = \"default\"
[switch]
keep = \"1ms\"
[views]
app = \"lib\"
";

#[tokio::test(flavor = "multi_thread")]
async fn new_tables_in_another_schema_of_the_same_database_get_the_authority_and_the_old_ones_follow() {
    let Some(server) = Postgres::shared(Version::V17) else { return };
    let database = server.create_database("library").await;
    database.execute(BOOKS).await;
    let desk = Desk::new();
    let both = postgres(&database);
    desk.write_spec(&format!("{both}\ntables = [\"public.*\"]"), &format!("{both}\nschema = \"shelf\""), BOOK_RULES);
    let mut run = desk.start();
    desk.wait(&mut run);
    for schema in ["lib_v1", "lib_v2"] {
        views_are_there(&database, schema, 1).await;
    }
    database.execute("INSERT INTO lib_v1.books (title) VALUES ('old way')").await;
    refused(&database, "INSERT INTO lib_v2.books (title) VALUES ('too early')").await;
    desk.wait(&mut run);
    desk.verify();
    desk.expect(0, &["cutover"], &[]);
    assert_eq!(run.wait().code, Some(0));
    database.execute("INSERT INTO lib_v2.books (book_id, title) VALUES (gen_random_uuid(), 'new way')").await;
    refused(&database, "INSERT INTO lib_v1.books (title) VALUES ('too late')").await;
    let mut run = desk.start();
    desk.wait_with(&mut run, &["--reverse"]);
    let titles = |schema: &str| format!("SELECT title FROM {schema}.books");
    assert_same("titles", &rows(&database, &titles("lib_v1")).await, &rows(&database, &titles("lib_v2")).await);
    assert_eq!(rows(&database, "SELECT 1 FROM books WHERE title IN ('old way', 'new way')").await.count(), 2);
    desk.expect(75, &["cleanup"], &["--confirm", &desk.name]);
    desk.stop(run);
    desk.expect(0, &["cleanup"], &["--confirm", &desk.name]);
    let slots = format!(
        "SELECT slot_name FROM pg_replication_slots WHERE slot_name LIKE 'crossfade_{}%'",
        desk.name.replace('-', "_")
    );
    assert_eq!(rows(&database, &slots).await.count(), 0, "slots are left");
    assert_eq!(rows(&database, "SELECT pubname FROM pg_publication").await.count(), 0, "publications are left");
    crate::compared_always::assert_unwatched(&database).await;
    refused(&database, "INSERT INTO books (title) VALUES ('behind the fence still')").await;
    database.execute("INSERT INTO shelf.books (book_id, title) VALUES (gen_random_uuid(), 'for ever')").await;
    assert!(desk.work().join("cleanup/mapping.csv").exists());
    desk.expect(3, &["run"], &["--quiet"]);
}
