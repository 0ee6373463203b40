//! Every command in every state: the ways that are open are written down here, everything else must be refused.

use crossfade_control::{
    Approval, Command, Decision, Direction, End, Facts, Fall, Inputs, Judgement, Limits, Migration, Overlay, Phase,
    ReadFacts, ReadJudgement, Refusal, RollbackKind, Verdict, WayBack, decide, evolve,
};
use crossfade_event::{Cut, Offset, Side};
use proptest::prelude::*;
use std::collections::{BTreeSet, VecDeque};

fn text(text: &str) -> String {
    text.to_owned()
}

fn pause() -> Command {
    Command::Pause { by: text("operator"), reason: text("lunch") }
}

fn plan(spec: &str) -> Command {
    Command::Plan { spec_hash: text(spec), secret_id: text("s") }
}

fn lose() -> Command {
    Command::Lose { reason: text("the slot is gone"), remedy: text("begin anew") }
}

pub(crate) fn fall_back(kind: RollbackKind) -> Command {
    let verdict =
        Verdict { gate: text("disk"), holds: false, measured: text("95%"), max: text("90%"), then: text("rollback") };
    Command::FallBack { kind, fall: Fall { verdict, inputs: Inputs::default() } }
}

fn commands() -> Vec<Command> {
    let checkpoint = |name, next| Command::NameCheckpoint {
        name: text(name),
        cut: Cut::single(Offset(next)),
        position: None,
        at_us: 0,
    };
    vec![
        plan("a"),
        plan("b"),
        Command::Expand,
        Command::StartCapture,
        Command::StartBackfill { generation: 1 },
        Command::StartBackfill { generation: 2 },
        Command::BackfillDone { generation: 1 },
        Command::BackfillDone { generation: 2 },
        Command::CaughtUp,
        pause(),
        Command::Resume,
        Command::Fail { reason: text("disk full") },
        lose(),
        Command::Found,
        Command::Undo,
        Command::Wipe,
        fall_back(RollbackKind::Undo),
        fall_back(RollbackKind::Wipe),
        Command::RollbackDone,
        checkpoint("one", 1),
        checkpoint("one", 2),
        checkpoint("No good", 1),
        Command::DropCheckpoint { name: text("one") },
        Command::Pin { end: End::Source, identity: text("x") },
        Command::Pin { end: End::Source, identity: text("y") },
        Command::Note { what: text("replayed") },
        verified(0),
        verified(2),
        Command::Void { why: text("a repair") },
        Command::DualRead { millionths: 50_000 },
        Command::DualRead { millionths: 0 },
        compare(0),
        compare(3),
        Command::StepDown { why: text("7 of the last 100 reads mismatch") },
        Command::Approve { approval: Approval { who: text("ann"), why: text("tested"), at_us: 1 } },
        judge(Direction::Cutover, true),
        judge(Direction::Cutover, false),
        cutover(0),
        cutover(1),
        Command::Frozen { epoch: 1 },
        Command::Drained { epoch: 1, position: None },
        Command::SwitchedOver { epoch: 1 },
        Command::TakenBack { epoch: 1, why: text("the deadline") },
        Command::Routed { epoch: 1 },
        Command::Soak,
        judge(Direction::Failback, true),
        Command::Failback { epoch: 1, deadline_ms: 1, at_us: 2 },
        Command::Frozen { epoch: 2 },
        Command::Drained { epoch: 2, position: None },
        Command::SwitchedOver { epoch: 2 },
        Command::TakenBack { epoch: 2, why: text("the deadline") },
        Command::Cleanup,
        Command::CleanupDone,
    ]
}

fn verified(differences: u64) -> Command {
    Command::Verified { position: None, rows: 9, differences, at_us: 5, from: None, mark: None }
}

fn compare(quarantined: u64) -> Command {
    let facts = ReadFacts { quarantined, ..ReadFacts::default() };
    Command::CompareReads { millionths: 50_000, facts, verified_within_ms: 1_000, at_us: 6 }
}

