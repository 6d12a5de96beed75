//! What a CRIU log means: the first real error, its likely cause, and what to do.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use serde::{Deserialize, Serialize};

/// How much of a log is read, from its end, where the errors of a failed run stand. Through runc CRIU logs everything:
/// hundreds of KiB for a few tasks, tens of MiB for many.
const LIMIT: u64 = 4 << 20;

/// What was found in a log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Triage {
    /// The first error line that is not mere noise, without its time stamp and source position.
    pub error: Option<String>,
    /// What that error usually means, and what to do about it.
    pub advice: Option<String>,
}

/// Error lines that say nothing about the outcome, because CRIU goes on after them, or because they only pass an earlier error on.
const NOISE: &[&str] = &[
    "Can't setup RLIMIT_NOFILE",
    "Dumping FAILED",
    "Restoring FAILED",
    "One of more action scripts failed",
    "Can't set RLIMIT_NOFILE",
    "RPC client reported script error",
];

/// A piece of an error line, and what it means. The first that fits is taken.
const ADVICE: &[(&str, &str)] = &[
    (
        "suspending seccomp failed",
        "the daemon runs under a seccomp filter of its own; use spothop.service as it is shipped, without SystemCallFilter, RestrictRealtime, LockPersonality and the like",
    ),
    ("io_uring", "a task uses io_uring, which CRIU cannot move; turn io_uring off in the application"),
    ("multipathtcp", "a Go program listens with multipath TCP, which CRIU cannot move; set GODEBUG=multipathtcp=0"),
    (
        "Unsupported proto 262",
        "a task uses multipath TCP, which CRIU cannot move; for Go programs set GODEBUG=multipathtcp=0",
    ),
    ("Connected TCP socket", "established connections were not expected; dump and restore must use the same TCP mode"),
    ("In-flight connection", "a connection was being opened at the freeze; try again"),
    (
        "Can't dump file",
        "a task has a file open that CRIU cannot move (a device, or an unusual kernel object); close it or do not migrate this container",
    ),
    (
        "Can't lookup mount",
        "a file is open in a mount that the container does not see; restart the container after changing its mounts",
    ),
    ("Can't get rlimit", "CRIU may not read the task's limits: it needs CAP_SYS_RESOURCE on this host"),
    ("Network is unreachable", "the restore's network namespace has no route to the peer of a connection"),
    (
        "Cannot assign requested address",
        "a socket is bound to an address that the target does not have; use a network that keeps the address",
    ),
    ("Address already in use", "a port of the container is taken at the target; free it or choose another target"),
    ("Can't bind inet socket", "a socket's address or port cannot be used at the target"),
    ("already exists", "a process id or an object of the container is already taken at the target"),
    (
        "Can't open file",
        "a file that a task has open is missing at the target; were all volumes and the writable layer moved?",
    ),
    (
        "Can't restore file",
        "a file that a task has open is missing or differs at the target; were all volumes and the writable layer moved?",
    ),
    (
        "File ",
        "an open file differs at the target from what it was at the source; the image or the writable layer is not the same",
    ),
    (
        "No such file or directory",
        "a file that a task uses is missing at the target; were all volumes and the writable layer moved?",
    ),
    ("Cannot allocate memory", "the target has not enough memory for the container"),
    ("No space left on device", "the tmpfs of the images is full: the container grew, or the host is short of memory"),
    ("cpu", "the target's CPU lacks something that the container's tasks use"),
    ("vdso", "the kernels of source and target differ too much"),
    ("userfaultfd", "a task uses userfaultfd itself, which CRIU cannot move"),
    ("is traced", "a debugger or tracer is attached to a task; detach it"),
    ("Can't seize", "a task cannot be stopped: a debugger may be attached to it"),
    ("Unable to freeze", "a task hangs in the kernel and cannot be frozen"),
    ("apparmor", "the target lacks the AppArmor profile of the container; load it there"),
    ("selinux", "the target's SELinux policy does not allow the restore"),
    (
        "Need to set the --tcp-close",
        "the dump closed connections and the restore did not expect that; both sides must use the same TCP mode",
    ),
    ("iptables", "iptables is missing or does not work on this host"),
    ("nft", "nftables does not work on this host; install nftables and load nf_tables"),
    ("Magic doesn't match", "an image is damaged, or was written by an incompatible CRIU"),
    ("Script ", "our own action script reported an error: the migration was given up"),
];

