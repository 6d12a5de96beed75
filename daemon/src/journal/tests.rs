use spothop_policy::{Counted, Leaves, Sample};

use super::*;
use crate::api::Outcome;
use crate::migration::Task;
use crate::orchestrator::RestartPolicy;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + second).unwrap()
}

fn journal() -> (tempfile::TempDir, Journal) {
    let directory = tempfile::tempdir().unwrap();
    let journal = Journal::open(&directory.path().join("state/journal.db")).unwrap();
    (directory, journal)
}

fn new(side: Side) -> NewMigration {
    NewMigration {
        id: "m1".into(),
        side,
        container_id: "c0ffee".into(),
        container: "redis".into(),
        peer: "b".into(),
        cause: "manual".into(),
        deadline: Some(at(120)),
        predicted: None,
    }
}

fn begin(journal: &Journal, side: Side) {
    journal.begin(&new(side), at(0)).unwrap();
}

fn walk(journal: &Journal, phases: &[Phase]) {
    for (i, &phase) in phases.iter().enumerate() {
        journal.enter("m1", Side::Source, phase, at(i64::try_from(i).unwrap() + 1)).unwrap();
    }
}

const TO_RESTORED: [Phase; 5] = [Phase::Reserved, Phase::Prepared, Phase::Frozen, Phase::Transferred, Phase::Restored];

#[test]
fn the_first_verdict_stands_whoever_asks_and_however_often() {
    let (directory, journal) = journal();
    begin(&journal, Side::Source);
    walk(&journal, &TO_RESTORED);
    let hook = Journal::open(&directory.path().join("state/journal.db")).unwrap();
    assert_eq!(hook.verdict("m1", Side::Source).unwrap(), None);
    let decide = |j: &Journal, wanted| j.decide("m1", Side::Source, wanted, None, at(9)).unwrap();
    assert_eq!(decide(&journal, Verdict::Commit), Verdict::Commit);
    assert_eq!(decide(&hook, Verdict::Abort), Verdict::Commit);
    assert_eq!(decide(&journal, Verdict::Abort), Verdict::Commit);
    assert_eq!(hook.verdict("m1", Side::Source).unwrap(), Some(Verdict::Commit));
    assert_eq!(journal.migration("m1", Side::Source).unwrap().unwrap().phase, Phase::Committed);
}

#[test]
fn what_the_target_never_ran_comes_back_and_what_it_runs_does_not() {
    let (_directory, journal) = journal();
    begin(&journal, Side::Source);
    walk(&journal, &TO_RESTORED);
    journal.decide("m1", Side::Source, Verdict::Commit, None, at(9)).unwrap();
    let back = journal.adopt("m1", Verdict::Abort, Some("lost its power"), at(10)).unwrap();
    assert_eq!(back, Verdict::Abort);
    assert_eq!(journal.adopt("m1", Verdict::Abort, None, at(11)).unwrap(), Verdict::Abort);
    assert_eq!(journal.standing("m1", Side::Source).unwrap().phase, Phase::Aborted);
    assert!(journal.adopt("m1", Verdict::Commit, None, at(12)).is_err());

    let (_directory, journal) = self::journal();
    begin(&journal, Side::Source);
    walk(&journal, &TO_RESTORED);
    journal.decide("m1", Side::Source, Verdict::Commit, None, at(9)).unwrap();
    journal.enter("m1", Side::Source, Phase::Running, at(10)).unwrap();
    assert!(journal.adopt("m1", Verdict::Abort, None, at(11)).is_err());
}

#[test]
fn past_a_clouds_deadline_only_the_target_knows() {
    let (_directory, journal) = journal();
    let new = NewMigration { cause: "aws:i-1:terminate".into(), ..new(Side::Source) };
    journal.begin(&new, at(0)).unwrap();
    walk(&journal, &TO_RESTORED[..4]);
    let late = journal.decide("m1", Side::Source, Verdict::Abort, None, at(120));
    assert!(matches!(late, Err(JournalError::TargetDecides { .. })), "{late:?}");
    assert_eq!(journal.verdict("m1", Side::Source).unwrap(), None);
    // It ran there before we had heard that it was restored.
    assert_eq!(journal.adopt("m1", Verdict::Commit, None, at(121)).unwrap(), Verdict::Commit);
    assert_eq!(journal.standing("m1", Side::Source).unwrap().phase, Phase::Committed);
}

