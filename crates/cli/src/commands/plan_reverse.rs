//! `plan --reverse`: what becomes of each column on the way back, and why there is none where there is none. Writes nothing.

use crate::{
    error::CliError,
    output::{self, Table},
    spec::Spec,
};
use crossfade_transform::{BackHow, BackRefusal, BackTable};
use serde::Serialize;

/// The answer of `plan --reverse --json`.
#[derive(Debug, Serialize)]
struct Answer<'a> {
    migration: &'a str,
    /// Whether a switch can be taken back without losing a write.
    way_back: bool,
    /// Why not, where not.
    refusals: Vec<Refusal<'a>>,
    tables: Vec<TableAnswer<'a>>,
}

#[derive(Debug, Serialize)]
struct Refusal<'a> {
    table: String,
    column: Option<&'a str>,
    why: &'a str,
}

#[derive(Debug, Serialize)]
struct TableAnswer<'a> {
    /// The new side's table.
    from: String,
    /// The old side's.
    to: String,
    /// Whether the new side's table is made to tell each row as it was before (REPLICA IDENTITY FULL).
    needs_old_rows: bool,
    columns: Vec<ColumnAnswer<'a>>,
    /// The new side's columns that are not sent back.
    left: &'a [String],
}

#[derive(Debug, Serialize)]
struct ColumnAnswer<'a> {
    column: &'a str,
    from: &'a [String],
    how: BackHow,
    text: &'a str,
    /// The sequence that gives keys to rows that were born on the new side.
    sequence: Option<String>,
}

/// Prints the plan of a way back.
pub(crate) fn plan(spec: &Spec, as_json: bool) -> Result<(), CliError> {
    let reverse = spec.reverse.as_ref().ok_or_else(|| CliError::failed("this is the plan of no way back"))?;
    let answer = Answer {
        migration: reverse.of.as_str(),
        way_back: reverse.back.refusals.is_empty(),
        refusals: reverse.back.refusals.iter().map(refusal).collect(),
        tables: reverse.back.tables.iter().map(table).collect(),
    };
    if as_json { output::json(&answer) } else { output::print(&render(&answer)) }
}

fn refusal(refusal: &BackRefusal) -> Refusal<'_> {
    Refusal { table: refusal.table.to_string(), column: refusal.column.as_deref(), why: &refusal.why }
}

fn table(table: &BackTable) -> TableAnswer<'_> {
    let sequence = |column: &str| {
        let own = table.keys.iter().find(|key| key.column == column && key.of == table.to);
        own.map(|key| key.sequence.to_string())
    };
    let columns = table.columns.iter().map(|column| ColumnAnswer {
        column: &column.column,
        from: &column.from,
        how: column.how,
        text: &column.text,
        sequence: sequence(&column.column),
    });
    TableAnswer {
        from: table.from.to_string(),
        to: table.to.to_string(),
        needs_old_rows: table.needs_old_rows,
        columns: columns.collect(),
        left: &table.left,
    }
}

fn render(answer: &Answer<'_>) -> String {
    let mut text = format!("{}: the way back, from the new side to the old one\n\n", answer.migration);
    let mut tables = Table::new(["from", "to", "old keys from", "tells old rows"]);
    for table in &answer.tables {
        let sequence = table.columns.iter().find_map(|column| column.sequence.clone());
        tables.row([
            table.from.clone(),
            table.to.clone(),
            sequence.unwrap_or_default(),
            if table.needs_old_rows { "yes" } else { "" }.to_owned(),
        ]);
    }
    text.push_str(&tables.render());
    const KINDS: [(BackHow, &str); 4] = [
        (BackHow::Kept, "not sent back"),
        (BackHow::WhereChanged, "sent back only where it has changed, for it is not exact"),
        (BackHow::OldKey, "old keys"),
        (BackHow::Exact, "exact"),
    ];
    for (how, title) in KINDS {
        let of_kind = |table: &TableAnswer<'_>| -> Vec<String> {
            let said = table.columns.iter().filter(|column| column.how == how && !column.text.is_empty());
            said.map(|column| format!("  {}.{}: {}\n", table.to, column.column, column.text)).collect()
        };
        let lines: String = answer.tables.iter().flat_map(of_kind).collect();
        if !lines.is_empty() {
            text.push_str(&format!("\n{title}:\n{lines}"));
        }
    }
    let left = |table: &TableAnswer<'_>| -> Vec<String> {
        table.left.iter().map(|column| format!("  {}.{column}\n", table.from)).collect()
    };
    let left: String = answer.tables.iter().flat_map(left).collect();
    if !left.is_empty() {
        text.push_str(&format!("\nonly on the new side:\n{left}"));
    }
    for refusal in &answer.refusals {
        let column = refusal.column.map(|column| format!(".{column}")).unwrap_or_default();
        text.push_str(&format!("\nthe switch would be one-way, because {}{column} {}\n", refusal.table, refusal.why));
    }
    text.push_str("\nnothing has been written\n");
    text
}
