//! Rules that make no plan.

use super::*;

#[test]
fn what_cannot_be_is_said_with_the_nearest_name() {
    let catalog = shop();
    let error = |rules: &Rules| plan(&catalog, rules, &options(Dialect::Postgres)).unwrap_err().to_string();
    assert_eq!(
        error(&steps("public.user", "")),
        "[[table]] from = \"public.user\" names the table \"public.user\", which is not among the source's captured tables; did you mean \"public.users\"?"
    );
    assert_eq!(
        error(&steps("users", r#"{"drop": "emial"}"#)),
        "step 1 of [[table]] from = \"public.users\" names the column \"emial\", which public.users does not have there; did you mean \"email\"?"
    );
    assert!(error(&steps("users", r#"{"rename": "email", "to": "boss"}"#)).starts_with("two rules clash"));
    assert!(
        error(&steps("users", r#"{"cast": "email", "to": "numeric(0)"}"#)).contains("\"numeric(0)\" is not a type")
    );
    assert!(error(&steps("users", r#"{"filter": "emial = 'x'"}"#)).contains("did you mean \"email\"?"));
    assert!(error(&steps("users", r#"{"drop": "id"}"#)).contains("is part of the key"));
    assert!(
        error(&steps("orders", r#"{"cast": "user_id", "to": "text"}"#))
            .contains("only one of the two changes its type")
    );
    let mut clash = rekey("uuid-v5");
    clash.table = steps("users", r#"{"cast": "id", "to": "text"}"#).table;
    assert!(error(&clash).contains("becomes a new key"));
    let mut missing = rekey("uuid-v5");
    missing.rekey.as_mut().unwrap().with = "defualt".into();
    assert!(error(&missing).contains("did you mean \"default\"?"));
    let mut secret = options(Dialect::Postgres);
    secret.secret.clear();
    assert!(plan(&catalog, &rekey("uuid-v4"), &secret).unwrap_err().to_string().contains("secret"));
    let twice = rules(r#"{"table": [{"from": "users", "to": "x"}, {"from": "orders", "to": "x"}]}"#);
    assert!(error(&twice).contains("would both become app_v2.x"));
    let dual = rules(r#"{"table": [{"from": "users", "write": "dual-records"}]}"#);
    assert!(error(&dual).contains("is not built yet"));
}

#[test]
fn wrong_steps_are_refused_when_they_are_read() {
    let read =
        |text: &str| serde_json::from_str::<Rules>(&format!("{{\"table\":[{{\"from\":\"a\",\"steps\":[{text}]}}]}}"));
    let error = |text: &str| read(text).unwrap_err().to_string();
    assert!(error(r#"{"renam": "a", "to": "b"}"#).starts_with("no step is called `renam`; did you mean \"rename\"?"));
    assert!(error(r#"{"rename": "a", "ot": "b"}"#).contains("unknown field `ot`"));
    assert!(error(r#"{"rename": "a", "cast": "b"}"#).contains("one step cannot be two"));
    assert!(error(r#"{"constant": [1], "to": "b"}"#).contains("a value must be"));
    assert!(read(r#"{"constant": 1.50, "to": "b", "type": "numeric"}"#).is_ok());
    let schema = serde_json::to_string(&schemars::schema_for!(Rules)).unwrap();
    assert!(schema.contains("canonical_key"));
}
