//! The file of query pairs: one question in the words of both sides, the values to ask it with, when both answers are the
//! same, and how much slower the target may be.

use crate::spec::{Span, SpecError, load_beside};
use crossfade_dualread::{LatencyBudget, Rules, pairs::Quantile};
use serde::Deserialize;
use std::{collections::BTreeSet, path::Path, time::Duration};

/// How often a pair is asked unless said.
const RUNS: u32 = 20;

/// What is below this is not held against the target unless said.
const SLACK: Duration = Duration::from_millis(1);

/// A file of query pairs.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PairsFile {
    runs: Option<u32>,
    latency: Option<Latency>,
    #[serde(default)]
    compare: Rules,
    #[serde(default, rename = "query")]
    pub(crate) queries: Vec<QueryPair>,
}

/// One pair.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct QueryPair {
    pub(crate) name: String,
    pub(crate) source: String,
    pub(crate) target: String,
    pub(crate) params: Option<ParamsQuery>,
    compare: Option<Rules>,
    runs: Option<u32>,
    latency: Option<Latency>,
}

/// Where the values come from that a pair is asked with.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ParamsQuery {
    /// A query; each of its rows is one set of values.
    pub(crate) sql: String,
    /// Who is asked.
    #[serde(default)]
    pub(crate) on: End,
    /// The columns that are the source's values, in order; all unless said.
    #[serde(default)]
    pub(crate) source: Vec<String>,
    /// The same for the target.
    #[serde(default)]
    pub(crate) target: Vec<String>,
}

/// One end of the migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum End {
    #[default]
    Source,
    Target,
}

/// A latency budget.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
struct Latency {
    within: Part,
    #[serde(default)]
    at: Quantile,
    slack: Option<Span>,
}

/// A part of the baseline: `10%`, `150%`.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(try_from = "String")]
struct Part(f64);

impl TryFrom<String> for Part {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let number = text.trim().strip_suffix('%').and_then(|number| number.trim_end().parse::<f64>().ok());
        let number = number.filter(|number| number.is_finite() && *number >= 0.0);
        number.map(|number| Self(number / 100.0)).ok_or_else(|| {
            format!("{text:?} is no part of the baseline; write a number and a percent sign, for example 10%")
        })
    }
}

impl PairsFile {
    /// Reads a file.
    ///
    /// # Errors
    /// The first thing that is wrong, with its place.
    pub(crate) fn load(path: &Path) -> Result<Self, SpecError> {
        let file: Self = load_beside(path)?;
        let whole = |message: String| SpecError::whole(path, message);
        if file.queries.is_empty() {
            return Err(whole("there is no [[query]] in it".to_owned())
                .advise("write [[query]] with a name, and the SQL for source and target"));
        }
        let mut names = BTreeSet::new();
        for query in &file.queries {
            if query.name.trim().is_empty() {
                return Err(whole("a [[query]] has an empty name".to_owned()));
            }
            if !names.insert(query.name.as_str()) {
                return Err(whole(format!("two queries are called {:?}", query.name)));
            }
            if query.runs.or(file.runs) == Some(0) {
                return Err(whole(format!(
                    "the query {:?} is to be asked no times: write runs = 1 or more",
                    query.name
                )));
            }
        }
        Ok(file)
    }

    /// The rules of one of its pairs.
    pub(crate) fn rules(&self, query: &QueryPair) -> Rules {
        query.compare.clone().unwrap_or_else(|| self.compare.clone())
    }

    /// How often one of its pairs is asked.
    pub(crate) fn runs(&self, query: &QueryPair) -> u32 {
        query.runs.or(self.runs).unwrap_or(RUNS)
    }

    /// How much slower the target may be with one of its pairs.
    pub(crate) fn budget(&self, query: &QueryPair) -> Option<(Quantile, LatencyBudget)> {
        let Latency { within, at, slack } = query.latency.or(self.latency)?;
        Some((at, LatencyBudget { over: within.0, slack: slack.map_or(SLACK, |slack| slack.0) }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<PairsFile, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("queries.toml");
        std::fs::write(&path, text).unwrap();
        PairsFile::load(&path).map_err(|error| error.to_string())
    }

    const ONE: &str = "[[query]]\nname = \"a\"\nsource = \"SELECT 1\"\ntarget = \"SELECT 1\"\n";

    #[test]
    fn what_a_pair_does_not_say_the_file_says() {
        let file = read(&format!(
            "runs = 5\nlatency = {{ within = \"10%\" }}\ncompare = {{ order = \"any\" }}\n{ONE}\
             [[query]]\nname = \"b\"\nsource = \"SELECT 2\"\ntarget = \"SELECT 2\"\nruns = 7\n\
             latency = {{ within = \"150%\", at = \"p50\", slack = \"5ms\" }}\ncompare = {{ ignore = [\"x\"] }}\n"
        ))
        .unwrap();
        let [a, b] = file.queries.as_slice() else { panic!("two pairs") };
        assert_eq!((file.runs(a), file.runs(b)), (5, 7));
        let budget = |within, slack_ms| LatencyBudget { over: within, slack: Duration::from_millis(slack_ms) };
        assert_eq!(file.budget(a), Some((Quantile::P95, budget(0.1, 1))));
        assert_eq!(file.budget(b), Some((Quantile::P50, budget(1.5, 5))));
        assert!(file.rules(b).ignore.has("x") && file.rules(a) != file.rules(b));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        for (text, words) in [
            ("", vec!["no [[query]]"]),
            (&format!("{ONE}{ONE}"), vec!["two queries", "\"a\""]),
            (&format!("{ONE}run = 5\n"), vec!["unknown key \"run\"", "runs"]),
            (&format!("{ONE}runs = 0\n"), vec!["no times"]),
            (&format!("{ONE}compare = {{ ignored = [] }}\n"), vec!["ignored", "ignore"]),
            (&format!("{ONE}latency = {{ within = \"ten\" }}\n"), vec!["ten", "10%"]),
            (&format!("{ONE}latency = {{ within = \"-1%\" }}\n"), vec!["-1%"]),
            ("[[query]]\nname = \"a\"\nsource = \"SELECT 1\"\n", vec!["target", "missing"]),
        ] {
            let refused = read(text).unwrap_err();
            assert!(words.iter().all(|word| refused.contains(word)), "{refused}\nhas not {words:?}");
        }
    }
}
