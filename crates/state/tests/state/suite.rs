//! What every store must do.

use crossfade_event::{ChunkId, Cut, Offset, TableId, TableName};
use crossfade_state::{
    Changes, Checkpoint, CheckpointKey, ChunkDone, ChunkKey, Cursor, CursorKey, Digest, DigestKey, Epoch, EpochKey,
    KEY_BYTES_MAX, MemoryStore, Prefix, Setting, SettingKey, SledStore, StateError, StateStore, VALUE_BYTES_MAX,
    listing,
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::collections::BTreeMap;

macro_rules! for_both_stores {
    ($($name:ident => $test:ident;)*) => {$(
        mod $name {
            #[tokio::test]
            async fn in_memory() {
                super::$test(crossfade_state::MemoryStore::new()).await;
            }
            #[tokio::test]
            async fn on_sled() {
                let home = tempfile::tempdir().unwrap();
                super::$test(crossfade_state::SledStore::open(home.path().join("state")).unwrap()).await;
            }
        }
    )*};
}

for_both_stores! {
    what_is_committed_is_read_and_what_is_not_is_absent => reads_what_was_committed;
    a_commit_that_holds_a_refused_value_writes_nothing => refuses_as_a_whole;
    a_prefix_finds_its_keys_in_order_and_no_others => scans_by_prefix;
    later_changes_of_one_commit_win => later_wins;
    values_of_any_length_grow_and_shrink => long_values;
    any_mix_of_commits_equals_a_map => equals_a_map;
}

async fn reads_what_was_committed(store: impl StateStore) {
    assert!(store.is_empty());
    let cursor = Cursor { cut: Cut::single(Offset(7)), position: None };
    assert_eq!(store.get(&CursorKey::new("sink")).unwrap(), None);
    store.commit(Changes::one(&CursorKey::new("sink"), &cursor).put(&EpochKey, &Epoch(3))).await.unwrap();
    assert_eq!(store.get(&CursorKey::new("sink")).unwrap(), Some(cursor));
    assert_eq!(store.get(&EpochKey).unwrap(), Some(Epoch(3)));
    assert_eq!(store.get(&CursorKey::new("sin")).unwrap(), None);
    let clone = store.clone();
    clone.commit(Changes::new().remove(&EpochKey).remove(&CursorKey::new("sink"))).await.unwrap();
    assert!(store.is_empty());
    assert_eq!(store.get(&EpochKey).unwrap(), None);
}

async fn refuses_as_a_whole(store: impl StateStore) {
    let long_value = Setting("x".repeat(VALUE_BYTES_MAX + 1));
    let changes = Changes::one(&EpochKey, &Epoch(1)).put(&SettingKey::new("a"), &long_value);
    assert!(matches!(store.commit(changes).await, Err(StateError::TooLarge { .. })));
    let long_key = SettingKey::new("k".repeat(KEY_BYTES_MAX));
    let changes = Changes::one(&EpochKey, &Epoch(1)).put(&long_key, &Setting("1".into()));
    assert!(matches!(store.commit(changes).await, Err(StateError::TooLarge { .. })));
    assert!(store.is_empty());
    store.commit(Changes::one(&EpochKey, &Epoch(1))).await.unwrap();
}

async fn scans_by_prefix(store: impl StateStore) {
    let key = |generation, table, chunk| ChunkKey { generation, table: TableId(table), chunk: ChunkId(chunk) };
    let mut changes = Changes::one(&EpochKey, &Epoch(1));
    for (generation, table, chunk) in [(1, 2, 300), (1, 2, 3), (2, 2, 1), (1, 3, 1), (1, 258, 1)] {
        changes = changes.put(&key(generation, table, chunk), &ChunkDone { rows: chunk.into() });
    }
    store.commit(changes).await.unwrap();
    let found = store.scan(&ChunkKey::of_table(1, TableId(2))).unwrap();
    assert_eq!(found, [(key(1, 2, 3), ChunkDone { rows: 3 }), (key(1, 2, 300), ChunkDone { rows: 300 })]);
    assert_eq!(store.scan(&ChunkKey::of_generation(1)).unwrap().len(), 4);
    assert_eq!(store.scan(&Prefix::<ChunkKey>::all()).unwrap().len(), 5);
    let odd = TableName::new("a\0b", "c");
    let digest = Digest { at: Cut::start(1), rows: 1, sum: u128::MAX };
    let digest_key = |table: &TableName| DigestKey { side: "sink".into(), table: table.clone(), bucket: 9 };
    let other = TableName::new("a", "c");
    let both = Changes::one(&digest_key(&odd), &digest).put(&digest_key(&other), &digest);
    store.commit(both).await.unwrap();
    assert_eq!(store.scan(&DigestKey::of_table("sink", &odd)).unwrap(), [(digest_key(&odd), digest)]);
    assert_eq!(listing(&store).unwrap().len(), 8);
    store.commit(Changes::new().remove_all(ChunkKey::of_table(1, TableId(2)))).await.unwrap();
    assert_eq!(store.scan(&ChunkKey::of_generation(1)).unwrap().len(), 2);
}

async fn later_wins(store: impl StateStore) {
    let (a, b) = (SettingKey::new("a"), SettingKey::new("b"));
    let changes = Changes::one(&a, &Setting("1".into()))
        .remove(&a)
        .put(&b, &Setting("1".into()))
        .remove_all(Prefix::<SettingKey>::all())
        .put(&a, &Setting("2".into()));
    store.commit(changes).await.unwrap();
    assert_eq!(store.scan(&Prefix::<SettingKey>::all()).unwrap(), [(a, Setting("2".into()))]);
}

async fn long_values(store: impl StateStore) {
    let key = CheckpointKey::new("big");
    for offsets in [0usize, 509, 510, 511, 60_000, 1_000, 1] {
        let cut = Cut((0..offsets as u64).map(Offset).collect());
        let checkpoint = Checkpoint { cut, position: None, at_us: 1 };
        store.commit(Changes::one(&key, &checkpoint)).await.unwrap();
        assert_eq!(store.get(&key).unwrap(), Some(checkpoint), "{offsets} offsets");
    }
}

async fn equals_a_map(store: impl StateStore) {
    let seed: u64 = rand::rng().random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut model: BTreeMap<String, String> = BTreeMap::new();
    for _ in 0..60 {
        let mut changes = Changes::new();
        for _ in 0..random.random_range(1..6) {
            let name = format!("key{}", random.random_range(0..8));
            match random.random_range(0..10) {
                0 => {
                    changes = changes.remove_all(Prefix::<SettingKey>::all());
                    model.clear();
                }
                1..3 => {
                    changes = changes.remove(&SettingKey::new(name.as_str()));
                    model.remove(&name);
                }
                _ => {
                    let value = "v".repeat(random.random_range(0..10_000));
                    changes = changes.put(&SettingKey::new(name.as_str()), &Setting(value.clone()));
                    model.insert(name, value);
                }
            }
        }
        store.commit(changes).await.unwrap();
        let found = store.scan(&Prefix::<SettingKey>::all()).unwrap();
        let found: BTreeMap<String, String> = found.into_iter().map(|(key, value)| (key.0, value.0)).collect();
        assert!(found == model, "the store and the map differ, seed {seed}");
    }
}

#[tokio::test]
async fn a_sled_store_opened_again_has_what_it_had() {
    let seed: u64 = rand::rng().random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("state");
    let twin = MemoryStore::new();
    for round in 0..8 {
        let store = SledStore::open(&dir).unwrap();
        assert_eq!(store.was_created(), round == 0);
        assert_eq!(listing(&store).unwrap(), listing(&twin).unwrap(), "seed {seed}, round {round}");
        for _ in 0..10 {
            let name = format!("key{}", random.random_range(0..8));
            let value = Setting("v".repeat(random.random_range(0..10_000)));
            let change = || match value.0.len() % 4 {
                0 => Changes::new().remove(&SettingKey::new(name.as_str())),
                _ => Changes::one(&SettingKey::new(name.as_str()), &value),
            };
            store.commit(change()).await.unwrap();
            twin.commit(change()).await.unwrap();
        }
    }
}

#[tokio::test]
async fn commits_from_many_tasks_all_land() {
    let home = tempfile::tempdir().unwrap();
    let store = SledStore::open(home.path().join("state")).unwrap();
    let tasks: Vec<_> = (0..20)
        .map(|n| {
            let store = store.clone();
            tokio::spawn(async move {
                store.commit(Changes::one(&SettingKey::new(format!("{n}")), &Setting("x".into()))).await
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    assert_eq!(store.scan(&Prefix::<SettingKey>::all()).unwrap().len(), 20);
    assert_eq!(store.commits(), 20);
}
