//! The shape of one table as SQLite's pragmas tell it.

use crate::{client::is_internal, switch::VIEW};
use crossfade_event::{Column, ColumnType, Format, Identity, Logical, SchemaVersion, TableId, TableName, TableSchema};
use rusqlite::Connection;

/// How SQLite converts what is written to a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Affinity {
    Integer,
    Text,
    Blob,
    Real,
    Numeric,
}

impl Affinity {
    /// The rules of <https://sqlite.org/datatype3.html>, section 3.1.
    pub(crate) fn of(declared: &str, strict: bool) -> Self {
        let declared = declared.to_ascii_uppercase();
        let has = |word: &str| declared.contains(word);
        if strict && declared == "ANY" {
            Self::Blob
        } else if has("INT") {
            Self::Integer
        } else if has("CHAR") || has("CLOB") || has("TEXT") {
            Self::Text
        } else if declared.is_empty() || has("BLOB") {
            Self::Blob
        } else if has("REAL") || has("FLOA") || has("DOUB") {
            Self::Real
        } else {
            Self::Numeric
        }
    }
}

impl Affinity {
    /// Whether a column that converts like this leaves alone what was converted like `other`.
    pub(crate) fn keeps(self, other: Self) -> bool {
        let whole = |affinity| matches!(affinity, Self::Integer | Self::Numeric);
        self == Self::Blob || self == other || (whole(self) && whole(other))
    }
}

/// A column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ColumnShape {
    pub(crate) name: String,
    pub(crate) declared: String,
    pub(crate) not_null: bool,
    pub(crate) default: Option<String>,
    /// Its place in the primary key, from one; zero outside it.
    pub(crate) primary: u16,
    pub(crate) generated: bool,
    pub(crate) affinity: Affinity,
}

impl ColumnShape {
    /// The declared type for a column of a plain table that converts nothing else: `ANY` means another thing there.
    pub(crate) fn travels_as(&self) -> &str {
        let any_of_strict = self.affinity == Affinity::Blob && self.declared.eq_ignore_ascii_case("ANY");
        if any_of_strict { "BLOB" } else { &self.declared }
    }
}

/// One element of an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct IndexPart {
    /// The column; `None` for the rowid and for an expression.
    pub(crate) column: Option<String>,
    pub(crate) collation: String,
    pub(crate) descending: bool,
}

/// An index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct IndexShape {
    pub(crate) name: String,
    pub(crate) unique: bool,
    /// `c` made by CREATE INDEX, `u` by a UNIQUE constraint, `pk` by the primary key.
    pub(crate) origin: String,
    pub(crate) partial: bool,
    pub(crate) parts: Vec<IndexPart>,
    pub(crate) sql: Option<String>,
}

impl IndexShape {
    /// True when every element is a plain column.
    pub(crate) fn is_plain(&self) -> bool {
        self.parts.iter().all(|part| part.column.is_some())
    }
}

/// A table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TableShape {
    pub(crate) name: String,
    pub(crate) sql: String,
    pub(crate) columns: Vec<ColumnShape>,
    pub(crate) without_rowid: bool,
    pub(crate) strict: bool,
    pub(crate) virtual_: bool,
    pub(crate) indexes: Vec<IndexShape>,
}

impl TableShape {
    /// Reads it; `None` when there is no such table.
    pub(crate) fn read(connection: &Connection, name: &str) -> rusqlite::Result<Option<Self>> {
        let head = connection
            .prepare_cached(
                "SELECT l.name, l.type, l.wr, l.strict, s.sql FROM pragma_table_list l
                 JOIN main.sqlite_schema s ON s.name = l.name AND s.type = 'table'
                 WHERE l.schema = 'main' AND l.name = ?1 COLLATE NOCASE",
            )?
            .query_row([name], |row| {
                Ok((
                    row.get::<_, String>(0)?,
                    row.get::<_, String>(1)?,
                    row.get::<_, bool>(2)?,
                    row.get::<_, bool>(3)?,
                    row.get::<_, String>(4)?,
                ))
            });
        let (name, kind, without_rowid, strict, sql) = match head {
            Ok(head) => head,
            Err(rusqlite::Error::QueryReturnedNoRows) => return Ok(None),
            Err(error) => return Err(error),
        };
        let columns = read_columns(connection, &name, strict)?;
        let indexes = read_indexes(connection, &name)?;
        Ok(Some(Self { name, sql, columns, without_rowid, strict, virtual_: kind != "table", indexes }))
    }

