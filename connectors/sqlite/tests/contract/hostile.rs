//! Files that make it hard: names like ours, rows without a stable number, keys that only look alike.

use crate::{both::Delivered, fixture::SourceFile, source::Followed};
use crossfade_connector::Source;

/// Runs each statement against a followed table, and compares source, log and target after each.
async fn follow(schema: &str, tables: &[&str], statements: &[&str]) {
    println!("{schema}");
    let mut it = Followed::new(schema, tables).await;
    let mut delivered = Delivered::new(&it, tables).await;
    delivered.assert_same(&it);
    for statement in statements {
        println!("  {statement}");
        it.file.run(statement);
        it.catch_up().await;
        delivered.follow(&it).await;
        delivered.assert_same(&it);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn names_like_ours_or_like_sqls_own_are_names_like_any_other() {
    for (table, key) in [("new", "seq"), ("old", "rowid"), ("a\"b 'c", "op"), ("order", "_rowid_"), ("Main", "c0")] {
        let quoted = table.replace('"', "\"\"");
        let schema = format!(
            "CREATE TABLE \"{quoted}\" (\"{key}\" INTEGER PRIMARY KEY, tbl TEXT, c1 TEXT UNIQUE, r TEXT, \"new\" TEXT, \"select\" TEXT);
             INSERT INTO \"{quoted}\" VALUES (1, 'a', 'b', 'c', 'd', 'e'), (2, 'a', 'bb', 'c', 'd', 'e')"
        );
        let all = |sql: &str| sql.replace('$', &format!("\"{quoted}\"")).replace('#', &format!("\"{key}\""));
        let statements = [
            "UPDATE $ SET tbl = 'x' WHERE # = 1",
            "REPLACE INTO $ VALUES (3, 'n', 'b', 'm', 'l', 'k')",
            "UPDATE OR REPLACE $ SET # = 7, \"new\" = NULL WHERE # = 2",
            "UPDATE $ SET # = -#",
            "DELETE FROM $ WHERE # = -3",
        ]
        .map(all);
        follow(&schema, &[table], &statements.each_ref().map(String::as_str)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn vacuum_renumbers_rows_and_nothing_is_taken_for_another() {
    let tables = ["keyed", "heap", "unique_heap"];
    let schema =
        "CREATE TABLE keyed (k TEXT PRIMARY KEY, v); CREATE TABLE heap (a, b); CREATE TABLE unique_heap (a UNIQUE, b);
        INSERT INTO keyed VALUES ('a', 1), ('b', 2), ('c', 3); INSERT INTO heap VALUES (1, 1), (1, 1), (2, 2);
        INSERT INTO unique_heap VALUES (1, 'x'), (2, 'y'), (NULL, 'z'), (NULL, 'z')";
    let statements = [
        "DELETE FROM keyed WHERE k = 'a'; DELETE FROM heap WHERE rowid = 1; DELETE FROM unique_heap WHERE a = 1",
        "INSERT OR IGNORE INTO unique_heap VALUES (2, 'noted, and not replaced')",
        "VACUUM",
        "REPLACE INTO unique_heap VALUES (2, 'new'); REPLACE INTO keyed VALUES ('b', 'new'); UPDATE heap SET b = 9 WHERE a = 2",
        "DELETE FROM unique_heap WHERE b = 'z' AND rowid = (SELECT min(rowid) FROM unique_heap WHERE b = 'z'); VACUUM",
        "REPLACE INTO heap(rowid, a, b) SELECT rowid, 'replaced', b FROM heap",
    ];
    follow(schema, &tables, &statements).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn generated_columns_may_be_what_replace_looks_at() {
    for kind in ["VIRTUAL", "STORED"] {
        let schema = format!(
            "CREATE TABLE g (id INTEGER PRIMARY KEY, a TEXT, low TEXT GENERATED ALWAYS AS (lower(a)) {kind} UNIQUE, n INTEGER);
             INSERT INTO g (id, a, n) VALUES (1, 'A', 1), (2, 'B', 2), (3, 'C', 3)"
        );
        let statements = [
            "REPLACE INTO g (id, a, n) VALUES (9, 'a', 4)",
            "UPDATE OR REPLACE g SET a = 'c' WHERE id = 2",
            "UPDATE g SET a = a || id, n = -n",
        ];
        follow(&schema, &["g"], &statements).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_take_each_others_keys_and_unique_values() {
    let schema = "PRAGMA foreign_keys = ON;
        CREATE TABLE p (id INTEGER PRIMARY KEY, u TEXT UNIQUE, up INTEGER REFERENCES p ON UPDATE CASCADE ON DELETE SET NULL);
        INSERT INTO p VALUES (1, 'a', NULL), (2, 'b', 1), (3, 'c', 2), (4, 'd', 2)";
    let statements = [
        "UPDATE p SET id = id + 10",
        "UPDATE p SET id = id - 9 WHERE id > 0",
        "BEGIN; UPDATE p SET u = 'swap' WHERE u = 'a'; UPDATE p SET u = 'a' WHERE u = 'b'; UPDATE p SET u = 'b' WHERE u = 'swap'; COMMIT",
        "BEGIN; UPDATE p SET id = 100 WHERE u = 'a'; UPDATE p SET id = (SELECT min(id) FROM p WHERE id < 100) - 1 WHERE u = 'b'; UPDATE p SET id = 50 WHERE id = 100; COMMIT",
        "INSERT INTO p VALUES (50, 'z', NULL) ON CONFLICT (id) DO UPDATE SET id = 51, u = excluded.u",
        "REPLACE INTO p VALUES (51, 'c', NULL)",
        "DELETE FROM p WHERE u = 'c'",
    ];
    follow(schema, &["p"], &statements).await;
}

/// The first row that goes sets off a cascade, which must not make the second one forgotten.
#[tokio::test(flavor = "multi_thread")]
async fn what_replace_removes_is_recorded_whatever_cascades_in_between() {
    for key in ["INTEGER PRIMARY KEY", "TEXT PRIMARY KEY", "INTEGER UNIQUE", "TEXT NOT NULL UNIQUE COLLATE NOCASE"] {
        for action in ["CASCADE", "SET NULL", "SET DEFAULT"] {
            let schema = format!(
                "PRAGMA foreign_keys = ON;
                 CREATE TABLE p (id {key}, u TEXT UNIQUE, w TEXT UNIQUE, up REFERENCES p(id) ON DELETE {action});
                 INSERT INTO p VALUES (1, 'a', 'a', NULL), (2, 'b', 'b', NULL), (3, 'c', 'c', NULL), (4, 'd', 'd', 1), (5, 'e', 'e', 2),
                   (6, 'f', 'f', 3), (7, 'g', 'g', 6), (8, 'h', 'h', 7), (10, 'k', 'k', NULL)"
            );
            let statements = [
                "INSERT OR IGNORE INTO p VALUES (9, 'a', 'b', NULL), (3, 'q', 'q', NULL)",
                "REPLACE INTO p VALUES (1, 'b', 'c', NULL)",
                "UPDATE OR REPLACE p SET u = 'f', w = 'g' WHERE id = 10",
                "REPLACE INTO p VALUES (8, 'x', 'b', NULL)",
            ];
            follow(&schema, &["p"], &statements).await;
        }
    }
}

/// A BEFORE trigger of the application writes to the table while a row of it is on its way in.
#[tokio::test(flavor = "multi_thread")]
async fn what_replace_removes_is_recorded_whatever_triggers_write_in_between() {
    let schema = "CREATE TABLE p (id INTEGER PRIMARY KEY, u TEXT UNIQUE, n INTEGER);
        CREATE TRIGGER before BEFORE INSERT ON p WHEN NEW.id < 100 BEGIN
          INSERT OR IGNORE INTO p VALUES (NEW.id + 100, 'of ' || NEW.u, 0); UPDATE p SET n = n + 1 WHERE id > 100; END;
        INSERT INTO p VALUES (1, 'a', 1), (2, 'b', 1), (3, 'c', 1)";
    let statements = [
        "REPLACE INTO p VALUES (4, 'a', 2)",
        "REPLACE INTO p VALUES (2, 'c', 3)",
        "REPLACE INTO p VALUES (5, 'of b', 3)",
    ];
    follow(schema, &["p"], &statements).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_row_without_a_key_is_recorded_also_where_its_number_stays() {
    let statements = [
        "REPLACE INTO h(rowid, a, b) SELECT rowid, 'replaced', b FROM h",
        "INSERT OR IGNORE INTO h(rowid, a, b) VALUES (2, 'ignored', 7); UPDATE h SET b = b + 1 WHERE rowid = 2",
        "UPDATE OR REPLACE h SET rowid = 1 WHERE rowid = 2",
        "UPDATE h SET rowid = rowid + 10 WHERE rowid = 3; DELETE FROM h WHERE rowid = 13",
    ];
    for unique in ["", " UNIQUE"] {
        let schema = format!(
            "CREATE TABLE h (a TEXT, b INTEGER{unique}); INSERT INTO h VALUES ('x', 1), ('x', 20), ('y', 30), ('x', NULL)"
        );
        follow(&schema, &["h"], &statements).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_look_alike_stay_apart() {
    let schema = "CREATE TABLE k (k BLOB NOT NULL, n NUMERIC NOT NULL, t TEXT NOT NULL COLLATE NOCASE, v, PRIMARY KEY (k, t, n)) WITHOUT ROWID;
        CREATE TABLE i (id INTEGER PRIMARY KEY, v);
        INSERT INTO k VALUES (x'00', 1, 'a', 1), (x'', 1, 'a', 1), ('', 1, 'a', 1), ('1', 1, 'a', 1), (1, 1, 'a', 1), (x'31', 1, 'a', 1);
        INSERT INTO i VALUES (-9223372036854775808, 'least'), (9223372036854775807, 'most'), (0, 'none')";
    let statements = [
        "UPDATE k SET v = typeof(k)",
        "INSERT INTO k VALUES (CAST(x'ff00fe' AS TEXT), 9007199254740993, 'a' || char(0) || 'b', -0.0), (9e999, -9e999, 'Ü', 1e-320)",
        "UPDATE k SET t = upper(t), n = n + 0.5",
        "REPLACE INTO k VALUES (1.0, 1.5, 'a', 'one and one are one')",
        "DELETE FROM k WHERE typeof(k) = 'blob'",
        "UPDATE k SET k = CAST(k AS TEXT) || 'x' WHERE typeof(k) = 'text'",
        "UPDATE i SET v = v || '!'; INSERT INTO i(v) VALUES ('by chance')",
        "UPDATE i SET id = 9223372036854775806 WHERE id = 9223372036854775807",
        "DELETE FROM i WHERE id < 0",
    ];
    follow(schema, &["k", "i"], &statements).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn strict_tables_and_their_values_of_any_type_arrive_in_a_plain_one() {
    let schema = "CREATE TABLE s (id INT PRIMARY KEY, x ANY, r REAL, t TEXT, b BLOB) STRICT;
        INSERT INTO s VALUES (1, '007', 1, '1', x'31'), (2, 7, -0.0, '1e3', x''), (3, 1.0, 9e999, '', NULL)";
    follow(
        schema,
        &["s"],
        &["UPDATE s SET x = '1.50' WHERE id = 3", "INSERT INTO s VALUES (4, x'00', 5, ' 5 ', x'35')"],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_attached_under_another_name_is_recorded_all_the_same() {
    let mut it =
        Followed::new("CREATE TABLE a (id INTEGER PRIMARY KEY, u UNIQUE); INSERT INTO a VALUES (1, 'x')", &["a"]).await;
    let elsewhere = rusqlite::Connection::open_in_memory().unwrap();
    elsewhere.execute("ATTACH ?1 AS other", [it.file.path().to_str().unwrap()]).unwrap();
    elsewhere
        .execute_batch(
            "CREATE TABLE a (id INTEGER PRIMARY KEY, u UNIQUE); CREATE TABLE _crossfade_changes_test (seq INTEGER PRIMARY KEY, tbl, op, c0, c1);
             INSERT INTO a VALUES (1, 'not this one'); CREATE TEMP TABLE _crossfade_removed_test_1 (r, c0);
             INSERT INTO other.a VALUES (2, 'y'); UPDATE other.a SET u = 'z' WHERE id = 1; REPLACE INTO other.a VALUES (3, 'z')",
        )
        .unwrap();
    it.settle("a").await;
    let strangers: i64 =
        elsewhere.query_row("SELECT count(*) FROM main._crossfade_changes_test", [], |row| row.get(0)).unwrap();
    assert_eq!(strangers, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn views_with_triggers_and_counters_lead_to_the_tables_behind_them() {
    let schema = "CREATE TABLE b (id INTEGER PRIMARY KEY AUTOINCREMENT, n TEXT, at TEXT DEFAULT 'now');
        CREATE VIEW v AS SELECT id, n FROM b;
        CREATE TRIGGER v_new INSTEAD OF INSERT ON v BEGIN INSERT INTO b (n) VALUES (NEW.n); END;
        CREATE TRIGGER v_gone INSTEAD OF DELETE ON v BEGIN DELETE FROM b WHERE id = OLD.id; END;
        INSERT INTO b (n) VALUES ('first')";
    let statements = [
        "INSERT INTO v (n) VALUES ('second'), ('third')",
        "DELETE FROM v WHERE n = 'first'",
        "INSERT INTO v (n) SELECT n || '!' FROM v RETURNING n",
        "DELETE FROM b; INSERT INTO b (n) VALUES ('goes on counting')",
    ];
    follow(schema, &["b"], &statements).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_is_locked_too_long_is_tried_again_and_has_lost_nothing() {
    let file = SourceFile::new("delete");
    file.run("CREATE TABLE a (id INTEGER PRIMARY KEY, v)");
    let mut it = Followed::of(file, &["a"]).await;
    let short = crossfade_sqlite::Config { busy_timeout: std::time::Duration::from_millis(20), ..it.file.config() };
    it.source = crossfade_sqlite::SqliteSource::new(short, "test", vec!["a".into()], it.file.options);
    it.source.open(it.model.resume()).await.unwrap();
    it.file.run("BEGIN EXCLUSIVE; INSERT INTO a VALUES (1, 'x')");
    let failure = loop {
        match tokio::time::timeout(crate::source::PATIENCE, it.source.next()).await.expect("an answer in time") {
            Ok(batch) => it.model.take(batch.unwrap()),
            Err(failure) => break failure,
        }
    };
    assert!(failure.is_transient(), "{failure}");
    it.file.run("COMMIT");
    it.reopen(&["a"]).await.unwrap();
    it.settle("a").await;
}
