//! The asking side.

use super::{BODY_BYTES_MAX, Refused, path::Fitting};
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, body::Bytes, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::{io, path::Path};
use tokio::net::UnixStream;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Nobody listens: no process runs this migration.
    #[error("no process runs this migration")]
    NotRunning,
    /// The process said no.
    #[error("{}", .0.error)]
    Refused(Refused),
    /// The process went away, or the socket cannot be used.
    #[error("the running process could not be asked")]
    Failed(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl SocketError {
    /// The exit code for it.
    pub fn exit(&self) -> u8 {
        match self {
            Self::Refused(refused) => refused.exit,
            Self::NotRunning | Self::Failed(_) => 1,
        }
    }

    fn failed(cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Failed(cause.into())
    }
}

/// Asks the process behind the socket at `path`, and returns its JSON answer. Waits as long as the answer takes: bound
/// it with a time-out; dropping the future ends the question.
///
/// # Errors
/// See [`SocketError`].
pub async fn request(path: &Path, method: Method, route: &str, body: Option<&Value>) -> Result<Value, SocketError> {
    let text = request_text(path, method, route, body).await?;
    serde_json::from_str(&text).map_err(SocketError::failed)
}

/// The same for an answer that is not JSON (`/metrics`).
///
/// # Errors
/// See [`SocketError`].
pub async fn request_text(
    path: &Path,
    method: Method,
    route: &str,
    body: Option<&Value>,
) -> Result<String, SocketError> {
    let body = body.map(Value::to_string).unwrap_or_default();
    if body.len() > BODY_BYTES_MAX {
        // The other side would hang up in the middle of it.
        let too_long = format!("a request of {} bytes is too long, the limit is {BODY_BYTES_MAX}", body.len());
        return Err(SocketError::Refused(Refused::new(2, too_long)));
    }
    let fitting = match Fitting::of(path) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Err(SocketError::NotRunning),
        other => other.map_err(SocketError::failed)?,
    };
    let stream = UnixStream::connect(&fitting.path).await.map_err(|cause| match cause.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => SocketError::NotRunning,
        _ => SocketError::failed(cause),
    })?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(SocketError::failed)?;
    let request = Request::builder()
        .method(method)
        .uri(route)
        .header(header::HOST, "crossfade")
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body)))
        .map_err(SocketError::failed)?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(SocketError::failed)?;
        let ok = response.status().is_success();
        let bytes = response.into_body().collect().await.map_err(SocketError::failed)?.to_bytes();
        let text = String::from_utf8(bytes.into()).map_err(SocketError::failed)?;
        if ok { Ok(text) } else { Err(refusal(&text)) }
    };
    // The connection is driven here and by nobody else, so that dropping this future closes it.
    tokio::pin!(connection, exchange);
    tokio::select! {
        answer = &mut exchange => answer,
        ended = &mut connection => {
            ended.map_err(SocketError::failed)?;
            exchange.await
        }
    }
}

fn refusal(text: &str) -> SocketError {
    let said: Value = serde_json::from_str(text).unwrap_or_default();
    let error = said.get("error").and_then(Value::as_str).unwrap_or("the running process gave no reason");
    let exit = said.get("exit").and_then(Value::as_u64).and_then(|exit| u8::try_from(exit).ok()).unwrap_or(1);
    SocketError::Refused(Refused::new(exit, error))
}
