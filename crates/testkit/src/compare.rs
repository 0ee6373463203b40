//! Are both sides equal? Compared exactly: PostgreSQL by every value's text form under fixed settings, SQLite by type and
//! bits. A row that stands twice on one side stands twice on the other.

use futures::{StreamExt, TryStreamExt};
use rusqlite::types::ValueRef;
use std::{collections::BTreeMap, fmt, path::Path, pin::pin};
use tokio_postgres::{Client, SimpleQueryMessage};

/// Under these, one value has one text form.
pub const FIXED_SETTINGS: &str = "SET datestyle = 'ISO, YMD'; SET intervalstyle = 'postgres'; SET timezone = 'UTC'; \
     SET extra_float_digits = 1; SET bytea_output = 'hex'; SET lc_monetary = 'C'; SET client_encoding = 'UTF8'; \
     SET xmloption = 'content'; SET quote_all_identifiers = off";

/// What a query gave: every row as the text forms of its values, and how often it stands there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rows(BTreeMap<Vec<Option<String>>, usize>);

impl Rows {
    /// How many rows, duplicates counted.
    pub fn count(&self) -> usize {
        self.0.values().sum()
    }

    /// The rows, sorted, each as often as it stands there.
    pub fn iter(&self) -> impl Iterator<Item = &Vec<Option<String>>> {
        self.0.iter().flat_map(|(row, times)| std::iter::repeat_n(row, *times))
    }

    fn add(&mut self, row: Vec<Option<String>>) {
        *self.0.entry(row).or_default() += 1;
    }
}

impl FromIterator<Vec<Option<String>>> for Rows {
    fn from_iter<T: IntoIterator<Item = Vec<Option<String>>>>(rows: T) -> Self {
        let mut found = Self::default();
        rows.into_iter().for_each(|row| found.add(row));
        found
    }
}

/// What one side has and the other has not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Difference {
    /// Rows of the left side that the right one lacks.
    pub only_left: Vec<Vec<Option<String>>>,
    /// Rows of the right side that the left one lacks.
    pub only_right: Vec<Vec<Option<String>>>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (side, rows) in [("left", &self.only_left), ("right", &self.only_right)] {
            writeln!(f, "{} rows stand only on the {side} side", rows.len())?;
            for row in rows.iter().take(5) {
                let cells: Vec<&str> = row.iter().map(|cell| cell.as_deref().unwrap_or("NULL")).collect();
                let line: String = cells.join(" | ").chars().take(600).collect();
                writeln!(f, "  {line}")?;
            }
        }
        Ok(())
    }
}

/// `None` when both are equal.
pub fn difference(left: &Rows, right: &Rows) -> Option<Difference> {
    let lacking = |have: &Rows, other: &Rows| {
        let mut found = Vec::new();
        for (row, times) in &have.0 {
            let there = other.0.get(row).copied().unwrap_or_default();
            found.extend(std::iter::repeat_n(row.clone(), times.saturating_sub(there)));
        }
        found
    };
    let found = Difference { only_left: lacking(left, right), only_right: lacking(right, left) };
    (found != Difference::default()).then_some(found)
}

/// Fails the test when the two differ.
///
/// # Panics
/// With the first differences.
pub fn assert_same(what: &str, left: &Rows, right: &Rows) {
    if let Some(found) = difference(left, right) {
        panic!("{what}: {} rows against {} rows\n{found}", left.count(), right.count());
    }
}

/// What a query gives in PostgreSQL.
pub async fn postgres_rows(client: &Client, query: &str) -> Rows {
    let run = async |sql: &str| client.simple_query(sql).await.unwrap_or_else(|error| panic!("{error:?}\nin: {sql}"));
    run(FIXED_SETTINGS).await;
    let messages = run(query).await;
    let rows = messages.into_iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some((0..row.len()).map(|cell| row.get(cell).map(str::to_owned)).collect()),
        _ => None,
    });
    rows.collect()
}

/// What a query gives in SQLite; each value with its type, numbers by their bits.
pub fn sqlite_rows(connection: &rusqlite::Connection, query: &str) -> Rows {
    sqlite_rows_as(connection, query, typed)
}

