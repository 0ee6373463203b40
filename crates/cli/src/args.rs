//! The command line. Every command says in `--help` what it does, what it leaves alone, and shows one example.

mod nested;

pub(crate) use nested::{
    LogCatArgs, LogCommand, MappingCommand, QuarantineCommand, QuarantineLsArgs, QuarantinePickArgs,
    QuarantineShowArgs, StateCommand,
};

use crate::spec::Span;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::{fmt, path::PathBuf, str::FromStr};

const EXIT_CODES: &str = "\
Exit codes:
  0   done
  1   failed, or a time-out, or a server that could not be reached after the retries
  2   the command, the spec or the environment is wrong
  3   refused: by preflight (rights, settings, a target that is not empty) or by a gate
  4   differences found, or rows left alone
  5   lost or damaged; the remedy is printed
  75  another process owns this migration";

/// Moves live data from one shape or system to another without stopping the applications that use it.
#[derive(Debug, Parser)]
#[command(name = "crossfade", version, max_term_width = 100, after_help = EXIT_CODES, arg_required_else_help = true)]
pub(crate) struct Cli {
    /// What to tell on standard error about the work: error, warn, info, debug, trace, or a filter such as
    /// `crossfade_postgres=debug,info`
    #[arg(long, global = true, default_value = "warn", value_name = "LEVEL")]
    pub(crate) log: String,
    /// Write what is told on standard error as lines of JSON
    #[arg(long, global = true)]
    pub(crate) log_json: bool,
    /// Speak of the way back: the stream that keeps the old side exact after a switch
    #[arg(long, global = true)]
    pub(crate) reverse: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// All commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show the whole life of a migration on embedded parts, with live writers, in under half a minute
    #[command(
        after_help = "Example:\n  crossfade demo\n\nNeeds no server and no configuration; leaves one folder, which it names."
    )]
    Demo(DemoArgs),
    /// Look at the databases and write a commented spec
    #[command(
        after_help = "Example:\n  crossfade init --source 'postgres://app@old.example/shop' --sink 'postgres://app@new.example/shop' -o shop.toml"
    )]
    Init(InitArgs),
    /// Check rights, settings and the target, and say how to mend what is wrong; writes nothing
    #[command(after_help = "Example:\n  crossfade check shop.toml")]
    Check(ReportArgs),
    /// Print every step with its SQL, its cost, and what can be taken back; writes nothing
    #[command(after_help = "Examples:\n  crossfade plan shop.toml --json\n  crossfade plan shop.toml --reverse")]
    Plan(ReportArgs),
    /// Run the migration in the foreground; SIGINT or SIGTERM drains and stops, a second one stops at once
    #[command(
        after_help = "Example:\n  crossfade run shop.toml\n\nIt may be killed at any time and started again: nothing is lost, nothing comes twice."
    )]
    Run(RunArgs),
    /// Wait until the sink has everything that was in the source when asked
    #[command(after_help = "Example:\n  crossfade wait shop.toml --caught-up --timeout 5m")]
    Wait(WaitArgs),
    /// Show phase, progress per table, lag, and the count of every row read
    #[command(after_help = "Example:\n  crossfade status shop.toml --json")]
    Status(ReportArgs),
    /// Compare both sides at one position, row by row
    #[command(
        after_help = "Example:\n  crossfade verify shop.toml\n\nWhere no process runs the migration, this one does until both sides are compared.\nExit code 4 when there are differences; they are listed by table and key. Exit code 1 when rows changed whenever they were looked at, so that nothing can be said of them.\n\nWith query pairs: exit code 4 also where their answers differ, 3 where only a latency budget of theirs is missed, 1 where answers changed too fast to be judged.\n  crossfade verify shop.toml --queries queries.toml --report verified.html"
    )]
    Verify(VerifyArgs),
    /// Give the present place in the log a name, for a later replay
    #[command(after_help = "Example:\n  crossfade checkpoint shop.toml before-the-import")]
    Checkpoint(CheckpointArgs),
    /// Apply the log again: into the same sink it heals, into another one it builds anew
    #[command(
        after_help = "Examples:\n  crossfade replay shop.toml --from checkpoint:before-the-import\n  crossfade replay shop.toml --from start --into shop-v2.toml"
    )]
    Replay(ReplayArgs),
    /// Take back what the migration wrote
    #[command(
        after_help = "Examples:\n  crossfade rollback shop.toml --undo\n  crossfade rollback shop.toml --wipe --yes"
    )]
    Rollback(RollbackArgs),
    /// Set how large a share of the applications' reads is compared on both sides; 0% ends it
    #[command(
        after_help = "Examples:\n  crossfade dual-reads shop.toml 5%\n  crossfade dual-reads shop.toml 0%\n\nApplications that use the library crossfade-dualread follow the flag crossfade.dual_reads on either side, without a restart; the first that finds a budget spent ends it for all, and `status` says why.\nFor people without Rust: crossfade verify --queries FILE --share 5% --for 12h.\nExit code 3 when a guard says no; nothing has changed then."
    )]
    DualReads(DualReadsArgs),
    /// Agree to the next switch, by one's name, where `[switch] approvals` asks for it
    #[command(after_help = "Example:\n  crossfade approve shop.toml --reason 'change 4711, after the nightly batch'")]
    Approve(ApproveArgs),
    /// Switch the applications to the new side, or say why not
    #[command(
        after_help = "Examples:\n  crossfade cutover shop.toml --dry-run\n  crossfade cutover shop.toml --deadline 5s\n\nWriters are held up for the deadline at most, and go on where they were unless all is on the new side by then.\nIt may be killed at any moment and asked again: it completes what was decided, or takes back what was not.\nExit code 3 when a guard says no; nothing has been held up then."
    )]
    Cutover(SwitchArgs),
    /// Switch the applications back to the old side, with everything that was written since the cutover
    #[command(
        after_help = "Examples:\n  crossfade failback shop.toml --dry-run\n  crossfade failback shop.toml\n\nBetween two databases: the same switch with the roles swapped, over the reverse stream that `crossfade run` keeps the old side exact by.\nWriters are held up for the deadline at most, and go on where they were unless all is on the old side by then.\nIt may be killed at any moment and asked again. Exit code 3 when a guard says no; nothing has been held up then."
    )]
    Failback(SwitchArgs),
    /// Drop what a finished migration no longer needs, for ever
    #[command(
        after_help = "Examples:\n  crossfade cleanup shop.toml --dry-run\n  crossfade cleanup shop.toml --confirm shop\n\nKeys, mapping and journal are exported first. Until the drop everything can be taken back; after it nothing can.\nExit code 3 where it is too early, or something depends on what would go."
    )]
    Cleanup(CleanupArgs),
    /// Make a running migration stop applying, until `resume`
    #[command(after_help = "Example:\n  crossfade pause shop.toml --reason 'nightly backup'")]
    Pause(PauseArgs),
    /// Let a paused migration go on
    #[command(after_help = "Example:\n  crossfade resume shop.toml\n  crossfade resume shop.toml --add")]
    Resume(ResumeArgs),
    /// Look into, retry or drop changes that could not be applied
    #[command(subcommand)]
    Quarantine(QuarantineCommand),
    /// Read the mapping of old keys to new ones
    #[command(subcommand)]
    Mapping(MappingCommand),
    /// Look into the event log
    #[command(subcommand)]
    Log(LogCommand),
    /// Look into the state, or build it again from log and sink
    #[command(subcommand)]
    State(StateCommand),
}

