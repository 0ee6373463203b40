//! Query pairs: one question, asked of both sides in their own words. The same answer? And how long does either take?
//!
//! A difference is judged as everywhere here: by rounds, each of which waits until the target is past the position of the
//! source's answer. What it takes to judge is in no latency: those are of plain questions, in turns, the one that is asked
//! first changing from run to run, after one question each that is not measured.

use crate::{
    Answer, AnswerError, Latency, LatencyBudget, Mismatch, Percent, Rules, Side,
    rounds::{Rounds, Step},
};
use crossfade_connector::{Failure, Inspect, Query};
use crossfade_event::{Position, Value};
use serde::Serialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    time::{Duration, Instant},
};
use xxhash_rust::xxh3::xxh3_64;

/// Which quantile a latency budget is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Quantile {
    /// The median.
    P50,
    /// 95 of a hundred.
    #[default]
    P95,
    /// 99 of a hundred.
    P99,
}

impl Quantile {
    /// It, of these latencies.
    pub fn of(self, latency: &Latency) -> f64 {
        match self {
            Self::P50 => latency.p50_ms,
            Self::P95 => latency.p95_ms,
            Self::P99 => latency.p99_ms,
        }
    }
}

/// Values of one question's parameters, in the words of either side.
#[derive(Clone, PartialEq, Default)]
pub struct Params {
    /// For the source.
    pub source: Vec<Option<Value>>,
    /// For the target.
    pub target: Vec<Option<Value>>,
}

impl std::fmt::Debug for Params {
    // Values never reach logs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "params#{}", self.hash())
    }
}

impl Params {
    /// By which they are named in reports.
    fn hash(&self) -> String {
        let text = self.source.iter().map(|value| match value {
            None => "-".to_owned(),
            Some(value) => {
                let text = crossfade_event::codec::to_text(value);
                format!("{}:{text}", text.len())
            }
        });
        format!("{:016x}", xxh3_64(text.collect::<String>().as_bytes()))
    }
}

/// A question in the words of both sides.
#[derive(Debug, Clone, PartialEq)]
pub struct Pair {
    /// By which it is named.
    pub name: String,
    /// As the source is asked.
    pub source: String,
    /// As the target is asked.
    pub target: String,
    /// The values to ask with, in turns; one at least, which may be of no parameters.
    pub params: Vec<Params>,
    /// When both answers are the same.
    pub rules: Rules,
    /// How often it is asked.
    pub runs: u32,
    /// How much slower the target may be.
    pub budget: Option<(Quantile, LatencyBudget)>,
}

/// Bounds of the asking.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The largest answer.
    pub bytes_max: usize,
    /// How long the target is waited for to come past a position: running into it is an error, never a verdict.
    pub patience: Duration,
    /// How often both sides are asked again because of one difference.
    pub rounds: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bytes_max: 64 << 20, patience: Duration::from_secs(120), rounds: 10 }
    }
}

/// Tells how far the target has come.
pub trait Reached: Send {
    /// The source position up to which it is exact.
    ///
    /// # Errors
    /// When it cannot be asked.
    fn reached(&mut self) -> impl Future<Output = Result<Option<Position>, Failure>> + Send;
}

/// Why a pair could not be asked to its end.
#[derive(Debug, thiserror::Error)]
pub enum PairError {
    /// The source fails.
    #[error("query {name:?}, on the source: {failure}")]
    Source {
        /// The pair.
        name: String,
        /// What it said.
        failure: Failure,
    },
    /// The target fails.
    #[error("query {name:?}, on the target: {failure}")]
    Target {
        /// The pair.
        name: String,
        /// What it said.
        failure: Failure,
    },
    /// An answer cannot be compared.
    #[error("query {name:?}, on the {side} side: {error}")]
    Answer {
        /// The pair.
        name: String,
        /// Which one answered.
        side: Side,
        /// Why.
        error: AnswerError,
    },
    /// The target does not move.
    #[error(
        "query {name:?}: the target stands at {at} and has not reached {wanted} in {waited_s} s. Start `crossfade run` so that it catches up, then ask again"
    )]
    Behind {
        /// The pair.
        name: String,
        /// Where it stands.
        at: String,
        /// Where it should be.
        wanted: Position,
        /// How long it was waited for.
        waited_s: u64,
    },
}

/// How one question differs; named by a hash of its values.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PairMismatch {
    /// The hash of the values that the source was asked with.
    pub params_hash: String,
    /// In what.
    #[serde(flatten)]
    pub mismatch: Mismatch,
}

