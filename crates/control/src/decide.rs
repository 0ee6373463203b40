//! What follows from a command. Pure: the same migration and command give the same decisions, for ever.
//!
//! ```text
//! Draft ─▶ Planned ─▶ Expanded ─▶ Capturing ─▶ Backfilling ─▶ CatchingUp ─▶ Shadowing
//!             ▲           └────────────┴──────────┬──┴───────────┴─────────────┘
//!             │                                   ▼
//!             └──────── Undone · Wiped ◀── RollingBack(undo · wipe) ◀── until a switch begins
//! ```
//! What comes after `Shadowing` is drawn in [`switch`].
//!
//! `Paused`, `Failed` and `Lost` lie over any of them. Wishes (`Expand`, `StartCapture`) wait for the overlay to go;
//! facts (`BackfillDone`, `CaughtUp`) hold under it, but for `Lost`, under which nothing goes on.

mod switch;

use crate::{Checkpoint, Command, Decision, Fall, Migration, Overlay, Phase, Refusal, RollbackKind};

type Decided = Result<Vec<Decision>, Refusal>;

/// What follows, or why not. An empty list means that the aim is reached already.
///
/// # Errors
/// A [`Refusal`] that says what to do instead.
pub fn decide(migration: &Migration, command: Command) -> Decided {
    match &command {
        Command::Plan { spec_hash, secret_id } => plan(migration, spec_hash, secret_id),
        Command::Expand => step(migration, &command, Phase::Planned, Phase::Expanded, "`crossfade run` does it"),
        Command::StartCapture => {
            step(migration, &command, Phase::Expanded, Phase::Capturing, "the target must be there first")
        }
        Command::StartBackfill { generation } => start_backfill(migration, &command, *generation),
        Command::BackfillDone { generation } => backfill_done(migration, &command, *generation),
        Command::CaughtUp => caught_up(migration, &command),
        Command::Pause { by, reason } => pause(migration, &command, by, reason),
        Command::Resume => resume(migration, &command),
        Command::AddTables => add_tables(migration, &command),
        Command::TablesAdded { tables, refused } => Ok(match migration.adding {
            true => vec![Decision::TablesAdded { tables: tables.clone(), refused: refused.clone() }],
            false => Vec::new(),
        }),
        Command::Fail { reason } => Ok(fail(migration, reason)),
        Command::Lose { reason, remedy } => Ok(lose(migration, reason, remedy)),
        Command::Found => Ok(match migration.overlay {
            Some(Overlay::Lost { .. }) => vec![Decision::Resumed],
            _ => Vec::new(),
        }),
        Command::Undo => rollback(migration, &command, RollbackKind::Undo),
        Command::Wipe => rollback(migration, &command, RollbackKind::Wipe),
        Command::FallBack { kind, fall } => fall_back(migration, &command, *kind, fall),
        Command::RollbackDone => rollback_done(migration, &command),
        // Once: what is measured later is measured under the migration.
        Command::TakeBaseline { baseline } => Ok(match migration.baseline {
            None => vec![Decision::BaselineTaken { baseline: baseline.clone() }],
            Some(_) => Vec::new(),
        }),
        Command::NameCheckpoint { name, cut, position, at_us } => {
            let checkpoint = Checkpoint { cut: cut.clone(), position: *position, at_us: *at_us };
            name_checkpoint(migration, &command, name, checkpoint)
        }
        Command::DropCheckpoint { name } => drop_checkpoint(migration, name),
        Command::Pin { end, identity } => match migration.pins.get(end) {
            None => Ok(vec![Decision::Pinned { end: *end, identity: identity.clone() }]),
            Some(pinned) if pinned == identity => Ok(Vec::new()),
            Some(pinned) => {
                let (pinned, found) = (pinned.clone(), identity.clone());
                Err(Refusal::IdentityChanged { end: *end, pinned, found })
            }
        },
        Command::RaiseEpoch => Ok(vec![Decision::EpochRaised { epoch: migration.epoch + 1 }]),
        Command::TakeEpoch { epoch } if *epoch > migration.epoch => Ok(vec![Decision::EpochRaised { epoch: *epoch }]),
        Command::TakeEpoch { .. } => Ok(Vec::new()),
        Command::Note { what } => Ok(vec![Decision::Noted { what: what.clone() }]),
        _ => switch::decide(migration, &command),
    }
}

