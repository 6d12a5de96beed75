//! The names of what a container watches through inotify.
//!
//! The kernel tells a watched file by its inode alone. CRIU opens it by a file handle to learn its name, which an overlay
//! filesystem does not allow; then CRIU looks it up among the paths that it was told to scan (criu(8), `--irmap-scan-path`).
//! Found here, before the freeze, those are exactly the watched ones.

use std::collections::HashSet;
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::tasks::{self, TaskError};

/// Device and inode, as stat(2) has them.
type Inode = (u64, u64);

/// The paths, inside the container whose init is `init_pid`, of all files on its root filesystem that its tasks watch.
/// Reads its whole tree of directories, but only if something is watched. What has no name any more is left out.
///
/// # Errors
/// When the container is gone.
pub fn watched(init_pid: i32) -> Result<Vec<PathBuf>, TaskError> {
    let mut wanted: HashSet<Inode> = HashSet::new();
    for task in tasks::tasks(init_pid)? {
        for (descriptor, link) in tasks::descriptors(task.pid) {
            if link.to_str().is_some_and(|link| link.starts_with("anon_inode:inotify")) {
                let number = descriptor.file_name().unwrap_or_default();
                let about = Path::new("/proc").join(task.pid.to_string()).join("fdinfo").join(number);
                wanted.extend(fs::read_to_string(about).unwrap_or_default().lines().filter_map(inode));
            }
        }
    }
    let root = PathBuf::from(format!("/proc/{init_pid}/root/"));
    let Ok(about) = fs::metadata(&root) else { return Ok(Vec::new()) };
    // Other filesystems either know file handles or are CRIU's own matter.
    wanted.retain(|(device, _)| *device == about.dev());
    let mut found = Vec::new();
    if take(&mut wanted, &about) {
        found.push(PathBuf::from("/"));
    }
    search(&root, about.dev(), &mut wanted, &mut found);
    Ok(found.iter().map(|path| Path::new("/").join(path.strip_prefix(&root).unwrap_or(path))).collect())
}

/// Looks below `directory`, without leaving its filesystem, for inodes of `wanted`, and moves what it finds to `found`.
fn search(directory: &Path, device: u64, wanted: &mut HashSet<Inode>, found: &mut Vec<PathBuf>) {
    // What vanishes meanwhile is watched by nobody.
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        if wanted.is_empty() {
            return;
        }
        let Ok(about) = entry.metadata() else { continue };
        if take(wanted, &about) {
            found.push(entry.path());
        }
        if about.is_dir() && about.dev() == device {
            search(&entry.path(), device, wanted, found);
        }
    }
}

fn take(wanted: &mut HashSet<Inode>, about: &Metadata) -> bool {
    wanted.remove(&(about.dev(), about.ino()))
}

/// From a line of fdinfo (proc(5)): `inotify wd:1 ino:9e7e sdev:800013 mask:800afce …`, all in hexadecimal. The device is as the
/// kernel has it inside, with 20 bits for the minor number (include/linux/kdev_t.h).
fn inode(line: &str) -> Option<Inode> {
    let field = |name: &str| {
        let text = line.split_whitespace().find_map(|word| word.strip_prefix(name))?;
        u64::from_str_radix(text, 16).ok()
    };
    line.starts_with("inotify ").then_some(())?;
    let device = u32::try_from(field("sdev:")?).ok()?;
    Some((libc::makedev(device >> 20, device & 0xf_ffff), field("ino:")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inode_is_read_from_fdinfo() {
        let line = "inotify wd:2 ino:7ef82a sdev:800001 mask:800afff ignored_mask:0 fhandle-bytes:8 fhandle-type:1";
        assert_eq!(inode(line), Some((libc::makedev(8, 1), 0x7e_f82a)));
        assert_eq!(inode("pos:\t0"), None);
        assert_eq!(inode("tfd: 5 events: 19 data: 5 pos:0 ino:61af sdev:7"), None);
    }

    #[test]
    fn names_are_found_by_inode_and_the_search_ends_with_the_last() {
        let scratch = tempfile::tempdir().unwrap();
        let at = |name: &str| scratch.path().join(name);
        fs::create_dir_all(at("a/b")).unwrap();
        fs::write(at("a/b/file"), "").unwrap();
        fs::write(at("other"), "").unwrap();
        let inode = |path: &Path| fs::metadata(path).map(|about| (about.dev(), about.ino())).unwrap();
        let mut wanted = HashSet::from([inode(&at("a/b/file")), inode(&at("a")), (0, 0)]);
        let mut found = Vec::new();
        search(scratch.path(), inode(scratch.path()).0, &mut wanted, &mut found);
        found.sort();
        assert_eq!(found, [at("a"), at("a/b/file")]);
        assert_eq!(wanted, HashSet::from([(0, 0)]));
    }

    #[test]
    fn a_task_that_watches_nothing_has_no_paths() {
        if let Ok(paths) = watched(std::process::id().cast_signed()) {
            assert_eq!(paths, Vec::<PathBuf>::new());
        }
    }
}