fn cutover(epoch: u64) -> Command {
    Command::Cutover { epoch, deadline_ms: 1, at_us: 1 }
}

fn judge(before: Direction, caught_up: bool) -> Command {
    let way_back = Some(WayBack::Comparable { passed_at_us: Some(6) });
    let facts = Facts { mark_ms: caught_up.then_some(1), predicted_pause_ms: Some(1), way_back, ..Facts::default() };
    let limits = Limits { deadline_ms: 1_000, lock_timeout_ms: 100, verified_within_ms: 1_000, approvals: 0 };
    Command::Judge { before, facts, limits, at_us: 6 }
}

fn after(migration: &Migration, command: Command) -> Result<Migration, Refusal> {
    Ok(decide(migration, command)?.iter().fold(migration.clone(), evolve))
}

fn run(commands: impl IntoIterator<Item = Command>) -> Migration {
    commands.into_iter().fold(Migration::default(), |migration, command| {
        let name = command.name();
        after(&migration, command).unwrap_or_else(|refusal| panic!("{name}: {refusal}"))
    })
}

/// So many steps of a switch after its intent.
fn switching(steps: usize) -> Vec<Command> {
    let way = [
        Command::Frozen { epoch: 1 },
        Command::Drained { epoch: 1, position: None },
        Command::SwitchedOver { epoch: 1 },
        Command::Routed { epoch: 1 },
        Command::Soak,
        Command::Cleanup,
        Command::CleanupDone,
    ];
    let begin = [verified(0), judge(Direction::Cutover, true), cutover(0)];
    begin.into_iter().chain(way.into_iter().take(steps)).collect()
}

/// The straight way, as far as a phase.
fn at(phase: Phase) -> Migration {
    let way = [
        plan("a"),
        Command::Expand,
        Command::StartCapture,
        Command::StartBackfill { generation: 1 },
        Command::BackfillDone { generation: 1 },
        Command::CaughtUp,
    ];
    let (steps, then) = match phase {
        Phase::Draft => (0, vec![]),
        Phase::Planned => (1, vec![]),
        Phase::Expanded => (2, vec![]),
        Phase::Capturing => (3, vec![]),
        Phase::Backfilling => (4, vec![]),
        Phase::CatchingUp => (5, vec![]),
        Phase::Shadowing => (6, vec![]),
        Phase::Verified => (6, vec![verified(0)]),
        Phase::DualReading => (6, vec![verified(0), compare(0)]),
        Phase::Ready => (6, vec![verified(0), judge(Direction::Cutover, true)]),
        Phase::Freezing => (6, switching(0)),
        Phase::Draining => (6, switching(1)),
        Phase::Switching => (6, switching(2)),
        Phase::Switched => (6, switching(3)),
        Phase::Soaking => (6, switching(5)),
        Phase::Contracting => (6, switching(6)),
        Phase::Done => (6, switching(7)),
        Phase::RollingBack(RollbackKind::Undo) => (6, vec![Command::Undo]),
        Phase::RollingBack(RollbackKind::Wipe) => (6, vec![Command::Wipe]),
        Phase::Undone => (6, vec![Command::Undo, Command::RollbackDone]),
        Phase::Wiped => (6, vec![Command::Wipe, Command::RollbackDone]),
    };
    let migration = run(way.into_iter().take(steps).chain(then));
    assert_eq!(migration.phase, phase);
    migration
}

/// One letter for what becomes of a command: the phase moves (`>`), something else changes (`+`), nothing does (`=`),
/// refused for the phase (`.`), for the overlay (`!`), or for anything else (`x`).
fn outcome(migration: &Migration, command: Command) -> char {
    match decide(migration, command) {
        Err(Refusal::WrongPhase { .. }) => '.',
        Err(Refusal::Stopped { .. }) => '!',
        Err(_) => 'x',
        Ok(decisions) if decisions.is_empty() => '=',
        Ok(decisions) => {
            let moved = decisions.iter().fold(migration.clone(), evolve);
            if moved.phase == migration.phase { '+' } else { '>' }
        }
    }
}

