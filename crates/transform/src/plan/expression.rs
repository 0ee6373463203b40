//! Expressions in a catalog's words: which columns they name, the same under other names, and plain defaults in the
//! other system's words. Nothing is parsed beyond words, names and quotes.

use crossfade_event::{Logical, catalog::Dialect};

/// A piece of an expression.
pub(super) enum Piece<'a> {
    /// A name of a column, as far as can be told: bare (in lower case) or from double quotes.
    Name(String, &'a str),
    Other(&'a str),
}

impl<'a> Piece<'a> {
    /// As it is written.
    pub(super) fn text(&self) -> &'a str {
        match self {
            Self::Name(_, text) | Self::Other(text) => text,
        }
    }
}

pub(super) fn pieces(text: &str) -> Vec<Piece<'_>> {
    let mut out = Vec::new();
    let mut rest = text;
    let mut before = ' ';
    while let Some(first) = rest.chars().next() {
        let length = match first {
            '\'' | '"' => quoted_length(rest, first),
            c if c.is_alphabetic() || c == '_' => {
                rest.find(|c: char| !c.is_alphanumeric() && c != '_' && c != '$').unwrap_or(rest.len())
            }
            c if c.is_ascii_digit() => rest.find(|c: char| !c.is_alphanumeric() && c != '.').unwrap_or(rest.len()),
            c => c.len_utf8(),
        };
        let (piece, after) = rest.split_at(length.min(rest.len()));
        let is_call = after.trim_start().starts_with('(');
        let qualified = before == '.' || before == ':';
        out.push(match first {
            '"' => Piece::Name(piece.trim_matches('"').replace("\"\"", "\""), piece),
            c if (c.is_alphabetic() || c == '_') && !is_call && !qualified => Piece::Name(piece.to_lowercase(), piece),
            _ => Piece::Other(piece),
        });
        before = piece.chars().next_back().unwrap_or(' ');
        rest = after;
    }
    out
}

fn quoted_length(text: &str, quote: char) -> usize {
    let mut chars = text.char_indices().skip(1).peekable();
    while let Some((at, c)) = chars.next() {
        if c == quote {
            match chars.peek() {
                Some((_, next)) if *next == quote => {
                    chars.next();
                }
                _ => return at + 1,
            }
        }
    }
    text.len()
}

/// Whether two names mean one column: in SQLite upper and lower case are the same.
pub(super) fn is_same(dialect: Dialect, one: &str, other: &str) -> bool {
    one == other || (dialect == Dialect::Sqlite && one.eq_ignore_ascii_case(other))
}

/// Whether the expression names the column.
pub(super) fn names(text: &str, column: &str, dialect: Dialect) -> bool {
    pieces(text).iter().any(|piece| matches!(piece, Piece::Name(name, _) if is_same(dialect, name, column)))
}

/// The expression with its columns under their new names.
pub(super) fn renamed(text: &str, new_name: &dyn Fn(&str) -> Option<String>) -> String {
    pieces(text)
        .iter()
        .map(|piece| match piece {
            Piece::Name(name, written) => match new_name(name) {
                Some(new) if new != *name => quote(&new),
                _ => (*written).to_owned(),
            },
            Piece::Other(text) => (*text).to_owned(),
        })
        .collect()
}

/// A name in double quotes.
pub(super) fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A default without functions: a literal, perhaps with a cast behind it.
pub(super) fn is_literal(text: &str) -> bool {
    literal(text).is_some()
}

/// The literal of `'a'::text`, `(-1)`, `NULL::x`, `true`.
fn literal(text: &str) -> Option<&str> {
    let text = text.trim();
    let text = text.strip_prefix('(').and_then(|inside| inside.strip_suffix(')')).unwrap_or(text).trim();
    let body = if text.starts_with('\'') {
        let end = quoted_length(text, '\'');
        let (body, tail) = text.split_at_checked(end)?;
        if !(tail.is_empty() || tail.starts_with("::")) {
            return None;
        }
        body
    } else {
        text.split_once("::").map_or(text, |(body, _)| body).trim()
    };
    let lower = body.to_lowercase();
    let number = body.parse::<f64>().is_ok() && body.bytes().all(|b| b.is_ascii_digit() || b"+-.eE".contains(&b));
    let word = matches!(lower.as_str(), "null" | "true" | "false");
    let quoted = body.starts_with('\'') && quoted_length(body, '\'') == body.len() && body.len() > 1;
    (number || word || quoted).then_some(body)
}

/// A default in the sink's words; `None` when it cannot be said there.
pub(super) fn default_in(text: &str, to: Dialect, logical: Logical) -> Option<String> {
    let lower = text.trim().to_lowercase();
    if matches!(lower.as_str(), "now()" | "current_timestamp" | "current_timestamp()") {
        return Some("CURRENT_TIMESTAMP".to_owned());
    }
    if lower == "current_date" {
        return Some("CURRENT_DATE".to_owned());
    }
    let body = literal(text)?;
    let word = body.to_lowercase();
    Some(match (to, word.as_str()) {
        (Dialect::Sqlite, "true") => "1".to_owned(),
        (Dialect::Sqlite, "false") => "0".to_owned(),
        (Dialect::Postgres, "1") if logical == Logical::Bool => "true".to_owned(),
        (Dialect::Postgres, "0") if logical == Logical::Bool => "false".to_owned(),
        (Dialect::Postgres, word) if logical == Logical::Bool && !matches!(word, "true" | "false" | "null") => {
            return None;
        }
        _ => body.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_columns_are_renamed() {
        let new = |name: &str| (name == "a").then(|| "b c".to_owned());
        assert_eq!(
            renamed("(a > 0) AND lower(a) <> 'a' AND x.a = \"a\"", &new),
            "(\"b c\" > 0) AND lower(\"b c\") <> 'a' AND x.a = \"b c\""
        );
        assert_eq!(renamed("a(a)", &new), "a(\"b c\")");
        assert!(names("((total >= 0))", "total", Dialect::Postgres));
        assert!(!names("'total'::text", "total", Dialect::Postgres));
        assert!(names("Total > 0", "TOTAL", Dialect::Sqlite) && !names("\"Total\" > 0", "total", Dialect::Postgres));
    }

    #[test]
    fn plain_defaults_are_said_in_the_other_systems_words() {
        assert_eq!(default_in("'new'::text", Dialect::Sqlite, Logical::Text).as_deref(), Some("'new'"));
        assert_eq!(default_in("true", Dialect::Sqlite, Logical::Bool).as_deref(), Some("1"));
        assert_eq!(default_in("1", Dialect::Postgres, Logical::Bool).as_deref(), Some("true"));
        assert_eq!(default_in("now()", Dialect::Sqlite, Logical::Timestamp).as_deref(), Some("CURRENT_TIMESTAMP"));
        assert_eq!(default_in("gen_random_uuid()", Dialect::Sqlite, Logical::Uuid), None);
        assert_eq!(default_in("'it''s'", Dialect::Postgres, Logical::Text).as_deref(), Some("'it''s'"));
        assert!(is_literal("'-1'::integer") && !is_literal("'a' || 'b'"));
    }
}
