//! The constant parent: a dump in which CRIU moves (nearly) no pages.
//!
//! An incremental dump leaves every page out that is in the images of its parent and has not been written to since. This parent claims to
//! have all pages there can be, and has none: the dump costs CRIU hardly more than one look at the page tables. What it leaves out is
//! in the tasks, which the dump holds ([`super::holes`]).
//!
//! Which pages were written to CRIU asks the kernel's soft-dirty bits. A page that is dirty is dumped as ever, so nothing can be lost:
//!
//! - a kernel that has them: they are cleared once the tasks are frozen.
//! - a kernel that does not have them calls no page dirty. CRIU refuses an incremental dump there, because of what it noted about the
//!   kernel in its cache. A copy of the cache that says otherwise is put over it, for this one CRIU and nobody else.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::time::{ClockId, clock_gettime};

use super::Vpid;
use super::images::{self, ADDRESSES, ImageError};
use crate::command::{self, CommandError};
use crate::private_mounts;

/// CRIU's cache of what it knows about the kernel: its `struct kerndat_s`, as it is in memory (criu/kerndat.c, `KERNDAT_CACHE_FILE`).
const CACHE: &str = "/run/criu.kdat";

/// `KDAT_MAGIC`, the first word of it.
const CACHE_MAGIC: u32 = 0x5702_3458;

/// The longest that is taken for one, in bytes; that of CRIU 4.2 has 912.
const LONGEST_CACHE: usize = 64 << 10;

/// Where `has_dirty_track` is in it (CRIU 2.12 to 4.2, x86-64), in bytes.
const USUAL_OFFSET: usize = 32;

/// Where else it is looked for: behind the two magic words, which must stay right.
const OTHER_OFFSETS: std::ops::Range<usize> = 8..64;

/// How much later than now the parent says it was dumped, in microseconds: CRIU does not trust it about tasks that started after it, and
/// knows their start to 10 ms (criu/mem.c, `detect_pid_reuse`). All tasks are frozen by then.
const LATER: u64 = 1_000_000;

/// A parent for dumps on this host, which CRIU is known to take. Cheap to clone, and good until [`ConstantParent::is_current`] says no.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConstantParent {
    /// The cache that CRIU is to see; `None`: the kernel has soft-dirty bits, and the real one is right.
    cache: Option<Cache>,
}

/// CRIU's cache with soft-dirty bits in it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Cache {
    bytes: Vec<u8>,
    original: Stamp,
}

/// By which another version of a file is known.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    length: u64,
    changed: (i64, i64),
}

