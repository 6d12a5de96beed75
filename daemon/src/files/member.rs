//! The archive's format: POSIX tar with extended headers (pax), which GNU tar and bsdtar list and unpack too.
//!
//! ```text
//! .spothop            Header as JSON: version, pass, names of the trees
//! .removed/<tree>     pass 2 only: names to be removed, each followed by a zero byte
//! <tree>/<path>       an entry, after its extended header; <tree> alone is the tree's own directory
//! …
//! .end                Totals as JSON: without it the archive is cut short
//! ```
//!
//! Every entry has an extended header with `path` (any bytes), `linkpath`, `mtime` with nanoseconds, and `SCHILY.xattr.<name>`. Sparse
//! files are in GNU's pax format 0.1 (`GNU.sparse.size`, `.numblocks`, `.map`). Two keys are ours: `SPOTHOP.socket` makes an empty file a
//! socket, for which tar has no type, and `SPOTHOP.fresh` says of a directory that nothing which was there before stays.
//!
//! The `tar` crate reads and writes the blocks. Its own reader of extended headers splits them at line feeds, which file
//! names and binary attributes may contain, so they are taken apart here, by their lengths.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tar::{Builder, EntryType};

use super::snapshot::Stamp;
use super::{Error, TreeName};

/// Version of this format. A reader refuses any other.
pub(super) const VERSION: u32 = 1;
/// Name of the first member.
pub(super) const HEADER: &str = ".spothop";
/// Name of the members that list removed names, followed by the tree's name.
pub(super) const REMOVED: &str = ".removed/";
/// Name of the last member.
pub(super) const END: &str = ".end";
/// More than Linux allows for all attributes, names and link targets of a file together (64 KiB each for names and values), with room for a
/// sparse map. A longer extended header is not ours.
const MAX_EXTENDED: u64 = 4 << 20;
/// Files in more pieces than this are sent with their holes filled.
pub(super) const MAX_SEGMENTS: usize = 16_384;

/// Overlayfs attributes that mean the same on another host with the same image. The others (origin, impure, nlink, uuid…) name inodes.
const OVERLAY_KEPT: [&str; 3] = ["opaque", "redirect", "metacopy"];

const XATTR: &str = "SCHILY.xattr.";
const SOCKET: &str = "SPOTHOP.socket";
const FRESH: &str = "SPOTHOP.fresh";
const SPARSE_SIZE: &str = "GNU.sparse.size";
const SPARSE_MAP: &str = "GNU.sparse.map";
const SPARSE_BLOCKS: &str = "GNU.sparse.numblocks";

/// The first member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Header {
    pub(super) version: u32,
    pub(super) pass: Pass,
    pub(super) trees: Vec<TreeName>,
}

/// Which of the two passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Pass {
    Full,
    Difference,
}

/// Kind of an entry, with what only that kind has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    Directory {
        /// Nothing that was there before stays.
        fresh: bool,
    },
    File {
        size: u64,
        /// Offset and length of what is not a hole, in order; their bytes follow, one after the other.
        segments: Vec<(u64, u64)>,
    },
    Symlink {
        target: OsString,
    },
    /// Another name of an entry of the same tree that came before.
    Link {
        target: PathBuf,
    },
    Character {
        rdev: u64,
    },
    Block {
        rdev: u64,
    },
    Fifo,
    Socket,
}

/// An entry without its contents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Member {
    /// The tree's name and the path in it: `rootfs/etc/passwd`.
    pub(super) path: PathBuf,
    pub(super) kind: Kind,
    /// Permissions with set-id and sticky bits.
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Stamp,
    /// Extended attributes, by name.
    pub(super) attributes: Vec<(OsString, Vec<u8>)>,
}

