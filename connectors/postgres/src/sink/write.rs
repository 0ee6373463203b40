//! One attempt to write a range of changes as sets: deletes first, then table by table updates and inserts, parents
//! before children. Statements go out as they are made and are answered together; only a `COPY` stands by itself, and may
//! take the commit along.
//!
//! ```text
//!  BEGIN or SAVEPOINT ─┬─ delete sets (children first)
//!                      ├─ per table: update sets, inserts                one round trip
//!                      └─ the position
//!  counts as expected? ─── COPY when there are many inserts ── COMMIT    two more
//! ```

use super::{
    fold::{Final, Folded, Slot, Unit, is_move, merged},
    link::{Bind, Flight, Link, Param, Trouble},
    sets::{self, SET_BYTES, SET_ROWS, Set},
    table::Table,
    undo,
};
use bytes::Bytes;
use crossfade_connector::{Failure, Guard, WriteMode};
use crossfade_event::{Identity, Row};
use std::{
    collections::HashMap,
    future::{Future, poll_fn},
    pin::pin,
};

/// From so many inserts on, `COPY` is cheaper than a statement, its extra round trip included.
const COPY_ROWS: usize = 64;

/// What to do when fewer rows were touched than keys were given.
enum Short {
    /// Nothing: rows may be missing.
    Accept,
    /// Insert the missing ones.
    Insert(Bind),
    /// A partial image cannot be inserted.
    Missing,
}

/// What an attempt knows of its surroundings.
#[derive(Debug, Clone, Copy)]
pub(super) struct Context<'a> {
    pub(super) migration: &'a str,
    pub(super) guard: Guard,
    /// Inserts are upserts, whatever the tables say.
    pub(super) cautious: bool,
    /// Rows go after others came: what referred to them refers to others by then.
    pub(super) deletes_last: bool,
}

/// What ends a delivery.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tail<'a> {
    pub(super) position: &'a Bind,
    /// The transaction may be committed with it.
    pub(super) commits: bool,
}

/// What an attempt did beside its rows.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Done {
    /// Something was sent, and with it the prelude.
    pub(super) began: bool,
    /// The tail went with it.
    pub(super) with_tail: bool,
}

/// Writes folded changes, with `tail` in the same round trips if it can be.
pub(super) async fn write(
    link: &mut Link,
    tables: &[Table],
    folded: &[Option<Folded>],
    context: Context<'_>,
    prelude: Option<&str>,
    tail: Option<Tail<'_>>,
) -> Result<Done, Trouble> {
    let mut out = Outgoing::new(link, tables, prelude);
    let sent = all(&mut out, tables, folded, context).await;
    out.end(sent, tail).await
}

async fn all(
    out: &mut Outgoing<'_>,
    tables: &[Table],
    folded: &[Option<Folded>],
    context: Context<'_>,
) -> Result<(), Trouble> {
    if !context.deletes_last {
        removals(out, tables, folded, context).await?;
    }
    for (index, table) in tables.iter().enumerate() {
        if let Some(Some(folded)) = folded.get(index) {
            Planner { out, table, index, context }.writes(folded).await?;
        }
    }
    if context.deletes_last {
        removals(out, tables, folded, context).await?;
    }
    Ok(())
}

async fn removals(
    out: &mut Outgoing<'_>,
    tables: &[Table],
    folded: &[Option<Folded>],
    context: Context<'_>,
) -> Result<(), Trouble> {
    for (index, table) in tables.iter().enumerate().rev() {
        if let Some(Some(folded)) = folded.get(index) {
            Planner { out: &mut *out, table, index, context }.removals(folded).await?;
        }
    }
    Ok(())
}

