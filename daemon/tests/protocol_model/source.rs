//! The source: `migration::{source, ending, gate}`.

use spothop::migration::protocol::Hold;
use spothop::migration::{Phase, Side, Verdict};

use super::world::{
    Criu, End, Next, Power, Restarts, Said, Session, SourceDaemon as Daemon, State, TargetDaemon, Tasks, Time, World,
};

/// Everything that may happen here.
pub(crate) fn steps(next: &mut Next<'_>) {
    match next.state.source.power {
        Power::On => {}
        Power::Off => return power_on(next),
        Power::Gone => return,
    }
    daemon(next);
    resolve(next);
    criu(next);
    if next.state.source.tasks == Tasks::Dead && next.state.source.restarts != Restarts::Held {
        next.step("the source's engine starts the container again", start);
    }
    if next.state.source.daemon != Daemon::Off {
        next.fault("the source's daemon dies", |s| {
            s.source.daemon = Daemon::Off;
            s.session = Session::Down;
        });
    }
    let (world, rules) = (next.world, next.rules);
    next.fault("the source loses its power", |s| power_off(s, world));
    next.fault("the source loses its power, and what was not on disk", |s| {
        power_off(s, world);
        s.source.record.forget_unwritten(Side::Source, rules);
    });
}

/// What is in memory goes.
pub(crate) fn power_off(s: &mut State, world: &World) {
    let for_good = s.time != Time::Before && world.end == End::Terminated;
    s.source.power = if for_good { Power::Gone } else { Power::Off };
    s.source.daemon = Daemon::Off;
    if matches!(s.source.criu, Criu::Dumping | Criu::Holding) {
        s.source.criu = Criu::Ended;
    }
    if matches!(s.source.tasks, Tasks::Held | Tasks::Running) {
        s.source.tasks = Tasks::Dead;
        s.source.memory.lose();
    }
    s.session = Session::Down;
}

fn start(s: &mut State) {
    s.source.memory.start();
    s.source.tasks = Tasks::Running;
}

fn power_on(next: &mut Next<'_>) {
    // Between deadline and fence a cloud that takes hosts away does not start one.
    let may = match (next.world.end, next.state.time) {
        (End::Stays, _) | (_, Time::Before) | (End::Stopped, Time::Past) => true,
        (End::Terminated | End::Stopped, _) => false,
    };
    if may {
        next.step("the source has power again", |s| s.source.power = Power::On);
    }
}

fn daemon(next: &mut Next<'_>) {
    let state = next.state;
    let (source, said) = (state.source, state.said);
    match source.daemon {
        Daemon::Off => next.step("the source's daemon comes back", |s| {
            let ended = s.source.record.phase == Phase::Cleaned;
            s.source.daemon = if ended { Daemon::Done } else { Daemon::Abort { died: true } };
        }),
        Daemon::Work => work(next),
        Daemon::Commit => next.step("the source decides COMMIT", |s| {
            s.source.daemon = match s.source.record.decide(Verdict::Commit, true) {
                Ok(Verdict::Commit) => Daemon::Tell,
                Ok(Verdict::Abort) => Daemon::Abort { died: false },
                Err(_) => Daemon::Abort { died: false },
            }
        }),
        Daemon::Abort { died } => abort(next, died),
        Daemon::Tell => {
            if source.record.verdict == Some(Verdict::Abort) {
                next.step("the source finds that it was decided otherwise", |s| {
                    s.source.daemon = Daemon::Undo { died: true }
                });
            } else if matches!(source.record.phase, Phase::Running | Phase::Cleaned) {
                next.step("the source finds that the target runs", |s| s.source.daemon = Daemon::LetGo);
            } else {
                next.step("the source says COMMIT", |s| s.said.say(Said::COMMIT));
                if said.has(Said::RUNNING) {
                    next.step("the source hears that the target runs", |s| {
                        if s.source.record.enter(Phase::Running).is_ok() {
                            s.source.daemon = Daemon::LetGo;
                        }
                    });
                }
                if said.has(Said::GONE) {
                    next.step("the source is given the container back", |s| {
                        s.source.daemon = match s.source.record.adopt(Verdict::Abort) {
                            Ok(Verdict::Abort) => Daemon::Undo { died: true },
                            Ok(Verdict::Commit) => Daemon::LetGo,
                            Err(_) => return,
                        }
                    });
                }
                if !next.rules.source_waits_for_target {
                    next.step("BROKEN: the source takes the container back", |s| {
                        if s.source.record.adopt(Verdict::Abort).is_ok() {
                            s.source.daemon = Daemon::Undo { died: true };
                        }
                    });
                }
            }
        }
        Daemon::LetGo => match (source.criu, source.tasks) {
            (Criu::Dumping | Criu::Holding, _) => {}
            (_, Tasks::None) => next.step("the source has cleaned up", |s| {
                if s.source.record.enter(Phase::Cleaned).is_ok() {
                    s.source.daemon = Daemon::Done;
                }
            }),
            // Those that run would not be killed, as they are not frozen.
            (_, Tasks::Running) => {}
            (_, Tasks::Held | Tasks::Dead) => {
                next.step("the source kills and removes the container", |s| {
                    if s.source.tasks == Tasks::Held {
                        s.kill_source();
                    }
                    s.source.tasks = Tasks::None;
                });
            }
        },
        Daemon::Undo { died } => undo(next, died),
        Daemon::Done => {}
    }
}

