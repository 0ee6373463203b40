//! What a command ends with when it does not end well: one sentence, perhaps a hint, and an exit code.
//!
//! Here, and nowhere else, the errors of all crates become exit codes. The codes are a promise of the README.

use crate::spec::SpecError;
use crossfade_connector::{Failure, Verdict};
use crossfade_control::{JournalError, Refusal};
use crossfade_dualread::pairs::PairError;
use crossfade_log::LogError;
use crossfade_pipeline::PipelineError;
use crossfade_state::StateError;
use crossfade_transform::PlanError;
use crossfade_verify::VerifyError;
use std::{error::Error, fmt, io, process::ExitCode};

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Done.
    Done = 0,
    /// Failed; or a time-out, or a server that could not be reached after the retries.
    Failed = 1,
    /// The command, the spec or the environment is wrong.
    Misconfigured = 2,
    /// Refused by preflight or by a gate.
    Refused = 3,
    /// Differences were found, or rows were left alone.
    Differences = 4,
    /// History is lost, or a file is damaged or too new.
    Lost = 5,
    /// Another process owns this.
    Locked = 75,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// A command's failure, as it is told to a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CliError {
    /// The exit code.
    pub(crate) exit: Exit,
    /// One clear sentence, naming the object.
    pub(crate) message: String,
    /// What to do, where there is advice.
    pub(crate) hint: Option<String>,
    /// Whether it may work when tried again.
    pub(crate) passing: bool,
}

impl CliError {
    /// An error with any exit code.
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), hint: None, passing: false }
    }

    /// It failed.
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self::new(Exit::Failed, message)
    }

    /// The command, the spec or the environment is wrong.
    pub(crate) fn misconfigured(message: impl Into<String>) -> Self {
        Self::new(Exit::Misconfigured, message)
    }

    /// Refused.
    pub(crate) fn refused(message: impl Into<String>) -> Self {
        Self::new(Exit::Refused, message)
    }

    /// What the design has and this build has not; refused by name.
    pub(crate) fn not_built(what: &str) -> Self {
        Self::misconfigured(format!("{what} is not built yet"))
            .hint("nothing has been changed; `crossfade --help` lists what works")
    }

    /// The same, with advice.
    #[must_use]
    pub(crate) fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    /// An error with its causes; a second sentence in it is advice.
    pub(crate) fn of(exit: Exit, error: &(dyn Error + 'static)) -> Self {
        let (message, hint) = sentence_and_advice(&with_causes(error));
        let hint = hint.or_else(|| is_full_disk(error).then(|| MAKE_ROOM.to_owned()));
        Self { exit, message, hint, passing: false }
    }

    /// The same, worth another try.
    #[must_use]
    pub(crate) fn passing(self) -> Self {
        Self { passing: true, ..self }
    }

    /// An error of the operating system about a named object.
    pub(crate) fn io(doing: impl fmt::Display, cause: &io::Error) -> Self {
        let hint = is_full_disk(cause).then(|| MAKE_ROOM.to_owned());
        Self { hint, ..Self::failed(format!("{doing}: {cause}")) }
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for CliError {}

/// What to do about a full disk: nothing is lost by it.
const MAKE_ROOM: &str = "make room on that disk, then start crossfade again; nothing is lost";

/// Whether the disk being full is among an error's causes.
fn is_full_disk(error: &(dyn Error + 'static)) -> bool {
    let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
    matches!(kind, Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
        || error.source().is_some_and(is_full_disk)
}

/// An error and all its causes, in one line, leaving out a cause that the line above has said already.
fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let said = cause.to_string();
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        next = cause.source();
    }
    text
}

impl From<Failure> for CliError {
    fn from(failure: Failure) -> Self {
        let exit = match failure.verdict {
            Verdict::Misconfigured { .. } => Exit::Misconfigured,
            Verdict::Refused { .. } => Exit::Refused,
            Verdict::Lost { .. } => Exit::Lost,
            Verdict::Halt { .. } | Verdict::Retry { .. } | Verdict::Reconnect => Exit::Failed,
        };
        let cause = failure.source().map(with_causes).unwrap_or_default();
        let hint = match &failure.verdict {
            Verdict::Retry { .. } => Some("it may work when tried again"),
            Verdict::Reconnect => Some("check that the server runs and can be reached, then try again"),
            _ => failure.advice(),
        };
        let passing = failure.is_transient();
        Self { exit, message: format!("{}: {cause}", failure.doing), hint: hint.map(str::to_owned), passing }
    }
}

impl From<LogError> for CliError {
    fn from(error: LogError) -> Self {
        let exit = match error {
            LogError::Corrupt { .. } | LogError::TooNew { .. } | LogError::Beyond { .. } | LogError::Lost { .. } => {
                Exit::Lost
            }
            LogError::Locked { .. } | LogError::Fenced { .. } => Exit::Locked,
            LogError::Trimmed { .. } | LogError::Refused { .. } | LogError::Denied { .. } => Exit::Refused,
            LogError::NotBuilt(_) => Exit::Misconfigured,
            LogError::Poisoned { .. }
            | LogError::Io { .. }
            | LogError::ReadOnly { .. }
            | LogError::Server { .. }
            | LogError::Contract(_) => Exit::Failed,
        };
        let passing = matches!(error, LogError::Server { passing: true, .. });
        let Self { message, hint, .. } = Self::of(exit, &error);
        let try_again = || "check that the servers of the log run and can be reached, then try again".to_owned();
        Self { exit, message, hint: hint.or_else(|| passing.then(try_again)), passing }
    }
}

impl From<SpecError> for CliError {
    fn from(error: SpecError) -> Self {
        let hint = error.hint().map(str::to_owned);
        Self { exit: Exit::Misconfigured, message: error.to_string(), hint, passing: false }
    }
}

impl From<io::Error> for CliError {
    /// Only for what is written to standard output: everything else names its object with [`CliError::io`]. A reader
    /// that has gone away (`| head`) is no failure.
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::new(Exit::Done, "the reader of the output has gone"),
            _ => Self::failed(format!("writing to standard output: {error}")),
        }
    }
}

