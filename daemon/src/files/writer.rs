//! The source's side: trees become an archive.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::fcntl::{OFlag, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};
use nix::unistd::{Whence, lseek, syncfs};
use tar::Builder;

use super::beneath::{Beneath, Place};
use super::member::{END, HEADER, Header, Kind, MAX_SEGMENTS, Member, Pass, REMOVED, VERSION, is_portable, write_note};
use super::snapshot::{Seen, Snapshot, Stamp, is_gone, kinds, list};
use super::{Error, Totals, Tree, TreeName};

/// Holes shorter than this are sent as zeros: a segment costs more than it saves.
const SHORT_HOLE: u64 = 64 * 1024;
/// Bytes read from a file at once.
const PIECE: usize = 256 * 1024;
/// Files changed within this time may have pages that are dirty through a mapping, and are synced before they are read.
/// The kernel writes dirty pages back within `vm.dirty_expire_centisecs`, 30 s unless set otherwise.
const MAY_BE_DIRTY: Duration = Duration::from_secs(3600);
/// More files than this are synced together with everything else of their filesystem: each sync of one file waits for the disk, some
/// milliseconds; one of a filesystem waits for all that is dirty on it.
const SYNC_SINGLY: usize = 100;

/// Pass 1.
pub(super) fn full(trees: &[Tree], out: impl Write) -> Result<(Snapshot, Totals), Error> {
    let mut writer = Writer::begin(trees, Pass::Full, out)?;
    let mut snapshot = Snapshot::default();
    for tree in trees {
        let (mut root, listing) = list(tree)?;
        let recent = listing.entries.iter().filter(|(_, seen)| seen.is_file() && may_be_dirty(seen.ctime)).count();
        writer.sync_singly = recent <= SYNC_SINGLY;
        if !writer.sync_singly {
            syncfs(root.as_fd()).map_err(Error::io("sync the filesystem of", &tree.directory))?;
        }
        // A directory that is not there any more takes with it what was seen in it.
        let mut skipped: Option<&Path> = None;
        writer.links.clear();
        for (path, seen) in &listing.entries {
            if skipped.is_some_and(|directory| path.starts_with(directory)) {
                continue;
            }
            if !writer.entry(tree, &mut root, path, seen, false)? && seen.is_dir() {
                skipped = Some(path);
            }
        }
        snapshot.trees.insert(tree.name.clone(), listing);
    }
    Ok((snapshot, writer.end()?))
}

/// Pass 2.
pub(super) fn difference(trees: &[Tree], before: &Snapshot, out: impl Write) -> Result<(Snapshot, Totals), Error> {
    let mut writer = Writer::begin(trees, Pass::Difference, out)?;
    let mut snapshot = Snapshot::default();
    for tree in trees {
        let (mut root, now) = list(tree)?;
        let unknown = || Error::UnknownTree { tree: tree.name.to_string() };
        let changes = before.trees.get(&tree.name).ok_or_else(unknown)?.difference(&now);
        if !changes.removed.is_empty() {
            let mut names = Vec::new();
            for path in &changes.removed {
                names.extend_from_slice(path.as_os_str().as_bytes());
                names.push(0);
            }
            let note = format!("{REMOVED}{}", tree.name);
            write_note(&mut writer.archive, &note, &names).map_err(stream)?;
            writer.totals.removed += changes.removed.len() as u64;
        }
        writer.links.clear();
        for (path, seen) in &changes.changed {
            if !writer.entry(tree, &mut root, path, seen, changes.fresh.contains(path))? {
                return Err(Error::Changed { path: root.full(path) });
            }
        }
        snapshot.trees.insert(tree.name.clone(), now);
    }
    Ok((snapshot, writer.end()?))
}

/// Size of the trees, without reading them.
pub(super) fn measure(trees: &[Tree]) -> Result<Totals, Error> {
    let mut totals = Totals::default();
    for tree in trees {
        let (_, listing) = list(tree)?;
        totals.entries += listing.entries.len() as u64;
        let files = listing.entries.iter().filter(|(_, seen)| seen.is_file());
        totals.bytes += files.map(|(_, seen)| u64::try_from(seen.size).unwrap_or(0)).sum::<u64>();
    }
    Ok(totals)
}

fn stream(source: io::Error) -> Error {
    Error::Stream { source }
}

struct Writer<W: Write> {
    archive: Builder<W>,
    pass: Pass,
    totals: Totals,
    /// Each file has to be synced before it is read.
    sync_singly: bool,
    /// Inodes with several names that were sent, by device, number and change time: a number may be used again while we read.
    links: HashMap<(u64, u64, Stamp), PathBuf>,
}

impl<W: Write> Writer<W> {
    fn begin(trees: &[Tree], pass: Pass, out: W) -> Result<Self, Error> {
        let mut archive = Builder::new(out);
        let header = Header { version: VERSION, pass, trees: trees.iter().map(|tree| tree.name.clone()).collect() };
        let header = serde_json::to_vec(&header).map_err(|error| stream(error.into()))?;
        write_note(&mut archive, HEADER, &header).map_err(stream)?;
        Ok(Self { archive, pass, totals: Totals::default(), sync_singly: false, links: HashMap::new() })
    }

