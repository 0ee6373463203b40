//! A consumer whose partitions have queues of their own, and what comes beside them: errors, figures, and now and then a
//! record that came before its partition had its queue.
//!
//! Whoever reads serves it as he goes. While nobody reads (a migration that is paused), the log's watcher does, so that
//! figures do not pile up. The lock is held as long as records are taken from the queues: a record that went astray is
//! known of before a later one of its partition is taken.

use crate::client::{LogConsumer, is_passing_for_readers};
use rdkafka::error::KafkaError;
use std::{
    ops::Deref,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// A consumer, and what came beside its queues.
pub(super) struct Served {
    consumer: Arc<LogConsumer>,
    heard: Mutex<Heard>,
}

/// What came beside the queues.
#[derive(Default)]
pub(super) struct Heard {
    astray: bool,
    error: Option<KafkaError>,
}

impl Heard {
    /// Whether a record came another way than through its partition's own queue: the consumer must be made anew.
    pub(super) fn is_astray(&self) -> bool {
        self.astray
    }

    /// The first error that trying again does not mend.
    pub(super) fn error(&mut self) -> Option<KafkaError> {
        self.error.take()
    }
}

impl Served {
    pub(super) fn new(consumer: LogConsumer) -> Self {
        Self { consumer: Arc::new(consumer), heard: Mutex::default() }
    }

    /// Serves the consumer. As long as what is given back lives, nobody else does.
    pub(super) fn serve(&self) -> MutexGuard<'_, Heard> {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        self.hear(&mut heard);
        heard
    }

    /// Serves the consumer unless somebody else does.
    pub(super) fn serve_if_idle(&self) {
        if let Ok(mut heard) = self.heard.try_lock() {
            self.hear(&mut heard);
        }
    }

    fn hear(&self, heard: &mut Heard) {
        match self.consumer.poll(Duration::ZERO) {
            None => {}
            Some(Ok(_)) => heard.astray = true,
            Some(Err(error)) if is_passing_for_readers(&error) => {}
            Some(Err(error)) => {
                heard.error.get_or_insert(error);
            }
        }
    }
}

impl Deref for Served {
    type Target = Arc<LogConsumer>;

    fn deref(&self) -> &Arc<LogConsumer> {
        &self.consumer
    }
}
