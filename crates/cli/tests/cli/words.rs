//! The command line itself.

use crate::Desk;

#[test]
fn help_names_every_command_and_the_exit_codes() {
    let help = Desk::new().run(&["--help"]);
    assert_eq!(help.code, 0);
    for word in [
        "demo",
        "init",
        "check",
        "plan",
        "run",
        "wait",
        "status",
        "verify",
        "checkpoint",
        "replay",
        "rollback",
        "pause",
        "resume",
        "quarantine",
        "mapping",
        "log",
        "state",
        "Exit codes",
    ] {
        assert!(help.stdout.contains(word), "{word} is missing:\n{}", help.stdout);
    }
}

#[test]
fn a_wrong_command_line_ends_with_two_and_the_nearest_right_word() {
    let desk = Desk::new();
    let near = desk.refuse(&["statsu", "spec.toml"], 2, "statsu");
    assert!(near.stderr.contains("status"), "{near:?}");
    desk.refuse(&["wait", "spec.toml"], 2, "--caught-up");
    desk.refuse(&["wait", "spec.toml", "--caught-up", "--timeout", "soon"], 2, "is not a length of time");
    desk.refuse(&["rollback", "spec.toml"], 2, "--undo");
    desk.refuse(&["rollback", "spec.toml", "--undo", "--wipe"], 2, "cannot be used with");
    desk.refuse(&["replay", "spec.toml", "--from", "yesterday"], 2, "is no place in the log");
    desk.refuse(&["replay", "spec.toml", "--from", "time:noon"], 2, "is not a moment");
    desk.refuse(&["quarantine", "retry", "spec.toml"], 2, "must be told which changes");
    desk.refuse(&["check", "spec.toml", "--log", "all=the=time"], 2, "is not a level or a filter");
}

#[test]
fn what_is_not_built_is_refused_by_name() {
    let desk = Desk::new();
    for role in ["ingest", "transform", "deliver"] {
        desk.refuse(&["run", "spec.toml", "--role", role], 2, "needs the log on Kafka");
    }
    desk.refuse(
        &["run", "spec.toml", "--role", "deliver", "--dry-run"],
        2,
        "--dry-run cannot be said to --role deliver",
    );
    desk.refuse(&["run", "spec.toml", "--role", "ingest", "--until", "caught-up"], 2, "does not know when the sink");
    assert_eq!(desk.names(), ["spec.toml"], "nothing may be half done");
}

#[test]
fn init_refuses_what_is_no_database() {
    let desk = Desk::new();
    desk.refuse(&["init", "--source", "mysql://h/d"], 2, "mysql is no kind of database");
    desk.refuse(&["init", "--source", "sqlite:none.db"], 2, "none.db");
    assert_eq!(desk.names(), ["spec.toml"], "looking must not make the file");
}
