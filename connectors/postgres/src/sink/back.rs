//! The way back: writing into the side that a migration came from, with its old keys.
//!
//! A row comes with the new side's keys. Each of them has one old key, for ever: the one that the migration made it from,
//! brought over from the mapping once, or one that is drawn here from the old table's own sequence when the new key is
//! first seen, as a row's own key or in a reference to it, whichever comes first. Pairs stand in `crossfade.reverse_keys`
//! in the old side's database, written in the transaction of the rows that need them: so a replay finds what was drawn,
//! and what was not committed was never used.
//!
//! ```text
//!  change with new keys ─▶ pair on record? ──yes──▶ old key
//!                               └──no──▶ nextval ─▶ nobody has it? ─▶ pair and rows in one transaction
//! ```
//! The old side stands behind a fence by then: our session says whose it is (`crossfade.pass`) and by which switch it writes
//! (`crossfade.reverse`), and marks what it writes as the migration's own, so that it does not come over again.

use super::{PostgresSink, link::Link, sets::SET_ROWS, table::Table};
use crate::client::{failure, quote_ident, quote_literal, quote_table};
use crossfade_connector::{Delivery, Failure, MappingEntry, Write};
use crossfade_event::{Cell, Change, ColumnType, Row, RowBuilder, TableId, TableName, Value, codec};
use std::collections::{BTreeMap, HashMap, HashSet};

/// How often keys are drawn for one set before we say that the sequence stands behind the keys that there are.
const DRAWS_MAX: u32 = 64;

const TABLES: &str = "CREATE TABLE IF NOT EXISTS crossfade.reverse_keys ( \
     migration text NOT NULL, table_name text NOT NULL, new_id text NOT NULL, old_id bigint NOT NULL, \
     born boolean NOT NULL, at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(), \
     PRIMARY KEY (migration, table_name, new_id), UNIQUE (migration, table_name, old_id)); \
     CREATE TABLE IF NOT EXISTS crossfade.reverse_mapping ( \
     migration text PRIMARY KEY, at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp())";

/// What a sink knows that takes a migration back.
#[derive(Debug, Clone)]
pub struct Back {
    /// The migration that is taken back.
    pub forward: String,
    /// The epoch of the switch by which we write behind the fence: the session says it in `crossfade.reverse`.
    pub epoch: u64,
    /// The columns that come with new keys.
    pub keys: Vec<OldKey>,
    /// Tables that have rows which never came over: they are not emptied.
    pub partial: Vec<TableName>,
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
    /// That table's key column.
    pub of_column: String,
    /// What gives that column its values.
    pub sequence: TableName,
    /// Whether the new keys are UUIDs; texts otherwise.
    pub is_uuid: bool,
}

/// What the session says to the fence, and to everybody who looks at it.
pub(super) fn pass_sql(back: &Back) -> String {
    let (of, epoch) = (quote_literal(&back.forward), quote_literal(&back.epoch.to_string()));
    format!("SET crossfade.pass = {}; SET crossfade.reverse = {}", of.trim_start(), epoch.trim_start())
}

/// Makes what the pairs stand in. Until the mapping is in, nothing may be written.
pub(super) async fn prepare(link: &mut Link, back: &Back) -> Result<(), Failure> {
    if back.keys.is_empty() {
        return Ok(());
    }
    link.execute("making the record of old keys", TABLES).await?;
    let sql = "SELECT FROM crossfade.reverse_mapping WHERE migration = $1";
    match link.query("looking for the mapping", sql, &[&back.forward]).await?.is_empty() {
        false => Ok(()),
        true => Err(Failure::retry("preparing the way back", "the mapping has not been brought over yet")),
    }
}

/// One of the columns of a table: where it stands, whose key it holds, and how that is written.
struct Place {
    cell: usize,
    domain: usize,
    is_uuid: bool,
    type_: ColumnType,
}

