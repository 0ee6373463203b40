//! A status in Prometheus' text form. One gauge or counter a line, all from the same moment; no client library, for
//! everything that is counted is in the status already.

use crate::{Standing, Status};
use std::fmt::Write;

/// The metrics of a status.
pub fn metrics_text(status: &Status) -> String {
    let mut page = Page { text: String::new(), migration: escaped(&status.name) };
    let c = &status.conservation;
    page.head("crossfade_changes_total", "counter", "Changes and rows of this run, by what became of them.");
    for (outcome, count) in
        [("read", c.read), ("applied", c.applied), ("filtered", c.filtered), ("quarantined", c.quarantined)]
    {
        page.line("crossfade_changes_total", &[("outcome", outcome)], count as f64);
    }
    page.one(
        "crossfade_changes_pending",
        "gauge",
        "Changes and rows in the log that are not in the sink.",
        c.pending as f64,
    );
    page.one(
        "crossfade_changes_unaccounted",
        "gauge",
        "Changes that are missing from the sum; zero at all times.",
        c.missing() as f64,
    );
    if status.log.elsewhere.is_none() {
        page.one("crossfade_log_bytes", "gauge", "The event log's size on disk.", status.log.bytes as f64);
    }
    page.one("crossfade_epoch", "gauge", "The fence: workers with a lower one are refused.", status.epoch as f64);
    if let Some(ms) = status.lag.ms {
        page.one("crossfade_lag_seconds", "gauge", "How far the sink is behind the source.", ms as f64 / 1_000.0);
    }
    if let Some(bytes) = status.lag.bytes {
        page.one("crossfade_lag_bytes", "gauge", "The source's history that the sink does not have.", bytes as f64);
    }
    if let Some(bytes) = status.source.get("retained_bytes").and_then(serde_json::Value::as_u64) {
        page.one("crossfade_source_retained_bytes", "gauge", "What the source keeps for us.", bytes as f64);
    }
    standings(&mut page, status);
    tables(&mut page, status);
    if !status.gates.is_empty() {
        page.head("crossfade_gate_holds", "gauge", "Whether a gate holds.");
        for gate in &status.gates {
            page.line("crossfade_gate_holds", &[("gate", &gate.gate)], f64::from(u8::from(gate.holds)));
        }
    }
    page.text
}

fn standings(page: &mut Page, status: &Status) {
    page.head("crossfade_phase", "gauge", "1 for the phase that the migration is in.");
    page.line("crossfade_phase", &[("phase", &status.phase)], 1.0);
    page.head("crossfade_standing", "gauge", "1 for how the migration stands.");
    for (name, standing) in [
        ("running", Standing::Running),
        ("stopped", Standing::Stopped),
        ("paused", Standing::Paused),
        ("failed", Standing::Failed),
        ("lost", Standing::Lost),
    ] {
        page.line("crossfade_standing", &[("standing", name)], f64::from(u8::from(status.standing == standing)));
    }
    let retrying = status.retrying.as_ref().map_or(0, |retrying| retrying.times);
    page.one("crossfade_retries_in_a_row", "gauge", "Failed attempts since the last one that worked.", retrying.into());
}

type Figure = (&'static str, &'static str, fn(&crate::TableStatus) -> u64);

fn tables(page: &mut Page, status: &Status) {
    let figures: [Figure; 4] = [
        ("crossfade_table_rows_estimate", "About how many rows the table has.", |table| table.rows_estimate),
        ("crossfade_table_rows_copied", "Rows of the table's copy that are in the log.", |table| table.rows_copied),
        ("crossfade_table_rows_loaded", "Rows of the table's copy that are in the sink.", |table| table.rows_loaded),
        ("crossfade_table_changes", "Changes of the stream that were delivered in this run.", |table| table.changes),
    ];
    for (name, help, of) in figures {
        page.head(name, "gauge", help);
        for table in &status.tables {
            page.line(name, &[("table", &table.table)], of(table) as f64);
        }
    }
}

struct Page {
    text: String,
    migration: String,
}

impl Page {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        // Writing into a string cannot fail.
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn line(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        let labels = labels.iter().fold(format!("migration=\"{}\"", self.migration), |mut all, (label, value)| {
            let _ = write!(all, ",{label}=\"{}\"", escaped(value));
            all
        });
        let _ = writeln!(self.text, "{name}{{{labels}}} {value}");
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, value: f64) {
        self.head(name, kind, help);
        self.line(name, &[], value);
    }
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Committed, Counters, Rates};
    use crossfade_control::Migration;
    use crossfade_event::TableName;
    use std::collections::BTreeSet;

    #[test]
    fn every_line_is_one_that_prometheus_reads() {
        let counters = Counters::new();
        counters.ingested(3, 10, [(&TableName::new("pub\"lic", "a\\b\nc"), 3)]);
        counters.committed(&Committed { read: 1, applied: 1, ..Committed::default() });
        let mut status = Status::new("shop", 0, &Migration::default(), &counters.totals(), Rates::default());
        status.lag.ms = Some(1_500);
        status.gates = crossfade_control::evaluate(&Default::default(), &Default::default());
        status.source = serde_json::json!({ "retained_bytes": 77 });
        let text = metrics_text(&status);
        assert!(text.contains("crossfade_changes_total{migration=\"shop\",outcome=\"applied\"} 1\n"), "{text}");
        assert!(text.contains("crossfade_lag_seconds{migration=\"shop\"} 1.5\n"), "{text}");
        assert!(text.contains("table=\"pub\\\"lic.a\\\\b\\nc\"} 3\n"), "{text}");
        assert!(text.contains("crossfade_source_retained_bytes{migration=\"shop\"} 77\n"), "{text}");
        let (mut typed, mut series) = (BTreeSet::new(), BTreeSet::new());
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                assert!(typed.insert(rest.split(' ').next().unwrap().to_owned()), "{rest} is typed twice");
            } else if !line.starts_with("# HELP ") {
                let (name, rest) = line.split_once('{').unwrap();
                assert!(typed.contains(name), "{name} has no type");
                let (labels, value) = rest.rsplit_once("} ").unwrap();
                assert!(value.parse::<f64>().is_ok(), "{line}");
                assert!(series.insert((name.to_owned(), labels.to_owned())), "{line} comes twice");
            }
        }
        assert!(text.ends_with('\n'));
    }
}
