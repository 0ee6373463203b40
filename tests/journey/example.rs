//! A migration of `examples/`, run from its own folder by the commands of its README, on its own spec: what the README shows
//! and the test does not run is a failure.

use crossfade_testkit::{
    crossfade::{Crossfade, Finished, Running},
    postgres::Database,
};
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Mutex,
};
use tempfile::TempDir;

/// Whether examples are run at their full size.
pub(crate) fn is_full() -> bool {
    std::env::var("CROSSFADE_EXAMPLES").is_ok_and(|size| size == "full")
}

/// A copy of an example's folder.
pub(crate) struct Example {
    crossfade: Crossfade,
    /// Its name, which is also the migration's.
    pub(crate) name: &'static str,
    readme: String,
    ran: Mutex<BTreeSet<String>>,
    folder: TempDir,
}

impl Example {
    /// Copies the folder, and sets the variables that the README exports.
    pub(crate) fn copy(name: &'static str, variables: &[(&str, &str)]) -> Self {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples").join(name);
        let folder = tempfile::tempdir().unwrap();
        for file in std::fs::read_dir(&from).unwrap_or_else(|error| panic!("{}: {error}", from.display())) {
            let file = file.unwrap();
            std::fs::copy(file.path(), folder.path().join(file.file_name())).unwrap();
        }
        let crossfade = Crossfade::at(folder.path());
        let crossfade = variables.iter().fold(crossfade, |crossfade, (name, value)| crossfade.env(name, value));
        let readme = std::fs::read_to_string(from.join("README.md")).unwrap();
        Self { crossfade, name, readme, ran: Mutex::default(), folder }
    }

    /// A file of it.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The content of a file of it.
    pub(crate) fn file(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// Runs a file of SQL as psql would; `variables` are what `-v` gives.
    pub(crate) async fn sql(&self, database: &Database, name: &str, variables: &[(&str, &str)]) {
        let sql = variables.iter().fold(self.file(name), |sql, (name, value)| sql.replace(&format!(":{name}"), value));
        database.execute(&sql).await;
    }

    /// Starts a command of the README.
    pub(crate) fn start(&self, command: &str) -> Running {
        let words: Vec<&str> = command.split_whitespace().collect();
        self.ran.lock().unwrap().insert(words.join(" "));
        self.crossfade.spawn(words.get(1..).unwrap_or_default())
    }

    /// Runs a command of the README, which must end with this code.
    pub(crate) fn expect(&self, code: i32, command: &str) -> Finished {
        let finished = self.start(command).wait();
        assert_eq!(finished.code, Some(code), "{command}\n{finished}");
        finished
    }

    /// What `crossfade status` says, as data.
    pub(crate) fn status(&self, more: &[&str]) -> serde_json::Value {
        let spec = format!("{}.toml", self.name);
        let words: Vec<&str> = ["status", &spec].into_iter().chain(more.iter().copied()).collect();
        self.crossfade.json(&words)
    }

    /// A `crossfade wait` of the README, as long as the run lives.
    pub(crate) fn wait(&self, run: &mut Running, command: &str) {
        let waited = self.start(command).wait();
        assert!(
            waited.code == Some(0) && run.is_running(),
            "the run does not catch up\n{waited}\n--- the run says\n{}{}",
            run.stdout(),
            run.stderr()
        );
    }

    /// Ends a run in order.
    pub(crate) fn stop(&self, run: Running) {
        run.interrupt();
        let ended = run.wait();
        assert_eq!(ended.code, Some(0), "{ended}");
    }

    /// Fails unless every command of the README has been run.
    pub(crate) fn assert_all_ran(&self) {
        self.assert_all_ran_of("");
    }

    /// The same, of those that speak of one of its specs.
    pub(crate) fn assert_all_ran_of(&self, spec: &str) {
        let commands = self.readme.split("```sh").skip(1).filter_map(|block| block.split("```").next());
        let lines = commands.flat_map(str::lines).filter_map(|line| line.split('#').next());
        let shown: BTreeSet<String> = lines
            .map(|line| line.trim_end_matches('&').split_whitespace().collect::<Vec<_>>().join(" "))
            .filter(|line| line.starts_with("crossfade ") && line.contains(spec))
            .collect();
        let ran = self.ran.lock().unwrap();
        let missing: Vec<_> = shown.difference(&ran).collect();
        assert!(missing.is_empty() && !shown.is_empty(), "the README shows what no test runs: {missing:?}");
    }
}
