//! `examples/cowrie`: five columns of 1,682,827 sessions filled by lookup, through the log, against the database's own
//! `UPDATE … FROM` over the same rows on the same server. Nobody else writes.

use crate::{
    servers::{settings, until_caught_up},
    summary::row,
};
use anyhow::{Context, Result, ensure};
use crossfade_testkit::{
    compare::assert_same_streams,
    postgres::{Database, Postgres, Version},
};
use std::{fs, path::Path, time::Instant};

/// What the application would run in one transaction: the same values by the database's own words.
const UPDATE: &str = "
ALTER TABLE session_summaries ADD source_ip_v2 inet, ADD snapshot_asn_v2 int, ADD snapshot_country_v2 text,
  ADD snapshot_ip_type text, ADD enrichment_at_v2 timestamptz;
UPDATE session_summaries s SET source_ip_v2 = address, snapshot_asn_v2 = coalesce(s.snapshot_asn, i.current_asn),
  snapshot_country_v2 = CASE WHEN coalesce(s.snapshot_country, i.geo_country) NOT IN ('XX', '--', '') THEN coalesce(s.snapshot_country, i.geo_country) END,
  snapshot_ip_type = coalesce(s.snapshot_ip_types, i.ip_type), enrichment_at_v2 = coalesce(s.enrichment_at, i.enrichment_updated_at)
FROM (SELECT session_id, coalesce(source_ip, (enrichment ->> 'source_ip')::inet) AS address FROM session_summaries) a
  LEFT JOIN ip_inventory i ON i.ip_address = a.address WHERE a.session_id = s.session_id";

const FILLED: &str =
    "SELECT session_id, source_ip_v2, snapshot_asn_v2, snapshot_country_v2, snapshot_ip_type, enrichment_at_v2
FROM session_summaries ORDER BY session_id COLLATE \"C\"";

pub(crate) async fn run(rounds: usize, rows: u64) -> Result<()> {
    let server = Postgres::start(Version::V15, settings()).context("PostgreSQL 15 cannot be had here")?;
    let (mut peer, mut ours) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let (one, other) = (fill(&server, rows).await?, fill(&server, rows).await?);
        // In turns, so that neither always finds the warmer machine.
        let order = if round % 2 == 0 { [true, false] } else { [false, true] };
        for is_peer in order {
            server.connect("postgres").await.batch_execute("CHECKPOINT").await?;
            let folder = tempfile::tempdir()?;
            let begun = Instant::now();
            if is_peer {
                one.execute(UPDATE).await;
                peer.push(begun.elapsed().as_secs_f64());
            } else {
                until_caught_up(folder.path(), &file("cowrie.toml")?.replace("${COWRIE_URL}", &other.url))?;
                ours.push(begun.elapsed().as_secs_f64());
            }
            eprintln!(
                "round {round}: {} {:.1} s",
                if is_peer { "peer" } else { "crossfade" },
                begun.elapsed().as_secs_f64()
            );
        }
        let (left, right) = (one.connect().await, other.connect().await);
        let compared = assert_same_streams((&left, FILLED), (&right, FILLED)).await;
        ensure!(compared == rows, "{compared} of {rows} rows are there");
        other.execute("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE NOT active").await;
    }
    row(&format!("backfill by lookup, {rows} rows"), "s", &peer, &ours);
    Ok(())
}

fn file(name: &str) -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/cowrie").join(name);
    fs::read_to_string(&path).with_context(|| path.display().to_string())
}

async fn fill(server: &Postgres, rows: u64) -> Result<Database> {
    let database = server.create_database("backfill").await;
    database.execute(&file("schema.sql")?).await;
    database.execute(&file("generate.sql")?.replace(":rows", &rows.to_string()).replace(":seed", "1")).await;
    database.execute("VACUUM ANALYZE session_summaries").await;
    Ok(database)
}
