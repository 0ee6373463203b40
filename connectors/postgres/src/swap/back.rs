//! The way back within tables: the same freeze, the names change again, and the authority with them. Nothing has to be caught
//! up with, for the old columns were written with the new ones.

use super::{Laid, SwapEnd, SwapStage, finish::names, lock::lock_all, open, sql};
use crate::{
    client::{Session, failure},
    switch::{DURABLE, Given, Locked, give_sql, is_an_error},
};
use crossfade_connector::Failure;
use crossfade_event::Side;
use std::time::{Duration, Instant};

/// A freeze from which the way back is gone.
pub struct FrozenBack {
    session: Session,
    migration: String,
    laid: Laid,
    stage: SwapStage,
    /// Since when, and for how long.
    pub locked: Locked,
}

impl std::fmt::Debug for FrozenBack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FrozenBack").field("locked", &self.locked).finish_non_exhaustive()
    }
}

impl SwapEnd {
    /// Holds up everybody who reads or writes the tables, until `ends` at most.
    ///
    /// # Errors
    /// `Retry` when the locks could not be had in time; `Refused` where nothing has changed places.
    pub async fn freeze_back(&mut self, ends: Instant, lock_timeout: Duration) -> Result<FrozenBack, Failure> {
        let doing = "holding up the writers";
        let Some((_, laid)) = self.stored().await? else {
            return Err(Failure::refused(doing, "nothing has changed places", "There is nothing to go back from"));
        };
        let tables = self.with_views(names(&laid)).await?;
        let session = open(&self.config, "crossfade freeze").await?;
        let locked = lock_all(&session, "BEGIN", &self.migration, &tables, ends, lock_timeout).await?;
        // Under the lock nobody completes what the switch has begun.
        let Some((stage @ (SwapStage::Switched | SwapStage::Finished), laid)) = self.stored().await? else {
            return Err(Failure::refused(
                doing,
                "the new columns do not have the names",
                "There is nothing to go back from",
            ));
        };
        Ok(FrozenBack { session, migration: self.migration.clone(), laid, stage, locked })
    }

    /// After the way back: proves the old references again, while everybody writes.
    ///
    /// # Errors
    /// `Halt` where rows do not hold them.
    pub async fn prove_old(&mut self) -> Result<(), Failure> {
        let Some((SwapStage::Returned, laid)) = self.stored().await? else { return Ok(()) };
        for table in &laid.tables {
            for foreign in table.foreign.iter().filter(|foreign| foreign.valid && !foreign.is_added()) {
                self.validate(table.name(), &foreign.name).await?;
            }
        }
        Ok(())
    }
}

impl FrozenBack {
    /// The point of no return: the authority, the names and the end of the lock, in one commit.
    pub async fn give(self, epoch: u64) -> Given {
        let doing = "giving the authority back";
        let left = self.locked.left();
        if left.is_zero() {
            return Given::Refused(Failure::retry(doing, "the deadline has passed"));
        }
        let back = match sql::back(&self.migration, &self.laid, self.stage) {
            Ok(back) => back,
            Err(failure) => return Given::Refused(failure),
        };
        let sql = format!("{DURABLE}; {}; {back} COMMIT", give_sql(&self.migration, Side::New, epoch));
        match self.session.batch_execute(&sql).await {
            Ok(()) => Given::Done,
            Err(error) if is_an_error(&error) => Given::Refused(failure(doing, error)),
            Err(error) => Given::Unknown(failure(doing, error)),
        }
    }

    /// Lets everybody go on.
    pub async fn release(self) {
        if let Err(error) = self.session.batch_execute("ROLLBACK").await {
            tracing::debug!(%error, "the freeze had ended already");
        }
    }
}
