//! Order, visibility, lanes, places.

use super::*;
use crossfade_event::{Backfill, Batch, ChunkId, Offset, Partition, Stamped, TableId};
use std::collections::BTreeMap;

fn events(batches: &[Batch]) -> Vec<Event> {
    flat(batches.iter().flat_map(|batch| batch.events.iter().map(|stamped| stamped.event.clone())))
}

fn first() -> Batch {
    batch(1, vec![Event::SchemaSeen(schema(1, 1))], Some(at(1, u32::MAX)), true)
}

async fn append_all(log: &impl EventLog, batches: impl IntoIterator<Item = Batch>) -> Vec<Cut> {
    // All are taken before any is waited for: the order is that of the calls.
    let appends: Vec<_> = batches.into_iter().map(|batch| log.append(batch)).collect();
    let mut cuts = Vec::new();
    for append in appends {
        cuts.push(good(soon("an append", append).await));
    }
    cuts
}

/// Every kind of event comes back as it was, at its position.
///
/// # Panics
/// When not.
pub async fn every_kind_of_event_comes_back_as_it_was<L: EventLog>(make: impl Fn() -> L) {
    let log = make();
    append_all(&log, every_kind()).await;
    let read = read_all(&log, &log.start(), Lane::All);
    assert_eq!(flat(read.iter().map(|entry| entry.event.clone())), events(&every_kind()));
    let positions = |all: Vec<_>| {
        let mut seen: Vec<_> = all;
        seen.dedup();
        seen
    };
    let stamps = every_kind().into_iter().flat_map(|batch| batch.events);
    let expected = stamps.filter(|stamped| !matches!(stamped.event, Event::Rows(_))).map(|stamped| stamped.position);
    let found = read.iter().filter(|entry| !matches!(entry.event, Event::Rows(_))).map(|entry| entry.position);
    assert_eq!(positions(found.collect()), positions(expected.collect()));
}

/// Appends land in the order of the calls, however many are in flight.
///
/// # Panics
/// When not.
pub async fn appends_land_in_the_order_of_the_calls<L: EventLog>(make: impl Fn() -> L) {
    let log = make();
    let batches: Vec<Batch> = std::iter::once(first())
        .chain((2..300).map(|n| transaction(n, vec![insert(&format!("key {n}"), "x"), update("one", &n.to_string())])))
        .collect();
    let cuts = append_all(&log, batches.clone()).await;
    assert_eq!(flat(events_of(&log, Lane::All)), events(&batches));
    for pair in cuts.windows(2) {
        assert!(pair.last().zip(pair.first()).is_some_and(|(b, a)| b.covers(a)), "the cuts rise: {pair:?}");
    }
    assert_eq!(cuts.last(), Some(&log.tail().cut));
}

/// Within a partition offsets rise, and every entry lies below the cut of its append.
///
/// # Panics
/// When not.
pub async fn offsets_rise_within_each_partition<L: EventLog>(make: impl Fn() -> L) {
    let log = make();
    let insert_some = |n: u64| (0..20).map(|k| insert(&format!("{n}/{k}"), "x")).collect();
    let batches = std::iter::once(first()).chain((2..30).map(|n| transaction(n, insert_some(n))));
    append_all(&log, batches).await;
    let mut offsets: BTreeMap<Partition, Vec<Offset>> = BTreeMap::new();
    for entry in read_all(&log, &log.start(), Lane::All) {
        assert!(entry.offset < log.tail().cut.next(entry.partition), "an entry beyond the tail");
        offsets.entry(entry.partition).or_default().push(entry.offset);
    }
    assert_eq!(offsets.len() as u32, log.partitions(), "the keys spread over all partitions");
    for (partition, offsets) in offsets {
        assert!(offsets.is_sorted_by(|a, b| a < b), "{partition:?}: {offsets:?}");
    }
}

