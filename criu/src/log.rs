//! What a CRIU log means: the first real error, its likely cause, and what to do.

mod failure;
mod table;

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use serde::{Deserialize, Serialize};

pub use self::failure::{FailureKind, Remedy};

/// How much of a log is read, from its end, where the errors of a failed run stand. A restore through runc logs everything:
/// a hundred KiB for a few tasks, tens of MiB for many.
const LIMIT: u64 = 4 << 20;

/// What was found in a log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Triage {
    /// The error line that says most, without its time stamp and source position: the first that is understood, or else the
    /// first that is not mere noise.
    pub error: Option<String>,
    /// What it means, if it is understood.
    pub kind: Option<FailureKind>,
}

/// Error lines that say nothing about the outcome, because CRIU goes on after them, or because they only pass an earlier error
/// on: the end of the source file's path, and the beginning of the message without its subsystem.
const NOISE: &[(&str, &str)] = &[
    ("util.c", "rlimit: Can't setup RLIMIT_NOFILE"),
    ("util.c", "Can't set RLIMIT_NOFILE"),
    // A program that CRIU called has failed: who called it says more.
    ("util.c", "exited, status="),
    // Memory that the constant parent has nothing of is dumped whole (shared memory: crate::memory).
    ("page-xfer.c", "page-xfer: No parent image found"),
    // The service that sets cgroups hears nothing more from a CRIU that has failed.
    ("cgroup.c", "cg: cgroupd: recv req error"),
    ("cr-dump.c", "Dumping FAILED"),
    ("cr-dump.c", "Dump "),
    ("cr-restore.c", "Restoring FAILED"),
    // runc's answer to an event: its own words say more.
    ("cr-service.c", "RPC client reported script error"),
    ("action-scripts.c", "One of more action scripts failed"),
];

impl Triage {
    /// Reads the log at `path`; an unreadable log has nothing to say.
    pub fn of_file(path: &Path) -> Self {
        tail(path).map_or_else(|_| Self::default(), |text| Self::of_text(&text))
    }

    /// Triage of a log's text.
    pub fn of_text(text: &str) -> Self {
        let errors: Vec<ErrorLine<'_>> = text.lines().filter_map(ErrorLine::of).filter(|e| !e.is_noise()).collect();
        let understood = |meaning: fn(&str, &str) -> Option<FailureKind>| {
            errors.iter().find_map(|error| Some((error, meaning(error.file, error.message)?)))
        };
        match understood(table::kind).or_else(|| understood(table::weak_kind)) {
            Some((error, kind)) => Self { error: Some(error.message.to_owned()), kind: Some(kind) },
            None => Self { error: errors.first().map(|error| error.message.to_owned()), kind: None },
        }
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
        match (&self.error, self.kind) {
            (None, _) => write!(f, "CRIU's log has no error line"),
            (Some(error), None) => write!(f, "CRIU says: {error}"),
            (Some(error), Some(kind)) => write!(f, "CRIU says: {error} ({kind})"),
        }
    }
}

/// An error line: `(00.012345)   1234: Error (criu/files.c:100): message`; a task's own code has `pie: 1: ` before it.
struct ErrorLine<'a> {
    file: &'a str,
    message: &'a str,
}

impl<'a> ErrorLine<'a> {
    fn of(line: &'a str) -> Option<Self> {
        let (before, after) = line.split_once("Error (")?;
        // Only CRIU's prefix may stand before: a time stamp and a process id.
        if before.len() > 40 {
            return None;
        }
        let (position, message) = after.split_once("): ")?;
        let (file, _) = position.rsplit_once(':')?;
        Some(Self { file, message: message.trim() })
    }

    fn is_noise(&self) -> bool {
        NOISE.iter().any(|(file, message)| self.file.ends_with(file) && self.message.starts_with(message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_real_error_is_taken_and_explained() {
        let text = "\
(00.000030) Warn  (criu/kerndat.c:1): something
(00.000040) Error (criu/util.c:1): Can't setup RLIMIT_NOFILE for self: Operation not permitted
(00.011000) Error (criu/page-xfer.c:410): page-xfer: No parent image found, though parent directory is set: No such file or directory
(00.012000)     77: Error (criu/sk-inet.c:200): Connected TCP socket, consider using --tcp-established option.
(00.013000) Error (criu/cr-dump.c:2128): Dumping FAILED.
";
        let triage = Triage::of_text(text);
        assert_eq!(triage.error.as_deref(), Some("Connected TCP socket, consider using --tcp-established option."));
        assert_eq!(triage.kind, Some(FailureKind::TcpMode));
        assert!(triage.to_string().contains("same TCP mode"), "{triage}");
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
    fn what_is_understood_goes_before_what_came_first() {
        let text = "\
(00.1) Error (criu/util.c:657): exited, status=1
(00.2) Error (criu/surprise.c:1): frobnication lost
(00.3)      7: Error (criu/files-reg.c:2353): Can't open file x on restore: No such file or directory
";
        assert_eq!(Triage::of_text(text).kind, Some(FailureKind::MissingFile));
        let weak = "(09.9) Error (criu/seize.c:335): zombie 7 (comm x) found while seizing\n".to_owned() + text;
        assert_eq!(Triage::of_text(&weak).kind, Some(FailureKind::MissingFile));
    }

    #[test]
    fn an_unknown_error_is_shown_without_advice() {
        let triage = Triage::of_text("(00.1) Error (criu/x.c:9): frobnication lost");
        assert_eq!(triage.to_string(), "CRIU says: frobnication lost");
    }
}
