//! The share of reads that applications compare: set by a command, followed without a restart, ended by the first that steps
//! down; and what is left of it after a switch and a rollback.

use crate::{
    desk::{SPEC, assert_same_tables},
    switch::{guard, journal_says, switch, switch_status},
    tellers::{Bank, Tellers},
};
use crossfade_dualread::{
    Budgets, DualReads, Failure, Flag, Options, Outcome, POSTGRES_END, POSTGRES_REACHED, Places, Polled, Position,
    SELECT_FLAG, STEP_DOWN, Side, Subject, Told, place,
};
use crossfade_testkit::{
    postgres::{Database, connect},
    wait::{GENEROUS, wait_until},
};
use serde_json::Value;
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::task::JoinHandle;
use tokio_postgres::Client;

struct TwoServers {
    old: Client,
    new: Client,
    migration: String,
}

impl Places for TwoServers {
    async fn end(&self, _: Side) -> Result<Position, Failure> {
        let row = self.old.query_one(POSTGRES_END, &[]).await.map_err(|error| Failure::retry("the end", error))?;
        place(row.get(0)).map_err(|error| Failure::retry("the end", error))
    }

    async fn reached(&self, _: Side) -> Result<Option<Position>, Failure> {
        let row = self.new.query_opt(POSTGRES_REACHED, &[&self.migration]).await;
        let row = row.map_err(|error| Failure::retry("the position", error))?;
        let text: Option<String> = row.and_then(|row| row.get(0));
        text.map(|text| place(&text)).transpose().map_err(|error| Failure::retry("the position", error))
    }
}

/// One process of an application. It follows the flag of one side, by a role that may nothing there but what everybody may.
struct Application {
    reads: DualReads,
    old: Arc<Client>,
    new: Arc<Client>,
    heard: Arc<Mutex<Vec<Told>>>,
    tasks: [JoinHandle<()>; 2],
}

impl Drop for Application {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// A session of a role that was given no right by anybody.
async fn as_anybody(database: &Database) -> Arc<Client> {
    let client = connect(&database.url).await.unwrap();
    client.batch_execute("SET ROLE pg_monitor").await.unwrap();
    Arc::new(client)
}

impl Application {
    async fn start(bank: &Bank, flags: &Database) -> Self {
        let migration = bank.desk.name.clone();
        let places = TwoServers {
            old: connect(&bank.old.url).await.unwrap(),
            new: connect(&bank.new.url).await.unwrap(),
            migration: migration.clone(),
        };
        let budgets = Budgets { window: 50, least: 5, ..Budgets::default() };
        let options = Options { patience: GENEROUS, candidate_timeout: GENEROUS, budgets, ..Options::default() };
        let heard = Arc::new(Mutex::new(Vec::new()));
        let hears = Hears(Arc::clone(&heard));
        let reads = DualReads::heard_by(options, Flag::START, places, hears);
        let flags = as_anybody(flags).await;
        let (followed, telling) = (reads.clone(), reads.clone());
        let (asked, told, of, by) = (Arc::clone(&flags), flags, migration.clone(), migration);
        let feed = Polled::new(Duration::from_millis(50), move || {
            let (asked, of) = (Arc::clone(&asked), of.clone());
            async move {
                let row = asked.query_one(SELECT_FLAG, &[&of]).await.map_err(|error| Failure::retry("flag", error))?;
                Flag::of_row(row.get(0), row.get(1), row.get(2)).map_err(|error| Failure::retry("flag", error))
            }
        });
        let tell = move |flag: Flag, why: crossfade_dualread::Why| {
            let (told, by) = (Arc::clone(&told), by.clone());
            async move {
                let (budget, one, other) = why.figures();
                let (epoch, percent) = (flag.epoch as i64, flag.percent.to_string());
                let told = told.query_one(STEP_DOWN, &[&by, &epoch, &percent, &budget, &one, &other]).await;
                told.map(drop).map_err(|error| Failure::retry("telling", error))
            }
        };
        let tasks = [
            tokio::spawn(async move { followed.follow(feed).await }),
            tokio::spawn(async move { telling.tell_step_downs(tell).await }),
        ];
        let client = async |database: &Database| Arc::new(connect(&database.url).await.unwrap());
        Self { reads, old: client(&bank.old).await, new: client(&bank.new).await, heard, tasks }
    }

    /// One read, in the words of both sides.
    async fn read(&self, sql: &'static str, key: i64) -> Option<String> {
        let ask = |client: &Arc<Client>| {
            let client = Arc::clone(client);
            move || {
                let client = Arc::clone(&client);
                async move { client.query_opt(sql, &[&key]).await.map(|row| row.map(|row| row.get::<_, String>(0))) }
            }
        };
        let subject = Subject::new("bank", key.to_be_bytes());
        self.reads.read(subject, ask(&self.old), ask(&self.new)).await.unwrap()
    }