/// Sequences rise in the order of the appends over all partitions, and are the same for whoever reads, whatever he
/// reads and wherever he begins.
///
/// # Panics
/// When not.
pub async fn sequences_are_the_order_of_the_whole_log<L: EventLog>(make: impl Fn() -> L) {
    let log = make();
    let mixed = |n: u64| (0..20).map(|k| key_change(&format!("{n}/{k}"), &format!("{n}/{}", k + 100))).collect();
    append_all(&log, [first()]).await;
    append_all(&log, [snapshot(vec![rows(1, &["a", "b", "c", "d", "e", "f"])])]).await;
    append_all(&log, (2..30).map(|n| transaction(n, mixed(n)))).await;
    let all = read_all(&log, &log.start(), Lane::All);
    assert!(
        all.is_sorted_by(|a, b| a.sequence < b.sequence),
        "{:?}",
        all.iter().map(|e| e.sequence).collect::<Vec<_>>()
    );
    let stream: Vec<Entry> = all.iter().filter(|entry| !entry.event.is_snapshot()).cloned().collect();
    assert_eq!(read_all(&log, &log.start(), Lane::Stream), stream);
    let mut cut = log.start();
    for (index, entry) in all.iter().enumerate() {
        cut.set_next(entry.partition, Offset(entry.offset.0 + 1));
        if index % 97 != 0 {
            continue;
        }
        let rest = read_all(&log, &cut, Lane::All);
        assert_eq!(rest.first().map(|entry| entry.sequence), all.get(index + 1).map(|entry| entry.sequence));
    }
}

/// The cut behind the beginning of a backfill holds for readers of every lane, whichever of them found it: nothing
/// before it is read from there, and all behind it is.
///
/// # Panics
/// When not.
pub async fn the_cut_behind_a_backfills_beginning_holds_for_every_lane<L: EventLog>(make: impl Fn() -> L) {
    let log = make();
    append_all(&log, [first()]).await;
    append_all(&log, [snapshot(vec![rows(1, &["a", "b", "c", "d", "e", "f"])])]).await;
    // Beginning in the midst of a batch, as changes before it and behind it come.
    let some =
        |n: u64| -> Vec<Stamped> { transaction(n, (0..30).map(|k| insert(&format!("{n}/{k}"), "v")).collect()).events };
    let tables = vec![TableId(1)];
    let began = Event::BackfillBegan(Backfill { generation: 2, tables, visible: None });
    let middle = vec![Stamped { position: at(3, u32::MAX), event: began }];
    let events = [some(2), some(3), middle, some(4)].concat();
    append_all(&log, [Batch { events, upto: Some(at(4, u32::MAX)), whole: true }]).await;
    append_all(&log, [snapshot(vec![rows(2, &["g", "h", "i", "j", "k", "l"])])]).await;
    append_all(&log, [transaction(5, vec![insert("k", "v")])]).await;

    let is_begin = |entry: &Entry| matches!(&entry.event, Event::BackfillBegan(backfill) if backfill.generation == 2);
    let all = read_all(&log, &log.start(), Lane::All);
    let behind = all.iter().position(is_begin).map_or(0, |index| index + 1);
    assert!(behind > 0, "the backfill began");
    for found_by in [Lane::All, Lane::Snapshot, Lane::Stream] {
        let mut cut = log.start();
        let mut reader = good(log.read(&cut, found_by));
        'found: while let Some(entries) = good(reader.try_next()) {
            for entry in &entries.entries {
                cut.set_next(entry.partition, Offset(entry.offset.0 + 1));
                if is_begin(entry) {
                    break 'found;
                }
            }
            cut = entries.next;
        }
        assert_eq!(read_all(&log, &cut, Lane::All), all.get(behind..).unwrap_or_default(), "found in {found_by:?}");
    }
}

/// An append is visible, and counted by the tail, once its future has resolved.
///
/// # Panics
/// When not.
pub async fn an_append_is_visible_once_it_has_resolved<L: EventLog>(make: impl Fn() -> L) {
    let log = make();
    let mut reader = good(log.read(&log.start(), Lane::All));
    assert!(good(reader.try_next()).is_none(), "a new log is empty");
    assert_eq!(log.tail().position, None);
    for n in 1..50 {
        let batch = if n == 1 { first() } else { transaction(n, vec![insert("k", "v")]) };
        let count = batch.events.len();
        let cut = good(soon("an append", log.append(batch)).await);
        assert_eq!(log.tail().cut, cut);
        assert_eq!(log.tail().position, Some(at(n, u32::MAX)));
        let Some(entries) = good(reader.try_next()) else { panic!("append {n} is not visible") };
        assert_eq!((entries.entries.len(), entries.next, entries.whole), (count, cut, true));
        assert!(good(reader.try_next()).is_none(), "there is no more than was appended");
    }
}