fn table(under: Option<Command>) -> String {
    let mut lines = String::new();
    for command in commands() {
        let row: String = Phase::ALL
            .into_iter()
            .filter_map(|phase| {
                let migration = at(phase);
                match &under {
                    None => Some(migration),
                    Some(overlay) => after(&migration, overlay.clone()).ok(),
                }
            })
            .map(|migration| outcome(&migration, command.clone()))
            .collect();
        lines.push_str(&format!("{:<17} {row}\n", command.name()));
    }
    lines
}

fn same(found: &str, wanted: &str) {
    let wanted: String = wanted
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .fold(String::new(), |all, line| all + line + "\n");
    assert!(found == wanted, "found:\n{found}\nwanted:\n{wanted}");
}

#[test]
fn every_command_in_every_phase_does_what_the_table_says() {
    // Columns: draft, planned, expanded, capturing, backfilling, catching up, shadowing; verified, dual reading, ready;
    // freezing, draining, switching; switched, soaking, contracting, done; undoing, wiping, undone, wiped.
    same(
        &table(None),
        "
        plan              >================..>>
        plan              >+xxxxxxxxxxxxxxx..>>
        expand            .>===============....
        start capture     ..>==============....
        start backfill    ...>===========......
        start backfill    ...>+>>>>>...........
        backfill done     ....>==========......
        backfill done     .....................
        caught up         .....>===========....
        pause             ..++++++++...++......
        resume            =====================
        fail              +++++++++++++++++++++
        lose              +++++++++++++++++++++
        found             =====================
        rollback --undo   ..>>>>>>>>.......=.=.
        rollback --wipe   ..>>>>>>>>.......>=>=
        gate's rollback   ..>>>>>>>>...........
        gate's rollback   ..>>>>>>>>...........
        rollback done     .................>>==
        checkpoint        ...++++++++++++......
        checkpoint        ...++++++++++++......
        checkpoint        xxxxxxxxxxxxxxxxxxxxx
        drop checkpoint   xxxxxxxxxxxxxxxxxxxxx
        pin               +++++++++++++++++++++
        pin               +++++++++++++++++++++
        note              +++++++++++++++++++++
        verified          ......>===...........
        verified          ......=>>>...........
        void              =======>>>===========
        dual reads        .......x=x...........
        dual reads        ========>============
        compare reads     ......+>=>...........
        compare reads     ......++++...........
        step down         ========>============
        approve           ......++++...++......
        judge             ......+>>=...........
        judge             ......+++>...........
        cutover           ......xxx>=====......
        cutover           ......xxx>=====......
        frozen            ..........>==........
        drained           ...........>=........
        switched over     ..........>>>====....
        taken back        ..........>>>====....
        routed            xxxxxxxxxxxxx+===xxxx
        soak              .............>===....
        judge             .............++......
        failback          .............xx......
        frozen            ..........xxx........
        drained           ..........xxx........
        switched over     ..........xxx........
        taken back        ..........>>>........
        cleanup           ..............>==....
        cleanup done      ...............>=....
        ",
    );
}

#[test]
fn under_a_pause_wishes_wait_and_facts_hold() {
    // Columns: expanded, capturing, backfilling, catching up, shadowing; verified, dual reading, ready; switched, soaking.
    same(
        &table(Some(pause())),
        "
        plan              ==========
        plan              xxxxxxxxxx
        expand            ==========
        start capture     !=========
        start backfill    .>========
        start backfill    .>+>>>>>..
        backfill done     ..>=======
        backfill done     ..........
        caught up         ...>======
        pause             ==========
        resume            ++++++++++
        fail              ++++++++++
        lose              ++++++++++
        found             ==========
        rollback --undo   >>>>>>>>..
        rollback --wipe   >>>>>>>>..
        gate's rollback   !!!!!!!!..
        gate's rollback   !!!!!!!!..
        rollback done     ..........
        checkpoint        .+++++++++
        checkpoint        .+++++++++
        checkpoint        xxxxxxxxxx
        drop checkpoint   xxxxxxxxxx
        pin               ++++++++++
        pin               ++++++++++
        note              ++++++++++
        verified          ....>===..
        verified          ....=>>>..
        void              =====>>>==
        dual reads        .....x=x..
        dual reads        ======>===
        compare reads     ....!!!!..
        compare reads     ....!!!!..
        step down         ======>===
        approve           ....++++++
        judge             ....!!!!..
        judge             ....!!!!..
        cutover           ....!!!!==
        cutover           ....!!!!==
        frozen            ..........
        drained           ..........
        switched over     ........==
        taken back        ........==
        routed            xxxxxxxx+=
        soak              ........!=
        judge             ........!!
        failback          ........!!
        frozen            ..........
        drained           ..........
        switched over     ..........
        taken back        ..........
        cleanup           .........!
        cleanup done      ..........
        ",
    );
}

