//! From following to having switched, and back.
//!
//! ```text
//! Shadowing ─▶ Verified ─▶ DualReading ─▶ Ready ─▶ Freezing ─▶ Draining ─▶ Switching ─▶ Switched ─▶ Soaking ─▶ Contracting ─▶ Done
//!     ▲           │  └──────────────────────▲         │            │            │           │          │
//!     │           │    (every guard holds)   │         └────────────┴──────┬─────┘           └────┬─────┘
//!     │◀── void ──┴───────────┴─────────────┤          taken back: the epoch is raised           │
//!     │                                     └───────────────────────────────┘                    │
//!     └────────────────────────────── failback: the same way, roles swapped ◀────────────────────┘
//! ```
//! A switch is decided by the row of `crossfade.authority`, not here. `SwitchedOver` and `TakenBack` tell what that row
//! says; both come with its epoch, and each makes the other impossible.

use super::{Decided, not_stopped, wrong_phase};
use crate::{
    Approval, CleanPass, Command, Decision, Direction, Intent, Judgement, Migration, Phase, ReadJudgement, Refusal,
    guards, read_guards, reads::may_compare,
};

const WHOLE: u32 = 1_000_000;

pub(super) fn decide(migration: &Migration, command: &Command) -> Decided {
    match command {
        Command::Verified { position, rows, differences, at_us, from, mark } => {
            let (rows, at_us) = (*rows, *at_us);
            let pass = CleanPass { position: position.clone(), rows, at_us, from: from.clone(), mark: mark.clone() };
            verified(migration, command, pass, *differences)
        }
        Command::Void { why } => void(migration, why),
        Command::DualRead { millionths } => dual_read(migration, command, *millionths),
        Command::CompareReads { millionths, facts, verified_within_ms, at_us } => {
            let guards = read_guards(migration, facts, *verified_within_ms, *at_us);
            let judgement = ReadJudgement { millionths: *millionths, guards, at_us: *at_us };
            compare_reads(migration, command, judgement)
        }
        Command::StepDown { why } => Ok(step_down(migration, why)),
        Command::Approve { approval } => approve(migration, command, approval),
        Command::Judge { before, facts, limits, at_us } => {
            judgeable(migration, command, *before)?;
            let guards = guards(migration, *before, facts, limits, *at_us);
            let same = migration.judgement.as_ref().is_some_and(|old| old.before == *before && old.guards == guards);
            let judgement = Judgement { before: *before, guards, at_us: *at_us };
            let passes = judgement.passes();
            let stands = (migration.phase == Phase::Ready) == passes || migration.phase.is_over();
            // Judged without a proof it stays in `Shadowing`, whatever the rest says.
            let stands = stands || migration.phase == Phase::Shadowing;
            Ok(if same && stands { Vec::new() } else { vec![Decision::Judged { judgement }] })
        }
        Command::Cutover { epoch, deadline_ms, at_us } => {
            if migration.phase.is_over() {
                return Ok(Vec::new());
            }
            let ready = migration.phase == Phase::Ready;
            intend(migration, command, Direction::Cutover, ready, (*epoch, *deadline_ms, *at_us))
        }
        Command::Failback { epoch, deadline_ms, at_us } => {
            let ready = migration.phase.is_over();
            intend(migration, command, Direction::Failback, ready, (*epoch, *deadline_ms, *at_us))
        }
        Command::Frozen { epoch } => underway(migration, command, *epoch, Phase::Freezing, Phase::Draining),
        Command::Drained { epoch, .. } => underway(migration, command, *epoch, Phase::Draining, Phase::Switching),
        Command::SwitchedOver { epoch } => switched_over(migration, command, *epoch),
        Command::TakenBack { epoch, why } => taken_back(migration, command, *epoch, why),
        Command::Routed { epoch } => routed(migration, command, *epoch),
        Command::Soak => match migration.phase {
            Phase::Switched => {
                not_stopped(migration, command).map(|()| vec![Decision::Entered { phase: Phase::Soaking }])
            }
            Phase::Soaking | Phase::Contracting | Phase::Done => Ok(Vec::new()),
            _ => Err(wrong_phase(migration, command, "the new side must have the authority first")),
        },
        Command::Cleanup => match migration.phase {
            Phase::Soaking if migration.authority.to_route => {
                Err(wrong_phase(migration, command, "`crossfade cutover` again tells those who have not heard of it"))
            }
            Phase::Soaking => {
                not_stopped(migration, command).map(|()| vec![Decision::Entered { phase: Phase::Contracting }])
            }
            Phase::Contracting | Phase::Done => Ok(Vec::new()),
            _ => Err(wrong_phase(migration, command, "it comes after a switch that has been watched for a while")),
        },
        Command::CleanupDone => match migration.phase {
            Phase::Contracting => Ok(vec![Decision::Entered { phase: Phase::Done }]),
            Phase::Done => Ok(Vec::new()),
            _ => Err(wrong_phase(migration, command, "no clean-up was begun")),
        },
        // Everything else is decided one level up.
        _ => Ok(Vec::new()),
    }
}

