//! A sink that holds the tables it writes: the freeze of a switch within tables. Whatever is delivered then is written in the
//! one transaction that holds the locks, and nothing of it is committed before the switch is.

use super::PostgresSink;
use crate::{
    client::failure,
    swap::lock_all,
    switch::{DURABLE, Given, Locked, give_sql, is_an_error},
};
use crossfade_connector::{Failure, Progress};
use crossfade_event::{Side, TableName};
use std::time::{Duration, Instant};

impl PostgresSink {
    /// Locks the tables on the session that writes them, until `ends` at most. Nothing may be open.
    ///
    /// # Errors
    /// `Retry` when the locks could not be had in time; the sink goes on as before then.
    pub async fn hold(
        &mut self,
        tables: &[TableName],
        ends: Instant,
        lock_timeout: Duration,
    ) -> Result<Locked, Failure> {
        self.must_stand()?;
        let doing = "holding up the writers";
        let mut link = self.same_link()?;
        if link.open {
            self.give_back(link);
            self.lost = false;
            return Err(Failure::retry(doing, "a transaction is being applied"));
        }
        let locked = lock_all(&link.session, &link.begin, &self.config.migration, tables, ends, lock_timeout).await;
        if locked.is_ok() {
            (link.open, link.held) = (true, true);
            self.in_part = true;
            // Constraints are made at other times.
            self.constraints_at = None;
        }
        if !link.session.is_closed() {
            self.give_back(link);
            self.lost = false;
        }
        locked
    }

    /// Whether it holds the tables still.
    pub fn holds(&self) -> bool {
        self.link.as_ref().is_some_and(|link| link.held && link.open && !link.session.is_closed())
    }

    /// Where it stands within the transaction that holds the tables.
    ///
    /// # Errors
    /// `Halt` when the session is gone, and with it the freeze.
    pub fn progress_held(&self) -> Result<Option<Progress>, Failure> {
        match self.holds() {
            true => Ok(self.standing.clone()),
            false => Err(Failure::halt("applying what was written", "the freeze has ended", "Switch again")),
        }
    }

    /// The point of no return: everything that was delivered, the authority and `then`, in one commit. The sink is done then.
    pub async fn give_held(&mut self, locked: Locked, epoch: u64, then: &str) -> Given {
        let doing = "giving the authority to the new columns";
        if !self.holds() || locked.left().is_zero() {
            self.let_go().await;
            return Given::Refused(Failure::retry(doing, "the deadline has passed"));
        }
        let Ok(link) = self.same_link() else {
            return Given::Refused(Failure::retry(doing, "the session was lost"));
        };
        // What a trigger has put off until the commit would keep the names from changing.
        let sql = format!(
            "SET CONSTRAINTS ALL IMMEDIATE; {DURABLE}; {}; {then} COMMIT",
            give_sql(&self.config.migration, Side::Old, epoch)
        );
        // Whatever comes of it, this session is not written through any more.
        match link.session.batch_execute(&sql).await {
            Ok(()) => Given::Done,
            Err(error) if is_an_error(&error) => Given::Refused(failure(doing, error)),
            Err(error) => Given::Unknown(failure(doing, error)),
        }
    }

    /// Lets everybody go on; what was delivered since the freeze comes again.
    pub async fn let_go(&mut self) {
        self.lost = true;
        self.in_part = false;
        if let Some(link) = self.link.take()
            && let Err(error) = link.session.batch_execute("ROLLBACK").await
        {
            tracing::debug!(%error, "the freeze had ended already");
        }
    }
}
