//! Values that other systems have been seen to alter, as literals of each dialect.

/// The columns of the PostgreSQL zoo: type, and the literals that are drawn from.
pub(super) const POSTGRES: &[(&str, &[&str])] = &[
    ("smallint", &["-32768", "32767", "0"]),
    ("integer", &["-2147483648", "2147483647", "7"]),
    ("bigint", &["'-9223372036854775808'", "9223372036854775807", "1"]),
    (
        "numeric",
        &[
            "'NaN'",
            "'Infinity'",
            "'-Infinity'",
            "0",
            "1.0",
            "1.00",
            "-0.000000000000000000000000000001",
            "1e100",
            "123456789012345678901234567890.123456789",
        ],
    ),
    ("numeric(10,3)", &["1.5", "-9999999.999", "'NaN'"]),
    ("real", &["'NaN'", "'Infinity'", "'-0'", "1e-45", "3.4028235e38", "0.1"]),
    ("double precision", &["'NaN'", "'-Infinity'", "'-0'", "5e-324", "1.7976931348623157e308", "0.1"]),
    ("money", &["'-92233720368547758.08'", "'12.34'"]),
    ("text", &["''", "'NULL'", "E'tab\\tnew\\nline\\r\\\\ quote'' \\\\N'", "'žluťoučký 🐎'", "E'\\u200D\\u0301'"]),
    ("varchar(20)", &["'a  '", "'日本語'"]),
    ("char(5)", &["'a'", "''"]),
    ("\"char\"", &["'x'", "''"]),
    ("name", &["'a_name'"]),
    ("bytea", &["'\\x'", "'\\x00ff5c27'", "decode(repeat('5a', 5000), 'hex')"]),
    ("boolean", &["true", "false"]),
    ("date", &["'4713-01-01 BC'", "'5874897-12-31'", "'infinity'", "'-infinity'", "'2000-02-29'"]),
    ("time", &["'24:00'", "'00:00:00.000001'"]),
    ("timetz", &["'24:00+14'", "'01:02:03.456789-15:59:59'"]),
    (
        "timestamp",
        &["'4713-01-01 00:00:00 BC'", "'294276-12-31 23:59:59.999999'", "'infinity'", "'2000-01-01 00:00:00.000001'"],
    ),
    (
        "timestamptz",
        &[
            "'0044-03-15 12:00:00+00 BC'",
            "'294276-12-31 23:59:59.999999+00'",
            "'-infinity'",
            "'2026-03-29 01:30:00+00'",
        ],
    ),
    ("interval", &["'1 mon -1 day 00:00:00.000001'", "'-178000000 years'", "'0'"]),
    ("uuid", &["'00000000-0000-0000-0000-000000000000'", "'ffffffff-ffff-ffff-ffff-ffffffffffff'"]),
    ("json", &["'{\"b\": 1, \"a\" : 2, \"a\": 3}'", "' [1e400 ] '", "'\"\\u0041\"'"]),
    ("jsonb", &["'{\"b\": 1, \"a\": [1.10, null]}'", "'\"\"'", "'1e400'"]),
    ("bit(5)", &["B'10101'"]),
    ("bit varying", &["B''", "B'1'", "B'101010101010101010101'"]),
    ("inet", &["'::1'", "'10.0.0.1/8'", "'2001:db8::/32'"]),
    ("cidr", &["'10.0.0.0/8'", "'::/0'"]),
    ("macaddr", &["'08:00:2b:01:02:03'"]),
    ("macaddr8", &["'08:00:2b:01:02:03:04:05'"]),
    ("point", &["'(0.1,-0)'", "'(NaN,Infinity)'"]),
    ("line", &["'{1,-2,3}'"]),
    ("lseg", &["'[(0,0),(1,1)]'"]),
    ("box", &["'(2,2),(0,0)'"]),
    ("path", &["'[(0,0),(1,1),(2,0)]'", "'((0,0),(1,1),(2,0))'"]),
    ("polygon", &["'((0,0),(1,1),(2,0))'"]),
    ("circle", &["'<(0,0),1.5>'"]),
    ("int4range", &["'empty'", "'[1,5)'", "'(,)'"]),
    ("numrange", &["'[1.10,2.0]'", "'[NaN,NaN]'"]),
    ("tstzrange", &["'[2000-01-01 00:00:00+00,infinity]'", "'(,2000-01-01 00:00:00+00)'"]),
    ("int8multirange", &["'{}'", "'{[1,3),[7,9)}'"]),
    ("tsvector", &["'fat:2A cat:1'", "''"]),
    ("tsquery", &["'fat & !cat:*'"]),
    ("integer[]", &["'{}'", "'{1,NULL,3}'", "'[0:1][-1:0]={{1,2},{3,4}}'"]),
    ("text[]", &["'{NULL,\"NULL\",\"\",\"a\\\"b\\\\\\\\c\"}'"]),
    ("numeric[]", &["'{NaN,1.00}'"]),
    ("mood", &["'sad'", "'it''s fine'"]),
    ("mood[]", &["'{happy,sad}'"]),
    ("pg_lsn", &["'FFFFFFFF/FFFFFFFF'", "'0/0'"]),
    ("xml", &["'<a b=\"1\">x&amp;y</a>'"]),
];