impl Member {
    /// Writes the member; `contents` gives as many bytes as the segments say, and is not read for other kinds.
    pub(super) fn write(&self, archive: &mut Builder<impl Write>, contents: impl Read) -> io::Result<()> {
        let mut extended = Extended::default();
        extended.add("path", self.path.as_os_str().as_bytes());
        let (seconds, nanoseconds) = self.mtime;
        extended.add("mtime", stamp_text(seconds, nanoseconds).as_bytes());
        for (name, value) in &self.attributes {
            extended.add(&format!("{XATTR}{}", escape(name)), value);
        }
        let mut header = tar::Header::new_ustar();
        let mut stored = 0;
        let kind = match &self.kind {
            Kind::Directory { fresh } => {
                if *fresh {
                    extended.add(FRESH, b"1");
                }
                EntryType::Directory
            }
            Kind::File { size, segments } => {
                stored = segments.iter().map(|(_, length)| length).sum();
                if stored != *size {
                    let numbers = segments.iter().flat_map(|(offset, length)| [offset, length]);
                    let map = numbers.map(u64::to_string).collect::<Vec<_>>().join(",");
                    extended.add(SPARSE_SIZE, size.to_string().as_bytes());
                    extended.add(SPARSE_BLOCKS, segments.len().to_string().as_bytes());
                    extended.add(SPARSE_MAP, map.as_bytes());
                }
                EntryType::Regular
            }
            Kind::Symlink { target } => {
                extended.add("linkpath", target.as_bytes());
                EntryType::Symlink
            }
            Kind::Link { target } => {
                extended.add("linkpath", target.as_os_str().as_bytes());
                EntryType::Link
            }
            Kind::Character { rdev } | Kind::Block { rdev } => {
                // Seven octal digits each; Linux has 12 and 20 bits.
                header.set_device_major(nix::sys::stat::major(*rdev) as u32)?;
                header.set_device_minor(nix::sys::stat::minor(*rdev) as u32)?;
                if matches!(self.kind, Kind::Character { .. }) { EntryType::Char } else { EntryType::Block }
            }
            Kind::Fifo => EntryType::Fifo,
            Kind::Socket => {
                extended.add(SOCKET, b"1");
                EntryType::Regular
            }
        };
        archive.append(&extended.header(), extended.bytes.as_slice())?;
        header.set_entry_type(kind);
        header.set_size(stored);
        header.set_mode(self.mode);
        header.set_uid(self.uid.into());
        header.set_gid(self.gid.into());
        header.set_mtime(u64::try_from(seconds).unwrap_or(0));
        // Readers take the name from the extended header; this one is for people who look at the bytes.
        let name = self.path.as_os_str().as_bytes();
        let shown = name.len().min(99);
        header.as_old_mut().name[..shown].copy_from_slice(&name[..shown]);
        header.set_cksum();
        archive.append(&header, contents)
    }
}

/// Writes a member of the archive itself: JSON or names.
pub(super) fn write_note(archive: &mut Builder<impl Write>, name: &str, bytes: &[u8]) -> io::Result<()> {
    let mut extended = Extended::default();
    extended.add("path", name.as_bytes());
    extended.add("mtime", b"0");
    archive.append(&extended.header(), extended.bytes.as_slice())?;
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(EntryType::Regular);
    header.set_size(bytes.len() as u64);
    header.set_mode(0o600);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    let shown = name.len().min(99);
    header.as_old_mut().name[..shown].copy_from_slice(&name.as_bytes()[..shown]);
    header.set_cksum();
    archive.append(&header, bytes)
}

/// Reads an extended header's bytes.
pub(super) fn read_extended(entry: &mut tar::Entry<'_, impl Read>) -> Result<Extended, Error> {
    if entry.size() > MAX_EXTENDED {
        return Err(Error::malformed(format!("an extended header of {} bytes", entry.size())));
    }
    let mut bytes = Vec::new();
    entry.read_to_end(&mut bytes).map_err(|source| Error::Stream { source })?;
    Ok(Extended { bytes })
}

