//! A member of a group that has the partitions of the topic of changes shared out. It reads nothing itself: it is a member
//! to be given partitions.

use super::shared::lock;
use crate::client::Listener;
use rdkafka::{
    ClientContext, TopicPartitionList,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, Consumer, ConsumerContext, Rebalance},
    error::KafkaError,
};
use std::sync::Mutex;

/// Hears what the group gives and takes.
#[derive(Default)]
pub(super) struct Member {
    listener: Listener,
    turns: Mutex<Vec<Turn>>,
}

pub(super) enum Turn {
    Given(Vec<u32>),
    Taken { partitions: Vec<u32>, held_dead: bool },
}

impl Member {
    /// What was given and taken since it was asked last.
    pub(super) fn turns(&self) -> Vec<Turn> {
        std::mem::take(&mut *lock(&self.turns))
    }
}

fn partitions_of(list: &TopicPartitionList) -> Vec<u32> {
    list.elements().iter().map(|element| element.partition().unsigned_abs()).collect()
}

impl ClientContext for Member {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.listener.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.listener.error(error, reason);
    }
}

impl ConsumerContext for Member {
    fn pre_rebalance(&self, member: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        if let Rebalance::Revoke(list) = rebalance {
            let (partitions, held_dead) = (partitions_of(list), member.assignment_lost());
            lock(&self.turns).push(Turn::Taken { partitions, held_dead });
        }
    }

    fn post_rebalance(&self, member: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        if let Rebalance::Assign(list) = rebalance {
            // It is a member to be given partitions; each is read by the thread that works on it.
            if let Err(error) = member.pause(list) {
                tracing::debug!(%error, "partitions could not be paused");
            }
            lock(&self.turns).push(Turn::Given(partitions_of(list)));
        }
    }
}
