//! How the target's tables are made: the source's definitions under the new names and types.

use super::{
    Context, Fidelity, PlanError, PlannedTable, Writing,
    expression::{self, quote},
    index,
    table::{Draft, Work},
};
use crossfade_event::{
    Logical, TableName,
    catalog::{
        Catalog, CheckDef, ColumnDef, Dialect, ForeignKeyDef, IdentityColumn, IndexDef, KeyDef, RelationKind,
        SequenceDef, TableDef,
    },
};
use std::collections::BTreeMap;

/// Views, foreign tables and unlogged tables have no changes to follow; the preflight says so with the remedy.
pub(super) fn is_planned(table: &TableDef, _dialect: Dialect) -> bool {
    matches!(table.kind, RelationKind::Table | RelationKind::Partitioned { .. } | RelationKind::Partition { .. })
}

/// Makes the tables of all drafts.
pub(super) fn finish(context: &mut Context<'_>, drafts: &mut [Draft<'_>]) -> Result<Vec<PlannedTable>, PlanError> {
    let mut planned = Vec::with_capacity(drafts.len());
    for draft in drafts.iter().filter(|draft| draft.program.written) {
        let def = if draft.program.columns_only {
            beside(context, draft, drafts)
        } else {
            Maker { context, draft, drafts }.table()?
        };
        let write = if draft.program.columns_only {
            let written = draft.columns.iter().enumerate().filter(|(_, work)| work.origin.is_none());
            Writing::Columns { columns: written.map(|(index, _)| index).collect() }
        } else if let Some(second) = draft.program.dual {
            Writing::Dual { second }
        } else {
            Writing::Table
        };
        planned.push(PlannedTable {
            schema: draft.program.schema.clone(),
            def,
            write,
            source: Some(draft.source.name.clone()),
        });
    }
    Ok(planned)
}

/// The new columns beside the old ones, with a unique index for a key's shadow and the references between shadows.
fn beside(context: &Context<'_>, draft: &Draft<'_>, drafts: &[Draft<'_>]) -> TableDef {
    let source = draft.source;
    let plain = |work: &Work| column_def(draft, work);
    let own_key = draft.program.mapping.as_ref().and_then(|mapping| draft.columns.get(mapping.out));
    let indexes = own_key.map(|work| IndexDef {
        name: clipped(&format!("{}_{}_key", source.name.name, work.name)),
        unique: true,
        definition: format!("USING btree ({})", quote(&work.name)),
        columns: vec![work.name.clone()],
        plain: true,
    });
    let shadow_of = |draft: &Draft<'_>, column: &str| -> Option<String> {
        let register = draft.source.carried().position(|def| &*def.column.name == column)?;
        draft.columns.iter().find(|work| work.origin.is_none() && work.register == register).map(|w| w.name.clone())
    };
    let foreign_keys = source.foreign_keys.iter().filter_map(|foreign| {
        let parent =
            drafts.iter().find(|other| other.source.name == foreign.references && other.program.columns_only)?;
        let columns: Option<Vec<String>> = foreign.columns.iter().map(|column| shadow_of(draft, column)).collect();
        let referenced: Option<Vec<String>> =
            foreign.referenced_columns.iter().map(|column| shadow_of(parent, column)).collect();
        Some(ForeignKeyDef {
            name: clipped(&format!("{}_shadow", foreign.name)),
            columns: columns?,
            references: foreign.references.clone(),
            referenced_columns: referenced?,
            suffix: foreign.suffix.clone(),
        })
    });
    TableDef {
        name: context.names.get(&source.name).cloned().unwrap_or_else(|| source.name.clone()),
        kind: source.kind.clone(),
        columns: draft.columns.iter().map(plain).collect(),
        identity: source.identity,
        primary_key: source.primary_key.clone(),
        uniques: Vec::new(),
        checks: Vec::new(),
        foreign_keys: foreign_keys.collect(),
        indexes: indexes.into_iter().collect(),
        rows_estimate: source.rows_estimate,
        bytes: source.bytes,
        native_id: source.native_id,
        obstacle: None,
    }
}

/// PostgreSQL cuts names at 63 bytes; cut them ourselves, so that both sides know the same name.
fn clipped(name: &str) -> String {
    let end = (0..=name.len().min(63)).rev().find(|end| name.is_char_boundary(*end)).unwrap_or(0);
    name.get(..end).unwrap_or(name).to_owned()
}

