//! The keys of rows that were born on the new side, taken over by a migration that goes forward again: such a row, and every
//! reference to it, keeps the new key that it has.
//!
//! ```text
//!  old side: crossfade.reverse_keys ──▶ new side: the mapping table ──▶ <base>/adopted-keys.json ──▶ every plan that makes keys
//!            written with the row         one pair once                   whole, or not there
//! ```
//! The pairs on the old side are what counts; they were written in the transaction of the rows themselves, and stay for ever.
//! None comes while the migration goes forward, so they are read once after each failback.

use super::{
    back,
    plan_file::{PlanFile, secret_of, write_whole},
    session::bare_routes,
};
use crate::{
    error::{CliError, Exit},
    registry::{self, AnySink},
    spec::Spec,
};
use crossfade_connector::{MappingEntry, switch::Born};
use crossfade_transform::Adopted;
use serde::{Deserialize, Serialize};
use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

const FORMAT: u32 = 1;

/// How many pairs are read at once.
const PAIRS: u32 = 20_000;

/// What the pairs may take in memory, in bytes; more than a million of them.
const BYTES_MAX: usize = 128 << 20;

#[derive(Serialize, Deserialize)]
struct File {
    format: u32,
    /// The authority's epoch as it was written: each failback raises it.
    epoch: u64,
    pairs: Vec<(String, i64, String)>,
}

fn path_of(base: &Path) -> PathBuf {
    base.join("adopted-keys.json")
}

fn read(base: &Path) -> Result<Option<File>, CliError> {
    let path = path_of(base);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(CliError::io(format!("reading {}", path.display()), &error)),
    };
    let damaged = |what: &str| {
        CliError::new(Exit::Lost, format!("{} is damaged: {what}", path.display()))
            .hint("remove the file and start `crossfade run`: it reads the pairs again from the old side")
    };
    // The parser's own words would show a key.
    let file: File = serde_json::from_slice(&text).map_err(|_| damaged("it cannot be read"))?;
    match file.format {
        FORMAT => Ok(Some(file)),
        _ => Err(damaged("it has a format that this program does not know")),
    }
}

/// The keys that the migration has taken over; none for most.
pub(super) fn of(base: &Path) -> Result<Arc<Adopted>, CliError> {
    Ok(read(base)?.map(|file| Arc::new(Adopted::from_pairs(file.pairs))).unwrap_or_default())
}

/// Takes over what was born until the old side got the authority by this epoch. Returns how many pairs there are in all. A repeat
/// changes nothing.
///
/// # Errors
/// `Lost` where the old side has fewer than were taken over before; refused where there are too many.
pub(super) async fn take_over(spec: &Spec, epoch: u64) -> Result<usize, CliError> {
    let base = spec.base();
    let before = read(&base)?;
    if let Some(file) = before.as_ref().filter(|file| file.epoch == epoch) {
        return Ok(file.pairs.len());
    }
    let (mut old, _) = registry::switch_ends(spec)?;
    let mut new = registry::written_side(spec)?;
    refuse_surrogates(spec, &mut new).await?;
    let (mut pairs, mut bytes): (Vec<Born>, usize) = (Vec::new(), 0);
    loop {
        let page = old.born(pairs.last(), PAIRS).await?;
        if page.is_empty() {
            break;
        }
        bytes += page.iter().map(|born| std::mem::size_of::<Born>() + born.table.len() + born.new.len()).sum::<usize>();
        if bytes > BYTES_MAX {
            return Err(too_many(spec));
        }
        new.adopt(&page.iter().map(entry).collect::<Vec<_>>()).await?;
        pairs.extend(page);
    }
    if let Some(gone) = before.as_ref().and_then(|file| missing(file, &pairs)) {
        return Err(CliError::new(
            Exit::Lost,
            format!("crossfade.reverse_keys on the old side has lost keys of {gone} that {} had taken over", spec.name),
        )
        .hint(
            "restore that table from a copy: without it rows that were born on the new side would come there twice",
        ));
    }
    let count = pairs.len();
    // Also where there are none: it was looked for this epoch, and is not again.
    let pairs = pairs.into_iter().map(|born| (born.table, born.old, born.new)).collect();
    let text = serde_json::to_vec(&File { format: FORMAT, epoch, pairs })
        .map_err(|error| CliError::failed(format!("writing the keys that were taken over: {error}")))?;
    write_whole(&path_of(&base), &text)?;
    Ok(count)
}

