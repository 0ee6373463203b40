//! The statements of one writer, drawn from a seed: plain SQL that both dialects take.

use super::{Size, literals};
use crate::seeded;
use rand::{Rng, rngs::StdRng, seq::IndexedRandom};
use std::fmt::Write;

/// Far from the keys that exist before the writers start, one range for each writer.
const OWN_RANGE: i64 = 1_000_000_000;

pub(super) struct Statements {
    rng: StdRng,
    writer: usize,
    size: Size,
    zoo: &'static [(&'static str, &'static [&'static str])],
    next: i64,
}

/// One transaction to be.
pub(super) struct Plan {
    pub(super) statements: Vec<String>,
    pub(super) commits: bool,
}

impl Statements {
    pub(super) fn postgres(seed: u64, writer: usize, size: Size) -> Self {
        Self { rng: seeded::worker(seed, writer), writer, size, zoo: literals::POSTGRES, next: 0 }
    }

    pub(super) fn sqlite(seed: u64, writer: usize, size: Size) -> Self {
        Self { zoo: literals::SQLITE, ..Self::postgres(seed, writer, size) }
    }

    /// What is there before any writer starts.
    pub(super) fn fill(&mut self) -> String {
        let mut sql = String::new();
        for id in 1..=self.size.customers {
            let _ = writeln!(sql, "{};", self.insert_customer(id));
            for order in (id * 3 - 2)..=(id * 3) {
                let _ = writeln!(sql, "{};\n{};", self.insert_order(order, id), self.insert_items(order));
            }
        }
        for id in 1..=self.size.zoo {
            let _ = writeln!(sql, "{};", self.insert_zoo(id));
        }
        sql
    }

    /// The next transaction, without its BEGIN and its end.
    pub(super) fn next_transaction(&mut self) -> Plan {
        let mut statements = Vec::new();
        let many = if self.rng.random_ratio(1, 40) { 60 } else { self.rng.random_range(1..=5) };
        for _ in 0..many {
            if self.rng.random_ratio(1, 8) {
                statements.push("SAVEPOINT s".to_owned());
                statements.push(self.statement());
                statements.push(self.statement());
                let back = self.rng.random_ratio(1, 2);
                statements.push(if back { "ROLLBACK TO SAVEPOINT s" } else { "RELEASE SAVEPOINT s" }.to_owned());
            } else {
                statements.push(self.statement());
            }
        }
        for table in ["pulse", "pulse_echo"] {
            statements.push(format!("UPDATE {table} SET beat = beat + 1 WHERE writer = {}", self.writer));
        }
        Plan { statements, commits: !self.rng.random_ratio(1, 20) }
    }

    fn statement(&mut self) -> String {
        let new = self.new_id();
        match self.rng.random_range(0..100) {
            0..12 => self.insert_customer(new),
            12..30 => {
                let customer = self.customer();
                self.if_there("customers", customer, &self.insert_order_of(new, customer))
            }
            30..42 => self.update_customer(),
            42..54 => {
                let (order, status) = (self.order(), self.word());
                format!("UPDATE orders SET status = {status}, total = total + 0.01 WHERE id = {order}")
            }
            54..62 => {
                let order = self.order();
                format!("UPDATE order_items SET quantity = quantity + 1 WHERE order_id = {order}")
            }
            62..68 => {
                let order = self.order();
                format!("DELETE FROM order_items WHERE order_id = {order} AND line = 2")
            }
            68..73 => format!("DELETE FROM orders WHERE id = {}", self.order()),
            73..76 => format!("DELETE FROM customers WHERE id = {}", self.customer()),
            // A key change cascades to the children: of a customer, of an order.
            76..80 => format!("UPDATE customers SET id = {new} WHERE id = {}", self.customer()),
            80..84 => format!("UPDATE orders SET id = {new} WHERE id = {}", self.order()),
            84..86 => format!("UPDATE order_items SET line = line + 10 WHERE order_id = {}", self.order()),
            86..90 => self.insert_zoo(new),
            90..96 => self.update_zoo(),
            96..98 => format!("DELETE FROM zoo WHERE id = {}", self.zoo_id()),
            _ => format!("UPDATE zoo SET id = {new} WHERE id = {}", self.zoo_id()),
        }
    }

