//! The judgement of one difference, as rounds. In each round (1) the position P of the answer known so far is fixed, after
//! that answer was given; (2) the other side comes past P; (3) it is asked; (4) the side with the authority is asked again.
//! Where (4) says what was known before, the answer of (3) must say so too: its side had everything up to P, and nothing
//! newer is known. An answer that went there and back between two rounds could still deceive, so a mismatch needs two such
//! rounds in succession. Pure.

use crate::Mismatch;

/// What a round has shown.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Step {
    /// They agree now: it was lag.
    Lag,
    /// They differ, and nothing explains it.
    Mismatch(Mismatch),
    /// Not known yet.
    Again,
    /// Not known, and no round is left.
    Moving,
}

#[derive(Debug)]
pub(crate) struct Rounds {
    left: u32,
    seen: bool,
}

impl Rounds {
    /// So many at most; two at least, for fewer could never find a mismatch.
    pub(crate) fn new(rounds: u32) -> Self {
        Self { left: rounds.max(2), seen: false }
    }

    /// A round is over: did the side with the authority say the same before and after, and how do both differ?
    pub(crate) fn step(&mut self, stood_still: bool, difference: Option<Mismatch>) -> Step {
        self.left = self.left.saturating_sub(1);
        match difference {
            None if stood_still => return Step::Lag,
            Some(mismatch) if stood_still && self.seen => return Step::Mismatch(mismatch),
            Some(_) if stood_still => self.seen = true,
            _ => self.seen = false,
        }
        if self.left == 0 { Step::Moving } else { Step::Again }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MismatchKind;
    use proptest::prelude::*;

    fn mismatch() -> Mismatch {
        Mismatch { kind: MismatchKind::Values, rows: 1, columns: Vec::new() }
    }

    proptest! {
        #[test]
        fn a_mismatch_needs_two_quiet_rounds_in_succession_and_every_judgement_ends(
            rounds in 0u32..8, seen in proptest::collection::vec((any::<bool>(), any::<bool>()), 10)
        ) {
            let mut judging = Rounds::new(rounds);
            let mut done = Vec::new();
            for (stood_still, differs) in seen {
                done.push((stood_still, differs));
                match judging.step(stood_still, differs.then(mismatch)) {
                    Step::Again => continue,
                    Step::Lag => prop_assert!(stood_still && !differs),
                    Step::Mismatch(_) => prop_assert!(done.len() >= 2 && done[done.len() - 2..].iter().all(|(still, differs)| *still && *differs)),
                    Step::Moving => prop_assert_eq!(done.len() as u32, rounds.max(2)),
                }
                return Ok(());
            }
            prop_assert!(false, "it did not end");
        }
    }
}
