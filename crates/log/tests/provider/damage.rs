//! Damage that is no torn tail: refused, named, and nothing is changed.

use crate::{
    conformance::{open, small},
    crash::segments,
};
use crossfade_event::{Cut, Event, Offset, Partition};
use crossfade_log::{EventLog, Lane, LogError, LogReader, embedded::Embedded};
use crossfade_testkit::log_suite::{at, batch, crashed, insert, read_all, schema, transaction};
use std::{collections::BTreeMap, fs, path::Path};
use tempfile::TempDir;

/// A log of several segments, closed.
async fn filled() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    log.append(batch(1, vec![Event::SchemaSeen(schema(1, 1))], Some(at(1, u32::MAX)), true)).await.unwrap();
    for n in 2..200 {
        let bulk = (0..10).map(|k| insert(&format!("{n}/{k}"), &"d".repeat(100))).collect();
        log.append(transaction(n, bulk)).await.unwrap();
    }
    log.hold("deliver", &log.tail().cut).unwrap();
    assert!(log.statistics().unwrap().segments > 3);
    dir
}

fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    let all = entries.map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()));
    all.filter(|(name, _)| name != "lock").collect()
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 0x40;
    fs::write(path, bytes).unwrap();
}

/// Opening must refuse, name the file, and leave everything as it was.
fn refused(dir: &Path, file: &str) -> LogError {
    let before = contents(dir);
    let error = Embedded::open(dir, small()).unwrap_err();
    assert_eq!(contents(dir), before, "nothing is changed");
    let looked = Embedded::open_read_only(dir).unwrap_err();
    assert_eq!(looked.to_string(), error.to_string(), "looking says the same");
    match &error {
        LogError::Corrupt { file: named, .. } | LogError::TooNew { file: named, .. } => {
            assert_eq!(named.file_name().unwrap(), file, "{error}");
        }
        other => panic!("{other}"),
    }
    error
}

#[tokio::test]
async fn a_flipped_bit_in_a_sealed_segment_stops_the_reader_with_file_and_place() {
    let dir = filled().await;
    let file = segments(dir.path())[1].clone();
    let middle = fs::metadata(&file).unwrap().len() as usize / 2;
    flip(&file, middle);
    let log = open(dir.path());
    let mut reader = log.read(&log.start(), Lane::All).unwrap();
    let error = loop {
        match reader.try_next() {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the damage was not seen"),
            Err(error) => break error,
        }
    };
    let LogError::Corrupt { file: named, at, .. } = &error else { panic!("{error}") };
    assert_eq!(named, &file);
    assert!((*at as usize) <= middle && middle - (*at as usize) < 4096, "{at} is the frame around {middle}");
    assert!(reader.try_next().is_err(), "and it does not skip it afterwards");
    let scrubbed = log.verify().unwrap_err();
    assert_eq!(scrubbed.to_string(), error.to_string());
}

#[tokio::test]
async fn a_missing_index_is_made_again_and_a_damaged_one_too() {
    let dir = filled().await;
    let index = segments(dir.path())[1].with_extension("idx");
    let bytes = fs::read(&index).unwrap();
    let all = read_all(&open(dir.path()), &Cut::start(1), Lane::All);
    for step in 0..2 {
        if step == 0 {
            fs::remove_file(&index).unwrap()
        } else {
            flip(&index, 60)
        }
        assert_eq!(read_all(&open(dir.path()), &Cut::start(1), Lane::All), all);
        assert_eq!(fs::read(&index).unwrap(), bytes);
    }
    // Without its index the damage of a sealed segment shows at once.
    fs::remove_file(&index).unwrap();
    let file = segments(dir.path())[1].clone();
    flip(&file, 3000);
    refused(dir.path(), file.file_name().unwrap().to_str().unwrap());
}

#[tokio::test]
async fn what_is_missing_or_short_is_named() {
    let dir = filled().await;
    let files = segments(dir.path());
    let name = |index: usize| files[index].file_name().unwrap().to_str().unwrap().to_owned();

    let copy = crashed(dir.path());
    fs::remove_file(copy.path().join(name(1))).unwrap();
    refused(copy.path(), &name(1));

    let copy = crashed(dir.path());
    let short = fs::OpenOptions::new().write(true).open(copy.path().join(name(1))).unwrap();
    short.set_len(5000).unwrap();
    drop(short);
    refused(copy.path(), &name(1));

    // The last segment is gone: a consumer has read further than what is left.
    let copy = crashed(dir.path());
    fs::remove_file(copy.path().join(name(files.len() - 1))).unwrap();
    refused(copy.path(), &name(files.len() - 2));

    let copy = crashed(dir.path());
    files.iter().for_each(|file| fs::remove_file(copy.path().join(file.file_name().unwrap())).unwrap());
    let error = Embedded::open(copy.path(), small()).unwrap_err();
    assert!(matches!(error, LogError::Corrupt { .. }), "{error}");

    for file in ["schemas", "consumers"] {
        let copy = crashed(dir.path());
        flip(&copy.path().join(file), 30);
        refused(copy.path(), file);
    }
    let copy = crashed(dir.path());
    fs::remove_file(copy.path().join("schemas")).unwrap();
    refused(copy.path(), "schemas");
}

#[tokio::test]
async fn a_segment_of_another_log_is_refused() {
    let (dir, other) = (filled().await, filled().await);
    let name = segments(dir.path())[1].file_name().unwrap().to_owned();
    fs::copy(other.path().join(&name), dir.path().join(&name)).unwrap();
    refused(dir.path(), name.to_str().unwrap());
}

#[tokio::test]
async fn a_newer_format_is_refused_as_such() {
    let dir = filled().await;
    let last = segments(dir.path()).pop().unwrap();
    let name = last.file_name().unwrap().to_str().unwrap().to_owned();
    for (file, at) in [(name.as_str(), 8), ("schemas", 8)] {
        let copy = crashed(dir.path());
        let mut bytes = fs::read(copy.path().join(file)).unwrap();
        bytes[at] = 2;
        fs::write(copy.path().join(file), bytes).unwrap();
        let error = refused(copy.path(), file);
        assert!(matches!(error, LogError::TooNew { found: 2, known: 1, .. }), "{error}");
    }
    let copy = crashed(dir.path());
    let path = copy.path().join("consumers");
    let text = fs::read_to_string(&path).unwrap().replacen("consumers 1", "consumers 2", 1);
    fs::write(&path, text).unwrap();
    assert!(matches!(refused(copy.path(), "consumers"), LogError::TooNew { .. }));
}

#[tokio::test]
async fn a_segment_whose_making_was_cut_off_is_removed() {
    let dir = filled().await;
    let (all, tail) = {
        let log = open(dir.path());
        (read_all(&log, &log.start(), Lane::All), log.tail())
    };
    for (length, set_aside) in [(0, 0), (50, 0), (0, 64 * 1024), (91, 0)] {
        let copy = crashed(dir.path());
        let next = copy.path().join(format!("{:020}.log", tail.cut.next(Partition(0)).0));
        fs::write(&next, vec![0u8; length.max(set_aside)]).unwrap();
        let log = open(copy.path());
        assert_eq!((read_all(&log, &log.start(), Lane::All), log.tail()), (all.clone(), tail.clone()));
        assert!(!next.exists());
        log.append(transaction(900, vec![insert("a", "1")])).await.unwrap();
        assert_eq!(log.tail().cut.next(Partition(0)), Offset(tail.cut.next(Partition(0)).0 + 3));
    }
}
