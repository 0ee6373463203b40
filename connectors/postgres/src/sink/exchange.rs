//! Unique values that are taken for now: two rows that exchange them, or one that waits until another gives its value up.
//!
//! The server checks most unique constraints row by row, so that one set that exchanges two values breaks them, and so
//! does each of its changes alone. Rows of a table of ours are then taken away and come again in one statement. Where
//! something hangs on them that would go with them (columns of others, children in force), they stay, and only give up
//! the values for now: NULL is in nobody's way. A change that is refused alone waits for the rest of its run, and what is
//! behind it waits with it; only what is still refused then goes to quarantine.

use super::{
    apply::Writer,
    fold::{Final, Folded, Unit, merged},
    held::Held,
    link::{Link, Raw, Trouble},
    sets::{SET_BYTES, SET_ROWS, Set},
    table::Table,
    write,
};
use crossfade_connector::{Failure, WriteMode};
use crossfade_event::{Cell, Identity, Key, Row};
use std::{
    borrow::Cow,
    collections::{BTreeSet, HashMap},
};

/// Among so many that cannot go in together, the one is looked for without which the others can.
const SOUGHT: usize = 16;

/// So many partial images are completed at once: what they leave alone may be large.
const PARTIAL: usize = 64;

/// Changes of a run that wait for its end.
#[derive(Default)]
pub(super) struct Later {
    places: BTreeSet<usize>,
    keys: Held,
}

impl Later {
    /// The units of a range, which begins at `from`, that need not wait.
    pub(super) fn without<'u>(&mut self, range: &'u [Unit], from: usize, tables: &[Table]) -> Cow<'u, [Unit]> {
        if self.keys.is_empty() {
            return Cow::Borrowed(range);
        }
        let mut now = Vec::with_capacity(range.len());
        for (place, unit) in range.iter().enumerate() {
            let waits = tables.get(unit.table).is_some_and(|table| self.keys.check(table, &unit.change).is_some());
            if waits {
                self.places.insert(from + place);
            } else {
                now.push(unit.clone());
            }
        }
        Cow::Owned(now)
    }

    /// Takes a refused change in, if what it wants may be free later.
    pub(super) fn takes(&mut self, unit: &Unit, place: usize, trouble: &Trouble, tables: &[Table]) -> bool {
        let Some(table) = tables.get(unit.table) else { return false };
        // The row that belongs to an entry of the mapping comes right behind it, and must know whether it is in.
        let takes = trouble.is_unique_violation() && table.target.mode != WriteMode::InsertOnce;
        if takes {
            self.places.insert(place);
            self.keys.hold(table, &unit.change);
        }
        takes
    }

    /// What waits, in source order.
    pub(super) fn of(&self, units: &[Unit]) -> Vec<Unit> {
        self.places.iter().filter_map(|place| units.get(*place)).cloned().collect()
    }
}

/// Whether rows of this table may be taken away for a moment, as far as we know it.
fn is_ours(table: &Table) -> bool {
    table.target.mode == WriteMode::Table
        && table.made
        && !table.tracked
        && table.target.schema.identity == Identity::Key
}

/// Whether some of these changes could exchange values.
pub(super) fn may_exchange(units: &[Unit], tables: &[Table]) -> bool {
    let bytes: usize = units.iter().filter_map(|unit| unit.change.new.as_ref()).map(|row| row.as_bytes().len()).sum();
    let ours = |unit: &&Unit| tables.get(unit.table).is_some_and(is_ours);
    units.len() <= SET_ROWS && bytes <= SET_BYTES && units.iter().filter(ours).nth(1).is_some()
}

/// Nothing but what we write may hang on the rows: columns of others would be lost with them, foreign keys and triggers
/// in force would act on their going. The watch over the target does not: it lets our statements pass.
const UNTOUCHED: &str = "
    SELECT NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = ($1::text)::regclass AND a.attnum > 0
            AND NOT a.attisdropped AND a.attgenerated = '' AND a.attname::text <> ALL ($2::text[]))
        AND NOT EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = ($1::text)::regclass AND NOT t.tgisinternal
            AND t.tgenabled IN ('A', CASE WHEN $3 THEN 'R' ELSE 'O' END)
            AND pg_catalog.left(t.tgname::text, 16) <> 'crossfade_watch_')
        AND ($3 OR NOT EXISTS (SELECT FROM pg_constraint c WHERE c.contype = 'f'
            AND c.confrelid = ($1::text)::regclass AND c.confdeltype <> 'a'))";