/// Where a demo goes.
#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// The folder to work in; must not exist, be empty, or be an earlier demo's
    #[arg(long, value_name = "FOLDER", default_value = "demo-data")]
    pub(crate) folder: PathBuf,
}

/// What `init` looks at.
#[derive(Debug, Args)]
pub(crate) struct InitArgs {
    /// The source: `postgres://user@host/database`, or `sqlite:path`
    #[arg(long, value_name = "URL")]
    pub(crate) source: String,
    /// The sink, in the same form
    #[arg(long, value_name = "URL")]
    pub(crate) sink: Option<String>,
    /// The migration's name; taken from the source's database unless said
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Tables to take, as patterns such as `public.*` or `!public.migrations`; may be given several times
    #[arg(long, value_name = "PATTERN")]
    pub(crate) tables: Vec<String>,
    /// The file to write; standard output unless said
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// Overwrite the file
    #[arg(long, requires = "output")]
    pub(crate) force: bool,
}

/// A spec, and how to answer.
#[derive(Debug, Args)]
pub(crate) struct ReportArgs {
    /// The spec
    #[arg(value_name = "SPEC")]
    pub(crate) spec: PathBuf,
    /// Answer as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Which part of the journey a process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Role {
    /// All of it
    All,
    /// Source to log
    Ingest,
    /// Transform only
    Transform,
    /// Log to sink
    Deliver,
}

/// When `run` ends by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Until {
    /// When the sink has everything that was in the source at the start
    CaughtUp,
}

