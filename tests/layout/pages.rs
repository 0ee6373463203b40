//! The documentation: its links lead somewhere, and the README opens as promised.

use crate::{
    graph::root,
    tree::{files, shown},
};
use std::{collections::BTreeSet, fs, path::Path};

/// `text` without fenced code and without code spans: what is shown as code is no link.
fn prose(text: &str) -> String {
    let mut fenced = false;
    let mut kept = String::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if !fenced {
            kept.extend(line.split('`').step_by(2));
            kept.push('\n');
        }
    }
    kept
}

fn links(text: &str) -> Vec<String> {
    let prose = prose(text);
    prose.split("](").skip(1).filter_map(|rest| Some(rest.split_once(')')?.0.trim().to_owned())).collect()
}

/// The names that headings can be reached by, as the usual renderers make them.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut fenced = false;
    let mut found = BTreeSet::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        }
        let heading = line.trim_start_matches('#');
        if !fenced && heading.len() < line.len() && heading.starts_with(' ') {
            let kept = heading
                .trim()
                .to_lowercase()
                .chars()
                .filter(|c| c.is_alphanumeric() || " -_".contains(*c))
                .collect::<String>();
            found.insert(kept.replace(' ', "-"));
        }
    }
    found
}

fn broken(page: &Path, link: &str) -> Option<String> {
    if link.contains("://") || link.starts_with("mailto:") {
        return None;
    }
    let (file, anchor) = link.split_once('#').map_or((link, None), |(file, anchor)| (file, Some(anchor)));
    let target = if file.is_empty() { page.to_owned() } else { page.parent().expect("a page has a folder").join(file) };
    if !target.exists() {
        return Some(format!("{}: `{link}` leads nowhere", shown(page)));
    }
    let anchor = anchor?;
    let text = fs::read_to_string(&target).unwrap_or_default();
    (!anchors(&text).contains(anchor)).then(|| format!("{}: `{link}` names no heading", shown(page)))
}

#[test]
fn every_link_between_pages_leads_somewhere() {
    let pages: Vec<_> = files().into_iter().filter(|file| file.extension().is_some_and(|kind| kind == "md")).collect();
    let mut wrong = Vec::new();
    for page in &pages {
        let text = fs::read_to_string(page).expect("a page is UTF-8");
        wrong.extend(links(&text).iter().filter_map(|link| broken(page, link)));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let readme = fs::read_to_string(root().join("README.md")).expect("README.md can be read");
    assert!(links(&readme).len() > 5, "the README's links are not found: the reading of pages is broken");
}

#[test]
fn a_link_that_leads_nowhere_is_found() {
    let page = root().join("README.md");
    assert!(broken(&page, "docs/no-such-page.md").is_some());
    assert!(broken(&page, "#no-such-heading").is_some());
    assert!(broken(&page, "LICENSE").is_none());
    assert_eq!(links("a [b](c.md) `[no](x.md)`\n```\n[no](y.md)\n```\n"), ["c.md"]);
}

#[test]
fn every_piece_of_toml_in_the_pages_is_toml() {
    let mut pieces = 0;
    for page in files().into_iter().filter(|file| file.extension().is_some_and(|kind| kind == "md")) {
        let text = fs::read_to_string(&page).expect("a page is UTF-8");
        for piece in text.split("```toml\n").skip(1) {
            let piece = piece.split("\n```").next().unwrap_or_default();
            let read = piece.parse::<toml::Table>();
            assert!(
                read.is_ok(),
                "{}: {}\n{piece}",
                shown(&page),
                read.err().map(|error| error.to_string()).unwrap_or_default()
            );
            pieces += 1;
        }
    }
    assert!(pieces > 2, "only {pieces} pieces of TOML were found");
}

#[test]
fn the_readme_opens_with_what_it_is_for_and_exactly_two_commands() {
    let readme = fs::read_to_string(root().join("README.md")).expect("README.md can be read");
    let mut blocks = readme.split("```");
    let opening = blocks.next().expect("an opening");
    assert!(opening.len() > 150 && !opening.contains("\n## "), "the README opens with what it is for");
    let first = blocks.next().expect("a block of commands");
    let commands: Vec<&str> = first
        .lines()
        .skip(1)
        .map(|line| line.split('#').next().unwrap_or_default().trim())
        .filter(|line| !line.is_empty())
        .collect();
    assert_eq!(commands, ["make demo", "make test"]);
}
