//! The command lines that engines give an OCI runtime, as far as they may concern us.
//!
//! runc's flags (main.go, create.go, start.go, delete.go); Go's flag package takes `-x` for `--x`, and `--x=v` for `--x v`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// runc's state root when `--root` is not given (and we are root).
const DEFAULT_ROOT: &str = "/run/runc";

/// Flags with a value, before and after the verb.
const WITH_VALUE: &[&str] = &[
    "root",
    "log",
    "log-format",
    "log-level",
    "criu",
    "rootless",
    "cgroup-manager",
    "bundle",
    "b",
    "pid-file",
    "console-socket",
    "preserve-fds",
];

/// The verbs that may be ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Create,
    Start,
    Delete,
}

/// A call that may be ours.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Invocation {
    pub(super) verb: Verb,
    /// The flags before the verb, as they were given.
    pub(super) globals: Vec<OsString>,
    /// `--root`: the runtime's state.
    pub(super) root: PathBuf,
    /// `--log`.
    pub(super) log: Option<PathBuf>,
    /// Is `--log-format` json?
    pub(super) log_is_json: bool,
    /// `--bundle`.
    pub(super) bundle: PathBuf,
    /// `--pid-file`.
    pub(super) pid_file: Option<PathBuf>,
    /// `--console-socket`: the container has a terminal.
    pub(super) console_socket: Option<PathBuf>,
    /// `--no-pivot`.
    pub(super) no_pivot: bool,
    /// The container's id.
    pub(super) container: OsString,
}

impl Invocation {
    /// The call in `arguments` (without the program's name), `None` when it cannot be ours.
    pub(super) fn parse(arguments: &[OsString]) -> Option<Self> {
        let mut found = Self {
            verb: Verb::Create,
            globals: Vec::new(),
            root: DEFAULT_ROOT.into(),
            log: None,
            log_is_json: false,
            bundle: ".".into(),
            pid_file: None,
            console_socket: None,
            no_pivot: false,
            container: OsString::new(),
        };
        let mut verb_seen = false;
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next() {
            let Some((name, inline)) = flag(argument) else {
                if verb_seen {
                    found.container = argument.clone();
                    return Some(found);
                }
                found.verb = match argument.as_bytes() {
                    b"create" => Verb::Create,
                    b"start" => Verb::Start,
                    b"delete" => Verb::Delete,
                    _ => return None,
                };
                verb_seen = true;
                continue;
            };
            let mut given = vec![argument.clone()];
            let value = match inline {
                Some(value) => value.to_owned(),
                None if WITH_VALUE.contains(&name) => {
                    let value = rest.next()?.clone();
                    given.push(value.clone());
                    value
                }
                None => OsString::new(),
            };
            if !verb_seen {
                found.globals.append(&mut given);
            }
            found.take(name, value);
        }
        None
    }

    fn take(&mut self, name: &str, value: OsString) {
        match name {
            "root" => self.root = value.into(),
            "log" => self.log = Some(value.into()),
            "log-format" => self.log_is_json = value == "json",
            "bundle" | "b" => self.bundle = value.into(),
            "pid-file" => self.pid_file = Some(value.into()),
            "console-socket" => self.console_socket = Some(value.into()),
            "no-pivot" => self.no_pivot = true,
            _ => {}
        }
    }
}

/// A flag's name and its value after `=`; `None` for what is no flag.
fn flag(argument: &OsStr) -> Option<(&str, Option<&OsStr>)> {
    let bytes = argument.as_bytes();
    let body = bytes.strip_prefix(b"--").or_else(|| bytes.strip_prefix(b"-")).filter(|body| !body.is_empty())?;
    let (name, value) = match body.iter().position(|&byte| byte == b'=') {
        Some(at) => (&body[..at], Some(OsStr::from_bytes(&body[at + 1..]))),
        None => (body, None),
    };
    // A name that is not UTF-8 is no flag of runc's, and has no value.
    Some((std::str::from_utf8(name).unwrap_or_default(), value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Option<Invocation> {
        Invocation::parse(&line.split(' ').map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn what_containerds_shim_calls_is_understood() {
        let found = parse(
            "--root /run/docker/runtime-spothop/moby --log /b/log.json --log-format json --systemd-cgroup create --bundle /b --pid-file /b/init.pid --console-socket /tmp/pty.sock abc",
        )
        .unwrap();
        assert_eq!(found.verb, Verb::Create);
        assert_eq!(found.root.as_os_str(), "/run/docker/runtime-spothop/moby");
        assert_eq!(found.globals.len(), 7);
        assert_eq!(found.globals[6], "--systemd-cgroup");
        assert_eq!((found.log.unwrap().as_os_str(), found.log_is_json), (OsStr::new("/b/log.json"), true));
        assert_eq!((found.bundle.as_os_str(), found.container.as_os_str()), (OsStr::new("/b"), OsStr::new("abc")));
        assert_eq!(found.pid_file.unwrap().as_os_str(), "/b/init.pid");
        assert_eq!(found.console_socket.unwrap().as_os_str(), "/tmp/pty.sock");
    }

    #[test]
    fn short_forms_and_equal_signs_are_understood() {
        let found = parse("-root=/r delete -force c").unwrap();
        assert_eq!((found.verb, found.root.as_os_str()), (Verb::Delete, OsStr::new("/r")));
        assert_eq!(found.container, "c");
        assert_eq!(parse("start c").unwrap().root.as_os_str(), DEFAULT_ROOT);
    }

    #[test]
    fn everything_else_is_runcs() {
        for line in ["--version", "features", "--root /r state c", "exec c sh", "create", "--root", "run --bundle /b c"]
        {
            assert_eq!(parse(line), None, "{line}");
        }
    }
}
