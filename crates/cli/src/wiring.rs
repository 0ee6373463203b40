//! From a spec to the parts that it names: what `run`, `replay`, `verify` and the commands that only look have in
//! common. Nothing here moves a row.

use crate::{
    commands::Finding,
    error::CliError,
    event_log::AnyLog,
    registry::{self, AnyInspect, AnySink, AnySource},
    run::{LatencyWay, PlanFile, latency_way, secret_of},
    spec::{DualLayout, Existing, SinkSpec, SourceSpec, Spec, WriteRecords, WriteTo},
};
use crossfade_connector::{Inspect, Query, Refusal, Target, Verdict};
use crossfade_event::{
    Cell, TableName, Value,
    catalog::{Catalog, Dialect},
    codec,
};
use crossfade_pipeline::Routes;
use crossfade_transform::{Fidelity, Note, Plan, PlanOptions, WriteKind, Writing, plan};
use std::{collections::BTreeSet, path::Path, sync::Arc};

/// The source, not connected yet.
pub(crate) fn source(spec: &Spec, folder: &Path) -> Result<AnySource, CliError> {
    AnySource::new(spec, folder, needs_text(spec)?)
}

/// The sink, not connected yet.
pub(crate) fn sink(spec: &Spec) -> Result<AnySink, CliError> {
    AnySink::new(spec)
}

/// Asks the source, in the form in which its stream is read.
pub(crate) fn source_inspect(spec: &Spec) -> Result<AnyInspect, CliError> {
    AnyInspect::of_source(spec, needs_text(spec)?)
}

/// Asks the sink.
pub(crate) fn sink_inspect(spec: &Spec) -> Result<AnyInspect, CliError> {
    AnyInspect::of_sink(spec)
}

/// Whether the plan needs a column in its text form, for only its own database can read its binary one.
fn needs_text(spec: &Spec) -> Result<bool, CliError> {
    if let SinkSpec::Kafka(_) = &spec.sink {
        return Ok(true);
    }
    let Some(file) = PlanFile::read(&spec.base())? else { return Ok(false) };
    plan_needs_text(spec, &file.catalog)
}

/// The same, of the plan that a catalog would make.
pub(crate) fn plan_needs_text(spec: &Spec, catalog: &Catalog) -> Result<bool, CliError> {
    // No key is made here: any secret that is long enough will do.
    let planned = plan(catalog, &spec.rules, &plan_options(spec, vec![0; 32]))?;
    Ok(!planned.text_columns().is_empty())
}

/// What the plan must know beside rules and catalog. The spec's own secret counts before the folder's.
pub(crate) fn plan_options(spec: &Spec, secret: Vec<u8>) -> PlanOptions {
    let secret = spec.secret.as_ref().map_or(secret, |own| own.expose().as_bytes().to_vec());
    let reverse = spec.reverse.as_ref().map(|reverse| reverse.forward.clone());
    let (schema, dialect, write) = match &spec.sink {
        SinkSpec::Postgres(keys) => (keys.schema.clone(), Dialect::Postgres, keys.write),
        SinkSpec::Sqlite(keys) => (None, Dialect::Sqlite, keys.write),
        SinkSpec::Kafka(keys) => {
            let write = match keys.write {
                WriteRecords::ShadowTables => WriteKind::ShadowTables,
                WriteRecords::DualRecords => WriteKind::DualRecords,
            };
            return PlanOptions {
                schema: keys.schema.clone(),
                dialect: Dialect::Postgres,
                write,
                secret,
                records: true,
                reverse,
                adopted: Arc::default(),
            };
        }
    };
    let write = match write {
        WriteTo::ShadowTables => WriteKind::ShadowTables,
        WriteTo::ShadowColumns => WriteKind::ShadowColumns,
    };
    PlanOptions { schema, dialect, write, secret, records: false, reverse, adopted: Arc::default() }
}

