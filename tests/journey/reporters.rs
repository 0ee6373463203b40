//! Who uses the application of `examples/cycle-reports` all the time: adds, changes and deletes rows of most of its tables,
//! on whichever side has the authority, and finds rows by their names, which no migration changes.

use crossfade_testkit::{
    postgres::{Database, connect},
    wait::wait_for_blocking,
};
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};
use tokio_postgres::{Client, SimpleQueryMessage};

/// How the tables are filled, and how fast they are written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    pub(crate) rows: u64,
    pub(crate) writers: u64,
    /// Of all writers together.
    pub(crate) transactions_per_second: u64,
}

/// The two sides, old and new; and the migration, for those who ask where to write.
#[derive(Debug, Clone)]
pub(crate) struct Sides {
    pub(crate) urls: [String; 2],
    pub(crate) migration: Option<&'static str>,
    /// Whoever has written on one side ends when the other one gets the authority.
    pub(crate) stays: bool,
}

/// The writers at work.
pub(crate) struct Reporters {
    stop: Arc<AtomicBool>,
    /// Commits on either side.
    committed: Arc<[AtomicU64; 2]>,
    longest_gap: Arc<Mutex<(Instant, Duration)>>,
    began: Instant,
    threads: Vec<JoinHandle<()>>,
}

impl Reporters {
    /// Starts them; `round` keeps the names of what they make apart from those of other rounds.
    pub(crate) fn start(
        old: &Database,
        new: &Database,
        migration: Option<&'static str>,
        size: Size,
        round: &str,
    ) -> Self {
        let urls = [old.url.clone(), new.url.clone()];
        Self::begin(Sides { urls, migration, stays: false }, size, round)
    }

    /// The same, but nobody moves over: they ask, and end once another side has the authority.
    pub(crate) fn start_on_one_side(
        old: &Database,
        new: &Database,
        migration: &'static str,
        size: Size,
        round: &str,
    ) -> Self {
        let urls = [old.url.clone(), new.url.clone()];
        Self::begin(Sides { urls, migration: Some(migration), stays: true }, size, round)
    }

    fn begin(sides: Sides, size: Size, round: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let committed = Arc::new([AtomicU64::new(0), AtomicU64::new(0)]);
        let longest_gap = Arc::new(Mutex::new((Instant::now(), Duration::ZERO)));
        let threads = (0..size.writers).map(|writer| {
            let reporter = Reporter { name: format!("{round}{writer}"), writer, size, sides: sides.clone() };
            let (stop, committed, gap) = (Arc::clone(&stop), Arc::clone(&committed), Arc::clone(&longest_gap));
            thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(reporter.work(&stop, &committed, &gap));
            })
        });
        let threads = threads.collect();
        Self { stop, committed, longest_gap, began: Instant::now(), threads }
    }

    /// Waits until so many more transactions are committed on a side: 0 is the old one.
    pub(crate) fn wait_for_more(&self, side: usize, transactions: u64) {
        let goal = self.committed[side].load(Relaxed) + transactions;
        wait_for_blocking("the application to go on", || {
            assert!(self.threads.iter().all(|thread| !thread.is_finished()), "a writer has ended");
            (self.committed[side].load(Relaxed) >= goal).then_some(())
        });
    }

    /// Lets everybody finish; says what was done, in words.
    pub(crate) fn stop(mut self) -> String {
        self.stop.store(true, Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().unwrap_or_else(|_| panic!("a writer panicked"));
        }
        let took_s = self.began.elapsed().as_secs_f64();
        let (old, new) = (self.committed[0].load(Relaxed), self.committed[1].load(Relaxed));
        let gap = self.longest_gap.lock().unwrap().1;
        let rate = (old + new) as f64 / took_s;
        format!(
            "{old} transactions on the old side and {new} on the new one, {rate:.0} a second; at most {gap:?} between two commits"
        )
    }
}

impl Drop for Reporters {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

struct Reporter {
    name: String,
    writer: u64,
    size: Size,
    sides: Sides,
}

impl Reporter {
    async fn work(&self, stop: &AtomicBool, committed: &[AtomicU64; 2], gap: &Mutex<(Instant, Duration)>) {
        let mut clients: [Option<Client>; 2] = [None, None];
        let mut side = 0;
        let mut has_written = false;
        let began = Instant::now();
        for number in 0.. {
            if stop.load(Relaxed) {
                return;
            }
            loop {
                if clients[side].is_none() {
                    clients[side] = Some(connect(&self.sides.urls[side]).await.unwrap());
                }
                let Some(client) = &clients[side] else { continue };
                match self.transaction(client, side, number).await {
                    Ok(true) => break,
                    Ok(false) if self.sides.stays && has_written => return,
                    Ok(false) => side = 1 - side,
                    Err(error) if error.code().is_some_and(|code| code.code() == "40P01") => {
                        client.batch_execute("ROLLBACK").await.unwrap();
                    }
                    Err(error) => panic!("{} cannot write: {error:?}\n{}", self.name, self.sql(side, number)),
                }
            }
            committed[side].fetch_add(1, Relaxed);
            has_written = true;
            {
                let mut last = gap.lock().unwrap();
                let now = Instant::now();
                last.1 = last.1.max(now - last.0);
                last.0 = now;
            }
            let due = began
                + Duration::from_secs_f64(
                    (number + 1) as f64 * self.size.writers as f64 / self.size.transactions_per_second as f64,
                );
            tokio::time::sleep(due.saturating_duration_since(Instant::now())).await;
        }
    }

