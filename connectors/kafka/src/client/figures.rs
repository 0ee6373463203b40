//! What librdkafka counts of its clients, put together by what they are for: so there are a few words of them, however
//! many clients come and go.
//!
//! A client says its figures every few seconds, into the queue that its owner empties anyway. Whoever makes a client that
//! counts sees to it that somebody polls it also while nothing is to be done: what nobody takes is kept, and grows.

use serde::Deserialize;
use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// How often a client says its figures.
pub(crate) const EVERY: Duration = Duration::from_secs(5);

/// What a client is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Purpose {
    /// Writes the entries.
    Writer,
    /// Reads the entries.
    Reader,
    /// Reads what workers have made.
    Made,
    /// Reads the notes of another process.
    Follower,
    /// Writes what this worker makes.
    Worker,
    /// Reads topics that are the migration's source.
    Source,
    /// Writes topics that are its sink.
    Sink,
}

impl Purpose {
    fn name(self) -> &'static str {
        match self {
            Self::Writer => "writer",
            Self::Reader => "reader",
            Self::Made => "made",
            Self::Follower => "follower",
            Self::Worker => "worker",
            Self::Source => "source",
            Self::Sink => "sink",
        }
    }
}

/// The clients for one purpose, together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClientFigures {
    /// What they are for: `writer`, `reader`, `made`, `follower` or `worker` of a log; `source`, `sink`.
    pub purpose: &'static str,
    /// How many there are now.
    pub clients: u64,
    /// Records in their queues: to be sent, or to be read by us.
    pub queued_records: u64,
    /// Bytes of them.
    pub queued_bytes: u64,
    /// Records sent since the process began.
    pub sent_records: u64,
    /// Bytes of them.
    pub sent_bytes: u64,
    /// Records received since the process began.
    pub received_records: u64,
    /// Bytes of them.
    pub received_bytes: u64,
    /// The state of the transaction of each that has them, in librdkafka's words.
    pub transactions: BTreeMap<String, u64>,
    /// The brokers, by their numbers.
    pub brokers: BTreeMap<i32, BrokerFigures>,
}

/// One broker, as the clients for one purpose see it together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BrokerFigures {
    /// Connections that are up.
    pub connected: u64,
    /// Requests that wait to be sent or answered.
    pub outstanding: u64,
    /// How long answers took in the last interval, in microseconds: the worst mean of a client.
    pub rtt_us: u64,
    /// And the worst 99th percentile.
    pub rtt_p99_us: u64,
    /// Requests that failed or were not answered in time, since the process began.
    pub errors: u64,
}

/// The figures of all clients that were made by one maker.
#[derive(Debug, Clone, Default)]
pub(crate) struct Figures(Arc<Mutex<All>>);

/// Those of a source and of a sink. A process runs one migration: there is one of each, whoever made it.
static ENDS: LazyLock<Figures> = LazyLock::new(Figures::default);

/// What the clients of a source and a sink in this process have counted, whatever the log is kept in.
pub fn ends_figures() -> Vec<ClientFigures> {
    ENDS.sums()
}

#[derive(Debug, Default)]
struct All {
    last: u64,
    live: BTreeMap<u64, (Purpose, ClientFigures)>,
    /// What those had counted that are gone.
    gone: BTreeMap<Purpose, ClientFigures>,
}

/// One client's place among the figures; with it the client goes.
#[derive(Debug)]
pub(crate) struct Counting {
    all: Figures,
    number: u64,
}

impl Figures {
    /// Those of a source and of a sink.
    pub(crate) fn of_ends() -> Self {
        ENDS.clone()
    }

    fn lock(&self) -> MutexGuard<'_, All> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for another client.
    pub(crate) fn count(&self, purpose: Purpose) -> Counting {
        let mut all = self.lock();
        all.last += 1;
        let number = all.last;
        all.live.insert(number, (purpose, ClientFigures { clients: 1, ..ClientFigures::default() }));
        drop(all);
        Counting { all: self.clone(), number }
    }

