//! Reads the mapping table: the one that the target writes with [`crossfade_connector::WriteMode::InsertOnce`].

use super::{SqliteSink, own, writer::Writer};
use crate::client::{failure, is_rejection, quoted};
use crossfade_connector::{Failure, MappingEntry};
use crossfade_event::TableName;

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

impl SqliteSink {
    /// Puts the keys of rows that were born on the new side into the mapping; what is there already stays, if it is the same.
    ///
    /// # Errors
    /// `Halt` where somebody has given one of the keys away by hand.
    pub async fn adopt(&mut self, entries: &[MappingEntry]) -> Result<(), Failure> {
        let doing = "putting the keys of rows that were born on the new side into the mapping";
        let entries = entries.to_vec();
        self.call(doing, move |writer| {
            if !writer.looks_at_its_own()? {
                return Err(none());
            }
            let name = quoted(&writer.mapping()?);
            writer.in_transaction(doing, |writer| {
                let put = format!(
                    "INSERT INTO {name} (table_name, old_id, new_id) VALUES (?1, ?2, ?3) \
                     ON CONFLICT (table_name, old_id) DO NOTHING"
                );
                let same = format!("SELECT 1 FROM {name} WHERE table_name = ?1 AND old_id = ?2 AND new_id = ?3");
                let advice = "Somebody has written the mapping table by hand: look for the key with `crossfade mapping \
                              lookup`, and put it right";
                let connection = writer.connection()?;
                for entry in &entries {
                    let pair = (&entry.table_name, &entry.old_id, &entry.new_id);
                    let put = connection.prepare_cached(&put).and_then(|mut put| put.execute(pair));
                    put.map_err(|error| match is_rejection(&error) {
                        true => Failure::halt(doing, "one of the new keys belongs to another old key there", advice),
                        false => failure(doing, error),
                    })?;
                    let is_there = connection.prepare_cached(&same).and_then(|mut same| same.exists(pair));
                    if !is_there.map_err(|error| failure(doing, error))? {
                        return Err(Failure::halt(doing, "one of the old keys has another new key there", advice));
                    }
                }
                Ok(())
            })
        })
        .await
    }

    /// Drops the mapping table, if there is one. Not before everything that asks it has ended.
    ///
    /// # Errors
    /// When the target cannot be written.
    pub async fn drop_mapping(&mut self) -> Result<(), Failure> {
        let doing = "dropping the mapping";
        self.call(doing, move |writer| {
            if !writer.looks_at_its_own()? {
                return Ok(());
            }
            let noted = own::noted(writer.connection()?, &writer.migration, MAPPING);
            let noted = noted.map_err(|error| failure(doing, error))?;
            writer.in_transaction(doing, |writer| {
                let connection = writer.connection()?;
                noted
                    .iter()
                    .try_for_each(|(name, _)| {
                        connection.execute_batch(&format!("DROP TABLE IF EXISTS {}", quoted(name)))?;
                        own::forget(connection, &writer.migration, MAPPING, name)?;
                        own::forget(connection, &writer.migration, "table", name)
                    })
                    .map_err(|error| failure(doing, error))
            })
        })
        .await
    }

    /// Whether a table of ours has rows whose new key, in `column`, the mapping does not know as one of the source's table
    /// `of`. False where there is no mapping.
    ///
    /// # Errors
    /// When the target cannot be asked.
    pub async fn has_unmapped(&mut self, table: &TableName, column: &str, of: &str) -> Result<bool, Failure> {
        let (table, column, of) = (table.clone(), column.to_owned(), of.to_owned());
        self.call("looking for rows that the mapping does not know", move |writer| {
            let doing = format!("looking for rows of {table} that the mapping does not know");
            if !writer.looks_at_its_own()? {
                return Ok(false);
            }
            let noted = own::noted(writer.connection()?, &writer.migration, MAPPING);
            let Some((mapping, _)) = noted.map_err(|error| failure(&*doing, error))?.into_iter().next() else {
                return Ok(false);
            };
            let sql = format!(
                "SELECT EXISTS (SELECT 1 FROM {} t WHERE NOT EXISTS (SELECT 1 FROM {} m WHERE m.table_name = ?1 \
                 AND m.new_id = t.{}))",
                quoted(&table.name),
                quoted(&mapping),
                quoted(&column)
            );
            writer.connection()?.query_row(&sql, [&of], |row| row.get(0)).map_err(|error| failure(doing, error))
        })
        .await
    }
}
