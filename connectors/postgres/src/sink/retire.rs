//! What a way back leaves on the old side, taken away: after a failback its places, for another way back begins anew; with a wipe
//! the pairs of keys too.

use super::{PostgresSink, link::Param, rollback, store};
use crossfade_connector::{Failure, UndoReport};

/// The tables with rows of one migration each, in which a way back keeps how far it has come.
const OURS: [&str; 5] = ["quarantine", "undo", "shapes", "objects", "positions"];

impl PostgresSink {
    /// The way back into this side has done its part: what it knows of its own place goes. The pairs of old and new keys of
    /// `forward` stay, for the rows that were born have them for ever; but whatever is brought over next time comes on top.
    /// A repeat changes nothing.
    ///
    /// # Errors
    /// When the old side cannot be written, or somebody still writes for this way back.
    pub async fn retire_back(&mut self, forward: &str) -> Result<(), Failure> {
        let doing = "taking away the place of the way back";
        let migration = self.config.migration.clone();
        let mut link = self.take_link().await?;
        rollback::lock(&mut link, &migration).await?;
        if store::exists(&mut link).await? {
            link.execute(doing, "BEGIN").await?;
            for table in OURS {
                let sql = format!("DELETE FROM crossfade.{table} WHERE migration = $1");
                link.run(doing, &sql, vec![Param::text(&migration)]).await?;
            }
            link.execute(doing, "COMMIT").await?;
        }
        let sql = "SELECT pg_catalog.to_regclass('crossfade.reverse_mapping') IS NOT NULL";
        let there = link.query(doing, sql, &[]).await?;
        if there.first().is_some_and(|row| row.get(0)) {
            let sql = "DELETE FROM crossfade.reverse_mapping WHERE migration = $1";
            link.run(doing, sql, vec![Param::text(forward)]).await?;
        }
        self.give_back(link);
        Ok(())
    }

    /// Takes away everything of the way back of `forward`, the pairs of keys too. A repeat changes nothing.
    ///
    /// # Errors
    /// See [`PostgresSink::retire_back`].
    pub async fn forget_back(&mut self, forward: &str) -> Result<(), Failure> {
        let doing = "taking away the way back";
        self.retire_back(forward).await?;
        let migration = self.config.migration.clone();
        let mut link = self.take_link().await?;
        for table in ["reverse_keys", "reverse_mapping"] {
            let there = format!("SELECT pg_catalog.to_regclass('crossfade.{table}') IS NOT NULL");
            if !link.query(doing, &there, &[]).await?.first().is_some_and(|row| row.get::<_, bool>(0)) {
                continue;
            }
            let sql = format!("DELETE FROM crossfade.{table} WHERE migration = $1");
            link.run(doing, &sql, vec![Param::text(forward)]).await?;
            let sql = format!("SELECT EXISTS (SELECT FROM crossfade.{table})");
            if link.query(doing, &sql, &[]).await?.first().is_some_and(|row| !row.get::<_, bool>(0)) {
                link.forget();
                link.execute(doing, &format!("DROP TABLE crossfade.{table}")).await?;
            }
        }
        if store::exists(&mut link).await? {
            rollback::forget(&mut link, &migration, &mut UndoReport::default()).await?;
        }
        self.give_back(link);
        Ok(())
    }
}
