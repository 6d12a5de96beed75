//! What `fuzz/` needs of the inside: pages on the wire. Behind the feature `fuzzing`.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use spothop_criu::memory::Store;
use spothop_transfer::ExtentSink;

use super::packing;
use super::target::Incoming;

/// In an object's number: a pack, and pages that are forgotten.
pub const MARKS: [u32; 2] = [packing::PACKED, packing::CLEARED];

/// What the target makes of pieces of pages.
pub fn pages(store: Store) -> Arc<dyn ExtentSink> {
    Arc::new(Incoming(store))
}

/// Packs of these ranges, each with the bytes that `read` gives.
///
/// # Errors
/// Those of `read`.
pub fn packs(
    ranges: impl IntoIterator<Item = Range<u64>>,
    mut read: impl FnMut(&Range<u64>, &mut [u8]) -> io::Result<usize>,
) -> io::Result<Vec<Vec<u8>>> {
    let pack = |ranges: Vec<Range<u64>>| {
        let mut pack = vec![0; packing::length(&ranges)];
        let length = packing::pack(&ranges, &mut pack, &mut read)?;
        pack.truncate(length);
        Ok(pack)
    };
    packing::divide(ranges).into_iter().map(pack).collect()
}
