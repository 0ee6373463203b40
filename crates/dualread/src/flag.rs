//! Who has the authority and how much is compared: a flag that somebody outside sets, most often a row of a table.

use crate::Percent;
use crossfade_connector::Failure;
use serde::{Deserialize, Serialize};
use std::{fmt, future::Future, str::FromStr, time::Duration};

/// A side of a migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// The source, which has the authority until a switch.
    Old,
    /// The target.
    New,
}

impl Side {
    /// The other one.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::Old => Self::New,
            Self::New => Self::Old,
        }
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Old => "old",
            Self::New => "new",
        })
    }
}

impl FromStr for Side {
    type Err = FlagError;

    fn from_str(text: &str) -> Result<Self, FlagError> {
        match text {
            "old" => Ok(Self::Old),
            "new" => Ok(Self::New),
            _ => Err(FlagError(format!("`{text}` is no side of a migration; it is `old` or `new`"))),
        }
    }
}

/// A flag that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct FlagError(String);

/// Who has the authority, and how much is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flag {
    /// Rises with every switch; a flag with a lower one than was seen before is refused.
    pub epoch: u64,
    /// Whose answers count.
    pub authority: Side,
    /// The share of reads that is compared.
    pub percent: Percent,
}

impl Flag {
    /// Nobody has switched yet, and nothing is compared.
    pub const START: Self = Self { epoch: 0, authority: Side::Old, percent: Percent::NONE };

    /// From the columns of a row: the epoch, the side (`old`, `new`) and the share (`5%`).
    ///
    /// # Errors
    /// When one of them is none.
    pub fn of_row(epoch: i64, authority: &str, percent: &str) -> Result<Self, FlagError> {
        let epoch = u64::try_from(epoch).map_err(|_| FlagError(format!("the epoch {epoch} is below zero")))?;
        let percent = percent.parse().map_err(|error: crate::PercentError| FlagError(error.to_string()))?;
        Ok(Self { epoch, authority: authority.parse()?, percent })
    }
}

/// Reads the flag that `crossfade dual-reads` sets, on either side of a migration between PostgreSQL databases; `$1` is the
/// migration's name. Any other query that gives an epoch, a side and a share will do as well.
pub const SELECT_FLAG: &str = "SELECT epoch, authority, percent FROM crossfade.dual_reads WHERE migration = $1";

/// Says to `crossfade` that dual reads have stepped down: `$1` is the migration's name, `$2` and `$3` are the flag's epoch and
/// share as text, and the rest is [`crate::Why::figures`]. From then on the flag says `0%` to everybody who follows it. Gives
/// `false` where another flag was set meanwhile.
pub const STEP_DOWN: &str = "SELECT crossfade.step_down($1, $2, $3, $4, $5, $6)";

/// Where the flag comes from: a table that is looked at, `NOTIFY`, HTTP, a file.
pub trait Feed: Send + 'static {
    /// The flag now, the first time at once; later when it has changed, or may have, or was only looked at again. That the
    /// feed has spoken says that what is known still holds ([`crate::Options::flag_age_max`]).
    ///
    /// # Errors
    /// When it cannot be read now; it will be asked again after a while.
    fn next(&mut self) -> impl Future<Output = Result<Flag, Failure>> + Send;
}

/// A feed that looks again and again.
#[derive(Debug)]
pub struct Polled<L> {
    look: L,
    every: Duration,
    looked: bool,
}

impl<L> Polled<L> {
    /// Looks by `look`, at once and then after each `every`.
    pub fn new<F>(every: Duration, look: L) -> Self
    where
        L: FnMut() -> F + Send + 'static,
        F: Future<Output = Result<Flag, Failure>> + Send,
    {
        Self { look, every, looked: false }
    }
}

impl<L, F> Feed for Polled<L>
where
    L: FnMut() -> F + Send + 'static,
    F: Future<Output = Result<Flag, Failure>> + Send,
{
    async fn next(&mut self) -> Result<Flag, Failure> {
        if self.looked {
            tokio::time::sleep(self.every).await;
        }
        self.looked = true;
        (self.look)().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_read_or_refused_by_name() {
        let flag = Flag::of_row(3, "new", "12.5%").unwrap();
        assert_eq!((flag.epoch, flag.authority, flag.percent.to_string().as_str()), (3, Side::New, "12.5%"));
        for (epoch, authority, percent, word) in
            [(-1, "old", "0%", "epoch"), (1, "left", "0%", "left"), (1, "old", "many", "many")]
        {
            let refused = Flag::of_row(epoch, authority, percent).unwrap_err();
            assert!(refused.to_string().contains(word), "{refused}");
        }
    }
}
