//! Before the first byte: is it the same server, is everything there, and where does the stream begin?
//!
//! The publication comes first and the slot second: a slot decodes with the catalog as it was at each change, so a
//! publication made after the slot would be missing from the slot's beginning.

pub(super) mod publication;
mod reserve;

pub(super) use reserve::{place_of_slot, tell_old_rows};

use super::{
    Begin, SourceConfig,
    catalog::{self, CapturedNames, LiveTable},
    heaps::Heaps,
    slot,
    tree::{self, Trees},
    visibility,
};
use crate::{
    Patterns, Session,
    client::{
        self, failure,
        replication::{Identified, Lsn, Replication},
    },
    codec::types::{Portability, TypeFacts},
    quote_literal,
};
use crossfade_connector::{Failure, Resume, SnapshotState};
use crossfade_event::{Backfill, Event, Position, SchemaVersion, SourceId, TableId, TableSchema, Visibility};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::PathBuf,
    sync::Arc,
};

/// The oldest server that is supported.
const VERSION_MIN: u32 = 130_000;

/// Everything the engine starts with.
pub(super) struct Prepared {
    pub(super) version: u32,
    pub(super) session: Session,
    pub(super) replication: Replication,
    /// Where the stream begins: everything up to here is in the log, or (with an empty log) in the backfill.
    pub(super) origin: Position,
    /// A transaction number of now, to widen others by.
    pub(super) near_xid: u64,
    /// Whether every value is asked for as text.
    pub(super) text: bool,
    /// The tables' latest schemas.
    pub(super) schemas: Vec<Arc<TableSchema>>,
    /// Those that must be written to the log before anything else.
    pub(super) announce: Vec<Event>,
    /// The backfill to go on with.
    pub(super) snapshot: SnapshotState,
    pub(super) captured: Arc<CapturedNames>,
    /// Those of the tables that are roots of partition trees, by oid.
    pub(super) roots: BTreeSet<u32>,
    /// How their trees were when they were copied.
    pub(super) trees: Trees,
    /// How the other tables were then.
    pub(super) heaps: Heaps,
    /// The end of WAL now.
    pub(super) current: Lsn,
}

struct Server {
    version: u32,
    database_oid: u32,
    near_xid: u64,
}

pub(super) async fn prepare(config: &SourceConfig, patterns: &Patterns, resume: Resume) -> Result<Prepared, Failure> {
    let session = client::connect(&config.connection, &config.application_name()).await?;
    let server = examine(&session).await?;
    let mut replication = Replication::connect(&config.connection, &config.application_name()).await?;
    let identified = replication.identify().await?;
    let source = SourceId::of(&format!("postgres:{}:{}", identified.system, server.database_oid));
    match resume.position {
        None => Box::pin(begin(config, patterns, session, server, replication, identified, source)).await,
        Some(position) => {
            check_identity(config, &position, source, &identified, &mut replication).await?;
            check_reach(config, &session, &position, &identified).await?;
            Box::pin(go_on(config, session, server, replication, identified, position, resume)).await
        }
    }
}

async fn examine(session: &Session) -> Result<Server, Failure> {
    let doing = "looking at the server";
    let sql = "SELECT pg_catalog.current_setting('server_version_num')::int4, \
               pg_catalog.current_setting('wal_level'), pg_catalog.pg_encoding_to_char(d.encoding)::text, d.oid, \
               pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())::text \
               FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()";
    let row = session.query_one(sql, &[]).await.map_err(|error| failure(doing, error))?;
    let (version, wal_level, encoding): (i32, String, String) = (row.get(0), row.get(1), row.get(2));
    let refused = |problem: String, advice: &str| Err(Failure::refused(doing, problem, advice.to_owned()));
    if (version as u32) < VERSION_MIN {
        return refused(format!("its version is {version}"), "PostgreSQL 13 or later is needed");
    }
    if wal_level != "logical" {
        return refused(
            format!("wal_level is {wal_level}"),
            "Set it and restart the server: ALTER SYSTEM SET wal_level = 'logical'",
        );
    }
    if encoding == "SQL_ASCII" {
        return refused(
            "the database's encoding is SQL_ASCII, so that nobody knows what its texts mean".to_owned(),
            "Move it into a database with a real encoding first (pg_dump with --encoding, then restore)",
        );
    }
    Ok(Server {
        version: version as u32,
        database_oid: row.get(3),
        near_xid: row.get::<_, String>(4).parse().unwrap_or_default(),
    })
}

/// The same database of the same server, on the same timeline or on one that left ours after our position.
async fn check_identity(
    config: &SourceConfig,
    position: &Position,
    source: SourceId,
    identified: &Identified,
    replication: &mut Replication,
) -> Result<(), Failure> {
    let slot = config.object_name();
    if position.source != source {
        return Err(slot::lost(&slot, "this is another server or another database than the log's".to_owned()));
    }
    if position.timeline == identified.timeline {
        return Ok(());
    }
    let history = replication.timeline_history(identified.timeline).await?;
    match history.into_iter().find(|(timeline, _)| *timeline == position.timeline) {
        Some((_, end)) if position.commit <= end.0 => Ok(()),
        _ => Err(slot::lost(
            &slot,
            format!(
                "the server is on timeline {}, which left ours ({}) before our position",
                identified.timeline, position.timeline
            ),
        )),
    }
}

