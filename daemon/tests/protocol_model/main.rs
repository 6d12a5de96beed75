//! The commit protocol as a small model, walked through exhaustively: two hosts, each with a journal that survives and a daemon that does
//! not, CRIU's held dump with its action script, the target's held tasks, a network that loses, delays and repeats, any number of crashes
//! and power cuts of either host at any point, and a cloud that takes the source away.
//!
//! The decisions are not the model's: it calls `migration::protocol` and `Phase::may_follow`, which the daemon calls too, and its journal
//! is compared with the real one. What the model says for itself is when they are called, and what is done between: that follows
//! `migration::{source, ending, gate, target, peers}`.
//!
//! Three properties, over all states that can be reached:
//!
//! - **never two**: the container runs on one host at most;
//! - **in the end exactly one**: from every state, if nothing fails any more and every host comes back that can, all that may still happen leads
//!   to an end where exactly one host runs it. A source that the cloud has taken away does not come back; then the target runs what it took;
//! - **its memory is not lost for nothing**: a host starts the container from its files only if it lost its power while the container was
//!   its own, or if CRIU was killed in the middle of a dump; and where memory follows, if the other host lost its power before it had.
//!
//! By a search of our own, and not by a library's, for the second property: it is about the graph of what can happen without further
//! faults, from every state, cycles included.
//!
//! A model that cannot fail proves nothing: other tests break one rule after the other, and the search must find each.

mod journal;
mod search;
mod source;
mod target;
mod world;

use spothop::migration::protocol::{self, Hold, Occasion, Return};
use spothop::migration::{MANUAL, Phase, Verdict};

use self::search::explore;
use self::world::{CLOUD, End, IN_A_WHILE, MANUALLY, Rules, STOP, World, used};

const BY_HAND: World = World { occasion: MANUALLY, end: End::Stays, provider: false, person: false, post_copy: false };
const TERMINATED: World =
    World { occasion: CLOUD, end: End::Terminated, provider: false, person: false, post_copy: false };
const STOPPED: World = World { occasion: STOP, end: End::Stopped, provider: false, person: false, post_copy: false };

const WORLDS: [(&str, World); 11] = [
    ("by hand", BY_HAND),
    ("by hand, with somebody to ask", World { provider: true, ..BY_HAND }),
    ("by hand, with a deadline", World { occasion: IN_A_WHILE, ..BY_HAND }),
    (
        "by hand, from a host that is terminated",
        World { occasion: IN_A_WHILE, end: End::Terminated, provider: true, ..BY_HAND },
    ),
    ("by hand, and a host is lost", World { person: true, ..BY_HAND }),
    (
        "by hand, from a host that is lost",
        World { occasion: IN_A_WHILE, end: End::Terminated, person: true, ..BY_HAND },
    ),
    ("a cloud that terminates", TERMINATED),
    ("a cloud that terminates, and the target is lost", World { person: true, ..TERMINATED }),
    ("a cloud that terminates, with somebody to ask", World { provider: true, ..TERMINATED }),
    ("a cloud that stops, and starts again", STOPPED),
    ("a cloud that stops, with somebody to ask", World { provider: true, ..STOPPED }),
];

/// The phases of the table; the rounds of memory go on as they begin.
const PHASES: [Phase; 12] = [
    Phase::Planned,
    Phase::Reserved,
    Phase::Prepared,
    Phase::PreCopy(1),
    Phase::PreCopy(2),
    Phase::Frozen,
    Phase::Transferred,
    Phase::Restored,
    Phase::Committed,
    Phase::Running,
    Phase::Cleaned,
    Phase::Aborted,
];

#[test]
fn exactly_one_side_runs_whatever_fails() {
    for ((name, world), post_copy) in WORLDS.into_iter().flat_map(|world| [(world, false), (world, true)]) {
        let walk = explore(&World { post_copy, ..world }, &Rules::default());
        let follows = if post_copy { ", and memory follows" } else { "" };
        println!("{name}{follows}: {} states, {} steps", walk.states, walk.steps);
        if let Some(finding) = walk.finding {
            panic!("{name}: {finding}");
        }
    }
    // No journal made a step that the table forbids, or `Record` would have panicked; and there is none that it allows for nothing.
    let used = used();
    for before in PHASES {
        for after in PHASES.into_iter().filter(|after| after.may_follow(before)) {
            let step = (before.to_string(), after.to_string());
            assert!(used.contains(&step), "{before} → {after} is allowed and never happens");
        }
    }
}