fn plan(migration: &Migration, spec_hash: &str, secret_id: &str) -> Decided {
    let planned = Decision::Planned { spec_hash: spec_hash.to_owned(), secret_id: secret_id.to_owned() };
    match migration.phase {
        phase if phase.is_back() && migration.fallen.is_some() => Err(fallen(migration, "plan")),
        // An old worker of the life before must not write into the new one.
        Phase::Undone | Phase::Wiped => {
            let epoch = migration.epoch + 1;
            Ok(vec![Decision::BegunAnew, Decision::EpochRaised { epoch }, planned])
        }
        Phase::Draft => Ok(vec![Decision::EpochRaised { epoch: migration.epoch.max(1) }, planned]),
        Phase::RollingBack(_) => Err(Refusal::WrongPhase {
            command: "plan",
            phase: migration.phase,
            instead: "run `crossfade rollback` again until it says done",
        }),
        _ if migration.spec_hash == spec_hash && migration.secret_id == secret_id => Ok(Vec::new()),
        Phase::Planned => Ok(vec![planned]),
        _ if migration.spec_hash == spec_hash => Err(Refusal::SpecChanged { what: "secret" }),
        _ => Err(Refusal::SpecChanged { what: "spec" }),
    }
}

/// One step forward that is a wish: not under an overlay.
fn step(migration: &Migration, command: &Command, from: Phase, to: Phase, instead: &'static str) -> Decided {
    if migration.phase >= to && migration.phase <= Phase::Done {
        return Ok(Vec::new());
    }
    if migration.phase != from {
        return Err(wrong_phase(migration, command, instead));
    }
    not_stopped(migration, command)?;
    Ok(vec![Decision::Entered { phase: to }])
}

fn start_backfill(migration: &Migration, command: &Command, generation: u32) -> Decided {
    if !migration.phase.has_log() {
        return Err(wrong_phase(migration, command, "the source must be captured first"));
    }
    not_lost(migration, command)?;
    if generation <= migration.generation {
        return Ok(Vec::new());
    }
    if migration.phase > Phase::Ready {
        return Err(wrong_phase(migration, command, "nothing is copied once a switch has begun"));
    }
    Ok(vec![Decision::BackfillStarted { generation }])
}

fn backfill_done(migration: &Migration, command: &Command, generation: u32) -> Decided {
    if !migration.phase.has_log() || generation > migration.generation {
        return Err(wrong_phase(migration, command, "that backfill was never begun"));
    }
    not_lost(migration, command)?;
    if migration.phase != Phase::Backfilling || generation < migration.generation {
        return Ok(Vec::new());
    }
    Ok(vec![Decision::Entered { phase: Phase::CatchingUp }])
}

fn caught_up(migration: &Migration, command: &Command) -> Decided {
    match migration.phase {
        phase if phase >= Phase::Shadowing && phase <= Phase::Done => Ok(Vec::new()),
        Phase::CatchingUp => {
            not_lost(migration, command)?;
            Ok(vec![Decision::Entered { phase: Phase::Shadowing }])
        }
        _ => Err(wrong_phase(migration, command, "the backfill must be in first")),
    }
}