    /// False when the other side has the authority.
    async fn transaction(&self, client: &Client, side: usize, number: u64) -> Result<bool, tokio_postgres::Error> {
        if let Some(migration) = self.sides.migration {
            let answer = client.simple_query(&format!("BEGIN; SELECT crossfade.side('{migration}')")).await?;
            let says = answer.into_iter().find_map(|message| match message {
                SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
                _ => None,
            });
            if says.as_deref() != Some(["old", "new"][side]) {
                client.batch_execute("ROLLBACK").await?;
                return Ok(false);
            }
        } else {
            client.batch_execute("BEGIN").await?;
        }
        client.batch_execute(&format!("{}; COMMIT", self.sql(side, number))).await?;
        Ok(true)
    }

    /// What the n-th transaction does, in the words of a side.
    fn sql(&self, side: usize, number: u64) -> String {
        let name = &self.name;
        let drawn = (number * 7919 + self.writer * 104_729) % 1_000_003;
        let user = |shift: u64| {
            format!("(SELECT user_id FROM users WHERE email = 'user{}@example.org')", 1 + (drawn + shift) % 40)
        };
        let (reports, cycles) = (5 + self.size.rows / 1000, 6 + self.size.rows / 20_000);
        let report = format!("r.name = 'report {}'", 1 + drawn % reports);
        let phase = |of: &str| {
            format!(
                "workflow_phases p JOIN test_cycles c ON c.cycle_id = p.cycle_id JOIN reports r ON r.report_id = p.report_id \
                 WHERE c.name = 'cycle {}' AND {report} AND p.name = '{of}'",
                1 + drawn / 7 % cycles
            )
        };
        let attribute = format!(
            "(SELECT a.id FROM cycle_report_planning_attributes a WHERE a.phase_id = (SELECT p.phase_id FROM {}) ORDER BY a.name LIMIT 1)",
            phase(["planning", "testing"][(drawn % 2) as usize])
        );
        let scoping = ["planning_attribute_id", "id"][side];
        match number % 10 {
            0 => format!(
                "WITH u AS (INSERT INTO users (email, full_name, manager_id, created_at) VALUES ('{name}n{number}@example.org', 'New', {}, '2024-06-01') RETURNING user_id) \
                 INSERT INTO user_roles (user_id, role_id, granted_by) SELECT user_id, (SELECT role_id FROM roles WHERE name = 'auditor'), {} FROM u",
                user(0),
                user(1)
            ),
            1 => format!(
                "UPDATE users SET full_name = 'Renamed {number}', manager_id = {}, settings = '{{\"page\": {number}}}' WHERE email = 'user{}@example.org'",
                user(2),
                1 + drawn % (40 + self.size.rows / 50)
            ),
            3 => format!(
                "UPDATE cycle_reports cr SET status = (ARRAY['planned', 'running', 'closed'])[1 + {number} % 3], tester_id = {} \
                 FROM test_cycles c, reports r WHERE c.cycle_id = cr.cycle_id AND r.report_id = cr.report_id AND c.name = 'cycle {}' AND {report}",
                user(3),
                1 + drawn / 7 % cycles
            ),
            4 => format!(
                "WITH a AS (INSERT INTO cycle_report_planning_attributes (phase_id, name, data_type, risk_score) \
                 SELECT p.phase_id, 'a {name} {number}', 'text', 1.5 FROM {} RETURNING id) \
                 INSERT INTO cycle_report_scoping_attributes ({scoping}, in_scope, decided_by) SELECT id, true, {} FROM a",
                phase("scoping"),
                user(4)
            ),
            6 => format!(
                "WITH s AS (INSERT INTO samples (attribute_id, line_key, payload) SELECT a.id, '{name} {number}', '\\x00ff' FROM {attribute} a RETURNING sample_id), \
                 e AS (INSERT INTO test_executions (sample_id, executed_by, result, confidence) SELECT sample_id, {}, 'pass', 0.1 FROM s RETURNING execution_id) \
                 INSERT INTO observations (execution_id, raised_by, text) SELECT execution_id, {}, 'seen' FROM e",
                user(5),
                user(6)
            ),
            7 => format!(
                "UPDATE cycle_report_scoping_attributes SET in_scope = NOT coalesce(in_scope, false), reason = 'changed {number}' WHERE {scoping} = {attribute}; \
                 DELETE FROM data_profiles WHERE attribute_id = {attribute}"
            ),
            8 => {
                let surrogate = ["", ", cr.id"][side];
                let refers = ["", ", cycle_reports_id"][side];
                let given = ["", ", id"][side];
                format!(
                    "WITH c AS (INSERT INTO test_cycles (name, starts_on, ends_on) VALUES ('cycle {name} {number}', '2025-01-01', '2025-03-31') RETURNING cycle_id), \
                     cr AS (INSERT INTO cycle_reports (cycle_id, report_id, tester_id) SELECT c.cycle_id, r.report_id, {} FROM c, reports r WHERE {report} \
                            RETURNING cycle_id, report_id{given}) \
                     INSERT INTO workflow_phases (cycle_id, report_id, name{refers}) SELECT cr.cycle_id, cr.report_id, n{surrogate} FROM cr, unnest(ARRAY['planning', 'testing']) n",
                    user(7)
                )
            }
            9 if number >= 59 => format!("DELETE FROM users WHERE email = '{name}n{}@example.org'", number - 49),
            _ => format!(
                "INSERT INTO audit_logs (actor_id, action, detail) VALUES ({}, 'write', '{{\"number\": {number}}}'); \
                 INSERT INTO llm_audit_logs (actor_id, model, tokens, cost) VALUES ({}, 'model 1', {number}, 0.015)",
                user(8),
                user(9)
            ),
        }
    }
}
