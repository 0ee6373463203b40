//! What must hold within the target by itself: references lead somewhere, and a mapping gives no new key twice.
//!
//! Asked beside the comparison of rows, for it says what a person wants to hear of a table: not only that both sides agree.
//! A row whose parent is on its way is no dangling reference: one is said only when it stands through several rounds, in
//! each of which the sink has passed all that was written before the round.

use crate::{Options, SinkPosition, Subject, VerifyError, judge};
use crossfade_connector::{Failure, Inspect};
use crossfade_event::{TableName, catalog::ForeignKeyDef};
use crossfade_transform::{Plan, PlannedTable, Writing};
use serde::Serialize;

/// So many rounds in which something does not hold make it a fact.
const ROUNDS: u32 = 3;

/// What was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum CheckKind {
    /// Rows refer to rows that are there.
    References,
    /// No two old keys of a table became one new key.
    Injective,
}

/// One thing that was asked of the target, and what it said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What.
    pub kind: CheckKind,
    /// The table that refers, or the mapping.
    pub table: String,
    /// The columns that refer, or hold the new keys.
    pub columns: Vec<String>,
    /// The table that is referred to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub references: Option<String>,
    /// Rows that refer to nothing, or new keys that were given twice.
    pub broken: u64,
}

/// What is to be asked of a plan's target.
enum Question<'a> {
    References(&'a TableName, &'a ForeignKeyDef),
    Injective(&'a PlannedTable),
}

fn questions<'a>(plan: &'a Plan) -> Vec<Question<'a>> {
    let written = |name: &TableName| {
        plan.tables().iter().any(|table| table.schema.name == *name && table.write == Writing::Table)
    };
    let of_table = |table: &'a PlannedTable| {
        let PlannedTable { schema, def, write, source } = table;
        let keys = def.foreign_keys.iter().filter(|key| written(&key.references));
        let references = keys.filter(|_| *write == Writing::Table).map(|key| Question::References(&schema.name, key));
        let is_mapping = source.is_none() && *write == Writing::InsertOnce;
        references.chain(is_mapping.then_some(Question::Injective(table)))
    };
    plan.tables().iter().flat_map(of_table).collect()
}

impl Question<'_> {
    fn check(&self, broken: u64) -> Check {
        match self {
            Self::References(table, key) => Check {
                kind: CheckKind::References,
                table: table.to_string(),
                columns: key.columns.clone(),
                references: Some(key.references.to_string()),
                broken,
            },
            Self::Injective(table) => Check {
                kind: CheckKind::Injective,
                table: table.schema.name.to_string(),
                columns: new_keys(table),
                references: None,
                broken,
            },
        }
    }

    async fn ask<B: Inspect>(&self, target: &mut B) -> Result<Option<u64>, Failure> {
        match self {
            Self::References(table, key) => {
                target.dangling(table, &key.columns, &key.references, &key.referenced_columns).await
            }
            Self::Injective(table) => target.repeated(&table.schema.name, &new_keys(table)).await,
        }
    }
}

/// The columns of a mapping that no two rows may share: the new key, and the table it is of.
fn new_keys(mapping: &PlannedTable) -> Vec<String> {
    mapping.def.uniques.first().map(|unique| unique.columns.clone()).unwrap_or_default()
}

/// Asks the target about itself; what it cannot be asked is left out.
///
/// # Errors
/// See [`VerifyError`].
pub async fn integrity<A: Inspect, B: Inspect, P: SinkPosition>(
    subject: &Subject<'_>,
    source: &mut A,
    target: &mut B,
    sink: &mut P,
    options: &Options,
) -> Result<Vec<Check>, VerifyError> {
    let mut checks = Vec::new();
    for question in questions(subject.plan) {
        let mut rounds = 0;
        let answer = loop {
            let answer = question.ask(target).await.map_err(VerifyError::Target)?;
            rounds += 1;
            if answer.is_none_or(|broken| broken == 0) || rounds >= ROUNDS {
                break answer;
            }
            let position = source.barrier().await.map_err(VerifyError::Source)?;
            judge::wait_for(sink, position, options).await?;
        };
        checks.extend(answer.map(|broken| question.check(broken)));
    }
    Ok(checks)
}