/// An update that changes the key, alone.
pub(super) async fn write_move(
    link: &mut Link,
    tables: &[Table],
    unit: &Unit,
    context: Context<'_>,
    prelude: Option<&str>,
) -> Result<Done, Trouble> {
    let nothing = Ok(Done::default());
    let Some(table) = tables.get(unit.table) else { return nothing };
    let (Some(old), Some(new)) = (&unit.change.old, &unit.change.new) else { return nothing };
    let new = merged(new, old);
    let changed = changed_columns(table, &new);
    let Some(before) = table.target.schema.key_of(old) else { return nothing };
    let mut set = Set::new(&table.row_type, new.as_bytes().len() + before.as_bytes().len() + 64);
    set.push(new.cells().chain(before.cells()));
    let sql = table.move_sql(&changed);
    let mut out = Outgoing::new(link, tables, prelude);
    let keys: Vec<_> = table.target.schema.key_of(&new).into_iter().chain([before]).collect();
    let sending = async {
        let mut planner = Planner { out: &mut out, table, index: unit.table, context };
        if table.tracked {
            planner.before(keys.iter()).await?;
        }
        let bind = planner.out.bind(&sql, vec![set.finish()]).await?;
        planner.push(bind, 1, Short::Missing).await?;
        if table.tracked {
            planner.after(keys.iter()).await?;
        }
        Ok(())
    };
    let sent = sending.await;
    out.end(sent, None).await
}

/// True for what [`write_move`] is for: partial images, and where foreign keys are in force every change of a key, for
/// a delete would take the row's children along.
pub(super) fn needs_move(tables: &[Table], unit: &Unit, replica: bool) -> bool {
    tables.get(unit.table).is_some_and(|table| {
        table.target.mode == WriteMode::Table
            && (is_move(table, &unit.change)
                || (!replica
                    && table.target.schema.identity == Identity::Key
                    && unit.change.replaced_key(&table.target.schema).is_some()))
    })
}

/// Statements on their way to the server. Each goes out as soon as it is made, so that the server works on one while the next
/// is made; answers are waited for only where something depends on them, a `COPY` above all.
struct Outgoing<'a> {
    link: &'a mut Link,
    tables: &'a [Table],
    /// What begins the attempt, until it is sent.
    prelude: Option<&'a str>,
    flight: Option<Flight>,
    /// Of each statement in flight: its table, how many rows it should touch, and what to do if it does not.
    group: Vec<(usize, u64, Short)>,
    /// Goes after what is in flight is in.
    copy: Option<(usize, String, Bytes)>,
}

impl<'a> Outgoing<'a> {
    fn new(link: &'a mut Link, tables: &'a [Table], prelude: Option<&'a str>) -> Self {
        Self { link, tables, prelude, flight: None, group: Vec::new(), copy: None }
    }

    fn name(&self, table: usize) -> String {
        self.tables.get(table).map_or_else(String::new, |table| table.target.schema.name.to_string())
    }

    /// What is in flight; begun by what begins the attempt, if that was not sent.
    fn flight(&mut self) -> &mut Flight {
        self.link.open |= self.prelude.is_some();
        let (link, prelude) = (&*self.link, &mut self.prelude);
        self.flight.get_or_insert_with(|| link.take_off(prelude.take()))
    }

    /// A statement with its parameters. One that is not prepared yet asks the server, and until that has answered, what is in
    /// flight must be heard: the client library hands out answers in their order.
    async fn bind(&mut self, sql: &str, params: Vec<Param>) -> Result<Bind, Failure> {
        let Self { link, flight, .. } = self;
        let mut bound = pin!(link.bind(sql, params));
        poll_fn(|context| {
            if let Some(flight) = flight {
                flight.hear(context);
            }
            bound.as_mut().poll(context)
        })
        .await
    }

    async fn send(&mut self, bind: Bind, table: usize, expected: u64, short: Short) -> Result<(), Trouble> {
        if self.copy.is_some() {
            self.land(None).await?;
        }
        self.flight().send(bind);
        self.group.push((table, expected, short));
        Ok(())
    }

    async fn copy(&mut self, table: usize, sql: String, input: Bytes) -> Result<(), Trouble> {
        if self.copy.is_some() {
            self.land(None).await?;
        }
        self.copy = Some((table, sql, input));
        Ok(())
    }

