//! One member of a JSON object, put in or taken out, without touching a byte of any other: numbers keep their digits, texts
//! their spelling. What comes out is spelled as PostgreSQL spells a `jsonb`, if what went in was.

/// A member: its name as it is written, with quotes and escapes, and its value as it is written.
type Member<'t> = (&'t str, &'t str);

/// The object with this member; the value is JSON. `None` when the text is no object.
pub(crate) fn with(object: &str, name: &str, value: &str) -> Option<String> {
    let quoted = quoted(name);
    let mut members = members(object)?;
    members.retain(|(key, _)| *key != quoted);
    let place = members.partition_point(|(key, _)| order(key) < order(&quoted));
    members.insert(place, (&quoted, value));
    Some(written(&members))
}

/// The object without this member. `None` when the text is no object.
pub(crate) fn without(object: &str, name: &str) -> Option<String> {
    let quoted = quoted(name);
    let mut members = members(object)?;
    members.retain(|(key, _)| *key != quoted);
    Some(written(&members))
}

/// A text as JSON.
pub(crate) fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// PostgreSQL keeps short names before long ones, and those of one length by their bytes.
fn order(quoted: &str) -> (usize, String) {
    let name = serde_json::from_str::<String>(quoted).unwrap_or_else(|_| quoted.to_owned());
    (name.len(), name)
}

fn written(members: &[Member<'_>]) -> String {
    let members: Vec<String> = members.iter().map(|(key, value)| format!("{key}: {value}")).collect();
    format!("{{{}}}", members.join(", "))
}

/// The members in their order. The text is JSON already: only its outermost level is looked at.
fn members(object: &str) -> Option<Vec<Member<'_>>> {
    let inside = object.trim().strip_prefix('{')?.strip_suffix('}')?;
    let mut found = Vec::new();
    let mut rest = inside.trim();
    while !rest.is_empty() {
        let (key, after) = rest.split_at_checked(end_of(rest, ':')?)?;
        let after = after.strip_prefix(':')?;
        let end = end_of(after, ',').unwrap_or(after.len());
        let (value, after) = after.split_at_checked(end)?;
        found.push((key.trim(), value.trim()));
        rest = after.strip_prefix(',').unwrap_or(after).trim();
    }
    Some(found)
}

/// Where this character comes first, outside of texts and of anything nested.
fn end_of(text: &str, wanted: char) -> Option<usize> {
    let (mut depth, mut in_text, mut escaped) = (0_usize, false, false);
    for (place, character) in text.char_indices() {
        if in_text {
            match character {
                _ if escaped => escaped = false,
                '\\' => escaped = true,
                '"' => in_text = false,
                _ => {}
            }
            continue;
        }
        match character {
            '"' => in_text = true,
            '{' | '[' => depth += 1,
            '}' | ']' => depth = depth.saturating_sub(1),
            _ if character == wanted && depth == 0 => return Some(place),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_member_is_put_where_postgres_keeps_it_and_nothing_else_changes() {
        let object = r#"{"a": 1.500, "bb": {"x": "}, \"y\": 1"}, "zz": [1, {"k": "v"}], "long": "\\\""}"#;
        let put = with(object, "ck", "\"v\"").unwrap();
        let wanted = r#"{"a": 1.500, "bb": {"x": "}, \"y\": 1"}, "ck": "v", "zz": [1, {"k": "v"}], "long": "\\\""}"#;
        assert_eq!(put, wanted);
        assert_eq!(with(&put, "ck", "2").unwrap(), put.replace("\"v\",", "2,"), "one that is there is replaced");
        assert_eq!(without(&put, "ck").unwrap(), object);
        assert_eq!(without(object, "ck").unwrap(), object);
        assert_eq!(with("{}", "a", "null").unwrap(), "{\"a\": null}");
        assert_eq!(without("{\"a\": null}", "a").unwrap(), "{}");
    }

    #[test]
    fn what_is_no_object_has_no_members() {
        for text in ["[1]", "1", "null", "\"{}\"", ""] {
            assert_eq!((with(text, "a", "1"), without(text, "a")), (None, None), "{text}");
        }
    }

    proptest! {
        #[test]
        fn put_in_and_taken_out_gives_what_was(
            names in prop::collection::btree_set("[a-z\"\\\\é:,{}]{0,6}", 0..6), name in "[a-z]{7,9}", value in "\\PC{0,12}"
        ) {
            let object = names.iter().fold("{}".to_owned(), |object, name| with(&object, name, &quoted(&value)).unwrap());
            let put = with(&object, &name, &quoted(&value)).unwrap();
            let read: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&put).unwrap();
            prop_assert_eq!(read.len(), names.len() + 1);
            prop_assert_eq!(read.get(&name).and_then(|value| value.as_str()), Some(value.as_str()));
            prop_assert_eq!(without(&put, &name).unwrap(), object);
        }
    }
}
