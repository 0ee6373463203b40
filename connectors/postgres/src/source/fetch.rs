//! Values that the stream did not send because they did not change (TOAST), looked up while a table is being copied:
//! the row may be one that no chunk has carried. All of a batch's rows of one table in one query.

use super::assemble::Assembler;
use crate::{
    client::{failure, printed},
    quote_ident,
};
use bytes::{BufMut, BytesMut};
use crossfade_connector::Failure;
use crossfade_event::{Cell, Change, Event, Format, Key, Op, Row, RowBuilder, TableId, TableName, TableSchema};
use std::{
    collections::{BTreeSet, HashMap},
    error::Error,
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;
use tokio_postgres::{
    Client,
    types::{FromSql, IsNull, ToSql, Type},
};

const VISIBLE_WITHIN: Duration = Duration::from_secs(60);
const VISIBLE_POLL: Duration = Duration::from_millis(2);

/// The columns of a schema as a select list, in their formats. `columns` are the names of now, by number: a column that
/// was dropped meanwhile reads NULL, for the stream will drop it, too. `of` stands in front of each name.
pub(super) fn select_list(schema: &TableSchema, columns: &[(u32, String)], of: &str) -> Result<String, Failure> {
    let mut list = Vec::with_capacity(schema.columns.len());
    for column in &schema.columns {
        let Some((_, name)) = columns.iter().find(|(number, _)| *number == column.native_id) else {
            if column.nullable {
                list.push("NULL".to_owned());
                continue;
            }
            return Err(Failure::retry(
                format!("reading {}", schema.name),
                format!("column {} was dropped, and the stream has not come to it yet", column.name),
            ));
        };
        let name = format!("{of}{}", quote_ident(name)?);
        list.push(match column.type_.format {
            Format::PgText => printed(&name),
            Format::PgBinary | Format::Tagged => name,
        });
    }
    Ok(list.join(", "))
}

/// Waits until transactions that the stream has brought are visible to queries. A commit is in the stream as soon as
/// it is written; the server counts the transaction among the running ones a moment longer (with synchronous
/// replication: much longer), and a query in between sees the rows, and the catalog, of before.
///
/// # Errors
/// `Retry` when that takes too long.
pub(super) async fn wait_visible(client: &Client, xids: &[u64]) -> Result<(), Failure> {
    let doing = "waiting until a committed transaction is visible";
    let sql = "SELECT COALESCE(pg_catalog.bool_and(pg_catalog.pg_visible_in_snapshot( \
               x::pg_catalog.xid8, pg_catalog.pg_current_snapshot())), true) FROM pg_catalog.unnest($1::text[]) x";
    let texts: Vec<String> = xids.iter().map(u64::to_string).collect();
    let deadline = Instant::now() + VISIBLE_WITHIN;
    loop {
        let row = client.query_one(sql, &[&texts]).await.map_err(|error| failure(doing, error))?;
        if row.get(0) {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(Failure::retry(doing, "the server has not finished its commit (does it wait for a standby?)"));
        }
        tokio::time::sleep(VISIBLE_POLL).await;
    }
}

/// Fills the unchanged cells of the events at `wanted`. A row that is gone becomes a delete of its key: a later
/// delete or key change of it is on its way. Returns the tables of which rows were gone.
pub(super) async fn resolve(
    client: &Client,
    assembler: &mut Assembler,
    wanted: Vec<(usize, u64)>,
) -> Result<Vec<TableId>, Failure> {
    let xids: BTreeSet<u64> = wanted.iter().map(|(_, xid)| *xid).collect();
    wait_visible(client, &xids.into_iter().collect::<Vec<_>>()).await?;
    let mut gone = Vec::new();
    let mut by_table: HashMap<TableId, Vec<usize>> = HashMap::new();
    for (index, _) in wanted {
        if let Some(Event::Changed(change)) = assembler.event(index) {
            by_table.entry(change.table).or_default().push(index);
        }
    }
    for (table, indexes) in by_table {
        let schema = assembler.tables.values().find(|captured| captured.schema.id == table);
        let Some(schema) = schema.map(|captured| captured.schema.clone()) else { continue };
        let keys: Vec<(usize, Key)> = indexes
            .into_iter()
            .filter_map(|index| match assembler.event(index)? {
                Event::Changed(change) => Some((index, schema.key_of(change.new.as_ref()?)?)),
                _ => None,
            })
            .collect();
        let mut found = look_up(client, &schema, &keys).await?;
        if found.len() < keys.len() {
            gone.push(table);
        }
        for (place, (index, key)) in keys.iter().enumerate() {
            if let Some(Event::Changed(change)) = assembler.event_mut(*index) {
                fill(change, found.remove(&place), key, &schema);
            }
        }
    }
    Ok(gone)
}

fn fill(change: &mut Change, found: Option<Row>, key: &Key, schema: &TableSchema) {
    let Some(found) = found else {
        change.op = Op::Delete;
        change.new = None;
        if change.old.is_none() {
            change.old = Some(key_image(key, schema));
        }
        return;
    };
    if let Some(new) = &change.new {
        let cells = new.cells().zip(found.cells());
        change.new = Some(cells.map(|(cell, now)| if cell == Cell::Unchanged { now } else { cell }).collect());
    }
}

/// An old image that has only the key.
fn key_image(key: &Key, schema: &TableSchema) -> Row {
    let cells: Vec<Cell<'_>> = key.cells().collect();
    let cell = |place: Option<u16>| place.and_then(|place| cells.get(usize::from(place)).copied());
    schema.columns.iter().map(|column| cell(column.key).unwrap_or(Cell::Absent)).collect()
}

/// The rows under these keys now, by the key's place.
async fn look_up(
    client: &Client,
    schema: &Arc<TableSchema>,
    keys: &[(usize, Key)],
) -> Result<HashMap<usize, Row>, Failure> {
    let doing = || format!("looking up unchanged values of {}", schema.name);
    let fail = |error| failure(doing(), error);
    let now = Now::read(client, schema).await?;
    let key_columns = schema.key_columns();
    let mut arrays = Vec::with_capacity(key_columns.len());
    let mut conditions = Vec::with_capacity(key_columns.len());
    let mut unnested = Vec::with_capacity(key_columns.len());
    for (place, index) in key_columns.iter().enumerate() {
        let Some(column) = schema.columns.get(*index) else { continue };
        let is_text = column.type_.format == Format::PgText;
        let element = if is_text { Type::TEXT.oid() } else { column.type_.native_id };
        let cells = keys.iter().map(|(_, key)| key.cells().nth(place).unwrap_or(Cell::Null));
        arrays.push(RawArray(array(element, cells)));
        let of = if is_text { "pg_catalog.text" } else { &column.type_.name };
        unnested.push(format!("${}::{of}[]", place + 1));
        let name = now.columns.iter().find(|(number, _)| *number == column.native_id);
        let name = quote_ident(name.map_or(&column.name, |(_, name)| name))?;
        let equals = now.equals.get(&column.native_id).map_or("OPERATOR(pg_catalog.=)", String::as_str);
        conditions.push(format!("t.{name} {equals} k.c{place}::{}", column.type_.name));
    }
    let names: Vec<String> = (0..key_columns.len()).map(|place| format!("c{place}")).collect();
    let sql = format!(
        "SELECT k.place, {} FROM ROWS FROM ({}) WITH ORDINALITY AS k({}, place) JOIN {}{} t ON {}",
        select_list(schema, &now.columns, "t.")?,
        unnested.iter().map(|array| format!("pg_catalog.unnest({array})")).collect::<Vec<_>>().join(", "),
        names.join(", "),
        if now.is_root { "" } else { "ONLY " },
        crate::quote_table(&now.name)?,
        conditions.join(" AND ")
    );
    let parameters: Vec<&(dyn ToSql + Sync)> = arrays.iter().map(|array| array as &(dyn ToSql + Sync)).collect();
    let rows = client.query(sql.as_str(), &parameters).await.map_err(fail)?;
    let mut found = HashMap::with_capacity(rows.len());
    for row in rows {
        let place: i64 = row.get(0);
        let mut builder = RowBuilder::with_capacity(schema.columns.len(), 256);
        for index in 0..schema.columns.len() {
            match row.try_get::<_, Raw<'_>>(index + 1).map_err(fail)? {
                Raw(Some(bytes)) => builder.push(Cell::Bytes(bytes)),
                Raw(None) => builder.push(Cell::Null),
            }
        }
        found.insert(place as usize - 1, builder.finish());
    }
    Ok(found)
}

