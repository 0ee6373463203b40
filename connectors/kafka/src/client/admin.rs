//! What is asked of the brokers themselves: which topics there are and how they are kept, and to make and to delete them.

use super::{
    Clients, Listener, PATIENCE, QUESTION,
    asking::{HEARSAY, assignment},
    errors::{Right, code_of, needing},
};
use crate::ids;
use crossfade_log::LogError;
use futures::executor::block_on;
use rdkafka::{
    admin::{AdminClient, AdminOptions, NewTopic, OwnedResourceSpecifier, ResourceSpecifier},
    error::{KafkaError, RDKafkaErrorCode},
    producer::Producer,
};
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

impl Clients {
    /// The admin client, which has just heard who is there.
    fn admin(&self) -> Result<&AdminClient<Listener>, KafkaError> {
        ids::brokers(&self.admin, QUESTION).map(|_| &self.admin)
    }

    /// The topics of these names, in their order; `None` for one that is not there. Whoever lacks the right to ask is told
    /// of the one that what he wants needs, which has that of asking in it.
    pub(crate) fn describe(&self, names: &[&str], right: &'static str) -> Result<Vec<Option<ids::Topic>>, LogError> {
        let doing = || format!("asking {} for its topics", self.brokers());
        let failed = |error| self.unreachable(&[], doing(), error);
        let described = self.admin().and_then(|admin| ids::describe(admin, names, QUESTION)).map_err(failed)?;
        let named = names.iter().zip(described).map(|(name, found)| {
            let doing = || format!("asking for the topic {name}");
            found.map_err(|error| self.unreachable(&[Right::Topic(right, name)], doing(), error))
        });
        named.collect()
    }

    pub(crate) fn describe_one(&self, name: &str, right: &'static str) -> Result<Option<ids::Topic>, LogError> {
        Ok(self.describe(&[name], right)?.pop().flatten())
    }