/// A server that was put back to an earlier state has our slot and our timeline, and less history than we have read: it
/// would pass over everything up to our position in silence.
async fn check_reach(
    config: &SourceConfig,
    session: &Session,
    position: &Position,
    identified: &Identified,
) -> Result<(), Failure> {
    if position.commit <= identified.current.0 {
        return Ok(());
    }
    // The server may have been promoted since it said where it stands: then that was its old timeline's end.
    let doing = "looking at the server's history";
    let sql = "SELECT CASE WHEN NOT pg_catalog.pg_is_in_recovery() \
               THEN pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()) END";
    let row = session.query_one(sql, &[]).await.map_err(|error| failure(doing, error))?;
    let Some(file) = row.get::<_, Option<String>>(0) else {
        return Err(Failure::retry(doing, "the standby has not replayed up to our position yet"));
    };
    // A WAL file's name begins with its timeline, in eight hexadecimal digits.
    if file.get(..8).and_then(|digits| u32::from_str_radix(digits, 16).ok()) != Some(identified.timeline) {
        return Err(Failure::retry(doing, "the server has just been promoted"));
    }
    let current = identified.current;
    Err(slot::lost(
        &config.object_name(),
        format!("the server's history ends before our position, at {current}: it was put back from a backup"),
    ))
}

/// An empty log: publication, slot, and the beginning of the first backfill. Where the slot was made before, that backfill
/// is one of no tables.
async fn begin(
    config: &SourceConfig,
    patterns: &Patterns,
    session: Session,
    server: Server,
    mut replication: Replication,
    identified: Identified,
    source: SourceId,
) -> Result<Prepared, Failure> {
    let candidates = catalog::candidates(&session, &config.migration).await?;
    let names: Vec<_> = candidates.iter().map(|candidate| candidate.name.clone()).collect();
    patterns.select_beside(&names, &catalog::without_rows(&session).await?)?;
    let wanted = catalog::wanted(&candidates, patterns);
    let slot = config.object_name();
    match config.begin {
        Begin::Copy => {
            publication::ensure(&session, config, &candidates, &wanted, server.version).await?;
            clear_leftover(config, &session, &slot, &identified.system).await?;
        }
        Begin::At(place) => {
            let cannot = |error| Failure::retry(format!("making {}", config.spool_dir.display()), error);
            tokio::fs::create_dir_all(&config.spool_dir).await.map_err(cannot)?;
            check_identity(config, &place, source, &identified, &mut replication).await?;
            check_reach(config, &session, &place, &identified).await?;
            reserve::still_there(config, &session, &candidates, &wanted, server.version, &place).await?;
        }
    }
    let mut trees = Trees::read(&config.spool_dir, 0).await?;
    for root in wanted.iter().filter(|candidate| candidate.is_root) {
        let members = tree::members(&session, root.oid).await?;
        tree::check(&root.name, &members, patterns)?;
        trees.copied(root.oid, &members, 1).await?;
    }
    let oids: Vec<u32> = wanted.iter().map(|candidate| candidate.oid).collect();
    let before = catalog::live_tables(&session, &oids).await?;
    let mut heaps = Heaps::read(&config.spool_dir, 0).await;
    heaps.copied(before.into_values().map(|table| (table.oid, table.heap)).collect(), 1).await?;
    let (commit, visible) = match config.begin {
        Begin::Copy => {
            let failover = config.failover && server.version >= 170_000;
            let created = replication.create_slot(&slot, server.version, failover).await?;
            (created.consistent_point.0, Some(exported(&session, &created.snapshot).await?))
        }
        Begin::At(place) => (place.commit, None),
    };

    let live = catalog::live_tables(&session, &oids).await?;
    let types = catalog::column_types(&session, live.values()).await?;
    let text = config.text || needs_text(&live, &types);
    let mut ordered: Vec<&LiveTable> = live.values().collect();
    ordered.sort_by(|a, b| a.name.cmp(&b.name));
    let schemas: Vec<Arc<TableSchema>> = (1u32..)
        .zip(ordered)
        .map(|(id, table)| Arc::new(table.schema(TableId(id), SchemaVersion(1), &types, text)))
        .collect();
    let copied = schemas.iter().filter(|_| config.begin == Begin::Copy);
    let tables: Vec<TableId> = copied.map(|schema| schema.id).collect();
    let mut announce: Vec<Event> = schemas.iter().cloned().map(Event::SchemaSeen).collect();
    announce.push(Event::BackfillBegan(Backfill { generation: 1, tables: tables.clone(), visible: visible.clone() }));
    let snapshot = SnapshotState {
        generation: 1,
        ended: false,
        visible,
        tables: tables.into_iter().map(|table| (table, Default::default())).collect(),
    };
    let origin = Position { source, timeline: identified.timeline, commit, ordinal: u32::MAX };
    let captured = Arc::new(CapturedNames::default());
    schemas.iter().for_each(|schema| captured.insert(schema.native_id));
    Ok(Prepared {
        version: server.version,
        session,
        replication,
        origin,
        near_xid: server.near_xid,
        text,
        schemas,
        announce,
        snapshot,
        captured,
        roots: roots(&live),
        trees,
        heaps,
        current: identified.current,
    })
}

