//! The event log, version 1: one frame of every kind of record, a whole folder, and a folder that a crash left.

mod events;

use crate::{files, golden, same_as_golden};
use bytes::Bytes;
use crossfade_event::{Batch, Cut, Event, Offset, Stamped};
use crossfade_log::{
    Entry, EventLog, Lane, LogReader, Seek,
    embedded::{Embedded, Options},
    record::{Encoder, FRAME_HEADER, FrameHeader, Records},
};
use events::{at, batches, head, kinds, schema};
use std::{fs, path::Path};

const VERSION: &str = "v1";

fn options() -> Options {
    Options { segment_bytes: 4096, id: Some(0x0123_4567_89ab_cdef), ..Options::default() }
}

fn read(log: &Embedded, lane: Lane) -> Vec<Entry> {
    let mut reader = log.read(&log.start(), lane).unwrap();
    let mut all = Vec::new();
    while let Some(entries) = reader.try_next().unwrap() {
        all.extend(entries.entries);
    }
    all
}

fn copy(from: &Path, to: &Path) {
    for name in files(from) {
        fs::copy(from.join(&name), to.join(&name)).unwrap();
    }
}

/// Writes the log of the golden folder: opened twice, with a consumer, one append after the other.
async fn write(dir: &Path) {
    let log = Embedded::open(dir, options()).unwrap();
    let (early, late) = batches();
    for batch in early {
        log.append(batch).await.unwrap();
    }
    log.hold("deliver", &log.tail().cut).unwrap();
    drop(log);
    let log = Embedded::open(dir, options()).unwrap();
    for batch in late {
        log.append(batch).await.unwrap();
    }
}

fn expected() -> Vec<Stamped> {
    let (early, late) = batches();
    early.into_iter().chain(late).flat_map(|batch| batch.events).collect()
}

fn check(log: &Embedded) {
    let entries = read(log, Lane::All);
    let found: Vec<Stamped> =
        entries.iter().map(|entry| Stamped { position: entry.position, event: entry.event.clone() }).collect();
    assert_eq!(found, expected());
    let offsets: Vec<u64> = entries.iter().map(|entry| entry.offset.0).collect();
    assert_eq!(offsets, (0..expected().len() as u64).collect::<Vec<_>>());
    assert_eq!(log.tail().position, Some(at(90, u32::MAX)));
    assert_eq!(log.latest_schemas(), [schema(1, 2), schema(2, 1)]);
    assert_eq!(log.schema(schema(1, 1).id, schema(1, 1).version), Some(schema(1, 1)));
    assert_eq!(log.id(), 0x0123_4567_89ab_cdef);
    let (early, _) = batches();
    let held = early.iter().map(|batch| batch.events.len() as u64).sum();
    assert_eq!(log.consumers(), [("deliver".to_owned(), Cut::single(Offset(held)))]);
    assert_eq!(log.verify().unwrap().records, expected().len() as u64);
    let found = log.find(Seek::Position(at(60, 0))).unwrap().unwrap();
    let mut reader = log.read(&found, Lane::Stream).unwrap();
    assert_eq!(reader.try_next().unwrap().unwrap().entries[0].position, at(60, 0));
}

#[test]
fn a_log_of_version_1_opens_as_it_was() {
    let original = golden(VERSION, "log");
    check(&Embedded::open_read_only(&original).unwrap());
    let dir = tempfile::tempdir().unwrap();
    copy(&original, dir.path());
    check(&Embedded::open(dir.path(), options()).unwrap());
    // Also without what can be made again.
    for name in files(dir.path()).iter().filter(|name| name.ends_with(".idx")) {
        fs::remove_file(dir.path().join(name)).unwrap();
    }
    check(&Embedded::open(dir.path(), options()).unwrap());
}

#[tokio::test]
async fn a_log_is_still_written_as_version_1() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path()).await;
    let names = files(dir.path());
    assert!(names.iter().filter(|name| name.ends_with(".idx")).count() >= 2, "several segments: {names:?}");
    for name in &names {
        same_as_golden(&golden(VERSION, "log").join(name), &fs::read(dir.path().join(name)).unwrap());
    }
    assert_eq!(names, files(&golden(VERSION, "log")));
}

#[tokio::test]
async fn a_log_of_version_1_that_a_crash_left_opens_with_all_that_was_whole() {
    let original = golden(VERSION, "crashed-log");
    if !original.exists() && std::env::var_os("CROSSFADE_WRITE_GOLDEN").is_some() {
        fs::create_dir_all(&original).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let log = Embedded::open(dir.path(), options()).unwrap();
        let (early, _) = batches();
        for batch in early.into_iter().chain(head()) {
            log.append(batch).await.unwrap();
        }
        copy(dir.path(), &original);
    }
    let dir = tempfile::tempdir().unwrap();
    copy(&original, dir.path());
    let log = Embedded::open(dir.path(), options()).unwrap();
    let (early, _) = batches();
    let whole: Vec<Event> = early.iter().flat_map(|batch| &batch.events).map(|event| event.event.clone()).collect();
    let found: Vec<Event> = read(&log, Lane::All).into_iter().map(|entry| entry.event).collect();
    assert_eq!(found, whole);
    assert_eq!(log.latest_schemas(), [schema(1, 1)], "the head's schema went with it");
}

/// One frame for one event.
fn frame(stamped: &Stamped) -> Vec<u8> {
    let (mut encoder, mut out) = (Encoder::default(), Vec::new());
    encoder.learn(&schema(1, 1));
    let batch = Batch { events: vec![stamped.clone()], upto: Some(at(7, u32::MAX)), whole: true };
    encoder.encode(&batch, &mut out, Offset(1000), Offset(990), |_, _, _| Ok(())).unwrap();
    out
}

#[test]
fn every_kind_of_record_of_version_1_is_read_as_it_was_and_still_written_so() {
    let kinds = kinds();
    for (name, stamped) in &kinds {
        let file = golden(VERSION, "records").join(name);
        same_as_golden(&file, &frame(stamped));
        let bytes = Bytes::from(fs::read(&file).unwrap());
        let header = FrameHeader::parse(bytes.first_chunk().unwrap()).unwrap();
        let body = bytes.slice(FRAME_HEADER..);
        assert!(header.matches(&body));
        assert_eq!((header.base, header.durable, header.upto()), (Offset(1000), Offset(990), Some(at(7, u32::MAX))));
        let records: Vec<_> = Records::new(header, body).collect::<Result<_, _>>().unwrap();
        assert_eq!(records.len(), 1);
        assert_eq!((records[0].offset, records[0].position), (Offset(1000), stamped.position), "{name}");
        assert_eq!(records[0].event().unwrap(), stamped.event, "{name}");
    }
    let names: Vec<String> = kinds.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(files(&golden(VERSION, "records")), names, "one file for each");
}
