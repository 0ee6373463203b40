//! The keys of rows that come into being while the new columns have the names: on record in the writer's own transaction, so
//! that a migration which goes forward again after a failback gives such a row, and every reference to it, the key that it has.
//!
//! ```text
//!  INSERT ─▶ before: had this new key an old one? then that again ─▶ row ─▶ after: (old, new) into crossfade.born_keys
//!  UPDATE of a key ────────────────────────────────────────────────▶ row ─▶ after: the pair as it is now
//! ```
//! What was not committed was never used, and a row that `ON CONFLICT` turned away leaves no pair.

use super::{Laid, LaidTable, SwapEnd};
use crate::{client::failure, quote_ident, quote_literal, quote_table};
use crossfade_connector::{Failure, MappingEntry};
use crossfade_event::swap::Kept;

/// What the pairs stand in. Old keys are written as the mapping has them: those of several columns as a row.
pub(super) const TABLE: &str = "CREATE TABLE IF NOT EXISTS crossfade.born_keys (
  migration text NOT NULL, table_name text NOT NULL, old_id text NOT NULL, new_id text NOT NULL,
  at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
  PRIMARY KEY (migration, table_name, old_id), UNIQUE (migration, table_name, new_id))";

/// Old keys that are written alike by the server and by us.
const PLAIN: [&str; 6] = ["smallint", "integer", "bigint", "uuid", "text", "character varying"];
const NUMBERS: [&str; 3] = ["smallint", "integer", "bigint"];

/// A key that rows are born with.
struct Pair {
    /// The old key's columns, by their names after the switch.
    old: Vec<String>,
    /// The new one.
    new: String,
}

fn pair_of(table: &LaidTable) -> Option<Pair> {
    let swap = &table.swap;
    if let (Some(surrogate), Some(key)) = (swap.surrogate(), &table.primary) {
        return Some(Pair {
            old: key.columns.iter().map(|old| swap.now_called(old)).collect(),
            new: surrogate.name.clone(),
        });
    }
    let drawn = swap.pairs.iter().find(|pair| matches!(pair.kept, Kept::Drawn { .. }))?;
    Some(Pair { old: vec![drawn.legacy()], new: drawn.name.clone() })
}

/// The table whose rows are born with keys that cannot be put on record, if there is one.
pub(super) fn unrecorded(laid: &Laid) -> Option<String> {
    let Some(_) = &laid.mapping else {
        return Some("it was switched by a version that kept no record of them".to_owned());
    };
    let is_plain = |table: &LaidTable| {
        let Some(pair) = pair_of(table) else { return true };
        let type_of = |old: &String| {
            let before = old.strip_prefix(crossfade_event::swap::LEGACY).unwrap_or(old);
            table.types.get(before).map_or("", String::as_str)
        };
        let known: &[&str] = if pair.old.len() == 1 { &NUMBERS } else { &PLAIN };
        pair.old.iter().all(|old| known.contains(&type_of(old)))
    };
    let table = laid.tables.iter().find(|table| !is_plain(table))?;
    Some(format!("the old keys of {} are of a type that is not kept on record", table.name()))
}

/// The old key of a row as text.
fn shown(pair: &Pair, row: &str) -> Result<String, Failure> {
    let parts: Vec<String> =
        pair.old.iter().map(|old| Ok(format!("{row}.{}", quote_ident(old)?))).collect::<Result<_, Failure>>()?;
    Ok(match parts.as_slice() {
        [only] => format!("{only}::text"),
        several => format!("ROW({})::text", several.join(", ")),
    })
}

/// Before an insert: a new key that had an old one gets that again, where nobody has it now.
pub(super) fn again(migration: &str, laid: &Laid, table: &LaidTable) -> Result<String, Failure> {
    let Some(mapping) = laid.mapping.as_ref().filter(|_| unrecorded(laid).is_none()) else { return Ok(String::new()) };
    let drawn = table.swap.pairs.iter().find(|pair| matches!(pair.kept, Kept::Drawn { .. }));
    let Some(drawn) = drawn.filter(|_| table.swap.surrogate().is_none()) else { return Ok(String::new()) };
    let (new, old) = (quote_ident(&drawn.name)?, quote_ident(&drawn.legacy())?);
    let (of, name) = (quote_literal(&table.name().to_string()), quote_literal(migration));
    Ok(format!(
        "
  IF TG_OP = 'INSERT' AND NEW.{new} IS NOT NULL THEN
    had := (SELECT k.old_id FROM crossfade.born_keys k WHERE k.migration = {name} AND k.table_name = {of} AND k.new_id = NEW.{new}::text);
    IF had IS NULL THEN
      had := (SELECT m.old_id FROM {mapping} m WHERE m.table_name = {of} AND m.new_id = NEW.{new}::{type_});
    END IF;
    IF had IS NOT NULL AND NOT EXISTS (SELECT FROM {quoted} t WHERE t.{old} = had::pg_catalog.int8) THEN
      NEW.{old} := had::pg_catalog.int8;
    END IF;
  END IF;",
        mapping = quote_table(&mapping.table)?,
        type_ = mapping.type_,
        quoted = quote_table(table.name())?,
    ))
}

