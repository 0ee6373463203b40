//! What a migration was planned with: the source's catalog of that moment, kept in the work folder, so that every
//! restart plans the same however the source has changed meanwhile. Later schemas travel in the log.

use crate::{error::CliError, spec::Spec};
use crossfade_event::catalog::{Catalog, TableDef};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    fs,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

const FORMAT: u32 = 1;

/// The planned catalog, and the hash of what may not change while the migration runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct PlanFile {
    format: u32,
    /// The hash of the rules, the tables and the target.
    pub(crate) spec_hash: String,
    /// The source's tables as they were.
    pub(crate) catalog: Catalog,
}

impl PlanFile {
    /// Where it is.
    pub(crate) fn path(folder: &Path) -> PathBuf {
        folder.join("plan.json")
    }

    /// Reads it; `None` when nothing has been planned.
    pub(crate) fn read(folder: &Path) -> Result<Option<Self>, CliError> {
        let path = Self::path(folder);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(CliError::io(format!("reading {}", path.display()), &error)),
        };
        let damaged = |what: String| {
            CliError::new(crate::error::Exit::Lost, format!("{} is damaged: {what}", path.display()))
                .hint("restore the file from a copy, or begin anew: `crossfade rollback --wipe`, then `crossfade run`")
        };
        let plan: Self = serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
        if plan.format > FORMAT {
            return Err(CliError::new(
                crate::error::Exit::Lost,
                format!("{} has format {}, this program reads up to {FORMAT}", path.display(), plan.format),
            )
            .hint("use the newer crossfade that wrote it"));
        }
        Ok(Some(plan))
    }

    /// Writes it, whole or not at all.
    pub(crate) fn write(folder: &Path, spec: &Spec, catalog: Catalog) -> Result<Self, CliError> {
        let plan = Self { format: FORMAT, spec_hash: spec_hash(spec), catalog };
        plan.keep(folder)?;
        Ok(plan)
    }

    /// Writes it as it is, whole or not at all.
    pub(super) fn keep(&self, folder: &Path) -> Result<(), CliError> {
        let text = serde_json::to_vec(self).map_err(|error| CliError::failed(format!("writing the plan: {error}")))?;
        write_whole(&Self::path(folder), &text)
    }

    /// A plan that is only looked at.
    pub(crate) fn unsaved(spec: &Spec, catalog: Catalog) -> Self {
        Self { format: FORMAT, spec_hash: spec_hash(spec), catalog }
    }

    /// The same plan over this catalog.
    pub(crate) fn with_catalog(&self, catalog: Catalog) -> Self {
        Self { catalog, ..self.clone() }
    }

    /// The same plan over these tables.
    pub(crate) fn with_tables(&self, tables: Vec<TableDef>) -> Self {
        Self { catalog: Catalog { tables, ..self.catalog.clone() }, ..self.clone() }
    }

    /// Refuses a spec that says something else than what the migration was planned with.
    pub(crate) fn check(&self, spec: &Spec) -> Result<(), CliError> {
        if self.spec_hash == spec_hash(spec) {
            return Ok(());
        }
        Err(CliError::refused(format!(
            "{} says something else than what the migration {} was begun with: its tables, rules or target have changed",
            spec.file.display(),
            spec.name
        ))
        .hint("put the spec back, or take the new one under another name (`crossfade replay --into` builds it from this log), or begin anew: `crossfade rollback --wipe`"))
    }
}

/// The hash of what may not change while a migration runs.
pub(crate) fn spec_hash(spec: &Spec) -> String {
    let rules = serde_json::to_string(&spec.rules).unwrap_or_default();
    let mut hash = Sha256::new();
    for part in [rules.as_str(), &spec.source.tables().join("\u{1}"), &crate::wiring::target_words(spec)] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part.as_bytes());
    }
    if spec.source.by_root() {
        hash.update(b"partitions by root");
    }
    if let Some(log) = crate::event_log::identity(spec) {
        hash.update(log.as_bytes());
    }
    hex(&hash.finalize())
}

/// The secret that "random" keys are derived from: made once, kept in the work folder, readable by its owner only.
pub(crate) fn secret_of(folder: &Path) -> Result<Vec<u8>, CliError> {
    let path = folder.join("secret");
    match fs::read(&path) {
        Ok(secret) if secret.len() == 32 => Ok(secret),
        Ok(_) => Err(CliError::new(crate::error::Exit::Lost, format!("{} is damaged", path.display()))
            .hint("restore it from a copy: keys made with another secret would not be the same")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let secret: [u8; 32] = rand::random();
            write_whole(&path, &secret)?;
            Ok(secret.to_vec())
        }
        Err(error) => Err(CliError::io(format!("reading {}", path.display()), &error)),
    }
}

/// Keeps another migration's secret as one's own: a sink that is built from its log has the same keys.
pub(super) fn keep_secret(folder: &Path, secret: &[u8]) -> Result<(), CliError> {
    let path = folder.join("secret");
    match fs::read(&path) {
        Ok(own) if own == secret => Ok(()),
        Ok(_) => Err(CliError::refused(format!(
            "{} is another secret than that of the migration whose log is replayed: derived keys would not be the same",
            path.display()
        ))
        .hint("give the spec of the new sink a name that was not used before")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => write_whole(&path, secret),
        Err(error) => Err(CliError::io(format!("reading {}", path.display()), &error)),
    }
}

/// Which secret it is, without telling it.
pub(crate) fn secret_id(secret: &[u8]) -> String {
    hex(&Sha256::digest(secret)).chars().take(16).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(super) fn write_whole(path: &Path, content: &[u8]) -> Result<(), CliError> {
    // Several processes of one migration may write the same at once.
    let beside = path.with_extension(format!("new-{}", std::process::id()));
    let write = || -> std::io::Result<()> {
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        if let Some(folder) = path.parent() {
            fs::File::open(folder)?.sync_all()?;
        }
        Ok(())
    };
    write().map_err(|error| CliError::io(format!("writing {}", path.display()), &error))
}
