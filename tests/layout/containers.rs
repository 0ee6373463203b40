//! `Dockerfile` and `docker-compose.yml` are for people who have Docker; here they are only read: their syntax holds, and
//! what they name exists. Nothing is built or started.

use crate::graph::root;
use std::fs;
use yaml_rust2::{Yaml, YamlLoader};

fn compose() -> Yaml {
    let text = fs::read_to_string(root().join("docker-compose.yml")).expect("docker-compose.yml can be read");
    let mut documents = YamlLoader::load_from_str(&text).expect("docker-compose.yml is YAML");
    assert_eq!(documents.len(), 1, "docker-compose.yml is one document");
    documents.remove(0)
}

fn names(value: &Yaml) -> Vec<&str> {
    value.as_hash().map(|table| table.keys().filter_map(Yaml::as_str).collect()).unwrap_or_default()
}

/// The names in a list, or the keys of a table: compose takes both for `depends_on`.
fn listed(value: &Yaml) -> Vec<&str> {
    value.as_vec().map_or_else(|| names(value), |list| list.iter().filter_map(Yaml::as_str).collect())
}

#[test]
fn every_service_can_be_had_and_depends_on_services_that_are_there() {
    let compose = compose();
    let known = ["name", "services", "volumes", "networks", "secrets", "configs"];
    for part in names(&compose) {
        assert!(known.contains(&part), "docker-compose.yml has a part `{part}` that compose does not know");
    }
    let services = names(&compose["services"]);
    for wanted in ["source", "target", "kafka", "cassandra", "crossfade"] {
        assert!(services.contains(&wanted), "docker-compose.yml has no service `{wanted}`");
    }
    let volumes = names(&compose["volumes"]);
    for name in &services {
        let service = &compose["services"][*name];
        let image = service["image"].as_str();
        assert!(image.is_some() || !service["build"].is_badvalue(), "{name} has neither an image nor a build");
        if let Some(image) = image.filter(|_| service["build"].is_badvalue()) {
            let tag = image.rsplit_once(':').map(|(_, tag)| tag);
            assert!(tag.is_some_and(|tag| tag != "latest"), "{name}: the image {image} names no version");
        }
        for other in listed(&service["depends_on"]) {
            assert!(services.contains(&other), "{name} depends on {other}, which is no service");
        }
        for mount in listed(&service["volumes"]) {
            let place = mount.split(':').next().unwrap_or_default();
            let there = if place.starts_with('.') { root().join(place).exists() } else { volumes.contains(&place) };
            assert!(there, "{name} mounts {place}, which is not there");
        }
    }
}

/// Instructions with their continuation lines put together.
fn instructions(dockerfile: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    let mut open = false;
    for line in dockerfile.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (part, more) = line.strip_suffix('\\').map_or((line, false), |part| (part, true));
        match found.last_mut().filter(|_| open) {
            Some(last) => last.push_str(part),
            None => found.push(part.to_owned()),
        }
        open = more;
    }
    assert!(!open, "the Dockerfile ends inside an instruction");
    found
}

#[test]
fn the_dockerfile_holds_known_instructions_over_files_that_are_there() {
    let text = fs::read_to_string(root().join("Dockerfile")).expect("Dockerfile can be read");
    let instructions = instructions(&text);
    let known =
        ["FROM", "RUN", "COPY", "WORKDIR", "ENV", "ARG", "USER", "ENTRYPOINT", "CMD", "VOLUME", "EXPOSE", "LABEL"];
    let mut stages = Vec::new();
    assert!(instructions.first().is_some_and(|first| first.starts_with("FROM ")), "a Dockerfile begins with FROM");
    for instruction in &instructions {
        let mut words = instruction.split_whitespace();
        let verb = words.next().unwrap_or_default();
        assert!(known.contains(&verb), "the Dockerfile has the unknown instruction `{verb}`");
        let mut rest: Vec<&str> = words.collect();
        match verb {
            "FROM" => stages.extend(instruction.split(" AS ").nth(1).map(str::trim)),
            "COPY" if rest.first().is_some_and(|word| word.starts_with("--from=")) => {
                let stage = rest[0].trim_start_matches("--from=");
                assert!(stages.contains(&stage), "the Dockerfile copies from the unknown stage `{stage}`");
            }
            "COPY" => {
                rest.pop().expect("COPY names a destination");
                for file in rest {
                    assert!(root().join(file).exists(), "the Dockerfile copies `{file}`, which is not there");
                }
            }
            "ENTRYPOINT" | "CMD" => {
                let list: Result<Vec<String>, _> = serde_json::from_str(instruction[verb.len()..].trim());
                assert!(list.is_ok(), "{verb} is written as a JSON list, so that signals reach the program");
            }
            _ => {}
        }
    }
}