/// A future that nobody waits for does not take its batch back.
///
/// # Panics
/// When it does.
pub async fn a_dropped_append_lands_all_the_same<L: EventLog>(make: impl Fn() -> L) {
    let log = make();
    drop(log.append(first()));
    drop(log.append(transaction(2, vec![insert("a", "1")])));
    good(soon("the last append", log.append(transaction(3, vec![insert("b", "1")]))).await);
    assert_eq!(log.tail().position, Some(at(3, u32::MAX)));
    assert_eq!(events_of(&log, Lane::All).len(), 1 + 3 + 3);
}

/// The parts of a transaction are visible only with the last one, and then all.
///
/// # Panics
/// When not.
pub async fn parts_are_visible_only_with_the_last_one<L: EventLog>(make: impl Fn() -> L) {
    let log = make();
    append_all(&log, [first()]).await;
    let before = log.tail();
    let mut reader = good(log.read(&before.cut, Lane::All));
    let began = transaction(9, Vec::new()).events.into_iter().map(|stamped| stamped.event);
    append_all(&log, [part(9, began.take(1).collect())]).await;
    for n in 0..40 {
        append_all(&log, [part(9, (0..50).map(|k| insert(&format!("{n}/{k}"), &"x".repeat(300))).collect())]).await;
        assert!(good(reader.try_next()).is_none(), "a part was visible");
        assert_eq!(log.tail(), before);
    }
    let last = batch(9, vec![Event::Committed], Some(at(9, u32::MAX)), true);
    append_all(&log, [last]).await;
    let (mut count, mut whole) = (0, false);
    while let Some(entries) = good(reader.try_next()) {
        assert!(!whole, "nothing comes after the end of the transaction");
        count += entries.entries.len();
        whole = entries.whole;
    }
    assert_eq!((count, whole), (1 + 40 * 50 + 1, true));
    assert_eq!(log.tail().position, Some(at(9, u32::MAX)));
}

/// The last part of a transaction may be empty: then the parts are visible and whole all the same.
///
/// # Panics
/// When not.
pub async fn an_empty_last_part_makes_a_transaction_whole<L: EventLog>(make: impl Fn() -> L) {
    let log = make();
    append_all(&log, [first()]).await;
    let mut reader = good(log.read(&log.tail().cut, Lane::All));
    append_all(&log, (0..40).map(|n| part(9, vec![insert(&n.to_string(), &"x".repeat(n * 16_000))]))).await;
    assert!(good(reader.try_next()).is_none());
    append_all(&log, [batch(9, Vec::new(), None, true)]).await;
    let (mut count, mut whole) = (0, false);
    while let Some(entries) = good(reader.try_next()) {
        count += entries.entries.len();
        whole = entries.whole;
    }
    assert_eq!((count, whole), (40, true));
    append_all(&log, [batch(10, Vec::new(), Some(at(10, u32::MAX)), true)]).await;
    assert_eq!(log.tail().position, Some(at(10, u32::MAX)), "a position may come alone");
    assert!(good(reader.try_next()).is_none());
}

/// However far behind a reader is, it is given no more at once than it can hold.
///
/// # Panics
/// When it is given more.
pub async fn what_is_given_at_once_is_bounded<L: EventLog>(make: impl Fn() -> L) {
    let log = make();
    append_all(&log, [first()]).await;
    append_all(&log, (2..60).map(|n| transaction(n, vec![insert("k", &"x".repeat(100_000))]))).await;
    append_all(&log, (60..4000).map(|n| transaction(n, vec![insert("k", "v"), update("k", "w")]))).await;
    let mut reader = good(log.read(&log.start(), Lane::All));
    let mut events = 0;
    while let Some(Entries { entries, whole, .. }) = good(reader.try_next()) {
        let bytes: usize = entries.iter().map(|entry| entry.event.size_bytes()).sum();
        assert!(bytes <= 1 << 20 && entries.len() <= 10_000, "{bytes} bytes in {} entries", entries.len());
        assert!(whole, "none of these transactions came in parts");
        events += entries.len();
    }
    assert_eq!(events, 1 + 58 * 3 + 3940 * 4);
}

