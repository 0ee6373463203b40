//! How many collisions are in quarantine, for the gate on them. The sink is asked, not what this process has counted: what was
//! there before it started counts as well, what other processes have put there, and nothing that was mended since.

use super::control::Shared;
use crate::{error::CliError, registry::AnySink, spec::Spec};
use crossfade_connector::Quarantine;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// How often it is looked, at most.
const EVERY: Duration = Duration::from_secs(1);

/// Looking may take one part in so many of the time: a large quarantine is looked through each time.
const SHARE: u32 = 20;

/// Looks again and again, as long as the run lasts. What cannot be counted is not known, and the gate holds then.
pub(super) async fn watch(shared: Arc<Shared>) {
    let mut closed = shared.closed();
    let work = async {
        let mut sink = None;
        let mut failed = false;
        loop {
            let (begun, answers) = (Instant::now(), shared.collisions_answered());
            let counted = look(&shared, &mut sink).await;
            if let Err(error) = &counted {
                if !failed {
                    tracing::warn!(
                        "the gate collisions holds unjudged, for the quarantine cannot be looked at: {error}"
                    );
                }
                sink = None;
            }
            failed = counted.is_err();
            shared.counted_collisions(answers, counted.ok());
            tokio::time::sleep(EVERY.max(begun.elapsed() * SHARE)).await;
        }
    };
    tokio::select! {
        () = work => {}
        () = closed.wait() => {}
    }
}

async fn look(shared: &Shared, sink: &mut Option<AnySink>) -> Result<u64, CliError> {
    let opened = match sink.take() {
        Some(opened) => opened,
        None => AnySink::for_looking(&shared.spec)?,
    };
    Ok(sink.insert(opened).collisions().await?)
}

/// How many there are now.
pub(super) async fn count(spec: &Spec) -> Result<u64, CliError> {
    Ok(AnySink::for_looking(spec)?.collisions().await?)
}
