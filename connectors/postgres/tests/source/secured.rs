//! The stream over TLS, and every way in that a server may ask for.

use crate::support::*;
use crossfade_connector::{Failure, Verdict};
use crossfade_postgres::{Config, PostgresSource};
use crossfade_testkit::{
    postgres::{Postgres, Settings, Version},
    tls::Certificates,
};
use std::fs;

const TABLE: &str =
    "CREATE SCHEMA app; CREATE TABLE app.t (id int PRIMARY KEY, a text); INSERT INTO app.t VALUES (1, 'x')";
const HBA: &str = "host all postgres 127.0.0.1/32 trust
hostssl all by_scram 127.0.0.1/32 scram-sha-256
hostssl all by_md5 127.0.0.1/32 md5
host all by_password 127.0.0.1/32 password
hostssl all by_certificate 127.0.0.1/32 cert
";

async fn fixture(version: Version, certificates: &Certificates) -> Option<Fixture> {
    let server = Postgres::start(version, Settings::new().tls(certificates).hba(HBA))?;
    // Ended with the test's process, as the shared ones are.
    let server: &'static Postgres = Box::leak(Box::new(server));
    let database = server.create_database("secured").await;
    database.execute(TABLE).await;
    for (role, encryption) in [
        ("by_scram", "scram-sha-256"),
        ("by_md5", "md5"),
        ("by_password", "scram-sha-256"),
        ("by_certificate", "scram-sha-256"),
    ] {
        let role = format!("CREATE ROLE {role} LOGIN SUPERUSER REPLICATION PASSWORD 'p%ss wörd'");
        database.execute(&format!("SET password_encryption = '{encryption}'; {role}")).await;
    }
    Some(Fixture { database, folder: tempfile::tempdir().unwrap(), server })
}

fn source(fixture: &Fixture, user: &str, password: &str, tls: &str) -> PostgresSource {
    let mut config = fixture.config(&["app.*"]);
    config.migration = format!("secured-{}", user.replace('_', "-"));
    let (port, database) = (fixture.server.port(), &fixture.database.name);
    let url = format!("postgres://{user}:{password}@127.0.0.1:{port}/{database}?{tls}");
    config.connection = Config::parse(&url).unwrap();
    config.spool_dir = fixture.folder.path().join(user);
    PostgresSource::new(config).unwrap()
}

const PASSWORD: &str = "p%25ss%20w%C3%B6rd";

#[tokio::test(flavor = "multi_thread")]
async fn the_stream_comes_over_tls_with_every_kind_of_login() {
    for version in [Version::V15, Version::V18] {
        let certificates = Certificates::new("by_certificate");
        let Some(fixture) = fixture(version, &certificates).await else { return };
        certificates.write_to(fixture.folder.path());
        let at = |name: &str| fixture.folder.path().join(name).display().to_string();
        let full = format!("sslmode=verify-full&sslrootcert={}", at("authority.crt"));
        let own = format!("{full}&sslcert={}&sslkey={}", at("client.crt"), at("client.key"));
        for (user, password, tls) in [
            ("by_scram", PASSWORD, full.as_str()),
            ("by_md5", PASSWORD, &full),
            ("by_password", PASSWORD, &full),
            ("by_certificate", "", &own),
        ] {
            let mut source = source(&fixture, user, password, tls);
            let mut log = Log::default();
            open(&mut source, &mut log).await;
            fixture.database.execute("INSERT INTO app.t SELECT max(id) + 1, 'streamed' FROM app.t").await;
            ingest_all(&fixture, &mut source, &mut log).await;
            let secure = "SELECT bool_and(s.ssl) AND count(*) > 1 FROM pg_stat_ssl s JOIN pg_stat_activity a USING (pid) WHERE a.usename = ";
            assert_eq!(fixture.database.value(&format!("{secure}'{user}'")).await.as_deref(), Some("t"), "{user}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_authority_a_wrong_password_and_no_tls_are_refused_for_good() {
    let certificates = Certificates::new("by_certificate");
    let Some(fixture) = fixture(Version::V15, &certificates).await else { return };
    certificates.write_to(fixture.folder.path());
    let other = fixture.folder.path().join("other.crt");
    fs::write(&other, &Certificates::new("by_certificate").authority).unwrap();
    let ours = fixture.folder.path().join("authority.crt");
    let full = |root: &std::path::Path| format!("sslmode=verify-full&sslrootcert={}", root.display());
    for (user, password, tls, word) in [
        ("by_scram", PASSWORD, full(&other), "certificate"),
        ("by_scram", "another", full(&ours), "password"),
        ("by_md5", "another", full(&ours), "password"),
        ("by_scram", PASSWORD, "sslmode=disable".to_owned(), "pg_hba.conf"),
        ("by_certificate", PASSWORD, full(&ours), "certificate"),
    ] {
        let failure = try_open(&mut source(&fixture, user, password, &tls), &mut Log::default()).await.unwrap_err();
        let said = format!("{failure} {}", chain(&failure));
        assert!(matches!(failure.verdict, Verdict::Misconfigured { .. }), "{user} {tls}: {said}");
        assert!(said.contains(word), "{user} {tls}: {said}");
        assert!(!said.contains("wörd") && !said.contains("another"), "a secret is told: {said}");
    }
}

fn chain(failure: &Failure) -> String {
    let mut said = String::new();
    let mut next = std::error::Error::source(failure);
    while let Some(cause) = next {
        said.push_str(&format!(": {cause}"));
        next = cause.source();
    }
    said
}
