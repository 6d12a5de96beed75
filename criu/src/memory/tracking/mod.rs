//! What a process writes while it runs, page by page.
//!
//! | module | noun |
//! |---|---|
//! | `write_protect` | pages protected by a userfaultfd in asynchronous mode: the kernel notes the first write to each and lets it pass |
//! | `inject`, `tracee` | how such a userfaultfd is had of a process: a thread of it is held up for a moment |
//! | `soft_dirty` | the kernel's soft-dirty bits |
//! | `content` | hashes of what was sent |

mod content;
mod direct;
#[cfg(target_arch = "x86_64")]
mod inject;
mod probe;
mod soft_dirty;
#[cfg(test)]
pub(super) mod tests;
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "injections are known for x86-64 alone"))]
mod tracee;
mod userfault;
mod write_protect;

use std::fmt;
use std::io;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{MemoryError, Pages};
use content::Content;
use soft_dirty::SoftDirty;
use write_protect::WriteProtect;

pub use probe::supported;

/// A way to learn what was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// userfaultfd in asynchronous write-protect mode and PAGEMAP_SCAN: Linux 6.7, x86-64. The process is stopped once, for less than a
    /// millisecond; afterwards its first write to each page after each look costs it a fault. Does not see what devices write
    /// ([`TrackError::DirectIo`]).
    WriteProtect,
    /// Soft-dirty bits: CONFIG_MEM_SOFT_DIRTY. The process is stopped for each look, some milliseconds per GiB; 8 bytes are kept of each
    /// page. Does not see what devices write ([`TrackError::DirectIo`]). All of a huge page counts as written when one byte of it is.
    SoftDirty,
    /// Comparing all of it with what was sent: everywhere, at the cost of reading everything at each look.
    Content,
}

impl Method {
    const ALL: [Self; 3] = [Self::WriteProtect, Self::SoftDirty, Self::Content];

    /// Its name, as it is written in configurations and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::WriteProtect => "write-protect",
            Self::SoftDirty => "soft-dirty",
            Self::Content => "content",
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name())
    }
}

/// A word that names no [`Method`].
#[derive(Debug, thiserror::Error)]
#[error("'{0}' is no way to follow memory; it is one of write-protect, soft-dirty, content")]
pub struct UnknownMethod(String);

impl FromStr for Method {
    type Err = UnknownMethod;

    fn from_str(word: &str) -> Result<Self, UnknownMethod> {
        Self::ALL.into_iter().find(|method| method.name() == word).ok_or_else(|| UnknownMethod(word.to_owned()))
    }
}

/// Why a process cannot be followed, or no longer by this method.
#[derive(Debug, thiserror::Error)]
pub enum TrackError {
    /// Not on this host: see [`supported`].
    #[error("the kernel of this host cannot follow memory by {method}; by content it can be followed everywhere")]
    Unsupported {
        /// The way.
        method: Method,
    },
    /// It ended.
    #[error("process {pid} ended")]
    Gone {
        /// The process.
        pid: i32,
    },
    /// It may not be traced.
    #[error(
        "process {pid} cannot be traced: a debugger has it, or this host forbids tracing (kernel.yama.ptrace_scope)"
    )]
    Denied {
        /// The process.
        pid: i32,
    },
    /// It has seccomp filters, and they cannot be suspended.
    #[error(
        "the seccomp filters of process {pid} cannot be suspended for a call of ours; is spothop itself run under seccomp?"
    )]
    Seccomp {
        /// The process.
        pid: i32,
    },
    /// None of its threads stopped in time.
    #[error("no thread of process {pid} could be stopped in time: they sleep uninterruptibly, or are frozen")]
    Busy {
        /// The process.
        pid: i32,
    },
    /// It runs code that we cannot make calls from.
    #[error("process {pid} runs no 64-bit code with system calls; its memory can be followed by content")]
    Foreign {
        /// The process.
        pid: i32,
    },
    /// A call made in it raised a signal, which was held back.
    #[error("a call made in process {pid} raised signal {signal}")]
    Signal {
        /// The process.
        pid: i32,
        /// The signal's number.
        signal: i32,
    },
    /// A call made in it was refused.
    #[error("process {pid} cannot do {call}: {source}")]
    Call {
        /// The process.
        pid: i32,
        /// The system call.
        call: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// Its descriptor or its code cannot be taken over.
    #[error("cannot take a userfaultfd out of process {pid}: {source}")]
    Take {
        /// The process.
        pid: i32,
        /// What the system said.
        source: io::Error,
    },
    /// The kernel refuses a request of ptrace.
    #[error("cannot hold process {pid} up: {source}")]
    Ptrace {
        /// The process.
        pid: i32,
        /// What the kernel said.
        source: io::Error,
    },
    /// No thread of our own could be started.
    #[error("cannot start a thread to trace process {pid}: {source}")]
    Thread {
        /// The process.
        pid: i32,
        /// What the system said.
        source: io::Error,
    },
    /// The kernel has no userfaultfd in asynchronous mode.
    #[error("the kernel cannot follow the writes of process {pid} by userfaultfd: {source}")]
    Userfault {
        /// The process.
        pid: i32,
        /// What the kernel said.
        source: io::Error,
    },
    /// It reads files past the page cache (O_DIRECT). Then a device writes into its memory, which no protection sees.
    #[error("process {pid} does direct I/O, which only its content shows; follow it by content")]
    DirectIo {
        /// The process.
        pid: i32,
    },
    /// Its soft-dirty bits cannot be reset.
    #[error("cannot reset the soft-dirty bits of process {pid}: {source}")]
    Reset {
        /// The process.
        pid: i32,
        /// What the system said.
        source: io::Error,
    },
    /// Its memory cannot be looked at.
    #[error(transparent)]
    Memory(MemoryError),
}

