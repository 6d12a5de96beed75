//! A Redis client that trusts nothing: the witness of the demo, the tests and the benchmarks.
//!
//! It speaks the protocol itself (RESP2, "Redis serialization protocol specification") so that nothing between it and the socket
//! can reconnect, retry or hide a reply.

pub mod data;
pub mod lasting;
pub mod live;

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};

/// A server that says nothing for this long has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a server answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// `+OK`.
    Simple(String),
    /// `-ERR …`.
    Error(String),
    /// `:1`.
    Integer(i64),
    /// `$3 abc`.
    Bulk(Vec<u8>),
    /// `$-1`: there is none.
    Nil,
}

/// One TCP connection to a server.
#[derive(Debug)]
pub struct Connection {
    peer: SocketAddr,
    reader: BufReader<TcpStream>,
    writer: TcpStream,
}

impl Connection {
    /// Connects.
    ///
    /// # Errors
    /// [`Error::RedisConnection`].
    pub fn open(peer: SocketAddr) -> Result<Self> {
        Self::open_within(peer, PATIENCE, PATIENCE)
    }

    /// Connects in so much time to a server that may later be silent for so much.
    ///
    /// # Errors
    /// [`Error::RedisConnection`].
    pub fn open_within(peer: SocketAddr, connect: Duration, patience: Duration) -> Result<Self> {
        let open = || {
            let stream = TcpStream::connect_timeout(&peer, connect)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(patience))?;
            stream.set_write_timeout(Some(patience))?;
            Ok((BufReader::with_capacity(1 << 18, stream.try_clone()?), stream))
        };
        let (reader, writer) = open().map_err(|source| Error::RedisConnection { peer, source })?;
        Ok(Self { peer, reader, writer })
    }

    /// Another handle of the socket.
    ///
    /// # Errors
    /// [`Error::RedisConnection`] when there are no more descriptors.
    pub(crate) fn stream(&self) -> Result<TcpStream> {
        self.writer.try_clone().map_err(|source| Error::RedisConnection { peer: self.peer, source })
    }

    /// Connects to a server that is just starting: tries until [`PATIENCE`] is over.
    ///
    /// # Errors
    /// [`Error::RedisConnection`] of the last try.
    pub fn open_starting(peer: SocketAddr) -> Result<Self> {
        let end = Instant::now() + PATIENCE;
        loop {
            match Self::open(peer) {
                // A port that nobody listens at yet refuses at once, and nothing tells when that changes.
                Err(_) if Instant::now() < end => thread::sleep(Duration::from_millis(5)),
                result => return result,
            }
        }
    }

    /// Sends one command and waits for its reply.
    ///
    /// # Errors
    /// [`Error::RedisConnection`] when the connection breaks; [`Error::RedisAnswer`] when the reply is not one.
    pub fn call(&mut self, words: &[&[u8]]) -> Result<Reply> {
        let mut request = Vec::new();
        encode(&mut request, words);
        self.send(&request)?;
        self.receive()
    }

    /// Sends what [`encode`] has made, without waiting.
    ///
    /// # Errors
    /// [`Error::RedisConnection`].
    pub fn send(&mut self, request: &[u8]) -> Result<()> {
        self.writer.write_all(request).map_err(|source| Error::RedisConnection { peer: self.peer, source })
    }

    /// Waits for the next reply.
    ///
    /// # Errors
    /// Like [`Connection::call`].
    pub fn receive(&mut self) -> Result<Reply> {
        match decode(&mut self.reader) {
            Ok(Some(reply)) => Ok(reply),
            Ok(None) => Err(self.wrong("sent what is no reply".to_owned())),
            Err(source) => Err(Error::RedisConnection { peer: self.peer, source }),
        }
    }

    /// Waits for the next reply, which must be this one.
    ///
    /// # Errors
    /// Like [`Connection::call`]; [`Error::RedisAnswer`] when it is another.
    pub fn expect(&mut self, expected: &Reply, what: &str) -> Result<()> {
        let reply = self.receive()?;
        if reply == *expected {
            return Ok(());
        }
        Err(self.wrong(format!("answered {what} with {}, not {}", brief(&reply), brief(expected))))
    }

    /// How many keys the server has.
    ///
    /// # Errors
    /// Like [`Connection::call`].
    pub fn key_count(&mut self) -> Result<u64> {
        match self.call(&[b"DBSIZE"])? {
            Reply::Integer(count) if count >= 0 => Ok(count.unsigned_abs()),
            reply => Err(self.wrong(format!("answered DBSIZE with {}", brief(&reply)))),
        }
    }

    fn wrong(&self, problem: String) -> Error {
        Error::RedisAnswer { peer: self.peer, problem }
    }
}

