//! The first 32 bytes each way on every connection. This layout never changes: it is how versions find each other.
//!
//! Hello, from the side that connects:
//!
//! | bytes | content |
//! |---|---|
//! | 0–7 | magic `SPOTHOP\n` |
//! | 8–9, 10–11 | oldest and newest version spoken |
//! | 12 | 0: control connection; 1: data connection |
//! | 13 | control: number of data connections that will follow; data: its index, from 0 |
//! | 14–15 | zero |
//! | 16–31 | control: zero; data: the session's token |
//!
//! Welcome, the answer:
//!
//! | bytes | content |
//! |---|---|
//! | 0–7 | magic `SPOTHOP\n` |
//! | 8 | 0: go on; 1: no common version; 2: no such session; 3: bad hello; 4: unknown host |
//! | 9 | zero |
//! | 10–11 | the version chosen, 0 if none |
//! | 12–13, 14–15 | oldest and newest version spoken |
//! | 16–31 | control: the token for this session's data connections; else zero |

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::read_le;
use crate::error::Error;
use crate::version::VersionRange;

/// Begins both layouts.
const MAGIC: [u8; 8] = *b"SPOTHOP\n";
/// Length of both layouts, in bytes.
pub(crate) const LENGTH: usize = 32;

/// Ties data connections to their session. Random, and told only to the peer that opened the session.
pub(crate) type Token = [u8; 16];

/// What the connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Control { data_connections: u8 },
    Data { index: u8, token: Token },
}

/// The connecting side's opening.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hello {
    pub(crate) versions: VersionRange,
    pub(crate) role: Role,
}

impl Hello {
    pub(crate) fn encode(&self) -> [u8; LENGTH] {
        let mut bytes = [0; LENGTH];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..10].copy_from_slice(&self.versions.min.to_le_bytes());
        bytes[10..12].copy_from_slice(&self.versions.max.to_le_bytes());
        match self.role {
            Role::Control { data_connections } => bytes[13] = data_connections,
            Role::Data { index, token } => {
                bytes[12] = 1;
                bytes[13] = index;
                bytes[16..].copy_from_slice(&token);
            }
        }
        bytes
    }

    /// [`Error::NotSpothop`] without the magic, [`Error::Protocol`] for what else cannot be.
    fn decode(bytes: &[u8; LENGTH], peer: &str) -> Result<Self, Error> {
        check_magic(bytes, peer)?;
        let versions = VersionRange { min: read_le!(u16, bytes, 8), max: read_le!(u16, bytes, 10) };
        let role = match bytes[12] {
            0 => Role::Control { data_connections: bytes[13] },
            1 => Role::Data { index: bytes[13], token: read_token(bytes) },
            _ => return Err(Error::Protocol { peer: peer.into(), rule: "a connection is for control or for data" }),
        };
        Ok(Self { versions, role })
    }

    pub(crate) async fn read(stream: &mut (impl AsyncRead + Unpin), peer: &str) -> Result<Self, Error> {
        Self::decode(&read_opening(stream, peer).await?, peer)
    }
}

/// How the accepting side takes a hello.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Go on in this version; with the token for a control connection, zeros for a data connection.
    Accepted { version: u16, token: Token },
    /// No common version.
    Version,
    /// No session waits for this data connection.
    UnknownSession,
    /// The hello asks for something out of bounds.
    BadHello,
    /// The host is not one of those that are let in; the versions are zero then.
    Stranger,
}

/// The accepting side's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Welcome {
    pub(crate) versions: VersionRange,
    pub(crate) verdict: Verdict,
}

impl Welcome {
    pub(crate) fn encode(&self) -> [u8; LENGTH] {
        let mut bytes = [0; LENGTH];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[12..14].copy_from_slice(&self.versions.min.to_le_bytes());
        bytes[14..16].copy_from_slice(&self.versions.max.to_le_bytes());
        match self.verdict {
            Verdict::Accepted { version, token } => {
                bytes[10..12].copy_from_slice(&version.to_le_bytes());
                bytes[16..].copy_from_slice(&token);
            }
            Verdict::Version => bytes[8] = 1,
            Verdict::UnknownSession => bytes[8] = 2,
            Verdict::BadHello => bytes[8] = 3,
            Verdict::Stranger => bytes[8] = 4,
        }
        bytes
    }

