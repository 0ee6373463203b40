//! The statements of the switch and of the way back: pure, so that they can be shown before they are run.

use super::{Laid, LaidTable, SwapStage, flip_sql, laid::named, store, trigger};
use crate::{quote_ident, quote_literal, quote_table};
use crossfade_connector::Failure;
use crossfade_event::{
    Side, TableName,
    swap::{LEGACY, SwapPair},
};

/// The check that stands for `NOT NULL` until that is proven.
pub(super) fn check_of(column: &str) -> String {
    named(&format!("crossfade_{column}"), "_is_set")
}

/// What is done in the one commit, beside the authority.
pub(super) fn switch(migration: &str, laid: &Laid) -> Result<String, Failure> {
    let mut sql = format!("{}; ", store::move_sql(migration, &[SwapStage::Prepared], SwapStage::Switched));
    // Workers of before are refused from here on.
    sql.push_str(&format!(
        "UPDATE crossfade.positions SET epoch = epoch + 1 WHERE migration = {}; ",
        quote_literal(migration)
    ));
    sql.push_str(&flip_sql(migration, Side::New, true));
    for table in &laid.tables {
        sql.push_str(&renames(table, SwapPair::legacy, |pair| pair.name.clone())?);
    }
    for (number, table) in laid.tables.iter().enumerate() {
        sql.push_str(&settings(table)?);
        sql.push_str(&trigger::up(migration, laid, number)?);
    }
    for table in &laid.tables {
        for foreign in &table.foreign {
            let (quoted, name) = (quote_table(table.name())?, quote_ident(&foreign.new)?);
            sql.push_str(&format!("ALTER TABLE {quoted} ADD CONSTRAINT {name} {} NOT VALID; ", foreign.new_definition));
        }
    }
    Ok(sql)
}

/// Old columns step aside first, so that every name is free when it is taken.
fn renames(
    table: &LaidTable,
    old_to: impl Fn(&SwapPair) -> String,
    new_to: impl Fn(&SwapPair) -> String,
) -> Result<String, Failure> {
    let quoted = quote_table(table.name())?;
    let mut sql = String::new();
    let mut rename = |from: &str, to: &str| -> Result<(), Failure> {
        if from != to {
            let (from, to) = (quote_ident(from)?, quote_ident(to)?);
            sql.push_str(&format!("ALTER TABLE {quoted} RENAME COLUMN {from} TO {to}; "));
        }
        Ok(())
    };
    for pair in &table.swap.pairs {
        rename(&pair.old, &old_to(pair))?;
    }
    for column in &table.swap.dropped {
        rename(column, &format!("{LEGACY}{column}"))?;
    }
    for pair in &table.swap.pairs {
        rename(&pair.shadow, &new_to(pair))?;
    }
    Ok(sql)
}

fn settings(table: &LaidTable) -> Result<String, Failure> {
    let mut sql = String::new();
    let quoted = quote_table(table.name())?;
    for (column, default) in &table.defaults {
        sql.push_str(&format!("ALTER TABLE {quoted} ALTER COLUMN {} SET DEFAULT {default}; ", quote_ident(column)?));
    }
    for column in table.not_null() {
        sql.push_str(&format!(
            "ALTER TABLE {quoted} ADD CONSTRAINT {} CHECK ({} IS NOT NULL) NOT VALID; ",
            quote_ident(&check_of(column))?,
            quote_ident(column)?
        ));
    }
    Ok(sql)
}

/// Once everything is proven: the keys and references are those of the new columns. Catalog only.
pub(super) fn finish(migration: &str, laid: &Laid) -> Result<String, Failure> {
    let mut sql = format!("{}; ", store::move_sql(migration, &[SwapStage::Switched], SwapStage::Finished));
    for table in &laid.tables {
        let quoted = quote_table(table.name())?;
        for foreign in table.foreign.iter().filter(|foreign| !foreign.is_added()) {
            sql.push_str(&format!("ALTER TABLE {quoted} DROP CONSTRAINT {}; ", quote_ident(&foreign.name)?));
        }
    }
    for table in &laid.tables {
        let quoted = quote_table(table.name())?;
        if let Some(key) = &table.primary {
            let (name, index) = (quote_ident(&key.name)?, quote_ident(&key.index)?);
            sql.push_str(&format!(
                "ALTER TABLE {quoted} DROP CONSTRAINT {name}; \
                 ALTER TABLE {quoted} ADD CONSTRAINT {name} PRIMARY KEY USING INDEX {index}; "
            ));
        }
        for foreign in table.foreign.iter().filter(|foreign| !foreign.is_added()) {
            sql.push_str(&format!(
                "ALTER TABLE {quoted} RENAME CONSTRAINT {} TO {}; ",
                quote_ident(&foreign.new)?,
                quote_ident(&foreign.name)?
            ));
        }
    }
    Ok(sql)
}

