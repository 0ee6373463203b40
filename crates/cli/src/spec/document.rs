//! The TOML text below the spec: where each value stands, what comes from outside it, and errors that name the place.
//!
//! `${NAME}` is replaced inside string values only, once, at load: a value that comes from the environment is never
//! read for more `${…}`, and can never become a key, a number or a table. `file:PATH` stands for a file's content
//! where a secret is expected. What came from outside is taken out of every error message again.

use super::error::{Place, SpecError, suggestion};
use serde::de::DeserializeOwned;
use std::{
    collections::BTreeMap,
    ops::Range,
    path::{Path, PathBuf},
};
use toml::{
    Spanned,
    de::{DeTable, DeValue, ValueDeserializer},
};

/// Keys whose value may be `file:PATH`.
const SECRET_KEYS: [&str; 4] = ["url", "secret", "password", "key_password"];

/// A parsed spec file, whose tables are taken out one by one.
pub(super) struct Document<'t> {
    file: PathBuf,
    text: &'t str,
    table: DeTable<'t>,
    /// Where every key and value stands: its path.
    paths: Vec<(Range<usize>, Vec<String>)>,
    /// What came from outside, and how the spec writes it.
    outside: Vec<(String, String)>,
    /// String values as the spec writes them, by path: for rules about literals.
    literal: BTreeMap<Vec<String>, (String, Range<usize>)>,
    /// What is worth knowing, though it works.
    pub(super) warnings: Vec<String>,
}

impl<'t> Document<'t> {
    /// Parses a file's text and replaces what comes from outside.
    pub(super) fn parse(
        file: &Path,
        text: &'t str,
        environment: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, SpecError> {
        let mut table = match DeTable::parse(text) {
            Ok(table) => table.into_inner(),
            Err(error) => {
                let place = Place::of(text, error.span().map_or(0, |span| span.start));
                let message = format!("this is not TOML: {}", error.message());
                return Err(SpecError::whole(file, message).at(place));
            }
        };
        let mut document = Self {
            file: file.to_owned(),
            text,
            table: DeTable::default(),
            paths: Vec::new(),
            outside: Vec::new(),
            literal: BTreeMap::new(),
            warnings: Vec::new(),
        };
        document.fill(&mut table, &[], environment)?;
        document.table = table;
        Ok(document)
    }

    fn fill(
        &mut self,
        table: &mut DeTable<'t>,
        path: &[String],
        environment: &dyn Fn(&str) -> Option<String>,
    ) -> Result<(), SpecError> {
        for (key, value) in table.iter_mut() {
            let mut path = path.to_vec();
            path.push(key.get_ref().to_string());
            self.paths.push((key.span(), path.clone()));
            self.fill_value(value, &path, environment)?;
        }
        Ok(())
    }

    fn fill_value(
        &mut self,
        value: &mut Spanned<DeValue<'t>>,
        path: &[String],
        environment: &dyn Fn(&str) -> Option<String>,
    ) -> Result<(), SpecError> {
        let span = value.span();
        self.paths.push((span.clone(), path.to_vec()));
        match value.get_mut() {
            DeValue::String(text) => {
                self.literal.insert(path.to_vec(), (text.to_string(), span.clone()));
                let whole = self.replace(text, span, path, environment)?;
                *text = whole.into();
            }
            DeValue::Array(items) => {
                for (index, item) in items.iter_mut().enumerate() {
                    let mut path = path.to_vec();
                    path.push(index.to_string());
                    self.fill_value(item, &path, environment)?;
                }
            }
            DeValue::Table(table) => self.fill(table, path, environment)?,
            _ => {}
        }
        Ok(())
    }

    /// One string value with `${…}` and `file:` replaced.
    fn replace(
        &mut self,
        text: &str,
        span: Range<usize>,
        path: &[String],
        environment: &dyn Fn(&str) -> Option<String>,
    ) -> Result<String, SpecError> {
        let mut whole = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("${") {
            if let Some(before) = before.strip_suffix('$') {
                whole.push_str(before);
                whole.push_str("${");
                rest = after;
                continue;
            }
            let Some((name, after)) = after.split_once('}').filter(|(name, _)| is_variable(name)) else {
                return Err(self.error(
                    span,
                    "`${` without a variable's name and `}`; write `$${` for the two characters themselves",
                ));
            };
            let Some(value) = environment(name) else {
                let message = format!("the environment variable {name} is not set ({} needs it)", self.name_of(path));
                return Err(self.error(span, message).advise(format!("set it: export {name}=…")));
            };
            self.outside.push((value.clone(), format!("${{{name}}}")));
            whole.push_str(before);
            whole.push_str(&value);
            rest = after;
        }
        whole.push_str(rest);
        let secret = path.last().is_some_and(|key| SECRET_KEYS.contains(&key.as_str()));
        match whole.strip_prefix("file:") {
            Some(file) if secret => self.read_secret(file, span, path),
            _ => Ok(whole),
        }
    }

    fn read_secret(&mut self, file: &str, span: Range<usize>, path: &[String]) -> Result<String, SpecError> {
        use std::os::unix::fs::PermissionsExt;
        let full = self.folder().join(file);
        let content = std::fs::read_to_string(&full).map_err(|error| {
            let message = format!("the file {} for {} cannot be read: {error}", full.display(), self.name_of(path));
            self.error(span.clone(), message)
        })?;
        let open_to_others = full.metadata().is_ok_and(|data| data.permissions().mode() & 0o077 != 0);
        if open_to_others {
            self.warnings.push(format!(
                "others than its owner can read {}; mend it with: chmod 600 {}",
                full.display(),
                full.display()
            ));
        }
        let content = content.trim_end_matches(['\n', '\r']).to_owned();
        self.outside.push((content.clone(), format!("file:{file}")));
        Ok(content)
    }

    /// The folder that relative paths of the spec start from: its own.
    pub(super) fn folder(&self) -> PathBuf {
        match self.file.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        }
    }

