//! The sink as others see it: what each step of the contract does around the work on a connection.

use super::{CONSTRAINT_PAUSE, PostgresSink, back, ddl, finish, link::Raw, sets, store};
use crossfade_connector::{
    Applied, Ddl, Delivery, Failure, Guard, Progress, Sink, Stage, Target, TargetSql, TargetTable,
};
use crossfade_event::{Key, Row, TableId};
use tokio::time::Instant;

impl Ddl for PostgresSink {
    fn ddl(&self, target: &Target) -> Result<TargetSql, Failure> {
        ddl::whole(target)
    }
}

impl Sink for PostgresSink {
    async fn prepare(&mut self, target: &Target) -> Result<(), Failure> {
        let mut link = if self.in_part { self.same_link()? } else { self.take_link().await? };
        self.lost = true;
        Box::pin(async {
            self.label_first(&mut link, target).await?;
            self.shape_up(&mut link).await?;
            self.prepare_on(&mut link, target).await
        })
        .await?;
        self.give_back(link);
        self.lost = false;
        Ok(())
    }

    async fn alter(&mut self, before: &TargetTable, after: &TargetTable) -> Result<(), Failure> {
        self.must_stand()?;
        let mut link = self.same_link()?;
        self.in_part = true;
        if link.open {
            Box::pin(self.alter_on(&mut link, before, after)).await?;
        } else {
            self.shaping.push((before.clone(), after.clone()));
        }
        self.give_back(link);
        self.lost = false;
        Ok(())
    }

    async fn progress(&mut self) -> Result<Option<Progress>, Failure> {
        let migration = self.config.migration.clone();
        let mut link = self.take_link().await?;
        if link.open {
            link.execute("rolling back what was left open", "ROLLBACK").await?;
            link.open = false;
        }
        self.in_part = false;
        self.shaping.clear();
        let progress = store::progress(&mut link, &migration, 0).await?;
        self.told = Some(progress.clone());
        self.give_back(link);
        Ok(progress)
    }

    async fn apply(&mut self, mut delivery: Delivery, guard: Guard) -> Result<Applied, Failure> {
        self.must_stand()?;
        self.told = None;
        let mut link = self.same_link()?;
        if let Some(back) = &self.config.back {
            Box::pin(back::turn(&mut link, back, &self.tables, &mut delivery)).await?;
        }
        let applied = Box::pin(self.apply_on(&mut link, delivery, guard)).await?;
        self.in_part = link.open;
        self.give_back(link);
        self.lost = false;
        Ok(applied)
    }

    async fn finish_load(&mut self) -> Result<(), Failure> {
        self.must_be_prepared()?;
        let mut link = self.take_link().await?;
        let Some(target) = self.target.clone() else { return Ok(()) };
        let streaming = self.standing.as_ref().is_some_and(|standing| standing.stage == Stage::Streaming);
        self.lost = true;
        let mut tables = std::mem::take(&mut self.tables);
        // Those of a load before, of which not all was made.
        self.statistics.settled().await;
        let doubled = finish::after_load(&mut link, &target, &mut tables, self.config.on_error).await?;
        let ours = tables.iter().filter(|table| finish::is_ours(table));
        self.statistics.begin(&mut link, &self.config.connection, &self.config.migration, ours).await?;
        if streaming && finish::completes(&tables) {
            self.statistics.settled().await;
        }
        if streaming {
            let whole = finish::complete(&mut link, &target, &mut tables).await?;
            self.constraints_at = (!whole).then(|| Instant::now() + CONSTRAINT_PAUSE);
        }
        self.install_tables(tables);
        self.give_back(link);
        if doubled {
            self.reload_held().await?;
        }
        self.lost = false;
        Ok(())
    }

    async fn read_row(&mut self, table: TableId, key: &Key) -> Result<Option<Row>, Failure> {
        self.must_be_prepared()?;
        let found = self.index.get(&table).and_then(|index| self.tables.get(*index)).cloned();
        let Some(found) = found else { return Ok(None) };
        let doing = format!("reading a row of {}", found.target.schema.name);
        let mut set = sets::Set::new(&found.key_type, key.as_bytes().len() + 32);
        set.push(key.cells());
        let link = self.link().await?;
        let bind = link.bind(&found.select_sql(), vec![set.finish()]).await?;
        let rows = link.rows(&doing, bind).await?;
        Ok(rows.first().map(|row| {
            (0..row.len())
                .map(|index| row.get::<_, Raw>(index))
                .collect::<Vec<_>>()
                .iter()
                .map(|raw| raw.0.as_deref().map_or(crossfade_event::Cell::Null, crossfade_event::Cell::Bytes))
                .collect()
        }))
    }
}
