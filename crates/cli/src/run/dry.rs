//! `run --dry-run`: reads, transforms and counts. Writes nothing, neither into the source nor into the sink.

use super::{
    plan_file::{PlanFile, secret_of},
    session::routes,
    verify::schema_of,
};
use crate::{
    error::CliError,
    output::{self, Table},
    registry::AnyInspect,
    spec::Spec,
    wiring,
};
use crossfade_connector::Inspect;
use crossfade_event::{Change, Op, TableId};
use crossfade_transform::Output;
use crossfade_verify::{LiveViews, Subject, scan_rows};
use std::{collections::BTreeMap, ops::ControlFlow, sync::Arc};

/// What became of one table's rows.
#[derive(Debug, Default)]
struct Count {
    read: u64,
    written: u64,
    filtered: u64,
    refused: u64,
}

/// Reads up to `limit` rows of each table, and says what a run would make of them.
pub(crate) async fn dry_run(spec: &Spec, limit: Option<u64>) -> Result<(), CliError> {
    let mut source = wiring::source_inspect(spec)?;
    let mut catalog = source.catalog(spec.source.tables()).await?;
    if wiring::plan_needs_text(spec, &catalog)? {
        source = AnyInspect::of_source(spec, true)?;
        catalog = source.catalog(spec.source.tables()).await?;
    }
    let plan = PlanFile::unsaved(spec, catalog);
    // Keys that need the migration's secret come out as they will: from its own one if it has begun.
    let secret = if spec.base().is_dir() { secret_of(&spec.base())? } else { vec![0; 32] };
    let routes = routes(spec, &plan, secret, 0)?;
    let tables: Vec<_> = plan
        .catalog
        .tables
        .iter()
        .enumerate()
        .map(|(index, table)| Arc::new(schema_of(TableId(index as u32 + 1), table)))
        .collect();
    let subject = Subject { plan: routes.plan(), source_tables: tables.clone(), renamed: BTreeMap::new() };
    let views = LiveViews::read(&subject, &mut source).await?;
    let mut reasons: BTreeMap<String, u64> = BTreeMap::new();
    let mut answer = Table::new(["table", "read", "written", "filtered", "refused"]);
    for schema in &tables {
        let bound = routes.plan().bind(schema)?;
        let mut count = Count::default();
        let take = |row| {
            if limit.is_some_and(|limit| count.read >= limit) {
                return ControlFlow::Break(());
            }
            count.read += 1;
            if bound.passthrough().is_some() {
                count.written += 1;
                return ControlFlow::Continue(());
            }
            let change = Change { table: schema.id, schema: schema.version, op: Op::Insert, old: None, new: Some(row) };
            let mut outputs = Vec::new();
            bound.apply(&change, &views, &mut outputs);
            for output in outputs {
                match output {
                    Output::Change(_) => count.written += 1,
                    Output::Filtered => count.filtered += 1,
                    Output::Rejected { reason, .. } => {
                        count.refused += 1;
                        *reasons.entry(reason).or_default() += 1;
                    }
                }
            }
            ControlFlow::Continue(())
        };
        scan_rows(&mut source, schema, take).await?;
        let figures = [count.read, count.written, count.filtered, count.refused].map(output::count);
        let [read, written, filtered, refused] = figures;
        answer.row([schema.name.to_string(), read, written, filtered, refused]);
    }
    output::print(&answer.render())?;
    for (reason, times) in reasons {
        output::line(format!("refused {times} times: {reason}"))?;
    }
    output::line("nothing has been written")
}