#[test]
fn what_is_lost_goes_nowhere_but_back() {
    // Columns: all phases, as in the first table.
    same(
        &table(Some(lose())),
        "
        plan              >================..>>
        plan              >+xxxxxxxxxxxxxxx..>>
        expand            .!===============....
        start capture     ..!==============....
        start backfill    ...!!!!!!!!!!!!......
        start backfill    ...!!!!!!!!!!!!......
        backfill done     ....!!!!!!!!!!!......
        backfill done     .....................
        caught up         .....!===========....
        pause             ..!!!!!!!!...!!......
        resume            !!!!!!!!!!!!!!!!!!!!!
        fail              =====================
        lose              =====================
        found             +++++++++++++++++++++
        rollback --undo   ..>>>>>>>>.......+.=.
        rollback --wipe   ..>>>>>>>>.......>+>=
        gate's rollback   ..!!!!!!!!...........
        gate's rollback   ..!!!!!!!!...........
        rollback done     .................>>==
        checkpoint        ...++++++++++++......
        checkpoint        ...++++++++++++......
        checkpoint        xxxxxxxxxxxxxxxxxxxxx
        drop checkpoint   xxxxxxxxxxxxxxxxxxxxx
        pin               +++++++++++++++++++++
        pin               +++++++++++++++++++++
        note              +++++++++++++++++++++
        verified          ......>===...........
        verified          ......=>>>...........
        void              =======>>>===========
        dual reads        .......x=x...........
        dual reads        ========>============
        compare reads     ......!!!!...........
        compare reads     ......!!!!...........
        step down         ========>============
        approve           ......++++...++......
        judge             ......!!!!...........
        judge             ......!!!!...........
        cutover           ......!!!!=====......
        cutover           ......!!!!=====......
        frozen            ..........>==........
        drained           ...........>=........
        switched over     ..........>>>====....
        taken back        ..........>>>====....
        routed            xxxxxxxxxxxxx+===xxxx
        soak              .............!===....
        judge             .............!!......
        failback          .............!!......
        frozen            ..........xxx........
        drained           ..........xxx........
        switched over     ..........xxx........
        taken back        ..........>>>........
        cleanup           ..............!==....
        cleanup done      ...............>=....
        ",
    );
}

/// Every state that any sequence of commands can reach.
fn reachable() -> Vec<Migration> {
    let mut seen = BTreeSet::new();
    let mut queue = VecDeque::from([Migration::default()]);
    let mut all = Vec::new();
    while let Some(migration) = queue.pop_front() {
        // The epoch counts lives for ever: states that differ in nothing else are one.
        // Nor does anything follow from what was said of a share before: each is judged anew.
        if !seen.insert(format!("{:?}", Migration { epoch: 0, reads_judgement: None, ..migration.clone() })) {
            continue;
        }
        // Two switches and the way back between them; what comes after repeats it with higher numbers.
        if migration.authority.epoch > 2 {
            continue;
        }
        queue.extend(commands().into_iter().filter_map(|command| after(&migration, command).ok()));
        all.push(migration);
    }
    all
}

