//! The target: `migration::{target, peers}`.

use spothop::migration::protocol::{Instance, Return};
use spothop::migration::{Phase, Side, Verdict};

use super::world::{Next, Power, Record, Said, Session, SourceDaemon, State, TargetDaemon as Daemon, Tasks};

/// Everything that may happen here.
pub(crate) fn steps(next: &mut Next<'_>) {
    let target = next.state.target;
    if next.world.person && target.power != Power::Gone {
        next.fault("the target is lost for good", |s| {
            power_off(s);
            s.target.power = Power::Gone;
        });
    }
    if target.power == Power::Gone {
        return;
    }
    if target.power == Power::Off {
        return next.step("the target has power again", |s| {
            s.target.power = Power::On;
            if s.target.restarts && s.target.tasks == Tasks::Dead {
                start(s);
            }
        });
    }
    daemon(next);
    if target.daemon != Daemon::Off {
        confirm(next);
        next.fault("the target's daemon dies", |s| {
            s.target.daemon = Daemon::Off;
            s.session = Session::Down;
        });
    }
    if target.tasks == Tasks::Held {
        next.fault("the restore that is held is killed", |s| {
            s.target.tasks = Tasks::Dead;
            if s.target.daemon == Daemon::Serve {
                s.target.daemon = Daemon::Undo;
                s.session = Session::Down;
            }
        });
    }
    let rules = next.rules;
    next.fault("the target loses its power", power_off);
    next.fault("the target loses its power, and what was not on disk", |s| {
        power_off(s);
        if let Some(record) = &mut s.target.record {
            record.forget_unwritten(Side::Target, rules);
        }
    });
}

/// What is in memory goes.
fn power_off(s: &mut State) {
    s.target.power = Power::Off;
    s.target.daemon = Daemon::Off;
    s.target.images = false;
    s.target.lacks = false;
    s.target.memory.lose();
    if matches!(s.target.tasks, Tasks::Held | Tasks::Running) {
        s.target.tasks = Tasks::Dead;
    }
    s.session = Session::Down;
}

fn start(s: &mut State) {
    s.target.memory.start();
    s.target.tasks = Tasks::Running;
}

fn daemon(next: &mut Next<'_>) {
    let state = next.state;
    let target = state.target;
    match (target.daemon, target.record) {
        (Daemon::Off, None) => next.step("the target's daemon comes back", |s| s.target.daemon = Daemon::Done),
        (Daemon::Off, Some(record)) => {
            let must = (next.rules.returns)(record.phase, record.verdict, target.images);
            next.step("the target's daemon comes back", |s| {
                s.target.daemon = match must {
                    _ if record.phase == Phase::Cleaned => Daemon::Done,
                    Return::GiveUp => Daemon::Undo,
                    Return::Wait => Daemon::Await,
                    Return::Run => Daemon::Run,
                    Return::Start => Daemon::Start,
                    Return::CleanUp => Daemon::TidyUp,
                };
            });
        }
        (Daemon::Serve, record) => serve(next, record),
        (Daemon::Await, Some(record)) => wait(next, record),
        (Daemon::Run, Some(record)) => match target.tasks {
            Tasks::Held => next.step("the target lets the tasks run", |s| s.target.tasks = Tasks::Running),
            Tasks::Dead if target.images => {
                next.step("the target restores once more, and lets the tasks run", |s| s.target.tasks = Tasks::Running);
            }
            _ => it_runs(next, record),
        },
        (Daemon::Start, Some(record)) => match target.tasks {
            Tasks::Running => it_runs(next, record),
            _ => next.step("the target starts the container from its files", start),
        },
        (Daemon::TidyUp, Some(_)) => tidy_up(next),
        (Daemon::Undo, Some(record)) => undo(next, record),
        (Daemon::Undo, None) => next.step("the target has nothing to undo", |s| s.target.daemon = Daemon::Done),
        (Daemon::Done, _) => {}
        (daemon, None) => unreachable!("{daemon:?} without a record"),
    }
}