#[test]
fn of_two_racing_deciders_exactly_one_wins() {
    for _ in 0..20 {
        let (directory, journal) = journal();
        begin(&journal, Side::Source);
        walk(&journal, &TO_RESTORED);
        let path = directory.path().join("state/journal.db");
        let barrier = std::sync::Barrier::new(2);
        let race = |wanted| {
            let journal = Journal::open(&path).unwrap();
            barrier.wait();
            journal.decide("m1", Side::Source, wanted, None, at(9)).unwrap()
        };
        let (one, other) = std::thread::scope(|scope| {
            let commit = scope.spawn(|| race(Verdict::Commit));
            let abort = scope.spawn(|| race(Verdict::Abort));
            (commit.join().unwrap(), abort.join().unwrap())
        });
        assert_eq!(one, other);
        assert_eq!(journal.verdict("m1", Side::Source).unwrap(), Some(one));
    }
}

#[test]
fn commit_is_refused_before_the_target_has_restored() {
    let (_directory, journal) = journal();
    begin(&journal, Side::Source);
    walk(&journal, &TO_RESTORED[..4]);
    let refused = journal.decide("m1", Side::Source, Verdict::Commit, None, at(9));
    assert!(matches!(refused, Err(JournalError::IllegalOrder { before: Phase::Transferred, .. })));
    assert_eq!(journal.verdict("m1", Side::Source).unwrap(), None);
}

#[test]
fn phases_keep_their_order_and_their_times() {
    let (_directory, journal) = journal();
    begin(&journal, Side::Source);
    let again = journal.begin(&new(Side::Source), at(1));
    assert!(matches!(again, Err(JournalError::Known { .. })), "{again:?}");
    let skipped = journal.enter("m1", Side::Source, Phase::Frozen, at(1));
    assert!(matches!(skipped, Err(JournalError::IllegalOrder { .. })));
    let by_hand = journal.enter("m1", Side::Source, Phase::Aborted, at(1));
    assert!(matches!(by_hand, Err(JournalError::IllegalOrder { .. })));
    walk(&journal, &TO_RESTORED[..3]);
    journal.decide("m1", Side::Source, Verdict::Abort, Some("target lost"), at(7)).unwrap();
    journal.enter("m1", Side::Source, Phase::Cleaned, at(8)).unwrap();
    let view = journal.migration("m1", Side::Source).unwrap().unwrap();
    assert_eq!(view.outcome, Some(Outcome::Aborted));
    assert_eq!(view.reason.as_deref(), Some("target lost"));
    assert_eq!(view.deadline, Some(at(120)));
    let seen: Vec<_> = view.phases.iter().map(|entry| (entry.phase, entry.at)).collect();
    let expected = [
        (Phase::Planned, at(0)),
        (Phase::Reserved, at(1)),
        (Phase::Prepared, at(2)),
        (Phase::Frozen, at(3)),
        (Phase::Aborted, at(7)),
        (Phase::Cleaned, at(8)),
    ];
    assert_eq!(seen, expected);
    assert!(journal.unfinished().unwrap().is_empty());
}

#[test]
fn both_sides_of_a_migration_to_oneself_are_kept_apart() {
    let (_directory, journal) = journal();
    begin(&journal, Side::Source);
    begin(&journal, Side::Target);
    journal.decide("m1", Side::Target, Verdict::Abort, None, at(1)).unwrap();
    assert_eq!(journal.verdict("m1", Side::Source).unwrap(), None);
    assert_eq!(journal.history(10).unwrap().len(), 2);
}

