//! Versions of kernels and of CRIU, and the range of protocol versions a host speaks.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A dotted version as kernels (`6.1.0-18-amd64`) and CRIU (`4.2.1`) print it; what follows the third number is dropped.
///
/// Serialised as the string `major.minor.patch`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Version {
    /// First number.
    pub major: u32,
    /// Second number, 0 when the text has none.
    pub minor: u32,
    /// Third number, 0 when the text has none.
    pub patch: u32,
}

impl Version {
    /// A version from its three numbers.
    pub const fn new(major: u32, minor: u32, patch: u32) -> Self {
        Self { major, minor, patch }
    }

    /// The release line, without the patch level: patch releases of a line neither add nor remove features.
    pub const fn line(self) -> Self {
        Self::new(self.major, self.minor, 0)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// A text that does not begin with a version number.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} does not begin with a version such as 6.1 or 4.2.1")]
pub struct NotAVersion {
    /// The text as given.
    pub text: String,
}

impl FromStr for Version {
    type Err = NotAVersion;

    fn from_str(text: &str) -> Result<Self, NotAVersion> {
        let error = || NotAVersion { text: text.to_owned() };
        // The numbers end at the first character that belongs to neither a number nor a separator: "6.1.0-18-amd64", "4.2rc1".
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let mut numbers = text[..end].trim_end_matches('.').split('.').map(str::parse::<u32>);
        let major = numbers.next().and_then(Result::ok).ok_or_else(error)?;
        let mut next = || numbers.next().transpose().map(Option::unwrap_or_default).map_err(|_| error());
        Ok(Self { major, minor: next()?, patch: next()? })
    }
}

impl TryFrom<String> for Version {
    type Error = NotAVersion;

    fn try_from(text: String) -> Result<Self, NotAVersion> {
        text.parse()
    }
}

impl From<Version> for String {
    fn from(version: Version) -> Self {
        version.to_string()
    }
}

/// The versions of the transfer protocol that a host speaks, both ends included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ProtocolRange {
    /// Oldest version spoken.
    pub min: u32,
    /// Newest version spoken.
    pub max: u32,
}

impl ProtocolRange {
    /// Whether there is a version that both speak.
    pub const fn overlaps(self, other: Self) -> bool {
        self.min <= other.max && other.min <= self.max
    }
}

impl fmt::Display for ProtocolRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.min == self.max { write!(f, "{}", self.min) } else { write!(f, "{} to {}", self.min, self.max) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_kernels_and_criu_print() {
        let cases = [
            ("6.1.0-18-amd64", Version::new(6, 1, 0)),
            ("4.2", Version::new(4, 2, 0)),
            ("4.2.1", Version::new(4, 2, 1)),
            ("5.15.167.4-microsoft-standard-WSL2", Version::new(5, 15, 167)),
            ("6.12+bpo-amd64", Version::new(6, 12, 0)),
            ("6.13-rc1", Version::new(6, 13, 0)),
        ];
        for (text, version) in cases {
            assert_eq!(text.parse(), Ok(version), "{text}");
        }
        for text in ["", "v4.2", "linux", "4..2", "99999999999.1"] {
            assert!(text.parse::<Version>().is_err(), "{text}");
        }
    }

    #[test]
    fn ranges_overlap_at_a_common_version() {
        let range = |min, max| ProtocolRange { min, max };
        assert!(range(1, 2).overlaps(range(2, 3)));
        assert!(range(2, 3).overlaps(range(1, 2)));
        assert!(!range(1, 1).overlaps(range(2, 3)));
    }
}
