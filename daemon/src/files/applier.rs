//! The target's side: an archive becomes trees.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::{self, File};

use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, mkdirat, mknodat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchownat, linkat, symlinkat};
use tar::{Archive, EntryType};

use super::beneath::{Beneath, Place as Spot, is_plain};
use super::member::{self, END, Extended, HEADER, Header, Kind, Member, Pass, REMOVED, VERSION, is_portable};
use super::snapshot::{OPAQUE, Stamp};
use super::{Error, Place, Target, Totals, TreeName};

/// Bytes written to a file at once.
const PIECE: usize = 256 * 1024;
/// Names and totals fit into this; a list of removed names with more is not ours.
const MAX_NOTE: u64 = 256 << 20;
/// The most entries of an archive. Directories' names are kept to the end, at most 4 KiB each; ten million are more than any image,
/// database or mail store has, and 40 GiB of names would have to arrive before they took as much.
const MAX_ENTRIES: u64 = 10_000_000;

/// Reads the whole archive and writes what it says.
pub(super) fn apply(archive: impl Read, places: &[Place]) -> Result<Totals, Error> {
    let mut applier = Applier { trees: Vec::new(), totals: Totals::default(), buffer: vec![0; PIECE] };
    let mut archive = Archive::new(archive);
    let mut extended: Option<Extended> = None;
    let mut ended = false;
    let mut begun = false;
    for entry in archive.entries().map_err(broken)?.raw(true) {
        let mut entry = entry.map_err(broken)?;
        if ended {
            return Err(Error::malformed("something after its end"));
        }
        if entry.header().entry_type() == EntryType::XHeader {
            extended = Some(member::read_extended(&mut entry)?);
            continue;
        }
        let extended = extended.take().ok_or_else(|| Error::malformed("a member without an extended header"));
        let member = member::read(entry.header(), &extended?)?;
        let name = member.path.to_string_lossy();
        if !begun {
            if name != HEADER {
                return Err(Error::malformed("it does not begin with a header"));
            }
            let header =
                serde_json::from_slice(&note(&mut entry)?).map_err(|error| Error::malformed(error.to_string()))?;
            applier.begin(header, places)?;
            begun = true;
        } else if name == END {
            let told: Totals =
                serde_json::from_slice(&note(&mut entry)?).map_err(|error| Error::malformed(error.to_string()))?;
            if told != applier.totals {
                return Err(Error::malformed("its end does not agree with what it held"));
            }
            ended = true;
        } else if let Some(tree) = name.strip_prefix(REMOVED) {
            applier.remove(tree, &note(&mut entry)?)?;
        } else if applier.totals.entries == MAX_ENTRIES {
            return Err(Error::malformed(format!("more than {MAX_ENTRIES} entries")));
        } else {
            applier.entry(&member, &mut entry)?;
        }
    }
    if !ended {
        return Err(Error::Truncated);
    }
    // The source's padding after the end: read, so that its last write does not fail.
    io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(broken)?;
    applier.finish()?;
    Ok(applier.totals)
}

fn broken(source: io::Error) -> Error {
    match source.kind() {
        io::ErrorKind::UnexpectedEof => Error::Truncated,
        // The thread's end of the stream knows no errors: this is the tar reader's opinion of what it read.
        io::ErrorKind::Other | io::ErrorKind::InvalidData => Error::malformed(source.to_string()),
        _ => Error::Stream { source },
    }
}

fn note(entry: &mut tar::Entry<'_, impl Read>) -> Result<Vec<u8>, Error> {
    if entry.size() > MAX_NOTE {
        return Err(Error::malformed(format!("a note of {} bytes", entry.size())));
    }
    let mut bytes = Vec::new();
    entry.read_to_end(&mut bytes).map_err(broken)?;
    if (bytes.len() as u64) < entry.size() {
        return Err(Error::Truncated);
    }
    Ok(bytes)
}

/// A tree being written.
struct Written {
    name: TreeName,
    root: Beneath,
    /// Through a mounted overlay: whiteouts are removals, and overlayfs keeps its own attributes.
    mounted: bool,
    /// Directories and their times, which are set last as writing into a directory changes them.
    times: Vec<(PathBuf, Stamp)>,
}

struct Applier {
    trees: Vec<Written>,
    totals: Totals,
    buffer: Vec<u8>,
}

impl Applier {
    fn begin(&mut self, header: Header, places: &[Place]) -> Result<(), Error> {
        if header.version != VERSION {
            return Err(Error::malformed(format!("version {}, this is {VERSION}", header.version)));
        }
        for tree in header.trees {
            let unknown = || Error::UnknownTree { tree: tree.to_string() };
            let place = places.iter().find(|place| place.name == tree).ok_or_else(unknown)?;
            let (path, mounted) = match &place.target {
                Target::Raw(path) => (path, false),
                Target::Mounted(path) => (path, true),
            };
            let mut root = Beneath::open(path)?;
            match (header.pass, mounted) {
                (Pass::Full, true) => return Err(Error::FullIntoMounted { path: path.clone() }),
                (Pass::Full, false) => root.clear()?,
                (Pass::Difference, _) => {}
            }
            self.trees.push(Written { name: tree, root, mounted, times: Vec::new() });
        }
        match places.iter().find(|place| !self.trees.iter().any(|tree| tree.name == place.name)) {
            Some(place) => Err(Error::UnknownTree { tree: place.name.to_string() }),
            None => Ok(()),
        }
    }

