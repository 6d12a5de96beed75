//! Version numbers of programs and kernels.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A version `major.minor.patch`; what follows the third number (`-rc.1`, `+ds1`, `-cloud-amd64`) is ignored.
///
/// Serialized as text (`"4.2.1"`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Version {
    /// First number.
    pub major: u32,
    /// Second number; 0 when missing.
    pub minor: u32,
    /// Third number; 0 when missing.
    pub patch: u32,
}

/// Text in which no version was found.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no version number in {text:?}")]
pub struct NoVersion {
    /// The text, as given.
    pub text: String,
}

impl Version {
    /// A version from its three numbers.
    pub const fn new(major: u32, minor: u32, patch: u32) -> Self {
        Self { major, minor, patch }
    }

    /// The first word of `text` that begins with a number and a dot, read as a version.
    ///
    /// `criu --version` says `Version: 4.2.1`, `runc --version` says `runc version 1.3.6`, `uname -r` just the number.
    pub fn find(text: &str) -> Option<Self> {
        text.split_whitespace().find_map(Self::parse_word)
    }

    fn parse_word(word: &str) -> Option<Self> {
        let word = word.strip_prefix('v').unwrap_or(word);
        let mut numbers = word.splitn(3, '.').map(|part| {
            let digits = part.len() - part.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            part[..digits].parse::<u32>().ok()
        });
        let major = numbers.next()??;
        let minor = numbers.next()??;
        let patch = numbers.next().flatten().unwrap_or(0);
        Some(Self { major, minor, patch })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

impl FromStr for Version {
    type Err = NoVersion;

    fn from_str(text: &str) -> Result<Self, NoVersion> {
        Self::find(text).ok_or_else(|| NoVersion { text: text.to_owned() })
    }
}

impl From<Version> for String {
    fn from(version: Version) -> Self {
        version.to_string()
    }
}

impl TryFrom<String> for Version {
    type Error = NoVersion;

    fn try_from(text: String) -> Result<Self, NoVersion> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_in_what_programs_print() {
        for (text, version) in [
            ("Version: 4.2.1\nGitID: v4.2.1\n", Version::new(4, 2, 1)),
            ("Version: 4.2", Version::new(4, 2, 0)),
            ("runc version 1.3.6+ds1\ncommit: 1.3.6+ds1-2\nspec: 1.2.1", Version::new(1, 3, 6)),
            ("runc version 1.1.0-rc.1", Version::new(1, 1, 0)),
            ("6.18.3-cloud-amd64", Version::new(6, 18, 3)),
            ("6.18-rc1", Version::new(6, 18, 0)),
        ] {
            assert_eq!(Version::find(text), Some(version), "{text}");
        }
        assert_eq!(Version::find("no digits here"), None);
    }

    #[test]
    fn versions_compare_as_numbers() {
        assert!(Version::new(4, 10, 0) > Version::new(4, 2, 1));
        assert!(Version::new(4, 1, 1) < Version::new(4, 2, 0));
    }
}
