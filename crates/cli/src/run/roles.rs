//! One migration as several processes: ingest writes the log, deliver reads it, and they share nothing else.
//!
//! ```text
//!  <base>/plan.json, secret, topics.json      what both must agree on
//!  <base>/ingest/  <base>/deliver/            a lock, a journal, a state, a socket and a status file each
//! ```
//! What both must agree on is drawn by ingest, which says it in the log's *head*: the plan whole, of the secret its hash.
//! Deliver begins from the head, wherever it runs, and is refused by it where its own folder says something else.

use super::{
    follower::Origin,
    plan_file::{PlanFile, secret_id, secret_of},
    workers,
};
use crate::{
    commands::folder,
    error::CliError,
    event_log::{self, AnyLog},
    spec::{LogSpec, Part, Spec},
};
use crossfade_control::{By, Command, Journal, Migration};
use crossfade_log::embedded::Embedded;
use crossfade_observe::{Rates, Retrying, Status, StatusFile, Totals};
use crossfade_state::WorkFolder;
use serde::{Deserialize, Serialize};
use std::{
    path::Path,
    time::{Duration, Instant},
};

const FORMAT: u32 = 1;

/// How often deliver looks whether ingest has made the log.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// How often a process that begins looks whether the other one has let go of the migration's folder.
const LOOK_FOR_FOLDER: Duration = Duration::from_millis(20);

/// How long the other process may need the migration's folder while it begins.
const BEGINS_WITHIN: Duration = Duration::from_secs(20);

/// What ingest says of the migration in the log.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Head {
    format: u32,
    /// The migration's name.
    migration: String,
    /// Which secret its derived keys come from: a hash, never the secret itself.
    secret_id: String,
    /// Whether workers transform.
    #[serde(default)]
    workers: bool,
    /// Whether a mark stands before each row that changes its key between two partitions and keeps what the change does
    /// not say: only then may several apply the stream.
    #[serde(default)]
    marks_moves: bool,
    /// What it was planned with.
    pub(super) plan: PlanFile,
}

/// Whether a process that does a part of a migration has begun in its folder on this machine.
fn has_begun(base: &Path, part: Part) -> bool {
    WorkFolder::journal_path(&base.join(part.name())).is_dir()
}

/// The parts that this machine does of a migration.
pub(crate) fn parts_here(spec: &Spec) -> Vec<Part> {
    [Part::Deliver, Part::Ingest].into_iter().filter(|part| has_begun(&spec.base(), *part)).collect()
}

/// The spec as those see it who ask about the migration: what concerns the sink is deliver's, where it is on this machine.
pub(crate) fn found(spec: &Spec) -> Spec {
    spec.as_part(parts_here(spec).first().copied())
}

/// Refuses what only the process that writes the sink can do, where that runs on another machine.
pub(crate) fn needs_deliver(spec: &Spec, what: &str) -> Result<(), CliError> {
    match spec.part {
        Some(Part::Ingest) => Err(CliError::refused(format!(
            "`{what}` concerns the sink of {}, and this machine has only its ingest",
            spec.name
        ))
        .hint(format!("say it on the machine of `crossfade run {} --role deliver`", spec.file.display()))),
        _ => Ok(()),
    }
}

/// Refuses to compare while a part of the migration that this machine does is not running: nobody brings the target up.
pub(super) fn are_running(spec: &Spec) -> Result<(), CliError> {
    for part in parts_here(spec) {
        if folder::owner(&spec.as_part(Some(part)))?.is_none() {
            return Err(CliError::refused(format!(
                "the {} of {} is not running, so the target does not follow its source",
                part.name(),
                spec.name
            ))
            .hint(format!("start it: crossfade run {} --role {}", spec.file.display(), part.name())));
        }
    }
    Ok(())
}

/// Takes the folder of this process. A migration that one process does is not continued by two, nor the other way round:
/// each of them would begin with an epoch, a journal and named places that know nothing of the other's.
pub(super) fn take_folder(spec: &Spec) -> Result<WorkFolder, CliError> {
    let base = spec.base();
    let Some(part) = spec.part else {
        if spec.has_workers() {
            return Err(CliError::refused(format!(
                "{} says transform = \"workers\" in [log]: that is for a migration by roles",
                spec.file.display()
            ))
            .hint("crossfade run … --role ingest, --role transform and --role deliver; or take it out"));
        }
        let folder = WorkFolder::lock(&base)?;
        return match parts_here(spec).first() {
            None => Ok(folder),
            Some(part) => Err(CliError::refused(format!(
                "the migration {} was begun by roles: {} has the folder of its {}",
                spec.name,
                base.display(),
                part.name()
            ))
            .hint(format!(
                "crossfade run {} --role ingest, and --role deliver; or take another name",
                spec.file.display()
            ))),
        };
    };
    if let LogSpec::Embedded(_) = spec.log {
        return Err(CliError::misconfigured(format!(
            "--role {} needs the log on Kafka: the one on disk is for one process that does all of it",
            part.name()
        ))
        .hint("write kind = \"kafka\" in [log], or run it without --role"));
    }
    let _common = take_base(&base)?;
    if WorkFolder::journal_path(&base).is_dir() {
        return Err(CliError::refused(format!(
            "the migration {} was begun by one process that does all of it: its journal is in {}",
            spec.name,
            base.display()
        ))
        .hint(format!("crossfade run {}, without --role; or take another name", spec.file.display())));
    }
    if part == Part::Ingest && !has_begun(&base, part) && event_log::pin(spec).exists() {
        // It would shut out the one that runs, and knows nothing of what that one has noted.
        return Err(CliError::refused(format!(
            "the log of {} was begun by an ingest that has its folder elsewhere: {} is not here",
            spec.name,
            spec.folder().display()
        ))
        .hint("start it where it was; to move it, stop it there and move its folder to here"));
    }
    let folder = WorkFolder::lock(spec.folder())?;
    // From here on it is seen that roles do this migration.
    drop(folder::journal(&folder)?);
    Ok(folder)
}

