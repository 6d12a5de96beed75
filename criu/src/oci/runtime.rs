//! The runtime that does the work: runc.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// The environment variable that names another runtime (compatible with runc).
const VARIABLE: &str = "SPOTHOP_RUNTIME";

/// What is tried, in this order; the first is looked up in PATH, which an engine may not have set.
const CANDIDATES: &[&str] = &["runc", "/usr/bin/runc", "/usr/sbin/runc", "/usr/local/bin/runc", "/usr/local/sbin/runc"];

/// Exit status for "command cannot be found", as shells have it.
const NOT_FOUND: u8 = 127;

/// Becomes runc with `arguments`; returns only when there is no runc.
pub(super) fn exec(arguments: &[OsString]) -> ExitCode {
    let chosen = env::var_os(VARIABLE);
    let candidates = match &chosen {
        Some(path) => vec![path.as_os_str()],
        None => CANDIDATES.iter().map(OsStr::new).collect(),
    };
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for candidate in candidates {
        last = Command::new(candidate).args(arguments).exec();
        if last.kind() != io::ErrorKind::NotFound {
            break;
        }
    }
    eprintln!("spothop-oci: cannot run runc: {last}; install runc, or set {VARIABLE} to its path");
    ExitCode::from(NOT_FOUND)
}

/// The runtime `wanted` as a path, or as a name that PATH resolves; for use by a child process.
pub(super) fn resolve(wanted: &Path) -> PathBuf {
    if let Some(path) = env::var_os(VARIABLE) {
        return path.into();
    }
    if wanted.is_absolute()
        || wanted.as_os_str() != CANDIDATES[0]
        || env::var_os("PATH").is_some_and(|p| has(&p, wanted))
    {
        return wanted.to_owned();
    }
    CANDIDATES[1..].iter().map(PathBuf::from).find(|path| path.exists()).unwrap_or_else(|| wanted.to_owned())
}

fn has(path: &OsStr, program: &Path) -> bool {
    env::split_paths(path).any(|directory| directory.join(program).exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_taken_as_it_is_and_a_name_is_left_to_path() {
        assert_eq!(resolve(Path::new("/opt/runc")), Path::new("/opt/runc"));
        assert_eq!(resolve(Path::new("youki")), Path::new("youki"));
        assert!(has(OsStr::new("/nonexistent:/bin"), Path::new("sh")));
    }
}
