//! `plan`: every step with its SQL, its cost, and what can be taken back. Writes nothing.

use crate::{
    error::CliError,
    event_log::{self, AnyLog},
    output::{self, Table},
    registry,
    spec::{LogSpec, Spec},
    wiring::{self, Planned},
};
use crossfade_connector::TargetSql;
use crossfade_event::{
    Identity,
    catalog::{RelationKind, TableDef},
};
use crossfade_transform::{Fidelity, PlannedTable, Writing};
use serde::Serialize;

/// The answer of `plan --json`.
#[derive(Debug, Serialize)]
struct Answer<'a> {
    migration: &'a str,
    source: &'static str,
    log: String,
    sink: &'static str,
    rows: u64,
    bytes: u64,
    tables: Vec<TableAnswer>,
    left_out: Vec<LeftOut>,
    steps: Vec<Step>,
    notes: Vec<crossfade_transform::Note>,
}

/// One table of the target.
#[derive(Debug, Serialize)]
struct TableAnswer {
    source: Option<String>,
    target: String,
    write: &'static str,
    found_by: &'static str,
    rows: u64,
    bytes: u64,
    columns: Vec<ColumnAnswer>,
}

/// One column of the target.
#[derive(Debug, Serialize)]
struct ColumnAnswer {
    name: String,
    #[serde(rename = "type")]
    type_: String,
    key: bool,
}

/// A table of the source that stays behind.
#[derive(Debug, Serialize)]
struct LeftOut {
    table: String,
    reason: String,
}

/// One step, in the order in which it is taken.
#[derive(Debug, Serialize)]
struct Step {
    step: &'static str,
    what: String,
    sql: Vec<String>,
    taken_back_by: &'static str,
}

/// Plans.
pub(crate) async fn plan(spec: &Spec, as_json: bool) -> Result<(), CliError> {
    let planned = wiring::plan_from_source(spec).await?;
    let mut steps = steps(spec, &planned, registry::source_ddl(spec).await?)?;
    if let Some(step) = log_step(spec).await? {
        steps.insert(0, step);
    }
    let answer = answer(spec, &planned, steps);
    if as_json { output::json(&answer) } else { output::print(&render(&answer)) }
}

fn answer<'a>(spec: &'a Spec, planned: &'a Planned, steps: Vec<Step>) -> Answer<'a> {
    let tables: Vec<TableAnswer> = planned.plan.tables().iter().map(|table| table_answer(planned, table)).collect();
    let moved = |def: &&TableDef| planned.plan.tables().iter().any(|table| table.source.as_ref() == Some(&def.name));
    let left_out = planned.catalog.tables.iter().filter(|def| !moved(def)).map(|def| left_out(planned, def)).collect();
    Answer {
        migration: spec.name.as_str(),
        source: wiring::source_kind(spec),
        log: event_log::place(spec, &spec.base()),
        sink: wiring::sink_kind(spec),
        rows: tables.iter().map(|table| table.rows).sum(),
        bytes: tables.iter().map(|table| table.bytes).sum(),
        tables,
        left_out,
        steps,
        notes: planned.plan.notes().iter().chain(&planned.losses).cloned().collect(),
    }
}

fn table_answer(planned: &Planned, table: &PlannedTable) -> TableAnswer {
    let def = table.source.as_ref().and_then(|name| planned.catalog.table(name));
    TableAnswer {
        source: table.source.as_ref().map(ToString::to_string),
        target: table.schema.name.to_string(),
        write: match table.write {
            Writing::Table => "table",
            Writing::Columns { .. } => "columns",
            Writing::InsertOnce => "mapping",
            Writing::Dual { .. } => "dual records",
        },
        found_by: match table.schema.identity {
            Identity::Key => "key",
            Identity::FullRow => "whole row",
            Identity::InsertOnly => "insert-only",
        },
        rows: def.map_or(0, |def| def.rows_estimate),
        bytes: def.map_or(0, |def| def.bytes),
        columns: table
            .schema
            .columns
            .iter()
            .map(|column| ColumnAnswer {
                name: column.name.to_string(),
                type_: column.type_.name.to_string(),
                key: column.key.is_some(),
            })
            .collect(),
    }
}

fn left_out(planned: &Planned, def: &TableDef) -> LeftOut {
    if def.obstacle.is_none() && planned.plan.lookups().iter().any(|view| view.table == def.name) {
        return LeftOut { table: def.name.to_string(), reason: "it is only looked up".to_owned() };
    }
    let reason = def.obstacle.clone().unwrap_or_else(|| {
        match def.kind {
            RelationKind::Partitioned { .. } => "its leaves are moved one by one",
            RelationKind::View => "a view has no rows of its own",
            RelationKind::Foreign => "a foreign table's rows are elsewhere",
            RelationKind::Unlogged => "an unlogged table's changes are nowhere on record",
            RelationKind::Table | RelationKind::Partition { .. } => "it cannot be captured",
        }
        .to_owned()
    });
    LeftOut { table: def.name.to_string(), reason }
}

