//! One migration from its beginning to its end, killed all along: while it copies, catches up, follows, heals and is
//! rolled back. Writers work all the time; when they have ended both sides must be equal.

use crate::{
    bank,
    ends::End,
    hand::Hand,
    setup::{Mode, Setup},
    shadow,
    stand::{SPEC, Stand},
    tally::{Phase, Tally},
    yard,
};
use crossfade_testkit::{
    crossfade::Running,
    history::{check_count, read_postgres, read_sqlite},
    seeded,
    shop::{self, Size, Writers},
};
use rand::{Rng, rngs::StdRng};
use std::{path::PathBuf, time::Duration};

/// How often to kill in each phase of one round.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kills {
    pub(crate) per_phase: usize,
    /// Rows that make the copy last.
    pub(crate) ballast: i64,
    /// Transactions to catch up with.
    pub(crate) backlog: i64,
    /// How long after a sign of work a kill may come.
    pub(crate) reach: Duration,
}

/// A kill that comes too late counts where it hit, and another is tried, so many times at most.
const TRIES: usize = 12;

const WIPE: [&str; 4] = ["rollback", SPEC, "--wipe", "--yes"];

const RETRY: [&str; 4] = ["quarantine", "retry", SPEC, "--all"];

const SHOP: Size = Size { customers: 60, zoo: 60 };

/// Plays one round. `None` where a server cannot be had, which has been said.
pub(crate) async fn play(setup: Setup, kills: Kills, seed: u64) -> Option<Tally> {
    let stand = Stand::new(setup).await?;
    Some(Round::begin(stand, kills, seed).await.play().await)
}

/// The first three phases only, with a build of one's own; the sides are compared at the end.
pub(crate) async fn play_forward(setup: Setup, kills: Kills, seed: u64, binary: PathBuf) -> Option<Tally> {
    let stand = Stand::with_binary(setup, binary).await?;
    let mut round = Round::begin(stand, kills, seed).await;
    round.forward().await;
    let run = round.stand.start();
    round.settle(run).await;
    Some(round.tally)
}

struct Round {
    stand: Stand,
    kills: Kills,
    rng: StdRng,
    tally: Tally,
    mark: i64,
    teller: Option<Hand>,
    /// The shop's writers; only between systems of one kind, for the shop's values have no twin in the other one.
    writers: Option<Writers>,
    yard: Option<Hand>,
    /// What was born before this migration: see [`yard::last_birth`].
    births_after: i64,
    /// The longest delay before a kill that still hit its phase, roughly.
    reach: Duration,
}

impl Round {
    async fn begin(stand: Stand, kills: Kills, seed: u64) -> Self {
        let mut writers = None;
        if stand.setup.is_straight() && stand.setup.mode != Mode::Shadow {
            match &stand.source {
                End::Postgres(database) => {
                    shop::create_postgres(database, SHOP, seed).await;
                    writers = Some(Writers::postgres(&database.url, 2, SHOP, seed, Some(40)));
                }
                End::Sqlite(path) => {
                    shop::create_sqlite(path, SHOP, seed);
                    writers = Some(Writers::sqlite(path, 2, SHOP, seed, Some(40)));
                }
            }
        }
        stand.fill(kills.ballast).await;
        let is_yard = matches!(stand.setup.mode, Mode::Yard { .. });
        let yard = is_yard.then(|| yard::writer(&stand.source, seed, 60));
        let teller = Some(bank::teller(&stand.source, seed, 80));
        let rng = seeded::worker(seed, 99);
        Self {
            stand,
            kills,
            rng,
            tally: Tally::default(),
            mark: 0,
            teller,
            writers,
            yard,
            births_after: 0,
            reach: Duration::from_millis(400),
        }
    }

    async fn play(mut self) -> Tally {
        self.forward().await;
        let run = self.replay().await;
        self.settle(run).await;
        self.rollback().await;
        self.tally
    }