    /// The columns that rows carry.
    pub(crate) fn carried(&self) -> impl Iterator<Item = &ColumnShape> {
        self.columns.iter().filter(|column| !column.generated)
    }

    /// The names of the primary key's columns, in its order.
    pub(crate) fn primary_key(&self) -> Vec<&str> {
        let mut found: Vec<_> = self
            .columns
            .iter()
            .filter(|column| column.primary > 0)
            .map(|column| (column.primary, &*column.name))
            .collect();
        found.sort_unstable();
        found.into_iter().map(|(_, name)| name).collect()
    }

    /// The column that is the rowid under another name (`INTEGER PRIMARY KEY`).
    pub(crate) fn rowid_column(&self) -> Option<&ColumnShape> {
        // `INTEGER PRIMARY KEY DESC` is no such column, by an old mistake that SQLite keeps: it has an index instead.
        if self.without_rowid || self.indexes.iter().any(|index| index.origin == "pk") {
            return None;
        }
        let mut primary = self.columns.iter().filter(|column| column.primary > 0);
        let only = primary.next()?;
        (primary.next().is_none() && only.declared.eq_ignore_ascii_case("INTEGER")).then_some(only)
    }

    /// A name under which the rowid can be asked for; `None` without one, or when columns hide all of its names.
    pub(crate) fn rowid_name(&self) -> Option<String> {
        if self.without_rowid {
            return None;
        }
        if let Some(column) = self.rowid_column() {
            return Some(column.name.clone());
        }
        ["rowid", "_rowid_", "oid"]
            .into_iter()
            .find(|alias| !self.columns.iter().any(|column| column.name.eq_ignore_ascii_case(alias)))
            .map(str::to_owned)
    }

    /// The columns that identify a row: the primary key's, or else those of a unique index without NULLs.
    pub(crate) fn key(&self) -> Vec<&str> {
        let primary = self.primary_key();
        if !primary.is_empty() {
            return primary;
        }
        let mut candidates: Vec<&IndexShape> = self
            .indexes
            .iter()
            .filter(|index| index.unique && !index.partial && index.is_plain())
            .filter(|index| {
                index.parts.iter().filter_map(|part| part.column.as_deref()).all(|name| {
                    self.columns.iter().any(|column| column.name == name && column.not_null && !column.generated)
                })
            })
            .collect();
        candidates.sort_by_key(|index| (index.parts.len(), index.name.clone()));
        candidates
            .first()
            .map(|index| index.parts.iter().filter_map(|part| part.column.as_deref()).collect())
            .unwrap_or_default()
    }

    /// Whether no two rows share these columns.
    pub(crate) fn is_unique(&self, columns: &[&str]) -> bool {
        let mut rowid = self.rowid_column().map(|column| vec![column.name.as_str()]).into_iter();
        let plain = self.indexes.iter().filter(|index| index.unique && !index.partial && index.is_plain());
        let mut of_indexes = plain.map(|index| index.parts.iter().filter_map(|part| part.column.as_deref()).collect());
        let is_it = |parts: Vec<&str>| {
            parts.len() == columns.len() && columns.iter().all(|one| parts.iter().any(|p| p.eq_ignore_ascii_case(one)))
        };
        rowid.any(is_it) || of_indexes.any(is_it)
    }

    /// The collation by which the key's index compares a key column.
    pub(crate) fn key_collation(&self, name: &str) -> String {
        self.indexes
            .iter()
            .filter(|index| index.unique)
            .filter(|index| {
                let parts: Vec<_> = index.parts.iter().filter_map(|part| part.column.as_deref()).collect();
                index.is_plain() && parts == self.key()
            })
            .flat_map(|index| &index.parts)
            .find(|part| part.column.as_deref() == Some(name))
            .map_or_else(|| "BINARY".to_owned(), |part| part.collation.clone())
    }

