//! The journal on the embedded log: what is decided is there after a restart, in order, with who and when.

use crossfade_control::{By, Command, Decision, Journal, JournalError, Migration, Phase, Record, evolve};
use crossfade_event::{Batch, Event, Mark, Position, SourceId, Stamped};
use crossfade_log::{
    EventLog,
    embedded::{Embedded, Options},
};
use crossfade_state::JournalFold;
use std::{path::Path, task::Poll};

fn by(who: &str) -> By {
    By { who: who.into(), at_us: 1_700_000_000_000_000 }
}

fn plan() -> Command {
    Command::Plan { spec_hash: "a".into(), secret_id: "b".into() }
}

fn open(dir: &Path) -> Journal<Embedded> {
    Journal::open(Embedded::open(dir, Options::default()).unwrap(), None).unwrap()
}

fn raw(number: u64, content: &str) -> Batch {
    let position = Position { source: SourceId::of("journal"), timeline: 0, commit: number, ordinal: 0 };
    let event = Event::Marked(Mark { prefix: "journal".into(), content: content.to_owned().into() });
    Batch { events: vec![Stamped { position, event }], upto: Some(position), whole: true }
}

#[tokio::test]
async fn what_was_decided_is_there_after_a_restart_with_who_and_when() {
    let home = tempfile::tempdir().unwrap();
    let journal = open(home.path());
    journal.command(plan(), &by("ann")).await.unwrap();
    journal.command(Command::Expand, &by("run")).await.unwrap();
    assert_eq!(journal.command(Command::Expand, &by("run")).await.unwrap(), []);
    let refused = journal.command(Command::CaughtUp, &by("run")).await.unwrap_err();
    assert!(matches!(refused, JournalError::Refused(_)));
    journal.command(Command::Pause { by: "operator".into(), reason: "lunch".into() }, &by("bob")).await.unwrap();
    let before = journal.migration();
    drop(journal);

    let journal = open(home.path());
    assert_eq!(journal.migration(), before);
    assert_eq!(before.summary(), "expanded, paused by operator: lunch");
    let records = journal.records().unwrap();
    let said: Vec<_> =
        records.iter().map(|record| (record.number, record.who.as_str(), record.command.name())).collect();
    assert_eq!(said, [(1, "ann", "plan"), (2, "run", "expand"), (3, "run", "caught up"), (4, "bob", "pause")]);
    assert!(records[2].decisions.is_empty() && records[2].refused.as_ref().is_some_and(|why| why.contains("backfill")));
    assert_eq!(records[1].decisions, [Decision::Entered { phase: Phase::Expanded }]);
    assert_eq!(records[0].at_us, 1_700_000_000_000_000);
}

#[tokio::test]
async fn a_cached_fold_saves_reading_and_never_outlives_its_journal() {
    let (home, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let journal = open(home.path());
    journal.command(plan(), &by("ann")).await.unwrap();
    let cached = journal.fold().await.unwrap();
    journal.command(Command::Expand, &by("ann")).await.unwrap();
    let before = journal.migration();
    drop(journal);
    let log = Embedded::open(home.path(), Options::default()).unwrap();
    let again = Journal::open(log, Some(cached.clone())).unwrap();
    assert_eq!(again.migration(), before);
    again.command(Command::StartCapture, &by("ann")).await.unwrap();
    assert_eq!(again.records().unwrap().len(), 3);
    let empty = Embedded::open(other.path(), Options::default()).unwrap();
    let error = Journal::open(empty, Some(cached)).unwrap_err();
    assert!(error.to_string().contains("remembers records that are not there"), "{error}");
}

#[tokio::test]
async fn a_fold_that_another_release_has_kept_is_made_anew() {
    let home = tempfile::tempdir().unwrap();
    let journal = open(home.path());
    journal.command(plan(), &by("ann")).await.unwrap();
    let cached = journal.fold().await.unwrap();
    let before = journal.migration();
    drop(journal);
    let reopened = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut fold: serde_json::Value = serde_json::from_slice(&cached.fold).unwrap();
        // What that release made of the same records.
        fold["folded"]["migration"]["spec_hash"] = "another".into();
        change(&mut fold);
        let cached = JournalFold { upto: cached.upto.clone(), fold: serde_json::to_vec(&fold).unwrap() };
        let log = Embedded::open(home.path(), Options::default()).unwrap();
        Journal::open(log, Some(cached)).unwrap().migration()
    };
    assert_eq!(reopened(&|_| {}).spec_hash, "another", "one of this release is believed");
    assert_eq!(reopened(&|fold| fold["format"] = 3.into()), before, "an older one");
    assert_eq!(reopened(&|fold| fold["format"] = 99.into()), before, "a newer one");
    let unversioned = |fold: &mut serde_json::Value| drop(fold.as_object_mut().unwrap().remove("format"));
    assert_eq!(reopened(&unversioned), before, "one from before folds had a format");
}

