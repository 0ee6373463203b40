//! Change in, changes out: the new shape of every row is computed here.
//!
//! The journey: [`Rules`] (what the spec says) and a source's [`crossfade_event::catalog::Catalog`] make a [`Plan`]
//! (target tables, notes on what is lost, which lookups are needed). [`Plan::bind`] joins it with one schema as seen in
//! the log, and [`Bound::apply`] turns each [`crossfade_event::Change`] into what the target gets.
//!
//! Everything here is pure: the same change, the same rules and the same views give the same bytes, for ever. No clock,
//! no randomness, no I/O. A row that nothing is done to passes through byte for byte ([`Bound::passthrough`]). Nothing
//! is dropped: every change comes out as a change, as filtered, or as rejected with a reason that holds no values.

mod adopted;
mod bind;
mod cast;
mod document;
mod jsonpath;
mod keys;
mod pattern;
mod plan;
mod predicate;
mod program;
mod rules;
mod step;
mod suggest;
mod types;

pub use adopted::{Adopted, AdoptedKeys};
pub use bind::{Bound, Output, Views};
pub use plan::{
    Back, BackColumn, BackHow, BackKey, BackRefusal, BackTable, Became, Fidelity, Forward, LookupView, Note, Plan,
    PlanError, PlanOptions, PlannedTable, Swap, SwapRefusal, Writing, back, default_cell, plan, swap,
};
pub use rules::{KeyMaker, KeyRule, Rekey, Rules, TableRule, WriteKind};
pub use step::{
    CanonicalKey, Cast, Constant, DropColumns, Extract, Filter, KeyPart, Literal, Lookup, MapValues, Mask, MaskColumn,
    Merge, Normalise, NullIf, OneOrMany, Pack, Rename, Split, Step,
};