    async fn forward(&mut self) {
        self.snapshot().await;
        if self.yard.is_some() {
            self.births_after = yard::last_birth(&self.stand.source).await;
            yard::refuse_bad_letters(&self.stand.target).await;
        }
        self.catch_up().await;
        self.streaming().await;
    }

    fn next_mark(&mut self) -> i64 {
        self.mark += 1;
        self.mark
    }

    /// A random moment from now, up to the reach.
    async fn a_moment(&mut self) {
        let most = self.reach.as_micros().max(1_000) as u64;
        let moment = Duration::from_micros(self.rng.random_range(0..most));
        tokio::time::sleep(moment).await;
    }

    /// Comes nearer when a kill was too late, and goes farther when it hit.
    fn aim(&mut self, hit: bool) {
        self.reach = if hit { self.reach.mul_f64(1.15) } else { self.reach.mul_f64(0.6) };
        self.reach = self.reach.clamp(Duration::from_millis(2), Duration::from_millis(1_500));
    }

    /// Kills the run; says whether a batch was cut in two.
    async fn kill(&mut self, run: Running) -> bool {
        let finished = run.kill();
        assert_eq!(finished.code, None, "the migration ended by itself before it was killed\n{finished}");
        self.stand.until_sessions_ended().await;
        self.stand.behind_the_log().await > 0
    }

    /// Kills while it copies; a copy that was through too soon is wiped, and begun again.
    async fn snapshot(&mut self) {
        self.reach = self.kills.reach;
        for _ in 0..TRIES {
            self.kill_while_copying().await;
            // What is left of the copy.
            let mark = self.next_mark();
            let mut run = self.stand.start();
            self.stand.until_caught_up(&mut run, mark).await;
            self.kill_streaming(run).await;
            if self.tally.kills(Phase::Snapshot) >= self.kills.per_phase {
                break;
            }
            self.stand.crossfade.succeed(&WIPE);
            self.assert_wiped().await;
        }
    }

    async fn kill_while_copying(&mut self) {
        while self.tally.kills(Phase::Snapshot) < self.kills.per_phase && !self.stand.is_loaded().await {
            let before = self.stand.log_end();
            let mut run = self.stand.start();
            self.stand.until("something new is in the log", &mut run, async || self.stand.log_end() > before).await;
            self.a_moment().await;
            let unfinished = self.kill(run).await;
            let loaded = self.stand.is_loaded().await;
            self.tally.note(if loaded { Phase::Streaming } else { Phase::Snapshot }, unfinished);
            self.aim(!loaded);
        }
    }

    async fn catch_up(&mut self) {
        self.reach = self.kills.reach;
        for _ in 0..TRIES * self.kills.per_phase {
            if self.tally.kills(Phase::CatchUp) >= self.kills.per_phase {
                break;
            }
            let mark = self.next_mark();
            self.backlog(mark).await;
            self.kill_while_behind(mark).await;
        }
    }

    /// Kills run after run until one has caught up with the mark.
    async fn kill_while_behind(&mut self, mark: i64) {
        loop {
            let before = self.stand.log_end();
            let mut run = self.stand.start();
            self.stand.until("something new is in the log", &mut run, async || self.stand.log_end() > before).await;
            self.a_moment().await;
            let unfinished = self.kill(run).await;
            let arrived = self.stand.has_mark(mark).await;
            self.tally.note(if arrived { Phase::Streaming } else { Phase::CatchUp }, unfinished);
            self.aim(!arrived);
            if arrived || self.tally.kills(Phase::CatchUp) >= self.kills.per_phase {
                return;
            }
        }
    }

    /// What somebody who was away has to catch up with.
    async fn backlog(&self, mark: i64) {
        if self.stand.setup.mode == Mode::Parallel {
            bank::hand_around(&self.stand.source, self.kills.backlog, mark).await;
        }
        bank::backlog(&self.stand.source, 1_000 + mark, self.kills.backlog, mark).await;
    }

