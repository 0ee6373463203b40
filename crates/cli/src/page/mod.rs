//! What `verify` found, as a page to read in a browser: one file that asks for nothing else, and holds no value of a row
//! but the keys that were asked for.

mod plot;

use crossfade_dualread::{Latency, pairs::PairReport};
use crossfade_verify::{Difference, Report, TableReport};
use std::fmt::{self, Write};

/// What stands on the page.
pub(crate) struct Page<'a> {
    /// The migration.
    pub(crate) name: &'a str,
    /// When it was looked at.
    pub(crate) at: String,
    /// Rows, where they were compared.
    pub(crate) rows: Option<&'a Report>,
    /// What else is worth knowing of the rows, in sentences.
    pub(crate) notes: &'a [String],
    /// Query pairs, where some were asked.
    pub(crate) queries: Option<&'a [PairReport]>,
}

/// A text as it stands in HTML.
struct Text<'a>(&'a str);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                _ => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

impl Page<'_> {
    /// The whole page.
    pub(crate) fn render(&self) -> String {
        let mut html = String::new();
        // Writing into a string cannot fail.
        let _ = self.write(&mut html);
        html
    }

    fn write(&self, html: &mut String) -> fmt::Result {
        let (name, at) = (Text(self.name), Text(&self.at));
        writeln!(html, "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">")?;
        writeln!(html, "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">")?;
        writeln!(html, "<title>{name}: verified {at}</title>\n<style>\n{}</style>", include_str!("style.css"))?;
        writeln!(html, "</head>\n<body>\n<h1>{name}</h1>\n<p class=\"soft\">verified {at}</p>")?;
        let (kind, word) = self.verdict();
        writeln!(html, "<p class=\"verdict {kind}\">{}</p>", Text(&word))?;
        if let Some(rows) = self.rows {
            self.write_rows(html, rows)?;
        }
        if let Some(queries) = self.queries {
            write_queries(html, queries)?;
        }
        writeln!(html, "</body>\n</html>")
    }

    fn verdict(&self) -> (&'static str, String) {
        let rows = self.rows.map_or(0, |rows| rows.differences + rows.refused_rows);
        let broken = self.rows.map_or(0, Report::broken);
        let restless = self.rows.map_or(0, |rows| rows.unjudged_rows);
        let queries = self.queries.unwrap_or_default();
        let count = |is: fn(&PairReport) -> bool| queries.iter().filter(|report| is(report)).count();
        let (differ, unjudged) = (count(PairReport::differs), count(|report| report.unjudged > 0));
        let slow = count(PairReport::is_slow);
        let mut words = Vec::new();
        for (count, one, many) in [
            (rows, "row differs or is refused", "rows differ or are refused"),
            (broken, "reference or new key is broken in the target", "references or new keys are broken in the target"),
            (restless, "row could not be judged", "rows could not be judged"),
            (differ as u64, "query is answered differently", "queries are answered differently"),
            (unjudged as u64, "query could not be judged", "queries could not be judged"),
            (slow as u64, "query is too slow", "queries are too slow"),
        ] {
            if count > 0 {
                words.push(format!("{} {}", crate::output::count(count), if count == 1 { one } else { many }));
            }
        }
        match (words.is_empty(), rows > 0 || broken > 0 || differ > 0) {
            (true, _) => ("good", "both sides agree".to_owned()),
            (false, true) => ("bad", words.join(" · ")),
            (false, false) => ("slow", words.join(" · ")),
        }
    }

    fn write_rows(&self, html: &mut String, rows: &Report) -> fmt::Result {
        writeln!(html, "<h2>Rows</h2>")?;
        if let Some(position) = &rows.position {
            writeln!(html, "<p class=\"soft\">compared at position <code>{}</code> of the source</p>", Text(position))?;
        }
        writeln!(
            html,
            "<div class=\"wide\"><table><tr><th>table</th><th class=\"n\">expected</th><th class=\"n\">target</th><th class=\"n\">differences</th></tr>"
        )?;
        for table in &rows.tables {
            let class = if table.differences == 0 { "" } else { " bad" };
            let [expected, there, differ] =
                [table.expected_rows, table.target_rows, table.differences].map(crate::output::count);
            writeln!(
                html,
                "<tr><td>{}</td><td class=\"n\">{expected}</td><td class=\"n\">{there}</td><td class=\"n{class}\">{differ}</td></tr>",
                Text(&table.table)
            )?;
        }
        writeln!(html, "</table></div>")?;
        for note in self.notes {
            writeln!(html, "<p>{}</p>", Text(note))?;
        }
        rows.tables
            .iter()
            .filter(|table| !table.samples.is_empty())
            .try_for_each(|table| write_differences(html, table))
    }
}

fn write_differences(html: &mut String, table: &TableReport) -> fmt::Result {
    let (shown, all) = (table.samples.len() as u64, table.differences);
    writeln!(html, "<h3>{}</h3>", Text(&table.table))?;
    if shown < all {
        let [shown, all] = [shown, all].map(crate::output::count);
        writeln!(html, "<p class=\"soft\">the first {shown} of {all}</p>")?;
    }
    writeln!(html, "<div class=\"wide\"><table><tr><th>what</th><th>key</th><th>columns</th></tr>")?;
    for difference in &table.samples {
        let kind = format!("{:?}", difference.kind).to_lowercase();
        let (key, columns) = (key_of(difference), difference.columns.join(", "));
        writeln!(html, "<tr><td>{kind}</td><td class=\"hash\">{}</td><td>{}</td></tr>", Text(&key), Text(&columns))?;
    }
    writeln!(html, "</table></div>")
}

/// A key as it is shown: itself where that was asked for, else its hash.
pub(crate) fn key_of(difference: &Difference) -> String {
    match &difference.key {
        None => difference.key_hash.clone(),
        Some(values) => {
            let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "NULL".to_owned());
            format!("({})", values.iter().map(text).collect::<Vec<_>>().join(", "))
        }
    }
}

