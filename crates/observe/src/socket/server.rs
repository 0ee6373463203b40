//! The answering side.

use super::{BODY_BYTES_MAX, path::Fitting};
use crate::{Status, metrics_text};
use axum::{
    Json, Router,
    extract::{Path as Segment, Request, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use http_body_util::{BodyExt, Limited};
use serde_json::{Map, Value, json};
use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{net::UnixListener, sync::watch};

const DRAIN_LIMIT: Duration = Duration::from_secs(2);

/// Why not: one sentence with the remedy, and the exit code for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The sentence.
    pub error: String,
    /// The exit code: 1 failed, 2 wrong, 3 refused, 4 differences, 5 lost.
    pub exit: u8,
}

impl Refused {
    /// A refusal.
    pub fn new(exit: u8, error: impl Into<String>) -> Self {
        Self { error: error.into(), exit }
    }
}

/// What the running process can be asked. Every answer comes when the thing is done, not when it was noted.
/// Futures may be dropped at any time: the one who asked has gone away.
pub trait Control: Send + Sync + 'static {
    /// Where it stands.
    fn status(&self) -> impl Future<Output = Status> + Send;

    /// Stop for now.
    fn pause(&self, who: String, reason: String) -> impl Future<Output = Result<(), Refused>> + Send;

    /// Go on.
    fn resume(&self, who: String) -> impl Future<Output = Result<(), Refused>> + Send;

    /// Drain and end the process. Returns once the end has begun.
    fn stop(&self) -> impl Future<Output = Result<(), Refused>> + Send;

    /// Names the place where the sink stands, and returns it.
    fn checkpoint(&self, who: String, name: String) -> impl Future<Output = Result<Value, Refused>> + Send;

    /// Returns once it is so; `what` is `caught-up`, anything else is refused by name.
    fn wait(&self, what: String) -> impl Future<Output = Result<Value, Refused>> + Send;

    /// Any other command; a verb that is not known is refused by name.
    fn command(&self, verb: String, body: Value) -> impl Future<Output = Result<Value, Refused>> + Send;
}

/// A bound socket. The file goes away with it.
#[derive(Debug)]
pub struct ControlSocket {
    listener: UnixListener,
    _file: SocketFile,
}

#[derive(Debug)]
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // It may be gone with its folder; and a socket nobody listens on is removed by the next owner.
        let _ = fs::remove_file(&self.0);
    }
}

impl ControlSocket {
    /// Binds. Only the owner of the work folder may call this: a socket that is there is a dead process's, and goes.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn bind(path: &Path) -> io::Result<Self> {
        match fs::remove_file(path) {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => return Err(cause),
            _ => {}
        }
        let fitting = Fitting::of(path)?;
        let listener = UnixListener::bind(&fitting.path)?;
        let file = SocketFile(path.into());
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        Ok(Self { listener, _file: file })
    }

    /// Answers until `stop` resolves; then finishes answers under way, refuses what still waits, and returns.
    ///
    /// # Errors
    /// When the listener fails.
    pub async fn serve<C: Control>(
        self,
        control: Arc<C>,
        stop: impl Future<Output = ()> + Send + 'static,
    ) -> io::Result<()> {
        let (stopping, stopped) = watch::channel(false);
        let mut draining = stopped.clone();
        let shared = Shared { control, stopped };
        let serving = axum::serve(self.listener, routes(shared)).with_graceful_shutdown(async move {
            stop.await;
            stopping.send_replace(true);
        });
        let limit = async move {
            if draining.wait_for(|stop| *stop).await.is_err() {
                // Nobody will ever say stop: the server has ended by itself.
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(DRAIN_LIMIT).await;
        };
        tokio::select! {
            done = serving.into_future() => done,
            () = limit => Ok(()),
        }
    }
}

struct Shared<C> {
    control: Arc<C>,
    stopped: watch::Receiver<bool>,
}

impl<C> Clone for Shared<C> {
    fn clone(&self) -> Self {
        Self { control: self.control.clone(), stopped: self.stopped.clone() }
    }
}

