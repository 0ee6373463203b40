//! The topics of a log: made, checked, and told from others of the same name.
//!
//! `<prefix>.changes` holds the entries and drops them by age or size; `<prefix>.meta` is compacted and keeps what a log
//! must never forget. The first is made before the second, so a second without a first means that the first was deleted.
//! Where workers transform, there is `<prefix>.transformed` with what they make, of as many partitions as the first.

use super::pin::Pin;
use crate::{LogOptions, Retention, client::Clients, codec::PARTITIONS_MAX, ids};
use crossfade_log::LogError;
use rdkafka::admin::{NewTopic, TopicReplication};
use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

/// How many partitions a new log gets unless said.
const PARTITIONS: u32 = 8;

/// The largest record that a topic made here takes; no row may be larger.
const MESSAGE_BYTES_MAX: u64 = 64 << 20;

/// A segment of the compacted topic: only closed ones are compacted, and all of it is read when the log is opened.
const META_SEGMENT_BYTES: u64 = 8 << 20;

const REMEDY: &str =
    "Put the right topics back, or start again from the source: `crossfade rollback --wipe`, then `crossfade run`";

/// The names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Names {
    pub(super) changes: String,
    pub(super) meta: String,
    /// The `transactional.id` of whoever writes.
    pub(super) writer: String,
    /// The consumer group's name of whoever reads.
    pub(super) readers: String,
    /// What workers make.
    pub(super) transformed: String,
    /// The workers' group, and what their `transactional.id`s begin with.
    pub(super) workers: String,
    /// The group of those that deliver and share the stream, under which it is told how far the sink has come.
    pub(super) delivers: String,
}

/// The topics as they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Standing {
    pub(super) changes: ids::Topic,
    pub(super) meta: ids::Topic,
    /// What workers make, where there are workers.
    pub(super) transformed: Option<ids::Topic>,
    /// The largest record that all take.
    pub(super) message_bytes_max: u64,
    /// When the broker drops entries.
    pub(super) retention: Retention,
}

impl Names {
    pub(super) fn new(prefix: &str) -> Result<Self, LogError> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if prefix.is_empty() || prefix.len() > 200 || !prefix.chars().all(allowed) || prefix.starts_with('.') {
            return Err(LogError::Refused {
                what: format!("`{prefix}` cannot begin the name of a topic"),
                remedy: "Use letters, digits, dots, `_` and `-`, at most 200, and no dot in front".to_owned(),
            });
        }
        Ok(Self {
            changes: format!("{prefix}.changes"),
            meta: format!("{prefix}.meta"),
            writer: format!("{prefix}.ingest"),
            readers: format!("{prefix}.readers"),
            transformed: format!("{prefix}.transformed"),
            workers: format!("{prefix}.transform"),
            delivers: format!("{prefix}.deliver"),
        })
    }

    fn both(&self) -> [&str; 2] {
        [&self.changes, &self.meta]
    }
}

/// What is known of a log before its topics are looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// Those of a new log are made.
    Make,
    /// They may be there.
    Look,
    /// They are said to be there, as those that are pinned are.
    Known,
}

/// Finds the topics, and makes those of a new log where it is to be made; checks that they are usable and the ones pinned.
pub(super) fn open(
    clients: &Clients,
    names: &Names,
    options: &LogOptions,
    pin: Option<&Pin>,
    way: Way,
) -> Result<Standing, LogError> {
    if let Some(pin) = pin {
        begun_otherwise(names, options, pin)?;
    }
    let mut found = match pin.is_some() || way == Way::Known {
        true => two(clients.describe_known(&names.both(), "Read")?),
        false => look(clients, names, "Read")?,
    };
    if let (None, _) | (_, None) = &found {
        if let Some(pin) = pin {
            let gone = if found.0.is_none() { &names.changes } else { &names.meta };
            return Err(deleted(gone, if found.0.is_none() { &pin.changes } else { &pin.meta }));
        }
        if found.0.is_none() && found.1.is_some() {
            return Err(LogError::Lost {
                what: format!("the topic {} is gone while {} is there", names.changes, names.meta),
                remedy: REMEDY.to_owned(),
            });
        }
        if way != Way::Make {
            return Err(LogError::Refused {
                what: format!("there is no log yet: {} has no topic {}", clients.brokers(), names.changes),
                remedy: "`crossfade run` makes it".to_owned(),
            });
        }
        found = create(clients, names, options, &found)?;
    }
    let (Some(changes), Some(meta)) = found else { return Err(deleted(&names.changes, "unknown")) };
    if let Some(pin) = pin {
        pin.check(names, &changes, &meta)?;
    }
    let transformed = match options.workers {
        None => None,
        Some(_) => Some(made_by_workers(clients, names, options, pin, &changes, way)?),
    };
    check(clients, names, options, changes, meta, transformed)
}

