//! What happens next: the life of a migration, as decisions that are kept in a journal.
//!
//! A [`Command`] asks; [`decide`] says what follows from it, or refuses with the remedy; [`evolve`] is what a decision
//! changes. Both are pure: no clock, no runtime, no I/O. The [`Journal`] keeps every decision with who and when, and
//! its fold is the [`Migration`]. [`Gates`] judge figures that are passed in.
//!
//! What this crate deliberately does not do: it moves no data and knows no database. It says that a run is paused;
//! the pipeline is told through a handle that the binary gives to both.

mod command;
mod decide;
mod evolve;
mod gates;
mod guards;
mod journal;
mod migration;
mod reads;
mod switch;
mod units;

pub use command::{Command, Decision, Refusal};
pub use decide::decide;
pub use evolve::evolve;
pub use gates::{
    Baseline, Collisions, Count, ErrorRate, Fall, Gates, Inputs, Lag, Latency, Measures, Pace, Sample, Share, Slowness,
    Then, Throughput, Verdict, Window, Windows, evaluate, fall, pause_reason,
};
pub use guards::guards;
pub use journal::{By, Journal, JournalError, Record};
pub use migration::{Checkpoint, End, Migration, Overlay, Phase, RollbackKind};
pub use reads::{ReadFacts, ReadJudgement, read_guards};
pub use switch::{
    Approval, Authority, CleanPass, Direction, Facts, Guarded, Intent, Judgement, Limits, OldestWriter, Voided, WayBack,
};
pub use units::{Increase, ParseUnitError, Percent, Span};
