//! Whether a database is fit for its part, with the exact remedy for whatever is not.

use crate::{
    client::{failure, quote_ident, quote_table},
    source::capture::Capture,
};
use crossfade_connector::{Failure, Refusal, Target, WriteMode};
use crossfade_event::{
    Identity,
    catalog::{Catalog, RelationKind},
};
use tokio_postgres::Client;

const OLDEST_SOURCE: i32 = 130_000;
const OLDEST_TARGET: i32 = 140_000;

/// What the server and the role are.
struct Server {
    version: i32,
    wal_level: String,
    encoding: String,
    slots: i64,
    slots_max: i64,
    slots_ours: i64,
    senders: i64,
    senders_max: i64,
    superuser: bool,
    replication: bool,
    role: String,
    database: String,
    create: bool,
    temporary: bool,
    standby: bool,
    read_only: bool,
    has_crossfade: bool,
    crossfade_usable: bool,
    replica_role: bool,
}

async fn server(client: &Client) -> Result<Server, Failure> {
    let sql = "SELECT pg_catalog.current_setting('server_version_num')::int4, pg_catalog.current_setting('wal_level'), \
         pg_catalog.getdatabaseencoding()::text, (SELECT pg_catalog.count(*) FROM pg_catalog.pg_replication_slots), \
         pg_catalog.current_setting('max_replication_slots')::int8, \
         (SELECT pg_catalog.count(*) FROM pg_catalog.pg_replication_slots WHERE slot_name LIKE 'crossfade\\_%'), \
         (SELECT pg_catalog.count(*) FROM pg_catalog.pg_stat_replication), \
         pg_catalog.current_setting('max_wal_senders')::int8, \
         r.rolsuper, r.rolreplication OR r.rolsuper, r.rolname::text, pg_catalog.current_database()::text, \
         pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE'), \
         pg_catalog.has_database_privilege(pg_catalog.current_database(), 'TEMPORARY'), \
         pg_catalog.pg_is_in_recovery(), pg_catalog.current_setting('default_transaction_read_only') = 'on', \
         pg_catalog.to_regnamespace('crossfade') IS NOT NULL, \
         COALESCE((SELECT pg_catalog.has_schema_privilege(n.oid, 'USAGE, CREATE') FROM pg_catalog.pg_namespace n \
           WHERE n.nspname = 'crossfade'), false) \
         FROM pg_catalog.pg_roles r WHERE r.rolname = current_user";
    let row = client.query_one(sql, &[]).await.map_err(|error| failure("asking the server about itself", error))?;
    let version: i32 = row.get(0);
    let superuser: bool = row.get(8);
    let replica_role = match version {
        150_000.. => {
            let sql = "SELECT pg_catalog.has_parameter_privilege('session_replication_role', 'SET')";
            client.query_one(sql, &[]).await.map_err(|error| failure("asking for the role's rights", error))?.get(0)
        }
        _ => superuser,
    };
    Ok(Server {
        version,
        wal_level: row.get(1),
        encoding: row.get(2),
        slots: row.get(3),
        slots_max: row.get(4),
        slots_ours: row.get(5),
        senders: row.get(6),
        senders_max: row.get(7),
        superuser,
        replication: row.get(9),
        role: row.get(10),
        database: row.get(11),
        create: row.get(12),
        temporary: row.get(13),
        standby: row.get(14),
        read_only: row.get(15),
        has_crossfade: row.get(16),
        crossfade_usable: row.get(17),
        replica_role,
    })
}

fn refusal(object: impl Into<String>, problem: impl Into<String>, remedy: impl Into<String>) -> Refusal {
    Refusal { object: object.into(), problem: problem.into(), remedy: remedy.into(), fatal: true }
}

fn note(object: impl Into<String>, problem: impl Into<String>, remedy: impl Into<String>) -> Refusal {
    Refusal { fatal: false, ..refusal(object, problem, remedy) }
}

