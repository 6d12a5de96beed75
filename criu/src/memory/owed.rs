//! The list of pages that follow the tasks after they run: `owed.img`, which travels among CRIU's images.
//!
//! ```text
//! "SPOWED01" │ n × { u32 task, u64 start, u64 end }        little endian; by task, then by address
//! ```

use std::collections::BTreeMap;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use super::images::{self, ADDRESSES, ImageError, MOST_TASKS};
use super::{PAGE, Pages, Vpid};

/// The list's name among the images.
const NAME: &str = "owed.img";

const MAGIC: [u8; 8] = *b"SPOWED01";

/// Bytes of one range.
const ENTRY: usize = 20;

/// The most ranges that a list has: more of them would be 16 GiB of single pages, and the list alone 80 MiB to send under the freeze.
pub const MOST_OWED: usize = 1 << 22;

/// Writes the list of what `owed` says into the directory `images`. Nothing is written where nothing is owed.
///
/// # Errors
/// The file cannot be written.
pub fn write_owed(images: &Path, owed: &BTreeMap<Vpid, Pages>) -> Result<(), ImageError> {
    if owed.values().all(Pages::is_empty) {
        return Ok(());
    }
    images::replace(&path(images), |file| {
        let mut file = BufWriter::new(file);
        file.write_all(&MAGIC)?;
        for (vpid, pages) in owed {
            for range in pages.iter() {
                file.write_all(&vpid.to_le_bytes())?;
                file.write_all(&range.start.to_le_bytes())?;
                file.write_all(&range.end.to_le_bytes())?;
            }
        }
        file.flush()
    })
}

