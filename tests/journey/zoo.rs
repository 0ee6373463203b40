//! Every built-in type, and some that are not, from one server to another: once through the copy and once through the stream.
//! Both ends are compared by the text form of every value under fixed settings, so PostgreSQL itself is the judge.

use crate::desk::{Desk, assert_same_tables, postgres};
use crossfade_testkit::{
    postgres::{Database, Postgres, Version},
    seeded,
    shop::{self, Size},
};

/// Types, and literals of each, beside those that the shop's zoo has.
const MORE: &[(&str, &[&str])] = &[
    ("int8range", &["'[1,9223372036854775807)'", "'empty'", "'(,5)'"]),
    ("daterange", &["'[2020-01-01,infinity]'", "'[-infinity,2020-01-01)'", "'(,)'"]),
    ("tsrange", &["'[4713-01-01 00:00:00 BC,2000-01-01 00:00:00.000001)'"]),
    ("int4multirange", &["'{}'", "'{[1,2),[5,9)}'", "'{(,)}'"]),
    ("nummultirange", &["'{[1.10,2.00],(3,4)}'"]),
    ("datemultirange", &["'{[2020-01-01,2020-02-01)}'"]),
    ("tsmultirange", &["'{[2000-01-01 00:00:00,2001-01-01 00:00:00)}'"]),
    ("tstzmultirange", &["'{[2000-01-01 00:00:00+00,infinity]}'"]),
    ("oid", &["4294967295", "0"]),
    ("xid8", &["'18446744073709551615'"]),
    ("tid", &["'(4294967295,65535)'"]),
    ("jsonpath", &["'$.a[*] ? (@.b > 1)'"]),
    ("pg_snapshot", &["'10:20:10,14,15'"]),
    ("regtype", &["'integer'"]),
    ("bit varying(70)", &["B'1'", "B'1010101010101010101010101010101010101010101010101010101010101010101'"]),
    ("timestamp(3)", &["'2000-01-01 00:00:00.123'"]),
    ("interval day to second(2)", &["'1 day 02:03:04.56'"]),
    ("numeric(3,-2)", &["12300"]),
    ("numeric", &["('1' || repeat('0', 2000) || '.' || repeat('9', 1500))::numeric", "0.000", "1e-1000"]),
    ("timestamptz[]", &["'{infinity,NULL,\"0044-03-15 12:00:00+00 BC\"}'"]),
    ("bytea[]", &["'{\"\\\\x00ff\",NULL}'"]),
    ("jsonb[]", &["ARRAY['{\"a\": [1, 2.50]}', NULL]::jsonb[]"]),
    ("box[]", &["'{(1,1),(0,0);(3,3),(2,2)}'"]),
    ("float8[]", &["'{NaN,-0,Infinity,5e-324}'"]),
    ("text[][]", &["'{{a,b},{NULL,\"\"}}'", "'[5:6][-2:-1]={{a,b},{c,d}}'"]),
    ("int4range[]", &["'{\"[1,5)\",empty}'"]),
    ("a_domain", &["'A-1'"]),
    ("a_domain[]", &["'{A-1,NULL}'"]),
    ("a_pair", &["'(1,\"two, \"\"three\"\"\")'", "'(,)'"]),
    ("a_pair[]", &["ARRAY['(1,x)', NULL]::a_pair[]"]),
    ("a_nest", &["'(\"(7,\"\"in, side\"\")\",\"{a,NULL}\")'"]),
    ("a_mood", &["'it''s fine'"]),
    ("a_range", &["'[1.5,2.5)'"]),
    ("citext", &["'MiXed'"]),
    ("hstore", &["'a=>1, b=>NULL, \"c d\"=>\"\"'"]),
    ("ltree", &["'Top.Science'"]),
    ("cube", &["'(1, 2), (3, 4)'"]),
];

