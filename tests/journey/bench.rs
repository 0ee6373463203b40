//! pgbench, while its accounts, tellers and branches get new keys: the history once as a table that only grows, and once with
//! whole rows for identity. A second run empties the history, as every run of pgbench does.

use crate::{
    desk::{Desk, postgres, two_databases},
    is_soak,
    shapes::{Mapping, Shape, assert_same_through},
};
use crossfade_testkit::{postgres::Database, unavailable};
use std::process::Command;

const SHAPES: &[Shape] = &[
    Shape { table: "pgbench_branches", columns: &["bid", "bbalance", "filler"], keys: &[("bid", "pgbench_branches")] },
    Shape {
        table: "pgbench_tellers",
        columns: &["tid", "bid", "tbalance", "filler"],
        keys: &[("tid", "pgbench_tellers"), ("bid", "pgbench_branches")],
    },
    Shape {
        table: "pgbench_accounts",
        columns: &["aid", "bid", "abalance", "filler"],
        keys: &[("aid", "pgbench_accounts"), ("bid", "pgbench_branches")],
    },
    Shape {
        table: "pgbench_history",
        columns: &["tid", "bid", "aid", "delta", "mtime", "filler"],
        keys: &[("tid", "pgbench_tellers"), ("bid", "pgbench_branches"), ("aid", "pgbench_accounts")],
    },
];

const NEW_KEYS: &str = r#"
[keys.default]
make = "uuid-v8-sha256"
namespace = "6f1c1f0e-6f2b-4b57-9a34-0d5be4c7a001"
[rekey]
tables = ["public.pgbench_accounts", "public.pgbench_tellers", "public.pgbench_branches"]
with = "default"
"#;

fn program() -> Option<Command> {
    let known = ["/usr/lib/postgresql/15/bin/pgbench", "/usr/bin/pgbench"];
    let found = known.into_iter().find(|path| std::path::Path::new(path).exists());
    if found.is_none() {
        unavailable("pgbench", "install the package postgresql-15");
    }
    found.map(Command::new)
}

fn pgbench(database: &Database, args: &[&str]) -> bool {
    let Some(mut command) = program() else { return false };
    let out = command.args(args).arg(&database.url).output().unwrap();
    assert!(out.status.success(), "pgbench {}: {}", args.join(" "), String::from_utf8_lossy(&out.stderr));
    true
}

async fn a_whole_migration(whole_rows: bool) {
    let Some((source, target)) = two_databases().await else { return };
    let (scale, transactions) = if is_soak() { ("10", "10000") } else { ("1", "1000") };
    if !pgbench(&source, &["-i", "-q", "-s", scale, "--foreign-keys"]) {
        return;
    }
    if whole_rows {
        source.execute("ALTER TABLE pgbench_history REPLICA IDENTITY FULL").await;
    }
    let desk = Desk::new();
    let source_spec =
        format!("{}\ntables = [\"public.*\"]\nsnapshot = {{ workers = 2, chunk_rows = 20_000 }}", postgres(&source));
    desk.write_spec(&source_spec, &postgres(&target), NEW_KEYS);
    desk.expect(0, &["check"], &[]);
    let plan = desk.expect(0, &["plan"], &[]);
    assert_eq!(plan.stdout.contains("insert-only"), !whole_rows, "plan says how the history is found\n{plan}");

    let mut run = desk.start();
    pgbench(&source, &["-c", "4", "-j", "2", "-t", transactions]);
    desk.wait(&mut run);
    desk.verify();
    pgbench(&source, &["-c", "4", "-j", "2", "-t", "200"]);
    desk.wait(&mut run);
    desk.verify();

    let mapping = Mapping::parse(&desk.expect(0, &["mapping", "export"], &[]).stdout);
    assert_same_through(&mapping, &source, &target, SHAPES).await;
    let counted = target.value("SELECT count(*) FROM pgbench_history").await;
    assert_eq!(counted.as_deref(), Some("800"), "the second run emptied the history first");
    let sums = "SELECT (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(bbalance) FROM pgbench_branches) \
                AND (SELECT sum(tbalance) FROM pgbench_tellers) = (SELECT sum(bbalance) FROM pgbench_branches)";
    assert_eq!(target.value(sums).await.as_deref(), Some("t"), "the balances of the target do not add up");
    desk.stop(run);
}

#[tokio::test(flavor = "multi_thread")]
async fn pgbench_is_re_keyed_while_it_runs_with_a_history_that_only_grows() {
    a_whole_migration(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pgbench_is_re_keyed_while_it_runs_with_whole_rows_as_the_identity_of_its_history() {
    a_whole_migration(true).await;
}
