//! Sentences about what is lost, and about what is not.

use super::{Context, Fidelity, table::Draft};
use crate::{
    rules::KeyMaker,
    types::{Affinity, Modifier, TypeSpec, affinity},
};
use crossfade_event::{Identity, Logical, catalog::Dialect};

/// What a cast loses.
pub(super) fn of_cast(from: &TypeSpec, to: &TypeSpec) -> (Fidelity, String) {
    use Logical::{Date, Float32, Float64, Int16, Int32, Int64, Numeric, Text, Time, Timestamp, TimestampTz};
    let rank = |logical: Logical| match logical {
        Int16 => 1,
        Int32 => 2,
        Int64 => 3,
        _ => 0,
    };
    let what = format!("is cast from {} to {}", from.name, to.name);
    let rounds =
        matches!(to.modifier, Modifier::Numeric { .. } | Modifier::Fraction(_)) && to.modifier != from.modifier;
    match (from.logical, to.logical) {
        (Numeric | Float32 | Float64 | Text | Logical::Dynamic, _) if rounds => (
            Fidelity::LossyBack,
            format!("{what}: rounded as PostgreSQL rounds, and quarantined where it has too many digits"),
        ),
        (Timestamp | TimestampTz | Time, Timestamp | TimestampTz | Time | Date) if rounds || to.logical == Date => {
            (Fidelity::LossyBack, format!("{what}: what is finer is cut off"))
        }
        (a, b) if a == b => (Fidelity::Lossless, format!("{what}; values that do not fit are quarantined")),
        (a, b) if rank(a) > 0 && rank(b) > 0 => {
            let narrows = if rank(b) < rank(a) { "; values that do not fit are quarantined" } else { "" };
            (Fidelity::Lossless, format!("{what}{narrows}"))
        }
        (Int16 | Int32 | Int64 | Logical::Bool | Logical::Uuid | Date | Timestamp | TimestampTz, Text)
        | (Int16 | Int32 | Int64, Numeric)
        | (Float32, Float64) => (Fidelity::Lossless, what),
        (Numeric | Float64, Float32 | Float64) => {
            (Fidelity::LossyBack, format!("{what}: rounded to the nearest float"))
        }
        _ => (
            Fidelity::LossyBack,
            format!("{what}: its spelling is not kept, and what is no {} is quarantined", to.name),
        ),
    }
}

/// What is to be said once all tables are worked out.
pub(super) fn explain(context: &mut Context<'_>, drafts: &[Draft<'_>]) {
    for draft in drafts {
        if context.crosses() {
            crossing(context, draft);
        }
        identity(context, draft);
    }
    let makers: Vec<KeyMaker> = context.domains.makers().map(|maker| maker.make).collect();
    if makers.contains(&KeyMaker::UuidV7) {
        for draft in drafts {
            if context.domains.columns.values().any(|domain| domain.table == draft.source.name && domain.time.is_some())
            {
                let text = "the column that its uuid-v7 keys take their time from must never change in a row";
                context.note(&draft.source.name, None, Fidelity::Advice, text);
            }
        }
    }
}

fn crossing(context: &mut Context<'_>, draft: &Draft<'_>) {
    for work in draft.columns.iter().filter(|work| !work.touched && work.key.is_none()) {
        let Some(def) = work.origin.as_deref().and_then(|origin| draft.source.column(origin)) else { continue };
        let found = match context.options.dialect {
            Dialect::Sqlite => into_sqlite(def.column.type_.logical),
            Dialect::Postgres => into_postgres(&def.column.type_.name),
        };
        if let Some((fidelity, text)) = found {
            let text = text.replace("{}", &work.target.name);
            context.note(&draft.source.name, Some(&def.column.name), fidelity, text);
        }
    }
}

fn into_sqlite(logical: Logical) -> Option<(Fidelity, &'static str)> {
    Some(match logical {
        Logical::Float32 | Logical::Float64 => {
            (Fidelity::Inexact, "becomes REAL, which has no NaN and no -0: such values are quarantined")
        }
        Logical::Numeric => (Fidelity::Lossless, "becomes TEXT, so that every digit is kept; it sorts as text"),
        Logical::Bool => (Fidelity::Lossless, "becomes INTEGER: 0 or 1"),
        Logical::Int16 | Logical::Int32 | Logical::Int64 | Logical::Text | Logical::Bytes => return None,
        _ => (Fidelity::Lossless, "becomes TEXT in PostgreSQL's own spelling"),
    })
}

fn into_postgres(declared: &str) -> Option<(Fidelity, &'static str)> {
    let spec = crate::types::for_sqlite_declared(declared);
    Some(match (affinity(declared), spec.logical) {
        (_, Logical::Date | Logical::Time | Logical::Timestamp | Logical::TimestampTz) => (
            Fidelity::Inexact,
            "becomes {}: values that are no ISO 8601 text are quarantined; cast the column to text to carry them as \
             they are",
        ),
        (_, Logical::Bool) => (Fidelity::Inexact, "becomes {}: values other than 0 and 1 are quarantined"),
        (Affinity::Integer, _) => (Fidelity::Inexact, "becomes {}: values that are no integers are quarantined"),
        (Affinity::Real, _) => (Fidelity::Inexact, "becomes {}: values that are no numbers are quarantined"),
        (Affinity::Text | Affinity::Blob, Logical::Text) => (
            Fidelity::Inexact,
            "becomes {}: values that are no text, and texts with the character NUL, are quarantined",
        ),
        (Affinity::Blob, _) => (Fidelity::Inexact, "becomes {}: values that are no blobs are quarantined"),
        (_, _) => (Fidelity::Inexact, "becomes {}: values that do not fit are quarantined"),
    })
}

fn identity(context: &mut Context<'_>, draft: &Draft<'_>) {
    match draft.source.identity {
        Identity::Key => {}
        Identity::FullRow => {
            let text = "has no key: rows are found again by all their columns";
            context.note(&draft.source.name, None, Fidelity::Advice, text);
        }
        Identity::InsertOnly => {
            let text = "has no key and sends no old rows: only inserts arrive. For updates and deletes give it a primary \
                        key, or ALTER TABLE … REPLICA IDENTITY FULL";
            context.note(&draft.source.name, None, Fidelity::Advice, text);
        }
    }
}
