//! A status for a person: a page for `crossfade status`, a line for a log.

use crate::{
    DeliverStatus, Overall, ProcessStatus, Standing, Status, SwitchStatus, VerifyStatus, WorkerStatus,
    words::{bytes, grouped, millis, per_second, percent, seconds},
};
use std::fmt::Write;

/// One line: where it stands, how fast, how far still.
pub fn plain_line(status: &Status) -> String {
    let mut line = status.phase.clone();
    match status.standing {
        Standing::Paused | Standing::Failed | Standing::Lost => {
            let word = match status.standing {
                Standing::Paused => "",
                Standing::Failed => "failed: ",
                _ => "lost: ",
            };
            // Writing into a string cannot fail.
            let _ = write!(line, ", {word}{}", status.reason.as_deref().unwrap_or_default());
        }
        Standing::Stopped => line.push_str(", not running"),
        Standing::Running => {}
    }
    if let Some(overall) = &status.overall {
        let _ = write!(line, ", {}", copy_words(status, overall));
    }
    if status.overall.is_none() || status.conservation.applied > 0 {
        let applied = status.conservation.applied;
        let _ = write!(line, ", {} applied ({})", grouped(applied), per_second(status.rates.applied_per_s));
    }
    if let (None, Some(ms)) = (&status.overall, status.lag.ms) {
        let _ = write!(line, ", lag {}", millis(ms));
    }
    if status.conservation.quarantined > 0 {
        let _ = write!(line, ", {} in quarantine", grouped(status.conservation.quarantined));
    }
    if let Some(retrying) = &status.retrying {
        let wait = if retrying.times == 0 { String::new() } else { format!(" in {}", millis(retrying.wait_ms)) };
        let _ = write!(line, ", {} retrying{wait}: {}", retrying.side, retrying.failure);
    }
    line
}

fn copy_words(status: &Status, overall: &Overall) -> String {
    let rate = if overall.rows_loaded == 0 { status.rates.copied_rows_per_s } else { status.rates.loaded_rows_per_s };
    let eta = overall.eta_s.map_or(String::new(), |left| format!(", {} left", seconds(left)));
    let (loaded, total) = (overall.rows_loaded, overall.rows_total);
    format!(
        "{} of about {} rows copied, {} in the target ({}), {}{eta}",
        grouped(overall.rows_copied),
        grouped(total),
        grouped(loaded),
        percent(loaded, total),
        per_second(rate).replace("/s", " rows/s"),
    )
}

/// A page.
pub fn render(status: &Status) -> String {
    let mut page = String::new();
    let mut line = |name: &str, text: String| {
        let _ = writeln!(page, "{name:<13} {text}");
    };
    line("migration", status.name.clone());
    if let Some(role) = &status.role {
        line("role", role.clone());
    }
    line("phase", phase_words(status));
    if let Some(reason) = &status.reason {
        line("why", reason.clone());
    }
    if let Some(remedy) = &status.remedy {
        line("remedy", remedy.clone());
    }
    if let Some(overall) = &status.overall {
        line("copy", copy_words(status, overall));
    }
    line("lag", lag_words(status));
    line("changes", changes_words(status));
    if status.lookup_misses > 0 {
        line("lookups", format!("{} found no row in this run", grouped(status.lookup_misses)));
    }
    if status.made > 0 {
        line("workers", format!("{} changes and rows came transformed in this run", grouped(status.made)));
    }
    for worker in &status.workers {
        line("worker", worker_words(worker));
    }
    for deliver in &status.delivers {
        line("deliver", deliver_words(deliver));
    }
    for process in &status.processes {
        line("process", process_words(process));
    }
    line(
        "speed",
        format!(
            "{} applied, {}/s into the log",
            per_second(status.rates.applied_per_s),
            bytes(status.rates.log_bytes_per_s as u64)
        ),
    );
    line("sink at", place_words(status.sink.position.as_deref(), status.sink.cut.as_deref()));
    let place = status.log.elsewhere.as_ref().map_or_else(|| bytes(status.log.bytes), |place| format!("in {place}"));
    let held = format!("{} to {}, {place}", status.log.start, status.log.end);
    line("log", if status.log.end.is_empty() { "-".to_owned() } else { held });
    for (name, text) in source_lines(status) {
        line(&name, text);
    }
    for gate in &status.gates {
        let verdict = if gate.holds { "holds" } else { "DOES NOT HOLD" };
        line("gate", format!("{} {verdict}: {}, at most {}, else {}", gate.gate, gate.measured, gate.max, gate.then));
    }
    if let Some(retrying) = &status.retrying {
        let times = if retrying.times == 0 { String::new() } else { format!(" (attempt {})", retrying.times) };
        line("retrying", format!("{}{times}: {}", retrying.side, retrying.failure));
    }
    for checkpoint in &status.checkpoints {
        let place = place_words(checkpoint.position.as_deref(), Some(&checkpoint.cut));
        line("checkpoint", format!("{} at {place}, {}", checkpoint.name, checkpoint.at));
    }
    for (name, text) in status.verify.iter().flat_map(VerifyStatus::lines) {
        line(name, text);
    }
    for (name, text) in status.switch.iter().flat_map(switch_lines) {
        line(name, text);
    }
    page.push_str(&table_lines(status));
    if let Some(beside) = &status.beside {
        page.push('\n');
        page.push_str(&render(beside));
    }
    page
}

