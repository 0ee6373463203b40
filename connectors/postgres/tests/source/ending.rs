//! When a backfill's end may be said: not before the stream has brought what the chunks saw.

use crate::support::*;
use crossfade_event::Event;
use crossfade_testkit::postgres::Version;
use std::time::{Duration, Instant};

const TABLES: &str = "CREATE SCHEMA app; CREATE TABLE app.bulk (id int PRIMARY KEY, pad text);
    INSERT INTO app.bulk SELECT n, repeat('x', 1000) FROM generate_series(1, 4000) n;
    CREATE TABLE app.noise (id int PRIMARY KEY, pad text);
    CREATE TABLE app.seats (id int PRIMARY KEY, seat int UNIQUE);
    INSERT INTO app.seats SELECT n, n FROM generate_series(1, 200) n;";

fn has_said_it(log: &Log) -> bool {
    log.count(|event| matches!(event, Event::BackfillEnded { .. })) > 0
}

fn places(log: &Log) -> (usize, u64) {
    let ended = |event: &Event| matches!(event, Event::BackfillEnded { .. });
    let index = log.events.iter().position(|stamped| ended(&stamped.event)).expect("the backfill has not ended");
    (index, log.events[index].position.commit)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_backfill_waits_until_the_stream_has_what_the_chunks_saw() {
    for version in [Version::V15, Version::V18] {
        let Some(fixture) = Fixture::new(version, "ending", TABLES).await else { return };
        // One worker, and nobody takes its rows yet: it does not come to the seats, and sees them as they are later.
        let mut config = fixture.config(&["app.*"]);
        config.snapshot.workers = 1;
        let mut source = crossfade_postgres::PostgresSource::new(config).unwrap();
        let mut log = Log::default();
        open(&mut source, &mut log).await;
        // A backlog that leaves no row, so that only the stream is slow.
        let noise =
            "INSERT INTO app.noise SELECT n, repeat('x', 1000) FROM generate_series(1, 500) n; DELETE FROM app.noise";
        for _ in 0..120 {
            fixture.database.execute(&format!("BEGIN; {noise}; COMMIT")).await;
        }
        let swap = "UPDATE app.seats SET seat = -1 WHERE id = 1; UPDATE app.seats SET seat = 1 WHERE id = 2;
            UPDATE app.seats SET seat = 2 WHERE id = 1";
        fixture.database.execute(&format!("BEGIN; {swap}; COMMIT")).await;
        ingest_all(&fixture, &mut source, &mut log).await;
        let (ended, at) = places(&log);
        let swap = log.schema("app.seats").id;
        let last = log
            .events
            .iter()
            .rposition(|stamped| matches!(&stamped.event, Event::Changed(change) if change.table == swap));
        let last = last.expect("the exchange of the seats is in the stream");
        let rows = log.events.iter().rposition(|stamped| matches!(stamped.event, Event::Rows(_))).unwrap();
        assert!(rows < last, "the rows were copied before the stream came to the exchange, or nothing is tested");
        assert!(ended > last, "{version}: the end is said at {ended}, and a change that the copy saw comes at {last}");
        assert!(at >= log.events[last].position.commit);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_database_says_the_end_at_once_also_after_a_restart() {
    for version in Version::ALL {
        let Some(fixture) = Fixture::new(version, "ending_idle", TABLES).await else { return };
        let mut config = fixture.config(&["app.*"]);
        config.heartbeat = Duration::ZERO;
        let mut source = crossfade_postgres::PostgresSource::new(config.clone()).unwrap();
        let mut log = Log::default();
        open(&mut source, &mut log).await;
        // Visible, and not flushed by anybody.
        fixture.database.execute("SET synchronous_commit = off; UPDATE app.seats SET seat = seat + 1000").await;
        let began = Instant::now();
        while !has_said_it(&log) {
            take(&mut source, &mut log, 1).await;
            assert!(began.elapsed() < PATIENCE, "{version}: the end does not come");
        }
        drop(source);
        // All rows are in the log, and only the last word is missing.
        let (ended, _) = places(&log);
        log.events.truncate(ended);
        let mut source = crossfade_postgres::PostgresSource::new(config).unwrap();
        open(&mut source, &mut log).await;
        let began = Instant::now();
        while !has_said_it(&log) {
            take(&mut source, &mut log, 1).await;
            assert!(began.elapsed() < PATIENCE, "{version}: the end does not come again");
        }
        ingest_all(&fixture, &mut source, &mut log).await;
    }
}
