//! Secondary indexes under new names and types. An index is carried when the target can hold the same one: its elements are
//! columns, whatever their types have become, or expressions over columns that nothing has changed, and so is its
//! predicate. Any other is named, with the statement for making it by hand.

use super::expression::{self, Piece, quote};
use crossfade_event::catalog::IndexDef;

/// Why an index is not carried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Left {
    /// It hangs on a column that goes.
    Gone(String),
    /// It hangs on the values or the type of a column that changes.
    Changed(String),
    /// Its words mean something else in the target's system.
    Foreign,
    /// Its definition cannot be read.
    Unread,
}

impl Left {
    /// In words, behind "is not carried over: ".
    pub(super) fn words(&self) -> String {
        match self {
            Self::Gone(column) => format!("its column {column} goes"),
            Self::Changed(column) => format!("it depends on the type or the values of {column}, which change"),
            Self::Foreign => "it says more than plain columns, in the source's own words".to_owned(),
            Self::Unread => "its definition is of a kind that is not followed".to_owned(),
        }
    }
}

/// What a column of the source has become.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Now {
    /// Its name in the target.
    pub(super) name: String,
    /// Its type is another one.
    pub(super) retyped: bool,
    /// Its values are other ones, or its type is.
    pub(super) changed: bool,
    /// Its type has an order in the target, so that a tree can be made over it.
    pub(super) ordered: bool,
}

/// A definition as a catalog writes it: `USING btree (a, lower(b) DESC) INCLUDE (c) WITH (…) WHERE …`.
#[derive(Debug, PartialEq, Eq)]
struct Parts<'a> {
    /// `USING btree `, or nothing.
    method: &'a str,
    elements: Vec<&'a str>,
    /// What stands between the elements and the predicate: `INCLUDE (…) NULLS NOT DISTINCT WITH (…)`.
    options: &'a str,
    predicate: Option<&'a str>,
}

/// The index in the target; `columns` tells what has become of the columns that the source has (`None` for what it has
/// not), and of those that go (`Some(None)`).
pub(super) fn carried(
    index: &IndexDef,
    columns: &dyn Fn(&str) -> Option<Option<Now>>,
    crosses: bool,
    method_words: &str,
) -> Result<IndexDef, Left> {
    let parts = parts(&index.definition).ok_or(Left::Unread)?;
    let all = Columns(columns);
    if crosses {
        return all.crossed(index, &parts, method_words);
    }
    let tree = parts.method.is_empty() || ["btree", "hash", "brin"].iter().any(|word| parts.method.contains(word));
    let mut used = Vec::new();
    let mut elements = Vec::with_capacity(parts.elements.len());
    for element in &parts.elements {
        let (name, rest) = column_first(element);
        elements.push(match name.and_then(|name| Some((columns(&name)?, name))) {
            Some((None, name)) => return Err(Left::Gone(name)),
            Some((Some(now), name)) if is_options(rest) => {
                let plain = tree && now.ordered && is_order(rest);
                if now.retyped && !plain {
                    return Err(Left::Changed(name));
                }
                let element = format!("{}{rest}", quote(&now.name));
                used.push(now.name);
                element
            }
            _ => all.unchanged(element)?,
        });
    }
    let options = all.options(parts.options)?;
    let predicate = parts.predicate.map(|predicate| all.unchanged(predicate)).transpose()?;
    let predicate = predicate.map(|predicate| format!(" WHERE {predicate}")).unwrap_or_default();
    used.extend(index.columns.iter().filter_map(|column| columns(column)?.map(|now| now.name)));
    used.sort_unstable();
    used.dedup();
    let definition = format!("{}({}){options}{predicate}", parts.method, elements.join(", "));
    Ok(IndexDef { columns: used, definition, ..index.clone() })
}

/// The statement for making it by hand: with new names, as far as they can be told.
pub(super) fn by_hand(index: &IndexDef, table: &str, columns: &dyn Fn(&str) -> Option<Option<Now>>) -> String {
    let unique = if index.unique { "UNIQUE " } else { "" };
    let renamed = expression::renamed(&index.definition, &|name| columns(name)?.map(|now| now.name));
    format!("CREATE {unique}INDEX {} ON {table} {renamed}", quote(&index.name))
}

/// What has become of the columns that an expression may name.
pub(super) struct Columns<'c>(pub(super) &'c dyn Fn(&str) -> Option<Option<Now>>);