/// An abandoned head is never seen, its schemas are forgotten, and the whole that is sent anew is.
///
/// # Panics
/// When not.
pub async fn an_abandoned_head_is_never_seen<L: EventLog>(make: impl Fn() -> L) {
    let log = make();
    append_all(&log, [first()]).await;
    good(soon("nothing to abandon", log.abandon()).await);
    let before = log.tail();
    let bulk = |n: u32| (0..100).map(|k| insert(&format!("{n}/{k}"), &"y".repeat(200))).collect::<Vec<_>>();
    append_all(&log, [part(5, vec![Event::SchemaSeen(schema(2, 1))])]).await;
    append_all(&log, (0..20).map(|n| part(5, bulk(n)))).await;
    good(soon("abandoning", log.abandon()).await);
    assert_eq!(log.tail(), before);
    assert_eq!(log.schema(TableId(2), schema(2, 1).version), None);
    let mut other = (*schema(2, 1)).clone();
    other.native_id = 99;
    let again = [batch(5, vec![Event::SchemaSeen(other.into())], None, false), transaction(5, bulk(7))];
    append_all(&log, again.clone()).await;
    let expected: Vec<Event> = events(&[vec![first()], again.to_vec()].concat());
    assert_eq!(flat(events_of(&log, Lane::All)), expected);
}

/// Each lane gets its own, and the marks of a backfill and the schemas come in every lane.
///
/// # Panics
/// When not.
pub async fn each_lane_gets_its_own<L: EventLog>(make: impl Fn() -> L) {
    let log = make();
    append_all(&log, every_kind()).await;
    // Far larger than one read, so that passing over it is something else than reading it.
    let table = TableId(1);
    for chunk in 2..40 {
        let keys: Vec<String> = (0..2000).map(|k| format!("{chunk}/{k}")).collect();
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let ended = Event::ChunkEnded { table, chunk: ChunkId(chunk), rows: 2000 };
        append_all(&log, [snapshot(vec![rows(chunk, &keys), ended])]).await;
        append_all(&log, [transaction(u64::from(chunk) + 100, vec![insert("k", "v")])]).await;
    }
    let all = flat(events_of(&log, Lane::All));
    let both =
        |event: &Event| matches!(event, Event::SchemaSeen(_) | Event::BackfillBegan(_) | Event::BackfillEnded { .. });
    let snapshot: Vec<Event> = all.iter().filter(|event| event.is_snapshot() || both(event)).cloned().collect();
    let stream: Vec<Event> = all.iter().filter(|event| !event.is_snapshot()).cloned().collect();
    assert_eq!(flat(events_of(&log, Lane::Snapshot)), flat(snapshot));
    assert_eq!(flat(events_of(&log, Lane::Stream)), stream);
}

/// A reader of one lane moves on although everything belongs to the other.
///
/// # Panics
/// When not.
pub async fn a_reader_moves_over_what_is_not_its_lane<L: EventLog>(make: impl Fn() -> L) {
    let log = make();
    append_all(&log, [first()]).await;
    let mut reader = good(log.read(&log.tail().cut, Lane::Snapshot));
    append_all(&log, (2..40).map(|n| transaction(n, vec![insert("k", "v")]))).await;
    let mut next = log.start();
    while next != log.tail().cut {
        let entries = good(soon("what is passed over", reader.next()).await);
        assert!(entries.entries.is_empty());
        next = entries.next;
    }
    assert!(good(reader.try_next()).is_none());
}

/// Reading from any place that was given goes on exactly there.
///
/// # Panics
/// When not.
pub async fn reading_goes_on_exactly_where_a_cut_says<L: EventLog>(make: impl Fn() -> L) {
    let log = make();
    append_all(&log, [first()]).await;
    append_all(&log, (2..60).map(|n| transaction(n, vec![insert(&n.to_string(), "v"), delete("k")]))).await;
    let all = read_all(&log, &log.start(), Lane::All);
    let mut reader = good(log.read(&log.start(), Lane::All));
    let mut seen = 0;
    while let Some(entries) = good(reader.try_next()) {
        seen += entries.entries.len();
        assert_eq!(read_all(&log, &entries.next, Lane::All), all.get(seen..).unwrap_or_default());
    }
    assert_eq!(seen, all.len());
    // Also in the midst of what comes at once: right behind any entry.
    let mut cut = log.start();
    for (index, entry) in all.iter().enumerate() {
        cut.set_next(entry.partition, Offset(entry.offset.0 + 1));
        assert_eq!(read_all(&log, &cut, Lane::All), all.get(index + 1..).unwrap_or_default(), "behind entry {index}");
    }
}

