//! Comparing both sides all the time, beside a run: everything once, part by part, and from then on what the log says has
//! changed; everything again when the proof was voided, when more has changed than is worth following, and from time to time.
//!
//! What has been done is kept in the state, so that a run that was killed goes on where it was. The log is read from the side:
//! neither ingest nor deliver waits for it. Time only says when to work; what is compared is judged by position.

use super::{
    control::Shared,
    proof::{Begun, Carried, Looking, named, said},
};
use crate::error::CliError;
use crossfade_connector::Stage;
use crossfade_control::Command;
use crossfade_event::{Cut, SourceId};
use crossfade_observe::{DifferenceStatus, VerifyStatus};
use crossfade_verify::{Difference, DifferenceKind, Expected, Options, Report, integrity, parts, verify_part};
use serde::{Deserialize, Serialize};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// Under which name the state keeps how far it is.
pub(super) const KEPT: &str = "verifying";

/// How often it is asked whether something has changed, and who else has written.
const LOOK: Duration = Duration::from_millis(500);

/// The shortest rest after a comparison of everything that found something, or could not be made.
const REST_MIN: Duration = Duration::from_secs(2);

/// Differences that are looked for in one part; more of them are only counted as open buckets.
const DIFFERENCES_MAX: u64 = 1_000;

/// Differences that the status names.
const SAMPLES: usize = 20;

/// With so many entries to go, comparing everything is no more work, where there are fewer rows.
const BEHIND_MIN: u64 = 200_000;

/// What is kept.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Kept {
    begun: Begun,
    /// How many parts were compared without a difference, and which parts these are, in a word.
    done: usize,
    parts: String,
    rows: u64,
    /// Up to where what has changed was compared; nothing before everything was.
    upto: Option<Cut>,
    /// When everything was compared, in microseconds since 1970.
    passed_us: Option<i64>,
}

/// Whoever compares.
struct Verifier {
    shared: Arc<Shared>,
    looking: Option<Looking>,
    kept: Option<Kept>,
    /// Everything is to be compared again, though the last proof holds.
    renews: bool,
    /// The shape of the tables that were looked at.
    schemas: String,
}

/// Runs beside the loops, until they end.
pub(super) async fn run(shared: Arc<Shared>) {
    let mut closed = shared.closed();
    let share = shared.spec.verify.share.fraction();
    let kept = shared.kept(KEPT).and_then(|text| serde_json::from_str(&text).ok());
    // Voids are counted anew by each run; a proof that was voided is not kept.
    let kept = kept.map(|kept: Kept| Kept { begun: Begun { voids: shared.voids(), ..kept.begun }, ..kept });
    let mut verifier = Verifier { shared: shared.clone(), looking: None, kept, renews: false, schemas: String::new() };
    shared.verifying(|status| *status = VerifyStatus { doing: "waiting".to_owned(), ..VerifyStatus::default() });
    let work = async {
        loop {
            let begun = Instant::now();
            let rest = match Box::pin(verifier.step()).await {
                Ok(Step::Worked) => begun.elapsed().mul_f64(1.0 / share - 1.0),
                Ok(Step::Found) => begun.elapsed().mul_f64(1.0 / share - 1.0).max(REST_MIN),
                Ok(Step::Idle) => LOOK,
                Err(error) => {
                    verifier.looking = None;
                    tracing::debug!("comparing both sides waits: {error}");
                    shared.verifying(|status| {
                        status.doing = "waiting".to_owned();
                        status.waiting = Some(error.message.clone());
                    });
                    REST_MIN
                }
            };
            tokio::time::sleep(rest).await;
        }
    };
    tokio::select! {
        () = work => {}
        () = closed.wait() => {}
    }
}

/// What a step came to.
enum Step {
    Worked,
    /// Something differs: it is looked at again.
    Found,
    /// There was nothing to do.
    Idle,
}