const TYPES: &str = "
CREATE EXTENSION citext; CREATE EXTENSION hstore; CREATE EXTENSION ltree; CREATE EXTENSION cube;
CREATE DOMAIN a_domain AS text CHECK (VALUE ~ '^[A-Z]-[0-9]$');
CREATE TYPE a_pair AS (one integer, two text);
CREATE TYPE a_nest AS (inner_one a_pair, many text[]);
CREATE TYPE a_mood AS ENUM ('sad', 'it''s fine');
CREATE TYPE a_range AS RANGE (subtype = float8);
";

fn table() -> String {
    let columns: Vec<String> = MORE.iter().enumerate().map(|(n, (kind, _))| format!("c{n} {kind}")).collect();
    format!("CREATE TABLE more (id bigint PRIMARY KEY, {})", columns.join(", "))
}

/// One row for each literal, every other column NULL.
fn inserts(first: usize) -> String {
    let literals = MORE.iter().enumerate().flat_map(|(n, (_, literals))| literals.iter().map(move |one| (n, one)));
    let rows = literals
        .enumerate()
        .map(|(at, (n, one))| format!("INSERT INTO more (id, c{n}) VALUES ({}, {one});\n", first + at));
    rows.collect()
}

async fn journey(source: &Postgres, target: &Postgres) {
    let source: Database = source.create_database("zoo").await;
    let target: Database = target.create_database("zoo").await;
    let seed = seeded::seed("the zoo's rows");
    shop::create_postgres(&source, Size { customers: 3, zoo: 300 }, seed).await;
    source.execute(&format!("{TYPES}{};{}", table(), inserts(1))).await;
    source.execute("CREATE TABLE large (id int PRIMARY KEY, small int, t text, b bytea, j jsonb)").await;
    let large = "SELECT 1, 1, repeat('žl', 3000000), decode(repeat('00ff', 2000000), 'hex'), \
                 jsonb_build_object('a', repeat('x', 2000000))";
    source.execute(&format!("INSERT INTO large {large}")).await;

    let desk = Desk::new();
    desk.write_spec(&format!("{}\ntables = [\"public.*\"]", postgres(&source)), &postgres(&target), "");
    desk.expect(0, &["check"], &[]);
    let mut run = desk.start();
    desk.wait(&mut run);
    let tables = ["zoo", "more", "large", "customers", "orders", "order_items"];
    assert_same_tables(&source, &target, &tables).await;

    // The same values by the stream: new rows, moved rows, and rows of which a part changes.
    source.execute(&inserts(1_000)).await;
    source
        .execute("UPDATE more SET id = id + 5000 WHERE id < 20; UPDATE more SET c0 = NULL WHERE id BETWEEN 20 AND 40")
        .await;
    source
        .execute(
            "INSERT INTO zoo (id) VALUES (-1); UPDATE zoo SET c0 = 7; UPDATE zoo SET id = id + 100000 WHERE id % 3 = 0",
        )
        .await;
    source.execute("UPDATE large SET small = 2; INSERT INTO large SELECT 2, 3, t, b, j FROM large WHERE id = 1").await;
    source.execute("UPDATE large SET id = 3 WHERE id = 2; UPDATE large SET t = t || '.' WHERE id = 3").await;
    desk.wait(&mut run);
    assert_same_tables(&source, &target, &tables).await;
    desk.verify();
    let held = desk.crossfade.json(&["quarantine", "ls", crate::desk::SPEC]);
    assert_eq!(held.as_array().map(Vec::len), Some(0), "no value may be refused: {held}");
    desk.stop(run);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_type_arrives_bit_for_bit_from_15_to_15() {
    let (Some(source), Some(target)) = (Postgres::shared(Version::V15), Postgres::shared_target(Version::V15)) else {
        return;
    };
    journey(source, target).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_type_arrives_bit_for_bit_from_17_to_18() {
    let (Some(source), Some(target)) = (Postgres::shared(Version::V17), Postgres::shared_target(Version::V18)) else {
        return;
    };
    journey(source, target).await;
}
