//! What is wrong with a spec: one sentence with the place, and the nearest thing that would be right.

use std::{fmt, path::PathBuf};

/// A place in a file, counted from one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// The line.
    pub(crate) line: usize,
    /// The character in the line.
    pub(crate) column: usize,
}

impl Place {
    /// The place of a byte in a text.
    pub(crate) fn of(text: &str, byte: usize) -> Self {
        let before = text.get(..byte).unwrap_or(text);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        Self { line, column }
    }
}

/// A spec that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SpecError {
    file: PathBuf,
    place: Option<Place>,
    message: String,
    hint: Option<String>,
}

impl SpecError {
    /// An error of the file as a whole.
    pub(crate) fn whole(file: impl Into<PathBuf>, message: impl Into<String>) -> Self {
        Self { file: file.into(), place: None, message: message.into(), hint: None }
    }

    /// The same, at a place.
    #[must_use]
    pub(crate) fn at(self, place: Place) -> Self {
        Self { place: Some(place), ..self }
    }

    /// The same, with advice.
    #[must_use]
    pub(crate) fn advise(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    /// What to do, where it is more than to mend the place.
    pub(crate) fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }
}

impl fmt::Display for SpecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file.display())?;
        if let Some(place) = self.place {
            write!(f, "{}:{}:", place.line, place.column)?;
        }
        write!(f, " {}", self.message)
    }
}

impl std::error::Error for SpecError {}

/// The one of `known` that `word` was most likely meant to be.
pub(crate) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(word, candidate), candidate))
        .filter(|(likeness, _)| *likeness > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

/// `; did you mean "tables"?`, or the whole list where nothing is near.
pub(crate) fn suggestion<'a>(word: &str, known: impl IntoIterator<Item = &'a str> + Clone) -> String {
    if let Some(candidate) = nearest(word, known.clone()) {
        return format!("; did you mean {candidate:?}?");
    }
    let list: Vec<&str> = known.into_iter().collect();
    if list.is_empty() { String::new() } else { format!("; known are {}", list.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_counts_lines_and_characters_from_one() {
        assert_eq!(Place::of("ab\ncd", 0), Place { line: 1, column: 1 });
        assert_eq!(Place::of("ab\nüd", 5), Place { line: 2, column: 2 });
    }

    #[test]
    fn the_nearest_word_is_suggested_and_a_far_one_is_not() {
        assert_eq!(nearest("tabels", ["url", "tables", "kind"]), Some("tables"));
        assert_eq!(nearest("zzz", ["url", "tables"]), None);
        assert_eq!(suggestion("zzz", ["url", "tables"]), "; known are url, tables");
    }
}
