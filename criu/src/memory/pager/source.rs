//! Where the pages come from: the store's file of one task.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

use crate::memory::{PAGE, Pages};

/// One task's memory: a sparse file in which a page is at its address, and a hole is pages of zeros.
#[derive(Debug)]
pub(super) struct Source(File);

impl Source {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        File::open(path).map(Self)
    }

    /// Those of `pages` that are in the file; the others are holes.
    pub(super) fn filled(&self, pages: &Pages) -> io::Result<Pages> {
        let mut filled = Pages::new();
        for range in pages.iter() {
            let mut at = range.start;
            while at < range.end
                && let Some(data) = self.seek(at, Whence::SeekData)?
                && data < range.end
            {
                // A file ends with a hole.
                let hole = self.seek(data, Whence::SeekHole)?.unwrap_or(range.end).min(range.end);
                filled.insert(data..hole);
                at = hole;
            }
        }
        Ok(filled)
    }

    /// The bytes of one piece, in `buffer`.
    pub(super) fn read<'b>(&self, at: u64, length: u64, buffer: &'b mut [u8]) -> io::Result<&'b [u8]> {
        let bytes = &mut buffer[..usize::try_from(length).map_err(io::Error::other)?];
        self.0.read_exact_at(bytes, at)?;
        Ok(bytes)
    }

    fn seek(&self, from: u64, to: Whence) -> io::Result<Option<u64>> {
        match lseek(&self.0, from.cast_signed(), to) {
            Ok(found) => Ok(Some(found.cast_unsigned())),
            Err(Errno::ENXIO) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// Whether these are whole pages within the addresses that a process can have.
pub(super) fn is_possible(range: &Range<u64>) -> bool {
    /// No process's addresses reach this (five levels of page tables; Linux, Documentation/arch/x86/x86_64/mm.rst).
    const ADDRESSES: u64 = 1 << 56;
    [range.start, range.end].iter().all(|address| address.is_multiple_of(PAGE)) && range.end <= ADDRESSES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_are_left_out_and_pages_are_read_at_their_address() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("7");
        let file = File::create(&path).unwrap();
        let far = 0x7fff_ffff_0000 / 64;
        file.write_all_at(&[7; PAGE as usize], 64 * PAGE).unwrap();
        file.write_all_at(&[8; PAGE as usize], far).unwrap();
        let source = Source::open(&path).unwrap();
        let pages: Pages = [0..100 * PAGE, far..far + 64 * PAGE, far * 2..far * 2 + PAGE].into_iter().collect();
        let filled: Vec<_> = source.filled(&pages).unwrap().into_iter().collect();
        assert_eq!(filled, [64 * PAGE..65 * PAGE, far..far + PAGE]);
        assert_eq!(source.read(far, PAGE, &mut [0; 2 * PAGE as usize]).unwrap(), [8; PAGE as usize]);
        assert!(source.read(far, 2 * PAGE, &mut [0; 2 * PAGE as usize]).is_err());
    }
}
