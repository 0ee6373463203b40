//! Taking back what a migration wrote: *undo* puts back what we overwrote in tables that are not ours, *wipe* drops what
//! we made. Both work from what the target itself has on record, need no log, and can be killed and run again.

use super::{
    PostgresSink,
    link::{Link, Param},
    make::{self, Found},
    own, shares, store,
    table::{self, Table},
    undo,
};
use crate::client::{drop_origin, failure, quote_ident, quote_table};
use crossfade_connector::{Failure, Rollback, Target, UndoReport, Verdict, WriteMode};
use crossfade_event::{Key, Row, TableName};
use tokio_postgres::error::SqlState;

/// Undo records that are put back in one transaction.
const UNDO_ROWS: i64 = 1000;

/// So often a lock is waited for that others hold.
const LOCK_TRIES: u32 = 12;

/// So often a page is tried again at once when somebody else was in its way.
const PAGE_TRIES: u32 = 20;

impl Rollback for PostgresSink {
    async fn undo(&mut self, target: &Target) -> Result<UndoReport, Failure> {
        self.told = None;
        let mut link = self.take_link().await?;
        let migration = self.config.migration.clone();
        lock(&mut link, &migration).await?;
        let mut report = UndoReport::default();
        if !store::exists(&mut link).await? {
            self.give_back(link);
            return Ok(report);
        }
        store::fence(&mut link, &migration, 0, target.epoch).await?;
        own::mark(&mut link, &migration, target).await?;
        let found = make::survey(&mut link, &Target { into_existing: true, ..target.clone() }).await?;
        // Children first, so that what refers to a row goes before it does.
        for (wanted, found) in target.tables.iter().zip(found).rev() {
            if found == Found::Absent {
                continue;
            }
            let mut tables = vec![Table::resolve(&mut link, wanted, false, true).await?];
            table::make_types(&mut link, &mut tables).await?;
            if let Some(table) = tables.first() {
                undo_table(&mut link, &migration, table, &mut report).await?;
            }
        }
        self.give_back(link);
        Ok(report)
    }

    async fn wipe(&mut self, target: &Target) -> Result<UndoReport, Failure> {
        self.told = None;
        let mut link = self.take_link().await?;
        let migration = self.config.migration.clone();
        lock(&mut link, &migration).await?;
        let mut report = UndoReport::default();
        if store::exists(&mut link).await? {
            // Nobody who shares the stream writes from here on.
            shares::take_all_back(&mut link, &migration, target.epoch).await?;
            drop_objects(&mut link, &migration, &mut report).await?;
            forget(&mut link, &migration, &mut report).await?;
        }
        drop_origin(&link.session, &migration).await;
        self.tables.clear();
        self.index.clear();
        self.target = None;
        self.give_back(link);
        Ok(report)
    }
}

impl PostgresSink {
    /// Forgets the migration: what it has written stays, and is nobody's but the application's from here on.
    ///
    /// # Errors
    /// When the target cannot be written, or somebody still writes for the migration.
    pub async fn forget(&mut self) -> Result<(), Failure> {
        self.told = None;
        let mut link = self.take_link().await?;
        let migration = self.config.migration.clone();
        lock(&mut link, &migration).await?;
        if store::exists(&mut link).await? {
            forget(&mut link, &migration, &mut UndoReport::default()).await?;
        }
        self.tables.clear();
        self.index.clear();
        self.target = None;
        self.give_back(link);
        Ok(())
    }
}

/// Our records, and our schema, unless somebody has something in it.
const DROP_RECORDS: &str = "DO $$ BEGIN \
     DROP TABLE crossfade.positions, crossfade.quarantine, crossfade.undo, crossfade.objects, crossfade.shapes, \
         crossfade.format; \
     BEGIN DROP SCHEMA crossfade; EXCEPTION WHEN OTHERS THEN RAISE DEBUG 'the schema crossfade stays'; END; END $$";

pub(super) async fn lock(link: &mut Link, migration: &str) -> Result<(), Failure> {
    if link.open {
        link.execute("rolling back what was left open", "ROLLBACK").await?;
        link.open = false;
    }
    if !link.locked {
        store::lock(link, migration).await?;
        link.locked = true;
    }
    Ok(())
}

