//! The only way to acknowledge a source: a contiguous durable prefix.

use crate::Position;
use std::collections::VecDeque;

/// A position up to which *everything* is durable in our log. Only a [`Frontier`] makes one, so nothing else can be
/// confirmed to a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Durable(Position);

impl Durable {
    /// The position itself.
    pub fn position(self) -> Position {
        self.0
    }
}

/// What [`Frontier::begin`] gives, and [`Frontier::finish`] takes back once the append is durable.
#[derive(Debug, PartialEq, Eq)]
pub struct Ticket(u64);

/// Tracks appends that are in flight. The frontier moves over a batch only when it and all batches begun before it
/// are durable, whatever the order in which they finish.
#[derive(Debug, Default)]
pub struct Frontier {
    first: u64,
    in_flight: VecDeque<(Option<Position>, bool)>,
    durable: Option<Position>,
}

impl Frontier {
    /// A frontier that already stands at `durable` (the log's tail when ingest starts).
    pub fn at(durable: Option<Position>) -> Self {
        Self { durable, ..Self::default() }
    }

    /// Notes an append whose end is `upto` (`None` for one that does not move the source's position).
    pub fn begin(&mut self, upto: Option<Position>) -> Ticket {
        self.in_flight.push_back((upto, false));
        Ticket(self.first + self.in_flight.len() as u64 - 1)
    }

    /// The append is durable. Returns the new frontier if it moved.
    ///
    /// # Panics
    /// When the ticket is not of this frontier or was given back before: a broken invariant of the caller.
    #[expect(clippy::expect_used, reason = "a foreign or repeated ticket is a broken invariant, named by the message")]
    #[expect(clippy::needless_pass_by_value, reason = "taking the ticket is what makes it usable once")]
    pub fn finish(&mut self, ticket: Ticket) -> Option<Durable> {
        let index = ticket.0.checked_sub(self.first).expect("a frontier ticket was given back twice") as usize;
        self.in_flight.get_mut(index).expect("a ticket of another frontier").1 = true;
        let before = self.durable;
        while let Some((upto, true)) = self.in_flight.front().copied() {
            self.in_flight.pop_front();
            self.first += 1;
            self.durable = self.durable.max(upto);
        }
        (self.durable != before).then(|| self.durable.map(Durable)).flatten()
    }

    /// True when nothing is in flight: only then may an idle source's own position be confirmed.
    pub fn is_idle(&self) -> bool {
        self.in_flight.is_empty()
    }

    /// Where the frontier stands.
    pub fn durable(&self) -> Option<Durable> {
        self.durable.map(Durable)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SourceId;

    fn at(commit: u64) -> Position {
        Position { source: SourceId(1), timeline: 1, commit, ordinal: 0 }
    }

    #[test]
    fn the_frontier_waits_for_the_oldest_append() {
        let mut frontier = Frontier::at(None);
        let first = frontier.begin(Some(at(10)));
        let second = frontier.begin(Some(at(20)));
        assert_eq!(frontier.finish(second), None);
        assert_eq!(frontier.finish(first).map(Durable::position), Some(at(20)));
        assert!(frontier.is_idle());
    }

    #[test]
    fn an_append_without_a_position_holds_the_frontier_but_does_not_move_it() {
        let mut frontier = Frontier::at(Some(at(5)));
        let rows = frontier.begin(None);
        let change = frontier.begin(Some(at(6)));
        assert_eq!(frontier.finish(change), None);
        assert_eq!(frontier.finish(rows).map(Durable::position), Some(at(6)));
    }

    #[test]
    #[should_panic(expected = "given back twice")]
    fn a_ticket_is_used_once() {
        let mut frontier = Frontier::at(None);
        let Ticket(number) = frontier.begin(Some(at(1)));
        frontier.finish(Ticket(number));
        frontier.finish(Ticket(number));
    }
}
