//! Verification: `crossfade verify` of 1 M rows at both ends, against one `COPY` of the same table to nowhere.

use crate::{
    load,
    servers::{Pair, spawn},
    summary::row,
};
use anyhow::{Result, ensure};
use crossfade_testkit::crossfade::Crossfade;
use std::{process::Command, time::Instant};

/// What becomes of the table on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// Nothing: the servers digest it themselves.
    AsItIs,
    /// It gets new keys: its rows are read, and taken through the transforms.
    NewKeys,
}

const NEW_KEYS: &str = r#"
[keys.default]
make      = "uuid-v5"
namespace = "6f1c3f5e-0b57-4c7e-9d0c-3a3a2f6a9b11"

[rekey]
tables = ["public.*"]
with   = "default"
"#;

pub(crate) async fn run(rounds: usize, rows: u64, way: Way) -> Result<()> {
    let pair = Pair::start()?;
    let databases = pair.databases("verify").await;
    load::fill(&databases.source, rows).await;
    let folder = tempfile::tempdir()?;
    let spec = databases.spec("verify");
    let spec = if way == Way::AsItIs { spec } else { format!("{spec}{NEW_KEYS}") };
    let running = spawn(folder.path(), &spec, &[]);
    let crossfade = Crossfade::at(folder.path());
    let waited = crossfade.run(&["wait", "spec.toml", "--caught-up"]);
    ensure!(waited.code == Some(0), "the run does not catch up: {waited}");
    pair.settle().await?;
    let (mut peer, mut ours) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let order = if round % 2 == 0 { [true, false] } else { [false, true] };
        for is_peer in order {
            let begun = Instant::now();
            if is_peer {
                let copy = "COPY items TO STDOUT";
                let copied = Command::new("psql")
                    .args(["-qXAt", &databases.source.url, "-c", copy])
                    .stdout(std::process::Stdio::null())
                    .status()?;
                ensure!(copied.success(), "the peer's COPY failed");
                peer.push(rows as f64 / begun.elapsed().as_secs_f64());
            } else {
                let verified = crossfade.run(&["verify", "spec.toml"]);
                ensure!(verified.code == Some(0), "both sides should agree: {verified}");
                ours.push(rows as f64 / begun.elapsed().as_secs_f64());
            }
        }
    }
    running.interrupt();
    let ended = running.wait();
    ensure!(ended.code == Some(0), "the run did not end well: {ended}");
    row(
        match way {
            Way::AsItIs => "verify both sides, against one COPY to nowhere",
            Way::NewKeys => "the same with new keys",
        },
        "rows/s",
        &peer,
        &ours,
    );
    Ok(())
}