fn encoding(server: &Server, found: &mut Vec<Refusal>) {
    if server.encoding == "SQL_ASCII" {
        found.push(refusal(
            format!("database {}", server.database),
            "its encoding is SQL_ASCII: the server does not know what its texts mean, so they cannot be carried safely",
            "Dump it and restore it into a database made with ENCODING 'UTF8'",
        ));
    }
}

/// Whether the database can be a source.
pub(super) async fn source(client: &Client, catalog: &Catalog, missing: &Capture) -> Result<Vec<Refusal>, Failure> {
    let server = server(client).await?;
    let mut found = Vec::new();
    if server.version < OLDEST_SOURCE {
        found.push(refusal(
            "server",
            format!("its version is {}", server.version / 10_000),
            "Use PostgreSQL 13 or later",
        ));
    }
    if server.wal_level != "logical" {
        found.push(refusal(
            "wal_level",
            format!("it is {}, so that changes cannot be decoded", server.wal_level),
            "ALTER SYSTEM SET wal_level = 'logical'; and restart the server",
        ));
    }
    if server.slots >= server.slots_max {
        let all = format!("all {} replication slots are in use", server.slots_max);
        let remedy = format!(
            "ALTER SYSTEM SET max_replication_slots = {}; and restart, or drop a slot that nobody uses",
            server.slots_max + 4
        );
        // One of them may be this migration's own.
        found.push(Refusal { fatal: server.slots_ours == 0, ..refusal("max_replication_slots", all, remedy) });
    }
    if server.senders >= server.senders_max {
        found.push(refusal(
            "max_wal_senders",
            format!("all {} WAL senders are in use", server.senders_max),
            format!("ALTER SYSTEM SET max_wal_senders = {}; and restart", server.senders_max + 4),
        ));
    }
    if !server.replication {
        let role = quote_ident(&server.role)?;
        let slot = missing.slot.as_ref().map(|slot| {
            format!("\n-- with it the role makes the slot by itself, over a replication connection:\n--   {slot}")
        });
        found.push(refusal(
            format!("role {}", server.role),
            "it may not replicate, so it can neither make the slot nor read from it",
            format!("ALTER ROLE {role} REPLICATION;{}", slot.unwrap_or_default()),
        ));
    }
    encoding(&server, &mut found);
    for table in &catalog.tables {
        if let Some(obstacle) = &table.obstacle {
            let (problem, remedy) = obstacle.split_once("; ").unwrap_or((obstacle, "exclude it"));
            found.push(refusal(table.name.to_string(), problem, remedy));
        }
        if table.identity == Identity::InsertOnly && table.obstacle.is_none() && !is_root(&table.kind) {
            found.push(note(
                table.name.to_string(),
                "it has no key and no replica identity: only inserts can be captured, and the server refuses updates and \
                 deletes once it is published",
                format!(
                    "ALTER TABLE {0} ADD PRIMARY KEY (…), or ALTER TABLE {0} REPLICA IDENTITY FULL",
                    quote_table(&table.name)?
                ),
            ));
        }
    }
    tables(client, catalog, &server, missing, &mut found).await?;
    Ok(found)
}

fn is_root(kind: &RelationKind) -> bool {
    matches!(kind, RelationKind::Partitioned { .. })
}

