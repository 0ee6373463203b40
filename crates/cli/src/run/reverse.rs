//! The way back: the stream of the new side's writes to the old side, as far as the switch has to prepare it.
//!
//! Before the point of no return the new side has a publication and a slot (`crossfade_<name>_reverse`), moved up to where the
//! sink wrote last: what the slot gives is what the applications have written since the switch, all of it. Whoever
//! applies it on the old side gets past the fence there by [`SwitchEnd::pass_sql`].

use crate::{error::CliError, spec::Spec};
use crossfade_connector::{Target, WriteMode};
use crossfade_event::TableName;
use crossfade_postgres::switch::{Reverse, SwitchEnd};

/// The tables of the new side whose writes would have to go back.
pub(super) fn tables_of(target: &Target) -> Vec<TableName> {
    let ours = target.tables.iter().filter(|table| table.mode == WriteMode::Table);
    ours.map(|table| table.schema.name.clone()).collect()
}

/// Makes what keeps the new side's writes from the switch on. Nobody is held up yet.
pub(super) async fn prepare(new: &mut SwitchEnd, target: &Target) -> Result<(), CliError> {
    Ok(new.prepare_reverse(&tables_of(target)).await?)
}

/// The applications' writes begin here: the sink has come to its end.
pub(super) async fn begin_here(new: &mut SwitchEnd) -> Result<Reverse, CliError> {
    Ok(new.reverse_from_here().await?)
}

/// There was no switch: nobody will read the slot, and it must not hold WAL.
pub(super) async fn give_up(new: &mut SwitchEnd) {
    if let Err(failure) = new.drop_reverse().await {
        tracing::warn!("the slot for the way back is still there, and holds WAL on the new side: {failure}");
    }
}

/// What `run` says of a migration whose new side has the authority.
pub(super) fn not_followed(spec: &Spec) -> CliError {
    CliError::refused(format!(
        "{} has switched: the applications write the new side, and nothing is left to be copied there",
        spec.name
    ))
    .hint("the stream back to the old side is not built yet; the slot for it keeps what it would read")
}
