//! A stream that several processes apply: who may write a partition, and from where.

use crate::rig::{Rig, V, column, insert, parallel_sink, refers, table, unique, update};
use crossfade_connector::{
    Delivery, Gathered, LEADING, Lead, Owner, PartSink, Progress, Sink, Stage, Taken, TargetTable, Verdict, Written,
};
use crossfade_event::{Change, Cut, Offset, Sequence};
use crossfade_postgres::{Config, PostgresPart, SinkConfig};
use std::time::Duration;

/// Nobody is silent for so long.
const LONG: Duration = Duration::from_secs(3600);

fn people() -> TargetTable {
    table(1, "people", vec![column("id", "integer", Some(0)), column("name", "text", None)])
}

/// One that leads, with rows 0 to 9, about to share a log of two partitions.
async fn leading(tables: Vec<TargetTable>) -> Option<Rig> {
    let mut rig = Rig::empty(tables).await?;
    rig.sink = parallel_sink(&rig.database.url, 2);
    assert!(rig.sink.try_lead(LONG).await.unwrap());
    assert_eq!(rig.sink.take_back(1).await.unwrap(), Gathered::default());
    rig.sink.progress().await.unwrap();
    rig.prepare().await.unwrap();
    rig.load(vec![]).await.unwrap();
    let name = |id: i32| V::Raw(format!("first{id}").into_bytes());
    rig.stream((0..10).map(|id| insert(1, &[V::Int(id), name(id)])).collect()).await.unwrap();
    Some(rig)
}

fn part(rig: &Rig, partition: u32) -> PostgresPart {
    PostgresPart::new(SinkConfig::new(Config::parse(&rig.database.url).unwrap(), "test"), partition)
}

async fn taken(rig: &Rig, part: &mut PostgresPart, number: u64) -> Progress {
    let Taken::Ours(place) = part.take(number).await.unwrap() else { panic!("the partition is not ours") };
    part.prepare(&rig.target).await.unwrap();
    place
}

/// A delivery for a partition, which stands at `own` then, and at `first` in the first one.
fn delivery(rig: &Rig, partition: u32, (first, own): (u64, u64), changes: Vec<Change>, commits: bool) -> Delivery {
    let mut cut = Cut(vec![Offset(first), Offset(first)]);
    cut.0[partition as usize] = Offset(own);
    let upto = Progress {
        cut,
        stage: Stage::Streaming,
        generation: 1,
        stream_from: Cut::single(Offset(0)),
        sequence: Some(Sequence(first)),
        position: None,
        schemas: vec![],
    };
    Delivery { writes: rig.writes(changes), upto, commits }
}

fn renamed(id: i32, name: &'static str) -> Vec<Change> {
    vec![update(1, &[V::Int(id), V::Text(name)])]
}

async fn name_of(rig: &Rig, id: i32) -> Vec<String> {
    rig.ask(&format!("SELECT name FROM app.people WHERE id = {id}")).await
}

#[tokio::test]
async fn whoever_takes_a_partition_over_shuts_out_the_one_before_in_the_middle_of_a_transaction() {
    let Some(mut rig) = leading(vec![people()]).await else { return };
    assert_eq!(part(&rig, 0).take(5).await.unwrap(), Taken::NotShared, "nothing is shared yet");
    rig.sink.share(2).await.unwrap().unwrap();
    let (mut old, mut new) = (part(&rig, 0), part(&rig, 0));
    let begun = taken(&rig, &mut old, 5).await;
    assert_eq!(old.write(delivery(&rig, 0, (1_000, 1_000), renamed(1, "old"), true)).await.unwrap(), Written::In(1));
    // Half of a transaction is in, and its row is locked; the one who had it stands still.
    old.write(delivery(&rig, 0, (2_000, 2_000), renamed(2, "never"), false)).await.unwrap();
    let place = taken(&rig, &mut new, 6).await;
    assert_eq!((place.cut.next(crossfade_event::Partition(0)), begun.generation), (Offset(1_000), place.generation));
    // It is not held up by the one before, whose session has been ended.
    let done = new.write(delivery(&rig, 0, (2_000, 2_000), renamed(2, "new"), true)).await.unwrap();
    assert_eq!(done, Written::In(1));
    let broken = old.write(delivery(&rig, 0, (2_000, 2_000), renamed(3, "never"), true)).await.unwrap_err();
    assert!(broken.is_transient(), "{broken}");
    assert_eq!(old.owner(5).await.unwrap(), Owner::Another);
    assert_eq!(old.take(5).await.unwrap(), Taken::Superseded, "a number is not used twice");
    assert_eq!(name_of(&rig, 2).await, ["new"]);
    assert_eq!(name_of(&rig, 3).await, ["first3"]);
}

