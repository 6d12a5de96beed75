//! Why tasks cannot be filled.

use std::io;
use std::ops::Range;

use crate::memory::Vpid;

/// Why tasks cannot be filled. Tasks that run must not go on then.
#[derive(Debug, thiserror::Error)]
pub enum PagerError {
    /// The store cannot be read.
    #[error("cannot read the page store: {0}")]
    Open(#[source] io::Error),
    /// A list of lazy pages is not one.
    #[error("the lazy pages {range:x?} of task {vpid} are no pages of a process; the images are damaged")]
    Pages {
        /// The task.
        vpid: Vpid,
        /// Where it goes wrong.
        range: Range<u64>,
    },
    /// CRIU's connection broke.
    #[error("the connection with CRIU broke: {0}")]
    Connection(#[source] io::Error),
    /// CRIU said something that is not its protocol.
    #[error("CRIU sent {what} to the pager; is it 4.0 or later?")]
    Protocol {
        /// What.
        what: &'static str,
    },
    /// CRIU restores a task that is not in the list, or one for the second time.
    #[error("CRIU restores task {vpid}, whose pages are unknown or given away already; the images do not fit together")]
    Unexpected {
        /// The task.
        vpid: Vpid,
    },
    /// A lazy page has no registered mapping, and no task has run yet.
    #[error("page {address:#x} of task {vpid} is in no mapping that CRIU restores lazily; the images are damaged")]
    NotRegistered {
        /// The task.
        vpid: Vpid,
        /// The page.
        address: u64,
    },
    /// A lazy page was there before it was put in, and no task has run yet.
    #[error(
        "page {address:#x} of task {vpid} is there before it was filled; were huge pages not switched off for CRIU?"
    )]
    There {
        /// The task.
        vpid: Vpid,
        /// The page.
        address: u64,
    },
    /// A page is owed that is no lazy one.
    #[error("page {address:#x} of task {vpid} is to follow, and is none of its lazy pages; the images are damaged")]
    Owed {
        /// The task.
        vpid: Vpid,
        /// The page.
        address: u64,
    },
    /// A page is owed, and whoever restores the tasks needs it: before they run nobody brings it.
    #[error("page {address:#x} of task {vpid} is needed before the task runs, and is still at the source")]
    TooEarly {
        /// The task.
        vpid: Vpid,
        /// The page.
        address: u64,
    },
    /// What is owed will never come.
    #[error("the memory that the tasks lack is lost: {why}")]
    Lost {
        /// Why.
        why: String,
    },
    /// Two threads changed mappings at once, and the kernel's reports do not say which was first.
    #[error("task {vpid} moved memory to {address:#x} over memory that it still lacked")]
    Order {
        /// The task.
        vpid: Vpid,
        /// Where it was moved to.
        address: u64,
    },
    /// A task's events cannot be read.
    #[error("cannot read the page faults of task {vpid}: {source}")]
    Events {
        /// The task.
        vpid: Vpid,
        /// What the system said.
        source: io::Error,
    },
    /// The store cannot be read any more.
    #[error("cannot read the page at {place:#x} of task {vpid} in the store: {source}")]
    Store {
        /// The task.
        vpid: Vpid,
        /// The offset in its file.
        place: u64,
        /// What the system said.
        source: io::Error,
    },
    /// The kernel does not take a page.
    #[error("cannot fill page {address:#x} of task {vpid}: {source}")]
    Refused {
        /// The task.
        vpid: Vpid,
        /// The page.
        address: u64,
        /// What the system said.
        source: io::Error,
    },
    /// A pipe, a poll or a thread.
    #[error("the pager cannot work: {0}")]
    System(#[source] io::Error),
}