impl Verifier {
    async fn step(&mut self) -> Result<Step, CliError> {
        if let Some(why) = self.may_not() {
            self.shared.verifying(|status| {
                status.doing = "waiting".to_owned();
                status.waiting = Some(why);
            });
            return Ok(Step::Idle);
        }
        let schemas = self.shared.watcher.progress.borrow().as_ref().map(|progress| named(&progress.schemas));
        let schemas = schemas.unwrap_or_default();
        if self.looking.is_none() || self.schemas != schemas {
            self.looking = Some(Looking::open(&self.shared).await?);
            self.schemas = schemas;
        }
        if self.kept.as_ref().is_some_and(|kept| !self.holds(kept)) {
            self.forget().await?;
        }
        self.take_over();
        match &self.kept {
            Some(Kept { upto: Some(_), .. }) => self.follow().await,
            _ => self.pass().await,
        }
    }

    /// Why nothing can be compared now.
    fn may_not(&self) -> Option<String> {
        let migration = self.shared.journal.migration();
        let streams = self.shared.watcher.progress.borrow().as_ref().is_some_and(|p| p.stage == Stage::Streaming);
        if !migration.phase.is_following() || !streams {
            return Some(format!("the migration is {}", migration.phase));
        }
        self.shared.valve.reason()
    }

    /// Whether what is kept still speaks of what is there.
    fn holds(&self, kept: &Kept) -> bool {
        let migration = self.shared.journal.migration();
        let stands = migration.clean_pass.as_ref().is_some_and(|pass| pass.from.as_ref() == Some(&kept.begun.from));
        let is_same = kept.begun.schemas == self.schemas && kept.begun.voids == self.shared.voids();
        is_same && (kept.upto.is_none() || stands)
    }

    /// Somebody else's comparison, by `crossfade verify`, is carried on as one of our own.
    fn take_over(&mut self) {
        let Some(pass) = self.shared.journal.migration().clean_pass else { return };
        let (Some(from), Some(_), None, false) = (pass.from, &pass.mark, &self.kept, self.renews) else { return };
        let (voids, schemas) = (self.shared.voids(), self.schemas.clone());
        let begun = Begun { from: from.clone(), position: None, mark: pass.mark, voids, schemas };
        let passed_us = Some(pass.at_us);
        self.shared.verifying(|status| {
            let rows_followed = status.rows_followed;
            let doing = "following".to_owned();
            *status = VerifyStatus { doing, rows_followed, ..VerifyStatus::default() };
        });
        self.kept = Some(Kept { begun, done: 0, parts: String::new(), rows: pass.rows, upto: Some(from), passed_us });
    }

    async fn forget(&mut self) -> Result<(), CliError> {
        self.kept = None;
        self.shared.set_verified(None);
        self.shared.verifying(|status| status.position = None);
        self.shared.keep(KEPT, None).await
    }

    async fn keep(&mut self, kept: Kept) -> Result<(), CliError> {
        let text = serde_json::to_string(&kept).map_err(|error| CliError::failed(error.to_string()))?;
        self.shared.set_verified(kept.upto.clone().map(|upto| (kept.begun.from.clone(), upto)));
        self.kept = Some(kept);
        self.shared.keep(KEPT, Some(text)).await
    }

