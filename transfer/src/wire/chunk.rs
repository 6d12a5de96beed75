//! Chunks of a data connection: a header of 48 bytes and the stored bytes.
//!
//! | bytes | content |
//! |---|---|
//! | 0–3 | magic `SHC1` |
//! | 4 | encoding: 0 raw, 1 zstd, 2 zero (nothing stored), 3 end (no more chunks of this transfer on this connection) |
//! | 5–7 | zero |
//! | 8–11 | number of the transfer in its session, from 1 |
//! | 12–15 | number of the object in the transfer: the file's place in the announced list; an extent's own; 0 for a stream and an end |
//! | 16–23 | offset in the object, in bytes; for an end, the number of chunks before it on this connection |
//! | 24–27 | raw length; 0 for an end |
//! | 28–31 | stored length; 0 for zero and end |
//! | 32–39 | XXH3-64 of the raw bytes; 0 for zero and end |
//! | 40–47 | XXH3-64 of bytes 0–39 |

use tokio::io::{AsyncRead, AsyncReadExt};
use xxhash_rust::xxh3::xxh3_64;

use super::{read_announced, read_le};
use crate::error::Error;

/// Length of the header, in bytes.
pub(crate) const HEADER: usize = 48;
const MAGIC: [u8; 4] = *b"SHC1";

/// How the bytes of a chunk are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Encoding {
    Raw = 0,
    Zstd = 1,
    Zero = 2,
    End = 3,
}

/// A chunk's header; the fields are those of the layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) encoding: Encoding,
    pub(crate) transfer: u32,
    pub(crate) object: u32,
    pub(crate) offset: u64,
    pub(crate) raw_length: u32,
    pub(crate) stored_length: u32,
    pub(crate) checksum: u64,
}

impl Header {
    /// The mark after `chunks` chunks.
    pub(crate) fn end(transfer: u32, chunks: u64) -> Self {
        Self {
            encoding: Encoding::End,
            transfer,
            object: 0,
            offset: chunks,
            raw_length: 0,
            stored_length: 0,
            checksum: 0,
        }
    }

    pub(crate) fn encode(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4] = self.encoding as u8;
        bytes[8..12].copy_from_slice(&self.transfer.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.object.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.offset.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.raw_length.to_le_bytes());
        bytes[28..32].copy_from_slice(&self.stored_length.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.checksum.to_le_bytes());
        let check = xxh3_64(&bytes[..40]);
        bytes[40..].copy_from_slice(&check.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8; HEADER], peer: &str) -> Result<Self, Error> {
        if xxh3_64(&bytes[..40]) != read_le!(u64, bytes, 40) {
            return Err(Error::Checksum { peer: peer.into(), object: "a chunk's header".into(), offset: 0 });
        }
        let encoding = match bytes[4] {
            0 => Encoding::Raw,
            1 => Encoding::Zstd,
            2 => Encoding::Zero,
            3 => Encoding::End,
            _ => return Err(Error::Protocol { peer: peer.into(), rule: "a chunk has a known encoding" }),
        };
        if bytes[..4] != MAGIC {
            return Err(Error::Protocol { peer: peer.into(), rule: "a data connection carries chunks" });
        }
        Ok(Self {
            encoding,
            transfer: read_le!(u32, bytes, 8),
            object: read_le!(u32, bytes, 12),
            offset: read_le!(u64, bytes, 16),
            raw_length: read_le!(u32, bytes, 24),
            stored_length: read_le!(u32, bytes, 28),
            checksum: read_le!(u64, bytes, 32),
        })
    }

    /// Whether the lengths can be, given the agreed size of chunks.
    fn check_lengths(&self, chunk_bytes: u32, peer: &str) -> Result<(), Error> {
        let raw_fits = 0 < self.raw_length && self.raw_length <= chunk_bytes;
        let fits = match self.encoding {
            Encoding::Raw => raw_fits && self.stored_length == self.raw_length,
            Encoding::Zstd => raw_fits && 0 < self.stored_length && self.stored_length < self.raw_length,
            Encoding::Zero => raw_fits && self.stored_length == 0,
            Encoding::End => self.raw_length == 0 && self.stored_length == 0,
        };
        if fits {
            return Ok(());
        }
        Err(Error::Protocol { peer: peer.into(), rule: "a chunk's lengths fit its encoding and the agreed size" })
    }
}

