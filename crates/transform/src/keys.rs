//! New keys from old ones. The old key is written unambiguously, then hashed; nothing is drawn, so the same old key
//! gives the same new one on every worker, in every sink, for ever. `docs/key-vectors.md` publishes the bytes.
//!
//! The *canonical form* of a key is text: `key:v1;`, then the table's name and every part of the key as
//! `kind length:bytes,`. The kind is one letter (`n` the table's name, `i` integer, `d` numeric, `u` UUID, `b` raw
//! bytes in hexadecimal, `t` any text, `o` anything else by its text form, `z` NULL), the length counts bytes. No two keys are written
//! alike, for every part says how long it is: ("a", "bc") and ("ab", "c") differ.

use crate::rules::{KeyMaker, Normalise};
use crossfade_event::{Value, codec};
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use unicode_normalization::UnicodeNormalization;
use uuid::{Builder, Uuid};

/// One part of an old key; `None` is NULL.
pub(crate) type Part<'a> = Option<&'a Value>;

fn push(out: &mut Vec<u8>, kind: u8, text: &str) {
    out.push(kind);
    out.extend_from_slice(text.len().to_string().as_bytes());
    out.push(b':');
    out.extend_from_slice(text.as_bytes());
    out.push(b',');
}

fn push_part(out: &mut Vec<u8>, part: Part<'_>, normalise: &[Normalise]) {
    let Some(value) = part else { return push(out, b'z', "") };
    let (kind, text) = match value {
        Value::Int(_) => (b'i', codec::to_text(value)),
        Value::Numeric(_) => (b'd', codec::to_text(value)),
        Value::Uuid(_) => (b'u', codec::to_text(value)),
        Value::Bytes(_) | Value::RawText(_) => (b'b', codec::to_text(value)),
        Value::Text(text) => (b't', normalised(text, normalise)),
        _ => (b'o', codec::to_text(value)),
    };
    push(out, kind, &text);
}