/// Puts a member together from its extended and its ordinary header.
pub(super) fn read(header: &tar::Header, extended: &Extended) -> Result<Member, Error> {
    let bad = |what: &str| Error::malformed(what);
    let number = |value: io::Result<u64>| value.ok().and_then(|value| u32::try_from(value).ok());
    let mut path = None;
    let mut link = None;
    let mut mtime = None;
    let mut attributes = Vec::new();
    let (mut socket, mut fresh) = (false, false);
    let (mut sparse_size, mut sparse_map) = (None, None);
    for record in extended.records() {
        let (key, value) = record?;
        match key {
            "path" => path = Some(PathBuf::from(OsString::from_vec(value.to_vec()))),
            "linkpath" => link = Some(OsString::from_vec(value.to_vec())),
            "mtime" => mtime = Some(parse_stamp(value).ok_or_else(|| bad("mtime"))?),
            SOCKET => socket = true,
            FRESH => fresh = true,
            SPARSE_SIZE => sparse_size = Some(parse_number(value).ok_or_else(|| bad(SPARSE_SIZE))?),
            SPARSE_MAP => sparse_map = Some(value),
            key => {
                if let Some(name) = key.strip_prefix(XATTR) {
                    attributes.push((unescape(name), value.to_vec()));
                }
            }
        }
    }
    let stored = header.entry_size().map_err(|_| bad("size"))?;
    let device = || {
        let part = |value: io::Result<Option<u32>>| value.ok().flatten().ok_or_else(|| bad("device number"));
        Ok(nix::sys::stat::makedev(part(header.device_major())?.into(), part(header.device_minor())?.into()))
    };
    let link = || link.clone().ok_or_else(|| bad("a link without its target"));
    let kind = match header.entry_type() {
        EntryType::Directory => Kind::Directory { fresh },
        EntryType::Regular if socket => Kind::Socket,
        EntryType::Regular => match (sparse_size, sparse_map) {
            (Some(size), Some(map)) => {
                Kind::File { size, segments: parse_map(map, size, stored).ok_or_else(|| bad(SPARSE_MAP))? }
            }
            (None, None) => Kind::File { size: stored, segments: if stored == 0 { vec![] } else { vec![(0, stored)] } },
            _ => return Err(bad("half of a sparse file")),
        },
        EntryType::Symlink => Kind::Symlink { target: link()? },
        EntryType::Link => Kind::Link { target: link()?.into() },
        EntryType::Char => Kind::Character { rdev: device()? },
        EntryType::Block => Kind::Block { rdev: device()? },
        EntryType::Fifo => Kind::Fifo,
        other => return Err(Error::malformed(format!("a member of the type {other:?}"))),
    };
    if stored != 0 && !matches!(kind, Kind::File { .. }) {
        return Err(bad("contents of something that is not a file"));
    }
    Ok(Member {
        path: path.ok_or_else(|| bad("a member without its path"))?,
        kind,
        mode: header.mode().map_err(|_| bad("mode"))? & 0o7777,
        uid: number(header.uid()).ok_or_else(|| bad("uid"))?,
        gid: number(header.gid()).ok_or_else(|| bad("gid"))?,
        mtime: mtime.ok_or_else(|| bad("a member without its mtime"))?,
        attributes,
    })
}

/// The records of an extended header: `<length> <key>=<value>\n`, the length counting all of it.
#[derive(Debug, Default)]
pub(super) struct Extended {
    bytes: Vec<u8>,
}

impl Extended {
    fn add(&mut self, key: &str, value: &[u8]) {
        // Space, equals sign and line feed, then the digits of a length that counts itself.
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while length != rest + length.to_string().len() {
            length = rest + length.to_string().len();
        }
        self.bytes.extend_from_slice(format!("{length} {key}=").as_bytes());
        self.bytes.extend_from_slice(value);
        self.bytes.push(b'\n');
    }

