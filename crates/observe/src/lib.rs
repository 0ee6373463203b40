//! What is going on: counters, rates, status, progress on a terminal, metrics, and the socket that answers questions.
//!
//! What comes in are counts that the loops report; what goes out is one [`Status`], shown to a person ([`render`],
//! [`Terminal`]), to a program (its JSON, [`StatusFile`]), to Prometheus ([`metrics_text`]), over the control socket of the
//! work folder ([`socket`]), and to whoever looks from elsewhere ([`Listening`]).
//!
//! What this crate deliberately does not do: it decides nothing, slows nothing, and shows no row's value.

mod counters;
mod listen;
mod metrics_text;
mod rate;
mod render;
pub mod socket;
mod status;
mod status_file;
mod switch_status;
mod terminal;
mod verify_status;
mod words;

pub use counters::{Committed, Conservation, Counters, TableTotals, Totals};
pub use listen::Listening;
pub use metrics_text::metrics_text;
pub use rate::{Meter, Rate, Rates, eta_s, lag_ms};
pub use render::{plain_line, render};
pub use status::{
    BrokerStatus, CheckpointStatus, ClientStatus, DeliverStatus, LagStatus, LogStatus, Overall, ProcessStatus,
    Retrying, SinkStatus, Standing, Status, TableStatus, WorkerStatus,
};
pub use status_file::StatusFile;
pub use switch_status::SwitchStatus;
pub use terminal::{Terminal, TerminalMode};
pub use verify_status::{DifferenceStatus, VerifyStatus};
