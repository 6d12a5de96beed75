//! What a tree looks like at one moment, and what has changed since another.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::sys::stat::FileStat;
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};

use super::beneath::{Beneath, Place, names};
use super::{Error, Tree, TreeName};

/// The kernel stamps files with a clock that ticks at 100 to 1000 Hz; a change within a tick of another bears the same
/// stamp. Ten ticks of the slowest.
const TICK: Duration = Duration::from_millis(100);

/// Mark of a directory that hides what lies below it.
pub(super) const OPAQUE: &str = "trusted.overlay.opaque";

/// A time stamp: seconds and nanoseconds since 1970.
pub(super) type Stamp = (i64, i64);

/// What identifies the state of an entry. Every change of contents, owner, mode, attributes, links or name changes `ctime`, which
/// nobody can set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) device: u64,
    pub(super) inode: u64,
    pub(super) mode: u32,
    pub(super) links: u64,
    pub(super) size: i64,
    pub(super) rdev: u64,
    pub(super) ctime: Stamp,
    /// A directory that hides what lies below it.
    pub(super) opaque: bool,
}

impl Seen {
    pub(super) fn new(stat: &FileStat, opaque: bool) -> Self {
        Self {
            device: stat.st_dev,
            inode: stat.st_ino,
            mode: stat.st_mode,
            links: stat.st_nlink,
            size: stat.st_size,
            rdev: stat.st_rdev,
            ctime: (stat.st_ctime, stat.st_ctime_nsec),
            opaque,
        }
    }

    /// As seen in a writable layer, where a character device 0/0 is a whiteout, and nothing else about it matters. (Overlayfs makes
    /// all whiteouts of a layer links of one inode, whose time and number of links change with every new one.)
    pub(super) fn in_layer(self, layer: bool) -> Self {
        let kind = self.mode & kinds::MASK;
        if !layer || kind != kinds::CHARACTER || self.rdev != 0 {
            return self;
        }
        Self { device: 0, inode: 0, mode: kind, links: 1, size: 0, rdev: 0, ctime: (0, 0), opaque: false }
    }

    pub(super) fn is_dir(&self) -> bool {
        self.mode & kinds::MASK == kinds::DIRECTORY
    }

    pub(super) fn is_file(&self) -> bool {
        self.mode & kinds::MASK == kinds::FILE
    }

    /// The same inode, and the same kind of it.
    fn is_same_inode(&self, other: &Self) -> bool {
        let kind = |seen: &Self| seen.mode & kinds::MASK;
        (self.device, self.inode, kind(self)) == (other.device, other.inode, kind(other))
    }
}

/// Kinds of `st_mode`.
pub(super) mod kinds {
    use nix::sys::stat::SFlag;

    pub(crate) const MASK: u32 = SFlag::S_IFMT.bits();
    pub(crate) const DIRECTORY: u32 = SFlag::S_IFDIR.bits();
    pub(crate) const CHARACTER: u32 = SFlag::S_IFCHR.bits();
    pub(crate) const FILE: u32 = SFlag::S_IFREG.bits();
}

/// One tree at one moment.
#[derive(Debug, Default)]
pub(super) struct Listing {
    /// Parents before their children, names sorted. The first is the tree itself, with an empty path.
    pub(super) entries: Vec<(PathBuf, Seen)>,
    /// Before the first entry was looked at. Entries changed at this time or later may have changed again.
    begun: Stamp,
    /// A filesystem that does not stamp files written through a mapping.
    unstamped: bool,
}

impl Listing {
    /// Walks the tree. Entries that vanish meanwhile are left out.
    pub(super) fn take(root: &Beneath, layer: bool) -> Result<Self, Error> {
        let begun = SystemTime::now().checked_sub(TICK).and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        let begun = begun.unwrap_or_default();
        let mut listing = Self {
            entries: Vec::new(),
            begun: (begun.as_secs().cast_signed(), begun.subsec_nanos().into()),
            unstamped: fstatfs(root.as_fd()).is_ok_and(|found| found.filesystem_type() == TMPFS_MAGIC),
        };
        let itself = Place { parent: root.as_fd(), name: ".".as_ref() };
        let stat = itself.look().map_err(Error::io("look at", &root.full(Path::new(""))))?;
        // Directories still to be read, the next one last.
        let mut waiting = vec![(PathBuf::new(), Seen::new(&stat, layer && is_opaque(&itself)))];
        while let Some((path, seen)) = waiting.pop() {
            listing.entries.push((path.clone(), seen));
            if !seen.is_dir() {
                continue;
            }
            let directory = match root.directory(&path) {
                Ok(directory) => directory,
                Err(errno) if is_gone(errno) && !path.as_os_str().is_empty() => continue,
                Err(errno) => return Err(Error::io("open", &root.full(&path))(errno)),
            };
            let directory = std::os::fd::AsFd::as_fd(&directory);
            let found = names(directory).map_err(Error::io("list", &root.full(&path)))?;
            for name in found.into_iter().rev() {
                let place = Place { parent: directory, name: &name };
                match place.look() {
                    Ok(stat) => {
                        let seen = Seen::new(&stat, false).in_layer(layer);
                        let opaque = layer && seen.is_dir() && is_opaque(&place);
                        waiting.push((path.join(&name), Seen { opaque, ..seen }));
                    }
                    Err(errno) if is_gone(errno) => {}
                    Err(errno) => return Err(Error::io("look at", &root.full(&path.join(&name)))(errno)),
                }
            }
        }
        Ok(listing)
    }

