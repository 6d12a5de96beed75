//! Images of the workloads that tests, demo and benchmarks run: made from programs of the Debian base, so that no registry is
//! needed.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use crate::base::remove_if_there;
use crate::command::{check, command, run};
use crate::error::{Context, Error, Result};
use crate::testbed::Testbed;

/// What is in every image: a shell, enough to look around with, and users' names.
const COMMON: &[&str] = &[
    "etc/group",
    "etc/passwd",
    "usr/bin/cat",
    "usr/bin/chown",
    "usr/bin/dash",
    "usr/bin/env",
    "usr/bin/ls",
    "usr/bin/mkdir",
    "usr/bin/mv",
    "usr/bin/rm",
    "usr/bin/sh",
    "usr/bin/sleep",
];

/// Directories and links that a root file system begins with.
const SKELETON: &[&str] = &["bin", "lib", "lib64", "sbin", "root", "tmp", "var", "var/tmp"];

/// An image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Workload {
    /// A Redis server that keeps everything in memory: image `redis`.
    Redis,
    /// The same server, and Python for a program beside it: image `redis-python`.
    RedisPython,
    /// Python with its standard library, for programs written as `python3 -c`: image `python`.
    Python,
}

impl Workload {
    /// The image's name.
    #[must_use]
    pub fn image(self) -> &'static str {
        match self {
            Self::Redis => "redis",
            Self::RedisPython => "redis-python",
            Self::Python => "python",
        }
    }

    /// Files and directories of the base that it consists of, beside [`COMMON`] and libraries.
    fn contents(self) -> &'static [&'static str] {
        match self {
            Self::Redis => &["usr/bin/redis-cli", "usr/bin/redis-server"],
            Self::RedisPython => &[
                "usr/bin/python3",
                "usr/bin/redis-cli",
                "usr/bin/redis-server",
                "usr/lib/python3",
                "usr/lib/python3.13",
            ],
            Self::Python => &["usr/bin/python3", "usr/lib/python3", "usr/lib/python3.13"],
        }
    }

    /// Dockerfile instructions.
    fn changes(self) -> &'static [&'static str] {
        match self {
            Self::Redis | Self::RedisPython => {
                &[r#"CMD ["redis-server","--save","","--appendonly","no","--protected-mode","no"]"#, "EXPOSE 6379"]
            }
            Self::Python => &[r#"CMD ["python3"]"#],
        }
    }
}

impl Testbed {
    /// Makes the image of a workload on every host, and returns its ID.
    ///
    /// # Errors
    /// Like [`Testbed::import_image`].
    pub fn import_workload(&self, workload: Workload) -> Result<String> {
        let archive = archive(&self.state().base, workload)?;
        self.import_image(workload.image(), &archive, workload.changes())
    }
}

/// The workload's root file system, made once beside the base it is made from.
fn archive(base: &Path, workload: Workload) -> Result<PathBuf> {
    let path = base.with_extension(format!("{}.tar", workload.image()));
    if path.is_file() {
        return Ok(path);
    }
    let contents = [COMMON, workload.contents()].concat();
    let (directories, files): (Vec<&str>, Vec<&str>) = contents.into_iter().partition(|path| base.join(path).is_dir());
    let mut members: BTreeSet<String> = files.iter().map(|file| (*file).to_owned()).collect();
    members.extend(libraries(base, &files, &directories)?);
    let fresh = path.with_extension("tar.new");
    remove_if_there(&fresh)?;
    tar(&fresh, base, &["--create", "--no-recursion"], SKELETON)?;
    tar(&fresh, base, &["--append"], &directories)?;
    // What links lead to, under the links' names: that of a library is the one that programs ask for.
    tar(&fresh, base, &["--append", "--dereference"], &members)?;
    fs::rename(&fresh, &path).on("name", &path)?;
    Ok(path)
}

/// Writes to or appends to an archive.
fn tar<S: AsRef<str>>(
    archive: &Path,
    base: &Path,
    options: &[&str],
    members: impl IntoIterator<Item = S>,
) -> Result<()> {
    let mut tar = command("tar", options);
    tar.arg("--file").arg(archive).arg("--directory").arg(base).arg("--files-from=-");
    let start = |source| Error::Start { program: "tar".to_owned(), source };
    let mut running = tar.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(start)?;
    if let Some(mut names) = running.stdin.take() {
        for member in members {
            writeln!(names, "{}", member.as_ref()).on("write names for", archive)?;
        }
    }
    let output = running.wait_with_output().map_err(start)?;
    check(&tar, output).map(drop)
}

/// The shared libraries that programs among `files`, and modules in `directories`, ask for, as paths below the base.
fn libraries(base: &Path, files: &[&str], directories: &[&str]) -> Result<BTreeSet<String>> {
    let programs = files.iter().filter(|file| file.starts_with("usr/bin/")).map(|file| base.join(file));
    let mut binaries: Vec<PathBuf> = programs.collect();
    for directory in directories {
        find_modules(&base.join(directory), &mut binaries)?;
    }
    let inside = binaries.iter().filter_map(|path| path.strip_prefix(base).ok()).map(|path| Path::new("/").join(path));
    let ldd = run(command("chroot", [base.as_os_str()]).arg("ldd").args(inside))?;
    Ok(asked_for(&String::from_utf8_lossy(&ldd.stdout)).collect())
}

/// Adds the `*.so` files below `directory` to `found`.
fn find_modules(directory: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(directory).on("list", directory)? {
        let path = entry.on("list", directory)?.path();
        if path.is_dir() {
            find_modules(&path, found)?;
        } else if path.extension().is_some_and(|extension| extension == "so") {
            found.push(path);
        }
    }
    Ok(())
}

/// Reads ldd(1): `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)`, or the loader's path alone; of several files, each begins
/// with its own name and a colon. /lib is a link to usr/lib.
fn asked_for(ldd: &str) -> impl Iterator<Item = String> {
    ldd.lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/') && !word.ends_with(':')))
        .map(|path| if path.starts_with("/usr/") { path[1..].to_owned() } else { format!("usr{path}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_and_the_loader_are_read_from_ldd() {
        let ldd = "/usr/bin/server:\n\
                   \tlinux-vdso.so.1 (0x00007ffe)\n\
                   \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
                   \tlibssl.so.3 => /usr/lib/x86_64-linux-gnu/libssl.so.3 (0x00007f)\n\
                   \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        assert_eq!(
            asked_for(ldd).collect::<Vec<_>>(),
            [
                "usr/lib/x86_64-linux-gnu/libc.so.6",
                "usr/lib/x86_64-linux-gnu/libssl.so.3",
                "usr/lib64/ld-linux-x86-64.so.2"
            ]
        );
    }
}
