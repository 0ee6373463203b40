//! `examples/cycle-reports` in the application's own tables, by the commands of its README: UUIDs stand beside the numbers,
//! take their names under writers, and give them back; taken back from every phase, and cleaned up in the end.

use crate::{
    cycle_reports::{content, size},
    desk::rows,
    example::Example,
    reporters::{Reporters, Size},
};
use crossfade_testkit::{
    compare::assert_same,
    crossfade::Running,
    postgres::{Database, Postgres, Version},
    wait::wait_until,
};

const NAME: &str = "cycle-reports-in-place";

/// The database, the folder, and how large all of it is.
struct Stage {
    example: Example,
    database: Database,
    size: Size,
    /// The application's tables as the catalog has them.
    shape: crossfade_testkit::compare::Rows,
}

const SHAPE: &str = "SELECT a.attrelid::regclass::text, a.attname::text, format_type(a.atttypid, a.atttypmod), a.attnotnull::text
      FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
      WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' AND a.attnum > 0 AND NOT a.attisdropped
    UNION ALL SELECT conrelid::regclass::text, conname::text, pg_get_constraintdef(oid), convalidated::text
      FROM pg_constraint WHERE connamespace = 'public'::regnamespace AND contype <> 'n' AND conrelid <> 0
    UNION ALL SELECT indrelid::regclass::text, indexrelid::regclass::text, pg_get_indexdef(indexrelid), indisvalid::text
      FROM pg_index JOIN pg_class c ON c.oid = indrelid WHERE c.relnamespace = 'public'::regnamespace
    UNION ALL SELECT 'slot', slot_name::text, '', '' FROM pg_replication_slots WHERE database = current_database()
    UNION ALL SELECT 'publication', pubname::text, '', '' FROM pg_publication
    UNION ALL SELECT 'schema', nspname::text, '', '' FROM pg_namespace WHERE nspname IN ('crossfade', 'app_v1', 'app_v2')
    UNION ALL SELECT 'trigger', tgname::text, '', '' FROM pg_trigger WHERE NOT tgisinternal";

impl Stage {
    async fn set() -> Option<Self> {
        let database = Postgres::shared(Version::V15)?.create_database("reports").await;
        let secret = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
        let variables = [("OLD_URL", database.url.as_str()), ("CROSSFADE_SECRET", secret)];
        let example = Example::copy("cycle-reports", &variables);
        let size = size();
        example.sql(&database, "schema.sql", &[]).await;
        example.sql(&database, "generate.sql", &[("rows", &size.rows.to_string()), ("seed", "7")]).await;
        example.sql(&database, "prepare-in-place.sql", &[]).await;
        let shape = rows(&database, SHAPE).await;
        Some(Self { example, database, size, shape })
    }

    fn reporters(&self, asks: bool, round: &str) -> Reporters {
        Reporters::start(&self.database, &self.database, asks.then_some(NAME), self.size, round)
    }

    /// `check-in-place.sql` finds nothing: old and new columns say the same in every row.
    async fn assert_level(&self, when: &str) {
        let found = rows(&self.database, &self.example.file("check-in-place.sql")).await;
        assert_eq!(found.count(), 0, "{when}: {:#?}", found.iter().collect::<Vec<_>>());
    }

    /// What the application sees by the views of a shape: a line for each table.
    async fn seen(&self, schema: &str) -> Vec<String> {
        let views =
            format!("SELECT relname::text FROM pg_class WHERE relnamespace = '{schema}'::regnamespace ORDER BY 1");
        let mut seen = Vec::new();
        for row in rows(&self.database, &views).await.iter() {
            let view = row[0].as_deref().unwrap();
            let sql = format!("SELECT md5(string_agg(t::text, E'\\n' ORDER BY t::text)) FROM {schema}.{view} t");
            seen.push(format!("{view} {}", self.database.value(&sql).await.unwrap_or_default()));
        }
        assert_eq!(seen.len(), 20, "{seen:?}");
        seen
    }

    /// Takes everything back: the tables are what they were before, and their rows what `before` says.
    async fn take_back(&self, before: &[String], phase: &str) {
        self.example.expect(0, "crossfade rollback in-place.toml --wipe --yes");
        assert_eq!(before, content(&self.database).await, "the rows after {phase} was taken back");
        assert_same(phase, &self.shape, &rows(&self.database, SHAPE).await);
    }

