//! What the inspector reads of a database is enough for the sink to make it again, and its rows arrive bit for bit.

use crate::rig::{Rig, block, server_version, target};
use crossfade_connector::{Inspect, Sink, TargetTable, Write, WriteMode};
use crossfade_event::{
    Format, SchemaVersion, TableId, TableSchema,
    catalog::{Catalog, RelationKind, TableDef},
};
use crossfade_postgres::{Config, PostgresInspect, PostgresSource, SourceConfig};
use crossfade_testkit::postgres::{Database, Postgres};
use std::{path::PathBuf, sync::Arc};

const SHAPES: &str = r#"
CREATE SCHEMA app; CREATE SCHEMA "Odd ""one";
CREATE EXTENSION citext SCHEMA public; CREATE EXTENSION hstore SCHEMA public;
CREATE TYPE app.mood AS ENUM ('sad', 'it''s ok', 'happy');
CREATE TYPE app.point2 AS (x int, label app.mood);
CREATE DOMAIN app.positive AS numeric(10,2) DEFAULT 1 NOT NULL CONSTRAINT above CHECK (VALUE > 0);
CREATE TYPE app.span AS RANGE (subtype = float8, subtype_diff = float8mi);
CREATE TABLE app.parent (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  mail public.citext NOT NULL CONSTRAINT parent_mail_key UNIQUE,
  serial_no serial,
  made timestamptz NOT NULL DEFAULT '2020-01-01 00:00+00',
  total numeric(12,3),
  twice numeric GENERATED ALWAYS AS (total * 2) STORED,
  CONSTRAINT parent_total_check CHECK (total > -1000));
CREATE INDEX parent_lower ON app.parent USING btree (lower(mail::text)) WHERE total IS NOT NULL;
CREATE TABLE app.child (
  parent bigint NOT NULL CONSTRAINT child_parent_fkey REFERENCES app.parent (id) ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED,
  place int, self_parent bigint, self_place int,
  PRIMARY KEY (parent, place),
  CONSTRAINT child_self_fkey FOREIGN KEY (self_parent, self_place) REFERENCES app.child (parent, place));
CREATE TABLE app.every (
  id uuid PRIMARY KEY, b bool, i2 int2, i4 int4, i8 int8, f4 float4, f8 float8, n numeric, m money,
  t text, vc varchar(20), c char(5), one "char", nm name, by bytea, d date, tm time, tz timetz, ts timestamp, tstz timestamptz, iv interval,
  j json, jb jsonb, x xml, bt bit(3), vb varbit, ip inet, ci cidr, mac macaddr, pt point, ln line, ls lseg, bx box, pa path, po polygon,
  cr circle, r4 int4range, rt tstzrange, mr int4multirange, tv tsvector, tq tsquery, a4 int4[], at text[], an numeric(5,2)[],
  mood app.mood, moods app.mood[], p2 app.point2, p2s app.point2[], pos app.positive, sp app.span, ct public.citext, hs public.hstore, oid oid, lsn pg_lsn);