/// Whose keys are turned.
struct Domain<'b> {
    key: &'b OldKey,
    /// In the order in which they first came.
    wanted: Vec<String>,
    seen: HashSet<String>,
    found: HashMap<String, i64>,
}

/// Gives every row of the delivery its old keys; draws those that nobody has yet, in the transaction that is open then.
pub(super) async fn turn(
    link: &mut Link,
    back: &Back,
    tables: &[Table],
    delivery: &mut Delivery,
) -> Result<(), Failure> {
    refuse_whole_tables(back, tables, &delivery.writes)?;
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
                    let text = text(bytes, place.is_uuid, domain.key)?;
                    if domain.seen.insert(text.clone()) {
                        domain.wanted.push(text);
                    }
                }
            }
        }
    }
    for domain in &mut domains {
        find(link, &back.forward, domain).await?;
        draw(link, &back.forward, domain).await?;
    }
    for write in &mut delivery.writes {
        let Write::Change { change, .. } = write else { continue };
        if let Some(places) = places.get(&change.table) {
            *change = turned(change, places, &domains)?;
        }
    }
    Ok(())
}

fn places<'b>(back: &'b Back, tables: &[Table]) -> (BTreeMap<TableId, Vec<Place>>, Vec<Domain<'b>>) {
    let mut places: BTreeMap<TableId, Vec<Place>> = BTreeMap::new();
    let mut domains: Vec<Domain<'b>> = Vec::new();
    for key in &back.keys {
        let Some(table) = tables.iter().find(|table| table.target.schema.name == key.table) else { continue };
        let schema = &table.target.schema;
        let Some(cell) = schema.column_index(&key.column) else { continue };
        let Some(type_) = schema.columns.get(cell).map(|column| column.type_.clone()) else { continue };
        let domain = domains.iter().position(|domain| domain.key.of == key.of).unwrap_or_else(|| {
            let (wanted, seen, found) = (Vec::new(), HashSet::new(), HashMap::new());
            domains.push(Domain { key, wanted, seen, found });
            domains.len() - 1
        });
        places.entry(schema.id).or_default().push(Place { cell, domain, is_uuid: key.is_uuid, type_ });
    }
    (places, domains)
}