#[test]
fn unsettled_steps_come_back_latest_first() {
    let (_directory, journal) = journal();
    begin(&journal, Side::Source);
    let policy = RestartPolicy { name: "always".into(), maximum_retries: 0 };
    let steps =
        [Step::HoldRestarts { container: "c0ffee".into(), policy }, Step::Freeze { task: Task { pid: 7, started: 1 } }];
    let ids: Vec<_> = steps.iter().map(|step| journal.intend("m1", Side::Source, step, at(1)).unwrap()).collect();
    assert_eq!(
        journal.unsettled("m1", Side::Source).unwrap(),
        [(ids[1], steps[1].clone()), (ids[0], steps[0].clone())]
    );
    journal.settled(ids[1], at(2)).unwrap();
    assert_eq!(journal.unsettled("m1", Side::Source).unwrap(), [(ids[0], steps[0].clone())]);
}

#[test]
fn an_unknown_migration_and_a_newer_schema_are_named() {
    let (directory, journal) = journal();
    let unknown = journal.enter("nope", Side::Target, Phase::Reserved, at(0)).unwrap_err();
    assert_eq!(unknown.to_string(), "the journal knows no migration nope with this host as target");
    let path = directory.path().join("state/journal.db");
    drop(journal);
    Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
    assert!(matches!(Journal::open(&path), Err(JournalError::TooNew { found: 99, .. })));
}

#[test]
fn a_volume_is_departed_until_it_arrives_again() {
    let (_directory, journal) = journal();
    begin(&journal, Side::Source);
    let old = |directory: &str| OldCopy { name: "data".into(), directory: directory.into() };
    journal.volumes_departed("m1", &[old("1:2:3")]).unwrap();
    journal.volumes_departed("m1", &[old("1:4:5")]).unwrap();
    assert_eq!(journal.departed_volumes().unwrap(), [old("1:4:5")]);
    journal.volumes_arrived(&["data".into()]).unwrap();
    assert_eq!(journal.departed_volumes().unwrap(), []);
}

#[test]
fn the_journal_is_roots_alone() {
    use std::os::unix::fs::PermissionsExt;
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    let scratch = tempfile::tempdir().unwrap();
    let directory = scratch.path().join("state");
    for side in [Side::Source, Side::Target] {
        let journal = Journal::open(&directory.join("journal.db")).unwrap();
        begin(&journal, side);
        assert_eq!(mode(&directory), 0o700);
        let mut files = 0;
        for entry in std::fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            assert_eq!(mode(&path), 0o600, "{path:?}");
            files += 1;
        }
        assert_eq!(files, 4, "the database, its log, the log's index, and the ballast");
        drop(journal);
        // One that a former version has left readable is closed.
        std::fs::set_permissions(directory.join("journal.db"), std::fs::Permissions::from_mode(0o644)).unwrap();
    }
}

#[test]
fn a_step_that_cannot_be_read_is_not_shown() {
    let (directory, journal) = journal();
    begin(&journal, Side::Target);
    let file = rusqlite::Connection::open(directory.path().join("state/journal.db")).unwrap();
    let step = r#"{"step":"of-another-version","environment":["PASSWORD=hunter2"]}"#;
    let row = "INSERT INTO step (migration, side, step, intended_at) VALUES ('m1', 'target', ?1, '')";
    file.execute(row, [step]).unwrap();
    let error = journal.unsettled("m1", Side::Target).unwrap_err();
    assert!(matches!(error, JournalError::Unreadable { field: "step", .. }));
    let shown = format!("{error} {error:?}");
    assert!(!shown.contains("hunter2"), "{shown}");
}

fn predicted(total: u64, frozen: u64) -> Option<Times> {
    Some(Times { total: Duration::from_millis(total), frozen: Duration::from_millis(frozen) })
}

fn counted(memory_bytes: u64) -> Counted {
    Counted { memory_bytes, ..Counted::default() }
}

