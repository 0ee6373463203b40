//! What may be looked at from another machine: metrics for Prometheus, the status as JSON, and a page for a person. It answers
//! questions and takes no command: those go over the control socket, which only the owner of the work folder can reach.
//!
//! Whoever can connect can read it, so everything is bounded: how many are answered at once, how long a request may be and may
//! take, and how often the status is made anew. A connection carries one request.

mod page;

use crate::{Status, metrics_text};
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header,
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use page::page;
use std::{
    convert::Infallible,
    io,
    net::{SocketAddr, TcpListener as StdListener},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};

/// So many are answered at once; others wait in the system's queue.
const CONNECTIONS_MAX: usize = 32;
/// A request's line and headers have to be there within this.
const HEAD_WITHIN: Duration = Duration::from_secs(5);
/// And be no longer than this.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// With no more headers than these.
const HEADERS_MAX: usize = 64;
/// Question and answer have to be over within this.
const CONNECTION_WITHIN: Duration = Duration::from_secs(15);
/// A status is given to all who ask within this.
const STATUS_AGE_MAX: Duration = Duration::from_millis(200);
/// After an error of the listener itself, such as too many open files.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// An address that is taken, and not yet answered on.
#[derive(Debug)]
pub struct Listening(StdListener);

impl Listening {
    /// Takes the address, and no other one.
    ///
    /// # Errors
    /// When it cannot be had: somebody else has it, or it is not this machine's.
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        let listener = StdListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok(Self(listener))
    }

    /// The address, with the port that the system has chosen where none was named.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    /// Answers with what `status` says, until the future is dropped; then nobody is answered any more.
    ///
    /// # Errors
    /// When the runtime cannot take the listener.
    pub async fn serve(self, status: impl Fn() -> Status + Send + Sync + 'static) -> io::Result<()> {
        let listener = TcpListener::from_std(self.0)?;
        let asked = Arc::new(Asked { status: Box::new(status), last: Mutex::new(None) });
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let mut answering = tokio::task::JoinSet::new();
        loop {
            // Closed by nobody.
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return Ok(()) };
            while answering.try_join_next().is_some() {}
            match listener.accept().await {
                Ok((stream, _)) => {
                    let asked = Arc::clone(&asked);
                    answering.spawn(async move {
                        answer(stream, asked).await;
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::debug!("a connection to --listen could not be taken: {error}");
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                }
            }
        }
    }
}

/// Where the status comes from, and the last one.
struct Asked {
    status: Box<dyn Fn() -> Status + Send + Sync>,
    last: Mutex<Option<(Instant, Arc<Status>)>>,
}

impl Asked {
    fn now(&self) -> Arc<Status> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match &*last {
            Some((at, status)) if at.elapsed() < STATUS_AGE_MAX => Arc::clone(status),
            _ => {
                let status = Arc::new((self.status)());
                *last = Some((Instant::now(), Arc::clone(&status)));
                status
            }
        }
    }
}

async fn answer(stream: TcpStream, asked: Arc<Asked>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let response = respond(request.method(), request.uri().path(), &asked);
        async move { Ok::<_, Infallible>(response) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WITHIN)
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(CONNECTION_WITHIN, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!("a connection to --listen has ended: {error}"),
        Err(_) => tracing::debug!("a connection to --listen took too long"),
    }
}

const PLAIN: &str = "text/plain; charset=utf-8";

fn respond(method: &Method, path: &str, asked: &Asked) -> Response<Full<Bytes>> {
    if method != Method::GET && method != Method::HEAD {
        let mut refused =
            said(StatusCode::METHOD_NOT_ALLOWED, PLAIN, "this address is only looked at: GET\n".to_owned());
        refused.headers_mut().insert(header::ALLOW, header::HeaderValue::from_static("GET, HEAD"));
        return refused;
    }
    match path {
        "/metrics" => said(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", metrics_text(&asked.now())),
        "/status" => match serde_json::to_string_pretty(&*asked.now()) {
            Ok(text) => said(StatusCode::OK, "application/json", text + "\n"),
            Err(error) => {
                said(StatusCode::INTERNAL_SERVER_ERROR, PLAIN, format!("the status cannot be written: {error}\n"))
            }
        },
        "/" => said(StatusCode::OK, "text/html; charset=utf-8", page(&asked.now())),
        _ => said(StatusCode::NOT_FOUND, PLAIN, "there is /, /status and /metrics\n".to_owned()),
    }
}

fn said(status: StatusCode, kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_TYPE, kind),
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        // The page asks for nothing from anywhere, and nobody else's page may show it.
        (header::CONTENT_SECURITY_POLICY, "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"),
    ] {
        headers.insert(name, header::HeaderValue::from_static(value));
    }
    response
}

#[cfg(test)]
mod tests;
