//! What the status says of comparing both sides all the time.

use serde::{Deserialize, Serialize};

/// How far continuous verification has come, and what it has found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyStatus {
    /// `waiting` (for the sink to follow, or for an end that cannot be asked), `passing` (everything is being compared) or
    /// `following` (what changes is).
    pub doing: String,
    /// What is waited for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting: Option<String>,
    /// When everything was last compared to the end, ISO 8601 UTC.
    pub passed_at: Option<String>,
    /// The source position from which on that comparison does not speak by itself.
    pub passed_position: Option<String>,
    /// The source position up to which both sides are known to agree; `null` where they are not.
    pub position: Option<String>,
    /// Entries of the log between there and the sink's place: they have not been compared yet.
    pub pending: u64,
    /// Parts of the comparison of everything that are done, and how many there are.
    pub parts_done: u64,
    /// See `parts_done`.
    pub parts: u64,
    /// Buckets that differed and were not looked into, for enough differences were found.
    pub open_buckets: u64,
    /// Rows of the target that were compared one by one since the run began, for they had changed.
    pub rows_followed: u64,
    /// Rows that differ, as far as they were looked at.
    pub differences: u64,
    /// Some of them.
    pub samples: Vec<DifferenceStatus>,
    /// What is wrong beside rows: references to nothing, new keys that were given twice.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub broken: Vec<String>,
}

/// A row that differs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DifferenceStatus {
    /// The target's table.
    pub table: String,
    /// `missing`, `extra` or `different`.
    pub kind: String,
    /// The hash of the row's key in the target, hexadecimal.
    pub key_hash: String,
    /// The columns whose values differ.
    pub columns: Vec<String>,
}

impl VerifyStatus {
    /// The same, of a run that has ended.
    pub(crate) fn ended(self) -> Self {
        let waiting = Some("nobody runs the migration".to_owned());
        Self { doing: "waiting".to_owned(), waiting, ..self }
    }

    /// In lines for a person.
    pub(crate) fn lines(&self) -> Vec<(&'static str, String)> {
        let mut first = match (self.doing.as_str(), &self.waiting) {
            ("waiting", Some(why)) => format!("waiting: {why}"),
            ("passing", _) => format!("everything is being compared, {} of {} parts done", self.parts_done, self.parts),
            (doing, _) => doing.to_owned(),
        };
        if let Some(position) = &self.position {
            first.push_str(&format!("; both sides agree up to {position}, {} entries of the log to go", self.pending));
        }
        let mut lines = vec![("verifying", first)];
        if let Some(at) = &self.passed_at {
            lines.push(("last pass", format!("{at}, {} differences", self.differences)));
        }
        for one in &self.samples {
            let columns =
                if one.columns.is_empty() { String::new() } else { format!(" in {}", one.columns.join(", ")) };
            lines.push(("differs", format!("{}: {} key {}{columns}", one.kind, one.table, one.key_hash)));
        }
        lines.extend(self.broken.iter().map(|what| ("broken", what.clone())));
        if self.open_buckets > 0 {
            lines.push(("open", format!("{} buckets differ and were not looked into", self.open_buckets)));
        }
        lines
    }
}