    /// The tree a name in the archive belongs to, and the path in it.
    fn locate<'a>(&mut self, name: &'a Path) -> Result<(&mut Written, &'a Path), Error> {
        if !is_plain(name) {
            return Err(Error::Escapes { path: name.to_owned() });
        }
        let within = |tree: &TreeName| name.strip_prefix(tree.to_string()).ok();
        let found = self.trees.iter().enumerate().find_map(|(index, tree)| Some((index, within(&tree.name)?)));
        match found {
            Some((index, path)) => Ok((&mut self.trees[index], path)),
            None => Err(Error::UnknownTree { tree: name.display().to_string() }),
        }
    }

    fn remove(&mut self, tree: &str, names: &[u8]) -> Result<(), Error> {
        for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
            let name = Path::new(tree).join(std::ffi::OsStr::from_bytes(name));
            let (tree, path) = self.locate(&name)?;
            if path.as_os_str().is_empty() {
                return Err(Error::Escapes { path: name.clone() });
            }
            let full = tree.root.full(path);
            match tree.root.place(path) {
                Ok(spot) => spot.remove().map_err(Error::io("remove", &full))?,
                Err(Errno::ENOENT | Errno::ENOTDIR) => {}
                Err(errno) => return Err(Error::io("open the directory of", &full)(errno)),
            }
            tree.root.forget();
            self.totals.removed += 1;
        }
        Ok(())
    }

    fn entry(&mut self, member: &Member, contents: &mut impl Read) -> Result<(), Error> {
        let link = match &member.kind {
            Kind::Link { target } => {
                // The link goes to a name of the same tree.
                let (to, path) = self.locate(target)?;
                Some((to.name.clone(), path.to_owned()))
            }
            _ => None,
        };
        let mut buffer = std::mem::take(&mut self.buffer);
        let (tree, path) = self.locate(&member.path)?;
        let written = tree.write(member, path, link, contents, &mut buffer);
        self.buffer = buffer;
        self.totals.bytes += written?;
        self.totals.entries += 1;
        Ok(())
    }

    fn finish(&mut self) -> Result<(), Error> {
        for tree in &mut self.trees {
            for (path, mtime) in std::mem::take(&mut tree.times) {
                let full = tree.root.full(&path);
                let spot = tree.root.place(&path).map_err(Error::io("open the directory of", &full))?;
                set_mtime(&spot, mtime).map_err(Error::io("set the time of", &full))?;
            }
        }
        Ok(())
    }
}

impl Written {
    /// Writes one entry and returns the number of bytes of its contents.
    fn write(
        &mut self,
        member: &Member,
        path: &Path,
        link: Option<(TreeName, PathBuf)>,
        contents: &mut impl Read,
        buffer: &mut [u8],
    ) -> Result<u64, Error> {
        let full = self.root.full(path);
        if path.as_os_str().is_empty() && !matches!(member.kind, Kind::Directory { fresh: false }) {
            return Err(Error::malformed("a tree that is not a directory"));
        }
        // Before the parent directory is remembered for the entry itself.
        let original = match link {
            Some((tree, original)) if tree == self.name && !original.as_os_str().is_empty() => {
                let spot = self.root.place(&original).map_err(Error::io("open the directory of", &full))?;
                let directory = spot.parent.try_clone_to_owned().map_err(Error::io("open the directory of", &full))?;
                Some((directory, spot.name.to_owned()))
            }
            Some(_) => return Err(Error::malformed("a link into another tree")),
            None => None,
        };
        let mounted = self.mounted;
        let layer = self.name == TreeName::Rootfs;
        let spot = self.root.place(path).map_err(Error::io("open the directory of", &full))?;
        let mode = Mode::from_bits_truncate(member.mode);
        let made = |result: nix::Result<()>| result.map_err(Error::io("make", &full));
        let clear = || spot.remove().map_err(Error::io("replace", &full));
        let mut bytes = 0;
        let mut replaced = false;
        match &member.kind {
            Kind::Directory { fresh } => {
                let is_directory =
                    spot.look().is_ok_and(|stat| stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFDIR.bits());
                if *fresh || !is_directory {
                    // Through a mounted overlay this is what makes the new directory opaque.
                    clear()?;
                    made(mkdirat(spot.parent, spot.name, Mode::S_IRWXU))?;
                    replaced = true;
                }
            }
            Kind::Character { rdev: 0 } if layer && mounted => {
                clear()?;
                self.root.forget();
                return Ok(0);
            }
            Kind::Link { .. } => {
                clear()?;
                if let Some((directory, name)) = &original {
                    made(linkat(directory, name.as_os_str(), spot.parent, spot.name, AtFlags::empty()))?;
                }
                return Ok(0);
            }
            Kind::File { size, segments } => {
                clear()?;
                let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL;
                let file = spot.open(flags, Mode::S_IRUSR | Mode::S_IWUSR).map_err(Error::io("make", &full))?;
                let file = File::from(file);
                bytes = fill(&file, *size, segments, contents, buffer, &full)?;
            }
            Kind::Symlink { target } => {
                clear()?;
                made(symlinkat(target.as_os_str(), spot.parent, spot.name))?;
            }
            Kind::Character { rdev } | Kind::Block { rdev } => {
                clear()?;
                let kind = if matches!(member.kind, Kind::Block { .. }) { SFlag::S_IFBLK } else { SFlag::S_IFCHR };
                made(mknodat(spot.parent, spot.name, kind, mode, *rdev))?;
            }
            Kind::Fifo => {
                clear()?;
                made(mknodat(spot.parent, spot.name, SFlag::S_IFIFO, mode, 0))?;
            }
            Kind::Socket => {
                clear()?;
                made(mknodat(spot.parent, spot.name, SFlag::S_IFSOCK, mode, 0))?;
            }
        }
        dress(&spot, member, &self.name, mounted, &full)?;
        if matches!(member.kind, Kind::Directory { .. }) {
            self.times.push((path.to_owned(), member.mtime));
        } else {
            set_mtime(&spot, member.mtime).map_err(Error::io("set the time of", &full))?;
        }
        if replaced {
            self.root.forget();
        }
        Ok(bytes)
    }
}

