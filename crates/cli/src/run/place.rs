//! From the words of `--from` to a place in the log.

use crate::{args, error::CliError, event_log::AnyLog};
use crossfade_control::Migration;
use crossfade_event::{Cut, Event, Offset, Partition, Position, Sequence};
use crossfade_log::{Entry, EventLog, Lane, LogReader};

/// The cut from which a replay begins: always at the end of a source transaction, or at the log's beginning.
pub(super) fn cut_of(from: &args::From, log: &AnyLog, migration: &Migration) -> Result<Cut, CliError> {
    match from {
        args::From::Checkpoint(name) => match migration.checkpoints.get(name) {
            Some(checkpoint) => Ok(checkpoint.cut.clone()),
            None => {
                let known: Vec<&str> = migration.checkpoints.keys().map(String::as_str).collect();
                let hint = if known.is_empty() {
                    "there are none yet; `crossfade checkpoint` makes one".to_owned()
                } else {
                    format!("known are {}", known.join(", "))
                };
                Err(CliError::misconfigured(format!("there is no checkpoint {name:?}")).hint(hint))
            }
        },
        args::From::Offset(number) => at_or_before(log, Sequence(*number)),
        args::From::Position(text) => {
            let source = log.tail().position.map(|position| position.source);
            let Some(source) = source else {
                return Err(CliError::refused("the log is empty: there is nothing to replay"));
            };
            let wanted = Position::parse(source, text).map_err(|error| CliError::misconfigured(error.to_string()))?;
            find(log, &format!("position {text}"), |entry| entry.position >= wanted)
        }
        args::From::Time(time) => {
            let wanted = time.as_microsecond();
            find(
                log,
                &format!("a transaction committed at or after {time}"),
                |entry| matches!(&entry.event, Event::Began(transaction) if transaction.commit_time_us >= wanted),
            )
        }
    }
}

/// The last transaction's end at or before an entry, by the number that `log cat` prints.
fn at_or_before(log: &AnyLog, number: Sequence) -> Result<Cut, CliError> {
    let is_among = number.0 == 0 || held(log)?.is_some_and(|(first, last)| first <= number && number.0 <= last.0 + 1);
    if is_among {
        return Ok(last_end_before(log, |entry| entry.sequence >= number)?.0);
    }
    Err(CliError::misconfigured(match held(log)? {
        Some((first, last)) => format!("the log holds the entries {first} to {last}; {number} is not among them"),
        None => format!("the log is empty; {number} is not in it"),
    }))
}

/// The first entry that the log holds, and the last.
fn held(log: &AnyLog) -> Result<Option<(Sequence, Sequence)>, CliError> {
    if log.elsewhere().is_none() {
        let (start, end) = (log.start().next(Partition(0)), log.tail().cut.next(Partition(0)));
        return Ok((start < end).then(|| (Sequence(start.0), Sequence(end.0 - 1))));
    }
    let mut held: Option<(Sequence, Sequence)> = None;
    let mut reader = log.read(&log.start(), Lane::All)?;
    while let Some(entries) = reader.try_next()? {
        for entry in entries.entries {
            held = Some((held.map_or(entry.sequence, |(first, _)| first), entry.sequence));
        }
    }
    Ok(held)
}

/// The end of the transaction before the first entry that is `wanted`.
fn find(log: &AnyLog, what: &str, wanted: impl Fn(&Entry) -> bool) -> Result<Cut, CliError> {
    match last_end_before(log, wanted)? {
        (place, true) => Ok(place),
        (_, false) => {
            Err(CliError::misconfigured(format!("the log holds no {what}"))
                .hint("`crossfade log ls` shows what it holds"))
        }
    }
}

/// The last end of a source transaction before the first entry of the stream that is `wanted`, and whether there is one.
fn last_end_before(log: &AnyLog, wanted: impl Fn(&Entry) -> bool) -> Result<(Cut, bool), CliError> {
    let mut place = log.start();
    let mut at = place.clone();
    let mut reader = log.read(&place, Lane::Stream)?;
    while let Some(entries) = reader.try_next()? {
        for entry in entries.entries {
            if wanted(&entry) {
                return Ok((place, true));
            }
            at.set_next(entry.partition, Offset(entry.offset.0 + 1));
            if matches!(entry.event, Event::Committed | Event::Resolved | Event::BackfillBegan(_)) {
                place.clone_from(&at);
            }
        }
        at = entries.next;
    }
    Ok((place, false))
}