    /// Waits for what is in flight, does what its answers ask for, and then the copy. `tail` ends the delivery.
    async fn land(&mut self, tail: Option<Tail<'_>>) -> Result<(), Trouble> {
        if let Some(tail) = tail {
            self.flight().send(tail.position.clone());
        }
        // A copy is not sent behind other statements; what begins the attempt is one.
        self.flight();
        let counts = self.counts().await?;
        let group = std::mem::take(&mut self.group);
        if tail.is_some() && counts.last() == Some(&0) {
            return Err(Trouble::Failure(super::store::fenced(0)));
        }
        for ((table, expected, short), count) in group.into_iter().zip(counts) {
            match short {
                Short::Insert(bind) if count < expected => {
                    let inserted = self.link.pipeline(None, &[bind]).await;
                    inserted.map_err(|(_, error)| Trouble::of(format!("writing {}", self.name(table)), error))?;
                }
                Short::Missing if count < expected => return Err(Trouble::Missing),
                _ => {}
            }
        }
        if let Some((table, sql, input)) = self.copy.take() {
            let commits = tail.is_some_and(|tail| tail.commits);
            let copied = self.link.copy(&sql, vec![input], commits).await;
            copied.map_err(|error| Trouble::of(format!("copying rows into {}", self.name(table)), error))?;
        }
        Ok(())
    }

    /// Waits for what is in flight: how many rows each statement touched.
    async fn counts(&mut self) -> Result<Vec<u64>, Trouble> {
        let Some(flight) = self.flight.take() else { return Ok(Vec::new()) };
        flight.land().await.map_err(|(at, error)| {
            let table = at.and_then(|at| self.group.get(at)).map(|(table, ..)| self.name(*table));
            Trouble::of(format!("writing {}", table.unwrap_or_else(|| "the position".to_owned())), error)
        })
    }

    /// The end of the attempt. Where something could not be made ready, the server may have refused before it what was sent,
    /// and then that is what there is to say.
    async fn end(mut self, sent: Result<(), Trouble>, tail: Option<Tail<'_>>) -> Result<Done, Trouble> {
        if let Err(trouble) = sent {
            return Err(self.counts().await.err().unwrap_or(trouble));
        }
        if self.flight.is_none() && self.copy.is_none() {
            return Ok(Done::default());
        }
        self.land(tail).await?;
        Ok(Done { began: true, with_tail: tail.is_some() })
    }
}

/// The columns that a row writes: those that may be set, and whose cells it has.
fn changed_columns(table: &Table, row: &Row) -> Vec<usize> {
    use crossfade_event::Cell;
    let cells: Vec<Cell<'_>> = row.cells().collect();
    table
        .settable()
        .into_iter()
        .filter(|index| !matches!(cells.get(*index), None | Some(Cell::Unchanged | Cell::Absent)))
        .collect()
}

/// Turns one table's final changes into statements.
struct Planner<'a, 'o> {
    out: &'a mut Outgoing<'o>,
    table: &'a Table,
    index: usize,
    context: Context<'a>,
}

impl Planner<'_, '_> {
    /// What goes, and what was there before is saved.
    async fn removals(&mut self, folded: &Folded) -> Result<(), Trouble> {
        if self.table.tracked {
            self.before(folded.slots.iter().map(|slot| &slot.key)).await?;
        }
        if matches!(self.table.target.mode, WriteMode::Columns { .. } | WriteMode::InsertOnce) {
            return Ok(());
        }
        // Without an index that ON CONFLICT can use, an overwritten row is taken away first.
        let replaces = (!self.table.arbiter || self.replaced_whole()) && !self.table.bulk;
        let goes = |slot: &&Slot| match slot.to {
            Final::Gone => true,
            _ if folded.anew => false,
            Final::Put(_) => self.replaced_whole(),
            Final::Insert(_) => replaces && self.cautious(),
            Final::Patch(_) => false,
        };
        let gone: Vec<_> = folded.slots.iter().filter(goes).map(|slot| &slot.key).collect();
        if !gone.is_empty() {
            for keys in gone.chunks(SET_ROWS) {
                let mut set = Set::new(&self.table.key_type, keys.iter().map(|key| key.as_bytes().len() + 32).sum());
                for key in keys {
                    set.push(key.cells());
                }
                let bind = self.out.bind(&self.table.sql.delete, vec![set.finish()]).await?;
                self.push(bind, 0, Short::Accept).await?;
            }
        }
        let fewer: Vec<_> = folded.copies.iter().filter(|(_, count)| *count < 0).collect();
        for some in fewer.chunks(SET_ROWS) {
            let rows = sets::rows(&self.table.row_type, some.iter().map(|(row, _)| row));
            let counts = sets::numbers(some.iter().map(|(_, count)| -count));
            let bind = self.out.bind(&self.table.sql.delete_copies, vec![rows, counts]).await?;
            self.push(bind, 0, Short::Accept).await?;
        }
        Ok(())
    }

