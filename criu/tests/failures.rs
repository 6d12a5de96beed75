//! CRIU's failures as they really look: logs of CRIU 4.2.1 under runc 1.3.6 on Linux 6.18, one for each way to fail.
//!
//! The first line of each file says what was done. Kept of a log: its error lines with the two lines before them (a line that comes
//! a hundred times, three times), and CRIU's version.

use std::fs;
use std::path::{Path, PathBuf};

use spothop_criu::log::FailureKind::{self, *};
use spothop_criu::log::{Remedy, Triage};

/// Each log, and what it means.
const LOGS: &[(&str, FailureKind)] = &[
    ("address-missing", AddressMissing),
    ("bad-magic", DamagedImage),
    ("changed-mode", ChangedFile),
    ("changed-size", ChangedFile),
    ("cpu", Cpu),
    ("damaged-image", DamagedImage),
    ("deleted-big", DeletedFile),
    ("deleted-hardlink", DeletedFile),
    ("device", Device),
    ("external-socket", ExternalSocket),
    ("file-lock", FileLock),
    ("ghost-disk-full", Storage),
    ("hugetlb-memfd", KernelObject),
    ("inotify", FileWatch),
    ("io-uring", IoUring),
    ("iptables", NetworkLock),
    ("landlock", KernelObject),
    ("memory", Memory),
    ("missing-directory", MissingFile),
    ("missing-file", MissingFile),
    ("missing-image", DamagedImage),
    ("missing-mount", Mount),
    ("mptcp-unconnected", MultipathTcp),
    ("mqueue", ForeignMount),
    ("nested-pidns", NestedNamespace),
    ("nested-userns", NestedNamespace),
    ("netlink-data", NetlinkData),
    ("newer-images", ImageVersion),
    ("nftables", NetworkLock),
    ("perf-event", KernelObject),
    ("pid-taken", PidTaken),
    ("port-taken", PortTaken),
    ("rlimit", Capability),
    ("script", Script),
    ("seccomp-of-the-caller", CallerSeccomp),
    ("secretmem", KernelObject),
    ("tcp-in-flight", TcpInFlight),
    ("tcp-in-image", TcpMode),
    ("tcp-not-expected", TcpMode),
    ("tmpfs-full", Storage),
    ("tmpfs-full-small", Storage),
    ("tracer", NotStopped),
    ("truncated-image", DamagedImage),
    ("tty-session", Terminal),
    ("tty-slave", Terminal),
    ("unix-unaccepted-closed", UnixInFlight),
    ("unix-unaccepted-data", UnixInFlight),
    ("unreachable", Unreachable),
    ("userfaultfd", Userfaultfd),
    ("vfork", NotStopped),
    ("vsock", Socket),
];

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/logs")
}

#[test]
fn every_real_failure_is_understood() {
    for (name, kind) in LOGS {
        let triage = Triage::of_file(&directory().join(format!("{name}.log")));
        assert_eq!(triage.kind, Some(*kind), "{name}: {triage}");
    }
}

#[test]
fn every_log_is_in_the_table() {
    let files = fs::read_dir(directory()).unwrap().map(|file| file.unwrap().path());
    let mut names: Vec<_> = files.map(|path| path.file_stem().unwrap().to_string_lossy().into_owned()).collect();
    names.sort();
    assert_eq!(names, LOGS.iter().map(|(name, _)| *name).collect::<Vec<_>>());
}

/// What people read, for failures of each remedy.
#[test]
fn the_words_name_the_cause_and_what_to_do() {
    let words = |name: &str| Triage::of_file(&directory().join(format!("{name}.log"))).to_string();
    assert_eq!(
        words("port-taken"),
        "CRIU says: inet: Can't bind inet socket (id 14): Address already in use \
         (a port of the container is taken at the target; free it there or choose another target)"
    );
    assert_eq!(
        words("io-uring"),
        "CRIU says: send_fds failed (-22) \
         (a task uses io_uring, which CRIU cannot move; turn io_uring off in the application)"
    );
    assert_eq!(
        words("script"),
        "CRIU says: Script /t/no.sh exited with -1 (our own action script gave the migration up; the daemon's log says why)"
    );
    assert_eq!(PortTaken.remedy(), Remedy::Elsewhere);
    assert_eq!(UnixInFlight.remedy(), Remedy::Again);
    assert_eq!(IoUring.remedy(), Remedy::Change);
}