/// A reply that fits into a message.
fn brief(reply: &Reply) -> String {
    match reply {
        Reply::Bulk(bytes) if bytes.len() > 40 => format!("{} bytes beginning with {:?}", bytes.len(), &bytes[..8]),
        Reply::Bulk(bytes) => format!("{:?}", String::from_utf8_lossy(bytes)),
        reply => format!("{reply:?}"),
    }
}

/// Appends a command: an array of bulk strings.
pub fn encode(request: &mut Vec<u8>, words: &[&[u8]]) {
    request.extend_from_slice(format!("*{}\r\n", words.len()).as_bytes());
    for word in words {
        request.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        request.extend_from_slice(word);
        request.extend_from_slice(b"\r\n");
    }
}

/// Reads one reply; `None` when the bytes are none.
fn decode(reader: &mut impl BufRead) -> io::Result<Option<Reply>> {
    let mut line = Vec::new();
    if reader.read_until(b'\n', &mut line)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let Some((&kind, rest)) = line.strip_suffix(b"\r\n").and_then(<[u8]>::split_first) else {
        return Ok(None);
    };
    let text = String::from_utf8_lossy(rest);
    Ok(match kind {
        b'+' => Some(Reply::Simple(text.into_owned())),
        b'-' => Some(Reply::Error(text.into_owned())),
        b':' => text.parse().ok().map(Reply::Integer),
        b'$' if text == "-1" => Some(Reply::Nil),
        b'$' => match text.parse::<usize>() {
            Ok(length) => bulk(reader, length)?,
            Err(_) => None,
        },
        _ => None,
    })
}

fn bulk(reader: &mut impl Read, length: usize) -> io::Result<Option<Reply>> {
    let mut bytes = vec![0; length + 2];
    reader.read_exact(&mut bytes)?;
    Ok((bytes.split_off(length) == b"\r\n").then_some(Reply::Bulk(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_an_array_of_bulk_strings() {
        let mut request = Vec::new();
        encode(&mut request, &[b"SET", b"k", b"12"]);
        assert_eq!(request, b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$2\r\n12\r\n");
    }

    #[test]
    fn replies_are_read_one_after_the_other() {
        let mut bytes: &[u8] = b"+OK\r\n-ERR no\r\n:-7\r\n$3\r\na\r\n\r\n$-1\r\n";
        let mut next = || decode(&mut bytes).unwrap();
        assert_eq!(next(), Some(Reply::Simple("OK".to_owned())));
        assert_eq!(next(), Some(Reply::Error("ERR no".to_owned())));
        assert_eq!(next(), Some(Reply::Integer(-7)));
        assert_eq!(next(), Some(Reply::Bulk(b"a\r\n".to_vec())));
        assert_eq!(next(), Some(Reply::Nil));
    }

    #[test]
    fn what_is_no_reply_is_not_taken_for_one() {
        for bytes in [&b"HTTP/1.1 200 OK\r\n"[..], b"$x\r\n", b":\r\n", b"$1\r\nabc\r\n", b"+no end"] {
            assert_eq!(decode(&mut &*bytes).unwrap(), None, "{bytes:?}");
        }
        assert!(decode(&mut &b""[..]).is_err());
        assert!(decode(&mut &b"$5\r\nab"[..]).is_err());
    }
}
