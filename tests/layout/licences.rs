//! What may be linked: the lists of `deny.toml`, held here too, for not every machine has cargo-deny.

use crate::graph::{list, metadata, root, text};
use std::{collections::BTreeSet, fs};

fn rules() -> toml::Table {
    let file = fs::read_to_string(root().join("deny.toml")).expect("deny.toml can be read");
    file.parse().expect("deny.toml is TOML")
}

fn texts(value: &toml::Value) -> BTreeSet<String> {
    let entries = value.as_array().expect("a list").iter();
    entries.map(|entry| entry.as_str().expect("a list of texts").to_owned()).collect()
}

/// Whether an SPDX expression can be met with the licences allowed. `/` is how old manifests write OR.
fn is_met(expression: &str, allowed: &BTreeSet<String>) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut at = 0;
    let met = any_of(&words, &mut at, allowed);
    met && at == words.len()
}

fn any_of(words: &[&str], at: &mut usize, allowed: &BTreeSet<String>) -> bool {
    let mut met = all_of(words, at, allowed);
    while words.get(*at) == Some(&"OR") {
        *at += 1;
        met |= all_of(words, at, allowed);
    }
    met
}

fn all_of(words: &[&str], at: &mut usize, allowed: &BTreeSet<String>) -> bool {
    let mut met = one(words, at, allowed);
    while words.get(*at) == Some(&"AND") {
        *at += 1;
        met &= one(words, at, allowed);
    }
    met
}

fn one(words: &[&str], at: &mut usize, allowed: &BTreeSet<String>) -> bool {
    let Some(word) = words.get(*at) else { return false };
    *at += 1;
    if *word == "(" {
        let met = any_of(words, at, allowed);
        *at += 1;
        return met;
    }
    if words.get(*at) == Some(&"WITH") {
        let exception = words.get(*at + 1).copied().unwrap_or_default();
        *at += 2;
        return allowed.contains(&format!("{word} WITH {exception}"));
    }
    allowed.contains(*word)
}

#[test]
fn every_licence_and_every_source_is_one_that_deny_toml_allows() {
    let rules = rules();
    let allowed = texts(&rules["licenses"]["allow"]);
    let registries = texts(&rules["sources"]["allow-registry"]);
    let banned: Vec<&str> =
        rules["bans"]["deny"].as_array().expect("a list").iter().filter_map(|ban| ban["crate"].as_str()).collect();
    let everything = metadata(false);
    let packages = list(&everything, "packages");
    assert!(packages.len() > 100, "only {} packages: the reading of cargo's metadata is broken", packages.len());
    for package in packages {
        let (name, licence) = (text(package, "name"), text(package, "license"));
        assert!(is_met(licence, &allowed), "{name} has the licence `{licence}`, which deny.toml does not allow");
        assert!(!banned.contains(&name), "deny.toml bans {name}");
        if let Some(source) = package["source"].as_str() {
            let registry = source.trim_start_matches("registry+").trim_start_matches("sparse+");
            assert!(registries.contains(registry), "{name} comes from {source}, which deny.toml does not allow");
        }
    }
}

#[test]
fn an_advisory_is_ignored_only_with_a_reason_and_for_a_crate_that_is_there() {
    let rules = rules();
    for ignored in rules["advisories"]["ignore"].as_array().expect("a list") {
        let (id, reason) = (ignored["id"].as_str().expect("an id"), ignored["reason"].as_str().expect("a reason"));
        let name = reason.split(' ').next().unwrap_or_default();
        let lock = fs::read_to_string(root().join("Cargo.lock")).expect("Cargo.lock can be read");
        assert!(lock.contains(&format!("name = \"{name}\"")), "{id} is ignored for {name}, which is not linked");
    }
}

#[test]
fn expressions_are_read_as_spdx_means_them() {
    let allowed = ["MIT", "Apache-2.0", "Apache-2.0 WITH LLVM-exception"].map(str::to_owned).into();
    for met in
        ["MIT", "MIT/GPL-3.0", "GPL-3.0 OR MIT", "(GPL-3.0 OR MIT) AND Apache-2.0", "Apache-2.0 WITH LLVM-exception"]
    {
        assert!(is_met(met, &allowed), "{met}");
    }
    for unmet in
        ["", "GPL-3.0", "MIT AND GPL-3.0", "(MIT OR Apache-2.0) AND GPL-3.0", "MIT WITH GCC-exception", "MIT MIT"]
    {
        assert!(!is_met(unmet, &allowed), "{unmet}");
    }
}