/// Why a host's CRIU cannot be given a constant parent. Its dumps then have all pages.
#[derive(Debug, thiserror::Error)]
pub enum Why {
    /// CRIU cannot be run.
    #[error(transparent)]
    Criu(CommandError),
    /// CRIU has written no cache, or it cannot be read.
    #[error("CRIU's cache {path} cannot be read: {source}")]
    NoCache {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It does not look as CRIU writes it.
    #[error("{path} is not CRIU's cache as we know it")]
    OtherCache {
        /// The file.
        path: PathBuf,
    },
    /// Whatever the cache says, CRIU does not believe in soft-dirty bits.
    #[error("this CRIU keeps what it knows of the kernel in a way that we do not know")]
    NotTaken,
    /// CRIU clears the bits of each task that it has dumped, and crashes where the kernel refuses that.
    #[error("the kernel does not let soft-dirty bits be cleared: {source}")]
    Kernel {
        /// What the system said.
        source: io::Error,
    },
    /// A file or a mount of ours could not be made.
    #[error("cannot prepare {path} to try a dump without pages: {source}")]
    Prepare {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl ConstantParent {
    /// Finds out whether CRIU (a path, or a name to be looked up in PATH) takes a constant parent here. Takes 0.1 s, up to 3 s with a CRIU
    /// that we do not know. Needs a directory to write in.
    ///
    /// # Errors
    /// Why it does not.
    pub fn probe(criu: &Path, scratch: &Path) -> Result<Self, Why> {
        if sees_dirty_pages(criu)? {
            return Ok(Self { cache: None });
        }
        clear_dirty_bits("self").map_err(|source| Why::Kernel { source })?;
        let (bytes, original) = read_cache(Path::new(CACHE))?;
        let file = scratch.join("criu.kdat");
        let found = offsets(&bytes).find_map(|offset| {
            let mut bytes = bytes.clone();
            bytes[offset] = 1;
            match believed(criu, &file, &bytes) {
                Ok(true) => Some(Ok(bytes)),
                Ok(false) => None,
                Err(why) => Some(Err(why)),
            }
        });
        let _ = fs::remove_file(&file);
        let bytes = found.unwrap_or(Err(Why::NotTaken))?;
        Ok(Self { cache: Some(Cache { bytes, original }) })
    }

    /// That of a kernel with soft-dirty bits.
    #[cfg(test)]
    pub(crate) fn for_tests() -> Self {
        Self { cache: None }
    }

    /// Whether what was found still holds: CRIU has not written its cache anew. If not, probe again.
    pub fn is_current(&self) -> bool {
        let Some(cache) = &self.cache else { return true };
        fs::metadata(CACHE).is_ok_and(|metadata| Stamp::of(&metadata) == cache.original)
    }

    /// Makes the parent of tasks with these ids, all of which have started, in `directory`: in the place of what is there.
    ///
    /// # Errors
    /// What the file system says.
    pub fn make(&self, directory: &Path, vpids: impl IntoIterator<Item = Vpid>) -> io::Result<()> {
        match fs::remove_dir_all(directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        fs::create_dir(directory)?;
        let uptime = clock_gettime(ClockId::CLOCK_BOOTTIME)?;
        let uptime = uptime.tv_sec().cast_unsigned() * 1_000_000 + uptime.tv_nsec().cast_unsigned() / 1_000;
        let written = || {
            images::write_inventory(directory, uptime + LATER)?;
            vpids.into_iter().try_for_each(|vpid| images::write_parent(directory, vpid, Some(0..ADDRESSES)))
        };
        written().map_err(|error| match error {
            ImageError::Access { source, .. } => source,
            other => io::Error::other(other),
        })
    }

    /// Marks every page of process `pid`, frozen, as not written to: CRIU leaves it to its parent. Whoever follows the writes of
    /// this process by its soft-dirty bits must have looked before. Nothing to do where the kernel has none.
    ///
    /// # Errors
    /// The process cannot be written to; one that is gone is no error.
    pub fn clear_dirty(&self, pid: i32) -> io::Result<()> {
        if self.cache.is_some() {
            return Ok(());
        }
        match clear_dirty_bits(&pid.to_string()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH) => {
                Ok(())
            }
            other => other,
        }
    }

    /// Writes the cache that CRIU is to see to `file`; `None` when it is to see the real one.
    ///
    /// # Errors
    /// What the file system says.
    pub(crate) fn write_cache<'a>(&self, file: &'a Path) -> io::Result<Option<CacheCover<'a>>> {
        let Some(cache) = &self.cache else { return Ok(None) };
        write_private(file, &cache.bytes)?;
        Ok(Some(CacheCover { file }))
    }
}

/// A cache that lies ready.
#[derive(Debug)]
pub(crate) struct CacheCover<'a> {
    file: &'a Path,
}

impl CacheCover<'_> {
    /// Puts it over the real one, in the mount namespace of the calling thread, which must be a private one.
    ///
    /// # Errors
    /// The mount fails; so it does where the real one is missing.
    pub(crate) fn mount(&self) -> io::Result<()> {
        private_mounts::bind(self.file, Path::new(CACHE))
    }
}

impl Stamp {
    fn of(metadata: &fs::Metadata) -> Self {
        Self { inode: metadata.ino(), length: metadata.len(), changed: (metadata.ctime(), metadata.ctime_nsec()) }
    }
}

