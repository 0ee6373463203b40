//! One session of the sink: its open transaction, its prepared statements, and many statements in one round trip.

use crate::client::{ServerError, Session, failure};
use bytes::{BufMut, Bytes, BytesMut};
use crossfade_connector::Failure;
use futures::{SinkExt, future::BoxFuture};
use std::{
    collections::HashMap,
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};
use tokio_postgres::{
    Client, Error, Statement,
    types::{IsNull, ToSql, Type},
};

/// Prepared statements that are kept. Updates that change few columns have one each for every set of columns.
const STATEMENTS_MAX: usize = 512;

/// What came of trying to write something.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The server refuses the data: this change's own fault, or that of one among many.
    Data(ServerError),
    /// A partial update of a row that is not there.
    Missing,
    /// Anything else.
    Failure(Failure),
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}

impl Trouble {
    /// Tells a refusal of the data from everything else.
    pub(super) fn of(doing: impl Into<String>, error: tokio_postgres::Error) -> Self {
        match ServerError::of(&error) {
            Some(server) if is_data(&server.code) => Self::Data(server),
            _ => Self::Failure(failure(doing, error)),
        }
    }

    /// As a failure, where no single change can be blamed.
    pub(super) fn into_failure(self, doing: impl Into<String>) -> Failure {
        match self {
            Self::Data(error) => {
                Failure::halt(doing, error, "Look at the constraint or the type that the message names")
            }
            Self::Missing => Failure::halt(doing, "a row is missing", "Compare both sides with `crossfade verify`"),
            Self::Failure(failure) => failure,
        }
    }

    /// Why a change was refused, without values.
    pub(super) fn reason(&self) -> String {
        match self {
            Self::Data(error) => match &error.constraint {
                Some(constraint) if !error.message.contains(constraint.as_str()) => {
                    format!("{} [{constraint}] (SQLSTATE {})", error.message, error.code)
                }
                _ => error.to_string(),
            },
            Self::Missing => "row missing: the update is partial, and the target has no row under this key".to_owned(),
            Self::Failure(failure) => failure.to_string(),
        }
    }

    pub(super) fn is_foreign_key_violation(&self) -> bool {
        matches!(self, Self::Data(error) if error.code == "23503")
    }

    pub(super) fn is_unique_violation(&self) -> bool {
        matches!(self, Self::Data(error) if error.code == "23505")
    }
}

/// Data exceptions, integrity violations, `WITH CHECK OPTION`, cardinality, limits (an index row too large) and
/// exceptions raised by a trigger: what another value would not have met.
fn is_data(code: &str) -> bool {
    let class = code.get(..2).unwrap_or_default();
    matches!(class, "21" | "22" | "23" | "44" | "54" | "P0")
}

/// A parameter that is encoded already.
#[derive(Debug, Clone)]
pub(super) enum Param {
    Null,
    Bytes(Bytes),
}

impl Param {
    pub(super) fn text(text: &str) -> Self {
        Self::Bytes(Bytes::copy_from_slice(text.as_bytes()))
    }

    pub(super) fn i64(number: i64) -> Self {
        Self::Bytes(Bytes::copy_from_slice(&number.to_be_bytes()))
    }

    pub(super) fn i32(number: i32) -> Self {
        Self::Bytes(Bytes::copy_from_slice(&number.to_be_bytes()))
    }

    /// A `text[]`; NULL elements allowed.
    pub(super) fn texts<'a>(items: impl ExactSizeIterator<Item = Option<&'a str>>) -> Self {
        let mut out = BytesMut::new();
        let count = items.len() as i32;
        out.put_i32(i32::from(count > 0));
        out.put_i32(1);
        out.put_u32(25);
        if count > 0 {
            out.put_i32(count);
            out.put_i32(1);
        }
        for item in items {
            match item {
                None => out.put_i32(-1),
                Some(text) => {
                    out.put_i32(text.len() as i32);
                    out.put_slice(text.as_bytes());
                }
            }
        }
        Self::Bytes(out.freeze())
    }
}

impl ToSql for Param {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        match self {
            Self::Null => Ok(IsNull::Yes),
            Self::Bytes(bytes) => {
                out.extend_from_slice(bytes);
                Ok(IsNull::No)
            }
        }
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    fn to_sql_checked(
        &self,
        type_: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        self.to_sql(type_, out)
    }
}

