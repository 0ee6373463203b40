//! Rows that were born on the new side, under live tellers there and back and there again: movements get new keys, and each one
//! that was made on the new side keeps its own when the migration goes forward again.

use crate::{
    desk::{Desk, postgres, rows, two_databases},
    failback::fail_back,
    tellers::{Bank, Tellers},
};
use crossfade_testkit::{
    compare::{Rows, assert_same},
    crossfade::Running,
    postgres::{Postgres, Version},
    wait::wait_for_blocking,
};
use serde_json::Value;

const RULES: &str = "[keys.default]
make = \"uuid-v5\"
namespace = \"6f1c3f5e-0b57-4c7e-9d0c-3a3a2f6a9b11\"
[rekey]
tables = [\"public.movements\"]
[switch]
";

/// What a movement is on either side, but for its key.
const MOVEMENTS: &str = "SELECT writer, number, debtor, creditor, amount, made_at FROM movements";

/// The keys of movements that were made on the new side.
async fn keys(bank: &Bank) -> Rows {
    rows(&bank.new, "SELECT writer, number, id::text FROM movements WHERE made_at ~ '^new'").await
}

/// Both sides agree in everything, each key has its partner, and none has two.
async fn assert_same_sides(bank: &Bank) {
    assert_same("movements", &rows(&bank.old, MOVEMENTS).await, &rows(&bank.new, MOVEMENTS).await);
    for sql in ["SELECT * FROM accounts", "SELECT * FROM notes"] {
        assert_same(sql, &rows(&bank.old, sql).await, &rows(&bank.new, sql).await);
    }
    let mapped = "SELECT count(*) FROM movements m WHERE NOT EXISTS (SELECT FROM uuid_migration_mapping p WHERE p.new_id = m.id)";
    assert_eq!(bank.new.value(mapped).await.as_deref(), Some("0"), "movements whose keys are not in the mapping");
}

/// The new tables, with a key that the new side's tellers are given.
async fn begun(bank: &Bank) -> Running {
    let mut run = bank.desk.start();
    bank.desk.wait(&mut run);
    bank.flagged().await;
    bank.new.execute("ALTER TABLE movements ALTER id SET DEFAULT gen_random_uuid()").await;
    run
}

/// A comparison that finds nothing, and the cutover after it; again where the machine was too slow for one of them.
fn prove_and_switch(bank: &Bank) {
    wait_for_blocking("the cutover to be made", || {
        bank.desk.verify();
        let done = bank.desk.command(&["cutover"], &["--json"]);
        let answer: Value = serde_json::from_str(&done.stdout).unwrap_or_default();
        (answer["switched"] == true).then_some(())
    });
}

async fn there_and_back(bank: &Bank) {
    let mut run = begun(bank).await;
    let tellers = Tellers::start(bank, 3, 1);
    tellers.wait_for_more(60);
    for round in 1..=2 {
        prove_and_switch(bank);
        assert_eq!(run.wait().code, Some(0));
        tellers.wait_for_more_on_the_new_side(80);
        run = bank.desk.start();
        bank.desk.wait_with(&mut run, &["--reverse"]);
        fail_back(bank);
        assert_eq!(run.wait().code, Some(0));
        let born = keys(bank).await;
        assert!(born.count() >= 80 * round, "movements were made on the new side");
        // On the old side they are like any others: some are changed, some go and come again under the key that they had.
        tellers.wait_for_more_on_the_old_side(20);
        bank.old
            .execute(
                "UPDATE movements SET made_at = made_at || '!' WHERE made_at ~ '^new' AND number % 3 = 0;
                 WITH gone AS (DELETE FROM movements WHERE made_at ~ '^new' AND number % 3 = 1 RETURNING *)
                   INSERT INTO movements SELECT * FROM gone",
            )
            .await;
        // Cut off and begun anew: what was taken over is the same.
        run = bank.desk.start();
        tellers.wait_for_more_on_the_old_side(20);
        run.kill();
        run = bank.desk.start();
        bank.desk.wait(&mut run);
        assert_same("keys of movements that were made on the new side", &born, &keys(bank).await);
    }
    let told = tellers.stop();
    bank.desk.wait(&mut run);
    bank.assert_has_all(&bank.old, &told, 4).await;
    bank.assert_has_all(&bank.new, &told, 4).await;
    assert_same_sides(bank).await;
    bank.desk.verify();
    bank.desk.stop(run);
}

#[tokio::test(flavor = "multi_thread")]
async fn movements_with_new_keys_that_were_made_on_another_server_keep_them_there_and_back_and_there_and_back() {
    let Some((old, new)) = two_databases().await else { return };
    there_and_back(&Bank::between_with(old, new, RULES).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn movements_with_new_keys_that_were_made_in_another_schema_keep_them_there_and_back_and_there_and_back() {
    let Some(server) = Postgres::shared(Version::V15) else { return };
    there_and_back(&Bank::within(server.create_database("bank").await, RULES).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_were_born_under_a_surrogate_of_several_columns_are_refused_by_name() {
    let Some((old, new)) = two_databases().await else { return };
    old.execute(
        "CREATE TABLE lines (basket integer, number integer, what text, PRIMARY KEY (basket, number));
         INSERT INTO lines SELECT n, 1, 'l' || n FROM generate_series(1, 20) n",
    )
    .await;
    let desk = Desk::new();
    let rules = RULES.split("[rekey]").next().unwrap();
    let rest = format!("{rules}[[table]]\nfrom = \"public.lines\"\nsurrogate = \"id\"\nkey = \"default\"\n[switch]\n");
    desk.write_spec(&format!("{}\ntables = [\"public.*\"]", postgres(&old)), &postgres(&new), &rest);
    let lines = "SELECT basket, number, what FROM lines";
    // Nothing was born the first time: the migration goes on.
    for born in [false, true] {
        let mut run = desk.start();
        desk.wait(&mut run);
        wait_for_blocking("the cutover to be made", || {
            desk.verify();
            (desk.command(&["cutover"], &[]).code == Some(0)).then_some(())
        });
        assert_eq!(run.wait().code, Some(0));
        new.execute("UPDATE lines SET what = what || '!'").await;
        if born {
            new.execute("INSERT INTO lines VALUES (gen_random_uuid(), 100, 1, 'born')").await;
        }
        let mut back = desk.start();
        desk.wait_with(&mut back, &["--reverse"]);
        desk.expect(0, &["verify"], &["--reverse"]);
        desk.expect(0, &["failback"], &[]);
        assert_eq!(back.wait().code, Some(0));
        assert_same("lines", &rows(&new, lines).await, &rows(&old, lines).await);
    }
    let refused = desk.expect(3, &["run"], &["--until", "caught-up"]);
    assert!(
        refused.stderr.contains("rows of public.lines were born on the new side under keys in \"id\""),
        "{refused}"
    );
    let status = desk.expect(0, &["status"], &[]);
    assert!(status.stdout.contains("were born on the new side"), "{status}");
    desk.expect(0, &["rollback"], &["--wipe", "--yes"]);
    desk.expect(0, &["run"], &["--until", "caught-up", "--quiet"]);
    assert_same("lines", &rows(&old, lines).await, &rows(&new, lines).await);
}
