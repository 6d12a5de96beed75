//! What the two sides tell each other about a transfer, as JSON in frames of kind 2.
//!
//! The sender says `begin`, then chunks go over the data connections, then it says `finish`; the receiver answers `done`. Either may say
//! `abort` at any time.

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{Xxh3Default, xxh3_128};

use super::chunk::Header;
use crate::error::AbortCode;

/// Longest text that is sent with an `abort`, in bytes.
pub(crate) const MAX_REASON: usize = 4096;

/// A message about a transfer. `transfer` is its number in the session, from 1, which both sides count.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub(crate) enum Message {
    Begin(Begin),
    Finish(Finish),
    Done { transfer: u32 },
    Abort { transfer: u32, code: AbortCode, reason: String },
}

/// The bytes of a message.
pub(crate) fn encode(message: &Message) -> Vec<u8> {
    // Strings and numbers in structs: nothing that JSON could not say.
    serde_json::to_vec(message).expect("plain data becomes JSON")
}

/// What will come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Begin {
    pub(crate) transfer: u32,
    /// Raw length of every chunk but the last of an object; of extents, the longest that a chunk may be.
    pub(crate) chunk_bytes: u32,
    #[serde(flatten)]
    pub(crate) content: Content,
}

/// The kinds of transfer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "content", rename_all = "kebab-case")]
pub(crate) enum Content {
    /// Named files, in the order of their object numbers.
    Files { files: Vec<File> },
    /// One stream of a length not known yet.
    Stream,
    /// Pieces of objects whose numbers and offsets the chunks say.
    Extents,
}

/// A file that will come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct File {
    pub(crate) name: String,
    /// In bytes.
    pub(crate) size: u64,
}

/// What should have come: the manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Finish {
    pub(crate) transfer: u32,
    /// Sum over all objects, in bytes.
    pub(crate) raw_bytes: u64,
    /// A [`Digest`] per object, in order; one for a stream. One [`PiecesDigest`] for extents.
    pub(crate) digests: Vec<String>,
}

/// Digest of an object: XXH3-128 over the checksums (8 bytes each) of its chunks in order, and then its length (8 bytes).
///
/// Each chunk has been verified by its own checksum; this ties them together, so that none is missing, doubled or in another's place.
/// A hash made for speed is enough here: both sides are authenticated, and TLS already keeps others out.
#[derive(Default)]
pub(crate) struct Digest {
    hash: Xxh3Default,
    length: u64,
}

impl Digest {
    /// The next chunk's checksum and raw length.
    pub(crate) fn chunk(&mut self, checksum: u64, raw_length: u64) {
        self.hash.update(&checksum.to_le_bytes());
        self.length += raw_length;
    }

    /// Bytes so far.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// 32 hexadecimal digits.
    pub(crate) fn finish(mut self) -> String {
        self.hash.update(&self.length.to_le_bytes());
        format!("{:032x}", self.hash.digest128())
    }
}

/// Digest of pieces that come in any order: of each, XXH3-128 of the tuple that its chunk's header says (object, 4 bytes; offset, 8; raw
/// length, 4; checksum, 8), summed modulo 2^128; and then XXH3-128 of the sum (16 bytes), the number of pieces (8) and of bytes (8).
///
/// As good as [`Digest`] for what that is for: a piece that is missing, doubled or in another's place changes the sum and the counts.
#[derive(Default)]
pub(crate) struct PiecesDigest {
    sum: u128,
    count: u64,
    length: u64,
}

impl PiecesDigest {
    /// Another piece.
    pub(crate) fn piece(&mut self, header: &Header) {
        let mut tuple = [0; 24];
        tuple[..4].copy_from_slice(&header.object.to_le_bytes());
        tuple[4..12].copy_from_slice(&header.offset.to_le_bytes());
        tuple[12..16].copy_from_slice(&header.raw_length.to_le_bytes());
        tuple[16..].copy_from_slice(&header.checksum.to_le_bytes());
        self.sum = self.sum.wrapping_add(xxh3_128(&tuple));
        self.count += 1;
        self.length = self.length.saturating_add(u64::from(header.raw_length));
    }