/// A place beyond the end is refused: the log is not the one that was read.
///
/// # Panics
/// When not.
pub async fn a_place_beyond_the_end_is_refused<L: EventLog>(make: impl Fn() -> L) {
    let log = make();
    append_all(&log, [first()]).await;
    let mut beyond = log.tail().cut;
    beyond.set_next(Partition(0), Offset(beyond.next(Partition(0)).0 + 1));
    assert!(matches!(log.read(&beyond, Lane::All), Err(LogError::Beyond { .. })));
    assert!(matches!(log.hold("deliver", &beyond), Err(LogError::Beyond { .. })));
}

/// A reader that waits at the tail wakes with the next append.
///
/// # Panics
/// When not.
pub async fn a_reader_at_the_tail_wakes<L: EventLog>(make: impl Fn() -> L) {
    let log = make();
    append_all(&log, [first()]).await;
    let mut readers = Vec::new();
    for _ in 0..3 {
        let mut reader = good(log.read(&log.tail().cut, Lane::All));
        let (ready, waits) = tokio::sync::oneshot::channel();
        let task = tokio::spawn(async move {
            assert!(good(reader.try_next()).is_none());
            let _ = ready.send(());
            good(reader.next().await).entries.len()
        });
        assert!(soon("a reader at the tail", waits).await.is_ok());
        readers.push(task);
    }
    append_all(&log, [transaction(2, vec![insert("a", "1")])]).await;
    for reader in readers {
        assert_eq!(soon("a reader that waits", reader).await.ok(), Some(3));
    }
}

/// Giving up a wait loses nothing.
///
/// # Panics
/// When it does.
pub async fn waiting_can_be_given_up<L: EventLog>(make: impl Fn() -> L) {
    let log = make();
    append_all(&log, [first()]).await;
    let mut reader = good(log.read(&log.start(), Lane::All));
    let mut seen = 0;
    for n in 2..40 {
        tokio::select! {
            biased;
            entries = reader.next() => seen += good(entries).entries.len(),
            () = std::future::ready(()) => {}
        }
        tokio::select! {
            biased;
            () = std::future::ready(()) => {}
            entries = reader.next() => seen += good(entries).entries.len(),
        }
        append_all(&log, [transaction(n, vec![insert("a", "1")])]).await;
    }
    while let Some(entries) = good(reader.try_next()) {
        seen += entries.entries.len();
    }
    assert_eq!(seen, 1 + 38 * 3);
}

/// Changes of one key keep their order in their partition; a change of the key is a delete and an insert where the
/// two keys live in different partitions, and one update where they do not.
///
/// # Panics
/// When not.
pub async fn a_key_change_keeps_both_keys_in_order<L: EventLog>(make: impl Fn() -> L) {
    let log = make();
    append_all(&log, [first()]).await;
    for n in 2..40 {
        let (old, new) = (format!("old {n}"), format!("new {n}"));
        append_all(&log, [transaction(n, vec![insert(&old, "x"), key_change(&old, &new), delete(&new)])]).await;
    }
    let mut partitions: BTreeMap<Vec<u8>, Partition> = BTreeMap::new();
    let (mut updates, mut divided) = (0, 0);
    let entries = read_all(&log, &log.start(), Lane::All);
    for entry in &entries {
        let Event::Changed(change) = &entry.event else { continue };
        let schema = schema(1, 1);
        match (change.replaced_key(&schema), change.op) {
            (Some(_), _) => updates += 1,
            (None, crossfade_event::Op::Delete) => divided += 1,
            _ => {}
        }
        if let Some(key) = change.key(&schema) {
            let known = partitions.entry(key.as_bytes().to_vec()).or_insert(entry.partition);
            assert_eq!(*known, entry.partition, "a key stays in its partition");
        }
    }
    // Each transaction has one delete of its own; the others come from divided updates.
    assert_eq!(updates + divided - 38, 38);
    assert_eq!(divided > 38, log.partitions() > 1, "with several partitions some keys part");
}
