//! Shadow columns: the bank's tables with new columns beside the old ones. Source and target are one database, and what
//! Crossfade writes there must not come back to it as a change.

use crate::{
    bank,
    ends::End,
    stand::{SPEC, Stand},
};

/// A new key and what refers to it, copies under another name, a cast, a constant. The constant is how one sees that a mark
/// has come through.
pub(crate) const RULES: &str = r#"write = "shadow-columns"

[keys.default]
make = "uuid-v5"
namespace = "6f1c3f5e-0b57-4c7e-9d0c-3a3a2f6a9b11"

[rekey]
tables = ["public.accounts"]
with = "default"

[[table]]
from = "public.accounts"
shadow = { id = "uuid_id" }
steps = [{ rename = "balance", to = "balance_copy" }, { rename = "note", to = "note_copy" }]

[[table]]
from = "public.movements"
shadow = { debtor = "debtor_uuid", creditor = "creditor_uuid", amount = "amount_cast" }
steps = [{ cast = "amount", to = "numeric(12,2)" }]

[[table]]
from = "public.marks"
steps = [{ constant = "seen", to = "seen", type = "text" }]

[[table]]
from = "public.ballast"
steps = [{ rename = "filler", to = "filler_copy" }]
"#;

/// Shadow columns need keys, and references to be found in the catalog.
pub(crate) async fn adapt(end: &End) {
    end.execute(
        "ALTER TABLE movements ADD PRIMARY KEY (writer, number);
         ALTER TABLE movements ADD FOREIGN KEY (debtor) REFERENCES accounts, ADD FOREIGN KEY (creditor) REFERENCES accounts",
    )
    .await;
}

/// Whether the mark has its shadow.
pub(crate) async fn has_mark(end: &End, mark: i64) -> bool {
    end.number(&format!("SELECT id FROM marks WHERE id = {mark} AND seen = 'seen'")).await.is_some()
}

/// Every shadow is what its column makes it, in every row.
pub(crate) async fn assert_right(end: &End) {
    for (what, wrong) in [
        (
            "accounts",
            "SELECT count(*) FROM accounts a LEFT JOIN uuid_migration_mapping m ON m.table_name = 'public.accounts' AND m.old_id = a.id::text \
             WHERE a.balance_copy IS DISTINCT FROM a.balance OR a.note_copy IS DISTINCT FROM a.note \
             OR a.uuid_id IS NULL OR a.uuid_id::text IS DISTINCT FROM m.new_id::text",
        ),
        ("new keys", "SELECT count(*) - count(DISTINCT uuid_id) FROM accounts"),
        (
            "movements",
            "SELECT count(*) FROM movements m JOIN accounts d ON d.id = m.debtor JOIN accounts c ON c.id = m.creditor \
             WHERE m.debtor_uuid IS DISTINCT FROM d.uuid_id OR m.creditor_uuid IS DISTINCT FROM c.uuid_id \
             OR m.amount_cast::text IS DISTINCT FROM m.amount::numeric(12,2)::text",
        ),
        ("marks", "SELECT count(*) FROM marks WHERE seen IS DISTINCT FROM 'seen'"),
        ("ballast", "SELECT count(*) FROM ballast WHERE filler_copy IS DISTINCT FROM filler"),
    ] {
        assert_eq!(end.number(wrong).await, Some(0), "{what}: rows whose shadow is not what it should be");
    }
}

/// What a migration has left in the tables.
pub(crate) async fn leftovers(end: &End) -> Option<i64> {
    end.number(
        "SELECT count(*) FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace \
         WHERE n.nspname = 'crossfade' OR c.relname = 'uuid_migration_mapping' \
         OR (n.nspname = 'public' AND NOT a.attisdropped AND a.attname ~ '(_copy|_uuid|_cast|^uuid_id|^seen)$')",
    )
    .await
}

/// Nobody writes but us: one change of the source must be one change in the log, however often it is looked at.
pub(crate) async fn assert_no_echo(stand: &Stand, mark: i64) {
    let before = changes_in_the_log(stand);
    for (id, note) in [(1, "once"), (2, "twice"), (3, "thrice")] {
        stand.source.execute(&format!("UPDATE accounts SET note = '{note}' WHERE id = {id}")).await;
        crossfade_testkit::wait::wait_until("the shadow to follow", async || {
            let follows = format!("SELECT id FROM accounts WHERE id = {id} AND note_copy = '{note}'");
            stand.target.number(&follows).await.is_some()
        })
        .await;
    }
    bank::write_mark(&stand.source, mark).await;
    crossfade_testkit::wait::wait_until("the mark to have its shadow", async || has_mark(&stand.target, mark).await)
        .await;
    bank::write_mark(&stand.source, mark + 1).await;
    crossfade_testkit::wait::wait_until("the next one too", async || has_mark(&stand.target, mark + 1).await).await;
    let changes = changes_in_the_log(stand) - before;
    assert_eq!(changes, 5, "five changes were made, and only these may be in the log");
}

fn changes_in_the_log(stand: &Stand) -> usize {
    let said = stand.crossfade.succeed(&["log", "cat", SPEC, "--json"]).stdout;
    let events = said.lines().map(|line| -> serde_json::Value {
        serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
    });
    events.filter(|entry| entry["event"] == "changed").count()
}