/// A latency budget, and what became of it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct BudgetReport {
    /// Which quantile.
    pub at: Quantile,
    /// By which part the target may be slower.
    pub within: f64,
    /// What is below this many milliseconds is not held against it.
    pub slack_ms: f64,
    /// It is too slow.
    pub missed: bool,
}

/// Of how many runs a report keeps the latencies.
pub const KEPT_RUNS: usize = 10_000;

/// What became of a pair.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PairReport {
    /// The pair.
    pub name: String,
    /// How often it was asked.
    pub runs: u32,
    /// With how many different values.
    pub params: usize,
    /// The same answer at once.
    pub matched: u32,
    /// The same once the target was past the position.
    pub explained_by_lag: u32,
    /// Another answer, and no lag explains it.
    pub mismatched: u32,
    /// Differed, and the source's answer changed at every look.
    pub unjudged: u32,
    /// What the target said where it cannot answer and the source can.
    pub target_failed: Option<String>,
    /// How long the source took.
    pub source: Latency,
    /// How long the target took.
    pub target: Latency,
    /// The budget, where there is one.
    pub budget: Option<BudgetReport>,
    /// How they differ, once for each set of values.
    pub mismatches: Vec<PairMismatch>,
    /// How long either took, in milliseconds, run by run.
    #[serde(skip)]
    pub took_ms: Vec<(f64, f64)>,
}

impl PairReport {
    /// Whether both sides differ.
    pub fn differs(&self) -> bool {
        self.mismatched > 0 || self.target_failed.is_some()
    }

    /// Adds what was found later of the same pair. Latencies are those of the last [`KEPT_RUNS`] runs; a budget says nothing
    /// before there are as many as the pair has runs.
    pub fn add(&mut self, later: Self, pair: &Pair) {
        self.runs += later.runs;
        self.matched += later.matched;
        self.explained_by_lag += later.explained_by_lag;
        self.mismatched += later.mismatched;
        self.unjudged += later.unjudged;
        self.target_failed = self.target_failed.take().or(later.target_failed);
        for found in later.mismatches {
            if !self.mismatches.iter().any(|known| known.params_hash == found.params_hash) {
                self.mismatches.push(found);
            }
        }
        self.took_ms.extend(later.took_ms);
        self.took_ms.drain(..self.took_ms.len().saturating_sub(KEPT_RUNS));
        self.measure(pair);
    }

    fn measure(&mut self, pair: &Pair) {
        self.source = Latency::of(self.took_ms.iter().map(|took| took.0).collect());
        self.target = Latency::of(self.took_ms.iter().map(|took| took.1).collect());
        let is_enough = self.took_ms.len() >= (pair.runs as usize).min(KEPT_RUNS);
        self.budget = pair.budget.map(|(at, budget)| BudgetReport {
            at,
            within: budget.over,
            slack_ms: budget.slack.as_secs_f64() * 1e3,
            missed: is_enough && budget.is_missed(at.of(&self.source), at.of(&self.target)),
        });
    }

    /// Whether the target is too slow.
    pub fn is_slow(&self) -> bool {
        self.budget.is_some_and(|budget| budget.missed)
    }
}

/// Both sides, and how far the target is.
#[derive(Debug)]
pub struct Sides<'a, A, B, R> {
    /// The source.
    pub source: &'a mut A,
    /// The target.
    pub target: &'a mut B,
    /// How far it is.
    pub reached: &'a mut R,
}

/// Asks a pair as often as it says, judging what differs.
///
/// # Errors
/// See [`PairError`].
pub async fn ask<A: Query + Inspect, B: Query, R: Reached>(
    pair: &Pair,
    sides: &mut Sides<'_, A, B, R>,
    limits: &Limits,
) -> Result<PairReport, PairError> {
    ask_times(pair, pair.runs, sides, limits).await
}