    /// Topics that are said to be there: one that a single broker has not heard of is not gone yet.
    pub(crate) fn describe_known(
        &self,
        names: &[&str],
        right: &'static str,
    ) -> Result<Vec<Option<ids::Topic>>, LogError> {
        let began = Instant::now();
        loop {
            let found = self.describe(names, right)?;
            if found.iter().all(Option::is_some) || began.elapsed() >= HEARSAY {
                return Ok(found);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// How many brokers there are.
    ///
    /// # Errors
    /// When none answers.
    pub fn broker_count(&self) -> Result<usize, LogError> {
        let failed = |error| self.unreachable(&[], format!("asking {} for its brokers", self.brokers()), error);
        ids::brokers(&self.admin, PATIENCE).map_err(failed)
    }

    /// Makes a topic; one that is there already is left as it is.
    pub(crate) fn create(&self, topic: &NewTopic<'_>) -> Result<(), LogError> {
        let doing = || format!("making the topic {}", topic.name);
        let options = AdminOptions::new().operation_timeout(Some(PATIENCE)).request_timeout(Some(PATIENCE));
        let failed = |error| self.unreachable(&[Right::Topic("Create", topic.name)], doing(), error);
        let results = self.admin().and_then(|admin| block_on(admin.create_topics([topic], &options)));
        for result in results.map_err(failed)? {
            match result {
                Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((_, code)) => return Err(failed(KafkaError::AdminOp(code))),
            }
        }
        Ok(())
    }

    /// Deletes a topic; one that is not there is none to delete.
    pub(crate) fn delete(&self, topic: &str) -> Result<(), LogError> {
        let doing = || format!("deleting the topic {topic}");
        let options = AdminOptions::new().operation_timeout(Some(PATIENCE)).request_timeout(Some(PATIENCE));
        let failed = |error| self.unreachable(&[Right::Topic("Delete", topic)], doing(), error);
        let results = self.admin().and_then(|admin| block_on(admin.delete_topics(&[topic], &options)));
        for result in results.map_err(failed)? {
            match result {
                Ok(_) | Err((_, RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic)) => {}
                Err((_, code)) => return Err(failed(KafkaError::AdminOp(code))),
            }
        }
        Ok(())
    }

    /// The settings of topics, each by its name.
    pub(crate) fn settings(&self, topics: &[&str]) -> Result<BTreeMap<String, BTreeMap<String, String>>, LogError> {
        let began = Instant::now();
        loop {
            let all = self.settings_now(topics)?;
            // Of a topic that a broker has not heard of yet, or that it does not let us ask about, it tells none, and the
            // library does not say why. None is not taken for settings that are as they should be.
            let untold = topics.iter().find(|topic| all.get(**topic).is_none_or(BTreeMap::is_empty));
            let Some(untold) = untold else { return Ok(all) };
            if began.elapsed() >= HEARSAY {
                let denied = KafkaError::AdminOp(RDKafkaErrorCode::TopicAuthorizationFailed);
                let doing = format!("asking for the settings of {untold}");
                return Err(needing(&[Right::Topic("DescribeConfigs", untold)], doing, denied));
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn settings_now(&self, topics: &[&str]) -> Result<BTreeMap<String, BTreeMap<String, String>>, LogError> {
        let doing = || format!("asking for the settings of {}", topics.join(" and "));
        let asked: Vec<ResourceSpecifier<'_>> = topics.iter().map(|topic| ResourceSpecifier::Topic(topic)).collect();
        let options = AdminOptions::new().request_timeout(Some(QUESTION));
        let failed = |error| self.unreachable(&[], doing(), error);
        let results = self.admin().and_then(|admin| block_on(admin.describe_configs(&asked, &options)));
        let mut all = BTreeMap::new();
        for result in results.map_err(failed)? {
            let resource = result.map_err(|code| failed(KafkaError::AdminOp(code)))?;
            let OwnedResourceSpecifier::Topic(name) = resource.specifier else { continue };
            let entries = resource.entries.into_iter().filter_map(|entry| Some((entry.name, entry.value?)));
            all.insert(name, entries.collect());
        }
        Ok(all)
    }

    /// Drops the records below these offsets.
    pub(crate) fn delete_below(&self, topic: &str, offsets: &[u64]) -> Result<(), LogError> {
        let options = AdminOptions::new().operation_timeout(Some(PATIENCE)).request_timeout(Some(PATIENCE));
        let places = offsets.iter().enumerate().map(|(partition, at)| (partition as i32, *at));
        let done = assignment(topic, places)
            .and_then(|list| self.admin().and_then(|admin| block_on(admin.delete_records(&list, &options))));
        let rights = [Right::Topic("Delete", topic)];
        let refused = |error| self.unreachable(&rights, format!("dropping old records of {topic}"), error);
        for element in done.map_err(refused)?.elements() {
            element.error().map_err(refused)?;
        }
        Ok(())
    }

    /// An error, with what the brokers complained of last where that says more.
    pub(crate) fn unreachable(&self, rights: &[Right<'_>], doing: String, error: KafkaError) -> LogError {
        let lost = matches!(
            code_of(&error),
            Some(
                RDKafkaErrorCode::OperationTimedOut
                    | RDKafkaErrorCode::BrokerTransportFailure
                    | RDKafkaErrorCode::AllBrokersDown
                    | RDKafkaErrorCode::RequestTimedOut
            )
        );
        match lost.then(|| self.complaint()).flatten() {
            Some(complaint) => LogError::Server { doing, cause: complaint.into(), passing: true },
            None => needing(rights, doing, error),
        }
    }

    /// What stands between us and the brokers. An admin client keeps it to itself, so another client is asked.
    fn complaint(&self) -> Option<String> {
        let producer = self.producer(1_000_000).ok()?;
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(2) {
            producer.poll(Duration::from_millis(20));
            match producer.context().listener.last() {
                Some(complaint) if !complaint.ends_with("brokers are down") => return Some(complaint),
                _ => {}
            }
        }
        producer.context().listener.last()
    }
}
