//! Rows as they are now: all of a table at one point, or those under some keys.

use crate::{
    client::{Session, failure, printed},
    quote_ident, quote_table,
};
use bytes::{Bytes, BytesMut};
use crossfade_connector::{Failure, RowPage};
use crossfade_event::{Cell, Format, Key, Row, RowBuilder, TableName, TableSchema};
use futures::StreamExt;
use std::{collections::HashMap, pin::Pin};
use tokio_postgres::{
    Client, CopyOutStream,
    types::{FromSql, IsNull, ToSql, Type},
};

/// Rows of one page, at most.
const PAGE_ROWS: usize = 4096;
/// Bytes of one page, about.
const PAGE_BYTES: usize = 1 << 20;
/// Keys of one question, at most.
const FETCH_KEYS: usize = 500;
/// What stands before the rows of a binary `COPY`.
const COPY_HEAD: usize = 19;

/// The end of the WAL now. Whatever a snapshot taken before this answer could see was committed before it.
const END_OF_WAL: &str = "SELECT ((CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn() \
     ELSE pg_catalog.pg_current_wal_insert_lsn() END) - '0/0')::pg_catalog.int8";

/// A table that is being read, at one point.
pub(super) struct Scan {
    stream: Pin<Box<CopyOutStream>>,
    table: TableName,
    buffer: BytesMut,
    headed: bool,
    ended: bool,
    // Last: the stream ends before its session does.
    _session: Session,
}

impl Scan {
    /// Begins, and says where in the WAL the point is. With a condition (SQL, the table is `t`), only rows of which it holds.
    pub(super) async fn begin(
        session: Session,
        schema: &TableSchema,
        condition: Option<String>,
    ) -> Result<(Self, Option<u64>), Failure> {
        let doing = format!("reading {}", schema.name);
        let from = relation(&session, &schema.name).await?;
        let list = select_list(schema, "t")?;
        session
            .batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            .await
            .map_err(|error| failure(&doing, error))?;
        // The first statement takes the snapshot; the place is read after it.
        let lsn = end_of_wal(&session, &doing).await?;
        let only = condition.map(|condition| format!(" WHERE {condition}")).unwrap_or_default();
        let sql = format!("COPY (SELECT {list} FROM {from} t{only}) TO STDOUT (FORMAT binary)");
        let stream = session.copy_out(&sql).await.map_err(|error| failure(&doing, error))?;
        let scan = Self {
            stream: Box::pin(stream),
            table: schema.name.clone(),
            buffer: BytesMut::new(),
            headed: false,
            ended: false,
            _session: session,
        };
        Ok((scan, lsn))
    }

    /// The next rows; none at the end.
    pub(super) async fn next(&mut self) -> Result<RowPage, Failure> {
        let mut page = RowPage::new();
        let mut bytes = 0;
        while page.len() < PAGE_ROWS && bytes < PAGE_BYTES {
            if let Some(row) = self.take_row()? {
                bytes += row.as_bytes().len();
                page.push(row);
            } else if self.ended {
                break;
            } else {
                match self.stream.next().await {
                    Some(Ok(data)) => self.buffer.extend_from_slice(&data),
                    Some(Err(error)) => return Err(failure(format!("reading {}", self.table), error)),
                    None => {
                        let told = "the server ended the copy before its last row";
                        return Err(Failure::reconnect(format!("reading {}", self.table), told));
                    }
                }
            }
        }
        Ok(page)
    }

    fn take_row(&mut self) -> Result<Option<Row>, Failure> {
        if !self.headed {
            if self.buffer.len() < COPY_HEAD {
                return Ok(None);
            }
            let _ = self.buffer.split_to(COPY_HEAD);
            self.headed = true;
        }
        match measure(&self.buffer) {
            Measure::More => Ok(None),
            Measure::End => {
                self.ended = true;
                Ok(None)
            }
            Measure::Row(length) => Row::parse(self.buffer.split_to(length).freeze()).map(Some).map_err(|error| {
                Failure::halt(format!("reading {}", self.table), error, "Report this with the server's version")
            }),
        }
    }
}

enum Measure {
    More,
    End,
    Row(usize),
}

/// How long the row at the front is, if all of it is there.
fn measure(bytes: &[u8]) -> Measure {
    let Some(count) = bytes.first_chunk::<2>().map(|count| i16::from_be_bytes(*count)) else { return Measure::More };
    let Ok(count) = u16::try_from(count) else { return Measure::End };
    let mut at = 2;
    for _ in 0..count {
        let Some(length) = bytes.get(at..).and_then(|rest| rest.first_chunk::<4>()) else { return Measure::More };
        at += 4 + usize::try_from(i32::from_be_bytes(*length)).unwrap_or(0);
    }
    if at <= bytes.len() { Measure::Row(at) } else { Measure::More }
}