/// A log with workers has what they make beside it, and one without has not: neither becomes the other.
fn begun_otherwise(names: &Names, options: &LogOptions, pin: &Pin) -> Result<(), LogError> {
    let refused = |began: &str, remedy: &str| {
        Err(LogError::Refused {
            what: format!("the log in {} was begun {began} transform workers", names.changes),
            remedy: format!("{remedy}, or begin anew: `crossfade rollback --wipe`, then `crossfade run`"),
        })
    };
    match (&pin.transformed, options.workers) {
        (Some(_), None) => refused("with", "Write `transform = \"workers\"` into [log]"),
        (None, Some(_)) => refused("without", "Take `transform = \"workers\"` out of [log]"),
        _ => Ok(()),
    }
}

/// The topic of what workers make; it is made where a new log has none and is to be made.
fn made_by_workers(
    clients: &Clients,
    names: &Names,
    options: &LogOptions,
    pin: Option<&Pin>,
    changes: &ids::Topic,
    way: Way,
) -> Result<ids::Topic, LogError> {
    let name = &names.transformed;
    let pinned = pin.and_then(|pin| pin.transformed.as_ref());
    // Whoever makes it does not read it.
    let right = if way == Way::Make { "Describe" } else { "Read" };
    let mut found = match pinned.is_some() || way == Way::Known {
        true => clients.describe_known(&[name], right)?.pop().flatten(),
        false => clients.describe_one(name, right)?,
    };
    if found.is_none() {
        if let Some(id) = pinned {
            return Err(deleted(name, id));
        }
        if way != Way::Make {
            return Err(LogError::Refused {
                what: format!("there is no topic {name} yet for what workers make"),
                remedy: "`crossfade run --role ingest` makes it".to_owned(),
            });
        }
        found = Some(create_made(clients, names, options, changes.partitions)?);
    }
    let Some(found) = found else { return Err(deleted(name, "unknown")) };
    match pinned {
        Some(id) if *id != found.id => Err(recreated(name, id, &found.id)),
        _ if found.partitions != changes.partitions => Err(LogError::Refused {
            what: format!(
                "the topic {name} has {} partitions, and {} has {}",
                found.partitions, names.changes, changes.partitions
            ),
            remedy: "Name another topic_prefix, or make the topic anew".to_owned(),
        }),
        _ => Ok(found),
    }
}

/// Looks whether a log could be kept there, and makes nothing: the topics as they are, `None` where they are still to be
/// made.
pub(super) fn examine(
    clients: &Clients,
    names: &Names,
    options: &LogOptions,
    pin: Option<&Pin>,
) -> Result<Option<Standing>, LogError> {
    if pin.is_some() {
        return open(clients, names, options, pin, Way::Look).map(Some);
    }
    match look(clients, names, "Read")? {
        (Some(_), Some(_)) | (None, Some(_)) => open(clients, names, options, pin, Way::Look).map(Some),
        (there, None) => {
            if let Some(changes) = there {
                check_entries(clients, names, options, &changes)?;
            }
            let brokers = clients.broker_count()?;
            match options.replication {
                Some(copies) if usize::from(copies) > brokers => Err(LogError::Refused {
                    what: format!("{} has {brokers} brokers, too few for {copies} copies", clients.brokers()),
                    remedy: format!("Write `replication = {brokers}` at most, or add brokers"),
                }),
                _ => Ok(None),
            }
        }
    }
}

/// The topics of a log that another process makes; `None` until both are there. One of two that were pinned here is lost.
pub(super) fn wait_for(
    clients: &Clients,
    names: &Names,
    options: &LogOptions,
    pin: Option<&Pin>,
) -> Result<Option<Standing>, LogError> {
    // Whether there are workers is in what the log says of its migration.
    let options = &LogOptions { workers: None, ..options.clone() };
    match look(clients, names, "Read")? {
        // Brokers hear of the two one after the other.
        (None, _) | (_, None) if pin.is_none() => Ok(None),
        _ => {
            let pin = pin.map(Pin::without_workers);
            open(clients, names, options, pin.as_ref(), Way::Look).map(Some)
        }
    }
}

