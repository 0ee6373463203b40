//! The protocol of a switch as a model, walked through wholly: a process that may end between any two writes, a server that
//! ends the freeze by itself, a last word that is still on its way when its sender is gone. Never two writers, never none for
//! ever, and the journal always ends where the row does.

use crate::life::fall_back;
use crossfade_control::{Command, Direction, Facts, Limits, Migration, Phase, RollbackKind, WayBack, decide, evolve};
use crossfade_event::Side;
use std::collections::{BTreeSet, VecDeque};

/// Both servers and the journal: what survives the process.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct World {
    /// Whether it is a failback; a cutover otherwise.
    back: bool,
    /// The journal's fold, as text, for it has no order.
    journal: Vec<Said>,
    /// The row of the side that has the authority at first.
    row: (Side, u64),
    /// The other side's copy of it.
    copy: (Side, u64),
    /// The freeze holds, for the process of this number.
    lock: Option<u8>,
    fence: bool,
    /// The fence of the other side, which stands there since an earlier switch.
    fence_there: bool,
    /// The transaction that opens the other side waits for its commit, for the process of this number.
    opening: Option<u8>,
    /// The last word has been sent over the session of this process, and not been carried out: the epoch it asks for.
    sent: Option<(u8, u64)>,
    /// Writes of the one side that the other one does not have.
    pending: bool,
    process: Process,
    /// Deaths and expiries still to come, so that the walk ends.
    left: u8,
    /// Attempts still to come.
    attempts: u8,
}

/// What the journal was told, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Said {
    Intent(u64),
    Frozen(u64),
    Drained(u64),
    Switched(u64),
    TakenBack(u64),
    Routed(u64),
}

/// Where the process stands: what it has done last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Process {
    /// None runs; the number of the next one.
    Gone(u8),
    /// It looks what became of the switch before it.
    Begun(u8),
    Intended(u8),
    Locked(u8),
    Frozen(u8),
    Drained(u8),
    /// It has sent the last word, and waits for the answer.
    Sent(u8),
    /// It knows that the row says the other side.
    Moved(u8),
    Told(u8),
    Over,
}

fn limits() -> Limits {
    Limits { deadline_ms: 1000, lock_timeout_ms: 100, verified_within_ms: 1000, approvals: 0 }
}

fn facts() -> Facts {
    let way_back = Some(WayBack::Comparable { passed_at_us: Some(1) });
    Facts { mark_ms: Some(1), predicted_pause_ms: Some(1), way_back, ..Facts::default() }
}

fn start(back: bool) -> Migration {
    let (limits, facts) = (limits(), facts());
    let way = [
        Command::Plan { spec_hash: "a".into(), secret_id: "s".into() },
        Command::Expand,
        Command::StartCapture,
        Command::StartBackfill { generation: 1 },
        Command::BackfillDone { generation: 1 },
        Command::CaughtUp,
        Command::Verified { position: None, rows: 1, differences: 0, at_us: 1, from: None, mark: None },
        Command::Judge { before: Direction::Cutover, facts, limits, at_us: 1 },
    ];
    let ready = way.into_iter().fold(Migration::default(), told);
    if !back {
        return ready;
    }
    let switched = [
        Command::Cutover { epoch: 0, deadline_ms: 1000, at_us: 0 },
        Command::Frozen { epoch: 1 },
        Command::Drained { epoch: 1, position: None },
        Command::SwitchedOver { epoch: 1 },
        Command::Routed { epoch: 1 },
    ];
    switched.into_iter().fold(ready, told)
}

/// The journal takes it, or the model is wrong.
fn told(migration: Migration, command: Command) -> Migration {
    let name = command.name();
    let decisions = decide(&migration, command).unwrap_or_else(|refused| panic!("{name}: {refused}"));
    decisions.iter().fold(migration, evolve)
}

#[test]
fn no_gate_takes_anything_back_once_the_new_side_has_had_the_authority() {
    let before = start(false);
    let switched = start(true);
    let failback = [
        Command::Judge { before: Direction::Failback, facts: facts(), limits: limits(), at_us: 1 },
        Command::Failback { epoch: 1, deadline_ms: 1000, at_us: 1 },
        Command::Frozen { epoch: 2 },
        Command::Drained { epoch: 2, position: None },
        Command::SwitchedOver { epoch: 2 },
        Command::Routed { epoch: 2 },
    ];
    let back = failback.into_iter().fold(switched.clone(), told);
    assert_eq!((back.phase, back.authority.side), (Phase::Shadowing, Side::Old));
    for kind in [RollbackKind::Undo, RollbackKind::Wipe] {
        assert!(decide(&before, fall_back(kind)).is_ok());
        assert!(decide(&switched, fall_back(kind)).is_err());
        assert!(decide(&back, fall_back(kind)).is_err(), "the new side has what only the applications wrote");
    }
}

impl World {
    fn direction(&self) -> Direction {
        if self.back { Direction::Failback } else { Direction::Cutover }
    }

