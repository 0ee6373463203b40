//! What a decision changes. Total: a decision that was once made is never refused.

use crate::{Authority, Decision, Direction, Migration, Overlay, Phase, Voided, reads::may_compare};

/// The migration after a decision.
#[must_use]
pub fn evolve(mut migration: Migration, decision: &Decision) -> Migration {
    match decision.clone() {
        Decision::BegunAnew => {
            // The row of `crossfade.authority` outlives it: its epoch must not fall.
            let authority = migration.authority;
            migration = Migration { epoch: migration.epoch, authority, ..Migration::default() };
        }
        Decision::EpochRaised { epoch } => migration.epoch = epoch,
        Decision::Planned { spec_hash, secret_id } => {
            migration.phase = Phase::Planned;
            migration.overlay = None;
            migration.spec_hash = spec_hash;
            migration.secret_id = secret_id;
        }
        Decision::Entered { phase } => migration.phase = phase,
        Decision::BackfillStarted { generation } => {
            migration.phase = Phase::Backfilling;
            migration.generation = generation;
            migration.clean_pass = None;
            migration.judgement = None;
            // As where a proof is voided: a person has to say something to it.
            let stepped_down = migration.stepped_down.take();
            compare_none(&mut migration);
            migration.stepped_down = stepped_down;
        }
        Decision::Paused { by, reason } => migration.overlay = Some(Overlay::Paused { by, reason }),
        Decision::Failed { reason } => migration.overlay = Some(Overlay::Failed { reason }),
        Decision::Lost { reason, remedy } => migration.overlay = Some(Overlay::Lost { reason, remedy }),
        Decision::Resumed => migration.overlay = None,
        Decision::TablesWanted => migration.adding = true,
        Decision::TablesAdded { .. } => migration.adding = false,
        Decision::RollbackBegan { kind } => {
            migration.adding = false;
            migration.phase = Phase::RollingBack(kind);
            migration.overlay = None;
            migration.clean_pass = None;
            migration.judgement = None;
            migration.approvals.clear();
            compare_none(&mut migration);
        }
        Decision::BaselineTaken { baseline } => migration.baseline = Some(baseline),
        Decision::GateFell { fall } => migration.fallen = Some(fall),
        Decision::FallAnswered => migration.fallen = None,
        Decision::CheckpointNamed { name, checkpoint } => {
            migration.checkpoints.insert(name, checkpoint);
        }
        Decision::CheckpointDropped { name } => {
            migration.checkpoints.remove(&name);
        }
        Decision::Pinned { end, identity } => {
            migration.pins.insert(end, identity);
        }
        Decision::PassedClean { pass } => {
            migration.clean_pass = Some(pass);
            migration.voided = None;
            if migration.phase == Phase::Shadowing {
                migration.phase = Phase::Verified;
            }
        }
        Decision::PassVoided { why } => {
            migration.clean_pass = None;
            migration.voided = Some(Voided { why });
            migration.judgement = None;
            if migration.phase.is_following() {
                migration.phase = Phase::Shadowing;
                // That they had stepped down stays: a person has to say something to it.
                let stepped_down = migration.stepped_down.take();
                compare_none(&mut migration);
                migration.stepped_down = stepped_down;
            }
        }
        Decision::DualReadSet { millionths } => {
            migration.dual_millionths = millionths;
            migration.stepped_down = None;
            // Elsewhere it only answers that they had stepped down.
            if may_compare(migration.phase) {
                migration.phase = if millionths == 0 { Phase::Verified } else { Phase::DualReading };
            }
        }
        Decision::ReadsJudged { judgement } => migration.reads_judgement = Some(judgement),
        Decision::ReadsSteppedDown { why } => migration.stepped_down = Some(why),
        Decision::Approved { approval } => migration.approvals.push(approval),
        Decision::Judged { judgement } => {
            let passes = judgement.passes();
            migration.phase = match migration.phase {
                Phase::Verified | Phase::DualReading if passes => Phase::Ready,
                Phase::Ready if !passes => without_switch(&migration),
                phase => phase,
            };
            migration.judgement = Some(judgement);
        }
        Decision::SwitchIntended { intent } => {
            migration.phase = Phase::Freezing;
            migration.intent = Some(intent);
        }
        Decision::AuthorityMoved { direction, epoch } => {
            migration.authority = Authority { side: direction.to(), epoch, to_route: true };
            migration.was_switched = true;
            migration.voided = None;
            migration.phase = match direction {
                Direction::Cutover => Phase::Switched,
                Direction::Failback => Phase::Shadowing,
            };
            migration.intent = None;
            migration.judgement = None;
            migration.clean_pass = None;
            migration.approvals.clear();
            compare_none(&mut migration);
        }
        Decision::SwitchTakenBack { epoch, .. } => {
            migration.authority.epoch = epoch;
            migration.phase = match migration.intent.map(|intent| intent.direction) {
                Some(Direction::Failback) => Phase::Switched,
                _ => without_switch(&migration),
            };
            migration.intent = None;
            // What the guards saw was before this: they look again.
            migration.judgement = None;
        }
        Decision::RoutingFlipped { .. } => migration.authority.to_route = false,
        Decision::Noted { .. } => {}
    }
    migration
}

/// Where a migration stands that was ready and is not.
fn without_switch(migration: &Migration) -> Phase {
    match (&migration.clean_pass, migration.dual_millionths) {
        (None, _) => Phase::Shadowing,
        (Some(_), 0) => Phase::Verified,
        (Some(_), _) => Phase::DualReading,
    }
}

/// No read is compared any more, for whatever it was that they were compared about.
fn compare_none(migration: &mut Migration) {
    migration.dual_millionths = 0;
    migration.stepped_down = None;
    migration.reads_judgement = None;
}
