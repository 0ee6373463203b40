//! A migration of `examples/`, run from its own folder by the commands of its README, on its own spec: what the README shows
//! and the test does not run is a failure.

use crossfade_testkit::{
    crossfade::{Crossfade, Finished, Running},
    postgres::Database,
    wait::wait_for_blocking,
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

    /// The same under a name of its own, for slots belong to a whole server: `spec` calls the migration so from here on.
    pub(crate) fn named(self, spec: &str, name: &'static str) -> Self {
        let text = self.file(spec);
        let renamed = |line: &str| match line.starts_with("name ") {
            true => format!("name = \"{name}\"\n"),
            false => format!("{line}\n"),
        };
        std::fs::write(self.path(spec), text.lines().map(renamed).collect::<String>()).unwrap();
        self
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

    /// Runs a switch of the README, again and again while only the machine is too busy for it.
    pub(crate) fn switch(&self, command: &str) -> Finished {
        wait_for_blocking(command, || {
            let finished = self.start(command).wait();
            let busy = ["let it catch up", "wait for a quieter hour"].iter().any(|word| finished.stdout.contains(word));
            assert!(finished.code == Some(0) || finished.code == Some(3) && busy, "{command}\n{finished}");
            (finished.code == Some(0)).then_some(finished)
        })
    }

    /// What `crossfade status` says, as data.
    pub(crate) fn status(&self, more: &[&str]) -> serde_json::Value {
        let spec = format!("{}.toml", self.name);
        let words: Vec<&str> = ["status", &spec].into_iter().chain(more.iter().copied()).collect();
        self.crossfade.json(&words)
    }

    /// Starts the run of a spec, and kills it as soon as the migration's journal says that a phase is entered; gives the phase
    /// that it was in then.
    pub(crate) fn kill_in(&self, spec: &str, name: &str, phase: &str) -> String {
        // The copy has a line of its own, which also says how often it was begun.
        let word = match phase {
            "backfilling" => "backfill-started".to_owned(),
            phase => format!("\"phase\":\"{phase}\""),
        };
        let before = self.journal_says(name, &word);
        let mut run = self.start(&format!("crossfade run {spec}"));
        wait_for_blocking(&format!("the journal of {name} to say {phase}"), || {
            let said = self.journal_says(name, &word) > before;
            assert!(said || run.is_running(), "the run ended before {phase}\n{}{}", run.stdout(), run.stderr());
            said.then_some(())
        });
        run.kill();
        let status = self.crossfade.json(&["status", spec]);
        status["phase"].as_str().unwrap_or_else(|| panic!("{status}")).to_owned()
    }

    /// How often the journal of a migration has a word.
    pub(crate) fn journal_says(&self, name: &str, word: &str) -> usize {
        let folder = self.path("crossfade-data").join(name).join("journal");
        let Ok(folder) = std::fs::read_dir(folder) else { return 0 };
        let files = folder.filter_map(Result::ok).map(|file| file.path());
        let logs = files.filter(|path| path.extension().is_some_and(|end| end == "log"));
        logs.map(|path| {
            let content = std::fs::read(path).unwrap_or_default();
            content.windows(word.len()).filter(|window| *window == word.as_bytes()).count()
        })
        .sum()
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