/// The columns of the SQLite zoo: declared type (any affinity, and none), and the literals.
pub(super) const SQLITE: &[(&str, &[&str])] = &[
    ("INTEGER", &["9223372036854775807", "-9223372036854775808", "0", "'not a number'", "1.5"]),
    ("REAL", &["0.1", "5e-324", "1.7976931348623157e308", "9e999", "-9e999", "-0.0", "1"]),
    ("TEXT", &["''", "'žluťoučký 🐎'", "'it''s'", "12", "char(9, 10, 13, 92)", "'NULL'"]),
    ("BLOB", &["x''", "x'00ff5c27'", "zeroblob(5000)", "'text in a blob'", "42"]),
    ("NUMERIC", &["1", "1.5", "'1.50'", "'words'", "1e30", "x'01'"]),
    ("", &["1", "1.0", "'1'", "x'31'"]),
    ("BOOLEAN", &["0", "1", "2", "'true'"]),
    ("DATETIME", &["'2000-02-29 00:00:00'", "2451604.5", "951782400"]),
    ("VARCHAR(3)", &["'longer than three'"]),
    ("DECIMAL(10,5)", &["0.1", "'123456789012345678901234567890'"]),
];

pub(super) fn postgres_table() -> String {
    table("id bigint PRIMARY KEY", POSTGRES)
}

pub(super) fn sqlite_table() -> String {
    table("id INTEGER PRIMARY KEY", SQLITE)
}

fn table(key: &str, columns: &[(&str, &[&str])]) -> String {
    let columns: Vec<String> = columns.iter().enumerate().map(|(n, (kind, _))| format!("c{n} {kind}")).collect();
    format!("CREATE TABLE zoo ({key}, {})", columns.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        postgres::{Postgres, Version},
        shop::{self, Size},
    };

    /// One insert for each literal, and how many there are.
    fn each(columns: &[(&str, &[&str])]) -> (String, usize) {
        let literals = columns.iter().enumerate().flat_map(|(n, (_, pool))| pool.iter().map(move |one| (n, one)));
        let inserts = literals
            .enumerate()
            .map(|(id, (n, one))| format!("INSERT INTO zoo (id, c{n}) VALUES ({}, {one});\n", 1000 + id));
        let inserts: Vec<String> = inserts.collect();
        (inserts.concat(), inserts.len())
    }

    #[tokio::test]
    async fn every_literal_is_a_value_of_its_type() {
        let small = Size { customers: 2, zoo: 20 };
        let connection = rusqlite::Connection::open_in_memory().unwrap();
        connection.execute_batch(&sqlite_table()).unwrap();
        connection.execute_batch(&each(SQLITE).0).unwrap();

        for version in Version::ALL {
            let Some(server) = Postgres::shared(version) else { return };
            let database = server.create_database("literals").await;
            shop::create_postgres(&database, small, 1).await;
            let (inserts, count) = each(POSTGRES);
            database.execute(&inserts).await;
            let found = database.value("SELECT count(*) FROM zoo WHERE id >= 1000").await;
            assert_eq!(found, Some(count.to_string()));
        }
    }
}
