//! What there is: two hosts, what lies between them, and time.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;

use jiff::Timestamp;
use spothop::migration::protocol::{self, Hold, Instance, Occasion, Return};
use spothop::migration::{MANUAL, Phase, Side, Verdict};

/// When the cloud takes the source away, in seconds since 1970.
const DEADLINE: i64 = 1_700_000_000;

/// Somebody moves the container.
pub(crate) const MANUALLY: Occasion<'static> = Occasion { cause: MANUAL, deadline: None };
/// Somebody moves the container, and gives it a time.
pub(crate) const IN_A_WHILE: Occasion<'static> =
    Occasion { cause: MANUAL, deadline: Some(Timestamp::constant(DEADLINE, 0)) };
/// A cloud gave notice that it stops the host.
pub(crate) const STOP: Occasion<'static> =
    Occasion { cause: "aws:i-1:stop", deadline: Some(Timestamp::constant(DEADLINE, 0)) };
/// A cloud gave notice that it terminates the host.
pub(crate) const CLOUD: Occasion<'static> =
    Occasion { cause: "aws:i-1:terminate", deadline: Some(Timestamp::constant(DEADLINE, 0)) };

/// What becomes of the source host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// It stays, whatever time it is; it may lose its power, and gets it back.
    Stays,
    /// Between the deadline and the fence it goes for good.
    Terminated,
    /// Between the deadline and the fence it is stopped; later it may be started again, with its disk.
    Stopped,
}

/// One setting of the model.
#[derive(Debug, Clone, Copy)]
pub(crate) struct World {
    pub(crate) occasion: Occasion<'static>,
    pub(crate) end: End,
    /// Somebody can be asked what became of the source's instance.
    pub(crate) provider: bool,
    /// Either host may be lost for good, and a person who knows it resolves what is open at the other.
    pub(crate) person: bool,
    /// Part of the memory follows when the container runs at the target.
    pub(crate) post_copy: bool,
}

/// The decisions, to be broken one by one.
pub(crate) struct Rules {
    pub(crate) fences: fn(&Occasion<'_>, Instance, Timestamp) -> bool,
    pub(crate) may_abort_alone: fn(&Occasion<'_>, Phase, Timestamp) -> bool,
    pub(crate) hold: fn(Phase, Option<Verdict>) -> Hold,
    pub(crate) returns: fn(Phase, Option<Verdict>, bool) -> Return,
    /// Whether a phase is on disk at once.
    pub(crate) is_on_disk: fn(Phase, Side) -> bool,
    /// An action script that is left alone writes ABORT before it lets the tasks go.
    pub(crate) hook_writes: bool,
    /// The target lets the tasks run only after its own COMMIT is on disk.
    pub(crate) target_writes: bool,
    /// The target says that it runs only when all of its memory is there.
    pub(crate) target_waits_until_whole: bool,
    /// A source that was given the container back by nobody keeps it frozen after COMMIT.
    pub(crate) source_waits_for_target: bool,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            fences: |occasion, instance, now| occasion.fences(instance, now),
            may_abort_alone: |occasion, phase, now| occasion.may_abort_alone(phase, now),
            hold: protocol::hold,
            returns: protocol::returns,
            is_on_disk: Phase::is_acted_upon,
            hook_writes: true,
            target_writes: true,
            target_waits_until_whole: true,
            source_waits_for_target: true,
        }
    }
}

/// Where time is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Time {
    /// Before the deadline.
    Before,
    /// After it, and the fence is not reached.
    Margin,
    /// After the fence.
    Past,
}

impl Time {
    /// By a right clock.
    pub(crate) fn now(self) -> Timestamp {
        let fence = protocol::FENCE.as_secs().cast_signed();
        Timestamp::constant(
            DEADLINE
                + match self {
                    Time::Before => -fence,
                    Time::Margin => fence / 2,
                    Time::Past => fence + 1,
                },
            0,
        )
    }
}

/// A host's power.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Power {
    On,
    Off,
    /// For good.
    Gone,
}

/// A journal's record of the migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Record {
    pub(crate) phase: Phase,
    pub(crate) verdict: Option<Verdict>,
}

thread_local! {
    /// Every transition that any journal has made on this thread.
    static USED: RefCell<BTreeSet<(String, String)>> = RefCell::default();
}

/// Every transition that any journal has made on this thread.
pub(crate) fn used() -> BTreeSet<(String, String)> {
    USED.with_borrow(Clone::clone)
}

impl Record {
    pub(crate) const PLANNED: Record = Record { phase: Phase::Planned, verdict: None };

    fn note(&mut self, phase: Phase) {
        assert!(phase.may_follow(self.phase), "{} after {}", phase, self.phase);
        USED.with_borrow_mut(|used| used.insert((self.phase.to_string(), phase.to_string())));
        self.phase = phase;
    }