/// Asks pairs again and again, taking no more than `share` of the time, for so `long`: each with all its values, then a
/// pause. Past a mismatch or a latency budget it steps down by itself: it ends, and the reports say why.
///
/// # Errors
/// See [`PairError`].
pub async fn keep_asking<A: Query + Inspect, B: Query, R: Reached>(
    pairs: &[Pair],
    share: Percent,
    long: Duration,
    sides: &mut Sides<'_, A, B, R>,
    limits: &Limits,
) -> Result<Vec<PairReport>, PairError> {
    let began = Instant::now();
    let mut reports: Vec<PairReport> = Vec::with_capacity(pairs.len());
    for (place, pair) in pairs.iter().enumerate().cycle() {
        let asked = Instant::now();
        let times = u32::try_from(pair.params.len().max(1)).unwrap_or(u32::MAX).min(PASS_MAX);
        let found = ask_times(pair, times, sides, limits).await?;
        match reports.get_mut(place) {
            None => reports.push(found),
            Some(report) => report.add(found, pair),
        }
        let is_spent = reports.iter().any(|report| report.differs() || report.is_slow());
        // Each pair is asked once, however short the time is.
        let is_over = reports.len() == pairs.len() && began.elapsed() >= long;
        if is_spent || is_over {
            break;
        }
        let pause = asked.elapsed().mul_f64((1.0 / share.fraction().max(1e-4) - 1.0).max(0.0));
        let left = long.saturating_sub(began.elapsed());
        tokio::time::sleep(if reports.len() == pairs.len() { pause.min(left) } else { pause }).await;
    }
    Ok(reports)
}

/// Runs of one pair between two pauses.
const PASS_MAX: u32 = 100;

async fn ask_times<A: Query + Inspect, B: Query, R: Reached>(
    pair: &Pair,
    times: u32,
    sides: &mut Sides<'_, A, B, R>,
    limits: &Limits,
) -> Result<PairReport, PairError> {
    let mut asking = Asking { pair, sides, limits };
    let none = Params::default();
    let first = pair.params.first().unwrap_or(&none);
    asking.source(first).await?;
    let mut found = Found::default();
    match asking.target(first).await? {
        Ok(_) => asking.run(times, &mut found).await?,
        Err(refused) => found.target_failed = Some(refused),
    }
    Ok(found.report(pair))
}

#[derive(Default)]
struct Found {
    runs: u32,
    matched: u32,
    lagged: u32,
    unjudged: u32,
    mismatched: u32,
    target_failed: Option<String>,
    mismatches: BTreeMap<usize, PairMismatch>,
    took_ms: Vec<(f64, f64)>,
}

impl Found {
    fn report(self, pair: &Pair) -> PairReport {
        let mut report = PairReport {
            name: pair.name.clone(),
            runs: self.runs,
            params: pair.params.len(),
            matched: self.matched,
            explained_by_lag: self.lagged,
            mismatched: self.mismatched,
            unjudged: self.unjudged,
            target_failed: self.target_failed,
            source: Latency::default(),
            target: Latency::default(),
            budget: None,
            mismatches: self.mismatches.into_values().collect(),
            took_ms: self.took_ms,
        };
        report.measure(pair);
        report
    }
}

struct Asking<'a, 'b, A, B, R> {
    pair: &'a Pair,
    sides: &'a mut Sides<'b, A, B, R>,
    limits: &'a Limits,
}

type Took = (Answer, Duration);

impl<A: Query + Inspect, B: Query, R: Reached> Asking<'_, '_, A, B, R> {
    fn name(&self) -> String {
        self.pair.name.clone()
    }

    async fn source(&mut self, params: &Params) -> Result<Took, PairError> {
        let asked = self.sides.source.query(&self.pair.source, &params.source, self.limits.bytes_max).await;
        let asked = asked.map_err(|failure| PairError::Source { name: self.name(), failure })?;
        let answer = Answer::decode(&asked);
        let answer = answer.map_err(|error| PairError::Answer { name: self.name(), side: Side::Old, error })?;
        Ok((answer, asked.took))
    }

    /// The inner error is what the target itself refuses.
    async fn target(&mut self, params: &Params) -> Result<Result<Took, String>, PairError> {
        match self.sides.target.query(&self.pair.target, &params.target, self.limits.bytes_max).await {
            Ok(asked) => {
                let answer = Answer::decode(&asked);
                let answer = answer.map_err(|error| PairError::Answer { name: self.name(), side: Side::New, error })?;
                Ok(Ok((answer, asked.took)))
            }
            Err(failure) if failure.is_transient() => Err(PairError::Target { name: self.name(), failure }),
            Err(failure) => Ok(Err(failure.to_string())),
        }
    }

