use super::*;

fn judged(gates: &str, applied: u64, quarantined: u64, lag_ms: Option<u64>) -> Vec<(String, bool, bool)> {
    let gates: Gates = toml::from_str(gates).unwrap();
    let lag = lag_ms.map(Duration::from_millis);
    let verdicts = evaluate(&gates, &Measures { window: Window { applied, quarantined }, lag, ..Measures::default() });
    verdicts.iter().map(|verdict| (verdict.gate.clone(), verdict.holds, verdict.pauses())).collect()
}

#[test]
fn without_a_word_one_percent_of_errors_pauses() {
    let one = |holds, pauses| vec![("error_rate".to_owned(), holds, pauses)];
    assert_eq!(judged("", 9_900, 100, Some(1 << 40)), one(true, false));
    assert_eq!(judged("", 9_899, 101, None), one(false, true));
    assert_eq!(judged("error_rate = { max = \"50%\", then = \"warn\" }", 1, 5_000, None), one(false, false));
    assert_eq!(judged("error_rate = { max = \"0%\" }", 1_000_000, 1, None), one(false, true));
}

#[test]
fn a_handful_of_changes_is_no_rate() {
    assert_eq!(judged("", 0, 999, None)[0], ("error_rate".to_owned(), true, false));
    assert_eq!(judged("", 0, 1_000, None)[0], ("error_rate".to_owned(), false, true));
}

#[test]
fn lag_warns_unless_told_to_pause_and_unknown_lag_holds() {
    let lag = |spec: &str, ms| judged(spec, 0, 0, ms)[1].clone();
    let (warn, pause) = ("lag = { max = \"30s\" }", "lag = { max = \"30s\", then = \"pause\" }");
    assert_eq!(lag(warn, Some(30_000)), ("lag".to_owned(), true, false));
    assert_eq!(lag(warn, Some(30_001)), ("lag".to_owned(), false, false));
    assert_eq!(lag(pause, Some(30_001)), ("lag".to_owned(), false, true));
    assert_eq!(lag(pause, None), ("lag".to_owned(), true, false));
}

#[test]
fn a_pause_says_who_and_why() {
    let gates: Gates = toml::from_str("lag = { max = \"2s\", then = \"pause\" }").unwrap();
    let window = Window { applied: 950, quarantined: 50 };
    let both = evaluate(&gates, &Measures { window, lag: Some(Duration::from_secs(3)), ..Measures::default() });
    let (by, reason) = pause_reason(&both).unwrap();
    assert_eq!(
        (by.as_str(), reason.as_str()),
        ("gate error_rate", "5% of the last minute's changes went into quarantine, the limit is 1%")
    );
    let late = evaluate(&gates, &Measures { lag: Some(Duration::from_secs(3)), ..Measures::default() });
    assert_eq!(pause_reason(&late).unwrap().1, "3s behind the source, the limit is 2s");
    assert_eq!(pause_reason(&evaluate(&gates, &Measures::default())), None);
}

#[test]
fn what_is_not_built_or_misspelt_is_refused_by_name() {
    for (spec, word) in [
        ("latency = { max = \"10%\" }", "\"+50%\""),
        ("disk = { max = \"90\" }", "90"),
        ("throughput = { max = 1 }", "max"),
        ("throughput = { for = \"5m\" }", "min"),
        ("error_rate = { max = \"1%\", then = \"stop\" }", "stop"),
        ("error_rate = { max = \"one\" }", "one"),
        ("error_rate = { max = \"1%\", over = \"5m\" }", "over"),
        ("lag = { then = \"warn\" }", "max"),
        ("collisions = { then = \"warn\" }", "max"),
        ("collisions = { max = -1 }", "-1"),
        ("collisions = { max = \"1%\" }", "1%"),
    ] {
        let refused = toml::from_str::<Gates>(spec).unwrap_err().to_string();
        assert!(refused.contains(word), "{spec}: {refused}");
    }
}