impl Columns<'_> {
    /// An expression whose columns nothing has changed, under their new names.
    pub(super) fn unchanged(&self, text: &str) -> Result<String, Left> {
        for piece in expression::pieces(text) {
            let Piece::Name(name, written) = piece else { continue };
            match (self.0)(&name) {
                None => {}
                Some(None) => return Err(Left::Gone(name)),
                Some(Some(now)) if now.changed => return Err(Left::Changed(name)),
                // A bare word may be one of the language's own: then nobody can tell what to rename.
                Some(Some(now)) if now.name != name && !written.starts_with('"') && is_word(&name) => {
                    return Err(Left::Changed(name));
                }
                Some(Some(_)) => {}
            }
        }
        Ok(expression::renamed(text, &|name| (self.0)(name)?.map(|now| now.name)))
    }

    /// `INCLUDE` takes columns of any type; what else stands there names none.
    fn options(&self, options: &str) -> Result<String, Left> {
        let Some(rest) = options.trim_start().strip_prefix("INCLUDE ") else { return Ok(options.to_owned()) };
        let close = closing(rest, 0).ok_or(Left::Unread)?;
        let (list, tail) = rest.split_at_checked(close + 1).ok_or(Left::Unread)?;
        for piece in expression::pieces(list) {
            if let Piece::Name(name, _) = piece
                && (self.0)(&name) == Some(None)
            {
                return Err(Left::Gone(name));
            }
        }
        Ok(format!(" INCLUDE {}{tail}", expression::renamed(list, &|name| (self.0)(name)?.map(|now| now.name))))
    }

    /// Plain columns in their order, up or down, mean the same in every system.
    fn crossed(&self, index: &IndexDef, parts: &Parts<'_>, method_words: &str) -> Result<IndexDef, Left> {
        if parts.predicate.is_some() || !(parts.method.is_empty() || parts.method.contains("btree")) {
            return Err(Left::Foreign);
        }
        let (mut names, mut elements) = (Vec::new(), Vec::new());
        for element in &parts.elements {
            let (name, rest) = column_first(element);
            let name = name.filter(|_| is_options(rest)).ok_or(Left::Foreign)?;
            match (self.0)(&name) {
                None => return Err(Left::Foreign),
                Some(None) => return Err(Left::Gone(name)),
                Some(Some(now)) => {
                    let down = rest.split_whitespace().any(|word| word.eq_ignore_ascii_case("DESC"));
                    elements.push(format!("{}{}", quote(&now.name), if down { " DESC" } else { "" }));
                    names.push(now.name);
                }
            }
        }
        let definition = format!("{method_words}({})", elements.join(", "));
        Ok(IndexDef { columns: names, definition, plain: true, ..index.clone() })
    }
}

/// Words of SQL that PostgreSQL does not quote when they are names.
fn is_word(name: &str) -> bool {
    const WORDS: [&str; 20] = [
        "zone",
        "at",
        "varying",
        "year",
        "month",
        "day",
        "hour",
        "minute",
        "second",
        "first",
        "last",
        "nulls",
        "asc",
        "desc",
        "epoch",
        "with",
        "without",
        "time",
        "precision",
        "escape",
    ];
    WORDS.contains(&name)
}

fn is_order(rest: &str) -> bool {
    rest.split_whitespace()
        .all(|word| ["ASC", "DESC", "NULLS", "FIRST", "LAST"].iter().any(|known| word.eq_ignore_ascii_case(known)))
}

/// What may follow a column: a collation, an operator class, an order; no operator and no call.
fn is_options(rest: &str) -> bool {
    rest.chars().all(|c| c.is_alphanumeric() || c.is_whitespace() || matches!(c, '_' | '"' | '.'))
}

/// The name with which an element begins, and what follows it.
fn column_first(element: &str) -> (Option<String>, &str) {
    let mut before = 0;
    for piece in expression::pieces(element) {
        match piece {
            Piece::Name(name, written) => {
                return (Some(name), element.get(before + written.len()..).unwrap_or_default());
            }
            Piece::Other(text) if text.trim().is_empty() => before += text.len(),
            Piece::Other(_) => break,
        }
    }
    (None, element)
}

fn parts(definition: &str) -> Option<Parts<'_>> {
    let open = definition.find('(')?;
    let close = closing(definition, open)?;
    let method = definition.get(..open)?;
    let tail = definition.get(close + 1..)?;
    let at = top_level(tail, |rest| rest.get(..7).is_some_and(|word| word.eq_ignore_ascii_case(" WHERE ")));
    let (options, predicate) = match at.first() {
        Some(at) => (tail.get(..*at)?, Some(tail.get(at + 7..)?)),
        None => (tail, None),
    };
    let inside = definition.get(open + 1..close)?;
    let mut elements = Vec::new();
    let mut from = 0;
    for comma in top_level(inside, |rest| rest.starts_with(',')) {
        elements.push(inside.get(from..comma)?.trim());
        from = comma + 1;
    }
    elements.push(inside.get(from..)?.trim());
    Some(Parts { method, elements, options, predicate })
}

/// Where the parenthesis closes that opens at `open`.
fn closing(text: &str, open: usize) -> Option<usize> {
    let mut depth = 0usize;
    let mut at = 0;
    for piece in expression::pieces(text) {
        let piece = piece.text();
        match piece {
            "(" if at >= open => depth += 1,
            ")" if at >= open => {
                depth = depth.checked_sub(1)?;
                if depth == 0 {
                    return Some(at);
                }
            }
            _ => {}
        }
        at += piece.len();
    }
    None
}

