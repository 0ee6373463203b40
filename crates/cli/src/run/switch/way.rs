//! Which way a switch goes, and what differs by it.

use super::{Whole, unheard};
use crate::{
    error::{CliError, Exit},
    registry,
    run::{
        control::Shared,
        plan_file::{PlanFile, secret_of},
        proof::Proof,
        reverse,
        session::bare_routes,
    },
    spec::{SinkSpec, SourceSpec, Spec},
    wiring,
};
use crossfade_connector::{Inspect, Stage, Target};
use crossfade_control::{Direction, Journal, WayBack};
use crossfade_event::{Position, TableName, catalog::SequenceDef};
use crossfade_log::embedded::Embedded;
use crossfade_transform::BackHow;

/// One switch: from one side to the other.
pub(super) struct Way<'w> {
    pub(super) direction: Direction,
    /// The migration.
    pub(super) spec: &'w Spec,
    pub(super) journal: &'w Journal<Embedded>,
    /// The run whose stream carries what is written until then: the migration's own, or that of its way back.
    pub(super) stream: &'w Shared,
    /// The side that has the authority.
    pub(super) from: registry::AnySwitchEnd,
    /// The side that gets it.
    pub(super) to: registry::AnySwitchEnd,
    /// Asks the side that has the authority, in its stream's words.
    source: registry::AnyInspect,
    /// The tables that are frozen and fenced.
    pub(super) tables: Vec<TableName>,
    /// The migration's target: what the new side is made of.
    pub(super) target: Target,
    /// The proof that both sides agree, carried on; absent where a way back cannot be compared.
    pub(super) proof: Option<Proof>,
    /// Both sides are schemas of one database: one row says who has the authority.
    pub(super) within_one: bool,
}

impl<'w> Way<'w> {
    pub(super) fn new(
        stream: &'w Shared,
        whole: &Whole<'w>,
        direction: Direction,
        old: registry::AnySwitchEnd,
        new: registry::AnySwitchEnd,
        within_one: bool,
    ) -> Result<Self, CliError> {
        let Whole { spec, journal } = *whole;
        let target = planned_target(spec, journal.migration().epoch)?;
        let source = wiring::source_inspect(&stream.spec)?;
        let (from, to, tables) = match direction {
            Direction::Cutover => (old, new, stream.source_tables()),
            Direction::Failback => (new, old, reverse::tables_of(&target)),
        };
        Ok(Self { direction, spec, journal, stream, from, to, source, tables, target, proof: None, within_one })
    }

    /// The old side, and the new one.
    pub(super) fn sides(&mut self) -> (&mut registry::AnySwitchEnd, &mut registry::AnySwitchEnd) {
        match self.direction {
            Direction::Cutover => (&mut self.from, &mut self.to),
            Direction::Failback => (&mut self.to, &mut self.from),
        }
    }

    /// A mark in the stream, behind everything that is written by now. Where nothing is recorded any more there is none, and
    /// nobody can say that all of it has come.
    pub(super) async fn mark(&mut self) -> Result<Option<Position>, CliError> {
        let mark = self.source.barrier().await?;
        mark.map(Some).ok_or_else(|| {
            let side = self.direction.from();
            CliError::new(
                Exit::Lost,
                format!(
                    "the {side} side has no record of its changes any more: what was written there since cannot be told"
                ),
            )
            .hint("`crossfade run` says what has become of it")
        })
    }

    /// Waits until the sink has passed a mark.
    pub(super) async fn passed(&mut self, mark: Option<Position>) -> Result<(), CliError> {
        self.stream.wait_for(mark, Stage::Streaming).await.map(drop)
    }

    /// Before anybody is held up: what will keep the writes of the side that gets the authority.
    pub(super) async fn prepare(&mut self) -> Result<(), CliError> {
        self.refuse_unheard().await?;
        match self.direction {
            Direction::Cutover => reverse::prepare(self.spec, &mut self.to, &self.target).await,
            // The migration's own slot has never left the old side.
            Direction::Failback => Ok(()),
        }
    }

    /// Takes up the proof that both sides agree, and compares what has changed since, until little is left for the freeze.
    /// Between files there is none: their clean pass is asked before, and the freeze compares nothing.
    pub(super) async fn prove(&mut self) -> Result<(), CliError> {
        let between_servers =
            matches!((&self.spec.source, &self.spec.sink), (SourceSpec::Postgres(_), SinkSpec::Postgres(_)));
        if !between_servers || matches!(self.way_back(), Some(WayBack::Incomparable { .. })) {
            return Ok(());
        }
        let mut proof = Proof::take_up(self.stream).await?;
        let caught_up = proof.catch_up(self.stream).await;
        self.proof = Some(proof);
        if caught_up.is_err() {
            self.void_if_broken().await;
        }
        caught_up
    }