    async fn caught_up(&self) -> Running {
        let mut run = self.example.start("crossfade run in-place.toml");
        self.example.wait(&mut run, "crossfade wait in-place.toml --caught-up");
        wait_until("the views and the flag table", async || {
            let sql = "SELECT to_regprocedure('crossfade.side(text, text)') IS NOT NULL
                AND (SELECT count(*) FROM pg_class WHERE relnamespace IN (to_regnamespace('app_v1'), to_regnamespace('app_v2'))) = 40";
            self.database.value(sql).await.as_deref() == Some("t")
        })
        .await;
        run
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn uuids_take_the_names_of_the_numbers_in_the_same_tables_and_can_be_taken_back_from_every_phase() {
    let Some(stage) = Stage::set().await else { return };
    let (example, database) = (&stage.example, &stage.database);
    let untouched = content(database).await;

    // Planned, and tried: nothing is written, and a trial is taken back.
    example.expect(0, "crossfade check in-place.toml");
    let plan = example.expect(0, "crossfade plan in-place.toml");
    for word in ["ADD COLUMN IF NOT EXISTS \"cycle_reports_id\" uuid", "CREATE VIEW \"app_v2\".\"users\""] {
        assert!(plan.stdout.contains(word), "{word} is missing\n{plan}");
    }
    example.expect(0, "crossfade run in-place.toml --dry-run");
    assert_eq!(untouched, content(database).await, "a dry run writes nothing");
    example.expect(0, "crossfade run in-place.toml --limit 1000 --quiet");
    stage.take_back(&untouched, "a trial").await;

    // Killed in the midst of the copy, with writers at work.
    let reporters = stage.reporters(false, "a");
    let run = example.start("crossfade run in-place.toml");
    reporters.wait_for_more(0, 5);
    run.kill();
    reporters.stop();
    example.expect(0, "crossfade rollback in-place.toml --wipe --yes");
    assert_same("a copy that was killed", &stage.shape, &rows(database, SHAPE).await);

    // Caught up and verified, while everybody writes.
    let reporters = stage.reporters(false, "b");
    let mut run = stage.caught_up().await;
    reporters.wait_for_more(0, 60);
    let verified = example.expect(0, "crossfade verify in-place.toml");
    assert!(verified.stdout.contains("0 differences"), "{verified}");
    reporters.stop();
    example.wait(&mut run, "crossfade wait in-place.toml --caught-up");
    stage.assert_level("verified").await;
    let before = stage.seen("app_v1").await;
    run.kill();
    example.expect(0, "crossfade rollback in-place.toml --wipe --yes");
    assert_same("verified", &stage.shape, &rows(database, SHAPE).await);

    // Over, under writers that ask whose names the columns have.
    let run = stage.caught_up().await;
    assert_eq!(before, stage.seen("app_v1").await, "the wipe has left every row");
    let reporters = stage.reporters(true, "c");
    reporters.wait_for_more(0, 60);
    example.expect(0, "crossfade verify in-place.toml");
    let dry = example.expect(0, "crossfade cutover in-place.toml --dry-run");
    assert!(dry.stdout.contains("RENAME COLUMN \"attribute_id\" TO \"legacy_attribute_id\""), "{dry}");
    let switched = example.expect(0, "crossfade cutover in-place.toml");
    println!("{}", switched.stdout.trim());
    assert_eq!(run.wait().code, Some(0), "the run ends once the new columns have the names");
    reporters.wait_for_more(1, 120);
    println!("{}", reporters.stop());
    stage.assert_level("after the switch").await;
    assert_new_shape(database).await;
    example.expect(3, "crossfade rollback in-place.toml --wipe --yes");

    // Back, with everything that was written meanwhile.
    let reporters = stage.reporters(true, "d");
    reporters.wait_for_more(1, 40);
    example.expect(0, "crossfade failback in-place.toml --dry-run");
    let back = example.expect(0, "crossfade failback in-place.toml");
    println!("{}", back.stdout.trim());
    reporters.wait_for_more(0, 40);
    println!("{}", reporters.stop());
    let now = content_of(database).await;
    example.expect(0, "crossfade rollback in-place.toml --wipe --yes");
    assert_eq!(now, content(database).await, "the wipe after a failback has left every row of the old shape");
    assert_same("a failback", &stage.shape, &rows(database, SHAPE).await);

    // There again, and cleaned up.
    let run = stage.caught_up().await;
    let reporters = stage.reporters(true, "e");
    reporters.wait_for_more(0, 20);
    example.expect(0, "crossfade verify in-place.toml");
    example.expect(0, "crossfade cutover in-place.toml");
    assert_eq!(run.wait().code, Some(0));
    reporters.wait_for_more(1, 40);
    println!("{}", reporters.stop());
    stage.assert_level("after the second switch").await;
    let new = stage.seen("app_v2").await;
    // Only a person with patience gets past the waiting time.
    example.expect(3, "crossfade cleanup in-place.toml --confirm cycle-reports-in-place");
    let spec = example.file("in-place.toml").replace("keep     = \"7d\"", "keep     = \"0s\"");
    std::fs::write(example.path("in-place.toml"), spec).unwrap();
    example.expect(0, "crossfade cleanup in-place.toml --dry-run");
    example.expect(0, "crossfade cleanup in-place.toml --confirm cycle-reports-in-place");
    let left = "SELECT attname::text FROM pg_attribute WHERE attname LIKE 'legacy%' AND attnum > 0";
    assert_eq!(rows(database, left).await.count(), 0);
    let after =
        rows(database, "SELECT relname::text FROM pg_class WHERE relnamespace = to_regnamespace('app_v2')").await;
    assert_eq!((after.count(), stage.seen("app_v2").await), (20, new), "the new shape is as it was");
    let keys = std::fs::read_to_string(example.path("crossfade-data/cycle-reports-in-place/cleanup/keys.csv")).unwrap();
    let scoped = keys.lines().filter(|line| line.starts_with("public.cycle_report_scoping_attributes,")).count();
    let there = database.value("SELECT count(*) FROM cycle_report_scoping_attributes").await.unwrap();
    assert_eq!(scoped.to_string(), there, "each scoping row's number is in the last export");
    example.assert_all_ran_of("in-place.toml");
}

/// The application's own rows in the old shape, whatever stands beside them: by the views of that shape.
async fn content_of(database: &Database) -> Vec<String> {
    let mut found = Vec::new();
    for row in rows(
        database,
        "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace ORDER BY 1",
    )
    .await
    .iter()
    {
        let table = row[0].as_deref().unwrap();
        if table == "uuid_migration_mapping" {
            continue;
        }
        let view = if table == "configuration" { "public" } else { "app_v1" };
        let sql = format!("SELECT md5(string_agg(t::text, E'\\n' ORDER BY t::text)) FROM {view}.{table} t");
        found.push(format!("{table} {}", database.value(&sql).await.unwrap_or_default()));
    }
    found
}

/// Keys and references are those of the new columns, proven.
async fn assert_new_shape(database: &Database) {
    let keys = "SELECT conrelid::regclass::text || ' ' || pg_get_constraintdef(oid) FROM pg_constraint
        WHERE convalidated AND connamespace = 'public'::regnamespace AND (contype = 'p' AND conrelid::regclass::text IN ('cycle_reports', 'cycle_report_scoping_attributes')
          OR contype = 'f' AND conrelid = 'workflow_phases'::regclass)";
    let wanted = "VALUES ('cycle_reports PRIMARY KEY (id)'), ('cycle_report_scoping_attributes PRIMARY KEY (id)'),
        ('workflow_phases FOREIGN KEY (cycle_id, report_id) REFERENCES cycle_reports(cycle_id, report_id) ON DELETE CASCADE'),
        ('workflow_phases FOREIGN KEY (cycle_reports_id) REFERENCES cycle_reports(id) ON DELETE CASCADE')";
    assert_same("keys and references", &rows(database, wanted).await, &rows(database, keys).await);
    let types = "SELECT DISTINCT format_type(a.atttypid, a.atttypmod) || ' ' || a.attnotnull FROM pg_attribute a JOIN pg_index i
        ON i.indrelid = a.attrelid AND i.indisprimary AND a.attnum = ANY (i.indkey::int2[]) JOIN pg_class c ON c.oid = a.attrelid
        WHERE c.relnamespace = 'public'::regnamespace AND c.relname NOT IN ('configuration', 'uuid_migration_mapping')";
    assert_same("types of keys", &rows(database, "VALUES ('uuid true')").await, &rows(database, types).await);
}
