//! The schema that Kafka Connect's JSON converter writes beside a record.

use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;

/// A schema, or one field of a struct.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct Schema {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    #[serde(default)]
    pub(crate) optional: bool,
    /// The logical type, `io.debezium.time.Date` for one.
    pub(crate) name: Option<String>,
    #[serde(default)]
    pub(crate) parameters: BTreeMap<String, String>,
    /// The field's name, within a struct.
    pub(crate) field: Option<String>,
    /// Of a struct.
    #[serde(default)]
    pub(crate) fields: Vec<Schema>,
    /// Of an array.
    pub(crate) items: Option<Box<Schema>>,
    pub(crate) default: Option<Value>,
}

impl Schema {
    /// A struct's field.
    pub(crate) fn get(&self, field: &str) -> Option<&Self> {
        self.fields.iter().find(|schema| schema.field.as_deref() == Some(field))
    }

    /// A parameter that is a number.
    pub(crate) fn number(&self, parameter: &str) -> Option<i64> {
        self.parameters.get(parameter)?.parse().ok()
    }
}
