//! The status as a page: where the migration stands, what is on its way, what stands in the way, and what to do next. It looks
//! again by itself, asks for nothing from elsewhere, and shows no row's value.

use crate::{
    Standing, Status, SwitchStatus,
    words::{bytes, grouped, millis, per_second, percent},
};
use std::fmt::{self, Write};

/// The life of a migration, as it is drawn.
const LIFE: [&str; 12] = [
    "planned",
    "expanded",
    "capturing",
    "backfilling",
    "catching up",
    "shadowing",
    "verified",
    "dual reading",
    "ready",
    "switching",
    "switched",
    "done",
];

/// Where a phase stands in that drawing.
fn place(phase: &str) -> Option<usize> {
    let drawn = match phase {
        "freezing" | "draining" => "switching",
        "soaking" => "switched",
        "contracting" => "done",
        phase => phase,
    };
    LIFE.iter().position(|name| *name == drawn)
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

/// The whole page.
pub(super) fn page(status: &Status) -> String {
    let mut html = String::new();
    // Writing into a string cannot fail.
    let _ = write(&mut html, status);
    html
}

fn write(html: &mut String, status: &Status) -> fmt::Result {
    let (name, at) = (Text(&status.name), Text(&status.at));
    writeln!(html, "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">")?;
    writeln!(html, "<meta http-equiv=\"refresh\" content=\"5\">")?;
    writeln!(html, "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">")?;
    writeln!(html, "<title>{name}: {}</title>\n<style>\n{}</style>", Text(&status.phase), include_str!("style.css"))?;
    writeln!(html, "</head>\n<body>\n<h1>{name}</h1>\n<p class=\"soft\">{at}, looked at again every 5 s</p>")?;
    standing(html, status)?;
    life(html, &status.phase)?;
    figures(html, status)?;
    if let Some(switch) = &status.switch {
        authority(html, switch)?;
    }
    gates(html, status)?;
    tables(html, status)?;
    writeln!(html, "<p class=\"soft\"><a href=\"/status\">/status</a> · <a href=\"/metrics\">/metrics</a></p>")?;
    writeln!(html, "</body>\n</html>")
}

fn standing(html: &mut String, status: &Status) -> fmt::Result {
    let (class, word) = match status.standing {
        Standing::Running => ("good", "running"),
        Standing::Stopped => ("slow", "not running"),
        Standing::Paused => ("slow", "paused"),
        Standing::Failed => ("bad", "failed"),
        Standing::Lost => ("bad", "lost"),
    };
    writeln!(html, "<p class=\"verdict {class}\">{}, {word}</p>", Text(&status.phase))?;
    for text in [&status.reason, &status.remedy].into_iter().flatten() {
        writeln!(html, "<p>{}</p>", Text(text))?;
    }
    if let Some(retrying) = &status.retrying {
        writeln!(
            html,
            "<p class=\"slow\">{} waits and tries again: {}</p>",
            Text(&retrying.side),
            Text(&retrying.failure)
        )?;
    }
    Ok(())
}

fn life(html: &mut String, phase: &str) -> fmt::Result {
    let Some(now) = place(phase) else { return Ok(()) };
    write!(html, "<ol class=\"life\">")?;
    for (number, name) in LIFE.iter().enumerate() {
        let class = match number.cmp(&now) {
            std::cmp::Ordering::Less => "past",
            std::cmp::Ordering::Equal => "now",
            std::cmp::Ordering::Greater => "to-come",
        };
        write!(html, "<li class=\"{class}\">{name}</li>")?;
    }
    writeln!(html, "</ol>")
}

fn figures(html: &mut String, status: &Status) -> fmt::Result {
    let (lag, count) = (&status.lag, &status.conservation);
    let behind = lag.ms.map_or_else(|| "-".to_owned(), millis);
    let mut rows = vec![
        (
            "lag",
            format!("{behind}, {} changes, {}", grouped(lag.events), lag.bytes.map_or_else(|| "-".to_owned(), bytes)),
        ),
        (
            "changes",
            format!(
                "{} read = {} applied + {} filtered + {} in quarantine + {} pending",
                grouped(count.read),
                grouped(count.applied),
                grouped(count.filtered),
                grouped(count.quarantined),
                grouped(u64::try_from(count.pending).unwrap_or(0))
            ),
        ),
        ("speed", format!("{} applied", per_second(status.rates.applied_per_s))),
    ];
    if let Some(overall) = &status.overall {
        let (loaded, total) = (overall.rows_loaded, overall.rows_total);
        let words =
            format!("{} of about {} rows in the target ({})", grouped(loaded), grouped(total), percent(loaded, total));
        rows.insert(0, ("copy", words));
    }
    if !status.conserved {
        rows.push((
            "NOT CONSERVED",
            "a change is missing from the sum: `crossfade log verify`, and tell us".to_owned(),
        ));
    }
    pairs(html, rows.into_iter())
}

fn authority(html: &mut String, switch: &SwitchStatus) -> fmt::Result {
    let mut rows = vec![("authority", format!("the {} side, epoch {}", switch.authority, switch.epoch))];
    rows.extend(switch.verified_at.iter().map(|at| ("verified", format!("without a difference, {at}"))));
    rows.extend(switch.dual_reads.iter().map(|share| ("dual reads", share.clone())));
    rows.extend(switch.stepped_down.iter().map(|why| ("dual reads", format!("stepped down: {why}"))));
    for guard in switch.guards.iter().chain(&switch.read_guards).filter(|guard| !guard.holds) {
        let words = format!("{} says no: {}, wanted is {}; {}", guard.guard, guard.seen, guard.wanted, guard.remedy);
        rows.push(("guard", words));
    }
    rows.push(("next", switch.next.clone()));
    writeln!(html, "<h2>Switch</h2>")?;
    pairs(html, rows.into_iter())
}

fn pairs<'a>(html: &mut String, rows: impl Iterator<Item = (&'a str, String)>) -> fmt::Result {
    writeln!(html, "<div class=\"wide\"><table>")?;
    for (name, words) in rows {
        writeln!(html, "<tr><th>{name}</th><td>{}</td></tr>", Text(&words))?;
    }
    writeln!(html, "</table></div>")
}

fn gates(html: &mut String, status: &Status) -> fmt::Result {
    if status.gates.is_empty() {
        return Ok(());
    }
    writeln!(
        html,
        "<h2>Gates</h2>\n<div class=\"wide\"><table><tr><th>gate</th><th></th><th>measured</th><th>at most</th><th>else</th></tr>"
    )?;
    for gate in &status.gates {
        let (class, word) = if gate.holds { ("good", "holds") } else { ("bad", "does not hold") };
        let [name, measured, max, then] = [&gate.gate, &gate.measured, &gate.max, &gate.then].map(|text| Text(text));
        writeln!(
            html,
            "<tr><td>{name}</td><td class=\"{class}\">{word}</td><td>{measured}</td><td>{max}</td><td>{then}</td></tr>"
        )?;
    }
    writeln!(html, "</table></div>")
}

fn tables(html: &mut String, status: &Status) -> fmt::Result {
    if status.tables.is_empty() {
        return Ok(());
    }
    writeln!(
        html,
        "<h2>Tables</h2>\n<div class=\"wide\"><table><tr><th>table</th><th>copy</th><th class=\"n\">about</th><th class=\"n\">copied</th><th class=\"n\">in the target</th><th class=\"n\">changes</th></tr>"
    )?;
    for table in &status.tables {
        let counts = [table.rows_estimate, table.rows_copied, table.rows_loaded, table.changes].map(grouped);
        let cells: Vec<String> = counts.iter().map(|count| format!("<td class=\"n\">{count}</td>")).collect();
        writeln!(html, "<tr><td>{}</td><td>{}</td>{}</tr>", Text(&table.table), Text(&table.state), cells.concat())?;
    }
    writeln!(html, "</table></div>")
}
