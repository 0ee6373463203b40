//! Crossfade against its peers: the same work, in one run, in turns, on real servers; both ends compared after each
//! round. `make bench` builds the release binary and runs all of it; `docs/performance.md` has what was measured.

mod backfill;
mod backlog;
#[cfg(feature = "kafka")]
mod kafka;
mod latency;
mod load;
mod memory;
mod servers;
mod sqlite;
mod summary;
mod usage;
mod verify;
#[cfg(feature = "kafka")]
mod workers;

use anyhow::Result;
use clap::{Parser, ValueEnum};

/// Which benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Which {
    /// 1 M rows of 170 bytes, against `psql COPY (binary) | psql COPY`
    Load,
    /// 500,000 changes in transactions of 100, against `CREATE SUBSCRIPTION`
    Backlog100,
    /// The same in transactions of 1
    Backlog1,
    /// Commit to visible, 500 and 2,000 transactions a second, against `CREATE SUBSCRIPTION`
    Latency,
    /// Resident memory, idle and under one transaction of 3 M rows
    Memory,
    /// SQLite to SQLite, 1 M rows, against `.dump | sqlite3`
    Sqlite,
    /// Verification of 1 M rows at both ends, as they are and with new keys, against one `COPY` to nowhere
    Verify,
    /// 500,000 changes in transactions of 100 while both sides are compared all the time, against the same without
    Continuous,
    /// 1,682,827 rows get five columns by lookup (`examples/cowrie`), against one `UPDATE … FROM`
    Backfill,
    /// 500,000 changes from PostgreSQL into topics, against Debezium in Kafka Connect
    #[cfg(feature = "kafka")]
    ToTopics,
    /// The same from PostgreSQL to PostgreSQL over topics, against Debezium and its JDBC sink
    #[cfg(feature = "kafka")]
    OverTopics,
    /// The same from PostgreSQL to PostgreSQL, the log on Kafka against the log on disk
    #[cfg(feature = "kafka")]
    KafkaLog,
    /// 500,000 changes whose rows are masked, over topics by roles: no transform worker, one, two
    #[cfg(feature = "kafka")]
    Workers,
}

/// Benchmarks against the peers.
#[derive(Debug, Parser)]
struct Options {
    /// Which; all unless said
    which: Vec<Which>,
    /// Rounds of each
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// A fraction of the full size, for trying the script
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
}

#[tokio::main]
async fn main() -> Result<()> {
    let options = Options::parse();
    let chosen = if options.which.is_empty() { Which::value_variants().to_vec() } else { options.which.clone() };
    let sized = |full: u64| ((full as f64 * options.scale) as u64).max(1_000);
    println!("{}", summary::HEAD);
    for which in chosen {
        match which {
            Which::Load => load::run(options.rounds, sized(1_000_000)).await?,
            Which::Backlog100 => backlog::run(options.rounds, sized(500_000), 100).await?,
            Which::Backlog1 => backlog::run(options.rounds, sized(500_000), 1).await?,
            Which::Latency => latency::run(options.rounds).await?,
            Which::Memory => memory::run(sized(3_000_000)).await?,
            Which::Sqlite => sqlite::run(options.rounds, sized(1_000_000))?,
            Which::Verify => {
                for way in [verify::Way::AsItIs, verify::Way::NewKeys] {
                    verify::run(options.rounds, sized(1_000_000), way).await?;
                }
            }
            Which::Continuous => backlog::verified(options.rounds, sized(500_000)).await?,
            Which::Backfill => backfill::run(options.rounds, sized(1_682_827)).await?,
            #[cfg(feature = "kafka")]
            Which::ToTopics => kafka::to_topics(options.rounds, sized(500_000)).await?,
            #[cfg(feature = "kafka")]
            Which::OverTopics => kafka::over_topics(options.rounds, sized(500_000)).await?,
            #[cfg(feature = "kafka")]
            Which::KafkaLog => kafka::log(options.rounds, sized(500_000)).await?,
            #[cfg(feature = "kafka")]
            Which::Workers => workers::run(options.rounds, sized(500_000)).await?,
        }
    }
    Ok(())
}