/// Deletes the topics that are pinned, and those alone. Returns their names.
pub(super) fn delete(clients: &Clients, names: &Names, pin: &Pin) -> Result<Vec<String>, LogError> {
    let mut pinned = vec![(names.changes.as_str(), &pin.changes), (names.meta.as_str(), &pin.meta)];
    pinned.extend(pin.transformed.as_ref().map(|id| (names.transformed.as_str(), id)));
    let asked: Vec<&str> = pinned.iter().map(|(name, _)| *name).collect();
    let mut deleted = Vec::new();
    // One that a single broker has not heard of yet must not stay.
    for ((name, id), there) in pinned.iter().zip(clients.describe_known(&asked, "Delete")?) {
        match there {
            Some(there) if there.id == **id => {
                clients.delete(name)?;
                deleted.push((*name).to_owned());
            }
            Some(_) => tracing::warn!(topic = %name, "the topic is not the one that was made here; it is left alone"),
            None => {}
        }
    }
    // All brokers hear of it a moment later.
    let began = Instant::now();
    loop {
        let there = clients.describe(&asked, "Delete")?;
        let is_there =
            |((_, id), there): (&(&str, &String), Option<ids::Topic>)| there.is_some_and(|there| there.id == **id);
        if !pinned.iter().zip(there).any(is_there) {
            return Ok(deleted);
        }
        if began.elapsed() > crate::client::PATIENCE {
            return Err(LogError::Server {
                doing: format!("deleting the topics {}", asked.join(", ")),
                cause: "they are still there".into(),
                passing: true,
            });
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// Checks that the topics are still the ones they were.
pub(super) fn same(clients: &Clients, names: &Names, was: &Standing) -> Result<(), LogError> {
    let mut known = vec![(&names.changes, &was.changes), (&names.meta, &was.meta)];
    known.extend(was.transformed.as_ref().map(|was| (&names.transformed, was)));
    let asked: Vec<&str> = known.iter().map(|(name, _)| name.as_str()).collect();
    for ((name, was), now) in known.into_iter().zip(clients.describe_known(&asked, "Read")?) {
        match now {
            None => return Err(deleted(name, &was.id)),
            Some(now) if now.id != was.id => return Err(recreated(name, &was.id, &now.id)),
            Some(now) if now.partitions != was.partitions => return Err(grown(name, was.partitions, now.partitions)),
            Some(_) => {}
        }
    }
    Ok(())
}

fn look(clients: &Clients, names: &Names, right: &'static str) -> Result<Found, LogError> {
    Ok(two(clients.describe(&names.both(), right)?))
}

fn two(found: Vec<Option<ids::Topic>>) -> Found {
    let mut found = found.into_iter();
    (found.next().flatten(), found.next().flatten())
}

pub(super) fn deleted(name: &str, id: &str) -> LogError {
    LogError::Lost { what: format!("the topic {name} (id {id}) has been deleted"), remedy: REMEDY.to_owned() }
}

pub(super) fn recreated(name: &str, was: &str, now: &str) -> LogError {
    let what = format!("the topic {name} was deleted and made anew: its id was {was}, and is {now} now");
    LogError::Lost { what, remedy: REMEDY.to_owned() }
}

fn grown(name: &str, was: u32, now: u32) -> LogError {
    LogError::Lost {
        what: format!(
            "the topic {name} had {was} partitions, and has {now} now: keys would change their partition and lose their order"
        ),
        remedy: REMEDY.to_owned(),
    }
}

type Found = (Option<ids::Topic>, Option<ids::Topic>);

fn create(clients: &Clients, names: &Names, options: &LogOptions, found: &Found) -> Result<Found, LogError> {
    refuse_what_cannot_be(options)?;
    if found.0.is_none() {
        create_entries(clients, &names.changes, options, options.partitions.unwrap_or(PARTITIONS))?;
    }
    let (copies, in_sync) = copies(clients, options)?;
    let largest = MESSAGE_BYTES_MAX.to_string();
    let segment = META_SEGMENT_BYTES.to_string();
    let topic = NewTopic::new(&names.meta, 1, TopicReplication::Fixed(copies))
        .set("cleanup.policy", "compact")
        .set("min.insync.replicas", &in_sync)
        .set("unclean.leader.election.enable", "false")
        .set("min.cleanable.dirty.ratio", "0.1")
        .set("segment.bytes", &segment)
        .set("max.message.bytes", &largest);
    clients.create(&topic)?;
    // A topic is announced to all brokers a moment after it has been made.
    let began = Instant::now();
    loop {
        if let found @ (Some(_), Some(_)) = look(clients, names, "Read")? {
            return Ok(found);
        }
        if began.elapsed() > crate::client::PATIENCE {
            return Err(LogError::Server {
                doing: format!("making the topics {} and {}", names.changes, names.meta),
                cause: "they do not appear".into(),
                passing: true,
            });
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// How many copies a new topic gets, and how many of them must have a record before it counts.
fn copies(clients: &Clients, options: &LogOptions) -> Result<(i32, String), LogError> {
    let copies = match options.replication {
        Some(copies) => i32::from(copies),
        None => clients.broker_count()?.clamp(1, 3) as i32,
    };
    let in_sync = options.min_insync_replicas.map_or(if copies >= 3 { 2 } else { 1 }, i32::from);
    Ok((copies, in_sync.to_string()))
}

/// Makes a topic that drops entries by age or size.
fn create_entries(clients: &Clients, name: &str, options: &LogOptions, partitions: u32) -> Result<(), LogError> {
    let (copies, in_sync) = copies(clients, options)?;
    let (time, bytes) = asked(options.retention, partitions);
    let largest = MESSAGE_BYTES_MAX.to_string();
    let segment = options.segment_bytes.map(|bytes| bytes.to_string());
    let mut topic = NewTopic::new(name, partitions as i32, TopicReplication::Fixed(copies))
        .set("cleanup.policy", "delete")
        .set("retention.ms", &time)
        .set("retention.bytes", &bytes)
        .set("min.insync.replicas", &in_sync)
        .set("unclean.leader.election.enable", "false")
        .set("message.timestamp.type", "CreateTime")
        .set("max.message.bytes", &largest);
    if let Some(segment) = &segment {
        topic = topic.set("segment.bytes", segment);
    }
    clients.create(&topic)
}

/// Makes the topic of what workers make, and waits until it is announced.
fn create_made(
    clients: &Clients,
    names: &Names,
    options: &LogOptions,
    partitions: u32,
) -> Result<ids::Topic, LogError> {
    create_entries(clients, &names.transformed, options, partitions)?;
    let began = Instant::now();
    loop {
        if let Some(found) = clients.describe_one(&names.transformed, "Describe")? {
            return Ok(found);
        }
        if began.elapsed() > crate::client::PATIENCE {
            return Err(LogError::Server {
                doing: format!("making the topic {}", names.transformed),
                cause: "it does not appear".into(),
                passing: true,
            });
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// The retention as a topic's settings: for each partition.
fn asked(retention: Retention, partitions: u32) -> (String, String) {
    let time = retention.time.map_or_else(|| "-1".to_owned(), |time| time.as_millis().to_string());
    let bytes = retention.bytes.map_or_else(|| "-1".to_owned(), |bytes| (bytes / u64::from(partitions)).to_string());
    (time, bytes)
}

/// The topic of entries, before there is another one.
fn check_entries(clients: &Clients, names: &Names, options: &LogOptions, changes: &ids::Topic) -> Result<(), LogError> {
    check_partitions(names, options, changes)?;
    let all = clients.settings(&[&names.changes])?;
    let none = BTreeMap::new();
    refused_entries(names, options, changes, all.get(&names.changes).unwrap_or(&none)).map_or(Ok(()), Err)
}

fn check_partitions(names: &Names, options: &LogOptions, changes: &ids::Topic) -> Result<(), LogError> {
    refuse_what_cannot_be(options)?;
    match options.partitions {
        Some(asked) if asked != changes.partitions => Err(LogError::Refused {
            what: format!("the topic {} has {} partitions, the spec says {asked}", names.changes, changes.partitions),
            remedy: format!("Write `partitions = {}`, or name another topic_prefix", changes.partitions),
        }),
        None if changes.partitions > PARTITIONS_MAX => Err(LogError::Refused {
            what: format!(
                "the topic {} has {} partitions, and a log has {PARTITIONS_MAX} at most",
                names.changes, changes.partitions
            ),
            remedy: "Name another topic_prefix".to_owned(),
        }),
        _ => Ok(()),
    }
}

fn refuse_what_cannot_be(options: &LogOptions) -> Result<(), LogError> {
    match options.partitions {
        Some(asked) if !(1..=PARTITIONS_MAX).contains(&asked) => Err(LogError::Refused {
            what: format!("a log has 1 to {PARTITIONS_MAX} partitions, and {asked} are asked for"),
            remedy: "Write another number of `partitions`".to_owned(),
        }),
        _ => Ok(()),
    }
}

/// The first setting of the topic of entries under which it cannot keep a log.
fn refused_entries(
    names: &Names,
    options: &LogOptions,
    changes: &ids::Topic,
    entries: &BTreeMap<String, String>,
) -> Option<LogError> {
    let name = &names.changes;
    compaction(name, entries, "delete")
        .or_else(|| unclean(name, entries))
        .or_else(|| too_few_copies(name, entries, options))
        .or_else(|| too_short(name, entries, options.retention, changes.partitions))
}

fn check(
    clients: &Clients,
    names: &Names,
    options: &LogOptions,
    changes: ids::Topic,
    meta: ids::Topic,
    transformed: Option<ids::Topic>,
) -> Result<Standing, LogError> {
    check_partitions(names, options, &changes)?;
    if meta.partitions != 1 {
        return Err(LogError::Refused {
            what: format!("the topic {} has {} partitions and must have one", names.meta, meta.partitions),
            remedy: "Name another topic_prefix, or make the topic anew".to_owned(),
        });
    }
    let mut asked = names.both().to_vec();
    if transformed.is_some() {
        asked.push(&names.transformed);
    }
    let all = clients.settings(&asked)?;
    let none = BTreeMap::new();
    let of = |name: &str| all.get(name).unwrap_or(&none);
    let (entries, kept) = (of(&names.changes), of(&names.meta));
    let refused = refused_entries(names, options, &changes, entries)
        .or_else(|| compaction(&names.meta, kept, "compact"))
        .or_else(|| unclean(&names.meta, kept))
        .or_else(|| compaction(&names.transformed, of(&names.transformed), "delete"))
        .or_else(|| unclean(&names.transformed, of(&names.transformed)));
    if let Some(refused) = refused {
        return Err(refused);
    }
    let largest = |of: &BTreeMap<String, String>| number(of, "max.message.bytes").unwrap_or(1_000_000);
    let mut message_bytes_max = largest(entries).min(largest(kept));
    if transformed.is_some() {
        message_bytes_max = message_bytes_max.min(largest(of(&names.transformed)));
    }
    let message_bytes_max = message_bytes_max.unsigned_abs();
    let time = number(entries, "retention.ms").and_then(|ms| u64::try_from(ms).ok()).map(Duration::from_millis);
    let bytes = number(entries, "retention.bytes").and_then(|bytes| u64::try_from(bytes).ok());
    let bytes = bytes.map(|bytes| bytes.saturating_mul(u64::from(changes.partitions)));
    Ok(Standing { changes, meta, transformed, message_bytes_max, retention: Retention { time, bytes } })
}

fn number(of: &BTreeMap<String, String>, name: &str) -> Option<i64> {
    of.get(name)?.parse().ok()
}

fn compaction(name: &str, of: &BTreeMap<String, String>, wanted: &str) -> Option<LogError> {
    let policy = of.get("cleanup.policy")?;
    (policy != wanted).then(|| {
        let why =
            if wanted == "delete" { "compaction would drop changes" } else { "it would forget what must be kept" };
        LogError::Refused {
            what: format!("the topic {name} has cleanup.policy={policy}, and {why}"),
            remedy: format!("Set it: kafka-configs --alter --topic {name} --add-config cleanup.policy={wanted}"),
        }
    })
}

fn unclean(name: &str, of: &BTreeMap<String, String>) -> Option<LogError> {
    (of.get("unclean.leader.election.enable").map(String::as_str) == Some("true")).then(|| LogError::Refused {
        what: format!("the topic {name} allows unclean leader elections, which lose records that were acknowledged"),
        remedy: format!(
            "Forbid them: kafka-configs --alter --topic {name} --add-config unclean.leader.election.enable=false"
        ),
    })
}

fn too_few_copies(name: &str, of: &BTreeMap<String, String>, options: &LogOptions) -> Option<LogError> {
    let wanted = i64::from(options.min_insync_replicas?);
    let there = number(of, "min.insync.replicas")?;
    (there < wanted).then(|| LogError::Refused {
        what: format!("the topic {name} has min.insync.replicas={there}, the spec says {wanted}"),
        remedy: format!("Set it: kafka-configs --alter --topic {name} --add-config min.insync.replicas={wanted}"),
    })
}

/// A topic that keeps less than the spec says.
fn too_short(name: &str, of: &BTreeMap<String, String>, asked_for: Retention, partitions: u32) -> Option<LogError> {
    let (time, bytes) = asked(asked_for, partitions);
    for (setting, wanted) in [("retention.ms", time), ("retention.bytes", bytes)] {
        let there = number(of, setting)?;
        let enough = there < 0 || wanted.parse().is_ok_and(|wanted: i64| wanted >= 0 && there >= wanted);
        if !enough {
            return Some(LogError::Refused {
                what: format!("the topic {name} has {setting}={there}, and the spec's retention needs {wanted}"),
                remedy: format!(
                    "Set it: kafka-configs --alter --topic {name} --add-config {setting}={wanted}; or write into the spec what the topic keeps"
                ),
            });
        }
    }
    None
}