/// Reads a chunk of the given transfer: its header, and into `stored` (resized) its stored bytes.
pub(crate) async fn read(
    stream: &mut (impl AsyncRead + Unpin + ?Sized),
    stored: &mut Vec<u8>,
    transfer: u32,
    chunk_bytes: u32,
    peer: &str,
) -> Result<Header, Error> {
    let mut bytes = [0; HEADER];
    stream.read_exact(&mut bytes).await.map_err(|error| Error::from_io(peer, "a transfer", error))?;
    let header = Header::decode(&bytes, peer)?;
    if header.transfer != transfer {
        return Err(Error::Protocol { peer: peer.into(), rule: "a chunk belongs to the transfer that is under way" });
    }
    header.check_lengths(chunk_bytes, peer)?;
    let length = header.stored_length as usize;
    read_announced(stream, stored, length).await.map_err(|error| Error::from_io(peer, "a chunk", error))?;
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u32 = 1 << 20;

    fn sample() -> Header {
        Header {
            encoding: Encoding::Raw,
            transfer: 1,
            object: 2,
            offset: 0x0000_0003_0000_0000,
            raw_length: 5,
            stored_length: 5,
            checksum: xxh3_64(b"hello"),
        }
    }

    #[test]
    fn header_bytes() {
        let bytes = sample().encode();
        assert_eq!(bytes[..32], *b"SHC1\0\0\0\0\x01\0\0\0\x02\0\0\0\0\0\0\0\x03\0\0\0\x05\0\0\0\x05\0\0\0");
        // The checksums are from the reference implementation: XXH3_64bits of xxHash 0.8.4.
        assert_eq!(read_le!(u64, bytes, 32), 0x9555_e855_5c62_dcfd);
        assert_eq!(read_le!(u64, bytes, 40), 0x716c_9127_d7c9_5ec1);
        assert_eq!(Header::decode(&bytes, "p").unwrap(), sample());
        let end = Header::end(7, 9);
        assert_eq!(end.encode()[..24], *b"SHC1\x03\0\0\0\x07\0\0\0\0\0\0\0\x09\0\0\0\0\0\0\0");
        assert_eq!(Header::decode(&end.encode(), "p").unwrap(), end);
    }

    #[test]
    fn every_flipped_bit_of_a_header_is_noticed() {
        for bit in 0..HEADER * 8 {
            let mut bytes = sample().encode();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(matches!(Header::decode(&bytes, "p"), Err(Error::Checksum { .. })), "{bit}");
        }
    }

    #[test]
    fn lengths_that_cannot_be_are_refused() {
        let check = |encoding, raw_length, stored_length| {
            Header { encoding, raw_length, stored_length, ..sample() }.check_lengths(SIZE, "p").is_ok()
        };
        assert!(check(Encoding::Raw, SIZE, SIZE));
        assert!(!check(Encoding::Raw, SIZE + 1, SIZE + 1), "larger than agreed");
        assert!(!check(Encoding::Raw, 8, 7));
        assert!(!check(Encoding::Raw, 0, 0));
        assert!(check(Encoding::Zstd, 8, 7));
        assert!(!check(Encoding::Zstd, 8, 8), "compressed and not smaller");
        assert!(!check(Encoding::Zstd, 8, 0));
        assert!(check(Encoding::Zero, 8, 0));
        assert!(!check(Encoding::Zero, 8, 1));
        assert!(check(Encoding::End, 0, 0));
        assert!(!check(Encoding::End, 1, 0));
    }

    #[tokio::test]
    async fn a_cut_is_noticed_wherever_it_is() {
        let mut bytes = sample().encode().to_vec();
        bytes.extend(b"hello");
        let mut stored = Vec::new();
        for length in 0..bytes.len() {
            let error = read(&mut &bytes[..length], &mut stored, 1, SIZE, "p").await.unwrap_err();
            assert!(matches!(error, Error::Truncated { .. }), "{length}: {error}");
        }
        assert_eq!(read(&mut &bytes[..], &mut stored, 1, SIZE, "p").await.unwrap(), sample());
        assert_eq!(stored, b"hello");
    }

    #[tokio::test]
    async fn a_chunk_of_another_transfer_is_refused() {
        let mut bytes = sample().encode().to_vec();
        bytes.extend(b"hello");
        let error = read(&mut &bytes[..], &mut Vec::new(), 2, SIZE, "p").await.unwrap_err();
        assert!(matches!(error, Error::Protocol { .. }), "{error}");
    }
}
