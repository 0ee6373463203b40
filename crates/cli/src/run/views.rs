//! `[views]`: one schema that shows the old shape and one that shows the new, made as soon as the new columns or tables are
//! there, long before anything is switched.

use super::{control::Shared, plan_file::secret_of};
use crate::{error::CliError, registry, spec::Spec, wiring};
use crossfade_connector::{Inspect, Target, WriteMode};
use crossfade_control::Phase;
use crossfade_event::{Side, TableName, catalog::Catalog, swap::SwapTable};
use crossfade_postgres::swap::View;
use crossfade_transform::swap;
use std::{collections::BTreeSet, sync::Arc, time::Duration};

/// How long to wait before a server that could not be asked is tried again.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// The views of a spec that asks for them; none for one that does not.
pub(crate) fn planned(spec: &Spec, catalog: &Catalog, target: &Target) -> Result<Vec<View>, CliError> {
    let Some(section) = &spec.views else { return Ok(Vec::new()) };
    let (old, new) = (format!("{}_v1", section.app), format!("{}_v2", section.app));
    let tables = catalog.tables.iter().filter(|table| {
        let has = |found: &TableName| *found == table.name;
        target.tables.iter().any(|one| has(&one.schema.name)) || !wiring::writes_beside(spec)
    });
    let mut views = Vec::new();
    let swaps = match wiring::writes_beside(spec) {
        true => {
            let secret = if spec.base().join("secret").exists() { secret_of(&spec.base())? } else { vec![0; 32] };
            swap(catalog, &spec.rules, &wiring::plan_options(spec, secret))?.tables
        }
        false => Vec::new(),
    };
    for table in tables {
        let names: Vec<String> = table.columns.iter().map(|def| def.column.name.to_string()).collect();
        let columns = names.iter().map(|name| (name.clone(), name.clone())).collect();
        let name = TableName::new(old.as_str(), table.name.name.clone());
        views.push(View { name, table: table.name.clone(), side: Side::Old, columns });
        if let Some(swap) = swaps.iter().find(|swap| swap.table == table.name) {
            let name = TableName::new(new.as_str(), table.name.name.clone());
            views.push(View { name, table: table.name.clone(), side: Side::New, columns: new_shape(&names, swap) });
        }
    }
    if !wiring::writes_beside(spec) {
        for table in target.tables.iter().filter(|table| table.mode == WriteMode::Table) {
            let names = table.def.columns.iter().map(|def| def.column.name.to_string());
            let name = TableName::new(new.as_str(), table.schema.name.name.clone());
            let columns = names.map(|name| (name.clone(), name)).collect();
            views.push(View { name, table: table.schema.name.clone(), side: Side::New, columns });
        }
    }
    let mut seen = BTreeSet::new();
    let twice = views.iter().map(|view| view.name.clone()).find(|name| !seen.insert(name.clone()));
    match twice {
        Some(name) => Err(CliError::refused(format!("[views] would have two views {name}"))
            .hint("two tables of different schemas have one name; rename one with `to`, or leave [views] out")),
        None => Ok(views),
    }
}

fn new_shape(names: &[String], swap: &SwapTable) -> Vec<(String, String)> {
    let now = |name: &String| match swap.pairs.iter().find(|pair| pair.old == *name) {
        Some(pair) => (pair.shadow.clone(), pair.name.clone()),
        None => (name.clone(), name.clone()),
    };
    let added = swap.added.iter().map(|added| (added.name.clone(), added.name.clone()));
    names.iter().filter(|name| !swap.dropped.contains(name)).map(now).chain(added).collect()
}

/// The statements that make them, where nothing of them is there yet.
pub(crate) fn sql(spec: &Spec, catalog: &Catalog, target: &Target) -> Result<Vec<String>, CliError> {
    let views = planned(spec, catalog, target)?;
    let mut sql = Vec::new();
    let mut schemas = BTreeSet::new();
    for view in &views {
        if schemas.insert(view.name.schema.clone()) {
            sql.push(format!("CREATE SCHEMA {}", crossfade_postgres::quote_ident(&view.name.schema)?));
        }
        sql.push(view.sql()?);
    }
    Ok(sql)
}

/// Makes them once the sink has made what they show. What cannot be made is said once, and the run goes on.
pub(super) async fn install(shared: Arc<Shared>, catalog: Catalog, target: Target) {
    let mut closed = shared.closed();
    let work = async {
        let mut progress = shared.watcher.progress.subscribe();
        if progress.wait_for(Option::is_some).await.is_err() || shared.journal.migration().phase > Phase::Ready {
            return;
        }
        while let Err(error) = install_once(&shared.spec, &catalog, &target).await {
            if !error.passing {
                tracing::warn!("the views of [views] could not be made: {error}");
                return;
            }
            tokio::time::sleep(AGAIN_AFTER).await;
        }
    };
    tokio::select! {
        () = work => {}
        () = closed.wait() => {}
    }
}

async fn install_once(spec: &Spec, catalog: &Catalog, target: &Target) -> Result<(), CliError> {
    if !wiring::writes_beside(spec) {
        let (mut old, mut new) = registry::switch_ends(spec)?;
        if old.identity().await? != new.identity().await? {
            return Err(CliError::refused("[views] are for a migration within one database")
                .hint("leave [views] out: on two servers each has its own shape"));
        }
    }
    // Columns may have come since the plan was made: what is there now is what is shown.
    let now = wiring::source_inspect(spec)?.catalog(spec.source.tables()).await?;
    let catalog = if now.tables.is_empty() { catalog } else { &now };
    Ok(registry::swap_end(spec)?.make_views(&planned(spec, catalog, target)?).await?)
}