#[tokio::test]
async fn a_commit_under_a_number_that_is_over_leaves_nothing() {
    let Some(mut rig) = leading(vec![people()]).await else { return };
    rig.sink.share(2).await.unwrap().unwrap();
    let mut old = part(&rig, 1);
    taken(&rig, &mut old, 5).await;
    // As by one who takes it over, but its session stays.
    rig.ask("UPDATE crossfade.positions SET epoch = 6 WHERE worker = -2").await;
    let written = old.write(delivery(&rig, 1, (1_000, 1_000), renamed(1, "never"), true)).await.unwrap();
    assert_eq!(written, Written::NotOurs);
    assert_eq!(name_of(&rig, 1).await, ["first1"]);
    // And the session is free for what comes next.
    assert!(old.is_shared().await.unwrap());
    taken(&rig, &mut old, 7).await;
    assert_eq!(old.write(delivery(&rig, 1, (1_000, 1_000), renamed(1, "now"), true)).await.unwrap(), Written::In(1));
    assert_eq!(name_of(&rig, 1).await, ["now"]);
}

#[tokio::test]
async fn what_is_taken_back_is_written_by_the_lead_alone_which_knows_what_each_partition_has() {
    let Some(mut rig) = leading(vec![people()]).await else { return };
    rig.sink.share(2).await.unwrap().unwrap();
    let (mut zero, mut one) = (part(&rig, 0), part(&rig, 1));
    taken(&rig, &mut zero, 5).await;
    taken(&rig, &mut one, 6).await;
    zero.write(delivery(&rig, 0, (3_000, 3_000), renamed(1, "zero"), true)).await.unwrap();
    one.write(delivery(&rig, 1, (2_000, 4_000), renamed(2, "one"), true)).await.unwrap();
    let seen = rig.sink.oversee().await.unwrap();
    assert_eq!((seen.progress.cut, seen.asks), (Cut(vec![Offset(2_000), Offset(4_000)]), vec![]));
    one.write(delivery(&rig, 1, (5_000, 5_000), renamed(3, "never"), false)).await.unwrap();
    one.ask().await.unwrap();
    assert_eq!(rig.sink.oversee().await.unwrap().asks, [1]);
    zero.write(delivery(&rig, 0, (6_000, 6_000), renamed(4, "never"), false)).await.unwrap();

    let gathered = rig.sink.take_back(7).await.unwrap();
    assert_eq!(gathered.ahead, [3_000, 2_000].map(Sequence));
    assert_eq!(gathered.level, Some(Cut(vec![Offset(3_000), Offset(4_000)])));
    for (part, number) in [(&mut zero, 5), (&mut one, 6)] {
        match part.write(delivery(&rig, 0, (9_000, 9_000), renamed(5, "never"), true)).await {
            Ok(written) => assert_eq!(written, Written::NotOurs),
            Err(failure) => assert!(failure.is_transient(), "{failure}"),
        }
        assert_eq!(part.owner(number).await.unwrap(), Owner::Lead);
        assert_eq!(part.take(8).await.unwrap(), Taken::NotShared);
    }
    // Not level: first somebody must bring it there who knows of it.
    rig.target.epoch = 7;
    rig.sink = parallel_sink(&rig.database.url, 2);
    let refused = rig.prepare().await.unwrap_err();
    assert!(refused.to_string().contains("not all partitions are at one place"), "{refused}");
    rig.sink = parallel_sink(&rig.database.url, 2);
    while !rig.sink.try_lead(LONG).await.unwrap() {
        tokio::task::yield_now().await;
    }
    let progress = rig.sink.progress().await.unwrap().unwrap();
    assert_eq!(progress.cut, Cut(vec![Offset(2_000), Offset(4_000)]));
    rig.prepare().await.unwrap();
    rig.stand_at(&progress);
    let why = rig.sink.share(2).await.unwrap().unwrap_err();
    assert!(why.contains("level"), "{why}");
    let mut upto = delivery(&rig, 0, (3_000, 3_000), vec![], true);
    upto.upto.cut = Cut(vec![Offset(3_000), Offset(4_000)]);
    rig.sink.apply(upto, crossfade_connector::Guard::Forward).await.unwrap();
    rig.sink.share(2).await.unwrap().unwrap();
    assert_eq!(taken(&rig, &mut one, 8).await.cut, Cut(vec![Offset(3_000), Offset(4_000)]));
    assert_eq!(rig.ask("SELECT count(*) FROM app.people WHERE name = 'never'").await, ["0"]);
}