#[test]
fn from_every_reachable_state_every_command_keeps_the_rules() {
    let states = reachable();
    assert!(states.len() > 200, "only {} states", states.len());
    for before in &states {
        for command in commands() {
            let name = command.name();
            let place = || format!("{name} from {}", before.summary());
            let Ok(decisions) = decide(before, command.clone()) else { continue };
            let moved = decisions.iter().fold(before.clone(), evolve);
            assert!(moved.epoch >= before.epoch, "{}: the epoch fell", place());
            assert!(moved.authority.epoch >= before.authority.epoch, "{}: the authority's epoch fell", place());
            // The authority moves by the row's word alone, and to the side that was meant.
            let heard = matches!(command, Command::SwitchedOver { .. });
            assert!(before.authority.side == moved.authority.side || heard, "{}: the authority moved", place());
            // No switch without guards that let pass, and none is forgotten.
            let meant = decisions.iter().any(|decision| matches!(decision, Decision::SwitchIntended { .. }));
            assert!(!meant || before.judgement.as_ref().is_some_and(Judgement::passes), "{}: not judged", place());
            let ended = matches!(command, Command::SwitchedOver { .. } | Command::TakenBack { .. });
            assert!(
                before.intent.is_none() || moved.intent.is_some() || ended,
                "{}: the intent was forgotten",
                place()
            );
            assert_eq!(moved.intent.is_some(), moved.phase.is_switching(), "{}", place());
            // A proof is there in every phase that asks for one; nothing is wiped while the new side is written.
            let proven = moved.phase >= Phase::Verified && moved.phase <= Phase::Ready;
            assert!(!proven || moved.clean_pass.is_some(), "{}: without a proof", place());
            let back = matches!(moved.phase, Phase::RollingBack(_) | Phase::Undone | Phase::Wiped);
            assert!(
                !back || moved.authority.side == Side::Old,
                "{}: rolled back under the new side's writers",
                place()
            );
            // Asked again at once, the same command finds its aim reached.
            if !matches!(command, Command::Note { .. } | Command::DropCheckpoint { .. }) {
                assert_eq!(decide(&moved, command.clone()), Ok(Vec::new()), "{} a second time", place());
            }
            // What is lost is hidden by nothing, and only found again, rolled back or begun anew.
            let lost = |migration: &Migration| matches!(migration.overlay, Some(Overlay::Lost { .. }));
            let ways_out = matches!(command, Command::Found | Command::Undo | Command::Wipe | Command::Plan { .. });
            assert!(!lost(before) || lost(&moved) || ways_out, "{}: no longer lost", place());
            // A new life takes nothing of the old one but a higher epoch.
            if decisions.contains(&Decision::BegunAnew) {
                assert!(
                    moved.epoch > before.epoch && moved.pins.is_empty() && moved.checkpoints.is_empty(),
                    "{}",
                    place()
                );
            }
            // A gate's doing is known until a person answers it, and nothing begins anew before that.
            let is_back = matches!(moved.phase, Phase::RollingBack(_)) || moved.phase.is_back();
            assert!(moved.fallen.is_none() || is_back, "{}: fallen, and going on", place());
            let answers = before.phase.is_back() && command == Command::Resume;
            assert!(before.fallen.is_none() || moved.fallen.is_some() || answers, "{}: nobody answered", place());
            let fell = matches!(command, Command::FallBack { .. });
            assert!(moved.fallen.is_none() || before.fallen.is_some() || fell, "{}: no gate fell", place());
            // No gate takes back what only a switch may, nor what a person holds.
            let written = before.phase >= Phase::Expanded && before.phase <= Phase::Ready;
            let held = before.overlay.as_ref().is_some_and(|overlay| !overlay.is_by_gate());
            let may = written && !held && !before.authority.to_route && !before.was_switched;
            assert!(!fell || decisions.is_empty() || may, "{}", place());
            // More of the reads is compared only where the guards let pass, and that they ended by themselves keeps a cutover
            // off until a person has said something to it.
            let more = moved.dual_millionths > before.dual_millionths;
            let judged = moved.reads_judgement.as_ref().is_some_and(ReadJudgement::passes);
            assert!(!more || judged, "{}: compared without the guards", place());
            let stepped = before.stepped_down.is_some();
            let answered = matches!(command, Command::DualRead { .. } | Command::CompareReads { .. });
            let anew = decisions
                .iter()
                .any(|decision| matches!(decision, Decision::RollbackBegan { .. } | Decision::BegunAnew));
            assert!(!stepped || moved.stepped_down.is_some() || answered || anew, "{}: unanswered", place());
            assert!(!stepped || !meant || moved.was_switched, "{}: switched over a step down", place());
            assert!(moved.stepped_down.is_none() || moved.dual_millionths == 0, "{}: compared all the same", place());
            // Whoever reads that they have stepped down can answer it as he is told to, and moves nothing else by it.
            if moved.stepped_down.is_some() && moved.phase < Phase::Freezing {
                let answered = after(&moved, Command::DualRead { millionths: 0 });
                let wanted = Migration { stepped_down: None, ..moved.clone() };
                assert_eq!(answered, Ok(wanted), "{}: cannot be answered", place());
            }
            // Nobody is at work in a phase whose spec is unknown.
            assert!(!moved.phase.is_active() || !moved.spec_hash.is_empty(), "{}", place());
            assert!(moved.generation >= before.generation || decisions.contains(&Decision::BegunAnew), "{}", place());
        }
    }
}

