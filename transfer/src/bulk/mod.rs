//! Files, streams and extents over the data connections.

mod chunks;
pub(crate) mod extents;
pub(crate) mod files;
pub(crate) mod stream;
mod transfer;

#[cfg(test)]
mod tests;

use std::time::Duration;

pub use extents::{Extent, ExtentSink, ExtentSource};

/// Raw length of the chunks that this side sends. Large enough that header, task switch and system calls hardly count, small enough that
/// connections share the work evenly and that all buffers of a session stay within some tens of MiB.
const CHUNK: u32 = 1 << 20;
/// What is accepted from a sender as its length of chunks: below, the receiver's bookkeeping would grow; above, its buffers.
const ACCEPTED_CHUNKS: std::ops::RangeInclusive<u32> = 64 << 10..=4 << 20;

/// What a transfer moved. Both sides report the same numbers but for `elapsed`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Bytes of the files, the stream or the extents.
    pub raw_bytes: u64,
    /// Bytes put on the data connections for them: chunk headers and payloads, without TLS's own overhead.
    pub wire_bytes: u64,
    /// Bytes that were not sent because their whole chunk was zero; part of `raw_bytes`.
    pub zero_bytes: u64,
    /// From the call to its end on this side.
    pub elapsed: Duration,
}

impl Stats {
    /// Raw bytes per second; 0 when no time has passed.
    pub fn bytes_per_second(&self) -> f64 {
        let seconds = self.elapsed.as_secs_f64();
        if seconds > 0.0 { self.raw_bytes as f64 / seconds } else { 0.0 }
    }
}

/// What a receiver is ready to take. Of files, checked against the sender's announcement before the first byte is written; extents are
/// not announced, so each is counted before it is handed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Sum of all file sizes, or of all extents' lengths, in bytes.
    pub max_bytes: u64,
    /// Number of files; nothing for extents.
    pub max_files: usize,
}

impl Limits {
    /// At most so many bytes, in at most 65,536 files.
    pub const fn bytes(max_bytes: u64) -> Self {
        Self { max_bytes, max_files: 65_536 }
    }
}
