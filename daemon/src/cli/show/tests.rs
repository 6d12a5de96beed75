//! What people get to see, word for word.

use spothop_criu::log::Triage;
use spothop_policy::{Candidate, Cost, Facts, Fallback, HostRefusal, Leaves, NextBest, Refusal, Score, Times};

use super::*;
use crate::api::PhaseEntry;
use crate::notice::Notice;

fn at(millis: i64) -> Timestamp {
    Timestamp::from_millisecond(1_767_225_600_000 + millis).unwrap()
}

fn times(total: u64, frozen: u64) -> Times {
    Times { total: Duration::from_millis(total), frozen: Duration::from_millis(frozen) }
}

fn moved() -> MigrationView {
    let phases = [
        (Phase::Planned, 0),
        (Phase::Reserved, 12),
        (Phase::Prepared, 1_212),
        (Phase::Frozen, 1_220),
        (Phase::Transferred, 2_020),
        (Phase::Restored, 2_400),
        (Phase::Committed, 2_410),
        (Phase::Running, 2_500),
        (Phase::Cleaned, 3_500),
    ];
    MigrationView {
        id: "019b76da-a800-7000-8000-000000000001".to_owned(),
        side: Side::Source,
        container_id: "c0ffee".repeat(10),
        container: "redis".to_owned(),
        peer: "b".to_owned(),
        cause: "manual".to_owned(),
        deadline: None,
        phase: Phase::Cleaned,
        outcome: Some(Outcome::Moved),
        reason: None,
        phases: phases.map(|(phase, millis)| PhaseEntry { phase, at: at(millis) }).to_vec(),
        bytes_sent: 1 << 30,
        bytes_on_wire: 300 << 20,
        predicted: Some(times(2_800, 1_100)),
        measured: Some(times(2_500, 1_280)),
        log: None,
    }
}

fn aborted() -> MigrationView {
    let mut view = moved();
    view.id = "019b76da-a800-7000-8000-000000000002".to_owned();
    view.phases.truncate(4);
    view.phases.push(PhaseEntry { phase: Phase::Aborted, at: at(1_900) });
    view.phase = Phase::Aborted;
    view.outcome = Some(Outcome::Aborted);
    view.measured = None;
    view.reason = Some("host b: no space left in its tmpfs".to_owned());
    view
}

fn reachable() -> HostView {
    HostView {
        name: "b".to_owned(),
        address: "10.0.0.2:7077".to_owned(),
        source: "static".to_owned(),
        told: at(0),
        state: HostState::Reachable(Facts {
            architecture: "amd64".to_owned(),
            kernel: "6.18.0".parse().unwrap(),
            criu: Some("4.2.1".parse().unwrap()),
            protocol: spothop_policy::ProtocolRange { min: 1, max: 1 },
            free_memory_bytes: 8 << 30,
            reserved_memory_bytes: 1 << 30,
            free_disk_bytes: 40 << 30,
            networks: vec![],
            images: vec![],
            cpu: CpuVerdict::Compatible,
            ..Facts::default()
        }),
    }
}

fn a_plan() -> Plan {
    Plan {
        moves: vec![Move {
            container: "c0ffee".to_owned(),
            name: "redis".to_owned(),
            priority: 0,
            target: "b".to_owned(),
            candidates: vec![Candidate {
                host: "b".to_owned(),
                mode: Leaves::PreCopy,
                score: Score { cpu_checked: true, image_present: true, free_memory_after_bytes: 6 << 30 },
                cost: Cost::default(),
                reason: "CPU compatible, image present, 6.0 GiB free afterwards".to_owned(),
                predicted: times(3_200, 620),
            }],
            refusals: vec![HostRefusal {
                host: "c".to_owned(),
                refusals: vec![Refusal::Unreachable { reason: "connection refused".to_owned() }],
            }],
            mode: Leaves::PreCopy,
            why_mode: "not post-copy: the last attempt was aborted".to_owned(),
            streams: 4,
            predicted: times(3_200, 620),
            starts_after: Duration::ZERO,
            ends_after: Duration::from_millis(125_000),
            fits_deadline: false,
            next_best: Some(Fallback {
                then: NextBest::Cold,
                target: Some("c".to_owned()),
                takes: Some(Duration::from_secs(2)),
                by: "label io.spothop.fallback".to_owned(),
                instead_of: vec!["park: no parking place is configured".to_owned()],
            }),
        }],
        stays: vec![Stay {
            container: "abc".to_owned(),
            name: "dev".to_owned(),
            priority: 0,
            obstacles: vec!["uses io_uring".to_owned(), "device /dev/kvm".to_owned()],
            refusals: vec![],
            next_best: None,
        }],
        ..Plan::default()
    }
}

