//! Specs that cannot be used.

use crate::Desk;

#[test]
fn a_spec_that_is_wrong_in_itself_is_refused_with_its_place() {
    let desk = Desk::new();
    desk.refuse(&["check", "none.toml"], 2, "none.toml: there is no such file");
    let cases = [
        ("tables", "tabels", "spec.toml:6:1: unknown key \"tabels\" in [source]; did you mean \"tables\"?"),
        (
            "[\"main.*\"]",
            "7",
            "spec.toml:6:10: wrong type for \"tables\" in [source]: integer `7` where it needs a list",
        ),
        ("shop.db", "${SOURCE_URL}", "spec.toml:5:10: the environment variable SOURCE_URL is not set"),
        ("\"shop\"", "\"Shop\"", "spec.toml:1:8: \"name\": \"Shop\" is not a name"),
        ("[sink]", "[sink", "spec.toml:8:"),
        ("shop-v2.db", "shop.db", "source and sink are the same file"),
        (
            "kind = \"sqlite\"\npath = \"shop-v2.db\"",
            "kind = \"cassandra\"",
            "kind = \"cassandra\" in [sink] is not built yet",
        ),
    ];
    for (from, to, says) in cases {
        desk.edit(from, to);
        for command in ["check", "plan", "run", "status", "verify"] {
            desk.refuse(&[command, "spec.toml"], 2, says);
        }
        assert_eq!(desk.names(), ["spec.toml"], "nothing may be half done");
    }
}

#[test]
fn a_missing_variable_comes_with_its_remedy() {
    let desk = Desk::new();
    desk.edit("shop.db", "${SOURCE_URL}");
    desk.refuse(&["check", "spec.toml"], 2, "hint: set it: export SOURCE_URL=");
}

#[test]
fn a_secret_never_reaches_the_screen() {
    let desk = Desk::new();
    desk.edit(
        "kind   = \"sqlite\"\npath   = \"shop.db\"",
        "kind = \"postgres\"\nurl = \"postgres://app:hunter2@127.0.0.1:1/shop?sslmode=disable\"",
    );
    let ended = desk.refuse(&["check", "spec.toml"], 2, "holds a password in plain text");
    assert!(!ended.stderr.contains("hunter2") && !ended.stdout.contains("hunter2"));
    desk.write("url", "postgres://app:hunter2@127.0.0.1:1/shop?sslmode=disable");
    desk.edit("kind   = \"sqlite\"\npath   = \"shop.db\"", "kind = \"postgres\"\nurl = \"file:url\"");
    let ended = desk.refuse(&["check", "spec.toml"], 1, "127.0.0.1");
    assert!(ended.stderr.contains("chmod 600"), "the open file is worth a warning: {ended:?}");
    assert!(!ended.stderr.contains("hunter2") && !ended.stdout.contains("hunter2"));
}