    /// The next part of a comparison of everything, or its end.
    async fn pass(&mut self) -> Result<Step, CliError> {
        let shared = self.shared.clone();
        let Some(looking) = &mut self.looking else { return Ok(Step::Idle) };
        let mut kept = match self.kept.take() {
            Some(kept) => kept,
            None => {
                let before = shared.journal.migration().clean_pass.and_then(|pass| pass.mark);
                let begun = looking.begin(&shared, before.as_deref()).await?;
                Kept { begun, done: 0, parts: String::new(), rows: 0, upto: None, passed_us: None }
            }
        };
        // It is there again whatever fails below: what fails is tried again.
        self.kept = Some(kept.clone());
        let subject = looking.shape.subject();
        let expected = Expected::of(&subject, &looking.views)?;
        let parts = parts(&expected, &looking.source, &looking.target);
        let names: Vec<&str> = parts.iter().map(|part| part.name.as_str()).collect();
        let names = format!("{:?}", SourceId::of(&names.join(",")).0);
        if std::mem::replace(&mut kept.parts, names.clone()) != names {
            (kept.done, kept.rows) = (0, 0);
        }
        let options =
            Options { differences_max: DIFFERENCES_MAX, samples: SAMPLES, leave_changed: true, ..Options::default() };
        shared.verifying(|status| {
            (status.doing, status.waiting) = ("passing".to_owned(), None);
            (status.parts_done, status.parts) = (kept.done as u64, parts.len() as u64);
        });
        let (source, target, sink) = (&mut looking.source, &mut looking.target, &mut looking.sink);
        if let Some(part) = parts.get(kept.done) {
            let report = verify_part(&expected, part, source, target, sink, &options).await?;
            if report.wrong() > 0 {
                return self.found(&report, Vec::new()).await;
            }
            if report.unjudged_rows > 0 {
                let told = format!("nothing can be said yet of {} rows of {}", report.unjudged_rows, part.name);
                return Err(CliError::failed(told).passing());
            }
            kept.done += 1;
            kept.rows += report.tables.iter().map(|table| table.target_rows).sum::<u64>();
            self.keep(kept).await?;
            return Ok(Step::Worked);
        }
        let checks = integrity(&subject, source, target, sink, &options).await?;
        let broken: Vec<String> = checks
            .iter()
            .filter(|check| check.broken > 0)
            .map(|check| match &check.references {
                Some(parent) => {
                    format!("{} rows of {} refer to rows that {parent} does not have", check.broken, check.table)
                }
                None => format!("{} new keys stand more than once in {}", check.broken, check.table),
            })
            .collect();
        let (left, dropped) = looking.left(&shared).await?;
        let gone = dropped.iter().filter(|one| one.rows > 0);
        let gone = gone.map(|one| {
            format!("{} rows are left in {} of {}, which the source dropped", one.rows, one.target, one.table)
        });
        let broken: Vec<String> = broken.into_iter().chain(gone).collect();
        if !broken.is_empty() {
            return self.found(&left, broken).await;
        }
        if let Some(why) = looking.written_since(kept.begun.mark.as_deref()).await? {
            return self.void(why).await;
        }
        self.passed(kept).await
    }

    /// Everything was compared, and nothing differs.
    async fn passed(&mut self, mut kept: Kept) -> Result<Step, CliError> {
        let shared = &self.shared;
        if kept.begun.voids != shared.voids() {
            self.forget().await?;
            return Ok(Step::Worked);
        }
        let at_us = shared.now().at_us;
        let position = kept.begun.position.map(|position| position.to_string());
        let (from, mark) = (Some(kept.begun.from.clone()), kept.begun.mark.clone());
        let command =
            Command::Verified { position: position.clone(), rows: kept.rows, differences: 0, at_us, from, mark };
        shared.command(WHO, command).await.map_err(|refused| CliError::failed(refused.error).passing())?;
        self.renews = false;
        kept.upto = Some(kept.begun.from.clone());
        kept.passed_us = Some(at_us);
        shared.verifying(|status| {
            *status = VerifyStatus {
                doing: "following".to_owned(),
                passed_at: Some(said_at(at_us)),
                passed_position: position.clone(),
                position,
                parts_done: status.parts,
                parts: status.parts,
                rows_followed: status.rows_followed,
                ..VerifyStatus::default()
            };
        });
        self.keep(kept).await?;
        Ok(Step::Worked)
    }

