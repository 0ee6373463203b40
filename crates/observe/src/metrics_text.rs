//! A status in Prometheus' text form. One gauge or counter a line, all from the same moment; no client library, for
//! everything that is counted is in the status already.

use crate::{BrokerStatus, ClientStatus, Standing, Status};
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
    clients(&mut page, status);
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

type OfClient = (&'static str, &'static str, &'static str, fn(&ClientStatus) -> u64);
type OfBroker = (&'static str, &'static str, &'static str, fn(&BrokerStatus) -> f64);

/// The clients of a log that servers hold: a few purposes, however many clients, and as many brokers as there are.
fn clients(page: &mut Page, status: &Status) {
    if !status.log.behind.is_empty() {
        let name = "crossfade_log_partition_lag";
        page.head(name, "gauge", "Records of a partition of the log that the sink does not have.");
        for (partition, behind) in &status.log.behind {
            page.line(name, &[("partition", &partition.to_string())], *behind as f64);
        }
    }
    if status.clients.is_empty() {
        return;
    }
    let of_client: [OfClient; 7] = [
        ("crossfade_log_clients", "gauge", "Clients of the log's servers, by what they are for.", |c| c.clients),
        ("crossfade_log_client_queued_records", "gauge", "Records in the clients' queues.", |c| c.queued_records),
        ("crossfade_log_client_queued_bytes", "gauge", "Bytes in the clients' queues.", |c| c.queued_bytes),
        ("crossfade_log_client_sent_records_total", "counter", "Records sent.", |c| c.sent_records),
        ("crossfade_log_client_sent_bytes_total", "counter", "Bytes of records sent.", |c| c.sent_bytes),
        ("crossfade_log_client_received_records_total", "counter", "Records received.", |c| c.received_records),
        ("crossfade_log_client_received_bytes_total", "counter", "Bytes of records received.", |c| c.received_bytes),
    ];
    for (name, kind, help, of) in of_client {
        page.head(name, kind, help);
        for client in &status.clients {
            page.line(name, &[("client", &client.purpose)], of(client) as f64);
        }
    }
    let name = "crossfade_log_client_transactions";
    page.head(name, "gauge", "Clients whose transaction is in a state.");
    for client in &status.clients {
        for (state, count) in &client.transactions {
            page.line(name, &[("client", &client.purpose), ("state", state)], *count as f64);
        }
    }
    let of_broker: [OfBroker; 5] = [
        ("crossfade_log_broker_connections", "gauge", "Connections to a broker that are up.", |b| b.connected as f64),
        (
            "crossfade_log_broker_outstanding_requests",
            "gauge",
            "Requests to a broker that wait to be sent or answered.",
            |b| b.outstanding as f64,
        ),
        ("crossfade_log_broker_rtt_seconds", "gauge", "How long a broker's answers took lately, in the mean.", |b| {
            b.rtt_us as f64 / 1_000_000.0
        }),
        ("crossfade_log_broker_rtt_p99_seconds", "gauge", "The same, of the slowest hundredth.", |b| {
            b.rtt_p99_us as f64 / 1_000_000.0
        }),
        ("crossfade_log_broker_errors_total", "counter", "Requests that failed or were not answered in time.", |b| {
            b.errors as f64
        }),
    ];
    for (name, kind, help, of) in of_broker {
        page.head(name, kind, help);
        for client in &status.clients {
            for (number, broker) in &client.brokers {
                let labels = [("client", client.purpose.as_str()), ("broker", &number.to_string())];
                page.line(name, &labels, of(broker));
            }
        }
    }
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
        status.log.behind = [(0, 4), (7, 0)].into();
        let broker = BrokerStatus { connected: 1, outstanding: 2, rtt_us: 1_500, rtt_p99_us: 9_000, errors: 1 };
        status.clients = ["writer", "reader"]
            .map(|purpose| ClientStatus {
                purpose: purpose.to_owned(),
                sent_records: 7,
                transactions: [("Ready".to_owned(), 1)].into(),
                brokers: [(1, broker), (2, broker)].into(),
                ..ClientStatus::default()
            })
            .to_vec();
        let text = metrics_text(&status);
        let labels = "{migration=\"shop\",client=\"writer\",broker=\"2\"}";
        assert!(text.contains(&format!("crossfade_log_broker_rtt_seconds{labels} 0.0015\n")), "{text}");
        assert!(text.contains("crossfade_log_partition_lag{migration=\"shop\",partition=\"0\"} 4\n"), "{text}");
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
        let page = include_str!("../../../docs/operations.md");
        for name in typed {
            assert!(page.contains(&format!("`{name}`")), "docs/operations.md does not name {name}");
        }
    }
}
