//! Programs that the runtime and CRIU find before the system's own: this one, by links in a directory at the front of their PATH.
//!
//! | called as | by | does |
//! |---|---|---|
//! | `criu swrk FD` | runc | at a restore it waits for the images; at a dump it makes CRIU's log less verbose |
//! | `tar` | CRIU | packs and unpacks what small file systems in memory have |
//!
//! Each of them becomes the real program where it is called in a way that it does not know.

mod criu;
mod relay;
mod tar;

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// The environment variable that tells them of which migration they are: its directory.
const VARIABLE: &str = "SPOTHOP_MIGRATION";

/// The links of one migration.
#[derive(Debug)]
pub(crate) struct StandIns {
    directory: PathBuf,
}

impl StandIns {
    /// Makes the links to `program` in `directory`, the migration's own.
    pub(crate) fn make(directory: &Path, program: &Path) -> io::Result<Self> {
        let bin = bin(directory);
        fs::create_dir_all(&bin)?;
        for name in [criu::NAME, tar::NAME] {
            match symlink(program, bin.join(name)) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
        }
        Ok(Self { directory: directory.to_owned() })
    }

    /// What the runtime's environment must have.
    pub(crate) fn environment(&self) -> [(&'static str, OsString); 2] {
        let mut path = bin(&self.directory).into_os_string();
        if let Some(rest) = env::var_os("PATH") {
            path.push(":");
            path.push(rest);
        }
        [("PATH", path), (VARIABLE, self.directory.clone().into_os_string())]
    }
}

/// Does a stand-in's work when this process was started as one; `None` when it was not.
pub(crate) fn called(arguments: &[OsString]) -> Option<ExitCode> {
    let [name, rest @ ..] = arguments else { return None };
    let directory = PathBuf::from(env::var_os(VARIABLE)?);
    match name.to_str()? {
        criu::NAME => Some(criu::run(rest, &directory)),
        tar::NAME => Some(tar::run(rest, &directory)),
        _ => None,
    }
}

/// Becomes the program that would have been found without us. Says why not, if it returns.
fn become_real(name: &str, arguments: &[OsString], directory: &Path) -> ExitCode {
    let error = match real(name, directory) {
        Some(program) => Command::new(program).arg0(name).args(arguments).exec(),
        None => io::ErrorKind::NotFound.into(),
    };
    eprintln!("spothop-oci: {name} cannot be started: {error}");
    ExitCode::FAILURE
}

/// The program of this name in PATH, past our own directory.
fn real(name: &str, directory: &Path) -> Option<PathBuf> {
    let ours = bin(directory);
    let path = env::var_os("PATH").unwrap_or_default();
    let others = env::split_paths(&path).filter(|other| *other != ours);
    others.map(|other| other.join(name)).find(|program| program.is_file())
}

fn bin(directory: &Path) -> PathBuf {
    directory.join("bin")
}

/// Whether `arguments` are these words.
fn are(arguments: &[OsString], words: &[&str]) -> bool {
    arguments.iter().map(OsString::as_os_str).eq(words.iter().map(OsStr::new))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_found_first_and_find_the_others() {
        let scratch = tempfile::tempdir().unwrap();
        let program = env::current_exe().unwrap();
        // Once more, as a second attempt does.
        for _ in 0..2 {
            let [(_, path), (_, directory)] = StandIns::make(scratch.path(), &program).unwrap().environment();
            assert_eq!(env::split_paths(&path).next(), Some(scratch.path().join("bin")));
            assert_eq!(directory, scratch.path());
        }
        for name in ["criu", "tar"] {
            assert_eq!(fs::read_link(scratch.path().join("bin").join(name)).unwrap(), program);
        }
        let sh = real("sh", scratch.path()).unwrap();
        assert!(sh.is_absolute() && sh.ends_with("sh"), "{}", sh.display());
        assert_eq!(real("no such program", scratch.path()), None);
    }

    #[test]
    fn without_the_variable_a_call_is_none_of_ours() {
        for words in [&["criu", "swrk", "3"][..], &["tar", "--create"], &["spothop-oci"], &[]] {
            assert_eq!(called(&words.iter().map(OsString::from).collect::<Vec<_>>()), None);
        }
    }
}