/// Places outside of parentheses and quotes where `is_it` holds of what follows.
fn top_level(text: &str, is_it: impl Fn(&str) -> bool) -> Vec<usize> {
    let (mut found, mut depth, mut at) = (Vec::new(), 0i32, 0);
    for piece in expression::pieces(text) {
        if depth == 0 && text.get(at..).is_some_and(&is_it) {
            found.push(at);
        }
        match piece.text() {
            "(" => depth += 1,
            ")" => depth -= 1,
            _ => {}
        }
        at += piece.text().len();
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `id` and `owner` get new keys, `note` is renamed, `old` goes, `country`'s values change, `at` and `kind` stay.
    fn now(column: &str) -> Option<Option<Now>> {
        let kept = |name: &str| Now { name: name.to_owned(), retyped: false, changed: false, ordered: true };
        Some(match column {
            "id" | "owner" => Some(Now { retyped: true, changed: true, ..kept(column) }),
            "note" => Some(kept("remark \"x\"")),
            "zone" => Some(kept("area")),
            "country" => Some(Now { changed: true, ..kept(column) }),
            "old" => None,
            "at" | "kind" => Some(kept(column)),
            _ => return None,
        })
    }

    fn index(definition: &str) -> IndexDef {
        IndexDef { name: "i".into(), unique: false, definition: definition.into(), columns: Vec::new(), plain: false }
    }

    #[test]
    fn an_index_is_carried_when_what_it_computes_is_unchanged() {
        let carried = |definition: &str| carried(&index(definition), &now, false, "").map(|index| index.definition);
        for (definition, wanted) in [
            (
                "USING btree (owner) WHERE (kind = 'a, b)'::text)",
                "USING btree (\"owner\") WHERE (kind = 'a, b)'::text)",
            ),
            (
                "USING btree (lower(note), owner DESC NULLS LAST)",
                "USING btree (lower(\"remark \"\"x\"\"\"), \"owner\" DESC NULLS LAST)",
            ),
            ("USING btree (kind text_pattern_ops)", "USING btree (\"kind\" text_pattern_ops)"),
            (
                "USING btree (at) INCLUDE (id, note) WITH (fillfactor='70')",
                "USING btree (\"at\") INCLUDE (id, \"remark \"\"x\"\"\") WITH (fillfactor='70')",
            ),
            ("USING btree (country)", "USING btree (\"country\")"),
            (
                "USING gin (to_tsvector('simple'::regconfig, note))",
                "USING gin (to_tsvector('simple'::regconfig, \"remark \"\"x\"\"\"))",
            ),
            ("(owner, lower(kind)) WHERE kind > 5", "(\"owner\", lower(kind)) WHERE kind > 5"),
        ] {
            assert_eq!(carried(definition).as_deref(), Ok(wanted));
        }
        let changed = |column: &str| Err(Left::Changed(column.to_owned()));
        assert_eq!(carried("USING btree (kind) WHERE (owner > 5)"), changed("owner"));
        assert_eq!(carried("USING btree (((id + 1)))"), changed("id"));
        assert_eq!(carried("USING btree (kind) WHERE (country = 'XX'::text)"), changed("country"));
        assert_eq!(carried("USING gin (owner gin_int_ops)"), changed("owner"));
        assert_eq!(carried("USING btree (owner COLLATE \"C\")"), changed("owner"));
        assert_eq!(carried("USING btree (((at)::timestamp with time zone))"), changed("zone"), "whose word is it?");
        assert_eq!(carried("USING btree (kind, old)"), Err(Left::Gone("old".into())));
        assert_eq!(carried("USING btree (kind) INCLUDE (old)"), Err(Left::Gone("old".into())));
        assert_eq!(carried("USING btree (kind"), Err(Left::Unread));
    }

    #[test]
    fn another_system_gets_plain_columns_in_their_order() {
        let crossed = |definition: &str| carried(&index(definition), &now, true, "USING btree ");
        let plain = crossed("USING btree (note DESC NULLS LAST, owner) INCLUDE (kind)").unwrap();
        assert_eq!(plain.definition, "USING btree (\"remark \"\"x\"\"\" DESC, \"owner\")");
        assert_eq!(plain.columns, ["remark \"x\"", "owner"]);
        for definition in ["USING btree (lower(note))", "USING btree (kind) WHERE (kind > 1)", "USING gin (note)"] {
            assert_eq!(crossed(definition), Err(Left::Foreign), "{definition}");
        }
    }

    #[test]
    fn what_is_left_can_be_made_by_hand() {
        let told = by_hand(&index("USING btree (note) WHERE (owner > 5)"), "\"s\".\"t\"", &now);
        assert_eq!(told, "CREATE INDEX \"i\" ON \"s\".\"t\" USING btree (\"remark \"\"x\"\"\") WHERE (owner > 5)");
    }
}
