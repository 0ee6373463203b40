//! `append BROKERS PREFIX PARTITIONS COUNT`: appends so many source transactions to a log on Kafka, going on behind those
//! that are there, and prints how fast that was. A test kills it at any moment; it also measures.
//!
//! Transaction `n` inserts the keys `n/0` to `n/4`; every seventh comes in parts, and has 300 keys.

use crossfade_event::{Batch, Event};
use crossfade_kafka::{Connection, LogOptions, log::KafkaLog};
use crossfade_log::{EventLog, LogError};
use crossfade_testkit::log_suite::{at, batch, insert, part, schema, transaction};
use std::{collections::VecDeque, env, time::Instant};

/// So many appends wait at once, as they do under ingest.
const IN_FLIGHT: usize = 200;

fn of(n: u64) -> Vec<Batch> {
    let changes = |range: std::ops::Range<u64>| range.map(|k| insert(&format!("{n}/{k}"), "a value of some length"));
    if !n.is_multiple_of(7) {
        return vec![transaction(n, changes(0..5).collect())];
    }
    let mut last = transaction(n, changes(200..300).collect());
    let began: Vec<Event> = last.events.drain(..1).map(|stamped| stamped.event).collect();
    vec![part(n, began), part(n, changes(0..100).collect()), part(n, changes(100..200).collect()), last]
}

#[tokio::main]
async fn main() -> Result<(), LogError> {
    let words: Vec<String> = env::args().skip(1).collect();
    let [brokers, prefix, partitions, count] = words.as_slice() else {
        eprintln!("append BROKERS PREFIX PARTITIONS COUNT");
        std::process::exit(2);
    };
    let number = |text: &str| text.parse::<u64>().unwrap_or_else(|_| panic!("{text} is not a number"));
    let partitions = number(partitions) as u32;
    let log = KafkaLog::open(LogOptions {
        partitions: Some(partitions),
        ..LogOptions::new(Connection::plain(brokers), prefix)
    })?;
    let first = log.tail().position.map_or(1, |position| position.commit + 1);
    let (began, mut in_flight, mut changes) = (Instant::now(), VecDeque::new(), 0u64);
    if first == 1 {
        let seen = vec![Event::SchemaSeen(schema(1, 1))];
        log.append(batch(1, seen, Some(at(1, u32::MAX)), true)).await?;
    }
    for n in first.max(2)..first + number(count) {
        for batch in of(n) {
            changes += batch.events.len() as u64;
            in_flight.push_back(log.append(batch));
        }
        while in_flight.len() > IN_FLIGHT {
            if let Some(append) = in_flight.pop_front() {
                append.await?;
            }
        }
    }
    for append in in_flight {
        append.await?;
    }
    let seconds = began.elapsed().as_secs_f64();
    println!("{changes} events in {seconds:.2} s, {:.0} a second", changes as f64 / seconds);
    Ok(())
}
