//! Questions of somebody else's: statements that only read, asked as they are written.
//!
//! They have a session of their own, in which every transaction can only read. Names are looked up along the path that
//! the role or the database has, for that is how the applications do whose questions these are; all other settings are
//! ours, so that both ends of a migration write a value alike.

use super::scan::read;
use crate::{
    Config,
    client::{ServerError, Session, connect, failure},
    codec::types::logical,
};
use bytes::BytesMut;
use crossfade_connector::{Asked, Failure};
use crossfade_event::{Column, ColumnType, Format, Logical, Value, codec};
use futures::StreamExt;
use std::{collections::HashMap, error::Error, pin::pin, time::Instant};
use tokio_postgres::{
    Statement,
    types::{Format as Wire, IsNull, Kind, ToSql, Type},
};

/// Statements that are kept; past that all are dropped and prepared anew.
const KEPT_MAX: usize = 256;

const SETTINGS: &str = "RESET search_path; SET default_transaction_read_only = on";

const DOING: &str = "asking a query";

/// A session for questions.
pub(super) struct Questions {
    session: Session,
    prepared: HashMap<String, (Statement, Vec<Column>)>,
}

impl Questions {
    pub(super) async fn open(config: &Config) -> Result<Self, Failure> {
        let session = connect(config, "crossfade queries").await?;
        session.batch_execute(SETTINGS).await.map_err(|error| failure(DOING, error))?;
        Ok(Self { session, prepared: HashMap::new() })
    }

    pub(super) fn is_closed(&self) -> bool {
        self.session.is_closed()
    }

    async fn prepared(&mut self, sql: &str) -> Result<(Statement, Vec<Column>), Failure> {
        if let Some(known) = self.prepared.get(sql) {
            return Ok(known.clone());
        }
        let statement = self.session.prepare(sql).await.map_err(|error| failure("preparing a query", error))?;
        let columns = statement.columns().iter().map(|column| of(column.name(), column.type_())).collect();
        if self.prepared.len() >= KEPT_MAX {
            self.prepared.clear();
        }
        let known = self.prepared.entry(sql.to_owned()).insert_entry((statement, columns));
        Ok(known.get().clone())
    }

    pub(super) async fn ask(
        &mut self,
        sql: &str,
        params: &[Option<Value>],
        bytes_max: usize,
    ) -> Result<Asked, Failure> {
        let (statement, columns) = self.prepared(sql).await?;
        if statement.params().len() != params.len() {
            let told = format!("it has {} parameters, and {} are given", statement.params().len(), params.len());
            return Err(Failure::misconfigured(DOING, told, "Give as many values as the query has parameters"));
        }
        let params = params.iter().map(|value| AsText(value.as_ref().map(codec::to_text)));
        let (mut rows, mut bytes) = (Vec::new(), 0);
        let began = Instant::now();
        let stream = self.session.query_raw(&statement, params.collect::<Vec<_>>()).await;
        let mut stream = pin!(stream.map_err(refused)?);
        while let Some(row) = stream.next().await {
            let row = read(&row.map_err(refused)?);
            bytes += row.as_bytes().len();
            if bytes > bytes_max {
                let told = format!("its answer is larger than {bytes_max} bytes");
                return Err(Failure::misconfigured(DOING, told, "Ask for fewer rows, or for a sum of them"));
            }
            rows.push(row);
        }
        Ok(Asked { columns, rows, took: began.elapsed() })
    }
}

/// A statement that writes will write when tried again, too.
fn refused(error: tokio_postgres::Error) -> Failure {
    match ServerError::of(&error) {
        Some(server) if server.code == "25006" => {
            Failure::misconfigured(DOING, server, "Write a query that only reads")
        }
        _ => failure(DOING, error),
    }
}

fn of(name: &str, type_: &Type) -> Column {
    // A label of an enum, and a text of any kind, travel as they are.
    let known = match type_.kind() {
        Kind::Enum(_) => Logical::Text,
        _ if type_.name() == "citext" => Logical::Text,
        _ => logical(type_.oid()),
    };
    Column {
        name: name.into(),
        type_: ColumnType {
            name: type_.name().into(),
            native_id: type_.oid(),
            logical: known,
            format: Format::PgBinary,
        },
        key: None,
        nullable: true,
        native_id: 0,
        default: None,
    }
}

/// A parameter in its text form, which the server reads as the type that it takes the parameter for.
#[derive(Debug)]
struct AsText(Option<String>);

impl ToSql for AsText {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        let Some(text) = &self.0 else { return Ok(IsNull::Yes) };
        out.extend_from_slice(text.as_bytes());
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    fn encode_format(&self, _: &Type) -> Wire {
        Wire::Text
    }

    fn to_sql_checked(&self, type_: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        self.to_sql(type_, out)
    }
}
