//! Two databases in memory that know one question.

use super::*;
use crate::MismatchKind;
use crossfade_connector::{Asked, RowPage};
use crossfade_event::{
    Column, ColumnType, Format, Key, Logical, Row, RowBuilder, SourceId, TableName, TableSchema, catalog::Catalog,
};
use std::sync::Arc;
use tokio::sync::Mutex;

/// What both know: the source's number, how often it changed, how far the target has followed, and what it shows.
#[derive(Default)]
struct World {
    now: i64,
    changes: u64,
    reached: u64,
    shown: i64,
    /// The source changes at every question.
    restless: bool,
    /// The target never comes on.
    stuck: bool,
    /// The target refuses the question.
    refuses: bool,
}

#[derive(Clone, Default)]
struct End(Arc<Mutex<World>>);

struct Source(End);
struct Target(End);

fn answer_of(number: i64, took_ms: u64) -> Asked {
    let text = number.to_string();
    let type_ = ColumnType { name: "text".into(), native_id: 25, logical: Logical::Text, format: Format::PgBinary };
    let column = Column { name: "n".into(), type_, key: None, nullable: true, native_id: 0, default: None };
    let mut row = RowBuilder::with_capacity(1, 8);
    row.push(crossfade_event::Cell::Bytes(text.as_bytes()));
    Asked { columns: vec![column], rows: vec![row.finish()], took: Duration::from_millis(took_ms) }
}

fn at(number: u64) -> Position {
    Position { source: SourceId(1), timeline: 0, commit: number, ordinal: u32::MAX }
}

impl Query for Source {
    async fn query(&mut self, _: &str, _: &[Option<Value>], _: usize) -> Result<Asked, Failure> {
        let mut world = self.0.0.lock().await;
        if world.restless {
            world.now += 1;
            world.changes += 1;
        }
        Ok(answer_of(world.now, 10))
    }
}

impl Query for Target {
    async fn query(&mut self, _: &str, _: &[Option<Value>], _: usize) -> Result<Asked, Failure> {
        let world = self.0.0.lock().await;
        if world.refuses {
            return Err(Failure::halt("asking a query", "there is no such table", "look"));
        }
        Ok(answer_of(world.shown, 11))
    }
}

impl Reached for End {
    async fn reached(&mut self) -> Result<Option<Position>, Failure> {
        let mut world = self.0.lock().await;
        if !world.stuck {
            // It follows, and shows the truth, unless somebody has damaged it.
            if world.shown >= 0 {
                world.shown = world.now;
            }
            world.reached = world.changes;
        }
        Ok(Some(at(world.reached)))
    }
}

const UNASKED: &str = "query pairs ask nothing but queries and the end of the history";

impl Inspect for Source {
    async fn catalog(&mut self, _: &[String]) -> Result<Catalog, Failure> {
        unreachable!("{UNASKED}")
    }

    async fn scan(&mut self, _: &TableSchema) -> Result<Option<Position>, Failure> {
        unreachable!("{UNASKED}")
    }

    async fn scan_next(&mut self) -> Result<RowPage, Failure> {
        unreachable!("{UNASKED}")
    }

    async fn fetch(&mut self, _: &TableSchema, _: &[Key]) -> Result<(Vec<Row>, Option<Position>), Failure> {
        unreachable!("{UNASKED}")
    }

    async fn barrier(&mut self) -> Result<Option<Position>, Failure> {
        Ok(Some(at(self.0.0.lock().await.changes)))
    }

    async fn count(&mut self, _: &TableName) -> Result<u64, Failure> {
        unreachable!("{UNASKED}")
    }
}

fn pair(within: f64) -> Pair {
    let budget = LatencyBudget { over: within, slack: Duration::ZERO };
    Pair {
        name: "n".to_owned(),
        source: "SELECT n".to_owned(),
        target: "SELECT n".to_owned(),
        params: Vec::new(),
        rules: Rules::default(),
        runs: 6,
        budget: Some((Quantile::P95, budget)),
    }
}

async fn ask_in(world: World, within: f64) -> Result<PairReport, PairError> {
    let end = End(Arc::new(Mutex::new(world)));
    let (mut source, mut target, mut reached) = (Source(end.clone()), Target(end.clone()), end);
    let mut sides = Sides { source: &mut source, target: &mut target, reached: &mut reached };
    let limits = Limits { patience: Duration::from_millis(100), ..Limits::default() };
    ask(&pair(within), &mut sides, &limits).await
}

