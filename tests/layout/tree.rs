//! What every crate and every file must have, and must not.

use crate::graph::root;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Every file that belongs to the project (no build output, no version control).
pub(crate) fn files() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root().to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder can be read") {
            let path = entry.expect("a folder can be read").path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if path.is_symlink() || matches!(name, "target" | ".git" | "crossfade-data" | "demo-data") {
                continue;
            }
            if path.is_dir() { folders.push(path) } else { found.push(path) }
        }
    }
    found
}

pub(crate) fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

#[test]
fn every_crate_says_where_it_stands() {
    for file in files() {
        let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        // A crate's own root, or that of a package of tests; the roots of a crate's integration tests say it in a line.
        let depth = file.strip_prefix(root()).map_or(0, |path| path.components().count());
        if !matches!(name, "lib.rs" | "main.rs") || depth > 4 {
            continue;
        }
        let text = fs::read_to_string(&file).expect("source is UTF-8");
        let docs = text.lines().take_while(|line| line.starts_with("//!")).collect::<Vec<_>>().join(" ");
        assert!(docs.len() > 40, "{} opens without saying where it stands in the journey", shown(&file));
        assert!(!docs.contains("Placeholder"), "{} is a placeholder", shown(&file));
    }
}

#[test]
fn the_project_stands_alone() {
    // Put together here, so that this file does not hold them itself.
    let outside = [["..", "/shared"].concat(), ["/wo", "rk/"].concat(), ["DESIGN", ".md"].concat()];
    let mut seen = 0;
    for file in files() {
        let Ok(text) = fs::read_to_string(&file) else { continue };
        seen += 1;
        for word in &outside {
            let line = text.lines().position(|line| line.contains(word.as_str()));
            assert!(
                line.is_none(),
                "{}:{} names `{word}`, which is not part of the project",
                shown(&file),
                line.unwrap_or_default() + 1
            );
        }
    }
    assert!(seen > 50, "only {seen} files were read");
}

#[test]
fn lints_are_lifted_only_where_the_reason_is_said() {
    let allow = ["allow", "("].concat();
    for file in files().into_iter().filter(|file| file.extension().is_some_and(|kind| kind == "rs")) {
        let text = fs::read_to_string(&file).expect("source is UTF-8");
        for (number, line) in text.lines().enumerate() {
            let attribute = line.trim_start().starts_with("#[") || line.trim_start().starts_with("#![");
            assert!(
                !(attribute && line.contains(&allow)),
                "{}:{}: lift a lint by `expect`, with its reason",
                shown(&file),
                number + 1
            );
            let ignored = ["#[", "ignore"].concat();
            assert!(
                !line.contains(&ignored),
                "{}:{}: a test that does not run proves nothing",
                shown(&file),
                number + 1
            );
        }
    }
}

#[test]
fn ci_runs_the_same_test_command_as_people_do() {
    let ci = fs::read_to_string(root().join(".ci/run")).expect(".ci/run can be read");
    for command in ["make lint", "make test"] {
        assert!(ci.lines().any(|line| line == command), ".ci/run does not run `{command}`");
    }
}