/// A comparison counts for the side that follows; one that found something voids the one before.
fn verified(migration: &Migration, command: &Command, pass: CleanPass, differences: u64) -> Decided {
    if !migration.phase.is_following() {
        return Err(wrong_phase(migration, command, "a comparison counts while the sink follows the source"));
    }
    if differences > 0 {
        return void(migration, &format!("a comparison found {differences} differences"));
    }
    let newer = migration.clean_pass.as_ref().is_none_or(|known| known.at_us < pass.at_us);
    Ok(if newer { vec![Decision::PassedClean { pass }] } else { Vec::new() })
}

/// Facts are facts under any overlay. Under a switch the proof was used already, and what voids it cannot come: the
/// sink's work is the switch's alone then.
fn void(migration: &Migration, why: &str) -> Decided {
    Ok(match migration.clean_pass {
        Some(_) if migration.phase.is_following() => vec![Decision::PassVoided { why: why.to_owned() }],
        _ => Vec::new(),
    })
}

fn dual_read(migration: &Migration, command: &Command, millionths: u32) -> Decided {
    if millionths > WHOLE {
        return Err(Refusal::BadShare { millionths });
    }
    if !may_compare(migration.phase) {
        // None is what is compared there; that they had stepped down can be answered until a switch begins.
        return match (millionths, &migration.stepped_down) {
            (0, None) if migration.dual_millionths == 0 => Ok(Vec::new()),
            (0, Some(_)) if migration.phase < Phase::Freezing => Ok(vec![Decision::DualReadSet { millionths }]),
            _ => Err(wrong_phase(migration, command, when_compared(migration.phase))),
        };
    }
    if millionths > migration.dual_millionths {
        return Err(Refusal::ReadsUnjudged { command: command.name() });
    }
    // To have said it again answers a step down.
    let stands = millionths == migration.dual_millionths && migration.stepped_down.is_none();
    Ok(if stands { Vec::new() } else { vec![Decision::DualReadSet { millionths }] })
}

/// The guards' verdict is kept whatever it is; a larger share follows only where all of them let pass.
fn compare_reads(migration: &Migration, command: &Command, judgement: ReadJudgement) -> Decided {
    let millionths = judgement.millionths;
    if millionths > WHOLE {
        return Err(Refusal::BadShare { millionths });
    }
    // In `Shadowing` the guard on the clean pass says what is missing.
    if !migration.phase.is_following() {
        return Err(wrong_phase(migration, command, when_compared(migration.phase)));
    }
    not_stopped(migration, command)?;
    let passes = judgement.passes() && may_compare(migration.phase);
    let stands = millionths == migration.dual_millionths && migration.stepped_down.is_none();
    let same = |known: &ReadJudgement| known.millionths == millionths && known.guards == judgement.guards;
    if (stands || !passes) && migration.reads_judgement.as_ref().is_some_and(same) {
        return Ok(Vec::new());
    }
    let set = (passes && !stands).then_some(Decision::DualReadSet { millionths });
    Ok([Decision::ReadsJudged { judgement }].into_iter().chain(set).collect())
}

/// A fact, under any overlay. Under a switch it waits for its end: what is compared then is the switch's matter.
fn step_down(migration: &Migration, why: &str) -> Vec<Decision> {
    if migration.dual_millionths == 0 || !may_compare(migration.phase) {
        return Vec::new();
    }
    vec![Decision::DualReadSet { millionths: 0 }, Decision::ReadsSteppedDown { why: why.to_owned() }]
}

fn when_compared(phase: Phase) -> &'static str {
    match phase {
        phase if phase.is_switching() => {
            "its share ends with the switch; `crossfade run` completes that or takes it back, then ask again"
        }
        phase if phase > Phase::Switching && phase <= Phase::Done => {
            "the new side has the authority, and reads are compared before a switch; the share has ended with it"
        }
        _ => "reads are compared between `crossfade verify` and the switch",
    }
}

fn approve(migration: &Migration, command: &Command, approval: &Approval) -> Decided {
    if !migration.phase.is_following() && !migration.phase.is_over() {
        return Err(wrong_phase(migration, command, "a switch can be agreed to once the sink follows the source"));
    }
    let known = migration.approvals.iter().any(|known| known.who == approval.who);
    Ok(if known { Vec::new() } else { vec![Decision::Approved { approval: approval.clone() }] })
}