/// With everybody told who has the authority.
fn routed(now: Migration) -> Migration {
    let epoch = now.authority.epoch;
    after(&now, Command::Routed { epoch }).unwrap()
}

/// Out of a switch, and back from one that has happened.
fn back_from(mut now: Migration) -> Migration {
    if let Some(intent) = now.intent {
        now = after(&now, Command::TakenBack { epoch: intent.epoch, why: text("killed") }).unwrap();
    }
    if !now.phase.is_over() {
        return routed(now);
    }
    now = after(&now, Command::Found).and_then(|now| after(&now, Command::Resume)).unwrap();
    let (epoch, next) = (now.authority.epoch, now.authority.epoch + 1);
    let way = [
        judge(Direction::Failback, true),
        Command::Failback { epoch, deadline_ms: 1, at_us: 9 },
        Command::Frozen { epoch: next },
        Command::Drained { epoch: next, position: None },
        Command::SwitchedOver { epoch: next },
        Command::Routed { epoch: next },
    ];
    let before = now.summary();
    way.into_iter().fold(now, |now, command| {
        let name = command.name();
        after(&now, command).unwrap_or_else(|refusal| panic!("{name}, back from {before}: {refusal}"))
    })
}

#[test]
fn from_every_reachable_state_a_wipe_and_a_new_run_reach_the_end() {
    for start in reachable() {
        let from = start.summary();
        let mut now = start;
        if matches!(now.phase, Phase::Contracting | Phase::Done) {
            assert!(after(&now, Command::Wipe).is_err(), "begun {from}: the old side may be gone already");
            continue;
        }
        if now.phase.is_switching() || now.phase.is_over() || now.authority.to_route {
            assert!(after(&now, Command::Wipe).is_err(), "begun {from}: one side's writers would be lost");
            now = back_from(now);
        }
        let way = [
            Command::Wipe,
            Command::RollbackDone,
            plan("c"),
            Command::Expand,
            Command::StartCapture,
            Command::StartBackfill { generation: 1 },
            Command::BackfillDone { generation: 1 },
            Command::CaughtUp,
        ];
        for command in way {
            let nothing_written = matches!(now.phase, Phase::Draft | Phase::Planned);
            if nothing_written && matches!(command, Command::Wipe | Command::RollbackDone) {
                continue;
            }
            let name = command.name();
            if command == plan("c") && now.fallen.is_some() {
                let refused = after(&now, command.clone()).unwrap_err().to_string();
                assert!(refused.contains("crossfade resume"), "begun {from}: {refused}");
                now = after(&now, Command::Found).and_then(|now| after(&now, Command::Resume)).unwrap();
            }
            if now.overlay.is_some() && nothing_written && command != plan("c") {
                now = after(&now, Command::Found).and_then(|now| after(&now, Command::Resume)).unwrap();
            }
            now = after(&now, command).unwrap_or_else(|refusal| panic!("{name}, begun {from}: {refusal}"));
        }
        assert_eq!(now.phase, Phase::Shadowing, "begun {from}");
    }
}