pub(super) async fn end_of_wal(client: &Client, doing: &str) -> Result<Option<u64>, Failure> {
    let row = client.query_one(END_OF_WAL, &[]).await.map_err(|error| failure(doing, error))?;
    Ok(row.get::<_, Option<i64>>(0).map(|lsn| lsn as u64))
}

/// How the table is named in FROM: alone, without children by inheritance, unless it is the root of a partition tree.
pub(super) async fn relation(client: &Client, name: &TableName) -> Result<String, Failure> {
    let quoted = quote_table(name)?;
    let doing = format!("looking for {name}");
    let sql = "SELECT relkind = 'p' FROM pg_catalog.pg_class WHERE oid = pg_catalog.to_regclass($1::text)";
    let row = client.query_opt(sql, &[&quoted.as_str()]).await.map_err(|error| failure(&doing, error))?;
    match row.map(|row| row.get::<_, bool>(0)) {
        Some(true) => Ok(quoted.to_string()),
        Some(false) => Ok(format!("ONLY {quoted}")),
        None => {
            let told = format!("there is no table {name}");
            Err(Failure::misconfigured(doing, told, "Name a table that exists and that the role may see"))
        }
    }
}

/// The columns in their formats.
fn select_list(schema: &TableSchema, alias: &str) -> Result<String, Failure> {
    let parts = schema
        .columns
        .iter()
        .map(|column| {
            let name = quote_ident(&column.name)?;
            Ok(match column.type_.format {
                Format::PgText => printed(&format!("{alias}.{name}")),
                Format::PgBinary | Format::Tagged => format!("{alias}.{name}"),
            })
        })
        .collect::<Result<Vec<_>, Failure>>()?;
    Ok(parts.join(", "))
}

const KEY_COLUMNS: &str = "
    WITH RECURSIVE base(name, oid) AS (
        SELECT a.attname::text, a.atttypid FROM pg_catalog.pg_attribute a
        WHERE a.attrelid = pg_catalog.to_regclass($1::text) AND a.attname = ANY ($2) AND a.attnum > 0
        UNION ALL
        SELECT b.name, t.typbasetype FROM base b JOIN pg_catalog.pg_type t ON t.oid = b.oid WHERE t.typtype = 'd')
    SELECT b.name, pg_catalog.format_type(t.oid, -1),
        (SELECT pg_catalog.format('OPERATOR(%I.%s)', n.nspname, o.oprname)
         FROM pg_catalog.pg_opclass c
         JOIN pg_catalog.pg_am m ON m.oid = c.opcmethod AND m.amname = 'btree'
         JOIN pg_catalog.pg_amop p ON p.amopfamily = c.opcfamily AND p.amopstrategy = 3
              AND p.amoplefttype = c.opcintype AND p.amoprighttype = c.opcintype
         JOIN pg_catalog.pg_operator o ON o.oid = p.amopopr
         JOIN pg_catalog.pg_namespace n ON n.oid = o.oprnamespace
         WHERE c.opcdefault AND c.opcintype = t.oid LIMIT 1)
    FROM base b JOIN pg_catalog.pg_type t ON t.oid = b.oid AND t.typtype <> 'd'";

/// A column of the key, as SQL compares it.
struct KeyColumn {
    quoted: String,
    base: String,
    equals: String,
    text: bool,
}

async fn key_columns(client: &Client, schema: &TableSchema) -> Result<Vec<KeyColumn>, Failure> {
    let doing = format!("looking at the key of {}", schema.name);
    let columns: Vec<_> = schema.key_columns().into_iter().filter_map(|index| schema.columns.get(index)).collect();
    let names: Vec<&str> = columns.iter().map(|column| &*column.name).collect();
    let quoted = quote_table(&schema.name)?;
    let rows = client.query(KEY_COLUMNS, &[&quoted.as_str(), &names]).await.map_err(|error| failure(&doing, error))?;
    let found: HashMap<String, (String, Option<String>)> =
        rows.into_iter().map(|row| (row.get(0), (row.get(1), row.get(2)))).collect();
    columns
        .into_iter()
        .map(|column| {
            let (base, equals) = found.get(&*column.name).cloned().ok_or_else(|| {
                let told = format!("{} has no column {}", schema.name, column.name);
                Failure::misconfigured(&doing, told, "Compare the spec with the table")
            })?;
            Ok(KeyColumn {
                quoted: quote_ident(&column.name)?.to_string(),
                base,
                equals: equals.unwrap_or_else(|| "OPERATOR(pg_catalog.=)".to_owned()),
                text: column.type_.format == Format::PgText,
            })
        })
        .collect()
}

