//! Schemas, consumers, trimming, and what a log refuses.

use super::*;
use crossfade_event::{Batch, SchemaVersion, TableId};

async fn fill(log: &impl EventLog, from: u64, to: u64) -> Vec<Cut> {
    let mut cuts = Vec::new();
    for n in from..to {
        let bulk = (0..40).map(|k| insert(&format!("{n}/{k}"), &"z".repeat(100))).collect();
        cuts.push(good(soon("an append", log.append(transaction(n, bulk))).await));
    }
    cuts
}

async fn begin(log: &impl EventLog) {
    let seen = vec![Event::SchemaSeen(schema(1, 1)), Event::SchemaSeen(schema(2, 1)), Event::SchemaSeen(schema(1, 2))];
    good(soon("the schemas", log.append(batch(1, seen, Some(at(1, u32::MAX)), true))).await);
}

/// Schemas are known by table and version, and the latest of each table.
///
/// # Panics
/// When not.
pub async fn schemas_are_known<L: EventLog>(make: impl Fn() -> L) {
    let log = make();
    assert!(log.latest_schemas().is_empty());
    begin(&log).await;
    assert_eq!(log.schema(TableId(1), SchemaVersion(1)), Some(schema(1, 1)));
    assert_eq!(log.schema(TableId(1), SchemaVersion(2)), Some(schema(1, 2)));
    assert_eq!(log.schema(TableId(1), SchemaVersion(3)), None);
    assert_eq!(log.latest_schemas(), [schema(1, 2), schema(2, 1)]);
    // Saying the same again is no harm.
    let again = batch(2, vec![Event::SchemaSeen(schema(1, 1))], None, true);
    good(soon("a known schema", log.append(again)).await);
    assert_eq!(log.latest_schemas(), [schema(1, 2), schema(2, 1)]);
}

/// Schemas stay although the entries that brought them are trimmed away.
///
/// # Panics
/// When not.
pub async fn schemas_are_kept_after_trimming<L: EventLog>(make: impl Fn() -> L) {
    let log = make();
    begin(&log).await;
    fill(&log, 2, 120).await;
    let start = good(log.trim(&log.tail().cut, false));
    assert_ne!(start, Cut::start(log.partitions()), "something was trimmed");
    assert_eq!(log.schema(TableId(2), SchemaVersion(1)), Some(schema(2, 1)));
    assert_eq!(log.latest_schemas(), [schema(1, 2), schema(2, 1)]);
}

/// Trimming never passes the slowest consumer, unless forced; then its place is refused.
///
/// # Panics
/// When not.
pub async fn trimming_stops_at_the_slowest_consumer<L: EventLog>(make: impl Fn() -> L) {
    let log = make();
    begin(&log).await;
    let cuts = fill(&log, 2, 200).await;
    let (Some(slow), Some(fast)) = (cuts.get(60), cuts.get(150)) else { panic!("too few appends") };
    good(log.hold("slow", slow));
    good(log.hold("fast", fast));
    let rest = read_all(&log, slow, Lane::All);
    let start = good(log.trim(&log.tail().cut, false));
    assert_eq!(start, log.start());
    assert!(slow.covers(&start), "nothing that the slow one needs was dropped");
    assert_ne!(start, Cut::start(log.partitions()), "what nobody needs was dropped");
    assert_eq!(read_all(&log, slow, Lane::All), rest);
    good(log.release("slow"));
    let start = good(log.trim(&log.tail().cut, false));
    assert!(start.covers(slow) && fast.covers(&start), "now the fast one holds: {start}");
    let start = good(log.trim(&log.tail().cut, true));
    assert!(start.covers(fast), "forced, it goes past everybody: {start}");
    assert!(matches!(log.read(slow, Lane::All), Err(LogError::Trimmed { .. })));
    assert_eq!(log.tail().position, Some(at(199, u32::MAX)), "the position stays");
    fill(&log, 200, 210).await;
    let last = events_of(&log, Lane::All);
    assert_eq!(last.last(), Some(&Event::Committed), "and the log goes on");
}

/// Trimming below a place keeps that place.
///
/// # Panics
/// When not.
pub async fn trimming_keeps_what_lies_at_or_after_the_place<L: EventLog>(make: impl Fn() -> L) {
    let log = make();
    begin(&log).await;
    let cuts = fill(&log, 2, 100).await;
    for cut in cuts.iter().step_by(13) {
        let rest = read_all(&log, cut, Lane::All);
        let start = good(log.trim(cut, false));
        assert!(cut.covers(&start));
        assert_eq!(read_all(&log, cut, Lane::All), rest);
    }
}

