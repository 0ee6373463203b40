//! Reads what SQLite keeps only as SQL text: the elements and the predicate of an index, the checks and the
//! generated columns of a table. A tokenizer and no more: expressions are carried as they are written.

use crate::client::quoted;

/// A piece of SQL: where it stands in the text, and what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Token<'a> {
    text: &'a str,
    start: usize,
}

impl Token<'_> {
    fn is(&self, word: &str) -> bool {
        self.text.eq_ignore_ascii_case(word)
    }

    fn end(&self) -> usize {
        self.start + self.text.len()
    }
}

/// Words, quoted names, strings, numbers and single signs; comments and blanks fall out.
fn tokens(sql: &str) -> Vec<Token<'_>> {
    let bytes = sql.as_bytes();
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let rest = sql.get(at..).unwrap_or_default();
        let length = match byte {
            b if b.is_ascii_whitespace() => {
                at += 1;
                continue;
            }
            b'-' if rest.starts_with("--") => {
                at += rest.find('\n').map_or(rest.len(), |end| end + 1);
                continue;
            }
            b'/' if rest.starts_with("/*") => {
                at += rest.find("*/").map_or(rest.len(), |end| end + 2);
                continue;
            }
            b'"' | b'\'' | b'`' => quoted_length(rest, *byte),
            b'[' => rest.find(']').map_or(rest.len(), |end| end + 1),
            b if b.is_ascii_alphanumeric() || *b == b'_' || *b >= 0x80 => rest
                .find(|c: char| c.is_ascii() && !c.is_ascii_alphanumeric() && c != '_' && c != '$' && c != '.')
                .unwrap_or(rest.len()),
            _ => 1,
        };
        found.push(Token { text: rest.get(..length).unwrap_or_default(), start: at });
        at += length.max(1);
    }
    found
}

fn quoted_length(text: &str, quote: u8) -> usize {
    let bytes = text.as_bytes();
    let mut at = 1;
    while let Some(byte) = bytes.get(at) {
        if *byte == quote {
            if bytes.get(at + 1) != Some(&quote) {
                return at + 1;
            }
            at += 1;
        }
        at += 1;
    }
    bytes.len()
}

/// The index of the token that closes the parenthesis opened at `open`.
fn closing(tokens: &[Token<'_>], open: usize) -> Option<usize> {
    let mut depth = 0;
    for (index, token) in tokens.iter().enumerate().skip(open) {
        match token.text {
            "(" => depth += 1,
            ")" => {
                depth -= 1;
                if depth == 0 {
                    return Some(index);
                }
            }
            _ => {}
        }
    }
    None
}

/// Pieces between the commas at the top level.
fn split<'t, 'a>(tokens: &'t [Token<'a>]) -> Vec<&'t [Token<'a>]> {
    let mut depth = 0;
    tokens
        .split(|token| {
            match token.text {
                "(" => depth += 1,
                ")" => depth -= 1,
                _ => {}
            }
            depth == 0 && token.text == ","
        })
        .collect()
}

fn text_of<'a>(sql: &'a str, tokens: &[Token<'_>]) -> &'a str {
    match (tokens.first(), tokens.last()) {
        (Some(first), Some(last)) => sql.get(first.start..last.end()).unwrap_or_default(),
        _ => "",
    }
}

/// An index by its `CREATE INDEX`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct IndexText {
    /// What stands between the parentheses, element by element.
    pub(crate) elements: Vec<String>,
    /// What follows WHERE.
    pub(crate) predicate: Option<String>,
    /// Everything after the table's name.
    pub(crate) tail: String,
}

/// Reads a `CREATE INDEX`.
pub(crate) fn index(sql: &str) -> IndexText {
    let tokens = tokens(sql);
    let Some(open) = tokens.iter().position(|token| token.text == "(") else { return IndexText::default() };
    let Some(close) = closing(&tokens, open) else { return IndexText::default() };
    let inner = tokens.get(open + 1..close).unwrap_or_default();
    let elements = split(inner).into_iter().map(|piece| text_of(sql, piece).to_owned()).collect();
    let predicate = tokens
        .get(close + 1)
        .filter(|token| token.is("WHERE"))
        .map(|_| text_of(sql, tokens.get(close + 2..).unwrap_or_default()).to_owned());
    let tail = text_of(sql, tokens.get(open..).unwrap_or_default()).to_owned();
    IndexText { elements, predicate, tail }
}

/// The places of the words behind the first parenthesis that may be columns: neither calls nor strings.
fn column_words<'a>(sql: &'a str) -> impl Iterator<Item = Token<'a>> {
    let tokens = tokens(sql);
    let open = tokens.iter().position(|token| token.text == "(").unwrap_or(tokens.len());
    let is_call = |at: usize| tokens.get(at + 1).is_some_and(|next| next.text == "(");
    let words: Vec<Token<'a>> = (open..tokens.len())
        .filter(|at| !is_call(*at))
        .filter_map(|at| tokens.get(at).copied())
        .filter(|token| !token.text.starts_with('\''))
        .collect();
    words.into_iter()
}

