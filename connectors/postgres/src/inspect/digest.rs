//! Digests of rows, made by the server that has them: only sums come over the wire.
//!
//! A row's hash is that of what the server prints of it, under the settings that every session of ours has; its bucket that of
//! what it prints of its key. Two rows that print alike are the same row; two servers that print the same value differently
//! make different digests, and then the rows themselves are compared.

use super::scan::{end_of_wal, equalities, relation};
use crate::{
    client::{Session, failure},
    quote_ident, quote_table,
};
use crossfade_connector::{BucketDigest, Digesting, Failure};
use crossfade_event::{TableName, TableSchema};
use tokio_postgres::Client;

/// Two that digest in this way can be compared.
pub(super) const KIND: &str = "postgresql printed rows 1";

/// The digests of every bucket that has rows, at one point; and where in the WAL the point is.
pub(super) async fn digest(
    session: &Session,
    schema: &TableSchema,
    how: Digesting,
) -> Result<(Vec<BucketDigest>, Option<u64>), Failure> {
    let doing = format!("digesting {}", schema.name);
    let from = relation(session, &schema.name).await?;
    let sql = digest_sql(schema, how, &from)?;
    let run = |error| failure(&doing, error);
    session.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await.map_err(run)?;
    let read = async {
        // The first statement takes the snapshot; the place is read after it.
        let lsn = end_of_wal(session, &doing).await?;
        let rows = session.query(&sql, &[]).await.map_err(|error| failure(&doing, error))?;
        let digests = rows.iter().map(|row| bucket(row, &doing)).collect::<Result<_, Failure>>()?;
        Ok((digests, lsn))
    };
    let read = read.await;
    session.batch_execute("COMMIT").await.map_err(|error| failure(&doing, error))?;
    read
}

fn bucket(row: &tokio_postgres::Row, doing: &str) -> Result<BucketDigest, Failure> {
    let half = |index: usize| -> Result<u64, Failure> {
        let sum: i128 = row
            .get::<_, String>(index)
            .parse()
            .map_err(|error: std::num::ParseIntError| Failure::reconnect(doing, error))?;
        // Sums of 64 bits each, modulo 2^64.
        Ok(sum as u64)
    };
    let sum = u128::from(half(2)?) << 64 | u128::from(half(3)?);
    Ok(BucketDigest { bucket: row.get::<_, i64>(0) as u32, count: row.get::<_, i64>(1) as u64, sum })
}

/// The rows are printed once, beneath a fence that the planner cannot pull up.
fn digest_sql(schema: &TableSchema, how: Digesting, from: &str) -> Result<String, Failure> {
    let all: Vec<usize> = (0..schema.columns.len()).collect();
    let (one, two) = (how.seed as i64, how.seed.rotate_left(32) as i64 ^ 0x5bd1_e995);
    Ok(format!(
        "SELECT r.b, pg_catalog.count(*), pg_catalog.sum(pg_catalog.hashtextextended(r.t, {one}))::text, \
         pg_catalog.sum(pg_catalog.hashtextextended(r.t, {two}))::text \
         FROM (SELECT {bucket} AS b, {row} AS t FROM {from} t OFFSET 0) r GROUP BY r.b",
        bucket = bucket_of(schema, how)?,
        row = printed_row(schema, &all)?,
    ))
}

/// Which bucket a row of `t` belongs to, as SQL.
pub(super) fn bucket_of(schema: &TableSchema, how: Digesting) -> Result<String, Failure> {
    let key = printed_row(schema, &schema.key_columns())?;
    let buckets = how.buckets.max(1);
    Ok(format!("((pg_catalog.hashtextextended({key}, 0) & 9223372036854775807) % {buckets})"))
}

/// These columns of `t` as the server prints a row.
fn printed_row(schema: &TableSchema, columns: &[usize]) -> Result<String, Failure> {
    let names: Vec<String> = columns
        .iter()
        .filter_map(|index| schema.columns.get(*index))
        .map(|column| Ok(format!("t.{}", quote_ident(&column.name)?)))
        .collect::<Result<_, Failure>>()?;
    Ok(format!("(ROW({}))::text", names.join(", ")))
}

/// How many rows refer to what is not there.
pub(super) async fn dangling(
    client: &Client,
    table: &TableName,
    columns: &[String],
    parent: &TableName,
    parent_columns: &[String],
) -> Result<u64, Failure> {
    let doing = format!("looking for references of {table} to nothing");
    let quoted = |name: &String| quote_ident(name).map(|name| name.to_string());
    let equals = equalities(client, parent, parent_columns, &doing).await?;
    let columns: Vec<String> = columns.iter().map(quoted).collect::<Result<_, _>>()?;
    let parents: Vec<String> = parent_columns.iter().map(quoted).collect::<Result<_, _>>()?;
    let given: Vec<String> = columns.iter().map(|name| format!("c.{name} IS NOT NULL")).collect();
    let pairs = parents.iter().zip(&columns).zip(&equals);
    let same: Vec<String> = pairs.map(|((one, other), equals)| format!("p.{one} {equals} c.{other}")).collect();
    let sql = format!(
        "SELECT pg_catalog.count(*) FROM {} c WHERE {} AND NOT EXISTS (SELECT FROM {} p WHERE {})",
        relation(client, table).await?,
        given.join(" AND "),
        quote_table(parent)?,
        same.join(" AND ")
    );
    let row = client.query_one(&sql, &[]).await.map_err(|error| failure(doing, error))?;
    Ok(row.get::<_, i64>(0) as u64)
}

/// How many values stand in more than one row.
pub(super) async fn repeated(client: &Client, table: &TableName, columns: &[String]) -> Result<u64, Failure> {
    let doing = format!("looking for values that {table} has more than once");
    let quoted = |name: &String| quote_ident(name).map(|name| name.to_string());
    let columns: Vec<String> = columns.iter().map(quoted).collect::<Result<_, _>>()?;
    let given: Vec<String> = columns.iter().map(|name| format!("{name} IS NOT NULL")).collect();
    let sql = format!(
        "SELECT pg_catalog.count(*) FROM (SELECT FROM {} WHERE {} GROUP BY {} HAVING pg_catalog.count(*) > 1) r",
        relation(client, table).await?,
        given.join(" AND "),
        columns.join(", ")
    );
    let row = client.query_one(&sql, &[]).await.map_err(|error| failure(doing, error))?;
    Ok(row.get::<_, i64>(0) as u64)
}
