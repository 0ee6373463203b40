//! A database and its twin. The one is migrated while an application writes it; the other is only written the same, in the same
//! order and by the names that its columns always had. After a rollback both must be equal: every row of every table, and
//! whatever the catalog knows.

use crate::desk::rows;
use crossfade_testkit::{
    compare::assert_same,
    postgres::{Database, connect},
    wait::wait_for_blocking,
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::Duration,
};
use tokio_postgres::{Client, SimpleQueryMessage};

/// Everything that a migration could leave in a database, but for rows. `:name` is the migration's, for what the whole server has.
const CATALOG: &str = "
WITH spaces AS (SELECT oid, nspname FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'),
 relations AS (SELECT c.* FROM pg_class c JOIN spaces n ON n.oid = c.relnamespace)
SELECT concat_ws('|', 'schema', nspname, nspacl) FROM pg_namespace WHERE oid IN (SELECT oid FROM spaces)
UNION ALL SELECT concat_ws('|', 'relation', oid::regclass, relkind, relreplident, relrowsecurity, relacl, reloptions, obj_description(oid, 'pg_class'))
  FROM relations
UNION ALL SELECT concat_ws('|', 'column', a.attrelid::regclass, row_number() OVER (PARTITION BY a.attrelid ORDER BY a.attnum), a.attname,
    format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity, a.attgenerated, a.attstorage, a.attstattarget, a.attacl,
    pg_get_expr(d.adbin, d.adrelid), col_description(a.attrelid, a.attnum))
  FROM pg_attribute a JOIN relations r ON r.oid = a.attrelid LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
  WHERE a.attnum > 0 AND NOT a.attisdropped
UNION ALL SELECT concat_ws('|', 'constraint', conrelid::regclass, conname, pg_get_constraintdef(oid), convalidated)
  FROM pg_constraint WHERE connamespace IN (SELECT oid FROM spaces)
UNION ALL SELECT concat_ws('|', 'index', pg_get_indexdef(indexrelid), indisvalid, indisreplident, indisclustered)
  FROM pg_index WHERE indrelid IN (SELECT oid FROM relations)
UNION ALL SELECT concat_ws('|', 'trigger', pg_get_triggerdef(oid), tgenabled) FROM pg_trigger WHERE NOT tgisinternal
UNION ALL SELECT concat_ws('|', 'rule', pg_get_ruledef(oid)) FROM pg_rewrite WHERE ev_class IN (SELECT oid FROM relations)
UNION ALL SELECT concat_ws('|', 'function', oid::regprocedure, md5(prosrc), proacl) FROM pg_proc WHERE pronamespace IN (SELECT oid FROM spaces)
UNION ALL SELECT concat_ws('|', 'type', oid::regtype, typtype) FROM pg_type
  WHERE typnamespace IN (SELECT oid FROM spaces) AND typrelid = 0 AND typelem = 0
UNION ALL SELECT concat_ws('|', 'policy', polrelid::regclass, polname) FROM pg_policy
UNION ALL SELECT concat_ws('|', 'statistics', stxrelid::regclass, stxname) FROM pg_statistic_ext
UNION ALL SELECT concat_ws('|', 'event trigger', evtname) FROM pg_event_trigger
UNION ALL SELECT concat_ws('|', 'extension', extname) FROM pg_extension
UNION ALL SELECT concat_ws('|', 'defaults', defaclacl) FROM pg_default_acl
UNION ALL SELECT concat_ws('|', 'publication', pubname) FROM pg_publication
UNION ALL SELECT concat_ws('|', 'slot', slot_name) FROM pg_replication_slots WHERE database = current_database()
UNION ALL SELECT concat_ws('|', 'settings', setconfig) FROM pg_db_role_setting
  WHERE setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database())
UNION ALL SELECT concat_ws('|', 'origin', roname) FROM pg_replication_origin
  WHERE roname LIKE 'crossfade_' || translate(':name', '-', '_') || '%' AND current_database() NOT LIKE 'twin%'";

/// What the catalog knows of a database, of a migration by that name as well.
pub(crate) async fn catalog(database: &Database, name: &str) -> crossfade_testkit::compare::Rows {
    rows(database, &CATALOG.replace(":name", name)).await
}

/// What the n-th transaction of an application says, by the names of a side: 0 is the old one.
pub(crate) type Work = fn(u64, usize) -> String;

/// Both of them.
pub(crate) struct Twins {
    /// The one that is migrated.
    pub(crate) database: Database,
    twin: Database,
    /// The migration's name.
    name: &'static str,
    /// Transactions begun with.
    next: u64,
}

/// The application at work.
pub(crate) struct Author {
    stop: Arc<AtomicBool>,
    /// Commits on either side.
    committed: Arc<[AtomicU64; 2]>,
    work: Work,
    thread: Option<JoinHandle<u64>>,
}

impl Drop for Author {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Twins {
    /// `database` and `twin` hold the same.
    pub(crate) fn of(database: Database, twin: Database, name: &'static str) -> Self {
        Self { database, twin, name, next: 0 }
    }

