//! The schemas that Kafka Connect's JSON converter reads beside a record, and those of the topic of transactions.

use super::{
    form::{Form, string},
    prepared::{Group, View, told_name},
};
use crate::source::{
    types,
    wire::{Unit, Wire},
};
use crossfade_event::{Logical, TableSchema};
use std::fmt::Write as _;

/// What a topic's records tell of a table.
pub(super) struct Fields<'a> {
    pub(super) schema: &'a TableSchema,
    pub(super) forms: &'a [Form],
    pub(super) groups: &'a [Group],
    pub(super) view: View,
}

impl Fields<'_> {
    fn one(&self, index: usize, optional: bool) -> Option<String> {
        let (column, form) = (self.schema.columns.get(index)?, self.forms.get(index)?);
        Some(field(&form.wire, &column.type_.name, optional, Some(told_name(&column.name, self.view))))
    }

    /// The fields of a record's key or image: those of the only group, or one for each group.
    fn all(&self, what: &str, topic: &str, of: impl Fn(&Group) -> Vec<String>) -> String {
        let fields: Vec<String> = self
            .groups
            .iter()
            .flat_map(|group| match group.name {
                None => of(group),
                Some(name) => vec![format!(
                    "{{\"type\":\"struct\",\"fields\":[{}],\"optional\":false,\"name\":{},\"field\":\"{name}\"}}",
                    of(group).join(","),
                    quoted(&format!("{topic}.{name}.{what}"))
                )],
            })
            .collect();
        fields.join(",")
    }
}

/// Of a record's key.
pub(super) fn key_schema(fields: &Fields<'_>, topic: &str) -> String {
    let of = |group: &Group| group.key.iter().filter_map(|index| fields.one(*index, false)).collect();
    format!(
        "{{\"type\":\"struct\",\"fields\":[{}],\"optional\":false,\"name\":{}}}",
        fields.all("Key", topic, of),
        quoted(&format!("{topic}.Key"))
    )
}

/// Of a record's value. In the image before, all but the key may be missing.
pub(super) fn value_schema(fields: &Fields<'_>, topic: &str) -> String {
    let image = |name: &str, is_before: bool| {
        let of = |group: &Group| {
            let one = |index: usize| {
                let nullable = fields.schema.columns.get(index).is_none_or(|column| column.nullable);
                fields.one(index, nullable || (is_before && !group.key.contains(&index)))
            };
            group.columns.clone().filter_map(one).collect()
        };
        format!(
            "{{\"type\":\"struct\",\"fields\":[{}],\"optional\":true,\"name\":{},\"field\":\"{name}\"}}",
            fields.all("Value", topic, of),
            quoted(&format!("{topic}.Value"))
        )
    };
    format!(
        "{{\"type\":\"struct\",\"fields\":[{},{},{SOURCE},{BLOCK},{},{},{},{}],\"optional\":false,\"name\":{},\"version\":2}}",
        image("before", true),
        image("after", false),
        plain("string", false, "op"),
        plain("int64", true, "ts_ms"),
        plain("int64", true, "ts_us"),
        plain("int64", true, "ts_ns"),
        quoted(&format!("{topic}.Envelope"))
    )
}

const SOURCE: &str = r#"{"type":"struct","fields":[{"type":"string","optional":false,"field":"version"},{"type":"string","optional":false,"field":"connector"},{"type":"string","optional":false,"field":"name"},{"type":"int64","optional":false,"field":"ts_ms"},{"type":"string","optional":true,"name":"io.debezium.data.Enum","version":1,"parameters":{"allowed":"true,first,first_in_data_collection,last_in_data_collection,last,false,incremental"},"default":"false","field":"snapshot"},{"type":"string","optional":false,"field":"db"},{"type":"string","optional":true,"field":"sequence"},{"type":"int64","optional":true,"field":"ts_us"},{"type":"int64","optional":true,"field":"ts_ns"},{"type":"string","optional":false,"field":"schema"},{"type":"string","optional":false,"field":"table"},{"type":"int64","optional":true,"field":"txId"},{"type":"int64","optional":true,"field":"lsn"},{"type":"int64","optional":true,"field":"xmin"},{"type":"string","optional":true,"field":"origin"},{"type":"int64","optional":true,"field":"origin_lsn"}],"optional":false,"name":"io.debezium.connector.postgresql.Source","version":1,"field":"source"}"#;

const BLOCK: &str = r#"{"type":"struct","fields":[{"type":"string","optional":false,"field":"id"},{"type":"int64","optional":false,"field":"total_order"},{"type":"int64","optional":false,"field":"data_collection_order"}],"optional":true,"name":"event.block","version":1,"field":"transaction"}"#;

/// Of the key of a transaction's mark.
pub(super) const MARK_KEY: &str = r#"{"type":"struct","fields":[{"type":"string","optional":false,"field":"id"}],"optional":false,"name":"io.debezium.connector.common.TransactionMetadataKey","version":1}"#;

/// Of a transaction's mark.
pub(super) const MARK: &str = r#"{"type":"struct","fields":[{"type":"string","optional":false,"field":"status"},{"type":"string","optional":false,"field":"id"},{"type":"int64","optional":true,"field":"event_count"},{"type":"array","items":{"type":"struct","fields":[{"type":"string","optional":false,"field":"data_collection"},{"type":"int64","optional":false,"field":"event_count"}],"optional":true,"name":"event.collection","version":1},"optional":true,"field":"data_collections"},{"type":"int64","optional":false,"field":"ts_ms"}],"optional":false,"name":"io.debezium.connector.common.TransactionMetadataValue","version":1}"#;