#[tokio::test]
async fn what_the_target_refuses_is_for_the_lead_and_leaves_nothing() {
    let Some(mut rig) = leading(vec![unique(people(), "name")]).await else { return };
    rig.sink.share(2).await.unwrap().unwrap();
    let mut one = part(&rig, 1);
    taken(&rig, &mut one, 5).await;
    let changes = [renamed(1, "c"), renamed(2, "c")].concat();
    let written = one.write(delivery(&rig, 1, (1_000, 1_000), changes, true)).await.unwrap();
    assert!(matches!(&written, Written::NotAlone(why) if why.contains("people_name_key")), "{written:?}");
    assert_eq!(name_of(&rig, 1).await, ["first1"]);
    assert_eq!(rig.ask("SELECT count(*) FROM crossfade.quarantine").await, ["0"]);
}

#[tokio::test]
async fn the_lead_is_one_sessions_and_a_lost_one_is_not_waited_for() {
    let Some(mut rig) = leading(vec![people()]).await else { return };
    let mut other = parallel_sink(&rig.database.url, 2);
    assert!(!other.try_lead(LONG).await.unwrap());
    let refused = other.prepare(&rig.target).await.unwrap_err();
    assert!(refused.doing == LEADING && !refused.is_transient(), "{refused}");
    rig.sink = parallel_sink(&rig.database.url, 2);
    while !other.try_lead(LONG).await.unwrap() {
        tokio::task::yield_now().await;
    }
    other.take_back(2).await.unwrap();
    // One with the lower epoch has lost, whatever it believes.
    let lost = rig.sink.take_back(1).await.unwrap_err();
    assert!(matches!(lost.verdict, Verdict::Reconnect), "{lost}");
}

#[tokio::test]
async fn a_lead_that_shares_and_says_nothing_loses_it_and_one_that_does_not_share_keeps_it() {
    let Some(mut rig) = leading(vec![people()]).await else { return };
    let mut other = parallel_sink(&rig.database.url, 2);
    for _ in 0..3 {
        assert!(!other.try_lead(Duration::ZERO).await.unwrap(), "nothing is shared: it may have nothing to say");
    }
    rig.sink.share(2).await.unwrap().unwrap();
    assert!(!other.try_lead(LONG).await.unwrap());
    assert!(rig.sink.oversee().await.is_ok());
    while !other.try_lead(Duration::ZERO).await.unwrap() {
        tokio::task::yield_now().await;
    }
    let lost = rig.sink.oversee().await.unwrap_err();
    assert!(lost.is_transient(), "{lost}");
    assert!(!rig.sink.try_lead(LONG).await.unwrap());
    other.take_back(2).await.unwrap();
}

#[tokio::test]
async fn what_needs_the_order_across_keys_is_not_shared() {
    let whole = TargetTable { ..table(3, "whole", vec![column("word", "text", None)]) };
    let Some(mut rig) = leading(vec![people(), whole]).await else { return };
    let why = rig.sink.share(2).await.unwrap().unwrap_err();
    assert!(why.contains("app.whole has no key"), "{why}");
    let child = table(2, "pets", vec![column("id", "integer", Some(0)), column("owner", "integer", None)]);
    let Some(mut rig) = leading(vec![people(), refers(child, "owner", "people", "id")]).await else { return };
    // The tests' role may put foreign keys out of the way.
    rig.sink.share(2).await.unwrap().unwrap();
}