    fn new_id(&mut self) -> i64 {
        self.next += 1;
        (self.writer as i64 + 1) * OWN_RANGE + self.next
    }

    /// A key that may be there: one of the first, or one of this writer's own.
    fn some(&mut self, first: i64) -> i64 {
        if self.next > 0 && self.rng.random_ratio(1, 2) {
            (self.writer as i64 + 1) * OWN_RANGE + self.rng.random_range(1..=self.next)
        } else {
            self.rng.random_range(1..=first.max(1))
        }
    }

    fn customer(&mut self) -> i64 {
        self.some(self.size.customers)
    }

    fn order(&mut self) -> i64 {
        self.some(self.size.customers * 3)
    }

    fn zoo_id(&mut self) -> i64 {
        self.some(self.size.zoo)
    }

    fn word(&mut self) -> String {
        let words = ["'new'", "'paid'", "'it''s sent'", "'žluťoučký'", "'back\\slash'", "''"];
        (*words.choose(&mut self.rng).unwrap_or(&"''")).to_owned()
    }

    /// Rarely a large text: PostgreSQL keeps it out of line.
    fn note(&mut self) -> String {
        match self.rng.random_range(0..10) {
            0..3 => "NULL".to_owned(),
            3..6 => self.word(),
            _ => {
                let text: String =
                    (0..self.rng.random_range(2500..4000)).map(|_| self.rng.random_range('a'..='z')).collect();
                format!("'{text}'")
            }
        }
    }

    fn insert_customer(&mut self, id: i64) -> String {
        let (name, note, score) = (self.word(), self.note(), self.rng.random_range(-99_999..99_999));
        format!(
            "INSERT INTO customers (id, email, name, score, note) VALUES ({id}, 'c{id}@example.org', {name}, {score} / 16.0, {note})"
        )
    }

    fn update_customer(&mut self) -> String {
        let id = self.customer();
        let change = match self.rng.random_range(0..4) {
            0 => format!("note = {}", self.note()),
            1 => "active = NOT active".to_owned(),
            2 => "score = NULL".to_owned(),
            _ => format!("name = {}", self.word()),
        };
        format!("UPDATE customers SET {change} WHERE id = {id}")
    }

    fn insert_order(&mut self, id: i64, customer: i64) -> String {
        self.insert_order_of(id, customer)
    }

    fn insert_order_of(&self, id: i64, customer: i64) -> String {
        format!(
            "INSERT INTO orders (id, customer_id, total, status, payload) SELECT {id}, {customer}, {customer} % 97 + 0.5, 'new', '{{\"of\": {customer}}}'"
        )
    }

    /// The insert happens only where the parent is there.
    fn if_there(&self, parent: &str, id: i64, insert: &str) -> String {
        format!("{insert} WHERE EXISTS (SELECT 1 FROM {parent} WHERE id = {id})")
    }

    fn insert_items(&mut self, order: i64) -> String {
        let quantity = self.rng.random_range(0..9);
        format!(
            "INSERT INTO order_items (order_id, line, sku, quantity) VALUES ({order}, 1, 'a-{order}', {quantity}), ({order}, 2, 'b', 1)"
        )
    }

    fn zoo_value(&mut self, column: usize) -> &'static str {
        if self.rng.random_ratio(1, 6) {
            return "NULL";
        }
        let pool = self.zoo.get(column).map(|(_, literals)| *literals).unwrap_or_default();
        pool.choose(&mut self.rng).copied().unwrap_or("NULL")
    }

    fn insert_zoo(&mut self, id: i64) -> String {
        let values: Vec<&str> = (0..self.zoo.len()).map(|column| self.zoo_value(column)).collect();
        format!("INSERT INTO zoo VALUES ({id}, {})", values.join(", "))
    }

    fn update_zoo(&mut self) -> String {
        let (id, column) = (self.zoo_id(), self.rng.random_range(0..self.zoo.len()));
        let value = self.zoo_value(column);
        format!("UPDATE zoo SET c{column} = {value} WHERE id = {id}")
    }
}
