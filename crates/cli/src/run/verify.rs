//! `verify`: both sides at one position.

use super::{
    plan_file::{PlanFile, secret_of, write_whole},
    queries,
    repair::{Repaired, repair},
    roles,
    session::routes,
    upkeep::{is_followed, while_followed},
};
use crate::{
    args::VerifyArgs,
    commands::{control, folder},
    error::{CliError, Exit},
    output::{self, Table},
    page::{Page, key_of},
    pairs::PairsFile,
    registry::{AnyInspect, AnySink},
    spec::Spec,
    wiring,
};
use crossfade_connector::{Failure, Inspect, Sink};
use crossfade_dualread::pairs::{PairReport, Reached};
use crossfade_event::{
    Position, SchemaVersion, TableId, TableName, TableSchema,
    catalog::{Catalog, RelationKind, TableDef},
};
use crossfade_pipeline::Routes;
use crossfade_transform::{Back, BackHow, Note, Plan, Writing};
use crossfade_verify::{CheckKind, Options, Report, SinkPosition, Subject, TableReport, verify_rows};
use serde::Serialize;
use std::{collections::BTreeMap, path::Path, sync::Arc};

/// How often a repair looks again at what it left to the stream.
const REPAIR_ROUNDS: usize = 5;

/// How far the sink has come, by its own word.
pub(super) struct Asking(pub(super) AnySink);

impl Reached for Asking {
    async fn reached(&mut self) -> Result<Option<Position>, Failure> {
        self.position().await
    }
}

impl SinkPosition for Asking {
    async fn position(&mut self) -> Result<Option<Position>, Failure> {
        Ok(self.0.progress().await?.and_then(|progress| progress.position))
    }
}

/// Verifies rows and query pairs. Exit code 4 when there are differences, else 1 when a pair could not be judged, else 3
/// when a latency budget is missed.
pub(crate) async fn verify(spec: &Spec, args: &VerifyArgs) -> Result<(), CliError> {
    if args.repair {
        roles::needs_deliver(spec, "verify --repair")?;
    }
    refuse_inexact(spec)?;
    let pairs = args.queries.as_deref().map(PairsFile::load).transpose()?;
    let folder = folder::base(spec)?;
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
    let found = while_followed(spec, args.json, Box::pin(look(spec, args, pairs.as_ref()))).await?;
    if let Some(file) = &args.report {
        found.write_page(spec, file)?;
    }
    if args.json {
        output::json(&found.answer(caught_up_first))?;
    } else {
        output::print(&found.render())?;
    }
    found.verdict()
}

/// All that was found.
struct Found {
    compared: Option<Compared>,
    queries: Option<Vec<PairReport>>,
}

async fn look(spec: &Spec, args: &VerifyArgs, pairs: Option<&PairsFile>) -> Result<Found, CliError> {
    let compared = match args.no_rows {
        true => None,
        false => Some(Box::pin(compare_and_note(spec, args)).await?),
    };
    let queries = match pairs {
        Some(pairs) => Some(Box::pin(queries::ask(spec, pairs, args.share.zip(args.long))).await?),
        None => None,
    };
    Ok(Found { compared, queries })
}

