//! `examples/cycle-reports`, by the commands of its README: whole-number keys become UUIDs on another server while the
//! application writes, are taken back from every phase, and the application moves over.
//! `CROSSFADE_EXAMPLES=full` takes 100,000 rows and writes 1,000 transactions a second for a minute.

use crate::{
    desk::{rows, two_databases},
    example::{Example, is_full},
    reporters::{Reporters, Size},
};
use crossfade_testkit::{compare::Rows, postgres::Database, wait::wait_until};
use std::time::Instant;

/// Both databases, the folder, and how large all of it is.
pub(crate) struct Stage {
    pub(crate) example: Example,
    pub(crate) old: Database,
    pub(crate) new: Database,
    pub(crate) size: Size,
}

impl Stage {
    pub(crate) async fn set() -> Option<Self> {
        let (old, new) = two_databases().await?;
        let size = size();
        let secret = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
        let variables = [("OLD_URL", old.url.as_str()), ("NEW_URL", &new.url), ("CROSSFADE_SECRET", secret)];
        let example = Example::copy("cycle-reports", &variables);
        example.sql(&old, "schema.sql", &[]).await;
        example.sql(&old, "generate.sql", &[("rows", &size.rows.to_string()), ("seed", "7")]).await;
        example.sql(&old, "prepare.sql", &[]).await;
        Some(Self { example, old, new, size })
    }

    fn reporters(&self, migration: Option<&'static str>, round: &str) -> Reporters {
        Reporters::start(&self.old, &self.new, migration, self.size, round)
    }

    /// As long as something is to be seen under load: a minute of it, or a moment.
    fn a_while(&self) -> u64 {
        if is_full() { 20_000 } else { 60 }
    }

    /// `check.sql` finds nothing: both sides are one history, by every value.
    pub(crate) async fn assert_one_history(&self) {
        let found = self.check().await;
        assert_eq!(found.count(), 0, "{:#?}", found.iter().collect::<Vec<_>>());
    }

    /// What `check.sql` answers.
    async fn check(&self) -> Rows {
        let url = self.old.url.strip_prefix("postgres://").unwrap();
        let (login, place) = url.split_once('@').unwrap();
        let (place, _) = place.split_once('/').unwrap();
        let name = &self.old.name;
        let (host, port) = place.split_once(':').unwrap();
        let server = format!("host '{host}', port '{port}', dbname '{name}'");
        let (user, password) = login.split_once(':').unwrap_or((login, ""));
        let login = format!("user '{user}', password '{password}'");
        let sql = self.example.file("check.sql").replace(":old", &server).replace(":login", &login);
        rows(&self.new, &sql).await
    }

    /// The old side as it is, by every value; and that nothing of ours is in it.
    async fn content_of_old(&self) -> Vec<String> {
        let left = "SELECT 'slot', slot_name::text FROM pg_replication_slots WHERE database = current_database() \
            UNION ALL SELECT 'publication', pubname::text FROM pg_publication \
            UNION ALL SELECT 'schema', nspname::text FROM pg_namespace WHERE nspname = 'crossfade' \
            UNION ALL SELECT 'trigger', tgname::text FROM pg_trigger WHERE NOT tgisinternal";
        let left = rows(&self.old, left).await;
        assert_eq!(left.count(), 0, "{:?}", left.iter().collect::<Vec<_>>());
        content(&self.old).await
    }

    /// Takes everything back; both sides are as they were before.
    async fn take_back(&self, before: &[String], phase: &str) {
        self.example.expect(0, "crossfade rollback cycle-reports.toml --wipe --yes");
        assert_eq!(before, self.content_of_old().await, "the old side after {phase} was taken back");
        let made = "SELECT relname FROM pg_class WHERE relnamespace IN ('public'::regnamespace, to_regnamespace('crossfade')) AND relkind IN ('r', 'S', 'v')";
        assert_eq!(rows(&self.new, made).await.count(), 0, "the new side after {phase} was taken back");
    }
}

/// How large it is, and how fast it is written.
pub(crate) fn size() -> Size {
    match is_full() {
        true => Size { rows: 100_000, writers: 8, transactions_per_second: 1_000 },
        false => Size { rows: 3_000, writers: 3, transactions_per_second: 150 },
    }
}

