//! From the intent to the point of no return, and the step behind it. What fails before it is taken back.

use super::{Pause, settle, settle::Settled, way::Way};
use crate::{
    error::{CliError, Exit},
    registry::{AnyFreeze, AnyOpening},
    spec::{Span, SwitchSpec},
};
use crossfade_connector::switch::{Given, Written};
use crossfade_control::{By, Command, Direction};
use crossfade_event::Position;
use std::time::{Duration, Instant};

pub(super) async fn switch_over(
    way: &mut Way<'_>,
    switch: &SwitchSpec,
    deadline: Span,
    epoch: u64,
    by: &By,
) -> Result<Pause, CliError> {
    way.prepare().await?;
    if let Err(unproven) = way.prove().await {
        way.give_up().await;
        return Err(unproven);
    }
    let (deadline_ms, at_us) = (u64::try_from(deadline.0.as_millis()).unwrap_or(u64::MAX), by.at_us);
    let intent = match way.direction {
        Direction::Cutover => Command::Cutover { epoch, deadline_ms, at_us },
        Direction::Failback => Command::Failback { epoch, deadline_ms, at_us },
    };
    let moved = match way.journal.command(intent, by).await {
        Ok(_) => frozen(way, switch, deadline, epoch, by).await,
        Err(refused) => Err(refused.into()),
    };
    let error = match moved {
        Ok(pause) => return Ok(pause),
        Err(error) => error,
    };
    // What became of it is for the row to say.
    let (journal, stays, again) = (way.journal, way.direction.from(), way.direction);
    let (old, new) = way.sides();
    match settle(old, new, journal, by).await {
        Ok(Settled::Moved) => Ok(Pause::default()),
        Ok(Settled::TakenBack | Settled::Nothing) => {
            way.give_up().await;
            way.void_if_broken().await;
            Err(CliError {
                message: format!("the switch was taken back, and the {stays} side goes on: {}", error.message),
                ..error
            })
        }
        Err(unknown) => Err(CliError::new(
            unknown.exit,
            format!("{}; and whether the switch has happened cannot be asked: {}", error.message, unknown.message),
        )
        .hint(format!(
            "no writer is held up longer than the deadline; `crossfade {again}` again completes it or takes it back"
        ))),
    }
}

/// Everything that is done while the writers wait.
async fn frozen(
    way: &mut Way<'_>,
    switch: &SwitchSpec,
    deadline: Span,
    epoch: u64,
    by: &By,
) -> Result<Pause, CliError> {
    let next = epoch + 1;
    let freeze = way.from.freeze(&way.tables, Instant::now() + deadline.0, switch.lock_timeout.0).await?;
    let locked = freeze.locked();
    let mut pause = Pause { locks_us: micros(locked.since.elapsed()), tries: locked.tries, ..Pause::default() };
    let step = Instant::now();
    let ends = locked.ends;
    let prepared = tokio::time::timeout(locked.left(), async {
        way.journal.command(Command::Frozen { epoch: next }, by).await?;
        let position = drained(way).await?;
        pause.drain_us = micros(step.elapsed());
        let step = Instant::now();
        if let Some(proof) = &mut way.proof {
            let settled = proof.settle(way.stream).await;
            if settled.is_err()
                && let Err(lapsed) = freeze.holds().await
            {
                // Somebody may have written meanwhile: what differs says nothing.
                proof.broken = None;
                return Err(lapsed.into());
            }
            pause.rows_verified = settled?;
        }
        pause.verify_us = micros(step.elapsed());
        let step = Instant::now();
        way.carry_sequences().await?;
        way.to.settle().await?;
        way.begin_here().await?;
        let written = Written { side: way.direction.to(), epoch: next };
        // Within one database one commit does everything: the row, the fence here, and the end of the one over there.
        let opening = match way.within_one {
            true => freeze.open_the_other_side().await.map(|()| None)?,
            false => Some(way.to.ready_to_open(written, ends).await?),
        };
        way.journal.command(Command::Drained { epoch: next, position }, by).await?;
        pause.prepare_us = micros(step.elapsed());
        Ok::<_, CliError>(opening)
    });
    let opening = match prepared.await {
        Ok(Ok(opening)) => opening,
        Ok(Err(error)) => {
            freeze.release().await;
            return Err(error);
        }
        Err(_) => {
            freeze.release().await;
            let to = way.direction.to();
            let compares = way.proof.is_some() && pause.drain_us > 0 && pause.verify_us == 0;
            let late = match compares {
                true => "what has changed since the last comparison was not compared within the deadline".to_owned(),
                false => format!("not everything was on the {to} side within the deadline"),
            };
            return Err(CliError::failed(late).hint("let it catch up first, or allow a longer --deadline"));
        }
    };
    give(way, freeze, opening, epoch, by, pause).await
}

/// The sink has everything that was written before the freeze. Returns up to where.
async fn drained(way: &mut Way<'_>) -> Result<Option<Position>, CliError> {
    let quarantined = way.stream.quarantined();
    let wanted = way.mark().await?;
    way.passed(wanted).await?;
    if way.stream.quarantined() != quarantined {
        let (to, reverse) = match way.direction {
            Direction::Cutover => ("new", ""),
            Direction::Failback => ("old", " --reverse"),
        };
        return Err(CliError::failed(format!(
            "a change went into quarantine while the writers waited: the {to} side would lack it"
        ))
        .hint(format!("`crossfade quarantine ls{reverse}` names it")));
    }
    Ok(wanted)
}

/// The point of no return, and the commit that opens the other side.
async fn give(
    way: &mut Way<'_>,
    freeze: AnyFreeze,
    opening: Option<AnyOpening>,
    epoch: u64,
    by: &By,
    mut pause: Pause,
) -> Result<Pause, CliError> {
    let (since, step) = (freeze.locked().since, Instant::now());
    let given = freeze.give(epoch).await;
    match given {
        Given::Done => {
            if let Some(opening) = opening
                && let Err(failure) = opening.open().await
            {
                tracing::warn!("the side that has the authority now is opened in a moment: {failure}");
            }
            pause.commit_us = micros(step.elapsed());
            pause.total_us = micros(since.elapsed());
            way.journal.command(Command::SwitchedOver { epoch: epoch + 1 }, by).await?;
            Ok(pause)
        }
        Given::Refused(failure) => {
            leave(opening).await;
            Err(failure.into())
        }
        Given::Unknown(failure) => {
            leave(opening).await;
            Err(CliError { exit: Exit::Failed, ..failure.into() })
        }
    }
}

async fn leave(opening: Option<AnyOpening>) {
    if let Some(opening) = opening {
        opening.leave().await;
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
