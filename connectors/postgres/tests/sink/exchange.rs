//! Rows that exchange what must be unique, where the constraint is checked row by row.

use crate::rig::{Rig, V, column, insert, new_sink, refers, row, table, unique, update};
use crossfade_connector::{Delivery, Guard, Sink, Stage, TargetTable};

fn seats_of(nullable: bool) -> TargetTable {
    let mut columns =
        vec![column("id", "integer", Some(0)), column("seat", "text", None), column("note", "text", None)];
    columns[1].nullable = nullable;
    unique(table(1, "seats", columns), "seat")
}

fn seats() -> TargetTable {
    seats_of(true)
}

fn guests() -> TargetTable {
    refers(
        table(2, "guests", vec![column("id", "integer", Some(0)), column("of", "integer", None)]),
        "of",
        "seats",
        "id",
    )
}

fn seat(id: i32, seat: &'static str) -> [V; 3] {
    [V::Int(id), V::Text(seat), V::Text("kept")]
}

/// The update names the seat only.
fn moves(id: i32, seat: &'static str) -> [V; 3] {
    [V::Int(id), V::Text(seat), V::Same]
}

const THERE: &str = "SELECT * FROM app.seats ORDER BY id";
const WAITING: &str = "SELECT count(*) FROM crossfade.quarantine";

async fn fill(rig: &mut Rig) {
    let three = ["a", "b", "c"].into_iter().zip(1..).map(|(name, id)| insert(1, &seat(id, name)));
    rig.stream(three.collect()).await.unwrap();
}

#[tokio::test]
async fn rows_exchange_a_unique_value_whole_or_in_part() {
    let Some(mut rig) = Rig::streaming(vec![seats()]).await else { return };
    fill(&mut rig).await;
    let applied = rig.stream(vec![update(1, &seat(1, "b")), update(1, &seat(2, "a"))]).await.unwrap();
    assert!(applied.rejected.is_empty(), "{}", applied.rejected[0].reason);
    assert_eq!(rig.ask(THERE).await, ["1|b|kept", "2|a|kept", "3|c|kept"]);
    let applied = rig
        .stream(vec![update(1, &moves(1, "c")), update(1, &moves(2, "b")), update(1, &moves(3, "a"))])
        .await
        .unwrap();
    assert!(applied.rejected.is_empty(), "{}", applied.rejected[0].reason);
    assert_eq!((applied.applied, applied.held), (3, 0));
    assert_eq!(rig.ask(THERE).await, ["1|c|kept", "2|b|kept", "3|a|kept"]);
    assert_eq!(rig.ask(WAITING).await, ["0"]);
}

#[tokio::test]
async fn an_exchange_goes_in_beside_a_row_that_cannot() {
    let Some(mut rig) = Rig::streaming(vec![seats(), guests()]).await else { return };
    fill(&mut rig).await;
    let mut changes = vec![update(1, &seat(1, "b")), insert(1, &seat(9, "c")), insert(2, &[V::Int(90), V::Int(9)])];
    changes.extend((10..200).map(|id| insert(2, &[V::Int(id + 100), V::Int(1)])));
    changes.push(update(1, &moves(2, "a")));
    changes.push(update(1, &[V::Int(9), V::Same, V::Text("later")]));
    let applied = rig.stream(changes).await.unwrap();
    assert_eq!((applied.rejected.len(), applied.held), (1, 2));
    assert!(applied.rejected[0].reason.contains("seats_seat_key"), "{}", applied.rejected[0].reason);
    assert_eq!(applied.rejected[0].change, insert(1, &seat(9, "c")));
    assert_eq!(rig.ask(THERE).await, ["1|b|kept", "2|a|kept", "3|c|kept"]);
    assert_eq!(rig.ask("SELECT count(*) FROM app.guests").await, ["190"]);
    assert_eq!(
        rig.ask("SELECT kind FROM crossfade.quarantine ORDER BY log_offset").await,
        ["collision", "child", "held"]
    );
}