/// Puts one table's rows back, page by page; a record goes in the same transaction as its row comes back.
async fn undo_table(link: &mut Link, migration: &str, table: &Table, report: &mut UndoReport) -> Result<(), Failure> {
    let name = &table.target.schema.name;
    let doing = format!("undoing what was written in {name}");
    if table.key.is_empty() {
        return Ok(());
    }
    let key: Vec<String> = key_parts(table, |index, column| {
        let Some(found) = table.columns.get(index) else { return String::new() };
        format!("t.{column} {} u.key[{}]::{}", found.equals, place(table, index), found.base)
    });
    let filter = "u.migration = $1 AND u.table_schema = $2 AND u.table_name = $3";
    let page = format!(
        "SELECT u.key, u.existed, u.columns, u.before, \
           u.written IS NOT DISTINCT FROM (SELECT {} FROM {} t WHERE {}) \
         FROM crossfade.undo u WHERE {filter} AND ($4::text[] IS NULL OR u.key > $4) ORDER BY u.key LIMIT $5",
        undo::hash(table, "t"),
        table.quoted,
        key.join(" AND "),
    );
    // Whoever writes such a row meanwhile does so before it is looked at, or after it was put back: never in between.
    let lock = format!(
        "SELECT FROM {} t, (SELECT u.key FROM crossfade.undo u WHERE {filter} AND ($4::text[] IS NULL OR u.key > $4) \
         ORDER BY u.key LIMIT $5) u WHERE {} FOR UPDATE OF t",
        table.quoted,
        key.join(" AND "),
    );
    let page = Page { migration, doing, table, lock, page };
    let mut after = None;
    let mut tries = 0;
    loop {
        let mut done = UndoReport::default();
        match page.put_back(link, &after, &mut done).await {
            Ok(last) => {
                report.restored += done.restored;
                report.removed += done.removed;
                report.left_alone.append(&mut done.left_alone);
                tries = 0;
                match last {
                    Some(last) => after = Some(last),
                    None => return Ok(()),
                }
            }
            // A deadlock with those who write the table: they go on, and then so can we.
            Err(failure) if matches!(failure.verdict, Verdict::Retry { .. }) && tries < PAGE_TRIES => {
                tries += 1;
                link.execute(&page.doing, "ROLLBACK").await?;
            }
            Err(failure) => return Err(failure),
        }
    }
}

/// The key of an undo record, part by part.
type RecordKey = Vec<Option<String>>;

/// What puts one page of a table's rows back.
struct Page<'a> {
    migration: &'a str,
    doing: String,
    table: &'a Table,
    /// Locks the rows of a page.
    lock: String,
    /// Reads its records, and whether the rows are still as they were written.
    page: String,
}

impl Page<'_> {
    /// The page after `after`, in one transaction; returns the last key that it had.
    async fn put_back(
        &self,
        link: &mut Link,
        after: &Option<RecordKey>,
        report: &mut UndoReport,
    ) -> Result<Option<RecordKey>, Failure> {
        let (doing, migration, name) = (&self.doing, &self.migration, &self.table.target.schema.name);
        link.execute(doing, &link.begin).await?;
        link.query(doing, &self.lock, &[migration, &&*name.schema, &&*name.name, after, &UNDO_ROWS]).await?;
        let rows = link.query(doing, &self.page, &[migration, &&*name.schema, &&*name.name, after, &UNDO_ROWS]).await?;
        for row in &rows {
            let record = Record { key: row.get(0), existed: row.get(1), columns: row.get(2), before: row.get(3) };
            if row.get::<_, bool>(4) {
                put_back(link, doing, self.table, &record, report).await?;
                let sql = "DELETE FROM crossfade.undo WHERE migration = $1 AND table_schema = $2 AND table_name = $3 AND key = $4";
                link.query(doing, sql, &[migration, &&*name.schema, &&*name.name, &record.key]).await?;
            } else {
                report.left_alone.push((name.clone(), hash_of(&record.key)));
            }
        }
        link.execute(doing, "COMMIT").await?;
        Ok(rows.last().map(|row| row.get(0)))
    }
}

struct Record {
    key: RecordKey,
    existed: bool,
    columns: Vec<String>,
    before: Option<Vec<Option<String>>>,
}

/// Names a row without showing it.
fn hash_of(key: &[Option<String>]) -> String {
    let row: Row = key
        .iter()
        .map(|cell| {
            cell.as_ref().map_or(crossfade_event::Cell::Null, |text| crossfade_event::Cell::Bytes(text.as_bytes()))
        })
        .collect();
    format!("{:016x}", Key::from(row).hash64())
}

fn place(table: &Table, index: usize) -> usize {
    table.key.iter().position(|key| *key == index).unwrap_or(0) + 1
}

fn key_parts(table: &Table, part: impl Fn(usize, &str) -> String) -> Vec<String> {
    table.key.iter().filter_map(|index| Some(part(*index, &table.columns.get(*index)?.quoted))).collect()
}

