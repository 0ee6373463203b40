//! Talking to the server: ordinary sessions on `tokio-postgres`, and our own replication client beside them.
//!
//! Every session, of whichever kind, runs under one set of settings ([`SETTINGS`]), so that a value is written the
//! same way whoever reads it. Foreign errors become a [`Failure`] here ([`failure`]) and nowhere else.

mod error;
mod lowat;
mod names;
mod origin;
mod pace;
mod patterns;
mod publication;
pub(crate) mod replication;
mod socket;
mod tls;
pub(crate) mod wire;

pub(crate) use error::broken;
pub use error::{ServerError, failure};
pub(crate) use names::printed;
pub use names::{QuotedName, quote_ident, quote_literal, quote_table};
pub(crate) use origin::{drop_origin, origin_name};
pub use patterns::Patterns;
pub(crate) use publication::drop_publication;

use crate::Config;
use crossfade_connector::Failure;
use secrecy::ExposeSecret;
use socket::{Ready, Socket};
use std::{ops::Deref, sync::Arc};
use tokio::task::JoinHandle;

/// The settings of every session. They make text forms lossless and the same everywhere; row security becomes an
/// error instead of missing rows; and no name is looked up along a path that somebody else controls.
pub const SETTINGS: &str = "SET client_encoding = 'UTF8'; SET DateStyle = 'ISO, YMD'; SET IntervalStyle = 'postgres'; \
     SET TimeZone = 'UTC'; SET extra_float_digits = 1; SET bytea_output = 'hex'; SET lc_monetary = 'C'; \
     SET xmlbinary = 'base64'; SET xmloption = 'content'; SET row_security = off; \
     SET standard_conforming_strings = on; SET idle_in_transaction_session_timeout = 0; \
     SELECT pg_catalog.set_config('search_path', '', false)";

/// An ordinary session: the client, and the task that moves its bytes. Dropping it ends both.
pub struct Session {
    client: Arc<tokio_postgres::Client>,
    task: JoinHandle<()>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Session")
    }
}

impl Deref for Session {
    type Target = tokio_postgres::Client;

    fn deref(&self) -> &Self::Target {
        &self.client
    }
}

impl Session {
    /// The client for what is sent and not waited for yet. It ends with the session all the same.
    pub(crate) fn client(&self) -> Arc<tokio_postgres::Client> {
        Arc::clone(&self.client)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Opens a session under [`SETTINGS`] and the config's own limits. Tries the hosts in order.
///
/// # Errors
/// `Reconnect` where no host answers, `Misconfigured` for a wrong password or certificate.
pub async fn connect(config: &Config, application_name: &str) -> Result<Session, Failure> {
    let doing = || format!("connecting to {config}");
    let socket = socket::open(config).await?;
    let mut options = tokio_postgres::Config::new();
    options.user(config.user()).dbname(config.dbname()).application_name(application_name);
    if let Some(password) = config.password() {
        options.password(password.expose_secret());
    }
    if let Some(text) = config.options() {
        options.options(text);
    }
    if socket.is_tls() {
        // The handshake is done already: "direct" makes tokio-postgres take the stream as it is.
        options
            .ssl_mode(tokio_postgres::config::SslMode::Require)
            .ssl_negotiation(tokio_postgres::config::SslNegotiation::Direct);
    } else {
        options.ssl_mode(tokio_postgres::config::SslMode::Disable);
    }
    let login = options.connect_raw(socket, Ready);
    let (client, connection) = tokio::time::timeout(config.connect_timeout(), Box::pin(login))
        .await
        .map_err(|_| Failure::reconnect(doing(), "the server did not finish the login in time"))?
        .map_err(|error| failure(doing(), error))?;
    let task = tokio::spawn(drive(connection));
    let session = Session { client: Arc::new(client), task };
    session.batch_execute(&settings(config)).await.map_err(|error| failure(doing(), error))?;
    Ok(session)
}

fn settings(config: &Config) -> String {
    format!(
        "SET lock_timeout = {}; SET statement_timeout = {}; {SETTINGS}",
        config.lock_timeout().as_millis(),
        config.statement_timeout().as_millis()
    )
}

async fn drive(connection: tokio_postgres::Connection<Socket, Socket>) {
    if let Err(error) = connection.await {
        // The client's own calls fail with the same cause; this line is for sessions that were idle.
        tracing::debug!(%error, "a PostgreSQL session ended");
    }
}