/// The migration's folder, which another role has only while it begins.
fn take_base(base: &Path) -> Result<WorkFolder, CliError> {
    let began = Instant::now();
    loop {
        match WorkFolder::lock(base) {
            Err(error)
                if error.is_locked() && began.elapsed() < BEGINS_WITHIN && !WorkFolder::journal_path(base).is_dir() =>
            {
                std::thread::sleep(LOOK_FOR_FOLDER);
            }
            other => return Ok(other?),
        }
    }
}

/// The epoch by which the sink tells the one that may write it from all that delivered before, on whatever machine: the
/// place of a note in the log, so that no two have the same and the later one the higher.
pub(super) async fn take_turn(log: &AnyLog, journal: &Journal<Embedded>, by: &By) -> Result<(), CliError> {
    loop {
        let epoch = log.take_turn()?;
        // What was taken back meanwhile has raised it here alone, by one.
        if epoch > journal.migration().epoch {
            journal.command(Command::TakeEpoch { epoch }, by).await?;
            return Ok(());
        }
    }
}

/// For what must be the only one to work on the migration: the folders of the other processes on this machine. Where each
/// part has a process of its own, ingest must be stopped on its machine too.
pub(super) fn take_others(spec: &Spec) -> Result<Vec<WorkFolder>, CliError> {
    if spec.part.is_none() {
        return Ok(Vec::new());
    }
    let mut others = vec![take_base(&spec.base())?];
    for dir in workers::folders(&spec.base())? {
        others.push(WorkFolder::lock(dir)?);
    }
    for part in parts_here(spec).into_iter().filter(|part| Some(*part) != spec.part) {
        others.push(folder::taken(&spec.as_part(Some(part)))?);
    }
    Ok(others)
}

/// Refuses every worker of before, wherever it ran.
pub(super) async fn outlast(spec: &Spec, journal: &Journal<Embedded>, by: &By) -> Result<(), CliError> {
    if spec.part.is_some() {
        match AnyLog::follow(spec) {
            Ok(log) => return take_turn(&log, journal, by).await,
            // What it wrote is taken back all the same; the sink still refuses whoever comes with a lower epoch.
            Err(error) => tracing::warn!("the log gives no turn to whoever rolls back: {error}"),
        }
    }
    journal.command(Command::RaiseEpoch, by).await?;
    Ok(())
}

/// Ingest says what deliver must know, once it has the log.
pub(super) fn say_head(spec: &Spec, log: &AnyLog, plan: &PlanFile, secret: &[u8]) -> Result<(), CliError> {
    if let Some(text) = AnyLog::head(spec)? {
        let head = parse(&text)?;
        head.check(spec, Some(plan))?;
        return head.check_secret(spec, secret);
    }
    let head = Head {
        format: FORMAT,
        migration: spec.name.to_string(),
        secret_id: secret_id(secret),
        workers: spec.has_workers(),
        marks_moves: true,
        plan: plan.clone(),
    };
    let text = serde_json::to_string(&head)
        .map_err(|error| CliError::failed(format!("saying in the log what the migration is: {error}")))?;
    log.say_head(&text)
}

fn parse(text: &str) -> Result<Head, CliError> {
    #[derive(Deserialize)]
    struct Version {
        format: u32,
    }
    let unreadable = |error: serde_json::Error| {
        CliError::refused(format!("what the log says of its migration cannot be read: {error}"))
            .hint("use the crossfade that ingest runs with")
    };
    let version: Version = serde_json::from_str(text).map_err(unreadable)?;
    if version.format > FORMAT {
        return Err(CliError::refused(format!(
            "what the log says of its migration has format {}, this program reads up to {FORMAT}",
            version.format
        ))
        .hint("use the crossfade that ingest runs with"));
    }
    serde_json::from_str(text).map_err(unreadable)
}

