//! Trying a range of changes, and finding the one that is at fault.

use super::{
    apply::Writer,
    exchange::{Later, may_exchange},
    fold::{Unit, fold, is_whole},
    held::Why,
    link::Trouble,
    refuse::Record,
    write::{self, Context, Tail},
};
use crossfade_connector::{Failure, Guard};
use crossfade_event::{Change, Key, Op};

/// For so many deliveries a table's inserts are upserts after one of its keys was found to be there already.
pub(super) const CAUTION: u32 = 64;

/// How a range is tried.
#[derive(Debug, Clone, Copy, Default)]
struct Way {
    cautious: bool,
    deletes_last: bool,
    no_moves: bool,
    /// Rows go and come again: two of them exchange what must be unique.
    anew: bool,
}

/// A change of key whose row is not there can be written as a new row, if its image is whole.
fn moves_whole(units: &[Unit]) -> bool {
    matches!(units, [unit] if unit.change.old.is_some() && unit.change.new.as_ref().is_some_and(is_whole))
}

/// Where an attempt began.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Point {
    Begin,
    Savepoint,
}

impl Writer<'_> {
    /// Tries a run of changes, and halves it until each failing change stands alone. True when `tail` went with it.
    pub(super) async fn changes(&mut self, units: &[Unit], tail: Option<Tail<'_>>) -> Result<bool, Failure> {
        let mut written = false;
        let mut later = Later::default();
        // The ranges still to be tried, the next one last. Moves stand alone from the beginning.
        let mut ranges: Vec<(usize, usize)> = Vec::new();
        let mut from = 0;
        for (at, unit) in units.iter().enumerate() {
            if write::needs_move(self.tables, unit, self.link.replica) {
                ranges.extend([(from, at), (at, at + 1)]);
                from = at + 1;
            }
        }
        ranges.push((from, units.len()));
        ranges.retain(|(from, to)| from < to);
        ranges.reverse();
        let whole = ranges.len() == 1;
        while let Some((from, to)) = ranges.pop() {
            let range = units.get(from..to).unwrap_or_default();
            let tail = tail.filter(|_| whole && to - from == units.len());
            let range = later.without(range, from, self.tables);
            match self.attempt(&range, tail).await {
                Ok(with_tail) => written |= with_tail,
                Err(Trouble::Failure(failure)) => return Err(failure),
                Err(trouble) if to - from == 1 => {
                    if let Some(unit) = range.first()
                        && !later.takes(unit, from, &trouble, self.tables)
                    {
                        self.reject(unit, trouble)?;
                    }
                }
                Err(_) => {
                    let middle = from + (to - from) / 2;
                    ranges.extend([(middle, to), (from, middle)]);
                }
            }
        }
        self.settle_later(later.of(units)).await?;
        Ok(written)
    }

    /// One range of changes; again with upserts if plain inserts meet a key that is there, and again with deletes last
    /// if something still refers to a row that goes.
    pub(super) async fn attempt(&mut self, units: &[Unit], tail: Option<Tail<'_>>) -> Result<bool, Trouble> {
        let mut way = Way::default();
        loop {
            let trouble = match self.try_once(units, tail, way).await {
                Ok(with_tail) => return Ok(with_tail),
                Err(trouble) => trouble,
            };
            if trouble.is_unique_violation() && !way.cautious && self.guard == Guard::Forward {
                way.cautious = true;
                for unit in units.iter().filter(|unit| unit.change.op != Op::Delete) {
                    if let Some(table) = self.tables.get_mut(unit.table) {
                        table.cautious = CAUTION;
                    }
                }
            } else if trouble.is_unique_violation() && !way.anew && may_exchange(units, self.tables) {
                way.anew = true;
            } else if trouble.is_foreign_key_violation() && !way.deletes_last && units.len() > 1 {
                way.deletes_last = true;
            } else if matches!(trouble, Trouble::Missing) && !way.no_moves && moves_whole(units) {
                way.no_moves = true;
            } else {
                return Err(trouble);
            }
        }
    }

    async fn try_once(&mut self, units: &[Unit], tail: Option<Tail<'_>>, way: Way) -> Result<bool, Trouble> {
        let mark = self.held.mark();
        let mut folded = fold(units, self.tables, self.held, &self.collided);
        if way.anew {
            self.make_anew(&mut folded.tables).await?;
        }
        let point = self.point();
        let context = Context {
            migration: self.migration,
            guard: self.guard,
            cautious: way.cautious,
            deletes_last: way.deletes_last,
        };
        // Where constraints wait for the end of the transaction, a commit that fails would take all of it along.
        let commits = point == Point::Begin && self.link.replica;
        let tail = tail.filter(|_| folded.held.is_empty());
        let tail = tail.map(|tail| Tail { commits: tail.commits && commits, ..tail });
        let alone = units.first().filter(|unit| {
            units.len() == 1 && !way.no_moves && write::needs_move(self.tables, unit, self.link.replica)
        });
        let prelude = self.prelude(point);
        let prelude = Some(prelude.as_str());
        let done = match alone {
            Some(unit) if folded.held.is_empty() => {
                write::write_move(self.link, self.tables, unit, context, prelude).await
            }
            _ => write::write(self.link, self.tables, &folded.tables, context, prelude, tail).await,
        };
        let done = match done {
            Ok(done) if done.began => self.settle(point).await.map(|()| done.with_tail),
            Ok(_) => Ok(false),
            Err(trouble) => Err(trouble),
        };
        match done {
            Ok(with_tail) => {
                self.applied.applied += folded.applied;
                for (unit, why) in folded.held {
                    let (kind, origin, reason) = match why {
                        Why::Key => ("held", "sink", "an earlier change of this key is in quarantine"),
                        Why::Parent => ("child", "sink", "the row that it refers to is in quarantine"),
                        // Tried again it would overwrite the other row: only another key helps, and those the spec makes.
                        Why::Mapping => ("rejected", "transform", "its old key became the new key of another row"),
                    };
                    self.applied.held += 1;
                    self.records.push(Record {
                        at: unit.at,
                        table: unit.table,
                        key: self.key_of(unit.table, &unit.change),
                        change: unit.change.clone(),
                        kind,
                        origin,
                        reason: reason.to_owned(),
                    });
                }
                Ok(with_tail)
            }
            Err(trouble) => {
                self.held.rewind(mark);
                if !matches!(trouble, Trouble::Failure(_)) {
                    self.take_back(point).await?;
                }
                Err(trouble)
            }
        }
    }

    fn key_of(&self, table: usize, change: &Change) -> Option<Key> {
        change.key(&self.tables.get(table)?.target.schema)
    }

    pub(super) fn point(&self) -> Point {
        if self.link.open { Point::Savepoint } else { Point::Begin }
    }

    pub(super) fn prelude(&self, point: Point) -> String {
        match point {
            Point::Savepoint => "SAVEPOINT attempt".to_owned(),
            Point::Begin => self.link.begin.clone(),
        }
    }

    /// Checks what was deferred, and lets go of the savepoint.
    pub(super) async fn settle(&mut self, point: Point) -> Result<(), Trouble> {
        if !self.link.open {
            return Ok(());
        }
        let trouble = |error| Trouble::of("checking deferred constraints", error);
        match (point, self.link.replica) {
            (Point::Begin, true) => Ok(()),
            (Point::Begin, false) => self
                .link
                .session
                .batch_execute("SET CONSTRAINTS ALL IMMEDIATE; SET CONSTRAINTS ALL DEFERRED")
                .await
                .map_err(trouble),
            (Point::Savepoint, true) => {
                self.link.session.batch_execute("RELEASE SAVEPOINT attempt").await.map_err(trouble)
            }
            (Point::Savepoint, false) => self
                .link
                .session
                .batch_execute("SET CONSTRAINTS ALL IMMEDIATE; SET CONSTRAINTS ALL DEFERRED; RELEASE SAVEPOINT attempt")
                .await
                .map_err(trouble),
        }
    }

    pub(super) async fn take_back(&mut self, point: Point) -> Result<(), Failure> {
        match point {
            Point::Begin if !self.link.open => Ok(()),
            Point::Begin => {
                self.link.execute("rolling back an attempt", "ROLLBACK").await?;
                self.link.open = false;
                Ok(())
            }
            Point::Savepoint => {
                let sql = "ROLLBACK TO SAVEPOINT attempt; RELEASE SAVEPOINT attempt";
                self.link.execute("rolling back an attempt", sql).await
            }
        }
    }
}
