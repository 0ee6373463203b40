//! What the catalog says of tables whose columns will change places: what has to be made for them, and what could not be
//! kept as it is, by name. Changes nothing.

use super::{Laid, LaidCheck, LaidForeign, LaidIndex, LaidKey, LaidTable, SwapEnd, laid::named, trigger};
use crate::{client::failure, quote_ident, quote_table};
use crossfade_connector::{Failure, Refusal};
use crossfade_event::{
    TableName,
    swap::{Kept, SwapTable},
};
use std::collections::BTreeMap;

const DOING: &str = "looking at what will change places";

fn refusal(object: impl Into<String>, problem: impl Into<String>, remedy: impl Into<String>) -> Refusal {
    Refusal { object: object.into(), problem: problem.into(), remedy: remedy.into(), fatal: true }
}

/// A column as the catalog has it.
struct Found {
    type_: String,
    default: Option<String>,
    identity: bool,
    granted: bool,
}

impl SwapEnd {
    /// Looks at every table; what stands against the switch is in the second part.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub async fn survey(&mut self, tables: &[SwapTable]) -> Result<(Laid, Vec<Refusal>), Failure> {
        let mut laid = Laid { tables: Vec::with_capacity(tables.len()) };
        let mut refusals = Vec::new();
        for swap in tables {
            let found = self.columns(&swap.table).await?;
            self.look_at_table(swap, &found, &mut refusals).await?;
            let (indexes, checks) = self.indexes(swap, &mut refusals).await?;
            let primary = self.primary(swap, &indexes, &mut refusals).await?;
            let types = found.iter().map(|(name, column)| (name.clone(), column.type_.clone())).collect();
            let defaults = defaults(swap, &found, &mut refusals);
            let swap = swap.clone();
            laid.tables.push(LaidTable { swap, types, defaults, indexes, checks, primary, foreign: Vec::new() });
        }
        self.references(&mut laid, &mut refusals).await?;
        Ok((laid, refusals))
    }

    /// The indexes of the new columns that are not there, or not whole: what [`SwapEnd::prepare`] makes.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub async fn unprepared(&mut self, laid: &Laid) -> Result<Vec<String>, Failure> {
        let mut missing = Vec::new();
        for table in &laid.tables {
            for index in &table.indexes {
                if self.index_is(table.name(), &index.new).await? != Some(true) {
                    missing.push(format!("{} of {}", index.new, table.name()));
                }
            }
        }
        Ok(missing)
    }

    /// Whether an index is whole; `None` where there is none.
    pub(super) async fn index_is(&mut self, table: &TableName, name: &str) -> Result<Option<bool>, Failure> {
        let sql = "SELECT i.indisvalid FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid \
                   JOIN pg_class t ON t.oid = i.indrelid JOIN pg_namespace n ON n.oid = t.relnamespace \
                   WHERE n.nspname = $1 AND t.relname = $2 AND c.relname = $3";
        let row = self.session().await?.query_opt(sql, &[&&*table.schema, &&*table.name, &name]).await;
        Ok(row.map_err(|error| failure(DOING, error))?.map(|row| row.get(0)))
    }

    async fn columns(&mut self, table: &TableName) -> Result<BTreeMap<String, Found>, Failure> {
        let sql = "SELECT a.attname::text, pg_catalog.format_type(a.atttypid, a.atttypmod), \
               CASE WHEN a.attgenerated = '' THEN pg_catalog.pg_get_expr(d.adbin, d.adrelid) END, a.attidentity <> '', \
               a.attacl IS NOT NULL \
             FROM pg_catalog.pg_attribute a LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum \
             WHERE a.attrelid = ($1::text)::pg_catalog.regclass AND a.attnum > 0 AND NOT a.attisdropped";
        let name = quote_table(table)?;
        let rows = self.session().await?.query(sql, &[&name.as_str()]).await;
        let rows = rows.map_err(|error| failure(DOING, error))?;
        let found = |row: &tokio_postgres::Row| Found {
            type_: row.get(1),
            default: row.get(2),
            identity: row.get(3),
            granted: row.get(4),
        };
        Ok(rows.iter().map(|row| (row.get(0), found(row))).collect())
    }

    async fn look_at_table(
        &mut self,
        swap: &SwapTable,
        found: &BTreeMap<String, Found>,
        refusals: &mut Vec<Refusal>,
    ) -> Result<(), Failure> {
        let table = &swap.table;
        let name = quote_table(table)?;
        let trigger = trigger::name_of(&self.migration);
        let sql = "SELECT c.relkind = 'r', EXISTS (SELECT FROM pg_inherits WHERE inhrelid = c.oid OR inhparent = c.oid), \
               c.relreplident::text, \
               (SELECT string_agg(t.tgname, ', ') FROM pg_trigger t WHERE t.tgrelid = c.oid AND NOT t.tgisinternal \
                  AND t.tgtype::int4 & 3 = 3 AND t.tgname::text COLLATE \"C\" > $2) \
             FROM pg_class c WHERE c.oid = ($1::text)::regclass";
        let row = self.session().await?.query_one(sql, &[&name.as_str(), &trigger]).await;
        let row = row.map_err(|error| failure(DOING, error))?;
        let object = table.to_string();
        if !row.get::<_, bool>(0) || row.get::<_, bool>(1) {
            let remedy = "move it to tables of their own instead: write = \"shadow-tables\" with another schema";
            refusals.push(refusal(&object, "is part of a tree of tables", remedy));
        }
        if row.get::<_, &str>(2) == "i" && !swap.key.is_empty() {
            let remedy = format!("ALTER TABLE {object} REPLICA IDENTITY DEFAULT");
            refusals.push(refusal(&object, "names an index as its replica identity, and its key moves", remedy));
        }
        if let Some(later) = row.get::<_, Option<&str>>(3) {
            let remedy = "rename it, so that what it changes in a row is seen";
            refusals.push(refusal(&object, format!("its trigger {later} would run after ours"), remedy));
        }
        for old in swap.pairs.iter().map(|pair| &pair.old).chain(&swap.dropped) {
            let legacy = swap.now_called(old);
            if found.contains_key(&legacy) {
                let remedy = "give that column another name";
                refusals.push(refusal(format!("{table}.{old}"), format!("there is a column {legacy} already"), remedy));
            }
        }
        for pair in &swap.pairs {
            let object = format!("{table}.{}", pair.old);
            if !found.contains_key(&pair.shadow) || !found.contains_key(&pair.old) {
                let remedy = "let the migration catch up first";
                refusals.push(refusal(&object, format!("{} or it is not there", pair.shadow), remedy));
            }
            if pair.shadow != pair.name && swap.pairs.iter().any(|other| other.shadow == pair.name) {
                let remedy = "name the shadows in another way";
                refusals.push(refusal(&object, "takes a name that another new column has until then", remedy));
            }
            if found.get(&pair.old).is_some_and(|column| column.granted) {
                let remedy = "grant on the whole table, or revoke it: rights on single columns are not carried over";
                refusals.push(refusal(&object, "somebody has rights on this column alone", remedy));
            }
        }
        Ok(())
    }

    /// For each index that an old column is part of, the one of the new columns.
    async fn indexes(
        &mut self,
        swap: &SwapTable,
        refusals: &mut Vec<Refusal>,
    ) -> Result<(Vec<LaidIndex>, Vec<LaidCheck>), Failure> {
        let table = &swap.table;
        let sql = "SELECT c.relname::text, pg_get_indexdef(i.indexrelid), i.indisunique, \
               EXISTS (SELECT FROM pg_constraint k WHERE k.conindid = i.indexrelid AND k.contype IN ('u', 'p')), \
               i.indimmediate, EXISTS (SELECT FROM pg_constraint k WHERE k.conindid = i.indexrelid AND k.contype = 'x') \
             FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid \
             WHERE i.indrelid = ($1::text)::regclass AND i.indisvalid \
               AND NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = i.indrelid AND a.attname = ANY ($2) \
                 AND (a.attnum = ANY (i.indkey::int2[]) OR EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass \
                   AND d.objid = i.indexrelid AND d.refobjid = i.indrelid AND d.refobjsubid = a.attnum))) ORDER BY 1";
        let name = quote_table(table)?;
        // What is made of new columns is ours.
        let pairs = swap.pairs.iter().map(|pair| pair.shadow.clone());
        let ours: Vec<String> = pairs.chain(swap.added.iter().map(|added| added.name.clone())).collect();
        let rows = self.session().await?.query(sql, &[&name.as_str(), &ours]).await;
        let rows = rows.map_err(|error| failure(DOING, error))?;
        let (renamed, checks) = self.renamed_definitions(swap).await?;
        let mut indexes = Vec::new();
        for row in &rows {
            let (old, definition): (String, String) = (row.get(0), row.get(1));
            let Some(using) = renamed.get(using_of(&definition)) else { continue };
            if row.get::<_, bool>(5) {
                let remedy = "drop it; the new columns can have one of their own after the clean-up";
                refusals.push(refusal(format!("{table}: {old}"), "is an exclusion constraint of old columns", remedy));
                continue;
            }
            if !row.get::<_, bool>(4) {
                let remedy = "make it NOT DEFERRABLE";
                refusals.push(refusal(format!("{table}: {old}"), "is deferrable, and cannot be moved", remedy));
            }
            let new = named(&old, "_new");
            let (unique, constraint, using) = (row.get(2), row.get(3), using.clone());
            indexes.push(LaidIndex { old: Some(old), new, unique, constraint, using });
        }
        let surrogate = swap.surrogate().map(|added| &added.name);
        let referring = swap.added.iter().filter(|added| added.refers.is_some()).map(|added| &added.name);
        for (column, unique) in
            surrogate.map(|name| (name, true)).into_iter().chain(referring.map(|name| (name, false)))
        {
            let new = named(&format!("{}_{column}", table.name), "_new");
            let using = format!("USING btree ({})", quote_ident(column)?);
            indexes.push(LaidIndex { old: None, new, unique, constraint: false, using });
        }
        Ok((indexes, checks))
    }

    /// What the table's index definitions are by the new columns; only of those that change. The server itself says so, of a
    /// table like this one.
    async fn renamed_definitions(
        &mut self,
        swap: &SwapTable,
    ) -> Result<(BTreeMap<String, String>, Vec<LaidCheck>), Failure> {
        let mut renames = String::new();
        for (number, pair) in swap.pairs.iter().enumerate() {
            renames.push_str(&format!(
                "ALTER TABLE pg_temp.crossfade_probe RENAME COLUMN {} TO \"crossfade aside {number}\"; ",
                quote_ident(&pair.shadow)?
            ));
        }
        for pair in &swap.pairs {
            renames.push_str(&format!(
                "ALTER TABLE pg_temp.crossfade_probe RENAME COLUMN {} TO {}; ",
                quote_ident(&pair.old)?,
                quote_ident(&pair.shadow)?
            ));
        }
        let mut last = String::new();
        for pair in &swap.pairs {
            if pair.shadow != pair.name {
                let (shadow, name) = (quote_ident(&pair.shadow)?, quote_ident(&pair.name)?);
                last.push_str(&format!("ALTER TABLE pg_temp.crossfade_probe RENAME COLUMN {shadow} TO {name}; "));
            }
        }
        let make = format!(
            "BEGIN; CREATE TEMPORARY TABLE crossfade_probe (LIKE {} INCLUDING INDEXES INCLUDING CONSTRAINTS) ON COMMIT DROP",
            quote_table(&swap.table)?
        );
        let ask = "SELECT pg_get_indexdef(indexrelid) FROM pg_index \
                   WHERE indrelid = 'pg_temp.crossfade_probe'::regclass ORDER BY indexrelid";
        let checked = "SELECT k.conname::text, ARRAY(SELECT a.attname::text FROM pg_attribute a \
                       WHERE a.attrelid = k.conrelid AND a.attnum = ANY (k.conkey)), pg_get_constraintdef(k.oid) \
                       FROM pg_constraint k WHERE k.conrelid = 'pg_temp.crossfade_probe'::regclass AND k.contype = 'c' ORDER BY 1";
        let session = self.session().await?;
        let work = async {
            session.batch_execute(&make).await?;
            let before = session.query(ask, &[]).await?;
            let uses = session.query(checked, &[]).await?;
            session.batch_execute(&renames).await?;
            let after = session.query(ask, &[]).await?;
            session.batch_execute(&last).await?;
            let checks = session.query(checked, &[]).await?;
            Ok::<_, tokio_postgres::Error>((before, after, uses, checks))
        };
        let found = work.await;
        session.batch_execute("ROLLBACK").await.map_err(|error| failure(DOING, error))?;
        let (before, after, uses, checks) = found.map_err(|error| failure(DOING, error))?;
        let is_moved = |columns: Vec<String>| swap.pairs.iter().any(|pair| columns.contains(&pair.old));
        let moved = uses.iter().zip(&checks).filter(|(uses, _)| is_moved(uses.get(1)));
        let checks = moved.map(|(_, check)| {
            let name: String = check.get(0);
            LaidCheck { new: named(&name, "_new"), definition: check.get(2), name }
        });
        let checks = checks.collect();
        let text = |row: &tokio_postgres::Row| using_of(row.get(0)).to_owned();
        let both = before.iter().map(text).zip(after.iter().map(text));
        Ok((both.filter(|(before, after)| before != after).collect(), checks))
    }

    async fn primary(
        &mut self,
        swap: &SwapTable,
        indexes: &[LaidIndex],
        refusals: &mut Vec<Refusal>,
    ) -> Result<Option<LaidKey>, Failure> {
        if swap.key.is_empty() {
            return Ok(None);
        }
        let table = &swap.table;
        let sql = "SELECT k.conname::text, \
               ARRAY(SELECT a.attname::text FROM unnest(k.conkey) WITH ORDINALITY u(n, place) \
                     JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = u.n ORDER BY u.place), \
               (SELECT string_agg(DISTINCT r.ev_class::regclass::text, ', ') FROM pg_depend d JOIN pg_rewrite r ON r.oid = d.objid \
                WHERE d.refclassid = 'pg_constraint'::regclass AND d.refobjid = k.oid AND d.classid = 'pg_rewrite'::regclass) \
             FROM pg_constraint k WHERE k.conrelid = ($1::text)::regclass AND k.contype = 'p'";
        let name = quote_table(table)?;
        let row = self.session().await?.query_opt(sql, &[&name.as_str()]).await;
        let Some(row) = row.map_err(|error| failure(DOING, error))? else { return Ok(None) };
        let constraint: String = row.get(0);
        if let Some(views) = row.get::<_, Option<&str>>(2) {
            let remedy = "have it group by all columns that it shows, or drop it for as long as the switch takes";
            refusals.push(refusal(views, format!("depends on the primary key of {table}, which moves"), remedy));
        }
        let columns: Vec<String> = row.get(1);
        let taken = swap
            .pairs
            .iter()
            .find(|pair| swap.key == [pair.name.as_str()] && columns.iter().all(|old| swap.dropped.contains(old)));
        let taken = taken
            .map(|pair| quote_ident(&pair.shadow))
            .transpose()?
            .map(|name| name.as_str().trim_matches('"').to_owned());
        let own = |index: &&LaidIndex| match (swap.surrogate(), &taken) {
            (Some(_), _) => index.old.is_none() && index.unique,
            (None, Some(taken)) => {
                index.unique && index.constraint && index.using.replace('"', "") == format!("USING btree ({taken})")
            }
            (None, None) => index.old.as_deref() == Some(constraint.as_str()),
        };
        let Some(index) = indexes.iter().find(own) else {
            let remedy = "Report this";
            refusals.push(refusal(table.to_string(), "has no index for the new primary key", remedy));
            return Ok(None);
        };
        let legacy_index = named(&constraint, "_legacy");
        Ok(Some(LaidKey { index: index.new.clone(), legacy_index, columns, name: constraint }))
    }

    /// Every reference from or to a column that moves.
    async fn references(&mut self, laid: &mut Laid, refusals: &mut Vec<Refusal>) -> Result<(), Failure> {
        let names: Vec<String> = laid
            .tables
            .iter()
            .map(|table| quote_table(table.name()).map(|name| name.as_str().to_owned()))
            .collect::<Result<_, _>>()?;
        let sql = "SELECT k.conname::text, cn.nspname::text, c.relname::text, pn.nspname::text, p.relname::text, \
               ARRAY(SELECT a.attname::text FROM unnest(k.conkey) WITH ORDINALITY u(n, place) \
                     JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = u.n ORDER BY u.place), \
               ARRAY(SELECT a.attname::text FROM unnest(k.confkey) WITH ORDINALITY u(n, place) \
                     JOIN pg_attribute a ON a.attrelid = k.confrelid AND a.attnum = u.n ORDER BY u.place), \
               k.confupdtype::text, k.confdeltype::text, k.confmatchtype::text, k.condeferrable, k.convalidated, \
               pg_get_constraintdef(k.oid), to_jsonb(k) ->> 'confdelsetcols' IS NOT NULL \
             FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace cn ON cn.oid = c.relnamespace \
             JOIN pg_class p ON p.oid = k.confrelid JOIN pg_namespace pn ON pn.oid = p.relnamespace \
             WHERE k.contype = 'f' AND (k.conrelid = ANY ($1::text[]::regclass[]) OR k.confrelid = ANY ($1::text[]::regclass[])) \
             ORDER BY 2, 3, 1";
        let rows = self.session().await?.query(sql, &[&names]).await.map_err(|error| failure(DOING, error))?;
        for row in &rows {
            let child = TableName::new(row.get::<_, String>(1), row.get::<_, String>(2));
            let parent = TableName::new(row.get::<_, String>(3), row.get::<_, String>(4));
            let (columns, referenced): (Vec<String>, Vec<String>) = (row.get(5), row.get(6));
            let swap_of =
                |name: &TableName| laid.tables.iter().map(|table| &table.swap).find(|swap| swap.table == *name);
            let new_name = |swap: Option<&SwapTable>, column: &String| {
                let pair = swap?.pairs.iter().find(|pair| pair.old == *column)?;
                Some(pair.name.clone())
            };
            let moves = |swap: Option<&SwapTable>, columns: &[String]| {
                columns.iter().any(|column| new_name(swap, column).is_some())
            };
            let (from, to) = (swap_of(&child), swap_of(&parent));
            let name: String = row.get(0);
            let object = format!("{child}: {name}");
            if to.is_some_and(|swap| referenced.iter().any(|column| swap.dropped.contains(column))) {
                let remedy = "keep the column, or drop the reference";
                refusals.push(refusal(object, format!("refers to a column of {parent} that is dropped"), remedy));
                continue;
            }
            if !moves(from, &columns) && !moves(to, &referenced) {
                continue;
            }
            let same = columns
                .iter()
                .zip(&referenced)
                .all(|(column, referenced)| new_name(from, column).is_some() == new_name(to, referenced).is_some());
            if !same {
                let remedy = "take the other table into the migration, or drop the reference";
                refusals.push(refusal(
                    object,
                    format!("refers to {parent} by a column that only one of them changes"),
                    remedy,
                ));
                continue;
            }
            if row.get::<_, bool>(10) {
                let remedy = "ALTER CONSTRAINT … NOT DEFERRABLE: an old key is looked for when the row is written";
                refusals.push(refusal(&object, "is deferrable", remedy));
            }
            let acts = (action("ON UPDATE", row.get(7)), action("ON DELETE", row.get(8)), row.get::<_, &str>(9));
            let (Some(on_update), Some(on_delete), "s" | "f", false) = (acts.0, acts.1, acts.2, row.get::<_, bool>(13))
            else {
                let remedy = "use another action";
                refusals.push(refusal(object, "sets defaults, or single columns, when its parent goes", remedy));
                continue;
            };
            let now = |swap, columns: &[String]| -> Result<String, Failure> {
                let names: Vec<String> = columns
                    .iter()
                    .map(|column| quote_ident(&new_name(swap, column).unwrap_or_else(|| column.clone())))
                    .map(|name| name.map(|name| name.as_str().to_owned()))
                    .collect::<Result<_, _>>()?;
                Ok(names.join(", "))
            };
            let full = if acts.2 == "f" { " MATCH FULL" } else { "" };
            let new_definition = format!(
                "FOREIGN KEY ({}) REFERENCES {} ({}){full}{on_update}{on_delete}",
                now(from, &columns)?,
                quote_table(&parent)?,
                now(to, &referenced)?,
            );
            let old: String = row.get(12);
            let old_definition = old.trim_end().trim_end_matches("NOT VALID").trim_end().to_owned();
            let (new, valid) = (named(&name, "_new"), row.get(11));
            if let Some(table) = laid.tables.iter_mut().find(|table| *table.name() == child) {
                table.foreign.push(LaidForeign { name, new, old_definition, new_definition, valid });
            }
        }
        self.references_by_surrogate(laid, refusals)
    }

    /// References that only the new columns have, each like one that goes by several old ones.
    fn references_by_surrogate(&mut self, laid: &mut Laid, refusals: &mut Vec<Refusal>) -> Result<(), Failure> {
        for table in &mut laid.tables {
            let referring: Vec<_> =
                table.swap.added.iter().filter_map(|added| Some((added.name.clone(), added.refers.clone()?))).collect();
            for (column, refers) in referring {
                let name = named(&format!("{}_{column}", table.name().name), "_fkey");
                let Some(like) = table.foreign.iter().find(|foreign| foreign.name == refers.like) else {
                    let why = format!("the reference {} that {column} stands for is not there", refers.like);
                    refusals.push(refusal(table.name().to_string(), why, "let the migration begin anew"));
                    continue;
                };
                let new_definition = format!(
                    "FOREIGN KEY ({}) REFERENCES {} ({}) {}",
                    quote_ident(&column)?,
                    quote_table(&refers.table)?,
                    quote_ident(&refers.key)?,
                    refers.suffix
                );
                let (new, valid) = (name.clone(), like.valid);
                table.foreign.push(LaidForeign { name, new, old_definition: String::new(), new_definition, valid });
            }
        }
        Ok(())
    }
}