#[test]
fn what_a_gate_took_back_waits_for_a_person_whatever_dies_meanwhile() {
    let gates_pause = || Command::Pause { by: text("gate lag"), reason: text("late") };
    for phase in
        [Phase::Expanded, Phase::Capturing, Phase::Backfilling, Phase::CatchingUp, Phase::DualReading, Phase::Ready]
    {
        for kind in [RollbackKind::Undo, RollbackKind::Wipe] {
            // A pause by another gate is no person's.
            let paused = after(&at(phase), gates_pause()).unwrap();
            let decisions = decide(&paused, fall_back(kind)).unwrap();
            assert!(
                matches!(decisions.as_slice(), [Decision::RollbackBegan { .. }, Decision::GateFell { fall }] if fall.by() == "gate disk")
            );
            let mut now = after(&paused, fall_back(kind)).unwrap();
            assert_eq!((now.phase, now.overlay.is_none(), now.dual_millionths), (Phase::RollingBack(kind), true, 0));
            // The next process fails on its way, and is asked again.
            now = after(&now, Command::Fail { reason: text("no connection") }).unwrap();
            assert!(now.fallen.is_some() && after(&now, plan("a")).is_err());
            if kind == RollbackKind::Undo {
                now = after(&now, Command::Undo).and_then(|now| after(&now, Command::RollbackDone)).unwrap();
                assert!(now.phase == Phase::Undone && now.fallen.is_some() && after(&now, plan("a")).is_err());
            }
            now = after(&now, Command::Wipe).and_then(|now| after(&now, Command::RollbackDone)).unwrap();
            assert_eq!((now.phase, now.overlay.clone()), (Phase::Wiped, None));
            assert_eq!(
                now.summary(),
                "wiped, rolled back by gate disk: 95% of the disk under the work folder is full, the limit is 90%"
            );
            let refused = after(&now, plan("a")).unwrap_err().to_string();
            assert!(refused.contains("gate disk") && refused.contains("`crossfade resume`"), "{refused}");
            now = after(&now, Command::Resume).unwrap();
            assert!(now.fallen.is_none() && after(&now, plan("a")).unwrap().phase == Phase::Planned);
        }
    }
    let old: Migration = serde_json::from_str("{\"phase\":\"wiped\",\"overlay\":null,\"epoch\":1,\"spec_hash\":\"\",\"secret_id\":\"\",\"generation\":0,\"pins\":{},\"checkpoints\":{}}").unwrap();
    assert_eq!((old.fallen, old.baseline), (None, None), "a fold that was kept before gates rolled back");
}

#[test]
fn a_baseline_is_taken_once_in_a_life() {
    let take = |us| Command::TakeBaseline { baseline: crossfade_control::Baseline::Probe(us) };
    let taken = after(&at(Phase::Planned), take(5)).unwrap();
    assert_eq!(decide(&taken, take(9)), Ok(Vec::new()));
    assert_eq!(after(&taken, Command::Expand).unwrap().baseline, Some(crossfade_control::Baseline::Probe(5)));
    let mut anew = [Command::Expand, Command::Wipe, Command::RollbackDone, plan("b")]
        .into_iter()
        .fold(taken, |now, command| after(&now, command).unwrap());
    assert_eq!(anew.baseline, None);
    anew = after(&anew, take(9)).unwrap();
    assert_eq!(anew.baseline, Some(crossfade_control::Baseline::Probe(9)));
}

