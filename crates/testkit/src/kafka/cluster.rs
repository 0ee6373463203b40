//! Several brokers that are one cluster, each of them a controller too: with three of them one may be away.

use super::{Kafka, find};
use crate::{ports, unavailable};
use std::{path::Path, process::Output, sync::Mutex};

/// Brokers that run until they are dropped.
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<Kafka>,
}

impl Cluster {
    /// Starts this many brokers. Kafka's own topics have a copy on each of them, and take writes while one is away.
    /// `None`, said loudly, where they cannot be had.
    pub fn start(brokers: usize) -> Option<Self> {
        let programs = match find() {
            Ok(programs) => programs,
            Err(reason) => {
                unavailable("Kafka", &reason);
                return None;
            }
        };
        // Somebody may take a port between our look at it and a broker's: then others.
        for _ in 0..super::TRIES {
            let cluster = Self::make(&programs, brokers);
            cluster.nodes.iter().for_each(Kafka::spawn);
            if cluster.nodes.iter().all(Kafka::takes_connections) {
                return Some(cluster);
            }
        }
        panic!("a cluster of {brokers} brokers does not start")
    }

    fn make(programs: &Path, brokers: usize) -> Self {
        let controllers: Vec<u16> = (0..brokers).map(|_| ports::free()).collect();
        let voters: Vec<String> =
            controllers.iter().enumerate().map(|(n, port)| format!("{}@127.0.0.1:{port}", n + 1)).collect();
        let (voters, copies) = (voters.join(","), brokers.to_string());
        let in_step = brokers.div_ceil(2).max(1).to_string();
        let mut id = None;
        let nodes = controllers.iter().enumerate().map(|(n, controller)| {
            let folder = tempfile::Builder::new()
                .prefix("crossfade-kafka-")
                .tempdir()
                .unwrap_or_else(|error| panic!("no temporary folder for a broker: {error}"))
                .keep();
            let (programs, port) = (programs.to_owned(), ports::free());
            let node = Kafka { programs, folder, port, inside: None, process: Mutex::new(None) };
            let number = (n + 1).to_string();
            let listeners = format!("PLAINTEXT://127.0.0.1:{},CONTROLLER://127.0.0.1:{controller}", node.port);
            let settings = [
                ("node.id", &number),
                ("controller.quorum.voters", &voters),
                ("listeners", &listeners),
                ("offsets.topic.replication.factor", &copies),
                ("transaction.state.log.replication.factor", &copies),
                ("transaction.state.log.min.isr", &in_step),
            ]
            .map(|(name, value)| (name, value.as_str()));
            let id = id.get_or_insert_with(|| node.draw_id());
            node.format(id, &settings, None);
            node
        });
        Self { nodes: nodes.collect() }
    }

    /// Where clients reach them.
    pub fn brokers(&self) -> String {
        self.nodes.iter().map(Kafka::brokers).collect::<Vec<_>>().join(",")
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// One of them, by its place.
    ///
    /// # Panics
    /// When there is none of that number.
    pub fn node(&self, place: usize) -> &Kafka {
        self.nodes.get(place).unwrap_or_else(|| panic!("there are {} brokers, and none of number {place}", self.len()))
    }

    /// Runs one of Kafka's own tools.
    pub fn tool(&self, class: &str, args: &[&str]) -> Output {
        self.node(0).tool(class, args)
    }

    /// Ends one with SIGKILL and starts another one in its place, under its number and with an empty disk, as one would
    /// whose disk is lost. It fetches its copies from the others.
    pub fn replace(&self, place: usize) {
        let node = self.node(place);
        node.kill();
        node.empty();
        assert!(node.try_start(), "the broker in the place of number {place} does not start:\n{}", node.log());
    }
}
