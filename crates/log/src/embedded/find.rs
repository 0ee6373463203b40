//! Where to begin looking: the indexes say what had happened before each place.

use super::{
    Embedded,
    index::{Index, Mark},
    segment::{Before, SEGMENT_HEADER},
};
use crate::{EventLog, LogError, Seek, find::find};
use crossfade_event::{Cut, Offset, Position};

impl Embedded {
    /// As [`crate::find`] from the start of the log, without reading what cannot hold the place.
    ///
    /// # Errors
    /// As reading.
    pub fn find(&self, seek: Seek) -> Result<Option<Cut>, LogError> {
        find(self, &Cut::single(self.near(seek)), seek)
    }

    /// A place before the batch that moved the tail's position last.
    pub(super) fn near_the_end(&self) -> Offset {
        let Some(end) = self.tail().position else { return self.0.shared.start() };
        let before = match (end.commit, end.ordinal) {
            (0, 0) => return self.0.shared.start(),
            (commit, 0) => Position { commit: commit - 1, ordinal: u32::MAX, ..end },
            (_, ordinal) => Position { ordinal: ordinal - 1, ..end },
        };
        self.near(Seek::Position(before))
    }

    /// A place with nothing before it that meets `seek`.
    fn near(&self, seek: Seek) -> Offset {
        let shared = &self.0.shared;
        let segments = shared.segments().clone();
        let before = segments.partition_point(|segment| precedes(seek, segment.base(), segment.header.before));
        // The last segment that the place does not precede, or one before it where that begins inside a transaction.
        for segment in segments.iter().take(before).rev() {
            let first = Mark { offset: segment.base(), at: SEGMENT_HEADER as u64, before: segment.header.before };
            let marks = segment.sealed().and_then(|_| Index::load(&shared.dir, &segment.header));
            let marks = marks.map(|(index, _)| index.marks).unwrap_or_default();
            let fits = |mark: &&Mark| !mark.before.inside && precedes(seek, mark.offset, mark.before);
            if let Some(mark) = marks.iter().rev().find(fits).or(Some(&first).filter(fits)) {
                return mark.offset;
            }
        }
        shared.start()
    }
}

/// Whether nothing before a place can meet `seek`.
fn precedes(seek: Seek, offset: Offset, before: Before) -> bool {
    match seek {
        Seek::Sequence(wanted) => offset.0 <= wanted.0,
        Seek::Position(wanted) => before.upto.is_none_or(|upto| upto <= wanted),
        Seek::Time(wanted) => before.latest_time_us < wanted,
    }
}