fn switch_lines(switch: &SwitchStatus) -> Vec<(&'static str, String)> {
    let mut lines = vec![("authority", format!("the {} side, epoch {}", switch.authority, switch.epoch))];
    if let Some(at) = &switch.verified_at {
        lines.push(("verified", format!("without a difference, {at}")));
    }
    if let Some(why) = &switch.voided {
        lines.push(("verified", format!("no more: {why}")));
    }
    if let Some(share) = &switch.dual_reads {
        lines.push(("dual reads", share.clone()));
    }
    if let Some(why) = &switch.stepped_down {
        lines.push(("dual reads", format!("STEPPED DOWN: {why}")));
    }
    if !switch.approvals.is_empty() {
        lines.push(("agreed", switch.approvals.join(", ")));
    }
    for guard in switch.guards.iter().chain(&switch.read_guards).filter(|guard| !guard.holds) {
        lines.push((
            "guard",
            format!("{} SAYS NO: {}, wanted is {}; {}", guard.guard, guard.seen, guard.wanted, guard.remedy),
        ));
    }
    lines.push(("next", switch.next.clone()));
    lines
}

fn worker_words(worker: &WorkerStatus) -> String {
    let partitions: Vec<String> = worker.partitions.keys().map(u32::to_string).collect();
    let which = if partitions.is_empty() { "none yet".to_owned() } else { partitions.join(", ") };
    let before: u64 = worker.partitions.values().sum();
    let mut words = format!("process {}, partitions {which}, {} records before it", worker.pid, grouped(before));
    if let Some(waiting) = &worker.waiting {
        let _ = write!(words, "; waits: {waiting}");
    }
    words
}

fn deliver_words(deliver: &DeliverStatus) -> String {
    let partitions: Vec<String> = deliver.partitions.keys().map(u32::to_string).collect();
    let before: u64 = deliver.partitions.values().sum();
    let lead = if deliver.leads { ", has the lead" } else { "" };
    format!("{}, partitions {}, {} entries before it{lead}", deliver.process, partitions.join(", "), grouped(before))
}

fn process_words(process: &ProcessStatus) -> String {
    let mut words = format!("{}: {}", process.role, process.who);
    if !process.partitions.is_empty() {
        let partitions: Vec<String> = process.partitions.keys().map(u32::to_string).collect();
        let _ = write!(words, ", partitions {}", partitions.join(", "));
    }
    if process.role != "ingest" {
        let _ = write!(words, ", {} records before it", grouped(process.behind));
    }
    if let Some(waiting) = &process.waiting {
        let _ = write!(words, "; waits: {waiting}");
    }
    words
}

fn phase_words(status: &Status) -> String {
    let standing = match status.standing {
        Standing::Running => "running",
        Standing::Stopped => "not running",
        Standing::Paused => "paused",
        Standing::Failed => "failed",
        Standing::Lost => "lost",
    };
    match status.pid {
        Some(pid) => format!("{}, {standing} (process {pid})", status.phase),
        None => format!("{}, {standing} (as of {})", status.phase, status.at),
    }
}

fn changes_words(status: &Status) -> String {
    let c = &status.conservation;
    if status.role.as_deref() == Some("ingest") {
        return format!("{} read into the log", grouped(c.read));
    }
    format!(
        "{} read = {} applied + {} filtered + {} in quarantine + {} pending{}",
        grouped(c.read),
        grouped(c.applied),
        grouped(c.filtered),
        grouped(c.quarantined),
        grouped(u64::try_from(c.pending).unwrap_or(0)),
        if status.conserved { "" } else { "  DOES NOT ADD UP: stop, and report this" },
    )
}

fn lag_words(status: &Status) -> String {
    let mut words = Vec::new();
    words.extend(status.lag.ms.map(millis));
    // One of several processes sees how far both stand apart in the log, not what lies between.
    let what = if status.role.is_some() { "entries of the log" } else { "changes" };
    words.push(format!("{} {what}", grouped(status.lag.events)));
    words.extend(status.lag.bytes.map(bytes));
    words.join(", ")
}

