//! Which rows a repair is to write: what the source has of them now, taken through the transforms. Nothing is written here.

use crate::{
    Expected, LiveViews, Subject, VerifyError,
    drill::Suspect,
    judge::{expect_now, find_now},
};
use crossfade_connector::Inspect;
use crossfade_event::{Identity, Key, Position, Row, TableId};
use std::collections::BTreeMap;

/// How many rows are read again at once.
const ROWS_AT_ONCE: usize = 500;

/// The rows in which both sides differ.
#[derive(Debug, Default)]
pub struct Differences(pub(crate) BTreeMap<(TableId, Key), Suspect>);

/// One row of the target, and what it should be.
#[derive(Debug, Clone)]
pub struct Repairable {
    /// Which table of the target.
    pub table: TableId,
    /// Its key there.
    pub key: Key,
    /// The row that should be under it; `None`: none should.
    pub row: Option<Row>,
    /// The row that is under it.
    pub found: Option<Row>,
}

/// What the rows that differ should be, by the source as it is now: some at a time, with the source's position at which they were
/// read. A row that is right by now is left out, and one that cannot be told by its key: how many is said last.
///
/// # Errors
/// See [`VerifyError`].
pub async fn rows_to_repair<A: Inspect, B: Inspect>(
    subject: &Subject<'_>,
    source: &mut A,
    target: &mut B,
    differences: Differences,
) -> Result<(Vec<(Vec<Repairable>, Option<Position>)>, u64), VerifyError> {
    let views = LiveViews::read(subject, source).await?;
    let expected = Expected::of(subject, &views)?;
    let is_keyed =
        |table: &TableId| expected.targets.get(table).is_some_and(|side| side.schema.identity == Identity::Key);
    let (keyed, others): (Vec<_>, Vec<_>) = differences.0.into_iter().partition(|((table, _), _)| is_keyed(table));
    let mut left_alone = others.len() as u64;
    let mut parts = Vec::new();
    let mut keyed = keyed.into_iter().peekable();
    while keyed.peek().is_some() {
        let some: BTreeMap<_, _> = keyed.by_ref().take(ROWS_AT_ONCE).collect();
        // The target first: a source row that is read later is never older than what was found.
        let found = find_now(&expected, target, &some).await?;
        let (wanted, position) = expect_now(&expected, source, &some).await?;
        let mut rows = Vec::new();
        for (table, key) in some.into_keys() {
            let place = (table, key);
            let (want, have) =
                (wanted.get(&place).map_or(&[][..], Vec::as_slice), found.get(&place).map_or(&[][..], Vec::as_slice));
            if want == have {
                continue;
            }
            // Two rows that became one are no matter of writing again.
            if want.len() > 1 || have.len() > 1 {
                left_alone += 1;
                continue;
            }
            let (table, key) = place;
            rows.push(Repairable { table, key, row: want.first().cloned(), found: have.first().cloned() });
        }
        if !rows.is_empty() {
            parts.push((rows, position));
        }
    }
    Ok((parts, left_alone))
}
