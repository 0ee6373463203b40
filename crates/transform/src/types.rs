//! Type names in PostgreSQL's and SQLite's words: what they mean, and how one side says what the other means.

use crossfade_event::{ColumnType, Format, Logical, catalog::Dialect, codec};
use std::sync::Arc;

/// What stands in parentheses behind a type's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Modifier {
    None,
    /// `numeric(precision, scale)`
    Numeric {
        precision: u32,
        scale: i32,
    },
    /// `varchar(n)`; `char(n)` pads
    Length {
        characters: usize,
        pads: bool,
    },
    /// `timestamp(p)`: digits of the second's fraction
    Fraction(u32),
}

/// A type that a value can be cast to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TypeSpec {
    pub(crate) name: Arc<str>,
    pub(crate) logical: Logical,
    pub(crate) oid: u32,
    pub(crate) modifier: Modifier,
}

/// PostgreSQL's spellings: what they are called in full, what they mean, and their number.
const KNOWN: [(&str, &str, Logical, u32); 36] = [
    ("bool", "boolean", Logical::Bool, 16),
    ("boolean", "boolean", Logical::Bool, 16),
    ("bytea", "bytea", Logical::Bytes, 17),
    ("int8", "bigint", Logical::Int64, 20),
    ("bigint", "bigint", Logical::Int64, 20),
    ("int2", "smallint", Logical::Int16, 21),
    ("smallint", "smallint", Logical::Int16, 21),
    ("int", "integer", Logical::Int32, 23),
    ("int4", "integer", Logical::Int32, 23),
    ("integer", "integer", Logical::Int32, 23),
    ("text", "text", Logical::Text, 25),
    ("json", "json", Logical::Json, 114),
    ("jsonb", "jsonb", Logical::Jsonb, 3802),
    ("real", "real", Logical::Float32, 700),
    ("float4", "real", Logical::Float32, 700),
    ("float", "double precision", Logical::Float64, 701),
    ("float8", "double precision", Logical::Float64, 701),
    ("double precision", "double precision", Logical::Float64, 701),
    ("char", "character", Logical::Text, 1042),
    ("character", "character", Logical::Text, 1042),
    ("varchar", "character varying", Logical::Text, 1043),
    ("character varying", "character varying", Logical::Text, 1043),
    ("date", "date", Logical::Date, 1082),
    ("time", "time without time zone", Logical::Time, 1083),
    ("time without time zone", "time without time zone", Logical::Time, 1083),
    ("timestamp", "timestamp without time zone", Logical::Timestamp, 1114),
    ("timestamp without time zone", "timestamp without time zone", Logical::Timestamp, 1114),
    ("timestamptz", "timestamp with time zone", Logical::TimestampTz, 1184),
    ("timestamp with time zone", "timestamp with time zone", Logical::TimestampTz, 1184),
    ("interval", "interval", Logical::Interval, 1186),
    ("timetz", "time with time zone", Logical::TimeTz, 1266),
    ("time with time zone", "time with time zone", Logical::TimeTz, 1266),
    ("numeric", "numeric", Logical::Numeric, 1700),
    ("decimal", "numeric", Logical::Numeric, 1700),
    ("dec", "numeric", Logical::Numeric, 1700),
    ("uuid", "uuid", Logical::Uuid, 2950),
];

/// Words that SQLite's tables use for a type with 64 bits or for what PostgreSQL calls otherwise.
const SQLITE_WORDS: [(&str, &str); 10] = [
    ("integer", "bigint"),
    ("int", "bigint"),
    ("real", "double precision"),
    ("double", "double precision"),
    ("blob", "bytea"),
    ("clob", "text"),
    ("datetime", "timestamp"),
    ("nvarchar", "text"),
    ("tinyint", "smallint"),
    ("mediumint", "integer"),
];

impl TypeSpec {
    /// Reads a type's name in PostgreSQL's words; a name that it does not know is a type of the user's own. `None`
    /// when the name or its modifier is no type at all.
    pub(crate) fn postgres(name: &str) -> Option<Self> {
        let (base, arguments, tail) = split(name)?;
        let words = if tail.is_empty() { base.clone() } else { format!("{base} {tail}") };
        let Some((_, full, logical, oid)) = KNOWN.into_iter().find(|(word, ..)| *word == words) else {
            return Some(Self {
                name: Arc::from(name.trim()),
                logical: Logical::Opaque,
                oid: 0,
                modifier: Modifier::None,
            });
        };
        let modifier = modifier(full, logical, &arguments)?;
        Some(Self { name: Arc::from(spell(full, &arguments)), logical, oid, modifier })
    }