/// The way back in one commit, beside the authority: the old columns have everything already.
pub(super) fn back(migration: &str, laid: &Laid, stage: SwapStage) -> Result<String, Failure> {
    let finished = stage == SwapStage::Finished;
    let mut sql = format!("{}; ", store::move_sql(migration, &[stage], SwapStage::Returned));
    sql.push_str(&flip_sql(migration, Side::Old, true));
    for (number, table) in laid.tables.iter().enumerate() {
        sql.push_str(&trigger::down(migration, laid, number)?);
        for foreign in &table.foreign {
            let name = if finished { &foreign.name } else { &foreign.new };
            let quoted = quote_table(table.name())?;
            sql.push_str(&format!("ALTER TABLE {quoted} DROP CONSTRAINT {}; ", quote_ident(name)?));
        }
    }
    for table in &laid.tables {
        let quoted = quote_table(table.name())?;
        if let Some(key) = table.primary.as_ref().filter(|_| finished) {
            let (name, index) = (quote_ident(&key.name)?, quote_ident(&key.legacy_index)?);
            sql.push_str(&format!(
                "ALTER TABLE {quoted} DROP CONSTRAINT {name}; \
                 ALTER TABLE {quoted} ADD CONSTRAINT {name} PRIMARY KEY USING INDEX {index}; "
            ));
        }
        if let Some(key) = table.primary.as_ref().filter(|_| !finished) {
            let index = TableName::new(table.name().schema.clone(), key.legacy_index.as_str());
            sql.push_str(&format!("DROP INDEX IF EXISTS {}; ", quote_table(&index)?));
        }
        for column in table.not_null() {
            let (check, column) = (quote_ident(&check_of(column))?, quote_ident(column)?);
            sql.push_str(&format!(
                "ALTER TABLE {quoted} DROP CONSTRAINT IF EXISTS {check}; \
                 ALTER TABLE {quoted} ALTER COLUMN {column} DROP NOT NULL; "
            ));
        }
        for column in table.defaults.keys() {
            sql.push_str(&format!("ALTER TABLE {quoted} ALTER COLUMN {} DROP DEFAULT; ", quote_ident(column)?));
        }
        sql.push_str(&returns(table)?);
    }
    for table in laid.tables.iter().filter(|_| finished) {
        for foreign in table.foreign.iter().filter(|foreign| !foreign.is_added()) {
            let (quoted, name) = (quote_table(table.name())?, quote_ident(&foreign.name)?);
            sql.push_str(&format!("ALTER TABLE {quoted} ADD CONSTRAINT {name} {} NOT VALID; ", foreign.old_definition));
        }
    }
    Ok(sql)
}

/// New columns step aside first.
fn returns(table: &LaidTable) -> Result<String, Failure> {
    let quoted = quote_table(table.name())?;
    let mut sql = String::new();
    let mut rename = |from: &str, to: &str| -> Result<(), Failure> {
        if from != to {
            let (from, to) = (quote_ident(from)?, quote_ident(to)?);
            sql.push_str(&format!("ALTER TABLE {quoted} RENAME COLUMN {from} TO {to}; "));
        }
        Ok(())
    };
    for pair in &table.swap.pairs {
        rename(&pair.name, &pair.shadow)?;
    }
    for pair in &table.swap.pairs {
        rename(&pair.legacy(), &pair.old)?;
    }
    for column in &table.swap.dropped {
        rename(&format!("{LEGACY}{column}"), column)?;
    }
    Ok(sql)
}
