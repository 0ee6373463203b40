//! Reads that are asked on both sides of a migration, compared, and answered by the side that has the authority.
//!
//! Where it stands: beside the journey, inside an application. The application gives two closures, one that reads the old
//! side and one that reads the new one; what it gets is always the answer of the side that has the authority. Of a sampled
//! share of the calls the other side is asked as well, in a task of its own, and both answers are compared:
//!
//! ```text
//!  read(old, new) ──▶ the side with the authority ──────────────────────────▶ the application's answer
//!        │ sampled
//!        └─────────▶ the other side ──▶ compared ──▶ equal: a match
//!                                          └─▶ differs: is the other side past the position of the first answer?
//!                                                 ask both again once it is ──▶ equal: explained by lag
//!                                                                          └──▶ differs, twice: a stable mismatch
//! ```
//! A difference is judged by position, never by a timer: only an answer that was given after its side had everything that
//! the first answer knew can contradict it. Time-outs bound how long that is waited for; running into one gives no verdict.
//!
//! [`DualReads`] is the library for applications, with sampling ([`Subject`], [`Percent`]), a [`Flag`] that says who has
//! the authority and how much is compared, [`Budgets`] past which it steps down by itself, and a breaker. [`Rules`] say
//! when two [`Answer`]s are the same. The same rules and the same judgement serve [`pairs`] of queries, which
//! `crossfade verify --queries` asks on both sides.
//!
//! What this crate deliberately does not do: it speaks to no database (the closures do), it starts no runtime (it wants
//! tokio's), it keeps nothing on disk, and it logs no value of an answer.

mod answer;
mod breaker;
mod budget;
mod flag;
mod histogram;
mod metrics;
mod normal;
mod options;
pub mod pairs;
mod places;
mod reads;
mod rounds;
mod rules;
mod sample;

pub use crossfade_connector::Failure;
pub use crossfade_event::Position;

pub use answer::{Answer, AnswerError, Field};
pub use breaker::BreakerOptions;
pub use budget::{Budgets, LatencyBudget, Why};
pub use flag::{Feed, Flag, FlagError, Polled, SELECT_FLAG, STEP_DOWN, Side};
pub use histogram::{Histogram, Latency};
pub use metrics::{Counts, Snapshot};
pub use options::Options;
pub use places::{NoPlaces, POSTGRES_END, POSTGRES_REACHED, Places, SQLITE_REACHED, place};
pub use reads::{AsyncReader, DualReads, Listener, Logs, Outcome, Told, Unjudged};
pub use rules::{Columns, Mismatch, MismatchKind, Order, Precision, Rules, exactly};
pub use sample::{Percent, PercentError, Subject};