    /// The spec's top-level keys.
    pub(super) fn keys(&self) -> Vec<(String, Range<usize>)> {
        self.table.keys().map(|key| (key.get_ref().to_string(), key.span())).collect()
    }

    /// Takes a top-level value out.
    pub(super) fn take(&mut self, key: &str) -> Option<Spanned<DeValue<'t>>> {
        self.table.remove(key)
    }

    /// Takes several top-level values out, as one table.
    pub(super) fn take_all(&mut self, keys: &[&str]) -> Spanned<DeValue<'t>> {
        let mut taken = DeTable::new();
        for key in keys {
            if let Some((key, value)) = self.table.remove_entry(*key) {
                taken.insert(key, value);
            }
        }
        Spanned::new(0..0, DeValue::Table(taken))
    }

    /// A string as the spec writes it, before anything was replaced.
    pub(super) fn literal(&self, path: &[&str]) -> Option<(&str, Range<usize>)> {
        let path: Vec<String> = path.iter().map(|part| (*part).to_owned()).collect();
        self.literal.get(&path).map(|(text, span)| (text.as_str(), span.clone()))
    }

    /// Where a key stands, if it does.
    pub(super) fn key_span(&self, path: &[&str]) -> Option<Range<usize>> {
        self.paths.iter().find(|(_, known)| known == path).map(|(span, _)| span.clone())
    }

    /// Where a value stands.
    pub(super) fn span_of(&self, path: &[&str]) -> Range<usize> {
        self.paths.iter().rev().find(|(_, known)| known == path).map_or(0..0, |(span, _)| span.clone())
    }

    /// Reads a value as `T`.
    pub(super) fn read<T: DeserializeOwned>(&self, value: Spanned<DeValue<'t>>) -> Result<T, SpecError> {
        let span = value.span();
        T::deserialize(ValueDeserializer::from(value)).map_err(|error| self.explain(&error, span))
    }

    /// An error at a place.
    pub(super) fn error(&self, span: Range<usize>, message: impl Into<String>) -> SpecError {
        SpecError::whole(&self.file, message).at(Place::of(self.text, span.start))
    }

    /// An error of the file as a whole.
    pub(super) fn whole(&self, message: impl Into<String>) -> SpecError {
        SpecError::whole(&self.file, message)
    }

    /// Makes a sentence of what the parser says, with the place and the nearest right word.
    fn explain(&self, error: &toml::de::Error, whole: Range<usize>) -> SpecError {
        let span = error.span().unwrap_or(whole);
        let path = self.path_at(&span);
        let raw = self.hide(error.message());
        let words = quoted(&raw);
        let parent = path.split_last().map(|(_, parent)| parent).unwrap_or_default();
        let message = match (raw.as_str(), words.split_first()) {
            (text, Some((word, known))) if text.starts_with("unknown field") => {
                format!("unknown key {word:?} {}{}", section(parent), suggestion(word, known.iter().copied()))
            }
            (text, Some((word, known))) if text.starts_with("unknown variant") => {
                let known = suggestion(word, known.iter().copied());
                format!("{} cannot be {word:?}{known}", self.name_of(&path))
            }
            (text, Some((word, _))) if text.starts_with("missing field") => {
                format!("the key {word:?} is missing {}", section(&path))
            }
            (text, Some((word, _))) if text.starts_with("duplicate field") => {
                format!("the key {word:?} stands twice {}", section(parent))
            }
            (text, _) if text.starts_with("invalid type: ") || text.starts_with("invalid value: ") => {
                let said =
                    text.split_once(": ").map_or(text, |(_, said)| said).replace(", expected ", " where it needs ");
                format!("wrong type for {}: {}", self.name_of(&path), plain_types(&said))
            }
            (text, _) => format!("{}: {text}", self.name_of(&path)),
        };
        self.error(span, message)
    }

    /// The key that a span belongs to; of several, the innermost.
    fn path_at(&self, span: &Range<usize>) -> Vec<String> {
        if let Some((_, path)) = self.paths.iter().find(|(known, _)| known == span) {
            return path.clone();
        }
        let around = self.paths.iter().filter(|(known, _)| known.start <= span.start && known.end >= span.end);
        around.min_by_key(|(known, _)| known.end - known.start).map(|(_, path)| path.clone()).unwrap_or_default()
    }

    /// `"workers" in [source.snapshot]`
    fn name_of(&self, path: &[String]) -> String {
        match path.split_last() {
            Some((key, [])) => format!("{key:?}"),
            Some((index, parent)) if index.parse::<usize>().is_ok() => {
                format!("item {} of {}", index.parse::<usize>().unwrap_or_default() + 1, self.name_of(parent))
            }
            Some((key, parent)) => format!("{key:?} {}", section(parent)),
            None => "the spec".to_owned(),
        }
    }

    /// A text without what came from outside the spec.
    fn hide(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (value, written) in &self.outside {
            if value.is_empty() {
                continue;
            }
            let escaped = format!("{value:?}");
            let escaped = escaped.trim_matches('"');
            text = text.replace(escaped, written).replace(value.as_str(), written);
        }
        text
    }
}