    async fn streaming(&mut self) {
        self.reach = self.kills.reach * 2;
        while self.tally.kills(Phase::Streaming) < self.kills.per_phase {
            let mark = self.next_mark();
            let mut run = self.stand.start();
            self.stand.until_caught_up(&mut run, mark).await;
            self.kill_streaming(run).await;
        }
    }

    async fn kill_streaming(&mut self, run: Running) {
        self.a_moment().await;
        let unfinished = self.kill(run).await;
        self.tally.note(Phase::Streaming, unfinished);
    }

    /// Damages rows by hand, heals them by a replay that is killed again and again, and at last is not.
    async fn replay(&mut self) -> Running {
        let mark = self.next_mark();
        let mut run = self.stand.start();
        self.stand.until_caught_up(&mut run, mark).await;
        // A worker may have the mark before the migration's own place has moved.
        self.stand.wait_caught_up();
        self.stand.crossfade.succeed(&["checkpoint", SPEC, "before-the-damage"]);
        let mark = self.next_mark();
        self.backlog(mark).await;
        self.stand.source.execute("UPDATE accounts SET note = 'changed after the checkpoint'").await;
        let mark = self.next_mark();
        self.stand.until_caught_up(&mut run, mark).await;
        let damaged = if self.stand.setup.mode == Mode::Shadow { "note_copy" } else { "note" };
        let damage = format!("UPDATE accounts SET {damaged} = 'damaged' WHERE id % 3 = 0");
        self.stand.target.execute_at_last(&damage).await;
        self.reach = Duration::from_millis(150);
        for _ in 0..TRIES * self.kills.per_phase {
            if self.tally.kills(Phase::Replay) >= self.kills.per_phase {
                break;
            }
            run = self.kill_a_replay(run).await;
        }
        self.stand.crossfade.succeed(&["replay", SPEC, "--from", "checkpoint:before-the-damage"]);
        run
    }

    async fn kill_a_replay(&mut self, run: Running) -> Running {
        let args = ["replay", SPEC, "--from", "checkpoint:before-the-damage"];
        let mut replay = self.stand.crossfade.spawn(&args);
        self.a_moment().await;
        let hit = replay.is_running();
        let unfinished = self.kill(run).await;
        let finished = replay.wait();
        assert!(hit || finished.code == Some(0), "a replay that nobody disturbed failed\n{finished}");
        // An answer that came while the run was being killed is an answer.
        let hit = finished.code != Some(0);
        self.tally.note(if hit { Phase::Replay } else { Phase::Streaming }, hit || unfinished);
        self.aim(hit);
        let mark = self.next_mark();
        let mut run = self.stand.start();
        self.stand.until_caught_up(&mut run, mark).await;
        run
    }

    /// Ends the writers, lets the target catch up, compares; then the run is killed.
    async fn settle(&mut self, run: Running) {
        if let Some(teller) = &self.teller {
            teller.wait_for_more(5);
        }
        let committed = self.teller.take().map_or(0, Hand::stop);
        assert!(committed > 0, "the teller committed nothing: this proves nothing");
        let tally = self.writers.take().map(Writers::stop);
        let run = match self.yard.take() {
            Some(yard) => self.settle_the_yard(run, yard).await,
            None => run,
        };
        self.stand.wait_caught_up();
        let held = self.stand.crossfade.json(&["quarantine", "ls", SPEC]);
        assert_eq!(held.as_array().map(Vec::len), Some(0), "nothing may be in quarantine: {held}");
        if self.stand.setup.mode == Mode::Shadow {
            self.mark += 2;
            shadow::assert_no_echo(&self.stand, self.mark - 1).await;
            self.stand.wait_caught_up();
        }
        self.stand.assert_equal(tally.is_some()).await;
        if let Some(tally) = tally {
            let reading = match &self.stand.target {
                End::Postgres(database) => {
                    let client = database.connect().await;
                    read_postgres(&client, "public").await.unwrap_or_else(|error| panic!("{error}"))
                }
                End::Sqlite(path) => {
                    let connection = crossfade_testkit::compare::sqlite_reader(path);
                    read_sqlite(&connection).unwrap_or_else(|error| panic!("{error}"))
                }
            };
            check_count(&reading, tally).unwrap_or_else(|violation| panic!("{violation}"));
        }
        self.kill_streaming(run).await;
    }