impl Head {
    /// Refuses a spec that is of another migration, or says something else; and a folder with another plan.
    fn check(&self, spec: &Spec, own: Option<&PlanFile>) -> Result<(), CliError> {
        if self.migration != spec.name.as_str() {
            return Err(CliError::refused(format!(
                "{} hold the log of the migration {}, and this spec is named {}",
                event_log::place(spec, &spec.base()),
                self.migration,
                spec.name
            ))
            .hint("give both processes the same spec, or name another topic_prefix"));
        }
        if self.workers != spec.has_workers() {
            let (begun, other) = if self.workers { ("with", "write") } else { ("without", "leave out") };
            return Err(CliError::refused(format!(
                "the migration {} was begun {begun} transform workers, and {} says otherwise",
                self.migration,
                spec.file.display()
            ))
            .hint(format!("{other} `transform = \"workers\"` in [log], or begin anew: `crossfade rollback --wipe`")));
        }
        self.plan.check(spec)?;
        match own {
            Some(own) if *own != self.plan => Err(CliError::refused(format!(
                "{} is another plan than the one that the log was begun with",
                PlanFile::path(&spec.base()).display()
            ))
            .hint("if it is a left-over of an earlier migration, remove the folder; ingest has the right one")),
            _ => Ok(()),
        }
    }

    /// Keys that are derived with another secret would be other keys.
    fn check_secret(&self, spec: &Spec, secret: &[u8]) -> Result<(), CliError> {
        // One in the spec counts before the folder's, and the plan knows which it was.
        if spec.secret.is_some() || secret_id(secret) == self.secret_id {
            return Ok(());
        }
        Err(CliError::refused(format!(
            "{} is another secret than that of ingest: derived keys would not be the same",
            spec.base().join("secret").display()
        ))
        .hint("copy the file `secret` from ingest's folder of this migration, readable by its owner only"))
    }

    /// Makes what both must agree on stand in this machine's folder too; refused, nothing is written.
    fn settle(&self, spec: &Spec) -> Result<Vec<u8>, CliError> {
        let base = spec.base();
        let own = PlanFile::read(&base)?;
        self.check(spec, own.as_ref())?;
        let secret = base.join("secret");
        if spec.secret.is_none() && !secret.exists() {
            return Err(CliError::refused(format!(
                "keys are derived with a secret that ingest has drawn, and {} is not here",
                secret.display()
            ))
            .hint("copy the file `secret` from ingest's folder of this migration to there, readable by its owner only; or write `secret` into the spec of both before the migration begins"));
        }
        let secret = secret_of(&base)?;
        self.check_secret(spec, &secret)?;
        AnyLog::adopt(spec)?;
        if own.is_none() {
            self.plan.keep(&base)?;
        }
        Ok(secret)
    }
}

/// What ingest has said of the migration.
pub(super) struct Agreed {
    pub(super) plan: PlanFile,
    pub(super) secret: Vec<u8>,
    pub(super) marks_moves: bool,
}

/// What deliver begins from, once ingest has said it; says that it waits.
pub(super) async fn agreed(spec: &Spec, folder: &WorkFolder, epoch: u64) -> Result<Agreed, CliError> {
    agreed_by(spec, |waits| show_waiting(spec, folder, epoch, waits)).await
}

/// What deliver or a worker begins from, once ingest has said it; `waits` is told that it waits.
pub(super) async fn agreed_by(
    spec: &Spec,
    waiting: impl Fn(String) -> Result<(), CliError>,
) -> Result<Agreed, CliError> {
    Origin::refuse(&spec.base(), spec)?;
    let mut told = false;
    loop {
        match AnyLog::head(spec) {
            Ok(Some(text)) => {
                let head = parse(&text)?;
                let secret = head.settle(spec)?;
                return Ok(Agreed { plan: head.plan, secret, marks_moves: head.marks_moves });
            }
            Ok(None) => {}
            // While it waits it waits for brokers too; at first a wrong address is said at once.
            Err(error) if error.passing && told => tracing::debug!("{error}; looking again"),
            Err(error) => return Err(error),
        }
        if !told {
            told = true;
            let waits = format!(
                "ingest has not begun {} yet (it says so in {})",
                spec.name,
                event_log::place(spec, &spec.base())
            );
            // First where it is asked for: whoever has read the line may ask at once.
            waiting(waits.clone())?;
            tracing::warn!("{waits}: waiting for it");
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// There is no socket yet that could be asked; the file says it.
fn show_waiting(spec: &Spec, folder: &WorkFolder, epoch: u64, waits: String) -> Result<(), CliError> {
    let migration = Migration { epoch, ..Migration::default() };
    let now = folder::by_hand().at_us;
    let mut status = Status::new(spec.name.as_str(), now, &migration, &Totals::default(), Rates::default())
        .run_by(std::process::id());
    status.role = spec.part.map(|part| part.name().to_owned());
    status.retrying = Some(Retrying { side: "log".to_owned(), failure: waits, times: 0, wait_ms: 0 });
    let dir = folder.dir();
    StatusFile::new(WorkFolder::status_path(dir), WorkFolder::history_path(dir))
        .write(&status)
        .map_err(|error| CliError::io("writing the status file", &error))
}
