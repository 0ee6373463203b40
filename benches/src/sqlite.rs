//! SQLite to SQLite, 1 M rows, against `.dump | sqlite3`.

use crate::{servers::until_caught_up, summary::row};
use anyhow::{Result, ensure};
use crossfade_testkit::compare::{assert_same, sqlite_reader, sqlite_rows};
use rusqlite::Connection;
use std::{path::Path, process::Command, time::Instant};

pub(crate) fn run(rounds: usize, rows: u64) -> Result<()> {
    let (mut peer, mut ours) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let order = if round % 2 == 0 { [true, false] } else { [false, true] };
        for is_peer in order {
            let folder = tempfile::tempdir()?;
            let (source, target) = (folder.path().join("source.db"), folder.path().join("target.db"));
            fill(&source, rows)?;
            let begun = Instant::now();
            if is_peer {
                let script = format!(
                    "set -e -o pipefail; sqlite3 '{}' .dump | sqlite3 '{}'",
                    source.display(),
                    target.display()
                );
                ensure!(Command::new("bash").args(["-c", &script]).status()?.success(), "the peer's pipe failed");
                peer.push(rows as f64 / begun.elapsed().as_secs_f64());
            } else {
                until_caught_up(folder.path(), &spec())?;
                ours.push(rows as f64 / begun.elapsed().as_secs_f64());
            }
            let query = "SELECT * FROM items";
            assert_same(
                "items",
                &sqlite_rows(&sqlite_reader(&source), query),
                &sqlite_rows(&sqlite_reader(&target), query),
            );
        }
    }
    row("SQLite to SQLite", "rows/s", &peer, &ours);
    Ok(())
}

fn fill(path: &Path, rows: u64) -> Result<()> {
    let connection = Connection::open(path)?;
    connection.execute_batch(&format!(
        "CREATE TABLE items (id INTEGER PRIMARY KEY, kind INTEGER, price REAL, name TEXT, body TEXT); \
         INSERT INTO items WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows}) \
         SELECT i, i % 1000, i * 0.37, 'item ' || i, 'body of the item number ' || i || ' with some more words' FROM n;"
    ))?;
    Ok(())
}

fn spec() -> String {
    r#"name = "bench"
dir  = "data"

[source]
kind   = "sqlite"
path   = "source.db"
tables = ["main.*"]

[sink]
kind = "sqlite"
path = "target.db"
"#
    .to_owned()
}