/// The table's names as they are now, and the operators by which its key is compared: extension types have theirs
/// outside the search path.
struct Now {
    name: TableName,
    is_root: bool,
    columns: Vec<(u32, String)>,
    equals: HashMap<u32, String>,
}

const NOW: &str = "\
SELECT n.nspname::text, c.relname::text, a.attnum::int4, a.attname::text, o.nspname, o.oprname, c.relkind = 'p'
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
LEFT JOIN LATERAL (
  SELECT opn.nspname::text, op.oprname::text FROM pg_catalog.pg_index i,
    ROWS FROM (pg_catalog.unnest(i.indkey::int2[]), pg_catalog.unnest(i.indclass::oid[])) AS k(attnum, class)
    JOIN pg_catalog.pg_opclass oc ON oc.oid = k.class
    JOIN pg_catalog.pg_amop ao ON ao.amopfamily = oc.opcfamily AND ao.amoplefttype = oc.opcintype
      AND ao.amoprighttype = oc.opcintype AND ao.amopstrategy = 3
    JOIN pg_catalog.pg_operator op ON op.oid = ao.amopopr
    JOIN pg_catalog.pg_namespace opn ON opn.oid = op.oprnamespace
  WHERE i.indrelid = c.oid AND k.attnum = a.attnum AND (i.indisprimary OR i.indisreplident) LIMIT 1
) o ON true
WHERE c.oid = $1";

