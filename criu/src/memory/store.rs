//! The page store at the target: what has arrived of the tasks' memory.
//!
//! One sparse file for each task, named by its [`Vpid`]; a page lies at the offset that is its address, and a hole is a page of zeros, as
//! is everything that nobody has written. The files belong on a tmpfs: other file systems have no offsets as high as addresses.

use std::collections::BTreeSet;
use std::fs::{DirBuilder, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::{Whence, lseek};

use super::images::{ADDRESSES, MOST_TASKS};
use super::{PAGE, PIECE, Vpid};

static ZEROS: [u8; PAGE as usize] = [0; PAGE as usize];

/// The pages that have arrived, in one directory. May be used by several threads at once; who writes the same page twice at the same
/// time gets one or the other.
#[derive(Debug)]
pub struct Store {
    directory: PathBuf,
    /// The tasks that have a file; those of an earlier process are not known until something comes for them again.
    tasks: Mutex<BTreeSet<Vpid>>,
}

impl Store {
    /// The store in `directory`. Nothing is created.
    pub fn at(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into(), tasks: Mutex::default() }
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Makes the directory, readable for us alone.
    ///
    /// # Errors
    /// What the file system says; also when it is there already.
    pub fn create(&self) -> io::Result<()> {
        DirBuilder::new().mode(0o700).create(&self.directory)
    }

    /// Writes pages of `vpid` from `address` on.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] when they are no whole pages of a task; otherwise what the file system says.
    pub fn put(&self, vpid: Vpid, address: u64, bytes: &[u8]) -> io::Result<()> {
        check(vpid, address, bytes.len() as u64)?;
        let file = self.made(vpid)?;
        let (pages, _) = bytes.as_chunks::<{ PAGE as usize }>();
        let mut at = address;
        for run in pages.chunk_by(|one, other| (*one == ZEROS) == (*other == ZEROS)) {
            let end = at + run.as_flattened().len() as u64;
            match run[0] == ZEROS {
                true => punch(&file, at..end)?,
                false => file.write_all_at(run.as_flattened(), at)?,
            }
            at = end;
        }
        Ok(())
    }

    /// Makes `length` bytes of `vpid` from `address` on pages of zeros.
    ///
    /// # Errors
    /// As [`Store::put`].
    pub fn zero(&self, vpid: Vpid, address: u64, length: u64) -> io::Result<()> {
        check(vpid, address, length)?;
        match self.file(vpid)? {
            Some(file) => punch(&file, address..address + length),
            None => Ok(()),
        }
    }

    /// Reads memory of `vpid` from `address` on, zeros where nothing was written.
    ///
    /// # Errors
    /// As [`Store::put`].
    pub fn read_at(&self, vpid: Vpid, address: u64, bytes: &mut [u8]) -> io::Result<()> {
        check(vpid, address, bytes.len() as u64)?;
        match self.file(vpid)? {
            Some(file) => read(&file, address, bytes),
            None => {
                bytes.fill(0);
                Ok(())
            }
        }
    }

    /// The file of `vpid`, for who reads much of it; `None` when no page of it has arrived.
    ///
    /// # Errors
    /// What the file system says.
    pub fn file(&self, vpid: Vpid) -> io::Result<Option<File>> {
        let opened = File::options().read(true).write(true).custom_flags(libc::O_NOFOLLOW).open(self.path(vpid));
        match opened {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            other => other.map(Some),
        }
    }

    /// Gives everything but zeros in `range` of `vpid` to `sink`, in pieces of at most [`PIECE`] with their addresses, and takes it out
    /// of the store.
    pub(super) fn drain(
        &self,
        vpid: Vpid,
        range: Range<u64>,
        mut sink: impl FnMut(u64, &[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        check(vpid, range.start, range.end - range.start)?;
        let Some(file) = self.file(vpid)? else { return Ok(()) };
        let mut piece = vec![0; PIECE.min(range.end - range.start) as usize];
        let mut from = range.start;
        while let Some(data) = next_data(&file, from..range.end)? {
            let piece = &mut piece[..(data.end - data.start).min(PIECE) as usize];
            let end = data.start + piece.len() as u64;
            read(&file, data.start, piece)?;
            sink(data.start, piece)?;
            discard(&file, data.start..end)?;
            from = end;
        }
        Ok(())
    }

    fn path(&self, vpid: Vpid) -> PathBuf {
        self.directory.join(vpid.to_string())
    }

    fn made(&self, vpid: Vpid) -> io::Result<File> {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        if !tasks.contains(&vpid) {
            if tasks.len() >= MOST_TASKS {
                return Err(io::Error::new(io::ErrorKind::QuotaExceeded, TooManyTasks));
            }
            tasks.insert(vpid);
        }
        drop(tasks);
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        options.open(self.path(vpid))
    }
}

/// Pages for more tasks than any container has.
#[derive(Debug, thiserror::Error)]
#[error("pages of more than {MOST_TASKS} tasks have come")]
struct TooManyTasks;

/// Addresses or bytes that are no whole pages of a task.
#[derive(Debug, thiserror::Error)]
#[error("task {vpid} has no {length} bytes of whole pages at {address:#x}")]
struct NoPages {
    vpid: Vpid,
    address: u64,
    length: u64,
}

fn check(vpid: Vpid, address: u64, length: u64) -> io::Result<()> {
    let inside = address.checked_add(length).is_some_and(|end| end <= ADDRESSES);
    if vpid > 0 && inside && address % PAGE == 0 && length % PAGE == 0 {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, NoPages { vpid, address, length }))
}

/// Reads all of `bytes`; what lies behind the end of the file is zeros.
fn read(file: &File, mut at: u64, mut bytes: &mut [u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.read_at(bytes, at) {
            Ok(0) => {
                bytes.fill(0);
                return Ok(());
            }
            Ok(count) => {
                bytes = &mut bytes[count..];
                at += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Makes `range` a hole. Looks first: most of what is zero has never been anything else, and looking costs little.
fn punch(file: &File, range: Range<u64>) -> io::Result<()> {
    match next_data(file, range.clone())? {
        Some(_) => discard(file, range),
        None => Ok(()),
    }
}

/// Gives the memory of `range` back.
pub(super) fn discard(file: &File, range: Range<u64>) -> io::Result<()> {
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    Ok(fallocate(file, flags, range.start.cast_signed(), (range.end - range.start).cast_signed())?)
}

/// The first run of written pages in `range`, cut to it. The file's position is of no meaning to anybody.
fn next_data(file: &File, range: Range<u64>) -> io::Result<Option<Range<u64>>> {
    let seek = |from: u64, whence| match lseek(file, from.cast_signed(), whence) {
        Ok(at) => Ok(Some(at.cast_unsigned())),
        // Nothing more until the end of the file.
        Err(Errno::ENXIO) => Ok(None),
        Err(errno) => Err(io::Error::from(errno)),
    };
    let Some(start) = seek(range.start, Whence::SeekData)?.filter(|start| *start < range.end) else { return Ok(None) };
    // What was there may be gone since.
    let end = seek(start, Whence::SeekHole)?.unwrap_or(start);
    let (start, end) = (start.max(range.start), end.min(range.end));
    Ok((start < end).then_some(start..end))
}
