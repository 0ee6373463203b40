//! A small shop with references that cascade, and somebody who works in it: keys move, and rows go with their parents.

pub(crate) const SHOP: &str = "
CREATE TABLE people (id int PRIMARY KEY, name text NOT NULL, note text);
CREATE TABLE orders (id int PRIMARY KEY, person int NOT NULL REFERENCES people ON DELETE CASCADE ON UPDATE CASCADE, total numeric(12,2), note text);
INSERT INTO people SELECT n, 'person ' || n, repeat('x', n % 50) FROM generate_series(1, 2000) n;
INSERT INTO orders SELECT n, 1 + n % 2000, n / 4.0, NULL FROM generate_series(1, 6000) n;";

pub(crate) const TABLES: [&str; 2] = ["people", "orders"];

/// The transaction of this number.
pub(crate) fn work(number: u64) -> String {
    let (id, new) = (1 + number * 13 % 2000, 100_000 + number);
    match number % 5 {
        0 => format!(
            "INSERT INTO people VALUES ({new}, 'new', NULL); INSERT INTO orders VALUES ({new}, {new}, 1.5, 'n')"
        ),
        1 => format!("UPDATE orders SET total = total + 1 WHERE person = {id}"),
        2 => format!("DELETE FROM orders WHERE id = {id}"),
        3 => format!("UPDATE people SET id = id + 1000000 WHERE id = {id}"),
        _ => format!(
            "UPDATE people SET note = '{number}' WHERE id % 97 = {}; DELETE FROM people WHERE id = {}",
            number % 97,
            new - 40
        ),
    }
}