    /// Reads a type's name in the words of the sink: SQLite's own words mean what SQLite means by them.
    pub(crate) fn parse(name: &str, dialect: Dialect) -> Option<Self> {
        let (base, ..) = split(name)?;
        let word = SQLITE_WORDS.into_iter().find(|(word, _)| dialect == Dialect::Sqlite && *word == base);
        Self::postgres(word.map_or(name, |(_, meaning)| meaning))
    }

    /// The type of a cell's bytes once it is written in PostgreSQL.
    pub(crate) fn postgres_column(&self) -> ColumnType {
        let format = if codec::has_binary(self.logical) { Format::PgBinary } else { Format::PgText };
        ColumnType { name: self.name.clone(), native_id: self.oid, logical: self.logical, format }
    }

    /// The type of a cell's bytes once it is written in the sink.
    pub(crate) fn column(&self, dialect: Dialect) -> ColumnType {
        match dialect {
            Dialect::Postgres => self.postgres_column(),
            Dialect::Sqlite => sqlite_column(declared(self.logical)),
        }
    }
}

/// `numeric(5,2)` as `numeric`, `[5, 2]` and nothing; `timestamp(3) with time zone` as `timestamp`, `[3]` and the rest.
fn split(name: &str) -> Option<(String, Vec<i64>, String)> {
    let lower = name.trim().to_lowercase();
    let Some((base, rest)) = lower.split_once('(') else {
        return (!lower.is_empty()).then_some((lower, Vec::new(), String::new()));
    };
    let (inside, tail) = rest.split_once(')')?;
    let arguments: Option<Vec<i64>> = inside.split(',').map(|part| part.trim().parse().ok()).collect();
    Some((base.trim().to_owned(), arguments?, tail.trim().to_owned()))
}

fn modifier(full: &str, logical: Logical, arguments: &[i64]) -> Option<Modifier> {
    Some(match (logical, arguments) {
        (Logical::Text, []) if full == "character" => Modifier::Length { characters: 1, pads: true },
        (_, []) => Modifier::None,
        (Logical::Numeric, [precision]) => Modifier::Numeric {
            precision: u32::try_from(*precision).ok().filter(|p| (1..=1000).contains(p))?,
            scale: 0,
        },
        (Logical::Numeric, [precision, scale]) => Modifier::Numeric {
            precision: u32::try_from(*precision).ok().filter(|p| (1..=1000).contains(p))?,
            scale: i32::try_from(*scale).ok().filter(|s| (-1000..=1000).contains(s))?,
        },
        (Logical::Text, [characters]) if full != "text" => {
            let characters = usize::try_from(*characters).ok().filter(|n| (1..=10_485_760).contains(n))?;
            Modifier::Length { characters, pads: full == "character" }
        }
        (Logical::Time | Logical::TimeTz | Logical::Timestamp | Logical::TimestampTz | Logical::Interval, [digits]) => {
            Modifier::Fraction(u32::try_from(*digits).ok().filter(|digits| *digits <= 6)?)
        }
        _ => return None,
    })
}

fn spell(full: &str, arguments: &[i64]) -> String {
    if arguments.is_empty() {
        // A bare `char` is a `char(1)`.
        return if full == "character" { "character(1)".to_owned() } else { full.to_owned() };
    }
    let list = arguments.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    match full.split_once(' ') {
        Some((first, rest)) if first != "character" => format!("{first}({list}) {rest}"),
        _ => format!("{full}({list})"),
    }
}

/// A column of a SQLite table.
pub(crate) fn sqlite_column(declared: &str) -> ColumnType {
    ColumnType { name: Arc::from(declared), native_id: 0, logical: Logical::Dynamic, format: Format::Tagged }
}

/// What a SQLite column is declared as, so that it keeps the value exactly as we write it.
fn declared(logical: Logical) -> &'static str {
    match logical {
        Logical::Bool | Logical::Int16 | Logical::Int32 | Logical::Int64 => "INTEGER",
        Logical::Float32 | Logical::Float64 => "REAL",
        Logical::Bytes => "BLOB",
        Logical::Dynamic => "",
        _ => "TEXT",
    }
}