    fn migration(&self) -> Migration {
        self.journal.iter().fold(start(self.back), |migration, said| {
            let epoch = match *said {
                Said::Intent(epoch) => {
                    // The guards are asked anew before each attempt.
                    let (before, epoch, at_us) = (self.direction(), epoch - 1, epoch as i64);
                    let judge = Command::Judge { before, facts: facts(), limits: limits(), at_us: 1 };
                    let intent = match before {
                        Direction::Cutover => Command::Cutover { epoch, deadline_ms: 1000, at_us },
                        Direction::Failback => Command::Failback { epoch, deadline_ms: 1000, at_us },
                    };
                    return told(told(migration, judge), intent);
                }
                Said::Frozen(epoch)
                | Said::Drained(epoch)
                | Said::Switched(epoch)
                | Said::TakenBack(epoch)
                | Said::Routed(epoch) => epoch,
            };
            let command = match said {
                Said::Frozen(_) => Command::Frozen { epoch },
                Said::Drained(_) => Command::Drained { epoch, position: None },
                Said::Switched(_) => Command::SwitchedOver { epoch },
                Said::TakenBack(_) => Command::TakenBack { epoch, why: String::new() },
                _ => Command::Routed { epoch },
            };
            told(migration, command)
        })
    }

    fn with(&self, change: impl FnOnce(&mut Self)) -> Self {
        let mut next = self.clone();
        change(&mut next);
        next
    }

    fn say(&self, said: Said, process: Process) -> Self {
        self.with(|next| {
            next.journal.push(said);
            next.process = process;
        })
    }

    /// The freeze of a process ends with its session; what it had sent and the server has not begun goes with it only if the
    /// server noticed the end first.
    fn unlock(&mut self, of: u8) {
        if self.lock == Some(of) {
            self.lock = None;
        }
        if self.sent.is_some_and(|(sender, _)| sender == of) {
            self.sent = None;
        }
    }

    /// The server carries the last word out, if it still stands: in one commit the row, the fence and the end of the lock.
    fn carried_out(&self) -> Option<Self> {
        let (sender, epoch) = self.sent?;
        Some(self.with(|next| {
            next.sent = None;
            if next.lock == Some(sender) && next.row == (self.direction().from(), epoch - 1) {
                next.row = (self.direction().to(), epoch);
                next.fence = true;
            }
            if next.lock == Some(sender) {
                next.lock = None;
            }
        }))
    }

    /// What may happen next.
    fn next(&self) -> Vec<Self> {
        let mut all = self.of_the_process();
        all.extend(self.carried_out());
        // Applications write the one side whenever they can, and the sink carries it over.
        if self.writable() && !self.pending {
            all.push(self.with(|next| next.pending = true));
        }
        if self.left > 0 {
            let number = match self.process {
                Process::Gone(_) | Process::Over => None,
                Process::Begun(n)
                | Process::Intended(n)
                | Process::Locked(n)
                | Process::Frozen(n)
                | Process::Drained(n)
                | Process::Sent(n)
                | Process::Moved(n)
                | Process::Told(n) => Some(n),
            };
            if let Some(number) = number {
                // It dies. Its session lives on at the server until that has noticed.
                all.push(self.with(|next| {
                    next.process = Process::Gone(number + 1);
                    next.left -= 1;
                }));
            }
        }
        if let Some(of) = self.lock {
            // The deadline, a lost connection, a dead process: the server ends the session.
            all.push(self.with(|next| next.unlock(of)));
        }
        if self.opening.is_some() {
            // The same on the other server.
            all.push(self.with(|next| next.opening = None));
        }
        all
    }

    fn of_the_process(&self) -> Vec<Self> {
        let (_, row_epoch) = self.row;
        match self.process {
            Process::Gone(number) => vec![self.with(|next| next.process = Process::Begun(number))],
            Process::Begun(number) => self.settled_or_on(number),
            Process::Intended(number) if self.lock.is_none() => vec![
                self.with(|next| {
                    next.lock = Some(number);
                    next.process = Process::Locked(number);
                }),
                self.with(|next| next.process = Process::Begun(number)),
            ],
            Process::Intended(number) => vec![self.with(|next| next.process = Process::Begun(number))],
            Process::Locked(number) => vec![self.say(Said::Frozen(row_epoch + 1), Process::Frozen(number))],
            Process::Frozen(number) => {
                // The barrier: everything that was written before the freeze is over. If the freeze has ended meanwhile, more
                // may come after it; the last word finds that out.
                vec![self.with(|next| {
                    next.pending = false;
                    next.opening = Some(number);
                    let epoch = next.migration().intent.map_or(0, |intent| intent.epoch);
                    next.journal.push(Said::Drained(epoch));
                    next.process = Process::Drained(number);
                })]
            }
            Process::Drained(number) => {
                let epoch = self.migration().intent.map_or(0, |intent| intent.epoch);
                let sent = self.with(|next| {
                    next.sent = (next.lock == Some(number)).then_some((number, epoch));
                    next.process = Process::Sent(number);
                });
                vec![sent]
            }
            // Where the answer says that it is done, the other side is opened; whatever the answer, or if none comes, the row
            // is asked.
            Process::Sent(number) => {
                let mut all = vec![self.with(|next| {
                    next.opening = None;
                    next.process = Process::Begun(number);
                })];
                if self.sent.is_none() && self.row.0 == self.direction().to() && self.opening == Some(number) {
                    all.push(self.with(|next| {
                        next.open();
                        next.process = Process::Begun(number);
                    }));
                }
                all
            }
            // What is left of the transaction that was to open it must have ended: its locks are in the way.
            Process::Moved(_) if self.opening.is_some() => vec![self.with(|next| next.opening = None)],
            Process::Moved(number) => {
                vec![self.with(|next| {
                    next.open();
                    next.process = Process::Told(number);
                })]
            }
            Process::Told(_) => vec![self.say(Said::Routed(row_epoch), Process::Over)],
            Process::Over => Vec::new(),
        }
    }

