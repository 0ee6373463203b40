//! The way back: writing into the side that a migration came from, with its old keys.
//!
//! A row comes with the new side's keys. Each of them has one old key, for ever: the one that the migration made it from,
//! brought over from the mapping once, or one that is drawn here when the new key is first seen, as a row's own key or in a
//! reference to it. Drawn is the number behind every key that the table has, had on record, or has counted up to: as SQLite
//! itself would, but no key that was drawn is ever drawn again. The pair is written in the transaction of the rows that need
//! it: so a replay finds what was drawn, and what was not committed was never used.
//!
//! The old side stands behind a fence by then, the migration's own triggers record what is written there, and the application
//! has triggers of its own. Our connection fires none of them: so it passes the fence, the first migration finds nothing of
//! ours in its record when it goes on, and nothing is done a second time that was done on the new side.

use super::{SqliteSink, own, rollback, table::Table, writer::Writer};
use crate::{
    client::{exists, failure, quoted},
    codec::{integer_cell, tagged},
    switch::{KEYS, MAPPING},
};
use crossfade_connector::{Delivery, Failure, MappingEntry, Write};
use crossfade_event::{Cell, Change, Row, RowBuilder, TableId, TableName};
use rusqlite::{Connection, OptionalExtension, config::DbConfig, types::ValueRef};
use std::collections::{BTreeMap, HashMap, HashSet};

/// What a sink knows that takes a migration back.
#[derive(Debug, Clone)]
pub struct Back {
    /// The migration that is taken back.
    pub forward: String,
    /// The columns that come with new keys.
    pub keys: Vec<OldKey>,
}

/// A column that comes with new keys.
#[derive(Debug, Clone)]
pub struct OldKey {
    /// The table that is written.
    pub table: TableName,
    /// Its column.
    pub column: String,
    /// Whose keys they are.
    pub of: TableName,
    /// That table's key column, the table's rowid.
    pub of_column: String,
}

/// Makes what the pairs stand in.
fn make(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute_batch(&format!(
        "CREATE TABLE IF NOT EXISTS {KEYS} (migration TEXT NOT NULL, table_name TEXT NOT NULL, new_id TEXT NOT NULL, \
           old_id INTEGER NOT NULL, born INTEGER NOT NULL, PRIMARY KEY (migration, table_name, new_id)) WITHOUT ROWID; \
         CREATE UNIQUE INDEX IF NOT EXISTS {KEYS}_old ON {KEYS} (migration, table_name, old_id); \
         CREATE TABLE IF NOT EXISTS {MAPPING} (migration TEXT PRIMARY KEY) WITHOUT ROWID"
    ))
}

fn has_mapping(connection: &Connection, forward: &str) -> rusqlite::Result<bool> {
    if !exists(connection, "table", MAPPING)? {
        return Ok(false);
    }
    connection.prepare_cached(&format!("SELECT 1 FROM {MAPPING} WHERE migration = ?1"))?.exists([forward])
}

/// Until the mapping is in, nothing may be written.
pub(super) fn prepare(connection: &Connection, back: &Back) -> Result<(), Failure> {
    let doing = "preparing the way back";
    if back.keys.is_empty() || has_mapping(connection, &back.forward).map_err(|error| failure(doing, error))? {
        return Ok(());
    }
    Err(Failure::retry(doing, "the mapping has not been brought over yet"))
}

/// Our connection fires no triggers: neither the fence, nor what records changes for the migration that is taken back, nor those of
/// the application, whose work came over from the new side already.
pub(super) fn fires_no_triggers(connection: &Connection) -> Result<(), Failure> {
    let doing = "preparing the way back";
    match connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false) {
        Ok(false) => Ok(()),
        Ok(true) => {
            Err(Failure::halt(doing, "this SQLite fires triggers whatever it is told", "Use the bundled SQLite"))
        }
        Err(error) => Err(failure(doing, error)),
    }
}

/// One of the columns of a table: where it stands, and whose key it holds.
struct Place {
    cell: usize,
    domain: usize,
}

/// Whose keys are turned.
struct Domain<'b> {
    key: &'b OldKey,
    /// In the order in which they first came.
    wanted: Vec<String>,
    found: HashMap<String, Option<i64>>,
}

