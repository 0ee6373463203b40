//! The guards of a switch: named predicates over what was seen. Pure; whoever looks passes the figures in.

use crate::{Direction, Facts, Guarded, Limits, Migration, Span, WayBack};
use std::time::Duration;

/// Every guard of a switch, in the order in which a person would mend what is wrong.
pub fn guards(migration: &Migration, before: Direction, facts: &Facts, limits: &Limits, now_us: i64) -> Vec<Guarded> {
    vec![
        rights(facts),
        caught_up(facts, limits),
        quarantine(facts),
        clean_pass(migration, before, facts, limits, now_us),
        gates(facts),
        oldest_writer(facts, limits),
        pause(facts, limits),
        approvals(migration, limits),
        dual_reads(migration, before),
    ]
}

/// A guard's verdict; a remedy is only there where it does not hold.
pub(crate) fn judged(
    guard: &str,
    holds: bool,
    seen: impl Into<String>,
    wanted: impl Into<String>,
    remedy: impl Into<String>,
) -> Guarded {
    let remedy = if holds { String::new() } else { remedy.into() };
    Guarded { guard: guard.to_owned(), holds, seen: seen.into(), wanted: wanted.into(), remedy }
}

fn span(ms: u64) -> String {
    Span(Duration::from_millis(ms)).to_string()
}

/// Roles, settings and free slots at both ends.
fn rights(facts: &Facts) -> Guarded {
    let seen = if facts.missing.is_empty() { "nothing is missing".to_owned() } else { facts.missing.join("; ") };
    judged("rights", facts.missing.is_empty(), seen, "every right and setting that the switch needs", "see there")
}

/// The sink follows closely enough that what is still on its way fits into the pause.
fn caught_up(facts: &Facts, limits: &Limits) -> Guarded {
    let most = limits.deadline_ms / 4;
    let seen = match facts.mark_ms {
        Some(ms) => format!("a mark was in the sink after {}", span(ms)),
        None => "a mark did not come into the sink in time".to_owned(),
    };
    let remedy = "let it catch up (`crossfade wait --caught-up`), or allow a longer --deadline";
    judged("caught-up", facts.mark_ms.is_some_and(|ms| ms <= most), seen, format!("within {}", span(most)), remedy)
}

/// What is in quarantine would be missing on the new side for ever.
fn quarantine(facts: &Facts) -> Guarded {
    let remedy = "`crossfade quarantine ls` names them; retry them, or discard what may be lost";
    judged("quarantine", facts.quarantined == 0, format!("{} changes", facts.quarantined), "none", remedy)
}

/// Both sides were compared, and agreed.
fn clean_pass(migration: &Migration, before: Direction, facts: &Facts, limits: &Limits, now_us: i64) -> Guarded {
    let wanted = format!("a comparison without a difference, not older than {}", span(limits.verified_within_ms));
    let (passed_at_us, remedy) = match (before, &facts.way_back) {
        (Direction::Cutover, _) => (migration.clean_pass.as_ref().map(|pass| pass.at_us), "run `crossfade verify`"),
        (Direction::Failback, Some(WayBack::Incomparable { why })) => {
            return judged("clean-pass", true, format!("not asked for: {why}"), wanted, "");
        }
        (Direction::Failback, Some(WayBack::Comparable { passed_at_us })) => {
            (*passed_at_us, "run `crossfade verify --reverse`")
        }
        (Direction::Failback, None) => (None, "run `crossfade verify --reverse`"),
    };
    clean(passed_at_us, limits.verified_within_ms, now_us, wanted, remedy)
}

/// Judges the age of a clean pass.
pub(crate) fn clean(passed_at_us: Option<i64>, within_ms: u64, now_us: i64, wanted: String, remedy: &str) -> Guarded {
    let age = passed_at_us.map(|at_us| now_us.saturating_sub(at_us).max(0) as u64 / 1000);
    let seen = match age {
        Some(ms) => format!("one of {} ago", span(ms - ms % 1000)),
        None => "none, or one that is void".to_owned(),
    };
    let holds = age.is_some_and(|ms| ms <= within_ms);
    judged("clean-pass", holds, seen, wanted, remedy)
}

fn gates(facts: &Facts) -> Guarded {
    let seen = if facts.gates.is_empty() { "all hold".to_owned() } else { facts.gates.join("; ") };
    judged("gates", facts.gates.is_empty(), seen, "every gate of the spec", "mend what the gate names")
}

/// A transaction that has written for longer than we would wait for it.
fn oldest_writer(facts: &Facts, limits: &Limits) -> Guarded {
    let wanted = format!("no transaction that has written for longer than {}", span(limits.lock_timeout_ms));
    let (holds, seen) = match &facts.oldest_writer {
        None => (true, "none writes".to_owned()),
        Some(one) => (one.age_ms <= limits.lock_timeout_ms, format!("{}, for {}", one.who, span(one.age_ms))),
    };
    judged("oldest-writer", holds, seen, wanted, "let it end, or end it, then ask again")
}

/// The pause that is to be expected fits into the deadline with room to spare.
fn pause(facts: &Facts, limits: &Limits) -> Guarded {
    let most = limits.deadline_ms / 2;
    let seen = facts.predicted_pause_ms.map_or_else(|| "not known".to_owned(), |ms| format!("about {}", span(ms)));
    let holds = facts.predicted_pause_ms.is_some_and(|ms| ms <= most);
    judged(
        "pause",
        holds,
        seen,
        format!("at most {}", span(most)),
        "wait for a quieter hour, or allow a longer --deadline",
    )
}

/// So many people as the spec asks for, each counted once.
fn approvals(migration: &Migration, limits: &Limits) -> Guarded {
    let names: Vec<&str> = migration.approvals.iter().map(|approval| approval.who.as_str()).collect();
    let seen = if names.is_empty() { "nobody".to_owned() } else { names.join(", ") };
    let holds = names.len() as u64 >= u64::from(limits.approvals);
    let wanted = match limits.approvals {
        0 => "not asked for".to_owned(),
        1 => "one person".to_owned(),
        many => format!("{many} people"),
    };
    judged("approvals", holds, seen, wanted, "`crossfade approve SPEC --reason …`, by another person each time")
}

/// The applications' own comparing has not ended by itself, or somebody has looked into it since.
fn dual_reads(migration: &Migration, before: Direction) -> Guarded {
    let why = migration.stepped_down.as_deref().filter(|_| before == Direction::Cutover);
    let seen = match why {
        Some(why) => format!("stepped down: {why}"),
        None if migration.dual_millionths > 0 => "compared, within their budgets".to_owned(),
        None => "have not stepped down".to_owned(),
    };
    let remedy = "find out why, then `crossfade dual-reads SPEC 5%` compares again; 0% says that it may stay so";
    judged("dual-reads", why.is_none(), seen, "not stepped down since somebody has set their share", remedy)
}
