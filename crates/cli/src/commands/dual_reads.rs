//! `dual-reads`: how large a share of the applications' reads is compared. More is set by the process that runs the migration,
//! for it knows whether the gates hold; less, and none, also where nobody runs.

use super::{control::ask, folder, switch};
use crate::{
    args::DualReadsArgs,
    error::{CliError, Exit},
    output, run,
    spec::Spec,
};
use serde_json::{Value as Json, json};

/// Sets the share, or says why not.
pub(crate) async fn dual_reads(spec: &Spec, args: &DualReadsArgs) -> Result<(), CliError> {
    switch::whole(spec, "dual-reads")?;
    if spec.switch.is_none() {
        return Err(run::no_section(spec));
    }
    let by = folder::by_hand();
    let body = json!({ "who": by.who, "share": args.share });
    let answer = match ask(spec, hyper::Method::POST, "/command/dual-reads", Some(body)).await? {
        Some(answer) => answer,
        None => in_folder(spec, args).await?,
    };
    if args.json {
        output::json(&answer)?;
    } else {
        output::print(&render(&answer))?;
    }
    let failing = switch::failing(&answer);
    if failing > 0 {
        return Err(CliError::new(
            Exit::Refused,
            format!("no more of the reads is compared than before: {failing} guards say no"),
        )
        .hint("each says above what would allow it"));
    }
    match answer.get("not_told").and_then(Json::as_str) {
        None => Ok(()),
        Some(why) => Err(CliError::failed(format!("the journal has the share, and not every flag does yet: {why}"))
            .hint("`crossfade run` goes on trying; the same command again tries now")),
    }
}

/// Nobody runs: less can be compared, and no more.
async fn in_folder(spec: &Spec, args: &DualReadsArgs) -> Result<Json, CliError> {
    let owned = folder::taken(spec)?;
    let journal = folder::journal(&owned)?;
    run::refuse_out_of_phase(&journal, &folder::by_hand(), args.share).await?;
    if run::is_more(&journal.migration(), args.share) {
        return Err(CliError::refused(format!(
            "nobody runs {}: the new side does not follow, and every answer of it would be an old one",
            spec.name
        ))
        .hint(format!("crossfade run {}, then ask again", spec.file.display())));
    }
    let compared = run::lower_reads(spec, &journal, &folder::by_hand(), args.share).await?;
    serde_json::to_value(compared).map_err(|error| CliError::failed(format!("the answer cannot be written: {error}")))
}

fn render(answer: &Json) -> String {
    let share = answer.get("share").and_then(Json::as_str).unwrap_or_default();
    let said = match share {
        "0%" => "no reads are compared".to_owned(),
        share => format!("{share} of the reads are compared, by applications that follow crossfade.dual_reads"),
    };
    format!("{}{said}\n", switch::guards_text(answer))
}