/// Clears the soft-dirty bits of a process, by its name in /proc; without effect where there are none.
fn clear_dirty_bits(process: &str) -> io::Result<()> {
    // 4 is for these bits (proc(5)).
    File::options().write(true).open(format!("/proc/{process}/clear_refs"))?.write_all(b"4")
}

/// What CRIU says of this kernel. Writes its cache if there is none.
fn sees_dirty_pages(criu: &Path) -> Result<bool, Why> {
    match command::run(Command::new(criu).args(["check", "--feature", "mem_dirty_track"]), None) {
        Ok(_) => Ok(true),
        Err(CommandError::Failed { .. }) => Ok(false),
        Err(error) => Err(Why::Criu(error)),
    }
}

fn read_cache(path: &Path) -> Result<(Vec<u8>, Stamp), Why> {
    let read = fs::read(path).and_then(|bytes| Ok((bytes, Stamp::of(&fs::metadata(path)?))));
    let (bytes, stamp) = read.map_err(|source| Why::NoCache { path: path.to_owned(), source })?;
    let known =
        bytes.starts_with(&CACHE_MAGIC.to_le_bytes()) && (OTHER_OFFSETS.end..LONGEST_CACHE).contains(&bytes.len());
    if known { Ok((bytes, stamp)) } else { Err(Why::OtherCache { path: path.to_owned() }) }
}

/// The bytes that could be a `has_dirty_track` that is false.
fn offsets(cache: &[u8]) -> impl Iterator<Item = usize> {
    let others = OTHER_OFFSETS.filter(|offset| *offset != USUAL_OFFSET);
    std::iter::once(USUAL_OFFSET).chain(others).filter(|offset| cache.get(*offset) == Some(&0))
}

/// Does CRIU see soft-dirty bits when its cache is `bytes`? If so, that byte is the right one: CRIU answers with this very field
/// (criu/cr-check.c, `check_mem_dirty_track`).
fn believed(criu: &Path, file: &Path, bytes: &[u8]) -> Result<bool, Why> {
    let prepare = |source| Why::Prepare { path: file.to_owned(), source };
    write_private(file, bytes).map_err(prepare)?;
    private_mounts::within(|| {
        CacheCover { file }.mount().map_err(prepare)?;
        sees_dirty_pages(criu)
    })
    .map_err(prepare)?
}

fn write_private(file: &Path, bytes: &[u8]) -> io::Result<()> {
    let _ = fs::remove_file(file);
    File::options().write(true).create_new(true).mode(0o600).open(file)?.write_all(bytes)
}

#[cfg(test)]
mod tests {
    use super::super::images::{Entry, MOST_RUNS, PE_PRESENT, Pagemap};
    use super::*;