    /// The shape as it travels with rows. Column numbers are kept from a shape before, with the names that its columns
    /// have now.
    pub(crate) fn schema(
        &self,
        id: TableId,
        version: SchemaVersion,
        before: Option<(&TableSchema, &[String])>,
    ) -> TableSchema {
        let key = self.key();
        let numbers = self.numbers(before);
        let columns: Vec<Column> = self
            .carried()
            .zip(numbers)
            .map(|(column, native_id)| {
                let place = key.iter().position(|name| *name == column.name).map(|place| place as u16);
                Column {
                    name: column.name.as_str().into(),
                    type_: ColumnType {
                        name: column.travels_as().into(),
                        native_id: 0,
                        logical: Logical::Dynamic,
                        format: Format::Tagged,
                    },
                    key: place,
                    nullable: !column.not_null && place.is_none(),
                    native_id,
                    default: column.default.as_deref().map(Into::into),
                }
            })
            .collect();
        let identity = if key.is_empty() { Identity::FullRow } else { Identity::Key };
        TableSchema { id, version, name: TableName::new("main", self.name.as_str()), columns, identity, native_id: 0 }
    }

    fn numbers(&self, before: Option<(&TableSchema, &[String])>) -> Vec<u32> {
        let Some((before, names_now)) = before else { return (1..=self.carried().count() as u32).collect() };
        let mut next = before.columns.iter().map(|column| column.native_id).max().unwrap_or(0);
        self.carried()
            .map(|column| {
                let place = names_now.iter().position(|name| name.eq_ignore_ascii_case(&column.name));
                place.and_then(|place| before.columns.get(place)).map_or_else(
                    || {
                        next += 1;
                        next
                    },
                    |old| old.native_id,
                )
            })
            .collect()
    }
}

fn read_columns(connection: &Connection, table: &str, strict: bool) -> rusqlite::Result<Vec<ColumnShape>> {
    let mut statement = connection.prepare_cached(
        "SELECT name, type, \"notnull\", dflt_value, pk, hidden FROM pragma_table_xinfo(?1) WHERE hidden <> 1 ORDER BY cid",
    )?;
    let rows = statement.query_map([table], |row| {
        let declared: String = row.get(1)?;
        Ok(ColumnShape {
            name: row.get(0)?,
            affinity: Affinity::of(&declared, strict),
            declared,
            not_null: row.get(2)?,
            default: row.get(3)?,
            primary: row.get(4)?,
            generated: row.get::<_, i64>(5)? >= 2,
        })
    })?;
    rows.collect()
}

fn read_indexes(connection: &Connection, table: &str) -> rusqlite::Result<Vec<IndexShape>> {
    let mut statement = connection.prepare_cached(
        "SELECT l.name, l.\"unique\", l.origin, l.partial, s.sql FROM pragma_index_list(?1) l
         LEFT JOIN main.sqlite_schema s ON s.name = l.name AND s.type = 'index' ORDER BY l.name",
    )?;
    let mut indexes: Vec<IndexShape> = statement
        .query_map([table], |row| {
            Ok(IndexShape {
                name: row.get(0)?,
                unique: row.get(1)?,
                origin: row.get(2)?,
                partial: row.get(3)?,
                parts: Vec::new(),
                sql: row.get(4)?,
            })
        })?
        .collect::<rusqlite::Result<_>>()?;
    let mut parts = connection
        .prepare_cached("SELECT name, coll, \"desc\" FROM pragma_index_xinfo(?1) WHERE key = 1 ORDER BY seqno")?;
    for index in &mut indexes {
        index.parts = parts
            .query_map([&index.name], |row| {
                Ok(IndexPart {
                    column: row.get(0)?,
                    collation: row.get::<_, Option<String>>(1)?.unwrap_or_else(|| "BINARY".to_owned()),
                    descending: row.get(2)?,
                })
            })?
            .collect::<rusqlite::Result<_>>()?;
    }
    Ok(indexes)
}

/// The names of all tables that a pattern could mean, and of views, which it must not.
pub(crate) fn names(connection: &Connection) -> rusqlite::Result<Vec<(String, bool)>> {
    let mut statement = connection.prepare_cached(
        "SELECT name, type = 'view' FROM main.sqlite_schema WHERE type IN ('table', 'view') ORDER BY name",
    )?;
    let all = statement.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, bool>(1)?)))?;
    Ok(all
        .collect::<rusqlite::Result<Vec<_>>>()?
        .into_iter()
        .filter(|(name, view)| !(is_internal(name) || *view && name.eq_ignore_ascii_case(VIEW)))
        .collect())
}

/// Whether patterns (`schema.table` or `table`, with `*` and `?`; `!` in front excludes; later ones win) take a table.
pub(crate) fn matches(patterns: &[String], name: &str) -> bool {
    let full = format!("main.{name}");
    patterns.iter().fold(false, |taken, pattern| {
        let (wanted, pattern) = pattern.strip_prefix('!').map_or((true, &**pattern), |rest| (false, rest));
        if glob(pattern, &full) || glob(pattern, name) { wanted } else { taken }
    })
}