/// How to run.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// The spec
    #[arg(value_name = "SPEC")]
    pub(crate) spec: PathBuf,
    /// Which part of the journey this process does; the parts meet in a log on Kafka
    #[arg(long, value_enum, default_value_t = Role::All)]
    pub(crate) role: Role,
    /// End by itself
    #[arg(long, value_enum)]
    pub(crate) until: Option<Until>,
    /// A trial: end after so many rows or changes have been delivered
    #[arg(long, value_name = "N")]
    pub(crate) limit: Option<u64>,
    /// Read, transform and count, without writing to the sink
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Show /metrics (Prometheus), /status (JSON) and a page on this address, without a password: best 127.0.0.1:PORT
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) listen: Option<std::net::SocketAddr>,
    /// Do not show progress
    #[arg(long)]
    pub(crate) quiet: bool,
}

/// What to wait for.
#[derive(Debug, Args)]
pub(crate) struct WaitArgs {
    /// The spec
    #[arg(value_name = "SPEC")]
    pub(crate) spec: PathBuf,
    /// Until the sink has passed the source's position as it is now
    #[arg(long, required = true)]
    pub(crate) caught_up: bool,
    /// Give up after so long (exit code 1)
    #[arg(long, value_name = "TIME", default_value = "60s")]
    pub(crate) timeout: Span,
    /// Answer as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// How to verify.
#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// The spec
    #[arg(value_name = "SPEC")]
    pub(crate) spec: PathBuf,
    /// Also ask these pairs of queries on both sides: the same answers? p50, p95 and p99 of either
    #[arg(long, value_name = "FILE")]
    pub(crate) queries: Option<PathBuf>,
    /// Go on asking the pairs, for so large a share of the time (`5%`), until --for is over or one differs or is too slow
    #[arg(long, value_name = "PERCENT", requires = "queries", requires = "long")]
    pub(crate) share: Option<crossfade_dualread::Percent>,
    /// How long to go on with --share
    #[arg(long = "for", id = "long", value_name = "TIME", requires = "share")]
    pub(crate) long: Option<Span>,
    /// Do not compare the rows, only ask the pairs of queries
    #[arg(long, requires = "queries")]
    pub(crate) no_rows: bool,
    /// Also write what was found as a page to read in a browser: one file, without values of rows
    #[arg(long, value_name = "FILE")]
    pub(crate) report: Option<PathBuf>,
    /// Name rows that differ by their keys as well, in the answer and on the page; otherwise by a hash of them
    #[arg(long)]
    pub(crate) show_keys: bool,
    /// Write rows that differ as they should be, and compare again; newer changes are never overwritten
    #[arg(long)]
    pub(crate) repair: bool,
    /// How many differences to list
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub(crate) limit: usize,
    /// Answer as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// How much to compare.
#[derive(Debug, Args)]
pub(crate) struct DualReadsArgs {
    /// The spec
    #[arg(value_name = "SPEC")]
    pub(crate) spec: PathBuf,
    /// The share: 5%, 0.25%, 0%
    #[arg(value_name = "SHARE")]
    pub(crate) share: crossfade_dualread::Percent,
    /// Answer as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Who agrees, and why.
#[derive(Debug, Args)]
pub(crate) struct ApproveArgs {
    /// The spec
    #[arg(value_name = "SPEC")]
    pub(crate) spec: PathBuf,
    /// Why; it stands in the journal
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: String,
    /// By whose name; the user's own unless said
    #[arg(long, value_name = "NAME")]
    pub(crate) by: Option<String>,
}

/// What to clean up.
#[derive(Debug, Args)]
pub(crate) struct CleanupArgs {
    /// The spec
    #[arg(value_name = "SPEC")]
    pub(crate) spec: PathBuf,
    /// The migration's name: nothing is dropped without it
    #[arg(long, value_name = "NAME")]
    pub(crate) confirm: Option<String>,
    /// Drop the mapping of old keys to new ones, too
    #[arg(long)]
    pub(crate) drop_mapping: bool,
    /// Print what would be run, and change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Answer as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// How to switch.
#[derive(Debug, Args)]
pub(crate) struct SwitchArgs {
    /// The spec
    #[arg(value_name = "SPEC")]
    pub(crate) spec: PathBuf,
    /// Ask every guard, and change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Hold writers up for at most so long, whatever the spec says: 500ms to 60s
    #[arg(long, value_name = "TIME")]
    pub(crate) deadline: Option<Span>,
    /// Answer as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// What to name.
#[derive(Debug, Args)]
pub(crate) struct CheckpointArgs {
    /// The spec
    #[arg(value_name = "SPEC")]
    pub(crate) spec: PathBuf,
    /// The checkpoint's name: lower-case letters, digits, `-`, `_` and `.`
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
    /// Answer as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Where a replay begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum From {
    /// An entry, by the number that `log cat` prints; on disk it is the offset.
    Offset(u64),
    /// A place in the source's history, as `status` prints it.
    Position(String),
    /// The first transaction committed at or after this moment.
    Time(jiff::Timestamp),
    /// A named place.
    Checkpoint(String),
}

impl FromStr for From {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = "write start, offset:N, position:P, time:T or checkpoint:NAME";
        if text == "start" {
            return Ok(Self::Offset(0));
        }
        let (kind, rest) = text.split_once(':').ok_or_else(|| format!("`{text}` is no place in the log; {known}"))?;
        match kind {
            "offset" => rest.parse().map(Self::Offset).map_err(|_| format!("`{rest}` is not a whole number")),
            "position" => Ok(Self::Position(rest.to_owned())),
            "time" => rest.parse().map(Self::Time).map_err(|_| {
                format!("`{rest}` is not a moment; write it with its zone, for example 2026-03-01T12:00:00Z")
            }),
            "checkpoint" => Ok(Self::Checkpoint(rest.to_owned())),
            _ => Err(format!("`{kind}` is no kind of place; {known}")),
        }
    }
}

impl fmt::Display for From {
    /// As [`FromStr`] reads it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Offset(offset) => write!(f, "offset:{offset}"),
            Self::Position(position) => write!(f, "position:{position}"),
            Self::Time(time) => write!(f, "time:{time}"),
            Self::Checkpoint(name) => write!(f, "checkpoint:{name}"),
        }
    }
}

/// What to replay.
#[derive(Debug, Args)]
pub(crate) struct ReplayArgs {
    /// The spec whose log is read
    #[arg(value_name = "SPEC")]
    pub(crate) spec: PathBuf,
    /// From where: start, offset:N, position:P, time:T or checkpoint:NAME
    #[arg(long, value_name = "PLACE")]
    pub(crate) from: From,
    /// Into the sink of another spec, by that spec's rules
    #[arg(long, value_name = "SPEC")]
    pub(crate) into: Option<PathBuf>,
    /// The other sink holds a copy already, in the shape of its spec, that was right at this place: go on from there
    #[arg(long, requires = "into")]
    pub(crate) base: bool,
    /// Go on with the live stream afterwards, until stopped
    #[arg(long, requires = "into")]
    pub(crate) follow: bool,
    /// Answer as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// How to roll back.
#[derive(Debug, Args)]
pub(crate) struct RollbackArgs {
    /// The spec
    #[arg(value_name = "SPEC")]
    pub(crate) spec: PathBuf,
    /// Put back what was overwritten or deleted; leave alone, and list, what somebody else changed since
    #[arg(long, required_unless_present = "wipe", conflicts_with = "wipe")]
    pub(crate) undo: bool,
    /// Drop everything that the migration made
    #[arg(long)]
    pub(crate) wipe: bool,
    /// Do not ask, also on a terminal
    #[arg(long)]
    pub(crate) yes: bool,
    /// Answer as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Why to pause.
#[derive(Debug, Args)]
pub(crate) struct PauseArgs {
    /// The spec
    #[arg(value_name = "SPEC")]
    pub(crate) spec: PathBuf,
    /// Why; shown by `status`
    #[arg(long, value_name = "TEXT", default_value = "asked by hand")]
    pub(crate) reason: String,
}

/// How to resume.
#[derive(Debug, Args)]
pub(crate) struct ResumeArgs {
    /// The spec
    #[arg(value_name = "SPEC")]
    pub(crate) spec: PathBuf,
    /// Also take in tables that match the spec and are new in the source
    #[arg(long)]
    pub(crate) add: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_that_works_shows_an_example() {
        fn walk(command: &clap::Command) {
            for sub in command.get_subcommands() {
                if sub.has_subcommands() {
                    walk(sub);
                } else if !sub.get_about().is_some_and(|about| about.to_string().contains("not built yet")) {
                    assert!(sub.get_after_help().is_some(), "{} has no example", sub.get_name());
                }
            }
        }
        walk(&Cli::command());
    }

    #[test]
    fn places_in_the_log_are_read() {
        assert_eq!("start".parse(), Ok(From::Offset(0)));
        assert_eq!("offset:12".parse(), Ok(From::Offset(12)));
        assert_eq!("checkpoint:a".parse(), Ok(From::Checkpoint("a".to_owned())));
        assert_eq!("position:1/16B3748/end".parse(), Ok(From::Position("1/16B3748/end".to_owned())));
        for text in ["offset:12", "checkpoint:a", "position:1/16B3748/end", "time:2026-03-01T12:00:00Z"] {
            assert_eq!(text.parse::<From>().map(|from| from.to_string()), Ok(text.to_owned()));
        }
        assert!(matches!("time:2026-03-01T12:00:00Z".parse(), Ok(From::Time(_))));
        for wrong in ["12", "offset:x", "time:yesterday", "place:1"] {
            assert!(wrong.parse::<From>().is_err(), "{wrong}");
        }
    }
}
