//! Which protocol version two sides speak: a pure function.
//!
//! A release speaks the newest version, N, and the one before it, N−1, so that hosts can be upgraded one by one.

use std::fmt;

/// The newest protocol version of this build (N).
pub const CURRENT: u16 = 1;

/// What this build speaks: N−1 to N. Version 1 is the first there is.
pub const SUPPORTED: VersionRange = VersionRange::up_to(CURRENT);

/// The versions that a side speaks, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VersionRange {
    /// Oldest.
    pub min: u16,
    /// Newest.
    pub max: u16,
}

impl VersionRange {
    /// The range of a build whose newest version is `current`: that one and the one before it, if there is one.
    pub const fn up_to(current: u16) -> Self {
        Self { min: if current > 1 { current - 1 } else { current }, max: current }
    }
}

impl fmt::Display for VersionRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.min == self.max { write!(f, "{}", self.max) } else { write!(f, "{} to {}", self.min, self.max) }
    }
}

/// The newest version in both ranges, or `None` when they do not meet (or one is empty, that is, `min > max`).
pub fn negotiate(ours: VersionRange, theirs: VersionRange) -> Option<u16> {
    let newest = ours.max.min(theirs.max);
    (newest >= ours.min && newest >= theirs.min).then_some(newest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn neighbours_meet_at_the_older_one() {
        let (new, old) = (VersionRange::up_to(5), VersionRange::up_to(4));
        assert_eq!(negotiate(new, new), Some(5));
        assert_eq!(negotiate(new, old), Some(4));
        assert_eq!(negotiate(old, new), Some(4));
    }

    #[test]
    fn two_releases_apart_still_meet_when_the_ranges_touch() {
        assert_eq!(negotiate(VersionRange::up_to(5), VersionRange { min: 2, max: 4 }), Some(4));
    }

    #[test]
    fn further_apart_they_do_not_meet() {
        assert_eq!(negotiate(VersionRange::up_to(5), VersionRange::up_to(3)), None);
        assert_eq!(negotiate(VersionRange::up_to(3), VersionRange::up_to(5)), None);
    }

    #[test]
    fn the_first_version_has_none_before_it() {
        assert_eq!(VersionRange::up_to(1), VersionRange { min: 1, max: 1 });
        assert_eq!(negotiate(VersionRange::up_to(1), VersionRange::up_to(2)), Some(1));
    }

    #[test]
    fn an_empty_range_meets_nothing() {
        assert_eq!(negotiate(VersionRange { min: 4, max: 2 }, VersionRange { min: 1, max: 9 }), None);
    }

    proptest! {
        #[test]
        fn both_sides_come_to_the_same_and_can_speak_it(a in 0u16..9, b in 0u16..9, c in 0u16..9, d in 0u16..9) {
            let (x, y) = (VersionRange { min: a, max: b }, VersionRange { min: c, max: d });
            prop_assert_eq!(negotiate(x, y), negotiate(y, x));
            if let Some(v) = negotiate(x, y) {
                prop_assert!(x.min <= v && v <= x.max && y.min <= v && v <= y.max);
            }
        }
    }
}
