//! `run --listen`: the address is taken before anything else begins, so that one that cannot be had ends the command at once.

use crate::{
    args::{Role, RunArgs},
    error::CliError,
};
use crossfade_observe::Listening;

/// Takes the address that was asked for.
pub(super) fn bind(args: &RunArgs) -> Result<Option<Listening>, CliError> {
    let Some(address) = args.listen else { return Ok(None) };
    for (is_said, what) in [(args.dry_run, "run --dry-run"), (args.role == Role::Transform, "run --role transform")] {
        if is_said {
            return Err(CliError::not_built(&format!("--listen with {what}")));
        }
    }
    let listening = Listening::bind(address).map_err(|error| {
        CliError::misconfigured(format!("--listen {address} cannot be had: {error}"))
            .hint("another process has it, or it is not this machine's; name another one, such as 127.0.0.1:9187")
    })?;
    let known = listening.address().unwrap_or(address);
    if !known.ip().is_loopback() {
        tracing::warn!(
            address = %known,
            "whoever can reach this address reads the status, names of tables included: there is no password"
        );
    }
    tracing::info!("metrics, status and page on http://{known}/");
    Ok(Some(listening))
}
