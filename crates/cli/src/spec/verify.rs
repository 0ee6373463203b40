//! `[verify]`: whether both sides are compared all the time while the sink follows. It may come into a spec at any time, and
//! change.

use super::{Document, LogSpec, Span, SpecError, WriteTo, sink::SinkSpec, source::SourceSpec};
use crossfade_control::Percent;
use crossfade_transform::{Rules, Step, WriteKind};
use schemars::JsonSchema;
use serde::Deserialize;
use std::time::Duration;

/// Comparing both sides all the time.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct VerifySpec {
    /// Compare both sides while the migration runs, and tell what differs without being asked.
    pub(crate) continuous: bool,
    /// So long after the last one everything is compared again; in between, what has changed.
    pub(crate) every: Span,
    /// At most this share of the time is spent on comparing.
    pub(crate) share: Percent,
}

impl Default for VerifySpec {
    fn default() -> Self {
        Self { continuous: false, every: Span(Duration::from_secs(3600)), share: Percent::from_millionths(50_000) }
    }
}

/// Where it is built.
pub(super) fn check(
    document: &Document<'_>,
    verify: &VerifySpec,
    source: &SourceSpec,
    log: &LogSpec,
    sink: &SinkSpec,
    rules: &Rules,
) -> Result<(), SpecError> {
    let refuse = |key: &str, message: &str| Err(document.error(document.span_of(&["verify", key]), message.to_owned()));
    if verify.share.fraction() < 0.001 {
        return refuse("share", "\"share\" in [verify] must be from 0.1% to 100%");
    }
    if verify.every.0 < Duration::from_secs(1) {
        return refuse("every", "\"every\" in [verify] must be one second or more");
    }
    if !verify.continuous {
        return Ok(());
    }
    let (SourceSpec::Postgres(_), SinkSpec::Postgres(target)) = (source, sink) else {
        return refuse(
            "continuous",
            "\"continuous\" in [verify] is built for kind = \"postgres\" in [source] and [sink], not yet for others",
        );
    };
    if !matches!(log, LogSpec::Embedded(_)) {
        return refuse("continuous", "\"continuous\" in [verify] is not built yet with kind = \"kafka\" in [log]");
    }
    let is_beside = rules.table.iter().any(|table| table.write == Some(WriteKind::ShadowColumns));
    if target.write == WriteTo::ShadowColumns || is_beside {
        return refuse(
            "continuous",
            "\"continuous\" in [verify] is not built yet for columns beside the old ones: ask `crossfade verify`",
        );
    }
    if rules.table.iter().flat_map(|table| &table.steps).any(|step| matches!(step, Step::Lookup(_))) {
        return refuse(
            "continuous",
            "\"continuous\" in [verify] is not built yet where a step looks something up: rows keep what was there at their own time",
        );
    }
    Ok(())
}