/// A migration of `redis` to `peer` that took 30 s until the freeze and 2 s from there on, or has not got there.
fn run(journal: &Journal, id: &str, peer: &str, to: Phase) {
    let new = NewMigration { id: id.into(), peer: peer.into(), predicted: predicted(1_500, 400), ..new(Side::Source) };
    journal.begin(&new, at(0)).unwrap();
    for (second, phase) in [(1, Phase::Reserved), (2, Phase::Prepared), (30, Phase::Frozen), (31, Phase::Transferred)] {
        journal.enter(id, Side::Source, phase, at(second)).unwrap();
    }
    journal.count(id, peer, &counted(7)).unwrap();
    journal.enter(id, Side::Source, Phase::Restored, at(31)).unwrap();
    if to == Phase::Aborted {
        journal.decide(id, Side::Source, Verdict::Abort, None, at(32)).unwrap();
        return;
    }
    journal.decide(id, Side::Source, Verdict::Commit, None, at(31)).unwrap();
    if to == Phase::Running {
        journal.enter(id, Side::Source, Phase::Running, at(32)).unwrap();
    }
}

#[test]
fn what_was_predicted_and_what_was_measured_outlive_the_daemon() {
    let (directory, journal) = journal();
    run(&journal, "m1", "b", Phase::Running);
    drop(journal);
    let journal = Journal::open(&directory.path().join("state/journal.db")).unwrap();
    let view = journal.record("m1", Side::Source).unwrap();
    assert_eq!((view.predicted, view.measured), (predicted(1_500, 400), predicted(32_000, 2_000)));
    let sample = Sample {
        peer: "b".into(),
        container: "redis".into(),
        counted: counted(7),
        until_frozen: Duration::from_secs(30),
        frozen_for: Duration::from_secs(2),
    };
    assert_eq!(journal.samples(9).unwrap(), [sample]);
    journal.count("m1", "b", &counted(8)).unwrap();
    let again: Vec<_> = journal.samples(9).unwrap().iter().map(|sample| sample.counted.memory_bytes).collect();
    assert_eq!(again, [8], "one for each migration");
}

#[test]
fn only_what_has_moved_is_a_measurement_and_only_the_newest_to_each_host_are_read() {
    let (directory, journal) = journal();
    for (n, peer) in ["b", "c", "b", "b", "c"].into_iter().enumerate() {
        let id = format!("m{n}");
        run(&journal, &id, peer, Phase::Running);
        journal.count(&id, peer, &counted(n as u64)).unwrap();
    }
    let read = |journal: &Journal, each| -> Vec<(String, u64)> {
        let samples = journal.samples(each).unwrap();
        samples.into_iter().map(|sample| (sample.peer, sample.counted.memory_bytes)).collect()
    };
    let to = |peer: &str, n| (peer.to_owned(), n);
    assert_eq!(read(&journal, 2), [to("c", 4), to("b", 3), to("b", 2), to("c", 1)]);
    assert_eq!(read(&journal, 9).len(), 5);
    for peer in ["b", "c", "d"] {
        run(&journal, &format!("aborted {peer}"), peer, Phase::Aborted);
        run(&journal, &format!("under way {peer}"), peer, Phase::Committed);
    }
    assert_eq!(read(&journal, 1), [to("c", 4), to("b", 3)]);
    let file = Connection::open(directory.path().join("state/journal.db")).unwrap();
    file.execute("UPDATE measurement SET counted = '{\"of\":\"another version\"}' WHERE peer = 'c'", []).unwrap();
    assert_eq!(read(&journal, 9), [to("b", 3), to("b", 2), to("b", 0)]);
}

/// The journal of host `a` as version 0.1.0 left it on a testbed: a container that went to `b` and came back, went again under a
/// deadline, was kept there by a failure, and was on its way back when the daemon was stopped.
const VERSION_1: &[u8] = include_bytes!("testdata/version-1.db");

/// Every row of the tables of version 1.
fn rows(path: &Path) -> Vec<String> {
    const SQL: &str = "
        SELECT json_array(id, side, container_id, container, peer, cause, deadline, phase, verdict, reason, bytes_sent, bytes_on_wire)
            FROM migration
        UNION ALL SELECT json_array(migration, side, phase, at) FROM phase_entry
        UNION ALL SELECT json_array(migration, side, step, intended_at, settled_at) FROM step
        UNION ALL SELECT json_array(name, directory, migration) FROM departed_volume";
    let file = Connection::open(path).unwrap();
    let mut statement = file.prepare(SQL).unwrap();
    statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
}

