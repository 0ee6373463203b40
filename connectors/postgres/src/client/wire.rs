//! Our own client on the wire: a login, simple queries, and bulk output (`COPY`, replication) taken straight from the
//! receive buffer. `tokio-postgres` lacks CopyBoth, and hands over a `COPY` row by row; this does neither.

use super::{ServerError, broken, lowat, socket, socket::Socket};
use crate::Config;
use bytes::{Buf, Bytes, BytesMut};
use crossfade_connector::Failure;
use postgres_protocol::{
    authentication::{
        md5_hash,
        sasl::{ChannelBinding, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256},
    },
    message::frontend,
};
use secrecy::ExposeSecret;
use std::{io, time::Duration};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// How much is read from the socket at once.
const READ_BYTES: usize = 256 * 1024;
/// So long small pieces of a large answer may gather.
const GATHERED_WITHIN: Duration = Duration::from_millis(4);

/// What kind of session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// SQL only.
    Plain,
    /// SQL and replication commands of one database.
    Replication,
}

/// One row of a simple query, as text.
pub(crate) type TextRow = Vec<Option<String>>;

/// A session on the wire. Not usable after an I/O error; dropping it ends the session.
pub(crate) struct Wire {
    socket: Socket,
    inbox: BytesMut,
    name: String,
}

/// One message of the server.
pub(crate) struct Frame {
    pub(crate) tag: u8,
    pub(crate) body: Bytes,
}

impl Wire {
    /// Connects, logs in, and sets what every session has.
    pub(crate) async fn connect(config: &Config, application_name: &str, kind: Kind) -> Result<Self, Failure> {
        let late =
            || Failure::reconnect(format!("connecting to {config}"), "the server did not finish the login in time");
        let socket = socket::open(config).await?;
        let mut wire = Self { socket, inbox: BytesMut::new(), name: config.to_string() };
        tokio::time::timeout(config.connect_timeout(), wire.log_in(config, application_name, kind))
            .await
            .map_err(|_| late())??;
        wire.query(&super::settings(config)).await?;
        Ok(wire)
    }

    async fn log_in(&mut self, config: &Config, application_name: &str, kind: Kind) -> Result<(), Failure> {
        let mut parameters = vec![
            ("user", config.user()),
            ("database", config.dbname()),
            ("client_encoding", "UTF8"),
            ("application_name", application_name),
        ];
        if kind == Kind::Replication {
            parameters.push(("replication", "database"));
        }
        if let Some(options) = config.options() {
            parameters.push(("options", options));
        }
        let mut out = BytesMut::new();
        frontend::startup_message(parameters, &mut out).map_err(|error| self.broken(error))?;
        self.send(&out).await?;
        loop {
            let frame = self.receive().await?;
            match frame.tag {
                b'R' => self.authenticate(config, frame.body).await?,
                b'E' => return Err(self.refused(&frame.body)),
                b'Z' => return Ok(()),
                // Backend key, parameter status, notices, protocol negotiation.
                b'K' | b'S' | b'N' | b'v' => {}
                other => return Err(self.unexpected(other)),
            }
        }
    }

    async fn authenticate(&mut self, config: &Config, mut body: Bytes) -> Result<(), Failure> {
        let method = body.try_get_i32().map_err(|_| self.unexpected(b'R'))?;
        if method == 0 {
            return Ok(());
        }
        let misconfigured = |problem: &str, advice: &str| {
            Failure::misconfigured(format!("logging in as {config}"), problem.to_owned(), advice.to_owned())
        };
        let password = config.password().ok_or_else(|| {
            misconfigured(
                "the server asks for a password and none was given",
                "Add the password to the connection string",
            )
        })?;
        let password = password.expose_secret().as_bytes();
        let mut out = BytesMut::new();
        match method {
            3 => frontend::password_message(password, &mut out).map_err(|error| self.broken(error))?,
            5 => {
                let salt = body.first_chunk::<4>().ok_or_else(|| self.unexpected(b'R'))?;
                let hash = md5_hash(config.user().as_bytes(), password, *salt);
                frontend::password_message(hash.as_bytes(), &mut out).map_err(|error| self.broken(error))?;
            }
            10 => return self.scram(config, password, &body).await,
            _ => {
                return Err(misconfigured(
                    "the server asks for a login method that is not supported",
                    "Use scram-sha-256, md5, password, trust or certificates in pg_hba.conf",
                ));
            }
        }
        self.send(&out).await
    }