#[test]
fn disk_and_memory_are_shares_and_what_is_not_known_holds() {
    let gates: Gates =
        toml::from_str("disk = { max = \"90%\", then = \"pause\" }\nmemory = { max = \"80.5%\" }").unwrap();
    let judged = |disk, memory| {
        let share = |of: Option<u32>| of.map(Percent::from_millionths);
        let measures = Measures { disk: share(disk), memory: share(memory), ..Measures::default() };
        let verdicts = evaluate(&gates, &measures);
        verdicts.into_iter().skip(1).map(|gate| (gate.holds, gate.pauses())).collect::<Vec<_>>()
    };
    assert_eq!(judged(None, None), [(true, false), (true, false)]);
    assert_eq!(judged(Some(900_000), Some(805_000)), [(true, false), (true, false)]);
    assert_eq!(judged(Some(900_001), Some(805_001)), [(false, true), (false, false)]);
    let full = Measures { disk: Some(Percent::from_millionths(950_000)), ..Measures::default() };
    assert_eq!(
        pause_reason(&evaluate(&gates, &full)).unwrap(),
        ("gate disk".to_owned(), "95% of the disk under the work folder is full, the limit is 90%".to_owned())
    );
}

#[test]
fn the_floor_is_a_mean_over_its_span_and_judges_nothing_shorter() {
    let gates: Gates = toml::from_str("throughput = { min = 100, for = \"10s\", then = \"pause\" }").unwrap();
    let over = gates.throughput.unwrap().over.0;
    let at = Duration::from_secs;
    let mut pace = Pace::new();
    assert_eq!(pace.push(at(0), Some(0), over), None);
    assert_eq!(pace.push(at(9), Some(10), over), None);
    assert_eq!(pace.push(at(10), Some(1_000), over), Some(100));
    assert_eq!(pace.push(at(19), Some(1_009), over), Some(99));
    // Between two tables nothing is copied: what comes then is judged anew.
    assert_eq!(pace.push(at(20), None, over), None);
    assert_eq!(pace.push(at(40), Some(1_009), over), None);
    assert_eq!(pace.push(at(50), Some(1_010), over), Some(0));
    pace.clear();
    assert_eq!(pace.push(at(51), Some(1_010), over), None);

    let judged = |rows_per_s| evaluate(&gates, &Measures { rows_per_s, ..Measures::default() });
    assert_eq!(pause_reason(&judged(None)), None);
    assert_eq!(pause_reason(&judged(Some(100))), None);
    assert_eq!(pause_reason(&judged(Some(99))).unwrap().1, "99 rows/s into the sink, the floor is 100 rows/s over 10s");
}

#[test]
fn a_window_is_the_last_minute_and_a_restart_begins_anew() {
    let mut windows = Windows::new();
    let sample = |applied, quarantined| Sample { applied, quarantined };
    let at = Duration::from_secs;
    assert_eq!(windows.push(at(0), sample(100, 0)), Window::default());
    assert_eq!(windows.push(at(30), sample(200, 10)), Window { applied: 100, quarantined: 10 });
    assert_eq!(windows.push(at(90), sample(300, 10)), Window { applied: 100, quarantined: 0 });
    assert_eq!(windows.push(at(400), sample(400, 11)), Window { applied: 100, quarantined: 1 });
    assert_eq!(windows.push(at(401), sample(5, 0)), Window::default());
    windows.clear();
    assert_eq!(windows.push(at(402), sample(50, 40)), Window::default());
}

