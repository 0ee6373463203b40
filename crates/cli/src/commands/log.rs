//! `log ls|cat|verify`: looks into the event log, also while a migration writes it.

use crate::{
    args::LogCatArgs,
    error::CliError,
    event_log::AnyLog,
    output::{self, Table},
    spec::Spec,
    values,
};
use crossfade_event::{Cut, Event, Offset, Sequence, TableId, TableSchema};
use crossfade_log::{Entry, EventLog, Lane, LogReader};
use serde_json::{Value as Json, json};
use std::{
    io::{self, BufWriter, Write},
    sync::Arc,
};

/// Where the log begins and ends, its tables, its readers, its files.
pub(crate) fn ls(spec: &Spec, as_json: bool) -> Result<(), CliError> {
    let log = AnyLog::look(spec)?;
    let (mut figures, mut text) = log.figures()?;
    let position = log.tail().position.map(|position| position.to_string());
    let tables = log.latest_schemas();
    if as_json {
        let (tables, consumers): (Vec<Json>, Vec<Json>) = (
            tables.iter().map(|schema| table_json(schema)).collect(),
            log.consumers().iter().map(|(name, cut)| json!({ "name": name, "next": cut.to_string() })).collect(),
        );
        add(&mut figures, "position", json!(position));
        add(&mut figures, "tables", json!(tables));
        add(&mut figures, "consumers", json!(consumers));
        return output::json(&figures);
    }
    text.push_str(&format!("position  {}\n", position.as_deref().unwrap_or("none yet")));
    let mut list = Table::new(["table", "number", "schema", "columns"]);
    for schema in &tables {
        let columns = schema.columns.len();
        list.row([schema.name.to_string(), schema.id.0.to_string(), schema.version.0.to_string(), columns.to_string()]);
    }
    if !list.is_empty() {
        text.push_str(&format!("\n{}", list.render()));
    }
    let mut readers = Table::new(["consumer", "has read up to"]);
    for (name, cut) in log.consumers() {
        readers.row([name, cut.to_string()]);
    }
    if !readers.is_empty() {
        text.push_str(&format!("\n{}", readers.render()));
    }
    output::print(&text)
}

fn table_json(schema: &TableSchema) -> Json {
    json!({
        "table": schema.name.to_string(),
        "number": schema.id.0,
        "schema": schema.version.0,
        "identity": schema.identity,
        "columns": schema.columns.iter().map(|column| json!({
            "name": &*column.name, "type": &*column.type_.name, "key": column.key, "nullable": column.nullable,
        })).collect::<Vec<_>>(),
    })
}

/// Reads every byte again.
pub(crate) fn verify(spec: &Spec, as_json: bool) -> Result<(), CliError> {
    let sound = AnyLog::look(spec)?.verify()?;
    if as_json {
        return output::json(&sound.figures);
    }
    output::line(format!("the log is sound: {}", sound.said))
}

/// Prints events.
pub(crate) fn cat(spec: &Spec, args: &LogCatArgs) -> Result<(), CliError> {
    let log = AnyLog::look(spec)?;
    let only = args.table.as_deref().map(|name| table_named(&log, name)).transpose()?;
    let first = args.from.map(Sequence);
    let from = first.filter(|_| log.elsewhere().is_none()).map_or_else(|| log.start(), |at| Cut::single(Offset(at.0)));
    let mut reader = log.read(&from, Lane::All)?;
    let mut out = BufWriter::new(io::stdout().lock());
    let mut left = args.limit.unwrap_or(u64::MAX);
    while left > 0 {
        let Some(entries) = reader.try_next()? else { break };
        let wanted = entries.entries.iter().filter(|entry| {
            first.is_none_or(|first| entry.sequence >= first) && only.is_none_or(|table| concerns(&entry.event, table))
        });
        for entry in wanted.take(usize::try_from(left).unwrap_or(usize::MAX)) {
            left -= 1;
            print_entry(&mut out, &log, entry, args)?;
        }
    }
    out.flush()?;
    Ok(())
}

fn table_named(log: &AnyLog, name: &str) -> Result<TableId, CliError> {
    let schemas = log.latest_schemas();
    if let Some(schema) = schemas.iter().find(|schema| schema.name.to_string() == name) {
        return Ok(schema.id);
    }
    let names: Vec<String> = schemas.iter().map(|schema| schema.name.to_string()).collect();
    let nearest = crate::spec::nearest(name, names.iter().map(String::as_str));
    let error = CliError::misconfigured(format!("the log has no table {name}"));
    Err(match nearest {
        Some(nearest) => error.hint(format!("did you mean {nearest}?")),
        None => error.hint(format!("it has {}", names.join(", "))),
    })
}

