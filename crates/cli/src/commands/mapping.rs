//! `mapping export|lookup`: reads the mapping of old keys to new ones from the target.

use crate::{
    error::CliError,
    output::{self, Table},
    registry::AnySink,
    spec::Spec,
};
use crossfade_connector::{MappingEntry, StoredMapping};
use std::io::{self, BufWriter, Write};

/// Entries fetched at once.
const PAGE: u32 = 10_000;

/// Writes the whole mapping, sorted by table and old key, in bounded memory.
pub(crate) async fn export(spec: &Spec, table: Option<&str>, as_json: bool) -> Result<(), CliError> {
    let mut sink = AnySink::for_looking(spec)?;
    let mut out = BufWriter::new(io::stdout());
    let mut after: Option<MappingEntry> = None;
    loop {
        let page = sink.mapping_page(table, after.as_ref(), PAGE).await?;
        if after.is_none() && !as_json {
            writeln!(out, "table_name,old_id,new_id,migrated_at")?;
        }
        for entry in &page {
            if as_json {
                output::json_line(&mut out, entry)?;
            } else {
                let cells = [&entry.table_name, &entry.old_id, &entry.new_id, &entry.migrated_at];
                writeln!(out, "{}", cells.map(|cell| csv(cell)).join(","))?;
            }
        }
        match page.last() {
            Some(last) => after = Some(last.clone()),
            None => break,
        }
    }
    out.flush()?;
    Ok(())
}

/// Finds entries by old or new key.
pub(crate) async fn lookup(spec: &Spec, key: &str, as_json: bool) -> Result<(), CliError> {
    let found = AnySink::for_looking(spec)?.mapping_lookup(key).await?;
    if as_json {
        return output::json(&found);
    }
    if found.is_empty() {
        return Err(CliError::failed(format!("no old or new key in the mapping is {key}")));
    }
    let mut table = Table::new(["table", "old", "new", "migrated at"]);
    for entry in found {
        table.row([entry.table_name, entry.old_id, entry.new_id, entry.migrated_at]);
    }
    output::print(&table.render())
}

/// A cell of CSV (RFC 4180).
fn csv(cell: &str) -> String {
    if cell.contains([',', '"', '\n', '\r']) { format!("\"{}\"", cell.replace('"', "\"\"")) } else { cell.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn csv_cells_are_quoted_where_they_must_be() {
        assert_eq!(csv("4711"), "4711");
        assert_eq!(csv("(1,2)"), "\"(1,2)\"");
        assert_eq!(csv("a \"b\""), "\"a \"\"b\"\"\"");
    }
}