/// Rows of a copy never come here, and a table with rows that did not come over is not emptied.
fn refuse_whole_tables(back: &Back, tables: &[Table], writes: &[Write]) -> Result<(), Failure> {
    let doing = "writing to the old side";
    for write in writes {
        match write {
            Write::Rows { .. } => {
                let told = "a table of the new side is being copied anew";
                let advice = "A way back takes changes only: its old side would lose what was never moved. Begin the \
                              migration anew, in the other direction";
                return Err(Failure::halt(doing, told, advice));
            }
            Write::Truncate { tables: emptied, .. } => {
                let name =
                    |id: &TableId| tables.iter().find(|table| table.id() == *id).map(|table| &table.target.schema.name);
                if let Some(name) = emptied.iter().filter_map(name).find(|name| back.partial.contains(name)) {
                    let told =
                        format!("{name} was emptied on the new side, and holds rows here that were never moved there");
                    let advice =
                        "Delete the rows that are meant by hand on the new side (DELETE, not TRUNCATE), or begin anew";
                    return Err(Failure::halt(doing, told, advice));
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// A new key in the form in which it stands on record.
fn text(bytes: &[u8], is_uuid: bool, key: &OldKey) -> Result<String, Failure> {
    if is_uuid && let Ok(uuid) = <[u8; 16]>::try_from(bytes) {
        return Ok(codec::to_text(&Value::Uuid(uuid)));
    }
    String::from_utf8(bytes.to_vec()).map_err(|_| {
        let told = format!("a new key in {}.{} is no text", key.table, key.column);
        Failure::halt("reading new keys", told, "Report this: the new side's column has another type than was planned")
    })
}

/// The pairs that are on record.
async fn find(link: &mut Link, forward: &str, domain: &mut Domain<'_>) -> Result<(), Failure> {
    let doing = format!("looking for old keys of {}", domain.key.of);
    let of = domain.key.of.to_string();
    let sql = "SELECT new_id, old_id FROM crossfade.reverse_keys \
               WHERE migration = $1 AND table_name = $2 AND new_id = ANY ($3::text[])";
    for part in domain.wanted.chunks(SET_ROWS) {
        for row in link.query(&doing, sql, &[&forward, &of, &part]).await? {
            domain.found.insert(row.get(0), row.get(1));
        }
    }
    Ok(())
}

/// Draws for all that are not on record, and puts them there.
async fn draw(link: &mut Link, forward: &str, domain: &mut Domain<'_>) -> Result<(), Failure> {
    let (key, of) = (domain.key, domain.key.of.to_string());
    let doing = format!("drawing old keys for {of}");
    let mut waiting: Vec<String> =
        domain.wanted.iter().filter(|new| !domain.found.contains_key(*new)).cloned().collect();
    if waiting.is_empty() {
        return Ok(());
    }
    if !link.open {
        link.execute("beginning a transaction", &link.begin).await?;
        link.open = true;
    }
    let sequence = quote_table(&key.sequence)?.as_str().to_owned();
    let next = "SELECT pg_catalog.nextval($1::text::regclass) FROM pg_catalog.generate_series(1, $2::int4)";
    let taken = format!(
        "SELECT k FROM unnest($1::int8[]) k WHERE EXISTS (SELECT FROM {} t WHERE t.{} = k) OR EXISTS (SELECT FROM \
         crossfade.reverse_keys r WHERE r.migration = $2 AND r.table_name = $3 AND r.old_id = k)",
        quote_table(&key.of)?,
        quote_ident(&key.of_column)?
    );
    let put = "INSERT INTO crossfade.reverse_keys (migration, table_name, new_id, old_id, born) \
               SELECT $1, $2, n, o, true FROM unnest($3::text[], $4::int8[]) u (n, o)";
    let mut draws = 0;
    while !waiting.is_empty() {
        draws += 1;
        if draws > DRAWS_MAX + waiting.len() as u32 {
            let told = format!("the sequence {} gives keys that are there already", key.sequence);
            let advice =
                format!("Set it behind the highest {}.{} of the old side: SELECT setval(…)", of, key.of_column);
            return Err(Failure::halt(doing, told, advice));
        }
        let count = waiting.len().min(SET_ROWS);
        let drawn = link.query(&doing, next, &[&sequence, &(count as i32)]).await?;
        let drawn: Vec<i64> = drawn.iter().map(|row| row.get(0)).collect();
        let taken = link.query(&doing, &taken, &[&drawn, &forward, &of]).await?;
        let taken: HashSet<i64> = taken.iter().map(|row| row.get(0)).collect();
        let free: Vec<i64> = drawn.into_iter().filter(|drawn| !taken.contains(drawn)).collect();
        let born: Vec<String> = waiting.drain(..free.len()).collect();
        link.query(&doing, put, &[&forward, &of, &born, &free]).await?;
        domain.found.extend(born.into_iter().zip(free));
    }
    Ok(())
}

fn turned(change: &Change, places: &[Place], domains: &[Domain<'_>]) -> Result<Change, Failure> {
    let row = |row: &Option<Row>| row.as_ref().map(|row| turned_row(row, places, domains)).transpose();
    Ok(Change { old: row(&change.old)?, new: row(&change.new)?, ..change.clone() })
}

fn turned_row(row: &Row, places: &[Place], domains: &[Domain<'_>]) -> Result<Row, Failure> {
    let mut out = RowBuilder::with_capacity(row.len(), row.as_bytes().len());
    let mut bytes = bytes::BytesMut::new();
    for (index, cell) in row.cells().enumerate() {
        let place = places.iter().find(|place| place.cell == index);
        let (Some(place), Cell::Bytes(new)) = (place, cell) else {
            out.push(cell);
            continue;
        };
        let Some(domain) = domains.get(place.domain) else { continue };
        let new = text(new, place.is_uuid, domain.key)?;
        let missing = || Failure::retry("turning keys back", "a pair is missing");
        let old = domain.found.get(&new).copied().ok_or_else(missing)?;
        bytes.clear();
        codec::encode(&place.type_, &Value::Int(old), &mut bytes).map_err(|error| {
            let told = format!("the old key that {} draws does not fit its column: {error}", domain.key.sequence);
            Failure::halt("turning keys back", told, "Give the column a wider type")
        })?;
        out.push(Cell::Bytes(&bytes));
    }
    Ok(out.finish())
}

impl PostgresSink {
    /// Whether the mapping of the migration that is taken back has been brought over whole.
    ///
    /// # Errors
    /// When the old side cannot be asked.
    pub async fn has_mapping(&mut self) -> Result<bool, Failure> {
        let Some(back) = self.config.back.clone().filter(|back| !back.keys.is_empty()) else { return Ok(true) };
        let link = self.link().await?;
        super::store::install(link).await?;
        link.execute("making the record of old keys", TABLES).await?;
        let sql = "SELECT FROM crossfade.reverse_mapping WHERE migration = $1";
        Ok(!link.query("looking for the mapping", sql, &[&back.forward]).await?.is_empty())
    }

    /// Brings some of the mapping over; what is there already stays. Pairs of tables that are not asked for are left out.
    ///
    /// # Errors
    /// When they cannot be written, or an old key is no integer.
    pub async fn bring_mapping(&mut self, entries: &[MappingEntry]) -> Result<(), Failure> {
        let doing = "bringing the mapping over";
        let Some(back) = self.config.back.clone() else { return Ok(()) };
        let wanted: HashSet<String> = back.keys.iter().map(|key| key.of.to_string()).collect();
        let entries: Vec<&MappingEntry> = entries.iter().filter(|entry| wanted.contains(&entry.table_name)).collect();
        let tables: Vec<&str> = entries.iter().map(|entry| entry.table_name.as_str()).collect();
        let new: Vec<&str> = entries.iter().map(|entry| entry.new_id.as_str()).collect();
        let old: Result<Vec<i64>, Failure> = entries
            .iter()
            .map(|entry| {
                entry.old_id.parse().map_err(|error: std::num::ParseIntError| {
                    Failure::halt(
                        doing,
                        error,
                        format!("An old key of {} is no integer: report this", entry.table_name),
                    )
                })
            })
            .collect();
        let sql = "INSERT INTO crossfade.reverse_keys (migration, table_name, new_id, old_id, born) \
                   SELECT $1, t, n, o, false FROM unnest($2::text[], $3::text[], $4::int8[]) u (t, n, o) \
                   ON CONFLICT (migration, table_name, new_id) DO NOTHING";
        let old = old?;
        let link = self.link().await?;
        let statement = link.statement(sql).await.map_err(|error| failure(doing, error))?;
        let sent = link.session.execute(&statement, &[&back.forward, &tables, &new, &old]).await;
        sent.map(drop).map_err(|error| failure(doing, error))
    }

    /// All of the mapping is in.
    ///
    /// # Errors
    /// When it cannot be written down.
    pub async fn has_all_of_mapping(&mut self) -> Result<(), Failure> {
        let Some(back) = self.config.back.clone() else { return Ok(()) };
        let link = self.link().await?;
        let sql = "INSERT INTO crossfade.reverse_mapping (migration) VALUES ($1) ON CONFLICT DO NOTHING";
        // It is never to be lost without what it speaks of.
        link.execute("bringing the mapping over", "SET synchronous_commit = on").await?;
        link.query("bringing the mapping over", sql, &[&back.forward]).await?;
        let usual = if self.config.synchronous_commit { "on" } else { "off" };
        self.link().await?.execute("bringing the mapping over", &format!("SET synchronous_commit = {usual}")).await
    }
}
