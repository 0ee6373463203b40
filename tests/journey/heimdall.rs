//! `examples/heimdall`, by the commands of its README: nodes of a graph get canonical keys, in three ways, while dumps come in.
//! `CROSSFADE_EXAMPLES=full` takes 400,000 nodes.

use crate::{
    desk::{Writer, rows},
    example::{Example, is_full},
};
use crossfade_testkit::{
    crossfade::Running,
    postgres::{Database, Postgres, Version},
    wait::{wait_for, wait_for_blocking},
};
use serde_json::Value;
use std::time::Instant;

/// The graph, and the folder from which it is migrated.
struct Stage {
    example: Example,
    graph: Database,
    dumped: u64,
}

impl Stage {
    async fn set() -> Option<Self> {
        let graph = Postgres::shared(Version::V15)?.create_database("graph").await;
        let dumped = dumped();
        let example = Example::copy("heimdall", &[("GRAPH_URL", graph.url.as_str())]);
        example.sql(&graph, "schema.sql", &[]).await;
        example.sql(&graph, "generate.sql", &[("rows", &dumped.to_string()), ("seed", "7")]).await;
        example.sql(&graph, "v2.sql", &[]).await;
        Some(Self { example, graph, dumped })
    }

    /// What a file of SQL answers.
    async fn answer(&self, file: &str) -> Vec<Vec<Option<String>>> {
        rows(&self.graph, &self.example.file(file)).await.iter().cloned().collect()
    }

    /// The published vectors, as nodes; their ids.
    async fn add_vectors(&self) -> Vec<(String, Value)> {
        let vectors: Vec<Value> = serde_json::from_str(&self.example.file("vectors.json")).unwrap();
        let mut found = Vec::new();
        for vector in vectors {
            let properties: serde_json::Map<String, Value> = ["value", "field", "row_key", "dump"]
                .into_iter()
                .filter(|name| !vector[name].is_null())
                .map(|name| (name.to_owned(), vector[name].clone()))
                .collect();
            let properties = Value::Object(properties).to_string().replace('\'', "''");
            let sql = format!("INSERT INTO intel.\"FieldValue\" (properties) VALUES ('{properties}') RETURNING id");
            found.push((self.graph.value(&sql).await.unwrap(), vector));
        }
        found
    }

    async fn assert_same_graph(&self) {
        let found = self.answer("check.sql").await;
        assert!(found.is_empty(), "{} rows, such as {:?}", found.len(), found.iter().take(5).collect::<Vec<_>>());
    }

    /// Every value of the old graph, and that nothing of ours is left beside it.
    async fn old_graph(&self) -> String {
        let left = "SELECT slot_name::text FROM pg_replication_slots WHERE database = current_database() \
             UNION ALL SELECT pubname::text FROM pg_publication \
             UNION ALL SELECT nspname::text FROM pg_namespace WHERE nspname IN ('crossfade', 'intel_v2', 'intel_v3')";
        let left = rows(&self.graph, left).await;
        assert_eq!(left.count(), 0, "{:?}", left.iter().collect::<Vec<_>>());
        let tables = ["Row", "FieldValue", "HAS_FIELD", "SIGHTING"];
        let each =
            tables.map(|table| format!("(SELECT string_agg(t::text, E'\\n' ORDER BY id) FROM intel.\"{table}\" t)"));
        self.graph.value(&format!("SELECT md5({})", each.join(" || "))).await.unwrap()
    }

    fn paused(&self) -> bool {
        self.example.status(&[])["standing"] == "paused"
    }
}

/// How many rows of dumps there are, each of which is about four nodes.
pub(crate) fn dumped() -> u64 {
    if is_full() { 100_000 } else { 500 }
}