/// `in [source.snapshot]`, or nothing at the top.
fn section(path: &[String]) -> String {
    if path.is_empty() {
        return "at the top level".to_owned();
    }
    let mut text = String::new();
    for part in path {
        match part.parse::<usize>() {
            Ok(index) => text.push_str(&format!("[{}]", index + 1)),
            Err(_) if text.is_empty() => text.push_str(part),
            Err(_) => {
                text.push('.');
                text.push_str(part);
            }
        }
    }
    format!("in [{text}]")
}

/// The words in backquotes, as the parser writes names.
fn quoted(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// The parser's names of types, in plain words.
fn plain_types(text: &str) -> String {
    const PLAIN: [(&str, &str); 9] = [
        ("a boolean", "true or false"),
        ("a sequence", "a list"),
        ("sequence", "a list"),
        ("a map", "a table"),
        ("map", "a table"),
        ("usize", "a whole number"),
        ("u64", "a whole number"),
        ("u32", "a whole number"),
        ("u16", "a whole number"),
    ];
    let Some((has, needs)) = text.rsplit_once(" where it needs ") else { return text.to_owned() };
    let plain = |word: &str| {
        if word.starts_with("struct ") {
            return "a table".to_owned();
        }
        PLAIN.iter().find(|(theirs, _)| *theirs == word).map_or(word.to_owned(), |(_, ours)| (*ours).to_owned())
    };
    format!("{} where it needs {}", plain(has), plain(needs))
}

fn is_variable(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}