    /// What was found void in a switch is so in the journal, once nothing is under way.
    pub(super) async fn void_if_broken(&mut self) {
        let Some(why) = self.proof.as_mut().and_then(|proof| proof.broken.take()) else { return };
        if let Err(refused) = self.stream.void("switch", &why).await {
            tracing::warn!("that the proof is void is not in the journal: {}", refused.error);
        }
    }

    async fn refuse_unheard(&mut self) -> Result<(), CliError> {
        let now = self.source.catalog(self.stream.spec.source.tables()).await?;
        unheard::refuse(self.stream, &now)
    }

    /// The writes of the side that gets the authority begin here: nobody writes, both sides are equal, and no table can be altered.
    pub(super) async fn begin_here(&mut self) -> Result<(), CliError> {
        self.refuse_unheard().await?;
        if self.direction == Direction::Cutover {
            let reverse = reverse::begin_here(self.spec, &mut self.to).await?;
            tracing::info!(slot = %reverse.name, from = reverse.from, "the way back begins here");
        }
        Ok(())
    }

    /// There was no switch: what was prepared goes.
    pub(super) async fn give_up(&mut self) {
        if self.direction == Direction::Cutover {
            reverse::give_up(self.spec, &mut self.to).await;
        }
    }

    /// Sequences of the side that gets the authority go on past those of the other one.
    pub(super) async fn carry_sequences(&mut self) -> Result<(), CliError> {
        match self.direction {
            Direction::Cutover => self.carry_to_the_new_side().await,
            Direction::Failback => self.carry_to_the_old_side().await,
        }
    }

    async fn carry_to_the_new_side(&mut self) -> Result<(), CliError> {
        let spec = self.spec;
        let plan = planned(spec)?;
        if plan.catalog.sequences.is_empty() {
            return Ok(());
        }
        let catalog = self.from.with_last_values(plan.catalog.clone()).await?;
        let epoch = self.journal.migration().epoch;
        let now = bare_routes(spec, &plan.with_catalog(catalog), secret_of(&spec.base())?, epoch)?;
        Ok(self.to.carry_sequences(now.target()).await?)
    }

    /// Only where a column comes back as it stands: keys that are made anew come from the old side's sequence already.
    async fn carry_to_the_old_side(&mut self) -> Result<(), CliError> {
        let Some(reverse) = &self.stream.spec.reverse else { return Ok(()) };
        let mut carried: Vec<SequenceDef> = Vec::new();
        let mut asked = Vec::new();
        for table in &reverse.back.tables {
            let Some(old) = reverse.forward.catalog.table(&table.to) else { continue };
            for column in table.columns.iter().filter(|column| column.how == BackHow::Exact) {
                let def = old.columns.iter().find(|def| *def.column.name == *column.column);
                let (Some(name), Some(from)) = (def.and_then(|def| def.sequence.clone()), column.from.first()) else {
                    continue;
                };
                let known = reverse.forward.catalog.sequences.iter().find(|sequence| sequence.name == name);
                let Some(known) = known else { continue };
                let owner = Some((table.to.clone(), column.column.clone()));
                carried.push(SequenceDef { owner, ..known.clone() });
                let there = self.target.support.sequences.iter().find(|sequence| {
                    sequence.owner.as_ref().is_some_and(|(of, name)| *of == table.from && name == from)
                });
                asked.push((table.from.clone(), from.clone(), there.map(|sequence| sequence.name.clone())));
            }
        }
        if carried.is_empty() {
            return Ok(());
        }
        for (sequence, given) in carried.iter_mut().zip(self.from.given_out(&asked).await?) {
            sequence.last_value = given;
        }
        let spec = &self.stream.spec;
        let epoch = self.stream.journal.migration().epoch;
        let routes = bare_routes(spec, &planned(spec)?, secret_of(&spec.base())?, epoch)?;
        let mut target = routes.target().clone();
        target.support.sequences = carried;
        Ok(self.to.carry_sequences(&target).await?)
    }

    /// What is known of both sides over the way back; nothing before a cutover.
    pub(super) fn way_back(&self) -> Option<WayBack> {
        let reverse = self.stream.spec.reverse.as_ref()?;
        Some(match crate::run::verify::incomparable(&reverse.back) {
            Some(why) => WayBack::Incomparable { why },
            None => {
                WayBack::Comparable { passed_at_us: self.stream.journal.migration().clean_pass.map(|pass| pass.at_us) }
            }
        })
    }
}

fn planned(spec: &Spec) -> Result<PlanFile, CliError> {
    PlanFile::read(&spec.base())?.ok_or_else(|| CliError::failed("the plan has gone"))
}

/// The target as the plan file has it now: tables may have come since the run began.
fn planned_target(spec: &Spec, epoch: u64) -> Result<Target, CliError> {
    Ok(bare_routes(spec, &planned(spec)?, secret_of(&spec.base())?, epoch)?.target().clone())
}