    /// What a power cut takes from the journal of this side: what was not on disk.
    pub(crate) fn forget_unwritten(&mut self, side: Side, rules: &Rules) {
        while !(rules.is_on_disk)(self.phase, side) {
            self.phase = match self.phase {
                Phase::Committed => Phase::Restored,
                Phase::Restored => Phase::Transferred,
                Phase::Transferred => Phase::Frozen,
                Phase::Frozen => Phase::Prepared,
                other => unreachable!("{other} is always on disk"),
            };
            self.verdict = None;
        }
    }

    /// `Journal::enter`.
    pub(crate) fn enter(&mut self, phase: Phase) -> Result<(), Illegal> {
        if self.phase == phase {
            return Ok(());
        }
        if matches!(phase, Phase::Committed | Phase::Aborted) || !phase.may_follow(self.phase) {
            return Err(Illegal);
        }
        self.note(phase);
        Ok(())
    }

    /// `Journal::decide`; `alone`: whether ABORT may be decided on this side.
    pub(crate) fn decide(&mut self, wanted: Verdict, alone: bool) -> Result<Verdict, Illegal> {
        if let Some(verdict) = self.verdict {
            return Ok(verdict);
        }
        if !wanted.phase().may_follow(self.phase) || (wanted == Verdict::Abort && !alone) {
            return Err(Illegal);
        }
        self.note(wanted.phase());
        self.verdict = Some(wanted);
        Ok(wanted)
    }

    /// `Journal::adopt`.
    pub(crate) fn adopt(&mut self, targets: Verdict) -> Result<Verdict, Illegal> {
        if self.verdict == Some(targets) {
            return Ok(targets);
        }
        if (self.phase, targets) == (Phase::Transferred, Verdict::Commit) {
            self.note(Phase::Restored);
        }
        if !targets.phase().may_follow(self.phase) {
            return Err(Illegal);
        }
        self.note(targets.phase());
        self.verdict = Some(targets);
        Ok(targets)
    }
}

/// The journal refused.
#[derive(Debug)]
pub(crate) struct Illegal;

/// A container's tasks on one host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Tasks {
    /// There is no such container, or it was removed.
    None,
    /// It is there and does not run.
    Dead,
    /// Source: frozen. Target: restored and stopped.
    Held,
    Running,
}

/// The migration's own session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Session {
    Down,
    Idle,
    /// The source has asked for the step that follows its phase.
    Asked,
    /// The target has done it.
    Answered,
}

/// What was said in sessions of its own. It may arrive at any time from then on, any number of times, or never.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) struct Said(u8);

impl Said {
    pub(crate) const COMMIT: u8 = 1;
    pub(crate) const ABORT: u8 = 2;
    pub(crate) const RUNNING: u8 = 4;
    pub(crate) const GONE: u8 = 8;
    /// Answers to the target's question.
    pub(crate) const VERDICT_COMMIT: u8 = 16;
    pub(crate) const VERDICT_ABORT: u8 = 32;

    pub(crate) fn say(&mut self, what: u8) {
        self.0 |= what;
    }

    pub(crate) fn has(self, what: u8) -> bool {
        self.0 & what != 0
    }
}

impl fmt::Debug for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = ["COMMIT", "ABORT", "running", "gone", "verdict is COMMIT", "verdict is ABORT"];
        f.debug_set().entries(words.iter().enumerate().filter(|(bit, _)| self.0 & (1 << bit) != 0)).finish()
    }
}

/// The source host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Source {
    pub(crate) power: Power,
    pub(crate) record: Record,
    pub(crate) daemon: SourceDaemon,
    pub(crate) criu: Criu,
    pub(crate) tasks: Tasks,
    pub(crate) restarts: Restarts,
    pub(crate) memory: Memory,
}

/// What became of the tasks' memory on one host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Memory {
    Kept,
    /// It had to go: the host lost its power, or CRIU was killed while its code was in the tasks.
    Lost,
    /// The container was started from its files although nothing had taken its memory.
    Wasted,
}

impl Memory {
    /// The container is started from its files.
    pub(crate) fn start(&mut self) {
        if *self == Memory::Kept {
            *self = Memory::Wasted;
        }
    }

    /// The host loses its power, or the tasks die otherwise.
    pub(crate) fn lose(&mut self) {
        if *self == Memory::Kept {
            *self = Memory::Lost;
        }
    }
}

/// What the source's daemon is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum SourceDaemon {
    Off,
    /// On the way to COMMIT.
    Work,
    /// The target holds the tasks.
    Commit,
    /// Something failed; `died`: the tasks may have died of it.
    Abort {
        died: bool,
    },
    /// COMMIT stands; the target is told.
    Tell,
    /// The target runs.
    LetGo,
    /// ABORT stands.
    Undo {
        died: bool,
    },
    Done,
}

/// The dump and its action script.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Criu {
    NotYet,
    Dumping,
    Holding,
    Ended,
}

/// The engine's restart policy for the container at the source, and the step in the journal about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Restarts {
    /// As the user said; nothing is intended, or all is settled.
    Normal,
    /// As the user said; the intent is written.
    Intended,
    /// Switched off.
    Held,
    /// As the user said again; the step is not settled.
    Resumed,
}

