//! The reverse stream: once the new side is the writer, it keeps the old side exact, so that going back loses no write.
//!
//! ```text
//!  switch, while nobody writes                              from then on
//!  old ═════ forward ═════▶ new │ slot on the new side │    old ◀════ reverse stream ════ new ◀─ writers
//!             both sides equal ─┘                              behind its fence
//! ```
//! It is a migration like any other, with a folder, a log, a journal and a quarantine of its own, and begins with a
//! backfill of no tables, where its slot stands: a switch makes that ([`super::reverse`]) and moves it up to where both sides are
//! equal. It calls [`make_ready`] before anybody is held up, [`note`] before its point of no return, [`forget`] where it
//! gives up; [`run`] is what comes after it.

use super::{
    Session,
    plan_file::{PlanFile, secret_of, write_whole},
    run_session,
};
use crate::{
    args::RunArgs,
    commands::folder,
    error::{CliError, Exit},
    registry,
    spec::{REVERSE_FOLDER, Reverse, Spec},
    wiring,
};
use crossfade_connector::{Inspect, StoredMapping};
use crossfade_control::{Migration, Phase};
use crossfade_event::{
    Position,
    catalog::{Catalog, RelationKind, TableDef},
};
use crossfade_observe::Listening;
use crossfade_state::WorkFolder;
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

