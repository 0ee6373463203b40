//! What takes long is made before anybody waits: the indexes of the new columns, without keeping anybody from writing.

use super::{Laid, LaidIndex, SwapEnd};
use crate::{client::failure, quote_ident, quote_table};
use crossfade_connector::Failure;
use crossfade_event::TableName;

/// The statement that makes an index, and nobody waits for it.
fn make_sql(table: &TableName, index: &LaidIndex) -> Result<String, Failure> {
    let unique = if index.unique { "UNIQUE " } else { "" };
    let (name, table) = (quote_ident(&index.new)?, quote_table(table)?);
    Ok(format!("CREATE {unique}INDEX CONCURRENTLY {name} ON {table} {}", index.using))
}

impl SwapEnd {
    /// The statements by which [`SwapEnd::prepare`] makes what is not there.
    ///
    /// # Errors
    /// For a name that cannot stand in SQL.
    pub fn prepare_sql(laid: &Laid) -> Result<Vec<String>, Failure> {
        let each = laid.tables.iter().flat_map(|table| table.indexes.iter().map(|index| (table.name(), index)));
        each.map(|(table, index)| make_sql(table, index)).collect()
    }

    /// The statements of the commit that switches, but for the authority.
    ///
    /// # Errors
    /// For a name that cannot stand in SQL.
    pub fn switch_sql(&self, laid: &Laid) -> Result<String, Failure> {
        super::sql::switch(&self.migration, laid)
    }

    /// Makes the indexes of the new columns, as far as they are not there, and notes what the switch will do. May be killed
    /// and run again.
    ///
    /// # Errors
    /// `Halt` for an index that the rows do not allow, by name.
    pub async fn prepare(&mut self, laid: &Laid) -> Result<(), Failure> {
        for table in &laid.tables {
            for index in &table.indexes {
                self.index(table.name(), &index.new, &make_sql(table.name(), index)?).await?;
            }
        }
        self.note(laid).await
    }

    /// Makes one index; one that an earlier try has left half made is made anew.
    pub(super) async fn index(&mut self, table: &TableName, name: &str, sql: &str) -> Result<(), Failure> {
        let doing = format!("making the index {name} of {table}");
        match self.index_is(table, name).await? {
            Some(true) => return Ok(()),
            Some(false) => {
                let half = TableName::new(table.schema.clone(), name);
                self.execute(&doing, &format!("DROP INDEX CONCURRENTLY {}", quote_table(&half)?)).await?;
            }
            None => {}
        }
        let made = self.session().await?.batch_execute(sql).await;
        made.map_err(|error| match error.as_db_error().map(|error| error.code().code().to_owned()) {
            Some(code) if code.starts_with("23") || code.starts_with("42") || code.starts_with("22") => {
                let told = error.as_db_error().map_or_else(String::new, |error| error.message().to_owned());
                let advice = "Drop the old index that it is made after, or mend the rows; then ask again";
                Failure::halt(doing, told, advice)
            }
            _ => failure(doing, error),
        })
    }
}
