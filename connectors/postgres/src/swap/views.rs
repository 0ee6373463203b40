//! Versioned views: one schema that shows the old shape and one that shows the new, both right at all times, before the switch
//! and after it. A view is bound to columns and tables, not to names, so a switch changes nothing of what it shows.
//!
//! Simple views are written through to their tables. On the side without the authority a trigger refuses that (where the old
//! *tables* lose it, their own fence does); the commit that moves the authority moves the triggers.

use super::SwapEnd;
use crate::{
    client::{ServerError, failure},
    quote_ident, quote_literal, quote_table, switch,
};
use crossfade_connector::Failure;
use crossfade_event::{Side, TableName};

/// A view of one table in one shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// Its schema and name.
    pub name: TableName,
    /// What it shows.
    pub table: TableName,
    /// The side whose shape it shows.
    pub side: Side,
    /// The table's columns, and what the view calls them.
    pub columns: Vec<(String, String)>,
}

/// How often a lock is tried for, and how long each time.
const LOCK_TRIES: u32 = 20;
const LOCK: &str = "SET lock_timeout = '300ms'";

pub(super) fn fence_of(migration: &str) -> String {
    format!("crossfade_view_{}", migration.replace('-', "_"))
}

impl View {
    /// The statements that make it, but for its schema.
    ///
    /// # Errors
    /// For a name that cannot stand in SQL.
    pub fn sql(&self) -> Result<String, Failure> {
        let columns: Vec<String> = self
            .columns
            .iter()
            .map(|(column, shown)| Ok(format!("{} AS {}", quote_ident(column)?, quote_ident(shown)?)))
            .collect::<Result<_, Failure>>()?;
        let (name, table) = (quote_table(&self.name)?, quote_table(&self.table)?);
        Ok(format!(
            "CREATE VIEW {name} WITH (security_invoker = true) AS SELECT {} FROM {table}; \
             GRANT SELECT, INSERT, UPDATE, DELETE ON {name} TO PUBLIC",
            columns.join(", ")
        ))
    }

    fn fence_sql(&self, migration: &str) -> Result<String, Failure> {
        Ok(format!(
            "CREATE TRIGGER {} INSTEAD OF INSERT OR UPDATE OR DELETE ON {} FOR EACH ROW EXECUTE FUNCTION crossfade.fence({})",
            quote_ident(&fence_of(migration))?,
            quote_table(&self.name)?,
            quote_literal(migration)
        ))
    }
}

/// What moves with the authority: the views of the side that gets it are written through, those of the other one are not,
/// where `fences` (its tables may have a fence of their own). A view that has no fence is left alone: taking one down waits
/// for whoever reads the view.
pub(crate) fn flip_sql(migration: &str, to: Side, fences: bool) -> String {
    let (name, trigger) = (quote_literal(migration), quote_literal(&fence_of(migration)));
    let fence = match fences {
        true => format!(
            "ELSE EXECUTE pg_catalog.format('CREATE TRIGGER %I INSTEAD OF INSERT OR UPDATE OR DELETE ON %I.%I \
             FOR EACH ROW EXECUTE FUNCTION crossfade.fence(%L)', {trigger}, v.schema, v.name, {name});"
        ),
        false => String::new(),
    };
    format!(
        "DO $crossfade$ DECLARE v record; BEGIN \
         IF pg_catalog.to_regclass('crossfade.objects') IS NULL THEN RETURN; END IF; \
         FOR v IN SELECT schema, name, part FROM crossfade.objects WHERE migration = {name} AND kind = 'view' ORDER BY number \
         LOOP IF EXISTS (SELECT FROM pg_catalog.pg_trigger WHERE tgname = {trigger} \
           AND tgrelid = pg_catalog.to_regclass(pg_catalog.format('%I.%I', v.schema, v.name))) THEN \
           EXECUTE pg_catalog.format('DROP TRIGGER %I ON %I.%I', {trigger}, v.schema, v.name); END IF; \
         IF v.part = '{to}' THEN NULL; {fence} END IF; END LOOP; END $crossfade$; "
    )
}