/// Whether a table of the source is itself written: new columns beside the old ones.
pub(crate) fn writes_beside(spec: &Spec) -> bool {
    let usual = matches!(&spec.sink, SinkSpec::Postgres(keys) if keys.write == WriteTo::ShadowColumns);
    usual || spec.rules.table.iter().any(|table| table.write == Some(WriteKind::ShadowColumns))
}

/// Whether tables that hold somebody else's rows may be written.
pub(crate) fn into_existing(spec: &Spec) -> bool {
    let existing = match &spec.sink {
        SinkSpec::Postgres(keys) => keys.existing,
        SinkSpec::Sqlite(keys) => keys.existing,
        SinkSpec::Kafka(_) => Existing::Refuse,
    };
    existing == Existing::Merge
}

/// What of the target may not change while a migration runs. Hosts and passwords may: the target's own word says
/// whether it is still the same one.
pub(crate) fn target_words(spec: &Spec) -> String {
    let secret = spec.secret.as_ref().map(|secret| crossfade_event::SourceId::of(secret.expose()).0);
    match &spec.sink {
        SinkSpec::Postgres(keys) => format!("postgres {:?} {:?} {secret:?}", keys.schema, keys.write),
        SinkSpec::Sqlite(keys) => format!("sqlite {:?} {:?} {secret:?}", keys.path.file_name(), keys.write),
        SinkSpec::Kafka(keys) => format!(
            "kafka {:?} {:?} {:?} {:?} {:?} {:?}{} {secret:?}",
            keys.topic_prefix,
            keys.schema,
            keys.format,
            keys.schemas,
            keys.transactions,
            keys.decimal,
            dual_words(spec, keys.write, keys.layout)
        ),
    }
}

/// Nothing where no table is told in both key versions, so that migrations from before are what they were.
fn dual_words(spec: &Spec, write: WriteRecords, layout: DualLayout) -> String {
    let one = spec.rules.table.iter().any(|table| table.write == Some(WriteKind::DualRecords));
    if write == WriteRecords::DualRecords || one { format!(" {write:?} {layout:?}") } else { String::new() }
}

/// Takes away what a migration made in its source: triggers, slot, publication.
pub(crate) async fn release_source(spec: &Spec, _folder: &Path) -> Result<(), CliError> {
    registry::release(spec).await
}

/// The catalog, the plan, and the target that it makes.
pub(crate) struct Planned {
    /// The source's tables.
    pub(crate) catalog: Catalog,
    /// What becomes of them.
    pub(crate) plan: Arc<Plan>,
    /// What the sink must make.
    pub(crate) target: Target,
    /// What has been lost of the values before they come here, and what the target has no form for.
    pub(crate) losses: Vec<Note>,
}

/// Plans from the source as it is now. Writes nothing.
pub(crate) async fn plan_from_source(spec: &Spec) -> Result<Planned, CliError> {
    let mut source = source_inspect(spec)?;
    let catalog = source.catalog(spec.source.tables()).await?;
    let mut planned = planned(spec, catalog)?;
    planned.losses = source.losses();
    planned.losses.extend(registry::unsayable(spec, &planned.target)?);
    Ok(planned)
}

/// The plan that the migration was begun with, if it was; looks at no database.
pub(crate) fn plan_from_folder(spec: &Spec) -> Result<Option<Planned>, CliError> {
    let folder = spec.base();
    PlanFile::read(&folder)?.map(|file| planned(spec, file.catalog)).transpose()
}

fn planned(spec: &Spec, catalog: Catalog) -> Result<Planned, CliError> {
    // A plan that is only looked at draws no secret: its keys are never made.
    let folder = spec.base();
    let secret = if folder.join("secret").exists() { secret_of(&folder)? } else { vec![0; 32] };
    let options = Arc::new(plan_options(spec, secret));
    let rules = Arc::new(spec.rules.clone());
    let routes = Routes::new(catalog.clone(), rules, options, spec.name.as_str(), 0, into_existing(spec))?;
    Ok(Planned { catalog, plan: routes.plan().clone(), target: routes.target().clone(), losses: Vec::new() })
}

