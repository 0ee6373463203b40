//! `verify --repair`: what differs is written as it should be, by the process that runs the migration; nothing newer is touched.
//!
//! Whoever compares knows which rows differ and reads them again from the source; the process that owns the sink writes them
//! between two deliveries. It is given rows, over its own control socket: they stand in no log and in no answer.

use super::{control::Shared, ends::SinkJob};
use crate::{
    error::{CliError, Exit},
    spec::Spec,
};
use bytes::Bytes;
use crossfade_connector::Inspect;
use crossfade_control::Command;
use crossfade_event::{Key, Position, Row, TableId};
use crossfade_log::EventLog;
use crossfade_observe::socket::{self, Refused};
use crossfade_pipeline::{RepairReport, Wanted};
use crossfade_state::WorkFolder;
use crossfade_verify::{Differences, Repairable, Subject, rows_to_repair};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Bytes of rows in one request, about.
const REQUEST_BYTES: usize = 256 << 10;

/// A larger row does not fit into a request at all.
const ROW_BYTES_MAX: usize = 900 << 10;

/// How long the log may take to come to where the rows were read.
const PATIENCE: Duration = Duration::from_secs(60);

/// What all repairs of one command did.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(super) struct Repaired {
    /// Rows that were written as they should be.
    pub(super) written: u64,
    /// Rows that should not have been there.
    pub(super) deleted: u64,
    /// Rows that the target refuses, or whose changes wait in quarantine.
    pub(super) refused: u64,
    /// Rows that cannot be told by a key, or are too large.
    pub(super) left_alone: u64,
}

/// One request of whoever compares.
#[derive(Debug, Serialize, Deserialize)]
struct Request {
    who: String,
    position: Option<Position>,
    rows: Vec<OneRow>,
}

#[derive(Debug, Serialize, Deserialize)]
struct OneRow {
    table: TableId,
    key: String,
    row: Option<String>,
    found: Option<String>,
}

/// Has the rows that differ written as they should be. Returns what was done, none of it where all was left to the stream.
pub(super) async fn repair<A: Inspect, B: Inspect>(
    spec: &Spec,
    subject: &Subject<'_>,
    source: &mut A,
    target: &mut B,
    differences: Differences,
) -> Result<Repaired, CliError> {
    if let Some(lookup) = subject.plan.lookups().first() {
        return Err(CliError::refused(format!(
            "verify --repair cannot write rows of {}: what it looks up in {} is read as it is now, and rows keep what was there at their own time",
            spec.name, lookup.table
        ))
        .hint("`crossfade replay` writes rows as the log has them"));
    }
    let (parts, left_alone) = rows_to_repair(subject, source, target, differences).await?;
    let mut repaired = Repaired { left_alone, ..Repaired::default() };
    let socket = WorkFolder::socket_path(&spec.folder());
    for (rows, position) in parts {
        let (requests, too_large) = in_requests(rows);
        repaired.left_alone += too_large;
        for rows in requests {
            let request = Request { who: crate::commands::folder::by_hand().who, position, rows };
            let body = serde_json::to_value(&request)
                .map_err(|error| CliError::failed(format!("asking for a repair: {error}")))?;
            let answer = socket::request(&socket, hyper::Method::POST, "/command/repair", Some(&body)).await?;
            let figure = |name: &str| answer.get(name).and_then(Value::as_u64).unwrap_or(0);
            repaired.written += figure("written");
            repaired.deleted += figure("deleted");
            repaired.refused += figure("refused");
        }
    }
    Ok(repaired)
}

/// As many rows as fit into a request; a large row has one of its own, and how many are too large for that is said last.
fn in_requests(rows: Vec<Repairable>) -> (Vec<Vec<OneRow>>, u64) {
    let mut too_large = 0;
    let mut requests: Vec<Vec<OneRow>> = Vec::new();
    let mut bytes = REQUEST_BYTES;
    for row in rows {
        let row = OneRow {
            table: row.table,
            key: to_hex(row.key.as_bytes()),
            row: row.row.as_ref().map(|row| to_hex(row.as_bytes())),
            found: row.found.as_ref().map(|row| to_hex(row.as_bytes())),
        };
        let length = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        let size = row.key.len() + length(&row.row) + length(&row.found);
        if size > ROW_BYTES_MAX {
            too_large += 1;
            continue;
        }
        if bytes + size > REQUEST_BYTES {
            requests.push(Vec::new());
            bytes = 0;
        }
        bytes += size;
        if let Some(last) = requests.last_mut() {
            last.push(row);
        }
    }
    (requests, too_large)
}

