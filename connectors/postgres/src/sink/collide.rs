//! Two old keys that became one new key: the mapping table refuses the second one.
//!
//! Its unique constraint on the new key is made once the load is in, for its values come in no order and would make every
//! row of the load dearer. From then on the server itself refuses a doubled new key, and the change that brought it goes
//! to quarantine with the row that it is of. What came twice before the constraint stood (in the load, or into a target of
//! an earlier release) is found as it is made: the old key that was written first keeps the new one, the others go to
//! quarantine by name. Of the rows themselves the first written one stands too ([`super::finish`]), and a row is written in
//! one delivery with its entry, so that mapping and row agree. A table of somebody else's, which has its key all the while,
//! keeps the last one: there `verify` names the row.

use super::{
    apply::OnError,
    finish::{self, Making},
    link::{Link, Param, Raw},
    make, quarantine, record,
    table::Table,
};
use crate::client::failure;
use crossfade_connector::{COLLISION, Failure, WriteMode};
use crossfade_event::{Cell, Change, Op, Row, catalog::KeyDef};

/// Collisions that are taken out with one statement.
const COLLISIONS: i64 = 1000;

/// Makes the constraint of every mapping table of ours that lacks it; true when keys are held since.
pub(super) async fn make_injective(
    link: &mut Link,
    migration: &str,
    tables: &[Table],
    on_error: OnError,
) -> Result<bool, Failure> {
    let mut held = false;
    // In an open transaction a refused constraint would take the rows along: the next start makes it.
    if link.open {
        return Ok(held);
    }
    for table in tables.iter().filter(|table| table.made && table.target.mode == WriteMode::InsertOnce) {
        for key in &table.target.def.uniques {
            if let Some(making) = finish::missing_unique(link, migration, &table.target, key).await? {
                held |= make_one(link, migration, table, key, &making, on_error).await?;
            }
        }
    }
    Ok(held)
}

async fn make_one(
    link: &mut Link,
    migration: &str,
    table: &Table,
    key: &KeyDef,
    making: &Making,
    on_error: OnError,
) -> Result<bool, Failure> {
    let doing = format!("making the unique constraint {} of {}", key.name, table.target.schema.name);
    match link.session.batch_execute(&making.both()).await {
        Ok(()) => Ok(false),
        Err(error) if error.code().is_none_or(|code| code.code() != "23505") => {
            make::run_noted(link, &doing, &making.sql, &making.note).await.map(|()| false)
        }
        Err(error) if on_error == OnError::Stop => Err(Failure::halt(
            doing,
            failure("two old keys became one new key", error),
            "Find them with GROUP BY new_id, table_name in the mapping table; change what makes the keys in the spec, or set on_error = \"quarantine\"",
        )),
        Err(_) => {
            link.execute(&doing, "BEGIN").await?;
            match set_aside(link, migration, table, key, making, &doing).await {
                Ok(()) => link.execute(&doing, "COMMIT").await.map(|()| true),
                Err(failure) => {
                    // The failure is what counts; a session that cannot roll back is closed by it.
                    let _ = link.execute(&doing, "ROLLBACK").await;
                    Err(failure)
                }
            }
        }
    }
}

/// Moves what is there twice to quarantine, and makes the constraint.
async fn set_aside(
    link: &mut Link,
    migration: &str,
    table: &Table,
    key: &KeyDef,
    making: &Making,
    doing: &str,
) -> Result<(), Failure> {
    let schema = &table.target.schema;
    let shape = quarantine::note_shape(link, migration, schema).await?;
    let reason =
        format!("duplicate key value violates unique constraint \"{}\": two old keys became one new key", key.name);
    let sql = "SELECT coalesce(max(ordinal) + 1, 0) FROM crossfade.quarantine WHERE migration = $1 AND log_offset = 0 AND table_id = $2";
    let first = link.query(doing, sql, &[&migration, &i64::from(schema.id.0)]).await?;
    let mut ordinal: i64 = first.first().map_or(0, |row| row.get(0));
    let take = link.bind(&table.collisions_sql(key)?, vec![Param::i64(COLLISIONS)]).await?;
    loop {
        let rows = link.rows(doing, take.clone()).await?;
        if rows.is_empty() {
            return link.execute(doing, &making.both()).await;
        }
        for row in rows {
            let cells: Vec<Raw> = (0..row.len()).map(|index| row.get(index)).collect();
            let row: Row = cells.iter().map(|raw| raw.0.as_deref().map_or(Cell::Null, Cell::Bytes)).collect();
            let change = Change { table: schema.id, schema: schema.version, op: Op::Insert, old: None, new: Some(row) };
            let key = change.key(schema);
            let hash = key.as_ref().map_or_else(String::new, |key| format!("{:016x}", key.hash64()));
            // It stands before every place in the log: it may have come with any row since the beginning.
            let sql = "INSERT INTO crossfade.quarantine (migration, log_offset, ordinal, table_id, table_schema, table_name, \
                       key, key_hash, kind, origin, reason, shape, change) \
                       VALUES ($1, 0, $2, $3, $4, $5, $6, $7, $8, 'sink', $9, $10, $11)";
            let params = vec![
                Param::text(migration),
                Param::i64(ordinal),
                Param::i64(i64::from(schema.id.0)),
                Param::text(&schema.name.schema),
                Param::text(&schema.name.name),
                key.map_or(Param::Null, |key| Param::Bytes(key.as_bytes().clone())),
                Param::text(&hash),
                Param::text(COLLISION),
                Param::text(&reason),
                Param::i64(shape),
                Param::Bytes(record::encode(&change)),
            ];
            link.run(doing, sql, params).await?;
            ordinal += 1;
        }
    }
}