impl From<StateError> for CliError {
    fn from(error: StateError) -> Self {
        let exit = match error {
            StateError::Damaged { .. } | StateError::TooNew { .. } => Exit::Lost,
            StateError::Locked { .. } => Exit::Locked,
            StateError::Poisoned { .. } | StateError::TooLarge { .. } | StateError::Io { .. } => Exit::Failed,
        };
        Self::of(exit, &error)
    }
}

impl From<PlanError> for CliError {
    fn from(error: PlanError) -> Self {
        let exit = match error {
            PlanError::UnknownTable { .. }
            | PlanError::UnknownColumn { .. }
            | PlanError::Clash(_)
            | PlanError::Invalid { .. }
            | PlanError::Unbuilt(_) => Exit::Misconfigured,
            PlanError::NeedsText { .. } | PlanError::Unplanned(_) | PlanError::OneWay(_) => Exit::Refused,
        };
        Self::of(exit, &error)
    }
}

impl From<PipelineError> for CliError {
    fn from(error: PipelineError) -> Self {
        let on = |side: &str, failure: Failure| {
            let error = Self::from(failure);
            Self { message: format!("{side}: {}", error.message), ..error }
        };
        match error {
            PipelineError::Source(failure) => on("source", failure),
            PipelineError::Sink(failure) => on("sink", failure),
            PipelineError::Log(error) => error.into(),
            PipelineError::Plan(error) => error.into(),
            PipelineError::Scratch(_) => Self::of(Exit::Failed, &error),
            PipelineError::Refused(_) => Self::of(Exit::Refused, &error),
        }
    }
}

impl From<VerifyError> for CliError {
    fn from(error: VerifyError) -> Self {
        match error {
            VerifyError::Source(failure) => PipelineError::Source(failure).into(),
            VerifyError::Target(failure) => {
                let error = Self::from(failure);
                Self { message: format!("target: {}", error.message), ..error }
            }
            VerifyError::Plan(error) => error.into(),
            VerifyError::Behind { .. } | VerifyError::Unfit { .. } => Self::of(Exit::Failed, &error),
        }
    }
}

impl From<PairError> for CliError {
    fn from(error: PairError) -> Self {
        match error {
            PairError::Source { name, failure } => Self::of_query(&name, "source", failure),
            PairError::Target { name, failure } => Self::of_query(&name, "target", failure),
            PairError::Answer { .. } => Self::of(Exit::Misconfigured, &error),
            PairError::Behind { .. } => Self::of(Exit::Failed, &error),
        }
    }
}

