//! `HOST:PORT` of another machine, and the names that machines may have.

use std::{fmt, net::SocketAddr};

use serde::{Deserialize, Deserializer, Serialize, de};

use super::{DEFAULT_PORT, Problem};

/// `HOST:PORT` of another machine: an IP address or a DNS name, and a port (7077 if none was written).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(into = "String")]
pub struct Address {
    host: String,
    port: u16,
}

impl Address {
    /// The IP address (IPv6 without brackets) or DNS name.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The TCP port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl fmt::Display for Address {
    /// As `std::net::ToSocketAddrs` reads it: IPv6 addresses in brackets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

impl From<SocketAddr> for Address {
    fn from(socket: SocketAddr) -> Self {
        Self { host: socket.ip().to_string(), port: socket.port() }
    }
}

impl From<Address> for String {
    fn from(address: Address) -> Self {
        address.to_string()
    }
}

impl std::str::FromStr for Address {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Self, Problem> {
        let bad = || Problem::BadAddress(text.to_owned());
        if let Ok(socket) = text.parse::<SocketAddr>() {
            return Ok(Self { host: socket.ip().to_string(), port: socket.port() });
        }
        let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']'));
        if let Ok(ip) = bare.unwrap_or(text).parse::<std::net::IpAddr>() {
            return Ok(Self { host: ip.to_string(), port: DEFAULT_PORT });
        }
        let (host, port) = match text.split_once(':') {
            Some((host, port)) => (host, port.parse().map_err(|_| bad())?),
            None => (text, DEFAULT_PORT),
        };
        // Digits and dots only would be a mistyped IPv4 address, not a name.
        let numeric = host.chars().all(|c| c.is_ascii_digit() || c == '.');
        if port == 0 || numeric || !is_host_name(host) {
            return Err(bad());
        }
        Ok(Self { host: host.to_owned(), port })
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// A DNS name: labels of letters, digits and inner hyphens (and underscores, which container hosts do have).
pub(crate) fn is_host_name(name: &str) -> bool {
    let label_ok = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
    };
    name.len() <= 253 && name.split('.').all(label_ok)
}