    /// What is written.
    async fn writes(&mut self, folded: &Folded) -> Result<(), Trouble> {
        if folded.anew {
            return self.anew(folded).await;
        }
        if !folded.freed.is_empty() {
            let mut set = Set::new(&self.table.key_type, folded.slots.len() * 32);
            folded.slots.iter().for_each(|slot| set.push(slot.key.cells()));
            let bind = self.out.bind(&self.table.free_sql(&folded.freed)?, vec![set.finish()]).await?;
            self.push(bind, 0, Short::Accept).await?;
        }
        let in_columns = matches!(self.table.target.mode, WriteMode::Columns { .. });
        let mut inserts: Vec<&Row> = Vec::new();
        let mut whole: Vec<&Row> = Vec::new();
        let mut partial: HashMap<Vec<usize>, Vec<&Row>> = HashMap::new();
        for slot in &folded.slots {
            match &slot.to {
                Final::Gone => {}
                Final::Insert(row) | Final::Put(row) if in_columns => whole.push(row),
                Final::Insert(row) => inserts.push(row),
                Final::Put(row) if self.replaced_whole() => inserts.push(row),
                Final::Put(row) => whole.push(row),
                Final::Patch(row) => partial.entry(changed_columns(self.table, row)).or_default().push(row),
            }
        }
        self.updates(&whole, in_columns).await?;
        let mut partial: Vec<_> = partial.into_iter().collect();
        partial.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        for (columns, rows) in partial {
            self.patches(&columns, &rows, in_columns).await?;
        }
        let copies: Vec<&Row> = folded
            .copies
            .iter()
            .flat_map(|(row, count)| std::iter::repeat_n(row, usize::try_from(*count).unwrap_or(0)))
            .collect();
        inserts.extend(copies);
        inserts.extend(&folded.appended);
        self.inserts(&inserts).await?;
        if self.table.tracked {
            self.after(folded.slots.iter().map(|slot| &slot.key)).await?;
        }
        Ok(())
    }

    /// All rows go and come again in one statement, so that nothing that refers to them sees them gone.
    async fn anew(&mut self, folded: &Folded) -> Result<(), Trouble> {
        let rows: Vec<(&crossfade_event::Key, &Row)> = folded
            .slots
            .iter()
            .filter_map(|slot| match &slot.to {
                Final::Insert(row) | Final::Put(row) => Some((&slot.key, row)),
                Final::Patch(_) | Final::Gone => None,
            })
            .collect();
        if rows.is_empty() {
            return Ok(());
        }
        let mut keys = Set::new(&self.table.key_type, rows.iter().map(|(key, _)| key.as_bytes().len() + 32).sum());
        for (key, _) in &rows {
            keys.push(key.cells());
        }
        let set = sets::rows(&self.table.row_type, rows.iter().map(|(_, row)| *row));
        let bind = self.out.bind(&self.table.anew_sql(), vec![set, keys.finish()]).await?;
        self.push(bind, 0, Short::Accept).await?;
        Ok(())
    }

    /// Rows that are overwritten go first and come again as inserts: the table has a column that no update may set.
    fn replaced_whole(&self) -> bool {
        self.table.target.mode == WriteMode::Table
            && self
                .table
                .columns
                .iter()
                .enumerate()
                .any(|(index, column)| column.always && !self.table.key.contains(&index))
    }

    fn cautious(&self) -> bool {
        self.context.cautious || self.context.guard == Guard::Heal || self.table.cautious > 0
    }

