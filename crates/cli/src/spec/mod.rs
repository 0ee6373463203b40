//! The spec: one TOML file that says what moves where, and how. Parsing gives a value that cannot be wrong in itself;
//! whether the tables and columns exist is for `check` and `plan` to see.
//!
//! Relative paths in a spec start from the spec's own folder, so that a command means the same wherever it is typed.

mod document;
mod error;
mod log;
mod require;
mod reversed;
mod rules;
mod scalar;
#[cfg(test)]
mod schema;
mod sink;
mod source;
mod switch;
mod verify;
mod views;

pub(crate) use crossfade_control::Gates;
pub(crate) use error::{SpecError, nearest};
pub(crate) use log::{EmbeddedLog, KafkaLog, LogSpec, Transformer};
#[cfg(feature = "kafka")]
pub(crate) use log::{KafkaSasl, KafkaTls, Mechanism};
pub(crate) use require::Requirement;
pub(crate) use reversed::{FOLDER as REVERSE_FOLDER, Reverse};
pub(crate) use rules::has_plain_password;
pub(crate) use scalar::{Name, Secret, Span};
pub(crate) use sink::{Apply, DualLayout, Existing, OnError, PostgresSink, SinkSpec, WriteRecords, WriteTo};
#[cfg(feature = "kafka")]
pub(crate) use sink::{Cleanup, KafkaSink, SinkDecimal, SinkFormat};
#[cfg(feature = "kafka")]
pub(crate) use source::{BinaryHandling, DebeziumSource, DecimalHandling, TimePrecision};
pub(crate) use source::{OnRewrite, PostgresSource, SourceSpec};
pub(crate) use switch::{DEADLINE_MAX, DEADLINE_MIN, SwitchSpec};
pub(crate) use verify::VerifySpec;
pub(crate) use views::ViewsSpec;

use document::Document;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};
use toml::{Spanned, de::DeValue};

/// The keys of the top level.
const SECTIONS: [&str; 14] = [
    "name", "dir", "secret", "source", "log", "sink", "keys", "rekey", "table", "gates", "verify", "switch", "require",
    "views",
];

/// What one process does of a migration where it does not do all of it. Each has a folder of its own in the migration's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// From the source into the log.
    Ingest,
    /// From the log into the sink.
    Deliver,
}

impl Part {
    /// As `--role` has it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ingest => "ingest",
            Self::Deliver => "deliver",
        }
    }
}

/// A migration as its spec describes it.
#[derive(Debug, Clone)]
pub(crate) struct Spec {
    /// The file it was read from.
    pub(crate) file: PathBuf,
    /// The migration's name.
    pub(crate) name: Name,
    /// The folder that holds the migration's own.
    dir: PathBuf,
    /// What this process does of it, or is asked about; `None` for all of it.
    pub(crate) part: Option<Part>,
    /// What derived keys and masks come from.
    pub(crate) secret: Option<Secret>,
    /// Where rows and changes come from.
    pub(crate) source: SourceSpec,
    /// The event log between the two.
    pub(crate) log: LogSpec,
    /// Where they go.
    pub(crate) sink: SinkSpec,
    /// What becomes of them on the way.
    pub(crate) rules: crossfade_transform::Rules,
    /// What is watched meanwhile.
    pub(crate) gates: Gates,
    /// Whether both sides are compared all the time.
    pub(crate) verify: VerifySpec,
    /// How the new side gets the authority; without it, it does not.
    pub(crate) switch: Option<SwitchSpec>,
    /// What must hold in the source before it begins.
    pub(crate) require: Vec<Requirement>,
    /// What shows both shapes; `None` for no views.
    pub(crate) views: Option<ViewsSpec>,
    /// The migration that this one takes back; `None` for one that a file says.
    pub(crate) reverse: Option<Arc<Reverse>>,
    /// What is worth knowing, though it works.
    pub(crate) warnings: Vec<String>,
}

