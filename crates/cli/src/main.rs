//! The binary `crossfade`: reads the command line and the spec, wires the parts together, and turns how a command
//! ended into one sentence and an exit code.
//!
//! What this crate deliberately does not do: it moves no row itself. Loops live in the pipeline, SQL in the
//! connectors, decisions in control; here they are only brought together.

mod args;
mod commands;
mod demo;
mod error;
mod event_log;
mod output;
mod page;
mod pairs;
mod registry;
mod run;
mod spec;
mod values;
mod wiring;

use args::Cli;
use clap::Parser;
use error::{CliError, Exit};
use std::{io::IsTerminal, process::ExitCode};
use tracing_subscriber::{EnvFilter, Layer, filter::filter_fn, layer::SubscriberExt, util::SubscriberInitExt};

fn main() -> ExitCode {
    let cli = Cli::parse();
    std::panic::set_hook(Box::new(report_panic));
    match begin(cli) {
        Ok(()) => Exit::Done.into(),
        Err(error) => {
            if error.exit != Exit::Done {
                report(&error);
            }
            error.exit.into()
        }
    }
}

fn begin(cli: Cli) -> Result<(), CliError> {
    start_tracing(&cli)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("crossfade")
        .build()
        .map_err(|error| CliError::io("starting the worker threads", &error))?;
    let outcome = runtime.block_on(Box::pin(commands::dispatch(cli.command, cli.reverse)));
    // A task that blocks on a dead server or disk must not keep the process: everything is safe to drop.
    runtime.shutdown_background();
    outcome
}

/// What the work tells, on standard error; standard output belongs to answers.
fn start_tracing(cli: &Cli) -> Result<(), CliError> {
    let filter = EnvFilter::builder().parse(&cli.log).map_err(|error| {
        CliError::misconfigured(format!("--log {:?} is not a level or a filter: {error}", cli.log))
            .hint("use error, warn, info, debug or trace")
    })?;
    let lines =
        tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    let lines = if cli.log_json { lines.json().boxed() } else { lines.boxed() };
    tracing_subscriber::registry().with(filter).with(filter_fn(tells_no_values)).with(lines).init();
    Ok(())
}

/// The client library's own lines name the parameters of every statement from `debug` on: rows of the migrated tables.
fn tells_no_values(line: &tracing::Metadata<'_>) -> bool {
    *line.level() <= tracing::Level::INFO || !line.target().starts_with("tokio_postgres")
}

fn report(error: &CliError) {
    eprintln!("error: {}", error.message);
    if let Some(hint) = &error.hint {
        eprintln!("hint: {hint}");
    }
}

/// A broken invariant ends the process at once, wherever it is seen: going on would build on it. What is on disk and
/// in the databases is right after any kill, so the next start is safe.
fn report_panic(panic: &std::panic::PanicHookInfo<'_>) {
    let what = panic
        .payload()
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.payload().downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "an unnamed fault".to_owned());
    let place = panic.location().map(|place| format!(" ({}:{})", place.file(), place.line())).unwrap_or_default();
    eprintln!("error: crossfade met a fault of its own and stopped: {what}{place}");
    eprintln!("hint: nothing is lost by it, the same command may be started again; please report the line above");
    std::process::exit(Exit::Failed as i32);
}