fn concerns(event: &Event, table: TableId) -> bool {
    match event {
        Event::SchemaSeen(schema) => schema.id == table,
        Event::BackfillBegan(backfill) => backfill.tables.contains(&table),
        Event::SnapshotBegan { table: other, .. }
        | Event::ChunkEnded { table: other, .. }
        | Event::SnapshotEnded { table: other, .. } => *other == table,
        Event::Rows(block) => block.table == table,
        Event::Changed(change) => change.table == table,
        Event::Truncated(truncate) => truncate.tables.contains(&table),
        Event::BackfillEnded { .. } | Event::Began(_) | Event::Marked(_) | Event::Committed | Event::Resolved => false,
    }
}

fn print_entry(out: &mut impl Write, log: &AnyLog, entry: &Entry, args: &LogCatArgs) -> Result<(), CliError> {
    let (what, detail) = describe(log, &entry.event, args.values)?;
    if args.json {
        let mut line = json!({
            "sequence": entry.sequence.0, "partition": entry.partition.0, "offset": entry.offset.0,
            "position": entry.position.to_string(), "event": what,
        });
        if let (Some(line), Json::Object(detail)) = (line.as_object_mut(), detail) {
            line.extend(detail);
        }
        return output::json_line(out, &line);
    }
    write!(out, "{:>10}  ", entry.sequence.0)?;
    if log.partitions() > 1 {
        write!(out, "{:<10}  ", format!("{}:{}", entry.partition.0, entry.offset))?;
    }
    write!(out, "{:<24}  {what:<15}", entry.position.to_string())?;
    if let Json::Object(detail) = detail {
        for (key, value) in detail {
            match value {
                Json::String(text) => write!(out, "  {key}={text}")?,
                Json::Null => {}
                other => write!(out, "  {key}={other}")?,
            }
        }
    }
    writeln!(out)?;
    Ok(())
}

/// An event's name and what is to be said of it.
fn describe(log: &AnyLog, event: &Event, with_values: bool) -> Result<(&'static str, Json), CliError> {
    let name = |table: TableId| table_name(log, table);
    Ok(match event {
        Event::SchemaSeen(schema) => ("schema", table_json(schema)),
        Event::BackfillBegan(backfill) => (
            "backfill-began",
            json!({
                "generation": backfill.generation,
                "tables": backfill.tables.iter().map(|table| name(*table)).collect::<Vec<_>>(),
            }),
        ),
        Event::SnapshotBegan { table, chunks } => {
            ("snapshot-began", json!({ "table": name(*table), "chunks": chunks.len() }))
        }
        Event::Rows(block) => {
            let mut detail = json!({ "table": name(block.table), "chunk": block.chunk.0, "rows": block.count });
            if with_values && let Some(schema) = log.schema(block.table, block.schema) {
                let rows: Result<Vec<Json>, _> =
                    block.iter().map(|row| row.map(|row| values::row(&schema, &row))).collect();
                let rows = rows.map_err(|error| CliError::failed(format!("reading a block of rows: {error}")))?;
                add(&mut detail, "values", Json::Array(rows));
            }
            ("rows", detail)
        }
        Event::ChunkEnded { table, chunk, rows } => {
            ("chunk-ended", json!({ "table": name(*table), "chunk": chunk.0, "rows": rows }))
        }
        Event::SnapshotEnded { table, .. } => ("snapshot-ended", json!({ "table": name(*table) })),
        Event::BackfillEnded { generation } => ("backfill-ended", json!({ "generation": generation })),
        Event::Began(transaction) => {
            ("began", json!({ "xid": transaction.xid, "committed_at": moment(transaction.commit_time_us) }))
        }
        Event::Changed(change) => {
            let schema: Option<Arc<TableSchema>> = log.schema(change.table, change.schema);
            let key = schema.as_ref().and_then(|schema| values::key_hash_of(schema, change));
            let mut detail = json!({ "op": change.op, "table": name(change.table), "key_hash": key });
            if with_values && let Some(schema) = &schema {
                for (label, image) in [("old", &change.old), ("new", &change.new)] {
                    if let Some(image) = image {
                        add(&mut detail, label, values::row(schema, image));
                    }
                }
            }
            ("changed", detail)
        }
        Event::Truncated(truncate) => {
            ("truncated", json!({ "tables": truncate.tables.iter().map(|table| name(*table)).collect::<Vec<_>>() }))
        }
        Event::Marked(mark) => ("marked", json!({ "prefix": &*mark.prefix })),
        Event::Committed => ("committed", json!({})),
        Event::Resolved => ("resolved", json!({})),
    })
}

fn add(detail: &mut Json, key: &str, value: Json) {
    if let Some(detail) = detail.as_object_mut() {
        detail.insert(key.to_owned(), value);
    }
}

fn table_name(log: &AnyLog, table: TableId) -> String {
    let schemas = log.latest_schemas();
    let found = schemas.iter().find(|schema| schema.id == table);
    found.map_or_else(|| format!("table {}", table.0), |schema| schema.name.to_string())
}

fn moment(us: i64) -> String {
    jiff::Timestamp::from_microsecond(us).map_or_else(|_| us.to_string(), |time| time.to_string())
}