/// Writes a file's segments; what lies between them stays a hole.
fn fill(
    file: &File,
    size: u64,
    segments: &[(u64, u64)],
    contents: &mut impl Read,
    buffer: &mut [u8],
    full: &Path,
) -> Result<u64, Error> {
    let mut bytes = 0;
    for (offset, length) in segments {
        let (mut at, mut left) = (*offset, *length);
        while left > 0 {
            let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
            let count = match contents.read(&mut buffer[..wanted]) {
                Ok(0) => return Err(Error::Truncated),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(broken(error)),
            };
            file.write_all_at(&buffer[..count], at).map_err(Error::io("write", full))?;
            at += count as u64;
            left -= count as u64;
        }
        bytes += length;
    }
    let written = segments.last().map_or(0, |(offset, length)| offset + length);
    if written < size {
        file.set_len(size).map_err(Error::io("set the size of", full))?;
    }
    Ok(bytes)
}

/// Owner, attributes and mode, in this order: a new owner clears capabilities and set-id bits.
fn dress(spot: &Spot<'_>, member: &Member, tree: &TreeName, mounted: bool, full: &Path) -> Result<(), Error> {
    let layer = *tree == TreeName::Rootfs;
    let (uid, gid) = (Uid::from_raw(member.uid), Gid::from_raw(member.gid));
    let owned = fchownat(spot.parent, spot.name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW);
    owned.map_err(Error::io("set the owner of", full))?;
    let path = spot.proc_path();
    let own = |name: &str| name.starts_with("trusted.overlay.");
    let wanted: HashSet<&OsString> = member.attributes.iter().map(|(name, _)| name).collect();
    if matches!(member.kind, Kind::Directory { .. }) {
        // Directories are not made anew, and may have attributes that the source's has no more.
        let present = match xattr::list(&path) {
            Ok(present) => present.collect(),
            Err(error) if error.raw_os_error() == Some(Errno::EOPNOTSUPP as i32) => Vec::new(),
            Err(error) => return Err(Error::io("list the attributes of", full)(error)),
        };
        for name in present {
            let text = name.to_string_lossy();
            let ours = text.starts_with("user.")
                || text.starts_with("system.posix_acl_")
                || (text.starts_with("trusted.") && !own(&text))
                || (text == OPAQUE && layer && !mounted);
            if ours && !wanted.contains(&name) {
                xattr::remove(&path, &name).map_err(Error::io("remove an attribute of", full))?;
            }
        }
    }
    for (name, value) in &member.attributes {
        if !is_portable(name, tree) || (own(&name.to_string_lossy()) && mounted) {
            continue;
        }
        xattr::set(&path, name, value).map_err(Error::io("set an attribute of", full))?;
    }
    if !matches!(member.kind, Kind::Symlink { .. }) {
        // By a handle: a mode by name would go through a link that somebody puts in the entry's place.
        let handle = spot.open(OFlag::O_PATH, Mode::empty()).map_err(Error::io("open", full))?;
        let handle = PathBuf::from(format!("/proc/self/fd/{}", handle.as_raw_fd()));
        fs::set_permissions(handle, fs::Permissions::from_mode(member.mode & 0o7777))
            .map_err(Error::io("set the mode of", full))?;
    }
    Ok(())
}

/// The access time is told nowhere and becomes the same.
fn set_mtime(spot: &Spot<'_>, (seconds, nanoseconds): Stamp) -> nix::Result<()> {
    let time = TimeSpec::new(seconds, nanoseconds);
    utimensat(spot.parent, spot.name, &time, &time, UtimensatFlags::NoFollowSymlink)
}