impl Spec {
    /// Reads a spec, with `${NAME}` from the environment.
    ///
    /// # Errors
    /// The first thing that is wrong, with its place and the nearest right word.
    pub(crate) fn load(path: &Path) -> Result<Self, SpecError> {
        let text = std::fs::read_to_string(path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => SpecError::whole(path, "there is no such file")
                .advise("name a spec; `crossfade init --source URL` writes one"),
            _ => SpecError::whole(path, format!("the spec cannot be read: {error}")),
        })?;
        let spec = Self::parse(path, &text, &|name| std::env::var(name).ok())?;
        if cfg!(not(feature = "kafka")) && matches!(spec.log, LogSpec::Kafka(_)) {
            return Err(SpecError::whole(
                path,
                "kind = \"kafka\" in [log] needs a crossfade with Kafka, and this one was built without",
            )
            .advise("build it with: cargo build --release -p crossfade-cli --features kafka"));
        }
        if cfg!(not(feature = "kafka")) && matches!(spec.sink, SinkSpec::Kafka(_)) {
            return Err(SpecError::whole(
                path,
                "kind = \"kafka\" in [sink] needs a crossfade with Kafka, and this one was built without",
            )
            .advise("build it with: cargo build --release -p crossfade-cli --features kafka"));
        }
        if cfg!(not(feature = "kafka")) && matches!(spec.source, SourceSpec::Debezium(_)) {
            return Err(SpecError::whole(
                path,
                "kind = \"debezium\" in [source] needs a crossfade with Kafka, and this one was built without",
            )
            .advise("build it with: cargo build --release -p crossfade-cli --features kafka"));
        }
        Ok(spec)
    }

    fn parse(path: &Path, text: &str, environment: &dyn Fn(&str) -> Option<String>) -> Result<Self, SpecError> {
        let mut document = Document::parse(path, text, environment)?;
        refuse_unknown_sections(&document)?;
        rules::refuse_unbuilt(&document)?;
        let name = required(&mut document, "name")?;
        let dir: Option<PathBuf> = optional(&mut document, "dir")?;
        let secret: Option<Secret> = optional(&mut document, "secret")?;
        let mut source = read_source(&mut document)?;
        let mut log = read_log(&mut document)?;
        let mut sink = read_sink(&mut document)?;
        let gates: Gates = optional(&mut document, "gates")?.unwrap_or_default();
        let verify: VerifySpec = optional(&mut document, "verify")?.unwrap_or_default();
        let switch = optional(&mut document, "switch")?;
        let require: Vec<Requirement> = optional(&mut document, "require")?.unwrap_or_default();
        let views = optional(&mut document, "views")?;
        let transforms = rules::read_transforms(&mut document)?;
        rules::check(&document, &source, &sink, &transforms)?;
        rules::check_gates(&document, &source, &sink, &gates)?;
        rules::check_secret(&document, secret.as_ref())?;
        rules::check_log(&document, &log, &sink, &transforms)?;
        switch::check(&document, switch.as_ref(), &source, &sink)?;
        verify::check(&document, &verify, &source, &log, &sink, &transforms)?;
        require::check(&document, &require, &source)?;
        switch::check(&document, switch.as_ref(), &source, &sink)?;
        views::check(&document, views.as_ref(), &source, &sink)?;
        let folder = document.folder();
        anchor_source(&mut source, &folder);
        anchor_sink(&mut sink, &folder);
        anchor_log(&mut log, &folder);
        rules::check_two_files(&document, &source, &sink)?;
        Ok(Self {
            file: path.to_owned(),
            name: document.read(name)?,
            dir: anchored(&folder, dir.as_deref().unwrap_or(Path::new("crossfade-data"))),
            part: None,
            secret,
            source,
            log,
            sink,
            rules: transforms,
            gates,
            verify,
            switch,
            require,
            views,
            reverse: None,
            warnings: document.warnings,
        })
    }

    /// The migration's own folder: what all of its processes on this machine have in common (plan, secret, the ids of the
    /// log's topics).
    pub(crate) fn base(&self) -> PathBuf {
        match self.reverse {
            None => self.dir.join(self.name.as_str()),
            Some(_) => self.dir.join(REVERSE_FOLDER),
        }
    }

    /// The folder of the one process: journal, state, status file, control socket. Where one does all of it, the
    /// migration's own.
    pub(crate) fn folder(&self) -> PathBuf {
        match self.part {
            None => self.base(),
            Some(part) => self.base().join(part.name()),
        }
    }

    /// Whether workers transform, which are processes of their own.
    pub(crate) fn has_workers(&self) -> bool {
        matches!(&self.log, LogSpec::Kafka(log) if log.transform == Transformer::Workers)
    }

    /// The same migration, as the process sees it that does this of it.
    pub(crate) fn as_part(&self, part: Option<Part>) -> Self {
        Self { part, ..self.clone() }
    }
}

/// Another file than a spec, read with the same care.
///
/// # Errors
/// The first thing that is wrong, with its place and the nearest right word.
pub(crate) fn load_beside<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, SpecError> {
    let text = std::fs::read_to_string(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => SpecError::whole(path, "there is no such file"),
        _ => SpecError::whole(path, format!("it cannot be read: {error}")),
    })?;
    let mut document = Document::parse(path, &text, &|name| std::env::var(name).ok())?;
    let keys: Vec<String> = document.keys().into_iter().map(|(key, _)| key).collect();
    let whole = document.take_all(&keys.iter().map(String::as_str).collect::<Vec<_>>());
    document.read(whole)
}

fn refuse_unknown_sections(document: &Document<'_>) -> Result<(), SpecError> {
    for (key, span) in document.keys() {
        if !SECTIONS.contains(&key.as_str()) {
            let suggestion = error::suggestion(&key, SECTIONS);
            return Err(document.error(span, format!("unknown key {key:?} at the top level{suggestion}")));
        }
    }
    Ok(())
}

