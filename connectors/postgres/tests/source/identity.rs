//! Is it still the same source? What cannot be resumed says so, and what to do.

use crate::support::*;
use crossfade_connector::{Failure, Source, Verdict};
use crossfade_event::{Position, SourceId};
use crossfade_postgres::{Config, PostgresSource};
use crossfade_testkit::postgres::Version;

const TABLE: &str = "CREATE SCHEMA app; CREATE TABLE app.t (id int PRIMARY KEY); INSERT INTO app.t VALUES (1);";

async fn ingested(name: &str) -> Option<(Fixture, Log)> {
    let fixture = Fixture::new(Version::V15, name, TABLE).await?;
    let (source, log) = fixture.copied().await;
    // The server ends the session when it notices; the slot is free then.
    drop(source);
    let slot = fixture.config(&["app.*"]).object_name();
    let free = format!("SELECT 1 FROM pg_replication_slots WHERE slot_name = '{slot}' AND NOT active");
    while fixture.database.value(&free).await.is_none() {
        tokio::task::yield_now().await;
    }
    Some((fixture, log))
}

fn is_lost(result: Result<(), Failure>) -> Failure {
    let failure = result.expect_err("it must not open");
    assert!(matches!(failure.verdict, Verdict::Lost { .. }), "{failure}");
    assert!(failure.advice().unwrap().contains("--wipe"));
    failure
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_is_gone_is_lost_and_is_not_made_anew() {
    let Some((fixture, mut log)) = ingested("slot_gone").await else { return };
    let slot = fixture.config(&["app.*"]).object_name();
    fixture.database.execute(&format!("SELECT pg_drop_replication_slot('{slot}')")).await;
    is_lost(try_open(&mut fixture.source(), &mut log).await);
    let count = format!("SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{slot}'");
    assert_eq!(fixture.database.value(&count).await.as_deref(), Some("0"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_was_made_anew_is_lost() {
    let Some((fixture, mut log)) = ingested("slot_anew").await else { return };
    let slot = fixture.config(&["app.*"]).object_name();
    fixture.database.execute(&format!("SELECT pg_drop_replication_slot('{slot}'); INSERT INTO app.t VALUES (2)")).await;
    fixture.database.execute(&format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')")).await;
    let failure = is_lost(try_open(&mut fixture.source(), &mut log).await);
    assert!(failure.to_string().contains("beyond ours"), "{failure}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_of_another_plugin_is_lost() {
    let Some((fixture, mut log)) = ingested("slot_plugin").await else { return };
    let slot = fixture.config(&["app.*"]).object_name();
    fixture.database.execute(&format!("SELECT pg_drop_replication_slot('{slot}')")).await;
    fixture.database.execute(&format!("SELECT pg_create_logical_replication_slot('{slot}', 'test_decoding')")).await;
    let failure = is_lost(try_open(&mut fixture.source(), &mut log).await);
    assert!(failure.to_string().contains("another plugin"), "{failure}");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_database_is_lost() {
    let Some((fixture, mut log)) = ingested("other_db").await else { return };
    let position = log.position.unwrap();
    log.position = Some(Position { source: SourceId::of("another"), ..position });
    let failure = is_lost(try_open(&mut fixture.source(), &mut log).await);
    assert!(failure.to_string().contains("another server or another database"), "{failure}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_left_the_publication_is_lost() {
    let Some((fixture, mut log)) = ingested("unpublished").await else { return };
    let name = fixture.config(&["app.*"]).object_name();
    fixture.database.execute(&format!("ALTER PUBLICATION {name} DROP TABLE app.t")).await;
    let failure = is_lost(try_open(&mut fixture.source(), &mut log).await);
    assert!(failure.to_string().contains("app.t"), "{failure}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_in_use_is_waited_for_and_a_strangers_slot_is_refused() {
    let Some((fixture, mut log)) = ingested("in_use").await else { return };
    let mut first = fixture.source();
    open(&mut first, &mut log).await;
    let failure = try_open(&mut fixture.source(), &mut log).await.unwrap_err();
    assert!(failure.is_transient() && failure.to_string().contains("in use by the server's process"), "{failure}");

    let other = Fixture::new(Version::V15, "stranger", TABLE).await.unwrap();
    let slot = other.config(&["app.*"]).object_name();
    other.database.execute(&format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')")).await;
    let failure = try_open(&mut other.source(), &mut Log::default()).await.unwrap_err();
    assert!(matches!(failure.verdict, Verdict::Refused { .. }), "{failure}");
    assert!(failure.advice().unwrap().contains("pg_drop_replication_slot"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_was_cut_off_before_the_log_had_anything_is_begun_again() {
    let Some(fixture) = Fixture::new(Version::V15, "cut_start", TABLE).await else { return };
    let mut source = fixture.source();
    open(&mut source, &mut Log::default()).await;
    drop(source);
    let (mut source, mut log) = (fixture.source(), Log::default());
    open(&mut source, &mut log).await;
    ingest_all(&fixture, &mut source, &mut log).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_with_replication_and_select_is_enough_and_what_it_lacks_is_named() {
    let Some(fixture) = Fixture::new(Version::V15, "small_role", TABLE).await else { return };
    let role = format!("role_{}", fixture.database.name);
    fixture
        .database
        .execute(&format!("CREATE ROLE {role} LOGIN PASSWORD 'pw'; GRANT USAGE ON SCHEMA app TO {role}"))
        .await;
    let mut config = fixture.config(&["app.*"]);
    let url = fixture.server.url_as(&role, "pw", &fixture.database.name);
    config.connection = Config::parse(&url).unwrap();
    let mut source = PostgresSource::new(config.clone()).unwrap();
    let failure = try_open(&mut source, &mut Log::default()).await.unwrap_err();
    assert!(failure.to_string().contains("REPLICATION"), "{failure}");

    fixture.database.execute(&format!("ALTER ROLE {role} REPLICATION; GRANT SELECT ON app.t TO {role}")).await;
    let failure = try_open(&mut source, &mut Log::default()).await.unwrap_err();
    let advice = failure.advice().unwrap().to_owned();
    assert!(matches!(failure.verdict, Verdict::Refused { .. }), "{failure}");
    let sql = advice.split_once("run: ").unwrap().1;
    fixture.database.execute(sql).await;

    let mut log = Log::default();
    open(&mut source, &mut log).await;
    fixture.database.execute("INSERT INTO app.t VALUES (7)").await;
    ingest_all(&fixture, &mut source, &mut log).await;
    source.health().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn own_writes_do_not_come_back_with_and_without_an_origin() {
    let Some(fixture) = Fixture::new(Version::V15, "own_writes", TABLE).await else { return };
    let config = fixture.config(&["app.*"]);
    let (origin, migration) = (config.object_name(), config.migration.clone());
    let (mut source, mut log) = fixture.copied().await;
    fixture
        .database
        .execute(&format!(
            "BEGIN; SELECT pg_logical_emit_message(true, 'crossfade.own', '{migration}');
             INSERT INTO app.t VALUES (100); COMMIT"
        ))
        .await;
    fixture.database.execute(&format!("SELECT pg_replication_origin_create('{origin}')")).await;
    let client = fixture.database.connect().await;
    client
        .batch_execute(&format!(
            "SELECT pg_replication_origin_session_setup('{origin}'); INSERT INTO app.t VALUES (101)"
        ))
        .await
        .unwrap();
    drop(client);
    fixture
        .database
        .execute(
            "BEGIN; SELECT pg_logical_emit_message(true, 'crossfade.own', 'another');
             INSERT INTO app.t VALUES (102); COMMIT;
             SELECT pg_replication_origin_create('other_' || pg_backend_pid());
             SELECT pg_replication_origin_session_setup('other_' || pg_backend_pid()); INSERT INTO app.t VALUES (103)",
        )
        .await;
    ingest(&mut source, &mut log, fixture.here().await).await;
    let replica = Replica::compute(&log, &fixture.database).await;
    // 1, and what others wrote.
    assert_eq!(replica.rows("app.t").len(), 3);
    assert_eq!(log.changes().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_is_made_for_standbys_where_the_spec_says_so_and_the_server_can() {
    for version in Version::ALL {
        let Some(fixture) = Fixture::new(version, "failover", TABLE).await else { return };
        let mut config = fixture.config(&["app.*"]);
        config.failover = true;
        let slot = config.object_name();
        let mut source = PostgresSource::new(config).unwrap();
        let mut log = Log::default();
        open(&mut source, &mut log).await;
        ingest_all(&fixture, &mut source, &mut log).await;
        let sql = format!("SELECT to_jsonb(s) ->> 'failover' FROM pg_replication_slots s WHERE slot_name = '{slot}'");
        let wanted = (version != Version::V15).then_some("true");
        assert_eq!(fixture.database.value(&sql).await.as_deref(), wanted, "{version}");
    }
}