fn pause(migration: &Migration, command: &Command, by: &str, reason: &str) -> Decided {
    if migration.phase.is_switching() {
        return Err(wrong_phase(migration, command, "a switch is under way; it ends by its deadline, then ask again"));
    }
    if !migration.phase.is_active() {
        return Err(wrong_phase(migration, command, "nothing is running that could be paused"));
    }
    match &migration.overlay {
        None => Ok(vec![Decision::Paused { by: by.to_owned(), reason: reason.to_owned() }]),
        Some(Overlay::Paused { .. }) => Ok(Vec::new()),
        Some(overlay) => Err(stopped(command, overlay)),
    }
}

fn resume(migration: &Migration, command: &Command) -> Decided {
    match &migration.overlay {
        Some(lost @ Overlay::Lost { .. }) => Err(stopped(command, lost)),
        overlay => {
            let resumed = overlay.as_ref().map(|_| Decision::Resumed);
            // What a gate took back begins anew once a person has said so; not while it is still being taken back.
            let answers = migration.fallen.is_some() && migration.phase.is_back();
            Ok(resumed.into_iter().chain(answers.then_some(Decision::FallAnswered)).collect())
        }
    }
}

/// A wish that outlives a restart: it is there until the log says that the tables are being copied.
fn add_tables(migration: &Migration, command: &Command) -> Decided {
    if !migration.phase.is_active() {
        return Err(wrong_phase(migration, command, "`crossfade run` takes in all tables that match when it begins"));
    }
    not_lost(migration, command)?;
    Ok(if migration.adding { Vec::new() } else { vec![Decision::TablesWanted] })
}

/// A failure replaces a pause and an older failure, but never hides that something is lost.
fn fail(migration: &Migration, reason: &str) -> Vec<Decision> {
    match &migration.overlay {
        Some(Overlay::Lost { .. }) => Vec::new(),
        Some(Overlay::Failed { reason: known }) if known == reason => Vec::new(),
        _ => vec![Decision::Failed { reason: reason.to_owned() }],
    }
}

fn lose(migration: &Migration, reason: &str, remedy: &str) -> Vec<Decision> {
    match &migration.overlay {
        Some(Overlay::Lost { reason: known, .. }) if known == reason => Vec::new(),
        _ => vec![Decision::Lost { reason: reason.to_owned(), remedy: remedy.to_owned() }],
    }
}

/// Possible from everywhere that something may have been written, whatever lies over it: for a lost migration it is
/// the way out. Asked again it goes on.
fn rollback(migration: &Migration, command: &Command, kind: RollbackKind) -> Decided {
    let began = vec![Decision::RollbackBegan { kind }];
    match (migration.phase, kind) {
        (Phase::Draft | Phase::Planned, _) => Err(wrong_phase(migration, command, "nothing was written yet")),
        (phase, _) if phase.is_switching() => {
            Err(wrong_phase(migration, command, "`crossfade run` completes the switch or takes it back"))
        }
        (Phase::Switched | Phase::Soaking | Phase::Contracting | Phase::Done, _) => {
            Err(wrong_phase(migration, command, "the new side has the authority: what is there now is not ours alone"))
        }
        _ if migration.authority.to_route => {
            Err(wrong_phase(migration, command, "`crossfade failback` again tells those who have not heard of it"))
        }
        (Phase::Wiped, RollbackKind::Wipe) | (Phase::Undone, RollbackKind::Undo) => Ok(Vec::new()),
        (Phase::Wiped | Phase::RollingBack(RollbackKind::Wipe), RollbackKind::Undo) => {
            Err(wrong_phase(migration, command, "a wipe drops the undo records too"))
        }
        (Phase::RollingBack(under_way), _) if under_way == kind && migration.overlay.is_none() => Ok(Vec::new()),
        _ => Ok(began),
    }
}