impl SwapEnd {
    /// The views that were made for the migration, in the order in which they were.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub async fn views(&mut self) -> Result<Vec<(TableName, Side)>, Failure> {
        let doing = "looking for the migration's views";
        let migration = self.migration.clone();
        let session = self.session().await?;
        let there = "SELECT to_regclass('crossfade.objects') IS NOT NULL";
        let there = session.query_one(there, &[]).await.map_err(|error| failure(doing, error))?;
        if !there.get::<_, bool>(0) {
            return Ok(Vec::new());
        }
        let sql =
            "SELECT schema, name, part FROM crossfade.objects WHERE migration = $1 AND kind = 'view' ORDER BY number";
        let rows = session.query(sql, &[&migration]).await.map_err(|error| failure(doing, error))?;
        let side = |word: &str| if word == "new" { Side::New } else { Side::Old };
        Ok(rows
            .iter()
            .map(|row| (TableName::new(row.get::<_, String>(0), row.get::<_, String>(1)), side(row.get(2))))
            .collect())
    }

    /// The views before their tables: that is how whoever reads them takes the locks, too.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub async fn with_views(&mut self, tables: Vec<TableName>) -> Result<Vec<TableName>, Failure> {
        let views = self.views().await?;
        Ok(views.into_iter().map(|(view, _)| view).chain(tables).collect())
    }

    /// Makes the views that are not there; those of the side without the authority refuse to be written. What is there and ours
    /// is left as it is.
    ///
    /// # Errors
    /// `Refused` for a server before 15, for a name that somebody else's relation has, and where the role may not.
    pub async fn make_views(&mut self, views: &[View]) -> Result<(), Failure> {
        let doing = "making the views";
        let version = switch::version(self.session().await?).await?;
        if version < 150_000 {
            let advice = "Leave [views] out, or use a server of 15 or later";
            return Err(Failure::refused(
                doing,
                "views that ask for the reader's own rights need PostgreSQL 15",
                advice,
            ));
        }
        let made = self.views().await?;
        for view in views {
            if made.iter().any(|(name, _)| *name == view.name) {
                continue;
            }
            let quoted = quote_table(&view.name)?;
            let taken = "SELECT to_regclass($1::text) IS NOT NULL";
            let taken = self.session().await?.query_one(taken, &[&quoted.as_str()]).await;
            if taken.map_err(|error| failure(doing, error))?.get::<_, bool>(0) {
                let advice = "Name another `app` in [views], or drop it";
                return Err(Failure::refused(doing, format!("{} is there, and not ours", view.name), advice));
            }
            let sql = self.view_sql(view).await?;
            self.tried(doing, &sql).await?;
        }
        Ok(())
    }

    /// One view with its schema, its fence and the notes of them, as one transaction.
    async fn view_sql(&mut self, view: &View) -> Result<String, Failure> {
        let schema: &str = &view.name.schema;
        let there = "SELECT to_regnamespace($1::text) IS NOT NULL";
        let quoted = quote_ident(schema)?;
        let there = self.session().await?.query_one(there, &[&quoted.as_str()]).await;
        let there: bool = there.map_err(|error| failure("looking for a schema", error))?.get(0);
        let note = |kind: &str, name: &str, part: &str| {
            let values = [self.migration.as_str(), kind, schema, name, part].map(quote_literal).join(", ");
            format!(
                "INSERT INTO crossfade.objects (migration, kind, schema, name, part) VALUES ({values}) ON CONFLICT DO NOTHING"
            )
        };
        let mut sql = String::from("BEGIN; ");
        if !there {
            sql.push_str(&format!(
                "CREATE SCHEMA {quoted}; GRANT USAGE ON SCHEMA {quoted} TO PUBLIC; {}; ",
                note("schema", "", "")
            ));
        }
        sql.push_str(&format!("{}; ", view.sql()?));
        if view.side == Side::New {
            sql.push_str(&format!("{}; {}; ", switch::FENCE, view.fence_sql(&self.migration)?));
        }
        sql.push_str(&format!("{}; COMMIT", note("view", &view.name.name, &view.side.to_string())));
        Ok(sql)
    }

    /// Waits for locks in small steps.
    async fn tried(&mut self, doing: &str, sql: &str) -> Result<(), Failure> {
        let session = self.session().await?;
        session.batch_execute(LOCK).await.map_err(|error| failure(doing, error))?;
        let mut tries = 0;
        let done = loop {
            let Err(error) = session.batch_execute(sql).await else { break Ok(()) };
            session.batch_execute("ROLLBACK").await.map_err(|error| failure(doing, error))?;
            let code = ServerError::of(&error).map(|error| error.code).unwrap_or_default();
            tries += 1;
            match code.as_str() {
                "55P03" if tries < LOCK_TRIES => {}
                "42501" => {
                    let advice =
                        "GRANT CREATE ON DATABASE … TO the role, and own the tables or be of their owner's role";
                    break Err(Failure::refused(doing, "the role may not make them", advice));
                }
                _ => break Err(failure(doing, error)),
            }
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        };
        session.batch_execute("RESET lock_timeout").await.map_err(|error| failure(doing, error))?;
        done
    }
}
