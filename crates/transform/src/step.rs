//! The steps of a table's rule. Each is a small TOML table that names its verb by its key:
//! `{ rename = "a", to = "b" }`.

use crate::suggest::suggestion;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, de::Error};
use serde_json::{Map, Value as Json};
use std::collections::BTreeMap;

/// One step.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(untagged)]
#[schemars(untagged)]
pub enum Step {
    /// Another name for a column.
    Rename(Rename),
    /// A path of a JSON column into a column.
    Extract(Extract),
    /// Another type.
    Cast(Cast),
    /// The same value in every row.
    Constant(Constant),
    /// Columns that do not go on.
    Drop(DropColumns),
    /// Only rows for which a condition is true.
    Filter(Filter),
    /// Some values become NULL.
    NullIf(NullIf),
    /// Values take the place of others.
    MapValues(MapValues),
    /// One text into several columns.
    Split(Split),
    /// Several columns into one text.
    Merge(Merge),
    /// Columns of another table of the source.
    Lookup(Lookup),
    /// A text that can no longer be read.
    Mask(MaskColumn),
    /// A hash of some columns, versioned and normalised.
    CanonicalKey(CanonicalKey),
    /// A column into a JSON column.
    Pack(Pack),
}

macro_rules! steps {
    ($($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* })*) => {
        $($(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
        #[serde(deny_unknown_fields)]
        pub struct $name { $($(#[$field_doc])* pub $field: $type,)* })*
    };
}

steps! {
    /// `{ rename = "a", to = "b" }`
    Rename {
        /// The column.
        rename: String,
        /// Its new name.
        to: String,
    }
    /// `{ extract = "enrichment", path = "$.source_ip", to = "source_ip" }`
    Extract {
        /// The JSON column.
        extract: String,
        /// `$.a.b[0]` or `$['a b']`.
        path: String,
        /// The column that takes it: a new one, or one that is there.
        to: String,
        /// The type of a new column; `text` unless said otherwise.
        #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
        type_: Option<String>,
        /// Leave values that are there already.
        #[serde(default)]
        keep_existing: bool,
    }
    /// `{ cast = "risk_score", to = "numeric(5,2)" }`
    Cast {
        /// The column.
        cast: String,
        /// Its new type, in PostgreSQL's words (or SQLite's, for a SQLite sink).
        to: String,
    }
    /// `{ constant = "eu", to = "region", type = "text" }`
    Constant {
        /// The value.
        constant: Literal,
        /// The column that takes it: a new one, or one that is there.
        to: String,
        /// The type of a new column.
        #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
        type_: Option<String>,
    }
    /// `{ drop = "attachment" }` or `{ drop = ["a", "b"] }`
    DropColumns {
        /// The columns.
        drop: OneOrMany,
    }
    /// `{ filter = "org_id = 'acme'" }`
    Filter {
        /// The condition, in the subset of SQL that `docs/guide/filters.md` describes.
        filter: String,
    }
    /// `{ null_if = "country", any_of = ["XX", "--", ""] }`
    NullIf {
        /// The column.
        null_if: String,
        /// The values.
        any_of: Vec<Literal>,
    }
    /// `{ map_values = "state", with = { new = "open", done = "closed" }, otherwise = "other" }`
    MapValues {
        /// The column.
        map_values: String,
        /// Old values and new ones.
        with: BTreeMap<String, Literal>,
        /// What takes the place of all other values; they stay as they are where this is left out.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        otherwise: Option<Literal>,
    }
    /// `{ split = "full_name", by = " ", into = ["first", "last"] }`
    Split {
        /// The column.
        split: String,
        /// What stands between the parts.
        by: String,
        /// The new columns; the last one takes the rest.
        into: Vec<String>,
        /// Whether the old column stays.
        #[serde(default)]
        keep: bool,
    }
    /// `{ merge = ["first", "last"], with = " ", to = "full_name" }`
    Merge {
        /// The columns.
        merge: Vec<String>,
        /// What goes between them.
        with: String,
        /// The new column.
        to: String,
        /// Whether the old columns stay.
        #[serde(default)]
        keep: bool,
    }
    /// `{ lookup = "public.ip_inventory", on = { ip_address = "source_ip" }, take = { country = "geo_country" } }`
    Lookup {
        /// The other table of the source.
        lookup: String,
        /// Its key columns, and ours that hold the key.
        on: BTreeMap<String, String>,
        /// Our columns, and its ones that fill them.
        take: BTreeMap<String, String>,
        /// Leave values that are there already.
        #[serde(default)]
        keep_existing: bool,
        /// Whether a change of the other row rewrites ours. Not built yet: only `false`.
        #[serde(default)]
        refresh: bool,
    }
    /// `{ mask = "email", with = "hmac" }`
    MaskColumn {
        /// The column.
        mask: String,
        /// How.
        with: Mask,
    }
    /// `{ canonical_key = "canonical_key", of = ["field", "value"], version = 2, normalise = ["trim", "lower"] }`
    CanonicalKey {
        /// The new column.
        canonical_key: String,
        /// The columns whose values are hashed, in this order.
        of: Vec<KeyPart>,
        /// The version of the key: part of what is hashed.
        #[serde(default = "first_version")]
        version: u32,
        /// How each value is normalised that says nothing of its own, in this order.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        normalise: Vec<Normalise>,
    }
    /// `{ pack = "canonical_key", into = "properties", path = "$.canonical_key" }`
    Pack {
        /// The column.
        pack: String,
        /// The `jsonb` column that takes it.
        into: String,
        /// Where: `$.name`, a member of the document itself; the column's own name unless said.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        path: Option<String>,
        /// Whether the column stays.
        #[serde(default)]
        keep: bool,
    }
}

/// A part of a canonical key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(untagged)]
#[schemars(untagged)]
pub enum KeyPart {
    /// A column.
    Column(String),
    /// A column that is normalised in a way of its own.
    Normalised(NormalisedPart),
}

/// `{ column = "value", normalise = ["email"] }`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NormalisedPart {
    /// The column.
    pub column: String,
    /// How its value is normalised, in this order.
    pub normalise: Vec<Normalise>,
}

impl<'de> Deserialize<'de> for KeyPart {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Json::deserialize(deserializer)? {
            Json::String(column) => Ok(Self::Column(column)),
            Json::Object(part) => serde_json::from_value(Json::Object(part))
                .map(Self::Normalised)
                .map_err(|error| D::Error::custom(error.to_string())),
            _ => Err(D::Error::custom("a part of a key is a column's name, or { column = …, normalise = […] }")),
        }
    }
}

impl KeyPart {
    /// The column, and how its value is normalised where the step says `otherwise`.
    pub(crate) fn read<'p>(&'p self, otherwise: &'p [Normalise]) -> (&'p str, &'p [Normalise]) {
        match self {
            Self::Column(column) => (column, otherwise),
            Self::Normalised(part) => (&part.column, &part.normalise),
        }
    }
}

fn first_version() -> u32 {
    1
}

/// How a text is hidden.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Mask {
    /// HMAC-SHA-256 with the migration's secret, as hexadecimal digits: equal values stay equal.
    Hmac,
    /// As many stars as there are characters.
    Stars,
    /// NULL.
    Null,
}