/// Whether a `CREATE INDEX` speaks of a column.
pub(crate) fn names_column(sql: &str, column: &str) -> bool {
    column_words(sql).any(|token| unquoted(token.text).eq_ignore_ascii_case(column))
}

/// A `CREATE INDEX` over columns that have other names now: pairs of the old one and the new one.
pub(crate) fn with_columns_renamed(sql: &str, renamed: &[(&str, &str)]) -> String {
    let mut out = String::with_capacity(sql.len());
    let mut end = 0;
    for token in column_words(sql) {
        let word = unquoted(token.text);
        let Some((_, new)) = renamed.iter().find(|(old, _)| old.eq_ignore_ascii_case(&word)) else { continue };
        out.push_str(sql.get(end..token.start).unwrap_or_default());
        out.push_str(&quoted(new));
        end = token.end();
    }
    out.push_str(sql.get(end..).unwrap_or_default());
    out
}

/// The same words with every quoted name in double quotes, as others read them.
pub(crate) fn in_double_quotes(sql: &str) -> String {
    let mut out = String::with_capacity(sql.len());
    let mut end = 0;
    for token in tokens(sql).into_iter().filter(|token| token.text.starts_with(['[', '`'])) {
        out.push_str(sql.get(end..token.start).unwrap_or_default());
        out.push_str(&quoted(&unquoted(token.text)));
        end = token.end();
    }
    out.push_str(sql.get(end..).unwrap_or_default());
    out
}

