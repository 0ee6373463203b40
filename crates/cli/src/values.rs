//! Rows and keys as people and programs read them. Values are shown only where the command line asks for them.

use crossfade_event::{Cell, Change, ColumnType, Key, Row, TableSchema, codec};
use serde_json::{Map, Value as Json};

/// A key's hash: names a row without showing it.
pub(crate) fn key_hash(key: &Key) -> String {
    format!("{:016x}", key.hash64())
}

/// The key of the row that a change speaks of, as its hash.
pub(crate) fn key_hash_of(schema: &TableSchema, change: &Change) -> Option<String> {
    change.key(schema).as_ref().map(key_hash)
}

/// A row as a JSON object: every value in its text form, NULL as null, an unchanged one as `{"unchanged": true}`;
/// absent ones are left out.
pub(crate) fn row(schema: &TableSchema, row: &Row) -> Json {
    let mut object = Map::new();
    for (column, cell) in schema.columns.iter().zip(row.cells()) {
        let value = match cell {
            Cell::Absent => continue,
            Cell::Unchanged => serde_json::json!({ "unchanged": true }),
            Cell::Null => Json::Null,
            Cell::Bytes(bytes) => Json::String(text(&column.type_, bytes)),
        };
        object.insert(column.name.to_string(), value);
    }
    Json::Object(object)
}

/// A value's text form; its bytes in hex where it has none.
fn text(type_: &ColumnType, bytes: &[u8]) -> String {
    match codec::decode(type_, bytes) {
        Ok(value) => codec::to_text(&value),
        Err(_) => bytes.iter().fold("0x".to_owned(), |mut hex, byte| {
            hex.push_str(&format!("{byte:02x}"));
            hex
        }),
    }
}
