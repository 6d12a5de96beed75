//! Session tokens of IMDSv2.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use uuid::Uuid;

/// The longest life that can be asked for, in seconds: six hours.
pub(super) const LONGEST_LIFE: u64 = 21_600;

/// The tokens given out, with the moment each ends.
#[derive(Debug, Default)]
pub struct Tokens {
    given: HashMap<String, Instant>,
}

impl Tokens {
    /// Gives out a token for as long as the header asks; `None` when it asks for nothing sensible (400).
    pub fn issue(&mut self, life: Option<&str>, now: Instant) -> Option<(String, u64)> {
        let seconds: u64 = life?.parse().ok()?;
        if !(1..=LONGEST_LIFE).contains(&seconds) {
            return None;
        }
        self.given.retain(|_, end| *end > now);
        let token = format!("AQAEA{}{}==", Uuid::now_v7().simple(), Uuid::now_v7().simple());
        self.given.insert(token.clone(), now + Duration::from_secs(seconds));
        Some((token, seconds))
    }

    /// Seconds that a token will still be good for; `None` when it was never given out or has ended (401).
    #[must_use]
    pub fn remaining(&self, token: &str, now: Instant) -> Option<u64> {
        let end = self.given.get(token)?;
        (*end > now).then(|| (*end - now).as_secs())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_ends_with_its_time_to_live() {
        let mut tokens = Tokens::default();
        let start = Instant::now();
        let (token, life) = tokens.issue(Some("60"), start).unwrap();
        assert_eq!(life, 60);
        assert_eq!(tokens.remaining(&token, start + Duration::from_secs(59)), Some(1));
        assert_eq!(tokens.remaining(&token, start + Duration::from_secs(60)), None);
        assert_eq!(tokens.remaining("another", start), None);
    }

    #[test]
    fn lives_outside_of_the_documented_range_are_refused() {
        let mut tokens = Tokens::default();
        let now = Instant::now();
        for life in [None, Some(""), Some("0"), Some("-1"), Some("21601"), Some("1h")] {
            assert!(tokens.issue(life, now).is_none(), "{life:?}");
        }
        assert!(tokens.issue(Some("1"), now).is_some());
        assert!(tokens.issue(Some("21600"), now).is_some());
    }
}