/// Gives every row of the delivery its old keys; draws those that nobody has yet, in the transaction that is open.
pub(super) fn turn(
    connection: &Connection,
    back: &Back,
    tables: &HashMap<TableId, Table>,
    delivery: &mut Delivery,
) -> Result<(), Failure> {
    refuse_whole_tables(&delivery.writes)?;
    if back.keys.is_empty() {
        return Ok(());
    }
    let (places, mut domains) = places(back, tables);
    for write in &delivery.writes {
        let Write::Change { change, .. } = write else { continue };
        for place in places.get(&change.table).into_iter().flatten() {
            let Some(domain) = domains.get_mut(place.domain) else { continue };
            for row in change.old.iter().chain(&change.new) {
                if let Some(Cell::Bytes(bytes)) = row.cell(place.cell) {
                    let new = text(bytes, domain.key)?;
                    if !domain.found.contains_key(new) {
                        domain.found.insert(new.to_owned(), None);
                        domain.wanted.push(new.to_owned());
                    }
                }
            }
        }
    }
    for domain in &mut domains {
        find_or_draw(connection, &back.forward, domain)?;
    }
    for write in &mut delivery.writes {
        let Write::Change { change, .. } = write else { continue };
        if let Some(places) = places.get(&change.table) {
            *change = turned(change, places, &domains)?;
        }
    }
    Ok(())
}

fn places<'b>(back: &'b Back, tables: &HashMap<TableId, Table>) -> (BTreeMap<TableId, Vec<Place>>, Vec<Domain<'b>>) {
    let mut places: BTreeMap<TableId, Vec<Place>> = BTreeMap::new();
    let mut domains: Vec<Domain<'b>> = Vec::new();
    for key in &back.keys {
        let Some(table) = tables.values().find(|table| table.schema.name == key.table) else { continue };
        let Some(cell) = table.schema.column_index(&key.column) else { continue };
        let domain = domains.iter().position(|domain| domain.key.of == key.of).unwrap_or_else(|| {
            domains.push(Domain { key, wanted: Vec::new(), found: HashMap::new() });
            domains.len() - 1
        });
        places.entry(table.id()).or_default().push(Place { cell, domain });
    }
    (places, domains)
}

/// Rows of a copy never come here, and no table of a file is emptied but row by row.
fn refuse_whole_tables(writes: &[Write]) -> Result<(), Failure> {
    match writes.iter().any(|write| matches!(write, Write::Rows { .. } | Write::Truncate { .. })) {
        false => Ok(()),
        true => {
            let told = "a table of the new side is being copied anew, or was emptied as a whole";
            let advice = "A way back takes changes of rows only: its old side would lose what was never moved. Begin the \
                          migration anew, in the other direction";
            Err(Failure::halt("writing to the old side", told, advice))
        }
    }
}

/// A new key in the form in which it stands on record.
fn text<'c>(bytes: &'c [u8], key: &OldKey) -> Result<&'c str, Failure> {
    let text = match tagged(bytes) {
        Some(ValueRef::Text(text)) => std::str::from_utf8(text).ok(),
        _ => None,
    };
    text.ok_or_else(|| {
        let told = format!("a key that was written on the new side, for {}.{}, is no text", key.table, key.column);
        let advice =
            "New keys are texts: give the row one on the new side, as the migration makes them, then start again";
        Failure::halt("reading new keys", told, advice)
    })
}

fn find_or_draw(connection: &Connection, forward: &str, domain: &mut Domain<'_>) -> Result<(), Failure> {
    let of = domain.key.of.to_string();
    let find = format!("SELECT old_id FROM {KEYS} WHERE migration = ?1 AND table_name = ?2 AND new_id = ?3");
    let put = format!("INSERT INTO {KEYS} (migration, table_name, new_id, old_id, born) VALUES (?1, ?2, ?3, ?4, 1)");
    let mut next = None;
    for new in std::mem::take(&mut domain.wanted) {
        let found: Option<i64> = connection
            .prepare_cached(&find)
            .and_then(|mut statement| statement.query_row((forward, &of, &new), |row| row.get(0)).optional())
            .map_err(|error| failure(format!("looking for old keys of {of}"), error))?;
        let old = match found {
            Some(old) => old,
            None => {
                let doing = || format!("drawing old keys for {of}");
                let last = match next {
                    Some(last) => last,
                    None => last_key(connection, forward, domain.key).map_err(|error| failure(doing(), error))?,
                };
                let drawn = last.checked_add(1).ok_or_else(|| {
                    let advice = format!("No larger key than that is possible: free the highest one of {of}");
                    Failure::halt(doing(), "the table has the highest key that there is", advice)
                })?;
                next = Some(drawn);
                let put = connection.prepare_cached(&put);
                put.and_then(|mut statement| statement.execute((forward, &of, &new, drawn)))
                    .map_err(|error| failure(doing(), error))?;
                drawn
            }
        };
        domain.found.insert(new, Some(old));
    }
    Ok(())
}