/// What a preflight found.
pub(crate) struct Preflight {
    /// How many tables can be moved.
    pub(crate) tables: usize,
    /// What is in the way, and what is worth knowing.
    pub(crate) findings: Vec<Finding>,
}

/// Checks both ends, the log and the plan. Writes nothing. An end that cannot be reached, or a rule that names what is not
/// there, is an error; everything else is a finding.
pub(crate) async fn preflight(spec: &Spec) -> Result<Preflight, CliError> {
    let mut findings = Vec::new();
    findings.extend(registry::preflight_source(spec).await?.into_iter().map(|refusal| finding("source", refusal)));
    let planned = plan_from_source(spec).await?;
    findings.extend(
        registry::preflight_sink(spec, &planned.target).await?.into_iter().map(|refusal| finding("sink", refusal)),
    );
    findings.extend(AnyLog::preflight(spec).await?);
    let inexact = planned.plan.notes().iter().filter(|note| note.fidelity == Fidelity::Inexact);
    for note in inexact.chain(planned.losses.iter().filter(|note| note.fidelity != Fidelity::Advice)) {
        let column = note.column.as_ref().map(|column| format!(" column {column}")).unwrap_or_default();
        findings.push(Finding {
            end: "spec",
            object: format!("{}{column}", note.table),
            problem: note.text.clone(),
            remedy: "cast it, or drop it, where that matters".to_owned(),
            fatal: false,
        });
    }
    // Not the journal: a run opens it before it plans, and would then find nothing in the way.
    let begun = PlanFile::read(&spec.base())?.is_some();
    if !begun && !into_existing(spec) {
        findings.extend(tables_with_rows(spec, &planned.plan).await?);
    }
    findings.extend(unmet(spec).await?);
    if spec.gates.latency.is_some() {
        findings.extend(latency_by_probe(spec).await?);
    }
    let tables = planned.plan.tables().iter().filter(|table| table.source.is_some()).count();
    Ok(Preflight { tables, findings })
}

/// Where the gate on latency cannot look at the application's own statements.
async fn latency_by_probe(spec: &Spec) -> Result<Option<Finding>, CliError> {
    Ok(match latency_way(&mut source_inspect(spec)?).await? {
        LatencyWay::Statements(_) => None,
        LatencyWay::Probe(why, remedy) => Some(Finding {
            end: "source",
            object: "the gate latency".to_owned(),
            problem: format!("{why}: it judges by a question of our own, not by the application's statements"),
            remedy: remedy.to_owned(),
            fatal: false,
        }),
    })
}

/// The spec's own requirements that do not hold in the source.
async fn unmet(spec: &Spec) -> Result<Vec<Finding>, CliError> {
    let mut found = Vec::new();
    for asked in &spec.require {
        let named = |error: CliError| {
            let message = format!("[[require]] that = {:?}: {}", asked.that, error.message);
            CliError { message, ..error }
        };
        let answer = source_inspect(spec)?.query(&asked.counting(), &[], 1 << 16).await;
        let answer = answer.map_err(|failure| named(failure.into()))?;
        let count = answer.rows.first().zip(answer.columns.first()).and_then(|(row, column)| match row.cell(0)? {
            Cell::Bytes(bytes) => codec::decode(&column.type_, bytes).ok(),
            _ => None,
        });
        let Some(Value::Int(rows)) = count else {
            return Err(named(CliError::failed("the source did not count the rows of its question")));
        };
        if rows > 0 {
            found.push(Finding {
                end: "source",
                object: format!("required that {}", asked.that),
                problem: format!("it is not so: {rows} rows say otherwise"),
                remedy: format!("mend what this gives: {}", asked.no_rows.trim()),
                fatal: true,
            });
        }
    }
    Ok(found)
}