#[test]
fn ps_says_for_each_container_whether_it_can_move() {
    let redis = ContainerView {
        id: "c0ffee".repeat(10),
        name: "redis".to_owned(),
        image: "redis:7".to_owned(),
        memory_bytes: 1 << 30,
        priority: 10,
        network: "keep-ip".to_owned(),
        obstacles: vec![],
    };
    let dev = ContainerView {
        name: "dev".to_owned(),
        obstacles: vec!["uses io_uring (pid 7)".to_owned(), "device /dev/kvm".to_owned()],
        ..redis.clone()
    };
    insta::assert_snapshot!(containers(&[redis, dev]), @r"
    NAME   ID            IMAGE     MEMORY  PRIORITY  NETWORK  MIGRATES
    redis  c0ffeec0ffee  redis:7  1.0 GiB        10  keep-ip  yes
    dev    c0ffeec0ffee  redis:7  1.0 GiB        10  keep-ip  no: uses io_uring (pid 7); device /dev/kvm
    ");
    assert_eq!(containers(&[]), "No containers are running.\n");
}

#[test]
fn hosts_shows_room_or_why_not() {
    let mut refusing = reachable();
    if let HostState::Reachable(facts) = &mut refusing.state {
        facts.zone = Some("rack 7".to_owned());
        facts.spot = Some(false);
        facts.declines = Some("runtime not registered".to_owned());
        facts.criu = None;
    }
    let gone = HostView {
        name: "c".to_owned(),
        address: "10.0.0.3:7077".to_owned(),
        source: "etcd".to_owned(),
        told: at(0),
        state: HostState::Unreachable { reason: "connection refused".to_owned() },
    };
    insta::assert_snapshot!(hosts(&[reachable(), refusing, gone], at(95_000)), @r"
    NAME  ADDRESS        SOURCE            STATE                             ARCH   KERNEL  CRIU        ROOM      DISK  CPU         MACHINE
    b     10.0.0.2:7077  static            ready                             amd64  6.18.0  4.2.1    7.0 GiB  40.0 GiB  compatible  -
    b     10.0.0.2:7077  static            declines: runtime not registered  amd64  6.18.0  missing  7.0 GiB  40.0 GiB  compatible  in rack 7, on demand
    c     10.0.0.3:7077  etcd, 1m 35s ago  unreachable: connection refused   -      -       -              -         -  -           -
    ");
}

#[test]
fn a_plan_gives_reasons_for_and_against() {
    insta::assert_snapshot!(plan(&a_plan()), @r"
    1. redis -> b by pre-copy: takes 3.20 s, frozen for 620 ms; done after 2m 05s; AFTER THE DEADLINE
       why pre-copy: not post-copy: the last attempt was aborted
       > instead: cold on c, takes 2.00 s (label io.spothop.fallback)
         not park: no parking place is configured
       * b: CPU compatible, image present, 6.0 GiB free afterwards
       x c: unreachable: connection refused
    dev stays:
       x uses io_uring
       x device /dev/kvm
    ");
    assert_eq!(plan(&Plan::default()), "Nothing to move: no containers are running.\n");
}

#[test]
fn a_migration_ends_with_its_timeline() {
    insta::assert_snapshot!(migration(&moved()), @r"
    redis to b (019b76da-a800-7000-8000-000000000001): moved in 2.50 s (predicted 2.80 s), frozen for 1.28 s (predicted 1.10 s); 1.0 GiB sent, 300.0 MiB on the wire
      PHASE         AFTER  LASTED
      planned        0 ms   12 ms
      reserved      12 ms  1.20 s
      prepared     1.21 s    8 ms
      frozen       1.22 s  800 ms
      transferred  2.02 s  380 ms
      restored     2.40 s   10 ms
      committed    2.41 s   90 ms
      running      2.50 s  1.00 s
      cleaned      3.50 s
    ");
    insta::assert_snapshot!(migration(&aborted()), @r"
    redis to b (019b76da-a800-7000-8000-000000000002): aborted after 1.90 s; the container goes on on this host
      because: host b: no space left in its tmpfs
      PHASE      AFTER  LASTED
      planned     0 ms   12 ms
      reserved   12 ms  1.20 s
      prepared  1.21 s    8 ms
      frozen    1.22 s  680 ms
      aborted   1.90 s
    ");
}

#[test]
fn a_target_shows_what_it_measured_alone() {
    let view = MigrationView { side: Side::Target, predicted: None, ..moved() };
    let first = |text: String| text.lines().next().map(str::to_owned);
    insta::assert_snapshot!(first(migration(&view)).unwrap(), @"redis from b (019b76da-a800-7000-8000-000000000001): moved in 2.50 s, frozen for 1.28 s; 1.0 GiB sent, 300.0 MiB on the wire");
    let row = history(&[view], &TimeZone::UTC);
    assert!(row.ends_with("moved            2.50 s              1.28 s  1.0 GiB\n"), "{row}");
}

#[test]
fn history_is_one_line_for_each() {
    insta::assert_snapshot!(history(&[aborted(), moved()], &TimeZone::UTC), @r"
    STARTED              ID                                    CONTAINER  WAY   CAUSE   STATE                                        TOOK (PREDICTED)  FROZEN (PREDICTED)     SENT
    2026-01-01 00:00:00  019b76da-a800-7000-8000-000000000002  redis      to b  manual  aborted: host b: no space left in its tmpfs        - (2.80 s)          - (1.10 s)  1.0 GiB
    2026-01-01 00:00:00  019b76da-a800-7000-8000-000000000001  redis      to b  manual  moved                                         2.50 s (2.80 s)     1.28 s (1.10 s)  1.0 GiB
    ");
}

#[test]
fn status_shows_the_notice_with_the_time_left() {
    let notice: Notice = serde_json::from_value(serde_json::json!({
        "id": "aws:i-1:terminate", "cloud": "aws", "instance": "i-1", "action": "terminate",
        "deadline": at(120_000), "received": at(0),
    }))
    .unwrap();
    let running = MigrationView { outcome: None, phase: Phase::Frozen, measured: None, ..moved() };
    let view = Status {
        host: "a".to_owned(),
        version: "0.1.0".to_owned(),
        since: at(0),
        machine: MachineView {
            machine_type: Some("c7i.large".to_owned()),
            zone: Some("eu-central-1a".to_owned()),
            spot: Some(true),
            pool: Some("c7i.large/eu-central-1a".to_owned()),
            price_micros: Some(31_200),
            placement_score: Some(7),
        },
        notices: vec![notice],
        migrations: vec![running],
    };
    insta::assert_snapshot!(status(&view, at(15_000), &TimeZone::UTC), @r"
    a: spothop 0.1.0, running since 2026-01-01 00:00:00
    c7i.large in eu-central-1a, spot, $0.0312 an hour, placement score 7
    NOTICE: aws will terminate this host (i-1) at 2026-01-01 00:02:00 (in 1m 45s)

    STARTED              ID                                    CONTAINER  WAY   CAUSE   STATE   TOOK (PREDICTED)  FROZEN (PREDICTED)     SENT
    2026-01-01 00:00:00  019b76da-a800-7000-8000-000000000001  redis      to b  manual  frozen        - (2.80 s)          - (1.10 s)  1.0 GiB
    ");
    let idle = Status { machine: MachineView::default(), notices: vec![], migrations: vec![], ..view };
    insta::assert_snapshot!(status(&idle, at(15_000), &TimeZone::UTC), @r"
    a: spothop 0.1.0, running since 2026-01-01 00:00:00
    no interruption notice
    no migrations under way
    ");
}

/// What `status ID` says below the phases.
fn below_the_phases(reason: &str, log: &str) -> String {
    let mut view = aborted();
    view.reason = Some(reason.to_owned());
    let path = "/var/lib/spothop/logs/m1.dump.log.zst".into();
    view.log = Some(LogSummary { path, triage: Triage::of_text(log) });
    let text = migration(&view);
    let phases = text.find("  aborted ").expect("the last phase");
    text[phases..].split_once('\n').expect("more lines").1.to_owned()
}

#[test]
fn crius_log_is_named_with_what_it_means_unless_that_is_said_already() {
    let taken = "(0.1) 7: Error (criu/sk-inet.c:1): inet: Can't bind inet socket (id 14): Address already in use\n";
    insta::assert_snapshot!(below_the_phases("the restore failed", taken), @r"
    CRIU says: inet: Can't bind inet socket (id 14): Address already in use (a port of the container is taken at the target; free it there or choose another target)
    another target may help
    CRIU's log: /var/lib/spothop/logs/m1.dump.log.zst (spothop status 019b76da-a800-7000-8000-000000000002 --log)
    ");
    let said = below_the_phases("CRIU says: inet: Can't bind inet socket (id 14): Address already in use", taken);
    insta::assert_snapshot!(said, @r"
    another target may help
    CRIU's log: /var/lib/spothop/logs/m1.dump.log.zst (spothop status 019b76da-a800-7000-8000-000000000002 --log)
    ");
    let ours = "(0.1) Error (criu/action-scripts.c:1): Script /hook exited with 1\n";
    insta::assert_snapshot!(below_the_phases("the peer hung up", ours), @"  CRIU's log: /var/lib/spothop/logs/m1.dump.log.zst (spothop status 019b76da-a800-7000-8000-000000000002 --log)");
}

#[test]
fn what_became_of_memory_that_never_came_is_said_of_a_container_that_moved() {
    let why = format!("{MEMORY_LOST} (the source is gone)");
    let lost = MigrationView { reason: Some(why.clone()), ..moved() };
    assert!(migration(&lost).contains(&format!("but {why}")), "{}", migration(&lost));
    assert!(history(&[lost], &TimeZone::UTC).contains(&why));
    // Other reasons are those of a verdict.
    let resolved = MigrationView { reason: Some("resolved by hand".into()), ..moved() };
    assert_eq!(migration(&resolved), migration(&moved()));
}
