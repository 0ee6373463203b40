//! All schemas of a log.

use crate::LogError;
use crossfade_event::{SchemaVersion, TableId, TableSchema};
use std::{collections::BTreeMap, sync::Arc};

/// All schemas of a log.
#[derive(Debug, Clone, Default)]
pub struct Schemas(BTreeMap<(TableId, SchemaVersion), Arc<TableSchema>>);

impl Schemas {
    /// One of them.
    pub fn get(&self, table: TableId, version: SchemaVersion) -> Option<Arc<TableSchema>> {
        self.0.get(&(table, version)).cloned()
    }

    /// The latest of every table, sorted by table.
    pub fn latest(&self) -> Vec<Arc<TableSchema>> {
        let mut latest: BTreeMap<TableId, Arc<TableSchema>> = BTreeMap::new();
        for ((table, _), schema) in &self.0 {
            latest.insert(*table, schema.clone());
        }
        latest.into_values().collect()
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Arc<TableSchema>> {
        self.0.values()
    }

    /// Takes a schema; `false` when it was there already.
    ///
    /// # Errors
    /// When another one is there by this name: schemas never change.
    pub fn insert(&mut self, schema: &Arc<TableSchema>) -> Result<bool, LogError> {
        match self.0.get(&(schema.id, schema.version)) {
            None => {
                self.0.insert((schema.id, schema.version), schema.clone());
                Ok(true)
            }
            Some(known) if known == schema => Ok(false),
            Some(known) => Err(LogError::Contract(format!(
                "schema {} of {} (table {}) was seen before, and was another one",
                schema.version.0, known.name, schema.id.0
            ))),
        }
    }

    /// Forgets one that was taken back.
    pub fn remove(&mut self, table: TableId, version: SchemaVersion) {
        self.0.remove(&(table, version));
    }
}