    fn end(mut self) -> Result<Totals, Error> {
        let totals = serde_json::to_vec(&self.totals).map_err(|error| stream(error.into()))?;
        write_note(&mut self.archive, END, &totals).map_err(stream)?;
        self.archive.into_inner().and_then(|mut out| out.flush()).map_err(stream)?;
        Ok(self.totals)
    }

    /// Sends one entry as it is now. `false`: it is gone, or a directory has become something else.
    fn entry(&mut self, tree: &Tree, root: &mut Beneath, path: &Path, seen: &Seen, fresh: bool) -> Result<bool, Error> {
        let full = root.full(path);
        let place = match root.place(path) {
            Ok(place) => place,
            Err(errno) if is_gone(errno) => return Ok(false),
            Err(errno) => return Err(Error::io("open the directory of", &full)(errno)),
        };
        match self.entry_at(tree, place, path, &full, seen, fresh) {
            // Pass 1 reads a tree that is alive.
            Err(Error::Io { source, .. }) if source.raw_os_error().is_some_and(|raw| is_gone(Errno::from_raw(raw))) => {
                root.forget();
                Ok(false)
            }
            sent => sent,
        }
    }

    fn entry_at(
        &mut self,
        tree: &Tree,
        place: Place<'_>,
        path: &Path,
        full: &Path,
        seen: &Seen,
        fresh: bool,
    ) -> Result<bool, Error> {
        // O_PATH opens nothing but the name: a fifo does not block, a device does not act.
        let handle = place.open(OFlag::O_PATH, Mode::empty()).map_err(Error::io("open", full))?;
        let stat = fstat(&handle).map_err(Error::io("look at", full))?;
        let now = Seen::new(&stat, seen.opaque).in_layer(tree.name == TreeName::Rootfs);
        if now.is_dir() != seen.is_dir() || (self.pass == Pass::Difference && now != *seen) {
            return Ok(false);
        }
        let in_archive = |path: &Path| PathBuf::from(tree.name.to_string()).join(path);
        let mut member = Member {
            path: if path.as_os_str().is_empty() { tree.name.to_string().into() } else { in_archive(path) },
            kind: Kind::Fifo,
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime: (stat.st_mtime, stat.st_mtime_nsec),
            attributes: Vec::new(),
        };
        let inode = (now.device, now.inode, now.ctime);
        if !now.is_dir()
            && now.links > 1
            && let Some(first) = self.links.get(&inode)
        {
            member.kind = Kind::Link { target: first.clone() };
            self.put(&member, io::empty())?;
            return Ok(true);
        }
        member.attributes = self.attributes(tree, &place, full)?;
        let kind = SFlag::from_bits_truncate(stat.st_mode & kinds::MASK);
        member.kind = match kind {
            SFlag::S_IFDIR => Kind::Directory { fresh },
            SFlag::S_IFLNK => Kind::Symlink { target: readlinkat(&handle, "").map_err(Error::io("read", full))? },
            SFlag::S_IFCHR => Kind::Character { rdev: stat.st_rdev },
            SFlag::S_IFBLK => Kind::Block { rdev: stat.st_rdev },
            SFlag::S_IFIFO => Kind::Fifo,
            SFlag::S_IFSOCK => Kind::Socket,
            _ => {
                self.file(&handle, member.clone(), full, &stat)?;
                self.remember(inode, &member.path, now.links);
                return Ok(true);
            }
        };
        self.put(&member, io::empty())?;
        self.remember(inode, &member.path, if now.is_dir() { 0 } else { now.links });
        Ok(true)
    }

    fn remember(&mut self, inode: (u64, u64, Stamp), path: &Path, links: u64) {
        if links > 1 {
            self.links.insert(inode, path.to_owned());
        }
    }

    fn put(&mut self, member: &Member, contents: impl Read) -> Result<(), Error> {
        self.totals.entries += 1;
        member.write(&mut self.archive, contents).map_err(stream)
    }

    fn file(&mut self, handle: &impl AsRawFd, mut member: Member, full: &Path, stat: &FileStat) -> Result<(), Error> {
        let file = File::open(format!("/proc/self/fd/{}", handle.as_raw_fd())).map_err(Error::io("open", full))?;
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        if self.sync_singly && may_be_dirty((stat.st_ctime, stat.st_ctime_nsec)) {
            file.sync_data().map_err(Error::io("sync", full))?;
        }
        let segments = segments(&file, size).map_err(Error::io("find the holes of", full))?;
        self.totals.bytes += segments.iter().map(|(_, length)| length).sum::<u64>();
        member.kind = Kind::File { size, segments: segments.clone() };
        let mut contents =
            Contents { file: &file, segments, at: 0, exact: self.pass == Pass::Difference, failed: None };
        let written = self.put(&member, &mut contents);
        if let Some(source) = contents.failed {
            return Err(match source.kind() {
                io::ErrorKind::UnexpectedEof => Error::Changed { path: full.to_owned() },
                _ => Error::io("read", full)(source),
            });
        }
        written?;
        if self.pass == Pass::Difference {
            let after = fstat(&file).map_err(Error::io("look at", full))?;
            if Seen::new(&after, false) != Seen::new(stat, false) {
                return Err(Error::Changed { path: full.to_owned() });
            }
        }
        Ok(())
    }

