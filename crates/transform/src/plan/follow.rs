//! What a source's table says in words (checks, indexes, computed columns, how it is partitioned) follows its columns:
//! under their new names, and no more where one of them has gone.

use super::{expression::is_same, index};
use crossfade_event::catalog::{Dialect, RelationKind, TableDef};

/// What became of the columns that a table had: by the old name the new one, or `None` where the column has gone.
#[derive(Debug)]
pub struct Became {
    dialect: Dialect,
    columns: Vec<(String, Option<String>)>,
}

impl Became {
    /// Of a table in a database that speaks `dialect`.
    pub fn new(dialect: Dialect, columns: Vec<(String, Option<String>)>) -> Self {
        Self { dialect, columns }
    }

    /// Whether all columns are there and are called what they were called.
    pub fn is_nothing(&self) -> bool {
        self.columns.iter().all(|(old, new)| new.as_ref() == Some(old))
    }

    /// The columns under their names of now; false where one has gone, and then nothing is changed. A name that the table
    /// did not have stays: whoever says it may know of a later shape.
    pub fn rename(&self, columns: &mut [String]) -> bool {
        let now = |column: &String| self.find(column).map_or_else(|| Some(column.clone()), Clone::clone);
        let Some(now) = columns.iter().map(now).collect::<Option<Vec<String>>>() else { return false };
        columns.clone_from_slice(&now);
        true
    }

    /// Brings what the table says in words to the names of now. What cannot follow is taken out of the table, and named.
    pub fn follow(&self, table: &mut TableDef) -> Vec<String> {
        let mut left = Vec::new();
        table.checks.retain_mut(|check| match self.text(&check.expression) {
            Ok(text) => {
                check.expression = text;
                true
            }
            Err(why) => {
                left.extend(why.map(|why| format!("the check {}: {why}", check.name)));
                false
            }
        });
        table.indexes.retain_mut(|def| match index::carried(def, &|name| self.now(name), false, "") {
            Ok(now) => {
                *def = now;
                true
            }
            Err(why) => {
                left.extend(self.told(&why).map(|why| format!("the index {}: {why}", def.name)));
                false
            }
        });
        table.columns.retain_mut(|def| {
            let Some(expression) = def.generated.as_mut() else { return true };
            match self.text(expression) {
                Ok(text) => {
                    *expression = text;
                    true
                }
                Err(why) => {
                    left.extend(why.map(|why| format!("the column {}: {why}", def.column.name)));
                    false
                }
            }
        });
        if let RelationKind::Partitioned { strategy } = &mut table.kind
            && let Ok(text) = self.text(strategy)
        {
            *strategy = text;
        }
        left
    }

    /// The text under the names of now; else why not, where that is not plain: what names a column that has gone went
    /// with it in the source, too.
    fn text(&self, text: &str) -> Result<String, Option<String>> {
        index::Columns(&|name| self.now(name)).unchanged(text).map_err(|why| self.told(&why))
    }

    fn told(&self, why: &index::Left) -> Option<String> {
        (!matches!(why, index::Left::Gone(_))).then(|| match why {
            index::Left::Changed(word) => {
                format!("whether {word} is its column or a word of the language cannot be told")
            }
            other => other.words(),
        })
    }

    fn now(&self, column: &str) -> Option<Option<index::Now>> {
        let now = self.find(column)?;
        Some(now.clone().map(|name| index::Now { name, retyped: false, changed: false, ordered: true }))
    }

    fn find(&self, column: &str) -> Option<&Option<String>> {
        self.columns.iter().find(|(old, _)| is_same(self.dialect, old, column)).map(|(_, now)| now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossfade_event::{
        Column, ColumnType, Format, Identity, Logical, TableName,
        catalog::{CheckDef, ColumnDef, IndexDef},
    };

    fn column(name: &str, generated: Option<&str>) -> ColumnDef {
        let type_ = ColumnType { name: "text".into(), native_id: 25, logical: Logical::Text, format: Format::PgText };
        let column = Column { name: name.into(), type_, key: None, nullable: true, native_id: 0, default: None };
        ColumnDef { generated: generated.map(str::to_owned), ..ColumnDef::plain(column) }
    }

    fn table() -> TableDef {
        let check = |name: &str, expression: &str| CheckDef { name: name.into(), expression: expression.into() };
        let index = |name: &str, definition: &str| IndexDef {
            name: name.into(),
            unique: false,
            definition: definition.into(),
            columns: Vec::new(),
            plain: false,
        };
        TableDef {
            name: TableName::new("public", "items"),
            kind: RelationKind::Partitioned { strategy: "RANGE (name)".into() },
            columns: vec![column("both", Some("(name || other)")), column("gone", Some("lower(old)"))],
            identity: Identity::Key,
            primary_key: None,
            uniques: Vec::new(),
            checks: vec![
                check("named", "((name <> 'name'::text))"),
                check("gone", "((old <> name))"),
                check("unsure", "(((at)::timestamp without time zone > now()))"),
            ],
            foreign_keys: Vec::new(),
            indexes: vec![
                index("plain", "USING btree (name, other DESC)"),
                index("lower", "USING btree (lower(name)) INCLUDE (other) WHERE (other > name)"),
                index("gone", "USING btree (lower(old))"),
                index("partial", "USING btree (name) WHERE (old IS NULL)"),
            ],
            rows_estimate: 0,
            bytes: 0,
            native_id: 0,
            obstacle: None,
        }
    }

    #[test]
    fn what_a_table_says_follows_the_names_of_its_columns() {
        let became = [
            ("name", Some("other")),
            ("other", Some("Name")),
            ("old", None),
            ("time", Some("hour")),
            ("at", Some("at")),
        ];
        let became = became.map(|(old, new)| (old.to_owned(), new.map(str::to_owned)));
        let mut table = table();
        let became = Became::new(Dialect::Postgres, became.to_vec());
        let left = became.follow(&mut table);
        let mut key = ["name".to_owned(), "old".to_owned()];
        assert!(!became.rename(&mut key), "a column of it has gone");
        assert_eq!(key, ["name", "old"]);
        let checks: Vec<_> = table.checks.iter().map(|check| check.expression.as_str()).collect();
        assert_eq!(checks, ["((\"other\" <> 'name'::text))"]);
        let indexes: Vec<_> = table.indexes.iter().map(|index| index.definition.as_str()).collect();
        assert_eq!(
            indexes,
            [
                "USING btree (\"other\", \"Name\" DESC)",
                "USING btree (lower(\"other\")) INCLUDE (\"Name\") WHERE (\"Name\" > \"other\")"
            ]
        );
        let generated: Vec<_> = table.columns.iter().filter_map(|def| def.generated.as_deref()).collect();
        assert_eq!(generated, ["(\"other\" || \"Name\")"]);
        assert_eq!(table.kind, RelationKind::Partitioned { strategy: "RANGE (\"other\")".into() });
        assert_eq!(left, ["the check unsure: whether time is its column or a word of the language cannot be told"]);
    }

    #[test]
    fn in_sqlite_upper_and_lower_case_are_one_name() {
        let became = Became::new(Dialect::Sqlite, vec![("Name".to_owned(), Some("title".to_owned()))]);
        let mut table = table();
        became.follow(&mut table);
        assert_eq!(table.checks[0].expression, "((\"title\" <> 'name'::text))");
        let mut columns = ["NAME".to_owned(), "later".to_owned()];
        assert!(became.rename(&mut columns));
        assert_eq!(columns, ["title", "later"]);
    }
}
