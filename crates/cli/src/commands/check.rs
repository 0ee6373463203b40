//! `check`: rights, settings and the target, each with its exact remedy. Writes nothing.

use crate::{
    error::CliError,
    output,
    spec::Spec,
    wiring::{self, Preflight},
};
use serde::Serialize;

/// The answer of `check --json`.
#[derive(Debug, Serialize)]
struct Answer<'a> {
    migration: &'a str,
    ok: bool,
    tables: usize,
    findings: &'a [Finding],
}

/// One thing that is wrong or worth knowing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    /// `source`, `sink`, `log` or `spec`.
    pub(crate) end: &'static str,
    /// The object: a table, a setting, a role.
    pub(crate) object: String,
    /// What is wrong.
    pub(crate) problem: String,
    /// The exact remedy.
    pub(crate) remedy: String,
    /// False for what is only worth knowing.
    pub(crate) fatal: bool,
}

/// Checks, and refuses when anything is in the way.
pub(crate) async fn check(spec: &Spec, as_json: bool) -> Result<(), CliError> {
    let Preflight { tables, findings } = wiring::preflight(spec).await?;
    let fatal = findings.iter().filter(|finding| finding.fatal).count();
    if as_json {
        output::json(&Answer { migration: spec.name.as_str(), ok: fatal == 0, tables, findings: &findings })?;
    } else {
        output::print(&render(tables, &findings))?;
    }
    match fatal {
        0 => Ok(()),
        1 => Err(CliError::refused("one thing is in the way").hint("do what is said above, then check again")),
        many => {
            Err(CliError::refused(format!("{many} things are in the way"))
                .hint("do what is said above, then check again"))
        }
    }
}

/// For people: what is in the way first.
fn render(tables: usize, findings: &[Finding]) -> String {
    let mut text = String::new();
    for (word, fatal) in [("refused", true), ("note", false)] {
        for finding in findings.iter().filter(|finding| finding.fatal == fatal) {
            text.push_str(&format!("{word:<8} {} {}: {}\n", finding.end, finding.object, finding.problem));
            for line in finding.remedy.lines() {
                text.push_str(&format!("         {line}\n"));
            }
        }
    }
    if !findings.iter().any(|finding| finding.fatal) {
        text.push_str(&format!("ready: {tables} tables can be moved\n"));
    }
    text
}
