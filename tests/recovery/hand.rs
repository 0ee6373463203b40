//! Somebody who writes into a database on a thread of its own, until stopped or dropped.

use crate::ends::End;
use crossfade_testkit::wait::wait_for_blocking;
use rand::rngs::StdRng;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

/// What a hand does: until told to stop, it counts what is committed, and pauses after each transaction.
type Work = fn(&End, StdRng, &AtomicBool, &AtomicU64, Duration);

/// At work.
#[derive(Debug)]
pub(crate) struct Hand {
    who: &'static str,
    stop: Arc<AtomicBool>,
    committed: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Hand {
    /// Starts; about `per_second` transactions.
    pub(crate) fn start(who: &'static str, end: &End, rng: StdRng, per_second: u32, work: Work) -> Self {
        let (stop, committed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (end, over, count) = (end.clone(), Arc::clone(&stop), Arc::clone(&committed));
        let pause = Duration::from_secs(1) / per_second;
        let thread = thread::spawn(move || work(&end, rng, &over, &count, pause));
        Self { who, stop, committed, thread: Some(thread) }
    }

    /// Waits until so many more transactions are committed.
    pub(crate) fn wait_for_more(&self, transactions: u64) {
        let goal = self.committed.load(Ordering::Relaxed) + transactions;
        wait_for_blocking(&format!("{} to commit", self.who), || {
            let alive = self.thread.as_ref().is_some_and(|thread| !thread.is_finished());
            assert!(alive, "{} has ended", self.who);
            (self.committed.load(Ordering::Relaxed) >= goal).then_some(())
        });
    }

    /// Lets the last transaction end; gives how many were committed.
    pub(crate) fn stop(mut self) -> u64 {
        self.end();
        self.committed.load(Ordering::Relaxed)
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            assert!(thread.join().is_ok() || thread::panicking(), "{} panicked", self.who);
        }
    }
}

impl Drop for Hand {
    fn drop(&mut self) {
        self.end();
    }
}