impl Found {
    fn answer(&self, caught_up_first: bool) -> Answer<'_> {
        let of_rows = self.compared.as_ref();
        Answer {
            report: of_rows.map(|compared| &compared.report),
            dropped: of_rows.map(|compared| compared.dropped.as_slice()).unwrap_or_default(),
            repaired: of_rows.and_then(|compared| compared.repaired),
            lossy: of_rows.map(|compared| compared.lossy.as_slice()).unwrap_or_default(),
            queries: self.queries.as_deref(),
            caught_up_first,
            not_carried: of_rows.and_then(|compared| compared.not_carried.as_deref()),
        }
    }

    fn render(&self) -> String {
        let rows = self.compared.as_ref().map(render).unwrap_or_default();
        let queries = self.queries.as_deref().map(queries::render).unwrap_or_default();
        let between = if rows.is_empty() || queries.is_empty() { "" } else { "\n" };
        format!("{rows}{between}{queries}")
    }

    fn write_page(&self, spec: &Spec, file: &Path) -> Result<(), CliError> {
        let page = Page {
            name: spec.name.as_str(),
            at: format!("{:.0}", jiff::Timestamp::now()),
            rows: self.compared.as_ref().map(|compared| &compared.report),
            notes: &self.compared.as_ref().map(Compared::notes).unwrap_or_default(),
            queries: self.queries.as_deref(),
        };
        let has_folder = file.parent().is_some_and(|folder| !folder.as_os_str().is_empty());
        let file = if has_folder { file.to_owned() } else { Path::new(".").join(file) };
        write_whole(&file, page.render().as_bytes())
    }

    fn verdict(&self) -> Result<(), CliError> {
        // A row that the transforms refuse is missing in the target, whatever the reason.
        let rows = self.compared.as_ref().map_or(0, |found| found.report.differences + found.report.refused_rows);
        let rows = match rows {
            0 => None,
            1 => Some("1 row differs or is refused".to_owned()),
            many => Some(format!("{many} rows differ or are refused")),
        };
        let broken = match self.compared.as_ref().map_or(0, |found| found.report.broken()) {
            0 => None,
            broken => Some(format!("{broken} references or new keys are broken in the target")),
        };
        let named = |is: fn(&PairReport) -> bool, what: &str| {
            let of = self.queries.iter().flatten().filter(|report| is(report)).map(|report| report.name.as_str());
            let names: Vec<&str> = of.collect();
            (!names.is_empty()).then(|| format!("{what}: {}", names.join(", ")))
        };
        let differ = named(PairReport::differs, "queries that are answered differently");
        let unjudged = named(|report| report.unjudged > 0, "queries whose answers changed too fast to be judged");
        let slow = named(PairReport::is_slow, "queries that are slower on the target than allowed");
        if let Some(said) = rows.into_iter().chain(broken).chain(differ).reduce(|one, other| format!("{one}; {other}"))
        {
            return Err(CliError::new(Exit::Differences, said));
        }
        if let Some(said) = unjudged {
            return Err(
                CliError::failed(said).hint("ask for what does not change all the time, such as rows of yesterday")
            );
        }
        if let Some(rows) = self.compared.as_ref().map(|found| found.report.unjudged_rows).filter(|rows| *rows > 0) {
            return Err(CliError::failed(format!("rows that could not be judged: {}", output::count(rows)))
                .hint("they changed whenever they were looked at; verify again when there are fewer writes to them"));
        }
        slow.map_or(Ok(()), |said| Err(CliError::refused(said)))
    }
}

/// On the way back only what comes back as it is can be compared row by row.
fn refuse_inexact(spec: &Spec) -> Result<(), CliError> {
    match spec.reverse.as_ref().and_then(|reverse| first_inexact(&reverse.back)) {
        None => Ok(()),
        Some(what) => Err(CliError::not_built(&format!(
            "verify --reverse of {what}, which does not come back as it stands on the new side,"
        ))),
    }
}

fn first_inexact(back: &Back) -> Option<String> {
    let mut columns = back.tables.iter().flat_map(|table| table.columns.iter().map(move |column| (table, column)));
    let (table, column) = columns.find(|(_, column)| matches!(column.how, BackHow::OldKey | BackHow::WhereChanged))?;
    Some(format!("{}.{}", table.to, column.column))
}

/// Why both sides cannot be compared over a way back; `None` where they can.
pub(super) fn incomparable(back: &Back) -> Option<String> {
    first_inexact(back).map(|what| format!("{what} does not come back as it stands on the new side"))
}

#[derive(Serialize)]
struct Answer<'a> {
    /// Nothing where only queries were asked.
    #[serde(flatten)]
    report: Option<&'a Report>,
    /// Planned tables that the source no longer has.
    dropped: &'a [Dropped],
    /// Columns of which something was lost before it came here: both sides agree, and the database behind may not.
    lossy: &'a [Note],
    /// What was written, where that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    repaired: Option<Repaired>,
    /// Where some were asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    queries: Option<&'a [PairReport]>,
    /// Nobody ran the migration, so this command did until both sides were compared.
    caught_up_first: bool,
    /// Why a switch cannot go by it, where there is to be one.
    #[serde(skip_serializing_if = "Option::is_none")]
    not_carried: Option<&'a str>,
}

