//! The publication: made by us where our role may, otherwise by whoever may, from the SQL that we print.

use crate::{
    Session,
    client::{ServerError, failure},
    quote_ident, quote_table,
    source::{SourceConfig, catalog::Candidate, slot},
};
use crossfade_connector::Failure;
use crossfade_event::{TableName, TableSchema};
use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
};

struct Publication {
    all_operations: bool,
    via_root: bool,
    narrowed: bool,
    /// The tables with rows, leaves included.
    tables: HashSet<TableName>,
}

async fn find(session: &Session, name: &str, version: u32) -> Result<Option<Publication>, Failure> {
    let doing = || format!("looking at publication {name}");
    let sql = "SELECT pubinsert AND pubupdate AND pubdelete AND pubtruncate, pubviaroot \
               FROM pg_catalog.pg_publication WHERE pubname = $1";
    let Some(row) = session.query_opt(sql, &[&name]).await.map_err(|error| failure(doing(), error))? else {
        return Ok(None);
    };
    let narrowed = if version >= 150_000 {
        let sql = "SELECT EXISTS (SELECT FROM pg_catalog.pg_publication_rel r \
                   JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid \
                   WHERE p.pubname = $1 AND (r.prqual IS NOT NULL OR r.prattrs IS NOT NULL))";
        session.query_one(sql, &[&name]).await.map_err(|error| failure(doing(), error))?.get(0)
    } else {
        false
    };
    let sql = "SELECT schemaname::text, tablename::text FROM pg_catalog.pg_publication_tables WHERE pubname = $1";
    let rows = session.query(sql, &[&name]).await.map_err(|error| failure(doing(), error))?;
    let tables = rows.iter().map(|row| TableName::new(row.get::<_, String>(0), row.get::<_, String>(1))).collect();
    Ok(Some(Publication { all_operations: row.get(0), via_root: row.get(1), narrowed, tables }))
}

/// Makes the publication, or adds to it what it lacks.
pub(in crate::source) async fn ensure(
    session: &Session,
    config: &SourceConfig,
    candidates: &[Candidate],
    wanted: &[Candidate],
    version: u32,
) -> Result<(), Failure> {
    let name = config.object_name();
    refuse_unlogged(wanted)?;
    match statement(session, &name, candidates, wanted, version).await? {
        None => Ok(()),
        Some(sql) => run(session, &name, &sql).await,
    }
}

/// What makes the publication, or adds to it what it lacks; `None` when it holds all that is wanted. What is printed
/// for whoever may make it is what [`ensure`] runs.
pub(in crate::source) async fn statement(
    session: &Session,
    name: &str,
    candidates: &[Candidate],
    wanted: &[Candidate],
    version: u32,
) -> Result<Option<String>, Failure> {
    let publication = quote_ident(name)?;
    let Some(found) = find(session, name, version).await? else {
        let list = listed(candidates, wanted.iter())?;
        let how = match wanted.iter().any(|candidate| candidate.by_root) {
            true => " WITH (publish_via_partition_root = true)",
            false => "",
        };
        return Ok(Some(format!("CREATE PUBLICATION {publication} FOR TABLE {list}{how}")));
    };
    found.check_shape(name, wanted)?;
    let missing: Vec<&Candidate> = wanted.iter().filter(|candidate| !found.tables.contains(&candidate.name)).collect();
    if missing.is_empty() {
        return Ok(None);
    }
    let list = listed(candidates, missing.into_iter())?;
    Ok(Some(format!("ALTER PUBLICATION {publication} ADD TABLE {list}")))
}

fn refuse_unlogged(wanted: &[Candidate]) -> Result<(), Failure> {
    match wanted.iter().find(|candidate| candidate.unlogged) {
        None => Ok(()),
        Some(table) => Err(Failure::refused(
            format!("capturing {}", table.name),
            "it is unlogged, so that its changes are in no stream",
            format!("Exclude it (`!{}`), or make it logged: ALTER TABLE … SET LOGGED", table.name),
        )),
    }
}

/// The tables as a publication lists them: a tree by its root, so that new leaves are in at once; each table by
/// itself otherwise (`ONLY`, for children by inheritance are tables of their own).
fn listed<'a>(candidates: &[Candidate], wanted: impl Iterator<Item = &'a Candidate>) -> Result<String, Failure> {
    let roots: HashSet<&TableName> =
        candidates.iter().filter(|candidate| candidate.is_root).map(|candidate| &candidate.name).collect();
    let mut list = BTreeSet::new();
    for candidate in wanted {
        list.insert(match &candidate.root {
            Some(root) if roots.contains(root) => quote_table(root)?.to_string(),
            _ => format!("ONLY {}", quote_table(&candidate.name)?),
        });
    }
    Ok(list.into_iter().collect::<Vec<_>>().join(", "))
}

async fn run(session: &Session, name: &str, sql: &str) -> Result<(), Failure> {
    session.batch_execute(sql).await.map_err(|error| {
        let denied = ServerError::of(&error).is_some_and(|error| error.code == "42501");
        if denied {
            Failure::refused(
                format!("making publication {name}"),
                "the role may not (it needs to own the tables and to have CREATE on the database)",
                format!("Have the owner of the tables run: {sql};"),
            )
        } else {
            failure(format!("making publication {name}"), error)
        }
    })
}

impl Publication {
    fn check_shape(&self, name: &str, wanted: &[Candidate]) -> Result<(), Failure> {
        let by_root = wanted.iter().any(|candidate| candidate.by_root);
        let problem = if !self.all_operations {
            "it leaves out inserts, updates, deletes or truncates"
        } else if self.via_root && !by_root {
            "it publishes partitions under their root's name"
        } else if by_root && !self.via_root && wanted.iter().any(|candidate| candidate.is_root) {
            "it does not publish partitions under their root's name"
        } else if self.narrowed {
            "it has a row filter or a column list"
        } else {
            return Ok(());
        };
        Err(Failure::refused(
            format!("using publication {name}"),
            problem,
            format!("Drop it and let it be made anew: DROP PUBLICATION {}", quote_ident(name)?),
        ))
    }
}

/// On resuming: what was captured must be published still, or changes went by unseen.
pub(super) async fn still_covers(
    session: &Session,
    config: &SourceConfig,
    schemas: &[Arc<TableSchema>],
) -> Result<(), Failure> {
    let name = config.object_name();
    let sql = "SELECT c.oid, n.nspname::text, c.relname::text FROM pg_catalog.pg_class c \
               JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = ANY($1) AND NOT EXISTS \
               (SELECT FROM pg_catalog.pg_publication_tables t WHERE t.pubname = $2 \
                AND t.schemaname = n.nspname AND t.tablename = c.relname)";
    let oids: Vec<u32> = schemas.iter().map(|schema| schema.native_id).collect();
    let missing = session
        .query_opt(&format!("{sql} LIMIT 1"), &[&oids, &name])
        .await
        .map_err(|error| failure(format!("looking at publication {name}"), error))?;
    match missing {
        None => Ok(()),
        Some(row) => {
            let table = TableName::new(row.get::<_, String>(1), row.get::<_, String>(2));
            let problem = format!("publication {name} does not hold {table} any more: its changes went by unseen");
            Err(slot::lost(&name, problem))
        }
    }
}
