//! A broker that takes only TLS, certificates and passwords.

use super::*;
use crossfade_event::Event;
use crossfade_kafka::{Mechanism, Sasl, Tls};
use crossfade_log::{EventLog, Lane, LogError};
use crossfade_testkit::{
    kafka::{PASSWORD, USER},
    log_suite::{at, batch, good, insert, read_all, schema, soon, transaction},
    tls::Certificates,
};
use std::{path::Path, thread};

fn connection(kafka: &Kafka, folder: &Path, mechanism: Mechanism, password: &str) -> Connection {
    let file = |name: &str| Some(folder.join(name));
    Connection {
        brokers: kafka.brokers(),
        tls: Some(Tls {
            authority: file("authority.crt"),
            certificate: file("client.crt"),
            key: file("client.key"),
            key_password: None,
        }),
        sasl: Some(Sasl { mechanism, user: USER.into(), password: password.into(), without_tls: false }),
    }
}

fn refused(connection: Connection) -> String {
    match KafkaLog::open(LogOptions::new(connection, "refused")) {
        Err(LogError::Server { doing, cause, .. }) => format!("{doing}: {cause}"),
        other => panic!("it is not refused: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_works_over_tls_with_a_password_and_says_what_is_wrong_without() {
    let certificates = Certificates::new(USER);
    let Some(kafka) = Kafka::secured(&certificates) else { return };
    let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    certificates.write_to(folder.path());
    Certificates::new(USER).write_to(other.path());
    for (mechanism, prefix) in [(Mechanism::ScramSha512, "scram"), (Mechanism::Plain, "plain")] {
        let connection = connection(&kafka, folder.path(), mechanism, PASSWORD);
        let log = KafkaLog::open(LogOptions::new(connection, prefix)).unwrap_or_else(|error| panic!("{error:?}"));
        let seen = vec![Event::SchemaSeen(schema(1, 1))];
        good(soon("the schema", log.append(batch(1, seen, Some(at(1, u32::MAX)), true))).await);
        good(soon("an append", log.append(transaction(2, vec![insert("k", "v")]))).await);
        assert_eq!(read_all(&log, &log.start(), Lane::All).len(), 4, "{mechanism:?}");
    }
    // All at once, for each takes as long as brokers are waited for.
    let wrong_password = connection(&kafka, folder.path(), Mechanism::ScramSha512, "guessed");
    let wrong_authority = connection(&kafka, other.path(), Mechanism::ScramSha512, PASSWORD);
    let cases =
        [(wrong_password, "uthentication"), (wrong_authority, "certificate"), (Connection::plain(kafka.brokers()), "")];
    let said = thread::scope(|scope| {
        let asked = cases.map(|(connection, word)| (scope.spawn(move || refused(connection)), word));
        asked.map(|(said, word)| (said.join().unwrap(), word))
    });
    for (said, word) in said {
        assert!(said.contains(word) && said.contains(&kafka.brokers()), "{said}");
        assert!(!said.contains(PASSWORD) && !said.contains("guessed"), "{said}");
    }
}
