//! How fast the embedded log takes and gives records of 220 bytes in batches of 400, against plain file writes of the
//! same payload bytes. `cargo run --release -p crossfade-log --example append_bench [FOLDER] [BATCHES] [ROUNDS]`.
//!
//! Peer and log take turns, and who goes first alternates; the figures are medians. "one at a time" waits for each
//! append before the next; "in flight" keeps up to 32, as ingest does, so that group commit can work; the raw writer
//! then syncs each batch, for it has no group commit.

use crossfade_event::{
    Batch, Cell, Change, Column, ColumnType, Event, Format, Identity, Logical, Op, Position, Row, SchemaVersion,
    SourceId, Stamped, TableId, TableName, TableSchema,
};
use crossfade_log::{
    EventLog, Lane, LogReader,
    embedded::{Embedded, Options},
};
use std::{
    collections::VecDeque,
    error::Error,
    fs::File,
    io::Write,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

const RECORDS: usize = 400;
const ROW_BYTES: usize = 220;

type Outcome = Result<Duration, Box<dyn Error>>;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let dir = arguments.next().map_or_else(std::env::temp_dir, Into::into).join("crossfade-append-bench");
    let batches: usize = arguments.next().map_or(Ok(1000), |text| text.parse())?;
    let rounds: usize = arguments.next().map_or(Ok(7), |text| text.parse())?;
    std::fs::create_dir_all(&dir)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let work = Work::new(batches);
    for (name, sync, in_flight) in [
        ("synced, one at a time", true, 1),
        ("synced, 32 in flight", true, 32),
        ("unsynced, one at a time", false, 1),
        ("unsynced, 32 in flight", false, 32),
    ] {
        let (mut raw, mut ours) = (Vec::new(), Vec::new());
        for round in 0..rounds {
            for turn in 0..2 {
                if (round + turn) % 2 == 0 {
                    raw.push(work.raw(&dir, sync)?);
                } else {
                    ours.push(runtime.block_on(work.append(&dir, sync, in_flight))?);
                }
            }
        }
        print(name, &work, &mut raw, &mut ours);
    }
    let (mut raw, mut ours) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        raw.push(work.raw_read(&dir)?);
        ours.push(runtime.block_on(work.read(&dir))?);
    }
    print("reading from the page cache", &work, &mut raw, &mut ours);
    std::fs::remove_dir_all(&dir)?;
    Ok(())
}

fn print(name: &str, work: &Work, raw: &mut [Duration], ours: &mut [Duration]) {
    let (raw_median, ours_median) = (median(raw), median(ours));
    let rate = |time: Duration| (work.batches * RECORDS) as f64 / time.as_secs_f64() / 1e6;
    let spread = |times: &[Duration]| {
        let first = times.first().map_or(0.0, |time| rate(*time));
        let last = times.last().map_or(0.0, |time| rate(*time));
        format!("{last:.2}–{first:.2}")
    };
    println!(
        "{name}: raw {:.2} M records/s ({}), log {:.2} M records/s ({}), ratio {:.2}",
        rate(raw_median),
        spread(raw),
        rate(ours_median),
        spread(ours),
        raw_median.as_secs_f64() / ours_median.as_secs_f64()
    );
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

struct Work {
    batches: usize,
    schema: Arc<TableSchema>,
    row: Row,
    payload: Vec<u8>,
}

impl Work {
    fn new(batches: usize) -> Self {
        let column = |name: &str, key| Column {
            name: name.into(),
            type_: ColumnType { name: "text".into(), native_id: 25, logical: Logical::Text, format: Format::PgText },
            key,
            nullable: false,
            native_id: 0,
            default: None,
        };
        let schema = TableSchema {
            id: TableId(1),
            version: SchemaVersion(1),
            name: TableName::new("public", "orders"),
            columns: vec![column("id", Some(0)), column("note", None)],
            identity: Identity::Key,
            native_id: 0,
        };
        let text = vec![b'x'; ROW_BYTES - 2 - 8 - 8];
        let row: Row = [Cell::Bytes(b"12345678"), Cell::Bytes(&text)].into_iter().collect();
        let payload = row.as_bytes().repeat(RECORDS);
        Self { batches, schema: Arc::new(schema), row, payload }
    }

    fn batch(&self, number: u64) -> Batch {
        let source = SourceId(1);
        let position = |ordinal| Position { source, timeline: 1, commit: number, ordinal };
        let mut events: Vec<Stamped> = (0..RECORDS as u32)
            .map(|ordinal| Stamped {
                position: position(ordinal),
                event: Event::Changed(Change {
                    table: TableId(1),
                    schema: SchemaVersion(1),
                    op: Op::Insert,
                    old: None,
                    new: Some(self.row.clone()),
                }),
            })
            .collect();
        if number == 0 {
            events.insert(0, Stamped { position: position(0), event: Event::SchemaSeen(self.schema.clone()) });
        }
        Batch { events, upto: Some(position(u32::MAX)), whole: true }
    }

    fn raw(&self, dir: &Path, sync: bool) -> Outcome {
        let path = dir.join("raw");
        let mut file = File::create(&path)?;
        let started = Instant::now();
        for _ in 0..self.batches {
            file.write_all(&self.payload)?;
            if sync {
                file.sync_data()?;
            }
        }
        Ok(started.elapsed())
    }

    async fn append(&self, dir: &Path, sync: bool, in_flight: usize) -> Outcome {
        let dir = dir.join("log");
        if dir.exists() {
            std::fs::remove_dir_all(&dir)?;
        }
        let log = Embedded::open(&dir, Options { sync, ..Options::default() })?;
        let mut pending = VecDeque::new();
        let mut took = Duration::ZERO;
        let mut number = 0;
        while number < self.batches as u64 {
            // Made beforehand, as the raw writer's payload is, but not long before: in use they come fresh from the source.
            let some: Vec<Batch> = (number..self.batches as u64).take(32).map(|number| self.batch(number)).collect();
            number += some.len() as u64;
            let started = Instant::now();
            for batch in some {
                if pending.len() == in_flight
                    && let Some(oldest) = pending.pop_front()
                {
                    oldest.await?;
                }
                pending.push_back(Box::pin(log.append(batch)));
            }
            for append in pending.drain(..) {
                append.await?;
            }
            took += started.elapsed();
        }
        Ok(took)
    }

    fn raw_read(&self, dir: &Path) -> Outcome {
        let started = Instant::now();
        let bytes = std::fs::read(dir.join("raw"))?.len();
        if bytes != self.batches * self.payload.len() {
            return Err("the raw file has another length".into());
        }
        Ok(started.elapsed())
    }

    async fn read(&self, dir: &Path) -> Outcome {
        let log = Embedded::open(dir.join("log"), Options::default())?;
        let end = log.tail().cut;
        let started = Instant::now();
        let mut reader = log.read(&log.start(), Lane::All)?;
        let mut records = 0;
        loop {
            let entries = reader.next().await?;
            records += entries.entries.len();
            if entries.next == end {
                break;
            }
        }
        let elapsed = started.elapsed();
        let expected = self.batches * RECORDS + 1;
        if records == expected { Ok(elapsed) } else { Err(format!("{records} records, not {expected}").into()) }
    }
}
