//! From raw bytes to a chunk on the wire and back, and whether compressing is worth it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use xxhash_rust::xxh3::xxh3_64;

use crate::error::Error;
use crate::link::Link;
use crate::wire::chunk::{Encoding, HEADER, Header};

/// zstd's level. Of the fast ones, 1 shrinks memory images clearly better than the negative ones at about their speed; the levels
/// above cost more time than they save on links of 1 Gbit/s and more.
const LEVEL: i32 = 1;
/// A chunk that shrinks by less than 1/20 goes raw: the receiver's time for unpacking is worth more.
const LEAST_SAVING: usize = 20;
/// After a chunk that hardly shrank, the next try is this many chunks later, and after every further vain try twice as many.
const FIRST_PAUSE: u32 = 4;
/// But never more than this: a change in the data is noticed within 64 chunks (64 MiB per connection).
const LONGEST_PAUSE: u32 = 64;
/// Compressing must save this many times the time it takes, since the measurements are rough and the receiver has to unpack.
const MARGIN: f64 = 2.0;

/// Decides, chunk by chunk, whether to try compressing on one connection, from what earlier tries gained and what the link can do.
#[derive(Debug, Default)]
struct Policy {
    /// Chunks until the next try in any case.
    pause: u32,
    /// Length of the last pause, 0 when the last try was worth it.
    last_pause: u32,
    /// Of the last try: time taken and bytes saved, per raw byte.
    last_try: Option<(f64, f64)>,
}

impl Policy {
    /// Whether the next chunk should be tried.
    fn wants_try(&mut self, link: &Link) -> bool {
        self.pause = self.pause.saturating_sub(1);
        self.pause == 0 || (self.last_pause == 0 && self.pays(link))
    }

    /// Whether compressing as the last time would take less time than the link needs for the bytes that it saves.
    fn pays(&self, link: &Link) -> bool {
        match (self.last_try, link.time_per_byte()) {
            (Some((cost, saved)), Some(time)) => cost * MARGIN <= saved * time * link.compressing,
            _ => true,
        }
    }

    /// After a try: whether the compressed form should go out. Its cost is sunk, so it should if it is smaller by enough.
    fn judge(&mut self, raw: usize, stored: usize, took: Duration) -> bool {
        let saved = raw.saturating_sub(stored);
        self.last_try = Some((took.as_secs_f64() / raw as f64, saved as f64 / raw as f64));
        let worth = saved * LEAST_SAVING >= raw;
        self.last_pause = if worth { 0 } else { (self.last_pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE) };
        self.pause = if worth { LONGEST_PAUSE } else { self.last_pause };
        worth
    }
}

/// The place of some raw bytes in a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) transfer: u32,
    pub(crate) object: u32,
    /// In bytes.
    pub(crate) offset: u64,
}

/// Raw bytes' checksum as the chunk header has it: XXH3-64, or `None` when all of them are zero.
pub(crate) fn seal(raw: &[u8]) -> Option<u64> {
    (!is_zero(raw)).then(|| xxh3_64(raw))
}

fn is_zero(bytes: &[u8]) -> bool {
    // By pages: ordinary data is told apart at the first, and within one the compiler compares whole registers.
    bytes.chunks(4096).all(|page| page.iter().fold(0, |all, byte| all | byte) == 0)
}