/// How the columns of a table are compared for being the same: by the default of their types, wherever its operator lies.
pub(super) async fn equalities(
    client: &Client,
    table: &TableName,
    columns: &[String],
    doing: &str,
) -> Result<Vec<String>, Failure> {
    let quoted = quote_table(table)?;
    let rows = client.query(KEY_COLUMNS, &[&quoted.as_str(), &columns]).await.map_err(|error| failure(doing, error))?;
    let found: HashMap<String, Option<String>> = rows.into_iter().map(|row| (row.get(0), row.get(2))).collect();
    let plain = || "OPERATOR(pg_catalog.=)".to_owned();
    Ok(columns.iter().map(|name| found.get(name).cloned().flatten().unwrap_or_else(plain)).collect())
}

/// The rows under these keys, and a place in the WAL that includes all that the answer knows.
pub(super) async fn fetch(
    client: &Client,
    schema: &TableSchema,
    keys: &[Key],
) -> Result<(Vec<Row>, Option<u64>), Failure> {
    let doing = format!("reading rows of {} by their keys", schema.name);
    let columns = key_columns(client, schema).await?;
    if columns.is_empty() {
        let told = format!("{} has no key", schema.name);
        return Err(Failure::halt(doing, told, "Read the whole table instead"));
    }
    let from = relation(client, &schema.name).await?;
    let list = select_list(schema, "t")?;
    let mut rows = Vec::with_capacity(keys.len());
    for some in keys.chunks(FETCH_KEYS) {
        let sql = question(&columns, &from, &list, some.len());
        let statement = client.prepare(&sql).await.map_err(|error| failure(&doing, error))?;
        let cells: Vec<RawCell> = some.iter().flat_map(|key| key.cells().map(RawCell::of)).collect();
        let stream = client.query_raw(&statement, cells).await.map_err(|error| failure(&doing, error))?;
        let mut stream = std::pin::pin!(stream);
        while let Some(row) = stream.next().await {
            rows.push(read(&row.map_err(|error| failure(&doing, error))?));
        }
    }
    let lsn = end_of_wal(client, &doing).await?;
    Ok((rows, lsn))
}

/// Keys as a list of values that the table is joined with: its index on the key answers.
fn question(columns: &[KeyColumn], from: &str, list: &str, keys: usize) -> String {
    let mut number = 0;
    let mut values = Vec::with_capacity(keys);
    for _ in 0..keys {
        let cells: Vec<String> = columns
            .iter()
            .map(|column| {
                number += 1;
                let through_text = if column.text { "::pg_catalog.text" } else { "" };
                format!("${number}{through_text}::{}", column.base)
            })
            .collect();
        values.push(format!("({})", cells.join(", ")));
    }
    let names: Vec<String> = (0..columns.len()).map(|place| format!("k{place}")).collect();
    let finds: Vec<String> = columns
        .iter()
        .enumerate()
        .map(|(place, column)| format!("t.{} {} v.k{place}", column.quoted, column.equals))
        .collect();
    format!(
        "SELECT {list} FROM (VALUES {}) v ({}) JOIN {from} t ON {}",
        values.join(", "),
        names.join(", "),
        finds.join(" AND ")
    )
}

pub(super) fn read(row: &tokio_postgres::Row) -> Row {
    let mut builder = RowBuilder::with_capacity(row.len(), 64);
    for index in 0..row.len() {
        match row.get::<_, RawCell>(index).0 {
            None => builder.push(Cell::Null),
            Some(bytes) => builder.push(Cell::Bytes(&bytes)),
        }
    }
    builder.finish()
}

/// A cell's bytes, as they are.
#[derive(Debug)]
struct RawCell(Option<Bytes>);

impl RawCell {
    fn of(cell: Cell<'_>) -> Self {
        match cell {
            Cell::Bytes(bytes) => Self(Some(Bytes::copy_from_slice(bytes))),
            Cell::Null | Cell::Unchanged | Cell::Absent => Self(None),
        }
    }
}

impl ToSql for RawCell {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        match &self.0 {
            None => Ok(IsNull::Yes),
            Some(bytes) => {
                out.extend_from_slice(bytes);
                Ok(IsNull::No)
            }
        }
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    fn to_sql_checked(
        &self,
        type_: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        self.to_sql(type_, out)
    }
}

impl<'a> FromSql<'a> for RawCell {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(Some(Bytes::copy_from_slice(raw))))
    }

    fn from_sql_null(_: &Type) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(None))
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}
