use super::*;
use crossfade_dualread::{
    Mismatch, MismatchKind,
    pairs::{BudgetReport, PairMismatch, Quantile},
};
use crossfade_verify::DifferenceKind;

fn report(key: Option<Vec<Option<String>>>) -> Report {
    let difference = Difference {
        kind: DifferenceKind::Missing,
        key_hash: "00ff00ff00ff00ff".to_owned(),
        key,
        columns: vec!["a<b".to_owned()],
    };
    let table = TableReport {
        table: "public.\"<script>\"".to_owned(),
        expected_rows: 1_234_567,
        target_rows: 1_234_566,
        differences: 3,
        samples: vec![difference],
    };
    Report {
        open_buckets: 0,
        position: Some("1/16B3748/end".to_owned()),
        differences: 3,
        refused_rows: 0,
        unjudged_rows: 0,
        tables: vec![table],
        checks: Vec::new(),
    }
}

fn pair(mismatched: u32, missed: bool) -> PairReport {
    let took_ms: Vec<(f64, f64)> = (1..=100).map(|n| (f64::from(n) / 10.0, f64::from(n) / 5.0)).collect();
    PairReport {
        name: "orders & more".to_owned(),
        runs: 100,
        params: 5,
        matched: 100 - mismatched,
        explained_by_lag: 0,
        mismatched,
        unjudged: 0,
        target_failed: None,
        source: Latency::of(took_ms.iter().map(|took| took.0).collect()),
        target: Latency::of(took_ms.iter().map(|took| took.1).collect()),
        budget: Some(BudgetReport { at: Quantile::P95, within: 0.1, slack_ms: 1.0, missed }),
        mismatches: (0..mismatched.min(1))
            .map(|_| PairMismatch {
                params_hash: "abcdef0123456789".to_owned(),
                mismatch: Mismatch { kind: MismatchKind::Values, rows: 2, columns: vec!["total".to_owned()] },
            })
            .collect(),
        took_ms,
    }
}

fn page(rows: Option<&Report>, queries: Option<&[PairReport]>) -> String {
    let notes = ["dropped: public.old".to_owned()];
    Page { name: "shop", at: "2026-11-22 04:00:00 UTC".to_owned(), rows, notes: &notes, queries }.render()
}

#[test]
fn the_page_holds_tables_counts_differences_and_plots_and_asks_for_nothing_else() {
    let html = page(Some(&report(None)), Some(&[pair(2, true)]));
    for word in [
        "1,234,567",
        "1,234,566",
        "public.&quot;&lt;script&gt;&quot;",
        "00ff00ff00ff00ff",
        "a&lt;b",
        "the first 1 of 3",
        "1/16B3748/end",
        "dropped: public.old",
        "orders &amp; more",
        "abcdef0123456789",
        "2 rows differ: total",
        "budget missed: p95 is 19.000 ms on the target and 9.500 ms on the source; 10 % more is allowed",
        "<path class=\"old\"",
        "<path class=\"new\"",
        "3 rows differ or are refused · 1 query is answered differently",
    ] {
        assert!(html.contains(word), "{word} is not on the page\n{html}");
    }
    for outside in ["http", "src=", "href=", "<script", "url(", "@import"] {
        assert!(!html.contains(outside), "the page must stand alone, and has {outside}");
    }
}

#[test]
fn keys_are_shown_only_where_they_were_asked_for() {
    let key = || vec![Some("o'hara".to_owned()), None];
    let html = page(Some(&report(Some(key()))), None);
    assert!(html.contains("(o&#39;hara, NULL)"), "{html}");
    assert!(!page(Some(&report(None)), None).contains("hara"));
}

#[test]
fn the_verdict_says_the_worst() {
    let verdict = |queries: &[PairReport]| {
        let html = page(None, Some(queries));
        let rest = html.split("<p class=\"verdict ").nth(1).unwrap();
        rest.split("</p>").next().unwrap().replace("\">", ": ")
    };
    assert_eq!(verdict(&[pair(0, false)]), "good: both sides agree");
    assert_eq!(verdict(&[pair(0, true)]), "slow: 1 query is too slow");
    assert_eq!(verdict(&[pair(1, false), pair(0, true)]), "bad: 1 query is answered differently · 1 query is too slow");
}

/// Every number of every curve lies within the drawing.
#[test]
fn curves_stay_within_the_drawing_whatever_the_latencies() {
    for took in [
        vec![(0.0, 0.0), (0.0, 0.0)],
        vec![(1.0, 1.0); 3],
        vec![(1e-9, 1e9); 2],
        (0..5_000).map(|n| (f64::from(n), 2.5)).collect(),
    ] {
        let mut html = String::new();
        plot::write(&mut html, &took).unwrap();
        let curves: Vec<&str> = html.split(" d=\"").skip(1).map(|rest| rest.split('"').next().unwrap()).collect();
        assert_eq!(curves.len(), 2);
        for number in curves.iter().flat_map(|curve| curve.split(['M', 'L', ' '])).filter(|text| !text.is_empty()) {
            let number: f64 = number.parse().unwrap();
            assert!((0.0..=640.0).contains(&number), "{number}");
        }
        assert!(curves.iter().all(|curve| curve.matches('L').count() <= 401));
    }
    let mut html = String::new();
    plot::write(&mut html, &[(1.0, 1.0)]).unwrap();
    assert!(html.is_empty(), "one run is no curve");
}
