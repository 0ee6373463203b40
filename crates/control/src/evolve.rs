//! What a decision changes. Total: a decision that was once made is never refused.

use crate::{Decision, Migration, Overlay, Phase};

/// The migration after a decision.
#[must_use]
pub fn evolve(mut migration: Migration, decision: &Decision) -> Migration {
    match decision.clone() {
        Decision::BegunAnew => migration = Migration { epoch: migration.epoch, ..Migration::default() },
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
        }
        Decision::CheckpointNamed { name, checkpoint } => {
            migration.checkpoints.insert(name, checkpoint);
        }
        Decision::CheckpointDropped { name } => {
            migration.checkpoints.remove(&name);
        }
        Decision::Pinned { end, identity } => {
            migration.pins.insert(end, identity);
        }
        Decision::Noted { .. } => {}
    }
    migration
}
