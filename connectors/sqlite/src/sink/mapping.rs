//! Reads the mapping table: the one that the target writes with [`crossfade_connector::WriteMode::InsertOnce`].

use super::{own, writer::Writer};
use crate::client::{failure, quoted};
use crossfade_connector::{Failure, MappingEntry};

/// Under which kind the mapping table is noted among what we made.
pub(super) const MAPPING: &str = "mapping";

pub(super) fn none() -> Failure {
    Failure::misconfigured(
        "reading the mapping",
        "this migration has no mapping table",
        "only re-keyed tables have one",
    )
}

impl Writer {
    /// The mapping table's name, by what was noted when it was made: whoever only looks has prepared nothing.
    fn mapping(&self) -> Result<String, Failure> {
        let noted = own::noted(self.connection()?, &self.migration, MAPPING)
            .map_err(|error| failure("looking for the mapping", error))?;
        noted.into_iter().next().map(|(name, _)| name).ok_or_else(none)
    }

    pub(super) fn mapping_page(
        &self,
        table: Option<&str>,
        after: Option<&MappingEntry>,
        limit: u32,
    ) -> Result<Vec<MappingEntry>, Failure> {
        let sql = format!(
            "SELECT table_name, old_id, new_id, migrated_at FROM {} WHERE (?1 IS NULL OR table_name = ?1)
             AND (?2 IS NULL OR (table_name, old_id) > (?2, ?3)) ORDER BY table_name, old_id LIMIT ?4",
            quoted(&self.mapping()?)
        );
        self.entries(&sql, (table, after.map(|entry| &entry.table_name), after.map(|entry| &entry.old_id), limit))
    }

    pub(super) fn mapping_lookup(&self, id: &str) -> Result<Vec<MappingEntry>, Failure> {
        let sql = format!(
            "SELECT table_name, old_id, new_id, migrated_at FROM {} WHERE old_id = ?1 OR new_id = ?1 ORDER BY table_name, old_id",
            quoted(&self.mapping()?)
        );
        self.entries(&sql, [id])
    }

    fn entries(&self, sql: &str, values: impl rusqlite::Params) -> Result<Vec<MappingEntry>, Failure> {
        let read = |connection: &rusqlite::Connection| {
            let mut statement = connection.prepare_cached(sql)?;
            let text = |row: &rusqlite::Row<'_>, index: usize| -> rusqlite::Result<String> {
                Ok(match row.get_ref(index)? {
                    rusqlite::types::ValueRef::Integer(value) => value.to_string(),
                    rusqlite::types::ValueRef::Real(value) => value.to_string(),
                    rusqlite::types::ValueRef::Text(bytes) | rusqlite::types::ValueRef::Blob(bytes) => {
                        String::from_utf8_lossy(bytes).into_owned()
                    }
                    rusqlite::types::ValueRef::Null => String::new(),
                })
            };
            statement
                .query_map(values, |row| {
                    Ok(MappingEntry {
                        table_name: text(row, 0)?,
                        old_id: text(row, 1)?,
                        new_id: text(row, 2)?,
                        migrated_at: text(row, 3)?,
                    })
                })?
                .collect::<rusqlite::Result<Vec<_>>>()
        };
        read(self.connection()?).map_err(|error| failure("reading the mapping", error))
    }
}
