//! What goes over a connection, byte by byte. All numbers are little-endian.
//!
//! A connection begins, under TLS, with a [`hello`]. After that a control connection carries [`frame`]s, and a data
//! connection carries [`chunk`]s.

pub(crate) mod chunk;
pub(crate) mod frame;
pub(crate) mod hello;
pub(crate) mod message;

use tokio::io::{AsyncRead, AsyncWrite};

/// A connection of any kind: TLS over TCP, or a pipe in memory under test.
pub(crate) trait Io: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// A connection after its hello.
pub(crate) type Connection = Box<dyn Io>;

/// A little-endian number at a fixed place of a fixed layout.
macro_rules! read_le {
    ($type:ty, $bytes:expr, $at:expr) => {{
        let mut number = [0; size_of::<$type>()];
        number.copy_from_slice(&$bytes[$at..$at + size_of::<$type>()]);
        <$type>::from_le_bytes(number)
    }};
}
pub(crate) use read_le;