    /// Whether an entry that still looks as it did here may have changed all the same.
    fn is_unsettled(&self, seen: &Seen) -> bool {
        seen.ctime >= self.begun || (self.unstamped && seen.is_file())
    }

    /// What has to be sent so that a copy of `self` becomes a copy of `now`.
    pub(super) fn difference(&self, now: &Self) -> Difference {
        let before: HashMap<&Path, &Seen> = self.entries.iter().map(|(path, seen)| (path.as_path(), seen)).collect();
        let mut difference = Difference::default();
        let mut changed: HashSet<&Path> = HashSet::new();
        // The directory whose whole contents are sent, because it is another one than before.
        let mut replaced: Option<&Path> = None;
        for (path, seen) in &now.entries {
            let within = replaced.is_some_and(|directory| path.starts_with(directory));
            let old = before.get(path.as_path());
            let differs = old.is_none_or(|old| *old != seen || self.is_unsettled(old));
            if within || differs {
                changed.insert(path);
            }
            if seen.is_dir() && !path.as_os_str().is_empty() {
                let same = old.is_some_and(|old| old.is_same_inode(seen) && old.opaque == seen.opaque);
                if seen.opaque && (within || !same) {
                    difference.fresh.insert(path.clone());
                }
                if !within && old.is_some() && !same {
                    replaced = Some(path);
                }
            }
        }
        // All names of an inode go together, so that they are links of one another at the target too.
        let linked = |seen: &Seen| !seen.is_dir() && seen.links > 1;
        let inodes: HashSet<(u64, u64)> = now
            .entries
            .iter()
            .filter(|(path, seen)| linked(seen) && changed.contains(path.as_path()))
            .map(|(_, seen)| (seen.device, seen.inode))
            .collect();
        let together = |seen: &Seen| linked(seen) && inodes.contains(&(seen.device, seen.inode));
        changed.extend(now.entries.iter().filter(|(_, seen)| together(seen)).map(|(path, _)| path.as_path()));
        // Writing an entry changes the time of its directory, which is therefore told again.
        let parents: BTreeSet<&Path> = changed.iter().flat_map(|path| path.ancestors().skip(1)).collect();
        changed.extend(parents);

        let there: HashSet<&Path> = now.entries.iter().map(|(path, _)| path.as_path()).collect();
        for (path, _) in &self.entries {
            let below_removed = difference.removed.last().is_some_and(|parent: &PathBuf| path.starts_with(parent));
            if !there.contains(path.as_path()) && !below_removed {
                difference.removed.push(path.clone());
            }
        }
        difference.changed = now.entries.iter().filter(|(path, _)| changed.contains(path.as_path())).cloned().collect();
        difference
    }
}

/// What changed between two listings of a tree.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Difference {
    /// Names that are gone; what lay below them is not named.
    pub(super) removed: Vec<PathBuf>,
    /// Entries to be sent, parents before their children.
    pub(super) changed: Vec<(PathBuf, Seen)>,
    /// Directories among them that hide what was there before.
    pub(super) fresh: HashSet<PathBuf>,
}

/// What pass 1 saw, to be compared with in pass 2. Some 200 bytes for each entry.
#[derive(Debug, Default)]
pub struct Snapshot {
    pub(super) trees: HashMap<TreeName, Listing>,
}

/// The entry is not there any more, or something else is on the way to it.
pub(super) fn is_gone(errno: Errno) -> bool {
    matches!(errno, Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::ESTALE)
}

fn is_opaque(place: &Place<'_>) -> bool {
    matches!(xattr::get(place.proc_path(), OPAQUE), Ok(Some(value)) if value == b"y")
}

/// Opens a tree and lists it.
pub(super) fn list(tree: &Tree) -> Result<(Beneath, Listing), Error> {
    let root = Beneath::open(&tree.directory)?;
    let listing = Listing::take(&root, tree.name == TreeName::Rootfs)?;
    Ok((root, listing))
}

#[cfg(test)]
#[path = "snapshot_tests.rs"]
mod tests;
