//! One of each, planted below roots of our own.

use std::fs;

use super::*;
use crate::doctor::Verdict as Mark;
use crate::journal::NewMigration;
use crate::migration::Verdict;
use crate::orchestrator::RestartPolicy;

const MIGRATION: &str = "019b76da-a800-7000-8000-000000000001";

struct Host {
    _root: tempfile::TempDir,
    places: Places,
    journal: Journal,
}

fn host() -> Host {
    let root = tempfile::tempdir().unwrap();
    let at = |name: &str| root.path().join(name);
    let places = Places { runtime: at("run"), state: at("state"), netns: at("netns"), proc: at("proc") };
    for directory in ["run/dump", "run/restore", "state/pending", "netns", "proc/self"] {
        fs::create_dir_all(at(directory)).unwrap();
    }
    let journal = Journal::open(&at("state/journal.db")).unwrap();
    Host { _root: root, places, journal }
}

impl Host {
    fn begin(&self, side: Side, at: Timestamp) {
        let new = NewMigration {
            id: MIGRATION.to_owned(),
            side,
            container_id: "c1".to_owned(),
            container: "redis".to_owned(),
            peer: "b".to_owned(),
            cause: "manual".to_owned(),
            deadline: None,
            predicted: None,
        };
        self.journal.begin(&new, at).unwrap();
    }

    fn abort(&self, side: Side, at: Timestamp) {
        self.journal.decide(MIGRATION, side, Verdict::Abort, Some("tried"), at).unwrap();
    }

    fn found(&self, traces: &[Trace]) -> Vec<Check> {
        // The machine on which the tests run may have tables of its own.
        let mut checks = survey(&self.places, traces).unwrap();
        checks.retain(|check| !check.finding.contains("in the host's network"));
        checks
    }

    /// Everything that files can be of a migration.
    fn plant(&self) {
        let Places { runtime, state, netns, proc } = &self.places;
        fs::create_dir_all(runtime.join("dump").join(MIGRATION).join("images")).unwrap();
        fs::create_dir_all(runtime.join("restore").join(MIGRATION).join("work")).unwrap();
        fs::write(state.join("pending").join(MIGRATION), "").unwrap();
        fs::write(netns.join("spothop-000000000001"), "").unwrap();
        let point = runtime.join("dump").join(MIGRATION).join("images");
        let mountinfo = format!(
            "36 35 0:51 / / rw - overlay o rw\n\
             99 36 0:77 / {} rw,nosuid - tmpfs spothop rw,size=64k\n\
             98 36 0:78 / /run/elsewhere rw - tmpfs x rw\n",
            point.display()
        );
        fs::write(proc.join("self/mountinfo"), mountinfo).unwrap();
    }
}

fn half_made() -> Trace {
    Trace { id: "c2".into(), name: "redis".into(), migration: Some(MIGRATION.into()), ..Trace::default() }
}

#[test]
fn a_tidy_host_has_none() {
    let host = host();
    assert_eq!(host.found(&[Trace { name: "web".into(), started: true, ..Trace::default() }]), []);
    fs::remove_dir_all(&host.places.runtime).unwrap();
    assert_eq!(host.found(&[]), [], "nor does one on which nothing has ever run");
}

#[test]
fn one_of_each_of_an_unknown_migration_is_told_with_the_command_that_removes_it() {
    let host = host();
    host.plant();
    let checks = host.found(&[half_made()]);
    let run = host.places.runtime.display();
    let advice: Vec<_> = checks.iter().map(|check| check.advice.clone().unwrap()).collect();
    let pending = host.places.state.join("pending").join(MIGRATION);
    assert_eq!(
        advice,
        [
            format!("umount {run}/dump/{MIGRATION}/images"),
            format!("rm -r {run}/dump/{MIGRATION}"),
            format!("rm -r {run}/restore/{MIGRATION}"),
            format!("when no half-made container of it is left (docker ps -a): rm {}", pending.display()),
            "ip netns delete spothop-000000000001".to_owned(),
            "docker rm --volumes redis".to_owned(),
        ]
    );
    for check in &checks {
        assert!(check.finding.contains("that the journal does not know"), "{}", check.finding);
        assert_eq!(check.verdict, Mark::Warning);
    }
    assert!(checks[1].finding.contains(", since 20"), "{}", checks[1].finding);
}

