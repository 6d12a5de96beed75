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
use super::{PAGE, Pages, Vpid};

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

    /// Takes `pages` of `vpid` out of the store. Unlike [`Store::zero`] without looking first, which costs more the more there is.
    pub(super) fn forget(&self, vpid: Vpid, pages: &Pages) -> io::Result<()> {
        let Some(file) = self.file(vpid)? else { return Ok(()) };
        for range in pages.iter() {
            check(vpid, range.start, range.end - range.start)?;
            discard(&file, range.clone())?;
        }
        Ok(())
    }

    /// The file of `vpid`, made if need be, at least `length` bytes long: so much of it can be read whatever has arrived.
    pub(super) fn reaching(&self, vpid: Vpid, length: u64) -> io::Result<File> {
        check(vpid, 0, length)?;
        let file = self.made(vpid)?;
        if file.metadata()?.len() < length {
            file.set_len(length)?;
        }
        Ok(file)
    }

    /// To take pages of `vpid` out of the store, from low addresses to high ones.
    ///
    /// # Errors
    /// What the file system says.
    pub(super) fn drain(&self, vpid: Vpid) -> io::Result<Drain> {
        Ok(Drain { vpid, file: self.file(vpid)?, runs: Runs::default() })
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

/// The pages of a task that leave the store.
#[derive(Debug)]
pub(super) struct Drain {
    vpid: Vpid,
    file: Option<File>,
    runs: Runs,
}

impl Drain {
    /// Gives everything but zeros in `range` to `sink`, in pieces that fit `buffer` (whole pages) with their addresses, and takes it out of
    /// the store.
    pub(super) fn range(
        &mut self,
        range: Range<u64>,
        buffer: &mut [u8],
        mut sink: impl FnMut(u64, &[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        check(self.vpid, range.start, range.end - range.start)?;
        let Some(file) = &self.file else { return Ok(()) };
        let mut from = range.start;
        while let Some(data) = self.runs.next(file, from..range.end, buffer.len() as u64)? {
            let piece = &mut buffer[..(data.end - data.start) as usize];
            read(file, data.start, piece)?;
            sink(data.start, piece)?;
            discard(file, data.clone())?;
            from = data.end;
        }
        Ok(())
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
    if vpid > 0 && inside && address.is_multiple_of(PAGE) && length.is_multiple_of(PAGE) {
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

/// Makes `range` a hole. Looks first: most of what is zero has never been anything else, and looking where something begins costs little.
fn punch(file: &File, range: Range<u64>) -> io::Result<()> {
    match seek(file, range.start, Whence::SeekData)? {
        Some(data) if data < range.end => discard(file, range),
        _ => Ok(()),
    }
}

/// Gives the memory of `range` back.
pub(super) fn discard(file: &File, range: Range<u64>) -> io::Result<()> {
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    Ok(fallocate(file, flags, range.start.cast_signed(), (range.end - range.start).cast_signed())?)
}

/// `None`: there is no such place until the end of the file. The file's position is of no meaning to anybody.
fn seek(file: &File, from: u64, whence: Whence) -> io::Result<Option<u64>> {
    match lseek(file, from.cast_signed(), whence) {
        Ok(at) => Ok(Some(at.cast_unsigned())),
        Err(Errno::ENXIO) => Ok(None),
        Err(errno) => Err(io::Error::from(errno)),
    }
}

/// Finds the runs of written pages in a file, one behind the other. The kernel looks at each page of a run to find its end (35 ns on a tmpfs:
/// 9 ms for a gigabyte), so that is asked once for each run, into however many pieces it is cut.
#[derive(Debug, Default)]
pub(super) struct Runs {
    /// Nothing is written from here until where `run` begins.
    from: u64,
    /// The last one that was found, as far as it was not returned; empty where only its beginning is known.
    run: Range<u64>,
    /// How often its end was asked for.
    #[cfg(test)]
    ends: usize,
}

impl Runs {
    /// The first run in `range`, cut to it and to `most` bytes; `None`: nothing is written there. What was returned may be discarded then,
    /// or taken for what it is; whoever goes back sees the file as it is.
    pub(super) fn next(&mut self, file: &File, range: Range<u64>, most: u64) -> io::Result<Option<Range<u64>>> {
        if range.is_empty() {
            return Ok(None);
        }
        if !(self.from <= range.start && range.start < self.run.end.max(self.run.start)) {
            let start = seek(file, range.start, Whence::SeekData)?.unwrap_or(u64::MAX);
            (self.from, self.run) = (range.start, start..start);
        }
        if self.run.start >= range.end {
            return Ok(None);
        }
        if self.run.is_empty() {
            // What was there may be gone since.
            self.run.end = seek(file, self.run.start, Whence::SeekHole)?.unwrap_or(self.run.start);
            #[cfg(test)]
            {
                self.ends += 1;
            }
        }
        let start = self.run.start.max(range.start);
        let end = self.run.end.min(range.end).min(start.saturating_add(most));
        self.run.start = end.max(self.run.start);
        self.from = self.run.start;
        Ok((start < end).then_some(start..end))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::memory::PIECE;

    /// On a tmpfs: other file systems have no offsets as high as addresses.
    fn store() -> (tempfile::TempDir, Store) {
        let scratch = tempfile::tempdir_in("/dev/shm").unwrap();
        let store = Store::at(scratch.path().join("memory"));
        store.create().unwrap();
        (scratch, store)
    }

    fn page(byte: u8) -> Vec<u8> {
        vec![byte; PAGE as usize]
    }

    fn stored(store: &Store, vpid: Vpid) -> u64 {
        store.file(vpid).unwrap().map_or(0, |file| file.metadata().unwrap().blocks() * 512)
    }

    fn read(store: &Store, vpid: Vpid, address: u64, pages: usize) -> Vec<u8> {
        let mut bytes = vec![9; pages * PAGE as usize];
        store.read_at(vpid, address, &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn what_is_put_is_read_and_all_else_is_zeros() {
        let (_scratch, store) = store();
        let top = ADDRESSES - PAGE;
        store.put(7, PAGE, &[page(1), page(0), page(2)].concat()).unwrap();
        store.put(7, top, &page(3)).unwrap();
        assert_eq!(read(&store, 7, 0, 5), [page(0), page(1), page(0), page(2), page(0)].concat());
        assert_eq!(read(&store, 7, top, 1), page(3));
        assert_eq!(read(&store, 8, PAGE, 2), [page(0), page(0)].concat());
        assert_eq!(stored(&store, 7), 3 * PAGE);
    }

    #[test]
    fn pages_that_become_zeros_give_their_memory_back() {
        let (_scratch, store) = store();
        store.put(1, 0, &[page(1), page(2), page(3), page(4)].concat()).unwrap();
        store.put(1, PAGE, &page(0)).unwrap();
        store.zero(1, 2 * PAGE, PAGE).unwrap();
        store.zero(1, 100 * PAGE, 1 << 40).unwrap();
        store.zero(2, 0, PAGE).unwrap();
        assert_eq!(read(&store, 1, 0, 4), [page(1), page(0), page(0), page(4)].concat());
        assert_eq!((stored(&store, 1), store.file(2).unwrap().is_none()), (2 * PAGE, true));
        store.put(1, PAGE, &page(5)).unwrap();
        assert_eq!(read(&store, 1, PAGE, 1), page(5));
    }

    #[test]
    fn what_is_no_page_of_a_task_is_refused() {
        let (_scratch, store) = store();
        let whole = page(1);
        for (vpid, address, bytes) in [
            (1, 1, &whole[..]),
            (1, PAGE, &whole[1..]),
            (1, ADDRESSES, &whole),
            (1, u64::MAX - PAGE + 1, &whole),
            (0, PAGE, &whole),
        ] {
            let error = store.put(vpid, address, bytes).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{error}");
            assert!(store.zero(vpid, address, bytes.len() as u64).is_err());
            assert!(store.read_at(vpid, address, &mut bytes.to_vec()).is_err());
        }
        assert!(store.zero(1, PAGE, u64::MAX - PAGE + 1).is_err());
        assert_eq!(std::fs::read_dir(store.directory()).unwrap().count(), 0);
    }

    #[test]
    fn what_is_drained_is_gone_and_zeros_are_not_given() {
        let (_scratch, store) = store();
        let long = 3 * PIECE;
        store.put(1, long, &vec![6; 2 * PIECE as usize]).unwrap();
        store.put(1, 0, &[page(1), page(0), page(2)].concat()).unwrap();
        let mut given = Vec::new();
        let range = 2 * PAGE..long + PIECE + PAGE;
        let sink = |address, bytes: &[u8]| {
            assert!(bytes.len() as u64 <= PIECE);
            given.extend((0..bytes.len() as u64).step_by(PAGE as usize).map(|at| (address + at, bytes[at as usize])));
            Ok(())
        };
        store.drain(1).unwrap().range(range, &mut vec![0; PIECE as usize], sink).unwrap();
        let mut expected = vec![(2 * PAGE, 2)];
        expected.extend((long..long + PIECE + PAGE).step_by(PAGE as usize).map(|address| (address, 6)));
        assert_eq!(given, expected);
        assert_eq!(stored(&store, 1), PAGE + PIECE - PAGE);
        assert_eq!(read(&store, 1, 0, 3), [page(1), page(0), page(0)].concat());
        let mut nobody = store.drain(2).unwrap();
        nobody.range(0..ADDRESSES, &mut [], |_, _| panic!("nothing has come for 2")).unwrap();
    }

    #[test]
    fn the_end_of_a_run_is_looked_for_once_however_it_is_cut() {
        let (_scratch, store) = store();
        // Two runs of 64 pages with a hole between.
        for start in [0, 100] {
            store.put(1, start * PAGE, &vec![1; 64 * PAGE as usize]).unwrap();
        }
        let file = store.file(1).unwrap().unwrap();
        let mut runs = Runs::default();
        let pages = |range: Range<u64>| range.start * PAGE..range.end * PAGE;
        for page in 0..200 {
            let found = runs.next(&file, pages(page..page + 1), PIECE).unwrap();
            let written = page < 64 || (100..164).contains(&page);
            assert_eq!(found, written.then(|| pages(page..page + 1)), "{page}");
        }
        assert_eq!(runs.ends, 2);
        // In pieces, and back to what has changed.
        discard(&file, pages(0..8)).unwrap();
        let mut found = Vec::new();
        let mut rest = pages(0..130);
        while let Some(run) = runs.next(&file, rest.clone(), 40 * PAGE).unwrap() {
            rest.start = run.end;
            found.push(run);
        }
        assert_eq!(found, [pages(8..48), pages(48..64), pages(100..130)]);
        assert_eq!(runs.ends, 4);
        assert_eq!(runs.next(&file, pages(64..100), PIECE).unwrap(), None);
        assert_eq!(runs.next(&file, pages(70..101), PIECE).unwrap(), Some(pages(100..101)));
        assert_eq!(runs.next(&file, pages(101..1000), PIECE).unwrap(), Some(pages(101..164)));
        assert_eq!(runs.next(&file, pages(164..1000), PIECE).unwrap(), None);
    }

    #[test]
    fn what_cannot_be_moved_stays_in_the_store() {
        let (_scratch, store) = store();
        store.put(1, 0, &page(1)).unwrap();
        let full = |_: u64, _: &[u8]| Err(io::ErrorKind::StorageFull.into());
        let drained = store.drain(1).unwrap().range(0..PAGE, &mut page(0), full);
        assert_eq!(drained.unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(read(&store, 1, 0, 1), page(1));
    }

    #[test]
    fn several_threads_write_at_once() {
        let (_scratch, store) = store();
        std::thread::scope(|scope| {
            for thread in 0..4_u8 {
                let store = &store;
                scope.spawn(move || {
                    for at in 0..200_u64 {
                        let byte = if at % 5 == 0 { 0 } else { thread + 1 };
                        store.put(1 + i32::from(thread % 2), (at * 4 + u64::from(thread)) * PAGE, &page(byte)).unwrap();
                    }
                });
            }
        });
        for thread in 0..4_u8 {
            for at in 0..200_u64 {
                let byte = if at % 5 == 0 { 0 } else { thread + 1 };
                let found = read(&store, 1 + i32::from(thread % 2), (at * 4 + u64::from(thread)) * PAGE, 1);
                assert_eq!(found, page(byte));
            }
        }
    }

    #[test]
    fn the_tasks_of_a_store_are_bounded() {
        let (_scratch, store) = store();
        store.tasks.lock().unwrap().extend(1..=Vpid::try_from(MOST_TASKS).unwrap());
        store.put(1, 0, &page(1)).unwrap();
        let error = store.put(Vpid::MAX, 0, &page(1)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::QuotaExceeded);
        assert!(store.file(Vpid::MAX).unwrap().is_none());
    }
}