    #[test]
    fn a_parent_claims_every_page_and_has_none() {
        let scratch = tempfile::tempdir().unwrap();
        let directory = scratch.path().join("parent");
        let parent = ConstantParent { cache: None };
        parent.make(&directory, [77]).unwrap();
        parent.make(&directory, [1, 12]).unwrap();
        let mut names: Vec<_> = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["inventory.img", "pagemap-1.img", "pagemap-12.img", "pages-1.img", "pages-12.img"]);
        let all = vec![Entry { range: 0..ADDRESSES, flags: PE_PRESENT }];
        assert_eq!(Pagemap::read(&directory, 12, MOST_RUNS).unwrap().unwrap(), Pagemap { pages_id: 12, entries: all });
        assert_eq!(fs::metadata(directory.join("pages-12.img")).unwrap().len(), 0);
        // One magic word, a length, and the fields 1 and 8.
        let inventory = fs::read(directory.join("inventory.img")).unwrap();
        assert_eq!(inventory[..11], [0x16, 0x31, 0x31, 0x58, (inventory.len() - 8) as u8, 0, 0, 0, 8, 2, 0x40]);
    }

    #[test]
    fn the_usual_place_is_tried_first_and_the_magic_words_never() {
        let mut cache = vec![0; 912];
        cache[40] = 3;
        let tried: Vec<usize> = offsets(&cache).collect();
        assert_eq!((tried[0], tried.len()), (USUAL_OFFSET, OTHER_OFFSETS.len() - 1));
        assert!(tried.iter().all(|offset| *offset >= 8 && *offset != 40));
        assert_eq!(tried.iter().filter(|offset| **offset == USUAL_OFFSET).count(), 1);
    }

    #[test]
    fn what_is_not_crius_cache_is_left_alone() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("criu.kdat");
        assert!(matches!(read_cache(&path), Err(Why::NoCache { .. })));
        for bytes in [vec![], vec![0; 912], CACHE_MAGIC.to_le_bytes().to_vec()] {
            fs::write(&path, bytes).unwrap();
            assert!(matches!(read_cache(&path), Err(Why::OtherCache { .. })));
        }
        let mut cache = CACHE_MAGIC.to_le_bytes().to_vec();
        cache.resize(912, 0);
        fs::write(&path, &cache).unwrap();
        let (bytes, stamp) = read_cache(&path).unwrap();
        assert_eq!(bytes, cache);
        fs::write(scratch.path().join("new"), &cache).unwrap();
        fs::rename(scratch.path().join("new"), &path).unwrap();
        assert_ne!(stamp, Stamp::of(&fs::metadata(&path).unwrap()));
    }

    #[test]
    fn a_host_without_criu_has_no_constant_parent() {
        let scratch = tempfile::tempdir().unwrap();
        let why = ConstantParent::probe(Path::new("/nonexistent/criu"), scratch.path()).unwrap_err();
        assert!(matches!(why, Why::Criu(CommandError::Spawn { .. })), "{why}");
    }

    #[test]
    fn dirty_bits_are_cleared_only_where_there_are_some_and_of_who_is_there() {
        let patched = ConstantParent {
            cache: Some(Cache { bytes: vec![], original: Stamp { inode: 0, length: 0, changed: (0, 0) } }),
        };
        // No process has an id above the kernel's limit (2^22).
        patched.clear_dirty(1 << 23).unwrap();
        assert!(!patched.is_current());
        let plain = ConstantParent { cache: None };
        plain.clear_dirty(1 << 23).unwrap();
        assert!(plain.is_current());
    }

    #[test]
    fn nothing_is_dirty_after_it_was_cleared_until_it_is_written() {
        use crate::memory::pagemap::{Pagemap as Pages, has_soft_dirty};
        use crate::memory::private_anonymous;
        use crate::memory::tracking::tests::REQUIRED;
        use std::io::Read;
        use std::process::Stdio;

        if !has_soft_dirty() {
            // Where it is said to be there, it must be.
            assert!(!std::env::var(REQUIRED).is_ok_and(|methods| methods.contains("soft-dirty")));
            return;
        }
        // Other tests would see their own bits cleared, so this has a process of its own, which waits for what it then writes.
        let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let mut echo = |byte: u8| {
            stdin.write_all(&[byte]).unwrap();
            let mut answer = [0];
            stdout.read_exact(&mut answer).unwrap();
            assert_eq!(answer, [byte]);
        };
        echo(1);
        let pid = child.id().cast_signed();
        // It has answered when it is not asleep yet, and may write a little more.
        while !fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap().starts_with("0 ") {
            std::thread::yield_now();
        }
        let dirty = || {
            let pagemap = Pages::open(pid).unwrap();
            let mut count = 0;
            for range in private_anonymous(pid).unwrap().iter() {
                pagemap
                    .entries(range, |_, entry| count += u32::from(entry.holds_data() && entry.is_soft_dirty()))
                    .unwrap();
            }
            count
        };
        assert!(dirty() > 0);
        ConstantParent { cache: None }.clear_dirty(pid).unwrap();
        assert_eq!(dirty(), 0);
        echo(2);
        assert!(dirty() > 0);
        drop(stdin);
        child.wait().unwrap();
    }
}
