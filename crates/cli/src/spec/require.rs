//! `[[require]]`: what must hold in the source before anything is made of it.

use super::{Document, SpecError, source::SourceSpec};
use schemars::JsonSchema;
use serde::Deserialize;

/// Something that must hold in the source before the migration begins. `crossfade check` asks it at any time, `run` before it
/// makes anything.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Requirement {
    /// What must hold, in a few words.
    pub(crate) that: String,
    /// A question to the source, in its own SQL: each row of the answer is a reason not to begin.
    pub(crate) no_rows: String,
}

impl Requirement {
    /// How many rows the question gives.
    pub(crate) fn counting(&self) -> String {
        let question = self.no_rows.trim().trim_end_matches(';');
        // The question may end in a comment.
        format!("SELECT count(*) FROM (\n{question}\n) AS asked")
    }
}

/// Only a database answers questions.
pub(super) fn check(document: &Document<'_>, asked: &[Requirement], source: &SourceSpec) -> Result<(), SpecError> {
    if !asked.is_empty() && matches!(source, SourceSpec::Debezium(_)) {
        return Err(document.whole("[[require]] asks the source, and topics answer no questions; leave it out"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_asked_for_its_number_of_rows() {
        let asked = Requirement { that: "x".into(), no_rows: "SELECT 1 -- why\n;  ".into() };
        assert_eq!(asked.counting(), "SELECT count(*) FROM (\nSELECT 1 -- why\n\n) AS asked");
    }
}