/// In the process that owns the sink: waits until the log has all up to where the rows were read, and writes them.
pub(super) async fn answer(shared: &Shared, body: Value) -> Result<Value, Refused> {
    let bad = |what: String| Refused::new(2, format!("no rows to repair: {what}"));
    let request: Request = serde_json::from_value(body).map_err(|error| bad(error.to_string()))?;
    let wanted: Vec<Wanted> =
        request.rows.iter().map(read).collect::<Option<_>>().ok_or_else(|| bad("damaged".to_owned()))?;
    let begun = Instant::now();
    while request.position > shared.log().tail().position {
        if begun.elapsed() > PATIENCE {
            return Err(Refused::new(
                Exit::Failed as u8,
                "the source is not being read up to where the rows were compared. See `crossfade status`, then verify again",
            ));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let rows = wanted.len();
    shared.command(&request.who, Command::Note { what: format!("repair of {rows} rows that differed") }).await?;
    shared.void(&request.who, "a repair has written the target").await?;
    let RepairReport { written, deleted, newer, refused } =
        shared.job(|answer| SinkJob::Repair(wanted, answer)).await?;
    Ok(json!({ "written": written, "deleted": deleted, "newer": newer, "refused": refused }))
}

fn read(row: &OneRow) -> Option<Wanted> {
    let parsed = |text: &Option<String>| match text {
        None => Some(None),
        Some(text) => from_hex(text).map(Some),
    };
    let (table, key) = (row.table, Key::from(from_hex(&row.key)?));
    Some(Wanted { table, key, row: parsed(&row.row)?, found: parsed(&row.found)? })
}

fn to_hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        text.push(char::from_digit(u32::from(byte >> 4), 16).unwrap_or('0'));
        text.push(char::from_digit(u32::from(byte & 15), 16).unwrap_or('0'));
    }
    text
}

fn from_hex(text: &str) -> Option<Row> {
    let digits = text.as_bytes();
    let byte = |pair: &[u8]| {
        let text = std::str::from_utf8(pair).ok()?;
        u8::from_str_radix(text, 16).ok()
    };
    let bytes: Vec<u8> = digits.chunks(2).map(byte).collect::<Option<_>>()?;
    Row::parse(Bytes::from(bytes)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossfade_event::Cell;

    fn row(text: &str) -> Row {
        [Cell::Bytes(text.as_bytes()), Cell::Null].into_iter().collect()
    }

    #[test]
    fn rows_travel_as_they_are_and_what_is_damaged_is_not_read() {
        let one = Repairable { table: TableId(7), key: Key::from(row("k")), row: Some(row("v")), found: None };
        let sent = in_requests(vec![one.clone()]).0.remove(0).remove(0);
        let read_again = read(&sent).unwrap();
        assert_eq!((read_again.table, &read_again.key, &read_again.row), (one.table, &one.key, &one.row));
        assert_eq!(read_again.found, None);
        assert!(read(&OneRow { row: Some("0".to_owned()), ..sent }).is_none());
        assert!(from_hex("zz").is_none() && from_hex("00").is_none());
    }

    #[test]
    fn a_request_holds_many_small_rows_or_one_that_is_large() {
        let of = |bytes: usize| Repairable {
            table: TableId(1),
            key: Key::from(row("k")),
            row: Some(row(&"x".repeat(bytes))),
            found: None,
        };
        let (requests, too_large) =
            in_requests(vec![of(10), of(10), of(REQUEST_BYTES), of(10), of(ROW_BYTES_MAX), of(10)]);
        assert_eq!(requests.iter().map(Vec::len).collect::<Vec<_>>(), [2, 1, 2]);
        assert_eq!(too_large, 1);
    }
}