/// SQLite's rule for what a declared type prefers (<https://www.sqlite.org/datatype3.html>, 3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Affinity {
    Integer,
    Text,
    Blob,
    Real,
    Numeric,
}

pub(crate) fn affinity(declared: &str) -> Affinity {
    let upper = declared.to_uppercase();
    let has = |word: &str| upper.contains(word);
    if has("INT") {
        Affinity::Integer
    } else if has("CHAR") || has("CLOB") || has("TEXT") {
        Affinity::Text
    } else if has("BLOB") || upper.is_empty() {
        Affinity::Blob
    } else if has("REAL") || has("FLOA") || has("DOUB") {
        Affinity::Real
    } else {
        Affinity::Numeric
    }
}

/// The PostgreSQL type for a SQLite column, by its declared type; what its values may be otherwise is refused one by
/// one.
pub(crate) fn for_sqlite_declared(declared: &str) -> TypeSpec {
    let lower = declared.trim().to_lowercase();
    let base = lower.split('(').next().unwrap_or_default().trim().to_owned();
    let exact = match base.as_str() {
        "bool" | "boolean" => Some("boolean"),
        "date" => Some("date"),
        "datetime" | "timestamp" => Some("timestamp"),
        "timestamptz" => Some("timestamptz"),
        "time" => Some("time"),
        "json" => Some("json"),
        "jsonb" => Some("jsonb"),
        "uuid" => Some("uuid"),
        _ => None,
    };
    let name = exact.unwrap_or(match affinity(declared) {
        Affinity::Integer => "bigint",
        Affinity::Text => "text",
        Affinity::Blob if base.is_empty() => "text",
        Affinity::Blob => "bytea",
        Affinity::Real => "double precision",
        Affinity::Numeric => "numeric",
    });
    TypeSpec::postgres(name).unwrap_or(TypeSpec {
        name: Arc::from("text"),
        logical: Logical::Text,
        oid: 25,
        modifier: Modifier::None,
    })
}

/// The type of a source's column in the sink, when nothing is done to it.
pub(crate) fn carried(type_: &ColumnType, source: Dialect, sink: Dialect) -> ColumnType {
    match (source, sink) {
        (Dialect::Postgres, Dialect::Postgres) | (Dialect::Sqlite, Dialect::Sqlite) => type_.clone(),
        (Dialect::Postgres, Dialect::Sqlite) => sqlite_column(declared(type_.logical)),
        (Dialect::Sqlite, Dialect::Postgres) => for_sqlite_declared(&type_.name).postgres_column(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modifiers_are_read_and_spelled_in_full() {
        let numeric = TypeSpec::postgres("NUMERIC( 5, 2 )").unwrap();
        assert_eq!((&*numeric.name, numeric.modifier), ("numeric(5,2)", Modifier::Numeric { precision: 5, scale: 2 }));
        assert_eq!(&*TypeSpec::postgres("varchar(20)").unwrap().name, "character varying(20)");
        assert_eq!(&*TypeSpec::postgres("timestamp(3) with time zone").unwrap().name, "timestamp(3) with time zone");
        assert_eq!(&*TypeSpec::postgres("timestamptz(3)").unwrap().name, "timestamp(3) with time zone");
        assert_eq!(TypeSpec::postgres("numeric(0)"), None);
        assert_eq!(TypeSpec::postgres("text(5)"), None);
        assert_eq!(TypeSpec::postgres("public.mood").unwrap().logical, Logical::Opaque);
        assert_eq!(TypeSpec::postgres("text[]").unwrap().logical, Logical::Opaque);
    }

    #[test]
    fn sqlites_integer_has_64_bits() {
        assert_eq!(TypeSpec::parse("INTEGER", Dialect::Sqlite).unwrap().logical, Logical::Int64);
        assert_eq!(TypeSpec::parse("INTEGER", Dialect::Postgres).unwrap().logical, Logical::Int32);
    }

    #[test]
    fn affinities_follow_sqlites_rules() {
        for (declared, expected) in [
            ("INTEGER", "bigint"),
            ("CHARINT", "bigint"),
            ("VARCHAR(20)", "text"),
            ("", "text"),
            ("BLOB", "bytea"),
            ("FLOAT", "double precision"),
            ("DECIMAL(10,2)", "numeric"),
            ("BOOLEAN", "boolean"),
            ("DATETIME", "timestamp without time zone"),
        ] {
            assert_eq!(&*for_sqlite_declared(declared).name, expected, "{declared}");
        }
    }
}
