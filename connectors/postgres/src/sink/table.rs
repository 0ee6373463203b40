//! One table of the target, as this session writes it: its columns as the server has them, and its statements.
//!
//! Every set travels as one parameter: an array of a composite type that is made for the session (`pg_temp.r_N` for
//! whole rows, `pg_temp.k_N` for keys). Its elements are built from the cells' own bytes, so that nothing is decoded on
//! our side, columns that are arrays themselves are no exception, and the server reads a set with one function scan.
//! Domains are taken by their base type, and modifiers (`varchar(20)`) are left to the assignment.

use super::{link::Link, statements::Sql};
use crate::client::{failure, quote_ident, quote_table};
use crossfade_connector::{Failure, TargetTable};
use crossfade_event::{Format, Identity, TableId};
use std::sync::Arc;

/// A composite type of the session.
#[derive(Debug, Clone, Default)]
pub(super) struct Composite {
    /// Its name in SQL.
    pub(super) name: String,
    pub(super) oid: u32,
    /// The types of its fields.
    pub(super) fields: Vec<u32>,
}

/// A column of the target.
#[derive(Debug, Clone)]
pub(super) struct Col {
    /// Its quoted name.
    pub(super) quoted: String,
    /// The type that values are read as: the base type without modifiers, in SQL.
    pub(super) base: String,
    pub(super) base_oid: u32,
    /// Cells come in text form.
    pub(super) text: bool,
    /// The operator by which two of its values are equal, in SQL.
    pub(super) equals: String,
    /// `GENERATED ALWAYS AS IDENTITY`: may be inserted with OVERRIDING, never updated.
    pub(super) always: bool,
}

/// A foreign key to the key of another table of the target.
#[derive(Debug, Clone)]
pub(super) struct Parent {
    pub(super) table: TableId,
    /// Our columns, in the order of the parent's key.
    pub(super) columns: Vec<usize>,
}

/// One table of the target.
#[derive(Debug, Clone)]
pub(super) struct Table {
    pub(super) target: TargetTable,
    pub(super) quoted: String,
    pub(super) columns: Vec<Col>,
    /// Columns of others beside them: their names, quoted names, and base types.
    pub(super) beside: Vec<(String, String, String)>,
    /// Indexes of the key's columns, in the key's order.
    pub(super) key: Vec<usize>,
    /// A unique index stands on exactly the key: `ON CONFLICT` can use it.
    pub(super) arbiter: bool,
    /// No unique index at all: rows of a backfill go straight in.
    pub(super) bulk: bool,
    /// All cells are in binary form: `COPY` takes them as they come.
    pub(super) binary: bool,
    /// What was there before is kept in undo records.
    pub(super) tracked: bool,
    /// We made the table: its keys, indexes and constraints are ours to make too.
    pub(super) made: bool,
    pub(super) parents: Vec<Parent>,
    pub(super) row_type: Composite,
    pub(super) key_type: Composite,
    /// The statements of every delivery; made with the types.
    pub(super) sql: Arc<Sql>,
    /// For so many more deliveries inserts are upserts, for some of their keys were there already.
    pub(super) cautious: u32,
}

const COLUMNS: &str = "
    WITH RECURSIVE base(attnum, oid) AS (
        SELECT a.attnum, a.atttypid FROM pg_attribute a
        WHERE a.attrelid = ($1::text)::regclass AND a.attnum > 0 AND NOT a.attisdropped
        UNION ALL
        SELECT b.attnum, t.typbasetype FROM base b JOIN pg_type t ON t.oid = b.oid WHERE t.typtype = 'd')
    SELECT a.attname::text, t.oid, format_type(t.oid, -1), format_type(a.atttypid, a.atttypmod),
        a.attidentity = 'a', a.attgenerated <> '',
        (SELECT format('OPERATOR(%I.%s)', n.nspname, o.oprname)
         FROM pg_opclass c
         JOIN pg_am m ON m.oid = c.opcmethod AND m.amname = 'btree'
         JOIN pg_amop p ON p.amopfamily = c.opcfamily AND p.amopstrategy = 3
              AND p.amoplefttype = c.opcintype AND p.amoprighttype = c.opcintype
         JOIN pg_operator o ON o.oid = p.amopopr
         JOIN pg_namespace n ON n.oid = o.oprnamespace
         WHERE c.opcdefault AND c.opcintype = t.oid LIMIT 1),
        a.atttypid
    FROM base b JOIN pg_type t ON t.oid = b.oid AND t.typtype <> 'd'
    JOIN pg_attribute a ON a.attnum = b.attnum AND a.attrelid = ($1::text)::regclass
    ORDER BY a.attnum";

const UNIQUES: &str = "
    SELECT i.indimmediate AND i.indpred IS NULL AND i.indisvalid AND i.indexprs IS NULL,
        ARRAY(SELECT a.attname::text FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS k(num, n)
              JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.num
              WHERE k.n <= i.indnkeyatts ORDER BY a.attname)
    FROM pg_index i WHERE i.indrelid = ($1::text)::regclass AND i.indisunique";