#[test]
fn a_wish_for_new_tables_stays_until_it_is_answered_and_does_not_outlive_a_rollback() {
    let added = || Command::TablesAdded { tables: vec![text("public.later")], refused: None };
    let shadowing = at(Phase::Shadowing);
    assert_eq!(decide(&shadowing, added()), Ok(Vec::new()), "an answer without a wish changes nothing");
    let wished = after(&shadowing, Command::AddTables).unwrap();
    assert!(wished.adding && wished.phase == Phase::Shadowing);
    assert_eq!(decide(&wished, Command::AddTables), Ok(Vec::new()));
    assert!(after(&wished, pause()).unwrap().adding, "a pause does not answer it");
    assert!(!after(&wished, added()).unwrap().adding);
    assert!(!after(&wished, Command::Undo).unwrap().adding);
    let early = decide(&at(Phase::Planned), Command::AddTables).unwrap_err().to_string();
    assert!(early.contains("`resume --add`") && early.contains("crossfade run"), "{early}");
    assert!(decide(&after(&shadowing, lose()).unwrap(), Command::AddTables).is_err());
    let old: Migration =
        serde_json::from_str(&serde_json::to_string(&shadowing).unwrap().replace(",\"adding\":false", "")).unwrap();
    assert_eq!(old, shadowing, "a fold that was kept before there were wishes");
}

#[test]
fn refusals_say_what_to_do() {
    let refusal = |migration: &Migration, command| decide(migration, command).unwrap_err().to_string();
    let shadowing = at(Phase::Shadowing);
    let pinned = after(&shadowing, Command::Pin { end: End::Source, identity: text("system 1") }).unwrap();
    let other = refusal(&pinned, Command::Pin { end: End::Source, identity: text("system 2") });
    assert!(
        other.contains("`system 1`") && other.contains("`system 2`") && other.contains("rollback --wipe"),
        "{other}"
    );
    let unasked = refusal(&shadowing, cutover(0));
    assert_eq!(unasked, "`cutover` is refused: its guards have not been asked");
    let judged = after(&shadowing, judge(Direction::Cutover, false)).unwrap();
    let said = refusal(&judged, cutover(0));
    for word in ["caught-up", "clean-pass", "crossfade verify", "did not come into the sink"] {
        assert!(said.contains(word), "{said}");
    }
    assert!(!said.contains("oldest-writer"), "what holds is not named: {said}");
    let away = refusal(&at(Phase::Switched), Command::Wipe);
    assert!(away.contains("the new side has the authority"), "{away}");
    let late = refusal(&at(Phase::Draining), Command::SwitchedOver { epoch: 2 });
    assert!(late.contains("epoch 2") && late.contains("at 1"), "{late}");
    let named = Command::NameCheckpoint { name: text("one"), cut: Cut::start(1), position: None, at_us: 0 };
    let named = after(&shadowing, named).unwrap();
    let unknown = refusal(&named, Command::DropCheckpoint { name: text("two") });
    assert_eq!(unknown, "there is no checkpoint `two` (there are one)");
    let lost = after(&shadowing, lose()).unwrap();
    let refused = refusal(&lost, Command::Resume);
    assert_eq!(refused, "`resume` is not possible: the migration is lost: the slot is gone. begin anew");
    assert!(refusal(&Migration::default(), Command::Undo).contains("while the migration is draft"));
}

proptest! {
    #[test]
    fn any_walk_is_the_fold_of_its_decisions(steps in proptest::collection::vec(any::<prop::sample::Index>(), 0..60)) {
        let all = commands();
        let mut now = Migration::default();
        let mut decided = Vec::new();
        for step in steps {
            if let Ok(decisions) = decide(&now, step.get(&all).clone()) {
                now = decisions.iter().fold(now, evolve);
                decided.extend(decisions);
            }
        }
        let written = serde_json::to_string(&decided).unwrap();
        let read: Vec<Decision> = serde_json::from_str(&written).unwrap();
        prop_assert_eq!(&read.iter().fold(Migration::default(), evolve), &now);
        let state: Migration = serde_json::from_str(&serde_json::to_string(&now).unwrap()).unwrap();
        prop_assert_eq!(state, now);
    }
}
