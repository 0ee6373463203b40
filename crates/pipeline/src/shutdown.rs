//! One signal to stop, honoured between batches; and a valve that holds a loop without stopping it.

use tokio::sync::watch;

/// The asking side of [`Stop`]; dropping it asks too.
#[derive(Debug)]
pub struct Stopper(watch::Sender<bool>);

impl Stopper {
    /// Asks every loop to end after the batch in hand. Repeating it changes nothing.
    pub fn stop(&self) {
        self.0.send_replace(true);
    }
}

/// Carried by every loop; tells it when to end.
#[derive(Debug, Clone)]
pub struct Stop(watch::Receiver<bool>);

impl Stop {
    /// Waits until stopping is asked for. Safe to cancel.
    pub async fn requested(&mut self) {
        // An error means that the stopper is gone: nobody could ask any more, so that counts as asked.
        let _ = self.0.wait_for(|stop| *stop).await;
    }

    /// Whether stopping has been asked for.
    pub fn is_requested(&self) -> bool {
        *self.0.borrow() || self.0.has_changed().is_err()
    }
}

/// A connected pair.
pub fn stop_channel() -> (Stopper, Stop) {
    let (sender, receiver) = watch::channel(false);
    (Stopper(sender), Stop(receiver))
}

/// Opens and closes a [`Valve`].
#[derive(Debug, Clone)]
pub struct ValveHandle(std::sync::Arc<watch::Sender<Option<String>>>);

impl ValveHandle {
    /// Holds the loop after the batch in hand; `reason` is shown by `status`.
    pub fn close(&self, reason: impl Into<String>) {
        self.0.send_replace(Some(reason.into()));
    }

    /// Lets it go on.
    pub fn open(&self) {
        self.0.send_replace(None);
    }

    /// Why it is held, if it is.
    pub fn reason(&self) -> Option<String> {
        self.0.borrow().clone()
    }
}

/// Carried by a loop: open unless somebody closed it. Deliver and ingest have one each: while deliver is paused ingest goes on, so
/// that the source keeps no history for us; ingest is held where there is no room for the log.
#[derive(Debug, Clone)]
pub struct Valve(watch::Receiver<Option<String>>);

impl Default for Valve {
    /// One that nobody can close.
    fn default() -> Self {
        valve().1
    }
}

impl Valve {
    /// Whether it is open now.
    pub fn is_open(&self) -> bool {
        self.0.borrow().is_none()
    }

    /// Waits until the valve is open. Safe to cancel.
    pub async fn opened(&mut self) {
        let _ = self.0.wait_for(Option::is_none).await;
    }
}

/// A connected pair, open.
pub fn valve() -> (ValveHandle, Valve) {
    let (sender, receiver) = watch::channel(None);
    (ValveHandle(std::sync::Arc::new(sender)), Valve(receiver))
}
