//! `init`: looks at the databases and writes a commented spec, which `check` and `run` take as it is.

use crate::{
    args::InitArgs,
    error::CliError,
    output,
    registry::{AnyInspect, Place},
    spec::Name,
};
use crossfade_connector::Inspect;
use crossfade_event::{
    Identity,
    catalog::{Catalog, RelationKind, TableDef},
};
use std::{collections::BTreeSet, fmt::Write as _, fs::OpenOptions, io::Write as _, path::Path};

/// Writes a spec for what is there.
pub(crate) async fn init(args: InitArgs) -> Result<(), CliError> {
    let source = Place::parse(&args.source)?;
    let sink = args.sink.as_deref().map(Place::parse).transpose()?;
    let name = match &args.name {
        Some(name) => name.parse().map_err(CliError::misconfigured)?,
        None => Name::nearest(&source.database()),
    };
    let patterns = if args.tables.is_empty() { vec!["*.*".to_owned()] } else { args.tables.clone() };
    let catalog = AnyInspect::of_place(&source)?.catalog(&patterns).await?;
    let tables = if args.tables.is_empty() { patterns_of(&catalog) } else { args.tables.clone() };
    let text = write_spec(&name, &source, sink.as_ref(), &tables, &catalog);
    match &args.output {
        None => output::print(&text),
        Some(file) => {
            create(file, &text, args.force)?;
            tell_next(file, &source, sink.as_ref())
        }
    }
}

/// One pattern for each schema that has tables.
fn patterns_of(catalog: &Catalog) -> Vec<String> {
    let schemas: BTreeSet<&str> = catalog.tables.iter().map(|table| &*table.name.schema).collect();
    schemas.into_iter().map(|schema| format!("{schema}.*")).collect()
}

fn create(file: &Path, text: &str, force: bool) -> Result<(), CliError> {
    let mut options = OpenOptions::new();
    options.write(true);
    if force {
        options.create(true).truncate(true)
    } else {
        options.create_new(true)
    };
    let written = options.open(file).and_then(|mut out| out.write_all(text.as_bytes()));
    written.map_err(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => {
            CliError::misconfigured(format!("{} exists already", file.display())).hint("overwrite it with --force")
        }
        _ => CliError::io(format!("writing {}", file.display()), &error),
    })
}

fn tell_next(file: &Path, source: &Place, sink: Option<&Place>) -> Result<(), CliError> {
    let mut text = format!("wrote {}\n", file.display());
    for (place, variable) in [(Some(source), "SOURCE_URL"), (sink, "TARGET_URL")] {
        if place.is_some_and(Place::has_secret) {
            let _ =
                writeln!(text, "set {variable} to the URL that you gave (it holds a password, so the file does not)");
        }
    }
    let _ = writeln!(text, "next: crossfade check {}", file.display());
    output::print(&text)
}

fn write_spec(name: &Name, source: &Place, sink: Option<&Place>, tables: &[String], catalog: &Catalog) -> String {
    let rows: u64 = catalog.tables.iter().map(|table| table.rows_estimate).sum();
    let bytes: u64 = catalog.tables.iter().map(|table| table.bytes).sum();
    let mut text = format!(
        "# Written by `crossfade init`: {} tables, about {} rows, {}.\n# Every key is explained in examples/reference.toml.\n\nname = {:?}\n\n",
        catalog.tables.len(),
        output::count(rows),
        output::bytes(bytes),
        name.as_str(),
    );
    let list: Vec<String> = tables.iter().map(|pattern| format!("{pattern:?}")).collect();
    let _ = write!(
        text,
        "[source]\n{}tables = [{}]    # `!schema.table` leaves one out\n",
        place_keys(source, "SOURCE_URL"),
        list.join(", ")
    );
    for table in &catalog.tables {
        let _ = writeln!(text, "#   {}", describe(table));
    }
    text.push_str("\n[sink]\n");
    match sink {
        Some(sink) => {
            text.push_str(&place_keys(sink, "TARGET_URL"));
            if sink == source {
                text.push_str("schema = \"app_v2\"    # the same database: another schema tells new from old\n");
            }
        }
        None => text.push_str(&missing_sink(source)),
    }
    let namespace = uuid::Builder::from_random_bytes(rand::random()).into_uuid().to_string();
    text.push_str(&OPTIONS.replace("NAMESPACE", &namespace).replace("TABLES", &tables.join("\", \"")));
    text
}

const OPTIONS: &str = r#"# on_error = "quarantine"    # or "stop"
# existing = "refuse"        # or "merge": write into tables that hold rows; what is overwritten is kept for undo

# New keys for every integer key of these tables, and for every reference to one:
# [keys.default]
# make      = "uuid-v8-sha256"    # or uuid-v4, uuid-v5, uuid-v7 (with time = "a column"), canonical-sha256
# namespace = "NAMESPACE"
# [rekey]
# tables = ["TABLES"]
# with   = "default"

# What becomes of one table's columns:
# [[table]]
# from  = "schema.table"
# steps = [{ rename = "old_name", to = "new_name" }, { drop = "unused" }]

# [gates]
# error_rate = { max = "1%", then = "pause" }
# lag        = { max = "30s", then = "warn" }
"#;

/// The keys that say where a database is; one whose URL holds a password comes from the environment.
fn place_keys(place: &Place, variable: &str) -> String {
    match place {
        Place::Sqlite(path) => format!("kind = \"sqlite\"\npath = {:?}\n", path.display().to_string()),
        Place::Postgres(_) if place.has_secret() => format!("kind = \"postgres\"\nurl  = \"${{{variable}}}\"\n"),
        Place::Postgres(url) => format!("kind = \"postgres\"\nurl  = {:?}\n", url.replace("${", "$${")),
    }
}

fn missing_sink(source: &Place) -> String {
    match source {
        Place::Postgres(_) => {
            "kind = \"postgres\"\nurl  = \"${TARGET_URL}\"    # postgres://user:password@host:5432/database\n"
                .to_owned()
        }
        Place::Sqlite(path) => {
            let stem = path.file_stem().unwrap_or_default().to_string_lossy();
            let file = path.with_file_name(format!("{stem}-v2.db"));
            format!("kind = \"sqlite\"\npath = {:?}\n", file.display().to_string())
        }
    }
}

/// A table in one line: what a person wants to know before it moves.
fn describe(table: &TableDef) -> String {
    let mut text = format!("{:<40} {:>12} rows", table.name.to_string(), output::count(table.rows_estimate));
    if let Some(obstacle) = &table.obstacle {
        let _ = write!(text, "  CANNOT BE CAPTURED: {}", obstacle.replace('\n', " "));
        return text;
    }
    if let RelationKind::Partition { parent, .. } = &table.kind {
        let _ = write!(text, "  partition of {parent}");
    }
    match (table.identity, &table.primary_key) {
        (Identity::Key, Some(key)) => {
            let _ = write!(text, "  key ({})", key.columns.join(", "));
        }
        (Identity::Key, None) => text.push_str("  key by a unique index"),
        (Identity::FullRow, _) => text.push_str("  no key: found by the whole row"),
        (Identity::InsertOnly, _) => text.push_str("  no key: insert-only"),
    }
    text
}