/// What a query gives in SQLite, in the text forms that PostgreSQL has for the same values: for comparing across the
/// two. A query casts what the two print differently (booleans, very large and very small floats).
pub fn sqlite_texts(connection: &rusqlite::Connection, query: &str) -> Rows {
    sqlite_rows_as(connection, query, |value| {
        Some(match value {
            ValueRef::Null => return None,
            ValueRef::Integer(number) => number.to_string(),
            ValueRef::Real(number) => number.to_string(),
            ValueRef::Text(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            ValueRef::Blob(bytes) => format!("\\x{}", hex(bytes)),
        })
    })
}

fn sqlite_rows_as(
    connection: &rusqlite::Connection,
    query: &str,
    text: impl Fn(ValueRef<'_>) -> Option<String>,
) -> Rows {
    let mut statement = connection.prepare(query).unwrap_or_else(|error| panic!("{error}\nin: {query}"));
    let width = statement.column_count();
    let mut rows = statement.query([]).unwrap_or_else(|error| panic!("{error}\nin: {query}"));
    let mut found = Rows::default();
    while let Some(row) = rows.next().unwrap_or_else(|error| panic!("{error}\nin: {query}")) {
        let cell = |index| row.get_ref(index).unwrap_or_else(|error| panic!("{error}\nin: {query}"));
        found.add((0..width).map(|index| text(cell(index))).collect());
    }
    found
}

fn typed(value: ValueRef<'_>) -> Option<String> {
    Some(match value {
        ValueRef::Null => return None,
        ValueRef::Integer(number) => format!("integer {number}"),
        ValueRef::Real(number) => format!("real {number:?} {:016x}", number.to_bits()),
        ValueRef::Text(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => format!("text {text}"),
            Err(_) => format!("text that is not UTF-8 {}", hex(bytes)),
        },
        ValueRef::Blob(bytes) => format!("blob {}", hex(bytes)),
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A connection for reading, beside whoever writes.
pub fn sqlite_reader(path: &Path) -> rusqlite::Connection {
    let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_WRITE;
    let connection = rusqlite::Connection::open_with_flags(path, flags);
    let connection = connection.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    connection.busy_timeout(crate::wait::GENEROUS).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    connection
}

/// The columns of a PostgreSQL table that hold values of their own (no generated ones), in the order of their names,
/// ready for a select list.
pub async fn postgres_columns(client: &Client, table: &str) -> String {
    let query = format!(
        "SELECT quote_ident(attname) FROM pg_attribute WHERE attrelid = '{}'::regclass AND attnum > 0 \
         AND NOT attisdropped AND attgenerated = '' ORDER BY attname COLLATE \"C\"",
        table.replace('\'', "''")
    );
    let names = postgres_rows(client, &query).await;
    names.iter().filter_map(|row| row.first()?.as_deref()).collect::<Vec<_>>().join(", ")
}

/// Fails the test unless the tables, named alike on both sides (`schema.table`, quoted where needed), are equal.
/// `rename` says what a table of the left side is called on the right one.
///
/// # Panics
/// With the first differences.
pub async fn assert_same_tables(left: &Client, right: &Client, tables: &[&str], rename: impl Fn(&str) -> String) {
    for table in tables {
        let columns = postgres_columns(left, table).await;
        let there = rename(table);
        let (one, two) =
            tokio::join!(postgres_rows_of(left, &columns, table), postgres_rows_of(right, &columns, &there));
        assert_same(table, &one, &two);
    }
}

async fn postgres_rows_of(client: &Client, columns: &str, table: &str) -> Rows {
    postgres_rows(client, &format!("SELECT {columns} FROM {table}")).await
}

/// For large tables: both queries (they must sort) streamed and compared byte by byte, in constant memory. Gives the
/// number of rows that were found equal.
///
/// # Panics
/// With the first line that differs.
pub async fn assert_same_streams(left: (&Client, &str), right: (&Client, &str)) -> u64 {
    let mut one = pin!(lines(left.0, left.1).await);
    let mut two = pin!(lines(right.0, right.1).await);
    let mut count = 0;
    loop {
        match tokio::join!(one.next(), two.next()) {
            (None, None) => return count,
            (a, b) if a == b => count += 1,
            (a, b) => {
                let shown = |line: Option<Vec<u8>>| {
                    line.map_or_else(|| "no more rows".to_owned(), |line| String::from_utf8_lossy(&line).into_owned())
                };
                panic!("after {count} equal rows\nleft:  {}\nright: {}\nof: {}", shown(a), shown(b), left.1);
            }
        }
    }
}

async fn lines(client: &Client, query: &str) -> impl futures::Stream<Item = Vec<u8>> {
    let copy = format!("COPY ({query}) TO STDOUT");
    client.batch_execute(FIXED_SETTINGS).await.unwrap_or_else(|error| panic!("{error:?}"));
    let stream = client.copy_out(copy.as_str()).await.unwrap_or_else(|error| panic!("{error:?}\nin: {copy}"));
    // The server sends one message for each row.
    stream.map_ok(|line| line.to_vec()).map(|line| line.unwrap_or_else(|error| panic!("a copy ended early: {error:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::{Postgres, Version};

    fn sqlite(sql: &str) -> Rows {
        let connection = rusqlite::Connection::open_in_memory().unwrap();
        connection.execute_batch(&format!("CREATE TABLE t (a, b); {sql}")).unwrap();
        sqlite_rows(&connection, "SELECT a, b FROM t")
    }

    #[test]
    fn a_missing_an_extra_a_changed_and_a_doubled_row_are_found() {
        let base = sqlite("INSERT INTO t VALUES (1, 'x'), (2, NULL)");
        assert_eq!(difference(&base, &sqlite("INSERT INTO t VALUES (2, NULL), (1, 'x')")), None);
        for other in [
            "INSERT INTO t VALUES (1, 'x')",
            "INSERT INTO t VALUES (1, 'x'), (2, NULL), (3, 'y')",
            "INSERT INTO t VALUES (1, 'X'), (2, NULL)",
            "INSERT INTO t VALUES (1, 'x'), (2, '')",
            "INSERT INTO t VALUES (1, 'x'), (1, 'x'), (2, NULL)",
            "INSERT INTO t VALUES ('1', 'x'), (2, NULL)",
            "INSERT INTO t VALUES (1.0, 'x'), (2, NULL)",
            "INSERT INTO t VALUES (1, x'78'), (2, NULL)",
        ] {
            assert!(difference(&base, &sqlite(other)).is_some(), "{other} must differ");
        }
    }

    #[test]
    #[should_panic(expected = "1 rows stand only on the left side")]
    fn an_assertion_over_unequal_sides_fails() {
        assert_same("t", &sqlite("INSERT INTO t VALUES (1, 2)"), &sqlite(""));
    }

    #[tokio::test]
    async fn both_systems_print_the_same_values_alike() {
        let Some(server) = Postgres::shared(Version::V15) else { return };
        let query = "SELECT 1, -7, 'žluťoučký', NULL, 0.5";
        let postgres = postgres_rows(&server.connect("postgres").await, &format!("{query}, '\\x00ff'::bytea")).await;
        let connection = rusqlite::Connection::open_in_memory().unwrap();
        assert_same("values", &postgres, &sqlite_texts(&connection, &format!("{query}, x'00ff'")));
    }

    #[tokio::test]
    async fn tables_and_streams_that_differ_in_one_value_are_found() {
        let Some(server) = Postgres::shared(Version::V15) else { return };
        let database = server.create_database("compare").await;
        database
            .execute(
                "CREATE SCHEMA other; CREATE TABLE t (a int PRIMARY KEY, b numeric, c float8);
                 CREATE TABLE other.t (LIKE t);
                 INSERT INTO t SELECT n, n / 7.0, n FROM generate_series(1, 2000) n; INSERT INTO other.t TABLE t",
            )
            .await;
        let (one, two) = (database.connect().await, database.connect().await);
        let there = |name: &str| format!("other.{name}");
        assert_same_tables(&one, &two, &["t"], there).await;
        let (left, right) = ("SELECT * FROM t ORDER BY a", "SELECT * FROM other.t ORDER BY a");
        assert_eq!(assert_same_streams((&one, left), (&two, right)).await, 2000);

        database
            .execute(
                "UPDATE other.t SET b = b || '0' WHERE a = 1999"
                    .replace("b || '0'", "(b::text || '0')::numeric")
                    .as_str(),
            )
            .await;
        let again = database.connect().await;
        let found = tokio::spawn(async move { assert_same_tables(&one, &two, &["t"], there).await }).await;
        assert!(found.is_err(), "a numeric of another scale is another value");
        let other = database.connect().await;
        let found = tokio::spawn(async move { assert_same_streams((&again, left), (&other, right)).await }).await;
        assert!(found.is_err(), "a numeric of another scale is another line");
    }
}
