//! Which tables a spec means: `schema.table` with `*` and `?`, `!` in front excludes, later patterns win. A part in
//! double quotes is taken as it stands.

use crossfade_connector::Failure;
use crossfade_event::TableName;

/// Our own objects live here; they never match.
pub(crate) const OWN_SCHEMA: &str = "crossfade";

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Glob(Vec<char>),
    Literal(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Pattern {
    text: String,
    excludes: bool,
    schema: Part,
    table: Part,
}

/// A spec's table patterns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Patterns {
    patterns: Vec<Pattern>,
    by_root: bool,
}

impl Patterns {
    /// Reads the patterns.
    ///
    /// # Errors
    /// `Misconfigured` for one that is not `schema.table`.
    pub fn parse(patterns: &[String]) -> Result<Self, Failure> {
        let patterns = patterns.iter().map(|text| Pattern::parse(text)).collect::<Result<_, _>>()?;
        Ok(Self { patterns, by_root: false })
    }

    /// Whether a partition tree is meant as one table, under its root's name, instead of leaf by leaf.
    #[must_use]
    pub fn by_root(self, by_root: bool) -> Self {
        Self { by_root, ..self }
    }

    pub(crate) fn is_by_root(&self) -> bool {
        self.by_root
    }

    /// Whether a table is meant.
    pub fn matches(&self, name: &TableName) -> bool {
        self.verdict(name) == Some(true)
    }

    /// What the patterns say of a table: taken, excluded, or `None` where none speaks of it.
    pub fn verdict(&self, name: &TableName) -> Option<bool> {
        if is_system(&name.schema) {
            return Some(false);
        }
        self.patterns.iter().rev().find(|pattern| pattern.matches(name)).map(|pattern| !pattern.excludes)
    }

    /// The tables that are meant, of those that exist.
    ///
    /// # Errors
    /// `Misconfigured` when a pattern (one that excludes, too) matches nothing: a typing error would otherwise move
    /// less, or more, than was meant.
    pub fn select(&self, existing: &[TableName]) -> Result<Vec<TableName>, Failure> {
        self.select_beside(existing, &[])
    }

    /// The same, where beside the tables there are other relations, views above all: one may be excluded, and none is meant.
    ///
    /// # Errors
    /// As [`Self::select`].
    pub fn select_beside(&self, existing: &[TableName], others: &[TableName]) -> Result<Vec<TableName>, Failure> {
        for pattern in &self.patterns {
            let others = if pattern.excludes { others } else { &[] };
            if !existing.iter().chain(others).any(|name| !is_system(&name.schema) && pattern.matches(name)) {
                return Err(pattern.matches_nothing(existing));
            }
        }
        let mut found: Vec<TableName> = existing.iter().filter(|name| self.matches(name)).cloned().collect();
        found.sort();
        Ok(found)
    }
}

impl Pattern {
    fn parse(text: &str) -> Result<Self, Failure> {
        let (excludes, body) = match text.strip_prefix('!') {
            Some(body) => (true, body),
            None => (false, text),
        };
        let refuse = || {
            Failure::misconfigured(
                "reading the table patterns",
                format!("`{text}` is not a table pattern"),
                "Write schema.table, with * and ? as wildcards, ! in front to exclude, and double quotes around a \
                 part that is to be taken as it stands",
            )
        };
        let (schema, rest) = Part::read(body).ok_or_else(refuse)?;
        let (table, rest) = rest.strip_prefix('.').and_then(Part::read).ok_or_else(refuse)?;
        if !rest.is_empty() {
            return Err(refuse());
        }
        Ok(Self { text: text.to_owned(), excludes, schema, table })
    }

    fn matches(&self, name: &TableName) -> bool {
        self.schema.matches(&name.schema) && self.table.matches(&name.name)
    }