    /// The attributes that mean the same on another host.
    fn attributes(&self, tree: &Tree, place: &Place<'_>, full: &Path) -> Result<Vec<(OsString, Vec<u8>)>, Error> {
        let path = place.proc_path();
        let names = match xattr::list(&path) {
            Ok(names) => names,
            // The filesystem has none.
            Err(error) if error.raw_os_error() == Some(Errno::EOPNOTSUPP as i32) => return Ok(Vec::new()),
            Err(error) => return Err(Error::io("list the attributes of", full)(error)),
        };
        let mut attributes = Vec::new();
        for name in names {
            if !is_portable(&name, &tree.name) {
                continue;
            }
            if tree.name == TreeName::Rootfs && self.pass == Pass::Difference {
                self.refuse_half_moved(&name, full)?;
            }
            let value = xattr::get(&path, &name).map_err(Error::io("read an attribute of", full))?;
            // Absent: removed since it was listed, which changes the time too.
            attributes.extend(value.map(|value| (name, value)));
        }
        attributes.sort();
        Ok(attributes)
    }

    /// These attributes point from the upper directory into the lower ones: true when the overlay is not mounted, which it
    /// may be at the target in pass 2.
    fn refuse_half_moved(&self, name: &OsStr, full: &Path) -> Result<(), Error> {
        for attribute in ["trusted.overlay.redirect", "trusted.overlay.metacopy"] {
            if name == attribute {
                return Err(Error::OverlayAttribute { path: full.to_owned(), attribute });
            }
        }
        Ok(())
    }
}

fn may_be_dirty(ctime: Stamp) -> bool {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let oldest = now.saturating_sub(MAY_BE_DIRTY).as_secs().cast_signed();
    ctime.0 >= oldest
}

/// Where a file is not a hole.
fn segments(file: &File, size: u64) -> nix::Result<Vec<(u64, u64)>> {
    let whole = || if size == 0 { Vec::new() } else { vec![(0, size)] };
    let mut segments: Vec<(u64, u64)> = Vec::new();
    let mut at = 0;
    while at < size {
        let seek = |offset: u64, whence| lseek(file.as_fd(), offset.cast_signed(), whence).map(i64::cast_unsigned);
        let start = match seek(at, Whence::SeekData) {
            Ok(start) if start < size => start,
            // A hole up to the end.
            Ok(_) | Err(Errno::ENXIO) => break,
            // A filesystem that does not know holes.
            Err(Errno::EINVAL | Errno::EOPNOTSUPP) => return Ok(whole()),
            Err(errno) => return Err(errno),
        };
        let end = match seek(start, Whence::SeekHole) {
            Ok(end) => end.min(size),
            Err(Errno::ENXIO) => break,
            Err(errno) => return Err(errno),
        };
        match segments.last_mut() {
            Some((offset, length)) if start - (*offset + *length) < SHORT_HOLE => *length = end - *offset,
            None if start < SHORT_HOLE => segments.push((0, end)),
            _ => segments.push((start, end - start)),
        }
        at = end.max(start + 1);
    }
    Ok(if segments.len() > MAX_SEGMENTS { whole() } else { segments })
}

/// A file's segments, one after the other: exactly as many bytes as they say.
struct Contents<'a> {
    file: &'a File,
    /// What is still to be read.
    segments: Vec<(u64, u64)>,
    /// Index of the present segment.
    at: usize,
    /// A file that has become shorter is an error; else the rest is zeros.
    exact: bool,
    /// Why reading the file (not writing the archive) failed.
    failed: Option<io::Error>,
}

impl Read for &mut Contents<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.segments.get(self.at).is_some_and(|(_, length)| *length == 0) {
            self.at += 1;
        }
        let Some((offset, length)) = self.segments.get_mut(self.at) else { return Ok(0) };
        let wanted = usize::try_from(*length).unwrap_or(usize::MAX).min(buffer.len()).min(PIECE);
        let buffer = &mut buffer[..wanted];
        let read = match self.file.read_at(buffer, *offset) {
            Ok(0) if wanted > 0 && self.exact => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(0) => {
                buffer.fill(0);
                Ok(wanted)
            }
            other => other,
        };
        match read {
            Ok(count) => {
                *offset += count as u64;
                *length -= count as u64;
                Ok(count)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(error),
            Err(error) => {
                let told = io::Error::new(error.kind(), error.to_string());
                self.failed = Some(error);
                Err(told)
            }
        }
    }
}