fn required<'t>(document: &mut Document<'t>, key: &str) -> Result<Spanned<DeValue<'t>>, SpecError> {
    document.take(key).ok_or_else(|| document.whole(format!("the key {key:?} is missing at the top level")))
}

fn optional<T: serde::de::DeserializeOwned>(document: &mut Document<'_>, key: &str) -> Result<Option<T>, SpecError> {
    document.take(key).map(|value| document.read(value)).transpose()
}

/// The `kind` of a section; unknown and unbuilt ones are refused by name.
fn kind_of(
    document: &Document<'_>,
    section: &str,
    value: &Spanned<DeValue<'_>>,
    known: &[&'static str],
) -> Result<&'static str, SpecError> {
    let Some(table) = value.get_ref().as_table() else {
        return Err(document.error(value.span(), format!("{section:?} must be a table: write [{section}]")));
    };
    let Some(kind) = table.get("kind") else {
        let message = format!("the key \"kind\" is missing in [{section}]; known are {}", known.join(", "));
        return Err(document.error(value.span(), message));
    };
    let text = kind.get_ref().as_str().unwrap_or_default();
    known.iter().copied().find(|known| *known == text).ok_or_else(|| {
        let suggestion = error::suggestion(text, known.iter().copied());
        document.error(kind.span(), format!("\"kind\" in [{section}] cannot be {text:?}{suggestion}"))
    })
}

fn read_source(document: &mut Document<'_>) -> Result<SourceSpec, SpecError> {
    let value = required(document, "source")?;
    match kind_of(document, "source", &value, &["postgres", "sqlite", "debezium"])? {
        "postgres" => document.read(value).map(SourceSpec::Postgres),
        "debezium" => document.read(value).map(|source| SourceSpec::Debezium(Box::new(source))),
        _ => document.read(value).map(SourceSpec::Sqlite),
    }
}

fn read_sink(document: &mut Document<'_>) -> Result<SinkSpec, SpecError> {
    let value = required(document, "sink")?;
    match kind_of(document, "sink", &value, &["postgres", "sqlite", "kafka"])? {
        "postgres" => document.read(value).map(SinkSpec::Postgres),
        "kafka" => document.read(value).map(|sink| SinkSpec::Kafka(Box::new(sink))),
        _ => document.read(value).map(SinkSpec::Sqlite),
    }
}

/// Without a kind it is the embedded one.
fn read_log(document: &mut Document<'_>) -> Result<LogSpec, SpecError> {
    let Some(value) = document.take("log") else { return Ok(LogSpec::default()) };
    let has_kind = value.get_ref().as_table().is_none_or(|table| table.contains_key("kind"));
    match has_kind.then(|| kind_of(document, "log", &value, &["embedded", "kafka"])).transpose()? {
        Some("kafka") => document.read(value).map(|log| LogSpec::Kafka(Box::new(log))),
        _ => document.read(value).map(LogSpec::Embedded),
    }
}

/// A path of the spec, from the spec's folder on.
fn anchored(folder: &Path, path: &Path) -> PathBuf {
    let plain = path.strip_prefix(".").unwrap_or(path);
    if plain.is_absolute() || folder == Path::new(".") { plain.to_owned() } else { folder.join(plain) }
}

fn anchor_source(source: &mut SourceSpec, folder: &Path) {
    match source {
        SourceSpec::Postgres(source) => {
            for path in [&mut source.sslrootcert, &mut source.sslcert, &mut source.sslkey].into_iter().flatten() {
                *path = anchored(folder, path);
            }
        }
        SourceSpec::Sqlite(source) => source.path = anchored(folder, &source.path),
        SourceSpec::Debezium(source) => {
            if let Some(tls) = &mut source.tls {
                for path in [&mut tls.authority, &mut tls.certificate, &mut tls.key].into_iter().flatten() {
                    *path = anchored(folder, path);
                }
            }
        }
    }
}

fn anchor_sink(sink: &mut SinkSpec, folder: &Path) {
    match sink {
        SinkSpec::Postgres(sink) => {
            for path in [&mut sink.sslrootcert, &mut sink.sslcert, &mut sink.sslkey].into_iter().flatten() {
                *path = anchored(folder, path);
            }
        }
        SinkSpec::Sqlite(sink) => sink.path = anchored(folder, &sink.path),
        SinkSpec::Kafka(sink) => {
            if let Some(tls) = &mut sink.tls {
                for path in [&mut tls.authority, &mut tls.certificate, &mut tls.key].into_iter().flatten() {
                    *path = anchored(folder, path);
                }
            }
        }
    }
}

fn anchor_log(log: &mut LogSpec, folder: &Path) {
    if let LogSpec::Kafka(log) = log
        && let Some(tls) = &mut log.tls
    {
        for path in [&mut tls.authority, &mut tls.certificate, &mut tls.key].into_iter().flatten() {
            *path = anchored(folder, path);
        }
    }
}

#[cfg(test)]
mod tests;