/// The routes alone, for another server.
pub fn router<C: Control>(control: Arc<C>, stopped: watch::Receiver<bool>) -> Router {
    routes(Shared { control, stopped })
}

fn routes<C: Control>(shared: Shared<C>) -> Router {
    Router::new()
        .route("/status", get(status::<C>))
        .route("/metrics", get(metrics::<C>))
        .route("/pause", post(pause::<C>))
        .route("/resume", post(resume::<C>))
        .route("/stop", post(stop::<C>))
        .route("/checkpoint/{name}", post(checkpoint::<C>))
        .route("/wait/{what}", post(wait::<C>))
        .route("/command/{verb}", post(command::<C>))
        .fallback(async || (StatusCode::NOT_FOUND, error(2, "there is no such route on the control socket")))
        .with_state(shared)
}

type From_<C> = State<Shared<C>>;

async fn status<C: Control>(State(shared): From_<C>) -> Json<Status> {
    Json(shared.control.status().await)
}

async fn metrics<C: Control>(State(shared): From_<C>) -> impl IntoResponse {
    let text = metrics_text(&shared.control.status().await);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text)
}

async fn pause<C: Control>(State(shared): From_<C>, request: Request) -> Response {
    answer(async {
        let body = Body::of(request).await?;
        shared.control.pause(body.text("who")?, body.text("reason")?).await.map(|()| json!({}))
    })
    .await
}

async fn resume<C: Control>(State(shared): From_<C>, request: Request) -> Response {
    answer(async {
        let body = Body::of(request).await?;
        shared.control.resume(body.text("who")?).await.map(|()| json!({}))
    })
    .await
}

async fn stop<C: Control>(State(shared): From_<C>) -> Response {
    answer(async { shared.control.stop().await.map(|()| json!({})) }).await
}

async fn checkpoint<C: Control>(State(shared): From_<C>, Segment(name): Segment<String>, request: Request) -> Response {
    answer(async {
        let body = Body::of(request).await?;
        shared.control.checkpoint(body.text("who")?, name).await
    })
    .await
}

async fn wait<C: Control>(State(mut shared): From_<C>, Segment(what): Segment<String>) -> Response {
    answer(async {
        tokio::select! {
            done = shared.control.wait(what) => done,
            _ = shared.stopped.wait_for(|stop| *stop) => Err(Refused::new(1, "the process was stopped while you waited")),
        }
    })
    .await
}

async fn command<C: Control>(State(shared): From_<C>, Segment(verb): Segment<String>, request: Request) -> Response {
    answer(async {
        let body = Body::of(request).await?;
        shared.control.command(verb, Value::Object(body.0)).await
    })
    .await
}

/// A request's JSON object; an empty body is an empty object.
struct Body(Map<String, Value>);

impl Body {
    async fn of(request: Request) -> Result<Self, Refused> {
        let bytes = Limited::new(request.into_body(), BODY_BYTES_MAX).collect().await;
        let bytes = bytes.map_err(|_| Refused::new(2, "the request is too long or was cut short"))?.to_bytes();
        if bytes.is_empty() {
            return Ok(Self(Map::new()));
        }
        serde_json::from_slice(&bytes).map(Self).map_err(|_| Refused::new(2, "the request's body is no JSON object"))
    }

    fn text(&self, name: &str) -> Result<String, Refused> {
        match self.0.get(name) {
            None => Ok(String::new()),
            Some(Value::String(text)) => Ok(text.clone()),
            Some(_) => Err(Refused::new(2, format!("`{name}` must be a text"))),
        }
    }
}

async fn answer(doing: impl Future<Output = Result<Value, Refused>>) -> Response {
    match doing.await {
        Ok(value) => Json(value).into_response(),
        Err(refused) => (StatusCode::CONFLICT, error(refused.exit, &refused.error)).into_response(),
    }
}

fn error(exit: u8, error: &str) -> Json<Value> {
    Json(json!({ "error": error, "exit": exit }))
}