#[tokio::test]
async fn an_exchange_leaves_children_and_columns_of_others_as_they_are() {
    for (on, nullable) in [("", true), ("ON DELETE CASCADE", true), ("ON DELETE CASCADE", false)] {
        let mut children = guests();
        children.def.foreign_keys[0].suffix = on.to_owned();
        let Some(mut rig) = Rig::empty(vec![seats_of(nullable), children]).await else { return };
        // A role that may not take foreign keys out of the way.
        let name = format!("plain_{}", rig.database.name);
        let sql = format!("CREATE ROLE {name} LOGIN; GRANT CREATE ON DATABASE {} TO {name}", rig.database.name);
        rig.database.execute(&sql).await;
        rig.sink = new_sink(&rig.database.url.replace("postgres@", &format!("{name}@")));
        rig.prepare().await.unwrap();
        rig.load(vec![]).await.unwrap();
        rig.stream(vec![]).await.unwrap();
        assert_eq!(rig.ask("SELECT count(*) FROM pg_constraint WHERE contype = 'f'").await, ["1"]);
        fill(&mut rig).await;
        rig.stream(vec![insert(2, &[V::Int(1), V::Int(1)])]).await.unwrap();
        let exchange = vec![update(1, &seat(1, "b")), update(1, &moves(2, "a"))];
        let applied = rig.stream(exchange.clone()).await.unwrap();
        // A row that went would take its children along. Where its value may not even be NULL the exchange is named.
        let (rejected, there) = match nullable {
            true => (0, ["1|b|kept", "2|a|kept", "3|c|kept"]),
            false => (2, ["1|a|kept", "2|b|kept", "3|c|kept"]),
        };
        assert_eq!(applied.rejected.len(), rejected, "{on}");
        assert_eq!(rig.ask(THERE).await, there, "{on}");
        assert_eq!(rig.ask("SELECT * FROM app.guests").await, ["1|1"], "{on}");
    }
    let Some(mut rig) = Rig::streaming(vec![seats()]).await else { return };
    fill(&mut rig).await;
    rig.database.execute("ALTER TABLE app.seats ADD COLUMN theirs text DEFAULT 'x'").await;
    rig.database.execute("UPDATE app.seats SET theirs = 'y'").await;
    let applied = rig.stream(vec![update(1, &seat(1, "b")), update(1, &moves(2, "a"))]).await.unwrap();
    assert_eq!(applied.rejected.len(), 0);
    assert_eq!(
        rig.ask("SELECT id, seat, note, theirs FROM app.seats ORDER BY id").await,
        ["1|b|kept|y", "2|a|kept|y", "3|c|kept|y"]
    );
    // What a trigger of somebody else's would make of a value that is NULL for a moment nobody knows.
    rig.database
        .execute(
            "CREATE FUNCTION app.theirs() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
             CREATE TRIGGER theirs BEFORE UPDATE ON app.seats FOR EACH ROW EXECUTE FUNCTION app.theirs();
             ALTER TABLE app.seats ENABLE ALWAYS TRIGGER theirs",
        )
        .await;
    let applied = rig.stream(vec![update(1, &seat(1, "a")), update(1, &moves(2, "b"))]).await.unwrap();
    assert_eq!(applied.rejected.len(), 2);
    assert_eq!(rig.ask("SELECT seat FROM app.seats ORDER BY id").await, ["b", "a", "c"]);
}

#[tokio::test]
async fn an_exchange_is_healed_too() {
    let Some(mut rig) = Rig::streaming(vec![seats()]).await else { return };
    fill(&mut rig).await;
    rig.database.execute("UPDATE app.seats SET seat = 'x' WHERE id = 1; UPDATE app.seats SET seat = 'a' WHERE id = 2; UPDATE app.seats SET seat = 'b' WHERE id = 1").await;
    let writes = rig.writes(vec![update(1, &seat(1, "a")), update(1, &seat(2, "b"))]);
    let upto = rig.upto(Stage::Streaming);
    rig.sink.apply(Delivery { writes, upto, commits: true }, Guard::Heal).await.unwrap();
    assert_eq!(rig.ask(THERE).await, ["1|a|kept", "2|b|kept", "3|c|kept"]);
    let found = rig.sink.read_row(crossfade_event::TableId(1), &crate::rig::key(&[V::Int(2)])).await.unwrap();
    assert_eq!(found, Some(row(&seat(2, "b"))));
}