/// The words for what a reference does, by the catalog's letter, after `verb`; `None` where it could not be kept.
fn action(verb: &str, letter: &str) -> Option<String> {
    match letter {
        "a" => Some(String::new()),
        "r" => Some(format!(" {verb} RESTRICT")),
        "c" => Some(format!(" {verb} CASCADE")),
        "n" => Some(format!(" {verb} SET NULL")),
        _ => None,
    }
}

fn using_of(definition: &str) -> &str {
    definition.find(" USING ").and_then(|at| definition.get(at + 1..)).unwrap_or(definition)
}

/// What fills a new column that nobody names, as it filled the old one.
fn defaults(
    swap: &SwapTable,
    found: &BTreeMap<String, Found>,
    refusals: &mut Vec<Refusal>,
) -> BTreeMap<String, String> {
    let mut defaults = BTreeMap::new();
    let uuid = || "pg_catalog.gen_random_uuid()".to_owned();
    for pair in &swap.pairs {
        let old = found.get(&pair.old);
        let object = format!("{}.{}", swap.table, pair.old);
        match &pair.kept {
            Kept::Drawn { uuid: true } => drop(defaults.insert(pair.name.clone(), uuid())),
            Kept::Drawn { uuid: false } => {}
            Kept::Found { .. } if old.is_some_and(|old| old.default.is_some() || old.identity) => {
                let remedy = "drop the default: it names an old key";
                refusals.push(refusal(object, "refers to another table and has a default", remedy));
            }
            Kept::Found { .. } => {}
            Kept::Copied if old.is_some_and(|old| old.identity) => {
                let remedy = "turn it into a plain column with a sequence as its default";
                refusals.push(refusal(object, "is an identity column, whose sequence cannot move", remedy));
            }
            Kept::Copied => {
                let type_ = found.get(&pair.shadow).map(|column| column.type_.as_str());
                if let (Some(default), Some(type_)) = (old.and_then(|old| old.default.as_ref()), type_) {
                    defaults.insert(pair.name.clone(), format!("({default})::{type_}"));
                }
            }
        }
    }
    for added in swap.added.iter().filter(|added| added.uuid) {
        defaults.insert(added.name.clone(), uuid());
    }
    defaults
}