CREATE TABLE "Odd ""one"."select" ("from ""x""" int, "group" text COLLATE "C", PRIMARY KEY ("from ""x"""));
CREATE TABLE app.part (id int NOT NULL, at date NOT NULL, note text, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
CREATE TABLE app.part_1 PARTITION OF app.part FOR VALUES FROM ('2020-01-01') TO ('2021-01-01');
CREATE TABLE app.part_d PARTITION OF app.part DEFAULT;
ALTER TABLE app.part_1 ADD CONSTRAINT part_1_own CHECK (id < 1000000);
CREATE INDEX part_note ON app.part (note);
"#;

const ROWS: &str = r#"
INSERT INTO app.parent (mail, total) SELECT 'Mail' || g || '@x', g / 7.0 FROM generate_series(1, 50) g;
INSERT INTO app.child SELECT g, 1, NULL, NULL FROM generate_series(1, 50) g;
INSERT INTO app.child SELECT g, 2, g, 1 FROM generate_series(1, 50) g;
INSERT INTO app.every VALUES
 ('00000000-0000-0000-0000-000000000001', true, -1, 2, 3, 'NaN', '-Infinity', 'NaN', '-$1.50', 'täxt', 'v', 'c', 'x', 'nm', '\x00ff', '4713-01-01 BC', '24:00', '12:00+05:30',
  'infinity', '294276-12-31 23:59:59+00', '-1 mons +2 days -03:04:05.678', '{"a" : 1,  "a":2}', '{"b": [1, null]}', '<a>x</a>', '101', '1', '10.0.0.1/8', '10.0.0.0/8',
  '08:00:2b:01:02:03', '(1,2)', '{1,2,3}', '[(0,0),(1,1)]', '(1,1),(0,0)', '((0,0),(1,1))', '((0,0),(1,1),(2,0))', '<(0,0),5>', '[1,5)', '[2020-01-01,)', '{[1,2),[5,6)}',
  'a:1 b:2', 'a & b', '[0:1]={1,2}', '{{a,NULL},{"",b}}', '{1.50,NULL}', 'it''s ok', '{sad,happy}', '(1,happy)', '{"(1,sad)","(,)"}', 2.5, '[1.5,2.5)', 'CaSe', 'a=>1,b=>NULL', 42, '0/16B3748'),
 ('00000000-0000-0000-0000-000000000002', NULL, NULL, NULL, NULL, '-0', 1e-300, 1e-100, NULL, '', NULL, NULL, NULL, NULL, '', NULL, NULL, NULL,
  '-infinity', NULL, NULL, 'null', NULL, NULL, NULL, '', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 'empty', NULL, '{}',
  '', NULL, '{}', '{}', NULL, NULL, '{}', NULL, '{}', 1, NULL, NULL, '', NULL, NULL);
INSERT INTO "Odd ""one"."select" VALUES (1, 'ä'), (2, NULL);
INSERT INTO app.part SELECT g, date '2020-06-01' + g * 30, 'n' || g FROM generate_series(1, 30) g;
"#;

/// Targets as the plan would make them where nothing is changed.
fn targets(catalog: &Catalog) -> Vec<TargetTable> {
    let mut tables: Vec<&TableDef> = catalog.tables.iter().collect();
    // Roots before leaves, parents before children.
    tables.sort_by_key(|table| (matches!(table.kind, RelationKind::Partition { .. }), !table.foreign_keys.is_empty()));
    tables
        .into_iter()
        .enumerate()
        .map(|(number, def)| TargetTable {
            schema: Arc::new(TableSchema {
                id: TableId(number as u32 + 1),
                version: SchemaVersion(1),
                name: def.name.clone(),
                columns: def.carried().map(|def| def.column.clone()).collect(),
                identity: def.identity,
                native_id: def.native_id,
            }),
            def: def.clone(),
            mode: WriteMode::Table,
        })
        .collect()
}

async fn catalog(database: &Database) -> Catalog {
    let mut inspect = PostgresInspect::new(Config::parse(&database.url).unwrap());
    inspect.catalog(&["*.*".to_owned()]).await.unwrap()
}

async fn scanned(database: &Database, schema: &TableSchema) -> Vec<crossfade_event::Row> {
    let mut inspect = PostgresInspect::new(Config::parse(&database.url).unwrap());
    assert!(inspect.scan(schema).await.unwrap().is_some());
    let mut rows = Vec::new();
    loop {
        let page = inspect.scan_next().await.unwrap();
        if page.is_empty() {
            rows.sort_by(|one: &crossfade_event::Row, other| one.as_bytes().cmp(other.as_bytes()));
            return rows;
        }
        rows.extend(page);
    }
}

fn without_numbers(catalog: &Catalog) -> Catalog {
    let mut catalog = catalog.clone();
    for table in &mut catalog.tables {
        (table.native_id, table.bytes, table.rows_estimate) = (0, 0, 0);
        for def in &mut table.columns {
            // A dropped column leaves a gap in the source's numbers.
            def.column.native_id = 0;
            if def.column.type_.native_id >= 16_384 {
                def.column.type_.native_id = 0;
            }
        }
    }
    for sequence in &mut catalog.sequences {
        sequence.last_value = None;
    }
    catalog
}

#[tokio::test]
async fn a_database_is_made_again_and_its_rows_are_the_same() {
    made_again(Format::PgText).await;
}

#[tokio::test]
async fn the_same_in_binary_form_where_every_type_allows_it() {
    made_again(Format::PgBinary).await;
}

async fn made_again(format: Format) {
    let Some(server) = Postgres::shared(server_version()) else { return };
    let source = server.create_database("shapes").await;
    source.execute(SHAPES).await;
    source.execute(ROWS).await;
    if format == Format::PgBinary {
        // Those hold numbers of user-defined types, which make the whole stream come as text.
        source.execute("ALTER TABLE app.every DROP moods, DROP p2, DROP p2s; DROP TYPE app.point2").await;
    }
    let found = catalog(&source).await;
    let every = found.tables.iter().find(|table| &*table.name.name == "every").unwrap();
    assert_eq!(every.column("n").unwrap().column.type_.format, format);
    assert!(found.extensions.contains(&"citext".to_owned()) && found.extensions.contains(&"hstore".to_owned()));

    let Some(mut rig) = Rig::empty(Vec::new()).await else { return };
    rig.target = target(targets(&found));
    rig.target.support = Catalog { tables: Vec::new(), ..found.clone() };
    rig.prepare().await.unwrap();
    let mut writes = Vec::new();
    for table in rig.target.tables.clone() {
        if matches!(table.def.kind, RelationKind::Partitioned { .. }) {
            continue;
        }
        let rows = scanned(&source, &table.schema).await;
        writes.push(block(table.schema.id.0, u64::from(table.schema.id.0) * 100, &rows));
    }
    let applied = rig.load(writes.clone()).await.unwrap();
    assert!(applied.rejected.is_empty(), "{}", applied.rejected[0].reason);
    // The same rows once more, as a stream would bring them.
    let changes = writes
        .iter()
        .flat_map(|write| {
            let Write::Rows { table, rows, .. } = write else { panic!("only rows") };
            let insert = |row| crossfade_event::Change {
                table: *table,
                schema: SchemaVersion(1),
                op: crossfade_event::Op::Insert,
                old: None,
                new: Some(row),
            };
            crossfade_event::Rows::new(rows.clone()).map(move |row| insert(row.unwrap())).collect::<Vec<_>>()
        })
        .collect();
    let applied = rig.stream(changes).await.unwrap();
    assert!(applied.rejected.is_empty(), "{}", applied.rejected[0].reason);
    for table in &rig.target.tables {
        let (here, there) = (scanned(&source, &table.schema).await, scanned(&rig.database, &table.schema).await);
        assert!(here == there, "{} differs: {} and {} rows", table.schema.name, here.len(), there.len());
    }
    let made = catalog(&rig.database).await;
    let (wanted, made) = (without_numbers(&found), without_numbers(&made));
    for (one, other) in wanted.tables.iter().zip(&made.tables) {
        assert_eq!(one, other);
    }
    assert_eq!(wanted, made);
    assert_eq!(
        rig.ask("SELECT nextval('app.parent_serial_no_seq') > 1000, nextval('app.parent_id_seq') > 1000").await,
        ["t|t"]
    );
}

#[tokio::test]
async fn rows_are_fetched_by_their_keys_and_a_place_includes_what_was_committed() {
    let Some(server) = Postgres::shared(server_version()) else { return };
    let source = server.create_database("keys").await;
    source.execute(SHAPES).await;
    source.execute(ROWS).await;
    let mut inspect = PostgresInspect::new(Config::parse(&source.url).unwrap());
    let found = catalog(&source).await;
    for table in targets(&found) {
        if table.schema.key_columns().is_empty() || matches!(table.def.kind, RelationKind::Partitioned { .. }) {
            continue;
        }
        let rows = scanned(&source, &table.schema).await;
        let keys: Vec<_> = rows.iter().filter_map(|row| table.schema.key_of(row)).collect();
        let (mut fetched, before) = inspect.fetch(&table.schema, &keys).await.unwrap();
        fetched.sort_by(|one, other| one.as_bytes().cmp(other.as_bytes()));
        assert!(fetched == rows, "{}", table.schema.name);
        assert_eq!(inspect.count(&table.schema.name).await.unwrap(), rows.len() as u64);
        source.execute("CREATE TABLE IF NOT EXISTS app.noise (a int); INSERT INTO app.noise VALUES (1)").await;
        let barrier = inspect.barrier().await.unwrap();
        assert!(barrier > before && before.is_some());
    }
}

/// A source that is not opened.
fn capturing(url: &str, tables: &str) -> PostgresSource {
    let config = SourceConfig::new(Config::parse(url).unwrap(), "m", vec![tables.to_owned()], PathBuf::new());
    PostgresSource::new(config).unwrap()
}

#[tokio::test]
async fn what_cannot_be_captured_is_named_with_its_remedy() {
    let Some(server) = Postgres::shared(server_version()) else { return };
    let source = server.create_database("obstacles").await;
    source
        .execute("CREATE TABLE a (id int PRIMARY KEY); CREATE UNLOGGED TABLE b (id int PRIMARY KEY); CREATE VIEW c AS SELECT 1 AS x; CREATE TABLE d (x int)")
        .await;
    let mut inspect = PostgresInspect::new(Config::parse(&source.url).unwrap());
    let found = capturing(&source.url, "public.*").preflight().await.unwrap();
    let named: Vec<_> = found.iter().map(|refusal| (refusal.object.as_str(), refusal.fatal)).collect();
    assert_eq!(named, [("public.b", true), ("public.c", true), ("public.d", false)]);
    assert!(found[0].remedy.contains("SET LOGGED"), "{}", found[0].remedy);
    let error = inspect.catalog(&["public.orderz".to_owned()]).await.unwrap_err();
    assert!(error.to_string().contains("public."), "{error}");
    let found = inspect.preflight_sink().await.unwrap();
    assert!(found.is_empty(), "{found:?}");
}

#[tokio::test]
async fn a_role_without_rights_is_told_what_to_grant() {
    let Some(server) = Postgres::shared(server_version()) else { return };
    let source = server.create_database("rights").await;
    source
        .execute(
            "CREATE TABLE t (id int PRIMARY KEY); DROP ROLE IF EXISTS nobody_special; CREATE ROLE nobody_special LOGIN",
        )
        .await;
    let url = server.url_as("nobody_special", "x", &source.name);
    let mut inspect = PostgresInspect::new(Config::parse(&url).unwrap());
    let found = capturing(&url, "public.t").preflight().await.unwrap();
    let remedies: Vec<_> = found.iter().map(|refusal| refusal.remedy.as_str()).collect();
    let replicates = remedies.iter().find(|remedy| remedy.starts_with("ALTER ROLE \"nobody_special\" REPLICATION;"));
    let replicates = replicates.unwrap_or_else(|| panic!("{remedies:?}"));
    assert!(replicates.contains("CREATE_REPLICATION_SLOT \"crossfade_m\" LOGICAL pgoutput"), "{replicates}");
    let publication = "CREATE PUBLICATION \"crossfade_m\" FOR TABLE ONLY \"public\".\"t\";";
    assert!(remedies.iter().any(|remedy| remedy.ends_with(publication)), "{remedies:?}");
    assert!(remedies.contains(&"GRANT SELECT ON TABLE \"public\".\"t\" TO \"nobody_special\""), "{remedies:?}");
    let found = inspect.preflight_sink().await.unwrap();
    assert!(
        found.iter().any(|refusal| refusal.fatal && refusal.remedy.contains("GRANT CREATE ON DATABASE")),
        "{found:?}"
    );
    let failure = crate::rig::new_sink(&server.url_as("nobody_special", "x", &source.name))
        .prepare(&target(Vec::new()))
        .await
        .unwrap_err();
    assert!(matches!(failure.verdict, crossfade_connector::Verdict::Refused { .. }), "{failure}");
}