    /// The yard is compared without what is in quarantine; then all of that goes in, by retries that are killed, and it is compared
    /// as a whole.
    async fn settle_the_yard(&mut self, mut run: Running, yard: Hand) -> Running {
        assert!(yard.stop() > 0, "the yard's writer committed nothing: this proves nothing");
        self.stand.wait_caught_up();
        yard::assert_equal(&self.stand, self.births_after).await;
        yard::let_all_in(&self.stand).await;
        self.reach = Duration::from_millis(60);
        for _ in 0..TRIES * self.kills.per_phase {
            if self.tally.kills(Phase::Retry) >= self.kills.per_phase || yard::held(&self.stand) == 0 {
                break;
            }
            let mut retry = self.stand.crossfade.spawn(&RETRY);
            self.a_moment().await;
            let hit = retry.is_running();
            let unfinished = self.kill(run).await;
            let finished = retry.wait();
            assert!(hit || finished.code == Some(0), "a retry that nobody disturbed failed\n{finished}");
            let hit = finished.code != Some(0);
            self.tally.note(if hit { Phase::Retry } else { Phase::Streaming }, hit || unfinished);
            self.aim(hit);
            let mark = self.next_mark();
            run = self.stand.start();
            self.stand.until_caught_up(&mut run, mark).await;
        }
        self.stand.crossfade.succeed(&RETRY);
        self.stand.wait_caught_up();
        yard::assert_letters_equal(&self.stand).await;
        run
    }

    /// Wipes, killed and run again; each wipe that was not in time to be killed is followed by another migration.
    async fn rollback(&mut self) {
        self.reach = Duration::from_millis(60);
        for _ in 0..TRIES * self.kills.per_phase {
            if self.tally.kills(Phase::Rollback) >= self.kills.per_phase {
                break;
            }
            let rollback = self.stand.crossfade.spawn(&WIPE);
            self.a_moment().await;
            let finished = rollback.kill();
            self.stand.until_sessions_ended().await;
            if finished.code.is_none() {
                let phase = self.stand.crossfade.json(&["status", SPEC])["phase"].clone();
                self.tally.note(Phase::Rollback, phase == "wiping");
                self.aim(true);
                continue;
            }
            assert_eq!(finished.code, Some(0), "{finished}");
            self.aim(false);
            self.assert_wiped().await;
            let mark = self.next_mark();
            let mut run = self.stand.start();
            self.stand.until_caught_up(&mut run, mark).await;
            self.kill_streaming(run).await;
        }
        self.stand.crossfade.succeed(&WIPE);
        self.assert_wiped().await;
    }

    async fn assert_wiped(&self) {
        if self.stand.setup.mode == Mode::Shadow {
            assert_eq!(shadow::leftovers(&self.stand.target).await, Some(0), "a wipe left something in the tables");
        } else {
            let left = self.stand.target.leftovers().await;
            assert_eq!(left.count(), 0, "a wipe left something in the target: {left:?}");
        }
        match &self.stand.source {
            End::Postgres(_) => {
                let slots = "SELECT count(*) FROM pg_replication_slots WHERE database = current_database()";
                assert_eq!(self.stand.source.number(slots).await, Some(0), "a wipe left a slot in the source");
                let publications = "SELECT count(*) FROM pg_publication";
                assert_eq!(self.stand.source.number(publications).await, Some(0), "a wipe left a publication");
            }
            End::Sqlite(_) => {
                let ours = "SELECT count(*) FROM sqlite_schema WHERE name LIKE '%crossfade%'";
                assert_eq!(self.stand.source.number(ours).await, Some(0), "a wipe left something in the source");
            }
        }
    }
}
