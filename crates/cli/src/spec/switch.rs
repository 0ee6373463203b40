//! `[switch]`: how the authority is given to the new side. It may come into a spec at any time, and change.

use super::{Document, Span, SpecError, sink::SinkSpec, source::SourceSpec};
use crossfade_control::Limits;
use schemars::JsonSchema;
use serde::Deserialize;
use std::time::Duration;

/// How the applications are switched to the new side.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct SwitchSpec {
    /// Writers are held up for at most so long; past it they go on where they were.
    pub(crate) deadline: Span,
    /// One try at the tables' locks lasts at most so long. Writers wait behind it; below the server's `deadlock_timeout` none
    /// of them meets an error for it.
    pub(crate) lock_timeout: Span,
    /// So long counts a comparison of everything without a difference.
    pub(crate) verified_within: Span,
    /// So many people must agree (`crossfade approve`): 0, 1 or 2.
    pub(crate) approvals: u32,
    /// So long after a switch the way back stays open: `crossfade cleanup` waits for it.
    pub(crate) keep: Span,
    /// A command that tells the applications, by `sh -c`, with CROSSFADE_MIGRATION, CROSSFADE_SIDE and CROSSFADE_EPOCH set.
    /// It may be run more than once for one switch.
    pub(crate) route: Option<String>,
}

impl Default for SwitchSpec {
    fn default() -> Self {
        Self {
            deadline: Span(Duration::from_secs(10)),
            lock_timeout: Span(Duration::from_millis(800)),
            verified_within: Span(Duration::from_secs(24 * 3600)),
            approvals: 0,
            keep: Span(Duration::from_secs(7 * 24 * 3600)),
            route: None,
        }
    }
}

fn ms(span: Span) -> u64 {
    u64::try_from(span.0.as_millis()).unwrap_or(u64::MAX)
}

impl SwitchSpec {
    /// What the guards ask for.
    pub(crate) fn limits(&self, deadline: Span) -> Limits {
        Limits {
            deadline_ms: ms(deadline),
            lock_timeout_ms: ms(self.lock_timeout),
            verified_within_ms: ms(self.verified_within),
            approvals: self.approvals,
        }
    }
}

/// The longest deadline: writers that wait longer have given up.
pub(crate) const DEADLINE_MAX: Duration = Duration::from_secs(60);
/// And the shortest.
pub(crate) const DEADLINE_MIN: Duration = Duration::from_millis(500);

/// What a switch cannot be made between, and figures that make no sense.
pub(super) fn check(
    document: &Document<'_>,
    switch: Option<&SwitchSpec>,
    source: &SourceSpec,
    sink: &SinkSpec,
) -> Result<(), SpecError> {
    let Some(switch) = switch else { return Ok(()) };
    let refuse = |key: &str, message: &str| Err(document.error(document.span_of(&["switch", key]), message));
    match (source, sink) {
        (SourceSpec::Postgres(_), SinkSpec::Postgres(_)) => {}
        (SourceSpec::Sqlite(old), SinkSpec::Sqlite(new)) if old.path == new.path => {
            return refuse(
                "deadline",
                "[switch] needs a file of its own for the new side: \"path\" is the same in [source] and [sink]",
            );
        }
        (SourceSpec::Sqlite(_), SinkSpec::Sqlite(_)) => {}
        _ => {
            return refuse(
                "deadline",
                "[switch] is built for kind = \"postgres\" in both [source] and [sink], or \"sqlite\" in both, not yet \
                 for others",
            );
        }
    }
    if switch.deadline.0 < DEADLINE_MIN || switch.deadline.0 > DEADLINE_MAX {
        return refuse(
            "deadline",
            "\"deadline\" in [switch] must be from 500ms to 60s: so long writers may be held up",
        );
    }
    if switch.lock_timeout.0.is_zero() || switch.lock_timeout.0 * 2 > switch.deadline.0 {
        return refuse(
            "lock_timeout",
            "\"lock_timeout\" in [switch] must be at most half of \"deadline\", and more than nothing",
        );
    }
    if switch.approvals > 2 {
        return refuse("approvals", "\"approvals\" in [switch] can be 0, 1 or 2");
    }
    if switch.route.as_ref().is_some_and(|route| route.trim().is_empty()) {
        return refuse("route", "\"route\" in [switch] is empty; leave it out where the flag table is enough");
    }
    Ok(())
}
