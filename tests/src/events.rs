//! What the daemon tells of its migrations, as `spothop status --follow --json` prints it.

use std::io::{BufRead, BufReader, Lines};
use std::path::Path;
use std::process::{Child, ChildStdout, Stdio};

use jiff::Timestamp;
use serde::Deserialize;

use crate::error::{Context, Error, Result};
use crate::testbed::Testbed;

/// Following is given up after this many seconds: the longest notice is two minutes.
const LIMIT: &str = "180";

/// One line of it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Event {
    /// Name of the container that is moved.
    pub container: String,
    /// When.
    pub at: Timestamp,
    /// What.
    #[serde(flatten)]
    pub kind: Kind,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Kind {
    /// A phase was entered.
    Phase {
        /// Its name.
        phase: String,
    },
    /// Bytes were sent.
    Progress {
        /// Of what.
        what: String,
        /// How many so far.
        sent: u64,
        /// Of how many, if known.
        total: Option<u64>,
    },
    /// It is over.
    Finished {
        /// How: `moved`, or what else.
        outcome: String,
        /// Why, if it failed.
        reason: Option<String>,
    },
}

/// The stream of a host's events.
#[derive(Debug)]
pub struct Events {
    process: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Events {
    /// Follows what happens on `host` from now on.
    ///
    /// # Errors
    /// [`Error::Start`].
    pub fn follow(bed: &Testbed, host: &str) -> Result<Self> {
        let mut command = bed.exec(host, ["timeout", LIMIT, "spothop", "status", "--follow", "--json"])?;
        let failed = |source| Error::Start { program: "spothop status".to_owned(), source };
        let mut process = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().map_err(failed)?;
        let lines = match process.stdout.take() {
            Some(stdout) => BufReader::new(stdout).lines(),
            None => return Err(failed(std::io::ErrorKind::BrokenPipe.into())),
        };
        Ok(Self { process, lines })
    }
}

impl Iterator for Events {
    type Item = Result<Event>;

    fn next(&mut self) -> Option<Self::Item> {
        let line = match self.lines.next()?.on("read from", Path::new("spothop status")) {
            Ok(line) => line,
            Err(error) => return Some(Err(error)),
        };
        let what = || format!("the event {line:?}");
        Some(serde_json::from_str(&line).map_err(|source| Error::Json { what: what(), source }))
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        // Only the process that entered the host; what it runs there ends when nobody reads it any more, or at its time limit.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_daemon_s_lines_are_understood() {
        let line = r#"{"migration":"0","side":"source","container":"r","at":"2026-11-23T02:49:22.1Z","event":"progress","what":"memory","sent":3,"total":9}"#;
        let event: Event = serde_json::from_str(line).unwrap();
        assert_eq!(event.container, "r");
        assert_eq!(event.kind, Kind::Progress { what: "memory".to_owned(), sent: 3, total: Some(9) });
    }
}
