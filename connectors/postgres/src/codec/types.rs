//! PostgreSQL's types: what each means across systems, and whether its binary form can travel.
//!
//! A type's binary form may hold things that only its own server understands: an array or a composite carries the
//! oids of what is inside, and those of user-defined types differ from server to server; the `reg*` types are oids.
//! Some types have no binary form at all, and an array of one makes the server itself fail when asked for it. So each
//! type is walked to its leaves before anything is read.

use crate::client::failure;
use crossfade_connector::Failure;
use crossfade_event::{Format, Logical};
use std::collections::HashMap;

/// The first oid of objects that users make.
const FIRST_USER_OID: u32 = 16_384;

/// How a type's values can travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Portability {
    /// The binary form means the same on every server.
    Binary,
    /// The type has no binary form, the server sends it as text by itself.
    TextByItself,
    /// The binary form fails or holds the server's own numbers: text must be asked for.
    TextOnly,
}

/// What we know of a type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TypeFacts {
    /// Its oid.
    pub oid: u32,
    /// What it means.
    pub logical: Logical,
    /// How its values can travel.
    pub portability: Portability,
}

impl TypeFacts {
    /// The format of a column of this type, in a stream that asks for text everywhere, or not.
    pub fn format(&self, text_everywhere: bool) -> Format {
        match self.portability {
            Portability::Binary if !text_everywhere => Format::PgBinary,
            _ => Format::PgText,
        }
    }
}

/// What a built-in type means. Domains are asked for by their base.
pub fn logical(oid: u32) -> Logical {
    match oid {
        16 => Logical::Bool,
        21 => Logical::Int16,
        23 => Logical::Int32,
        20 => Logical::Int64,
        700 => Logical::Float32,
        701 => Logical::Float64,
        1700 => Logical::Numeric,
        25 | 1042 | 1043 | 19 => Logical::Text,
        17 => Logical::Bytes,
        1082 => Logical::Date,
        1083 => Logical::Time,
        1266 => Logical::TimeTz,
        1114 => Logical::Timestamp,
        1184 => Logical::TimestampTz,
        1186 => Logical::Interval,
        2950 => Logical::Uuid,
        114 => Logical::Json,
        3802 => Logical::Jsonb,
        _ => Logical::Opaque,
    }
}

/// Types whose values name objects of their own server: proc, procedure, oper, operator, class, type, config,
/// dictionary, namespace, role, collation.
const OF_THIS_SERVER: [i64; 11] = [24, 2202, 2203, 2204, 2205, 2206, 3734, 3769, 4089, 4096, 4191];

const WALK: &str = "\
WITH RECURSIVE walk(root, oid, inside) AS (
  SELECT t, t, false FROM pg_catalog.unnest($1::pg_catalog.oid[]) t
  UNION
  SELECT w.root, n.oid, w.inside OR n.inside FROM walk w JOIN pg_catalog.pg_type t ON t.oid = w.oid, LATERAL (
    SELECT t.typelem, true WHERE t.typelem <> 0 AND t.typlen = -1
    UNION ALL SELECT t.typbasetype, false WHERE t.typbasetype <> 0
    UNION ALL SELECT a.atttypid, true FROM pg_catalog.pg_attribute a
      WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
    UNION ALL SELECT r.rngsubtype, w.inside FROM pg_catalog.pg_range r WHERE r.rngtypid = t.oid MULTIRANGE
  ) n(oid, inside)
)
SELECT w.root, w.oid, w.inside, t.typsend = 0, t.typtype::text, t.typname::text, t.typbasetype
FROM walk w JOIN pg_catalog.pg_type t ON t.oid = w.oid";

/// Looks up types, walking each to its leaves.
///
/// # Errors
/// When the server cannot be asked.
pub async fn facts(client: &tokio_postgres::Client, oids: &[u32]) -> Result<HashMap<u32, TypeFacts>, Failure> {
    let doing = "reading the types of the columns";
    let version: i32 = client
        .query_one("SELECT pg_catalog.current_setting('server_version_num')::pg_catalog.int4", &[])
        .await
        .map_err(|error| failure(doing, error))?
        .get(0);
    let multirange = if version >= 140_000 { "OR r.rngmultitypid = t.oid" } else { "" };
    let sql = WALK.replace("MULTIRANGE", multirange);
    let rows = client.query(sql.as_str(), &[&oids]).await.map_err(|error| failure(doing, error))?;
    let mut found: HashMap<u32, TypeFacts> = HashMap::new();
    for row in rows {
        let (root, oid, inside): (u32, u32, bool) = (row.get(0), row.get(1), row.get(2));
        let (lacks_send, kind, name, base): (bool, String, String, u32) =
            (row.get(3), row.get(4), row.get(5), row.get(6));
        let facts = found.entry(root).or_insert(TypeFacts {
            oid: root,
            logical: Logical::Opaque,
            portability: Portability::Binary,
        });
        if OF_THIS_SERVER.contains(&i64::from(oid)) || (inside && (lacks_send || oid >= FIRST_USER_OID)) {
            facts.portability = Portability::TextOnly;
        } else if lacks_send && facts.portability == Portability::Binary {
            facts.portability = Portability::TextByItself;
        }
        // The end of a chain of domains says what a column means.
        if !inside && base == 0 && (kind == "b" || kind == "d") {
            facts.logical = match name.as_str() {
                "citext" if oid >= FIRST_USER_OID => Logical::Text,
                _ => logical(oid),
            };
        }
    }
    Ok(found)
}
