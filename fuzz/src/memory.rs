//! What an input takes: memory of this process, and of the tmpfs that it writes into.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use peak_alloc::PeakAlloc;

#[global_allocator]
static ALLOCATED: PeakAlloc = PeakAlloc;

/// Does `work`, and says how many bytes more than before were allocated at one moment. What runs on other threads counts too.
pub fn peak<T>(work: impl FnOnce() -> T) -> (T, usize) {
    ALLOCATED.reset_peak_usage();
    let before = ALLOCATED.current_usage();
    let done = work();
    (done, ALLOCATED.peak_usage().saturating_sub(before))
}

/// Bytes that the files and directories below `directory` take; holes take none.
pub fn taken(directory: &Path) -> u64 {
    let mut bytes = 0;
    let mut waiting = vec![directory.to_owned()];
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let entry = entry.unwrap();
            let about = entry.metadata().unwrap();
            bytes += about.blocks() * 512;
            if about.is_dir() {
                waiting.push(entry.path());
            }
        }
    }
    bytes
}
