//! A table that is copied anew is emptied first, and then it is as if it had just been made: without its keys, its
//! constraints and its indexes, for the rows of a copy come from different moments. All of it is made again once the
//! rows are in ([`super::finish`]).

use super::{
    link::{Link, Param},
    table::Table,
};
use crate::client::{failure, quote_ident};
use crossfade_connector::{Failure, WriteMode};

/// Keys and foreign keys, of the table and to it, that are its own and not a partitioned parent's.
const CONSTRAINTS: &str = "
    SELECT c.conrelid::regclass::text, c.conname::text, n.nspname::text, r.relname::text
    FROM pg_constraint c JOIN pg_class r ON r.oid = c.conrelid JOIN pg_namespace n ON n.oid = r.relnamespace
    WHERE c.conparentid = 0 AND c.conislocal
      AND ((c.conrelid = ($2::text)::regclass AND c.contype IN ('p', 'u')) OR (c.contype = 'f'
        AND (c.conrelid = ($2::text)::regclass OR c.confrelid = ($2::text)::regclass)))
      AND EXISTS (SELECT FROM crossfade.objects o WHERE o.migration = $1 AND o.schema = n.nspname AND o.name = r.relname
        AND o.kind IN ('table', 'constraint'))
    ORDER BY c.contype = 'f' DESC";

const INDEXES: &str = "
    SELECT i.indexrelid::regclass::text FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
    WHERE i.indrelid = ($1::text)::regclass AND NOT c.relispartition
      AND NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conindid = i.indexrelid AND k.contype IN ('p', 'u', 'x'))";

/// Takes away what we made of keys, constraints and indexes; in the open transaction.
pub(super) async fn strip(link: &mut Link, migration: &str, table: &mut Table) -> Result<(), Failure> {
    if !table.made || table.target.mode != WriteMode::Table {
        return Ok(());
    }
    let name = table.target.schema.name.clone();
    let doing = format!("making {name} ready to be copied anew");
    let constraints = link.query(&doing, CONSTRAINTS, &[&migration, &table.quoted]).await?;
    for row in &constraints {
        let (of, constraint): (&str, &str) = (row.get(0), row.get(1));
        let sql = format!("ALTER TABLE {of} DROP CONSTRAINT IF EXISTS {}", quote_ident(constraint)?);
        link.execute(&doing, &sql).await?;
        let sql = "DELETE FROM crossfade.objects WHERE migration = $1 AND kind = 'constraint' AND schema = $2 \
                   AND name = $3 AND part = $4";
        let params = [migration, row.get(2), row.get(3), constraint].map(Param::text).to_vec();
        link.run(&doing, sql, params).await?;
    }
    let indexes = link.query(&doing, INDEXES, &[&table.quoted]).await?;
    for row in &indexes {
        link.execute(&doing, &format!("DROP INDEX IF EXISTS {}", row.get::<_, &str>(0))).await?;
    }
    let sql = "DELETE FROM crossfade.objects WHERE migration = $1 AND kind = 'index' AND schema = $2 AND name = $3";
    link.run(&doing, sql, [migration, &name.schema, &name.name].map(Param::text).to_vec()).await?;
    table.look_at_indexes(link).await
}

/// Empties tables of ours: at once, or row by row where something outside the migration refers to them.
pub(super) async fn empty(link: &Link, tables: &[String]) -> Result<(), Failure> {
    let list = tables.join(", ");
    let doing = format!("emptying {list}");
    link.execute(&doing, "SAVEPOINT emptying").await?;
    let sql = match link.session.batch_execute(&format!("TRUNCATE {list}")).await {
        Ok(()) => "RELEASE SAVEPOINT emptying".to_owned(),
        Err(error) if matches!(error.code().map(|code| code.code()), Some("0A000" | "42501")) => {
            let deletes: String = tables.iter().rev().map(|name| format!("DELETE FROM {name};")).collect();
            format!("ROLLBACK TO SAVEPOINT emptying; {deletes} RELEASE SAVEPOINT emptying")
        }
        Err(error) => return Err(failure(doing, error)),
    };
    link.execute(&doing, &sql).await
}
