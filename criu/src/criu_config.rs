//! CRIU's configuration file: the only way to give CRIU options that the container runtime has no flag for.
//!
//! runc makes CRIU read one such file (`/etc/criu/runc.conf`, or the one that the annotation [`ANNOTATION`] names) *after* its
//! own options, so what stands here wins. Except the log's level: runc always asks for the most verbose one, and CRIU 4.2
//! takes it from the request alone (criu/cr-service.c, `setup_logging_from_req`): at a dump `stand_in` changes it there. The format is one long option per line
//! without its dashes; see criu(8), "CONFIGURATION FILES".

use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The file that runc makes CRIU read when the container has no annotation [`ANNOTATION`].
pub const RUNC_DEFAULT: &str = "/etc/criu/runc.conf";

/// The annotation by which a container names a configuration file of its own (read by runc, and by crun from 1.26).
pub const ANNOTATION: &str = "org.criu.config";

/// The first line of every file that we write, by which we know our own.
const HEADER: &str = "# Written by spothop for one checkpoint or restore.";

/// The largest unlinked file that is carried inside the images (`ghost-limit`); CRIU's own limit of 1 MiB is less
/// than databases keep in deleted temporary files.
const GHOST_LIMIT: &str = "256M";

/// What becomes of TCP connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TcpMode {
    /// They move with their state: the address moves too.
    Established,
    /// Listeners are kept, connected sockets come back closed: the address changes, or belongs to the host.
    Close,
}

/// CRIU's options for one dump or one restore.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// What becomes of TCP connections.
    pub tcp: TcpMode,
    /// The program that CRIU calls at each event, see [`crate::hook`].
    pub action_script: Option<PathBuf>,
    /// Paths inside the container that are watched ([`crate::watches`]; dump only).
    pub watched: Vec<PathBuf>,
}

impl Options {
    /// The file's text, `before` it what the file that it takes the place of contains (see [`foreign_text`]).
    pub fn text(&self, before: &str) -> String {
        let mut lines: Vec<String> = Vec::new();
        lines.extend(before.lines().map(str::to_owned));
        lines.push(format!("ghost-limit {GHOST_LIMIT}"));
        lines.push("link-remap".into());
        match self.tcp {
            TcpMode::Established => {
                lines.push("tcp-established".into());
                // A half-open connection is not worth a failed dump: its client sends SYN again.
                lines.push("skip-in-flight".into());
            }
            TcpMode::Close => lines.push("tcp-close".into()),
        }
        // No packet gets as far as these connections: [`crate::netns::Silencing`] at the dump, [`crate::netns::hold`] at the restore. CRIU's
        // own lock would cost some 10 ms at each end.
        lines.push("network-lock skip".into());
        if let Some(script) = &self.action_script {
            lines.push(format!("action-script {}", quoted(&script.to_string_lossy())));
        }
        lines.extend(self.watched.iter().map(|path| format!("irmap-scan-path {}", quoted(&path.to_string_lossy()))));
        format!("{HEADER}\n{}\n", lines.join("\n"))
    }

    /// Writes the file at `path` (mode 0600), replacing what is there; `before` as for [`Options::text`].
    ///
    /// # Errors
    /// What the file system says.
    pub fn write(&self, path: &Path, before: &str) -> io::Result<()> {
        let _ = std::fs::remove_file(path);
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(self.text(before).as_bytes())
    }
}

/// What the operator wrote into the configuration file at `path`: empty when it is missing or one of ours.
///
/// A container restored by us names a file that we wrote then; its action script must not be called again.
pub fn foreign_text(path: &Path) -> String {
    match std::fs::read_to_string(path) {
        Ok(text) if !text.starts_with(HEADER) => text,
        _ => String::new(),
    }
}

/// CRIU's parser takes `"` around a value and `\"` inside it.
fn quoted(value: &str) -> String {
    format!("\"{}\"", value.replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dump_has_what_runc_has_no_flags_for() {
        let options = Options {
            tcp: TcpMode::Established,
            action_script: Some("/run/spothop/dump/x y/hook".into()),
            watched: vec!["/etc/app".into()],
        };
        let text = options.text("");
        assert!(text.starts_with(HEADER));
        for line in [
            "tcp-established",
            "network-lock skip",
            "action-script \"/run/spothop/dump/x y/hook\"",
            "irmap-scan-path \"/etc/app\"",
            "link-remap",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is missing in {text}");
        }
    }

    #[test]
    fn connections_are_closed_where_they_cannot_live() {
        let text = Options { tcp: TcpMode::Close, action_script: None, watched: Vec::new() }.text("");
        assert!(text.contains("tcp-close\n"));
        assert!(!text.contains("tcp-established") && !text.contains("action-script"));
    }

    #[test]
    fn the_operators_lines_are_kept_before_ours_and_our_own_are_not() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("runc.conf");
        assert_eq!(foreign_text(&path), "");
        std::fs::write(&path, "# mine\nlog-file x\n").unwrap();
        let options = Options { tcp: TcpMode::Close, action_script: None, watched: Vec::new() };
        let text = options.text(&foreign_text(&path));
        assert!(text.find("log-file x").unwrap() < text.find("tcp-close").unwrap());
        options.write(&path, "").unwrap();
        assert_eq!(foreign_text(&path), "");
    }
}
