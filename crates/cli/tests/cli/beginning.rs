//! The first minutes with a SQLite file: `init`, `check`, `plan`. None of them writes anything but what it is asked for.

use crate::Desk;
use rusqlite::Connection;

fn desk_with_a_shop() -> Desk {
    let desk = Desk::new();
    let shop = Connection::open(desk.path().join("shop.db")).unwrap();
    shop.execute_batch(
        "PRAGMA journal_mode = wal;
         CREATE TABLE customers (id INTEGER PRIMARY KEY, email TEXT NOT NULL);
         CREATE TABLE orders (id INTEGER PRIMARY KEY, customer_id INTEGER NOT NULL REFERENCES customers (id));
         INSERT INTO customers VALUES (1, 'ada@example.org');
         INSERT INTO orders VALUES (7, 1);",
    )
    .unwrap();
    desk
}

#[test]
fn init_writes_a_spec_that_check_and_plan_take_as_it_is() {
    let desk = desk_with_a_shop();
    let init = ["init", "--source", "sqlite:shop.db", "--sink", "sqlite:new.db", "-o", "new.toml"];
    assert_eq!(desk.run(&init).code, 0);
    desk.refuse(&init, 2, "new.toml exists already");
    let check = desk.run(&["check", "new.toml"]);
    assert_eq!(check.code, 0, "{check:?}");
    assert!(check.stdout.contains("ready: 2 tables can be moved"), "{check:?}");

    // What stands in comments is as right as what does not.
    let text = std::fs::read_to_string(desk.path().join("new.toml")).unwrap();
    let (before, keys) = text.split_once("# [keys.default]").unwrap();
    let (keys, after) = keys.split_once("\n\n").unwrap();
    desk.write("keyed.toml", &format!("{before}[keys.default]{}\n\n{after}", keys.replace("\n# ", "\n")));
    let plan = desk.run(&["plan", "keyed.toml", "--json"]);
    assert_eq!(plan.code, 0, "{plan:?}");
    let plan: serde_json::Value = serde_json::from_str(&plan.stdout).unwrap();
    let targets: Vec<&str> =
        plan["tables"].as_array().unwrap().iter().map(|table| table["target"].as_str().unwrap()).collect();
    assert_eq!(targets, ["main.uuid_migration_mapping", "main.customers", "main.orders"]);
    assert!(!desk.path().join("new.db").exists(), "looking must not make the target");
    assert!(!desk.path().join("crossfade-data").exists(), "looking must not make the folder");
}

#[test]
fn what_is_not_there_is_refused_with_the_nearest_that_is() {
    let desk = desk_with_a_shop();
    let rest = "\n[[table]]\nfrom = \"main.order\"\n";
    desk.edit("path = \"shop-v2.db\"\n", &format!("path = \"shop-v2.db\"\n{rest}"));
    desk.refuse(&["plan", "spec.toml"], 2, "orders");
    let rest = "\n[[table]]\nfrom = \"main.orders\"\nsteps = [{ rename = \"custmer_id\", to = \"buyer\" }]\n";
    desk.edit("path = \"shop-v2.db\"\n", &format!("path = \"shop-v2.db\"\n{rest}"));
    desk.refuse(&["plan", "spec.toml"], 2, "customer_id");
    desk.edit("main.*", "main.ordrs");
    desk.refuse(&["check", "spec.toml"], 2, "orders");
}

#[test]
fn a_target_that_is_not_empty_is_refused_unless_the_spec_says_otherwise() {
    let desk = desk_with_a_shop();
    let target = Connection::open(desk.path().join("shop-v2.db")).unwrap();
    target
        .execute_batch(
            "CREATE TABLE orders (id INTEGER PRIMARY KEY, customer_id INTEGER); INSERT INTO orders VALUES (1, 1);",
        )
        .unwrap();
    drop(target);
    let ended = desk.refuse(&["check", "spec.toml"], 3, "one thing is in the way");
    assert!(ended.stdout.contains("main.orders: it holds 1 rows that are not ours"), "{ended:?}");
    desk.edit("path = \"shop-v2.db\"\n", "path = \"shop-v2.db\"\nexisting = \"merge\"\n");
    assert_eq!(desk.run(&["check", "spec.toml"]).code, 0);
}
