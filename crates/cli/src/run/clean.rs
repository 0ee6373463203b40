//! `cleanup`: what a migration no longer needs goes, once it has been watched for long enough and somebody has said its name.
//!
//! ```text
//!  waited? ─▶ tried, and rolled back ─▶ export: keys, mapping, journal ─▶ journal: contracting ─▶ drop ─▶ journal: done
//!                                                                            └─ from here on there is no way back
//! ```
//! Until the journal says that it contracts everything can be taken back. After that it goes on to its end, however often
//! it is cut off.

use super::{
    plan_file::{PlanFile, secret_of},
    session::routes,
    switch::no_section,
};
use crate::{
    args::CleanupArgs,
    commands::folder,
    error::{CliError, Exit},
    output, registry,
    spec::{REVERSE_FOLDER, SinkSpec, Spec},
    wiring,
};
use crossfade_connector::{StoredMapping, WriteMode};
use crossfade_control::{Command, Journal, Phase, Span};
use crossfade_event::{Side, TableName};
use crossfade_log::embedded::Embedded;
use crossfade_postgres::swap::{Laid, SwapEnd};
use crossfade_state::WorkFolder;
use serde::Serialize;
use std::{
    fs::{self, File},
    io::{BufWriter, Write},
    path::PathBuf,
    time::Duration,
};

/// The folder of the export, in the migration's own.
const EXPORT: &str = "cleanup";

/// What was done, or would be.
#[derive(Debug, Default, Serialize)]
struct Report {
    /// Whether the migration is over.
    done: bool,
    /// Where the last export is.
    export: Option<PathBuf>,
    /// What was run, or would be.
    sql: Vec<String>,
}

/// Cleans up, or says why not.
pub(crate) async fn cleanup(spec: &Spec, args: &CleanupArgs) -> Result<(), CliError> {
    let section = spec.switch.as_ref().ok_or_else(|| no_section(spec))?;
    let owned = folder::taken(spec)?;
    let (journal, by) = (folder::journal(&owned)?, folder::by_hand());
    let phase = journal.migration().phase;
    if phase == Phase::Done {
        return output::line(format!("{} is done; nothing of it is left to clean up", spec.name));
    }
    if !wiring::writes_beside(spec) {
        return two_sides(spec, args, &journal, section.keep).await;
    }
    let mut end = registry::swap_end(spec)?;
    let mut report = Report::default();
    if phase != Phase::Contracting {
        may_begin(&journal)?;
        waited(spec, section.keep, args.dry_run).await?;
        let laid = switched(&mut end).await?;
        report.sql = sql_of(spec, &end, &laid, args.drop_mapping)?;
        if args.dry_run {
            return say(&report, args);
        }
        confirmed(spec, args)?;
        end.rehearse_clean(&laid).await?;
        report.export = Some(export(spec, Some(&mut end), Some(&laid), &journal).await?);
        for command in [Command::Soak, Command::Cleanup] {
            journal.command(command, &by).await?;
        }
    } else if !args.dry_run {
        confirmed(spec, args)?;
    }
    if args.dry_run {
        return say(&report, args);
    }
    end.clean().await?;
    if args.drop_mapping {
        for table in mappings(spec)? {
            end.drop_table(&table).await?;
        }
    }
    registry::forget_sink(spec).await?;
    journal.command(Command::CleanupDone, &by).await?;
    report.done = true;
    say(&report, args)
}

