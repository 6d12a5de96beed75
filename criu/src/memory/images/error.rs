//! Why an image is refused.

use std::io;
use std::path::PathBuf;

use super::{MOST_RUNS, MOST_TASKS};
use crate::memory::Vpid;

/// An image that cannot be read, cannot be right, or cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The system refuses.
    #[error("cannot access the image {path}: {source}")]
    Access {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is no regular file, or another kind of image.
    #[error("{path} is not the image that its name says; was it written by CRIU 4.2 or later?")]
    Kind {
        /// The file.
        path: PathBuf,
    },
    /// It ends in the middle of something.
    #[error("the image {path} is cut off")]
    Torn {
        /// The file.
        path: PathBuf,
    },
    /// It, or a message in it, or all of a container's together, is longer than any that CRIU writes.
    #[error("{path} has {bytes} bytes; no image of a container can be that long")]
    Long {
        /// The file.
        path: PathBuf,
        /// How long.
        bytes: u64,
    },
    /// A message in it is damaged.
    #[error("the image {path} is damaged: {source}")]
    Message {
        /// The file.
        path: PathBuf,
        /// Where it goes wrong.
        source: prost::DecodeError,
    },
    /// A range of addresses that no task can have.
    #[error("the image {path} has an impossible range, from {start:#x} to {end:#x}")]
    Range {
        /// The file.
        path: PathBuf,
        /// Its first address.
        start: u64,
        /// One past its last.
        end: u64,
    },
    /// Ranges overlap, or are not in their order.
    #[error("the image {path} is not in order at {address:#x}")]
    Order {
        /// The file.
        path: PathBuf,
        /// The address.
        address: u64,
    },
    /// Pages that are neither in the images nor left to the parent.
    #[error(
        "the image {path} has pages of an unknown kind ({flags:#x}) at {address:#x}; only a dump by spothop can be used"
    )]
    Flags {
        /// The file.
        path: PathBuf,
        /// The first of the pages.
        address: u64,
        /// `pagemap_entry.flags`.
        flags: u32,
    },
    /// An id that cannot be one, or that two processes or threads have.
    #[error("the image {path} has {pid} as a process or thread, or twice")]
    Pid {
        /// The file.
        path: PathBuf,
        /// The id.
        pid: u32,
    },
    /// More processes than [`MOST_TASKS`].
    #[error("the image {path} has more than {MOST_TASKS} tasks")]
    Tasks {
        /// The file.
        path: PathBuf,
    },
    /// More runs of pages and mappings than [`MOST_RUNS`].
    #[error("the tasks have more than {MOST_RUNS} runs of pages and mappings, counted up to the image {path}")]
    Runs {
        /// The file.
        path: PathBuf,
    },
    /// Not the image of a thread on x86-64.
    #[error("the image {path} has no registers of an x86-64 thread")]
    Registers {
        /// The file.
        path: PathBuf,
    },
    /// A page that is in no private mapping.
    #[error("the image {path} has a page at {address:#x}, where the task has no private memory")]
    Outside {
        /// The file.
        path: PathBuf,
        /// The page.
        address: u64,
    },
    /// The pages image does not have the bytes that the pagemap says.
    #[error("the image {path} has {found} bytes, and {expected} are to be in it")]
    Size {
        /// The file.
        path: PathBuf,
        /// What it has.
        found: u64,
        /// What it should have.
        expected: u64,
    },
    /// Two tasks name the same pages image.
    #[error("the image {path} belongs to two tasks")]
    Shared {
        /// The file.
        path: PathBuf,
    },
    /// A page shall come after the tasks run, and they cannot wait for it.
    #[error("{path} owes page {address:#x} of task {vpid}, which must be there when the tasks are restored")]
    Owed {
        /// The list.
        path: PathBuf,
        /// The task.
        vpid: Vpid,
        /// The page.
        address: u64,
    },
}
