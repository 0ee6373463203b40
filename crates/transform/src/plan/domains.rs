//! Which columns hold keys that become new ones: every integer key of the matched tables, and every reference to one,
//! followed through the catalog until nothing new is found.

use super::{PlanError, PlanOptions, find_table, known_table, unknown_column};
use crate::{
    keys::Maker,
    pattern,
    rules::{KeyMaker, KeyRule, Rules},
    suggest::suggestion,
    types::{Affinity, affinity},
};
use crossfade_event::{
    ColumnType, Logical, TableName,
    catalog::{Catalog, RelationKind, TableDef},
};
use std::{collections::BTreeMap, sync::Arc};

/// A table whose keys become new ones.
#[derive(Debug, Clone)]
pub(crate) struct Domain {
    /// The source's table: part of what is hashed.
    pub(crate) table: TableName,
    /// The columns of its old key, with their types.
    pub(crate) key: Vec<(String, ColumnType)>,
    pub(crate) maker: Arc<Maker>,
    /// The column that a v7 takes its time from.
    pub(crate) time: Option<(String, ColumnType)>,
}

/// All that is known of new keys.
#[derive(Debug, Default)]
pub(crate) struct Domains {
    /// Single columns: (table, column), and whose key it holds.
    pub(crate) columns: BTreeMap<(TableName, String), Arc<Domain>>,
    /// Tables with a surrogate for their composite key: its name.
    pub(crate) surrogates: BTreeMap<TableName, (String, Arc<Domain>)>,
}

impl Domains {
    /// True when nothing gets a new key.
    pub(crate) fn is_empty(&self) -> bool {
        self.columns.is_empty() && self.surrogates.is_empty()
    }

    /// All rules in use.
    pub(crate) fn makers(&self) -> impl Iterator<Item = &Arc<Maker>> {
        self.columns.values().chain(self.surrogates.values().map(|(_, domain)| domain)).map(|domain| &domain.maker)
    }
}

/// Finds them.
pub(crate) fn find(source: &Catalog, rules: &Rules, options: &PlanOptions) -> Result<Domains, PlanError> {
    let secret = Arc::new(options.secret.clone());
    let mut makers: BTreeMap<&str, Arc<Maker>> = BTreeMap::new();
    for (name, rule) in &rules.keys {
        makers.insert(name, Arc::new(maker(name, rule, &secret)?));
    }
    let mut domains = Domains::default();
    for table in &source.tables {
        own_key(source, rules, &makers, table, &mut domains)?;
    }
    let links = references(source, rules)?;
    // Each round follows references one step further; a chain is at most as long as there are links.
    for _ in 0..=links.len() {
        let mut grown = false;
        for ((table, column), target) in &links {
            let Some(domain) = domains.columns.get(target).cloned() else { continue };
            match domains.columns.get(&(table.clone(), column.clone())) {
                None => {
                    domains.columns.insert((table.clone(), column.clone()), domain);
                    grown = true;
                }
                Some(known) if known.table != domain.table => {
                    return Err(PlanError::Clash(format!(
                        "{table}.{column} refers to the key of {} and to that of {}, which become different new keys",
                        known.table, domain.table
                    )));
                }
                Some(_) => {}
            }
        }
        if !grown {
            break;
        }
    }
    Ok(domains)
}

fn maker(name: &str, rule: &KeyRule, secret: &Arc<Vec<u8>>) -> Result<Maker, PlanError> {
    let place = format!("[keys.{name}]");
    let invalid = |problem: &str| Err(PlanError::invalid(place.clone(), problem));
    let hashes_namespace = matches!(rule.make, KeyMaker::UuidV5 | KeyMaker::UuidV8Sha256);
    let namespace = match (&rule.namespace, hashes_namespace) {
        (Some(text), true) => match uuid::Uuid::try_parse(text) {
            Ok(uuid) => uuid.into_bytes(),
            Err(_) => return invalid("namespace must be a UUID, as `uuidgen` prints one"),
        },
        (None, false) => [0; 16],
        (None, true) => return invalid("uuid-v5 and uuid-v8-sha256 need a namespace (a UUID of your own)"),
        (Some(_), false) => return invalid("only uuid-v5 and uuid-v8-sha256 have a namespace"),
    };
    if (rule.make == KeyMaker::UuidV7) != rule.time.is_some() {
        return invalid("uuid-v7 needs `time`, the column that its time comes from, and no other way has one");
    }
    let canonical = rule.make == KeyMaker::CanonicalSha256;
    if !canonical && (!rule.normalise.is_empty() || rule.version.is_some()) {
        return invalid("only canonical-sha256 has `normalise` and `version`");
    }
    if matches!(rule.make, KeyMaker::UuidV4 | KeyMaker::UuidV7) && secret.len() < 16 {
        return invalid("uuid-v4 and uuid-v7 need the migration's secret, of at least 16 bytes");
    }
    Ok(Maker {
        make: rule.make,
        namespace,
        secret: secret.clone(),
        normalise: rule.normalise.clone(),
        version: rule.version.unwrap_or(1),
    })
}

