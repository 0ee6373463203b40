//! Query pairs: the same questions to both ends of a migration.

use super::verify::Asking;
use crate::{
    error::CliError,
    output::{self, Table},
    pairs::{End, PairsFile, ParamsQuery, QueryPair},
    registry::{AnyInspect, AnySink},
    spec::{Span, Spec},
    wiring,
};
use crossfade_connector::Query;
use crossfade_dualread::{
    Answer, Latency, Percent,
    pairs::{self, Limits, Pair, PairReport, Params, Sides},
};

/// Asks all pairs of a file, one after another; or again and again, for a share of the time.
pub(super) async fn ask(
    spec: &Spec,
    file: &PairsFile,
    running: Option<(Percent, Span)>,
) -> Result<Vec<PairReport>, CliError> {
    let (mut source, mut target) = (wiring::source_inspect(spec)?, wiring::sink_inspect(spec)?);
    let mut reached = Asking(AnySink::for_looking(spec)?);
    let limits = Limits::default();
    let mut asked = Vec::with_capacity(file.queries.len());
    for query in &file.queries {
        let params = match &query.params {
            None => vec![Params::default()],
            Some(asked) => match asked.on {
                End::Source => params_of(query, asked, &mut source, limits.bytes_max).await?,
                End::Target => params_of(query, asked, &mut target, limits.bytes_max).await?,
            },
        };
        asked.push(Pair {
            name: query.name.clone(),
            source: query.source.clone(),
            target: query.target.clone(),
            params,
            rules: file.rules(query),
            runs: file.runs(query),
            budget: file.budget(query),
        });
    }
    let mut sides = Sides { source: &mut source, target: &mut target, reached: &mut reached };
    if let Some((share, long)) = running {
        return Ok(Box::pin(pairs::keep_asking(&asked, share, long.0, &mut sides, &limits)).await?);
    }
    let mut reports = Vec::with_capacity(asked.len());
    for pair in &asked {
        reports.push(Box::pin(pairs::ask(pair, &mut sides, &limits)).await?);
    }
    Ok(reports)
}

/// The values that a pair is asked with.
async fn params_of(
    query: &QueryPair,
    asked: &ParamsQuery,
    end: &mut AnyInspect,
    bytes_max: usize,
) -> Result<Vec<Params>, CliError> {
    let named = |error: CliError| {
        let message = format!("the parameters of query {:?}: {}", query.name, error.message);
        CliError { message, ..error }
    };
    let answer = end.query(&asked.sql, &[], bytes_max).await.map_err(|failure| named(failure.into()))?;
    let rows = Answer::decode(&answer).map_err(|error| named(CliError::misconfigured(error.to_string())))?;
    if rows.rows.is_empty() {
        return Err(named(CliError::misconfigured("their query gives no row, so there is nothing to ask with")));
    }
    pairs::params_of(&rows, &asked.source, &asked.target).map_err(|column| {
        let known: Vec<&str> = rows.columns.iter().map(|column| &**column).collect();
        named(CliError::misconfigured(format!("their query has no column {column:?}; it has {}", known.join(", "))))
    })
}

/// For people.
pub(super) fn render(reports: &[PairReport]) -> String {
    let ms = |latency: &Latency| format!("{:.3} / {:.3} / {:.3}", latency.p50_ms, latency.p95_ms, latency.p99_ms);
    let count = |number: u32| output::count(number.into());
    let mut table =
        Table::new(["query", "runs", "same", "lag", "differ", "unjudged", "source p50/p95/p99 ms", "target"]);
    for report in reports {
        table.row([
            report.name.clone(),
            count(report.runs),
            count(report.matched),
            count(report.explained_by_lag),
            count(report.mismatched),
            count(report.unjudged),
            ms(&report.source),
            ms(&report.target),
        ]);
    }
    let mut text = table.render();
    for report in reports {
        if let Some(said) = &report.target_failed {
            text.push_str(&format!("target fails: query {}: {said}\n", report.name));
        }
        for found in &report.mismatches {
            let (hash, mismatch) = (&found.params_hash, &found.mismatch);
            text.push_str(&format!("differs: query {} with values {hash}: {mismatch}\n", report.name));
        }
        if let Some(budget) = report.budget.filter(|budget| budget.missed) {
            let (source, target) = (budget.at.of(&report.source), budget.at.of(&report.target));
            text.push_str(&format!(
                "slow: query {}: {target:.3} ms on the target, {source:.3} ms on the source; {:.0} % more is allowed\n",
                report.name,
                budget.within * 100.0
            ));
        }
    }
    text
}