/// Between two sides: nothing is read any more, and what was kept for it goes. The old tables stay, behind their fence, and
/// so do the pairs of keys that were drawn for rows which were born on the new side.
async fn two_sides(
    spec: &Spec,
    args: &CleanupArgs,
    journal: &Journal<Embedded>,
    keep: crate::spec::Span,
) -> Result<(), CliError> {
    let by = folder::by_hand();
    let reverse = spec.base().join(REVERSE_FOLDER);
    // Whoever runs the way back must have ended.
    let _reverse = reverse.is_dir().then(|| WorkFolder::lock(&reverse)).transpose()?;
    let mut end = match &spec.sink {
        SinkSpec::Sqlite(_) => None,
        _ => Some(registry::swap_end(spec)?),
    };
    let mut report = Report::default();
    if journal.migration().phase != Phase::Contracting {
        may_begin(journal)?;
        waited(spec, keep, args.dry_run).await?;
        report.sql = words_of(spec, end.is_some());
        if args.drop_mapping {
            for table in mappings(spec)? {
                report.sql.push(format!("DROP TABLE IF EXISTS {}", crossfade_postgres::quote_table(&table)?));
            }
        }
    }
    if args.dry_run {
        return say(&report, args);
    }
    confirmed(spec, args)?;
    if journal.migration().phase != Phase::Contracting {
        report.export = Some(export(spec, end.as_mut(), None, journal).await?);
        for command in [Command::Soak, Command::Cleanup] {
            journal.command(command, &by).await?;
        }
    }
    wiring::release_source(spec, &spec.base()).await?;
    let (_, mut new) = registry::switch_ends(spec)?;
    new.drop_reverse().await?;
    new.unwatch().await?;
    registry::written_side(&super::back::planned(spec).await?)?.forget().await?;
    if args.drop_mapping {
        match &mut end {
            Some(end) => {
                for table in mappings(spec)? {
                    end.drop_table(&table).await?;
                }
            }
            None => registry::drop_mapping(spec).await?,
        }
    }
    registry::forget_sink(spec).await?;
    journal.command(Command::CleanupDone, &by).await?;
    report.done = true;
    say(&report, args)
}

/// What goes on either side, for people.
fn words_of(spec: &Spec, of_servers: bool) -> Vec<String> {
    let slot = format!("crossfade_{}", spec.name.as_str().replace('-', "_"));
    match of_servers {
        true => vec![
            format!("-- old side: drop the slot and the publication {slot}"),
            format!("-- new side: drop the slot and the publication {slot}_reverse, and the migration's records"),
        ],
        false => vec![
            format!(
                "-- old file: drop the triggers and the record of changes _{slot}_…, and the records of the way back"
            ),
            "-- new file: drop the triggers and the record of changes of the way back, and the migration's records"
                .to_owned(),
        ],
    }
}

fn may_begin(journal: &Journal<Embedded>) -> Result<(), CliError> {
    let migration = journal.migration();
    if migration.phase.is_switching() || migration.authority.to_route {
        return Err(CliError::refused("a switch of the migration is not completed")
            .hint("`crossfade cutover` again completes it"));
    }
    if !migration.phase.is_over() || migration.authority.side != Side::New {
        return Err(CliError::refused(format!(
            "there is nothing to clean up while the migration is {}",
            migration.phase
        ))
        .hint("it comes after a cutover; `crossfade rollback --wipe` takes away what was made before one"));
    }
    Ok(())
}

async fn waited(spec: &Spec, keep: crate::spec::Span, dry_run: bool) -> Result<(), CliError> {
    let (_, mut new) = registry::switch_ends(spec)?;
    let age = new.age().await?.ok_or_else(|| {
        CliError::new(Exit::Lost, "the row of crossfade.authority is missing")
            .hint("put it back as `crossfade status` says")
    })?;
    if age >= keep.0 {
        return Ok(());
    }
    let left = Span(Duration::from_secs((keep.0 - age).as_secs() + 1));
    let said = format!("the way back is kept open for {} after a switch, and {left} of it are left", Span(keep.0));
    if dry_run {
        tracing::warn!("{said}");
        return Ok(());
    }
    Err(CliError::refused(said).hint("wait for it, or write a shorter `keep` into [switch]"))
}

async fn switched(end: &mut SwapEnd) -> Result<Laid, CliError> {
    let stored = end.stored().await?;
    stored.map(|(_, laid)| laid).ok_or_else(|| {
        CliError::new(Exit::Lost, "crossfade.swaps does not know of the switch any more")
            .hint("put the row back from a copy of the database")
    })
}

fn confirmed(spec: &Spec, args: &CleanupArgs) -> Result<(), CliError> {
    match args.confirm.as_deref() {
        Some(name) if name == spec.name.as_str() => Ok(()),
        _ => Err(CliError::refused(format!("what {} has kept of the old side would be dropped for ever", spec.name))
            .hint(format!(
                "`crossfade cleanup {} --dry-run` shows what; with --confirm {} it is done",
                spec.file.display(),
                spec.name
            ))),
    }
}

fn sql_of(spec: &Spec, end: &SwapEnd, laid: &Laid, drop_mapping: bool) -> Result<Vec<String>, CliError> {
    let mut sql = vec![end.clean_sql(laid)?];
    if drop_mapping {
        for table in mappings(spec)? {
            sql.push(format!("DROP TABLE IF EXISTS {}", crossfade_postgres::quote_table(&table)?));
        }
    }
    Ok(sql)
}