/// The columns that the last INSERT of a trigger takes from a row, by their names; the constants before them are left
/// out. `None` where it is no such statement.
pub(crate) fn recorded_columns(trigger: &str) -> Option<Vec<String>> {
    let tokens = tokens(trigger);
    let insert = tokens.iter().rposition(|token| token.is("INSERT"))?;
    let open = insert + tokens.get(insert..)?.iter().position(|token| token.text == "(")?;
    let values = closing(&tokens, open)? + 1;
    let list = if tokens.get(values)?.is("SELECT") {
        let from = tokens.get(values..)?.iter().position(|token| token.is("FROM"))?;
        tokens.get(values + 1..values + from)?
    } else {
        tokens.get(values + 2..closing(&tokens, values + 1)?)?
    };
    let is_column = |piece: &&[Token<'_>]| piece.len() > 1;
    let names = split(list).into_iter().filter(is_column).filter_map(<[Token<'_>]>::last);
    Some(names.map(|token| unquoted(token.text)).collect())
}

/// An element without the ASC or DESC at its end.
pub(crate) fn without_order(element: &str) -> &str {
    match tokens(element).last() {
        Some(last) if last.is("ASC") || last.is("DESC") => element.get(..last.start).unwrap_or_default().trim_end(),
        _ => element,
    }
}

/// A default without the cast that PostgreSQL prints behind constants: `'x'::text`.
pub(crate) fn without_cast(expression: &str) -> &str {
    let tokens = tokens(expression);
    let cast = tokens.windows(2).find(|pair| matches!(pair, [a, b] if a.text == ":" && b.text == ":"));
    match cast {
        Some([first, ..]) => expression.get(..first.start).unwrap_or_default().trim(),
        _ => expression.trim(),
    }
}

/// Whether the text is one string constant and nothing else.
pub(crate) fn is_string(expression: &str) -> bool {
    matches!(tokens(expression).as_slice(), [only] if only.text.starts_with('\'') && only.text.len() == expression.len())
}

/// What only the text of a `CREATE TABLE` tells.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct TableText {
    /// Checks with their names, if they have any; the columns' own among them.
    pub(crate) checks: Vec<(Option<String>, String)>,
    /// Generated columns: name, expression, whether stored.
    pub(crate) generated: Vec<(String, String, bool)>,
    /// Columns with a collation: name, collation.
    pub(crate) collations: Vec<(String, String)>,
    /// Whether the key is AUTOINCREMENT.
    pub(crate) autoincrement: bool,
}

/// Reads a `CREATE TABLE`.
pub(crate) fn table(sql: &str) -> TableText {
    let tokens = tokens(sql);
    let mut found = TableText::default();
    let Some(open) = tokens.iter().position(|token| token.text == "(") else { return found };
    let Some(close) = closing(&tokens, open) else { return found };
    for piece in split(tokens.get(open + 1..close).unwrap_or_default()) {
        read_piece(sql, piece, &mut found);
    }
    found
}

fn read_piece(sql: &str, piece: &[Token<'_>], found: &mut TableText) {
    let Some(first) = piece.first() else { return };
    let of_table = ["CONSTRAINT", "PRIMARY", "UNIQUE", "CHECK", "FOREIGN"].iter().any(|word| first.is(word));
    let column = (!of_table).then(|| unquoted(first.text));
    let mut name = None;
    let mut at = usize::from(!of_table);
    while let Some(token) = piece.get(at) {
        let next = piece.get(at + 1);
        if token.is("CONSTRAINT") {
            name = next.map(|token| unquoted(token.text));
            at += 2;
            continue;
        }
        if token.text == "(" {
            // A type's length, a list of columns, a default: nothing to read inside.
            at = closing(piece, at).map_or(piece.len(), |close| close + 1);
            continue;
        }
        let parenthesis = next.filter(|token| token.text == "(").and_then(|_| closing(piece, at + 1));
        match (parenthesis, &column) {
            (Some(close), _) if token.is("CHECK") => {
                let inner = piece.get(at + 2..close).unwrap_or_default();
                found.checks.push((name.take(), text_of(sql, inner).to_owned()));
                at = close + 1;
                continue;
            }
            (Some(close), Some(column)) if token.is("AS") => {
                let inner = piece.get(at + 2..close).unwrap_or_default();
                let stored = piece.get(close + 1).is_some_and(|token| token.is("STORED"));
                found.generated.push((column.clone(), text_of(sql, inner).to_owned(), stored));
                at = close + 1;
                continue;
            }
            _ => {}
        }
        if let (Some(column), Some(next), true) = (&column, next, token.is("COLLATE")) {
            found.collations.push((column.clone(), unquoted(next.text)));
        }
        found.autoincrement |= token.is("AUTOINCREMENT");
        at += 1;
    }
}

fn unquoted(text: &str) -> String {
    let Some(first) = text.chars().next() else { return String::new() };
    let inner = || text.get(1..text.len().saturating_sub(1)).unwrap_or_default();
    match first {
        '"' | '`' | '\'' => inner().replace(&format!("{first}{first}"), &first.to_string()),
        '[' => inner().to_owned(),
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_is_read_whatever_stands_in_its_strings() {
        let read =
            index("CREATE UNIQUE INDEX \"a(b\" ON t (lower(\"e,mail\") COLLATE NOCASE DESC, b) WHERE c <> 'x)' -- end");
        assert_eq!(read.elements, ["lower(\"e,mail\") COLLATE NOCASE DESC", "b"]);
        assert_eq!(without_order(&read.elements[0]), "lower(\"e,mail\") COLLATE NOCASE");
        assert_eq!(read.predicate.as_deref(), Some("c <> 'x)'"));
    }

    #[test]
    fn an_index_follows_the_names_of_its_columns() {
        let sql = "CREATE INDEX \"a\" ON \"b\" (a DESC, lower(\"B\"), c COLLATE NOCASE) WHERE a <> 'a' AND a(c) > 0";
        assert_eq!(
            with_columns_renamed(sql, &[("a", "b"), ("b", "a")]),
            "CREATE INDEX \"a\" ON \"b\" (\"b\" DESC, lower(\"a\"), c COLLATE NOCASE) WHERE \"b\" <> 'a' AND a(c) > 0"
        );
        assert!(names_column(sql, "C") && !names_column(sql, "lower"));
    }

    #[test]
    fn every_quoted_name_is_said_in_double_quotes() {
        assert_eq!(in_double_quotes("([a b] <> '[x]' AND `c\"` > \"d\")"), "(\"a b\" <> '[x]' AND \"c\"\"\" > \"d\")");
    }

    #[test]
    fn a_trigger_tells_what_it_records() {
        let select = "CREATE TRIGGER t AFTER INSERT ON \"x\" BEGIN INSERT INTO \"ch\"(tbl, op, c0) SELECT DISTINCT 1, 3, c0 FROM r; \
                      INSERT INTO \"ch\"(tbl, op, c0, c1) SELECT 1, CASE WHEN 1 THEN 5 ELSE 2 END, \"x\".\"a,\"\"(\", \"x\".\"from\" FROM \"x\"; END";
        let values = "CREATE TRIGGER t AFTER INSERT ON x BEGIN INSERT INTO ch(tbl, op, c0, c1) VALUES (1, 1, NEW.\"b\", NEW.\"a\"); END";
        assert_eq!(recorded_columns(values), Some(vec!["b".to_owned(), "a".to_owned()]));
        let columns = recorded_columns(select).unwrap();
        assert_eq!(columns.get(columns.len() - 2..).unwrap(), ["a,\"(", "from"]);
    }

    #[test]
    fn a_table_tells_its_checks_and_generated_columns() {
        let read = table(
            "CREATE TABLE t (id INTEGER PRIMARY KEY AUTOINCREMENT, p NUMERIC(5,2) CHECK (p > 0 AND p <> ','), \
             n TEXT COLLATE NOCASE DEFAULT (upper('check(')), g AS (p * 2) STORED, /* CHECK (no) */ \
             CONSTRAINT \"both\" CHECK (p < 10 OR (n IS NULL)), FOREIGN KEY (n) REFERENCES x(\"check\"))",
        );
        assert_eq!(
            read.checks,
            [(None, "p > 0 AND p <> ','".to_owned()), (Some("both".to_owned()), "p < 10 OR (n IS NULL)".to_owned())]
        );
        assert_eq!(read.generated, [("g".to_owned(), "p * 2".to_owned(), true)]);
        assert_eq!(read.collations, [("n".to_owned(), "NOCASE".to_owned())]);
        assert!(read.autoincrement);
    }
}