/// A surrogate of several columns has no pair on record: only those that the migration made can go on.
async fn refuse_surrogates(spec: &Spec, new: &mut AnySink) -> Result<(), CliError> {
    let Some(plan) = PlanFile::read(&spec.base())? else { return Ok(()) };
    let Some(back) = back::as_planned(spec, &plan)?.reverse else { return Ok(()) };
    let routes = bare_routes(spec, &plan, secret_of(&spec.base())?, 0)?;
    for table in &back.back.tables {
        let target = routes.target().tables.iter().find(|target| target.schema.name == table.from);
        let key = target.and_then(|target| target.def.primary_key.as_ref()).map(|key| key.columns.as_slice());
        let Some([column]) = key.filter(|key| key.iter().all(|column| table.left.contains(column))) else { continue };
        if new.has_unmapped(&table.from, column, &table.to.to_string()).await? {
            return Err(CliError::refused(format!(
                "{} cannot go on: rows of {} were born on the new side under keys in \"{column}\" that it would not give them again",
                spec.name, table.from
            ))
            .hint(BEGIN_ANEW));
        }
    }
    Ok(())
}

const BEGIN_ANEW: &str = "the old side has everything, and the applications write it. Begin anew: `crossfade rollback --wipe`, then `crossfade run`";

fn entry(born: &Born) -> MappingEntry {
    MappingEntry {
        table_name: born.table.clone(),
        old_id: born.old.to_string(),
        new_id: born.new.clone(),
        migrated_at: String::new(),
    }
}

/// The table of a pair that was there before and is not any more. Both are in the order of table and old key.
fn missing(before: &File, now: &[Born]) -> Option<String> {
    let mut now = now.iter();
    let mut is_there = |(table, old, new): &(String, i64, String)| {
        now.any(|born| (&born.table, born.old, &born.new) == (table, *old, new))
    };
    before.pairs.iter().find(|pair| !is_there(pair)).map(|(table, ..)| table.clone())
}

fn too_many(spec: &Spec) -> CliError {
    let mib = BYTES_MAX >> 20;
    CliError::refused(format!(
        "{} cannot go on: the keys of rows that were born on the new side take more than {mib} MiB, and are kept in memory",
        spec.name
    ))
    .hint(BEGIN_ANEW)
}

/// Forgets them: the next migration of that name has its own.
pub(super) fn forget(base: &Path) -> Result<(), CliError> {
    match fs::remove_file(path_of(base)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(CliError::io("removing the keys that were taken over", &error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn born(table: &str, old: i64, new: &str) -> Born {
        Born { table: table.to_owned(), old, new: new.to_owned() }
    }

    fn file(pairs: &[(&str, i64, &str)]) -> File {
        let pairs = pairs.iter().map(|(table, old, new)| ((*table).to_owned(), *old, (*new).to_owned())).collect();
        File { format: FORMAT, epoch: 2, pairs }
    }

    #[test]
    fn a_pair_that_has_gone_or_changed_is_named_by_its_table_and_one_that_came_is_not() {
        let now = [born("a", 1, "x"), born("a", 3, "z"), born("b", 1, "x")];
        assert_eq!(missing(&file(&[("a", 1, "x"), ("b", 1, "x")]), &now), None);
        assert_eq!(missing(&file(&[("a", 1, "x"), ("a", 2, "y")]), &now).as_deref(), Some("a"));
        assert_eq!(missing(&file(&[("b", 1, "other")]), &now).as_deref(), Some("b"));
    }

    #[test]
    fn a_damaged_file_is_no_empty_one_and_says_what_to_do_without_a_key() {
        let folder = tempfile::tempdir().unwrap();
        assert!(of(folder.path()).unwrap().is_empty());
        fs::write(path_of(folder.path()), b"{\"format\":1,\"epoch\":2,\"pairs\":[[\"a\",1,\"secret").unwrap();
        let error = of(folder.path()).unwrap_err();
        assert_eq!(error.exit, Exit::Lost);
        assert!(!format!("{error:?}").contains("secret") && error.hint.unwrap().contains("crossfade run"));
    }
}