/// Rights on the tables, row security, what is not carried.
async fn tables(
    client: &Client,
    catalog: &Catalog,
    server: &Server,
    missing: &Capture,
    found: &mut Vec<Refusal>,
) -> Result<(), Failure> {
    let oids: Vec<u32> = catalog.tables.iter().map(|table| table.native_id).collect();
    let sql = "SELECT c.oid, pg_catalog.has_table_privilege(c.oid, 'SELECT'), \
         pg_catalog.has_schema_privilege(c.relnamespace, 'USAGE'), pg_catalog.row_security_active(c.oid), \
         pg_catalog.pg_has_role(c.relowner, 'USAGE'), \
         ARRAY(SELECT k.conname::text FROM pg_catalog.pg_constraint k WHERE k.conrelid = c.oid AND k.contype = 'x'), \
         (SELECT pg_catalog.count(*) FROM pg_catalog.pg_trigger t WHERE t.tgrelid = c.oid AND NOT t.tgisinternal), \
         c.relhasrules AND c.relkind IN ('r', 'p') \
         FROM pg_catalog.pg_class c WHERE c.oid = ANY ($1)";
    let rows =
        client.query(sql, &[&oids]).await.map_err(|error| failure("looking at the rights on the tables", error))?;
    let role = quote_ident(&server.role)?;
    let mut not_owned = Vec::new();
    for table in &catalog.tables {
        let Some(row) = rows.iter().find(|row| row.get::<_, u32>(0) == table.native_id) else { continue };
        let (name, quoted) = (table.name.to_string(), quote_table(&table.name)?);
        if !row.get::<_, bool>(2) {
            let schema = quote_ident(&table.name.schema)?;
            found.push(refusal(
                &name,
                "the role may not look into its schema",
                format!("GRANT USAGE ON SCHEMA {schema} TO {role}"),
            ));
        }
        if !row.get::<_, bool>(1) && table.obstacle.is_none() {
            found.push(refusal(&name, "the role may not read it", format!("GRANT SELECT ON TABLE {quoted} TO {role}")));
        }
        if row.get::<_, bool>(3) {
            found.push(refusal(
                &name,
                "row level security hides rows from the role, so that a copy would lack them",
                format!("ALTER ROLE {role} BYPASSRLS, or use the owner of {quoted}"),
            ));
        }
        if !row.get::<_, bool>(4) && table.obstacle.is_none() {
            not_owned.push(quoted.to_string());
        }
        for constraint in row.get::<_, Vec<String>>(5) {
            found.push(note(
                &name,
                format!("its exclusion constraint {constraint} is not made in the target"),
                "Add it there after the move",
            ));
        }
        if row.get::<_, i64>(6) > 0 {
            found.push(note(&name, "its triggers are not made in the target", "Add them there before the switch"));
        }
    }
    publication(server, missing, &not_owned, found);
    Ok(())
}

/// The publication, where the role may not make it: the exact statement for somebody who may.
fn publication(server: &Server, missing: &Capture, not_owned: &[String], found: &mut Vec<Refusal>) {
    let Some(statement) = &missing.publication else { return };
    if server.superuser || (not_owned.is_empty() && server.create) {
        return;
    }
    let mut list: Vec<&str> = not_owned.iter().take(5).map(String::as_str).collect();
    if not_owned.len() > 5 {
        list.push("…");
    }
    let problem = match list.is_empty() {
        true => "it may not make a publication in this database".to_owned(),
        false => format!("it does not own {}, so it cannot publish them by itself", list.join(", ")),
    };
    let remedy = format!("-- once, by the owner of the tables or a superuser:\n{statement};");
    // With a slot the migration has begun: then only tables that came later are missing.
    let fatal = missing.slot.is_some();
    found.push(Refusal { fatal, ..refusal(format!("role {}", server.role), problem, remedy) });
}

/// Whether the database can be a target at all.
pub(super) async fn sink(client: &Client) -> Result<Vec<Refusal>, Failure> {
    let server = server(client).await?;
    let mut found = Vec::new();
    let role = quote_ident(&server.role)?;
    let database = quote_ident(&server.database)?;
    if server.version < OLDEST_TARGET {
        found.push(refusal(
            "server",
            format!("its version is {}", server.version / 10_000),
            "Use PostgreSQL 14 or later",
        ));
    }
    if server.standby {
        found.push(refusal("server", "it is a standby and takes no writes", "Name the primary, or promote it"));
    }
    if server.read_only {
        found.push(note(
            format!("database {}", server.database),
            "its transactions are read-only by default",
            format!("ALTER DATABASE {database} RESET default_transaction_read_only"),
        ));
    }
    encoding(&server, &mut found);
    if !server.create && !server.has_crossfade {
        found.push(refusal(
            format!("database {}", server.database),
            "the role may not make schemas in it, and needs one named crossfade for its position",
            format!("GRANT CREATE ON DATABASE {database} TO {role}, or: CREATE SCHEMA crossfade AUTHORIZATION {role}"),
        ));
    }
    if server.has_crossfade && !server.crossfade_usable {
        found.push(refusal(
            "schema crossfade",
            "it is there, and the role may not use it",
            format!("GRANT USAGE, CREATE ON SCHEMA crossfade TO {role}"),
        ));
    }
    if !server.temporary {
        found.push(refusal(
            format!("database {}", server.database),
            "the role may not make temporary objects, which sets of changes travel through",
            format!("GRANT TEMPORARY ON DATABASE {database} TO {role}"),
        ));
    }
    if !server.replica_role {
        found.push(note(
            format!("role {}", server.role),
            "it may not set session_replication_role, so the target's triggers and foreign keys fire on every change",
            format!("From PostgreSQL 15: GRANT SET ON PARAMETER session_replication_role TO {role}"),
        ));
    }
    Ok(found)
}