    async fn run(&mut self, times: u32, found: &mut Found) -> Result<(), PairError> {
        let none = [Params::default()];
        let all = if self.pair.params.is_empty() { &none } else { self.pair.params.as_slice() };
        // Values whose answers were judged already; the verdict stands.
        let mut unjudged = BTreeSet::new();
        for (place, params) in all.iter().enumerate().cycle().take(times as usize) {
            let source_first = found.runs.is_multiple_of(2);
            found.runs += 1;
            let (known, answered) = if source_first {
                let known = self.source(params).await?;
                (known, self.target(params).await?)
            } else {
                let answered = self.target(params).await?;
                (self.source(params).await?, answered)
            };
            let (answer, target_took) = match answered {
                Ok(took) => took,
                Err(refused) => {
                    found.target_failed = Some(refused);
                    return Ok(());
                }
            };
            let (known, source_took) = known;
            found.took_ms.push((source_took.as_secs_f64() * 1e3, target_took.as_secs_f64() * 1e3));
            if self.pair.rules.difference(&known, &answer).is_none() {
                found.matched += 1;
            } else if found.mismatches.contains_key(&place) {
                found.mismatched += 1;
            } else if unjudged.contains(&place) {
                found.unjudged += 1;
            } else {
                match self.judge(params, known).await? {
                    Verdict::Lag => found.lagged += 1,
                    Verdict::Moving => {
                        unjudged.insert(place);
                        found.unjudged += 1;
                    }
                    Verdict::Mismatch(mismatch) => {
                        found.mismatched += 1;
                        found.mismatches.insert(place, PairMismatch { params_hash: params.hash(), mismatch });
                    }
                    Verdict::Refused(refused) => {
                        found.target_failed = Some(refused);
                        return Ok(());
                    }
                }
            }
        }
        Ok(())
    }

    async fn judge(&mut self, params: &Params, mut known: Answer) -> Result<Verdict, PairError> {
        let rules = &self.pair.rules;
        let mut rounds = Rounds::new(self.limits.rounds);
        loop {
            self.wait_for_target().await?;
            let answer = match self.target(params).await? {
                Ok((answer, _)) => answer,
                Err(refused) => return Ok(Verdict::Refused(refused)),
            };
            let (after, _) = self.source(params).await?;
            let stood_still = rules.difference(&known, &after).is_none();
            match rounds.step(stood_still, rules.difference(&after, &answer)) {
                Step::Lag => return Ok(Verdict::Lag),
                Step::Mismatch(mismatch) => return Ok(Verdict::Mismatch(mismatch)),
                Step::Moving => return Ok(Verdict::Moving),
                Step::Again => known = after,
            }
        }
    }

    /// Until the target has all that the source's answer could know.
    async fn wait_for_target(&mut self) -> Result<(), PairError> {
        let source = |failure| PairError::Source { name: self.pair.name.clone(), failure };
        let Some(wanted) = self.sides.source.barrier().await.map_err(source)? else { return Ok(()) };
        let began = Instant::now();
        loop {
            let at = self.sides.reached.reached().await;
            let at = at.map_err(|failure| PairError::Target { name: self.name(), failure })?;
            if at.is_some_and(|at| at >= wanted) {
                return Ok(());
            }
            if began.elapsed() > self.limits.patience {
                let at = at.map_or_else(|| "no position yet".to_owned(), |at| at.to_string());
                return Err(PairError::Behind { name: self.name(), at, wanted, waited_s: began.elapsed().as_secs() });
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

const LOOK_EVERY: Duration = Duration::from_millis(20);

enum Verdict {
    Lag,
    Mismatch(Mismatch),
    Moving,
    Refused(String),
}

/// Values for a pair from the rows of a query: for either side the columns named, in that order; without names, all.
///
/// # Errors
/// When a column that is named is not among them, with its name.
pub fn params_of(rows: &Answer, source: &[String], target: &[String]) -> Result<Vec<Params>, String> {
    let places = |names: &[String]| -> Result<Vec<usize>, String> {
        if names.is_empty() {
            return Ok((0..rows.columns.len()).collect());
        }
        let place =
            |name: &String| rows.columns.iter().position(|column| **column == **name).ok_or_else(|| name.clone());
        names.iter().map(place).collect()
    };
    let (source, target) = (places(source)?, places(target)?);
    let values = |row: &Vec<crate::Field>, places: &[usize]| -> Vec<Option<Value>> {
        places.iter().map(|place| row.get(*place).and_then(|field| field.0.clone())).collect()
    };
    Ok(rows.rows.iter().map(|row| Params { source: values(row, &source), target: values(row, &target) }).collect())
}

#[cfg(test)]
mod tests;