/// The target host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Target {
    pub(crate) power: Power,
    pub(crate) record: Option<Record>,
    pub(crate) daemon: TargetDaemon,
    pub(crate) tasks: Tasks,
    /// The migration's directory, with CRIU's images in memory.
    pub(crate) images: bool,
    /// Part of the memory is still with the source's frozen tasks.
    pub(crate) lacks: bool,
    pub(crate) memory: Memory,
    /// The engine starts the container again when the host comes back.
    pub(crate) restarts: bool,
}

/// What the target's daemon is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum TargetDaemon {
    Off,
    Serve,
    Await,
    Run,
    Start,
    TidyUp,
    Undo,
    Done,
}

/// All of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct State {
    pub(crate) time: Time,
    pub(crate) session: Session,
    pub(crate) said: Said,
    pub(crate) source: Source,
    pub(crate) target: Target,
}

impl State {
    pub(crate) const FIRST: State = State {
        time: Time::Before,
        session: Session::Idle,
        said: Said(0),
        source: Source {
            power: Power::On,
            record: Record::PLANNED,
            daemon: SourceDaemon::Work,
            criu: Criu::NotYet,
            tasks: Tasks::Running,
            restarts: Restarts::Normal,
            memory: Memory::Kept,
        },
        target: Target {
            power: Power::On,
            record: None,
            daemon: TargetDaemon::Serve,
            tasks: Tasks::None,
            images: false,
            lacks: false,
            memory: Memory::Kept,
            restarts: false,
        },
    };

    /// The source's frozen tasks are killed, and take along what the target has not had of them.
    pub(crate) fn kill_source(&mut self) {
        if self.target.lacks && self.target.tasks == Tasks::Running {
            self.target.memory.start();
        }
    }

    pub(crate) fn running(&self) -> usize {
        usize::from(self.source.tasks == Tasks::Running) + usize::from(self.target.tasks == Tasks::Running)
    }

    /// Whether a host has started the container from its files that had no need to.
    pub(crate) fn wastes_memory(&self) -> bool {
        self.source.memory == Memory::Wasted || self.target.memory == Memory::Wasted
    }

    /// Whether this is an end that may be: nothing can happen any more without a fault.
    pub(crate) fn is_good_end(&self) -> bool {
        let target_ended = self.target.record.is_none_or(|record| record.phase == Phase::Cleaned);
        if self.target.power == Power::Gone {
            // What the target ran is lost with its host.
            let kept = self.source.power != Power::Gone && self.source.record.verdict == Some(Verdict::Abort);
            let source_ended = self.source.power == Power::Gone || self.source.record.phase == Phase::Cleaned;
            return source_ended && self.running() == usize::from(kept);
        }
        if self.source.power == Power::Gone {
            // What the target never held, or gave up, is lost with its host.
            let held = self.target.record.is_some_and(|record| record.verdict == Some(Verdict::Commit));
            return target_ended && self.running() == usize::from(held);
        }
        target_ended && self.source.record.phase == Phase::Cleaned && self.running() == 1
    }
}

/// Collects what may happen in a state.
pub(crate) struct Next<'a> {
    pub(crate) world: &'a World,
    pub(crate) rules: &'a Rules,
    pub(crate) state: State,
    /// What happened, the state after it, and whether it is a fault.
    pub(crate) steps: Vec<(&'static str, State, bool)>,
}

impl Next<'_> {
    /// Something that happens when nothing fails.
    pub(crate) fn step(&mut self, what: &'static str, change: impl FnOnce(&mut State)) {
        self.push(what, change, false);
    }

    /// Something that need not happen.
    pub(crate) fn fault(&mut self, what: &'static str, change: impl FnOnce(&mut State)) {
        self.push(what, change, true);
    }

    fn push(&mut self, what: &'static str, change: impl FnOnce(&mut State), fault: bool) {
        let mut after = self.state;
        change(&mut after);
        if after != self.state {
            self.steps.push((what, after, fault));
        }
    }
}

/// Everything that may happen.
pub(crate) fn successors(world: &World, rules: &Rules, state: State) -> Vec<(&'static str, State, bool)> {
    let mut next = Next { world, rules, state, steps: Vec::new() };
    time(&mut next);
    if state.session != Session::Down {
        next.fault("the session breaks", |s| s.session = Session::Down);
    }
    super::source::steps(&mut next);
    super::target::steps(&mut next);
    next.steps
}

fn time(next: &mut Next<'_>) {
    let (world, state) = (next.world, next.state);
    if world.occasion.deadline.is_none() {
        return;
    }
    let source = state.source.power;
    // A cloud keeps its word.
    let taken = match world.end {
        End::Stays => true,
        End::Terminated => source == Power::Gone,
        End::Stopped => source == Power::Off,
    };
    match state.time {
        Time::Before => next.step("the deadline passes", |s| s.time = Time::Margin),
        Time::Margin if taken => next.step("the fence passes", |s| s.time = Time::Past),
        Time::Margin => next.step("the cloud takes the source away", |s| super::source::power_off(s, world)),
        Time::Past => {}
    }
}
