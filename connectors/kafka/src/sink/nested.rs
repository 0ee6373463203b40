//! Values within values, in PostgreSQL's text form: the elements of an array, the pairs of an `hstore`.

use super::form::{Fault, string};
use crate::source::types;

const SHAPE: Fault =
    Fault::Unsayable("an array of several dimensions, or with a lower bound other than 1, has no form here");

/// The elements of an array of one dimension; NULL as nothing.
pub(super) fn array(text: &str, element: &str) -> Result<Vec<Option<String>>, Fault> {
    let wrong = || Fault::NotOfType(format!("{element}[]"));
    if text.starts_with('[') {
        return Err(SHAPE);
    }
    let inside = text.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')).ok_or_else(wrong)?;
    // `box` alone has another delimiter, for its own text holds commas.
    let delimiter = if types::base(element) == "box" { ';' } else { ',' };
    let mut items = Vec::new();
    if inside.is_empty() {
        return Ok(items);
    }
    let mut rest = inside.chars().peekable();
    loop {
        let mut item = String::new();
        let mut quoted = false;
        match rest.peek() {
            Some('{') => return Err(SHAPE),
            Some('"') => {
                quoted = true;
                rest.next();
                loop {
                    match rest.next().ok_or_else(wrong)? {
                        '"' => break,
                        '\\' => item.push(rest.next().ok_or_else(wrong)?),
                        c => item.push(c),
                    }
                }
            }
            _ => {
                while let Some(c) = rest.next_if(|c| *c != delimiter) {
                    match c {
                        '\\' => item.push(rest.next().ok_or_else(wrong)?),
                        c => item.push(c),
                    }
                }
            }
        }
        items.push(if !quoted && item == "NULL" { None } else { Some(item) });
        match rest.next() {
            None => return Ok(items),
            Some(c) if c == delimiter => {}
            Some(_) => return Err(wrong()),
        }
    }
}

/// `"a"=>"1", "b"=>NULL` as a JSON object; `None` when it is no `hstore`.
pub(super) fn hstore(text: &str) -> Option<String> {
    let mut json = String::from("{");
    let mut rest = text;
    while !rest.is_empty() {
        if json.len() > 1 {
            json.push(',');
            rest = rest.strip_prefix(", ")?;
        }
        let (key, after) = quoted(rest)?;
        string(&key, &mut json);
        json.push(':');
        rest = after.strip_prefix("=>")?;
        if let Some(after) = rest.strip_prefix("NULL") {
            json.push_str("null");
            rest = after;
        } else {
            let (value, after) = quoted(rest)?;
            string(&value, &mut json);
            rest = after;
        }
    }
    json.push('}');
    Some(json)
}

/// A text in quotation marks, and what follows it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut inside = String::new();
    let mut chars = text.strip_prefix('"')?.char_indices();
    loop {
        match chars.next()? {
            (at, '"') => return Some((inside, text.get(at + 2..)?)),
            (_, '\\') => inside.push(chars.next()?.1),
            (_, c) => inside.push(c),
        }
    }
}