    /// Bytes so far.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// 32 hexadecimal digits.
    pub(crate) fn finish(&self) -> String {
        let mut hash = Xxh3Default::default();
        hash.update(&self.sum.to_le_bytes());
        hash.update(&self.count.to_le_bytes());
        hash.update(&self.length.to_le_bytes());
        format!("{:032x}", hash.digest128())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::chunk::Encoding;

    fn same(message: &Message, json: &str) {
        assert_eq!(serde_json::to_string(message).unwrap(), json);
        assert_eq!(serde_json::from_str::<Message>(json).unwrap(), *message);
    }

    #[test]
    fn message_bytes() {
        let files = vec![File { name: "pages-1.img".into(), size: 4096 }];
        let begin = Begin { transfer: 1, chunk_bytes: 1048576, content: Content::Files { files } };
        same(
            &Message::Begin(begin),
            r#"{"type":"begin","transfer":1,"chunk_bytes":1048576,"content":"files","files":[{"name":"pages-1.img","size":4096}]}"#,
        );
        same(
            &Message::Begin(Begin { transfer: 2, chunk_bytes: 1048576, content: Content::Stream }),
            r#"{"type":"begin","transfer":2,"chunk_bytes":1048576,"content":"stream"}"#,
        );
        same(
            &Message::Begin(Begin { transfer: 3, chunk_bytes: 1048576, content: Content::Extents }),
            r#"{"type":"begin","transfer":3,"chunk_bytes":1048576,"content":"extents"}"#,
        );
        same(
            &Message::Finish(Finish { transfer: 1, raw_bytes: 9, digests: vec!["00".into()] }),
            r#"{"type":"finish","transfer":1,"raw_bytes":9,"digests":["00"]}"#,
        );
        same(&Message::Done { transfer: 1 }, r#"{"type":"done","transfer":1}"#);
        same(
            &Message::Abort { transfer: 1, code: AbortCode::Storage, reason: "disk full".into() },
            r#"{"type":"abort","transfer":1,"code":"storage","reason":"disk full"}"#,
        );
    }

    #[test]
    fn a_code_of_a_later_version_is_understood_as_unknown() {
        let json = r#"{"type":"abort","transfer":1,"code":"new","reason":"x"}"#;
        let message: Message = serde_json::from_str(json).unwrap();
        assert_eq!(message, Message::Abort { transfer: 1, code: AbortCode::Unknown, reason: "x".into() });
    }

    #[test]
    fn a_digest_depends_on_order_number_and_length() {
        let digest = |chunks: &[(u64, u64)]| {
            let mut digest = Digest::default();
            chunks.iter().for_each(|&(checksum, length)| digest.chunk(checksum, length));
            digest.finish()
        };
        let base = digest(&[(1, 4), (2, 4)]);
        // XXH3_128bits of xxHash 0.8.4 over the numbers 1, 2 and 8.
        assert_eq!(base, "71557c5d278c35f9f439daa33ec548e5");
        for other in [&[(2, 4), (1, 4)][..], &[(1, 4)], &[(1, 4), (2, 4), (2, 4)], &[(1, 4), (2, 3)], &[]] {
            assert_ne!(digest(other), base);
        }
    }

    #[test]
    fn a_digest_of_pieces_depends_on_all_but_their_order() {
        let piece = |object, offset, raw_length, checksum| Header {
            encoding: Encoding::Raw,
            transfer: 1,
            object,
            offset,
            raw_length,
            stored_length: raw_length,
            checksum,
        };
        let digest = |pieces: &[Header]| {
            let mut digest = PiecesDigest::default();
            pieces.iter().for_each(|header| digest.piece(header));
            digest.finish()
        };
        let (one, two) = (piece(1, 4096, 5, 9), piece(2, 1 << 40, 6, 8));
        let base = digest(&[one, two]);
        // XXH3_128bits of xxHash 0.8.4, over the layout that is written above.
        assert_eq!(base, "4214a6c41ebc8adb3755a6416deaec95");
        assert_eq!(digest(&[two, one]), base);
        for other in [
            &[one][..],
            &[one, two, two],
            &[one, one],
            &[one, piece(3, 1 << 40, 6, 8)],
            &[one, piece(2, 1 << 41, 6, 8)],
            &[one, piece(2, 1 << 40, 7, 8)],
            &[one, piece(2, 1 << 40, 6, 7)],
            &[piece(1, 4096, 5, 8), piece(2, 1 << 40, 6, 9)],
            &[],
        ] {
            assert_ne!(digest(other), base, "{other:?}");
        }
    }
}