fn names_of(migration: &str, number: usize) -> (String, [String; 2]) {
    let name = migration.replace('-', "_");
    (format!("crossfade.born_{name}_{number}"), [format!("~crossfade_born_{name}"), format!("~crossfade_moved_{name}")])
}

/// Puts up what writes the pairs.
pub(super) fn up(migration: &str, laid: &Laid, number: usize) -> Result<String, Failure> {
    let Some(table) = laid.tables.get(number).filter(|_| unrecorded(laid).is_none()) else { return Ok(String::new()) };
    let Some(pair) = pair_of(table) else { return Ok(String::new()) };
    let (function, [born, moved]) = names_of(migration, number);
    let (born, moved) = (quote_ident(&born)?, quote_ident(&moved)?);
    let (new, quoted) = (quote_ident(&pair.new)?, quote_table(table.name())?);
    let (of, name) = (quote_literal(&table.name().to_string()), quote_literal(migration));
    let (now, before) = (shown(&pair, "NEW")?, shown(&pair, "OLD")?);
    Ok(format!(
        "CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER \
         SET search_path = pg_catalog, pg_temp AS $crossfade$
BEGIN
  DELETE FROM crossfade.born_keys k WHERE k.migration = {name} AND k.table_name = {of} AND k.new_id = NEW.{new}::text AND k.old_id <> {now};
  INSERT INTO crossfade.born_keys (migration, table_name, old_id, new_id) VALUES ({name}, {of}, {now}, NEW.{new}::text)
    ON CONFLICT (migration, table_name, old_id) DO UPDATE SET new_id = excluded.new_id;
  RETURN NULL;
END $crossfade$;
CREATE TRIGGER {born} AFTER INSERT ON {quoted} FOR EACH ROW EXECUTE FUNCTION {function}();
CREATE TRIGGER {moved} AFTER UPDATE ON {quoted} FOR EACH ROW WHEN (OLD.{new} IS DISTINCT FROM NEW.{new} OR {before} IS DISTINCT FROM {now}) EXECUTE FUNCTION {function}();
ALTER TABLE {quoted} ENABLE ALWAYS TRIGGER {born};
ALTER TABLE {quoted} ENABLE ALWAYS TRIGGER {moved};
"
    ))
}

/// Takes it away again; the pairs stay.
pub(super) fn down(migration: &str, laid: &Laid, number: usize) -> Result<String, Failure> {
    let Some(table) = laid.tables.get(number) else { return Ok(String::new()) };
    let (function, [born, moved]) = names_of(migration, number);
    let (born, moved, quoted) = (quote_ident(&born)?, quote_ident(&moved)?, quote_table(table.name())?);
    Ok(format!(
        "DROP TRIGGER IF EXISTS {born} ON {quoted}; DROP TRIGGER IF EXISTS {moved} ON {quoted}; DROP FUNCTION IF EXISTS {function}(); "
    ))
}

impl SwapEnd {
    /// Some of the pairs, in the order of table and old key. None where nothing was born.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub async fn born(&mut self, after: Option<&MappingEntry>, limit: u32) -> Result<Vec<MappingEntry>, Failure> {
        let doing = "reading the keys of rows that were born under new columns";
        let migration = self.migration.clone();
        let session = self.session().await?;
        let there = "SELECT pg_catalog.to_regclass('crossfade.born_keys') IS NOT NULL";
        let there = session.query_one(there, &[]).await.map_err(|error| failure(doing, error))?;
        if !there.get::<_, bool>(0) {
            return Ok(Vec::new());
        }
        let (table, old) = after.map(|pair| (pair.table_name.as_str(), pair.old_id.as_str())).unzip();
        let sql = "SELECT table_name, old_id, new_id FROM crossfade.born_keys WHERE migration = $1 \
             AND ($2::text IS NULL OR ROW(table_name COLLATE \"C\", old_id COLLATE \"C\") > ROW($2 COLLATE \"C\", $3 COLLATE \"C\")) \
             ORDER BY table_name COLLATE \"C\", old_id COLLATE \"C\" LIMIT $4";
        let rows = session.query(sql, &[&migration, &table, &old, &i64::from(limit)]).await;
        let rows = rows.map_err(|error| failure(doing, error))?;
        let entry = |row: &tokio_postgres::Row| MappingEntry {
            table_name: row.get(0),
            old_id: row.get(1),
            new_id: row.get(2),
            migrated_at: String::new(),
        };
        Ok(rows.iter().map(entry).collect())
    }
}