/// Whether one pattern, without its `!`, means this table.
pub(crate) fn glob(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    let (mut p, mut t, mut star) = (0, 0, None);
    while t < text.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(c) if *c == '?' || Some(c) == text.get(t) => {
                p += 1;
                t += 1;
            }
            _ => match star {
                Some((at, from)) => {
                    star = Some((at, from + 1));
                    p = at + 1;
                    t = from + 1;
                }
                None => return false,
            },
        }
    }
    pattern.get(p..).is_some_and(|rest| rest.iter().all(|c| *c == '*'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(sql: &str) -> TableShape {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(sql).unwrap();
        TableShape::read(&connection, "t").unwrap().unwrap()
    }

    #[test]
    fn the_rowid_has_the_name_that_the_table_gives_it() {
        assert_eq!(shape("CREATE TABLE t (id INTEGER PRIMARY KEY)").rowid_name().as_deref(), Some("id"));
        assert_eq!(shape("CREATE TABLE t (id INT PRIMARY KEY)").rowid_name().as_deref(), Some("rowid"));
        assert_eq!(shape("CREATE TABLE t (id INTEGER PRIMARY KEY DESC)").rowid_name().as_deref(), Some("rowid"));
        assert_eq!(shape("CREATE TABLE t (rowid, oid)").rowid_name().as_deref(), Some("_rowid_"));
        assert_eq!(shape("CREATE TABLE t (id INTEGER PRIMARY KEY) WITHOUT ROWID").rowid_name(), None);
    }

    #[test]
    fn a_unique_index_without_nulls_serves_as_key() {
        assert_eq!(shape("CREATE TABLE t (a, b NOT NULL UNIQUE)").key(), ["b"]);
        assert!(shape("CREATE TABLE t (a, b UNIQUE)").key().is_empty());
        assert_eq!(shape("CREATE TABLE t (a, b, PRIMARY KEY (b, a))").key(), ["b", "a"]);
    }

    #[test]
    fn a_renamed_column_keeps_its_number_and_an_added_one_gets_a_new_one() {
        let before =
            shape("CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT)").schema(TableId(1), SchemaVersion(1), None);
        let after = shape("CREATE TABLE t (id INTEGER PRIMARY KEY, b TEXT, c)").schema(
            TableId(1),
            SchemaVersion(2),
            Some((&before, &["id".to_owned(), "b".to_owned()])),
        );
        assert_eq!(after.columns.iter().map(|column| column.native_id).collect::<Vec<_>>(), [1, 2, 3]);
    }

    #[test]
    fn columns_that_exchange_their_names_keep_their_numbers() {
        let before = shape("CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT, b TEXT)");
        let before = before.schema(TableId(1), SchemaVersion(1), None);
        let after = shape("CREATE TABLE t (id INTEGER PRIMARY KEY, b TEXT, A TEXT)");
        let names_now = ["id", "b", "A"].map(str::to_owned);
        let after = after.schema(TableId(1), SchemaVersion(2), Some((&before, &names_now)));
        assert_eq!(after.columns.iter().map(|column| column.native_id).collect::<Vec<_>>(), [1, 2, 3]);
    }

    #[test]
    fn any_of_a_strict_table_converts_nothing_in_a_plain_one() {
        let strict = shape("CREATE TABLE t (id INTEGER PRIMARY KEY, x ANY) STRICT");
        let schema = strict.schema(TableId(1), SchemaVersion(1), None);
        assert_eq!(Affinity::of(&schema.columns[1].type_.name, false), Affinity::Blob);
        let plain = shape("CREATE TABLE t (id INTEGER PRIMARY KEY, x ANY)").schema(TableId(1), SchemaVersion(1), None);
        assert_eq!(Affinity::of(&plain.columns[1].type_.name, false), Affinity::Numeric);
    }

    #[test]
    fn later_patterns_win() {
        let patterns = ["main.*".to_owned(), "!main.tmp_?".to_owned(), "tmp_x".to_owned()];
        assert!(matches(&patterns, "orders"));
        assert!(!matches(&patterns, "tmp_a"));
        assert!(matches(&patterns, "tmp_x"));
        assert!(glob("a*b*c", "aXXbYYc") && !glob("a*b*c", "aXXbYY"));
    }
}