/// The columns of unique constraints that may be NULL for a moment: nothing refers to them, and no trigger of somebody
/// else's sees it.
const FREED: &str = "
    SELECT a.attname::text FROM pg_attribute a WHERE a.attrelid = ($1::text)::regclass AND a.attnum > 0
        AND NOT a.attisdropped AND NOT a.attnotnull AND a.attname::text = ANY ($2::text[])
        AND EXISTS (SELECT FROM pg_index i WHERE i.indrelid = a.attrelid AND i.indisunique AND NOT i.indisprimary
            AND a.attnum = ANY (i.indkey::int2[]))
        AND NOT EXISTS (SELECT FROM pg_constraint c WHERE c.contype = 'f' AND c.confrelid = a.attrelid
            AND a.attnum = ANY (c.confkey))
        AND NOT EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = a.attrelid AND NOT t.tgisinternal
            AND t.tgenabled IN ('A', CASE WHEN $3 THEN 'R' ELSE 'O' END)
            AND pg_catalog.left(t.tgname::text, 16) <> 'crossfade_watch_')
    ORDER BY a.attnum";

async fn freed(link: &mut Link, table: &Table) -> Result<Vec<String>, Failure> {
    let names: Vec<&str> =
        table.settable().into_iter().filter_map(|at| Some(&*table.target.schema.columns.get(at)?.name)).collect();
    let doing = "looking for values that rows may give up for now";
    let replica = link.replica;
    let rows = link.query(doing, FREED, &[&table.quoted, &names, &replica]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

async fn is_untouched(link: &mut Link, table: &Table) -> Result<bool, Failure> {
    let names: Vec<&str> = table.target.schema.columns.iter().map(|column| &*column.name).collect();
    let doing = "looking for what hangs on a table's rows";
    let replica = link.replica;
    let rows = link.query(doing, UNTOUCHED, &[&table.quoted, &names, &replica]).await?;
    Ok(rows.first().is_some_and(|row| row.get(0)))
}

/// Completes partial images from the rows that are there: a row that comes again must be whole.
async fn complete(link: &mut Link, table: &Table, folded: &mut Folded) -> Result<(), Failure> {
    let partial: Vec<Key> =
        folded.slots.iter().filter(|slot| matches!(slot.to, Final::Patch(_))).map(|slot| slot.key.clone()).collect();
    if partial.is_empty() {
        return Ok(());
    }
    let mut set = Set::new(&table.key_type, partial.iter().map(|key| key.as_bytes().len() + 32).sum());
    for key in &partial {
        set.push(key.cells());
    }
    let bind = link.bind(&table.select_sql(), vec![set.finish()]).await?;
    let found = link.rows(&format!("reading rows of {}", table.target.schema.name), bind).await?;
    let mut there: HashMap<Key, Row> = HashMap::with_capacity(found.len());
    for row in found {
        let cells: Vec<Raw> = (0..row.len()).map(|index| row.get(index)).collect();
        let row: Row = cells.iter().map(|raw| raw.0.as_deref().map_or(Cell::Null, Cell::Bytes)).collect();
        if let Some(key) = table.target.schema.key_of(&row) {
            there.insert(key, row);
        }
    }
    for slot in &mut folded.slots {
        if let (Final::Patch(row), Some(stands)) = (&slot.to, there.get(&slot.key)) {
            slot.to = Final::Put(merged(row, stands));
        }
    }
    Ok(())
}

impl Writer<'_> {
    /// Marks the tables whose rows go and come again, or give up their unique values first.
    pub(super) async fn make_anew(&mut self, folded: &mut [Option<Folded>]) -> Result<(), Failure> {
        for (table, folded) in self.tables.iter().zip(folded) {
            let Some(folded) = folded else { continue };
            let partial = folded.slots.iter().filter(|slot| matches!(slot.to, Final::Patch(_))).count();
            if partial > PARTIAL {
                continue;
            }
            if folded.slots.len() < 2 || !is_ours(table) {
                continue;
            }
            if is_untouched(self.link, table).await? {
                folded.anew = true;
            } else {
                folded.freed = freed(self.link, table).await?;
            }
            if folded.anew || !folded.freed.is_empty() {
                complete(self.link, table, folded).await?;
            }
        }
        Ok(())
    }

    /// What waited: together, one by one as long as one goes in, or all but one. What is left goes to quarantine.
    pub(super) async fn settle_later(&mut self, mut left: Vec<Unit>) -> Result<(), Failure> {
        while !left.is_empty() {
            if left.len() > 1 && self.together(&left).await? {
                return Ok(());
            }
            let (still, refused) = self.one_by_one(&left).await?;
            if still.len() < left.len() {
                left = still;
                continue;
            }
            let alone = match refused.len() {
                2..=SOUGHT => self.all_but_one(&left, &refused).await?,
                _ => None,
            };
            for (place, trouble) in refused {
                if alone.is_none_or(|alone| alone == place)
                    && let Some(unit) = left.get(place)
                {
                    self.reject(unit, trouble)?;
                }
            }
            // What is behind the rejected ones: the attempt puts it on record as held.
            let behind: Vec<Unit> = match alone {
                Some(place) => self.with(&left, place, true),
                None => left,
            };
            for unit in behind {
                if self.is_on_record(&unit) {
                    continue;
                }
                match self.attempt(std::slice::from_ref(&unit), None).await {
                    Ok(_) => {}
                    Err(Trouble::Failure(failure)) => return Err(failure),
                    Err(trouble) => self.reject(&unit, trouble)?,
                }
            }
            return Ok(());
        }
        Ok(())
    }

    fn is_on_record(&self, unit: &Unit) -> bool {
        self.records.iter().any(|record| record.at == unit.at && record.table == unit.table)
    }

    async fn together(&mut self, units: &[Unit]) -> Result<bool, Failure> {
        if units.iter().any(|unit| write::needs_move(self.tables, unit, self.link.replica)) {
            return Ok(false);
        }
        match self.attempt(units, None).await {
            Ok(_) => Ok(true),
            Err(Trouble::Failure(failure)) => Err(failure),
            Err(_) => Ok(false),
        }
    }

    /// What still waits, and of that by its place what was refused itself.
    async fn one_by_one(&mut self, units: &[Unit]) -> Result<(Vec<Unit>, Vec<(usize, Trouble)>), Failure> {
        let (mut still, mut refused) = (Later::default(), Vec::new());
        for (place, unit) in units.iter().enumerate() {
            let now = still.without(std::slice::from_ref(unit), place, self.tables);
            if now.is_empty() {
                continue;
            }
            match self.attempt(&now, None).await {
                Ok(_) => {}
                Err(Trouble::Failure(failure)) => return Err(failure),
                Err(trouble) if still.takes(unit, place, &trouble, self.tables) => refused.push((place, trouble)),
                Err(trouble) => self.reject(unit, trouble)?,
            }
        }
        Ok((still.of(units), refused))
    }

    /// The one of the refused without which, and what is behind it, all others go in; they are in then.
    async fn all_but_one(&mut self, units: &[Unit], refused: &[(usize, Trouble)]) -> Result<Option<usize>, Failure> {
        // The last one first: what came later found the value taken.
        for (place, _) in refused.iter().rev() {
            let others = self.with(units, *place, false);
            if self.together(&others).await? {
                return Ok(Some(*place));
            }
        }
        Ok(None)
    }

    /// The change at `place` and what is behind it, or all the others.
    fn with(&self, units: &[Unit], place: usize, behind: bool) -> Vec<Unit> {
        let mut keys = Held::default();
        let one = units.get(place);
        if let Some((unit, table)) = one.and_then(|unit| Some((unit, self.tables.get(unit.table)?))) {
            keys.hold(table, &unit.change);
        }
        let mut is_behind = |unit: &&Unit| {
            self.tables.get(unit.table).is_some_and(|table| keys.check(table, &unit.change).is_some()) == behind
        };
        units.iter().filter(|unit| is_behind(unit)).cloned().collect()
    }
}
