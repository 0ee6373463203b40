//! What the status says of a switch: who has the authority, what stands in the way, and what to do next.

use crossfade_control::{Guarded, Migration, Percent, Phase};
use serde::{Deserialize, Serialize};

/// A switch, as far as it has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwitchStatus {
    /// Which side the applications write: `old` or `new`; while a switch has no end, what `crossfade.authority` was last
    /// heard to say.
    pub authority: String,
    /// The authority's epoch: a writer with a lower one is refused.
    pub epoch: u64,
    /// The side that a switch under way goes to; absent without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub towards: Option<String>,
    /// When both sides were last compared without a difference, ISO 8601 UTC; `null` where none counts.
    pub verified_at: Option<String>,
    /// Why the last comparison without a difference counts no more; absent while one counts, or none was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub voided: Option<String>,
    /// The share of reads that both sides answer, such as `5%`.
    pub dual_reads: Option<String>,
    /// Why dual reads have ended by themselves, until somebody sets their share again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stepped_down: Option<String>,
    /// What the guards said when a larger share was asked for last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub read_guards: Vec<Guarded>,
    /// Who has agreed to the next switch.
    pub approvals: Vec<String>,
    /// What the guards said last; each that does not hold says what would allow it.
    pub guards: Vec<Guarded>,
    /// What to do next.
    pub next: String,
}

impl SwitchStatus {
    /// `None` before the sink follows the source.
    pub(crate) fn of(migration: &Migration, name_of: impl Fn(i64) -> String) -> Option<Self> {
        let phase = migration.phase;
        if phase < Phase::Shadowing || phase > Phase::Done {
            return None;
        }
        let untouched = phase == Phase::Shadowing && migration.authority.epoch == 0;
        let is_unasked = migration.judgement.is_none() && migration.reads_judgement.is_none();
        let is_unsaid = migration.stepped_down.is_none() && migration.voided.is_none();
        if untouched && is_unasked && is_unsaid && migration.approvals.is_empty() {
            return None;
        }
        Some(Self {
            authority: migration.authority.side.to_string(),
            epoch: migration.authority.epoch,
            towards: migration.intent.map(|intent| intent.direction.to().to_string()),
            verified_at: migration.clean_pass.as_ref().map(|pass| name_of(pass.at_us)),
            voided: migration.voided.as_ref().map(|voided| voided.why.clone()),
            dual_reads: (migration.dual_millionths > 0)
                .then(|| Percent::from_millionths(migration.dual_millionths).to_string()),
            stepped_down: migration.stepped_down.clone(),
            read_guards: migration.reads_judgement.as_ref().map(|judged| judged.guards.clone()).unwrap_or_default(),
            approvals: migration.approvals.iter().map(|approval| approval.who.clone()).collect(),
            guards: migration.judgement.as_ref().map(|judgement| judgement.guards.clone()).unwrap_or_default(),
            next: next(migration).to_owned(),
        })
    }

    /// A switch was begun, and nobody is there who knows its end: what the row itself says, if it could be asked.
    pub fn without_an_end(&mut self, row: Option<(String, u64)>) {
        let command = if self.towards.as_deref() == Some("old") { "failback" } else { "cutover" };
        self.next = format!(
            "`crossfade {command}` (or `crossfade run`): a switch was begun and its process has ended; it completes what was \
             decided, or takes back what was not. Nobody is held up: the freeze has ended with the process"
        );
        if let Some((side, epoch)) = row {
            (self.authority, self.epoch) = (side, epoch);
        }
    }
}

fn next(migration: &Migration) -> &'static str {
    match migration.phase {
        Phase::Verified | Phase::Shadowing if migration.stepped_down.is_some() => {
            "find out why dual reads have stepped down; then `crossfade dual-reads` compares again, or with 0% says that it may stay so"
        }
        Phase::Verified | Phase::DualReading | Phase::Ready => {
            "`crossfade cutover --dry-run` asks every guard; `crossfade cutover` switches"
        }
        phase if phase.is_switching() => "a switch is under way; it ends by its deadline",
        Phase::Switched | Phase::Soaking if migration.authority.to_route => {
            "`crossfade cutover` again: the switch is made, and not everybody has been told"
        }
        Phase::Switched | Phase::Soaking => {
            "`crossfade run` keeps the old side exact; `crossfade failback` takes the applications back to it"
        }
        _ if migration.authority.to_route => {
            "`crossfade failback` again: the old side has the authority, and not everybody has been told"
        }
        Phase::Contracting | Phase::Done => "nothing",
        _ => "`crossfade verify` compares both sides; a switch asks for that",
    }
}