/// A planned table that the source no longer has. The target keeps it: a drop does not come with the stream.
#[derive(Debug, Serialize)]
pub(super) struct Dropped {
    pub(super) table: String,
    pub(super) target: String,
    /// What is left of it in the target: each row is a difference.
    pub(super) rows: u64,
}

/// What was found.
struct Compared {
    report: Report,
    dropped: Vec<Dropped>,
    lossy: Vec<Note>,
    /// Where that was asked for.
    repaired: Option<Repaired>,
    /// Where the sink stood when the comparison began, and by what the target tells who else writes it.
    begun: Option<serde_json::Value>,
    /// Why a switch cannot be based on it, where that was tried.
    not_carried: Option<String>,
}

/// Compares both sides, and has the process that runs the migration note what came of it: a switch asks for the proof.
async fn compare_and_note(spec: &Spec, args: &VerifyArgs) -> Result<Compared, CliError> {
    let mut compared = compare(spec, args).await?;
    let report = &compared.report;
    let body = serde_json::json!({
        "begun": compared.begun,
        "who": folder::by_hand().who,
        "position": report.position,
        "rows": report.tables.iter().map(|table| table.target_rows).sum::<u64>(),
        "differences": report.wrong(),
    });
    // Where something could not be judged there is no proof, and none is voided.
    let is_said = report.unjudged_rows == 0 || report.wrong() > 0;
    if spec.part.is_none()
        && is_said
        && let Err(error) = control::ask(spec, hyper::Method::POST, "/command/verified", Some(body)).await
    {
        tracing::info!("the comparison is not noted for a switch: {error}");
        compared.not_carried = spec.switch.is_some().then_some(error.message);
    }
    Ok(compared)
}

/// Where the sink stands before anything is read: what comes later is not proven by the comparison that begins.
async fn begins(spec: &Spec) -> (Option<serde_json::Value>, Option<String>) {
    if spec.part.is_some() {
        return (None, None);
    }
    let asked = control::ask(spec, hyper::Method::POST, "/command/verify-begins", Some(serde_json::json!({}))).await;
    match asked {
        Ok(begun) => (begun, None),
        Err(error) => {
            tracing::info!("whether anybody else writes the target is not watched: {error}");
            (None, spec.switch.is_some().then_some(error.message))
        }
    }
}

/// Compares both sides, while somebody brings the target up to the source.
async fn compare(spec: &Spec, args: &VerifyArgs) -> Result<Compared, CliError> {
    let both = Both::look(spec).await?;
    let whole = both.whole(spec)?;
    let Both { mut source, mut target, shape, dropped, .. } = both;
    let lossy = source.losses();
    let subject = shape.subject();
    let options = Options { samples: args.limit, show_keys: args.show_keys, ..Options::default() };
    let mut asking = Asking(AnySink::for_looking(spec)?);
    let (mut begun, mut not_carried) = begins(spec).await;
    let (mut report, mut differences) = verify_rows(&subject, &mut source, &mut target, &mut asking, &options).await?;
    let mut repaired = args.repair.then(Repaired::default);
    // A row that changes all the time may be left to the stream again and again.
    for _ in 0..REPAIR_ROUNDS {
        let Some(sum) = repaired.as_mut().filter(|_| report.differences > 0) else { break };
        let round = repair(spec, &subject, &mut source, &mut target, differences).await?;
        sum.written += round.written;
        sum.deleted += round.deleted;
        (sum.refused, sum.left_alone) = (round.refused, round.left_alone);
        // What was repaired is no proof: a comparison that begins after it is.
        (begun, not_carried) = begins(spec).await;
        (report, differences) = verify_rows(&subject, &mut source, &mut target, &mut asking, &options).await?;
        if round.written + round.deleted == round.refused && report.differences == round.refused + round.left_alone {
            break;
        }
    }
    let dropped = match &whole {
        None => Vec::new(),
        Some(whole) => left_of(&dropped, whole.plan(), spec.source.by_root(), &mut target, &mut report).await?,
    };
    Ok(Compared { report, dropped, lossy, repaired, begun, not_carried })
}