/// A cell of a result, undecoded.
pub(super) struct Raw(pub(super) Option<Bytes>);

impl<'a> tokio_postgres::types::FromSql<'a> for Raw {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(Some(Bytes::copy_from_slice(raw))))
    }

    fn from_sql_null(_: &Type) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(None))
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

/// A statement with its parameters.
#[derive(Debug, Clone)]
pub(super) struct Bind {
    pub(super) statement: Statement,
    pub(super) params: Vec<Param>,
}

/// A session of the sink.
pub(super) struct Link {
    pub(super) session: Session,
    /// Whether a transaction is open.
    pub(super) open: bool,
    /// Whether somebody else ends that transaction: nothing is committed by a delivery.
    pub(super) held: bool,
    /// Whether triggers and foreign keys are out of the way (`session_replication_role = replica`).
    pub(super) replica: bool,
    statements: HashMap<String, Statement>,
    /// How a transaction begins.
    pub(super) begin: String,
    /// Whether the migration's lock is ours.
    pub(super) locked: bool,
    /// For names of temporary types.
    pub(super) next_type: u32,
}

impl Link {
    pub(super) fn new(session: Session, replica: bool) -> Self {
        let mut link = Self {
            session,
            open: false,
            held: false,
            replica,
            statements: HashMap::new(),
            begin: String::new(),
            locked: false,
            next_type: 0,
        };
        link.set_begin(None);
        link
    }

    /// Where constraints are enforced, the deferrable ones wait until a set is complete. `own` is a statement that
    /// marks the transaction as ours, before anything else in it.
    pub(super) fn set_begin(&mut self, own: Option<&str>) {
        let deferred = if self.replica { "" } else { "; SET CONSTRAINTS ALL DEFERRED" };
        let own = own.map_or_else(String::new, |own| format!("; {own}"));
        self.begin = format!("BEGIN{own}{deferred}");
    }

    /// A prepared statement, kept for the session.
    pub(super) async fn statement(&mut self, sql: &str) -> Result<Statement, tokio_postgres::Error> {
        if let Some(found) = self.statements.get(sql) {
            return Ok(found.clone());
        }
        let statement = self.session.prepare(sql).await?;
        if self.statements.len() >= STATEMENTS_MAX {
            self.statements.clear();
        }
        self.statements.insert(sql.to_owned(), statement.clone());
        Ok(statement)
    }

    /// A statement with its parameters.
    pub(super) async fn bind(&mut self, sql: &str, params: Vec<Param>) -> Result<Bind, Failure> {
        let statement = self.statement(sql).await.map_err(|error| failure("preparing a statement", error))?;
        Ok(Bind { statement, params })
    }

    /// Forgets prepared statements: the tables that they speak of have changed.
    pub(super) fn forget(&mut self) {
        self.statements.clear();
    }

    pub(super) async fn execute(&self, doing: &str, sql: &str) -> Result<(), Failure> {
        self.session.batch_execute(sql).await.map_err(|error| failure(doing, error))
    }

    /// Runs one statement with parameters; returns how many rows it touched.
    pub(super) async fn run(&mut self, doing: &str, sql: &str, params: Vec<Param>) -> Result<u64, Failure> {
        let bind = self.bind(sql, params).await?;
        self.session.execute_raw(&bind.statement, bind.params).await.map_err(|error| failure(doing, error))
    }

