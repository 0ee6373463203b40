//! Types, names, and shapes that change.

use crate::support::*;
use crossfade_connector::{Source, Verdict};
use crossfade_event::{Event, Format, Identity};
use crossfade_postgres::{OnRewrite, PostgresSource};
use crossfade_testkit::postgres::Version;

const TYPES: &str = r#"CREATE SCHEMA app;
    CREATE TYPE app.mood AS ENUM ('sad', 'it''s "ok"', 'happy'); CREATE DOMAIN app.posint AS int CHECK (VALUE > 0);
    CREATE TABLE app.every (id int PRIMARY KEY, b bool, i2 int2, i8 int8, f4 float4, f8 float8, n numeric, n2 numeric(12,4),
      t text, vc varchar(9), ch char(5), by bytea, d date, tm time, tz timetz, ts timestamp, tstz timestamptz, iv interval,
      u uuid, j json, jb jsonb, x xml, bt bit(3), vb varbit, ip inet, c cidr, mac macaddr, pt point, bx box, pth path,
      ir int4range, nmr nummultirange, tsv tsvector, tq tsquery, ia int[], ta text[][], mny money, md app.mood, pi app.posint,
      o oid, nm name, c1 "char", lsn pg_lsn, tids tid);
    INSERT INTO app.every (id) VALUES (1);
    INSERT INTO app.every VALUES (2, true, -32768, 9223372036854775807, '-0', 'NaN', 'NaN', 1.5, E'tab\tand "quotes" \\', 'ü', 'ab',
      '\x00ff', '4713-01-01 BC', '24:00', '23:59:59.999999-15:59', '294276-12-31 23:59:59.999999', 'infinity',
      '-178000000 years 3 days -04:05:06.789', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '{"b" : 1, "a":1.0,"a":2}',
      '{"z":1e2}', '<a>x</a>', B'101', B'', '::1/64', '10.0.0.0/8', '08:00:2b:01:02:03', '(1,-0)', '(1,2),(0,0)', '[(0,0),(1,1)]',
      '[1,5)', '{[1.5,2],(3,)}', 'a:1A fat:2', 'a & !b', '[5:6]={7,NULL}', '{{a,NULL},{"NULL",""}}', '-12.34', 'it''s "ok"', 7,
      4294967295, 'name', 'q', '16/B374D848', '(0,1)');
    INSERT INTO app.every (id, n, f4, f8, ts, d, iv, i2) VALUES (3, 'Infinity', 'Infinity', 1e-300, '-infinity', 'infinity', '0', 0),
      (4, 1e-1000, 1.17549435e-38, 0.1, '4713-01-01 00:00 BC', '5874897-12-31', '1 mon -1 day', 1),
      (5, -0.000, '-Infinity', '-0', '2000-01-01', '0001-01-01', '-1 us', -1);"#;

async fn types_arrive(version: Version, text: bool) {
    let Some(fixture) = Fixture::new(version, "types", TYPES).await else { return };
    let mut config = fixture.config(&["app.*"]);
    config.text = text;
    let mut source = PostgresSource::new(config).unwrap();
    let mut log = Log::default();
    open(&mut source, &mut log).await;
    ingest_all(&fixture, &mut source, &mut log).await;
    fixture
        .database
        .execute("CREATE TEMP TABLE x AS SELECT * FROM app.every; UPDATE x SET id = id + 100; INSERT INTO app.every SELECT * FROM x")
        .await;
    fixture.database.execute("UPDATE app.every SET id = id + 1000 WHERE id > 100").await;
    ingest_all(&fixture, &mut source, &mut log).await;
    let formats: Vec<_> = log.schema("app.every").columns.iter().map(|column| column.type_.format).collect();
    let binary = formats.iter().filter(|format| **format == Format::PgBinary).count();
    assert!(if text { binary == 0 } else { binary == formats.len() });
}