async fn put_back(
    link: &mut Link,
    doing: &str,
    table: &Table,
    record: &Record,
    report: &mut UndoReport,
) -> Result<(), Failure> {
    let finds = key_parts(table, |index, column| {
        let Some(found) = table.columns.get(index) else { return String::new() };
        format!("t.{column} {} ($1::text[])[{}]::{}", found.equals, place(table, index), found.base)
    })
    .join(" AND ");
    let key = Param::texts(record.key.iter().map(Option::as_deref));
    let base_of = |name: &String| {
        let index = table.target.schema.column_index(name)?;
        table.columns.get(index)
    };
    let Some(before) = record.before.as_ref().filter(|_| record.existed) else {
        if matches!(table.target.mode, WriteMode::Table) {
            let sql = format!("DELETE FROM {} t WHERE {finds}", table.quoted);
            report.removed += link.run(doing, &sql, vec![key]).await?;
        }
        return Ok(());
    };
    let values = Param::texts(before.iter().map(Option::as_deref));
    let kept: Vec<(usize, &table::Col)> =
        record.columns.iter().enumerate().filter_map(|(place, name)| Some((place + 1, base_of(name)?))).collect();
    let sets: Vec<String> = kept
        .iter()
        .filter(|(_, column)| !column.always)
        .map(|(place, column)| format!("{} = ($2::text[])[{place}]::{}", column.quoted, column.base))
        .collect();
    let sql = format!("UPDATE {} t SET {} WHERE {finds}", table.quoted, sets.join(", "));
    let mut restored = link.run(doing, &sql, vec![key, values.clone()]).await?;
    if restored == 0 && matches!(table.target.mode, WriteMode::Table) {
        // The row went, and with it what others had written beside our columns.
        let ours = kept.iter().map(|(place, column)| (*place, column.quoted.as_str(), column.base.as_str()));
        let beside = record.columns.iter().enumerate().filter_map(|(place, name)| {
            let (_, quoted, base) = table.beside.iter().find(|(beside, ..)| beside == name)?;
            Some((place + 1, quoted.as_str(), base.as_str()))
        });
        let (columns, values_sql): (Vec<&str>, Vec<String>) =
            ours.chain(beside).map(|(place, quoted, base)| (quoted, format!("($1::text[])[{place}]::{base}"))).unzip();
        let sql = format!(
            "INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE VALUES ({})",
            table.quoted,
            columns.join(", "),
            values_sql.join(", ")
        );
        restored = link.run(doing, &sql, vec![values]).await?;
    }
    report.restored += restored;
    Ok(())
}

/// Drops one object. Who holds a table's lock for longer than our patience with it is waited for some times more.
async fn dropped(link: &Link, sql: &str) -> Result<(), tokio_postgres::Error> {
    let mut tries = 0;
    loop {
        match link.session.batch_execute(sql).await {
            Err(error) if tries < LOCK_TRIES && is_in_use(&error) => tries += 1,
            outcome => return outcome,
        }
    }
}

fn is_in_use(error: &tokio_postgres::Error) -> bool {
    matches!(error.code(), Some(&SqlState::LOCK_NOT_AVAILABLE | &SqlState::T_R_DEADLOCK_DETECTED))
}