    /// What has changed since everything was compared.
    async fn follow(&mut self) -> Result<Step, CliError> {
        let shared = self.shared.clone();
        let (Some(looking), Some(kept)) = (&mut self.looking, self.kept.clone()) else { return Ok(Step::Idle) };
        let Some(upto) = kept.upto.clone() else { return Ok(Step::Idle) };
        if let Some(why) = looking.written_since(kept.begun.mark.as_deref()).await? {
            return self.void(why).await;
        }
        let progress = shared.watcher.progress.borrow().clone();
        let Some(progress) = progress else { return Ok(Step::Idle) };
        let pending = progress.cut.total().saturating_sub(upto.total());
        let age_us = shared.now().at_us.saturating_sub(kept.passed_us.unwrap_or_default());
        let is_old = u128::try_from(age_us).unwrap_or_default() >= shared.spec.verify.every.0.as_micros();
        // A target came back from a crash, or from a copy, without what it had: that is applied once more.
        if !progress.cut.covers(&upto) {
            return self.void("the target stands where it was before it was compared".to_owned()).await;
        }
        if is_old || pending > kept.rows.max(BEHIND_MIN) {
            self.renews = true;
            self.forget().await?;
            return Ok(Step::Worked);
        }
        shared.verifying(|status| {
            (status.doing, status.waiting, status.pending) = ("following".to_owned(), None, pending);
            status.passed_at = kept.passed_us.map(said_at);
            status.passed_position = kept.begun.position.map(|position| position.to_string());
        });
        if upto.covers(&progress.cut) {
            shared.verifying(|status| status.position = progress.position.map(|position| position.to_string()));
            return Ok(Step::Idle);
        }
        match looking.carry(&upto, &progress.cut, false).await? {
            Carried::Upto { cut, rows } => {
                let is_there = cut.covers(&progress.cut);
                let pending = progress.cut.total().saturating_sub(cut.total());
                shared.verifying(|status| {
                    (status.pending, status.rows_followed) = (pending, status.rows_followed + rows);
                    if is_there {
                        status.position = progress.position.map(|position| position.to_string());
                    }
                });
                self.keep(Kept { upto: Some(cut), ..kept }).await?;
                Ok(if rows == 0 { Step::Idle } else { Step::Worked })
            }
            Carried::Differs(differences) => {
                let why = format!("of what has changed {}", said(&differences));
                show(&shared, &differences, differences.len() as u64);
                self.void(why).await.map(|_| Step::Found)
            }
            Carried::Not(why) => self.void(why).await,
        }
    }

    /// A comparison of everything found something: told, and begun again.
    async fn found(&mut self, report: &Report, broken: Vec<String>) -> Result<Step, CliError> {
        let shared = self.shared.clone();
        let differences: Vec<(String, Difference)> = report
            .tables
            .iter()
            .flat_map(|table| table.samples.iter().map(|one| (table.table.clone(), one.clone())))
            .collect();
        let count = report.differences + report.refused_rows;
        show(&shared, &differences, count);
        shared.verifying(|status| {
            (status.broken, status.open_buckets) = (broken.clone(), report.open_buckets);
            status.passed_at = Some(said_at(shared.now().at_us));
        });
        let why = match broken.first() {
            Some(first) => first.clone(),
            None if differences.is_empty() => format!("{count} rows differ, or are refused by the transforms"),
            None => said(&differences),
        };
        tracing::warn!("both sides were compared: {why}");
        self.void(why).await.map(|_| Step::Found)
    }

    async fn void(&mut self, why: String) -> Result<Step, CliError> {
        self.forget().await?;
        self.shared.void(WHO, &why).await.map_err(|refused| CliError::failed(refused.error).passing())?;
        Ok(Step::Worked)
    }
}

/// Under which name it speaks in the journal.
const WHO: &str = "verify";

fn said_at(at_us: i64) -> String {
    jiff::Timestamp::from_microsecond(at_us).map_or_else(|_| at_us.to_string(), |at| format!("{at:.0}"))
}

fn show(shared: &Shared, differences: &[(String, Difference)], count: u64) {
    let sample = |(table, one): &(String, Difference)| DifferenceStatus {
        table: table.clone(),
        kind: match one.kind {
            DifferenceKind::Missing => "missing",
            DifferenceKind::Extra => "extra",
            DifferenceKind::Different => "different",
        }
        .to_owned(),
        key_hash: one.key_hash.clone(),
        columns: one.columns.clone(),
    };
    let samples = differences.iter().take(SAMPLES).map(sample).collect();
    shared.verifying(|status| (status.samples, status.differences) = (samples, count));
}