    async fn scram(&mut self, config: &Config, password: &[u8], mechanisms: &[u8]) -> Result<(), Failure> {
        let offered = |name: &str| mechanisms.split(|byte| *byte == 0).any(|offer| offer == name.as_bytes());
        let (binding, mechanism) = match self.socket.end_point() {
            Some(hash) if offered(SCRAM_SHA_256_PLUS) => {
                (ChannelBinding::tls_server_end_point(hash), SCRAM_SHA_256_PLUS)
            }
            Some(_) => (ChannelBinding::unrequested(), SCRAM_SHA_256),
            None => (ChannelBinding::unsupported(), SCRAM_SHA_256),
        };
        let wrong = |error: io::Error| {
            Failure::misconfigured(
                format!("logging in as {config}"),
                error,
                "Check the password in the connection string",
            )
        };
        let mut scram = ScramSha256::new(password, binding);
        let mut out = BytesMut::new();
        frontend::sasl_initial_response(mechanism, scram.message(), &mut out).map_err(wrong)?;
        self.send(&out).await?;
        for step in [11, 12] {
            let mut frame = self.receive().await?;
            if frame.tag == b'E' {
                return Err(self.refused(&frame.body));
            }
            if frame.tag != b'R' || frame.body.try_get_i32().ok() != Some(step) {
                return Err(self.unexpected(frame.tag));
            }
            if step == 12 {
                return scram.finish(&frame.body).map_err(wrong);
            }
            scram.update(&frame.body).map_err(wrong)?;
            out.clear();
            frontend::sasl_response(scram.message(), &mut out).map_err(wrong)?;
            self.send(&out).await?;
        }
        Ok(())
    }

    /// Runs statements and returns the rows of all of them.
    pub(crate) async fn query(&mut self, sql: &str) -> Result<Vec<TextRow>, Failure> {
        self.send_query(sql).await?;
        let mut rows = Vec::new();
        let mut failed = None;
        loop {
            let frame = self.receive().await?;
            match frame.tag {
                b'D' => rows.push(text_row(&frame.body).ok_or_else(|| self.unexpected(b'D'))?),
                b'E' => failed = Some(self.refused(&frame.body)),
                b'Z' => return failed.map_or(Ok(rows), Err),
                // Row description, command complete, notices, parameter status, empty query.
                b'T' | b'C' | b'N' | b'S' | b'I' => {}
                other => return Err(self.unexpected(other)),
            }
        }
    }

    /// Starts a query whose answer the caller reads itself.
    pub(crate) async fn send_query(&mut self, sql: &str) -> Result<(), Failure> {
        let mut out = BytesMut::new();
        frontend::query(sql, &mut out).map_err(|error| self.broken(error))?;
        self.send(&out).await
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        match self.socket.write_all(bytes).await {
            Ok(()) => self.socket.flush().await.map_err(|error| self.broken(error)),
            Err(error) => Err(self.broken(error)),
        }
    }

    /// The next message. Safe to cancel: what has arrived stays in the inbox.
    pub(crate) async fn receive(&mut self) -> Result<Frame, Failure> {
        loop {
            if let Some(frame) = self.buffered()? {
                return Ok(frame);
            }
            self.fill().await?;
        }
    }

    /// The next message, if it has arrived wholly.
    pub(crate) fn buffered(&mut self) -> Result<Option<Frame>, Failure> {
        let Some(total) = frame_bytes(&self.inbox).map_err(|error| self.broken(error))? else { return Ok(None) };
        if self.inbox.len() < total {
            self.inbox.reserve(total - self.inbox.len());
            return Ok(None);
        }
        let mut frame = self.inbox.split_to(total);
        let tag = frame.get_u8();
        frame.advance(4);
        Ok(Some(Frame { tag, body: frame.freeze() }))
    }

