//! `[views]`: two schemas that show the tables in both shapes.

use super::{Document, SpecError, sink::SinkSpec, source::SourceSpec};
use schemars::JsonSchema;
use serde::Deserialize;

/// Views of both shapes, in two schemas of the database.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ViewsSpec {
    /// What their schemas are called after: `shop` gives `shop_v1`, the old shape, and `shop_v2`, the new one.
    pub(crate) app: String,
}

/// Where they can be made.
pub(super) fn check(
    document: &Document<'_>,
    views: Option<&ViewsSpec>,
    source: &SourceSpec,
    sink: &SinkSpec,
) -> Result<(), SpecError> {
    let Some(views) = views else { return Ok(()) };
    let refuse = |message: &str| Err(document.error(document.span_of(&["views", "app"]), message));
    if !matches!((source, sink), (SourceSpec::Postgres(_), SinkSpec::Postgres(_))) {
        return refuse("[views] is for a migration within one PostgreSQL database");
    }
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    let begins = views.app.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase());
    if !begins || views.app.len() > 50 || !views.app.bytes().all(plain) {
        return refuse(
            "\"app\" in [views] must be a short name of lower-case letters, digits and _, beginning with a letter",
        );
    }
    Ok(())
}
