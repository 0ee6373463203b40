//! What cargo says of the workspace.

use serde_json::Value;
use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

/// The folder of the whole project.
pub(crate) fn root() -> &'static Path {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    ROOT.get_or_init(|| {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the project's folder")
    })
}

/// `cargo metadata` of our own packages only, or of everything that is linked on this machine.
pub(crate) fn metadata(only_ours: bool) -> Value {
    let mut command = Command::new(env!("CARGO"));
    command.args(["metadata", "--format-version=1", "--offline"]).current_dir(root());
    if only_ours {
        command.arg("--no-deps");
    } else {
        command.args(["--all-features", "--filter-platform", &host()]);
    }
    let out = command.output().expect("cargo runs");
    assert!(out.status.success(), "cargo metadata failed: {}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).expect("cargo writes JSON")
}

fn host() -> String {
    let out = Command::new(env!("CARGO")).arg("-vV").output().expect("cargo runs");
    let text = String::from_utf8(out.stdout).expect("cargo writes UTF-8");
    text.lines().find_map(|line| line.strip_prefix("host: ")).expect("cargo names its host").to_owned()
}

/// The array at `name`.
pub(crate) fn list<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    value[name].as_array().map(Vec::as_slice).unwrap_or_else(|| panic!("cargo metadata has no list `{name}`"))
}

/// The text at `name`; empty where it is null.
pub(crate) fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or_default()
}