    /// Asks one question.
    pub(super) async fn query(
        &mut self,
        doing: &str,
        sql: &str,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<tokio_postgres::Row>, Failure> {
        let statement = self.statement(sql).await.map_err(|error| failure(doing, error))?;
        self.session.query(&statement, params).await.map_err(|error| failure(doing, error))
    }

    /// The rows that a statement gives.
    pub(super) async fn rows(&self, doing: &str, bind: Bind) -> Result<Vec<tokio_postgres::Row>, Failure> {
        use futures::TryStreamExt;
        let rows = self.session.query_raw(&bind.statement, bind.params).await.map_err(|error| failure(doing, error))?;
        rows.try_collect().await.map_err(|error| failure(doing, error))
    }

    /// Sends all of it at once, then waits for the answers: one round trip. The error is the first in order, with
    /// the number of its statement (the prelude is none).
    pub(super) async fn pipeline(
        &self,
        prelude: Option<&str>,
        binds: &[Bind],
    ) -> Result<Vec<u64>, (Option<usize>, Error)> {
        let mut flight = self.take_off(prelude);
        binds.iter().for_each(|bind| flight.send(bind.clone()));
        flight.land().await
    }

    /// Begins to send statements whose answers are waited for together.
    pub(super) fn take_off(&self, prelude: Option<&str>) -> Flight {
        let mut flight = Flight { client: self.session.client(), skip: 0, waiting: Vec::new() };
        if let Some(sql) = prelude {
            let (client, sql) = (Arc::clone(&flight.client), sql.to_owned());
            flight.skip = 1;
            flight.sent(Box::pin(async move { client.batch_execute(&sql).await.map(|()| 0) }));
        }
        flight
    }

    /// Runs one `COPY … FROM STDIN` over whole pieces of its input, with a `COMMIT` right behind it where `commits`:
    /// whatever comes of the two, the transaction is over then. Returns how many rows went in.
    ///
    /// It is not sent behind other statements: where one of those fails, the client library takes the end of the copy that
    /// was not begun for the answer to something else.
    pub(super) async fn copy(&mut self, sql: &str, pieces: Vec<Bytes>, commits: bool) -> Result<u64, Error> {
        let statement = self.statement(sql).await?;
        let mut sink = Box::pin(self.session.copy_in(&statement).await?);
        for piece in pieces {
            if let Err(error) = sink.feed(piece).await {
                // The server ended the copy early: its reason comes with the end.
                return sink.as_mut().finish().await.and(Err(error));
            }
        }
        if !commits {
            return sink.as_mut().finish().await;
        }
        self.open = false;
        let client = &self.session;
        let finished: Answer<'_> = Box::pin(async move { sink.as_mut().finish().await });
        let committed: Answer<'_> = Box::pin(async move { client.batch_execute("COMMIT").await.map(|()| 0) });
        let mut both = [(finished, None), (committed, None)];
        poll_fn(|context| poll_all(&mut both, context)).await;
        let [(_, finished), (_, committed)] = both;
        let count = finished.unwrap_or(Ok(0))?;
        committed.unwrap_or(Ok(0)).map(|_| count)
    }
}

/// Statements that are on their way. The server works on the first while the next one is still being made.
pub(super) struct Flight {
    client: Arc<Client>,
    /// How many answers at the beginning are the prelude's.
    skip: usize,
    waiting: Vec<(Answer<'static>, Option<Result<u64, Error>>)>,
}

impl Flight {
    /// Sends a statement behind those that were sent.
    pub(super) fn send(&mut self, bind: Bind) {
        let client = Arc::clone(&self.client);
        self.sent(Box::pin(async move { client.execute_raw(&bind.statement, bind.params).await }));
    }

    /// The first poll is what sends it; nobody waits yet.
    fn sent(&mut self, mut answer: Answer<'static>) {
        let done = match answer.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(done) => Some(done),
            Poll::Pending => None,
        };
        self.waiting.push((answer, done));
    }

    /// Takes answers that have come. Whoever waits for another answer of this session must do so meanwhile: the connection
    /// keeps few messages for a request that nobody listens to, and then reads no further.
    pub(super) fn hear(&mut self, context: &mut Context<'_>) {
        let _ = poll_all(&mut self.waiting, context);
    }

    /// Waits for all answers: how many rows each statement touched. The error is the first in order, with the number of
    /// its statement (the prelude is none).
    pub(super) async fn land(mut self) -> Result<Vec<u64>, (Option<usize>, Error)> {
        poll_fn(|context| poll_all(&mut self.waiting, context)).await;
        let mut counts = Vec::with_capacity(self.waiting.len());
        for (index, (_, answer)) in self.waiting.into_iter().enumerate() {
            match answer {
                Some(Ok(count)) if index >= self.skip => counts.push(count),
                Some(Err(error)) => return Err((index.checked_sub(self.skip), error)),
                _ => {}
            }
        }
        Ok(counts)
    }
}

type Answer<'a> = BoxFuture<'a, Result<u64, Error>>;

fn poll_all<T>(waiting: &mut [(BoxFuture<'_, T>, Option<T>)], context: &mut Context<'_>) -> Poll<()> {
    let mut pending = false;
    for (future, answer) in waiting {
        if answer.is_none() {
            match Pin::as_mut(future).poll(context) {
                Poll::Ready(done) => *answer = Some(done),
                Poll::Pending => pending = true,
            }
        }
    }
    if pending { Poll::Pending } else { Poll::Ready(()) }
}
