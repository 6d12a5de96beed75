//! Frames of the control connection.
//!
//! | bytes | content |
//! |---|---|
//! | 0 | kind: 1 message of the application, 2 message about a transfer (JSON, [`super::message`]), 3 goodbye |
//! | 1–3 | zero |
//! | 4–7 | length of the payload |
//! | 8–15 | XXH3-64 of the payload, with bytes 0–7 as the seed, so that it covers them too |
//! | 16– | payload |

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::{read_announced, read_le};
use crate::error::Error;
use crate::session::MAX_MESSAGE;

const HEADER: usize = 16;

/// What a frame is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Message = 1,
    Transfer = 2,
    Goodbye = 3,
}

fn header(kind: Kind, payload: &[u8]) -> [u8; HEADER] {
    let mut bytes = [0; HEADER];
    bytes[0] = kind as u8;
    // No payload is longer than MAX_MESSAGE (16 MiB): the session refuses it before.
    bytes[4..8].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    let checksum = xxh3_64_with_seed(payload, read_le!(u64, bytes, 0));
    bytes[8..].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

/// Sends one frame and hands it to the kernel.
pub(crate) async fn write(
    stream: &mut (impl AsyncWrite + Unpin),
    kind: Kind,
    payload: &[u8],
    peer: &str,
) -> Result<(), Error> {
    let sent = async {
        stream.write_all(&header(kind, payload)).await?;
        stream.write_all(payload).await?;
        stream.flush().await
    };
    sent.await.map_err(|error| Error::from_io(peer, "a control message", error))
}

/// Reads one frame.
pub(crate) async fn read(stream: &mut (impl AsyncRead + Unpin), peer: &str) -> Result<(Kind, Vec<u8>), Error> {
    let mut bytes = [0; HEADER];
    // An end between two frames is an end without a goodbye.
    let first = stream.read(&mut bytes).await.map_err(|error| Error::from_io(peer, "the session", error))?;
    if first == 0 {
        return Err(Error::Truncated { peer: peer.into(), during: "the session, without a goodbye" });
    }
    let mid_frame = |error| Error::from_io(peer, "a control message", error);
    stream.read_exact(&mut bytes[first..]).await.map_err(mid_frame)?;
    let kind = match bytes[0] {
        1 => Kind::Message,
        2 => Kind::Transfer,
        3 => Kind::Goodbye,
        _ => return Err(Error::Protocol { peer: peer.into(), rule: "a control frame is of a known kind" }),
    };
    let length = read_le!(u32, bytes, 4) as usize;
    if length > MAX_MESSAGE {
        return Err(Error::Limit {
            what: "a control message (bytes)",
            actual: length as u64,
            limit: MAX_MESSAGE as u64,
        });
    }
    let mut payload = Vec::new();
    read_announced(stream, &mut payload, length).await.map_err(mid_frame)?;
    if xxh3_64_with_seed(&payload, read_le!(u64, bytes, 0)) != read_le!(u64, bytes, 8) {
        return Err(Error::Checksum { peer: peer.into(), object: "a control message".into(), offset: 0 });
    }
    Ok((kind, payload))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn bytes_of(kind: Kind, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        write(&mut bytes, kind, payload, "p").await.unwrap();
        bytes
    }

    #[tokio::test]
    async fn frame_bytes() {
        let bytes = bytes_of(Kind::Message, b"hello").await;
        // The checksums are from the reference implementation: XXH3_64bits_withSeed of xxHash 0.8.4.
        assert_eq!(bytes, b"\x01\0\0\0\x05\0\0\0\x39\xb2\xaa\xc1\x21\xed\xdc\x9chello");
        let goodbye = bytes_of(Kind::Goodbye, b"").await;
        assert_eq!(goodbye, b"\x03\0\0\0\0\0\0\0\xad\xc9\xa6\x2d\x8b\x3f\xd1\xd8");
    }

    #[tokio::test]
    async fn frames_come_back_one_after_the_other() {
        let mut bytes = bytes_of(Kind::Message, b"one").await;
        bytes.extend(bytes_of(Kind::Transfer, b"{}").await);
        bytes.extend(bytes_of(Kind::Goodbye, b"").await);
        let mut stream = bytes.as_slice();
        assert_eq!(read(&mut stream, "p").await.unwrap(), (Kind::Message, b"one".to_vec()));
        assert_eq!(read(&mut stream, "p").await.unwrap(), (Kind::Transfer, b"{}".to_vec()));
        assert_eq!(read(&mut stream, "p").await.unwrap(), (Kind::Goodbye, Vec::new()));
        let end = read(&mut stream, "p").await.unwrap_err();
        assert!(matches!(end, Error::Truncated { during: "the session, without a goodbye", .. }), "{end}");
    }

    #[tokio::test]
    async fn every_flipped_bit_is_noticed() {
        let good = bytes_of(Kind::Message, b"hello").await;
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let error = read(&mut bad.as_slice(), "p").await.expect_err("a damaged frame was taken");
            assert!(
                matches!(
                    error,
                    Error::Checksum { .. } | Error::Protocol { .. } | Error::Limit { .. } | Error::Truncated { .. }
                ),
                "{bit}: {error}"
            );
        }
    }

    #[tokio::test]
    async fn every_cut_is_noticed() {
        let good = bytes_of(Kind::Message, b"hello").await;
        for length in 0..good.len() {
            assert!(matches!(read(&mut &good[..length], "p").await, Err(Error::Truncated { .. })), "{length}");
        }
    }

    #[tokio::test]
    async fn a_giant_frame_is_refused_before_it_is_read() {
        let mut bytes = bytes_of(Kind::Message, b"").await;
        bytes[4..8].copy_from_slice(&(MAX_MESSAGE as u32 + 1).to_le_bytes());
        assert!(matches!(read(&mut bytes.as_slice(), "p").await, Err(Error::Limit { .. })));
    }
}
