//! The JSON Schema of the spec, for editors: made from the types, kept as a file that a test compares.

use super::{Gates, LogSpec, Name, Requirement, Secret, SinkSpec, SourceSpec, SwitchSpec, VerifySpec, ViewsSpec};
use crossfade_transform::Rules;
use schemars::{JsonSchema, schema_for};
use std::path::PathBuf;

/// What moves where, and how.
#[derive(JsonSchema)]
#[schemars(rename = "crossfade spec", deny_unknown_fields)]
#[expect(dead_code, reason = "only its shape is used: a spec is read section by section, for better errors")]
struct SpecFile {
    /// The migration's name; also names what it makes on servers.
    name: Name,
    /// Where the migration's folder is made: log, state, status file, control socket. `./crossfade-data` unless said.
    dir: Option<PathBuf>,
    /// What keys of `uuid-v4` and `uuid-v7`, and masks, are derived from: at least 16 characters, only as `${NAME}` or
    /// `file:PATH`. Two migrations with the same one make the same keys.
    secret: Option<Secret>,
    /// Where rows and changes come from.
    source: SourceSpec,
    /// The event log between source and sink.
    #[schemars(default)]
    log: LogSpec,
    /// Where rows and changes go.
    sink: SinkSpec,
    #[serde(flatten)]
    rules: Rules,
    /// Conditions that are watched while the migration runs.
    #[schemars(default)]
    gates: Gates,
    /// Comparing both sides all the time.
    #[schemars(default)]
    verify: VerifySpec,
    /// How the applications are switched to the new side. Without it they are not.
    switch: Option<SwitchSpec>,
    /// What must hold in the source before the migration begins.
    #[schemars(default)]
    require: Vec<Requirement>,
    /// Views that show both shapes of the tables, in two schemas of the same database.
    views: Option<ViewsSpec>,
}

/// The schema as it stands in the file.
pub(crate) fn text() -> Result<String, serde_json::Error> {
    let mut text = serde_json::to_string_pretty(&schema_for!(SpecFile))?;
    text.push('\n');
    Ok(text)
}
