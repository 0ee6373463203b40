//! `quarantine ls|show|retry|discard`: what could not be applied, and what becomes of it.

use super::{control, folder};
use crate::{
    args::{QuarantineLsArgs, QuarantinePickArgs, QuarantineShowArgs},
    error::CliError,
    output::{self, Table},
    registry::AnySink,
    run::{self, Session},
    spec::Spec,
    values, wiring,
};
use crossfade_connector::{Quarantine, QuarantineFilter, QuarantinedChange, Target};
use crossfade_control::Command;
use crossfade_event::{Change, TableName};
use hyper::Method;
use serde_json::{Value as Json, json};

/// Lists.
pub(crate) async fn ls(spec: &Spec, args: &QuarantineLsArgs) -> Result<(), CliError> {
    let filter = QuarantineFilter { table: args.table.as_deref().map(table_name).transpose()?, ids: Vec::new() };
    let all = AnySink::for_looking(spec)?.list(&filter).await?;
    if args.json {
        return output::json(&all);
    }
    if all.is_empty() {
        return output::line("nothing is in quarantine");
    }
    let mut table = Table::new(["id", "entry", "table", "key", "kind", "at", "reason"]);
    for change in all {
        table.row([
            change.id.to_string(),
            change.sequence.to_string(),
            change.table.to_string(),
            change.key_hash,
            change.kind,
            change.at,
            change.reason,
        ]);
    }
    output::print(&table.render())
}

/// Shows one.
pub(crate) async fn show(spec: &Spec, args: &QuarantineShowArgs) -> Result<(), CliError> {
    let found = AnySink::for_looking(spec)?.show(args.id).await?;
    let Some((change, image)) = found else { return Err(not_there(args.id)) };
    let target = wiring::plan_from_folder(spec)?.map(|planned| planned.target);
    let answer = describe(target.as_ref(), &change, &image, args.values);
    if args.json {
        return output::json(&answer);
    }
    let mut text = String::new();
    for (key, value) in answer.as_object().into_iter().flatten() {
        match value {
            Json::String(value) => text.push_str(&format!("{key:<9} {value}\n")),
            Json::Object(columns) => {
                text.push_str(&format!("{key}\n"));
                for (column, value) in columns {
                    text.push_str(&format!("  {column:<24} {value}\n"));
                }
            }
            other => text.push_str(&format!("{key:<9} {other}\n")),
        }
    }
    output::print(&text)
}

fn describe(target: Option<&Target>, change: &QuarantinedChange, image: &Change, with_values: bool) -> Json {
    let mut answer = json!({
        "id": change.id, "sequence": change.sequence, "ordinal": change.ordinal, "table": change.table.to_string(),
        "key_hash": change.key_hash, "kind": change.kind, "reason": change.reason, "at": change.at, "op": image.op,
    });
    let schema = target
        .into_iter()
        .flat_map(|target| &target.tables)
        .map(|table| &table.schema)
        .find(|schema| schema.id == image.table);
    if let (true, Some(schema), Some(answer)) = (with_values, schema, answer.as_object_mut()) {
        for (label, row) in [("old", &image.old), ("new", &image.new)] {
            if let Some(row) = row {
                answer.insert(label.to_owned(), values::row(schema, row));
            }
        }
    }
    answer
}

/// Applies again.
pub(crate) async fn retry(spec: &Spec, args: &QuarantinePickArgs) -> Result<(), CliError> {
    let outcome = change(spec, args, "retry").await?;
    report(&outcome, args.json)
}

/// Drops for good.
pub(crate) async fn discard(spec: &Spec, args: &QuarantinePickArgs) -> Result<(), CliError> {
    let outcome = change(spec, args, "discard").await?;
    report(&outcome, args.json)
}

/// Does either: through the process that runs the migration, or as the only writer.
async fn change(spec: &Spec, args: &QuarantinePickArgs, what: &'static str) -> Result<Json, CliError> {
    if args.ids.is_empty() && args.table.is_none() && !args.all {
        return Err(CliError::misconfigured(format!("`quarantine {what}` must be told which changes"))
            .hint("name their numbers, or --table TABLE, or --all"));
    }
    run::needs_deliver(spec, &format!("quarantine {what}"))?;
    let filter = QuarantineFilter { table: args.table.as_deref().map(table_name).transpose()?, ids: args.ids.clone() };
    refuse_unknown_ids(spec, &args.ids).await?;
    let mut body = json!({ "ids": filter.ids });
    if let (Some(table), Some(body)) = (&filter.table, body.as_object_mut()) {
        body.insert("table".to_owned(), json!(table.to_string()));
    }
    let route = format!("/command/quarantine-{what}");
    match control::ask(spec, Method::POST, &route, Some(body)).await? {
        Some(answer) => Ok(answer),
        None => change_alone(spec, &filter, what).await,
    }
}

async fn change_alone(spec: &Spec, filter: &QuarantineFilter, what: &'static str) -> Result<Json, CliError> {
    folder::existing(spec)?;
    let session = Session::open(spec).await?;
    let note = Command::Note { what: format!("quarantine {what}: {}", describe_filter(filter)) };
    session.journal.command(note, &session.by).await?;
    let mut sink = AnySink::new(spec)?;
    let outcome = match what {
        "retry" => run::retry(&session.log, &session.routes, &mut sink, filter).await?,
        _ => run::discard(&session.log, &session.routes, &mut sink, filter).await?,
    };
    serde_json::to_value(outcome).map_err(|error| CliError::failed(format!("writing the answer: {error}")))
}

fn describe_filter(filter: &QuarantineFilter) -> String {
    match (&filter.table, filter.ids.as_slice()) {
        (Some(table), _) => format!("table {table}"),
        (None, []) => "all".to_owned(),
        (None, ids) => ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    }
}

async fn refuse_unknown_ids(spec: &Spec, ids: &[i64]) -> Result<(), CliError> {
    if ids.is_empty() {
        return Ok(());
    }
    let there = AnySink::for_looking(spec)?.list(&QuarantineFilter::default()).await?;
    match ids.iter().find(|id| !there.iter().any(|change| change.id == **id)) {
        Some(id) => Err(not_there(*id)),
        None => Ok(()),
    }
}

fn report(outcome: &Json, as_json: bool) -> Result<(), CliError> {
    if as_json {
        return output::json(outcome);
    }
    let figure = |name: &str| output::count(outcome.get(name).and_then(Json::as_u64).unwrap_or(0));
    output::line(format!(
        "{} applied, {} discarded, {} remain in quarantine",
        figure("applied"),
        figure("discarded"),
        figure("remaining")
    ))
}

fn not_there(id: i64) -> CliError {
    CliError::misconfigured(format!("there is no change {id} in quarantine"))
        .hint("`crossfade quarantine ls` lists those that there are")
}

fn table_name(text: &str) -> Result<TableName, CliError> {
    match text.split_once('.') {
        Some((schema, name)) if !schema.is_empty() && !name.is_empty() => Ok(TableName::new(schema, name)),
        _ => Err(CliError::misconfigured(format!("`{text}` is not schema.table"))),
    }
}