#[tokio::test]
async fn a_journal_with_a_gap_or_from_the_future_is_refused() {
    let good = r#"{"v":1,"number":1,"unit":"all","at_us":0,"who":"a","command":"expand","decisions":[]}"#;
    for (second, word) in [
        (good.replace("\"number\":1", "\"number\":3"), "record 3 comes after record 1"),
        (good.replace("\"number\":1", "\"number\":2").replace("all", "tenant-7"), "`tenant-7`"),
        (r#"{"v":6,"anything":[]}"#.to_owned(), "has format 6"),
        ("{".to_owned(), "damaged at record 2"),
    ] {
        let home = tempfile::tempdir().unwrap();
        let log = Embedded::open(home.path(), Options::default()).unwrap();
        log.append(raw(1, good)).await.unwrap();
        log.append(raw(2, &second)).await.unwrap();
        let error = Journal::open(log, None).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
}

#[tokio::test]
async fn whoever_waits_for_a_state_is_told_by_any_clone() {
    let home = tempfile::tempdir().unwrap();
    let journal = open(home.path());
    let waiting = tokio::spawn({
        let journal = journal.clone();
        async move { journal.wait_until(|migration| migration.phase == Phase::Expanded).await }
    });
    journal.command(plan(), &by("ann")).await.unwrap();
    journal.command(Command::Expand, &by("ann")).await.unwrap();
    assert_eq!(waiting.await.unwrap().phase, Phase::Expanded);
}

#[tokio::test]
async fn commands_from_many_tasks_are_written_one_after_another() {
    let home = tempfile::tempdir().unwrap();
    let journal = open(home.path());
    let tasks: Vec<_> = (0..20)
        .map(|n| {
            let journal = journal.clone();
            tokio::spawn(async move { journal.command(Command::Note { what: n.to_string() }, &by("ann")).await })
        })
        .collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    let numbers: Vec<u64> = journal.records().unwrap().iter().map(|record| record.number).collect();
    assert_eq!(numbers, (1..=20).collect::<Vec<_>>());
}

/// Polls a command so many times, waiting for each wake-up, and drops it. True when it came to its end before.
async fn polled(command: impl Future, times: usize) -> bool {
    let mut command = std::pin::pin!(command);
    let mut left = times;
    std::future::poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(false);
        }
        left -= 1;
        match command.as_mut().poll(context) {
            Poll::Ready(_) => Poll::Ready(true),
            Poll::Pending if left == 0 => Poll::Ready(false),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_whose_caller_goes_away_at_any_moment_is_followed_once_or_not_at_all() {
    let home = tempfile::tempdir().unwrap();
    let journal = open(home.path());
    journal.command(plan(), &by("ann")).await.unwrap();
    let (mut begun, mut ended) = (0, 0);
    for round in 0..60 {
        // One that waits for its turn behind another, and goes away; then those two, in either order.
        for times in 0..5 {
            let what = |who: &str| Command::Note { what: format!("{who} {round}.{times}") };
            let (ann, bob) = (by("ann"), by("bob"));
            let (first, second) = (journal.command(what("ann"), &ann), journal.command(what("bob"), &bob));
            let (one, other) = tokio::join!(polled(first, times), polled(second, 4 - times));
            begun += usize::from(times > 0) + usize::from(times < 4);
            ended += usize::from(one) + usize::from(other);
        }
        journal.command(Command::RaiseEpoch, &by("run")).await.unwrap();
    }
    // Waits for the last one that nobody waits for.
    journal.fold().await.unwrap();
    let (before, said) = (journal.migration(), journal.records().unwrap());
    let notes = said.iter().filter(|record| matches!(record.command, Command::Note { .. })).count();
    assert!(ended <= notes && notes <= begun, "{ended} came to their end, {notes} of {begun} are on record");
    assert!(ended < notes, "no command was followed after its caller had gone: the test has shown nothing");
    drop(journal);

    let journal = open(home.path());
    let records = journal.records().unwrap();
    assert_eq!(records, said);
    let numbers: Vec<u64> = records.iter().map(|record| record.number).collect();
    assert_eq!(numbers, (1..=records.len() as u64).collect::<Vec<_>>());
    let folded = records.iter().flat_map(|record| &record.decisions).fold(Migration::default(), evolve);
    assert_eq!((journal.migration(), folded), (before.clone(), before));
}

#[test]
fn a_record_is_written_as_it_was_first_written() {
    let checkpoint = crossfade_control::Checkpoint {
        cut: crossfade_event::Cut::single(crossfade_event::Offset(9)),
        position: Some(Position { source: SourceId(7), timeline: 1, commit: u64::MAX, ordinal: 3 }),
        at_us: -1,
    };
    let command = Command::NameCheckpoint {
        name: "one".into(),
        cut: checkpoint.cut.clone(),
        position: checkpoint.position,
        at_us: checkpoint.at_us,
    };
    let record = Record {
        v: 1,
        number: u64::MAX,
        unit: "all".into(),
        at_us: i64::MIN,
        who: "ann".into(),
        command,
        decisions: vec![
            Decision::CheckpointNamed { name: "one".into(), checkpoint },
            Decision::RollbackBegan { kind: crossfade_control::RollbackKind::Undo },
            Decision::Entered { phase: Phase::RollingBack(crossfade_control::RollbackKind::Wipe) },
            Decision::BegunAnew,
        ],
        refused: None,
    };
    let text = serde_json::to_string(&record).unwrap();
    let golden = concat!(
        r#"{"v":1,"number":18446744073709551615,"unit":"all","at_us":-9223372036854775808,"who":"ann","#,
        r#""command":{"name-checkpoint":{"name":"one","cut":[9],"position":{"source":7,"timeline":1,"#,
        r#""commit":18446744073709551615,"ordinal":3},"at_us":-1}},"decisions":[{"checkpoint-named":{"name":"one","#,
        r#""checkpoint":{"cut":[9],"position":{"source":7,"timeline":1,"commit":18446744073709551615,"ordinal":3},"#,
        r#""at_us":-1}}},{"rollback-began":{"kind":"undo"}},{"entered":{"phase":{"rolling-back":"wipe"}}},"begun-anew"]}"#
    );
    assert_eq!(text, golden);
    assert_eq!(serde_json::from_str::<Record>(golden).unwrap(), record);
}

/// Records as they were written before there were switches.
const BEFORE_SWITCHES: [&str; 7] = [
    r#"{"v":1,"number":1,"unit":"all","at_us":1,"who":"ann","command":{"plan":{"spec_hash":"a","secret_id":"b"}},"decisions":[{"epoch-raised":{"epoch":1}},{"planned":{"spec_hash":"a","secret_id":"b"}}]}"#,
    r#"{"v":1,"number":2,"unit":"all","at_us":2,"who":"run","command":"expand","decisions":[{"entered":{"phase":"expanded"}}]}"#,
    r#"{"v":1,"number":3,"unit":"all","at_us":3,"who":"run","command":"start-capture","decisions":[{"entered":{"phase":"capturing"}}]}"#,
    r#"{"v":1,"number":4,"unit":"all","at_us":4,"who":"run","command":{"start-backfill":{"generation":1}},"decisions":[{"backfill-started":{"generation":1}}]}"#,
    r#"{"v":1,"number":5,"unit":"all","at_us":5,"who":"run","command":{"backfill-done":{"generation":1}},"decisions":[{"entered":{"phase":"catching-up"}}]}"#,
    r#"{"v":1,"number":6,"unit":"all","at_us":6,"who":"run","command":"caught-up","decisions":[{"entered":{"phase":"shadowing"}}]}"#,
    r#"{"v":1,"number":7,"unit":"all","at_us":7,"who":"bob","command":"undo","decisions":[],"refused":"for a test"}"#,
];

#[tokio::test]
async fn a_journal_from_before_switches_is_read_and_goes_on_into_one() {
    let home = tempfile::tempdir().unwrap();
    let log = Embedded::open(home.path(), Options::default()).unwrap();
    for (number, record) in (1..).zip(BEFORE_SWITCHES) {
        log.append(raw(number, record)).await.unwrap();
    }
    // The fold as it was kept then: without a word of any switch.
    let fold = r#"{"records":6,"migration":{"phase":"shadowing","overlay":null,"epoch":1,"spec_hash":"a","secret_id":"b","generation":1,"pins":{},"checkpoints":{},"adding":false}}"#;
    let upto = log.tail().cut;
    drop(log);
    let journal = open(home.path());
    let migration = journal.migration();
    assert_eq!((migration.phase, migration.authority.epoch), (Phase::Shadowing, 0));
    let old: Migration = serde_json::from_str(&fold[fold.find("{\"phase").unwrap()..fold.len() - 1]).unwrap();
    assert_eq!(old, migration);
    assert_eq!(journal.fold().await.unwrap().upto, upto);
    let passed = Command::Verified { position: None, rows: 1, differences: 0, at_us: 8, from: None, mark: None };
    journal.command(passed, &by("ann")).await.unwrap();
    journal.command(Command::Pause { by: "ann".into(), reason: String::new() }, &by("ann")).await.unwrap();
    assert_eq!(journal.migration().phase, Phase::Verified);
    let formats: Vec<u32> = journal.records().unwrap().iter().map(|record| record.v).collect();
    assert_eq!(formats, [1, 1, 1, 1, 1, 1, 1, 2, 1], "an older program stops at the first word that it does not know");
}

/// A proof as it was written before it was carried into the freeze.
const BEFORE_PROOFS: &str = r#"{"v":2,"number":8,"unit":"all","at_us":8,"who":"ann","command":{"verified":{"position":null,"rows":1,"differences":0,"at_us":8}},"decisions":[{"passed-clean":{"pass":{"position":null,"rows":1,"at_us":8}}}]}"#;

#[tokio::test]
async fn a_proof_from_before_it_was_carried_on_is_read_and_one_that_is_needs_a_program_that_does() {
    let home = tempfile::tempdir().unwrap();
    let log = Embedded::open(home.path(), Options::default()).unwrap();
    for (number, record) in (1..).zip(BEFORE_SWITCHES.into_iter().chain([BEFORE_PROOFS])) {
        log.append(raw(number, record)).await.unwrap();
    }
    drop(log);
    let journal = open(home.path());
    let pass = journal.migration().clean_pass.unwrap();
    assert_eq!((journal.migration().phase, pass.from, pass.mark), (Phase::Verified, None, None));
    let from = Some(crossfade_event::Cut::single(crossfade_event::Offset(9)));
    let verified = |at_us, from, mark| Command::Verified { position: None, rows: 1, differences: 0, at_us, from, mark };
    for (at_us, from, mark) in [(9, None, None), (10, from.clone(), None), (11, from, Some("a mark".to_owned()))] {
        journal.command(verified(at_us, from, mark), &by("ann")).await.unwrap();
    }
    journal.command(Command::Void { why: "for a test".into() }, &by("ann")).await.unwrap();
    let formats: Vec<u32> = journal.records().unwrap().iter().skip(7).map(|record| record.v).collect();
    assert_eq!(formats, [2, 2, 5, 5, 2], "an older program would switch without carrying the proof on");
    let text = serde_json::to_string(&journal.records().unwrap()[10].command).unwrap();
    let golden = r#"{"verified":{"position":null,"rows":1,"differences":0,"at_us":11,"from":[9],"mark":"a mark"}}"#;
    assert_eq!(text, golden);
    let before = journal.migration();
    assert_eq!((before.clean_pass.clone(), before.voided.clone().unwrap().why.as_str()), (None, "for a test"));
    drop(journal);
    assert_eq!(open(home.path()).migration(), before);
}

#[test]
fn a_record_of_a_switch_is_written_as_it_was_first_written() {
    let intent = crossfade_control::Intent {
        direction: crossfade_control::Direction::Cutover,
        epoch: 3,
        deadline_ms: 10_000,
        at_us: 9,
    };
    let record = Record {
        v: 2,
        number: 8,
        unit: "all".into(),
        at_us: 9,
        who: "ann".into(),
        command: Command::Cutover { epoch: 2, deadline_ms: 10_000, at_us: 9 },
        decisions: vec![
            Decision::SwitchIntended { intent },
            Decision::Entered { phase: Phase::Draining },
            Decision::AuthorityMoved { direction: crossfade_control::Direction::Cutover, epoch: 3 },
            Decision::SwitchTakenBack { epoch: 4, why: "late".into() },
        ],
        refused: None,
    };
    let golden = concat!(
        r#"{"v":2,"number":8,"unit":"all","at_us":9,"who":"ann","command":{"cutover":{"epoch":2,"deadline_ms":10000,"at_us":9}},"#,
        r#""decisions":[{"switch-intended":{"intent":{"direction":"cutover","epoch":3,"deadline_ms":10000,"at_us":9}}},"#,
        r#"{"entered":{"phase":"draining"}},{"authority-moved":{"direction":"cutover","epoch":3}},"#,
        r#"{"switch-taken-back":{"epoch":4,"why":"late"}}]}"#
    );
    assert_eq!(serde_json::to_string(&record).unwrap(), golden);
    assert_eq!(serde_json::from_str::<Record>(golden).unwrap(), record);
}