    /// What `settle` does, and then a new attempt, or what is left to do.
    fn settled_or_on(&self, number: u8) -> Vec<Self> {
        let migration = self.migration();
        if let Some(intent) = migration.intent {
            if self.row == (intent.direction.from(), intent.epoch - 1) {
                // Raised in one conditional write: from here on the last word of before finds nothing to do.
                return vec![self.with(|next| next.row.1 += 1)];
            }
            let (side, epoch) = self.row;
            return vec![match side == intent.direction.to() {
                true => self.say(Said::Switched(epoch), Process::Moved(number)),
                false => self.say(Said::TakenBack(epoch), Process::Begun(number)),
            }];
        }
        if migration.authority.side == self.direction().to() {
            let to_route = migration.authority.to_route;
            return vec![
                self.with(|next| next.process = if to_route { Process::Moved(number) } else { Process::Over }),
            ];
        }
        if self.attempts == 0 {
            return Vec::new();
        }
        // A new session, whatever became of the old one's; a freeze that the server still holds is waited for.
        vec![self.with(|next| {
            next.attempts -= 1;
            next.journal.push(Said::Intent(next.row.1 + 1));
            next.process = Process::Intended(number + 10);
        })]
    }

    /// One commit on the other side: its row follows, and its fence goes.
    fn open(&mut self) {
        if self.copy.1 < self.row.1 {
            self.copy = self.row;
        }
        if self.copy.0 == self.direction().to() {
            self.fence_there = false;
        }
        self.opening = None;
    }

    /// The side that has the authority at first.
    fn writable(&self) -> bool {
        self.lock.is_none() && !self.fence
    }

    fn check(&self) {
        let (from, to) = (self.direction().from(), self.direction().to());
        let moved = self.row.0 == to;
        // Where no fence stands yet, as before the first cutover, the row alone says whether it may be written.
        let writable_there = if self.back { !self.fence_there } else { moved };
        assert!(!(self.writable() && writable_there), "two writers: {self:?}");
        assert!(!(writable_there && self.pending), "a write of the one side is missing on the other: {self:?}");
        assert!(!writable_there || moved, "opened too early: {self:?}");
        assert!(self.copy.1 <= self.row.1 && (self.copy.0 == from || moved), "told too early: {self:?}");
        let migration = self.migration();
        assert!(migration.authority.epoch <= self.row.1, "the journal is ahead of the row: {self:?}");
        assert!(migration.authority.side == from || moved, "the journal says another side than the row: {self:?}");
    }
}

#[test]
fn a_switch_that_is_interrupted_anywhere_ends_on_one_side_and_never_has_two_writers() {
    for back in [false, true] {
        walk(back);
    }
}

/// Walks through everything that can happen.
fn walk(back: bool) {
    let before = if back { (Side::New, 1) } else { (Side::Old, 0) };
    let first = World {
        back,
        journal: Vec::new(),
        row: before,
        copy: before,
        lock: None,
        fence: false,
        fence_there: back,
        opening: None,
        sent: None,
        pending: false,
        process: Process::Begun(0),
        left: 2,
        attempts: 2,
    };
    let (stays, follows) = if back { (Phase::Switched, Phase::Shadowing) } else { (Phase::Verified, Phase::Switched) };
    let (mut seen, mut queue) = (BTreeSet::new(), VecDeque::from([first]));
    let (mut switched, mut stayed) = (0, 0);
    while let Some(world) = queue.pop_front() {
        if !seen.insert(world.clone()) {
            continue;
        }
        world.check();
        let next = world.next();
        let rests = world.of_the_process().is_empty();
        if rests && world.lock.is_none() && world.sent.is_none() && world.opening.is_none() {
            // Nothing is left to do: both agree, and somebody can write.
            let migration = world.migration();
            if world.row.0 == world.direction().to() {
                assert_eq!(migration.phase, follows, "{world:?}");
                assert!(world.fence && !migration.authority.to_route && world.copy == world.row, "{world:?}");
                assert!(!world.fence_there, "nobody can write: {world:?}");
                switched += 1;
            } else {
                assert_eq!(migration.phase, stays, "{world:?}");
                assert!(world.writable(), "{world:?}");
                stayed += 1;
            }
        }
        queue.extend(next);
    }
    assert!(switched > 0 && stayed > 0 && seen.len() > 500, "{switched} {stayed} of {}", seen.len());
}