fn record(s: &mut State) -> &mut Record {
    s.target.record.as_mut().expect("the target has a record")
}

/// `Target::until_restored`.
fn serve(next: &mut Next<'_>, known: Option<Record>) {
    let (state, post_copy) = (next.state, next.world.post_copy);
    let fail = |s: &mut State| {
        s.target.daemon = Daemon::Undo;
        s.session = Session::Down;
    };
    let enter = |s: &mut State, phase: Phase| match record(s).enter(phase) {
        Ok(()) => true,
        Err(_) => {
            fail(s);
            false
        }
    };
    let Some(known) = known else {
        match state.session {
            Session::Asked => {
                next.step("the target hears of the migration", |s| s.target.record = Some(Record::PLANNED))
            }
            Session::Down => next.step("the target hears no more of it", |s| s.target.daemon = Daemon::Done),
            _ => {}
        }
        return;
    };
    if state.target.tasks == Tasks::Held {
        // The session is not listened to while the runtime restores.
        return next.step("the target records that it is restored", |s| {
            if enter(s, Phase::Restored) {
                s.target.daemon = Daemon::Await;
                if s.session == Session::Asked {
                    s.session = Session::Answered;
                }
            }
        });
    }
    next.fault("a step fails at the target", fail);
    match (state.session, known.phase) {
        (Session::Down, _) => next.step("the target notices that the session broke", fail),
        (Session::Asked, Phase::Planned) => next.step("the target reserves room", |s| {
            if enter(s, Phase::Reserved) {
                s.session = Session::Answered;
            }
        }),
        (Session::Asked, Phase::Reserved) => next.step("the target makes the container", |s| {
            s.target.images = true;
            if enter(s, Phase::Prepared) {
                s.session = Session::Answered;
            }
        }),
        (Session::Asked, Phase::Prepared) => next.step("the target takes the last files", |s| {
            enter(s, Phase::Frozen);
        }),
        (Session::Asked, Phase::Frozen) => next.step("the target takes the images", |s| {
            if enter(s, Phase::Transferred) {
                s.target.lacks = post_copy;
                s.session = Session::Answered;
            }
        }),
        (Session::Asked, Phase::Transferred) => next.step("the target restores", |s| s.target.tasks = Tasks::Held),
        (Session::Asked, _) => next.step("the target finds that it was decided otherwise", fail),
        _ => {}
    }
}

/// `Target::await_verdict`.
fn wait(next: &mut Next<'_>, known: Record) {
    let state = next.state;
    let decide = |s: &mut State, wanted: Verdict| {
        s.target.daemon = match record(s).decide(wanted, true) {
            Ok(Verdict::Commit) => Daemon::Run,
            Ok(Verdict::Abort) => Daemon::Undo,
            Err(_) => Daemon::Await,
        };
    };
    if !next.rules.target_writes {
        next.step("BROKEN: the target runs without a verdict", |s| s.target.tasks = Tasks::Running);
    }
    if state.session != Session::Down {
        if state.said.has(Said::COMMIT) {
            next.step("the target hears COMMIT in the session, and takes the container", |s| {
                decide(s, Verdict::Commit)
            });
        }
        return;
    }
    super::source::answers(next);
    if next.world.person && state.source.power == Power::Gone && known.phase == Phase::Restored {
        next.step("a person says that the container runs at the target", |s| {
            let _ = record(s).decide(Verdict::Commit, true);
        });
    }
    if let Some(verdict) = known.verdict {
        return next.step("the target finds a verdict in its own journal", |s| decide(s, verdict));
    }
    if state.said.has(Said::VERDICT_COMMIT) {
        next.step("the target hears COMMIT, and takes the container", |s| decide(s, Verdict::Commit));
    }
    if state.said.has(Said::VERDICT_ABORT) {
        next.step("the target hears ABORT", |s| decide(s, Verdict::Abort));
    }
    for instance in told(next) {
        if (next.rules.fences)(&next.world.occasion, instance, state.time.now()) {
            next.step("the target opens the fence, and takes the container", |s| decide(s, Verdict::Commit));
        }
    }
}

