//! When to hand over what was gathered at once, and when to gather more first.
//!
//! Each hand-over costs the sink a transaction. A sink that is a little faster than what comes in would be given many
//! small ones and spend its time on their beginnings and ends. So after a large hand-over the next one waits a moment;
//! a trickle, where every millisecond counts, never gets there.

use std::time::Duration;
use tokio::time::Instant;

/// A hand-over of so many changes is a large one.
const LARGE_CHANGES: u64 = 128;
/// How long after a large one the next may gather.
const LINGER: Duration = Duration::from_millis(10);
/// So much is enough.
const ENOUGH_BYTES: usize = 512 * 1024;

/// What the last hand-over was like.
#[derive(Debug, Default)]
pub(crate) struct Bulk {
    until: Option<Instant>,
}

impl Bulk {
    /// So many changes were handed over.
    pub(crate) fn handed_over(&mut self, changes: u64) {
        self.until = (changes >= LARGE_CHANGES).then(|| Instant::now() + LINGER);
    }

    /// Until when to gather more, if so many bytes are not enough.
    pub(crate) fn lingers(&self, gathered_bytes: usize) -> Option<Instant> {
        self.until.filter(|until| gathered_bytes < ENOUGH_BYTES && *until > Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_after_a_large_hand_over_is_more_gathered_and_only_for_a_moment() {
        let mut bulk = Bulk::default();
        assert!(bulk.lingers(0).is_none());
        bulk.handed_over(LARGE_CHANGES - 1);
        assert!(bulk.lingers(0).is_none());
        bulk.handed_over(LARGE_CHANGES);
        assert!(bulk.lingers(ENOUGH_BYTES).is_none());
        let until = bulk.lingers(ENOUGH_BYTES - 1).expect("lingers");
        tokio::time::sleep_until(until).await;
        assert!(bulk.lingers(0).is_none());
    }
}