fn column_def(draft: &Draft<'_>, work: &Work) -> ColumnDef {
    let out = draft.program.schema.columns.iter().find(|column| *column.name == *work.name);
    let column = out.cloned().unwrap_or_else(|| crossfade_event::Column {
        name: std::sync::Arc::from(work.name.as_str()),
        type_: work.target.clone(),
        key: None,
        nullable: work.nullable,
        native_id: 0,
        default: None,
    });
    ColumnDef::plain(column)
}

struct Maker<'m, 'c, 'a> {
    context: &'m mut Context<'c>,
    draft: &'m Draft<'a>,
    drafts: &'m [Draft<'a>],
}

impl Maker<'_, '_, '_> {
    fn note(&mut self, column: Option<&str>, text: impl Into<String>) {
        self.context.note(&self.draft.source.name, column, Fidelity::Advice, text);
    }

    fn table(mut self) -> Result<TableDef, PlanError> {
        let source = self.draft.source;
        let mut columns: Vec<ColumnDef> = Vec::new();
        for work in &self.draft.columns {
            columns.push(self.column(work));
        }
        columns.extend(self.generated());
        let kind = self.kind()?;
        let primary_key = self.primary_key();
        let promoted = primary_key.as_ref().filter(|_| self.draft.taken_key.is_some()).map(|key| key.columns.clone());
        let mut uniques: Vec<KeyDef> = Vec::new();
        if self.draft.surrogate.is_some() {
            uniques.extend(
                source
                    .primary_key
                    .as_ref()
                    .and_then(|key| self.key(key))
                    .map(|key| KeyDef { name: clipped(&format!("{}_old", key.name)), ..key }),
            );
        }
        for key in &source.uniques {
            match self.key(key) {
                Some(key) if Some(&key.columns) == promoted.as_ref() => {}
                Some(key) => uniques.push(key),
                None => {
                    self.note(None, format!("the unique constraint {} goes, for one of its columns does", key.name))
                }
            }
        }
        let (checks, mut indexes) = (self.checks(), self.indexes());
        indexes.extend(self.indexes_by_surrogate());
        let foreign_keys = self.foreign_keys()?;
        let name = self.target(&source.name).unwrap_or_else(|| source.name.clone());
        Ok(TableDef {
            name,
            kind,
            columns,
            identity: self.draft.program.schema.identity,
            primary_key,
            uniques,
            checks,
            foreign_keys,
            indexes,
            rows_estimate: source.rows_estimate,
            bytes: source.bytes,
            native_id: source.native_id,
            obstacle: None,
        })
    }

    fn target(&self, table: &TableName) -> Option<TableName> {
        self.context.names.get(table).cloned()
    }

    fn now(&self, column: &str) -> Option<String> {
        self.draft.now(column).map(|work| work.name.clone())
    }

    fn column(&mut self, work: &Work) -> ColumnDef {
        let mut def = column_def(self.draft, work);
        let Some(source) = work.origin.as_deref().and_then(|origin| self.draft.source.column(origin)) else {
            return def;
        };
        let crosses = self.context.crosses();
        if work.key.is_some() {
            if source.identity.is_some() || source.sequence.is_some() {
                self.note(Some(&source.column.name), "its sequence or identity goes: new keys are not counted");
            }
            return def;
        }
        if !crosses && !work.retyped {
            def.collation.clone_from(&source.collation);
        }
        if !crosses && (!work.retyped || is_whole(work.value.logical)) {
            def.identity = source.identity;
            def.sequence = source.sequence.as_ref().map(|sequence| self.sequence_name(sequence));
        } else if crosses && self.counts_rows(work, source) {
            def.identity = Some(IdentityColumn::ByDefault);
            let name = clipped(&format!("{}_{}_seq", self.draft.source.name.name, work.name));
            def.sequence = self.target(&self.draft.source.name).map(|table| TableName::new(table.schema, name));
            self.note(Some(&source.column.name), "becomes an identity column, which counts on from the highest value");
        } else if source.identity.is_some() || source.sequence.is_some() {
            self.note(Some(&source.column.name), "its sequence or identity is not carried over");
        }
        if let Some(default) = &source.default {
            def.default = self.default(work, source, default);
        }
        def
    }

    /// SQLite gives an `INTEGER PRIMARY KEY` the next number by itself.
    fn counts_rows(&self, work: &Work, source: &ColumnDef) -> bool {
        let key = self.draft.source.primary_key.as_ref().map(|key| key.columns.as_slice());
        self.context.source.dialect == Dialect::Sqlite
            && !work.retyped
            && source.column.type_.name.eq_ignore_ascii_case("INTEGER")
            && matches!(key, Some([only]) if *only == *source.column.name)
    }

    fn default(&mut self, work: &Work, source: &ColumnDef, default: &str) -> Option<String> {
        if let Some(sequence) = source.sequence.as_ref().filter(|_| default.to_lowercase().contains("nextval(")) {
            let new = self.sequence_name(sequence);
            return (!self.context.crosses() && is_whole(work.value.logical)).then(|| {
                let quoted = format!("{}.{}", quote(&new.schema), quote(&new.name)).replace('\'', "''");
                format!("nextval('{quoted}'::regclass)")
            });
        }
        let kept = if self.context.crosses() {
            expression::default_in(default, self.context.options.dialect, work.value_logical())
        } else if !work.retyped || expression::is_literal(default) {
            Some(default.to_owned())
        } else {
            None
        };
        if kept.is_none() {
            self.note(Some(&source.column.name), "its default is not carried over: it cannot be said there");
        }
        kept
    }

    fn sequence_name(&self, sequence: &TableName) -> TableName {
        match &self.context.options.schema {
            Some(schema) if self.context.options.dialect == Dialect::Postgres => {
                TableName::new(schema.as_str(), sequence.name.clone())
            }
            _ => sequence.clone(),
        }
    }

    /// Columns that the target computes itself.
    fn generated(&mut self) -> Vec<ColumnDef> {
        let mut out = Vec::new();
        let source = self.draft.source;
        for def in source.columns.iter().filter(|def| def.generated.is_some()) {
            let Some(text) = &def.generated else { continue };
            match self.expression(text) {
                Some(text) if !self.context.crosses() => {
                    let column = crossfade_event::Column { key: None, ..def.column.clone() };
                    out.push(ColumnDef { column, generated: Some(text), ..def.clone() });
                }
                _ => self.note(
                    Some(&def.column.name),
                    "is computed from columns that go, change or are said otherwise in the target; it is left out",
                ),
            }
        }
        out
    }

    /// An expression under the new names; `None` when a column that it names has gone or has another type.
    fn expression(&self, text: &str) -> Option<String> {
        let dialect = self.context.source.dialect;
        for def in &self.draft.source.columns {
            let name = &*def.column.name;
            if def.generated.is_none()
                && expression::names(text, name, dialect)
                && self.draft.now(name).is_none_or(|w| w.retyped)
            {
                return None;
            }
        }
        let written =
            |name: &str| self.source_column(name).map_or_else(|| name.to_owned(), |def| def.column.name.to_string());
        Some(expression::renamed(text, &|name| self.now(&written(name))))
    }

    /// The source's column that a name means.
    fn source_column(&self, name: &str) -> Option<&ColumnDef> {
        let dialect = self.context.source.dialect;
        self.draft.source.columns.iter().find(|def| expression::is_same(dialect, &def.column.name, name))
    }

    fn kind(&mut self) -> Result<RelationKind, PlanError> {
        let source = self.draft.source;
        if self.context.options.dialect == Dialect::Sqlite {
            return Ok(RelationKind::Table);
        }
        match &source.kind {
            RelationKind::Partition { parent, bound } => match self.target(parent) {
                Some(parent) => Ok(RelationKind::Partition { parent, bound: bound.clone() }),
                None => Ok(RelationKind::Table),
            },
            RelationKind::Partitioned { strategy } => {
                let has_leaves = self.drafts.iter().any(|other| {
                    matches!(&other.source.kind, RelationKind::Partition { parent, .. } if *parent == source.name)
                });
                if !has_leaves {
                    self.note(None, "its partitions are not planned one by one: it becomes one plain table");
                    return Ok(RelationKind::Table);
                }
                self.expression(strategy).map(|strategy| RelationKind::Partitioned { strategy }).ok_or_else(|| {
                    PlanError::Clash(format!(
                        "{} is partitioned by a column that goes or changes its type; leave that column as it is",
                        source.name
                    ))
                })
            }
            _ => Ok(RelationKind::Table),
        }
    }

    fn primary_key(&self) -> Option<KeyDef> {
        let source = self.draft.source.primary_key.as_ref()?;
        match &self.draft.surrogate {
            Some(surrogate) => Some(KeyDef { columns: vec![surrogate.clone()], ..source.clone() }),
            None => match &self.draft.taken_key {
                Some(taken) => Some(KeyDef { columns: vec![taken.clone()], ..source.clone() }),
                None => self.key(source),
            },
        }
    }

    fn key(&self, key: &KeyDef) -> Option<KeyDef> {
        let columns = key.columns.iter().map(|column| self.now(column)).collect::<Option<Vec<_>>>()?;
        Some(KeyDef { columns, ..key.clone() })
    }

    fn checks(&mut self) -> Vec<CheckDef> {
        let mut out = Vec::new();
        let source = self.draft.source;
        for check in &source.checks {
            match self.expression(&check.expression) {
                Some(expression) if !self.context.crosses() => {
                    out.push(CheckDef { name: check.name.clone(), expression });
                }
                _ => self.note(None, format!("the check {} is not carried over", check.name)),
            }
        }
        out
    }

    fn indexes(&mut self) -> Vec<IndexDef> {
        let mut out = Vec::new();
        let source = self.draft.source;
        let method = if self.context.options.dialect == Dialect::Postgres { "USING btree " } else { "" };
        for def in &source.indexes {
            let columns = |name: &str| self.column_now(name);
            match index::carried(def, &columns, self.context.crosses(), method) {
                Ok(def) => out.push(def),
                Err(why) => {
                    let by_hand = self.index_by_hand(def);
                    self.note(None, format!("the index {} is not carried over: {}; {by_hand}", def.name, why.words()));
                }
            }
        }
        out
    }

    /// A reference that the source finds by an index is found by one where it goes by a surrogate, too.
    fn indexes_by_surrogate(&self) -> Vec<IndexDef> {
        let source = self.draft.source;
        let keys = source.primary_key.iter().chain(&source.uniques).map(|key| key.columns.as_slice());
        let plain = source.indexes.iter().filter(|index| index.plain).map(|index| index.columns.as_slice());
        let lists: Vec<&[String]> = keys.chain(plain).collect();
        let by_surrogate = self.draft.by_surrogate.iter().filter_map(|(place, name)| {
            let foreign = source.foreign_keys.get(*place)?;
            let begins = |list: &&[String]| {
                let first = list.get(..foreign.columns.len());
                first.is_some_and(|first| foreign.columns.iter().all(|column| first.contains(column)))
            };
            lists.iter().any(begins).then_some(name)
        });
        by_surrogate
            .map(|name| IndexDef {
                name: clipped(&format!("{}_{name}_idx", source.name.name)),
                unique: false,
                definition: match self.context.options.dialect {
                    Dialect::Postgres => format!("USING btree ({})", quote(name)),
                    Dialect::Sqlite => format!("({})", quote(name)),
                },
                columns: vec![name.clone()],
                plain: true,
            })
            .collect()
    }

    fn index_by_hand(&self, def: &IndexDef) -> String {
        let name = self.target(&self.draft.source.name).unwrap_or_else(|| self.draft.source.name.clone());
        let table = match self.context.options.dialect {
            Dialect::Postgres => format!("{}.{}", quote(&name.schema), quote(&name.name)),
            Dialect::Sqlite => quote(&name.name),
        };
        let sql = index::by_hand(def, &table, &|name| self.column_now(name));
        format!("if it is needed there, make it by hand along these lines: {sql};")
    }

    /// What a column of the source has become: nothing where the source has no such column.
    fn column_now(&self, column: &str) -> Option<Option<index::Now>> {
        let source = self.source_column(column)?;
        let column = &*source.column.name;
        if source.generated.is_some() {
            let kept = self.expression(source.generated.as_deref().unwrap_or_default());
            let kept = kept.filter(|_| !self.context.crosses());
            let name = column.to_owned();
            return Some(kept.map(|_| index::Now { name, retyped: false, changed: false, ordered: true }));
        }
        Some(self.draft.now(column).map(|work| index::Now {
            name: work.name.clone(),
            retyped: work.retyped,
            changed: work.retyped || work.touched,
            ordered: work.target.logical != Logical::Json,
        }))
    }

    fn foreign_keys(&mut self) -> Result<Vec<ForeignKeyDef>, PlanError> {
        let mut out = Vec::new();
        let source = self.draft.source;
        for (place, foreign) in source.foreign_keys.iter().enumerate() {
            let by_surrogate =
                self.draft.by_surrogate.iter().find(|(at, _)| *at == place).map(|(_, name)| name.clone());
            match self.foreign_key(foreign, by_surrogate)? {
                Some(foreign) => out.push(foreign),
                None => self.note(
                    None,
                    format!("the reference {} to {} is not carried over", foreign.name, foreign.references),
                ),
            }
        }
        Ok(out)
    }

    fn foreign_key(
        &self,
        foreign: &ForeignKeyDef,
        by_surrogate: Option<String>,
    ) -> Result<Option<ForeignKeyDef>, PlanError> {
        let Some(parent) = self.drafts.iter().find(|draft| draft.source.name == foreign.references) else {
            return Ok(None);
        };
        let Some(references) = self.target(&foreign.references).filter(|_| !parent.program.columns_only) else {
            return Ok(None);
        };
        if let (Some(column), Some(surrogate)) = (by_surrogate, &parent.surrogate) {
            let referenced_columns = vec![surrogate.clone()];
            return Ok(Some(ForeignKeyDef {
                columns: vec![column],
                references,
                referenced_columns,
                ..foreign.clone()
            }));
        }
        let ours: Option<Vec<&Work>> = foreign.columns.iter().map(|column| self.draft.now(column)).collect();
        let theirs: Option<Vec<&Work>> = foreign.referenced_columns.iter().map(|column| parent.now(column)).collect();
        if let (Some(ours), None) = (&ours, &theirs)
            && let Some(work) = ours.iter().find(|work| work.key.is_some())
        {
            return Err(PlanError::Clash(format!(
                "{}.{} refers to {} by columns that a step drops there: it would hold keys that no row has; \
                 drop it as well, or keep the columns that {} names",
                self.draft.source.name, work.name, parent.source.name, foreign.name
            )));
        }
        let (Some(ours), Some(theirs)) = (ours, theirs) else { return Ok(None) };
        for (ours, theirs) in ours.iter().zip(&theirs) {
            let same_domain = match (&ours.key, &theirs.key) {
                (Some(a), Some(b)) => a.table == b.table,
                (None, None) => ours.retyped == theirs.retyped || family(ours) == family(theirs),
                _ => false,
            };
            if !same_domain {
                return Err(PlanError::Clash(format!(
                    "{}.{} refers to {}.{}, and only one of the two changes its type; change both or neither",
                    self.draft.source.name, ours.name, parent.source.name, theirs.name
                )));
            }
        }
        let names = |works: &[&Work]| works.iter().map(|work| work.name.clone()).collect();
        Ok(Some(ForeignKeyDef {
            columns: names(&ours),
            references,
            referenced_columns: names(&theirs),
            ..foreign.clone()
        }))
    }
}

