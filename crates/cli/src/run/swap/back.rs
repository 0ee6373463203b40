//! `failback` within tables: the same protocol with the roles swapped. Nobody needs to run the migration for it: the old
//! columns have everything at every moment.

use super::millis;
use crate::{
    commands::folder,
    error::{CliError, Exit},
    registry::{self, AnySwitchEnd},
    run::switch::{Outcome, Pause, Settled, complete, deadline_of, no_section, said, settle},
    spec::{Span, Spec},
};
use crossfade_connector::switch::Given;
use crossfade_control::{By, Command, Direction, Facts, Journal, OldestWriter, Phase, WayBack};
use crossfade_event::Side;
use crossfade_log::embedded::Embedded;
use crossfade_postgres::swap::{SwapEnd, SwapStage};
use std::time::{Duration, Instant};

const FIXED_MS: u64 = 30;
const TABLE_MS: u64 = 4;

/// Gives the old columns their names back, or says why not.
pub(crate) async fn failback(spec: &Spec, dry_run: bool, deadline: Option<Span>) -> Result<Outcome, CliError> {
    let section = spec.switch.as_ref().ok_or_else(|| no_section(spec))?;
    let deadline = deadline_of(section, deadline)?;
    let owned = folder::taken(spec)?;
    let (journal, by) = (folder::journal(&owned)?, folder::by_hand());
    let (mut old, mut new) = registry::switch_ends(spec)?;
    settle(&mut old, &mut new, &journal, &by).await?;
    let migration = journal.migration();
    let mut end = registry::swap_end(spec)?;
    let stored = end.stored().await?;
    if migration.phase == Phase::Shadowing && matches!(stored, Some((SwapStage::Returned, _))) {
        // It has happened; what was put off is done, and whoever was not told is told.
        return Ok(complete(spec, &mut old, &mut new, &journal, &by).await);
    }
    if !migration.phase.is_over() {
        return Err(CliError::refused(format!(
            "a failback is not possible while the migration is {}",
            migration.phase
        ))
        .hint("there is nothing to go back from"));
    }
    let Some((_, laid)) = stored else {
        return Err(CliError::new(Exit::Lost, "crossfade.swaps does not know of the switch any more")
            .hint("put the row back from a copy of the database"));
    };
    let tables = super::names(&laid);
    let seen = new.look(&tables).await?;
    let facts = Facts {
        mark_ms: Some(0),
        quarantined: 0,
        oldest_writer: seen.writing.map(|one| OldestWriter { age_ms: one.age_ms, who: one.who }),
        predicted_pause_ms: Some(FIXED_MS + TABLE_MS * tables.len() as u64),
        gates: Vec::new(),
        missing: seen.missing.iter().map(said).collect(),
        way_back: Some(WayBack::Incomparable {
            why: "the database keeps both columns in the same transaction".to_owned(),
        }),
    };
    let limits = section.limits(deadline);
    let guards = crossfade_control::guards(&migration, Direction::Failback, &facts, &limits, by.at_us);
    let epoch = new.authority().await?.map_or(migration.authority.epoch, |written| written.epoch);
    let outcome = Outcome {
        switched: false,
        epoch,
        guards,
        pause: None,
        routed: false,
        not_routed: None,
        authority: Side::New,
        sql: Vec::new(),
    };
    if dry_run {
        return Ok(outcome);
    }
    let judge = Command::Judge { before: Direction::Failback, facts, limits, at_us: by.at_us };
    journal.command(judge, &by).await?;
    if outcome.guards.iter().any(|guard| !guard.holds) {
        return Ok(outcome);
    }
    let intent = Command::Failback { epoch, deadline_ms: millis(deadline.0), at_us: by.at_us };
    journal.command(intent, &by).await?;
    let moved = moved(&mut end, &journal, (deadline.0, section.lock_timeout.0), epoch, &by).await;
    let pause = taken_back_or(moved, (&mut old, &mut new), &journal, &by).await?;
    let told = complete(spec, &mut old, &mut new, &journal, &by).await;
    Ok(Outcome { guards: outcome.guards, pause: Some(pause), ..told })
}

async fn moved(
    end: &mut SwapEnd,
    journal: &Journal<Embedded>,
    (deadline, lock_timeout): (Duration, Duration),
    epoch: u64,
    by: &By,
) -> Result<Pause, CliError> {
    let next = epoch + 1;
    let frozen = end.freeze_back(Instant::now() + deadline, lock_timeout).await?;
    let locked = frozen.locked;
    let mut pause = Pause { locks_us: micros(locked.since.elapsed()), tries: locked.tries, ..Pause::default() };
    let written = async {
        journal.command(Command::Frozen { epoch: next }, by).await?;
        journal.command(Command::Drained { epoch: next, position: None }, by).await
    };
    if let Err(error) = written.await {
        frozen.release().await;
        return Err(error.into());
    }
    let step = Instant::now();
    let given = frozen.give(epoch).await;
    (pause.commit_us, pause.total_us) = (micros(step.elapsed()), micros(locked.since.elapsed()));
    match given {
        Given::Done => {
            journal.command(Command::SwitchedOver { epoch: next }, by).await?;
            Ok(pause)
        }
        Given::Refused(failure) => Err(failure.into()),
        Given::Unknown(failure) => Err(CliError { exit: Exit::Failed, ..failure.into() }),
    }
}

/// What became of it is for the row to say.
async fn taken_back_or(
    moved: Result<Pause, CliError>,
    (old, new): (&mut AnySwitchEnd, &mut AnySwitchEnd),
    journal: &Journal<Embedded>,
    by: &By,
) -> Result<Pause, CliError> {
    let error = match moved {
        Ok(pause) => return Ok(pause),
        Err(error) => error,
    };
    match settle(old, new, journal, by).await {
        Ok(Settled::Moved) => Ok(Pause::default()),
        Ok(Settled::TakenBack | Settled::Nothing) => {
            let message = format!("the failback was taken back, and the new columns go on: {}", error.message);
            Err(CliError { message, ..error })
        }
        Err(unknown) => Err(CliError::new(
            unknown.exit,
            format!("{}; and whether it has happened cannot be asked: {}", error.message, unknown.message),
        )
        .hint("nobody is held up longer than the deadline; `crossfade failback` again completes it or takes it back")),
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
