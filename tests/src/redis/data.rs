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

/// What the values are like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Values {
    /// Random bytes: they do not compress.
    #[default]
    Random,
    /// Records as applications keep them, in JSON: they compress to about a quarter.
    Text,
}

impl Values {
    /// Its name on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::Text => "text",
        }
    }

    /// The value of the key with this number.
    fn of(self, number: u64) -> Vec<u8> {
        match self {
            Self::Random => value(number),
            Self::Text => text(number),
        }
    }
}

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
    load_with(server, mib, Values::default())
}

/// Like [`load`], with values of this kind.
///
/// # Errors
/// Like [`load`].
pub fn load_with(server: SocketAddr, mib: u64, values: Values) -> Result<Report> {
    let ok = Reply::Simple("OK".to_owned());
    every(server, mib, values, |request, key, value| encode(request, &[b"SET", key, value]), |_| ok.clone())
}

/// Reads all of it again; the first value that is not what was put in is an error.
///
/// # Errors
/// Like [`load`].
pub fn verify(server: SocketAddr, mib: u64) -> Result<Report> {
    verify_with(server, mib, Values::default())
}

/// Like [`verify`], for values of this kind.
///
/// # Errors
/// Like [`load`].
pub fn verify_with(server: SocketAddr, mib: u64, values: Values) -> Result<Report> {
    every(server, mib, values, |request, key, _| encode(request, &[b"GET", key]), Reply::Bulk)
}

/// Asks about every key, in pipelines, and compares the replies; `expected` makes one from the key's value.
fn every(
    server: SocketAddr,
    mib: u64,
    values: Values,
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
            ask(&mut request, key(number).as_bytes(), &values.of(number));
        }
        connection.send(&request)?;
        for number in batch {
            connection.expect(&expected(values.of(number)), &key(number))?;
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

/// Pseudo-random numbers: xorshift64* (Vigna, "An experimental exploration of Marsaglia's xorshift generators, scrambled") from the
/// key's number.
fn numbers(number: u64) -> impl Iterator<Item = u64> {
    let mut state = (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    std::iter::repeat_with(move || {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    })
}

/// Bytes that do not compress.
fn value(number: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(VALUE);
    for number in numbers(number).take(VALUE.div_ceil(8)) {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
    bytes
}

/// Words of [`text`].
const WORDS: [&str; 16] = [
    "order",
    "shipped",
    "customer",
    "pending",
    "invoice",
    "paid",
    "warehouse",
    "returned",
    "express",
    "standard",
    "gift",
    "discount",
    "berlin",
    "lisbon",
    "osaka",
    "toronto",
];

/// Records that differ in numbers, times and words.
fn text(number: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(VALUE + 256);
    for (record, random) in numbers(number).enumerate() {
        if bytes.len() >= VALUE {
            break;
        }
        let word = |shift: u32| WORDS[usize::try_from(random >> shift & 15).unwrap_or_default()];
        let line = format!(
            "{{\"id\":{},\"session\":\"{:08x}\",\"status\":\"{}\",\"kind\":\"{} {}\",\"city\":\"{}\",\"amount\":{}.{:02}}}\n",
            number * 1000 + record as u64,
            random >> 32,
            word(0),
            word(4),
            word(8),
            word(12),
            random >> 16 & 0xfff,
            random >> 28 & 63,
        );
        bytes.extend_from_slice(line.as_bytes());
    }
    bytes.truncate(VALUE);
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
        assert_eq!(text(5), text(5));
        assert_ne!(text(5), text(6));
        assert_eq!(text(0).len(), VALUE);
        assert!(text(0).is_ascii());
    }

    #[test]
    fn a_gibibyte_is_a_gibibyte() {
        let bytes = keys(1024) * VALUE as u64;
        assert!(bytes >= 1 << 30 && bytes < (1 << 30) + VALUE as u64);
    }
}