/// What the search finds when one rule is broken.
fn finds(world: &World, rules: &Rules) -> &'static str {
    explore(world, rules).finding.map_or("nothing", |finding| finding.what)
}

#[test]
fn a_fence_without_its_margin_is_found() {
    let rules = Rules {
        fences: |occasion, _, now| occasion.cause != MANUAL && occasion.deadline.is_some_and(|deadline| now > deadline),
        ..Rules::default()
    };
    assert_eq!(finds(&TERMINATED, &rules), "two run");
}

#[test]
fn a_fence_against_a_host_that_comes_back_is_found() {
    let rules = Rules {
        fences: |occasion, instance, now| Occasion { cause: CLOUD.cause, ..*occasion }.fences(instance, now),
        ..Rules::default()
    };
    assert_eq!(finds(&STOPPED, &rules), "two run");
}

#[test]
fn a_fence_by_a_deadline_that_somebody_gave_by_hand_is_found() {
    let rules = Rules {
        fences: |occasion, instance, now| CLOUD.fences(instance, now) && occasion.deadline.is_some(),
        ..Rules::default()
    };
    assert_eq!(finds(&World { occasion: IN_A_WHILE, ..BY_HAND }, &rules), "two run");
}

#[test]
fn a_target_that_never_opens_its_fence_is_found() {
    let rules = Rules { fences: |_, _, _| false, ..Rules::default() };
    assert_eq!(finds(&TERMINATED, &rules), "none runs for ever");
}

#[test]
fn an_action_script_that_aborts_without_the_journal_is_found() {
    assert_eq!(finds(&BY_HAND, &Rules { hook_writes: false, ..Rules::default() }), "two run");
}

#[test]
fn an_action_script_that_kills_before_the_target_runs_is_found() {
    let rules = Rules {
        hold: |phase, verdict| {
            if verdict == Some(Verdict::Commit) { Hold::Kill } else { protocol::hold(phase, verdict) }
        },
        ..Rules::default()
    };
    assert_eq!(finds(&BY_HAND, &rules), "its memory is lost for nothing");
}

#[test]
fn an_action_script_that_waits_for_ever_is_found() {
    let rules = Rules { hold: |_, _| Hold::On, ..Rules::default() };
    assert_eq!(finds(&BY_HAND, &rules), "none runs for ever");
}

#[test]
fn a_target_that_runs_without_a_verdict_is_found() {
    assert_eq!(finds(&BY_HAND, &Rules { target_writes: false, ..Rules::default() }), "two run");
}

#[test]
fn a_source_that_takes_the_container_back_unasked_is_found() {
    assert_eq!(finds(&BY_HAND, &Rules { source_waits_for_target: false, ..Rules::default() }), "two run");
}

#[test]
fn a_target_that_says_that_it_runs_while_it_lacks_memory_is_found() {
    let rules = Rules { target_waits_until_whole: false, ..Rules::default() };
    assert_eq!(finds(&World { post_copy: true, ..BY_HAND }, &rules), "its memory is lost for nothing");
    assert_eq!(finds(&BY_HAND, &rules), "nothing", "where nothing follows there is nothing to wait for");
}

#[test]
fn a_target_that_comes_back_and_runs_what_is_not_its_own_is_found() {
    let rules = Rules {
        returns: |phase, verdict, holds| match (phase, verdict) {
            (Phase::Restored, None) if holds => Return::Run,
            _ => protocol::returns(phase, verdict, holds),
        },
        ..Rules::default()
    };
    assert_eq!(finds(&BY_HAND, &rules), "two run");
}

#[test]
fn a_target_that_comes_back_and_gives_up_what_is_its_own_is_found() {
    let rules = Rules {
        returns: |phase, verdict, holds| match protocol::returns(phase, verdict, holds) {
            Return::Start => Return::GiveUp,
            other => other,
        },
        ..Rules::default()
    };
    assert_eq!(finds(&BY_HAND, &rules), "none runs for ever");
}

#[test]
fn a_target_that_comes_back_and_starts_what_it_holds_in_memory_is_found() {
    let rules = Rules {
        returns: |phase, verdict, holds| match protocol::returns(phase, verdict, holds) {
            Return::Run => Return::Start,
            other => other,
        },
        ..Rules::default()
    };
    assert_eq!(finds(&BY_HAND, &rules), "its memory is lost for nothing");
}

#[test]
fn a_commit_that_is_not_on_disk_is_found() {
    let rules =
        Rules { is_on_disk: |phase, side| phase != Phase::Committed && phase.is_acted_upon(side), ..Rules::default() };
    assert_eq!(finds(&BY_HAND, &rules), "two run");
}