/// A log with a position: everything must still be there.
async fn go_on(
    config: &SourceConfig,
    session: Session,
    server: Server,
    replication: Replication,
    identified: Identified,
    position: Position,
    resume: Resume,
) -> Result<Prepared, Failure> {
    let name = config.object_name();
    let found = slot::find(&session, &name).await?;
    let Some(found) = found else {
        return Err(slot::lost(&name, "the slot does not exist any more".to_owned()));
    };
    found.check_history(&name, config.connection.dbname(), &position)?;
    found.check_free(&name)?;
    publication::still_covers(&session, config, &resume.schemas).await?;
    let _ = tokio::fs::remove_file(marker(config)).await;

    let oids: Vec<u32> = resume.schemas.iter().map(|schema| schema.native_id).collect();
    let live = catalog::live_tables(&session, &oids).await?;
    let types = catalog::column_types(&session, live.values()).await?;
    let text = config.text || needs_text(&live, &types);
    let captured = Arc::new(CapturedNames::default());
    resume.schemas.iter().for_each(|schema| captured.insert(schema.native_id));
    let origin = Position { timeline: identified.timeline, ..position };
    // What is visible may not be flushed yet: the chunks that are in the log saw at most this.
    let current = slot::end_of_wal(&session).await?;
    let trees = Trees::read(&config.spool_dir, resume.snapshot.generation).await?;
    let heaps = Heaps::read(&config.spool_dir, resume.snapshot.generation).await;
    Ok(Prepared {
        version: server.version,
        session,
        replication,
        origin,
        near_xid: server.near_xid,
        text,
        schemas: resume.schemas,
        announce: Vec::new(),
        snapshot: resume.snapshot,
        captured,
        roots: roots(&live),
        trees,
        heaps,
        current,
    })
}

fn roots(live: &BTreeMap<u32, LiveTable>) -> BTreeSet<u32> {
    live.values().filter(|table| table.is_root).map(|table| table.oid).collect()
}

/// Text must be asked for everywhere as soon as one column cannot travel in binary form: it is one switch of the
/// stream.
pub(super) fn needs_text(live: &BTreeMap<u32, LiveTable>, types: &HashMap<u32, TypeFacts>) -> bool {
    let columns = live.values().flat_map(|table| &table.columns);
    columns.filter_map(|column| types.get(&column.type_oid)).any(|facts| facts.portability == Portability::TextOnly)
}

/// A file that says "we are making this slot": a slot found beside it with an empty log is a leftover of ours.
fn marker(config: &SourceConfig) -> PathBuf {
    config.spool_dir.join("making-slot")
}

/// A slot that exists although the log is empty is dropped if we made it, and refused otherwise.
async fn clear_leftover(config: &SourceConfig, session: &Session, slot: &str, system: &str) -> Result<(), Failure> {
    let doing = || format!("making slot {slot}");
    let note = format!("{system} {slot}\n");
    let cannot = |error: std::io::Error| Failure::retry(format!("writing into {}", config.spool_dir.display()), error);
    tokio::fs::create_dir_all(&config.spool_dir).await.map_err(cannot)?;
    if let Some(found) = slot::find(session, slot).await? {
        if tokio::fs::read_to_string(marker(config)).await.ok().as_deref() != Some(&note) {
            return Err(Failure::refused(
                doing(),
                "a slot of this name exists already, and this log is empty: it belongs to somebody else",
                format!("If nobody uses it, drop it: SELECT pg_drop_replication_slot('{slot}')"),
            ));
        }
        found.check_free(slot)?;
        session
            .execute("SELECT pg_catalog.pg_drop_replication_slot($1::text::name)", &[&slot])
            .await
            .map_err(|error| failure(doing(), error))?;
    }
    let path = marker(config);
    let write = move || {
        use std::io::Write;
        let mut file = std::fs::File::create(path)?;
        file.write_all(note.as_bytes())?;
        file.sync_all()
    };
    match tokio::task::spawn_blocking(write).await {
        Ok(written) => written.map_err(cannot),
        Err(_) => Err(Failure::retry(doing(), "the writing task ended")),
    }
}

/// What the slot's exported snapshot can see.
async fn exported(session: &Session, snapshot: &str) -> Result<Visibility, Failure> {
    let doing = "reading the slot's snapshot";
    let begin = format!(
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT {}",
        quote_literal(snapshot)
    );
    session.batch_execute(&begin).await.map_err(|error| failure(doing, error))?;
    let row = session
        .query_one("SELECT pg_catalog.pg_current_snapshot()::text", &[])
        .await
        .map_err(|error| failure(doing, error))?;
    session.batch_execute("COMMIT").await.map_err(|error| failure(doing, error))?;
    visibility::parse(row.get(0)).ok_or_else(|| Failure::retry(doing, "the server's snapshot could not be read"))
}
