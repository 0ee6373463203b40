//! Making the topics of a target, looking whether that could be done, and deleting them again.

use super::{
    notes::{Made, Owner, Says},
    prepared::{self, Prepared},
    topics::{self, For},
    writer::{Writer, not_prepared, superseded},
};
use crossfade_connector::{Failure, Target, TargetTable, UndoReport, Verdict, WriteMode};
use crossfade_event::Identity;
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

impl Writer {
    pub(super) fn prepare(&mut self, target: &Target) -> Result<(), Failure> {
        self.prepared(target).inspect_err(|_| self.abandon())
    }

    fn prepared(&mut self, target: &Target) -> Result<(), Failure> {
        let wanted = self.wanted(target)?;
        let known = match &self.live {
            Some(live) => Some((live.birth.clone(), live.owner.clone())),
            None => self.notes()?.map(|notes| (notes.birth.unwrap_or_default(), notes.owner)),
        };
        if let Some(owner) = known.as_ref().and_then(|(_, owner)| owner.as_ref())
            && owner.epoch > target.epoch
        {
            return Err(superseded(&self.own));
        }
        // Before anything is made.
        let birth = known.map(|(birth, _)| birth).unwrap_or_default();
        let asking = self.asking()?;
        let mut adopted: BTreeMap<String, Made> = BTreeMap::new();
        for (name, _) in wanted.iter().filter(|(name, _)| !birth.topics.contains_key(name)) {
            if let Some(there) = topics::find(&asking.clients, name)? {
                adopted.insert(name.clone(), topics::adopt(&asking.stable, name, &there)?);
            }
        }
        let own = self.own.clone();
        if topics::find(&self.asking()?.clients, &own)?.is_none() {
            let config = self.config.clone();
            topics::make(&self.asking()?.clients, &config, &own, For::Own)?;
        }
        self.connect()?;
        self.make(&wanted, adopted)?;
        let owner = Owner { id: self.id, epoch: target.epoch };
        let own = self.own.clone();
        let live = self.live.as_mut().ok_or_else(not_prepared)?;
        if live.owner.as_ref() != Some(&owner) {
            live.note_now(&own, &Says::Writer(owner.clone()))?;
            live.owner = Some(owner);
        }
        self.shut_out = false;
        let partitions: HashMap<String, u32> =
            live.birth.topics.iter().map(|(name, made)| (name.clone(), made.partitions)).collect();
        self.tables = target
            .tables
            .iter()
            .map(|table| {
                let count = |topic: &str| partitions.get(topic).copied().unwrap_or(1);
                (table.schema.id, Arc::new(Prepared::new(table, &self.manner, count)))
            })
            .collect();
        Ok(())
    }

