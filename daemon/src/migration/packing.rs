//! Pages on the wire: an object is a process, and its number the process's id in the container, with a mark for two kinds of pieces.
//!
//! Scattered pages share a piece, a pack: one by one each would cost as much as a mebibyte.
//!
//! ```text
//! u32 count │ count × { u64 address, u32 length } │ the bytes of each, one after the other        little endian
//! ```

use std::io;
use std::ops::Range;

/// In the number of an object: the piece is a pack of its pages. Process ids are far smaller (2^22).
pub(super) const PACKED: u32 = 1 << 31;

/// In the number of an object: these pages of it are to be forgotten; they come as zeros.
pub(super) const CLEARED: u32 = 1 << 30;

/// The most that a pack is long, in bytes: one piece.
pub(super) const LONGEST: usize = spothop_transfer::Extent::MAX_LENGTH as usize;

const COUNT: usize = 4;
const ENTRY: usize = 12;

/// What a pack of these ranges is long.
pub(super) fn length(ranges: &[Range<u64>]) -> usize {
    COUNT + ranges.iter().map(|range| ENTRY + size(range)).sum::<usize>()
}

/// Divides ranges, each shorter than a pack, into packs.
pub(super) fn divide(ranges: impl IntoIterator<Item = Range<u64>>) -> Vec<Vec<Range<u64>>> {
    let mut packs: Vec<Vec<Range<u64>>> = Vec::new();
    let mut room = 0;
    for range in ranges {
        let needs = ENTRY + size(&range);
        match packs.last_mut().filter(|_| needs <= room) {
            Some(pack) => pack.push(range),
            None => {
                packs.push(vec![range]);
                room = LONGEST - COUNT;
            }
        }
        room -= needs;
    }
    packs
}

/// Fills `buffer`, which has the pack's [`length`]. `read` says how many bytes of a range it could read; the pack has no more of it.
/// Returns how long it has become.
pub(super) fn pack(
    ranges: &[Range<u64>],
    buffer: &mut [u8],
    mut read: impl FnMut(&Range<u64>, &mut [u8]) -> io::Result<usize>,
) -> io::Result<usize> {
    let (head, bytes) = buffer.split_at_mut(COUNT + ENTRY * ranges.len());
    let (count, entries) = head.split_at_mut(COUNT);
    count.copy_from_slice(&(ranges.len() as u32).to_le_bytes());
    let mut done = 0;
    for (range, entry) in ranges.iter().zip(entries.chunks_exact_mut(ENTRY)) {
        let got = read(range, &mut bytes[done..done + size(range)])?;
        entry[..8].copy_from_slice(&range.start.to_le_bytes());
        entry[8..].copy_from_slice(&(got as u32).to_le_bytes());
        done += got;
    }
    Ok(COUNT + ENTRY * ranges.len() + done)
}

/// Takes a pack apart.
///
/// # Errors
/// It is none.
pub(super) fn unpack(pack: &[u8], mut put: impl FnMut(u64, &[u8]) -> io::Result<()>) -> io::Result<()> {
    let wrong = || io::Error::new(io::ErrorKind::InvalidData, "these are no packed pages");
    let (count, rest) = pack.split_first_chunk().ok_or_else(wrong)?;
    let entries = (u32::from_le_bytes(*count) as usize).checked_mul(ENTRY).ok_or_else(wrong)?;
    let (entries, mut bytes) = rest.split_at_checked(entries).ok_or_else(wrong)?;
    for entry in entries.chunks_exact(ENTRY) {
        let (address, length) = entry.split_first_chunk().ok_or_else(wrong)?;
        let length = u32::from_le_bytes(length.try_into().map_err(|_| wrong())?) as usize;
        let (these, others) = bytes.split_at_checked(length).ok_or_else(wrong)?;
        if length > 0 {
            put(u64::from_le_bytes(*address), these)?;
        }
        bytes = others;
    }
    if bytes.is_empty() { Ok(()) } else { Err(wrong()) }
}

fn size(range: &Range<u64>) -> usize {
    (range.end - range.start) as usize
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn packs_are_full_and_have_every_range_once() {
        let ranges: Vec<_> = (0..1000).map(|page| page * 0x10000..page * 0x10000 + 0x1000).collect();
        let packs = divide(ranges.clone());
        assert!(packs.iter().all(|pack| length(pack) <= LONGEST));
        assert_eq!(packs.len(), 4, "255 pages and their entries fit into a mebibyte");
        assert_eq!(packs.concat(), ranges);
        assert!(divide([]).is_empty());
    }

    #[test]
    fn a_pack_comes_apart_as_it_was_made_without_what_was_gone() {
        let ranges = [0x1000..0x2000, 0x5000..0x8000, 0x9000..0xa000];
        let mut buffer = vec![0xff; length(&ranges)];
        let written = pack(&ranges, &mut buffer, |range, bytes| {
            bytes.fill((range.start >> 12) as u8);
            // Of the second only a page is there, of the third nothing.
            Ok([0x1000, 0x1000, 0][(range.start as usize >> 12) / 4])
        });
        let written = written.unwrap();
        let mut seen = Vec::new();
        unpack(&buffer[..written], |address, bytes| {
            seen.push((address, bytes.to_vec()));
            Ok(())
        })
        .unwrap();
        assert_eq!(seen, [(0x1000, vec![1; 0x1000]), (0x5000, vec![5; 0x1000])]);
        assert!(unpack(&buffer[..written - 1], |_, _| Ok(())).is_err());
        assert!(unpack(&buffer, |_, _| Ok(())).is_err(), "what follows a pack belongs to nobody");
    }

    proptest! {
        #[test]
        fn other_bytes_are_no_pack_and_no_panic(bytes: Vec<u8>) {
            let mut put = 0;
            let _ = unpack(&bytes, |_, these| { put += these.len(); Ok(()) });
            prop_assert!(put <= bytes.len());
        }
    }
}
