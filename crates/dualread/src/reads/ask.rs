//! Asking one side, whatever its closure is.

use super::AsyncReader;
use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::task::JoinHandle;

type Asked<T, E> = Pin<Box<dyn Future<Output = Result<T, E>> + Send>>;

/// A closure that reads one side.
pub(super) struct Reader<T, E>(Arc<dyn Fn() -> Asked<T, E> + Send + Sync>);

impl<T, E> Clone for Reader<T, E> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T: 'static, E: 'static> Reader<T, E> {
    pub(super) fn new(reader: impl AsyncReader<T, E>) -> Self {
        let reader = Arc::new(reader);
        Self(Arc::new(move || {
            let reader = Arc::clone(&reader);
            Box::pin(async move { reader.read().await })
        }))
    }

    pub(super) async fn ask(&self) -> Result<T, E> {
        (self.0)().await
    }
}

/// What the side without the authority did.
pub(super) enum Said<T> {
    Answered(T, Duration),
    Failed,
    TimedOut,
}

/// A read under way in a task of its own, which ends with this.
pub(super) struct Started<T>(JoinHandle<Said<T>>);

impl<T: Send + 'static> Started<T> {
    pub(super) fn begin<E: Send + 'static>(reader: &Reader<T, E>, timeout: Duration) -> Self {
        let reader = reader.clone();
        Self(tokio::spawn(async move {
            let begun = Instant::now();
            match tokio::time::timeout(timeout, reader.ask()).await {
                Ok(Ok(answer)) => Said::Answered(answer, begun.elapsed()),
                Ok(Err(_)) => Said::Failed,
                Err(_) => Said::TimedOut,
            }
        }))
    }

    /// Waits for it; a panic of the closure is a failure like any other.
    pub(super) async fn said(mut self) -> Said<T> {
        (&mut self.0).await.unwrap_or(Said::Failed)
    }
}

impl<T> Drop for Started<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}
