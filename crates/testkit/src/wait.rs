//! Waiting for a state instead of for a time.

use std::{
    thread,
    time::{Duration, Instant},
};

/// Far more than anything takes on a busy machine; only a test that fails waits so long.
pub const GENEROUS: Duration = Duration::from_secs(300);

const PAUSE: Duration = Duration::from_millis(10);

/// Waits until `reached` says so.
///
/// # Panics
/// After [`GENEROUS`], naming `what` was waited for.
pub async fn wait_until(what: &str, mut reached: impl AsyncFnMut() -> bool) {
    wait_for(what, async || reached().await.then_some(())).await;
}

/// Waits until there is something, and gives it.
///
/// # Panics
/// After [`GENEROUS`], naming `what` was waited for.
pub async fn wait_for<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(started.elapsed() < GENEROUS, "waited {GENEROUS:?} in vain for: {what}");
        tokio::time::sleep(PAUSE).await;
    }
}

/// [`wait_for`] without a runtime.
///
/// # Panics
/// After [`GENEROUS`], naming `what` was waited for.
pub fn wait_for_blocking<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(started.elapsed() < GENEROUS, "waited {GENEROUS:?} in vain for: {what}");
        thread::sleep(PAUSE);
    }
}
