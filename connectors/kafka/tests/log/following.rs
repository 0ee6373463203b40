//! A log that one process writes and another reads: the suite, appended here and read there; and what each hears of the
//! other. The two stand in one test process, with nothing in common but the brokers.

use super::*;
use crossfade_event::{Batch, Cut, SchemaVersion, TableId, TableSchema};
use crossfade_kafka::log::KafkaReader;
use crossfade_log::{EventLog, Lane, LogError, LogReader, Tail};
use crossfade_testkit::log_suite;
use std::{future::Future, sync::Arc, time::Duration};

/// Appends at one end; everything else is asked at the other one.
#[derive(Clone)]
struct Both {
    writer: KafkaLog,
    follower: KafkaLog,
}

/// The follower shows what the writer has a moment later.
async fn until(what: &str, reached: impl Fn() -> bool) {
    log_suite::soon(what, async {
        while !reached() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

impl EventLog for Both {
    type Reader = KafkaReader;

    fn partitions(&self) -> u32 {
        self.follower.partitions()
    }

    fn append(&self, batch: Batch) -> impl Future<Output = Result<Cut, LogError>> + Send + 'static {
        let (appending, both) = (self.writer.append(batch), self.clone());
        async move {
            let cut = appending.await?;
            // Positions move without entries, too; parts of a transaction move nothing.
            until("the follower to come so far", || {
                let (here, there) = (both.follower.tail(), both.writer.tail());
                here == there || there.cut != cut && here.cut.covers(&cut)
            })
            .await;
            Ok(cut)
        }
    }

    fn abandon(&self) -> impl Future<Output = Result<(), LogError>> + Send + 'static {
        self.writer.abandon()
    }

    fn read(&self, from: &Cut, lane: Lane) -> Result<KafkaReader, LogError> {
        self.follower.read(from, lane)
    }

    fn tail(&self) -> Tail {
        self.follower.tail()
    }

    fn start(&self) -> Cut {
        self.follower.start()
    }

    fn schema(&self, table: TableId, version: SchemaVersion) -> Option<Arc<TableSchema>> {
        self.follower.schema(table, version)
    }

    fn latest_schemas(&self) -> Vec<Arc<TableSchema>> {
        self.follower.latest_schemas()
    }

    fn hold(&self, consumer: &str, cut: &Cut) -> Result<(), LogError> {
        self.writer.hold(consumer, cut)
    }

    fn release(&self, consumer: &str) -> Result<(), LogError> {
        self.writer.release(consumer)
    }

    fn trim(&self, below: &Cut, force: bool) -> Result<Cut, LogError> {
        self.writer.trim(below, force)
    }
}

macro_rules! suite {
    ($($test:ident)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                let Some(kafka) = Kafka::shared() else { return };
                let make = || {
                    let prefix = kafka.prefix("followed");
                    let writer = open(kafka, &prefix, 3);
                    Both { writer, follower: follow(kafka, &prefix, 3) }
                };
                log_suite::$test(make).await;
            }
        )*
    };
}

suite! {
    every_kind_of_event_comes_back_as_it_was
    appends_land_in_the_order_of_the_calls
    sequences_are_the_order_of_the_whole_log
    the_cut_behind_a_backfills_beginning_holds_for_every_lane
    parts_are_visible_only_with_the_last_one
    an_empty_last_part_makes_a_transaction_whole
    an_abandoned_head_is_never_seen
    each_lane_gets_its_own
    reading_goes_on_exactly_where_a_cut_says
    a_place_beyond_the_end_is_refused
    a_reader_at_the_tail_wakes
    schemas_are_known
    a_reader_that_was_overtaken_is_told
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_appends_nothing_and_says_how_far_it_has_come() {
    let Some(kafka) = Kafka::shared() else { return };
    let prefix = kafka.prefix("followed");
    assert!(matches!(KafkaLog::open_following(options(kafka, &prefix, 2)), Err(LogError::Refused { .. })));
    let writer = open(kafka, &prefix, 2);
    let follower = follow(kafka, &prefix, 2);
    let batch =
        |n: u64| log_suite::transaction(n, (0..50).map(|k| log_suite::insert(&format!("{n}/{k}"), "v")).collect());
    log_suite::good(
        writer
            .append(log_suite::batch(
                1,
                vec![crossfade_event::Event::SchemaSeen(log_suite::schema(1, 1))],
                Some(log_suite::at(1, u32::MAX)),
                true,
            ))
            .await,
    );
    let middle = log_suite::good(writer.append(batch(2)).await);
    let end = log_suite::good(writer.append(batch(3)).await);
    until("the follower to have all", || follower.tail() == writer.tail()).await;
    assert!(matches!(follower.append(batch(4)).await, Err(LogError::ReadOnly { .. })));
    assert!(matches!(follower.trim(&end, false), Err(LogError::ReadOnly { .. })));
    // The writer keeps what the follower still needs, once it has heard of it.
    log_suite::good(follower.hold("deliver", &middle));
    until("the writer to hear of it", || writer.consumers() == [("deliver".to_owned(), middle.clone())]).await;
    assert_eq!(log_suite::good(writer.trim(&end, false)), middle);
    until("the follower to hear that it was trimmed", || follower.start() == middle).await;
    // Whoever opens the log for writing takes nothing from the follower.
    let successor = open(kafka, &prefix, 2);
    let last = log_suite::good(successor.append(batch(4)).await);
    assert!(matches!(writer.append(batch(5)).await, Err(LogError::Fenced { .. })));
    let mut reader = log_suite::good(follower.read(&end, Lane::Stream));
    let entries = log_suite::good(log_suite::soon("what the successor wrote", reader.next()).await);
    assert_eq!((entries.entries.len(), entries.next), (52, last));
    log_suite::good(follower.hold("deliver", &end));
    log_suite::good(follower.release("deliver"));
    until("the successor to hear of it", || successor.consumers().is_empty()).await;
}
