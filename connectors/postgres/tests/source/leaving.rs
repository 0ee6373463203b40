//! What a source takes away when it leaves, under people who write.

use crate::support::*;
use crossfade_testkit::postgres::Version;
use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
};

const TABLES: usize = 12;
const ROUNDS: usize = 60;
const WRITERS: u64 = 6;

#[tokio::test(flavor = "multi_thread")]
async fn nobody_who_writes_sees_the_publication_go() {
    for version in Version::ALL {
        let tables: String =
            (0..TABLES).map(|n| format!("CREATE TABLE app.t{n} (id bigint PRIMARY KEY, note text);")).collect();
        let Some(fixture) = Fixture::new(version, "leaving", &format!("CREATE SCHEMA app; {tables}")).await else {
            return;
        };
        let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut writers = Vec::new();
        for writer in 0..WRITERS {
            let client = fixture.database.connect().await;
            let (stop, written) = (Arc::clone(&stop), Arc::clone(&written));
            writers.push(tokio::spawn(async move {
                for number in 0u64.. {
                    if stop.load(Relaxed) {
                        break;
                    }
                    let table = (number + writer) % TABLES as u64;
                    let id = number * WRITERS + writer;
                    let sql = format!("INSERT INTO app.t{table} VALUES ({id}, 'new'); UPDATE app.t{table} SET note = 'seen' WHERE id = {id}");
                    client.batch_execute(&sql).await.map_err(|error| error.as_db_error().map(ToString::to_string))?;
                    written.fetch_add(1, Relaxed);
                }
                Ok::<(), Option<String>>(())
            }));
        }
        let mut source = fixture.source();
        let name = fixture.config(&["app.*"]).object_name();
        let list = (0..TABLES).map(|n| format!("app.t{n}")).collect::<Vec<_>>().join(", ");
        for _ in 0..ROUNDS {
            fixture.database.execute(&format!("CREATE PUBLICATION {name} FOR TABLE {list}")).await;
            let before = written.load(Relaxed);
            while written.load(Relaxed) < before + WRITERS && writers.iter().all(|writer| !writer.is_finished()) {
                tokio::task::yield_now().await;
            }
            source.uninstall().await.unwrap();
        }
        stop.store(true, Relaxed);
        for writer in writers {
            assert_eq!(writer.await.unwrap(), Ok(()), "{version}: whoever writes met an error");
        }
        let left = fixture.database.value("SELECT count(*) FROM pg_publication").await;
        assert_eq!(left.as_deref(), Some("0"));
    }
}
