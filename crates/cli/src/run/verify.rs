//! `verify`: both sides at one position.

use super::{
    plan_file::{PlanFile, secret_of},
    session::routes,
    upkeep::{is_followed, while_followed},
};
use crate::{
    args::VerifyArgs,
    commands::folder,
    error::{CliError, Exit},
    output::{self, Table},
    registry::AnySink,
    spec::Spec,
    wiring,
};
use crossfade_connector::{Failure, Inspect, Sink};
use crossfade_event::{Position, SchemaVersion, TableId, TableSchema, catalog::TableDef};
use crossfade_verify::{Options, Report, SinkPosition, Subject};
use serde::Serialize;
use std::sync::Arc;

struct Asking(AnySink);

impl SinkPosition for Asking {
    async fn position(&mut self) -> Result<Option<Position>, Failure> {
        Ok(self.0.progress().await?.and_then(|progress| progress.position))
    }
}

/// Verifies; exit code 4 when there are differences.
pub(crate) async fn verify(spec: &Spec, args: &VerifyArgs) -> Result<(), CliError> {
    if args.queries.is_some() {
        return Err(CliError::not_built("verify --queries"));
    }
    if args.repair {
        return Err(CliError::not_built("verify --repair"));
    }
    let folder = folder::existing(spec)?;
    let Some(plan) = PlanFile::read(&folder)? else {
        return Err(CliError::refused(format!(
            "the migration {} has not begun: there is nothing to verify",
            spec.name
        )));
    };
    plan.check(spec)?;
    let caught_up_first = !is_followed(spec)?;
    if caught_up_first && !args.json {
        output::line(format!("nobody runs {}: it catches up first", spec.name))?;
    }
    let report = while_followed(spec, args.json, Box::pin(compare(spec, args))).await?;
    if args.json {
        output::json(&Answer { report: &report, caught_up_first })?;
    } else {
        output::print(&render(&report))?;
    }
    // A row that the transforms refuse is missing in the target, whatever the reason.
    match report.differences + report.refused_rows {
        0 => Ok(()),
        1 => Err(CliError::new(Exit::Differences, "1 row differs or is refused")),
        many => Err(CliError::new(Exit::Differences, format!("{many} rows differ or are refused"))),
    }
}

#[derive(Serialize)]
struct Answer<'a> {
    #[serde(flatten)]
    report: &'a Report,
    /// Nobody ran the migration, so this command did until both sides were compared.
    caught_up_first: bool,
}

/// Compares both sides, while somebody brings the target up to the source.
async fn compare(spec: &Spec, args: &VerifyArgs) -> Result<Report, CliError> {
    let folder = folder::existing(spec)?;
    let plan = PlanFile::read(&folder)?.ok_or_else(|| CliError::failed("the plan has gone"))?;
    let mut source = wiring::source_inspect(spec)?;
    let mut target = wiring::sink_inspect(spec)?;
    // The tables as they are now: the plan follows them as the stream did.
    let catalog = source.catalog(spec.source.tables()).await?;
    let planned: Vec<_> = catalog
        .tables
        .iter()
        .filter(|table| plan.catalog.tables.iter().any(|old| is_same(old, table)))
        .cloned()
        .collect();
    let now = PlanFile::with_tables(&plan, planned.clone());
    let routes = routes(spec, &now, secret_of(&folder)?, 0)?;
    let source_tables = planned
        .iter()
        .enumerate()
        .map(|(index, table)| Arc::new(schema_of(TableId(index as u32 + 1), table)))
        .collect();
    let subject = Subject { plan: routes.plan(), source_tables };
    let options = Options { samples: args.limit, ..Options::default() };
    let mut asking = Asking(AnySink::for_looking(spec)?);
    Ok(crossfade_verify::verify(&subject, &mut source, &mut target, &mut asking, &options).await?)
}

fn is_same(old: &TableDef, new: &TableDef) -> bool {
    old.name == new.name || (new.native_id != 0 && old.native_id == new.native_id)
}

/// A schema for reading a table as it is now.
pub(super) fn schema_of(id: TableId, table: &TableDef) -> TableSchema {
    TableSchema {
        id,
        version: SchemaVersion(1),
        name: table.name.clone(),
        columns: table.carried().map(|def| def.column.clone()).collect(),
        identity: table.identity,
        native_id: table.native_id,
    }
}

fn render(report: &Report) -> String {
    let mut table = Table::new(["table", "expected", "target", "differences"]);
    for one in &report.tables {
        table.row([
            one.table.clone(),
            output::count(one.expected_rows),
            output::count(one.target_rows),
            output::count(one.differences),
        ]);
    }
    let mut text = table.render();
    for one in &report.tables {
        for difference in &one.samples {
            let kind = format!("{:?}", difference.kind).to_lowercase();
            let columns = if difference.columns.is_empty() {
                String::new()
            } else {
                format!(" in {}", difference.columns.join(", "))
            };
            text.push_str(&format!("{kind}: {} key {}{columns}\n", one.table, difference.key_hash));
        }
    }
    if report.refused_rows > 0 {
        text.push_str(&format!("{} source rows are refused by the transforms\n", output::count(report.refused_rows)));
    }
    let at = report.position.as_ref().map(|position| format!(" at position {position}")).unwrap_or_default();
    text.push_str(&format!("{} differences{at}\n", output::count(report.differences)));
    text
}