    async fn until(&self, share: &str) {
        wait_until(&format!("a flag of {share}"), async || self.reads.flag().percent.to_string() == share).await;
    }

    fn outcomes(&self) -> Vec<Outcome> {
        let heard = self.heard.lock().unwrap();
        let judged = heard.iter().filter_map(|told| match told {
            Told::Judged { outcome, .. } => Some(outcome.clone()),
            _ => None,
        });
        judged.collect()
    }
}

struct Hears(Arc<Mutex<Vec<Told>>>);

impl crossfade_dualread::Listener for Hears {
    fn hear(&self, told: &Told) {
        self.0.lock().unwrap().push(told.clone());
    }
}

const BALANCE: &str = "SELECT balance::text FROM accounts WHERE id = $1";
/// A row that the tellers leave alone.
const EARLY: &str = "SELECT note FROM notes WHERE note = 'early' AND $1::bigint > 0";

fn set(bank: &Bank, share: &str) -> Value {
    let done = bank.desk.expect(0, &["dual-reads"], &[share, "--json"]);
    serde_json::from_str(&done.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_share_is_followed_without_a_restart_and_ended_for_all_by_the_first_that_steps_down() {
    let Some(bank) = Bank::open("").await else { return };
    let mut run = bank.desk.start();
    bank.desk.wait(&mut run);
    bank.flagged().await;
    let tellers = Tellers::start(&bank, 3, 0);
    tellers.wait_for_more(100);
    // Without a comparison it is refused, says what would allow it, and the journal has kept that.
    let refused = bank.desk.expect(3, &["dual-reads"], &["100%", "--json"]);
    let answer: Value = serde_json::from_str(&refused.stdout).unwrap();
    assert_eq!((&answer["share"], guard(&answer, "clean-pass")["holds"].as_bool()), (&"0%".into(), Some(false)));
    assert!(journal_says(&bank.desk, "reads-judged") > 0);
    let status = switch_status(&bank);
    assert!(status["read_guards"].to_string().contains("clean-pass"), "{status}");
    bank.desk.verify();
    assert_eq!(set(&bank, "100%")["told"], true);
    assert_eq!(switch_status(&bank)["dual_reads"], "100%");

    // Two processes, each by the flag of another side, follow what is set later, too.
    let (one, other) = (Application::start(&bank, &bank.old).await, Application::start(&bank, &bank.new).await);
    for application in [&one, &other] {
        application.until("100%").await;
        for id in 1..=100 {
            application.read(BALANCE, id).await.unwrap();
        }
        application.reads.settled().await;
        let outcomes = application.outcomes();
        assert!(!outcomes.iter().any(|outcome| matches!(outcome, Outcome::Mismatch(_))), "{outcomes:?}");
        assert!(outcomes.contains(&Outcome::Match), "{:?}", application.reads.snapshot());
    }
    set(&bank, "0.25%");
    one.until("0.25%").await;
    other.until("0.25%").await;
    assert_eq!(set(&bank, "100%")["share"], "100%");
    one.until("100%").await;

    // Wrong on the new side: the first that finds it ends it for both, and the status says why.
    bank.new.execute("DELETE FROM notes WHERE note = 'early'").await;
    for key in 1.. {
        if one.reads.stepped_down().is_some() {
            break;
        }
        assert_eq!(one.read(EARLY, key).await.as_deref(), Some("early"), "what it gets is always the old side's");
        one.reads.settled().await;
        assert!(key < 500, "{:?}", one.reads.snapshot());
    }
    other.until("0%").await;
    assert_eq!(other.reads.stepped_down(), None, "it was told");
    wait_until("the status to say why", async || {
        switch_status(&bank)["stepped_down"].as_str().is_some_and(|why| why.contains("reads that were judged mismatch"))
    })
    .await;
    let status = switch_status(&bank);
    assert!(status["dual_reads"].is_null() && status["next"].as_str().unwrap().contains("stepped down"), "{status}");
    assert!(bank.desk.expect(0, &["status"], &[]).stdout.contains("STEPPED DOWN"));
    assert!(journal_says(&bank.desk, "reads-stepped-down") > 0);
    let refused = bank.desk.expect(3, &["cutover"], &["--dry-run", "--json"]);
    let answer: Value = serde_json::from_str(&refused.stdout).unwrap();
    assert_eq!(guard(&answer, "dual-reads")["holds"], false, "{answer}");

    // Mended, and compared again by both, without a restart; then switched under it.
    bank.new.execute("INSERT INTO notes VALUES ('early')").await;
    bank.desk.verify();
    assert_eq!(set(&bank, "100%")["share"], "100%");
    for application in [&one, &other] {
        application.until("100%").await;
        let before = application.outcomes().len();
        application.read(EARLY, 7).await.unwrap();
        application.reads.settled().await;
        assert_eq!(application.outcomes()[before..], [Outcome::Match]);
    }
    assert!(one.reads.stepped_down().is_none() && switch_status(&bank)["stepped_down"].is_null());
    let epoch = switch(&bank)["epoch"].as_u64().unwrap();
    assert_eq!(run.wait().code, Some(0));
    for application in [&one, &other] {
        // The share was set for the epoch that has ended, and the authority is told by the same flag.
        wait_until("the flag of the switch", async || application.reads.flag().epoch == epoch).await;
        let flag = application.reads.flag();
        assert_eq!((flag.authority, flag.percent.to_string().as_str()), (Side::New, "0%"));
    }
    let refused = bank.desk.expect(3, &["dual-reads"], &["5%"]);
    let says = "the new side has the authority, and reads are compared before a switch";
    assert!(refused.stderr.contains(says) && !refused.stderr.contains("nobody runs"), "{refused}");
    assert_eq!(set(&bank, "0%")["told"], true, "that none is compared is so already");
    tellers.wait_for_more_on_the_new_side(100);
    let told = tellers.stop();
    bank.assert_one_history(&told).await;
}

/// What a session on this side reads of the flag.
async fn flag(bank: &Bank, side: &Database) -> Option<String> {
    let sql = format!("SELECT percent FROM crossfade.dual_reads WHERE migration = '{}'", bank.desk.name);
    side.value(&sql).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_flag_is_kept_as_the_journal_says_and_goes_with_a_wipe() {
    let Some(bank) = Bank::open("").await else { return };
    let mut run = bank.desk.start();
    bank.desk.wait(&mut run);
    bank.flagged().await;
    let tellers = Tellers::start(&bank, 2, 0);
    bank.desk.verify();
    set(&bank, "5%");
    // Damaged by hand on one side, it is set right; nobody but its owner may do so.
    let strange = as_anybody(&bank.old).await.batch_execute("UPDATE crossfade.read_shares SET percent = '50%'").await;
    assert_eq!(strange.unwrap_err().code().map(|code| code.code()), Some("42501"));
    bank.new.execute("UPDATE crossfade.read_shares SET percent = '50%'").await;
    wait_until("the flag to be set right", async || flag(&bank, &bank.new).await.as_deref() == Some("5%")).await;
    // A step down that speaks of another flag, or of no budget, changes nothing.
    let anybody = as_anybody(&bank.old).await;
    let say = async |rest: &str| {
        let sql = format!("SELECT crossfade.step_down('{}', {rest})", bank.desk.name);
        anybody.query_one(&sql, &[]).await.map(|row| row.get::<_, bool>(0))
    };
    assert!(!say("0, '10%', 'mismatches', 1, 2").await.unwrap() && !say("9, '5%', 'latency', 1, 2").await.unwrap());
    assert!(say("0, '5%', 'whatever somebody writes', 1, 2").await.is_err());
    assert_eq!(flag(&bank, &bank.old).await.as_deref(), Some("5%"));
    // A repair voids the proof, and with it ends the comparing.
    bank.desk.expect(0, &["replay"], &["--from", "start"]);
    assert!(switch_status(&bank)["dual_reads"].is_null());
    for side in [&bank.old, &bank.new] {
        wait_until("the flag's end", async || flag(&bank, side).await.as_deref() == Some("0%")).await;
    }
    bank.desk.verify();
    set(&bank, "5%");
    tellers.stop();
    bank.desk.wait(&mut run);
    bank.desk.stop(run);
    // Nobody runs: no more is compared than before, and less may be.
    let refused = bank.desk.expect(3, &["dual-reads"], &["6%"]);
    assert!(refused.stderr.contains("nobody runs") && refused.stderr.contains(SPEC), "{refused}");
    set(&bank, "1%");
    for side in [&bank.old, &bank.new] {
        assert_eq!(flag(&bank, side).await.as_deref(), Some("1%"));
    }
    assert_same_tables(&bank.old, &bank.new, &["accounts", "movements", "notes"]).await;
    // The share is set while it is wiped.
    bank.desk.expect(0, &["rollback"], &["--wipe", "--yes"]);
    for side in [&bank.old, &bank.new] {
        let left = "SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = 'crossfade'";
        assert_eq!(side.value(left).await.as_deref(), Some("0"), "something of the flag is left");
        let left = "SELECT count(*) FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE n.nspname = 'crossfade'";
        assert_eq!(side.value(left).await.as_deref(), Some("0"), "a function of the flag is left");
    }
}

/// Sets 5 %, which the guard `flag` must refuse with this word.
fn refused_by_the_flag(bank: &Bank, word: &str) {
    let refused = bank.desk.expect(3, &["dual-reads"], &["5%", "--json"]);
    let answer: Value = serde_json::from_str(&refused.stdout).unwrap();
    let flag = guard(&answer, "flag");
    assert!(flag["holds"] == false && flag["seen"].as_str().unwrap().contains(word), "{answer}");
    assert_eq!((&answer["share"], guard(&answer, "clean-pass")["holds"].as_bool()), (&"0%".into(), Some(true)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flag_that_does_not_work_is_refused_and_a_step_down_is_heard_and_answered_wherever_it_is_told() {
    let Some(bank) = Bank::open("").await else { return };
    let mut run = bank.desk.start();
    bank.desk.wait(&mut run);
    bank.flagged().await;
    bank.desk.verify();
    // It is there, and yet applications could not follow it, or not step down.
    assert_eq!(set(&bank, "5%")["told"], true);
    set(&bank, "0%");
    let lies = "CREATE OR REPLACE VIEW crossfade.dual_reads AS SELECT migration, epoch, side AS authority, '5%'::text AS percent \
                FROM crossfade.authority";
    bank.new.execute(lies).await;
    refused_by_the_flag(&bank, "it does not say what was written");
    bank.new.execute("DROP VIEW crossfade.dual_reads").await;
    let owned_by = |role: &str| {
        format!("ALTER FUNCTION crossfade.step_down(text, bigint, text, text, float8, float8) OWNER TO {role}")
    };
    bank.old.execute(&owned_by("pg_monitor")).await;
    refused_by_the_flag(&bank, "permission denied");
    bank.old.execute(&owned_by("CURRENT_USER")).await;
    assert_eq!(set(&bank, "5%")["told"], true, "the view is made anew");

    // Stepped down while nobody runs: whoever sets another share did not know of it.
    bank.desk.stop(run);
    let epoch = bank.new.value("SELECT epoch FROM crossfade.authority").await.unwrap();
    let name = &bank.desk.name;
    bank.new.execute(&format!("SELECT crossfade.step_down('{name}', {epoch}, '5%', 'mismatches', 7, 100)")).await;
    assert_eq!(flag(&bank, &bank.new).await.as_deref(), Some("0%"), "at once, where it was said");
    assert_eq!(flag(&bank, &bank.old).await.as_deref(), Some("5%"), "and there not yet");
    let refused = bank.desk.expect(3, &["dual-reads"], &["3%"]);
    assert!(refused.stderr.contains("stepped down: 7 of the last 100 reads"), "{refused}");
    for side in [&bank.old, &bank.new] {
        assert_eq!(flag(&bank, side).await.as_deref(), Some("0%"));
    }
    assert_eq!(switch_status(&bank)["stepped_down"], "7 of the last 100 reads that were judged mismatch");
    // A repair voids the proof: still it can be answered, as the status says, and nothing else comes of that.
    let mut run = bank.desk.start();
    bank.desk.wait(&mut run);
    bank.desk.expect(0, &["replay"], &["--from", "start"]);
    let status = bank.desk.crossfade.json(&["status", SPEC]);
    assert_eq!(status["phase"], "shadowing", "{status}");
    assert!(status["switch"]["next"].as_str().unwrap().contains("with 0%"), "{status}");
    assert_eq!(set(&bank, "0%")["told"], true);
    let status = bank.desk.crossfade.json(&["status", SPEC]);
    assert!(status["phase"] == "shadowing" && status["switch"]["stepped_down"].is_null(), "{status}");

    // Taken back by its undo records, it leaves no share behind.
    bank.desk.verify();
    set(&bank, "5%");
    bank.desk.stop(run);
    assert_same_tables(&bank.old, &bank.new, &["accounts", "movements", "notes"]).await;
    bank.desk.expect(0, &["rollback"], &["--undo"]);
    for side in [&bank.old, &bank.new] {
        assert_eq!(flag(&bank, side).await.as_deref(), Some("0%"));
    }
    let refused = bank.desk.expect(3, &["dual-reads"], &["5%"]);
    assert!(refused.stderr.contains("between `crossfade verify` and the switch"), "{refused}");
}
