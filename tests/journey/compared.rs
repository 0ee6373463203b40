//! What `verify` finds: a difference of every kind is planted, in tables that are compared where their rows are and in one that
//! goes through transforms, while an application writes; and the target is asked about itself.

use crate::desk::{Desk, SPEC, Writer, postgres, two_databases};
use crossfade_testkit::postgres::Database;
use serde_json::Value;

const SHOP: &str = "
CREATE TABLE customers (id int PRIMARY KEY, name text NOT NULL);
CREATE TABLE orders (id int PRIMARY KEY, customer int NOT NULL REFERENCES customers, total numeric, note text);
CREATE TABLE plain (region text, id int, price numeric, note text, PRIMARY KEY (region, id));
INSERT INTO customers SELECT n, 'customer ' || n FROM generate_series(1, 300) n;
INSERT INTO orders SELECT n, 1 + n % 300, n / 4.0, 'order ' || n FROM generate_series(1, 2000) n;
INSERT INTO plain SELECT 'r' || n % 3, n, n / 8.0, CASE WHEN n % 5 = 0 THEN '' END FROM generate_series(1, 5000) n;
";

/// The plain table goes over as it is; the others get new keys.
const RULES: &str = r#"
[keys.default]
make      = "uuid-v5"
namespace = "6f1c3f5e-0b57-4c7e-9d0c-3a3a2f6a9b11"

[rekey]
tables = ["public.customers", "public.orders"]
with   = "default"
"#;

/// What an application does meanwhile, in rows that no difference is planted in.
fn work(number: u64) -> String {
    let row = 1_000 + number % 900;
    format!(
        "UPDATE plain SET price = price + 1 WHERE id = {row}; UPDATE orders SET total = total + 1 WHERE id = {row};
         DELETE FROM plain WHERE id = {}; INSERT INTO plain VALUES ('new', {}, {number}, 'born')",
        3_000 + number % 900,
        10_000 + number
    )
}

/// What `verify` says: rows that differ of a table, by kind.
fn found(report: &Value, table: &str, kind: &str) -> usize {
    let tables = report["tables"].as_array().unwrap();
    let one = tables.iter().find(|one| one["table"] == table).unwrap_or_else(|| panic!("no {table} in {report}"));
    one["samples"].as_array().unwrap().iter().filter(|sample| sample["kind"] == kind).count()
}

fn broken(report: &Value, kind: &str) -> u64 {
    let checks = report["checks"].as_array().unwrap().iter().filter(|check| check["kind"] == kind);
    checks.map(|check| check["broken"].as_u64().unwrap()).sum()
}