impl Now {
    async fn read(client: &Client, schema: &TableSchema) -> Result<Self, Failure> {
        let doing = || format!("looking up unchanged values of {}", schema.name);
        let rows = client.query(NOW, &[&schema.native_id]).await.map_err(|error| failure(doing(), error))?;
        let mut now = Self { name: schema.name.clone(), is_root: false, columns: Vec::new(), equals: HashMap::new() };
        for row in rows {
            now.name = TableName::new(row.get::<_, String>(0), row.get::<_, String>(1));
            now.is_root = row.get(6);
            let number = row.get::<_, i32>(2) as u32;
            now.columns.push((number, row.get(3)));
            if let (Some(schema), Some(operator)) = (row.get::<_, Option<String>>(4), row.get::<_, Option<String>>(5)) {
                now.equals.insert(number, format!("OPERATOR({}.{operator})", quote_ident(&schema)?));
            }
        }
        Ok(now)
    }
}

/// A one-dimensional array in binary form.
fn array<'a>(element: u32, cells: impl Iterator<Item = Cell<'a>>) -> BytesMut {
    let mut body = BytesMut::new();
    let mut count = 0;
    for cell in cells {
        count += 1;
        match cell {
            Cell::Bytes(bytes) => {
                body.put_i32(bytes.len() as i32);
                body.put_slice(bytes);
            }
            Cell::Null | Cell::Unchanged | Cell::Absent => body.put_i32(-1),
        }
    }
    let mut out = BytesMut::with_capacity(body.len() + 20);
    out.put_i32(1);
    out.put_i32(1);
    out.put_u32(element);
    out.put_i32(count);
    out.put_i32(1);
    out.put_slice(&body);
    out
}

/// Bytes that are in the parameter's binary form already.
#[derive(Debug)]
struct RawArray(BytesMut);

impl ToSql for RawArray {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        out.put_slice(&self.0);
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    tokio_postgres::types::to_sql_checked!();
}

/// A value's bytes, whatever its type.
struct Raw<'a>(Option<&'a [u8]>);

impl<'a> FromSql<'a> for Raw<'a> {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn Error + Sync + Send>> {
        Ok(Self(Some(raw)))
    }

    fn from_sql_null(_: &Type) -> Result<Self, Box<dyn Error + Sync + Send>> {
        Ok(Self(None))
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}
