//! Writes found by comparing the memory with what was sent of it.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::num::NonZeroU128;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use std::thread;

use xxhash_rust::xxh3::xxh3_128_with_seed;

use super::TrackError;
use crate::memory::{PAGE, PIECE, Pages, Reader, pieces, populated, private_anonymous};

/// Pages whose hashes lie side by side: 16 bytes each, and 16 more and an allocation for all of them; less than 20 bytes per page where
/// memory is dense.
const BLOCK_PAGES: u64 = 16;
const BLOCK: u64 = BLOCK_PAGES * PAGE;

/// Parts of the table with a lock each: more than threads that send. A piece lies in one of them.
const SHARDS: u64 = 16;

/// Threads that read and hash at once: one reads 5 GB/s, and memory itself gives little more than twice that.
const THREADS: usize = 4;

/// The hashes of 16 pages; none for a page that was never sent.
type Block = Box<[Option<NonZeroU128>; BLOCK_PAGES as usize]>;

pub(super) struct Content {
    pid: i32,
    /// Chosen anew for each process, so that nobody can prepare pages that hash alike.
    seed: u64,
    shards: Vec<Mutex<HashMap<u64, Block>>>,
}

impl Content {
    pub(super) fn attach(pid: i32) -> Self {
        let seed = RandomState::new().hash_one(pid);
        Self { pid, seed, shards: (0..SHARDS).map(|_| Mutex::default()).collect() }
    }

    pub(super) fn changed(&self) -> Result<Pages, TrackError> {
        let pages = populated(self.pid, &private_anonymous(self.pid)?)?;
        let pieces: Vec<_> = pieces(&pages).collect();
        let count = thread::available_parallelism().map_or(1, usize::from).min(THREADS);
        let parts: Result<Vec<Pages>, TrackError> = thread::scope(|scope| {
            let threads: Vec<_> = pieces
                .chunks(pieces.len().div_ceil(count).max(1))
                .map(|part| scope.spawn(move || self.compare(part)))
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect()
        });
        Ok(parts?.into_iter().flatten().collect())
    }

    fn compare(&self, pieces: &[Range<u64>]) -> Result<Pages, TrackError> {
        let mut changed = Pages::new();
        let mut buffer = vec![0; PIECE as usize];
        let failed = |source: io::Error| match source.raw_os_error() {
            Some(libc::ESRCH) => TrackError::Gone { pid: self.pid },
            _ => TrackError::Take { pid: self.pid, source },
        };
        let memory = Reader::open(self.pid).map_err(failed)?;
        for piece in pieces {
            let bytes = &mut buffer[..(piece.end - piece.start) as usize];
            let count = memory.read(piece.start, bytes).map_err(failed)?;
            // What was unmapped meanwhile counts as changed: whoever reads it will see.
            let (whole, read) = (count - count % PAGE as usize, piece.start + (count as u64 / PAGE) * PAGE);
            if read < piece.end {
                changed.insert(read..piece.end);
            }
            self.each(piece.start, &bytes[..whole], |page, hash, sent| {
                if *sent != Some(hash) {
                    changed.insert(page..page + PAGE);
                }
            });
        }
        Ok(changed)
    }

    pub(super) fn sent(&self, address: u64, bytes: &[u8]) {
        self.each(address, bytes, |_, hash, sent| *sent = Some(hash));
    }

    /// Calls `action` with the address of each page of `bytes`, its hash, and the hash of what was sent of it.
    fn each(&self, address: u64, bytes: &[u8], mut action: impl FnMut(u64, NonZeroU128, &mut Option<NonZeroU128>)) {
        let (pages, _) = bytes.as_chunks::<{ PAGE as usize }>();
        let hashes: Vec<_> = pages
            .iter()
            // The one hash in 2^128 that would be zero is as good as any other.
            .map(|page| NonZeroU128::new(xxh3_128_with_seed(page, self.seed)).unwrap_or(NonZeroU128::MIN))
            .collect();
        let mut page = address;
        let mut hashes = hashes.as_slice();
        while !hashes.is_empty() {
            // All that lies in one mebibyte is in one shard.
            let here = hashes.len().min(((PIECE - page % PIECE) / PAGE) as usize);
            let (now, later) = hashes.split_at(here);
            let shard = &self.shards[(page / PIECE % SHARDS) as usize];
            let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            for hash in now {
                let block = shard.entry(page / BLOCK).or_default();
                action(page, *hash, &mut block[(page % BLOCK / PAGE) as usize]);
                page += PAGE;
            }
            hashes = later;
        }
    }
}
