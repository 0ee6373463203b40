//! Whether several processes may apply one stream, each some keys of the source.

use super::*;

fn why(catalog: &Catalog, rules: &Rules) -> Option<String> {
    plan(catalog, rules, &options(Dialect::Postgres)).unwrap().keeps_alone(catalog)
}

#[test]
fn keys_that_stay_or_are_made_of_the_sources_tell_it() {
    let shop = shop();
    assert_eq!(why(&shop, &rules("{}")), None);
    for make in ["uuid-v4", "uuid-v5", "uuid-v8-sha256"] {
        assert_eq!(why(&shop, &rekey(make)), None, "{make}");
    }
    assert_eq!(why(&shop, &steps("orders", "{\"rename\": \"id\", \"to\": \"number\"}")), None);
    let mut surrogate = rekey("uuid-v5");
    surrogate.table = vec![TableRule { from: "lines".into(), surrogate: Some("id".into()), ..Default::default() }];
    assert_eq!(why(&shop, &surrogate), None);
}

#[test]
fn a_key_that_does_not_tell_the_sources_keeps_the_stream_with_one() {
    let told = |catalog: &Catalog, rules: &Rules, word: &str| {
        let why = why(catalog, rules).unwrap_or_else(|| panic!("nothing keeps it alone: {word}"));
        assert!(why.contains(word), "{why}");
    };
    let shop = shop();
    told(&shop, &steps("parts", "{\"cast\": \"id\", \"to\": \"numeric\"}"), "does not tell that of");
    // Two values that are equal and not written alike lie in two partitions of the log.
    for type_ in ["numeric", "real", "interval", "jsonb"] {
        let catalog = catalog(vec![table("odd", &format!("id {type_}!, note text"), &[])]);
        told(&catalog, &rules("{}"), "odd");
    }
    let mut other = catalog(vec![table("words", "word text!, note text", &[])]);
    assert_eq!(why(&other, &rules("{}")), None);
    other.tables[0].columns[0].collation = Some("\"public\".\"loose\"".into());
    told(&other, &rules("{}"), "words");
    let keyless = catalog(vec![TableDef { identity: Identity::FullRow, ..table("heap", "note text", &[]) }]);
    told(&keyless, &rules("{}"), "heap");
}
