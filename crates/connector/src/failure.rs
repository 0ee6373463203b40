//! What went wrong, and what to do now. An error answers *what now?* once, where the foreign error is seen.

use std::{error::Error, fmt, time::Duration};

/// What to do about a failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The same call may succeed later (a deadlock, a serialization failure, a busy file).
    Retry {
        /// When to try again, if the other side said so.
        after: Option<Duration>,
    },
    /// The connection is gone or must be made anew; then the call may succeed.
    Reconnect,
    /// It will not get better by itself; the advice tells a person how to mend it.
    Halt {
        /// What to do, naming the object.
        advice: String,
    },
    /// Identity changed or history is missing: going on would lose data silently. Never reset by itself.
    Lost {
        /// How to go on without losing anything.
        advice: String,
    },
    /// The command, the spec or the environment is wrong (bad URL, wrong password, no such table).
    Misconfigured {
        /// What to change.
        advice: String,
    },
    /// Refused by preflight: rights, settings, a target that is not empty.
    Refused {
        /// The exact remedy (the GRANT, the setting).
        advice: String,
    },
}

/// A failure: what we were doing, the verdict, and the cause. Never holds a row's value or a secret.
#[derive(Debug)]
pub struct Failure {
    /// What to do now.
    pub verdict: Verdict,
    /// What was being done, as a present participle with its object: `reading chunk 3 of public.orders`.
    pub doing: String,
    cause: Box<dyn Error + Send + Sync>,
}

impl Failure {
    /// A failure with any verdict.
    pub fn new(verdict: Verdict, doing: impl Into<String>, cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { verdict, doing: doing.into(), cause: cause.into() }
    }

    /// May succeed later.
    pub fn retry(doing: impl Into<String>, cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::new(Verdict::Retry { after: None }, doing, cause)
    }

    /// The connection must be made anew.
    pub fn reconnect(doing: impl Into<String>, cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::new(Verdict::Reconnect, doing, cause)
    }

    /// A person must act.
    pub fn halt(
        doing: impl Into<String>,
        cause: impl Into<Box<dyn Error + Send + Sync>>,
        advice: impl Into<String>,
    ) -> Self {
        Self::new(Verdict::Halt { advice: advice.into() }, doing, cause)
    }

    /// History is missing or is another's.
    pub fn lost(
        doing: impl Into<String>,
        cause: impl Into<Box<dyn Error + Send + Sync>>,
        advice: impl Into<String>,
    ) -> Self {
        Self::new(Verdict::Lost { advice: advice.into() }, doing, cause)
    }

    /// The spec or the environment is wrong.
    pub fn misconfigured(
        doing: impl Into<String>,
        cause: impl Into<Box<dyn Error + Send + Sync>>,
        advice: impl Into<String>,
    ) -> Self {
        Self::new(Verdict::Misconfigured { advice: advice.into() }, doing, cause)
    }

    /// Preflight says no.
    pub fn refused(
        doing: impl Into<String>,
        cause: impl Into<Box<dyn Error + Send + Sync>>,
        advice: impl Into<String>,
    ) -> Self {
        Self::new(Verdict::Refused { advice: advice.into() }, doing, cause)
    }

    /// Whether trying again can help.
    pub fn is_transient(&self) -> bool {
        matches!(self.verdict, Verdict::Retry { .. } | Verdict::Reconnect)
    }

    /// What a person should do, where the verdict says it.
    pub fn advice(&self) -> Option<&str> {
        match &self.verdict {
            Verdict::Halt { advice }
            | Verdict::Lost { advice }
            | Verdict::Misconfigured { advice }
            | Verdict::Refused { advice } => Some(advice),
            Verdict::Retry { .. } | Verdict::Reconnect => None,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.doing, self.cause)?;
        let mut next = self.cause.source();
        while let Some(cause) = next {
            write!(f, ": {cause}")?;
            next = cause.source();
        }
        match self.advice() {
            Some(advice) => write!(f, ". {advice}"),
            None => Ok(()),
        }
    }
}

impl Error for Failure {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.cause)
    }
}