async fn planted(target: &Database, damage: &str, heal: &str, desk: &Desk) -> Value {
    target.execute(damage).await;
    let report = desk.crossfade.json(&["verify", SPEC]);
    target.execute(heal).await;
    report
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_difference_is_found_while_the_application_writes() {
    let Some((source, target)) = two_databases().await else { return };
    source.execute(SHOP).await;
    let desk = Desk::new();
    desk.write_spec(&format!("{}\ntables = [\"public.*\"]", postgres(&source)), &postgres(&target), RULES);
    let mut running = desk.start();
    desk.wait(&mut running);
    let writer = Writer::start(&source, work);
    writer.wait_for_more(20);
    let said = desk.expect(0, &["verify"], &[]);
    assert!(said.stdout.contains("0 differences"), "{said}");
    assert!(said.stdout.contains("no reference leads to nothing (1 foreign keys), and the mapping"), "{said}");

    for (what, kind, rows, damage, heal) in [
        (
            "one value",
            "different",
            1,
            "UPDATE plain SET price = price + 0.5 WHERE id = 7",
            "UPDATE plain SET price = price - 0.5 WHERE id = 7",
        ),
        (
            "digits that do not count",
            "different",
            1,
            "UPDATE plain SET price = 2.0 WHERE id = 16",
            "UPDATE plain SET price = 16 / 8.0 WHERE id = 16",
        ),
        (
            "NULL for nothing",
            "different",
            1,
            "UPDATE plain SET note = NULL WHERE id = 10",
            "UPDATE plain SET note = '' WHERE id = 10",
        ),
        (
            "two values swapped",
            "different",
            2,
            "UPDATE plain SET price = 42.5 - price WHERE id IN (20, 320)",
            "UPDATE plain SET price = id / 8.0 WHERE id IN (20, 320)",
        ),
        (
            "a row is missing",
            "missing",
            1,
            "DELETE FROM plain WHERE id = 30",
            "INSERT INTO plain VALUES ('r0', 30, 30 / 8.0, '')",
        ),
        (
            "a row too many",
            "extra",
            1,
            "INSERT INTO plain VALUES ('r9', 30, 1, '')",
            "DELETE FROM plain WHERE region = 'r9'",
        ),
    ] {
        let report = planted(&target, damage, heal, &desk).await;
        assert_eq!(found(&report, "public.plain", kind), rows, "{what}: {report}");
        assert_eq!(report["differences"], rows, "{what}: {report}");
    }
    let report = planted(
        &target,
        "UPDATE orders SET note = 'damaged' WHERE note = 'order 5'",
        "UPDATE orders SET note = 'order 5' WHERE note = 'damaged'",
        &desk,
    )
    .await;
    assert_eq!(found(&report, "public.orders", "different"), 1, "{report}");

    // The target by itself: a parent that went behind the constraint's back, and a new key that was given twice.
    let report = planted(
        &target,
        "SET session_replication_role = replica; CREATE TABLE kept AS SELECT * FROM customers WHERE name = 'customer 4';
         DELETE FROM customers WHERE name = 'customer 4'",
        "INSERT INTO customers SELECT * FROM kept; DROP TABLE kept",
        &desk,
    )
    .await;
    assert!(broken(&report, "references") >= 6 && found(&report, "public.customers", "missing") == 1, "{report}");
    let report = planted(
        &target,
        "ALTER TABLE uuid_migration_mapping DROP CONSTRAINT uuid_migration_mapping_new_id_key;
         INSERT INTO uuid_migration_mapping SELECT table_name, old_id || '0', new_id FROM uuid_migration_mapping WHERE old_id = '999'",
        "DELETE FROM uuid_migration_mapping m USING uuid_migration_mapping o WHERE o.old_id = '999' AND o.new_id = m.new_id AND m.old_id <> '999';
         ALTER TABLE uuid_migration_mapping ADD CONSTRAINT uuid_migration_mapping_new_id_key UNIQUE (new_id, table_name)",
        &desk,
    )
    .await;
    assert_eq!(broken(&report, "injective"), 1, "{report}");

    // All of it at once, in rows that stand still and in rows that the application changes: repaired, and nothing newer undone.
    target
        .execute(
            "UPDATE plain SET price = price + 0.5 WHERE id < 40; DELETE FROM plain WHERE id BETWEEN 50 AND 80;
             INSERT INTO plain SELECT 'r9', n, 1, '' FROM generate_series(1, 30) n;
             UPDATE plain SET price = -1 WHERE id BETWEEN 1000 AND 1100; DELETE FROM plain WHERE id BETWEEN 1200 AND 1300;
             UPDATE orders SET note = 'damaged' WHERE total < 25; DELETE FROM orders WHERE note = 'order 1500'",
        )
        .await;
    let said = desk.expect(0, &["verify"], &["--repair"]);
    assert!(said.stdout.contains("repaired: ") && said.stdout.contains("30 deleted"), "{said}");
    assert!(said.stdout.contains("0 differences"), "{said}");
    writer.stop();
    desk.wait(&mut running);
    desk.verify();
    desk.stop(running);
    crate::desk::assert_same_tables(&source, &target, &["plain"]).await;
}