/// Whether a target's tables can be made or written.
pub(super) async fn target(client: &Client, target: &Target) -> Result<Vec<Refusal>, Failure> {
    let mut found = sink(client).await?;
    let server = server(client).await?;
    let role = quote_ident(&server.role)?;
    let mut schemas: Vec<&str> = Vec::new();
    for table in &target.tables {
        let name = &table.schema.name;
        let quoted = quote_table(name)?;
        let sql = "SELECT n.oid IS NOT NULL, COALESCE(pg_catalog.has_schema_privilege(n.oid, 'USAGE, CREATE'), false), \
             c.oid IS NOT NULL, COALESCE(pg_catalog.has_table_privilege(c.oid, 'SELECT') \
               AND pg_catalog.has_table_privilege(c.oid, 'INSERT') AND pg_catalog.has_table_privilege(c.oid, 'UPDATE') \
               AND pg_catalog.has_table_privilege(c.oid, 'DELETE'), false), \
             COALESCE(pg_catalog.pg_has_role(c.relowner, 'USAGE'), false), \
             COALESCE(pg_catalog.row_security_active(c.oid), false) \
             FROM (SELECT 1) one LEFT JOIN pg_catalog.pg_namespace n ON n.nspname = $1 \
             LEFT JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = $2";
        let doing = format!("looking for {name} in the target");
        let row =
            client.query_one(sql, &[&&*name.schema, &&*name.name]).await.map_err(|error| failure(&doing, error))?;
        let (schema, usable, there, writable, owned, secured): (bool, bool, bool, bool, bool, bool) =
            (row.get(0), row.get(1), row.get(2), row.get(3), row.get(4), row.get(5));
        if !there && !schemas.contains(&&*name.schema) {
            schemas.push(&name.schema);
            if schema && !usable {
                found.push(refusal(
                    format!("schema {}", name.schema),
                    "the role may not make tables in it",
                    format!("GRANT USAGE, CREATE ON SCHEMA {} TO {role}", quote_ident(&name.schema)?),
                ));
            }
            if !schema && !server.create {
                found.push(refusal(
                    format!("schema {}", name.schema),
                    "it is not there, and the role may not make it",
                    format!("CREATE SCHEMA {} AUTHORIZATION {role}", quote_ident(&name.schema)?),
                ));
            }
        }
        if there && !writable {
            found.push(refusal(
                name.to_string(),
                "the role may not write it",
                format!("GRANT SELECT, INSERT, UPDATE, DELETE ON TABLE {quoted} TO {role}"),
            ));
        }
        if there && !owned && matches!(table.mode, WriteMode::Columns { .. }) {
            found.push(refusal(
                name.to_string(),
                "only its owner can add the shadow columns",
                format!("GRANT the role of its owner TO {role}, or add the columns by hand"),
            ));
        }
        if secured {
            found.push(refusal(
                name.to_string(),
                "row level security would hide rows from the role",
                format!("ALTER ROLE {role} BYPASSRLS"),
            ));
        }
    }
    Ok(found)
}