    /// Looks whether a target could be written, and makes nothing.
    pub(super) fn examine(&mut self, target: &Target) -> Result<(), Failure> {
        let wanted = self.wanted(target)?;
        let birth = self.notes()?.and_then(|notes| notes.birth).unwrap_or_default();
        let config = self.config.clone();
        let asking = self.asking()?;
        topics::copies(&asking.clients, &config)?;
        for (name, _) in &wanted {
            match birth.topics.get(name) {
                Some(made) if made.id.is_some() => {
                    topics::same(name, made, topics::find_known(&asking.clients, name)?.as_ref())?;
                }
                Some(_) => {}
                None => {
                    if let Some(there) = topics::find(&asking.clients, name)? {
                        topics::adopt(&asking.stable, name, &there)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Deletes what was made here.
    pub(super) fn wipe(&mut self) -> Result<UndoReport, Failure> {
        // Whoever still writes is shut out first.
        self.abandon();
        self.connect_for_wipe()?;
        let Some(notes) = self.notes()? else { return Ok(UndoReport::default()) };
        self.abandon();
        let own = self.own.clone();
        let dropped = topics::wipe(&self.asking()?.clients, &notes.birth.unwrap_or_default(), &own)?;
        Ok(UndoReport { dropped, ..UndoReport::default() })
    }

    /// Shuts out whoever still writes. Topics that are not what they were are no reason to keep the others.
    fn connect_for_wipe(&mut self) -> Result<(), Failure> {
        match self.connect() {
            Err(failure) if matches!(failure.verdict, Verdict::Lost { .. } | Verdict::Halt { .. }) => Ok(()),
            done => done.map(drop),
        }
    }

    /// The topics of a target; refuses what cannot be written.
    fn wanted(&self, target: &Target) -> Result<Vec<(String, For)>, Failure> {
        let prefix = &self.config.topic_prefix;
        let mut wanted: Vec<(String, For)> = Vec::new();
        for table in &target.tables {
            let name = &table.schema.name;
            let doing = || format!("preparing the topic of {name}");
            if matches!(table.mode, WriteMode::Columns { .. }) {
                let advice = "Leave write = \"shadow-columns\" out of the table's rules";
                return Err(Failure::refused(doing(), "topics have no columns beside others", advice));
            }
            if self.config.compact && table.schema.identity != Identity::Key {
                return Err(Failure::refused(
                    doing(),
                    "the table has no key, and a compacted topic takes no record without one",
                    "Give the table a primary key, exclude it, or write cleanup = \"delete\" in [sink]",
                ));
            }
            let is_dual = matches!(table.mode, WriteMode::Dual { .. });
            if !is_dual && prepared::is_dual(&table.schema).is_some() {
                let what = "its columns are called as those of a table in two key versions are, v1.… and v2.…";
                return Err(Failure::refused(doing(), what, "Rename one of them (`rename` in its [[table]])"));
            }
            for (_, topic) in prepared::topics_of(prefix, name, &table.mode, self.config.layout) {
                if wanted.iter().any(|(other, _)| *other == topic) {
                    let what = format!("another table's topic is called {topic} too");
                    let advice = "Give one of them another name (`to` in its [[table]])";
                    return Err(Failure::refused(doing(), what, advice));
                }
                wanted.push((topic, For::table(&table.schema)));
            }
        }
        if self.config.transactions {
            wanted.push((topics::transactions(prefix), For::Transactions));
        }
        Ok(wanted)
    }

    /// Makes the topics that are not there. What is about to be made is noted first, so that a wipe finds it.
    fn make(&mut self, wanted: &[(String, For)], adopted: BTreeMap<String, Made>) -> Result<(), Failure> {
        let (own, config) = (self.own.clone(), self.config.clone());
        let (Some(asking), Some(live)) = (&self.asking, &mut self.live) else { return Err(not_prepared()) };
        let before = live.birth.clone();
        live.birth.topics.extend(adopted);
        let missing: Vec<&(String, For)> = wanted
            .iter()
            .filter(|(name, _)| live.birth.topics.get(name).is_none_or(|made| made.id.is_none()))
            .collect();
        for (name, _) in &missing {
            live.birth.topics.entry(name.clone()).or_default();
        }
        if live.birth != before || live.owner.is_none() {
            live.note_now(&own, &Says::Sink(live.birth.clone()))?;
        }
        if missing.is_empty() {
            return Ok(());
        }
        for (name, purpose) in missing {
            let there = topics::make(&asking.clients, &config, name, *purpose)?;
            let made = Made { id: Some(there.id), partitions: there.partitions, was_there: false };
            live.birth.topics.insert(name.clone(), made);
        }
        live.note_now(&own, &Says::Sink(live.birth.clone()))
    }

    pub(super) fn alter(&mut self, before: &TargetTable, after: &TargetTable) -> Result<(), Failure> {
        if before.schema.name != after.schema.name {
            return Err(Failure::halt(
                format!("following a change of {}", before.schema.name),
                format!("it is called {} now, and a topic keeps its name", after.schema.name),
                "Give the table its former name back",
            ));
        }
        let now = self.table(after.schema.id)?.clone();
        let partitions = |topic: &str| now.topics.iter().find(|one| one.topic == topic).map_or(1, |one| one.partitions);
        self.tables.insert(after.schema.id, Arc::new(Prepared::new(after, &self.manner, partitions)));
        Ok(())
    }
}