/// Processor time of this thread: unlike the clock, it does not count what others do on a busy machine meanwhile, so that one unlucky
/// moment does not stand for all the chunks until the next try.
fn thread_time() -> Duration {
    // Linux has this clock for every thread; without it, compressing would seem to cost nothing.
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// Packs the chunks of one connection.
pub(crate) struct Packer {
    compressor: zstd::bulk::Compressor<'static>,
    policy: Policy,
    link: Arc<Link>,
    /// Header and stored bytes of the chunk packed last, ready to be written.
    frame: Vec<u8>,
}

impl Packer {
    /// For one of the connections of a link.
    ///
    /// # Errors
    /// [`Error::Source`] when memory for the compressor cannot be had.
    pub(crate) fn new(link: Arc<Link>) -> Result<Self, Error> {
        let compressor = zstd::bulk::Compressor::new(LEVEL).map_err(|error| Error::Source { source: error.into() })?;
        Ok(Self { compressor, policy: Policy::default(), link, frame: Vec::new() })
    }

    /// Packs `raw`, whose [`seal`] is `checksum`; [`Packer::frame`] then is the chunk.
    pub(crate) fn pack(&mut self, place: Place, raw: &[u8], checksum: Option<u64>) -> Header {
        self.frame.clear();
        let (encoding, stored_length) = match checksum {
            None => {
                self.frame.resize(HEADER, 0);
                (Encoding::Zero, 0)
            }
            Some(_) => match self.compress(raw) {
                Some(length) => (Encoding::Zstd, length),
                None => {
                    self.frame.resize(HEADER, 0);
                    self.frame.extend_from_slice(raw);
                    (Encoding::Raw, raw.len())
                }
            },
        };
        let header = Header {
            encoding,
            transfer: place.transfer,
            object: place.object,
            offset: place.offset,
            // A chunk is at most MAX_CHUNK long, far below 4 GiB.
            raw_length: raw.len() as u32,
            stored_length: stored_length as u32,
            checksum: checksum.unwrap_or(0),
        };
        self.frame[..HEADER].copy_from_slice(&header.encode());
        header
    }

    /// Compresses behind the room for the header, if it is worth it.
    fn compress(&mut self, raw: &[u8]) -> Option<usize> {
        if !self.policy.wants_try(&self.link) {
            return None;
        }
        // No room for what is not worth it: zstd then gives up early.
        self.frame.resize(HEADER + raw.len() - raw.len() / LEAST_SAVING, 0);
        let begin = thread_time();
        let stored = self.compressor.compress_to_buffer(raw, &mut self.frame[HEADER..]).unwrap_or(raw.len());
        let worth = self.policy.judge(raw.len(), stored, thread_time().saturating_sub(begin));
        self.frame.truncate(if worth { HEADER + stored } else { 0 });
        worth.then_some(stored)
    }

    /// The chunk packed last.
    pub(crate) fn frame(&self) -> &[u8] {
        &self.frame
    }

    /// Tells how long the last chunk took to be written.
    pub(crate) fn written(&mut self, took: Duration) {
        // A header alone says little about the link.
        if self.frame.len() > HEADER {
            self.link.written(self.frame.len(), took, Instant::now());
        }
    }
}

/// Unpacks the chunks of one connection.
pub(crate) struct Unpacker {
    decompressor: zstd::bulk::Decompressor<'static>,
    unpacked: Vec<u8>,
}

impl Unpacker {
    /// # Errors
    /// [`Error::Sink`] when memory for the decompressor cannot be had.
    pub(crate) fn new() -> Result<Self, Error> {
        let decompressor = zstd::bulk::Decompressor::new().map_err(|error| Error::Sink { source: error.into() })?;
        Ok(Self { decompressor, unpacked: Vec::new() })
    }

    /// Turns the `stored` bytes of a chunk into its raw bytes, verified; zeros stay stored as nothing. `object` names the object in the
    /// error, [`Error::Checksum`].
    pub(crate) fn unpack(
        &mut self,
        header: &Header,
        stored: &mut Vec<u8>,
        object: &str,
        peer: &str,
    ) -> Result<(), Error> {
        let right = match header.encoding {
            Encoding::Zero | Encoding::End => return Ok(()),
            Encoding::Raw => true,
            Encoding::Zstd => {
                // The buffer has the announced length, so a stream that would unpack to more fails instead of growing.
                self.unpacked.resize(header.raw_length as usize, 0);
                let length = self.decompressor.decompress_to_buffer(stored, &mut self.unpacked[..]);
                std::mem::swap(stored, &mut self.unpacked);
                length.is_ok_and(|length| length == stored.len())
            }
        };
        if right && xxh3_64(stored) == header.checksum {
            return Ok(());
        }
        Err(Error::Checksum { peer: peer.into(), object: object.into(), offset: header.offset })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PLACE: Place = Place { transfer: 1, object: 2, offset: 3 };

    fn pack(raw: &[u8]) -> (Header, Vec<u8>) {
        let mut packer = Packer::new(Arc::new(Link::new(1))).unwrap();
        let header = packer.pack(PLACE, raw, seal(raw));
        (header, packer.frame()[HEADER..].to_vec())
    }

    fn unpack(header: &Header, stored: &[u8]) -> Result<Vec<u8>, Error> {
        let mut bytes = stored.to_vec();
        Unpacker::new().unwrap().unpack(header, &mut bytes, "x", "p").map(|()| bytes)
    }

    /// Bytes that do not compress (xorshift).
    fn noise(length: usize) -> Vec<u8> {
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .take(length)
        .collect()
    }

    #[test]
    fn each_kind_of_data_has_its_encoding() {
        let (header, stored) = pack(&[0; 5000]);
        assert_eq!((header.encoding, header.raw_length, header.checksum, stored.len()), (Encoding::Zero, 5000, 0, 0));
        let (header, stored) = pack(&[7; 5000]);
        assert_eq!((header.encoding, header.stored_length as usize), (Encoding::Zstd, stored.len()));
        let raw = noise(5000);
        let (header, stored) = pack(&raw);
        assert_eq!((header.encoding, stored), (Encoding::Raw, raw));
    }

    #[test]
    fn zeros_are_zeros_to_the_last_byte() {
        let mut bytes = vec![0; 3 * 4096 + 5];
        assert_eq!(seal(&bytes), None);
        for at in [0, 4095, 4096, bytes.len() - 1] {
            bytes[at] = 1;
            assert_eq!(seal(&bytes), Some(xxh3_64(&bytes)), "{at}");
            bytes[at] = 0;
        }
    }

    #[test]
    fn every_flipped_byte_is_noticed() {
        for raw in [vec![7; 500], noise(500)] {
            let (header, stored) = pack(&raw);
            assert_eq!(unpack(&header, &stored).unwrap(), raw);
            for at in 0..stored.len() {
                let mut bad = stored.clone();
                bad[at] ^= 0x10;
                // zstd's own header has bits without meaning; what comes out must be right then.
                match unpack(&header, &bad) {
                    Err(Error::Checksum { offset: 3, .. }) => {}
                    other => assert_eq!(other.unwrap(), unpack(&header, &stored).unwrap(), "{at}"),
                }
            }
        }
    }

    #[test]
    fn more_than_the_announced_length_is_refused() {
        let (header, stored) = pack(&[7; 5000]);
        let short = Header { raw_length: 4000, ..header };
        assert!(matches!(unpack(&short, &stored), Err(Error::Checksum { .. })));
    }

    #[test]
    fn incompressible_data_is_tried_ever_more_rarely() {
        let (mut policy, link) = (Policy::default(), Link::new(1));
        let mut tries = Vec::new();
        for chunk in 0..300 {
            if policy.wants_try(&link) {
                tries.push(chunk);
                assert!(!policy.judge(1000, 990, Duration::ZERO));
            }
        }
        assert_eq!(tries, [0, 4, 12, 28, 60, 124, 188, 252]);
        while !policy.wants_try(&link) {}
        assert!(policy.judge(1000, 500, Duration::ZERO));
        assert!(policy.wants_try(&link), "one success, and every chunk is tried again");
    }

    #[test]
    fn compression_follows_the_links_speed() {
        let (mut policy, slow, fast) = (Policy::default(), Link::new(1), Link::new(1));
        slow.assume(8e-9); // 1 Gbit/s
        fast.assume(1e-9); // 1 GB/s
        assert!(policy.wants_try(&fast), "nothing is known yet");
        assert!(policy.judge(1_000_000, 500_000, Duration::from_micros(600)), "the work is done, so use it");
        assert!(!policy.wants_try(&fast), "600 µs of work would save 500");
        assert!(policy.wants_try(&slow), "600 µs of work save 4,000");
    }

    #[test]
    fn the_work_is_measured_again_now_and_then() {
        let (mut policy, link) = (Policy::default(), Link::new(1));
        link.assume(1e-9);
        assert!(policy.judge(1_000_000, 500_000, Duration::from_secs(1)));
        assert_eq!((1..).find(|_| policy.wants_try(&link)), Some(LONGEST_PAUSE));
    }

    proptest! {
        #[test]
        fn what_was_packed_comes_out(raw in prop::collection::vec(prop_oneof![Just(0u8), any::<u8>()], 1..3000)) {
            let (header, stored) = pack(&raw);
            let out = unpack(&header, &stored).unwrap();
            prop_assert_eq!(if header.encoding == Encoding::Zero { vec![0; raw.len()] } else { out }, raw);
        }
    }
}