fn version(path: &Path) -> i64 {
    Connection::open(path).unwrap().pragma_query_value(None, "user_version", |row| row.get(0)).unwrap()
}

#[test]
fn a_journal_of_version_1_is_taken_over_with_all_that_is_in_it() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("journal.db");
    std::fs::write(&path, VERSION_1).unwrap();
    let before = rows(&path);
    assert_eq!((version(&path), before.len()), (1, 5 + 22 + 40 + 1));

    let journal = Journal::open(&path).unwrap();

    assert_eq!((version(&path), rows(&path)), (2, before));
    let history = journal.history(10).unwrap();
    let outcomes: Vec<_> = history.iter().map(|view| (view.side, view.outcome)).collect();
    let (source, target) = (Side::Source, Side::Target);
    let (moved, aborted) = (Some(Outcome::Moved), Some(Outcome::Aborted));
    let expected = [(target, None), (target, aborted), (source, moved), (target, moved), (source, moved)];
    assert_eq!(outcomes, expected);
    assert!(history.iter().all(|view| view.predicted.is_none()));
    let measured: Vec<_> = history.iter().map(|view| view.measured.map(|times| times.frozen.as_millis())).collect();
    assert_eq!(measured, [None, None, Some(671), Some(639), Some(506)]);
    assert_eq!(journal.unfinished().unwrap().len(), 1);
    assert!(!journal.unsettled(&history[0].id, target).unwrap().is_empty());
    assert_eq!(journal.samples(9).unwrap(), []);

    // And goes on: also as one that was upgraded before.
    drop(journal);
    let journal = Journal::open(&path).unwrap();
    run(&journal, "m1", "b", Phase::Running);
    assert_eq!(journal.samples(9).unwrap().len(), 1);
    assert_eq!(journal.record("m1", source).unwrap().predicted, predicted(1_500, 400));
}

#[test]
fn a_remark_is_on_one_sides_record_and_decides_nothing() {
    let (_directory, journal) = journal();
    begin(&journal, Side::Source);
    begin(&journal, Side::Target);
    journal.remark("m1", Side::Target, "its memory was lost").unwrap();
    let reason = |side| journal.record("m1", side).unwrap().reason;
    assert_eq!((reason(Side::Target).as_deref(), reason(Side::Source)), (Some("its memory was lost"), None));
    assert_eq!(journal.verdict("m1", Side::Target).unwrap(), None);
}

#[test]
fn what_somebody_acts_upon_is_on_disk_and_the_rest_goes_there_with_it() {
    let (_directory, journal) = journal();
    // 1 is NORMAL, 2 is FULL.
    let synchronous = || -> i64 { journal.lock().pragma_query_value(None, "synchronous", |row| row.get(0)).unwrap() };
    begin(&journal, Side::Source);
    assert_eq!(synchronous(), 2);
    for phase in TO_RESTORED {
        walk(&journal, &[phase]);
        assert_eq!(synchronous() == 2, phase.is_acted_upon(Side::Source), "{phase}");
    }
    journal.count_bytes("m1", Side::Source, 5, 3).unwrap();
    assert_eq!(synchronous(), 1);
    journal.decide("m1", Side::Source, Verdict::Commit, None, at(9)).unwrap();
    assert_eq!(synchronous(), 2);
}

#[test]
fn what_was_aborted_while_its_memory_was_to_follow_is_known_by_its_container() {
    let (_directory, journal) = journal();
    let failed = |journal: &Journal| journal.aborted_while_following().unwrap().into_keys().collect::<Vec<_>>();
    let follows = Counted { leaves: Leaves::PostCopy, ..counted(7) };
    run(&journal, "m1", "b", Phase::Running);
    journal.count("m1", "b", &follows).unwrap();
    run(&journal, "m2", "b", Phase::Aborted);
    assert!(failed(&journal).is_empty(), "one moved, and of the other all was sent");
    journal.count("m2", "b", &follows).unwrap();
    assert_eq!(failed(&journal), [new(Side::Source).container_id]);
}
