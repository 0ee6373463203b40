//! The flag of dual reads: how large a share of their reads applications compare, beside who has the authority.
//!
//! `crossfade.dual_reads` is what applications read: the authority's own row with the share that was set for its epoch. A
//! switch raises the epoch, so the share ends in the same commit, whoever is alive to see it. A table of its own keeps the
//! share, for `crossfade.authority` is read by every transaction of the applications: adding a column to it would have to
//! wait for all of them, and they for it.
//!
//! An application that steps down says so by `crossfade.step_down`: from then on the flag says `0%` to all others too. It
//! takes a budget's name and two figures, so that nothing else can come through it into a log or a journal.

use super::SwitchEnd;
use crate::client::{ServerError, Session, connect, failure};
use crossfade_connector::Failure;
use crossfade_event::Side;

/// What the flag says here.
#[derive(Debug, Clone, PartialEq)]
pub struct Share {
    /// Such as `5%`.
    pub percent: String,
    /// Whether it was set for the epoch that the authority's row has.
    pub is_of_epoch: bool,
    /// The budget that an application found spent.
    pub stepped_down: Option<SteppedDown>,
}

/// Which budget is spent, and the two figures that say so.
#[derive(Debug, Clone, PartialEq)]
pub struct SteppedDown {
    /// `mismatches` or `latency`.
    pub budget: String,
    /// How many mismatched; or the p95 of the side with the authority, in milliseconds.
    pub one: f64,
    /// Of how many; or the p95 of the other side.
    pub other: f64,
}

/// What became of a share that was to be set.
#[derive(Debug, Clone, PartialEq)]
pub enum ShareSet {
    /// The flag says it.
    Set,
    /// The authority's row gives the authority to the other side, or is missing.
    AnotherSide,
    /// An application has stepped down, and nobody has heard of that yet.
    SteppedDown(SteppedDown),
}

const MAKE: &str = "
CREATE TABLE IF NOT EXISTS crossfade.read_shares (
  migration text NOT NULL, unit text NOT NULL, epoch bigint NOT NULL, percent text NOT NULL,
  since timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
  budget text CHECK (budget IN ('mismatches', 'latency')), one float8, other float8, PRIMARY KEY (migration, unit));
COMMENT ON TABLE crossfade.read_shares IS 'what share of their reads applications compare; they read crossfade.dual_reads';
CREATE OR REPLACE VIEW crossfade.dual_reads AS
  SELECT a.migration, a.epoch, a.side AS authority,
    CASE WHEN s.epoch OPERATOR(pg_catalog.=) a.epoch AND s.budget IS NULL THEN s.percent ELSE '0%' END AS percent
  FROM crossfade.authority a
  LEFT JOIN crossfade.read_shares s ON s.migration OPERATOR(pg_catalog.=) a.migration AND s.unit OPERATOR(pg_catalog.=) a.unit
  WHERE a.unit OPERATOR(pg_catalog.=) 'all';
CREATE OR REPLACE FUNCTION crossfade.step_down(migration text, epoch bigint, percent text, budget text, one float8, other float8)
  RETURNS boolean LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $crossfade$
BEGIN
  IF $4 IS NULL OR $4 NOT IN ('mismatches', 'latency') OR $5 IS NULL OR $6 IS NULL THEN
    RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = 'crossfade.step_down takes mismatches or latency, and two figures';
  END IF;
  UPDATE crossfade.read_shares s SET budget = $4, one = $5, other = $6
    WHERE s.migration = $1 AND s.unit = 'all' AND s.epoch = $2 AND s.percent = $3 AND s.budget IS NULL;
  RETURN FOUND;
END $crossfade$;
GRANT SELECT ON crossfade.dual_reads TO PUBLIC;
GRANT EXECUTE ON FUNCTION crossfade.step_down(text, bigint, text, text, float8, float8) TO PUBLIC;
";

/// The share that is set on trial.
const TRIED: &str = "0.01%";

/// `$1` the migration, `$2` the share, `$3` the side that has the authority, `$4` whether over what has stepped down.
const SET: &str = "INSERT INTO crossfade.read_shares AS s (migration, unit, epoch, percent) \
     SELECT a.migration, a.unit, a.epoch, $2 FROM crossfade.authority a \
     WHERE a.migration = $1 AND a.unit = 'all' AND a.side = $3 \
     ON CONFLICT (migration, unit) DO UPDATE SET epoch = EXCLUDED.epoch, percent = EXCLUDED.percent, \
       since = pg_catalog.clock_timestamp(), budget = NULL, one = NULL, other = NULL \
     WHERE s.budget IS NULL OR $4";

/// What takes it all away again; the view first, for it stands on the authority's table.
pub(super) const DROP: &str = "DROP VIEW IF EXISTS crossfade.dual_reads; \
     DROP FUNCTION IF EXISTS crossfade.step_down(text, bigint, text, text, float8, float8); \
     DROP TABLE IF EXISTS crossfade.read_shares;";

impl SwitchEnd {
    /// Makes what applications follow, as far as it is not there. `crossfade.authority` must be ([`SwitchEnd::install`]).
    ///
    /// # Errors
    /// `Refused` where the role may not: the schema `crossfade` is another role's.
    pub async fn install_reads(&mut self) -> Result<(), Failure> {
        let doing = "making crossfade.dual_reads";
        if self.has_reads().await? {
            return Ok(());
        }
        let sql = format!(
            "BEGIN; SELECT pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended('crossfade schema', 0)); {MAKE} COMMIT"
        );
        let session = self.session().await?;
        let Err(error) = session.batch_execute(&sql).await else { return Ok(()) };
        super::authority::roll_back(session).await;
        if ServerError::of(&error).is_some_and(|error| error.code == "42501") {
            let advice = "make it by the role that owns the schema: ALTER SCHEMA crossfade OWNER TO the_role";
            return Err(Failure::refused(doing, "the role may not", advice));
        }
        Err(failure(doing, error))
    }

