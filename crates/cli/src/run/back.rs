//! The reverse stream: once the new side is the writer, it keeps the old side exact, so that going back loses no write.
//!
//! ```text
//!  switch, while nobody writes                              from then on
//!  old ═════ forward ═════▶ new │ slot on the new side │    old ◀════ reverse stream ════ new ◀─ writers
//!             both sides equal ─┘                              behind its fence
//! ```
//! It is a migration like any other, with a folder, a log, a journal and a quarantine of its own, and begins with a
//! backfill of no tables: [`prepare`] makes its slot where both sides are equal. What a switch calls is [`prepare`] before
//! its point of no return, [`discard`] where it gives up before that, and [`run`] after it.

use super::{
    Session,
    plan_file::{PlanFile, secret_of, write_whole},
    run_session, upkeep,
};
use crate::{
    args::RunArgs,
    commands::folder,
    error::{CliError, Exit},
    registry::{self, AnySink},
    spec::{REVERSE_FOLDER, Reverse, Spec},
    wiring,
};
use crossfade_connector::{Inspect, Quarantine, QuarantineFilter, StoredMapping};
use crossfade_control::{Command, Migration, Phase};
use crossfade_event::{Position, catalog::Catalog};
use crossfade_transform::{Forward, back};
use serde::{Deserialize, Serialize};
use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

const FORMAT: u32 = 1;

/// How many pairs of the mapping are brought over at once.
const PAIRS: u32 = 20_000;

/// What the way back begins with; written when its slot is there.
#[derive(Debug, Serialize, Deserialize)]
struct Prepared {
    format: u32,
    /// Where the new side's slot begins.
    begin: Position,
    /// The old side's tables as they were then.
    catalog: Catalog,
}

impl Prepared {
    fn path(base: &Path) -> PathBuf {
        base.join(REVERSE_FOLDER).join("prepared.json")
    }

    fn read(base: &Path) -> Result<Option<Self>, CliError> {
        let path = Self::path(base);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(CliError::io(format!("reading {}", path.display()), &error)),
        };
        let damaged = |what: String| {
            CliError::new(Exit::Lost, format!("{} is damaged: {what}", path.display()))
                .hint("restore the file from a copy; without it nobody knows where the way back begins")
        };
        let prepared: Self = serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
        match prepared.format {
            FORMAT => Ok(Some(prepared)),
            other => Err(damaged(format!("it has format {other}, this program knows {FORMAT}"))),
        }
    }
}

/// The way back of a migration as it would be now, or as it was prepared. What has no way back is in
/// [`Reverse::back`], by name.
pub(crate) async fn planned(spec: &Spec) -> Result<Spec, CliError> {
    let base = spec.base();
    let prepared = Prepared::read(&base)?;
    let begin = prepared.as_ref().map(|prepared| prepared.begin);
    let catalog = match prepared {
        Some(prepared) => prepared.catalog,
        None => wiring::source_inspect(spec)?.catalog(spec.source.tables()).await?,
    };
    reversed(spec, catalog, begin, 0)
}

/// The way back as it was prepared.
fn begun(spec: &Spec, epoch: u64) -> Result<Spec, CliError> {
    let prepared = Prepared::read(&spec.base())?.ok_or_else(|| {
        let folder = spec.base().join(REVERSE_FOLDER);
        CliError::new(Exit::Lost, format!("{} was switched, and {} does not say where its way back begins", spec.name, folder.display()))
            .hint("restore the folder from a copy. Without it the old side can be kept by no stream: going back would lose what was written since the switch")
    })?;
    let spec = reversed(spec, prepared.catalog, Some(prepared.begin), epoch)?;
    refuse_one_way(&spec)?;
    Ok(spec)
}

fn reversed(spec: &Spec, catalog: Catalog, begin: Option<Position>, epoch: u64) -> Result<Spec, CliError> {
    let base = spec.base();
    let secret = if base.join("secret").exists() { secret_of(&base)? } else { vec![0; 32] };
    let options = wiring::plan_options(spec, secret);
    let forward = Forward { catalog, rules: spec.rules.clone(), options };
    let back = back(&forward)?;
    let reverse = Reverse { of: spec.name.clone(), forward: Arc::new(forward), back, epoch, begin };
    spec.reversed(reverse).ok_or_else(|| {
        CliError::refused(format!("there is no way back for {}: a switch would be one-way", spec.name))
            .hint("a way back is built between two PostgreSQL databases only")
    })
}

/// Refuses where something of the new side could not be taken back.
fn refuse_one_way(reversed: &Spec) -> Result<(), CliError> {
    let refusals = reversed.reverse.as_ref().map(|reverse| reverse.back.refusals.as_slice()).unwrap_or_default();
    let Some(first) = refusals.first() else { return Ok(()) };
    let column = first.column.as_ref().map(|column| format!(".{column}")).unwrap_or_default();
    Err(CliError::refused(format!("the switch would be one-way, because {}{column} {}", first.table, first.why))
        .hint(format!("`crossfade plan {} --reverse` lists everything", reversed.file.display())))
}

