//! The demo: needs nothing, shows everything, and ends well.

use crate::desk::Desk;
use crossfade_testkit::compare::{assert_same, sqlite_reader, sqlite_texts};

#[test]
fn the_demo_runs_to_its_end_and_leaves_a_folder_in_which_commands_work() {
    let desk = Desk::new();
    let said = desk.crossfade.succeed(&["demo", "--folder", "shown"]);
    let folder = desk.path("shown");
    assert!(folder.is_dir(), "{said}");
    assert!(said.stdout.contains("shown"), "the folder is named\n{said}");
    // Its second half: both sides read, the writers taken there and back, and what that cost them.
    for word in ["Dual reads while they write", "Cutover: ", "Failback: ", "held them up for", "0 lost"] {
        assert!(said.stdout.contains(word), "{word:?} is not said\n{said}");
    }
    let (old, new) = (sqlite_reader(&folder.join("shop.db")), sqlite_reader(&folder.join("shop-v2.db")));
    let side = "SELECT migration, side, epoch FROM crossfade_side";
    assert_same("who has the authority", &sqlite_texts(&old, side), &sqlite_texts(&new, side));
    for (was, is) in [
        ("SELECT email, full_name, balance FROM customers", "SELECT email, name, balance FROM customers"),
        (
            "SELECT c.email, o.placed, CAST(o.amount_text AS INTEGER), o.status, o.attachment FROM orders o \
             JOIN customers c ON c.id = o.customer_id",
            "SELECT c.email, o.placed_on, o.amount, o.status, o.attachment FROM orders o \
             JOIN customers c ON c.id = o.customer_id",
        ),
        (
            "SELECT o.status, o.placed, l.sku, l.quantity FROM order_lines l JOIN orders o ON o.id = l.order_id",
            "SELECT o.status, o.placed_on, l.sku, l.quantity FROM order_lines l JOIN orders o ON o.id = l.order_id",
        ),
    ] {
        assert_same(was, &sqlite_texts(&old, was), &sqlite_texts(&new, is));
    }
    let spec = folder.join("migration.toml");
    let spec = spec.to_str().unwrap();
    assert_eq!(desk.crossfade.json(&["status", spec])["switch"]["authority"], "old");
    desk.crossfade.succeed(&["check", spec]);
    desk.crossfade.succeed(&["plan", spec]);
}
