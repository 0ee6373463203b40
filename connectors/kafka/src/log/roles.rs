//! What the processes of one migration tell each other through the log where one writes it and another delivers from it.
//!
//! **The head** is what whoever writes says of the migration, in its own words: whoever delivers, perhaps on another
//! machine, begins from it, and can be refused by it.
//!
//! **The turn** says which of two that deliver came later. It is the place of a note in the compacted topic: no two have
//! the same, a later one has a higher, and no clock is asked.

use super::{
    KafkaLog, drawn,
    meta::{self, Says, Writer},
    patiently,
    pin::Pin,
    pin_of,
    topics::{self, Names},
    who,
};
use crate::{LogOptions, client::Clients};
use crossfade_log::LogError;

impl KafkaLog {
    /// What whoever writes the log has said of the migration; `None` while nobody has made the log, or said it. Asks the
    /// brokers, so call it where blocking is allowed.
    ///
    /// # Errors
    /// [`LogError::Lost`] for topics that are not those that were pinned, [`LogError::Server`] when no broker answers.
    pub fn head(options: &LogOptions) -> Result<Option<String>, LogError> {
        patiently(|| Self::head_once(options))
    }

    fn head_once(options: &LogOptions) -> Result<Option<String>, LogError> {
        let names = Names::new(&options.topic_prefix)?;
        let clients = Clients::new(options.connection.clone())?;
        let pin = pin_of(options)?;
        if topics::wait_for(&clients, &names, options, pin.as_ref())?.is_none() {
            return Ok(None);
        }
        Ok(meta::read(&clients.asking(&names.readers)?, &names)?.head)
    }

    /// Notes the topics as this migration's, unless some are noted already: the head has said that they are.
    ///
    /// # Errors
    /// As [`KafkaLog::open_read_only`].
    pub fn adopt(options: &LogOptions) -> Result<(), LogError> {
        patiently(|| Self::adopt_once(options))
    }

    fn adopt_once(options: &LogOptions) -> Result<(), LogError> {
        let (Some(path), None) = (&options.pin, pin_of(options)?) else { return Ok(()) };
        let names = Names::new(&options.topic_prefix)?;
        let clients = Clients::new(options.connection.clone())?;
        // Another broker may have said so than the one that is asked now.
        let standing = topics::open(&clients, &names, options, None, topics::Way::Known)?;
        match meta::read(&clients.asking(&names.readers)?, &names)?.birth {
            Some(birth) if birth.changes == standing.changes.id => Pin::new(birth.id, &standing).write(path),
            Some(birth) => Err(topics::recreated(&names.changes, &birth.changes, &standing.changes.id)),
            None => Err(topics::deleted(&names.changes, "unknown")),
        }
    }

    /// Says what the migration is; only whoever writes the log may.
    ///
    /// # Errors
    /// [`LogError::ReadOnly`] for a log that another process writes, [`LogError::Server`] when it cannot be written.
    pub fn say_head(&self, head: &str) -> Result<(), LogError> {
        let shared = &self.0.shared;
        match shared.writes {
            true => shared.say(&Says::Head(head.to_owned())).map(drop),
            false => Err(shared.is_read_only()),
        }
    }

    /// Takes the turn to deliver: a number that is higher than all that were given before, whoever asked.
    ///
    /// # Errors
    /// [`LogError::ReadOnly`] for a log that is only looked at, [`LogError::Server`] when it cannot be written.
    pub fn take_turn(&self) -> Result<u64, LogError> {
        self.0.shared.say(&Says::Deliver(Writer { id: drawn(), who: who() })).map(|offset| offset + 1)
    }
}
