//! Sequences: the new side's go on past whatever the old side has given out, with a margin.

use super::SwitchEnd;
use crate::{client::failure, quote_table, sink::ddl};
use crossfade_connector::{Failure, Target};
use crossfade_event::catalog::Catalog;

impl SwitchEnd {
    /// The catalog with what each of its sequences has given out by now.
    ///
    /// # Errors
    /// When a sequence has gone.
    pub async fn with_last_values(&mut self, mut catalog: Catalog) -> Result<Catalog, Failure> {
        let doing = "reading how far the sequences have come";
        let names: Vec<String> = catalog
            .sequences
            .iter()
            .map(|sequence| quote_table(&sequence.name).map(|name| name.as_str().to_owned()))
            .collect::<Result<_, _>>()?;
        let sql = "SELECT pg_catalog.pg_sequence_last_value(s.name::pg_catalog.regclass) \
             FROM pg_catalog.unnest($1::text[]) WITH ORDINALITY AS s(name, n) ORDER BY s.n";
        let rows = self.session().await?.query(sql, &[&names]).await.map_err(|error| failure(doing, error))?;
        for (sequence, row) in catalog.sequences.iter_mut().zip(&rows) {
            sequence.last_value = row.get(0);
        }
        Ok(catalog)
    }

    /// Carries the values over, past whatever the tables hold, and never backwards.
    ///
    /// # Errors
    /// When a sequence cannot be set.
    pub async fn carry_sequences(&mut self, target: &Target) -> Result<(), Failure> {
        for sequence in &target.support.sequences {
            if let Some(sql) = ddl::sequence_value(target, sequence)? {
                self.execute(&format!("setting the sequence {}", sequence.name), &sql).await?;
            }
        }
        Ok(())
    }
}