/// The table's own key, if it becomes a new one.
fn own_key(
    source: &Catalog,
    rules: &Rules,
    makers: &BTreeMap<&str, Arc<Maker>>,
    table: &TableDef,
    domains: &mut Domains,
) -> Result<(), PlanError> {
    let rule = rules.table.iter().find(|rule| find_table(source, &rule.from).is_some_and(|d| d.name == table.name));
    let surrogate = rule.and_then(|rule| rule.surrogate.as_ref());
    let by_table = rule.and_then(|rule| rule.key.as_deref());
    let by_rekey = rules
        .rekey
        .as_ref()
        .filter(|rekey| pattern::takes(&rekey.tables, &table.name))
        .map(|rekey| rekey.with.as_str());
    let Some(name) = by_table.or(by_rekey).or(surrogate.map(|_| "default")) else { return Ok(()) };
    let Some(maker) = makers.get(name) else {
        return Err(PlanError::invalid(
            format!("the new keys of {}", table.name),
            format!("there is no [keys.{name}]{}", suggestion(name, makers.keys().copied())),
        ));
    };
    let Some(key) = &table.primary_key else {
        if surrogate.is_some() || by_table.is_some() {
            let problem = "it has no primary key that a new one could be made of";
            return Err(PlanError::invalid(table.name.to_string(), problem));
        }
        return Ok(());
    };
    let typed: Vec<(String, ColumnType)> =
        key.columns.iter().filter_map(|name| Some((name.clone(), table.column(name)?.column.type_.clone()))).collect();
    let domain = || -> Result<Arc<Domain>, PlanError> {
        let time = time_of(rules, name, table)?;
        Ok(Arc::new(Domain { table: root(source, table), key: typed.clone(), maker: maker.clone(), time }))
    };
    if let Some(surrogate) = surrogate {
        if table.column(surrogate).is_some() {
            return Err(PlanError::Clash(format!(
                "the surrogate of {} would be called \"{surrogate}\", as one of its columns is",
                table.name
            )));
        }
        domains.surrogates.insert(table.name.clone(), (surrogate.clone(), domain()?));
        return Ok(());
    }
    match typed.as_slice() {
        [(column, type_)] if by_table.is_some() || is_integer(type_) => {
            let is_reference = table.foreign_keys.iter().any(|foreign| foreign.columns == [column.clone()]);
            if !is_reference || by_table.is_some() {
                domains.columns.insert((table.name.clone(), column.clone()), domain()?);
            }
        }
        [_] => {}
        _ if by_table.is_some() => {
            return Err(PlanError::invalid(
                table.name.to_string(),
                "a composite key becomes one new key only as a new column: give it a name with `surrogate`",
            ));
        }
        // Parts of a composite key follow what they refer to.
        _ => {}
    }
    Ok(())
}

/// Partitions share the keys of their root.
fn root(source: &Catalog, table: &TableDef) -> TableName {
    let mut at = table;
    for _ in 0..64 {
        match &at.kind {
            RelationKind::Partition { parent, .. } => match source.table(parent) {
                Some(parent) => at = parent,
                None => return parent.clone(),
            },
            _ => return at.name.clone(),
        }
    }
    at.name.clone()
}

fn time_of(rules: &Rules, name: &str, table: &TableDef) -> Result<Option<(String, ColumnType)>, PlanError> {
    let Some(time) = rules.keys.get(name).and_then(|rule| rule.time.as_ref()) else { return Ok(None) };
    let place = format!("[keys.{name}] time");
    let Some(def) = table.column(time) else {
        return Err(unknown_column(&place, &table.name, time, table.columns.iter().map(|def| &*def.column.name)));
    };
    let type_ = def.column.type_.clone();
    let fits = matches!(type_.logical, Logical::Timestamp | Logical::TimestampTz | Logical::Date | Logical::Dynamic);
    if !fits {
        return Err(PlanError::invalid(place, format!("{}.{time} is {}, which is no moment", table.name, type_.name)));
    }
    Ok(Some((time.clone(), type_)))
}

pub(crate) fn is_integer(type_: &ColumnType) -> bool {
    match type_.logical {
        Logical::Int16 | Logical::Int32 | Logical::Int64 => true,
        Logical::Dynamic => affinity(&type_.name) == Affinity::Integer,
        _ => false,
    }
}

type Place = (TableName, String);

/// Every single-column step of every reference: from the catalog, and those that the rules add.
fn references(source: &Catalog, rules: &Rules) -> Result<Vec<(Place, Place)>, PlanError> {
    let mut links = Vec::new();
    for table in &source.tables {
        for foreign in &table.foreign_keys {
            for (column, referenced) in foreign.columns.iter().zip(&foreign.referenced_columns) {
                links.push(((table.name.clone(), column.clone()), (foreign.references.clone(), referenced.clone())));
            }
        }
    }
    for (from, to) in rules.rekey.iter().flat_map(|rekey| &rekey.references) {
        let place = format!("[rekey.references] \"{from}\"");
        let Some((table, column)) = from.rsplit_once('.') else {
            return Err(PlanError::invalid(place, "write schema.table.column"));
        };
        let table = known_table(source, table, &place)?;
        if table.column(column).is_none() {
            let known = table.columns.iter().map(|def| &*def.column.name);
            return Err(unknown_column(&place, &table.name, column, known));
        }
        let referenced = known_table(source, to, &place)?;
        match referenced.primary_key.as_ref().map(|key| key.columns.as_slice()) {
            Some([key]) => {
                links.push(((table.name.clone(), column.to_owned()), (referenced.name.clone(), key.clone())));
            }
            _ => {
                return Err(PlanError::invalid(place, format!("{} has no primary key of one column", referenced.name)));
            }
        }
    }
    // A partition's columns hold what its root's columns hold.
    for table in &source.tables {
        if let RelationKind::Partition { parent, .. } = &table.kind {
            for def in &table.columns {
                let name = def.column.name.to_string();
                links.push(((table.name.clone(), name.clone()), (parent.clone(), name)));
            }
        }
    }
    Ok(links)
}