/// The highest key that the table has, had on record, or has counted up to.
fn last_key(connection: &Connection, forward: &str, key: &OldKey) -> rusqlite::Result<i64> {
    let (table, column) = (quoted(&key.of.name), quoted(&key.of_column));
    let there: Option<i64> =
        connection.query_row(&format!("SELECT max({column}) FROM {table}"), [], |row| row.get(0))?;
    let sql = format!("SELECT max(old_id) FROM {KEYS} WHERE migration = ?1 AND table_name = ?2");
    let known: Option<i64> = connection.query_row(&sql, (forward, key.of.to_string()), |row| row.get(0))?;
    let counted: Option<i64> = match exists(connection, "table", "sqlite_sequence")? {
        true => {
            let sql = "SELECT max(seq) FROM sqlite_sequence WHERE name = ?1 COLLATE NOCASE";
            connection.query_row(sql, [&*key.of.name], |row| row.get(0))?
        }
        false => None,
    };
    Ok(there.max(known).max(counted).unwrap_or(0).max(0))
}

fn turned(change: &Change, places: &[Place], domains: &[Domain<'_>]) -> Result<Change, Failure> {
    let row = |row: &Option<Row>| row.as_ref().map(|row| turned_row(row, places, domains)).transpose();
    Ok(Change { old: row(&change.old)?, new: row(&change.new)?, ..change.clone() })
}

fn turned_row(row: &Row, places: &[Place], domains: &[Domain<'_>]) -> Result<Row, Failure> {
    let mut out = RowBuilder::with_capacity(row.len(), row.as_bytes().len());
    for (index, cell) in row.cells().enumerate() {
        let place = places.iter().find(|place| place.cell == index);
        let (Some(place), Cell::Bytes(new)) = (place, cell) else {
            out.push(cell);
            continue;
        };
        let old = domains.get(place.domain).and_then(|domain| Some((domain, text(new, domain.key).ok()?)));
        let old = old.and_then(|(domain, new)| domain.found.get(new).copied().flatten());
        let old = old.ok_or_else(|| Failure::retry("turning keys back", "a pair is missing"))?;
        out.push(Cell::Bytes(&integer_cell(old)));
    }
    Ok(out.finish())
}

impl Writer {
    /// The file that is written back, for what is done before or after the stream.
    fn old_side(&mut self, doing: &'static str) -> Result<&Connection, Failure> {
        self.abandon();
        let path = crate::client::shown(&self.config.path);
        let found = self.look()?;
        found.ok_or_else(|| {
            Failure::misconfigured(doing, format!("there is no file {path}"), "check `path` in the spec")
        })
    }

    fn bring(&mut self, forward: &str, entries: &[MappingEntry]) -> Result<(), Failure> {
        let doing = "bringing the mapping over";
        let mut pairs = Vec::with_capacity(entries.len());
        for entry in entries {
            let old: i64 = entry.old_id.parse().map_err(|error: std::num::ParseIntError| {
                Failure::halt(doing, error, format!("An old key of {} is no integer: report this", entry.table_name))
            })?;
            pairs.push((&entry.table_name, &entry.new_id, old));
        }
        self.old_side(doing)?;
        let mut strangers = 0u32;
        self.in_transaction_of_own(doing, |connection| {
            let sql = format!("INSERT OR IGNORE INTO {KEYS} VALUES (?1, ?2, ?3, ?4, 0)");
            let mut statement = connection.prepare_cached(&sql)?;
            // One that is there with another partner fails here, and is not passed over.
            let sql = format!(
                "SELECT 1 FROM {KEYS} WHERE migration = ?1 AND table_name = ?2 AND new_id = ?3 AND old_id = ?4"
            );
            let mut same = connection.prepare_cached(&sql)?;
            for (table, new, old) in &pairs {
                if statement.execute((forward, table, new, old))? == 0 && !same.exists((forward, table, new, old))? {
                    strangers += 1;
                }
            }
            Ok(())
        })?;
        match strangers {
            0 => Ok(()),
            strangers => Err(Failure::lost(
                doing,
                format!("{strangers} old keys of {forward} stand with other new keys in {KEYS} already"),
                "They are of an earlier migration of that name, or somebody has changed them: keep both files as they are, and find out which pairs are right",
            )),
        }
    }

    /// A transaction over our own tables, on a file that nothing was prepared in.
    fn in_transaction_of_own(
        &mut self,
        doing: &'static str,
        work: impl FnOnce(&Connection) -> rusqlite::Result<()>,
    ) -> Result<(), Failure> {
        let connection = self.connection()?;
        let done = connection.execute_batch("BEGIN IMMEDIATE").and_then(|()| {
            let done = work(connection);
            let end = if done.is_ok() { "COMMIT" } else { "ROLLBACK" };
            let ended = connection.execute_batch(end);
            done.and(ended)
        });
        done.map_err(|error| {
            // A commit that failed leaves the transaction open; closing takes it back.
            self.connection = None;
            failure(doing, error)
        })
    }
}

impl SqliteSink {
    /// Whether the mapping of the migration that is taken back has been brought over whole.
    ///
    /// # Errors
    /// When the old side cannot be asked.
    pub async fn has_mapping(&mut self) -> Result<bool, Failure> {
        let Some(back) = self.back.clone().filter(|back| !back.keys.is_empty()) else { return Ok(true) };
        let doing = "looking for the mapping";
        self.call(doing, move |writer| {
            let connection = writer.old_side(doing)?;
            has_mapping(connection, &back.forward).map_err(|error| failure(doing, error))
        })
        .await
    }

    /// Brings some of the mapping over; what is there already stays. Pairs of tables that are not asked for are left out.
    ///
    /// # Errors
    /// When they cannot be written, or an old key is no integer.
    pub async fn bring_mapping(&mut self, entries: &[MappingEntry]) -> Result<(), Failure> {
        let Some(back) = self.back.clone() else { return Ok(()) };
        let wanted: HashSet<String> = back.keys.iter().map(|key| key.of.to_string()).collect();
        let entries: Vec<MappingEntry> =
            entries.iter().filter(|entry| wanted.contains(&entry.table_name)).cloned().collect();
        self.call("bringing the mapping over", move |writer| {
            let doing = "making the record of old keys";
            make(writer.old_side(doing)?).map_err(|error| failure(doing, error))?;
            writer.bring(&back.forward, &entries)
        })
        .await
    }

    /// All of the mapping is in.
    ///
    /// # Errors
    /// When it cannot be written down.
    pub async fn has_all_of_mapping(&mut self) -> Result<(), Failure> {
        let Some(back) = self.back.clone() else { return Ok(()) };
        let doing = "bringing the mapping over";
        self.call(doing, move |writer| {
            make(writer.old_side(doing)?).map_err(|error| failure(doing, error))?;
            writer.in_transaction_of_own(doing, |connection| {
                connection.execute(&format!("INSERT OR IGNORE INTO {MAPPING} VALUES (?1)"), [&back.forward]).map(drop)
            })
        })
        .await
    }

    /// The way back into this side has done its part: what it knows of its own place goes. The pairs of old and new keys of
    /// `forward` stay; but whatever is brought over next time comes on top. A repeat changes nothing.
    ///
    /// # Errors
    /// When the old side cannot be written.
    pub async fn retire_back(&mut self, forward: &str) -> Result<(), Failure> {
        self.leave_back(forward, false).await
    }

    /// Takes away everything of the way back of `forward`, the pairs of keys too. A repeat changes nothing.
    ///
    /// # Errors
    /// When the old side cannot be written.
    pub async fn forget_back(&mut self, forward: &str) -> Result<(), Failure> {
        self.leave_back(forward, true).await
    }

    async fn leave_back(&mut self, forward: &str, pairs_too: bool) -> Result<(), Failure> {
        let (forward, doing) = (forward.to_owned(), "taking away the place of the way back");
        self.call(doing, move |writer| {
            if writer.look()?.is_none() {
                return Ok(());
            }
            let migration = writer.migration.clone();
            writer.old_side(doing)?;
            writer.in_transaction_of_own(doing, |connection| leave(connection, &migration, &forward, pairs_too))
        })
        .await
    }

    /// Forgets everything of this migration in the target; what was written there stays.
    ///
    /// # Errors
    /// When the target cannot be written.
    pub async fn forget(&mut self) -> Result<(), Failure> {
        let doing = "forgetting the migration";
        self.call(doing, move |writer| {
            if writer.look()?.is_none() {
                return Ok(());
            }
            let migration = writer.migration.clone();
            writer.old_side(doing)?;
            writer.in_transaction_of_own(doing, |connection| forget_own(connection, &migration))
        })
        .await
    }
}

fn leave(connection: &Connection, migration: &str, forward: &str, pairs_too: bool) -> rusqlite::Result<()> {
    forget_own(connection, migration)?;
    if exists(connection, "table", MAPPING)? {
        connection.execute(&format!("DELETE FROM {MAPPING} WHERE migration = ?1"), [forward])?;
    }
    if !pairs_too || !exists(connection, "table", KEYS)? {
        return Ok(());
    }
    connection.execute(&format!("DELETE FROM {KEYS} WHERE migration = ?1"), [forward])?;
    let others =
        connection.query_row(&format!("SELECT EXISTS (SELECT 1 FROM {KEYS})"), [], |row| row.get::<_, bool>(0))?;
    if !others {
        connection.execute_batch(&format!("DROP TABLE {KEYS}; DROP TABLE IF EXISTS {MAPPING}"))?;
    }
    Ok(())
}

/// The rows of a migration in the sink's own tables, and those tables with the last row.
fn forget_own(connection: &Connection, migration: &str) -> rusqlite::Result<()> {
    if own::are_there(connection)? { rollback::drop_own(connection, migration) } else { Ok(()) }
}
