//! Asking a process that runs: here it is the test itself that answers on the control socket.

use crate::Desk;
use crossfade_control::{Command, Migration, decide, evolve};
use crossfade_observe::{
    Rates, Status, Totals,
    socket::{Control, ControlSocket, Refused},
};
use crossfade_state::WorkFolder;
use serde_json::{Value, json};
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{runtime::Runtime, sync::oneshot};

/// Answers, and remembers what it was asked.
#[derive(Default)]
struct Answering {
    heard: Mutex<Vec<String>>,
}

impl Answering {
    fn hear(&self, what: String) {
        self.heard.lock().unwrap().push(what);
    }
}

impl Control for Answering {
    async fn status(&self) -> Status {
        Status::new("shop", 0, &Migration::default(), &Totals::default(), Rates::default()).run_by(4711)
    }

    async fn pause(&self, _who: String, reason: String) -> Result<(), Refused> {
        self.hear(format!("pause {reason}"));
        Ok(())
    }

    async fn resume(&self, _who: String) -> Result<(), Refused> {
        self.hear("resume".to_owned());
        Ok(())
    }

    async fn stop(&self) -> Result<(), Refused> {
        Err(Refused::new(2, "nobody asked for that"))
    }

    async fn checkpoint(&self, _who: String, name: String) -> Result<Value, Refused> {
        if name == "taken" {
            return Err(Refused::new(2, "there is a checkpoint `taken` already; choose another name"));
        }
        Ok(json!({ "name": name, "cut": "42", "position": null }))
    }

    async fn wait(&self, what: String) -> Result<Value, Refused> {
        self.hear(format!("wait {what}"));
        Ok(json!({ "caught_up": true, "quarantined": 3 }))
    }

    async fn command(&self, verb: String, _body: Value) -> Result<Value, Refused> {
        self.hear(verb.clone());
        match verb.as_str() {
            "add-tables" => Ok(json!({ "tables": ["public.late"], "begun": true })),
            _ => Err(Refused::new(2, format!("`{verb}` is not known"))),
        }
    }
}

/// A desk at which somebody runs the migration.
struct Running {
    desk: Desk,
    heard: Arc<Answering>,
    _stop: oneshot::Sender<()>,
    _owned: WorkFolder,
    _runtime: Runtime,
}

fn running() -> Running {
    let desk = Desk::new();
    let folder = desk.path().join("crossfade-data/shop");
    let owned = WorkFolder::lock(&folder).unwrap();
    let runtime = Runtime::new().unwrap();
    let heard = Arc::new(Answering::default());
    let (stop, stopped) = oneshot::channel();
    let socket = runtime.block_on(async { ControlSocket::bind(&WorkFolder::socket_path(&folder)).unwrap() });
    runtime.spawn(socket.serve(heard.clone(), async {
        let _ = stopped.await;
    }));
    Running { desk, heard, _stop: stop, _owned: owned, _runtime: runtime }
}

#[test]
fn a_running_process_answers_for_its_migration() {
    let running = running();
    let status = running.desk.run(&["status", "spec.toml", "--json"]);
    assert_eq!(status.code, 0, "{status:?}");
    let status: Value = serde_json::from_str(&status.stdout).unwrap();
    assert_eq!((&status["pid"], &status["standing"]), (&json!(4711), &json!("running")));
    assert_eq!(running.desk.run(&["status", "spec.toml"]).code, 0);

    for args in [
        ["pause", "spec.toml", "--reason", "backup"].as_slice(),
        &["resume", "spec.toml"],
        &["resume", "spec.toml", "--add"],
        &["wait", "spec.toml", "--caught-up"],
    ] {
        let ended = running.desk.run(args);
        assert_eq!(ended.code, 0, "{args:?}: {ended:?}");
    }
    let heard = running.heard.heard.lock().unwrap().clone();
    assert_eq!(heard, ["pause backup", "resume", "resume", "add-tables", "wait caught-up"]);
}

#[test]
fn what_a_running_process_refuses_keeps_its_exit_code() {
    let running = running();
    let named = running.desk.run(&["checkpoint", "spec.toml", "here"]);
    assert_eq!((named.code, named.stdout.trim()), (0, "checkpoint here stands at offset 42"));
    running.desk.refuse(&["checkpoint", "spec.toml", "taken"], 2, "there is a checkpoint `taken` already");
    running.desk.refuse(&["checkpoint", "spec.toml", "../x"], 2, "cannot name a checkpoint");
}

#[test]
fn waiting_says_what_is_held_and_gives_up_in_time() {
    let running = running();
    let waited = running.desk.run(&["wait", "spec.toml", "--caught-up"]);
    assert_eq!(waited.stdout.trim(), "caught up, with 3 changes in quarantine");

    let nobody = Desk::new();
    let begun = std::time::Instant::now();
    let ended = nobody.refuse(&["wait", "spec.toml", "--caught-up", "--timeout", "300ms"], 1, "no process runs shop");
    assert!(ended.stderr.contains("hint: start it: crossfade run spec.toml"), "{ended:?}");
    assert!(begun.elapsed() < Duration::from_secs(30));
}

#[test]
fn the_folder_answers_where_nobody_runs() {
    let desk = Desk::new();
    let folder = desk.path().join("crossfade-data/shop");
    drop(WorkFolder::lock(&folder).unwrap());
    desk.refuse(&["status", "spec.toml"], 2, "has not begun yet");
    // What is not under way cannot be paused; the journal says so, and keeps that it was asked.
    desk.refuse(&["pause", "spec.toml"], 3, "`pause` is not possible while the migration is draft");
    let status = desk.run(&["status", "spec.toml", "--json"]);
    let status: Value = serde_json::from_str(&status.stdout).unwrap();
    assert_eq!((&status["phase"], &status["standing"]), (&json!("draft"), &json!("stopped")));
    desk.refuse(&["resume", "spec.toml", "--add"], 3, "`resume --add` is not possible while the migration is draft");
}

#[test]
fn a_pause_by_hand_holds_until_it_is_lifted_by_hand() {
    let desk = Desk::new();
    let folder = desk.path().join("crossfade-data/shop");
    begin(&folder);
    assert_eq!(desk.run(&["pause", "spec.toml", "--reason", "backup"]).code, 0);
    let said = desk.run(&["status", "spec.toml"]);
    assert!(said.stdout.contains("backup"), "{said:?}");
    assert_eq!(desk.run(&["resume", "spec.toml"]).code, 0);
    let said = desk.run(&["status", "spec.toml"]);
    assert!(!said.stdout.contains("backup"), "{said:?}");
}

/// A journal of a migration that has begun.
fn begin(folder: &std::path::Path) {
    use crossfade_control::{By, Journal};
    use crossfade_log::embedded::{Embedded, Options};
    let owned = WorkFolder::lock(folder).unwrap();
    let runtime = Runtime::new().unwrap();
    let log = Embedded::open(WorkFolder::journal_path(owned.dir()), Options::default()).unwrap();
    let journal = Journal::open(log, None).unwrap();
    let by = By { who: "run".to_owned(), at_us: 0 };
    let plan = Command::Plan { spec_hash: "a".to_owned(), secret_id: "b".to_owned() };
    let planned = decide(&Migration::default(), plan.clone()).unwrap();
    assert!(planned.iter().fold(Migration::default(), evolve).phase != Migration::default().phase);
    for command in [plan, Command::Expand] {
        runtime.block_on(journal.command(command, &by)).unwrap();
    }
}