fn place_words(position: Option<&str>, cut: Option<&str>) -> String {
    match (position, cut) {
        (Some(position), Some(cut)) => format!("position {position}, offset {cut}"),
        (None, Some(cut)) => format!("offset {cut}"),
        (Some(position), None) => format!("position {position}"),
        (None, None) => "-".to_owned(),
    }
}

/// The source's own words, field by field; what is null or empty is left out.
fn source_lines(status: &Status) -> Vec<(String, String)> {
    let Some(fields) = status.source.as_object() else { return Vec::new() };
    let words = |value: &serde_json::Value| match value {
        serde_json::Value::Null => None,
        serde_json::Value::String(text) => (!text.is_empty()).then(|| text.clone()),
        serde_json::Value::Array(items) if items.is_empty() => None,
        serde_json::Value::Array(items) => {
            let word = |item: &serde_json::Value| item.as_str().map_or_else(|| item.to_string(), str::to_owned);
            Some(items.iter().map(word).collect::<Vec<_>>().join(", "))
        }
        other => Some(other.to_string()),
    };
    let named = |(name, value): (&String, &serde_json::Value)| {
        let text = if name.ends_with("_bytes") { value.as_u64().map(bytes) } else { words(value) };
        text.map(|text| ("source".to_owned(), format!("{}: {text}", name.trim_end_matches("_bytes").replace('_', " "))))
    };
    fields.iter().filter_map(named).collect()
}

fn table_lines(status: &Status) -> String {
    let width = status.tables.iter().map(|table| table.table.chars().count()).max().unwrap_or(0).max(5);
    let mut lines = String::new();
    if !status.tables.is_empty() {
        let _ = writeln!(
            lines,
            "\n{:<width$}  {:<8} {:>14} {:>14} {:>9} {:>12}",
            "table", "state", "copied", "loaded", "chunks", "changes"
        );
    }
    for table in &status.tables {
        let chunks = format!("{}/{}", table.chunks_done, table.chunks);
        let _ = writeln!(
            lines,
            "{:<width$}  {:<8} {:>14} {:>14} {chunks:>9} {:>12}",
            table.table,
            table.state,
            grouped(table.rows_copied),
            grouped(table.rows_loaded),
            grouped(table.changes),
        );
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Committed, Counters, Rates, Retrying};
    use crossfade_control::Migration;
    use crossfade_event::TableName;

    fn status() -> Status {
        let counters = Counters::new();
        let table = TableName::new("public", "orders");
        counters.estimate(&table, 100_000);
        counters.ingested(45_000, 9_000_000, [(&table, 45_000)]);
        let tables = vec![(table.clone(), 20_000)];
        counters.committed(&Committed { loading: true, read: 20_000, applied: 20_000, tables, ..Committed::default() });
        let rates = Rates {
            copied_rows_per_s: 22_500.0,
            loaded_rows_per_s: 10_000.0,
            applied_per_s: 10_000.0,
            ..Rates::default()
        };
        let mut status = Status::new("shop", 0, &Migration::default(), &counters.totals(), rates).run_by(42);
        status.phase = "backfilling".into();
        status
    }

    #[test]
    fn a_line_says_where_how_fast_and_how_long() {
        assert_eq!(
            plain_line(&status()),
            "backfilling, 45,000 of about 100,000 rows copied, 20,000 in the target (20%), 10,000 rows/s, 8 s left, 20,000 applied (10,000/s)"
        );
        let mut streaming = status();
        streaming.overall = None;
        streaming.phase = "shadowing".into();
        streaming.lag.ms = Some(1_250);
        streaming.conservation.quarantined = 3;
        streaming.retrying =
            Some(Retrying { side: "sink".into(), failure: "connection refused".into(), times: 2, wait_ms: 400 });
        assert_eq!(
            plain_line(&streaming),
            "shadowing, 20,000 applied (10,000/s), lag 1.2 s, 3 in quarantine, sink retrying in 400 ms: connection refused"
        );
    }

    #[test]
    fn a_page_names_everything_once_and_shouts_only_when_it_must() {
        let mut status = status();
        status.source = serde_json::json!({ "retained_bytes": 3_145_728, "status": "reserved", "current": null, "uncaptured_tables": ["public.new"] });
        status.log.end = "512".into();
        status.log.start = "0".into();
        let page = render(&status);
        for words in [
            "migration     shop",
            "phase         backfilling, running (process 42)",
            "45,000 read = 20,000 applied + 0 filtered + 0 in quarantine + 25,000 pending\n",
            "source        retained: 3.0 MiB",
            "source        status: reserved",
            "source        uncaptured tables: public.new",
            "public.orders  copying          45,000         20,000",
        ] {
            assert!(page.contains(words), "{words} is missing from\n{page}");
        }
        assert!(!page.contains("current"), "{page}");
        status.conserved = false;
        assert!(render(&status).contains("DOES NOT ADD UP"));
    }
}