/// Dumps come in, are looked at and corrected, and go.
pub(crate) fn work(number: u64) -> String {
    let node = |field: &str| {
        format!(
            "jsonb_build_object('dump', 'live', 'row_key', '{number}', 'field', '{field}', 'value', ' Value {number} ')"
        )
    };
    let known = 1_125_899_906_842_625 + number * 31 % 3000;
    match number % 4 {
        0 => format!(
            "WITH r AS (INSERT INTO intel.\"Row\" (properties) VALUES (jsonb_build_object('dump', 'live', 'row_key', '{number}')) RETURNING id), \
             v AS (INSERT INTO intel.\"FieldValue\" (properties) SELECT p FROM (VALUES ({}), ({})) p (p) RETURNING id) \
             INSERT INTO intel.\"HAS_FIELD\" (start_id, end_id) SELECT r.id, v.id FROM r, v",
            node("email"),
            node("name")
        ),
        1 => format!(
            "UPDATE intel.\"FieldValue\" SET properties = properties || '{{\"confidence\": 0.{number}}}' WHERE id = {known}"
        ),
        2 => format!(
            "UPDATE intel.\"FieldValue\" SET properties = properties || '{{\"big\": \"{}\"}}' WHERE id = {known}",
            "x".repeat(4000)
        ),
        _ => format!(
            "WITH gone AS (DELETE FROM intel.\"FieldValue\" WHERE properties ->> 'value' = ' Value {} ' AND properties ->> 'field' = 'name' RETURNING id) \
             DELETE FROM intel.\"HAS_FIELD\" e USING gone WHERE e.end_id = gone.id",
            number.saturating_sub(43)
        ),
    }
}