#[tokio::test(flavor = "multi_thread")]
async fn every_built_in_type_arrives_bit_for_bit() {
    for version in Version::ALL {
        types_arrive(version, false).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_built_in_type_arrives_as_text_where_that_is_asked_for() {
    types_arrive(Version::V15, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn types_that_cannot_travel_in_binary_form_make_the_whole_stream_text() {
    let sql = "CREATE SCHEMA app; CREATE TYPE app.mood AS ENUM ('a', 'b'); CREATE TYPE app.pair AS (x int, m app.mood);
        CREATE TABLE app.t (id int PRIMARY KEY, ms app.mood[], p app.pair, r regclass, acl aclitem[], ch char(4), b bool);
        INSERT INTO app.t VALUES (1, '{a,b}', '(1,a)', 'app.t', '{postgres=r/postgres}', 'x', true), (2, NULL, '(,)', NULL, NULL, NULL, NULL)";
    let Some(fixture) = Fixture::new(Version::V15, "text_types", sql).await else { return };
    let (mut source, mut log) = fixture.copied().await;
    fixture.database.execute("INSERT INTO app.t SELECT id + 10, ms, p, r, acl, ch, b FROM app.t").await;
    ingest_all(&fixture, &mut source, &mut log).await;
    assert!(log.schema("app.t").columns.iter().all(|column| column.type_.format == Format::PgText));
}

#[tokio::test(flavor = "multi_thread")]
async fn types_of_extensions_arrive_bit_for_bit_known_or_not() {
    let sql = "CREATE EXTENSION hstore; CREATE EXTENSION citext; CREATE EXTENSION ltree; CREATE EXTENSION cube; CREATE EXTENSION isn;
        CREATE SCHEMA app; CREATE TABLE app.t (id citext PRIMARY KEY, h hstore, l ltree, q lquery, c cube, i isbn13, hs hstore[], ls ltree[]);
        INSERT INTO app.t VALUES ('Ä', 'a=>1, \"b c\"=>NULL', 'top.a.b', '*.a.*', '(1,2),(3,4.5)', '978-0-393-04002-9', '{a=>1}', '{a.b,c}'),
        ('b', '', '', NULL, '(0)', NULL, NULL, '{}')";
    let Some(fixture) = Fixture::new(Version::V15, "extension_types", sql).await else { return };
    let (mut source, mut log) = fixture.copied().await;
    fixture
        .database
        .execute(
            "INSERT INTO app.t SELECT id || 'x', h, l, q, c, i, hs, ls FROM app.t;
             UPDATE app.t SET h = h || 'n=>NULL', l = 'z', c = cube(7) WHERE id = 'äX'; DELETE FROM app.t WHERE id = 'B'",
        )
        .await;
    let replica = ingest_all(&fixture, &mut source, &mut log).await;
    assert_eq!(replica.rows("app.t").len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_that_needs_text_turns_a_running_stream_to_text() {
    let sql = "CREATE SCHEMA app; CREATE TABLE app.t (id int PRIMARY KEY); INSERT INTO app.t VALUES (1)";
    let Some(fixture) = Fixture::new(Version::V15, "turns_text", sql).await else { return };
    let (mut source, mut log) = fixture.copied().await;
    fixture.database.execute("ALTER TABLE app.t ADD r regclass; INSERT INTO app.t VALUES (2, 'app.t')").await;
    let failure = loop {
        match source.next().await {
            Ok(batch) => log.append(batch.unwrap()),
            Err(failure) => break failure,
        }
    };
    assert_eq!(failure.verdict, Verdict::Reconnect);
    open(&mut source, &mut log).await;
    let target = fixture.here().await;
    ingest(&mut source, &mut log, target).await;
    let schema = log.schema("app.t");
    assert!(schema.columns.iter().all(|column| column.type_.format == Format::PgText), "{schema:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_names_generated_and_dropped_columns_are_no_matter() {
    let long = "ä".repeat(31);
    let sql = format!(
        r#"CREATE SCHEMA "My ""Schema"; CREATE SCHEMA app;
        CREATE TABLE "My ""Schema"."select" ("from" int, "a""b;--" text, "{long}" int, gone int,
          doubled int GENERATED ALWAYS AS ("from" * 2) STORED, ident int GENERATED ALWAYS AS IDENTITY,
          PRIMARY KEY ("{long}", "from"));
        ALTER TABLE "My ""Schema"."select" DROP COLUMN gone;
        INSERT INTO "My ""Schema"."select" VALUES (1, 'x', 2), (2, 'y', 1);"#
    );
    for version in [Version::V15, Version::V18] {
        let Some(fixture) = Fixture::new(version, "names", &sql).await else { return };
        let config = fixture.config(&[r#""My ""Schema".*"#]);
        let mut source = PostgresSource::new(config).unwrap();
        let mut log = Log::default();
        open(&mut source, &mut log).await;
        fixture.database.execute(r#"UPDATE "My ""Schema"."select" SET "from" = 7 WHERE "from" = 1; INSERT INTO "My ""Schema"."select" VALUES (5, 'z', 5)"#).await;
        ingest_all(&fixture, &mut source, &mut log).await;
        let schema = log.schema("My \"Schema.select");
        let names: Vec<_> = schema.columns.iter().map(|column| &*column.name).collect();
        assert_eq!(names, ["from", "a\"b;--", &long, "ident"]);
        assert_eq!(schema.key_columns(), [2, 0], "the key in the index's order");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn added_renamed_and_dropped_columns_are_followed() {
    let sql = "CREATE SCHEMA app; CREATE TABLE app.t (id int PRIMARY KEY, a int, b text, c varchar(5));
        INSERT INTO app.t SELECT n, n, 'b' || n, 'c' FROM generate_series(1, 50) n";
    for version in [Version::V15, Version::V18] {
        let Some(fixture) = Fixture::new(version, "ddl", sql).await else { return };
        let (mut source, mut log) = fixture.copied().await;
        for ddl in [
            "ALTER TABLE app.t ADD d text DEFAULT 'it''s', ADD e timestamptz DEFAULT now(), ADD f int",
            "ALTER TABLE app.t RENAME a TO renamed",
            "ALTER TABLE app.t DROP b",
            "ALTER TABLE app.t ALTER c TYPE varchar(50)",
            "ALTER TABLE app.t RENAME TO t2",
        ] {
            let table = if ddl.contains("t2") { "t2" } else { "t" };
            fixture.database.execute(&format!("{ddl}; UPDATE app.{table} SET c = 'u' WHERE id = 1")).await;
            ingest_all(&fixture, &mut source, &mut log).await;
        }
        assert_eq!(log.schema("app.t2").version.0, 6);
        assert_eq!(log.count(|event| matches!(event, Event::BackfillBegan(_))), 1, "nothing was copied again");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ddl_inside_a_large_transaction_is_followed() {
    let sql = "CREATE SCHEMA app; CREATE TABLE app.t (id int PRIMARY KEY, a int)";
    let Some(fixture) = Fixture::new(Version::V15, "ddl_large", sql).await else { return };
    let (mut source, mut log) = fixture.copied().await;
    fixture
        .database
        .execute(
            "BEGIN; ALTER TABLE app.t RENAME a TO b; ALTER TABLE app.t ADD c text DEFAULT 'x';
             INSERT INTO app.t SELECT n, n, repeat('z', 300) FROM generate_series(1, 300000) n; COMMIT",
        )
        .await;
    ingest_all(&fixture, &mut source, &mut log).await;
    assert!(log.parts > 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retyped_table_is_copied_again_within_the_stream_or_stops_it() {
    let sql = "CREATE SCHEMA app; CREATE TABLE app.t (id int PRIMARY KEY, a int); CREATE TABLE app.other (id int PRIMARY KEY);
        INSERT INTO app.t SELECT n, n FROM generate_series(1, 2000) n";
    let Some(fixture) = Fixture::new(Version::V15, "retyped", sql).await else { return };
    let (mut source, mut log) = fixture.copied().await;
    fixture
        .database
        .execute("ALTER TABLE app.t ALTER a TYPE text USING 'was ' || a; INSERT INTO app.t VALUES (9999, 'new'); INSERT INTO app.other VALUES (1)")
        .await;
    ingest_all(&fixture, &mut source, &mut log).await;
    assert_eq!(log.count(|event| matches!(event, Event::BackfillEnded { .. })), 2);
    fixture
        .database
        .execute("ALTER TABLE app.t ADD v float8 DEFAULT random(); INSERT INTO app.t VALUES (10000, 'new', 1)")
        .await;
    ingest_all(&fixture, &mut source, &mut log).await;
    assert_eq!(log.count(|event| matches!(event, Event::BackfillEnded { .. })), 3);
    drop(source);

    let mut config = fixture.config(&["app.*"]);
    config.on_rewrite = OnRewrite::Stop;
    let mut source = PostgresSource::new(config).unwrap();
    open(&mut source, &mut log).await;
    fixture.database.execute("ALTER TABLE app.t ALTER v TYPE numeric; UPDATE app.t SET v = 1 WHERE id = 1").await;
    let failure = loop {
        if let Err(failure) = source.next().await {
            break failure;
        }
    };
    assert!(matches!(failure.verdict, Verdict::Halt { .. }) && failure.to_string().contains("retyped"), "{failure}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_retyped_while_it_is_copied_is_copied_again() {
    let sql = "CREATE SCHEMA app; CREATE TABLE app.a (id int PRIMARY KEY, a int, pad text); CREATE TABLE app.b (id int PRIMARY KEY, a int, pad text);
        INSERT INTO app.a SELECT n, n, repeat('x', 500) FROM generate_series(1, 8000) n; INSERT INTO app.b SELECT * FROM app.a";
    for change in ["", "; INSERT INTO app.b VALUES (-1, 'new', 'x')"] {
        let Some(fixture) = Fixture::new(Version::V15, "retyped_copy", sql).await else { return };
        let mut config = fixture.config(&["app.*"]);
        config.snapshot.chunk_rows = 200;
        config.snapshot.workers = 1;
        let mut source = PostgresSource::new(config).unwrap();
        let mut log = Log::default();
        open(&mut source, &mut log).await;
        take(&mut source, &mut log, 5).await;
        fixture.database.execute(&format!("ALTER TABLE app.b ALTER a TYPE text USING 'was ' || a{change}")).await;
        ingest_all(&fixture, &mut source, &mut log).await;
        assert_eq!(log.schema("app.b").version.0, 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_script_that_rewrites_one_table_and_reshapes_another_while_they_are_copied_stops_nothing() {
    let sql = "CREATE SCHEMA app; CREATE TABLE app.a (id int PRIMARY KEY, a int, pad text NOT NULL);
        CREATE TABLE app.b (id int PRIMARY KEY, a int); CREATE TABLE app.c (id int PRIMARY KEY, a int NOT NULL, z int);
        INSERT INTO app.a SELECT n, n, repeat('x', 500) FROM generate_series(1, 16000) n;
        INSERT INTO app.b SELECT n, n FROM generate_series(1, 300) n; INSERT INTO app.c SELECT n, n, n FROM generate_series(1, 300) n";
    for change in ["ALTER TABLE app.c ALTER a TYPE text USING 'was ' || a", "ALTER TABLE app.c DROP a"] {
        let Some(fixture) = Fixture::new(Version::V15, "script_copy", sql).await else { return };
        // One worker, and nobody takes its rows: it is in the first table until the script is through.
        let mut config = fixture.config(&["app.*"]);
        config.snapshot.chunk_rows = 200;
        config.snapshot.workers = 1;
        let mut source = PostgresSource::new(config).unwrap();
        let mut log = Log::default();
        open(&mut source, &mut log).await;
        take(&mut source, &mut log, 5).await;
        fixture
            .database
            .execute("ALTER TABLE app.b ALTER a TYPE text USING 'was ' || a; INSERT INTO app.b VALUES (-1, 'new')")
            .await;
        fixture.database.execute(change).await;
        fixture.database.execute("UPDATE app.b SET a = 'then' WHERE id = 5").await;
        let copied = log.count(|event| matches!(event, Event::SnapshotEnded { .. }));
        assert_eq!(copied, 0, "the script came too late, or nothing is tested");
        let replica = ingest_all(&fixture, &mut source, &mut log).await;
        assert_eq!(replica.rows("app.c").len(), 300);
        assert_eq!(log.schema("app.c").version.0, 2, "{change}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn replica_identities_are_told_as_they_are() {
    let sql = "CREATE SCHEMA app; CREATE TABLE app.d (id int PRIMARY KEY); CREATE TABLE app.f (a int);
        ALTER TABLE app.f REPLICA IDENTITY FULL; CREATE TABLE app.fk (id int PRIMARY KEY, a int); ALTER TABLE app.fk REPLICA IDENTITY FULL;
        CREATE TABLE app.n (id int PRIMARY KEY); ALTER TABLE app.n REPLICA IDENTITY NOTHING; CREATE TABLE app.none (a int);
        CREATE TABLE app.deferred (id int PRIMARY KEY DEFERRABLE);";
    let Some(fixture) = Fixture::new(Version::V15, "identities", sql).await else { return };
    let mut log = Log::default();
    let mut source = fixture.source();
    open(&mut source, &mut log).await;
    take(&mut source, &mut log, 1).await;
    for (table, identity) in [
        ("d", Identity::Key),
        ("f", Identity::FullRow),
        ("fk", Identity::Key),
        ("n", Identity::InsertOnly),
        ("none", Identity::InsertOnly),
        ("deferred", Identity::InsertOnly),
    ] {
        assert_eq!(log.schema(&format!("app.{table}")).identity, identity, "{table}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_changed_and_then_left_alone_is_followed_all_the_same() {
    let sql = "CREATE SCHEMA app; CREATE TABLE app.t (id int PRIMARY KEY, a int); CREATE TABLE app.u (id int PRIMARY KEY, a int);
        INSERT INTO app.t SELECT n, n FROM generate_series(1, 200) n; INSERT INTO app.u SELECT * FROM app.t";
    for version in [Version::V15, Version::V18] {
        let Some(fixture) = Fixture::new(version, "left_alone", sql).await else { return };
        let (mut source, mut log) = fixture.copied().await;
        fixture
            .database
            .execute("ALTER TABLE app.t ALTER a TYPE text USING 'was ' || a; ALTER TABLE app.u ADD b text DEFAULT 'x'")
            .await;
        let shapes = |log: &Log| (log.schema("app.t").version.0, log.schema("app.u").version.0);
        take_until(&mut source, &mut log, "the new shapes", async |log: &Log| shapes(log) == (2, 2)).await;
        ingest_all(&fixture, &mut source, &mut log).await;
        assert_eq!(log.count(|event| matches!(event, Event::BackfillEnded { .. })), 2, "{version}");
        // While nobody runs, too; and changes go on afterwards.
        drop(source);
        fixture.database.execute("ALTER TABLE app.t ALTER a TYPE varchar(20) USING upper(a)").await;
        let mut source = fixture.source();
        open(&mut source, &mut log).await;
        take_until(&mut source, &mut log, "the next shape", async |log: &Log| shapes(log) == (3, 2)).await;
        fixture
            .database
            .execute("UPDATE app.t SET a = 'then' WHERE id = 5; UPDATE app.u SET b = 'then' WHERE id = 5")
            .await;
        ingest_all(&fixture, &mut source, &mut log).await;
        drop(source);

        let mut config = fixture.config(&["app.*"]);
        config.on_rewrite = OnRewrite::Stop;
        let mut source = PostgresSource::new(config).unwrap();
        open(&mut source, &mut log).await;
        fixture.database.execute("ALTER TABLE app.t ALTER a TYPE int USING length(a)").await;
        let failure = loop {
            if let Err(failure) = source.next().await {
                break failure;
            }
        };
        assert!(
            matches!(failure.verdict, Verdict::Halt { .. }) && failure.to_string().contains("retyped"),
            "{failure}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_from_before_a_column_was_replaced_do_not_reach_the_one_that_replaced_it() {
    let sql = "CREATE SCHEMA app; CREATE TABLE app.t (id int PRIMARY KEY, n int, a text);
        INSERT INTO app.t SELECT n, n, 'old' FROM generate_series(1, 20) n";
    for version in [Version::V15, Version::V18] {
        let Some(fixture) = Fixture::new(version, "replaced", sql).await else { return };
        let (source, mut log) = fixture.copied().await;
        drop(source);
        // Nobody reads: when the stream comes to the first of these the catalog has the second column already.
        for sql in [
            "UPDATE app.t SET n = 100 WHERE id = 1",
            "UPDATE app.t SET n = 100 WHERE id = 2",
            "UPDATE app.t SET n = 100 WHERE id = 3",
            "ALTER TABLE app.t DROP a, ADD a text",
            "UPDATE app.t SET a = 'new' WHERE id = 4",
        ] {
            fixture.database.execute(sql).await;
        }
        let mut source = fixture.source();
        open(&mut source, &mut log).await;
        take_until(&mut source, &mut log, "the table is copied again", async |log: &Log| {
            log.count(|event| matches!(event, Event::BackfillEnded { .. })) == 2
        })
        .await;
        ingest_all(&fixture, &mut source, &mut log).await;
        fixture.database.execute("UPDATE app.t SET a = 'later' WHERE id = 5").await;
        ingest_all(&fixture, &mut source, &mut log).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn values_that_were_computed_anew_are_copied_again_whatever_became_of_the_type() {
    let sql = "CREATE SCHEMA app; CREATE TABLE app.t (id int PRIMARY KEY, a int, v varchar(9), x text, k int NOT NULL);
        INSERT INTO app.t SELECT n, n, 'v', 'x', n FROM generate_series(1, 200) n; CREATE TABLE app.u (LIKE app.t INCLUDING ALL);
        INSERT INTO app.u SELECT * FROM app.t";
    // What computes values anew, and what was done to another table without changing a value.
    let steps = [
        ("ALTER TABLE app.t ALTER a TYPE int USING a * 2", "VACUUM FULL app.u"),
        ("ALTER TABLE app.t ALTER v TYPE varchar(20) USING upper(v)", "ALTER TABLE app.u ALTER v TYPE varchar(30)"),
        ("ALTER TABLE app.t ALTER x TYPE varchar USING x || '!'", "CLUSTER app.u USING u_pkey"),
        (
            "ALTER TABLE app.t ALTER a TYPE int USING -a; UPDATE app.t SET k = 7 WHERE id = 3",
            "ALTER TABLE app.u ALTER k DROP NOT NULL",
        ),
    ];
    for version in Version::ALL {
        let Some(fixture) = Fixture::new(version, "computed_anew", sql).await else { return };
        let (mut source, mut log) = fixture.copied().await;
        for (number, (anew, harmless)) in steps.into_iter().enumerate() {
            // Every other time nobody runs meanwhile.
            if number % 2 == 1 {
                drop(std::mem::replace(&mut source, fixture.source()));
            }
            fixture.database.execute(harmless).await;
            fixture.database.execute(anew).await;
            if number % 2 == 1 {
                open(&mut source, &mut log).await;
            }
            let ended = |event: &Event| matches!(event, Event::BackfillEnded { .. });
            take_until(&mut source, &mut log, anew, async |log: &Log| log.count(ended) == number + 2).await;
            ingest_all(&fixture, &mut source, &mut log).await;
        }
        let other = log.schema("app.u").id;
        let copied =
            |event: &Event| matches!(event, Event::BackfillBegan(backfill) if backfill.tables.contains(&other));
        assert_eq!(log.count(copied), 1, "{version}: the other table's values are what they were");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn values_that_are_computed_anew_where_the_spec_says_so_stop_the_source() {
    let sql = "CREATE SCHEMA app; CREATE TABLE app.t (id int PRIMARY KEY, a int); INSERT INTO app.t VALUES (1, 1)";
    let Some(fixture) = Fixture::new(Version::V15, "computed_stop", sql).await else { return };
    let mut config = fixture.config(&["app.*"]);
    config.on_rewrite = OnRewrite::Stop;
    let mut source = PostgresSource::new(config).unwrap();
    let mut log = Log::default();
    open(&mut source, &mut log).await;
    ingest_all(&fixture, &mut source, &mut log).await;
    fixture.database.execute("ALTER TABLE app.t ALTER a TYPE int USING a * 2").await;
    let failure = loop {
        match source.next().await {
            Ok(batch) => batch.into_iter().for_each(|batch| log.append(batch)),
            Err(failure) => break failure,
        }
    };
    assert!(
        matches!(failure.verdict, Verdict::Halt { .. }) && failure.to_string().contains("computed anew"),
        "{failure}"
    );
}