/// Checks what tables that come while a migration runs need at both ends, and refuses what is in the way.
pub(crate) async fn preflight_new(
    spec: &Spec,
    new: &[TableName],
    before: &Target,
    after: &Target,
) -> Result<(), CliError> {
    let mut findings: Vec<Finding> = registry::preflight_source(spec)
        .await?
        .into_iter()
        .filter(|refusal| new.iter().any(|name| name.to_string() == refusal.object))
        .map(|refusal| finding("source", refusal))
        .collect();
    let mut target = after.clone();
    target.tables.retain(|table| !before.tables.iter().any(|old| old.schema.id == table.schema.id));
    findings.extend(registry::preflight_sink(spec, &target).await?.into_iter().map(|refusal| finding("sink", refusal)));
    if !into_existing(spec) && !matches!(spec.sink, SinkSpec::Kafka(_)) {
        let ours = target.tables.iter().filter(|table| table.mode == crossfade_connector::WriteMode::Table);
        let names: Vec<&TableName> = ours.map(|table| &table.schema.name).collect();
        findings.extend(those_with_rows(spec, &names).await?);
    }
    match findings.into_iter().find(|finding| finding.fatal) {
        None => Ok(()),
        Some(first) => {
            let said = format!("{} {}: {}", first.end, first.object, first.problem);
            Err(CliError::refused(said).hint(first.remedy))
        }
    }
}

fn finding(end: &'static str, refusal: Refusal) -> Finding {
    let Refusal { object, problem, remedy, fatal } = refusal;
    Finding { end, object, problem, remedy, fatal }
}

/// Target tables that hold rows already: nothing has been written by us yet, so they are somebody else's.
async fn tables_with_rows(spec: &Spec, plan: &Plan) -> Result<Vec<Finding>, CliError> {
    if let SinkSpec::Kafka(_) = &spec.sink {
        // The sink's own preflight has looked into the topics.
        return Ok(Vec::new());
    }
    if let SinkSpec::Sqlite(keys) = &spec.sink
        && !keys.path.exists()
    {
        return Ok(Vec::new());
    }
    let ours: Vec<&TableName> =
        plan.tables().iter().filter(|table| table.write == Writing::Table).map(|table| &table.schema.name).collect();
    those_with_rows(spec, &ours).await
}

async fn those_with_rows(spec: &Spec, ours: &[&TableName]) -> Result<Vec<Finding>, CliError> {
    let mut inspect = sink_inspect(spec)?;
    let schemas: BTreeSet<&str> = ours.iter().map(|name| &*name.schema).collect();
    let mut there: BTreeSet<TableName> = BTreeSet::new();
    for schema in schemas {
        match inspect.catalog(&[format!("{schema}.*")]).await {
            Ok(catalog) => there.extend(catalog.tables.into_iter().map(|table| table.name)),
            // The schema has no tables yet.
            Err(failure) if matches!(failure.verdict, Verdict::Misconfigured { .. }) => {}
            Err(failure) => return Err(failure.into()),
        }
    }
    let mut findings = Vec::new();
    for name in ours.iter().copied().filter(|name| there.contains(*name)) {
        let rows = inspect.count(name).await?;
        if rows > 0 {
            findings.push(Finding {
                end: "sink",
                object: name.to_string(),
                problem: format!("it holds {rows} rows that are not ours"),
                remedy: "empty it, or give [sink] another schema or file, or write existing = \"merge\" (what is overwritten is kept for `rollback --undo`)".to_owned(),
                fatal: true,
            });
        }
    }
    Ok(findings)
}

/// The dialect of a spec's source.
pub(crate) fn source_kind(spec: &Spec) -> &'static str {
    match &spec.source {
        SourceSpec::Postgres(_) => "postgres",
        SourceSpec::Sqlite(_) => "sqlite",
        SourceSpec::Debezium(_) => "debezium",
    }
}

/// The dialect of a spec's sink.
pub(crate) fn sink_kind(spec: &Spec) -> &'static str {
    match &spec.sink {
        SinkSpec::Postgres(_) => "postgres",
        SinkSpec::Sqlite(_) => "sqlite",
        SinkSpec::Kafka(_) => "kafka",
    }
}
