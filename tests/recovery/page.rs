//! The page about reliability names tests: each must exist.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("target") {
            sources(&path, found);
        } else if path.extension().is_some_and(|kind| kind == "rs") {
            found.push(path);
        }
    }
}

/// The names of all tests: functions right below `#[test]` or a like attribute.
fn tests(root: &Path) -> BTreeSet<String> {
    let mut files = Vec::new();
    for folder in ["crates", "connectors", "tests"] {
        sources(&root.join(folder), &mut files);
    }
    let mut names = BTreeSet::new();
    for file in files {
        let text = fs::read_to_string(file).unwrap();
        let mut marked = false;
        for line in text.lines().map(str::trim_start) {
            let head = line.trim_start_matches("async ");
            if let Some(rest) = head.strip_prefix("fn ").filter(|_| marked) {
                names.insert(rest.split(['(', '<']).next().unwrap_or_default().to_owned());
            }
            // Other attributes may stand between.
            marked =
                line.starts_with("#[test]") || line.starts_with("#[tokio::test") || (marked && line.starts_with("#["));
        }
    }
    names
}

#[test]
fn every_test_that_the_reliability_page_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let page = fs::read_to_string(root.join("docs/reliability.md")).unwrap();
    let known = tests(&root);
    let mut named = 0;
    for row in page.lines().filter(|line| line.starts_with("| ")) {
        let cell = row.trim_end_matches('|').rsplit('|').next().unwrap_or_default();
        for name in cell.split('`').skip(1).step_by(2) {
            named += 1;
            assert!(known.contains(name), "docs/reliability.md names the test {name}, which does not exist");
        }
    }
    assert!(named > 60, "only {named} tests were found on the page: the reading of it is broken");
}