impl Triage {
    /// Reads the log at `path`; an unreadable log has nothing to say.
    pub fn of_file(path: &Path) -> Self {
        tail(path).map_or_else(|_| Self::default(), |text| Self::of_text(&text))
    }

    /// Triage of a log's text.
    pub fn of_text(text: &str) -> Self {
        let error = text.lines().filter_map(error_of_line).find(|e| !NOISE.iter().any(|n| e.contains(n)));
        let folded = error.map(str::to_lowercase).unwrap_or_default();
        let advice = ADVICE.iter().find(|(piece, _)| folded.contains(&piece.to_lowercase()));
        Self { error: error.map(str::to_owned), advice: advice.map(|(_, advice)| (*advice).to_owned()) }
    }

    /// CRIU's words, or somebody else's if the log has none.
    pub fn or_else(&self, other: impl FnOnce() -> String) -> String {
        if self.error.is_some() { self.to_string() } else { other() }
    }
}

/// The end of the log at `path`, as much as matters.
pub(crate) fn tail(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let start = file.metadata()?.len().saturating_sub(LIMIT);
    file.seek(SeekFrom::Start(start))?;
    let mut text = Vec::new();
    file.read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

impl fmt::Display for Triage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.error, &self.advice) {
            (None, _) => write!(f, "CRIU's log has no error line"),
            (Some(error), None) => write!(f, "CRIU says: {error}"),
            (Some(error), Some(advice)) => write!(f, "CRIU says: {error} ({advice})"),
        }
    }
}

/// The message of an error line: `(00.012345) 1234: Error (criu/files.c:100): message` → `message`.
fn error_of_line(line: &str) -> Option<&str> {
    let (before, after) = line.split_once("Error (")?;
    // Only CRIU's prefix may stand before: a time stamp and a process id.
    if before.len() > 40 {
        return None;
    }
    let (_, message) = after.split_once("): ")?;
    Some(message.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_real_error_is_taken_and_explained() {
        let text = "\
(00.000030) Warn  (criu/kerndat.c:1): something
(00.000040) Error (criu/util.c:1): Can't setup RLIMIT_NOFILE for self: Operation not permitted
(00.012000)     77: Error (criu/sk-inet.c:200): Connected TCP socket, consider using --tcp-established option.
(00.013000) Error (criu/cr-dump.c:2128): Dumping FAILED.
";
        let triage = Triage::of_text(text);
        assert_eq!(triage.error.as_deref(), Some("Connected TCP socket, consider using --tcp-established option."));
        assert!(triage.advice.as_deref().unwrap().contains("same TCP mode"));
    }

    #[test]
    fn a_log_without_errors_has_nothing_to_say() {
        assert_eq!(Triage::of_text("(00.1) Warn  (a.c:1): x\nError in prose\n"), Triage::default());
        assert_eq!(Triage::of_file(Path::new("/nonexistent")).to_string(), "CRIU's log has no error line");
    }

    #[test]
    fn the_end_of_a_long_log_is_read() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("dump.log");
        let mut text = "(00.1) nothing to see\n".repeat(300_000);
        text.push_str("(09.9) Error (criu/x.c:9): at last\n");
        std::fs::write(&path, text).unwrap();
        assert_eq!(Triage::of_file(&path).error.as_deref(), Some("at last"));
    }

    #[test]
    fn an_unknown_error_is_shown_without_advice() {
        let triage = Triage::of_text("(00.1) Error (criu/x.c:9): frobnication lost");
        assert_eq!(triage.to_string(), "CRIU says: frobnication lost");
    }
}