    fn decode(bytes: &[u8; LENGTH], peer: &str) -> Result<Self, Error> {
        check_magic(bytes, peer)?;
        let verdict = match bytes[8] {
            0 => Verdict::Accepted { version: read_le!(u16, bytes, 10), token: read_token(bytes) },
            1 => Verdict::Version,
            2 => Verdict::UnknownSession,
            3 => Verdict::BadHello,
            4 => Verdict::Stranger,
            _ => return Err(Error::Protocol { peer: peer.into(), rule: "a hello is answered with a known verdict" }),
        };
        let versions = VersionRange { min: read_le!(u16, bytes, 12), max: read_le!(u16, bytes, 14) };
        Ok(Self { versions, verdict })
    }

    pub(crate) async fn read(stream: &mut (impl AsyncRead + Unpin), peer: &str) -> Result<Self, Error> {
        Self::decode(&read_opening(stream, peer).await?, peer)
    }
}

/// Sends either opening.
pub(crate) async fn write(
    stream: &mut (impl AsyncWrite + Unpin),
    bytes: &[u8; LENGTH],
    peer: &str,
) -> Result<(), Error> {
    let sent = async {
        stream.write_all(bytes).await?;
        stream.flush().await
    };
    sent.await.map_err(|error| Error::from_io(peer, "the hello", error))
}

async fn read_opening(stream: &mut (impl AsyncRead + Unpin), peer: &str) -> Result<[u8; LENGTH], Error> {
    let mut bytes = [0; LENGTH];
    stream.read_exact(&mut bytes).await.map_err(|error| Error::from_io(peer, "the hello", error))?;
    Ok(bytes)
}

fn check_magic(bytes: &[u8; LENGTH], peer: &str) -> Result<(), Error> {
    if bytes[..8] == MAGIC {
        return Ok(());
    }
    Err(Error::NotSpothop { peer: peer.into(), found: "it speaks TLS, but something else inside it" })
}

fn read_token(bytes: &[u8; LENGTH]) -> Token {
    let mut token = [0; 16];
    token.copy_from_slice(&bytes[16..]);
    token
}

#[cfg(test)]
mod tests {
    use super::*;

    const VERSIONS: VersionRange = VersionRange { min: 1, max: 0x0203 };
    const TOKEN: Token = *b"0123456789abcdef";

    #[test]
    fn hello_bytes() {
        let control = Hello { versions: VERSIONS, role: Role::Control { data_connections: 4 } };
        let bytes = b"SPOTHOP\n\x01\0\x03\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
        assert_eq!(&control.encode(), bytes);
        assert_eq!(Hello::decode(bytes, "p").unwrap(), control);
        let data = Hello { versions: VERSIONS, role: Role::Data { index: 3, token: TOKEN } };
        let bytes = b"SPOTHOP\n\x01\0\x03\x02\x01\x03\0\x000123456789abcdef";
        assert_eq!(&data.encode(), bytes);
        assert_eq!(Hello::decode(bytes, "p").unwrap(), data);
    }

    #[test]
    fn welcome_bytes() {
        let accepted = Welcome { versions: VERSIONS, verdict: Verdict::Accepted { version: 2, token: TOKEN } };
        let bytes = b"SPOTHOP\n\0\0\x02\0\x01\0\x03\x020123456789abcdef";
        assert_eq!(&accepted.encode(), bytes);
        for (code, verdict) in
            [(1, Verdict::Version), (2, Verdict::UnknownSession), (3, Verdict::BadHello), (4, Verdict::Stranger)]
        {
            let mut bytes = *b"SPOTHOP\n\0\0\0\0\x01\0\x03\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
            bytes[8] = code;
            let welcome = Welcome { versions: VERSIONS, verdict };
            assert_eq!(welcome.encode(), bytes);
            assert_eq!(Welcome::decode(&bytes, "p").unwrap(), welcome);
        }
    }

    #[tokio::test]
    async fn something_else_is_not_taken_for_a_hello() {
        let mut http: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n";
        assert!(matches!(Hello::read(&mut http, "p").await, Err(Error::NotSpothop { .. })));
        let mut http: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n";
        assert!(matches!(Welcome::read(&mut http, "p").await, Err(Error::NotSpothop { .. })));
        let mut short: &[u8] = b"SPOTHOP\n";
        assert!(matches!(Hello::read(&mut short, "p").await, Err(Error::Truncated { during: "the hello", .. })));
    }

    #[test]
    fn unknown_roles_and_verdicts_are_refused() {
        let mut bytes = Hello { versions: VERSIONS, role: Role::Control { data_connections: 4 } }.encode();
        bytes[12] = 9;
        assert!(matches!(Hello::decode(&bytes, "p"), Err(Error::Protocol { .. })));
        let mut bytes = Welcome { versions: VERSIONS, verdict: Verdict::Version }.encode();
        bytes[8] = 9;
        assert!(matches!(Welcome::decode(&bytes, "p"), Err(Error::Protocol { .. })));
    }
}
