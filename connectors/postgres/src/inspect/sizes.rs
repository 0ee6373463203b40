//! How large tables are, without waiting for whoever has locked one.
//!
//! The server opens a table before it tells its size, and an `ACCESS EXCLUSIVE` lock of a stranger (`VACUUM FULL`, a
//! `TRUNCATE` that has not ended) keeps it waiting. A table that is locked is told as the catalog has it, as of its last
//! VACUUM or ANALYZE.

use crate::client::{ServerError, failure};
use crossfade_connector::Failure;
use std::collections::{HashMap, HashSet};
use tokio_postgres::{Client, SimpleQueryMessage};

/// A table's size.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Size {
    /// Its bytes on disk, without its indexes.
    pub(super) bytes: u64,
    /// About how many rows it has.
    pub(super) rows: u64,
}

/// How long a table may be waited for that was locked since we looked.
const LOCK_WAIT: &str = "200ms";
/// SQLSTATE: a lock was not to be had in time.
const LOCKED: &str = "55P03";
/// How often that is tried again.
const ATTEMPTS: u32 = 5;

/// What the catalog says: bytes and rows of the last VACUUM or ANALYZE, how many rows a page has by it, and how many it
/// would have by the widths of its columns, as the server's own planner guesses for a table that was never analysed.
const CATALOG: &str = "\
SELECT c.oid, (GREATEST(c.relpages, 0) + COALESCE(GREATEST(t.relpages, 0), 0))::int8
    * pg_catalog.current_setting('block_size')::int8,
  GREATEST(c.reltuples, 0)::int8,
  CASE WHEN c.relpages > 0 AND c.reltuples >= 0 THEN (c.reltuples / c.relpages)::float8
    ELSE (pg_catalog.current_setting('block_size')::float8 - 24) / (28 + a.width) END
FROM pg_catalog.pg_class c
LEFT JOIN pg_catalog.pg_class t ON t.oid = c.reltoastrelid
CROSS JOIN LATERAL (SELECT COALESCE(pg_catalog.sum(CASE WHEN a.attlen > 0 THEN a.attlen ELSE 32 END), 0)::float8 AS width
  FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped) a
WHERE c.oid = ANY($1)";

/// The sizes of tables with rows of their own, by oid.
pub(super) async fn read(client: &Client, oids: &[u32]) -> Result<HashMap<u32, Size>, Failure> {
    let doing = "reading the sizes of the tables";
    let rows = client.query(CATALOG, &[&oids]).await.map_err(|error| failure(doing, error))?;
    let now = files(client, oids).await?;
    Ok(rows
        .iter()
        .map(|row| {
            let (oid, bytes, rows, per_page) =
                (row.get(0), row.get::<_, i64>(1) as u64, row.get::<_, i64>(2) as u64, row.get::<_, f64>(3));
            let size = match now.get(&oid) {
                Some(files) => Size { bytes: files.bytes, rows: (files.pages * per_page).round() as u64 },
                None => Size { bytes, rows },
            };
            (oid, size)
        })
        .collect())
}

/// The leaves of partition trees, by their roots. Reads the catalog alone: `pg_partition_tree` locks every member.
pub(super) async fn leaves(client: &Client, roots: &[u32]) -> Result<HashMap<u32, Vec<u32>>, Failure> {
    let sql = "WITH RECURSIVE tree (root, relid) AS ( \
                 SELECT h.inhparent, h.inhrelid FROM pg_catalog.pg_inherits h WHERE h.inhparent = ANY($1) \
                 UNION SELECT tree.root, h.inhrelid FROM pg_catalog.pg_inherits h JOIN tree ON h.inhparent = tree.relid) \
               SELECT t.root, c.oid FROM tree t JOIN pg_catalog.pg_class c ON c.oid = t.relid WHERE c.relkind = 'r'";
    let doing = "looking at the partitions of a tree";
    let mut found: HashMap<u32, Vec<u32>> = HashMap::new();
    for row in client.query(sql, &[&roots]).await.map_err(|error| failure(doing, error))? {
        found.entry(row.get(0)).or_default().push(row.get(1));
    }
    Ok(found)
}

/// What lies on disk.
struct Files {
    bytes: u64,
    /// Of the rows themselves, without large values kept apart.
    pages: f64,
}

/// The sizes of the files now; a table that is locked or gone is left out.
async fn files(client: &Client, oids: &[u32]) -> Result<HashMap<u32, Files>, Failure> {
    let doing = "reading the sizes of the tables";
    for _ in 0..ATTEMPTS {
        let locked = locked(client).await?;
        let list: Vec<String> = oids.iter().filter(|oid| !locked.contains(oid)).map(ToString::to_string).collect();
        // Both statements are one transaction, for they are sent as one.
        let sql = format!(
            "SET LOCAL lock_timeout = '{LOCK_WAIT}'; SELECT o, pg_catalog.pg_table_size(o), \
             pg_catalog.pg_relation_size(o) / pg_catalog.current_setting('block_size')::int8 \
             FROM pg_catalog.unnest('{{{}}}'::oid[]) o",
            list.join(",")
        );
        match client.simple_query(&sql).await {
            Ok(answer) => return Ok(answer.iter().filter_map(read_files).collect()),
            Err(error) if ServerError::of(&error).is_some_and(|error| error.code == LOCKED) => {}
            Err(error) => return Err(failure(doing, error)),
        }
    }
    tracing::debug!("tables are locked again and again: their sizes are told as the catalog has them");
    Ok(HashMap::new())
}

fn read_files(message: &SimpleQueryMessage) -> Option<(u32, Files)> {
    let SimpleQueryMessage::Row(row) = message else { return None };
    let number = |index: usize| row.get(index).and_then(|text| text.parse::<u64>().ok());
    Some((number(0)? as u32, Files { bytes: number(1)?, pages: number(2)? as f64 }))
}

/// What somebody has locked, or waits to lock, so that nobody else may look into it.
async fn locked(client: &Client) -> Result<HashSet<u32>, Failure> {
    let sql = "SELECT DISTINCT l.relation FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_database d ON d.oid = l.database \
               WHERE d.datname = pg_catalog.current_database() AND l.mode = 'AccessExclusiveLock' AND l.relation IS NOT NULL";
    let rows = client.query(sql, &[]).await.map_err(|error| failure("looking at the locks", error))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}
