//! What becomes of a container that cannot be moved in time.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::rates::optional_millis;

/// What may be done instead of moving a container, each worse than moving it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NextBest {
    /// Its memory and files go to the object store, to be restored later. Needs a parking place that is configured.
    Park,
    /// It is started anew on another host, with its files and without its memory.
    Cold,
    /// It is left, and goes with the host.
    Drop,
}

impl NextBest {
    /// All of them, in words.
    pub(crate) const WORDS: &str = "park, cold or drop";

    /// What is said of a word that is none of them.
    pub(crate) fn unknown(word: &str) -> String {
        NotAFallback { word: word.to_owned() }.to_string()
    }
}

/// A word that is none of them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{word}` is nothing that can be done; write {}", NextBest::WORDS)]
pub struct NotAFallback {
    /// As it was written.
    pub word: String,
}

impl FromStr for NextBest {
    type Err = NotAFallback;

    fn from_str(word: &str) -> Result<Self, NotAFallback> {
        match word {
            "park" => Ok(Self::Park),
            "cold" => Ok(Self::Cold),
            "drop" => Ok(Self::Drop),
            _ => Err(NotAFallback { word: word.to_owned() }),
        }
    }
}

impl fmt::Display for NextBest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Park => "park",
            Self::Cold => "cold",
            Self::Drop => "drop",
        })
    }
}

/// What is done instead of moving a container, and why that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fallback {
    /// What.
    pub then: NextBest,
    /// Where it is started anew, for [`NextBest::Cold`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// How long that takes when nothing else is sent; none where nothing is.
    #[serde(rename = "takes_ms", with = "optional_millis", default)]
    pub takes: Option<Duration>,
    /// Who said so: a label, a rule or the configuration.
    pub by: String,
    /// Why what would have been better is not done, in the order in which it was tried.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub instead_of: Vec<String>,
}