fn has_ended(run: &mut Running) -> bool {
    !run.is_running()
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_get_canonical_keys_in_three_ways_while_dumps_come_in() {
    let Some(stage) = Stage::set().await else { return };
    let (example, graph) = (&stage.example, &stage.graph);

    // Before anything is written: what stands in the way is named, both rows of it.
    let vectors = stage.add_vectors().await;
    graph.execute("INSERT INTO intel.\"HAS_FIELD\" (id, start_id, end_id) VALUES (1, 2, 3)").await;
    let found = stage.answer("preflight.sql").await;
    let same: Vec<&String> =
        vectors.iter().filter(|(_, v)| v["canonical_key"] == vectors[0].1["canonical_key"]).map(|(id, _)| id).collect();
    let both = format!("{{{},{}}}", same[0], same[1]);
    assert!(
        found.iter().any(|row| row[0].as_deref() == Some("collision") && row[2].as_deref() == Some(&both)),
        "{found:?}"
    );
    assert!(
        found.iter().any(|row| row[0].as_deref() == Some("an edge without an end") && row[2].as_deref() == Some("{1}")),
        "{found:?}"
    );
    let refused = example.expect(3, "crossfade check heimdall.toml");
    assert!(refused.stdout.contains("required that no two values get one key"), "{refused}");
    assert!(refused.stdout.contains("required that every edge has both ends: it is not so: 1 rows"), "{refused}");
    let refused = example.start("crossfade run heimdall.toml --limit 1000 --quiet").wait();
    assert_eq!(refused.code, Some(3), "what does not hold is not begun\n{refused}");
    graph.execute("DELETE FROM intel.\"HAS_FIELD\" WHERE id = 1").await;
    let mut kept: Vec<&(String, Value)> = Vec::new();
    for vector in &vectors {
        if kept.iter().any(|other| other.1["canonical_key"] == vector.1["canonical_key"]) {
            graph.execute(&format!("DELETE FROM intel.\"FieldValue\" WHERE id = {}", vector.0)).await;
        } else {
            kept.push(vector);
        }
    }
    assert_eq!(stage.answer("preflight.sql").await, Vec::<Vec<Option<String>>>::new());
    let untouched = stage.old_graph().await;

    // In place: two columns beside the properties.
    example.expect(0, "crossfade plan in-place.toml");
    let before = graph.value("SELECT pg_total_relation_size('intel.\"FieldValue\"')").await.unwrap();
    example.expect(0, "crossfade run in-place.toml --until caught-up");
    example.expect(0, "crossfade verify in-place.toml");
    let after = graph.value("SELECT pg_total_relation_size('intel.\"FieldValue\"')").await.unwrap();
    println!("in place: the table of values takes {after} bytes after {before}");
    let wrong = "SELECT id FROM intel.\"FieldValue\" WHERE canonical_key IS DISTINCT FROM canonical.field_value_key(properties) \
         UNION ALL SELECT id FROM intel.\"Row\" WHERE canonical_key IS DISTINCT FROM canonical.row_key(properties)";
    assert_eq!(rows(graph, wrong).await.count(), 0);
    for (id, vector) in &kept {
        let sql = format!("SELECT canonical_key FROM intel.\"FieldValue\" WHERE id = {id}");
        assert_eq!(graph.value(&sql).await.as_deref(), vector["canonical_key"].as_str(), "{vector}");
    }
    example.expect(0, "crossfade rollback in-place.toml --wipe --yes");
    assert_eq!(untouched, stage.old_graph().await, "what was written in place is gone");

    // A new graph beside the old one.
    example.expect(0, "crossfade check heimdall.toml");
    example.expect(0, "crossfade plan heimdall.toml");
    let dry = example.expect(0, "crossfade run heimdall.toml --dry-run");
    assert!(!dry.stdout.contains("refused "), "{dry}");
    example.expect(0, "crossfade run heimdall.toml --limit 1000 --quiet");
    example.expect(0, "crossfade rollback heimdall.toml --wipe --yes");
    assert_eq!(untouched, stage.old_graph().await, "a trial is gone");
    let began = Instant::now();
    let writer = Writer::start(graph, work);
    let run = example.start("crossfade run heimdall.toml");
    writer.wait_for_more(20);
    run.kill();
    let mut run = example.start("crossfade run heimdall.toml");
    example.wait(&mut run, "crossfade wait heimdall.toml --caught-up");
    println!("{} nodes in {:.1} s", 4 * stage.dumped, began.elapsed().as_secs_f64());
    let status = example.expect(0, "crossfade status heimdall.toml");
    assert!(status.stdout.contains("FieldValue"), "{status}");
    writer.wait_for_more(60);
    example.expect(0, "crossfade verify heimdall.toml");
    writer.stop();
    example.wait(&mut run, "crossfade wait heimdall.toml --caught-up");
    stage.assert_same_graph().await;
    for (id, vector) in &kept {
        let sql = format!("SELECT properties ->> 'canonical_key' FROM intel_v2.\"FieldValue\" WHERE id = {id}");
        assert_eq!(graph.value(&sql).await.as_deref(), vector["canonical_key"].as_str(), "{vector}");
    }
    // The check itself can fail.
    graph
        .execute(
            "UPDATE intel_v2.\"FieldValue\" SET properties = properties - 'canonical_key' WHERE id = 1125899906842626",
        )
        .await;
    assert_eq!(stage.answer("check.sql").await.len(), 1);
    graph.execute("UPDATE intel_v2.\"FieldValue\" SET properties = properties || jsonb_build_object('canonical_key', canonical.field_value_key(properties)) WHERE id = 1125899906842626").await;

    // Readers ask by the new key first, then by the raw one.
    example.sql(graph, "after-load.sql", &[]).await;
    example.sql(graph, "dual-read.sql", &[]).await;
    let read = "SELECT f.properties ->> 'canonical_key_version' FROM intel.\"FieldValue\" v, \
         canonical.find_field_value(v.properties ->> 'value', v.properties ->> 'field', v.properties ->> 'row_key', v.properties ->> 'dump') f \
         WHERE v.id BETWEEN 1125899906842650 AND 1125899906842699 AND f.id = v.id";
    assert!(rows(graph, read).await.count() >= 45, "nodes are found by the new key");
    let counted = "SELECT found_by, differs::text, count(*)::text FROM canonical.reads GROUP BY 1, 2";
    println!("dual reads: {:?}", rows(graph, counted).await.iter().collect::<Vec<_>>());
    assert_eq!(
        graph.value("SELECT count(*) FROM canonical.reads WHERE differs OR found_by <> 'v2'").await.as_deref(),
        Some("0")
    );
    let asked =
        example.start("crossfade verify heimdall.toml --queries queries.toml --no-rows --report asked.html").wait();
    println!("{}", asked.stdout.trim());
    assert!(matches!(asked.code, Some(0 | 3)), "{asked}");

    // A node comes in whose key another one has: both are named, and the rest goes on.
    graph
        .execute(
            "INSERT INTO intel.\"FieldValue\" (id, properties) SELECT 5, properties || jsonb_build_object('value', upper(properties ->> 'value') || ' ') \
             FROM intel.\"FieldValue\" WHERE id = 1125899906842700",
        )
        .await;
    wait_for("the collision to be in quarantine", async || {
        (example.status(&[])["conservation"]["quarantined"] != 0).then_some(())
    })
    .await;
    let listed = example.expect(0, "crossfade quarantine ls heimdall.toml");
    assert!(listed.stdout.contains("FieldValue") && listed.stdout.contains("field_value_v2"), "{listed}");
    let found = stage.answer("preflight.sql").await;
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0][2].as_deref(), Some("{5,1125899906842700}"));
    graph.execute("DELETE FROM intel.\"FieldValue\" WHERE id = 5").await;
    example.wait(&mut run, "crossfade wait heimdall.toml --caught-up");
    example.expect(0, "crossfade quarantine discard heimdall.toml --all");
    stage.assert_same_graph().await;

    // More than one change of a hundred cannot be applied: it pauses by itself, and goes on when it is told to.
    graph.execute("UPDATE intel.\"FieldValue\" SET properties = CASE WHEN id % 20 = 0 THEN to_jsonb(properties::text) ELSE properties END WHERE id < 1125899906842625 + 3000").await;
    wait_for("the gate to pause it", async || stage.paused().then_some(())).await;
    graph.execute("UPDATE intel.\"FieldValue\" SET properties = (properties #>> '{}')::jsonb WHERE jsonb_typeof(properties) = 'string'").await;
    example.expect(0, "crossfade resume heimdall.toml");
    wait_for_blocking("the run to go on", || (!stage.paused() && !has_ended(&mut run)).then_some(()));
    example.wait(&mut run, "crossfade wait heimdall.toml --caught-up");
    example.expect(0, "crossfade quarantine discard heimdall.toml --all");
    example.expect(0, "crossfade replay heimdall.toml --from start");
    example.wait(&mut run, "crossfade wait heimdall.toml --caught-up");
    stage.assert_same_graph().await;
    example.stop(run);

    // From the log alone, once more.
    example.expect(0, "crossfade replay heimdall.toml --from start --into rebuilt.toml");
    for table in ["Row", "FieldValue", "HAS_FIELD", "SIGHTING"] {
        let sql = format!(
            "SELECT count(*) FROM intel_v2.\"{table}\" a FULL JOIN intel_v3.\"{table}\" b USING (id) WHERE a::text IS DISTINCT FROM b::text"
        );
        assert_eq!(graph.value(&sql).await.as_deref(), Some("0"), "{table}");
    }
    example.expect(0, "crossfade rollback rebuilt.toml --wipe --yes");
    let now = graph.value("SELECT md5(string_agg(t::text, E'\\n' ORDER BY id)) FROM intel.\"FieldValue\" t").await;
    example.expect(0, "crossfade rollback heimdall.toml --wipe --yes");
    stage.old_graph().await;
    assert_eq!(
        now,
        graph.value("SELECT md5(string_agg(t::text, E'\\n' ORDER BY id)) FROM intel.\"FieldValue\" t").await
    );
    example.assert_all_ran();
}
