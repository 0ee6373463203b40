//! The path of one value in a JSON document: `$.a.b[0]`, `$['a b']`. No wildcards: a path names one value.

use serde_json::Value as Json;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Segment {
    Field(String),
    Index(usize),
}

/// A path that has been read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Path(Vec<Segment>);

impl Path {
    /// `None` when the text is no path.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut rest = text.trim().strip_prefix('$')?;
        let mut segments = Vec::new();
        while !rest.is_empty() {
            if let Some(quoted) = rest.strip_prefix("['").or_else(|| rest.strip_prefix("[\"")) {
                let end = if rest.starts_with("['") { "']" } else { "\"]" };
                let (name, after) = quoted.split_once(end)?;
                segments.push(Segment::Field(name.to_owned()));
                rest = after;
            } else if let Some(inside) = rest.strip_prefix('[') {
                let (index, after) = inside.split_once(']')?;
                segments.push(Segment::Index(index.trim().parse().ok()?));
                rest = after;
            } else {
                let name = rest.strip_prefix('.')?;
                let end = name.find(['.', '[']).unwrap_or(name.len());
                let (name, after) = name.split_at_checked(end)?;
                if name.is_empty() || name.contains('*') {
                    return None;
                }
                segments.push(Segment::Field(name.to_owned()));
                rest = after;
            }
        }
        Some(Self(segments))
    }

    /// The name, where the path is `$.name` and goes no deeper.
    pub(crate) fn member(&self) -> Option<&str> {
        match self.0.as_slice() {
            [Segment::Field(name)] => Some(name),
            _ => None,
        }
    }

    /// The value's text as PostgreSQL's `#>>` gives it: a string without quotes, anything else as JSON; `None` for
    /// JSON's null and for a path that leads nowhere.
    pub(crate) fn text_of(&self, document: &Json) -> Option<String> {
        let found = self.0.iter().try_fold(document, |at, segment| match segment {
            Segment::Field(name) => at.as_object()?.get(name),
            Segment::Index(index) => at.as_array()?.get(*index),
        })?;
        match found {
            Json::Null => None,
            Json::String(text) => Some(text.clone()),
            other => Some(other.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_finds_its_value_or_nothing() {
        let document: Json =
            serde_json::from_str(r#"{"a":{"b":[1,"two",{"c d":1.50}]},"n":null,"t":true,"o":{"x":[1]}}"#).unwrap();
        let text = |path: &str| Path::parse(path).unwrap().text_of(&document);
        assert_eq!(text("$.a.b[1]").as_deref(), Some("two"));
        assert_eq!(text("$.a.b[2]['c d']").as_deref(), Some("1.50"));
        assert_eq!(text("$.t").as_deref(), Some("true"));
        assert_eq!(text("$.o").as_deref(), Some("{\"x\":[1]}"));
        assert_eq!(text("$.n"), None);
        assert_eq!(text("$.a.x.y"), None);
        assert_eq!(text("$.a.b[9]"), None);
    }

    #[test]
    fn what_names_no_single_value_is_no_path() {
        for text in ["", "a", "$a", "$.", "$.*", "$[", "$[x]", "$..a", "$['a"] {
            assert_eq!(Path::parse(text), None, "{text}");
        }
    }
}