#[test]
fn a_gate_that_rolls_back_says_what_it_saw_and_on_the_way_back_it_pauses() {
    let gates: Gates = toml::from_str(
        "error_rate = { max = \"2%\", then = \"rollback\" }\ndisk = { max = \"90%\", then = \"rollback\" }\nlag = { max = \"1s\" }",
    )
    .unwrap();
    assert_eq!(gates.rolling_back(), ["error_rate", "disk"]);
    let window = Window { applied: 900, quarantined: 100 };
    let measures = Measures { window, lag: Some(Duration::from_secs(2)), ..Measures::default() };
    let judged = evaluate(&gates, &measures);
    assert_eq!(pause_reason(&judged), None, "a gate that rolls back does not pause");
    let fell = fall(&judged, &measures).unwrap();
    assert_eq!(fell.inputs, Inputs { applied: 900, quarantined: 100, lag_ms: Some(2_000), ..Inputs::default() });
    assert_eq!(
        fell.to_string(),
        "rolled back by gate error_rate: 10% of the last minute's changes went into quarantine, the limit is 2%"
    );
    let read: Fall = serde_json::from_str(&serde_json::to_string(&fell).unwrap()).unwrap();
    assert_eq!(read, fell);
    assert_eq!(fall(&evaluate(&gates, &Measures::default()), &Measures::default()), None);

    let back = gates.of_way_back();
    assert_eq!(back.rolling_back(), Vec::<&str>::new());
    assert_eq!(back.lag.unwrap().then, Then::Warn);
    let judged = evaluate(&back, &measures);
    assert_eq!((fall(&judged, &measures), pause_reason(&judged).unwrap().0), (None, "gate error_rate".to_owned()));
}

#[test]
fn latency_is_judged_by_what_it_grew_and_what_is_not_known_holds() {
    let gates: Gates = toml::from_str("latency = { max = \"+50%\", then = \"pause\" }").unwrap();
    let judged = |slower| evaluate(&gates, &Measures { slower, ..Measures::default() });
    assert_eq!(pause_reason(&judged(None)), None);
    assert_eq!(pause_reason(&judged(crate::Increase::of(100, 150))), None);
    assert_eq!(
        pause_reason(&judged(crate::Increase::of(100, 151))).unwrap(),
        (
            "gate latency".to_owned(),
            "+51% is what the source takes over its latency before the migration, the limit is +50%".to_owned()
        )
    );
    assert_eq!(judged(crate::Increase::of(100, 80))[1].measured, "-20%");
}

#[test]
fn one_collision_is_one_too_many_unless_the_spec_allows_some_and_what_is_not_counted_holds() {
    let judged = |spec: &str, collisions| {
        let gates: Gates = toml::from_str(spec).unwrap();
        let measures = Measures { collisions, ..Measures::default() };
        let verdicts = evaluate(&gates, &measures);
        (pause_reason(&verdicts), fall(&verdicts, &measures), verdicts[1].clone())
    };
    let pauses = |spec, count| judged(spec, Some(count)).0;
    assert_eq!(pauses("collisions = { max = 0 }", 0), None);
    assert_eq!(
        pauses("collisions = { max = 0 }", 1).unwrap(),
        (
            "gate collisions".to_owned(),
            "1 collision in quarantine that nobody has answered by `resume`, the limit is 0".to_owned()
        )
    );
    assert_eq!(pauses("collisions = { max = 2 }", 2), None);
    assert!(pauses("collisions = { max = 2 }", 3).unwrap().1.starts_with("3 collisions in quarantine"));
    let (pause, fell, verdict) = judged("collisions = { max = 0 }", None);
    assert_eq!((pause, fell, verdict.holds, verdict.measured.as_str()), (None, None, true, "-"));
    let (pause, fell, verdict) = judged("collisions = { max = 0, then = \"warn\" }", Some(7));
    assert_eq!((pause, fell, verdict.holds), (None, None, false));
    let (pause, fell, _) = judged("collisions = { max = 0, then = \"rollback\" }", Some(1));
    let fell = fell.unwrap();
    assert_eq!((pause, fell.by(), fell.inputs.collisions), (None, "gate collisions".to_owned(), Some(1)));
    let read: Fall = serde_json::from_str(&serde_json::to_string(&fell).unwrap()).unwrap();
    assert_eq!(read, fell);
    // A verdict that a release without this gate has kept is read as it was.
    let before: Inputs = serde_json::from_str(r#"{"applied":1,"quarantined":2}"#).unwrap();
    assert_eq!(before, Inputs { applied: 1, quarantined: 2, ..Inputs::default() });

    let gates: Gates = toml::from_str("collisions = { max = 0, then = \"rollback\" }").unwrap();
    assert_eq!(gates.rolling_back(), ["collisions"]);
    assert_eq!(gates.of_way_back().collisions.unwrap().then, Then::Pause);
}