fn quoted(text: &str) -> String {
    let mut out = String::new();
    string(text, &mut out);
    out
}

fn plain(kind: &str, optional: bool, field: &str) -> String {
    format!("{{\"type\":\"{kind}\",\"optional\":{optional},\"field\":\"{field}\"}}")
}

/// One field of a struct, or the items of an array.
fn field(wire: &Wire, type_: &str, optional: bool, name: Option<&str>) -> String {
    let base = types::base(type_);
    let arguments = types::arguments(type_);
    let mut out = String::from("{");
    let (kind, logical): (&str, Option<&str>) = match wire {
        Wire::Bool => ("boolean", None),
        Wire::Int => match types::logical(type_) {
            Logical::Int16 => ("int16", None),
            Logical::Int32 => ("int32", None),
            _ => ("int64", None),
        },
        Wire::Float32 => ("float", None),
        Wire::Float64 | Wire::DecimalDouble => ("double", None),
        Wire::Text => match base.as_str() {
            "uuid" => ("string", Some("io.debezium.data.Uuid")),
            "json" | "jsonb" => ("string", Some("io.debezium.data.Json")),
            "xml" => ("string", Some("io.debezium.data.Xml")),
            "ltree" => ("string", Some("io.debezium.data.Ltree")),
            "tsvector" => ("string", Some("io.debezium.data.Tsvector")),
            _ => ("string", None),
        },
        Wire::Base64 => ("bytes", None),
        Wire::Base64UrlSafe | Wire::Hex | Wire::DecimalText => ("string", None),
        Wire::Decimal { .. } => ("bytes", Some("org.apache.kafka.connect.data.Decimal")),
        Wire::VariableDecimal => ("struct", Some("io.debezium.data.VariableScaleDecimal")),
        Wire::Days => ("int32", Some("io.debezium.time.Date")),
        Wire::Time(Unit::Milli) => ("int32", Some("io.debezium.time.Time")),
        Wire::Time(Unit::Micro) => ("int64", Some("io.debezium.time.MicroTime")),
        Wire::Time(Unit::Nano) => ("int64", Some("io.debezium.time.NanoTime")),
        Wire::Timestamp(Unit::Milli) => ("int64", Some("io.debezium.time.Timestamp")),
        Wire::Timestamp(Unit::Micro) => ("int64", Some("io.debezium.time.MicroTimestamp")),
        Wire::Timestamp(Unit::Nano) => ("int64", Some("io.debezium.time.NanoTimestamp")),
        Wire::ZonedTime => ("string", Some("io.debezium.time.ZonedTime")),
        Wire::ZonedTimestamp => ("string", Some("io.debezium.time.ZonedTimestamp")),
        Wire::IsoDate => ("string", Some("io.debezium.time.IsoDate")),
        Wire::IsoTime => ("string", Some("io.debezium.time.IsoTime")),
        Wire::IsoTimestamp => ("string", Some("io.debezium.time.IsoTimestamp")),
        Wire::Duration(_) => ("int64", Some("io.debezium.time.MicroDuration")),
        Wire::AnyInterval | Wire::IsoInterval => ("string", Some("io.debezium.time.Interval")),
        Wire::Bits { .. } => ("bytes", Some("io.debezium.data.Bits")),
        Wire::Point => ("struct", Some("io.debezium.data.geometry.Point")),
        Wire::Geometry => ("struct", Some("io.debezium.data.geometry.Geometry")),
        Wire::Hstore => ("string", Some("io.debezium.data.Json")),
        Wire::Array(_) => ("array", None),
    };
    let _ = write!(out, "\"type\":\"{kind}\"");
    match wire {
        Wire::Array(inside) => {
            let _ = write!(out, ",\"items\":{}", field(inside, types::element(type_).unwrap_or_default(), true, None));
        }
        Wire::VariableDecimal => {
            let _ = write!(out, ",\"fields\":[{},{}]", plain("int32", false, "scale"), plain("bytes", false, "value"));
        }
        Wire::Point => {
            let _ = write!(
                out,
                ",\"fields\":[{},{},{},{}]",
                plain("double", false, "x"),
                plain("double", false, "y"),
                plain("bytes", true, "wkb"),
                plain("int32", true, "srid")
            );
        }
        _ => {}
    }
    let _ = write!(out, ",\"optional\":{optional}");
    if let Some(logical) = logical {
        let _ = write!(out, ",\"name\":\"{logical}\",\"version\":1");
    }
    match (wire, arguments.first()) {
        (Wire::Decimal { scale }, Some(precision)) => {
            let _ =
                write!(out, ",\"parameters\":{{\"scale\":\"{scale}\",\"connect.decimal.precision\":\"{precision}\"}}");
        }
        (Wire::Decimal { scale }, None) => {
            let _ = write!(out, ",\"parameters\":{{\"scale\":\"{scale}\"}}");
        }
        (Wire::Bits { length }, _) => {
            let length = if *length == 0 { i32::MAX as usize } else { *length };
            let _ = write!(out, ",\"parameters\":{{\"length\":\"{length}\"}}");
        }
        _ => {}
    }
    if let Some(name) = name {
        out.push_str(",\"field\":");
        string(name, &mut out);
    }
    out.push('}');
    out
}