impl Table {
    /// Looks a table up in the target. Its composite types are made later, for all tables at once.
    pub(super) async fn resolve(
        link: &mut Link,
        target: &TargetTable,
        made: bool,
        tracked: bool,
    ) -> Result<Self, Failure> {
        let name = &target.schema.name;
        let quoted = quote_table(name)?.as_str().to_owned();
        let doing = format!("looking at the target's table {name}");
        let found = link.query(&doing, COLUMNS, &[&quoted]).await?;
        let mut columns = Vec::with_capacity(target.schema.columns.len());
        for column in &target.schema.columns {
            let row = found.iter().find(|row| row.get::<_, &str>(0) == &*column.name).ok_or_else(|| {
                let told = format!("the table {name} has no column {}", column.name);
                Failure::refused(&doing, told, "Add the column, or let the table be made by dropping it")
            })?;
            if row.get::<_, bool>(5) {
                let told =
                    format!("the column {} of {name} is generated in the target but not in the source", column.name);
                return Err(Failure::refused(&doing, told, "Make it a plain column"));
            }
            let text = match column.type_.format {
                Format::PgBinary => false,
                Format::PgText => true,
                Format::Tagged => {
                    let told = format!("the column {} of {name} comes in SQLite's tagged form", column.name);
                    return Err(Failure::halt(
                        &doing,
                        told,
                        "Give the column a type of its own with a cast in the spec",
                    ));
                }
            };
            let declared: &str = row.get(3);
            let fits = same_type(declared, &column.type_.name)
                || is_type(link, row.get(7), declared, &column.type_.name).await?;
            if !text && !fits {
                let told = format!(
                    "the column {} of {name} is {declared}, the migration needs {}",
                    column.name, column.type_.name
                );
                return Err(Failure::refused(&doing, told, "Change the column's type, or write to another table"));
            }
            columns.push(Col {
                quoted: quote_ident(&column.name)?.as_str().to_owned(),
                base: row.get(2),
                base_oid: row.get(1),
                text,
                equals: row.get::<_, Option<String>>(6).unwrap_or_else(|| "OPERATOR(pg_catalog.=)".to_owned()),
                always: row.get(4),
            });
        }
        let mut beside = Vec::new();
        for row in &found {
            let (name, is_generated): (&str, bool) = (row.get(0), row.get(5));
            if !is_generated && target.schema.column_index(name).is_none() {
                beside.push((name.to_owned(), quote_ident(name)?.as_str().to_owned(), row.get(2)));
            }
        }
        let mut table = Self {
            beside,
            key: if target.schema.identity == Identity::Key { target.schema.key_columns() } else { Vec::new() },
            binary: columns.iter().all(|column| !column.text),
            target: target.clone(),
            quoted,
            columns,
            arbiter: false,
            bulk: false,
            tracked,
            made,
            parents: Vec::new(),
            row_type: Composite::default(),
            key_type: Composite::default(),
            sql: Arc::default(),
            cautious: 0,
        };
        table.look_at_indexes(link).await?;
        Ok(table)
    }

    /// Looks at the unique indexes (again, after some were made).
    pub(super) async fn look_at_indexes(&mut self, link: &mut Link) -> Result<(), Failure> {
        let doing = format!("looking at the indexes of {}", self.target.schema.name);
        let uniques = link.query(&doing, UNIQUES, &[&self.quoted]).await?;
        let mut key: Vec<&str> = self.key_names().collect();
        key.sort_unstable();
        let before = self.arbiter;
        self.arbiter = !key.is_empty()
            && uniques.iter().any(|row| {
                let mut columns: Vec<&str> = row.get(1);
                columns.sort_unstable();
                row.get(0) && columns == key
            });
        self.bulk = uniques.is_empty();
        if before != self.arbiter {
            self.write_sql();
        }
        Ok(())
    }

    pub(super) fn id(&self) -> TableId {
        self.target.schema.id
    }

    fn key_names(&self) -> impl Iterator<Item = &str> {
        self.key.iter().filter_map(|index| self.target.schema.columns.get(*index)).map(|column| &*column.name)
    }

    /// The statements that make the session's composite types, with names that end in `number`.
    pub(super) fn make_types(&mut self, number: u32) -> String {
        let field = |index: usize| match self.columns.get(index) {
            Some(column) if !column.text => (column.base.clone(), column.base_oid),
            _ => ("text".to_owned(), 25),
        };
        let rows: Vec<(String, u32)> = (0..self.columns.len()).chain(self.key.iter().copied()).map(field).collect();
        let keys: Vec<(String, u32)> = self.key.iter().copied().map(field).collect();
        let list = |prefix: char, fields: &[(String, u32)]| {
            let parts: Vec<String> =
                fields.iter().enumerate().map(|(place, (type_, _))| format!("{prefix}{place} {type_}")).collect();
            parts.join(", ")
        };
        let sql = format!(
            "CREATE TYPE pg_temp.r_{number} AS ({}); CREATE TYPE pg_temp.k_{number} AS ({});",
            list('c', &rows),
            list('k', &keys)
        );
        let oids = |fields: Vec<(String, u32)>| fields.into_iter().map(|(_, oid)| oid).collect();
        self.row_type = Composite { name: format!("pg_temp.r_{number}"), oid: 0, fields: oids(rows) };
        self.key_type = Composite { name: format!("pg_temp.k_{number}"), oid: 0, fields: oids(keys) };
        self.write_sql();
        sql
    }
}