    /// All whole `CopyData` messages that have arrived, in one piece with their headers, up to the first message of
    /// another kind. Empty when there is none.
    pub(crate) fn buffered_copy_data(&mut self) -> Result<Bytes, Failure> {
        let mut end = 0;
        while let Some(rest) = self.inbox.get(end..).filter(|rest| rest.first() == Some(&b'd')) {
            match frame_bytes(rest).map_err(|error| self.broken(error))? {
                Some(total) if total <= rest.len() => end += total,
                Some(total) if end == 0 => {
                    self.inbox.reserve(total - self.inbox.len());
                    break;
                }
                _ => break,
            }
        }
        Ok(self.inbox.split_to(end).freeze())
    }

    /// Reads more from the socket; returns how many bytes. Safe to cancel.
    pub(crate) async fn fill(&mut self) -> Result<usize, Failure> {
        if self.inbox.capacity() - self.inbox.len() < READ_BYTES / 8 {
            self.inbox.reserve(READ_BYTES);
        }
        match self.socket.read_buf(&mut self.inbox).await {
            Ok(0) => Err(self.broken(io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed the connection"))),
            Ok(bytes) => Ok(bytes),
            Err(error) => Err(self.broken(error)),
        }
    }

    /// Whether the socket lets bytes gather before it wakes anybody.
    pub(crate) fn gather(&self, gathers: bool) -> io::Result<()> {
        lowat::gather(self.socket.as_fd(), gathers)
    }

    /// Reads more of an answer that is sent in small pieces: they gather first, for at most a moment. True where the
    /// socket goes on doing so until the caller says [`Wire::gather`] `(false)`.
    pub(crate) async fn fill_gathered(&mut self) -> Result<bool, Failure> {
        // Where the system does not know it, the pieces are read as they come.
        let gathers = self.gather(true).is_ok();
        if let Ok(filled) = tokio::time::timeout(GATHERED_WITHIN, self.fill()).await {
            filled?;
            return Ok(gathers);
        }
        if gathers {
            self.gather(false).map_err(|error| self.broken(error))?;
        }
        self.fill().await?;
        Ok(false)
    }

    pub(crate) fn broken(&self, error: io::Error) -> Failure {
        broken(format!("talking to {}", self.name), error)
    }

    pub(crate) fn refused(&self, body: &[u8]) -> Failure {
        ServerError::read(body).into_failure(format!("talking to {}", self.name))
    }

    pub(crate) fn unexpected(&self, tag: u8) -> Failure {
        let problem =
            format!("the server sent a message `{}` that has no place here", char::from(tag).escape_default());
        self.broken(io::Error::new(io::ErrorKind::InvalidData, problem))
    }
}

/// The length of the message at the front, header included, once its header is there.
fn frame_bytes(bytes: &[u8]) -> io::Result<Option<usize>> {
    let Some(header) = bytes.first_chunk::<5>() else { return Ok(None) };
    let [_, length @ ..] = *header;
    let length = u32::from_be_bytes(length) as usize;
    if !(4..=0x4000_0000).contains(&length) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a message of impossible length"));
    }
    Ok(Some(length + 1))
}

/// Walks the `CopyData` messages of [`Wire::buffered_copy_data`]: each one's content, sharing the chunk's bytes.
pub(crate) struct CopyData(pub(crate) Bytes);

impl Iterator for CopyData {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        let total = frame_bytes(&self.0).ok()??;
        if total > self.0.len() {
            return None;
        }
        let mut frame = self.0.split_to(total);
        frame.advance(5);
        Some(frame)
    }
}

fn text_row(body: &[u8]) -> Option<TextRow> {
    let mut body = body;
    let count = body.try_get_u16().ok()?;
    let mut row = Vec::with_capacity(usize::from(count));
    for _ in 0..count {
        let length = body.try_get_i32().ok()?;
        row.push(match usize::try_from(length) {
            Err(_) => None,
            Ok(length) => {
                let (value, rest) = body.split_at_checked(length)?;
                body = rest;
                Some(String::from_utf8_lossy(value).into_owned())
            }
        });
    }
    Some(row)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copy_data_is_walked_message_by_message() {
        let bytes = Bytes::from_static(b"d\0\0\0\x06hid\0\0\0\x04d\0\0\0\x05!");
        assert_eq!(CopyData(bytes).collect::<Vec<_>>(), ["hi", "", "!"]);
        assert!(frame_bytes(b"d\xff\xff\xff\xff").is_err());
        assert_eq!(frame_bytes(b"d\0\0").unwrap(), None);
    }
}