/// The mapping tables.
fn mappings(spec: &Spec) -> Result<Vec<TableName>, CliError> {
    let plan = PlanFile::read(&spec.base())?.ok_or_else(|| CliError::failed("the plan has gone"))?;
    let routes = routes(spec, &plan, secret_of(&spec.base())?, 0)?;
    let mapping = routes.target().tables.iter().filter(|table| table.mode == WriteMode::InsertOnce);
    Ok(mapping.map(|table| table.schema.name.clone()).collect())
}

/// Old keys and new ones, the mapping, and the journal: what support staff may ask for after months.
async fn export(
    spec: &Spec,
    mut end: Option<&mut SwapEnd>,
    laid: Option<&Laid>,
    journal: &Journal<Embedded>,
) -> Result<PathBuf, CliError> {
    let folder = spec.base().join(EXPORT);
    let doing = format!("writing the export into {}", folder.display());
    let trouble = |error: &std::io::Error| CliError::io(doing.clone(), error);
    fs::create_dir_all(&folder).map_err(|error| trouble(&error))?;
    let begin = |name: &str| File::create(folder.join(name)).map(BufWriter::new).map_err(|error| trouble(&error));
    let finish = |mut file: BufWriter<File>| {
        let synced = file.flush().and_then(|()| file.get_ref().sync_all());
        synced.map_err(|error| trouble(&error))
    };
    if let (Some(laid), Some(end)) = (laid, end.as_deref_mut()) {
        let mut keys = begin("keys.csv")?;
        keys.write_all(b"table_name,old_id,new_id\n").map_err(|error| trouble(&error))?;
        end.export_keys(laid, &mut keys).await?;
        finish(keys)?;
    }
    let mappings = mappings(spec)?;
    if !mappings.is_empty() {
        let mut file = begin("mapping.csv")?;
        match end {
            Some(end) => {
                for table in &mappings {
                    end.export_table(table, &mut file).await?;
                }
            }
            None => pairs(spec, &mut file).await.map_err(|error| error.of(&doing))?,
        }
        finish(file)?;
    }
    let mut lines = begin("journal.jsonl")?;
    for record in journal.records()? {
        let line = serde_json::to_string(&record)
            .map_err(|error| CliError::failed(format!("a line of the journal cannot be written: {error}")))?;
        writeln!(lines, "{line}").map_err(|error| trouble(&error))?;
    }
    finish(lines)?;
    let synced = File::open(&folder).and_then(|folder| folder.sync_all());
    synced.map_err(|error| trouble(&error))?;
    Ok(folder)
}

/// So many pairs are read at once.
const PAIRS: u32 = 20_000;

/// The pairs of a mapping that is asked page by page.
async fn pairs(spec: &Spec, file: &mut BufWriter<File>) -> Result<(), Unwritten> {
    let mut sink = registry::AnySink::for_looking(spec)?;
    let quoted = |text: &str| match text.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.to_owned(),
    };
    file.write_all(b"table_name,old_id,new_id,migrated_at\n")?;
    let mut after = None;
    loop {
        let page = sink.mapping_page(None, after.as_ref(), PAIRS).await.map_err(CliError::from)?;
        if page.is_empty() {
            return Ok(());
        }
        for entry in &page {
            let cells = [&entry.table_name, &entry.old_id, &entry.new_id, &entry.migrated_at].map(|cell| quoted(cell));
            writeln!(file, "{}", cells.join(","))?;
        }
        after = page.into_iter().next_back();
    }
}

/// Why the pairs are not in their file.
enum Unwritten {
    Asked(CliError),
    Disk(std::io::Error),
}

impl Unwritten {
    fn of(self, doing: &str) -> CliError {
        match self {
            Self::Asked(error) => error,
            Self::Disk(error) => CliError::io(doing.to_owned(), &error),
        }
    }
}

impl From<CliError> for Unwritten {
    fn from(error: CliError) -> Self {
        Self::Asked(error)
    }
}

impl From<std::io::Error> for Unwritten {
    fn from(error: std::io::Error) -> Self {
        Self::Disk(error)
    }
}

fn say(report: &Report, args: &CleanupArgs) -> Result<(), CliError> {
    if args.json {
        return output::json(report);
    }
    for sql in &report.sql {
        output::line(sql.trim())?;
    }
    if let Some(folder) = &report.export {
        output::line(format!("keys, mapping and journal are in {}", folder.display()))?;
    }
    match report.done {
        true => output::line("the migration is done"),
        false => output::line("nothing has been changed"),
    }
}