/// Every table of the application, as one line each.
pub(crate) async fn content(database: &Database) -> Vec<String> {
    let mut found = Vec::new();
    for row in rows(
        database,
        "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace ORDER BY 1",
    )
    .await
    .iter()
    {
        let table = row[0].as_deref().unwrap();
        let sql = format!("SELECT md5(string_agg(t::text, E'\\n' ORDER BY t::text)) FROM {table} t");
        found.push(format!("{table} {}", database.value(&sql).await.unwrap_or_default()));
    }
    assert!(found.len() >= 21, "{found:?}");
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn whole_numbers_become_uuids_on_another_server_under_writers_and_can_be_taken_back() {
    let Some(stage) = Stage::set().await else { return };
    let example = &stage.example;
    let untouched = stage.content_of_old().await;

    // What does not hold is named, and nothing begins.
    stage.old.execute("INSERT INTO llm_audit_logs (log_id, actor_id, model, tokens) VALUES (-1, 0, 'm', 1)").await;
    let refused = example.expect(3, "crossfade check cycle-reports.toml");
    assert!(
        refused.stdout.contains("required that whoever asked a model is a user: it is not so: 1 rows"),
        "{refused}"
    );
    stage.old.execute("DELETE FROM llm_audit_logs WHERE log_id = -1").await;
    example.expect(0, "crossfade check cycle-reports.toml");

    // What it would do, and that it would work.
    let plan = example.expect(0, "crossfade plan cycle-reports.toml");
    for word in ["\"cycle_reports_id\" uuid NOT NULL", "PRIMARY KEY (\"id\")", "uuid_migration_mapping"] {
        assert!(plan.stdout.contains(word), "{word} is missing\n{plan}");
    }
    let back = example.expect(0, "crossfade plan cycle-reports.toml --reverse");
    assert!(!back.stdout.contains("one-way"), "{back}");
    let dry = example.expect(0, "crossfade run cycle-reports.toml --dry-run");
    assert!(!dry.stdout.contains("refused "), "{dry}");
    assert_eq!(untouched, stage.content_of_old().await, "a dry run writes nothing");

    // A trial, taken back.
    example.expect(0, "crossfade run cycle-reports.toml --limit 1000 --quiet");
    stage.take_back(&untouched, "a trial").await;

    // Killed in the midst of its copy, with writers at work; taken back.
    let reporters = stage.reporters(None, "a");
    let run = example.start("crossfade run cycle-reports.toml");
    reporters.wait_for_more(0, 20);
    run.kill();
    let mut run = example.start("crossfade run cycle-reports.toml");
    example.wait(&mut run, "crossfade wait cycle-reports.toml --caught-up");
    run.kill();
    reporters.stop();
    let before = content(&stage.old).await;
    stage.take_back(&before, "a copy that was killed").await;

    // In earnest: killed once more on the way, and verified while everybody writes.
    let reporters = stage.reporters(None, "b");
    let run = example.start("crossfade run cycle-reports.toml");
    reporters.wait_for_more(0, 20);
    run.kill();
    let began = Instant::now();
    let mut run = example.start("crossfade run cycle-reports.toml");
    example.wait(&mut run, "crossfade wait cycle-reports.toml --caught-up");
    let copied_s = began.elapsed().as_secs_f64();
    example.expect(0, "crossfade checkpoint cycle-reports.toml before-lunch");
    reporters.wait_for_more(0, stage.a_while());
    let verified = example.expect(0, "crossfade verify cycle-reports.toml --report verified.html");
    assert!(verified.stdout.contains("0 differences"), "{verified}");
    println!("{} rows copied in {copied_s:.1} s; meanwhile {}", stage.size.rows, reporters.stop());
    example.wait(&mut run, "crossfade wait cycle-reports.toml --caught-up");
    stage.assert_one_history().await;
    let status = example.status(&[]);
    assert_eq!(status["conservation"]["quarantined"], 0, "{status}");

    // What support staff ask.
    let found = example.expect(0, "crossfade mapping lookup cycle-reports.toml 17");
    assert!(found.stdout.contains("public.users") && found.stdout.contains("scoping_attributes"), "{found}");
    let mapping = example.expect(0, "crossfade mapping export cycle-reports.toml");
    let counted = "SELECT count(*) FROM cycle_report_scoping_attributes";
    let scoped = mapping.stdout.lines().filter(|line| line.contains("scoping")).count().to_string();
    assert!(stage.old.value(counted).await.unwrap().parse::<usize>().unwrap() <= scoped.parse().unwrap());
    let asked = example
        .start("crossfade verify cycle-reports.toml --queries queries.toml --no-rows --report asked.html")
        .wait();
    println!("{}", asked.stdout.trim());
    // How long an answer takes on a busy machine is for a person to judge; 3 says that nothing else is wrong.
    assert!(matches!(asked.code, Some(0 | 3)) && !asked.stdout.contains("differ:"), "{asked}");

    // Somebody damages rows of the new side: it is seen, and healed from the log.
    stage.old.execute("UPDATE users SET full_name = 'Ada' WHERE email LIKE 'user1%'").await;
    example.wait(&mut run, "crossfade wait cycle-reports.toml --caught-up");
    stage.new.execute("UPDATE users SET full_name = 'damaged' WHERE email LIKE 'user1%'").await;
    assert!(stage.check().await.count() > 0, "the check can fail");
    let seen = example.expect(4, "crossfade verify cycle-reports.toml");
    assert!(seen.stdout.contains("users"), "{seen}");
    example.expect(0, "crossfade replay cycle-reports.toml --from checkpoint:before-lunch");
    example.expect(0, "crossfade verify cycle-reports.toml");
    stage.assert_one_history().await;
    // Over, under writers that ask where to write.
    example.sql(&stage.new, "new-side.sql", &[]).await;
    wait_until("the flag table", async || {
        let sql = "SELECT to_regprocedure('crossfade.side(text, text)') IS NOT NULL";
        stage.old.value(sql).await.as_deref() == Some("t") && stage.new.value(sql).await.as_deref() == Some("t")
    })
    .await;
    let reporters = stage.reporters(Some("cycle-reports"), "c");
    reporters.wait_for_more(0, stage.a_while());
    example.expect(0, "crossfade cutover cycle-reports.toml --dry-run");
    let switched = example.expect(0, "crossfade cutover cycle-reports.toml");
    println!("{}", switched.stdout.trim());
    run.wait();
    reporters.wait_for_more(1, stage.a_while());

    // Back, behind the fence: killed on the way, and exact at the end.
    let run = example.start("crossfade run cycle-reports.toml");
    reporters.wait_for_more(1, 40);
    run.kill();
    let mut run = example.start("crossfade run cycle-reports.toml");
    reporters.wait_for_more(1, 40);
    println!("{}", reporters.stop());
    example.wait(&mut run, "crossfade wait cycle-reports.toml --reverse --caught-up --timeout 10m");
    stage.assert_one_history().await;
    let status = example.status(&["--reverse"]);
    assert_eq!(status["conservation"]["quarantined"], 0, "{status}");
    example.expect(3, "crossfade rollback cycle-reports.toml --wipe --yes");
    example.stop(run);
    example.assert_all_ran_of("cycle-reports.toml");
}