    fn header(&self) -> tar::Header {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(EntryType::XHeader);
        header.set_size(self.bytes.len() as u64);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.as_old_mut().name[..10].copy_from_slice(b"PaxHeaders");
        header.set_cksum();
        header
    }

    fn records(&self) -> impl Iterator<Item = Result<(&str, &[u8]), Error>> {
        let mut rest = self.bytes.as_slice();
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            match record(rest) {
                Some((key, value, length)) => {
                    rest = &rest[length..];
                    Some(Ok((key, value)))
                }
                None => {
                    rest = &[];
                    Some(Err(Error::malformed("an extended header")))
                }
            }
        })
    }
}

/// The first record of `bytes`: key, value, length of the whole.
fn record(bytes: &[u8]) -> Option<(&str, &[u8], usize)> {
    let space = bytes.iter().position(|byte| *byte == b' ')?;
    let length: usize = std::str::from_utf8(&bytes[..space]).ok()?.parse().ok()?;
    let record = bytes.get(space + 1..length)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    Some((std::str::from_utf8(&record[..equals]).ok()?, &record[equals + 1..], length))
}

/// Attribute names may contain what ends a key: `%` and `=` are written as GNU tar does.
fn escape(name: &OsStr) -> String {
    name.to_string_lossy().replace('%', "%25").replace('=', "%3D")
}

fn unescape(name: &str) -> OsString {
    name.replace("%3D", "=").replace("%25", "%").into()
}

/// `seconds.nanoseconds`; times before 1970 are negative decimals, as POSIX has them.
fn stamp_text(seconds: i64, nanoseconds: i64) -> String {
    if seconds >= 0 || nanoseconds == 0 {
        return format!("{seconds}.{nanoseconds:09}");
    }
    format!("-{}.{:09}", -(seconds + 1), 1_000_000_000 - nanoseconds)
}

fn parse_stamp(text: &[u8]) -> Option<Stamp> {
    let text = std::str::from_utf8(text).ok()?;
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let negative = seconds.starts_with('-');
    let seconds: i64 = seconds.parse().ok()?;
    let digits = fraction.get(..fraction.len().min(9))?;
    let fraction: i64 = format!("{digits:0<9}").parse().ok().filter(|fraction| *fraction >= 0)?;
    Some(if negative && fraction > 0 { (seconds - 1, 1_000_000_000 - fraction) } else { (seconds, fraction) })
}

/// Whether an attribute means the same on another host. `security.selinux` and the like belong to a host's policy; `system.*` other than
/// access lists to its filesystem. Neither is sent, nor set for whoever sends it.
pub(super) fn is_portable(name: &OsStr, tree: &TreeName) -> bool {
    let Some(name) = name.to_str() else { return false };
    if let Some(overlay) = name.strip_prefix("trusted.overlay.") {
        return *tree == TreeName::Rootfs && OVERLAY_KEPT.contains(&overlay);
    }
    name.starts_with("user.")
        || name.starts_with("trusted.")
        || name.starts_with("system.posix_acl_")
        || name == "security.capability"
}

fn parse_number(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// `offset,length,…`: in order, without overlaps, within the file, and as long together as what is stored.
fn parse_map(text: &[u8], size: u64, stored: u64) -> Option<Vec<(u64, u64)>> {
    let text = std::str::from_utf8(text).ok()?;
    let numbers = text.split(',').filter(|number| !number.is_empty());
    let numbers = numbers.map(|number| number.parse::<u64>().ok()).collect::<Option<Vec<_>>>()?;
    let (mut segments, mut end, mut total) = (Vec::new(), 0_u64, 0_u64);
    for pair in numbers.chunks(2) {
        let &[offset, length] = pair else { return None };
        if offset < end {
            return None;
        }
        end = offset.checked_add(length)?;
        total = total.checked_add(length)?;
        segments.push((offset, length));
    }
    (end <= size && total == stored).then_some(segments)
}

#[cfg(test)]
#[path = "member_tests.rs"]
mod tests;
