//! The binary as a person meets it when something is wrong: one clear sentence, the remedy, the right exit code, and
//! nothing half done. None of this needs a server.
#![cfg(test)]

mod asking;
mod beginning;
mod broken;
mod folders;
mod looking;
mod words;

use assert_cmd::Command;
use std::{fs, path::Path};
use tempfile::TempDir;

/// A folder with a spec in it, from which `crossfade` is run.
pub(crate) struct Desk {
    folder: TempDir,
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

const SPEC: &str = r#"name = "shop"

[source]
kind   = "sqlite"
path   = "shop.db"
tables = ["main.*"]

[sink]
kind = "sqlite"
path = "shop-v2.db"
"#;

impl Desk {
    pub(crate) fn new() -> Self {
        let desk = Self { folder: tempfile::tempdir().unwrap() };
        desk.write("spec.toml", SPEC);
        desk
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        fs::write(self.path().join(name), text).unwrap();
    }

    /// Changes the spec by one replacement, which must apply.
    pub(crate) fn edit(&self, from: &str, to: &str) {
        assert!(SPEC.contains(from), "the spec has no {from}");
        self.write("spec.toml", &SPEC.replace(from, to));
    }

    pub(crate) fn run(&self, args: &[&str]) -> Ended {
        let output = Command::cargo_bin("crossfade")
            .unwrap()
            .args(args)
            .current_dir(self.path())
            .env_remove("SOURCE_URL")
            .timeout(std::time::Duration::from_secs(60))
            .output()
            .unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Ended { code: output.status.code().unwrap_or(-1), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// Runs it; it must end with this code and say this, in one `error:` line.
    #[track_caller]
    pub(crate) fn refuse(&self, args: &[&str], code: i32, says: &str) -> Ended {
        let ended = self.run(args);
        assert_eq!(ended.code, code, "{args:?}: {ended:?}");
        assert!(ended.stderr.contains(says), "{args:?} does not say `{says}`: {ended:?}");
        let errors = ended.stderr.lines().filter(|line| line.starts_with("error: ")).count();
        assert_eq!(errors, 1, "{args:?} needs one error line: {ended:?}");
        ended
    }

    /// What is in the folder.
    pub(crate) fn names(&self) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(self.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}
