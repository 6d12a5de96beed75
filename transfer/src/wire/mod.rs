//! What goes over a connection, byte by byte. All numbers are little-endian.
//!
//! A connection begins, under TLS, with a [`hello`]. After that a control connection carries [`frame`]s, and a data
//! connection carries [`chunk`]s.

pub(crate) mod chunk;
pub(crate) mod frame;
pub(crate) mod hello;
pub(crate) mod message;

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};

/// A connection of any kind: TLS over TCP, or a pipe in memory under test.
pub(crate) trait Io: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// A connection after its hello.
pub(crate) type Connection = Box<dyn Io>;

/// What a length that was merely announced is worth in memory, in bytes; the rest is made room for as it arrives.
const FIRST_ROOM: usize = 64 << 10;

/// Reads exactly `length` bytes into `buffer`, which has that length afterwards. A peer that announces much and sends little costs
/// little: beyond what the buffer has already, its room at most doubles with what has arrived.
pub(crate) async fn read_announced(
    stream: &mut (impl AsyncRead + Unpin + ?Sized),
    buffer: &mut Vec<u8>,
    length: usize,
) -> io::Result<()> {
    buffer.truncate(length);
    let mut arrived = 0;
    while arrived < length {
        if arrived == buffer.len() {
            buffer.resize(length.min((2 * arrived).max(FIRST_ROOM)), 0);
        }
        stream.read_exact(&mut buffer[arrived..]).await?;
        arrived = buffer.len();
    }
    Ok(())
}

/// A little-endian number at a fixed place of a fixed layout.
macro_rules! read_le {
    ($type:ty, $bytes:expr, $at:expr) => {{
        let mut number = [0; size_of::<$type>()];
        number.copy_from_slice(&$bytes[$at..$at + size_of::<$type>()]);
        <$type>::from_le_bytes(number)
    }};
}
pub(crate) use read_le;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_announced_length_takes_memory_only_as_it_arrives() {
        let (mut buffer, sent) = (Vec::new(), vec![7; 3 * FIRST_ROOM]);
        read_announced(&mut sent.as_slice(), &mut buffer, usize::MAX / 4).await.unwrap_err();
        assert!(buffer.capacity() <= 8 * FIRST_ROOM, "{}", buffer.capacity());
        // A buffer that is used again is neither cleared nor too long.
        for length in [0, 1, FIRST_ROOM - 1, FIRST_ROOM + 1, sent.len()] {
            read_announced(&mut sent.as_slice(), &mut buffer, length).await.unwrap();
            assert_eq!(buffer, sent[..length]);
        }
    }
}
