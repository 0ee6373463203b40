//! Snapshots of the server, and whether one of them sees everything that another saw.

use crossfade_event::Visibility;

/// Reads what `pg_current_snapshot()` prints: `xmin:xmax:xid,xid,…`.
pub(super) fn parse(text: &str) -> Option<Visibility> {
    let mut parts = text.split(':');
    let xmin = parts.next()?.parse().ok()?;
    let xmax = parts.next()?.parse().ok()?;
    let in_progress = match parts.next()? {
        "" => Vec::new(),
        list => list.split(',').map(|xid| xid.parse().ok()).collect::<Option<_>>()?,
    };
    let mut visibility = Visibility { xmin, xmax, in_progress };
    visibility.in_progress.sort_unstable();
    Some(visibility)
}

/// Whether `later` sees every transaction that `earlier` sees. A transaction may be committed in the write-ahead log,
/// from which a slot's starting point is taken, and still be running for a snapshot taken a moment afterwards.
pub(super) fn covers(later: &Visibility, earlier: &Visibility) -> bool {
    let running = later.in_progress.iter().copied();
    let beyond = later.xmax..earlier.xmax;
    !running.chain(beyond).any(|xid| earlier.sees(xid))
}

/// Widens a 32-bit transaction number to 64 bits, near a number that is known.
pub(super) fn widen(xid: u32, near: u64) -> u64 {
    let distance = xid.wrapping_sub(near as u32) as i32;
    near.saturating_add_signed(i64::from(distance))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_that_lacks_a_transaction_does_not_cover() {
        let earlier = parse("10:20:12,15").unwrap();
        assert!(covers(&parse("12:21:12,15").unwrap(), &earlier));
        assert!(covers(&earlier, &earlier));
        assert!(!covers(&parse("10:20:11,12,15").unwrap(), &earlier), "11 was visible and is not any more");
        assert!(!covers(&parse("10:18:12,15").unwrap(), &earlier), "18 and 19 were visible");
        assert_eq!(parse("10:20"), None);
    }

    #[test]
    fn numbers_widen_across_the_wrap() {
        assert_eq!(widen(5, 0x1_ffff_fff0), 0x2_0000_0005);
        assert_eq!(widen(0xffff_fff0, 0x2_0000_0005), 0x1_ffff_fff0);
        assert_eq!(widen(100, 90), 100);
    }
}