/// Where guards may be asked: before the switch that could follow from here.
fn judgeable(migration: &Migration, command: &Command, before: Direction) -> Result<(), Refusal> {
    let fits = match before {
        Direction::Cutover => migration.phase.is_following(),
        Direction::Failback => migration.phase.is_over(),
    };
    if !fits {
        let instead = match before {
            Direction::Cutover => "a cutover is judged while the sink follows the source",
            Direction::Failback => "a failback is judged while the new side has the authority",
        };
        return Err(wrong_phase(migration, command, instead));
    }
    not_stopped(migration, command)
}

/// A switch is meant. Not twice: the one under way must end first.
fn intend(
    migration: &Migration,
    command: &Command,
    direction: Direction,
    ready: bool,
    (epoch, deadline_ms, at_us): (u64, u64, i64),
) -> Decided {
    if migration.phase.is_switching() {
        let same = migration.intent.is_some_and(|intent| intent.at_us == at_us && intent.direction == direction);
        let instead = "a switch is under way; wait for it, or ask `crossfade status`";
        return if same { Ok(Vec::new()) } else { Err(wrong_phase(migration, command, instead)) };
    }
    judgeable(migration, command, direction)?;
    let judged = migration.judgement.as_ref().filter(|judgement| judgement.before == direction);
    if !ready || !judged.is_some_and(Judgement::passes) {
        let failing = judged.into_iter().flat_map(|judgement| &judgement.guards).filter(|guard| !guard.holds);
        let said: Vec<String> = failing
            .map(|guard| format!("{}: {}, wanted is {}; {}", guard.guard, guard.seen, guard.wanted, guard.remedy))
            .collect();
        let guards = if said.is_empty() { "its guards have not been asked".to_owned() } else { said.join(" · ") };
        return Err(Refusal::Guarded { step: direction, guards });
    }
    if epoch < migration.authority.epoch {
        return Err(another(migration, command, epoch, ": the row of crossfade.authority was put back; restore it"));
    }
    let intent = Intent { direction, epoch: epoch + 1, deadline_ms, at_us };
    Ok(vec![Decision::SwitchIntended { intent }])
}

/// One step of a switch. Under an overlay too: it ends by its deadline in any case.
fn underway(migration: &Migration, command: &Command, epoch: u64, from: Phase, to: Phase) -> Decided {
    let Some(intent) = migration.intent.filter(|_| migration.phase.is_switching()) else {
        return Err(wrong_phase(migration, command, "no switch is under way"));
    };
    if intent.epoch != epoch {
        return Err(another(migration, command, epoch, ""));
    }
    Ok(match migration.phase {
        phase if phase >= to => Vec::new(),
        phase if phase == from => vec![Decision::Entered { phase: to }],
        _ => return Err(wrong_phase(migration, command, "a step before it is missing")),
    })
}

fn switched_over(migration: &Migration, command: &Command, epoch: u64) -> Decided {
    match migration.intent.filter(|_| migration.phase.is_switching()) {
        Some(intent) if intent.epoch == epoch => {
            Ok(vec![Decision::AuthorityMoved { direction: intent.direction, epoch }])
        }
        Some(_) => Err(another(migration, command, epoch, "")),
        None if migration.authority.epoch == epoch && epoch > 0 => Ok(Vec::new()),
        None => Err(wrong_phase(migration, command, "no switch is under way")),
    }
}

fn taken_back(migration: &Migration, command: &Command, epoch: u64, why: &str) -> Decided {
    match migration.intent.filter(|_| migration.phase.is_switching()) {
        // The same epoch as that of the switch, but given to its being taken back: the row says which of the two it was.
        Some(intent) if epoch >= intent.epoch => Ok(vec![Decision::SwitchTakenBack { epoch, why: why.to_owned() }]),
        Some(_) => Err(another(
            migration,
            command,
            epoch,
            ": raise it in the row first, so that the switch cannot happen any more",
        )),
        None if migration.authority.epoch >= epoch => Ok(Vec::new()),
        None => Err(wrong_phase(migration, command, "no switch is under way")),
    }
}

fn routed(migration: &Migration, command: &Command, epoch: u64) -> Decided {
    if migration.authority.epoch != epoch {
        return Err(another(migration, command, epoch, ""));
    }
    Ok(if migration.authority.to_route { vec![Decision::RoutingFlipped { epoch }] } else { Vec::new() })
}

fn another(migration: &Migration, command: &Command, told: u64, instead: &'static str) -> Refusal {
    let known = migration.intent.map_or(migration.authority.epoch, |intent| intent.epoch);
    Refusal::AnotherEpoch { command: command.name(), told, known, instead }
}