/// The pages that are owed, if there is a list in `images`. Tasks to which nothing is owed are not in it.
///
/// # Errors
/// It cannot be read, or is no such list.
pub fn read_owed(images: &Path) -> Result<BTreeMap<Vpid, Pages>, ImageError> {
    let path = path(images);
    let file = match images::open(&path) {
        Err(ImageError::Access { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            return Ok(BTreeMap::new());
        }
        other => other?,
    };
    let length = file.metadata().map_err(images::access(&path))?.len();
    if length > (MAGIC.len() + MOST_OWED * ENTRY) as u64 {
        return Err(ImageError::Long { path, bytes: length });
    }
    let mut bytes = BufReader::new(file);
    let mut magic = [0; MAGIC.len()];
    if length < MAGIC.len() as u64 || bytes.read_exact(&mut magic).is_err() || magic != MAGIC {
        return Err(ImageError::Kind { path });
    }
    let entries = length - MAGIC.len() as u64;
    if !entries.is_multiple_of(ENTRY as u64) {
        return Err(ImageError::Torn { path });
    }
    let mut owed: BTreeMap<Vpid, Pages> = BTreeMap::new();
    let mut last = (0, 0);
    for _ in 0..entries / ENTRY as u64 {
        let mut entry = [0; ENTRY];
        bytes.read_exact(&mut entry).map_err(images::access(&path))?;
        let (vpid, start, end) = parse(&entry);
        if vpid <= 0 {
            return Err(ImageError::Pid { path, pid: vpid.cast_unsigned() });
        }
        let is_page = |address: u64| address.is_multiple_of(PAGE) && address <= ADDRESSES;
        if start >= end || !is_page(start) || !is_page(end) {
            return Err(ImageError::Range { path, start, end });
        }
        if (vpid, start) < last {
            return Err(ImageError::Order { path, address: start });
        }
        last = (vpid, end);
        owed.entry(vpid).or_default().insert(start..end);
        if owed.len() > MOST_TASKS {
            return Err(ImageError::Tasks { path });
        }
    }
    Ok(owed)
}

/// The list in `images`.
pub(super) fn path(images: &Path) -> PathBuf {
    images.join(NAME)
}

fn parse(entry: &[u8; ENTRY]) -> (Vpid, u64, u64) {
    let [a, b, c, d, rest @ ..] = *entry;
    let number = |at: usize| rest[at..at + 8].iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte));
    (Vpid::from_le_bytes([a, b, c, d]), number(0), number(8))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;

    fn entry(vpid: Vpid, start: u64, end: u64) -> Vec<u8> {
        [&vpid.to_le_bytes()[..], &start.to_le_bytes(), &end.to_le_bytes()].concat()
    }

    fn read(bytes: &[u8]) -> Result<BTreeMap<Vpid, Pages>, ImageError> {
        let scratch = tempfile::tempdir().unwrap();
        fs::write(path(scratch.path()), bytes).unwrap();
        read_owed(scratch.path())
    }

    #[test]
    fn no_list_is_an_empty_one_and_nothing_owed_writes_none() {
        let scratch = tempfile::tempdir().unwrap();
        assert!(read_owed(scratch.path()).unwrap().is_empty());
        write_owed(scratch.path(), &[(1, Pages::new())].into()).unwrap();
        assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_is_no_list_of_pages_is_refused() {
        let with = |entries: &[Vec<u8>]| read(&[MAGIC.to_vec(), entries.concat()].concat());
        assert!(matches!(read(b"SPOWED00"), Err(ImageError::Kind { .. })));
        assert!(matches!(read(b"SPO"), Err(ImageError::Kind { .. })));
        assert!(matches!(with(&[vec![0; ENTRY - 1]]), Err(ImageError::Torn { .. })));
        assert!(matches!(with(&[entry(0, PAGE, 2 * PAGE)]), Err(ImageError::Pid { .. })));
        assert!(matches!(with(&[entry(-1, PAGE, 2 * PAGE)]), Err(ImageError::Pid { .. })));
        for (start, end) in [(PAGE, PAGE), (2 * PAGE, PAGE), (1, PAGE), (PAGE, PAGE + 1), (PAGE, ADDRESSES + PAGE)] {
            assert!(matches!(with(&[entry(1, start, end)]), Err(ImageError::Range { .. })), "{start:x} {end:x}");
        }
        for second in [entry(2, PAGE, 2 * PAGE), entry(2, 0, PAGE), entry(1, 8 * PAGE, 9 * PAGE)] {
            let error = with(&[entry(2, PAGE, 3 * PAGE), second]).unwrap_err();
            assert!(matches!(error, ImageError::Order { .. }), "{error}");
        }
        let scratch = tempfile::tempdir().unwrap();
        let file = fs::File::create(path(scratch.path())).unwrap();
        file.set_len((MAGIC.len() + (MOST_OWED + 1) * ENTRY) as u64).unwrap();
        assert!(matches!(read_owed(scratch.path()), Err(ImageError::Long { .. })));
    }

    proptest! {
        #[test]
        fn a_list_is_read_as_it_was_written(
            tasks in prop::collection::btree_map(1..i32::MAX, prop::collection::vec((0..ADDRESSES / PAGE, 1_u64..9), 1..20), 0..8),
        ) {
            let pages = |ranges: Vec<(u64, u64)>| -> Pages {
                ranges.into_iter().map(|(at, pages)| at * PAGE..((at + pages) * PAGE).min(ADDRESSES)).collect()
            };
            let owed: BTreeMap<Vpid, Pages> = tasks.into_iter().map(|(vpid, ranges)| (vpid, pages(ranges))).collect();
            let scratch = tempfile::tempdir().unwrap();
            write_owed(scratch.path(), &owed).unwrap();
            prop_assert_eq!(read_owed(scratch.path()).unwrap(), owed);
        }

        #[test]
        fn other_bytes_are_no_list_and_no_panic(bytes: Vec<u8>, magic: bool) {
            let bytes = if magic { [&MAGIC[..], &bytes].concat() } else { bytes };
            for pages in read(&bytes).unwrap_or_default().values() {
                prop_assert!(pages.iter().all(|range| range.end <= ADDRESSES && range.start % PAGE == 0));
            }
        }
    }
}
