//! PostgreSQL's names of types, as far as a reader of Debezium's records must understand them.

use crossfade_event::Logical;

/// `timestamp(3) without time zone` as `timestamp without time zone`; a schema in front and quotes are left out.
pub(crate) fn base(name: &str) -> String {
    let lower = name.trim().to_lowercase();
    let plain = match (lower.find('('), lower.find(')')) {
        (Some(from), Some(to)) if from < to => {
            format!("{}{}", lower.get(..from).unwrap_or_default().trim_end(), lower.get(to + 1..).unwrap_or_default())
        }
        _ => lower,
    };
    let last = plain.rsplit('.').next().unwrap_or_default();
    last.trim_matches('"').to_owned()
}

/// What stands in parentheses: `[10, 2]` of `numeric(10,2)`.
pub(crate) fn arguments(name: &str) -> Vec<i64> {
    let inside = name.split_once('(').and_then(|(_, rest)| rest.split_once(')')).map_or("", |(inside, _)| inside);
    inside.split(',').filter_map(|part| part.trim().parse().ok()).collect()
}

/// The type of an array's elements.
pub(crate) fn element(name: &str) -> Option<&str> {
    name.trim().strip_suffix("[]").map(str::trim_end)
}

/// What a type means across systems; a type that is not built in is `Opaque`, but for `citext`.
pub(crate) fn logical(name: &str) -> Logical {
    if element(name).is_some() {
        return Logical::Opaque;
    }
    match base(name).as_str() {
        "bool" | "boolean" => Logical::Bool,
        "int2" | "smallint" => Logical::Int16,
        "int" | "int4" | "integer" => Logical::Int32,
        "int8" | "bigint" => Logical::Int64,
        "float4" | "real" => Logical::Float32,
        "float8" | "double precision" => Logical::Float64,
        "numeric" | "decimal" => Logical::Numeric,
        "text" | "varchar" | "character varying" | "char" | "character" | "bpchar" | "name" | "citext" => Logical::Text,
        "bytea" => Logical::Bytes,
        "date" => Logical::Date,
        "time" | "time without time zone" => Logical::Time,
        "timetz" | "time with time zone" => Logical::TimeTz,
        "timestamp" | "timestamp without time zone" => Logical::Timestamp,
        "timestamptz" | "timestamp with time zone" => Logical::TimestampTz,
        "interval" => Logical::Interval,
        "uuid" => Logical::Uuid,
        "json" => Logical::Json,
        "jsonb" => Logical::Jsonb,
        _ => Logical::Opaque,
    }
}

/// What a column of the target means, by its type's name and by the target's own word. A range is none of its bounds.
pub(crate) fn logical_there(name: &str, there: Logical) -> Logical {
    let base = base(name);
    if base.ends_with("range") || element(name).is_some() {
        return Logical::Opaque;
    }
    match logical(name) {
        // A domain means what its base means.
        Logical::Opaque => there,
        known => known,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_postgresql_writes_them() {
        assert_eq!(base("timestamp(3) without time zone"), "timestamp without time zone");
        assert_eq!(base("public.\"hstore\""), "hstore");
        assert_eq!(arguments("numeric(10,2)"), [10, 2]);
        assert_eq!(arguments("text"), Vec::<i64>::new());
        assert_eq!(element("character varying(20)[]"), Some("character varying(20)"));
        assert_eq!(logical("character varying(20)"), Logical::Text);
        assert_eq!(logical("integer[]"), Logical::Opaque);
        assert_eq!(logical("timestamp(0) with time zone"), Logical::TimestampTz);
        assert_eq!(logical("inet"), Logical::Opaque);
        assert_eq!(logical_there("int4range", Logical::Int32), Logical::Opaque);
        assert_eq!(logical_there("email", Logical::Text), Logical::Text);
    }
}
