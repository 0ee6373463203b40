//! One kind of stream for all sessions: TCP, TLS over TCP, or a Unix socket.

use super::tls::{self, Negotiated};
use crate::{
    Config,
    config::{Host, SslMode},
};
use crossfade_connector::Failure;
use postgres_protocol::message::frontend;
use std::{
    convert::Infallible,
    future, io,
    os::fd::{AsFd, BorrowedFd},
    pin::Pin,
    task::{Context, Poll},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::{TcpStream, UnixStream},
};
use tokio_postgres::tls::{ChannelBinding, TlsConnect, TlsStream};

pub(crate) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<Negotiated>),
}

impl Socket {
    pub(super) fn is_tls(&self) -> bool {
        matches!(self, Self::Tls(_))
    }

    /// The descriptor beneath.
    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
            Self::Tls(stream) => stream.get_ref().0.as_fd(),
        }
    }

    /// The hash of the server's certificate, to which a SCRAM login is bound.
    pub(super) fn end_point(&self) -> Option<Vec<u8>> {
        match self {
            Self::Tls(stream) => tls::end_point(stream),
            Self::Tcp(_) | Self::Unix(_) => None,
        }
    }
}

/// Connects to the first host that answers.
pub(super) async fn open(config: &Config) -> Result<Socket, Failure> {
    let mut last = None;
    for (host, port) in config.hosts() {
        let doing = || format!("connecting to {config}");
        let attempt = open_one(config, host, *port);
        match tokio::time::timeout(config.connect_timeout(), attempt).await {
            Ok(Ok(socket)) => return Ok(socket),
            Ok(Err(failure)) if !failure.is_transient() => return Err(failure),
            Ok(Err(failure)) => last = Some(failure),
            Err(_) => last = Some(Failure::reconnect(doing(), format!("{host}:{port} does not answer"))),
        }
    }
    Err(last.unwrap_or_else(|| {
        Failure::misconfigured("connecting to PostgreSQL", "there is no host to connect to", "Name a host")
    }))
}

async fn open_one(config: &Config, host: &Host, port: u16) -> Result<Socket, Failure> {
    let unreachable = |error| super::broken(format!("connecting to {host}:{port}"), error);
    match host {
        Host::Unix(folder) => {
            let path = folder.join(format!(".s.PGSQL.{port}"));
            UnixStream::connect(path).await.map(Socket::Unix).map_err(unreachable)
        }
        Host::Tcp(name) => {
            let mut stream = TcpStream::connect((name.as_str(), port)).await.map_err(unreachable)?;
            stream.set_nodelay(true).map_err(unreachable)?;
            if config.ssl_mode() == SslMode::Disable {
                return Ok(Socket::Tcp(stream));
            }
            ask_for_tls(&mut stream, name, port).await?;
            tls::handshake(config, name, stream).await.map(|stream| Socket::Tls(Box::new(stream)))
        }
    }
}

async fn ask_for_tls(stream: &mut TcpStream, host: &str, port: u16) -> Result<(), Failure> {
    let doing = || format!("asking {host}:{port} for TLS");
    let mut request = bytes::BytesMut::new();
    frontend::ssl_request(&mut request);
    stream.write_all(&request).await.map_err(|error| super::broken(doing(), error))?;
    match stream.read_u8().await.map_err(|error| super::broken(doing(), error))? {
        b'S' => Ok(()),
        b'N' => Err(Failure::misconfigured(
            doing(),
            "the server does not offer TLS",
            "Set ssl = on at the server, or write sslmode=disable if the network may be trusted",
        )),
        _ => Err(Failure::misconfigured(
            doing(),
            "what answers is not a PostgreSQL server",
            "Check the host and the port",
        )),
    }
}

/// Tells `tokio-postgres` that the handshake is done.
pub(super) struct Ready;

impl TlsConnect<Socket> for Ready {
    type Stream = Socket;
    type Error = Never;
    type Future = future::Ready<Result<Socket, Never>>;

    fn connect(self, stream: Socket) -> Self::Future {
        future::ready(Ok(stream))
    }
}

/// An error that never happens, in a form that `tokio-postgres` takes.
pub(super) struct Never(Infallible);

impl From<Never> for Box<dyn std::error::Error + Send + Sync> {
    fn from(error: Never) -> Self {
        match error.0 {}
    }
}

impl TlsStream for Socket {
    fn channel_binding(&self) -> ChannelBinding {
        self.end_point().map_or_else(ChannelBinding::none, ChannelBinding::tls_server_end_point)
    }
}

/// The stream inside, for the calls that all three kinds share.
macro_rules! inner {
    ($self:ident, $stream:ident => $call:expr) => {
        match $self.get_mut() {
            Self::Tcp($stream) => $call,
            Self::Unix($stream) => $call,
            Self::Tls($stream) => $call,
        }
    };
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        inner!(self, stream => Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        inner!(self, stream => Pin::new(stream).poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        inner!(self, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        inner!(self, stream => Pin::new(stream).poll_shutdown(cx))
    }
}