fn it_runs(next: &mut Next<'_>, _: Record) {
    next.step("the target records that it runs", |s| {
        if record(s).enter(Phase::Running).is_ok() {
            s.target.daemon = Daemon::TidyUp;
        }
    });
}

/// `Target::become_whole`, and `Filling`: the source's frozen tasks have what is missing, or nobody has.
fn become_whole(next: &mut Next<'_>) {
    let (state, world) = (next.state, next.world);
    if state.source.power == Power::On && state.source.daemon == SourceDaemon::Tell {
        match state.source.tasks {
            Tasks::Held => next.step("the rest of the memory follows", |s| s.target.lacks = false),
            _ => next.step("the source says that its memory is lost", lose),
        }
    }
    for instance in told(next) {
        if (next.rules.fences)(&world.occasion, instance, state.time.now()) && state.source.power != Power::On {
            next.step("the target gives up what its source has taken along", lose);
        }
    }
    if world.person && state.source.power == Power::Gone {
        next.step("a person says that the source does not come back", lose);
    }
}

/// The guard kills tasks that lack what will never come.
fn lose(s: &mut State) {
    s.target.lacks = false;
    s.target.memory.lose();
    s.target.tasks = Tasks::Dead;
}

/// What the target may hear of the source's instance. The provider may always fail to answer.
fn told(next: &Next<'_>) -> Vec<Instance> {
    let told = match (next.world.provider, next.state.source.power) {
        (false, _) => None,
        (true, Power::On) => Some(Instance::MayRun),
        (true, Power::Off) => Some(Instance::Stopped),
        (true, Power::Gone) => Some(Instance::Gone),
    };
    told.into_iter().chain([Instance::Unknown]).collect()
}

fn tidy_up(next: &mut Next<'_>) {
    let target = next.state.target;
    if target.lacks {
        return become_whole(next);
    }
    if !target.restarts {
        next.step("the target resumes restarts", |s| s.target.restarts = true);
    } else if target.tasks == Tasks::Dead {
        next.step("the target starts the container after a power cut, or when its memory was lost", start);
    } else {
        next.step("the target has cleaned up", |s| {
            s.target.images = false;
            if record(s).enter(Phase::Cleaned).is_ok() {
                s.target.daemon = Daemon::Done;
            }
        });
    }
}

/// `Target::give_up`, and `undo`.
fn undo(next: &mut Next<'_>, known: Record) {
    match (next.state.target.tasks, known.verdict) {
        (Tasks::Held, _) => next.step("the target kills what it held", |s| s.target.tasks = Tasks::Dead),
        (_, None) => next.step("the target decides ABORT", |s| {
            let _ = record(s).decide(Verdict::Abort, true);
        }),
        (_, Some(_)) => next.step("the target has undone everything", |s| {
            s.target.tasks = Tasks::None;
            s.target.images = false;
            s.target.lacks = false;
            if record(s).enter(Phase::Cleaned).is_ok() {
                s.target.daemon = Daemon::Done;
            }
        }),
    }
}

/// `peers::confirm`: a verdict told in a session of its own.
fn confirm(next: &mut Next<'_>) {
    let (Some(known), said) = (next.state.target.record, next.state.said) else { return };
    if said.has(Said::ABORT) && known.verdict.is_none() {
        next.step("the target hears that the source wants ABORT, and decides so", |s| {
            let _ = record(s).decide(Verdict::Abort, true);
        });
    }
    if said.has(Said::ABORT) || said.has(Said::COMMIT) {
        let ended = known.phase == Phase::Cleaned;
        match known.verdict {
            // Where it lacks memory, that follows first.
            Some(Verdict::Commit) if next.state.target.lacks && next.rules.target_waits_until_whole => {}
            Some(Verdict::Commit) if ended || known.phase == Phase::Running => {
                next.step("the target says that it runs", |s| s.said.say(Said::RUNNING));
            }
            Some(Verdict::Abort) => next.step("the target says that it gave up", |s| s.said.say(Said::GONE)),
            _ => {}
        }
    }
}