    fn matches_nothing(&self, existing: &[TableName]) -> Failure {
        let wanted = self.text.trim_start_matches('!');
        let nearest = existing
            .iter()
            .filter(|name| !is_system(&name.schema))
            .max_by(|a, b| {
                let near = |name: &TableName| strsim::jaro_winkler(wanted, &name.to_string());
                near(a).total_cmp(&near(b))
            })
            .map(|name| format!("The nearest one is {name}"));
        Failure::misconfigured(
            "looking for the tables of the spec",
            format!("the pattern `{}` matches no table", self.text),
            nearest.unwrap_or_else(|| "The role sees no table at all in this database".to_owned()),
        )
    }
}

impl Part {
    /// The part at the front of `text` (up to a dot), and what follows.
    fn read(text: &str) -> Option<(Self, &str)> {
        if let Some(mut rest) = text.strip_prefix('"') {
            let mut literal = String::new();
            loop {
                let (head, tail) = rest.split_once('"')?;
                literal.push_str(head);
                match tail.strip_prefix('"') {
                    Some(more) => {
                        literal.push('"');
                        rest = more;
                    }
                    None => return (!literal.is_empty()).then_some((Self::Literal(literal), tail)),
                }
            }
        }
        let end = text.find('.').unwrap_or(text.len());
        let (part, rest) = text.split_at(end);
        (!part.is_empty()).then(|| (Self::Glob(part.chars().collect()), rest))
    }

    fn matches(&self, name: &str) -> bool {
        match self {
            Self::Literal(literal) => literal == name,
            Self::Glob(glob) => glob_matches(glob, &name.chars().collect::<Vec<_>>()),
        }
    }
}

fn glob_matches(glob: &[char], text: &[char]) -> bool {
    match (glob.split_first(), text.split_first()) {
        (None, None) => true,
        (Some(('*', rest)), _) => {
            glob_matches(rest, text) || text.split_first().is_some_and(|(_, tail)| glob_matches(glob, tail))
        }
        (Some(('?', rest)), Some((_, tail))) => glob_matches(rest, tail),
        (Some((wanted, rest)), Some((seen, tail))) => wanted == seen && glob_matches(rest, tail),
        _ => false,
    }
}

/// Schemas that no pattern can mean: the server's and our own.
pub(crate) fn is_system(schema: &str) -> bool {
    schema == OWN_SCHEMA || schema == "information_schema" || schema.starts_with("pg_")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patterns(texts: &[&str]) -> Patterns {
        Patterns::parse(&texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>()).unwrap()
    }

    fn name(schema: &str, table: &str) -> TableName {
        TableName::new(schema, table)
    }

    #[test]
    fn later_patterns_win_and_own_tables_never_match() {
        let patterns = patterns(&["*.*", "!app.log_*", "app.log_keep"]);
        assert!(patterns.matches(&name("app", "users")));
        assert!(!patterns.matches(&name("app", "log_1")));
        assert!(patterns.matches(&name("app", "log_keep")));
        assert!(!patterns.matches(&name("crossfade", "positions")));
        assert!(!patterns.matches(&name("pg_catalog", "pg_class")));
    }

    #[test]
    fn quoted_parts_are_literal() {
        let patterns = patterns(&[r#""My.Schema"."odd""*name""#]);
        assert!(patterns.matches(&name("My.Schema", "odd\"*name")));
        assert!(!patterns.matches(&name("My.Schema", "odd\"xname")));
        assert!(Patterns::parse(&["users".to_owned()]).is_err());
        assert!(Patterns::parse(&["a.b.c".to_owned()]).is_err());
    }

    #[test]
    fn a_view_may_be_excluded_and_is_never_meant() {
        let (tables, views) = ([name("app", "users")], [name("app", "busy")]);
        let found = patterns(&["app.*", "!app.busy"]).select_beside(&tables, &views).unwrap();
        assert_eq!(found, tables);
        assert!(patterns(&["app.*", "app.busy"]).select_beside(&tables, &views).is_err());
        assert!(patterns(&["app.*", "!app.bsuy"]).select_beside(&tables, &views).is_err());
    }

    #[test]
    fn a_pattern_that_matches_nothing_names_the_nearest_table() {
        let error = patterns(&["app.usres"]).select(&[name("app", "users"), name("app", "orders")]).unwrap_err();
        assert!(error.to_string().contains("The nearest one is app.users"), "{error}");
    }
}