#[test]
fn what_a_migration_under_way_uses_is_not_left_over() {
    let host = host();
    host.plant();
    host.begin(Side::Target, Timestamp::now());
    assert_eq!(host.found(&[half_made()]), []);
    // Also while it tidies up.
    host.abort(Side::Target, Timestamp::now());
    assert_eq!(host.found(&[half_made()]), []);
}

#[test]
fn what_a_finished_migration_has_left_names_it() {
    let host = host();
    host.plant();
    host.begin(Side::Target, Timestamp::now());
    host.abort(Side::Target, Timestamp::now());
    host.journal.enter(MIGRATION, Side::Target, Phase::Cleaned, Timestamp::now()).unwrap();
    let checks = host.found(&[]);
    assert_eq!(checks.len(), 5);
    let words = format!("of migration {MIGRATION} (redis from b, aborted)");
    assert!(checks.iter().all(|check| check.finding.contains(&words)), "{checks:?}");
}

#[test]
fn a_migration_that_could_not_be_tidied_up_is_the_daemons_to_try_again() {
    let host = host();
    host.plant();
    let past = Timestamp::now() - 2 * TIDY;
    host.begin(Side::Source, past);
    let policy = RestartPolicy { name: "on-failure".into(), maximum_retries: 3 };
    let held = Step::HoldRestarts { container: "c1".into(), policy: policy.clone() };
    host.journal.intend(MIGRATION, Side::Source, &held, past).unwrap();
    host.abort(Side::Source, past);
    let container = |policy| Trace {
        id: "c1".into(),
        name: "redis".into(),
        started: true,
        restart_policy: policy,
        ..Trace::default()
    };
    let checks = host.found(&[container(RestartPolicy { name: "no".into(), maximum_retries: 0 })]);
    let (last, things) = checks.split_last().unwrap();
    assert!(things.iter().all(|check| check.advice.as_ref().unwrap().ends_with("systemctl restart spothop")));
    assert_eq!(things.len(), 5);
    assert!(last.finding.starts_with("container redis has no restart policy any more, and had `on-failure:3`"));
    assert!(last.advice.as_ref().unwrap().starts_with("docker update --restart=on-failure:3 redis; or "));
    // Somebody has put it back.
    assert_eq!(host.found(&[container(policy)]).len(), 5);
}

#[test]
fn a_namespace_with_a_process_in_it_is_a_restored_containers_own() {
    let host = host();
    let named = host.places.netns.join("spothop-000000000001");
    fs::write(&named, "").unwrap();
    fs::write(host.places.netns.join("somebody-elses"), "").unwrap();
    assert_eq!(host.found(&[]).len(), 1);
    fs::create_dir_all(host.places.proc.join("77/ns")).unwrap();
    fs::hard_link(&named, host.places.proc.join("77/ns/net")).unwrap();
    assert_eq!(host.found(&[]), []);
}

#[test]
fn the_file_that_a_later_dump_binds_over_is_told_unless_a_dump_may_be_under_way() {
    let host = host();
    let directory = host.places.runtime.join("restore").join("019b76da-a800-7000-8000-00000000000f");
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("criu.conf"), "").unwrap();
    let checks = host.found(&[]);
    assert!(checks[0].finding.starts_with("the empty ") && checks.len() == 1, "{checks:?}");
    assert_eq!(checks[0].advice, Some(format!("rm -r {}", directory.display())));
    host.begin(Side::Source, Timestamp::now());
    assert_eq!(host.found(&[]), []);
}

#[test]
fn a_journal_that_cannot_be_read_is_told() {
    let host = host();
    let (state, journal) = (host.places.state, host.journal);
    drop(journal);
    fs::write(state.join("journal.db"), "not a database".repeat(100)).unwrap();
    assert!(Known::read(&state).is_err());
}