    /// Does the same in both.
    pub(crate) async fn execute(&self, sql: &str) {
        self.database.execute(sql).await;
        self.twin.execute(sql).await;
    }

    /// Lets the application write; one that `asks` begins each transaction by asking for the side.
    pub(crate) fn write(&self, work: Work, asks: bool) -> Author {
        let (stop, committed) = (Arc::new(AtomicBool::new(false)), Arc::new([AtomicU64::new(0), AtomicU64::new(0)]));
        let (over, counts) = (Arc::clone(&stop), Arc::clone(&committed));
        let (url, asked, first) = (self.database.url.clone(), asks.then_some(self.name), self.next);
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let client = connect(&url).await.unwrap();
                let mut number = first;
                while !over.load(Relaxed) {
                    match transaction(&client, asked, |side| work(number, side)).await {
                        Ok(side) => {
                            counts[side].fetch_add(1, Relaxed);
                            number += 1;
                        }
                        // Both, the application and who changes its tables, hold what the other one wants.
                        Err(error) if error.code().is_some_and(|code| code.code() == "40P01") => {
                            client.batch_execute("ROLLBACK").await.unwrap();
                        }
                        Err(error) => panic!("the application cannot write: {error:?}\n{}", work(number, 0)),
                    }
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                number
            })
        });
        Author { stop, committed, work, thread: Some(thread) }
    }

    /// Lets the application end, and the twin have what it wrote.
    pub(crate) async fn stop(&mut self, mut author: Author) {
        author.stop.store(true, Relaxed);
        let Some(thread) = author.thread.take() else { return };
        let end = thread.join().unwrap_or_else(|_| panic!("the application panicked"));
        let client = self.twin.connect().await;
        for first in (self.next..end).step_by(100) {
            let numbers = first..end.min(first + 100);
            let sql: String = numbers.map(|number| format!("BEGIN; {}; COMMIT;\n", (author.work)(number, 0))).collect();
            client.batch_execute(&sql).await.unwrap_or_else(|error| panic!("{error:?}\nin: {sql}"));
        }
        self.next = end;
    }

    /// Fails unless both are equal, while nobody writes.
    pub(crate) async fn assert_same(&self, phase: &str) {
        let what = format!("after {phase} was taken back");
        let (ours, twins) = (catalog(&self.database, self.name).await, catalog(&self.twin, self.name).await);
        assert_same(&format!("the catalog {what}"), &ours, &twins);
        let tables = "SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
            WHERE relkind = 'r' AND nspname !~ '^pg_' AND nspname <> 'information_schema' ORDER BY 1";
        let tables: Vec<String> = rows(&self.twin, tables).await.iter().filter_map(|row| row[0].clone()).collect();
        assert!(!tables.is_empty());
        for table in tables {
            // A few rows are told as they are; of millions, by how many of a thousand shares they differ.
            let many = self.twin.value(&format!("SELECT count(*) > 200000 FROM {table}")).await;
            let sql = match many.as_deref() {
                Some("t") => format!(
                    "SELECT h % 1000 AS share, count(*), sum(h::numeric) FROM (SELECT hashtextextended(t::text, 0) AS h FROM {table} t) s GROUP BY 1"
                ),
                _ => format!("SELECT t::text FROM {table} t"),
            };
            assert_same(&format!("{table} {what}"), &rows(&self.database, &sql).await, &rows(&self.twin, &sql).await);
        }
        let counted = "SELECT schemaname::text, sequencename::text, last_value::text FROM pg_sequences";
        let (ours, twins) = (rows(&self.database, counted).await, rows(&self.twin, counted).await);
        assert_same(&format!("the sequences {what}"), &ours, &twins);
    }
}

impl Author {
    /// Waits until so many more transactions are committed on a side: 0 is the old one.
    pub(crate) fn wait_for_more(&self, side: usize, transactions: u64) {
        let goal = self.committed[side].load(Relaxed) + transactions;
        wait_for_blocking("the application to go on", || {
            assert!(self.thread.as_ref().is_some_and(|thread| !thread.is_finished()), "the application has ended");
            (self.committed[side].load(Relaxed) >= goal).then_some(())
        });
    }
}

/// One transaction; says on which side.
async fn transaction(
    client: &Client,
    asked: Option<&str>,
    sql: impl Fn(usize) -> String,
) -> Result<usize, tokio_postgres::Error> {
    let mut side = 0;
    match asked {
        Some(name) => {
            let answer = client.simple_query(&format!("BEGIN; SELECT crossfade.side('{name}')")).await?;
            let is_new = |message: &SimpleQueryMessage| matches!(message, SimpleQueryMessage::Row(row) if row.get(0) == Some("new"));
            side = usize::from(answer.iter().any(is_new));
        }
        None => client.batch_execute("BEGIN").await?,
    }
    client.batch_execute(&format!("{}; COMMIT", sql(side))).await?;
    Ok(side)
}
