//! The control socket of a work folder: HTTP over a Unix socket, so that `status`, `pause`, `checkpoint` … ask the
//! process that owns the folder instead of opening it.
//!
//! | route | what it does |
//! |---|---|
//! | `GET /status` | the [`crate::Status`] as JSON |
//! | `GET /metrics` | the same in Prometheus' text form |
//! | `POST /pause` `{"who", "reason"}` · `POST /resume` `{"who"}` · `POST /stop` | as the commands say |
//! | `POST /checkpoint/{name}` `{"who"}` | names the place where the sink stands; answers with it |
//! | `POST /wait/{what}` | answers once it is so (`caught-up`); the caller bounds the wait by going away |
//! | `POST /command/{verb}` | any other command of the running process; body and answer are the command's own |
//!
//! A refusal is status 409 with `{"error", "exit"}`: a sentence, and the exit code that a command ends with. The
//! socket can be opened by the folder's owner only, and the routes are the same that a later TCP server offers.

mod client;
mod path;
mod server;

/// The longest body of a request.
const BODY_BYTES_MAX: usize = 1 << 20;

pub use client::{SocketError, request, request_text};
pub use server::{Control, ControlSocket, Refused, router};