/// A reader whose place was trimmed away while it slept is told so; it is never given a later entry instead.
///
/// # Panics
/// When it is.
pub async fn a_reader_that_was_overtaken_is_told<L: EventLog>(make: impl Fn() -> L) {
    let log = make();
    begin(&log).await;
    let mut reader = good(log.read(&log.start(), Lane::All));
    fill(&log, 2, 200).await;
    let all = read_all(&log, &log.start(), Lane::All);
    good(log.trim(&log.tail().cut, true));
    let mut seen = Vec::new();
    loop {
        match reader.try_next() {
            Ok(Some(entries)) => seen.extend(entries.entries),
            Ok(None) => break,
            Err(LogError::Trimmed { .. }) => break,
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(seen, all.get(..seen.len()).unwrap_or_default(), "what it was given has no hole");
}

/// A batch that breaks the contract is refused with the reason, and so is everything behind it: it must not land
/// behind a missing batch.
///
/// # Panics
/// When not.
pub async fn what_breaks_the_contract_is_refused<L: EventLog>(make: impl Fn() -> L) {
    let unknown = || transaction(2, vec![insert("a", "1")]);
    let mixed = || batch(2, vec![rows(0, &["a"]), Event::Committed], None, true);
    let mut other = (*schema(1, 1)).clone();
    other.native_id = 1;
    let changed = batch(2, vec![Event::SchemaSeen(other.into())], None, true);
    let seen = |n: u64| batch(n, vec![Event::SchemaSeen(schema(1, 1))], Some(at(n, u32::MAX)), true);
    let inside = vec![part(2, vec![Event::Began(crossfade_event::Transaction { xid: 1, commit_time_us: 0 })])];
    let cases: Vec<(&str, bool, Vec<Batch>, Batch)> = vec![
        ("an unknown schema", false, Vec::new(), unknown()),
        ("a mix of lanes", true, Vec::new(), mixed()),
        ("a schema that changed", true, Vec::new(), changed),
        ("a backfill inside a transaction", true, inside, snapshot(vec![rows(0, &["a"])])),
    ];
    for (what, known, before, bad) in cases {
        let log = make();
        let mut position = None;
        if known {
            good(soon("the schema", log.append(seen(1))).await);
            position = Some(at(1, u32::MAX));
        }
        for batch in before {
            good(soon("what comes before", log.append(batch)).await);
        }
        let visible = events_of(&log, Lane::All);
        let (refused, behind) = (log.append(bad), log.append(seen(9)));
        let error = soon("a bad batch", refused).await;
        assert!(matches!(error, Err(LogError::Contract(_))), "{what}: {error:?}");
        let error = soon("a batch behind it", behind).await;
        assert!(matches!(error, Err(LogError::Poisoned { .. })), "{what}: {error:?}");
        assert_eq!(events_of(&log, Lane::All), visible, "{what}");
        assert_eq!(log.tail().position, position, "{what}");
    }
}

/// Transactions are found by offset, position and commit time.
///
/// # Panics
/// When not.
pub async fn places_are_found<L: EventLog>(make: impl Fn() -> L) {
    use crossfade_log::{Seek, find};
    let log = make();
    begin(&log).await;
    // Every second number, so that there is something between two transactions.
    for n in (10..400).step_by(2) {
        let bulk = (0..20).map(|k| insert(&format!("{n}/{k}"), &"z".repeat(60))).collect();
        good(soon("an append", log.append(transaction(n, bulk))).await);
    }
    let began = |cut: Option<Cut>| {
        let entries = read_all(&log, &cut?, Lane::Stream);
        entries.into_iter().next().map(|entry| (entry.position.commit, matches!(entry.event, Event::Began(_))))
    };
    let look = |seek| began(good(find(&log, &log.start(), seek)));
    for n in [10, 11, 100, 101, 398] {
        let expected = Some((n + n % 2, true));
        assert_eq!(look(Seek::Time(COMMON + n as i64)), expected, "time {n}");
        assert_eq!(look(Seek::Position(at(n, 0))), expected, "position {n}");
    }
    assert_eq!(look(Seek::Position(at(100, u32::MAX))), Some((102, true)), "the end of one is before the next");
    assert_eq!(look(Seek::Time(i64::MIN)), Some((10, true)));
    assert_eq!(look(Seek::Time(COMMON + 399)), None);
    assert_eq!(look(Seek::Position(at(398, u32::MAX))), None);
}