/// Makes the composite types of tables that have none yet.
pub(super) async fn make_types(link: &mut Link, tables: &mut [Table]) -> Result<(), Failure> {
    let doing = "making the session's own types (the role needs TEMPORARY on the database)";
    let mut sql = String::new();
    for table in tables.iter_mut().filter(|table| table.row_type.oid == 0) {
        link.next_type += 1;
        sql.push_str(&table.make_types(link.next_type));
    }
    if sql.is_empty() {
        return Ok(());
    }
    link.execute(doing, &sql).await?;
    let sql =
        "SELECT 'pg_temp.' || typname, oid FROM pg_type WHERE typnamespace = pg_my_temp_schema() AND typtype = 'c'";
    let rows = link.query(doing, sql, &[]).await?;
    for row in rows {
        let (name, oid): (String, u32) = (row.get(0), row.get(1));
        for table in tables.iter_mut() {
            for composite in [&mut table.row_type, &mut table.key_type] {
                if composite.name == name {
                    composite.oid = oid;
                }
            }
        }
    }
    Ok(())
}

/// Foreign keys among the tables, for knowing a row whose parent is held.
pub(super) fn link_parents(tables: &mut [Table]) {
    let keys: Vec<(crossfade_event::TableName, TableId, Vec<String>)> = tables
        .iter()
        .map(|table| (table.target.schema.name.clone(), table.id(), table.key_names().map(str::to_owned).collect()))
        .collect();
    for table in tables {
        table.parents = table
            .target
            .def
            .foreign_keys
            .iter()
            .filter_map(|foreign| {
                let (_, parent, key) = keys.iter().find(|(name, _, _)| *name == foreign.references)?;
                let columns: Option<Vec<usize>> = key
                    .iter()
                    .map(|column| {
                        let place = foreign.referenced_columns.iter().position(|referenced| referenced == column)?;
                        table.target.schema.column_index(foreign.columns.get(place)?)
                    })
                    .collect();
                let columns = columns.filter(|columns| !columns.is_empty() && columns.len() == key.len())?;
                Some(Parent { table: *parent, columns })
            })
            .collect();
    }
}

/// Whether two spellings name one type: qualifiers, quotes and spacing may differ.
fn same_type(one: &str, other: &str) -> bool {
    fn bare(text: &str) -> String {
        let head = text.find('(').unwrap_or(text.len());
        let (name, tail) = text.split_at(head);
        let name = name.rsplit('.').next().unwrap_or(name).replace('"', "");
        format!("{name}{tail}").replace(' ', "").to_lowercase()
    }
    bare(one) == bare(other)
}

/// Whether the server knows `wanted` (`varchar(20)`) as the type of that number that it spells `declared`
/// (`character varying(20)`).
async fn is_type(link: &mut Link, oid: u32, declared: &str, wanted: &str) -> Result<bool, Failure> {
    let modifiers = |text: &str| text.find('(').map(|at| text.split_at(at).1.replace(' ', ""));
    // `timestamp(3) with time zone` has words after its modifiers: only the modifiers count here.
    let only = |text: &str| modifiers(text).and_then(|tail| tail.split_once(')').map(|(inside, _)| inside.to_owned()));
    if only(declared) != only(wanted) {
        return Ok(false);
    }
    let doing = "asking the server for a type";
    if link.open {
        link.execute(doing, "SAVEPOINT asking").await?;
    }
    let statement = link.statement("SELECT to_regtype($1)::oid").await.map_err(|error| failure(doing, error))?;
    let asked = link.session.query(&statement, &[&wanted]).await;
    if link.open {
        link.execute(doing, "ROLLBACK TO SAVEPOINT asking; RELEASE SAVEPOINT asking").await?;
    }
    // A word that is no type at all may be an error of the server's parser: then the two differ.
    Ok(asked.unwrap_or_default().first().is_some_and(|row| row.get::<_, Option<u32>>(0) == Some(oid)))
}

#[cfg(test)]
mod tests {
    use super::same_type;

    #[test]
    fn one_type_may_be_spelled_in_several_ways() {
        assert!(same_type("character varying(20)", "CHARACTER VARYING (20)"));
        assert!(same_type("public.citext", "citext"));
        assert!(same_type("\"Odd\".\"Mood\"", "mood"));
        assert!(same_type("numeric(5,2)", "numeric(5, 2)"));
        assert!(!same_type("integer", "bigint"));
        assert!(!same_type("numeric(5,2)", "numeric(6,2)"));
    }
}
