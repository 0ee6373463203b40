//! A small migration of one SQLite file into another, in this process, for the tests beside.

use crate::{
    args::{Role, RunArgs, Until},
    spec::Spec,
};
use crossfade_event::{Batch, Event, Stamped, TableId};
use crossfade_log::{
    EventLog,
    embedded::{Embedded, Options},
};
use crossfade_state::WorkFolder;
use rusqlite::Connection;
use std::path::PathBuf;
use tempfile::TempDir;

/// A folder with a shop, its migration, and the spec of another sink for the same log.
pub(super) struct Shop(TempDir);

impl Shop {
    /// Twenty rows in the shop, and nobody has run anything.
    pub(super) fn new() -> Self {
        let shop = Self(tempfile::tempdir().unwrap());
        shop.execute(
            "PRAGMA journal_mode = WAL; CREATE TABLE items (id integer PRIMARY KEY, name text); WITH RECURSIVE n (id) AS \
             (SELECT 1 UNION ALL SELECT id + 1 FROM n WHERE id < 20) INSERT INTO items SELECT id, 'item ' || id FROM n",
        );
        for name in ["first", "second"] {
            let path = |file: &str| shop.path(file).display().to_string();
            let text = format!(
                "name = \"{name}\"\ndir = \"{}\"\n[source]\nkind = \"sqlite\"\npath = \"{}\"\ntables = [\"main.*\"]\n\
                 [sink]\nkind = \"sqlite\"\npath = \"{}\"\n",
                path("data"),
                path("shop.db"),
                path(&format!("{name}.db")),
            );
            std::fs::write(shop.path(&format!("{name}.toml")), text).unwrap();
        }
        shop
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// `first` or `second`.
    pub(super) fn spec(&self, name: &str) -> Spec {
        Spec::load(&self.path(&format!("{name}.toml"))).unwrap()
    }

    /// In the shop.
    pub(super) fn execute(&self, sql: &str) {
        Connection::open(self.path("shop.db")).unwrap().execute_batch(sql).unwrap();
    }

    /// All rows of the shop, or of a sink.
    pub(super) fn rows(&self, file: &str) -> Vec<(i64, String)> {
        let connection = Connection::open(self.path(file)).unwrap();
        let mut statement = connection.prepare("SELECT id, name FROM items ORDER BY id").unwrap();
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
        rows.collect::<Result<_, _>>().unwrap()
    }

    /// Runs the first migration until it has caught up.
    pub(super) async fn run(&self) {
        let spec = self.spec("first");
        let args = RunArgs {
            spec: spec.file.clone(),
            role: Role::All,
            until: Some(Until::CaughtUp),
            limit: None,
            dry_run: false,
            listen: None,
            quiet: true,
        };
        Box::pin(super::run(&spec, &args)).await.unwrap();
    }

    /// The number of its table in the log.
    pub(super) fn table(&self) -> TableId {
        let log = Embedded::open_read_only(WorkFolder::log_path(&self.spec("first").folder())).unwrap();
        log.latest_schemas()[0].id
    }

    /// Appends to the first migration's log what its source might say, at the place where it ends.
    pub(super) async fn say(&self, event: Event) {
        let log = Embedded::open(WorkFolder::log_path(&self.spec("first").folder()), Options::default()).unwrap();
        let position = log.tail().position.unwrap();
        let batch = Batch { events: vec![Stamped { position, event }], upto: None, whole: true };
        log.append(batch).await.unwrap();
    }
}
