//! The application's database, and the specs of the demo's migrations.

use anyhow::Result;
use rusqlite::{Connection, params};
use std::path::Path;

pub(super) const CUSTOMERS: u32 = 5_000;
pub(super) const ORDERS: u32 = 100_000;
pub(super) const LINES_PER_ORDER: u32 = 2;

const SCHEMA: &str = "
CREATE TABLE customers (
    id INTEGER PRIMARY KEY,
    email TEXT NOT NULL UNIQUE,
    full_name TEXT NOT NULL,
    balance REAL
);
CREATE TABLE orders (
    id INTEGER PRIMARY KEY,
    customer_id INTEGER NOT NULL REFERENCES customers(id),
    placed TEXT NOT NULL,
    amount_text TEXT NOT NULL,
    status TEXT,
    attachment BLOB
);
CREATE TABLE order_lines (
    id INTEGER PRIMARY KEY,
    order_id INTEGER NOT NULL REFERENCES orders(id),
    sku TEXT NOT NULL,
    quantity INTEGER NOT NULL
);
CREATE INDEX orders_by_customer ON orders (customer_id);
CREATE INDEX lines_by_order ON order_lines (order_id);
";

/// Makes and fills the shop, always the same.
pub(super) fn create(path: &Path) -> Result<()> {
    let mut connection = Connection::open(path)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.execute_batch(SCHEMA)?;
    let transaction = connection.transaction()?;
    {
        let mut customer = transaction.prepare("INSERT INTO customers VALUES (?1, ?2, ?3, ?4)")?;
        for id in 1..=CUSTOMERS {
            customer.execute(params![
                id,
                format!("c{id}@example.org"),
                format!("Customer {id}"),
                f64::from(id) / 7.0
            ])?;
        }
        let mut order = transaction.prepare("INSERT INTO orders VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?;
        let mut line = transaction.prepare("INSERT INTO order_lines VALUES (?1, ?2, ?3, ?4)")?;
        for id in 1..=ORDERS {
            let status = ["new", "paid", "sent"].get(id as usize % 4);
            let attachment = (id % 10 == 0).then(|| id.to_le_bytes().repeat(8));
            order.execute(params![
                id,
                id % CUSTOMERS + 1,
                format!("2026-{:02}-{:02}", id % 12 + 1, id % 28 + 1),
                (id % 900).to_string(),
                status,
                attachment
            ])?;
            for n in 0..LINES_PER_ORDER {
                line.execute(params![id * LINES_PER_ORDER + n, id, format!("sku-{}", id % 50), n + 1])?;
            }
        }
    }
    transaction.commit()?;
    Ok(())
}

/// Renamed and cast columns, and keys that become UUIDs with every reference.
pub(super) const FIRST_RULES: &str = r#"
[[table]]
from  = "main.customers"
steps = [{ rename = "full_name", to = "name" }]

[[table]]
from  = "main.orders"
steps = [
  { rename = "placed", to = "placed_on" },
  { rename = "amount_text", to = "amount" },
  { cast = "amount", to = "INTEGER" },
]
"#;

/// The writers may be taken to the new side.
pub(super) const SWITCH: &str = "\n[switch]\n";

/// The same keys, other columns.
pub(super) const OTHER_RULES: &str = r#"
[[table]]
from  = "main.orders"
steps = [
  { rename = "status", to = "state" },
  { drop = "attachment" },
]
"#;

/// A whole spec.
pub(super) fn spec(name: &str, target: &str, rules: &str) -> String {
    format!(
        r#"name = "{name}"
dir  = "crossfade-data"

[source]
kind   = "sqlite"
path   = "shop.db"
tables = ["main.*"]

[sink]
kind = "sqlite"
path = "{target}"

[keys.default]
make      = "uuid-v5"
namespace = "6f1c1f0e-6f2b-4b57-9a34-0d5be4c7a001"

[rekey]
tables = ["main.*"]
with   = "default"
{rules}"#
    )
}