fn write_queries(html: &mut String, reports: &[PairReport]) -> fmt::Result {
    writeln!(html, "<h2>Queries</h2>\n<div class=\"wide\"><table><tr><th>query</th>")?;
    for head in ["runs", "same", "lag", "differ", "unjudged", "source p50", "p95", "p99", "target p50", "p95", "p99"] {
        write!(html, "<th class=\"n\">{head}</th>")?;
    }
    writeln!(html, "</tr>")?;
    for report in reports {
        write!(html, "<tr><td>{}</td>", Text(&report.name))?;
        let counts = [report.runs, report.matched, report.explained_by_lag, report.mismatched, report.unjudged];
        for (place, count) in counts.into_iter().enumerate() {
            let class = if place == 3 && count > 0 { " bad" } else { "" };
            write!(html, "<td class=\"n{class}\">{}</td>", crate::output::count(count.into()))?;
        }
        let quantiles = |latency: &Latency| [latency.p50_ms, latency.p95_ms, latency.p99_ms];
        for ms in quantiles(&report.source).into_iter().chain(quantiles(&report.target)) {
            write!(html, "<td class=\"n\">{ms:.3}</td>")?;
        }
        writeln!(html, "</tr>")?;
    }
    writeln!(html, "</table></div>\n<p class=\"soft\">Latencies in milliseconds, as this machine saw them.</p>")?;
    reports.iter().try_for_each(|report| write_query(html, report))
}

fn write_query(html: &mut String, report: &PairReport) -> fmt::Result {
    writeln!(html, "<h3>{}</h3>", Text(&report.name))?;
    if let Some(said) = &report.target_failed {
        writeln!(html, "<p class=\"bad\">the target fails: {}</p>", Text(said))?;
    }
    for found in &report.mismatches {
        let (hash, mismatch) = (Text(&found.params_hash), found.mismatch.to_string());
        writeln!(html, "<p class=\"bad\">with values <span class=\"hash\">{hash}</span>: {}</p>", Text(&mismatch))?;
    }
    if let Some(budget) = report.budget {
        let (source, target) = (budget.at.of(&report.source), budget.at.of(&report.target));
        let (class, word) = if budget.missed { ("slow", "missed") } else { ("good", "held") };
        let (at, within) = (format!("{:?}", budget.at).to_lowercase(), budget.within * 100.0);
        writeln!(
            html,
            "<p class=\"{class}\">budget {word}: {at} is {target:.3} ms on the target and {source:.3} ms on the source; {within:.0} % more is allowed</p>"
        )?;
    }
    plot::write(html, &report.took_ms)
}

#[cfg(test)]
mod tests;