    async fn has_reads(&mut self) -> Result<bool, Failure> {
        let sql = "SELECT pg_catalog.to_regclass('crossfade.dual_reads') IS NOT NULL \
                   AND pg_catalog.to_regclass('crossfade.read_shares') IS NOT NULL \
                   AND pg_catalog.to_regprocedure('crossfade.step_down(text, bigint, text, text, float8, float8)') IS NOT NULL";
        let row = self.session().await?.query_one(sql, &[]).await;
        Ok(row.map_err(|error| failure("looking for crossfade.dual_reads", error))?.get(0))
    }

    /// What the flag says here; `None` where nobody has set one.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub async fn share(&mut self) -> Result<Option<Share>, Failure> {
        if !self.has_reads().await? {
            return Ok(None);
        }
        let sql = "SELECT s.percent, s.epoch = a.epoch, s.budget, s.one, s.other FROM crossfade.read_shares s \
                   JOIN crossfade.authority a USING (migration, unit) WHERE s.migration = $1 AND s.unit = 'all'";
        let migration = self.migration.clone();
        let row = self.session().await?.query_opt(sql, &[&migration]).await;
        let row = row.map_err(|error| failure("reading crossfade.dual_reads", error))?;
        Ok(row.map(|row| Share {
            percent: row.get(0),
            is_of_epoch: row.get(1),
            stepped_down: row.get::<_, Option<String>>(2).map(|budget| SteppedDown {
                budget,
                one: row.get::<_, Option<f64>>(3).unwrap_or_default(),
                other: row.get::<_, Option<f64>>(4).unwrap_or_default(),
            }),
        }))
    }

    /// Sets the share for the epoch that holds here, as long as `authority` has the authority. `over`: what had stepped down is
    /// answered by it; else that stays, and is given back.
    ///
    /// # Errors
    /// When it cannot be written.
    pub async fn set_share(&mut self, percent: &str, authority: Side, over: bool) -> Result<ShareSet, Failure> {
        let (migration, side) = (self.migration.clone(), authority.to_string());
        let set = self.session().await?.execute(SET, &[&migration, &percent, &side, &over]).await;
        if set.map_err(|error| failure("writing crossfade.dual_reads", error))? > 0 {
            return Ok(ShareSet::Set);
        }
        let found = if over { None } else { self.share().await?.and_then(|found| found.stepped_down) };
        Ok(found.map_or(ShareSet::AnotherSide, ShareSet::SteppedDown))
    }

    /// Whether a share can be set here, followed and stepped down from: does all of it, and takes it back.
    ///
    /// # Errors
    /// `Refused` with the remedy where it cannot.
    pub async fn try_share(&mut self, authority: Side) -> Result<(), Failure> {
        let (migration, side) = (self.migration.clone(), authority.to_string());
        // In a session of its own: dropped half-way, it takes the transaction along.
        let session = connect(&self.config, "crossfade switch").await?;
        let tried = tried(&session, &migration, &side).await;
        super::authority::roll_back(&session).await;
        tried
    }
}

/// What is written and what is read of it, in a transaction that the caller ends.
async fn tried(session: &Session, migration: &str, side: &str) -> Result<(), Failure> {
    let doing = "trying crossfade.dual_reads";
    let trouble = |error: tokio_postgres::Error| match ServerError::of(&error) {
        Some(told) if told.code == "42501" => {
            let advice = "give all that crossfade has made there to one role: ALTER TABLE crossfade.read_shares OWNER TO the_role, \
                          ALTER VIEW crossfade.dual_reads OWNER TO the_role, and the same of the function crossfade.step_down";
            Failure::refused(doing, told.message, advice)
        }
        _ => failure(doing, error),
    };
    session.batch_execute("BEGIN; SET LOCAL lock_timeout = '5s'").await.map_err(trouble)?;
    if session.execute(SET, &[&migration, &TRIED, &side, &true]).await.map_err(trouble)? == 0 {
        let advice = "a switch has been made there: `crossfade status` says which";
        return Err(Failure::refused(
            doing,
            "the row of crossfade.authority does not name the side that is asked",
            advice,
        ));
    }
    let look = "SELECT epoch, percent FROM crossfade.dual_reads WHERE migration = $1";
    let row = session.query_one(look, &[&migration]).await.map_err(trouble)?;
    let (epoch, told): (i64, String) = (row.get(0), row.get(1));
    let step_down = "SELECT crossfade.step_down($1, $2, $3, 'mismatches', 0, 0)";
    let row = session.query_one(step_down, &[&migration, &epoch, &TRIED]).await.map_err(trouble)?;
    let is_heard = row.get::<_, Option<bool>>(0) == Some(true);
    let row = session.query_one(look, &[&migration]).await.map_err(trouble)?;
    if told == TRIED && is_heard && row.get::<_, String>(1) == "0%" {
        return Ok(());
    }
    let advice = "somebody has changed what crossfade made: DROP VIEW crossfade.dual_reads, and it is made anew";
    Err(Failure::refused(doing, "it does not say what was written", advice))
}