/// One way to make spellings of a value alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Normalise {
    /// White space at both ends goes.
    Trim,
    /// Every run of white space becomes one space.
    Collapse,
    /// Unicode's lower case.
    Lower,
    /// Unicode NFC.
    Nfc,
    /// Unicode NFKC.
    Nfkc,
    /// An e-mail address: white space at both ends goes, NFC, lower case.
    Email,
    /// A telephone number: its digits, with `+` in front where it has `+` or `00` there; a text without a digit stays.
    Phone,
    /// A decimal number: no `+`, no zeros in front, none behind the point; what is none stays.
    Number,
}

/// A name or a list of names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum OneOrMany {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

impl OneOrMany {
    /// All of them.
    pub fn names(&self) -> &[String] {
        match self {
            Self::One(name) => std::slice::from_ref(name),
            Self::Many(names) => names,
        }
    }
}

/// A value written in the spec.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(untagged)]
#[schemars(untagged)]
pub enum Literal {
    /// true or false
    Bool(bool),
    /// A number, as written
    Number(#[schemars(with = "f64")] String),
    /// A text
    Text(String),
}

impl Literal {
    /// Its text form, from which it is cast to a column's type.
    pub fn text(&self) -> &str {
        match self {
            Self::Bool(true) => "true",
            Self::Bool(false) => "false",
            Self::Number(text) | Self::Text(text) => text,
        }
    }
}

impl<'de> Deserialize<'de> for Literal {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Json::deserialize(deserializer)? {
            Json::Bool(value) => Ok(Self::Bool(value)),
            Json::Number(number) => Ok(Self::Number(number.to_string())),
            Json::String(text) => Ok(Self::Text(text)),
            _ => Err(D::Error::custom("a value must be a text, a number, true or false")),
        }
    }
}

const VERBS: [&str; 14] = [
    "rename",
    "extract",
    "cast",
    "constant",
    "drop",
    "filter",
    "null_if",
    "map_values",
    "split",
    "merge",
    "lookup",
    "mask",
    "canonical_key",
    "pack",
];

impl<'de> Deserialize<'de> for Step {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let fields = Map::<String, Json>::deserialize(deserializer)?;
        let verbs: Vec<&str> = VERBS.into_iter().filter(|verb| fields.contains_key(*verb)).collect();
        let verb = match verbs.as_slice() {
            [verb] => *verb,
            [] => {
                let first = fields.keys().next().map_or("", String::as_str);
                let near = suggestion(first, VERBS);
                return Err(D::Error::custom(format!(
                    "no step is called `{first}`{near}; a step is one of {}",
                    VERBS.join(", ")
                )));
            }
            several => {
                return Err(D::Error::custom(format!("one step cannot be two: {}", several.join(" and "))));
            }
        };
        let fields = Json::Object(fields);
        match verb {
            "rename" => serde_json::from_value(fields).map(Self::Rename),
            "extract" => serde_json::from_value(fields).map(Self::Extract),
            "cast" => serde_json::from_value(fields).map(Self::Cast),
            "constant" => serde_json::from_value(fields).map(Self::Constant),
            "drop" => serde_json::from_value(fields).map(Self::Drop),
            "filter" => serde_json::from_value(fields).map(Self::Filter),
            "null_if" => serde_json::from_value(fields).map(Self::NullIf),
            "map_values" => serde_json::from_value(fields).map(Self::MapValues),
            "split" => serde_json::from_value(fields).map(Self::Split),
            "merge" => serde_json::from_value(fields).map(Self::Merge),
            "lookup" => serde_json::from_value(fields).map(Self::Lookup),
            "mask" => serde_json::from_value(fields).map(Self::Mask),
            "pack" => serde_json::from_value(fields).map(Self::Pack),
            _ => serde_json::from_value(fields).map(Self::CanonicalKey),
        }
        .map_err(|error| D::Error::custom(error.to_string()))
    }
}