/// The way back over the tables as they were when the migration was planned.
pub(super) fn as_planned(spec: &Spec, plan: &PlanFile) -> Result<Spec, CliError> {
    reversed(spec, plan.catalog.clone(), None, 0)
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
    let reverse =
        Reverse { of: spec.name.clone(), spec: Box::new(spec.clone()), forward: Arc::new(forward), back, epoch, begin };
    spec.reversed(reverse).ok_or_else(|| {
        CliError::refused(format!("there is no way back for {}: a switch would be one-way", spec.name))
            .hint("a way back is built between two PostgreSQL databases and between two SQLite files only")
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

/// Before a switch: refuses where there is no way back, and has the new side say what it needs. A place that a switch noted
/// which was taken back counts no more. Returns whether the new side must tell rows as they were before.
pub(super) async fn make_ready(spec: &Spec) -> Result<bool, CliError> {
    let base = spec.base();
    refuse_pairs_of_another_life(spec, &base).await?;
    super::retired::retire(spec).await?;
    forget(spec)?;
    let catalog = wiring::source_inspect(spec)?.catalog(spec.source.tables()).await?;
    refuse_other_tables(spec, &catalog)?;
    let reversed = reversed(spec, catalog, None, 0)?;
    refuse_one_way(&reversed)?;
    registry::tell_old_rows(&reversed, &made(&base)?).await?;
    Ok(reversed.reverse.iter().flat_map(|reverse| &reverse.back.tables).any(|table| table.needs_old_rows))
}

/// In a switch, while nobody writes and both sides are equal: notes where its slot begins, and what the old side is like.
pub(super) async fn note(spec: &Spec) -> Result<(), CliError> {
    let base = spec.base();
    let catalog = wiring::source_inspect(spec)?.catalog(spec.source.tables()).await?;
    refuse_other_tables(spec, &catalog)?;
    let reversed = reversed(spec, catalog.clone(), None, 0)?;
    let begin = registry::place_of_slot(&reversed, &made(&base)?).await?;
    let prepared = Prepared { format: FORMAT, begin, catalog };
    let text =
        serde_json::to_vec(&prepared).map_err(|error| CliError::failed(format!("writing the way back: {error}")))?;
    write_whole(&Prepared::path(&base), &text)
}

fn made(base: &Path) -> Result<PathBuf, CliError> {
    let folder = base.join(REVERSE_FOLDER);
    fs::create_dir_all(&folder).map_err(|error| CliError::io(format!("making {}", folder.display()), &error))?;
    Ok(folder)
}

/// Takes the note of a switch away that did not come to be. Nothing has run by it.
pub(super) fn forget(spec: &Spec) -> Result<(), CliError> {
    match fs::remove_file(Prepared::path(&spec.base())) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(CliError::io("taking the note of the way back away", &error))
        }
        _ => Ok(()),
    }
}

/// Pairs of keys on the old side that this folder knows nothing of were drawn by a migration of the same name before it. Its new
/// keys may be others: a row would be taken for another one, or get a second old key.
async fn refuse_pairs_of_another_life(spec: &Spec, base: &Path) -> Result<(), CliError> {
    if has_run(base) || super::retired::is_one_aside(base) {
        return Ok(());
    }
    match has_pairs(spec).await? {
        false => Ok(()),
        true => Err(CliError::refused(format!(
            "the old side keeps pairs of old and new keys of an earlier migration named {}, which had switched: they would be taken for this one's",
            spec.name
        ))
        .hint(format!(
            "give the migration another name; or `crossfade rollback {} --wipe`, which takes them away, and begin again",
            spec.file.display()
        ))),
    }
}

/// Whether the old side keeps pairs of old and new keys of a migration of this name.
pub(super) async fn has_pairs(spec: &Spec) -> Result<bool, CliError> {
    match registry::switch_ends(spec) {
        Ok((mut old, _)) => Ok(old.has_pairs().await?),
        // Between other systems nothing is ever taken back.
        Err(_) => Ok(false),
    }
}

/// The tables of the old side must be those that are moved. One that was renamed keeps its place in the target under its old
/// name: the two cannot be told together by their names. One that came since is on no way to the new side, and nothing on the
/// new side would come back to it; nor would the fence hold its writers.
fn refuse_other_tables(spec: &Spec, now: &Catalog) -> Result<(), CliError> {
    let Some(plan) = PlanFile::read(&spec.base())? else { return Ok(()) };
    if let Some(gone) = plan.catalog.tables.iter().find(|table| now.table(&table.name).is_none()) {
        return Err(CliError::refused(format!(
            "the switch would be one-way, because {} was renamed or dropped on the old side since the migration was planned",
            gone.name
        ))
        .hint("give it its name back"));
    }
    let has_rows = |table: &&TableDef| !matches!(table.kind, RelationKind::Partitioned { .. });
    let is_new = |table: &&TableDef| plan.catalog.table(&table.name).is_none();
    match now.tables.iter().filter(has_rows).find(is_new) {
        None => Ok(()),
        Some(new) => Err(CliError::refused(format!(
            "{} came into being on the old side since the migration was planned, and is not moved: after a switch its rows would be missing on the new side",
            new.name
        ))
        .hint(format!(
            "take it in: `crossfade resume {} --add`; or give it a name that `tables` does not match",
            spec.file.display()
        ))),
    }
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

/// Keeps the old side exact, until it is stopped or a failback ends it.
pub(super) async fn run(
    spec: &Spec,
    migration: &Migration,
    args: &RunArgs,
    listening: Option<Listening>,
) -> Result<(), CliError> {
    super::fallen::warn_after_switch(spec);
    let back = opened(spec, migration.epoch, args.quiet).await?;
    let ended = run_session(Session::open(&back).await?, args, listening).await;
    super::tidy(spec).await;
    ended
}

/// The way back of a migration that has switched, with everything that it begins with.
pub(crate) async fn opened(spec: &Spec, epoch: u64, quiet: bool) -> Result<Spec, CliError> {
    let back = begun(spec, epoch)?;
    bring_mapping(&back, quiet).await?;
    Ok(back)
}

/// Whether something of a way back is there that has run.
pub(super) fn has_run(base: &Path) -> bool {
    let folder = base.join(REVERSE_FOLDER);
    Prepared::path(base).exists() || WorkFolder::journal_path(&folder).is_dir()
}

/// Brings the pairs of old and new keys to the old side, once: nobody adds to the mapping any more.
async fn bring_mapping(spec: &Spec, quiet: bool) -> Result<(), CliError> {
    let Some(reverse) = &spec.reverse else { return Ok(()) };
    let mut old = registry::written_side(spec)?;
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
