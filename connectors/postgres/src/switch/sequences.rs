//! Sequences: the new side's go on past whatever the old side has given out, with a margin.

use super::SwitchEnd;
use crate::{client::failure, quote_table, sink::ddl};
use crossfade_connector::{Failure, Target};
use crossfade_event::{TableName, catalog::Catalog};

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

    /// How far the sequences behind these columns have come; `None` where there is none, or it has given nothing out. A column
    /// whose sequence is not its own names it.
    ///
    /// # Errors
    /// When a table or a column is not there.
    pub async fn given_out(
        &mut self,
        columns: &[(TableName, String, Option<TableName>)],
    ) -> Result<Vec<Option<i64>>, Failure> {
        let doing = "reading how far the sequences have come";
        let quoted = |name: &TableName| quote_table(name).map(|name| name.as_str().to_owned());
        let tables: Vec<String> = columns.iter().map(|(table, ..)| quoted(table)).collect::<Result<_, _>>()?;
        let names: Vec<&str> = columns.iter().map(|(_, column, _)| column.as_str()).collect();
        let named: Vec<Option<String>> =
            columns.iter().map(|(.., name)| name.as_ref().map(quoted).transpose()).collect::<Result<_, _>>()?;
        let sql = "SELECT pg_catalog.pg_sequence_last_value(COALESCE( \
               pg_catalog.to_regclass(pg_catalog.pg_get_serial_sequence(s.tab, s.col)), pg_catalog.to_regclass(s.named))) \
             FROM ROWS FROM (pg_catalog.unnest($1::text[]), pg_catalog.unnest($2::text[]), pg_catalog.unnest($3::text[])) \
               WITH ORDINALITY AS s(tab, col, named, n) ORDER BY s.n";
        let rows = self.session().await?.query(sql, &[&tables, &names, &named]).await;
        Ok(rows.map_err(|error| failure(doing, error))?.iter().map(|row| row.get(0)).collect())
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