#[tokio::test]
async fn equal_answers_are_counted_and_the_budget_is_held_to() {
    let report = ask_in(World::default(), 0.2).await.unwrap();
    assert_eq!((report.runs, report.matched, report.differs(), report.is_slow()), (6, 6, false, false));
    assert_eq!((report.source.p95_ms, report.target.p95_ms, report.source.count), (10.0, 11.0, 6));
    assert!(ask_in(World::default(), 0.05).await.unwrap().is_slow(), "10 % more is not within 5 %");
}

#[tokio::test]
async fn a_target_that_is_behind_is_waited_for() {
    let report = ask_in(World { now: 7, changes: 1, ..World::default() }, 1.0).await.unwrap();
    assert_eq!((report.explained_by_lag, report.matched, report.mismatched), (1, 5, 0));
}

#[tokio::test]
async fn a_target_that_is_wrong_past_the_position_is_judged_once_and_counted_each_time() {
    let report = ask_in(World { shown: -1, ..World::default() }, 1.0).await.unwrap();
    assert_eq!((report.mismatched, report.mismatches.len()), (6, 1));
    assert_eq!(report.mismatches[0].mismatch.kind, MismatchKind::Values);
    assert!(report.differs());
}

#[tokio::test]
async fn a_target_that_stands_still_is_an_error_and_no_verdict() {
    let behind = ask_in(World { now: 7, changes: 1, stuck: true, ..World::default() }, 1.0).await.unwrap_err();
    assert!(matches!(behind, PairError::Behind { .. }), "{behind}");
}

#[tokio::test]
async fn an_answer_that_changes_at_every_look_is_not_judged() {
    let report = ask_in(World { restless: true, ..World::default() }, 1.0).await.unwrap();
    assert_eq!((report.unjudged, report.mismatched), (6, 0));
}

async fn keep_asking_in(world: World, within: f64, share: Percent, long: Duration) -> PairReport {
    let end = End(Arc::new(Mutex::new(world)));
    let (mut source, mut target, mut reached) = (Source(end.clone()), Target(end.clone()), end);
    let mut sides = Sides { source: &mut source, target: &mut target, reached: &mut reached };
    let pairs = [pair(within)];
    let reports = keep_asking(&pairs, share, long, &mut sides, &Limits::default()).await.unwrap();
    let [report] = reports.try_into().unwrap();
    report
}

#[tokio::test]
async fn it_goes_on_asking_for_as_long_as_said_and_steps_down_at_a_mismatch_or_past_its_latency_budget() {
    let (all, long) = (Percent::ALL, Duration::from_millis(100));
    let report = keep_asking_in(World::default(), 0.2, all, long).await;
    assert!(report.runs > 6 && report.matched == report.runs && !report.is_slow(), "{report:?}");
    assert!(report.took_ms.len() <= KEPT_RUNS && report.source.count as usize == report.took_ms.len());
    let for_ever = Duration::from_secs(86_400);
    let report = keep_asking_in(World { shown: -1, ..World::default() }, 1.0, all, for_ever).await;
    assert_eq!((report.mismatched, report.differs()), (1, true));
    let report = keep_asking_in(World::default(), 0.05, all, for_ever).await;
    assert_eq!((report.runs, report.is_slow()), (6, true), "as many runs as the pair has say something");
    let report = keep_asking_in(World::default(), 0.2, Percent::NONE, Duration::ZERO).await;
    assert_eq!(report.runs, 1, "each pair is asked once");
}

#[tokio::test]
async fn a_target_that_cannot_answer_differs() {
    let report = ask_in(World { refuses: true, ..World::default() }, 1.0).await.unwrap();
    assert!(report.differs() && report.target_failed.is_some_and(|said| said.contains("no such table")));
}

#[test]
fn values_are_taken_by_column_for_either_side() {
    let rows = Answer::of(["old", "new"]).row([1_i64.into(), "one".into()]);
    let params = params_of(&rows, &["old".to_owned()], &["new".to_owned()]).unwrap();
    let wanted = Params { source: vec![Some(Value::Int(1))], target: vec![Some(Value::Text("one".to_owned()))] };
    assert_eq!(params, [wanted]);
    assert_eq!(params_of(&rows, &[], &[]).unwrap()[0].source.len(), 2);
    assert_eq!(params_of(&rows, &["older".to_owned()], &[]), Err("older".to_owned()));
    assert!(!format!("{:?}", params[0]).contains("one"), "values are never shown");
}
