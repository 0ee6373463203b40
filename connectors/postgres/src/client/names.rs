//! Names and texts inside SQL. Everything that builds a statement goes through here.

use crossfade_connector::Failure;
use crossfade_event::TableName;
use std::fmt;

/// A name that is safe to stand in SQL: quoted, its quotes doubled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuotedName(String);

impl QuotedName {
    /// The text with its quotes.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for QuotedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What the server prints for a value, as the stream brings it. A cast to text is something else for some types (boolean,
/// inet, char(n)); `format` always is what is printed.
pub(crate) fn printed(value: &str) -> String {
    format!("CASE WHEN {value} IS DISTINCT FROM NULL THEN pg_catalog.format('%s', {value}) END")
}

/// Quotes one name.
///
/// # Errors
/// `Misconfigured` for a name with a NUL, or an empty one.
pub fn quote_ident(name: &str) -> Result<QuotedName, Failure> {
    if name.is_empty() || name.contains('\0') {
        return Err(Failure::misconfigured(
            "writing a name into SQL",
            format!("{name:?} is not a possible name"),
            "Names are not empty and hold no NUL",
        ));
    }
    Ok(QuotedName(format!("\"{}\"", name.replace('"', "\"\""))))
}

/// Quotes a table's name: `"schema"."table"`.
///
/// # Errors
/// As [`quote_ident`].
pub fn quote_table(name: &TableName) -> Result<QuotedName, Failure> {
    Ok(QuotedName(format!("{}.{}", quote_ident(&name.schema)?, quote_ident(&name.name)?)))
}

/// Quotes a text as a literal, for the few places that take no parameter (replication commands, utility statements).
/// A NUL cannot stand in any text of PostgreSQL, so it is left out of the question by the server's own refusal.
pub fn quote_literal(text: &str) -> String {
    if text.contains('\\') {
        format!(" E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
    } else {
        format!("'{}'", text.replace('\'', "''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_are_doubled_and_nul_is_refused() {
        assert_eq!(quote_ident(r#"a"; DROP TABLE b; --"#).unwrap().as_str(), r#""a""; DROP TABLE b; --""#);
        assert!(quote_ident("a\0b").is_err());
        assert_eq!(quote_table(&TableName::new("S x", "T")).unwrap().as_str(), r#""S x"."T""#);
        assert_eq!(quote_literal(r"it's \ here"), r" E'it''s \\ here'");
    }
}