    async fn updates(&mut self, rows: &[&Row], may_miss: bool) -> Result<(), Trouble> {
        for some in chunks(rows) {
            let set = sets::rows(&self.table.row_type, some.iter().copied());
            match &self.table.sql.update {
                None if may_miss => {}
                // Nothing but a key: it only has to be there.
                None => {
                    let bind = self.out.bind(&self.table.sql.insert_missing, vec![set]).await?;
                    self.push(bind, 0, Short::Accept).await?;
                }
                Some(sql) => {
                    let short = match may_miss {
                        true => Short::Accept,
                        false => Short::Insert(self.out.bind(&self.table.sql.insert_missing, vec![set.clone()]).await?),
                    };
                    let bind = self.out.bind(sql, vec![set]).await?;
                    self.push(bind, some.len() as u64, short).await?;
                }
            }
        }
        Ok(())
    }

    async fn patches(&mut self, columns: &[usize], rows: &[&Row], may_miss: bool) -> Result<(), Trouble> {
        let Some(sql) = self.table.update_sql(columns) else { return Ok(()) };
        for some in chunks(rows) {
            let set = sets::rows(&self.table.row_type, some.iter().copied());
            let bind = self.out.bind(&sql, vec![set]).await?;
            self.push(bind, some.len() as u64, if may_miss { Short::Accept } else { Short::Missing }).await?;
        }
        Ok(())
    }

    async fn inserts(&mut self, rows: &[&Row]) -> Result<(), Trouble> {
        if rows.is_empty() {
            return Ok(());
        }
        let once = self.table.target.mode == WriteMode::InsertOnce;
        let by_key = self.table.target.schema.identity == Identity::Key;
        let cautious = by_key && self.cautious() && !self.table.bulk;
        if !once && !cautious && self.table.binary && rows.len() >= COPY_ROWS {
            let input = sets::copy_input(rows.iter().copied());
            return self.out.copy(self.index, self.table.sql.copy.clone(), input).await;
        }
        let sql = match (once, cautious) {
            (true, _) => &self.table.sql.insert_missing,
            (false, true) if self.table.arbiter && !self.replaced_whole() => &self.table.sql.upsert,
            (false, _) => &self.table.sql.insert,
        };
        for some in chunks(rows) {
            let set = sets::rows(&self.table.row_type, some.iter().copied());
            let bind = self.out.bind(sql, vec![set]).await?;
            self.push(bind, 0, Short::Accept).await?;
        }
        Ok(())
    }

    /// Saves what stands under these keys, where it was not saved before.
    async fn before<'k>(&mut self, keys: impl Iterator<Item = &'k crossfade_event::Key>) -> Result<(), Trouble> {
        let Some(sql) = undo::save_sql(self.table) else { return Ok(()) };
        self.undo(keys, sql).await
    }

    /// Notes what we left under these keys, so that an undo can tell it from what somebody else wrote later.
    async fn after<'k>(&mut self, keys: impl Iterator<Item = &'k crossfade_event::Key>) -> Result<(), Trouble> {
        let Some(sql) = undo::note_sql(self.table) else { return Ok(()) };
        self.undo(keys, sql).await
    }

    async fn undo<'k>(
        &mut self,
        keys: impl Iterator<Item = &'k crossfade_event::Key>,
        sql: String,
    ) -> Result<(), Trouble> {
        let keys: Vec<_> = keys.collect();
        for some in keys.chunks(SET_ROWS) {
            let mut set = Set::new(&self.table.key_type, some.iter().map(|key| key.as_bytes().len() + 32).sum());
            for key in some {
                set.push(key.cells());
            }
            let params = undo::params(self.context.migration, self.table, set.finish());
            let bind = self.out.bind(&sql, params).await?;
            self.push(bind, 0, Short::Accept).await?;
        }
        Ok(())
    }

    async fn push(&mut self, bind: Bind, expected: u64, short: Short) -> Result<(), Trouble> {
        self.out.send(bind, self.index, expected, short).await
    }
}

/// Rows in pieces that one statement takes.
fn chunks<'r, 's>(rows: &'s [&'r Row]) -> impl Iterator<Item = &'s [&'r Row]> {
    let mut rest = rows;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fits = |row: &&&Row| {
            bytes += row.as_bytes().len();
            bytes <= SET_BYTES
        };
        let count = rest.iter().take(SET_ROWS).take_while(fits).count().max(1).min(rest.len());
        let (head, tail) = rest.split_at(count);
        rest = tail;
        (!head.is_empty()).then_some(head)
    })
}
