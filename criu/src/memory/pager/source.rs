//! Where the pages come from: the store's file of one task.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::memory::store::Runs;
use crate::memory::{Pages, Store, Vpid};

/// One task's memory, see [`Store`]; none if no page of it has arrived.
#[derive(Debug)]
pub(super) struct Source(Option<File>);

impl Source {
    /// That of `vpid`, to which `owed` will come.
    pub(super) fn open(store: &Store, vpid: Vpid, owed: &Pages) -> io::Result<Self> {
        match owed.last() {
            None => store.file(vpid).map(Self),
            // What comes last may be zeros, which have no place in the file.
            Some(last) => store.reaching(vpid, last.end).map(|file| Self(Some(file))),
        }
    }

    /// Those of `pages` that are in the file; the others are holes.
    pub(super) fn filled(&self, pages: &Pages) -> io::Result<Pages> {
        let mut filled = Pages::new();
        let Some(file) = &self.0 else { return Ok(filled) };
        let mut runs = Runs::default();
        for range in pages.iter() {
            let mut rest = range.clone();
            while let Some(data) = runs.next(file, rest.clone(), u64::MAX)? {
                rest.start = data.end;
                filled.insert(data);
            }
        }
        Ok(filled)
    }

    /// The bytes of one piece of what is filled, in `buffer`.
    pub(super) fn read<'b>(&self, at: u64, length: u64, buffer: &'b mut [u8]) -> io::Result<&'b [u8]> {
        let missing = || io::Error::from(io::ErrorKind::UnexpectedEof);
        let file = self.0.as_ref().ok_or_else(missing)?;
        let bytes = buffer.get_mut(..length as usize).ok_or_else(missing)?;
        file.read_exact_at(bytes, at)?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::PAGE;

    #[test]
    fn holes_are_left_out_and_pages_are_read_at_their_address() {
        let scratch = tempfile::tempdir_in("/dev/shm").unwrap();
        let store = Store::at(scratch.path());
        let far = 0x7fff_ff00_0000;
        store.put(7, 64 * PAGE, &[7; PAGE as usize]).unwrap();
        store.put(7, far, &[8; PAGE as usize]).unwrap();
        let source = Source::open(&store, 7, &Pages::new()).unwrap();
        let pages: Pages = [0..100 * PAGE, far..far + 64 * PAGE].into_iter().collect();
        let filled: Vec<_> = source.filled(&pages).unwrap().into_iter().collect();
        assert_eq!(filled, [64 * PAGE..65 * PAGE, far..far + PAGE]);
        assert_eq!(source.read(far, PAGE, &mut [0; 2 * PAGE as usize]).unwrap(), [8; PAGE as usize]);
        assert!(source.read(far, 2 * PAGE, &mut [0; 2 * PAGE as usize]).is_err());
        let mut owed = Pages::new();
        owed.insert(far + PAGE..far + 3 * PAGE);
        for vpid in [7, 9] {
            let source = Source::open(&store, vpid, &owed).unwrap();
            store.zero(vpid, far + PAGE, 2 * PAGE).unwrap();
            assert_eq!(source.read(far + 2 * PAGE, PAGE, &mut [1; PAGE as usize]).unwrap(), [0; PAGE as usize]);
            store.put(vpid, far + PAGE, &[9; PAGE as usize]).unwrap();
            assert_eq!(source.read(far + PAGE, PAGE, &mut [1; PAGE as usize]).unwrap(), [9; PAGE as usize]);
        }
        assert!(Source::open(&store, 8, &Pages::new()).unwrap().filled(&pages).unwrap().is_empty());
    }
}
