//! The way back: the stream of the new side's writes to the old side, as far as the switch has to prepare it.
//!
//! Before the point of no return the new side has a publication and a slot (`crossfade_<name>_reverse`), moved up to where the
//! sink wrote last: what the slot gives is what the applications have written since the switch, all of it. Whoever
//! applies it on the old side ([`back`]) gets past the fence there by its pass.

use super::back;
use crate::{error::CliError, registry::AnySwitchEnd, spec::Spec};
use crossfade_connector::switch::Reverse;
use crossfade_connector::{Target, WriteMode};
use crossfade_event::TableName;

/// The tables of the new side whose writes would have to go back.
pub(super) fn tables_of(target: &Target) -> Vec<TableName> {
    let ours = target.tables.iter().filter(|table| table.mode == WriteMode::Table);
    ours.map(|table| table.schema.name.clone()).collect()
}

/// Makes what keeps the new side's writes from the switch on. Nobody is held up yet. Refused where there is no way back.
pub(super) async fn prepare(spec: &Spec, new: &mut AnySwitchEnd, target: &Target) -> Result<(), CliError> {
    let whole_old = back::make_ready(spec).await?;
    Ok(new.prepare_reverse(&tables_of(target), whole_old).await?)
}

/// The applications' writes begin here: the sink has come to its end.
pub(super) async fn begin_here(spec: &Spec, new: &mut AnySwitchEnd) -> Result<Reverse, CliError> {
    let reverse = new.reverse_from_here().await?;
    back::note(spec).await?;
    Ok(reverse)
}

/// There was no switch: nobody will read the slot, and it must not hold WAL.
pub(super) async fn give_up(spec: &Spec, new: &mut AnySwitchEnd) {
    if let Err(error) = back::forget(spec) {
        tracing::warn!("the note of the way back is still there: {}", error.message);
    }
    if let Err(failure) = new.drop_reverse().await {
        tracing::warn!("the slot for the way back is still there, and holds WAL on the new side: {failure}");
    }
}

/// What whoever would write the new side is told once it has the authority.
pub(super) fn not_followed(spec: &Spec) -> CliError {
    CliError::refused(format!(
        "{} has switched: its new side is the writer, and what it did not write itself would be overwritten",
        spec.name
    ))
    .hint("`crossfade run` keeps the old side exact; ask about that with --reverse")
}
