//! A stream of bytes, sealed in pieces.
//!
//! The STREAM construction (Hoang, Reyhanitabar, Rogaway, Vizár: "Online Authenticated-Encryption and its Nonce-Reuse Misuse-Resistance",
//! CRYPTO 2015; the same as age's and RustCrypto's) over AES-256-GCM, by ring: every piece has [`PIECE`] bytes but the last one, and its
//! nonce is its number and whether it is the last. So pieces cannot be left out, repeated, swapped or cut off at the end.
//!
//! ```text
//! sealed piece, again and again: ≤ PIECE bytes of ciphertext │ 16 bytes of tag
//! nonce: 7 zero bytes │ u32 number, big-endian │ 1 for the last piece, else 0
//! ```

use std::io::{self, Read, Write};

use ring::aead::{Aad, LessSafeKey, Nonce};

/// Plain bytes of a piece. With 2^32 pieces an object has a pebibyte at most.
pub(super) const PIECE: usize = 256 << 10;

/// Bytes of a tag (AES-GCM).
const TAG: usize = 16;

/// Where in the stream a piece is.
#[derive(Debug, Default)]
struct Position(u32);

impl Position {
    fn nonce(&mut self, last: bool) -> io::Result<Nonce> {
        let mut nonce = [0; 12];
        nonce[7..11].copy_from_slice(&self.0.to_be_bytes());
        nonce[11] = u8::from(last);
        self.0 = self.0.checked_add(1).ok_or_else(|| io::Error::other("a stream of more than 2^32 pieces"))?;
        Ok(Nonce::assume_unique_for_key(nonce))
    }
}

/// Seals what is written to it. Nothing is whole before [`Sealer::finish`].
pub(super) struct Sealer<W> {
    key: LessSafeKey,
    position: Position,
    piece: Vec<u8>,
    out: W,
}

impl<W: Write> Sealer<W> {
    /// With a key that seals no other stream.
    pub(super) fn new(key: LessSafeKey, out: W) -> Self {
        Self { key, position: Position::default(), piece: Vec::with_capacity(PIECE + TAG), out }
    }

    fn seal(&mut self, last: bool) -> io::Result<()> {
        let nonce = self.position.nonce(last)?;
        let sealed = self.key.seal_in_place_append_tag(nonce, Aad::empty(), &mut self.piece);
        sealed.map_err(|_| io::Error::other("a piece cannot be sealed"))?;
        self.out.write_all(&self.piece)?;
        self.piece.clear();
        Ok(())
    }

    /// Seals the last piece.
    pub(super) fn finish(mut self) -> io::Result<W> {
        self.seal(true)?;
        Ok(self.out)
    }
}

impl<W: Write> Write for Sealer<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // A full piece is sealed only when more comes: it may be the last.
        if self.piece.len() == PIECE && !bytes.is_empty() {
            self.seal(false)?;
        }
        let count = bytes.len().min(PIECE - self.piece.len());
        self.piece.extend_from_slice(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What does not open.
#[derive(Debug, thiserror::Error)]
#[error("a piece of it was changed, left out or cut off")]
pub(super) struct Broken;

/// Opens what a [`Sealer`] has sealed. Gives no byte that was not verified, and ends only after the last piece.
pub(super) struct Opener<R> {
    key: LessSafeKey,
    position: Position,
    /// Sealed, and the next to be opened; empty at the end.
    next: Vec<u8>,
    begun: bool,
    /// Opened; `done` bytes of it were given out.
    opened: Vec<u8>,
    done: usize,
    from: R,
}

impl<R: Read> Opener<R> {
    /// With the key by which it was sealed.
    pub(super) fn new(key: LessSafeKey, from: R) -> Self {
        Self { key, position: Position::default(), next: Vec::new(), begun: false, opened: Vec::new(), done: 0, from }
    }

    /// What it has read from.
    pub(super) fn into_inner(self) -> R {
        self.from
    }

    fn read_sealed(&mut self) -> io::Result<Vec<u8>> {
        let mut sealed = Vec::with_capacity(PIECE + TAG);
        self.from.by_ref().take((PIECE + TAG) as u64).read_to_end(&mut sealed)?;
        Ok(sealed)
    }

    /// False at the end.
    fn open_next(&mut self) -> io::Result<bool> {
        if !self.begun {
            self.next = self.read_sealed()?;
            self.begun = true;
        } else if self.next.is_empty() {
            return Ok(false);
        }
        let mut piece = std::mem::take(&mut self.next);
        if piece.len() == PIECE + TAG {
            self.next = self.read_sealed()?;
        }
        let nonce = self.position.nonce(self.next.is_empty())?;
        let opened = self.key.open_in_place(nonce, Aad::empty(), &mut piece);
        let length = opened.map_err(|_| io::Error::new(io::ErrorKind::InvalidData, Broken))?.len();
        piece.truncate(length);
        (self.opened, self.done) = (piece, 0);
        Ok(true)
    }
}

impl<R: Read> Read for Opener<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.done == self.opened.len() && !buffer.is_empty() {
            if !self.open_next()? {
                return Ok(0);
            }
        }
        let count = buffer.len().min(self.opened.len() - self.done);
        buffer[..count].copy_from_slice(&self.opened[self.done..self.done + count]);
        self.done += count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::parking::key::DataKey;

    fn key() -> DataKey {
        DataKey::random().unwrap()
    }

    fn sealed(key: &DataKey, bytes: &[u8]) -> Vec<u8> {
        let mut sealer = Sealer::new(key.of_object("o").unwrap(), Vec::new());
        sealer.write_all(bytes).unwrap();
        sealer.finish().unwrap()
    }

    fn opened(key: &DataKey, name: &str, bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut all = Vec::new();
        Opener::new(key.of_object(name).unwrap(), bytes).read_to_end(&mut all)?;
        Ok(all)
    }

    #[test]
    fn every_length_comes_back_and_costs_a_tag_for_each_piece() {
        let key = key();
        for (length, pieces) in
            [(0, 1), (1, 1), (PIECE - 1, 1), (PIECE, 1), (PIECE + 1, 2), (2 * PIECE, 2), (3 * PIECE + 7, 4)]
        {
            let bytes: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
            let there = sealed(&key, &bytes);
            assert_eq!(there.len(), length + pieces * TAG);
            assert!(opened(&key, "o", &there).unwrap() == bytes, "{length}");
        }
    }

    #[test]
    fn pieces_that_are_swapped_repeated_or_missing_do_not_open() {
        let key = key();
        let there = sealed(&key, &vec![7; 3 * PIECE]);
        let pieces: Vec<&[u8]> = there.chunks(PIECE + TAG).collect();
        let orders: [&[usize]; 7] = [&[1, 0, 2], &[0, 1], &[0, 2], &[0, 1, 1, 2], &[], &[2], &[0, 1, 2, 2]];
        for order in orders {
            let other: Vec<u8> = order.iter().flat_map(|&piece| pieces[piece].to_vec()).collect();
            opened(&key, "o", &other).unwrap_err();
        }
        opened(&key, "o", &there).unwrap();
        opened(&key, "another object", &there).unwrap_err();
        opened(&self::key(), "o", &there).unwrap_err();
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_single_changed_or_missing_byte_is_found(length in 0..2 * PIECE, at: prop::sample::Index, bit in 0..8_u32, cut: bool) {
            let key = key();
            let mut there = sealed(&key, &vec![3; length]);
            let at = at.index(there.len());
            if cut { there.truncate(at) } else { there[at] ^= 1 << bit }
            prop_assert!(opened(&key, "o", &there).is_err());
        }
    }
}