/// Drops what we made, the last thing first. A record goes with its object.
async fn drop_objects(link: &mut Link, migration: &str, report: &mut UndoReport) -> Result<(), Failure> {
    let doing = "dropping what the migration made";
    let sql =
        "SELECT kind, schema, name, part, number FROM crossfade.objects WHERE migration = $1 ORDER BY number DESC";
    let rows = link.query(doing, sql, &[&migration]).await?;
    let objects: Vec<(String, String, String, String, i64)> =
        rows.iter().map(|row| (row.get(0), row.get(1), row.get(2), row.get(3), row.get(4))).collect();
    // Views of ours show our tables, and would stand in their way.
    let (views, objects): (Vec<_>, Vec<_>) = objects.into_iter().partition(|(kind, ..)| kind == "view");
    drop_views(link, migration, &views, report).await?;
    let ours = |schema: &str, name: &str| {
        objects.iter().any(|(kind, of, table, ..)| kind == "table" && of == schema && table == name)
    };
    // Foreign keys between our tables stand in the way of dropping them one by one: all tables go together.
    let tables: Vec<String> = objects
        .iter()
        .filter(|(kind, ..)| kind == "table")
        .map(|(_, schema, name, ..)| {
            Ok(quote_table(&TableName::new(schema.as_str(), name.as_str()))?.as_str().to_owned())
        })
        .collect::<Result<_, Failure>>()?;
    if !tables.is_empty() {
        let sql = format!("DROP TABLE IF EXISTS {}", tables.join(", "));
        link.session.batch_execute(&sql).await.map_err(|error| in_the_way(doing, error))?;
    }
    for (kind, schema, name, part, number) in &objects {
        let table = TableName::new(schema.as_str(), name.as_str());
        let (sql, told) = match kind.as_str() {
            "table" => (None, Some(format!("table {table}"))),
            "rows" => {
                let there = link
                    .query(doing, "SELECT to_regclass($1::text) IS NOT NULL", &[&quote_table(&table)?.as_str()])
                    .await?;
                let there = there.first().is_some_and(|row| row.get::<_, bool>(0));
                (
                    there.then(|| quote_table(&table).map(|name| format!("DELETE FROM {name}"))).transpose()?,
                    Some(format!("rows of {table}")),
                )
            }
            "column" if !ours(schema, name) => (
                Some(format!(
                    "ALTER TABLE IF EXISTS {} DROP COLUMN IF EXISTS {}",
                    quote_table(&table)?,
                    quote_ident(part)?
                )),
                Some(format!("column {part} of {table}")),
            ),
            "sequence" => {
                (Some(format!("DROP SEQUENCE IF EXISTS {}", quote_table(&table)?)), Some(format!("sequence {table}")))
            }
            "type" => (Some(format!("DROP TYPE IF EXISTS {}", quote_table(&table)?)), Some(format!("type {table}"))),
            "domain" => {
                (Some(format!("DROP DOMAIN IF EXISTS {}", quote_table(&table)?)), Some(format!("domain {table}")))
            }
            "extension" => {
                (Some(format!("DROP EXTENSION IF EXISTS {}", quote_ident(name)?)), Some(format!("extension {name}")))
            }
            "schema" => {
                (Some(format!("DROP SCHEMA IF EXISTS {}", quote_ident(schema)?)), Some(format!("schema {schema}")))
            }
            _ => (None, None),
        };
        if let Some(sql) = sql {
            match dropped(link, &sql).await {
                Ok(()) => report.dropped.extend(told),
                // Somebody put something of their own into it, or uses it: it is not ours alone any more.
                Err(error) if error.code().is_some_and(|code| code.code() == "2BP01") => {
                    tracing::warn!(object = told.unwrap_or_default(), "left in place: something else depends on it");
                }
                Err(error) => return Err(failure(doing, error)),
            }
        } else {
            report.dropped.extend(told);
        }
        let sql = "DELETE FROM crossfade.objects WHERE migration = $1 AND number = $2";
        link.run(doing, sql, vec![Param::text(migration), Param::i64(*number)]).await?;
    }
    Ok(())
}

/// Drops the views that we made. One that somebody else's view shows stays in place, and its record with it.
async fn drop_views(
    link: &mut Link,
    migration: &str,
    views: &[(String, String, String, String, i64)],
    report: &mut UndoReport,
) -> Result<(), Failure> {
    let doing = "dropping the views that the migration made";
    for (_, schema, name, _, number) in views {
        let view = TableName::new(schema.as_str(), name.as_str());
        match dropped(link, &format!("DROP VIEW IF EXISTS {}", quote_table(&view)?)).await {
            Ok(()) => report.dropped.push(format!("view {view}")),
            Err(error) if error.code().is_some_and(|code| code.code() == "2BP01") => {
                tracing::warn!(%view, "left in place: something else depends on it");
                continue;
            }
            Err(error) => return Err(failure(doing, error)),
        }
        let sql = "DELETE FROM crossfade.objects WHERE migration = $1 AND number = $2";
        link.run(doing, sql, vec![Param::text(migration), Param::i64(*number)]).await?;
    }
    Ok(())
}

fn in_the_way(doing: &str, error: tokio_postgres::Error) -> Failure {
    if error.code().is_some_and(|code| code.code() == "2BP01") {
        let told = error.as_db_error().map_or_else(String::new, |error| error.message().to_owned());
        return Failure::refused(doing, told, "Something else depends on it: drop that first, then wipe again");
    }
    failure(doing, error)
}

/// Removes our records of the migration, and our schema with the last one.
pub(super) async fn forget(link: &mut Link, migration: &str, report: &mut UndoReport) -> Result<(), Failure> {
    let doing = "removing the migration's records from the target";
    link.execute(doing, "BEGIN").await?;
    for table in ["quarantine", "undo", "shapes", "objects", "positions"] {
        let sql = format!("DELETE FROM crossfade.{table} WHERE migration = $1");
        link.run(doing, &sql, vec![Param::text(migration)]).await?;
    }
    link.execute(doing, "COMMIT").await?;
    let sql = "SELECT EXISTS (SELECT FROM crossfade.positions)";
    let others = link.query(doing, sql, &[]).await?;
    if others.first().is_some_and(|row| !row.get::<_, bool>(0)) {
        link.forget();
        // In one transaction: who dies between the two would leave a schema that nobody knows to be ours.
        link.execute(doing, DROP_RECORDS).await?;
        let gone = link.query(doing, "SELECT to_regnamespace('crossfade') IS NULL", &[]).await?;
        if gone.first().is_some_and(|row| row.get::<_, bool>(0)) {
            report.dropped.push("schema crossfade".to_owned());
        }
    }
    Ok(())
}