/// `Source::until_restored`.
fn work(next: &mut Next<'_>) {
    let state = next.state;
    let source = state.source;
    if state.session == Session::Down {
        return next
            .step("the source notices that the session broke", |s| s.source.daemon = Daemon::Abort { died: false });
    }
    next.fault("a step fails at the source", |s| {
        s.source.daemon = Daemon::Abort { died: false };
        s.session = Session::Down;
    });
    let phase = source.record.phase;
    if state.session == Session::Answered {
        let after = match phase {
            Phase::Planned => Phase::Reserved,
            Phase::Reserved => Phase::Prepared,
            Phase::Frozen => Phase::Transferred,
            _ => Phase::Restored,
        };
        return next.step("the source hears that a step is done", |s| {
            s.session = Session::Idle;
            s.source.daemon = match s.source.record.enter(after) {
                Ok(()) if after == Phase::Restored => Daemon::Commit,
                Ok(()) => Daemon::Work,
                Err(_) => Daemon::Abort { died: false },
            };
        });
    }
    let ask = |next: &mut Next<'_>| {
        if next.state.session == Session::Idle {
            next.step("the source asks for the next step", |s| s.session = Session::Asked);
        }
    };
    match phase {
        Phase::Planned | Phase::Transferred => ask(next),
        // Every intent is on disk before anything of it is done.
        Phase::Reserved if source.restarts == Restarts::Normal => {
            next.step("the source writes its intents", |s| s.source.restarts = Restarts::Intended);
        }
        Phase::Reserved => ask(next),
        Phase::Prepared | Phase::PreCopy(_) if source.tasks == Tasks::Running => {
            next.step("the source freezes the container", |s| s.source.tasks = Tasks::Held);
            // Two rounds stand for any number.
            let round = if let Phase::PreCopy(round) = phase { round + 1 } else { 1 };
            if round <= 2 {
                next.step("the source sends memory ahead", |s| {
                    if s.source.record.enter(Phase::PreCopy(round)).is_err() {
                        s.source.daemon = Daemon::Abort { died: false };
                    }
                });
            }
        }
        Phase::Prepared | Phase::PreCopy(_) => next.step("the source records that it is frozen", |s| {
            if s.source.record.enter(Phase::Frozen).is_err() {
                s.source.daemon = Daemon::Abort { died: false };
            }
        }),
        Phase::Frozen => match (source.criu, source.restarts) {
            (Criu::NotYet, _) => next.step("CRIU dumps", |s| s.source.criu = Criu::Dumping),
            (_, Restarts::Intended) => next.step("the source holds restarts", |s| s.source.restarts = Restarts::Held),
            (Criu::Holding, _) => ask(next),
            // Killed while it held: nobody notices, and the images are whole.
            (Criu::Ended, _) => ask(next),
            (Criu::Dumping, _) => {}
        },
        _ => {}
    }
}

/// `Ending::try_abort`.
fn abort(next: &mut Next<'_>, died: bool) {
    let state = next.state;
    let after = |verdict| match verdict {
        Verdict::Commit => Daemon::Tell,
        Verdict::Abort => Daemon::Undo { died },
    };
    let (alone, together) = alone(next);
    if alone || state.source.record.verdict.is_some() {
        next.step("the source decides ABORT", |s| {
            if let Ok(verdict) = s.source.record.decide(Verdict::Abort, true) {
                s.source.daemon = after(verdict);
            }
        });
    }
    if together && state.source.record.verdict.is_none() {
        next.step("the source asks the target for ABORT", |s| s.said.say(Said::ABORT));
        for (answer, verdict) in [(Said::RUNNING, Verdict::Commit), (Said::GONE, Verdict::Abort)] {
            if state.said.has(answer) {
                next.step("the source takes over the target's verdict", |s| {
                    if let Ok(verdict) = s.source.record.adopt(verdict) {
                        s.source.daemon = after(verdict);
                    }
                });
            }
        }
    }
}

