//! Who may use whom. Everyone may use `event`; nobody looks sideways or back; `cli` wires and does nothing else.

use crate::graph::{list, metadata, root, text};
use serde_json::Value;
use std::path::Path;

/// The crates that a crate may use beside libraries; a test of a crate may use `testkit` too.
fn may_use(folder: &str) -> Option<&'static [&'static str]> {
    Some(match folder {
        "crates/event" => &[],
        "crates/connector" | "crates/log" | "crates/transform" | "crates/state" => &["event"],
        "crates/pipeline" => &["event", "connector", "log", "transform", "state"],
        "crates/control" => &["event", "log", "state"],
        "crates/verify" => &["event", "connector", "transform"],
        "crates/dualread" => &["event", "connector"],
        "crates/observe" => &["event", "log", "state", "control"],
        "crates/testkit" => &["event", "connector", "log", "state"],
        connector if connector.starts_with("connectors/") => &["event", "connector", "log"],
        _ => return None,
    })
}

/// One arrow: from a package's folder to another of ours.
struct Arrow {
    from: String,
    to: String,
    dev: bool,
}

impl Arrow {
    fn wrong(&self) -> Option<String> {
        let Self { from, to, dev } = self;
        let told = |why: &str| Some(format!("{from} uses {to}{}: {why}", if *dev { " in its tests" } else { "" }));
        if from == "benches" {
            // Measures what is there; nothing is built on it.
            return None;
        }
        if to == "testkit" && !dev {
            return told("testkit is a dev-dependency only");
        }
        if from.starts_with("tests/") {
            return (!dev).then(|| told("a package of tests has dev-dependencies only")).flatten();
        }
        if from == "crates/cli" || (*dev && to == "testkit") {
            return None;
        }
        match may_use(from) {
            None => told("the folder is not in the table of tests/layout/arrows.rs"),
            Some(allowed) if allowed.contains(&to.as_str()) => None,
            Some(allowed) => told(&format!("it may use {allowed:?}")),
        }
    }
}

fn arrows(metadata: &Value) -> Vec<Arrow> {
    let mut found = Vec::new();
    for package in list(metadata, "packages") {
        let from = Path::new(text(package, "manifest_path")).parent().expect("a manifest has a folder");
        let from = from.strip_prefix(root()).expect("a member is inside the project").display().to_string();
        for dependency in list(package, "dependencies") {
            if let Some(to) = text(dependency, "name").strip_prefix("crossfade-") {
                found.push(Arrow { from: from.clone(), to: to.to_owned(), dev: text(dependency, "kind") == "dev" });
            }
        }
    }
    found
}

#[test]
fn no_crate_uses_another_that_it_may_not_know() {
    let found = arrows(&metadata(true));
    assert!(found.len() > 20, "only {} arrows were found: the reading of cargo's metadata is broken", found.len());
    let wrong: Vec<String> = found.iter().filter_map(Arrow::wrong).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn an_arrow_sideways_or_back_is_found() {
    let arrow = |from: &str, to: &str, dev| Arrow { from: from.into(), to: to.into(), dev };
    for wrong in [
        arrow("crates/event", "log", false),
        arrow("crates/log", "connector", false),
        arrow("crates/transform", "state", true),
        arrow("connectors/postgres", "sqlite", false),
        arrow("connectors/sqlite", "pipeline", true),
        arrow("crates/pipeline", "testkit", false),
        arrow("crates/cli", "testkit", false),
        arrow("tests/journey", "log", false),
        arrow("crates/unheard", "event", false),
    ] {
        assert!(wrong.wrong().is_some(), "{} to {} must be refused", wrong.from, wrong.to);
    }
    for right in [
        arrow("crates/pipeline", "log", false),
        arrow("crates/log", "testkit", true),
        arrow("crates/cli", "postgres", false),
        arrow("tests/journey", "log", true),
    ] {
        assert!(right.wrong().is_none(), "{} to {} must be allowed", right.from, right.to);
    }
}

#[test]
fn every_crate_takes_the_lints_of_the_workspace_and_none_is_published() {
    for package in list(&metadata(true), "packages") {
        let path = text(package, "manifest_path");
        let manifest = std::fs::read_to_string(path).expect("a manifest can be read");
        // Tests and measurements may unwrap, so they go without.
        let is_test = ["tests", "benches"].iter().any(|folder| Path::new(path).starts_with(root().join(folder)));
        assert!(
            is_test || manifest.contains("[lints]\nworkspace = true"),
            "{path} does not say `lints.workspace = true`"
        );
        assert!(package["publish"].as_array().is_some_and(Vec::is_empty), "{path} could be published");
    }
}