/// Makes what the way back begins with: publication and slot on the new side, at a moment when nobody writes and both
/// sides are equal; says where. Done again, it says the same.
pub(crate) async fn prepare(spec: &Spec) -> Result<Position, CliError> {
    let base = spec.base();
    if let Some(prepared) = Prepared::read(&base)? {
        return Ok(prepared.begin);
    }
    let catalog = wiring::source_inspect(spec)?.catalog(spec.source.tables()).await?;
    refuse_renamed(&base, &catalog)?;
    let reversed = reversed(spec, catalog.clone(), None, 0)?;
    refuse_one_way(&reversed)?;
    let folder = base.join(REVERSE_FOLDER);
    fs::create_dir_all(&folder).map_err(|error| CliError::io(format!("making {}", folder.display()), &error))?;
    let begin = registry::reserve(&reversed, &folder).await?;
    let prepared = Prepared { format: FORMAT, begin, catalog };
    let text =
        serde_json::to_vec(&prepared).map_err(|error| CliError::failed(format!("writing the way back: {error}")))?;
    write_whole(&Prepared::path(&base), &text)?;
    Ok(begin)
}

/// A table that was renamed on the old side keeps its place in the target under its old name: the two cannot be told
/// together by their names.
fn refuse_renamed(base: &Path, now: &Catalog) -> Result<(), CliError> {
    let Some(plan) = PlanFile::read(base)? else { return Ok(()) };
    let gone = plan.catalog.tables.iter().find(|table| now.table(&table.name).is_none());
    match gone {
        None => Ok(()),
        Some(table) => Err(CliError::refused(format!(
            "the switch would be one-way, because {} was renamed or dropped on the old side since the migration was planned",
            table.name
        ))
        .hint("give it its name back")),
    }
}

/// Takes away what [`prepare`] made: for a switch that gives up before its point of no return.
pub(crate) async fn discard(spec: &Spec) -> Result<(), CliError> {
    let base = spec.base();
    let folder = base.join(REVERSE_FOLDER);
    if !folder.exists() {
        return Ok(());
    }
    // The word that there is a slot goes first: what is left behind then is made anew.
    if let Some(prepared) = Prepared::read(&base)? {
        fs::remove_file(Prepared::path(&base)).map_err(|error| CliError::io("taking the way back away", &error))?;
        registry::release(&reversed(spec, prepared.catalog, None, 0)?).await?;
    }
    fs::remove_dir_all(&folder).map_err(|error| CliError::io(format!("removing {}", folder.display()), &error))
}

/// How far the migration has come; `None` before it has a folder. It must not be running.
pub(super) fn switched(spec: &Spec) -> Result<Option<Migration>, CliError> {
    if spec.part.is_some() || spec.reverse.is_some() || !Prepared::path(&spec.base()).exists() {
        return Ok(None);
    }
    let folder = folder::taken(spec)?;
    let migration = folder::journal(&folder)?.migration();
    Ok(matches!(migration.phase, Phase::Switched | Phase::Soaking).then_some(migration))
}

/// Keeps the old side exact, until it is stopped.
pub(super) async fn run(spec: &Spec, migration: &Migration, args: &RunArgs) -> Result<(), CliError> {
    let spec = begun(spec, migration.epoch)?;
    bring_mapping(&spec, args.quiet).await?;
    run_session(Session::open(&spec).await?, args).await
}

/// Brings the pairs of old and new keys to the old side, once: nobody adds to the mapping any more.
async fn bring_mapping(spec: &Spec, quiet: bool) -> Result<(), CliError> {
    let Some(reverse) = &spec.reverse else { return Ok(()) };
    let mut old = registry::back_sink(spec)?;
    if old.has_mapping().await? {
        return Ok(());
    }
    let mut new = registry::mapping_of(spec, &reverse.of)?;
    let mut after = None;
    let mut brought = 0;
    loop {
        let page = new.mapping_page(None, after.as_ref(), PAIRS).await?;
        if page.is_empty() {
            break;
        }
        old.bring_mapping(&page).await?;
        brought += page.len();
        after = page.into_iter().next_back();
    }
    old.has_all_of_mapping().await?;
    if !quiet {
        tracing::info!(brought, "the pairs of old and new keys are on the old side");
    }
    Ok(())
}

/// Makes the new side the writer, for somebody who has stopped the writers of the old side and moves them by hand.
pub(crate) async fn switch_by_hand(spec: &Spec) -> Result<(), CliError> {
    if spec.part.is_some() || !spec.base().exists() {
        folder::base(spec)?;
        return Err(CliError::refused(format!("{} is run by roles: it cannot be switched by hand", spec.name)));
    }
    if switched(spec)?.is_some() {
        return said(spec);
    }
    refuse_one_way(&planned(spec).await?)?;
    upkeep::while_followed(spec, true, Box::pin(prepare_equal(spec))).await?;
    let taken = folder::taken(spec)?;
    folder::journal(&taken)?.command(Command::SwitchByHand, &folder::by_hand()).await?;
    said(spec)
}

/// Prepares, where nothing is missing on the new side.
async fn prepare_equal(spec: &Spec) -> Result<Position, CliError> {
    match AnySink::for_looking(spec)?.list(&QuarantineFilter::default()).await?.len() {
        0 => prepare(spec).await,
        held => {
            Err(CliError::refused(format!("{held} of its changes are in quarantine, so that the two sides are not equal"))
                .hint(format!("crossfade quarantine ls {}", spec.file.display())))
        }
    }
}

fn said(spec: &Spec) -> Result<(), CliError> {
    crate::output::line(format!(
        "{}: the new side is the writer now. `crossfade run {}` keeps the old side exact; begin it, and move the applications",
        spec.name,
        spec.file.display()
    ))
}
