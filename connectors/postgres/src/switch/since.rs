//! For how long the authority has been where it is.

use super::SwitchEnd;
use crate::client::failure;
use crossfade_connector::Failure;
use std::time::Duration;

impl SwitchEnd {
    /// How long ago the row was written, by the server's own clock; `None` where there is none.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub async fn age(&mut self) -> Result<Option<Duration>, Failure> {
        let sql = "SELECT GREATEST(0, EXTRACT(epoch FROM pg_catalog.clock_timestamp() - since))::pg_catalog.float8 \
                   FROM crossfade.authority WHERE migration = $1";
        let migration = self.migration.clone();
        let row = self.session().await?.query_opt(sql, &[&migration]).await;
        let row = row.map_err(|error| failure("asking how long ago the switch was", error))?;
        Ok(row.map(|row| Duration::from_secs_f64(row.get(0))))
    }
}