/// Both ends as they are now, and the plan that leads from the one to the other.
pub(super) struct Both {
    pub(super) source: AnyInspect,
    pub(super) target: AnyInspect,
    pub(super) shape: Shape,
    pub(super) dropped: Vec<TableName>,
    plan: PlanFile,
    secret: Vec<u8>,
}

/// The source's tables as they are now, and what the plan makes of them.
pub(super) struct Shape {
    bound: Routes,
    source_tables: Vec<Arc<TableSchema>>,
    renamed: BTreeMap<TableName, TableName>,
}

impl Shape {
    pub(super) fn subject(&self) -> Subject<'_> {
        Subject { plan: self.bound.plan(), source_tables: self.source_tables.clone(), renamed: self.renamed.clone() }
    }

    /// The tables of the target that hold rows of ours alone.
    pub(super) fn target_tables(&self) -> Vec<TableName> {
        let ours = self.bound.plan().tables().iter();
        ours.filter(|table| matches!(table.write, Writing::Table | Writing::InsertOnce))
            .map(|table| table.schema.name.clone())
            .collect()
    }
}

impl Both {
    pub(super) async fn look(spec: &Spec) -> Result<Self, CliError> {
        let folder = folder::base(spec)?;
        let plan = PlanFile::read(&folder)?.ok_or_else(|| CliError::failed("the plan has gone"))?;
        let mut source = wiring::source_inspect(spec)?;
        let target = wiring::sink_inspect(spec)?;
        // The tables as they are now: the plan follows them as the stream did.
        let catalog = match source.catalog(spec.source.tables()).await {
            Ok(catalog) if plan.catalog.tables.iter().all(|old| partner(old, &catalog).is_some()) => catalog,
            // A table that is called otherwise now is followed all the same, whatever the spec's patterns say of its new
            // name; and a pattern may match nothing any more.
            _ => source.catalog(&EVERYTHING.map(str::to_owned)).await?,
        };
        let Paired { planned, source_tables, renamed, dropped } = Paired::of(&plan.catalog, &catalog);
        let secret = secret_of(&folder)?;
        let bound = routes(spec, &PlanFile::with_tables(&plan, planned), secret.clone(), 0)?;
        let shape = Shape { bound, source_tables, renamed };
        Ok(Self { source, target, shape, dropped, plan, secret })
    }

    /// The plan of before, where the source no longer has some of its tables.
    pub(super) fn whole(&self, spec: &Spec) -> Result<Option<Routes>, CliError> {
        (!self.dropped.is_empty()).then(|| routes(spec, &self.plan, self.secret.clone(), 0)).transpose()
    }
}

/// Every table of a database.
const EVERYTHING: [&str; 1] = ["*.*"];

/// The table as it is now: by the source's own number for it, else by its name.
fn partner<'a>(old: &TableDef, now: &'a Catalog) -> Option<&'a TableDef> {
    let by_number = now.tables.iter().find(|new| old.native_id != 0 && new.native_id == old.native_id);
    by_number.or_else(|| now.table(&old.name))
}

/// The planned tables, and what has become of them.
#[derive(Default)]
struct Paired {
    /// As they are now, under the names in the plan: a table that is renamed keeps its place in the target.
    planned: Vec<TableDef>,
    source_tables: Vec<Arc<TableSchema>>,
    renamed: BTreeMap<TableName, TableName>,
    dropped: Vec<TableName>,
}

impl Paired {
    fn of(plan: &Catalog, now: &Catalog) -> Self {
        let mut paired = Self::default();
        for (number, old) in (1..).zip(&plan.tables) {
            let Some(new) = partner(old, now) else {
                paired.dropped.push(old.name.clone());
                continue;
            };
            paired.source_tables.push(Arc::new(schema_of(TableId(number), new)));
            paired.planned.push(TableDef { name: old.name.clone(), ..new.clone() });
            if new.name != old.name {
                paired.renamed.insert(new.name.clone(), old.name.clone());
            }
        }
        for key in paired.planned.iter_mut().flat_map(|table| &mut table.foreign_keys) {
            if let Some(planned) = paired.renamed.get(&key.references) {
                key.references = planned.clone();
            }
        }
        paired
    }
}