/// Kinds between which a reference can stand.
fn family(work: &Work) -> u8 {
    match work.value.logical {
        Logical::Int16 | Logical::Int32 | Logical::Int64 | Logical::Numeric => 1,
        Logical::Text => 2,
        Logical::Uuid => 3,
        Logical::Dynamic => 4,
        other => 16 + other as u8,
    }
}

fn is_whole(logical: Logical) -> bool {
    matches!(logical, Logical::Int16 | Logical::Int32 | Logical::Int64)
}

impl Work {
    /// What the column means in the target.
    fn value_logical(&self) -> Logical {
        if self.value.logical == Logical::Dynamic { self.target.logical } else { self.value.logical }
    }
}

/// What must exist before the tables do.
pub(super) fn support(context: &Context<'_>, tables: &[PlannedTable]) -> Catalog {
    let same = !context.crosses();
    let mut sequences: BTreeMap<TableName, SequenceDef> = BTreeMap::new();
    if same || context.options.dialect == Dialect::Postgres {
        for planned in tables.iter().filter(|planned| matches!(planned.write, Writing::Table)) {
            for def in &planned.def.columns {
                let Some(name) = &def.sequence else { continue };
                let owner = Some((planned.def.name.clone(), def.column.name.to_string()));
                let source = context.source.sequences.iter().find(|sequence| {
                    sequence.name == *name
                        || (sequence.name.name == name.name
                            && sequence.owner.as_ref().map(|(table, _)| table) == planned.source.as_ref())
                });
                let counted = match source {
                    Some(source) => SequenceDef { name: name.clone(), owner, ..source.clone() },
                    None if same => continue,
                    None => {
                        let last_value = None;
                        SequenceDef { name: name.clone(), options: String::new(), last_value, increment: 1, owner }
                    }
                };
                sequences.insert(name.clone(), counted);
            }
        }
    }
    Catalog {
        dialect: context.options.dialect,
        tables: Vec::new(),
        types: if same { context.source.types.clone() } else { Vec::new() },
        sequences: sequences.into_values().collect(),
        extensions: if same { context.source.extensions.clone() } else { Vec::new() },
    }
}
