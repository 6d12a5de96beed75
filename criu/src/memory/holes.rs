//! What a dump with a constant parent left out.

use std::collections::BTreeMap;
use std::path::Path;

use super::images::{self, ImageError, MOST_RUNS, PE_PARENT, Pagemap};
use super::{Pages, Vpid};

/// The pages that the dump in `images` left to its parent: their contents are in the tasks alone. Every task that has a pagemap is
/// there, also one without such pages.
///
/// # Errors
/// An image cannot be read.
pub fn holes(images: &Path) -> Result<BTreeMap<Vpid, Pages>, ImageError> {
    let mut all = BTreeMap::new();
    for vpid in images::tasks_with_pages(images)? {
        let Some(pagemap) = Pagemap::read(images, vpid, MOST_RUNS)? else { continue };
        let holes = pagemap.entries.into_iter().filter(|entry| entry.flags == PE_PARENT);
        all.insert(vpid, holes.map(|entry| entry.range).collect());
    }
    Ok(all)
}