impl CliError {
    /// A query that one end does not answer. What the server refuses for good is wrong in the query.
    fn of_query(name: &str, end: &str, failure: Failure) -> Self {
        let is_passing = failure.is_transient();
        let error = Self::from(failure);
        let exit = if is_passing { error.exit } else { Exit::Misconfigured };
        Self { exit, message: format!("query {name:?}, on the {end}: {}", error.message), ..error }
    }
}

impl From<Refusal> for CliError {
    fn from(refusal: Refusal) -> Self {
        let exit = match refusal {
            Refusal::WrongPhase { .. }
            | Refusal::Stopped { .. }
            | Refusal::SpecChanged { .. }
            | Refusal::Guarded { .. }
            | Refusal::ReadsUnjudged { .. }
            | Refusal::Fallen { .. } => Exit::Refused,
            Refusal::IdentityChanged { .. } | Refusal::AnotherEpoch { .. } => Exit::Lost,
            Refusal::CheckpointExists { .. }
            | Refusal::NoCheckpoint { .. }
            | Refusal::BadName { .. }
            | Refusal::BadShare { .. } => Exit::Misconfigured,
        };
        Self::of(exit, &refusal)
    }
}

impl From<JournalError> for CliError {
    fn from(error: JournalError) -> Self {
        match error {
            JournalError::Refused(refusal) => refusal.into(),
            JournalError::Log(error) => error.into(),
            JournalError::Ending => Self::of(Exit::Failed, &error),
            JournalError::Damaged { .. } | JournalError::TooNew { .. } => Self::of(Exit::Lost, &error),
        }
    }
}

impl From<anyhow::Error> for CliError {
    /// A command of several steps, each of which has said what it did.
    fn from(error: anyhow::Error) -> Self {
        Self::failed(format!("{error:#}"))
    }
}

/// Errors that carry their remedy write it as a second sentence: `what. What to do`.
fn sentence_and_advice(text: &str) -> (String, Option<String>) {
    match text.split_once(". ") {
        Some((sentence, advice)) => (sentence.to_owned(), Some(advice.to_owned())),
        None => (text.to_owned(), None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossfade_event::Cut;

    #[test]
    fn every_verdict_has_the_exit_code_of_the_design() {
        let cases = [
            (Failure::misconfigured("a", "b", "c"), Exit::Misconfigured),
            (Failure::refused("a", "b", "c"), Exit::Refused),
            (Failure::lost("a", "b", "c"), Exit::Lost),
            (Failure::halt("a", "b", "c"), Exit::Failed),
            (Failure::retry("a", "b"), Exit::Failed),
            (Failure::reconnect("a", "b"), Exit::Failed),
        ];
        for (failure, exit) in cases {
            let transient = failure.is_transient();
            let error = CliError::from(failure);
            assert_eq!((error.exit, error.passing), (exit, transient));
            assert_eq!(error.message, "a: b");
            assert!(error.hint.is_some());
        }
    }

    #[test]
    fn every_log_error_has_the_exit_code_of_the_design() {
        let cases = [
            (LogError::Corrupt { file: "f".into(), at: 1, what: "w".into() }, Exit::Lost),
            (LogError::TooNew { file: "f".into(), found: 2, known: 1 }, Exit::Lost),
            (LogError::Locked { dir: "d".into(), pid: 1 }, Exit::Locked),
            (LogError::Trimmed { asked: Cut::start(1), start: Cut::start(1) }, Exit::Refused),
            (LogError::Denied { doing: "d".into(), said: "s".into(), remedy: "r".into() }, Exit::Refused),
            (LogError::Poisoned { why: "w".into() }, Exit::Failed),
        ];
        for (error, exit) in cases {
            assert_eq!(CliError::from(error).exit, exit);
        }
    }

    #[test]
    fn advice_in_an_errors_text_becomes_the_hint() {
        let error = CliError::from(LogError::Locked { dir: "d".into(), pid: 7 });
        assert_eq!(error.message, "the log in d is in use by process 7");
        assert_eq!(error.hint.as_deref(), Some("Stop that one, or talk to it with `crossfade status`"));
    }
}