    /// The sums, by purpose.
    pub(crate) fn sums(&self) -> Vec<ClientFigures> {
        let all = self.lock();
        let mut sums = all.gone.clone();
        for (purpose, figures) in all.live.values() {
            sums.entry(*purpose).or_default().add(figures);
        }
        let named = |(purpose, figures): (Purpose, ClientFigures)| ClientFigures { purpose: purpose.name(), ..figures };
        sums.into_iter().map(named).collect()
    }
}

impl Counting {
    /// Takes what the client says, as librdkafka writes it.
    pub(crate) fn take(&self, said: &[u8]) {
        match serde_json::from_slice::<Said>(said) {
            Ok(said) => {
                if let Some((_, figures)) = self.all.lock().live.get_mut(&self.number) {
                    *figures = said.figures();
                }
            }
            Err(error) => tracing::debug!(%error, "a client's figures cannot be read"),
        }
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        let mut all = self.all.lock();
        let Some((purpose, figures)) = all.live.remove(&self.number) else { return };
        all.gone.entry(purpose).or_default().add(&figures.counters());
    }
}

impl ClientFigures {
    fn add(&mut self, other: &Self) {
        self.clients += other.clients;
        self.queued_records += other.queued_records;
        self.queued_bytes += other.queued_bytes;
        self.sent_records += other.sent_records;
        self.sent_bytes += other.sent_bytes;
        self.received_records += other.received_records;
        self.received_bytes += other.received_bytes;
        for (state, count) in &other.transactions {
            *self.transactions.entry(state.clone()).or_default() += count;
        }
        for (number, broker) in &other.brokers {
            self.brokers.entry(*number).or_default().add(broker);
        }
    }

    /// What only ever grows: it outlives the client.
    fn counters(&self) -> Self {
        let errors = |(number, broker): (&i32, &BrokerFigures)| {
            (*number, BrokerFigures { errors: broker.errors, ..BrokerFigures::default() })
        };
        Self {
            sent_records: self.sent_records,
            sent_bytes: self.sent_bytes,
            received_records: self.received_records,
            received_bytes: self.received_bytes,
            brokers: self.brokers.iter().map(errors).collect(),
            ..Self::default()
        }
    }
}

impl BrokerFigures {
    fn add(&mut self, other: &Self) {
        self.connected += other.connected;
        self.outstanding += other.outstanding;
        self.rtt_us = self.rtt_us.max(other.rtt_us);
        self.rtt_p99_us = self.rtt_p99_us.max(other.rtt_p99_us);
        self.errors += other.errors;
    }
}

/// What librdkafka says, as far as it is told on.
#[derive(Deserialize)]
struct Said {
    #[serde(default)]
    msg_cnt: u64,
    #[serde(default)]
    msg_size: u64,
    #[serde(default)]
    txmsgs: u64,
    #[serde(default)]
    txmsg_bytes: u64,
    #[serde(default)]
    rxmsgs: u64,
    #[serde(default)]
    rxmsg_bytes: u64,
    #[serde(default)]
    brokers: BTreeMap<String, SaidBroker>,
    #[serde(default)]
    topics: BTreeMap<String, SaidTopic>,
    eos: Option<SaidTransaction>,
}

#[derive(Deserialize)]
struct SaidBroker {
    nodeid: i32,
    state: String,
    #[serde(default)]
    outbuf_cnt: u64,
    #[serde(default)]
    waitresp_cnt: u64,
    #[serde(default)]
    txerrs: u64,
    #[serde(default)]
    rxerrs: u64,
    #[serde(default)]
    req_timeouts: u64,
    rtt: Option<SaidWindow>,
}

#[derive(Deserialize)]
struct SaidWindow {
    avg: i64,
    p99: i64,
}

#[derive(Deserialize)]
struct SaidTopic {
    #[serde(default)]
    partitions: BTreeMap<String, SaidPartition>,
}

#[derive(Deserialize)]
struct SaidPartition {
    #[serde(default)]
    fetchq_cnt: u64,
    #[serde(default)]
    fetchq_size: u64,
}

