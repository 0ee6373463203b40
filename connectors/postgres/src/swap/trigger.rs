//! The trigger that keeps the old columns exact in rows that are written after the switch.
//!
//! It runs before each row is written, after every other trigger that does, whoever writes (`ENABLE ALWAYS`), and in the
//! writer's own transaction: there is no moment in which the old columns are behind, and nothing to catch up with before
//! going back. Only what has changed is written, so an old value that nobody touched stays as it is, to the last digit.
//! What the old column could not hold exactly is refused, for it would be lost on the way back.

use super::{Laid, LaidTable};
use crate::{quote_ident, quote_literal, quote_table};
use crossfade_connector::Failure;
use crossfade_event::swap::{Kept, SwapPair};

/// The trigger's name: the last one of a table by the order of bytes, in which triggers run.
pub(super) fn name_of(migration: &str) -> String {
    format!("~crossfade_keep_{}", migration.replace('-', "_"))
}

/// The function of the table of that number.
fn function_of(migration: &str, number: usize) -> String {
    format!("crossfade.keep_{}_{number}", migration.replace('-', "_"))
}

/// Puts function and trigger up.
pub(super) fn up(migration: &str, laid: &Laid, number: usize) -> Result<String, Failure> {
    let Some(table) = laid.tables.get(number) else { return Ok(String::new()) };
    let mut body = String::new();
    for pair in &table.swap.pairs {
        body.push_str(&kept(laid, table, pair)?);
    }
    if body.is_empty() {
        return Ok(String::new());
    }
    let (trigger, function) = (quote_ident(&name_of(migration))?, function_of(migration, number));
    let quoted = quote_table(table.name())?;
    Ok(format!(
        "CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER \
         SET search_path = pg_catalog, pg_temp AS $crossfade$
DECLARE written boolean;
BEGIN{body}
  RETURN NEW;
END $crossfade$;
CREATE TRIGGER {trigger} BEFORE INSERT OR UPDATE ON {quoted} FOR EACH ROW EXECUTE FUNCTION {function}();
ALTER TABLE {quoted} ENABLE ALWAYS TRIGGER {trigger};
"
    ))
}

/// Takes both away again.
pub(super) fn down(migration: &str, laid: &Laid, number: usize) -> Result<String, Failure> {
    let Some(table) = laid.tables.get(number) else { return Ok(String::new()) };
    Ok(format!(
        "DROP TRIGGER IF EXISTS {} ON {}; DROP FUNCTION IF EXISTS {}(); ",
        quote_ident(&name_of(migration))?,
        quote_table(table.name())?,
        function_of(migration, number)
    ))
}

fn kept(laid: &Laid, table: &LaidTable, pair: &SwapPair) -> Result<String, Failure> {
    let (new, old) = (quote_ident(&pair.name)?, quote_ident(&pair.legacy())?);
    let set = match &pair.kept {
        Kept::Drawn { .. } => return Ok(String::new()),
        Kept::Copied => copied(table, pair)?,
        Kept::Found { table: parent, key } => found(laid, table, pair, (parent, key))?,
    };
    Ok(format!(
        "
  written := TG_OP = 'INSERT';
  IF NOT written THEN written := NEW.{new}::text IS DISTINCT FROM OLD.{new}::text; END IF;
  IF written THEN
    IF NEW.{new} IS NULL THEN NEW.{old} := NULL;
    ELSE{set}
    END IF;
  END IF;"
    ))
}

fn copied(table: &LaidTable, pair: &SwapPair) -> Result<String, Failure> {
    let (new, old) = (quote_ident(&pair.name)?, quote_ident(&pair.legacy())?);
    let type_of = |column: &str| table.types.get(column).map_or("text", String::as_str);
    let (old_type, new_type) = (type_of(&pair.old), type_of(&pair.shadow));
    if old_type == new_type {
        return Ok(format!("\n      NEW.{old} := NEW.{new};"));
    }
    let told = quote_literal(&format!(
        "a value for {} of {} cannot be kept exactly in the old column, which has the type {old_type}",
        pair.name,
        table.name()
    ));
    Ok(format!(
        "
      NEW.{old} := NEW.{new}::{old_type};
      IF NEW.{old}::{new_type}::text IS DISTINCT FROM NEW.{new}::text THEN
        RAISE EXCEPTION USING ERRCODE = '22000', MESSAGE = {told},
          HINT = 'Until crossfade cleanup the way back is open, and this value would be lost on it.';
      END IF;"
    ))
}

fn found(
    laid: &Laid,
    table: &LaidTable,
    pair: &SwapPair,
    (parent, key): (&crossfade_event::TableName, &str),
) -> Result<String, Failure> {
    let missing = || Failure::halt("preparing the switch", format!("{parent} has no key that moves"), "Report this");
    let target = laid.tables.iter().find(|other| other.name() == parent).ok_or_else(missing)?;
    let theirs = target.swap.pairs.iter().find(|other| other.old == key).ok_or_else(missing)?;
    let (new, old) = (quote_ident(&pair.name)?, quote_ident(&pair.legacy())?);
    let (their_new, their_old) = (quote_ident(&theirs.name)?, quote_ident(&theirs.legacy())?);
    let told = quote_literal(&format!("{} of {} refers to no row of {parent}", pair.name, table.name()));
    let look = format!(
        "
      NEW.{old} := (SELECT p.{their_old} FROM {} p WHERE p.{their_new} = NEW.{new});
      IF NEW.{old} IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = '23503', MESSAGE = {told};
      END IF;",
        quote_table(parent)?
    );
    // A row that refers to itself is not there yet.
    Ok(match table.name() == parent {
        false => look,
        true => format!(
            "
      IF NEW.{new} = NEW.{their_new} THEN NEW.{old} := NEW.{their_old};
      ELSE{look}
      END IF;"
        ),
    })
}
