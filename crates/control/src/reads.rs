//! Before reads are compared: what was seen, and the guards that judge it.

use crate::{
    Guarded, Migration, Phase, Span,
    guards::{clean, judged},
};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// What was seen before reads are compared.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ReadFacts {
    /// Changes in quarantine: rows that would be found to differ.
    pub quarantined: u64,
    /// Gates that do not hold, in their own words.
    pub gates: Vec<String>,
    /// Why the flag that applications follow cannot be written, each with its remedy.
    pub missing: Vec<String>,
}

/// What the guards said when reads were to be compared last.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ReadJudgement {
    /// The share that was asked for, in millionths.
    pub millionths: u32,
    /// Guard by guard.
    pub guards: Vec<Guarded>,
    /// When, in microseconds since 1970.
    pub at_us: i64,
}

impl ReadJudgement {
    /// Whether every guard lets pass.
    pub fn passes(&self) -> bool {
        self.guards.iter().all(|guard| guard.holds)
    }
}

/// Every guard before a larger share of the reads is compared, in the order in which a person would mend what is wrong.
pub fn read_guards(migration: &Migration, facts: &ReadFacts, verified_within_ms: u64, now_us: i64) -> Vec<Guarded> {
    vec![flag(facts), quarantine(facts), clean_pass(migration, verified_within_ms, now_us), gates(facts)]
}

/// Where a share may be named at all: both sides were compared, and no switch is under way.
pub(crate) fn may_compare(phase: Phase) -> bool {
    phase >= Phase::Verified && phase <= Phase::Ready
}

/// The table by which applications hear of the share.
fn flag(facts: &ReadFacts) -> Guarded {
    let seen = if facts.missing.is_empty() { "can be written".to_owned() } else { facts.missing.join("; ") };
    judged("flag", facts.missing.is_empty(), seen, "the flag can be written on both sides", "see there")
}

/// What is in quarantine is missing in every answer of the new side.
fn quarantine(facts: &ReadFacts) -> Guarded {
    let remedy = "`crossfade quarantine ls` names them; retry them, or discard what may be lost";
    judged("quarantine", facts.quarantined == 0, format!("{} changes", facts.quarantined), "none", remedy)
}

fn clean_pass(migration: &Migration, verified_within_ms: u64, now_us: i64) -> Guarded {
    let wanted = format!(
        "a comparison without a difference, not older than {}",
        Span(Duration::from_millis(verified_within_ms))
    );
    let passed_at_us = migration.clean_pass.as_ref().map(|pass| pass.at_us);
    clean(passed_at_us, verified_within_ms, now_us, wanted, "run `crossfade verify`")
}

fn gates(facts: &ReadFacts) -> Guarded {
    let seen = if facts.gates.is_empty() { "all hold".to_owned() } else { facts.gates.join("; ") };
    judged("gates", facts.gates.is_empty(), seen, "every gate of the spec", "mend what the gate names")
}