/// A gate takes the migration back. Only what a person's rollback could take back, and never against a person's pause: he
/// has it in hand. A switch that is under way, or has been, is nothing that a gate ends: after a failback, too, the new side
/// has what only the applications wrote there, and the keys that they were given.
fn fall_back(migration: &Migration, command: &Command, kind: RollbackKind, fall: &Fall) -> Decided {
    let is_back = migration.phase.is_back() || matches!(migration.phase, Phase::RollingBack(_));
    if is_back && migration.fallen.is_some() {
        return Ok(Vec::new());
    }
    let is_before = migration.phase >= Phase::Expanded && migration.phase <= Phase::Ready && !migration.was_switched;
    if !is_before || migration.authority.to_route {
        return Err(wrong_phase(migration, command, "a gate takes back only what was written before a switch"));
    }
    match &migration.overlay {
        Some(overlay) if !overlay.is_by_gate() => Err(stopped(command, overlay)),
        _ => Ok(vec![Decision::RollbackBegan { kind }, Decision::GateFell { fall: fall.clone() }]),
    }
}

fn fallen(migration: &Migration, command: &'static str) -> Refusal {
    let fall = migration.fallen.as_ref().map(ToString::to_string).unwrap_or_default();
    Refusal::Fallen { command, fall }
}

fn rollback_done(migration: &Migration, command: &Command) -> Decided {
    match migration.phase {
        Phase::RollingBack(RollbackKind::Undo) => Ok(vec![Decision::Entered { phase: Phase::Undone }]),
        Phase::RollingBack(RollbackKind::Wipe) => Ok(vec![Decision::Entered { phase: Phase::Wiped }]),
        Phase::Undone | Phase::Wiped => Ok(Vec::new()),
        _ => Err(wrong_phase(migration, command, "no rollback was begun")),
    }
}

fn name_checkpoint(migration: &Migration, command: &Command, name: &str, checkpoint: Checkpoint) -> Decided {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let first = name.bytes().next().is_some_and(plain);
    if !first || name.len() > 63 || !name.bytes().all(|byte| plain(byte) || b"-_.".contains(&byte)) {
        return Err(Refusal::BadName { name: name.to_owned() });
    }
    match migration.checkpoints.get(name) {
        Some(known) if (&known.cut, known.position) == (&checkpoint.cut, checkpoint.position) => Ok(Vec::new()),
        Some(_) => Err(Refusal::CheckpointExists { name: name.to_owned() }),
        None if !migration.phase.has_log() => Err(wrong_phase(migration, command, "there is no log yet")),
        None => Ok(vec![Decision::CheckpointNamed { name: name.to_owned(), checkpoint }]),
    }
}

fn drop_checkpoint(migration: &Migration, name: &str) -> Decided {
    if migration.checkpoints.contains_key(name) {
        return Ok(vec![Decision::CheckpointDropped { name: name.to_owned() }]);
    }
    let names: Vec<&str> = migration.checkpoints.keys().map(String::as_str).collect();
    let known = if names.is_empty() { String::new() } else { format!(" (there are {})", names.join(", ")) };
    Err(Refusal::NoCheckpoint { name: name.to_owned(), known })
}

fn wrong_phase(migration: &Migration, command: &Command, instead: &'static str) -> Refusal {
    Refusal::WrongPhase { command: command.name(), phase: migration.phase, instead }
}

fn not_stopped(migration: &Migration, command: &Command) -> Result<(), Refusal> {
    migration.overlay.as_ref().map_or(Ok(()), |overlay| Err(stopped(command, overlay)))
}

fn not_lost(migration: &Migration, command: &Command) -> Result<(), Refusal> {
    match &migration.overlay {
        Some(lost @ Overlay::Lost { .. }) => Err(stopped(command, lost)),
        _ => Ok(()),
    }
}

fn stopped(command: &Command, overlay: &Overlay) -> Refusal {
    let instead = match overlay {
        Overlay::Paused { .. } => "Go on with `crossfade resume`".to_owned(),
        Overlay::Failed { .. } => "Mend it, then start `crossfade run` again".to_owned(),
        Overlay::Lost { remedy, .. } => remedy.clone(),
    };
    Refusal::Stopped { command: command.name(), overlay: overlay.to_string(), instead }
}