/// The canonical form of a key of `table`.
pub(crate) fn canonical(table: &str, parts: &[Part<'_>]) -> Vec<u8> {
    let mut out = b"key:v1;".to_vec();
    push(&mut out, b'n', table);
    for part in parts {
        push_part(&mut out, *part, &[]);
    }
    out
}

/// `sha256:` and the hash of `key:v<version>;` and the normalised parts.
pub(crate) fn canonical_sha256(version: u32, table: Option<&str>, parts: &[(Part<'_>, &[Normalise])]) -> String {
    let mut out = format!("key:v{version};").into_bytes();
    if let Some(table) = table {
        push(&mut out, b'n', table);
    }
    for (part, normalise) in parts {
        push_part(&mut out, *part, normalise);
    }
    format!("sha256:{}", hex(&Sha256::digest(&out)))
}

/// A text with the named differences of spelling taken out, in order.
pub(crate) fn normalised(text: &str, how: &[Normalise]) -> String {
    how.iter().fold(text.to_owned(), |text, step| match step {
        Normalise::Trim => text.trim().to_owned(),
        Normalise::Collapse => text.split_whitespace().collect::<Vec<_>>().join(" "),
        Normalise::Lower => text.to_lowercase(),
        Normalise::Nfc => text.nfc().collect(),
        Normalise::Nfkc => text.nfkc().collect(),
        Normalise::Email => text.trim().nfc().collect::<String>().to_lowercase(),
        Normalise::Phone => phone(&text),
        Normalise::Number => number(text.trim()).unwrap_or(text),
    })
}

fn phone(text: &str) -> String {
    let digits: String = text.chars().filter(char::is_ascii_digit).collect();
    let begins = text.trim_start();
    match digits.strip_prefix("00") {
        _ if digits.is_empty() => text.to_owned(),
        _ if begins.starts_with('+') => format!("+{digits}"),
        Some(rest) if begins.starts_with("00") => format!("+{rest}"),
        _ => digits,
    }
}

/// `None` where the text is no plain decimal number.
fn number(text: &str) -> Option<String> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", text.strip_prefix('+').unwrap_or(text)),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let all_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if (whole.is_empty() && fraction.is_empty()) || !all_digits(whole) || !all_digits(fraction) {
        return None;
    }
    let (whole, fraction) = (whole.trim_start_matches('0'), fraction.trim_end_matches('0'));
    let whole = if whole.is_empty() { "0" } else { whole };
    let point = if fraction.is_empty() { "" } else { "." };
    let sign = if whole == "0" && fraction.is_empty() { "" } else { sign };
    Some(format!("{sign}{whole}{point}{fraction}"))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// HMAC-SHA-256.
pub(crate) fn hmac_sha256(secret: &[u8], message: &[u8]) -> [u8; 32] {
    match Hmac::<Sha256>::new_from_slice(secret) {
        Ok(mut mac) => {
            mac.update(message);
            mac.finalize().into_bytes().into()
        }
        Err(_) => unreachable!("HMAC takes a key of any length"),
    }
}

/// As many hexadecimal digits as hide a value and still tell equal ones.
pub(crate) fn masked(secret: &[u8], text: &str) -> String {
    hex(&hmac_sha256(secret, format!("mask:v1;{text}").as_bytes()))
}

/// A rule, ready to make keys.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Maker {
    pub(crate) make: KeyMaker,
    pub(crate) namespace: [u8; 16],
    pub(crate) secret: std::sync::Arc<Vec<u8>>,
    pub(crate) normalise: Vec<Normalise>,
    pub(crate) version: u32,
}

impl Maker {
    /// Whether the keys are UUIDs (and not text).
    pub(crate) fn makes_uuid(&self) -> bool {
        self.make != KeyMaker::CanonicalSha256
    }

    /// The new key. `time_ms` counts from 1970-01-01 UTC; only a v7 needs it.
    pub(crate) fn make(&self, table: &str, parts: &[Part<'_>], time_ms: u64) -> Value {
        let uuid = |uuid: Uuid| Value::Uuid(uuid.into_bytes());
        match self.make {
            KeyMaker::UuidV4 => {
                uuid(Builder::from_random_bytes(first(hmac_sha256(&self.secret, &canonical(table, parts)))).into_uuid())
            }
            KeyMaker::UuidV5 => uuid(Uuid::new_v5(&Uuid::from_bytes(self.namespace), &canonical(table, parts))),
            KeyMaker::UuidV7 => {
                let [.., a, b, c, d, e, f, g, h, i, j] = first(hmac_sha256(&self.secret, &canonical(table, parts)));
                uuid(Builder::from_unix_timestamp_millis(time_ms, &[a, b, c, d, e, f, g, h, i, j]).into_uuid())
            }
            KeyMaker::UuidV8Sha256 => {
                let mut hash = Sha256::new();
                hash.update(self.namespace);
                hash.update(canonical(table, parts));
                uuid(Uuid::new_v8(first(hash.finalize().into())))
            }
            KeyMaker::CanonicalSha256 => {
                let parts: Vec<_> = parts.iter().map(|part| (*part, self.normalise.as_slice())).collect();
                Value::Text(canonical_sha256(self.version, Some(table), &parts))
            }
        }
    }
}

fn first(hash: [u8; 32]) -> [u8; 16] {
    let mut bytes = [0; 16];
    for (slot, byte) in bytes.iter_mut().zip(hash) {
        *slot = byte;
    }
    bytes
}

/// An old key as people read it: the text of a single part, a row form `(1,2)` of several.
pub(crate) fn shown(parts: &[Part<'_>]) -> String {
    match parts {
        [Some(value)] => codec::to_text(value),
        parts => {
            let inside: Vec<String> = parts.iter().map(|part| part.map_or_else(String::new, row_field)).collect();
            format!("({})", inside.join(","))
        }
    }
}

/// Quoted as PostgreSQL's row form quotes.
fn row_field(value: &Value) -> String {
    let text = codec::to_text(value);
    let plain =
        !text.is_empty() && !text.chars().any(|c| matches!(c, '"' | '\\' | '(' | ')' | ',') || c.is_whitespace());
    if plain { text } else { format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\"\"")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::{collections::HashMap, sync::Arc};

    pub(crate) fn maker(make: KeyMaker) -> Maker {
        Maker {
            make,
            namespace: *Uuid::parse_str("6f1c1f0e-6f2b-4b57-9a34-0d5be4c7a001").unwrap().as_bytes(),
            secret: Arc::new(b"a secret of thirty-two bytes.....".to_vec()),
            normalise: vec![Normalise::Trim, Normalise::Lower],
            version: 1,
        }
    }

    #[test]
    fn parts_are_never_run_together() {
        let text = |text: &str| Value::Text(text.to_owned());
        let (a, bc, ab, c) = (text("a"), text("bc"), text("ab"), text("c"));
        assert_ne!(canonical("t", &[Some(&a), Some(&bc)]), canonical("t", &[Some(&ab), Some(&c)]));
        assert_ne!(canonical("t", &[Some(&Value::Int(1))]), canonical("t", &[Some(&text("1"))]));
        assert_ne!(canonical("t", &[None]), canonical("t", &[Some(&text(""))]));
        assert_eq!(canonical("public.users", &[Some(&Value::Int(42))]), b"key:v1;n12:public.users,i2:42,");
    }

    #[test]
    fn spellings_become_one() {
        let one = |how: Normalise, text: &str| normalised(text, &[how]);
        for (text, wanted) in [(" User@Example.COM\n", "user@example.com"), ("ZOE\u{308}@x", "zo\u{eb}@x")] {
            assert_eq!(one(Normalise::Email, text), wanted);
        }
        let phones = [
            ("+49 (30) 123-456", "+4930123456"),
            (" 0049 30 123456", "+4930123456"),
            ("030/123456", "030123456"),
            ("0 049", "0049"),
            ("+", "+"),
            ("none", "none"),
        ];
        for (text, wanted) in phones {
            assert_eq!(one(Normalise::Phone, text), wanted, "{text}");
        }
        let numbers = [
            ("007", "7"),
            (" +1.50 ", "1.5"),
            ("-0.00", "0"),
            ("-.5", "-0.5"),
            ("5.", "5"),
            ("0", "0"),
            ("1e3", "1e3"),
            (" x ", " x "),
            (".", "."),
            ("\u{663}", "\u{663}"),
        ];
        for (text, wanted) in numbers {
            assert_eq!(one(Normalise::Number, text), wanted, "{text}");
        }
    }

    #[test]
    fn the_published_vectors_hold() {
        let vectors: serde_json::Value = serde_json::from_str(include_str!("../tests/vectors.json")).unwrap();
        let vectors = vectors.as_array().unwrap();
        assert!(vectors.len() >= 10);
        for vector in vectors {
            let make: KeyMaker = serde_json::from_value(vector["make"].clone()).unwrap();
            let parts: Vec<Option<Value>> = vector["key"].as_array().unwrap().iter().map(part).collect();
            let parts: Vec<Part<'_>> = parts.iter().map(Option::as_ref).collect();
            let table = vector["table"].as_str().unwrap();
            let time = vector["time_ms"].as_u64().unwrap_or_default();
            assert_eq!(String::from_utf8(canonical(table, &parts)).unwrap(), vector["canonical"], "{vector}");
            assert_eq!(codec::to_text(&maker(make).make(table, &parts, time)), vector["new"], "{vector}");
        }
    }

    fn part(json: &serde_json::Value) -> Option<Value> {
        match json {
            serde_json::Value::Null => None,
            serde_json::Value::Number(number) => Some(Value::Int(number.as_i64().unwrap())),
            other => Some(Value::Text(other.as_str().unwrap().to_owned())),
        }
    }

    #[test]
    fn the_version_bits_are_right() {
        let key = Value::Int(1);
        for (make, version) in
            [(KeyMaker::UuidV4, 4), (KeyMaker::UuidV5, 5), (KeyMaker::UuidV7, 7), (KeyMaker::UuidV8Sha256, 8)]
        {
            let Value::Uuid(bytes) = maker(make).make("t", &[Some(&key)], 1_700_000_000_000) else { panic!() };
            assert_eq!(usize::from(bytes[6] >> 4), version);
            assert_eq!(bytes[8] >> 6, 0b10);
        }
    }

    #[test]
    fn a_row_form_is_quoted_like_postgres_does() {
        let text = Value::Text("a \"b\"".to_owned());
        assert_eq!(shown(&[Some(&Value::Int(1)), Some(&text), None]), "(1,\"a \"\"b\"\"\",)");
        assert_eq!(shown(&[Some(&Value::Int(7))]), "7");
    }

    proptest! {
        #[test]
        fn different_keys_get_different_new_ones(keys in prop::collection::hash_set(any::<i64>(), 2..200)) {
            for make in [KeyMaker::UuidV4, KeyMaker::UuidV5, KeyMaker::UuidV7, KeyMaker::UuidV8Sha256, KeyMaker::CanonicalSha256] {
                let maker = maker(make);
                let mut seen = HashMap::new();
                for key in &keys {
                    let new = codec::to_text(&maker.make("t", &[Some(&Value::Int(*key))], 5));
                    prop_assert_eq!(seen.insert(new, *key), None);
                }
            }
        }
    }
}
