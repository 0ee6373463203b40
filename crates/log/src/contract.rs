//! What every provider demands of a batch.

use crate::LogError;
use crossfade_event::{Batch, Event, SchemaVersion, TableId};

/// Checks that a batch holds events of one lane, and none of a backfill `inside` a transaction whose parts are still
/// coming: the two would become visible together, and be dropped together.
///
/// # Errors
/// [`LogError::Contract`] with what is mixed.
pub fn check_lanes(batch: &Batch, inside: bool) -> Result<(), LogError> {
    let snapshot = batch.events.iter().any(|stamped| stamped.event.is_snapshot());
    let both =
        |event: &Event| matches!(event, Event::SchemaSeen(_) | Event::BackfillBegan(_) | Event::BackfillEnded { .. });
    let stream = batch.events.iter().any(|stamped| !stamped.event.is_snapshot() && !both(&stamped.event));
    if snapshot && stream {
        return Err(LogError::Contract("it mixes a backfill's events with the stream's".to_owned()));
    }
    if snapshot && inside {
        let why = "a backfill's events came inside a source transaction whose last part is still to come";
        return Err(LogError::Contract(why.to_owned()));
    }
    Ok(())
}

/// Rows under a schema that never came.
pub fn unknown_schema(table: TableId, version: SchemaVersion) -> LogError {
    LogError::Contract(format!("rows of table {} under its schema {}, which was never seen", table.0, version.0))
}