impl From<MemoryError> for TrackError {
    fn from(error: MemoryError) -> Self {
        match error {
            MemoryError::Gone { pid } => Self::Gone { pid },
            error @ MemoryError::Read { .. } => Self::Memory(error),
        }
    }
}

/// Follows what one process writes into its private anonymous memory. When it is dropped, the process is as it was before.
pub struct Tracker {
    following: Following,
}

impl fmt::Debug for Tracker {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Tracker").field("method", &self.method()).finish_non_exhaustive()
    }
}

enum Following {
    WriteProtect(WriteProtect),
    SoftDirty(SoftDirty),
    Content(Content),
}

impl Tracker {
    /// Begins to follow `pid`. It must not be frozen.
    ///
    /// # Errors
    /// When this method cannot be used for this process; it goes on as if nothing had been, and another method may do.
    pub fn attach(pid: i32, method: Method) -> Result<Self, TrackError> {
        Ok(Self {
            following: match method {
                Method::WriteProtect => Following::WriteProtect(WriteProtect::attach(pid)?),
                Method::SoftDirty => Following::SoftDirty(SoftDirty::attach(pid)?),
                Method::Content => Following::Content(Content::attach(pid)),
            },
        })
    }

    /// The pages that may differ from what was read of them after the last call gave them out; at the first call all pages that hold
    /// data. What is written after this returns, or is about to be, is seen by the next call. Pages that are not given out any more
    /// because the process unmapped or discarded them are not told.
    ///
    /// The process may run or be frozen.
    ///
    /// # Errors
    /// When it is gone, or cannot be followed by this method any more. Nothing is known then of what was written since the last call:
    /// the next one, or a new tracker, gives out everything.
    pub fn changed(&mut self) -> Result<Pages, TrackError> {
        match &mut self.following {
            Following::WriteProtect(tracker) => tracker.changed(),
            Following::SoftDirty(tracker) => tracker.changed(),
            Following::Content(tracker) => tracker.changed(),
        }
    }

    /// Tells what was really sent of the memory from `address` on, whole pages: for [`Method::Content`] the state against which the next
    /// [`Tracker::changed`] compares. Whoever sends a page twice tells it in that order.
    pub fn sent(&self, address: u64, bytes: &[u8]) {
        if let Following::Content(tracker) = &self.following {
            tracker.sent(address, bytes);
        }
    }

    /// How it is followed.
    pub fn method(&self) -> Method {
        match &self.following {
            Following::WriteProtect(_) => Method::WriteProtect,
            Following::SoftDirty(_) => Method::SoftDirty,
            Following::Content(_) => Method::Content,
        }
    }
}

/// A userfaultfd of another process, where we know how to have one made.
#[cfg(not(target_arch = "x86_64"))]
mod inject {
    pub(super) fn userfaultfd(pid: i32) -> Result<std::os::fd::OwnedFd, super::TrackError> {
        Err(super::TrackError::Foreign { pid })
    }
}