#[derive(Deserialize)]
struct SaidTransaction {
    #[serde(default)]
    txn_state: String,
}

impl Said {
    fn figures(self) -> ClientFigures {
        let mut figures = ClientFigures {
            clients: 1,
            queued_records: self.msg_cnt,
            queued_bytes: self.msg_size,
            sent_records: self.txmsgs,
            sent_bytes: self.txmsg_bytes,
            received_records: self.rxmsgs,
            received_bytes: self.rxmsg_bytes,
            ..ClientFigures::default()
        };
        for partition in self.topics.values().flat_map(|topic| topic.partitions.values()) {
            figures.queued_records += partition.fetchq_cnt;
            figures.queued_bytes += partition.fetchq_size;
        }
        if let Some(SaidTransaction { txn_state }) = self.eos.filter(|eos| !eos.txn_state.is_empty()) {
            figures.transactions.insert(txn_state, 1);
        }
        // An address that was given, and is not known by a number yet, is below zero.
        for broker in self.brokers.into_values().filter(|broker| broker.nodeid >= 0) {
            let window = |of: fn(&SaidWindow) -> i64| {
                broker.rtt.as_ref().map_or(0, |rtt| u64::try_from(of(rtt)).unwrap_or_default())
            };
            figures.brokers.entry(broker.nodeid).or_default().add(&BrokerFigures {
                connected: u64::from(broker.state == "UP"),
                outstanding: broker.outbuf_cnt + broker.waitresp_cnt,
                rtt_us: window(|rtt| rtt.avg),
                rtt_p99_us: window(|rtt| rtt.p99),
                errors: broker.txerrs + broker.rxerrs + broker.req_timeouts,
            });
        }
        figures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(sent: u64, state: &str) -> Vec<u8> {
        serde_json::to_vec(&serde_json::json!({
            "name": "crossfade#producer-1", "msg_cnt": 2, "msg_size": 200, "txmsgs": sent, "txmsg_bytes": sent * 10,
            "brokers": {
                "a:1/1": {"nodeid": 1, "state": "UP", "outbuf_cnt": 1, "waitresp_cnt": 2, "txerrs": 1,
                          "rtt": {"avg": 300, "p99": 900}},
                "a:1/bootstrap": {"nodeid": -1, "state": "UP", "outbuf_cnt": 9},
            },
            "topics": {"t": {"partitions": {"0": {"fetchq_cnt": 3, "fetchq_size": 30}}}},
            "eos": {"txn_state": state},
        }))
        .unwrap()
    }

    #[test]
    fn clients_of_one_purpose_are_told_together_and_what_is_counted_outlives_them() {
        let figures = Figures::default();
        let (one, two, other) =
            (figures.count(Purpose::Worker), figures.count(Purpose::Worker), figures.count(Purpose::Reader));
        one.take(&said(5, "InTransaction"));
        two.take(&said(7, "Ready"));
        other.take(b"not what it says");
        let sums = figures.sums();
        assert_eq!(sums.iter().map(|sum| sum.purpose).collect::<Vec<_>>(), ["reader", "worker"]);
        let worker = &sums[1];
        assert_eq!((worker.clients, worker.sent_records, worker.sent_bytes, worker.queued_records), (2, 12, 120, 10));
        let states = [("InTransaction".to_owned(), 1), ("Ready".to_owned(), 1)];
        assert_eq!(worker.transactions, BTreeMap::from(states));
        let broker = BrokerFigures { connected: 2, outstanding: 6, rtt_us: 300, rtt_p99_us: 900, errors: 2 };
        assert_eq!(worker.brokers, BTreeMap::from([(1, broker)]), "an address is no broker");
        drop((one, two));
        let gone = &figures.sums()[1];
        assert_eq!((gone.clients, gone.sent_records, gone.queued_records), (0, 12, 0));
        assert_eq!(gone.brokers[&1], BrokerFigures { errors: 2, ..BrokerFigures::default() });
        assert!(gone.transactions.is_empty());
    }
}
