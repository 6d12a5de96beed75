//! The memory of a container's tasks, page by page: found, read and followed at the source while they run; kept, and given to the
//! restored tasks when they touch it, at the target.

mod areas;
mod compose;
mod holes;
mod images;
mod owed;
mod pagemap;
pub mod pager;
mod parent;
mod process;
mod reader;
mod store;
pub mod tracking;

use std::io;
use std::ops::Range;
use std::path::PathBuf;

use rangemap::RangeSet;

pub use areas::{is_being_filled, populated, private_anonymous};
pub use compose::{Composed, Restore, can_be_owed, compose};
pub use holes::holes;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub use images::fuzzing;
pub use images::{ADDRESSES, ImageError, MOST_TASKS, PARENT_LINK};
pub use owed::{MOST_OWED, read_owed, write_owed};
pub use parent::{ConstantParent, Why};
pub use process::{Process, processes};
pub use reader::Reader;
pub use store::Store;

/// Bytes of a page. CRIU's images count pages of this size on every machine that we run on.
pub const PAGE: u64 = 4096;

/// The longest piece that is read, sent or installed at once, in bytes.
pub const PIECE: u64 = 1 << 20;

/// A set of pages of one task: page-aligned, disjoint ranges of its addresses.
pub type Pages = RangeSet<u64>;

/// Bytes of `pages`.
pub fn bytes(pages: &Pages) -> u64 {
    pages.iter().map(|range| range.end - range.start).sum()
}

/// The ranges of `pages` in pieces of at most [`PIECE`].
pub fn pieces(pages: &Pages) -> impl Iterator<Item = Range<u64>> {
    pages.iter().flat_map(|range| {
        let end = range.end;
        (range.start..end).step_by(PIECE as usize).map(move |start| start..(start + PIECE).min(end))
    })
}

/// The name by which a process is known on both hosts: its id in the container's own pid namespace.
pub type Vpid = i32;

/// Why the memory of a process could not be looked at.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// It ended, or is a zombie.
    #[error("process {pid} has no memory any more: it ended")]
    Gone {
        /// The process.
        pid: i32,
    },
    /// A file in /proc cannot be read.
    #[error("cannot read {path}: {source}; spothop must run as root, with CAP_SYS_PTRACE")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl MemoryError {
    fn of(pid: i32, path: PathBuf, source: io::Error) -> Self {
        // The end comes early in what belongs to a memory that is gone.
        let kinds = [io::ErrorKind::NotFound, io::ErrorKind::UnexpectedEof];
        let gone = kinds.contains(&source.kind()) || source.raw_os_error() == Some(libc::ESRCH);
        if gone { Self::Gone { pid } } else { Self::Read { path, source } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_the_pages_once() {
        let mut pages = Pages::new();
        pages.insert(PAGE..2 * PAGE);
        pages.insert(PIECE..3 * PIECE + PAGE);
        let pieces: Vec<_> = pieces(&pages).collect();
        assert_eq!(pieces, [PAGE..2 * PAGE, PIECE..2 * PIECE, 2 * PIECE..3 * PIECE, 3 * PIECE..3 * PIECE + PAGE]);
        assert_eq!(bytes(&pages), 2 * PIECE + 2 * PAGE);
    }
}
