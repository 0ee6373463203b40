//! What every client is told, and what every producer is.

use crate::Connection;
use rdkafka::{ClientConfig, config::RDKafkaLogLevel};
use secrecy::ExposeSecret;

/// How the brokers are reached.
pub(super) fn base(connection: &Connection) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set_log_level(RDKafkaLogLevel::Warning)
        .set("bootstrap.servers", &connection.brokers)
        .set("client.id", "crossfade")
        .set("socket.keepalive.enable", "true")
        .set("log.connection.close", "false")
        .set("reconnect.backoff.ms", "50")
        .set("reconnect.backoff.max.ms", "2000");
    let protocol = match (&connection.tls, &connection.sasl) {
        (None, None) => "plaintext",
        (Some(_), None) => "ssl",
        (None, Some(_)) => "sasl_plaintext",
        (Some(_), Some(_)) => "sasl_ssl",
    };
    config.set("security.protocol", protocol);
    if let Some(tls) = &connection.tls {
        let files = [
            ("ssl.ca.location", &tls.authority),
            ("ssl.certificate.location", &tls.certificate),
            ("ssl.key.location", &tls.key),
        ];
        for (name, file) in files {
            if let Some(file) = file {
                config.set(name, file.to_string_lossy());
            }
        }
        if let Some(password) = &tls.key_password {
            config.set("ssl.key.password", password.expose_secret());
        }
    }
    if let Some(sasl) = &connection.sasl {
        config
            .set("sasl.mechanism", sasl.mechanism.name())
            .set("sasl.username", &sasl.user)
            .set("sasl.password", sasl.password.expose_secret());
    }
    config
}

/// A producer that loses and doubles nothing.
pub(super) fn producing(connection: &Connection, message_bytes_max: u64) -> ClientConfig {
    let mut config = base(connection);
    config
        .set("acks", "all")
        .set("enable.idempotence", "true")
        .set("compression.type", "lz4")
        .set("linger.ms", "0")
        .set("batch.size", "1048576")
        .set("message.max.bytes", message_bytes_max.clamp(1_000, 1_000_000_000).to_string())
        .set("queue.buffering.max.kbytes", "65536");
    config
}
