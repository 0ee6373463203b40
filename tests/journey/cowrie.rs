//! `examples/cowrie`, by the commands in its README, while the application writes: a dry run, a trial, a backfill that is
//! killed and started again, every value checked against every state that the inventory ever had, and taken back.
//! `CROSSFADE_EXAMPLES=full` takes the whole size and says how long it took beside one `UPDATE … FROM`.

use crate::{
    desk::{Writer, rows},
    example::{Example, is_full},
};
use crossfade_testkit::{
    compare::assert_same,
    postgres::{Postgres, Version},
};

/// How many sessions there are.
pub(crate) fn size() -> usize {
    if is_full() { 1_682_827 } else { 20_000 }
}

/// What the application's own writes look like before the migration: some rows have values, which must be kept.
pub(crate) const OWN: &str = "
UPDATE session_summaries SET snapshot_country = 'FR', snapshot_ip_types = 'vpn' WHERE session_id < '02';
UPDATE session_summaries SET snapshot_country = 'XX' WHERE session_id LIKE '1f%';
UPDATE session_summaries SET source_ip = '11.0.0.7', enrichment_at = '2020-01-01' WHERE session_id LIKE '2f%';
CREATE TABLE history AS SELECT * FROM ip_inventory;
CREATE FUNCTION remember() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO history SELECT NEW.*; RETURN NEW; END $$;
CREATE TRIGGER remember AFTER INSERT OR UPDATE ON ip_inventory FOR EACH ROW EXECUTE FUNCTION remember();
CREATE INDEX ON history (ip_address);
ANALYZE history";

/// The application at work: sessions come, change and go, and so does what is known of addresses.
fn work(number: u64) -> String {
    let (known, fresh) = (1 + number * 31 % 1000, number);
    match number % 4 {
        0 => format!(
            "INSERT INTO ip_inventory VALUES ('12.0.0.0'::inet + {fresh}, {fresh}, 'SE', 'mobile', now(), now(), now());
             INSERT INTO session_summaries (session_id, first_event_at, last_event_at, event_count, command_count, file_downloads, login_attempts, enrichment)
             VALUES ('new-{number}', now(), now(), 1, 0, 0, 0, jsonb_build_object('source_ip', host('12.0.0.0'::inet + {fresh})))"
        ),
        1 => format!(
            "UPDATE ip_inventory SET geo_country = 'N{}', current_asn = {number}, enrichment_updated_at = now() WHERE ip_address = '11.0.0.0'::inet + {known}",
            number % 10
        ),
        2 => format!("UPDATE session_summaries SET event_count = event_count + 1 WHERE session_id = md5('7/{known}')"),
        _ => format!("DELETE FROM session_summaries WHERE session_id = md5('7/{}')", 2000 + number),
    }
}

/// Sessions whose new columns are not what the inventory said at some moment since the start, or the application itself.
const WRONG: &str = "
SELECT s.session_id FROM (
  SELECT *, coalesce(source_ip, (enrichment ->> 'source_ip')::inet) AS address FROM session_summaries) s
WHERE source_ip_v2 IS DISTINCT FROM address
   OR CASE WHEN EXISTS (SELECT FROM history h WHERE h.ip_address = s.address) THEN NOT EXISTS (
     SELECT FROM history h WHERE h.ip_address = s.address
       AND s.snapshot_asn_v2 IS NOT DISTINCT FROM coalesce(s.snapshot_asn, h.current_asn)
       AND s.snapshot_country_v2 IS NOT DISTINCT FROM
           (SELECT c FROM (VALUES (coalesce(s.snapshot_country, h.geo_country))) v (c) WHERE c NOT IN ('XX', '--', ''))
       AND s.snapshot_ip_type IS NOT DISTINCT FROM coalesce(s.snapshot_ip_types, h.ip_type)
       AND s.enrichment_at_v2 IS NOT DISTINCT FROM coalesce(s.enrichment_at, h.enrichment_updated_at))
   ELSE (s.snapshot_asn_v2, s.snapshot_country_v2, s.snapshot_ip_type, s.enrichment_at_v2) IS DISTINCT FROM
        (s.snapshot_asn, nullif(s.snapshot_country, 'XX'), s.snapshot_ip_types, s.enrichment_at) END
LIMIT 5";

const NEW_COLUMNS: &str = "SELECT attname::text FROM pg_attribute WHERE attrelid = 'session_summaries'::regclass \
     AND attnum > 0 AND NOT attisdropped AND (attname ~ '_v2$' OR attname = 'snapshot_ip_type')";