/// Whether ABORT may be decided alone, and whether the target may have to be asked. Both, when the source's clock may be late: by less than
/// the fence's margin.
fn alone(next: &Next<'_>) -> (bool, bool) {
    let may =
        |time: Time| (next.rules.may_abort_alone)(&next.world.occasion, next.state.source.record.phase, time.now());
    let (right, late) = (may(next.state.time), next.state.time == Time::Margin && may(Time::Before));
    (right || late, !right)
}

/// `Ending::go_on`.
fn undo(next: &mut Next<'_>, died: bool) {
    let source = next.state.source;
    if matches!(source.criu, Criu::Dumping | Criu::Holding) {
        return; // Waited for.
    }
    match (source.tasks, source.restarts) {
        (Tasks::Held, _) => next.step("the source thaws the container", |s| s.source.tasks = Tasks::Running),
        (_, Restarts::Intended | Restarts::Held) => {
            next.step("the source resumes restarts", |s| s.source.restarts = Restarts::Resumed);
        }
        (Tasks::Dead, Restarts::Resumed) if died => {
            next.step("the source starts the container that died", start);
        }
        (_, Restarts::Resumed) => next.step("the source settles its steps", |s| s.source.restarts = Restarts::Normal),
        (_, Restarts::Normal) => next.step("the source has undone everything", |s| {
            if s.source.record.enter(Phase::Cleaned).is_ok() {
                s.source.daemon = Daemon::Done;
            }
        }),
    }
}

/// `migration::resolve`, by a person who knows that the target is gone.
fn resolve(next: &mut Next<'_>) {
    let (source, target) = (next.state.source, next.state.target);
    let open = match (source.record.verdict, source.record.phase) {
        (None, Phase::Transferred | Phase::Restored) => alone(next).1,
        (verdict, phase) => (verdict, phase) == (Some(Verdict::Commit), Phase::Committed),
    };
    if open && target.power == Power::Gone && source.daemon != Daemon::Off {
        next.step("a person says that the container runs at the source", |s| {
            let _ = s.source.record.adopt(Verdict::Abort);
        });
    }
}

/// The dump and its action script, which outlive the daemon.
fn criu(next: &mut Next<'_>) {
    let source = next.state.source;
    match source.criu {
        Criu::NotYet | Criu::Ended => {}
        Criu::Dumping => {
            next.step("CRIU holds the dump", |s| s.source.criu = Criu::Holding);
            next.fault("CRIU is killed in the middle of its dump, and takes the tasks along", |s| {
                s.source.criu = Criu::Ended;
                s.source.tasks = Tasks::Dead;
                s.source.memory.lose();
                if s.source.daemon == Daemon::Work {
                    s.source.daemon = Daemon::Abort { died: true };
                    s.session = Session::Down;
                }
            });
        }
        Criu::Holding => {
            match (next.rules.hold)(source.record.phase, source.record.verdict) {
                Hold::On => {}
                Hold::Kill => next.step("CRIU kills the tasks", |s| {
                    s.kill_source();
                    s.source.criu = Criu::Ended;
                    s.source.tasks = Tasks::Dead;
                }),
                // They stay frozen by the daemon, or not: on a cgroup of version 1 CRIU may be the last to thaw.
                Hold::Release => {
                    next.step("CRIU lets the tasks go, still frozen", |s| s.source.criu = Criu::Ended);
                    next.step("CRIU lets the tasks go on", |s| {
                        s.source.criu = Criu::Ended;
                        s.source.tasks = Tasks::Running;
                    });
                }
            }
            if source.daemon == Daemon::Off {
                alone_for_long(next);
            }
            // The tasks stay: they are frozen by their cgroup.
            next.fault("CRIU is killed while it holds the dump", |s| s.source.criu = Criu::Ended);
        }
    }
}

fn alone_for_long(next: &mut Next<'_>) {
    if !next.rules.hook_writes {
        next.step("BROKEN: the action script gives the container back unasked", |s| {
            s.source.criu = Criu::Ended;
            s.source.tasks = Tasks::Running;
        });
    } else if next.state.source.record.verdict.is_none() && alone(next).0 {
        next.step("the action script decides ABORT", |s| {
            let _ = s.source.record.decide(Verdict::Abort, true);
        });
    }
}

/// The source's answer to the target's question, while a daemon is there to give it.
pub(crate) fn answers(next: &mut Next<'_>) {
    let (source, target) = (next.state.source, next.state.target);
    if source.daemon == Daemon::Off || target.daemon != TargetDaemon::Await {
        return;
    }
    match source.record.verdict {
        Some(Verdict::Commit) => next.step("the source answers COMMIT", |s| s.said.say(Said::VERDICT_COMMIT)),
        Some(Verdict::Abort) => next.step("the source answers ABORT", |s| s.said.say(Said::VERDICT_ABORT)),
        None => {}
    }
}
