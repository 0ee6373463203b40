//! Commands that have commands of their own: quarantine, mapping, log and state.

use super::ReportArgs;
use clap::{Args, Subcommand};
use std::path::{Path, PathBuf};

/// `crossfade quarantine …`
#[derive(Debug, Subcommand)]
pub(crate) enum QuarantineCommand {
    /// List the changes that could not be applied, and those that wait behind them
    #[command(after_help = "Example:\n  crossfade quarantine ls shop.toml --table app_v2.orders")]
    Ls(QuarantineLsArgs),
    /// Show one change; its values only with --values
    #[command(after_help = "Example:\n  crossfade quarantine show shop.toml 17 --values")]
    Show(QuarantineShowArgs),
    /// Apply changes again, each key's in their order
    #[command(after_help = "Example:\n  crossfade quarantine retry shop.toml --all")]
    Retry(QuarantinePickArgs),
    /// Drop changes for good; `verify` will find what they leave behind
    #[command(after_help = "Example:\n  crossfade quarantine discard shop.toml 17 18")]
    Discard(QuarantinePickArgs),
}

impl QuarantineCommand {
    /// Whose quarantine.
    pub(crate) fn spec(&self) -> &Path {
        match self {
            Self::Ls(args) => &args.spec,
            Self::Show(args) => &args.spec,
            Self::Retry(args) | Self::Discard(args) => &args.spec,
        }
    }
}

/// Which to list.
#[derive(Debug, Args)]
pub(crate) struct QuarantineLsArgs {
    /// The spec
    #[arg(value_name = "SPEC")]
    pub(crate) spec: PathBuf,
    /// Only this table of the target, as schema.table
    #[arg(long, value_name = "TABLE")]
    pub(crate) table: Option<String>,
    /// Answer as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Which to show.
#[derive(Debug, Args)]
pub(crate) struct QuarantineShowArgs {
    /// The spec
    #[arg(value_name = "SPEC")]
    pub(crate) spec: PathBuf,
    /// The change's number, as `ls` prints it
    #[arg(value_name = "ID")]
    pub(crate) id: i64,
    /// Print the row's values too
    #[arg(long)]
    pub(crate) values: bool,
    /// Answer as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Which to retry or discard.
#[derive(Debug, Args)]
pub(crate) struct QuarantinePickArgs {
    /// The spec
    #[arg(value_name = "SPEC")]
    pub(crate) spec: PathBuf,
    /// The changes' numbers, as `ls` prints them; all changes of their keys go along
    #[arg(value_name = "ID", conflicts_with_all = ["table", "all"])]
    pub(crate) ids: Vec<i64>,
    /// All changes of this table of the target, as schema.table
    #[arg(long, value_name = "TABLE", conflicts_with = "all")]
    pub(crate) table: Option<String>,
    /// All changes
    #[arg(long)]
    pub(crate) all: bool,
    /// Answer as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// `crossfade mapping …`
#[derive(Debug, Subcommand)]
pub(crate) enum MappingCommand {
    /// Write the whole mapping as CSV (or JSON lines)
    #[command(after_help = "Example:\n  crossfade mapping export shop.toml > mapping.csv")]
    Export(MappingExportArgs),
    /// Find the entries whose old or new key is this one
    #[command(after_help = "Example:\n  crossfade mapping lookup shop.toml 4711")]
    Lookup(MappingLookupArgs),
}

/// What to export.
#[derive(Debug, Args)]
pub(crate) struct MappingExportArgs {
    /// The spec
    #[arg(value_name = "SPEC")]
    pub(crate) spec: PathBuf,
    /// Only this table of the source, as schema.table
    #[arg(long, value_name = "TABLE")]
    pub(crate) table: Option<String>,
    /// One JSON document a line in place of CSV
    #[arg(long)]
    pub(crate) json: bool,
}

/// What to look up.
#[derive(Debug, Args)]
pub(crate) struct MappingLookupArgs {
    /// The spec
    #[arg(value_name = "SPEC")]
    pub(crate) spec: PathBuf,
    /// The old or the new key
    #[arg(value_name = "KEY")]
    pub(crate) key: String,
    /// Answer as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// `crossfade log …`
#[derive(Debug, Subcommand)]
pub(crate) enum LogCommand {
    /// Show where the log begins and ends, its tables and its files
    #[command(after_help = "Example:\n  crossfade log ls shop.toml")]
    Ls(ReportArgs),
    /// Print events; rows' values only with --values
    #[command(after_help = "Example:\n  crossfade log cat shop.toml --from 120 --limit 20")]
    Cat(LogCatArgs),
    /// Read every byte again and check it against its checksum
    #[command(after_help = "Example:\n  crossfade log verify shop.toml")]
    Verify(ReportArgs),
}

/// What to print.
#[derive(Debug, Args)]
pub(crate) struct LogCatArgs {
    /// The spec
    #[arg(value_name = "SPEC")]
    pub(crate) spec: PathBuf,
    /// The first entry, by the number that is printed first; the log's beginning unless said
    #[arg(long, value_name = "NUMBER")]
    pub(crate) from: Option<u64>,
    /// At most so many events
    #[arg(long, value_name = "N")]
    pub(crate) limit: Option<u64>,
    /// Only events of this table of the source, as schema.table
    #[arg(long, value_name = "TABLE")]
    pub(crate) table: Option<String>,
    /// Print the rows' values too
    #[arg(long)]
    pub(crate) values: bool,
    /// One JSON document a line
    #[arg(long)]
    pub(crate) json: bool,
}

/// `crossfade state …`
#[derive(Debug, Subcommand)]
pub(crate) enum StateCommand {
    /// List what the state holds
    #[command(after_help = "Example:\n  crossfade state ls shop.toml")]
    Ls(ReportArgs),
    /// Build the state again from the log and the sink, which know everything that it holds
    #[command(after_help = "Example:\n  crossfade state rebuild shop.toml")]
    Rebuild(ReportArgs),
}