/// What a run does, in order: with the very statements that it runs where nothing is there yet.
fn steps(spec: &Spec, planned: &Planned, capture: Vec<String>) -> Result<Vec<Step>, CliError> {
    let TargetSql { before_load, after_load } = registry::sink_ddl(spec, &planned.target)?;
    let tables = planned.plan.tables().len();
    let wiped = "rollback --wipe";
    let undone = "rollback --undo or --wipe";
    let step = |step, what: &str, sql, taken_back_by| Step { step, what: what.to_owned(), sql, taken_back_by };
    let mut steps = vec![
        step(
            "expand",
            &format!(
                "make {tables} target objects and our own beside them; what is there already stays as it is, and what \
                 is made is noted, so that a wipe drops that and nothing else"
            ),
            before_load,
            wiped,
        ),
        step("capture", capture_words(spec), capture, wiped),
        step("backfill", "copy the rows that are there, in chunks that can be resumed one by one", Vec::new(), undone),
        step(
            "finish",
            "make keys and indexes once the rows are in; what must hold between rows (unique values, references) once \
             the stream has passed the copy's end",
            after_load,
            wiped,
        ),
        step("follow", "apply every change since the copy began, then each new one", Vec::new(), undone),
    ];
    let views = crate::run::views_sql(spec, &planned.catalog, &planned.target)?;
    if !views.is_empty() {
        steps.push(step(
            "views",
            "make the views of both shapes; nobody writes by those of the new one yet",
            views,
            wiped,
        ));
    }
    Ok(steps)
}

/// A log that is not in the migration's folder is made somewhere, too.
async fn log_step(spec: &Spec) -> Result<Option<Step>, CliError> {
    if let LogSpec::Embedded(_) = spec.log {
        return Ok(None);
    }
    let findings = AnyLog::preflight(spec).await?;
    if let Some(first) = findings.iter().find(|finding| finding.fatal) {
        return Err(CliError::refused(format!("log {}: {}", first.object, first.problem)).hint(&first.remedy));
    }
    let doing = if findings.is_empty() { "use" } else { "make" };
    let what = format!("{doing} {} for the event log", event_log::place(spec, &spec.base()));
    Ok(Some(Step { step: "log", what, sql: Vec::new(), taken_back_by: "rollback --wipe" }))
}

fn capture_words(spec: &Spec) -> &'static str {
    match wiring::source_kind(spec) {
        "postgres" => {
            "publish the tables and make a replication slot in the source (its command goes over a replication \
             connection); an idle source gets the mark below from time to time"
        }
        "debezium" => "read the topics that Debezium writes, from their beginning; nothing is made there",
        _ => {
            "put triggers on the source's tables, which record every change in the writer's own transaction; one \
             transaction makes all of it"
        }
    }
}

fn render(answer: &Answer<'_>) -> String {
    let mut text = format!(
        "{}: {} to {}, about {} rows, {}\n\n",
        answer.migration,
        answer.source,
        answer.sink,
        output::count(answer.rows),
        output::bytes(answer.bytes)
    );
    let mut tables = Table::new(["from", "to", "written as", "found by", "rows", "size"]);
    for table in &answer.tables {
        tables.row([
            table.source.clone().unwrap_or_else(|| "(made by us)".to_owned()),
            table.target.clone(),
            table.write.to_owned(),
            table.found_by.to_owned(),
            output::count(table.rows),
            output::bytes(table.bytes),
        ]);
    }
    text.push_str(&tables.render());
    for left in &answer.left_out {
        text.push_str(&format!("left out: {}: {}\n", left.table, left.reason.replace('\n', " ")));
    }
    for (number, step) in answer.steps.iter().enumerate() {
        text.push_str(&format!(
            "\n{}. {}: {} (taken back by {})\n",
            number + 1,
            step.step,
            step.what,
            step.taken_back_by
        ));
        for statement in &step.sql {
            for line in statement.trim_end().lines() {
                text.push_str(&format!("     {line}\n"));
            }
            text.insert(text.len() - 1, ';');
        }
    }
    text.push_str(&render_notes(&answer.notes));
    text.push_str("\nnothing has been written\n");
    text
}

fn render_notes(notes: &[crossfade_transform::Note]) -> String {
    const KINDS: [(Fidelity, &str); 6] = [
        (Fidelity::Lossy, "lossy: Debezium has lost it before it comes here"),
        (Fidelity::Inexact, "the target cannot hold every value exactly"),
        (Fidelity::OneWay, "one-way: no way back from the new value alone"),
        (Fidelity::LossyBack, "lossy on the way back"),
        (Fidelity::Lossless, "lossless"),
        (Fidelity::Advice, "worth knowing"),
    ];
    let mut text = String::new();
    for (kind, title) in KINDS {
        let of_kind: Vec<_> = notes.iter().filter(|note| note.fidelity == kind).collect();
        if of_kind.is_empty() {
            continue;
        }
        text.push_str(&format!("\n{title}:\n"));
        for note in of_kind {
            let column = note.column.as_ref().map(|column| format!(".{column}")).unwrap_or_default();
            text.push_str(&format!("  {}{column}: {}\n", note.table, note.text));
        }
    }
    text
}
