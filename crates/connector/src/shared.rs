//! Sinks that several processes may write at once, each some partitions of the log.
//!
//! One of them has the *lead*: it writes alone, as if there were no others, until it *shares*; then each partition is
//! written by whoever has taken it over, and the lead looks after them, until it takes all partitions back. Who may write
//! is the sink's word alone: a number in a row of its own for each partition, compared in the transaction that writes.

use crate::{Delivery, Failure, Progress, Sink, Target};
use crossfade_event::{Cut, Sequence};
use std::{future::Future, time::Duration};

/// What a failure was `doing` that says that the lead is lost: it is to be asked for again.
pub const LEADING: &str = "leading";

/// What stood where when all partitions were taken back.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Gathered {
    /// For each partition: its changes with a lower number are in already. Empty where all stand at one place.
    pub ahead: Vec<Sequence>,
    /// Once everything up to here is in, all partitions are level; `None` where they are.
    pub level: Option<Cut>,
}

/// How a stream stands that is shared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overseen {
    /// The lowest place of all partitions.
    pub progress: Progress,
    /// The partitions whose owners have met what the lead must do.
    pub asks: Vec<u32>,
}

/// A sink whose stream may be shared, as whoever has or wants the lead sees it.
pub trait Lead: Sink {
    /// Asks for the lead; does not wait for it. Whoever has it, shares, and has not looked after the others for so long as
    /// `silent` loses it. From then on [`Sink::prepare`] does not wait for it either: it fails where somebody else has it.
    ///
    /// # Errors
    /// See [`Failure`].
    fn try_lead(&mut self, silent: Duration) -> impl Future<Output = Result<bool, Failure>> + Send;

    /// Takes all partitions back: once it returns, nobody else writes. The migration's own place is the lowest of all
    /// then. `epoch` is that of whoever leads.
    ///
    /// # Errors
    /// `Refused` where somebody leads with a higher epoch.
    fn take_back(&mut self, epoch: u64) -> impl Future<Output = Result<Gathered, Failure>> + Send;

    /// Begins to share from the migration's place, which is committed; says why not where that cannot be right now.
    ///
    /// # Errors
    /// See [`Failure`].
    fn share(&mut self, partitions: u32) -> impl Future<Output = Result<Result<(), String>, Failure>> + Send;

    /// Looks at all partitions, and notes their lowest place as the migration's.
    ///
    /// # Errors
    /// `Refused` where somebody else leads by now.
    fn oversee(&mut self) -> impl Future<Output = Result<Overseen, Failure>> + Send;
}

/// What came of taking a partition over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Taken {
    /// It is ours, and stands there.
    Ours(Progress),
    /// Nothing is shared now.
    NotShared,
    /// Somebody has it with a higher number.
    Superseded,
}

/// Whose a partition is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// Ours.
    Us,
    /// The lead has taken it back.
    Lead,
    /// Somebody has taken it over after us.
    Another,
}

/// What came of writing some of a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Written {
    /// It is in: so many changes.
    In(u64),
    /// It is somebody else's by now: nothing was written.
    NotOurs,
    /// It is not one partition's matter, for this reason: nothing was written.
    NotAlone(String),
}

/// One partition of a stream that is shared. Dropped, or failed: nothing of an open transaction stays.
pub trait PartSink: Send {
    /// Whether the stream is shared now.
    ///
    /// # Errors
    /// See [`Failure`].
    fn is_shared(&mut self) -> impl Future<Output = Result<bool, Failure>> + Send;

    /// Takes the partition over under a number that nobody had before, and no higher one has. Whoever had it writes no
    /// more once it is ours.
    ///
    /// # Errors
    /// See [`Failure`].
    fn take(&mut self, number: u64) -> impl Future<Output = Result<Taken, Failure>> + Send;

    /// Learns the target's tables; makes nothing.
    ///
    /// # Errors
    /// See [`Failure`].
    fn prepare(&mut self, target: &Target) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Writes in order, and with `commits` the partition's place in the same transaction.
    ///
    /// # Errors
    /// See [`Failure`]; nothing of the open transaction has been written then.
    fn write(&mut self, delivery: Delivery) -> impl Future<Output = Result<Written, Failure>> + Send;

    /// Asks the lead to take the partitions back; rolls back what is open.
    ///
    /// # Errors
    /// See [`Failure`].
    fn ask(&mut self) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Whose the partition is that was taken under `number`.
    ///
    /// # Errors
    /// See [`Failure`].
    fn owner(&mut self, number: u64) -> impl Future<Output = Result<Owner, Failure>> + Send;
}
