//! The slot: whether it is still ours and still has what we need, and how it is.

use crate::client::{failure, replication::Lsn};
use crossfade_connector::Failure;
use crossfade_event::Position;
use tokio_postgres::Client;

/// A slot as `pg_replication_slots` shows it.
#[derive(Debug, Clone)]
pub(super) struct Slot {
    plugin: Option<String>,
    database: Option<String>,
    active_pid: Option<i32>,
    confirmed: Option<Lsn>,
    wal_status: Option<String>,
    /// It is a standby's copy of its primary's slot: nobody may read from it before the standby is promoted.
    mirrored: bool,
}

/// A slot's health.
#[derive(Debug, Clone, Default)]
pub(super) struct Health {
    pub(super) retained_bytes: Option<u64>,
    pub(super) wal_status: Option<String>,
    pub(super) current: Option<Lsn>,
}

pub(super) async fn find(client: &Client, slot: &str) -> Result<Option<Slot>, Failure> {
    let sql = "SELECT plugin::text, database::text, active_pid, confirmed_flush_lsn::text, wal_status, \
               pg_catalog.pg_is_in_recovery() \
               AND COALESCE((pg_catalog.to_jsonb(s) ->> 'synced')::pg_catalog.bool, false) \
               FROM pg_catalog.pg_replication_slots s WHERE slot_name = $1";
    let row =
        client.query_opt(sql, &[&slot]).await.map_err(|error| failure(format!("looking for slot {slot}"), error))?;
    Ok(row.map(|row| Slot {
        plugin: row.get(0),
        database: row.get(1),
        active_pid: row.get(2),
        confirmed: row.get::<_, Option<String>>(3).as_deref().and_then(Lsn::parse),
        wal_status: row.get(4),
        mirrored: row.get(5),
    }))
}

pub(super) async fn health(client: &Client, slot: &str) -> Result<Health, Failure> {
    // A standby has no insert position; what it has replayed stands for it.
    let sql = "SELECT (w.here OPERATOR(pg_catalog.-) s.restart_lsn)::pg_catalog.float8, s.wal_status, w.here::text \
               FROM (SELECT CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn() \
                     ELSE pg_catalog.pg_current_wal_lsn() END AS here) w \
               LEFT JOIN pg_catalog.pg_replication_slots s ON s.slot_name = $1";
    let row =
        client.query_one(sql, &[&slot]).await.map_err(|error| failure(format!("asking how slot {slot} is"), error))?;
    Ok(Health {
        retained_bytes: row.get::<_, Option<f64>>(0).map(|bytes| bytes.max(0.0) as u64),
        wal_status: row.get(1),
        current: row.get::<_, Option<String>>(2).as_deref().and_then(Lsn::parse),
    })
}

/// The end of the write-ahead log now, as an expression: whatever is visible was committed before it. A standby has no
/// insert position; what it has replayed stands for it.
pub(super) const END_OF_WAL: &str = "CASE WHEN pg_catalog.pg_is_in_recovery() \
     THEN pg_catalog.pg_last_wal_replay_lsn() ELSE pg_catalog.pg_current_wal_insert_lsn() END";

/// Asks for [`END_OF_WAL`].
pub(super) async fn end_of_wal(client: &Client) -> Result<Lsn, Failure> {
    let doing = "asking for the end of WAL";
    let sql = format!("SELECT ({END_OF_WAL})::text");
    let row = client.query_one(&sql, &[]).await.map_err(|error| failure(doing, error))?;
    Lsn::parse(row.get(0)).ok_or_else(|| Failure::reconnect(doing, "the answer is not a position"))
}

impl Slot {
    /// Up to where it was read; `None` for one that was invalidated.
    pub(super) fn confirmed(&self) -> Option<Lsn> {
        self.confirmed
    }

    /// `Retry` while somebody streams from it: most often our own last session, which the server has not ended yet; and
    /// on a standby that is not promoted yet.
    pub(super) fn check_free(&self, name: &str) -> Result<(), Failure> {
        if self.mirrored {
            return Err(Failure::retry(
                format!("taking slot {name}"),
                "this server is a standby, and the slot its copy of the primary's: it can be read once it is promoted",
            ));
        }
        match self.active_pid {
            None => Ok(()),
            Some(pid) => Err(Failure::retry(
                format!("taking slot {name}"),
                format!("it is in use by the server's process {pid}; end the other reader, or wait until it is gone"),
            )),
        }
    }

    /// Whether the slot still has everything after `position`, and is the one that we made.
    pub(super) fn check_history(&self, name: &str, database: &str, position: &Position) -> Result<(), Failure> {
        let lost = |problem: String| Err(lost(name, problem));
        if self.plugin.as_deref() != Some("pgoutput") {
            return lost("it is of another plugin than pgoutput: somebody made it anew".to_owned());
        }
        if self.database.as_deref() != Some(database) {
            return lost("it belongs to another database: somebody made it anew".to_owned());
        }
        if self.wal_status.as_deref() == Some("lost") {
            return lost("the server has removed WAL that was still needed (max_slot_wal_keep_size)".to_owned());
        }
        match self.confirmed {
            None => lost("it has no confirmed position: it was invalidated".to_owned()),
            Some(confirmed) if confirmed.0 > position.commit => lost(format!(
                "its confirmed position {confirmed} is beyond ours, {}: it was made anew or moved forward, and the \
                 changes between are gone",
                Lsn(position.commit)
            )),
            Some(_) => Ok(()),
        }
    }
}

/// The history after our position cannot be had.
pub(super) fn lost(slot: &str, problem: String) -> Failure {
    Failure::lost(
        format!("resuming slot {slot}"),
        problem,
        format!(
            "The target keeps what it has, but nothing more can be added to it without a gap. Begin again: roll back \
             with --wipe, drop the slot if it exists (SELECT pg_drop_replication_slot('{slot}')), remove the \
             migration's log and run anew"
        ),
    )
}
