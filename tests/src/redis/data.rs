//! A body of data that can be told again: every value follows from its number.

use std::net::SocketAddr;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::{Connection, Reply, encode};
use crate::error::Result;

/// Bytes of a value: with Redis's own header just below jemalloc's size class of 16 KiB, so that the server's memory is about
/// what was put in.
const VALUE: usize = 16_000;
/// Commands that are on their way at the same time.
const PIPELINE: u64 = 64;

/// What was put in or found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// How many keys of ours.
    pub keys: u64,
    /// Bytes of their values.
    pub bytes: u64,
    /// All keys of the server, ours and others.
    pub server_keys: u64,
    /// How long it took.
    pub seconds: f64,
}

/// How many keys make up `mib` MiB.
#[must_use]
pub fn keys(mib: u64) -> u64 {
    (mib << 20).div_ceil(VALUE as u64)
}

/// Puts `mib` MiB into the server.
///
/// # Errors
/// [`crate::Error::RedisConnection`], [`crate::Error::RedisAnswer`].
pub fn load(server: SocketAddr, mib: u64) -> Result<Report> {
    let ok = Reply::Simple("OK".to_owned());
    every(server, mib, |request, key, value| encode(request, &[b"SET", key, value]), |_| ok.clone())
}

/// Reads all of it again; the first value that is not what was put in is an error.
///
/// # Errors
/// Like [`load`].
pub fn verify(server: SocketAddr, mib: u64) -> Result<Report> {
    every(server, mib, |request, key, _| encode(request, &[b"GET", key]), Reply::Bulk)
}

/// Asks about every key, in pipelines, and compares the replies; `expected` makes one from the key's value.
fn every(
    server: SocketAddr,
    mib: u64,
    ask: impl Fn(&mut Vec<u8>, &[u8], &[u8]),
    expected: impl Fn(Vec<u8>) -> Reply,
) -> Result<Report> {
    let mut connection = Connection::open_starting(server)?;
    let start = Instant::now();
    let keys = keys(mib);
    let mut request = Vec::new();
    let mut first = 0;
    while first < keys {
        let batch = first..keys.min(first + PIPELINE);
        first = batch.end;
        request.clear();
        for number in batch.clone() {
            ask(&mut request, key(number).as_bytes(), &value(number));
        }
        connection.send(&request)?;
        for number in batch {
            connection.expect(&expected(value(number)), &key(number))?;
        }
    }
    Ok(Report {
        keys,
        bytes: keys * VALUE as u64,
        server_keys: connection.key_count()?,
        seconds: start.elapsed().as_secs_f64(),
    })
}

fn key(number: u64) -> String {
    format!("data:{number}")
}

/// Pseudo-random bytes that do not compress: xorshift64* (Vigna, "An experimental exploration of Marsaglia's xorshift
/// generators, scrambled") from the key's number.
fn value(number: u64) -> Vec<u8> {
    let mut state = (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut bytes = Vec::with_capacity(VALUE);
    while bytes.len() < VALUE {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        bytes.extend_from_slice(&state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_follow_from_their_numbers_and_differ() {
        assert_eq!(value(5), value(5));
        assert_ne!(value(5), value(6));
        assert_eq!(value(0).len(), VALUE);
    }

    #[test]
    fn a_gibibyte_is_a_gibibyte() {
        let bytes = keys(1024) * VALUE as u64;
        assert!(bytes >= 1 << 30 && bytes < (1 << 30) + VALUE as u64);
    }
}