#[tokio::test(flavor = "multi_thread")]
async fn sessions_get_what_was_known_of_their_address_while_the_application_writes() {
    let Some(server) = Postgres::shared(Version::V15) else { return };
    let database = server.create_database("cowrie").await;
    let size = size();
    let example = Example::copy("cowrie", &[("COWRIE_URL", database.url.as_str())]);
    example.sql(&database, "schema.sql", &[]).await;
    example.sql(&database, "generate.sql", &[("rows", &size.to_string()), ("seed", "7")]).await;
    database.execute(OWN).await;

    example.expect(0, "crossfade plan cowrie.toml");
    let dry = example.expect(0, "crossfade run cowrie.toml --dry-run");
    assert!(dry.stdout.contains("nothing has been written") && !dry.stdout.contains("refused "), "{dry}");
    assert_eq!(rows(&database, NEW_COLUMNS).await.count(), 0, "a dry run writes nothing");

    let trial = example.expect(0, "crossfade run cowrie.toml --limit 10000");
    let filled = "SELECT count(source_ip_v2) FROM session_summaries";
    let filled: usize = database.value(filled).await.unwrap().parse().unwrap();
    assert!(filled > 0 && filled < size, "a trial fills some of {size}, and this one {filled}\n{trial}");

    let writer = Writer::start(&database, work);
    let run = example.start("crossfade run cowrie.toml");
    writer.wait_for_more(20);
    run.kill();
    let mut run = example.start("crossfade run cowrie.toml");
    writer.wait_for_more(50);
    example.wait(&mut run, "crossfade wait cowrie.toml --caught-up --timeout 10m");
    writer.wait_for_more(50);
    writer.stop();
    example.wait(&mut run, "crossfade wait cowrie.toml --caught-up --timeout 10m");
    let wrong = rows(&database, WRONG).await;
    assert_eq!(wrong.count(), 0, "{:?}", wrong.iter().collect::<Vec<_>>());
    assert_eq!(example.status(&[])["conservation"]["quarantined"], 0);
    example.stop(run);
    // The check itself can fail.
    database.execute("UPDATE session_summaries SET snapshot_asn_v2 = -1 WHERE session_id = 'new-0'").await;
    assert_eq!(rows(&database, WRONG).await.count(), 1);

    let own = "SELECT session_id, event_count, enrichment, source_ip, snapshot_asn, snapshot_country, snapshot_ip_types, \
               enrichment_at FROM session_summaries";
    let before = rows(&database, own).await;
    example.expect(0, "crossfade rollback cowrie.toml --wipe --yes");
    assert_same("the application's own columns", &before, &rows(&database, own).await);
    assert_eq!(rows(&database, NEW_COLUMNS).await.count(), 0, "all that was made is gone");

    // And begun anew, with nobody at work: what was looked up is what is there now.
    example.expect(0, "crossfade run cowrie.toml --until caught-up");
    let verified = example.expect(0, "crossfade verify cowrie.toml");
    assert!(verified.stdout.contains("0 differences"), "{verified}");

    // The new columns take the old names, are written by them, and give them back.
    example.expect(0, "crossfade cutover cowrie.toml --dry-run");
    example.expect(0, "crossfade cutover cowrie.toml");
    database
        .execute(
            "UPDATE session_summaries SET snapshot_country = 'ZZ', snapshot_ip_type = 'tor' WHERE session_id = 'new-0'",
        )
        .await;
    let written =
        "SELECT legacy_snapshot_country, legacy_snapshot_ip_types FROM session_summaries WHERE session_id = 'new-0'";
    assert_same("what is kept", &rows(&database, "VALUES ('ZZ', 'tor')").await, &rows(&database, written).await);
    example.expect(0, "crossfade failback cowrie.toml");
    database
        .execute(
            "UPDATE session_summaries SET snapshot_country = NULL, snapshot_ip_types = NULL WHERE session_id = 'new-0'",
        )
        .await;
    assert_same("the application's own columns, after the way back", &before, &rows(&database, own).await);
    example.expect(0, "crossfade rollback cowrie.toml --wipe --yes");
    assert_eq!(rows(&database, NEW_COLUMNS).await.count(), 0, "all that was made is gone");

    // There again, and for good, once the waiting time is over.
    example.expect(0, "crossfade run cowrie.toml --until caught-up");
    example.expect(0, "crossfade verify cowrie.toml");
    let filled = "SELECT session_id, source_ip_v2, snapshot_asn_v2, snapshot_country_v2, snapshot_ip_type, enrichment_at_v2 FROM session_summaries";
    let filled = rows(&database, filled).await;
    example.expect(0, "crossfade cutover cowrie.toml");
    example.expect(3, "crossfade cleanup cowrie.toml --confirm cowrie");
    let spec = example.file("cowrie.toml").replace("keep = \"7d\"", "keep = \"0s\"");
    std::fs::write(example.path("cowrie.toml"), spec).unwrap();
    example.expect(0, "crossfade cleanup cowrie.toml --confirm cowrie");
    let names = "SELECT session_id, source_ip, snapshot_asn, snapshot_country, snapshot_ip_type, enrichment_at FROM session_summaries";
    assert_same("what was filled has the old names", &filled, &rows(&database, names).await);
    let legacy = "SELECT attname::text FROM pg_attribute WHERE attname LIKE 'legacy%' AND attnum > 0";
    assert_eq!(rows(&database, legacy).await.count(), 0);
    example.assert_all_ran();
}