/// What is left in the target of tables that the source no longer has; goes into the report.
pub(super) async fn left_of(
    names: &[TableName],
    plan: &Plan,
    by_root: bool,
    target: &mut AnyInspect,
    report: &mut Report,
) -> Result<Vec<Dropped>, CliError> {
    let there = target.catalog(&EVERYTHING.map(str::to_owned)).await?;
    let mut dropped = Vec::new();
    for table in plan.tables() {
        let Some(source) = table.source.as_ref().filter(|source| names.contains(source)) else { continue };
        // Rows of a partition tree are its leaves'; a table in which only columns are ours has rows of its own.
        let is_tree = matches!(table.def.kind, RelationKind::Partitioned { .. }) && !by_root;
        let name = &table.schema.name;
        let rows = match there.table(name) {
            Some(_) if !is_tree && table.write == Writing::Table => target.count(name).await?,
            _ => 0,
        };
        report.differences += rows;
        report.tables.push(TableReport {
            table: name.to_string(),
            expected_rows: 0,
            target_rows: rows,
            differences: rows,
            samples: Vec::new(),
        });
        dropped.push(Dropped { table: source.to_string(), target: name.to_string(), rows });
    }
    Ok(dropped)
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

impl Compared {
    /// What is worth knowing beside the rows that differ, in sentences.
    fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        for one in &self.dropped {
            let left = match one.rows {
                0 => "none of its rows are".to_owned(),
                rows => format!("{} of its rows are", output::count(rows)),
            };
            notes.push(format!("dropped: {} is no longer in the source; {left} left in {}", one.table, one.target));
        }
        if let Some(done) = &self.repaired {
            let (written, deleted) = (output::count(done.written), output::count(done.deleted));
            notes.push(format!("repaired: {written} rows written as they should be, {deleted} deleted"));
            if done.refused > 0 {
                notes.push(format!(
                    "{} rows are refused by the target, or wait in quarantine",
                    output::count(done.refused)
                ));
            }
            if done.left_alone > 0 {
                notes.push(format!(
                    "{} rows cannot be told by a key of their own, or are too large, and were left alone",
                    output::count(done.left_alone)
                ));
            }
        }
        if let Some(why) = &self.not_carried {
            notes.push(format!("a switch cannot go by this comparison: {why}"));
        }
        for check in self.report.checks.iter().filter(|check| check.broken > 0) {
            let (rows, columns) = (output::count(check.broken), check.columns.join(", "));
            notes.push(match &check.references {
                Some(parent) => format!(
                    "dangling: {rows} rows of {} refer by {columns} to rows that {parent} does not have",
                    check.table
                ),
                None => format!("not injective: {rows} new keys stand more than once in {}", check.table),
            });
        }
        for note in &self.lossy {
            let column = note.column.as_deref().unwrap_or_default();
            notes.push(format!("lossy: {}.{column}: {}", note.table, note.text));
        }
        if self.report.refused_rows > 0 {
            let rows = output::count(self.report.refused_rows);
            notes.push(format!("{rows} source rows are refused by the transforms"));
        }
        if self.report.unjudged_rows > 0 {
            let rows = output::count(self.report.unjudged_rows);
            notes.push(format!("{rows} rows changed whenever they were looked at: nothing is said of them"));
        }
        notes
    }
}

fn render(compared: &Compared) -> String {
    let report = &compared.report;
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
            text.push_str(&format!("{kind}: {} key {}{columns}\n", one.table, key_of(difference)));
        }
    }
    for note in compared.notes() {
        text.push_str(&note);
        text.push('\n');
    }
    let asked = |kind| report.checks.iter().filter(|check| check.kind == kind).count();
    match (asked(CheckKind::References), asked(CheckKind::Injective)) {
        _ if report.broken() > 0 || report.checks.is_empty() => {}
        (0, _) => text.push_str("the mapping gives every new key once\n"),
        (keys, 0) => text.push_str(&format!("no reference leads to nothing ({keys} foreign keys)\n")),
        (keys, _) => text.push_str(&format!(
            "no reference leads to nothing ({keys} foreign keys), and the mapping gives every new key once\n"
        )),
    }
    let at = report.position.as_ref().map(|position| format!(" at position {position}")).unwrap_or_default();
    text.push_str(&format!("{} differences{at}\n", output::count(report.differences)));
    text
}
