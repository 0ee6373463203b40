//! Folders that are absent, taken, damaged, or from a later version.

use crate::Desk;
use crossfade_state::WorkFolder;
use std::{fs, path::PathBuf};

fn folder(desk: &Desk) -> PathBuf {
    desk.path().join("crossfade-data/shop")
}

#[test]
fn commands_that_look_into_a_migration_say_when_there_is_none() {
    let desk = Desk::new();
    for args in [
        ["log", "ls", "spec.toml"].as_slice(),
        &["log", "cat", "spec.toml"],
        &["log", "verify", "spec.toml"],
        &["state", "ls", "spec.toml"],
        &["pause", "spec.toml"],
        &["checkpoint", "spec.toml", "here"],
    ] {
        let ended = desk.refuse(args, 2, "has no folder yet");
        assert!(ended.stderr.contains("hint: `crossfade run spec.toml` makes it"), "{ended:?}");
    }
    assert_eq!(desk.names(), ["spec.toml"], "looking must not make the folder");
}

#[test]
fn a_folder_that_another_process_owns_ends_with_seventy_five() {
    let desk = Desk::new();
    let owned = WorkFolder::lock(folder(&desk)).unwrap();
    let pid = std::process::id().to_string();
    let ended = desk.refuse(&["state", "ls", "spec.toml"], 75, &format!("belongs to the running process {pid}"));
    assert!(ended.stderr.contains("hint: Stop that one"), "{ended:?}");
    drop(owned);
    desk.refuse(&["state", "ls", "spec.toml"], 2, "has no state yet");
}

#[test]
fn a_damaged_state_ends_with_five_and_its_remedy() {
    let desk = Desk::new();
    drop(WorkFolder::lock(folder(&desk)).unwrap());
    let state = WorkFolder::state_path(&folder(&desk));
    drop(crossfade_state::SledStore::open(&state).unwrap());
    for entry in fs::read_dir(&state).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            fs::write(path, b"not what was written").unwrap();
        }
    }
    let ended = desk.refuse(&["state", "ls", "spec.toml"], 5, "damaged");
    assert!(ended.stderr.contains("crossfade state rebuild"), "{ended:?}");
}
