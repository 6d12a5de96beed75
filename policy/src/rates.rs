//! Measured speeds and fixed costs, and the time they predict.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How fast migrations from this source go. The daemon replaces the defaults by what it measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Rates {
    /// Bytes of memory, files and image that reach a target per second, everything on the way included (dump, link, restore).
    ///
    /// Default 100 MB/s: a 1 Gbit/s link, the least that spot machines of a useful size come with. Dump and restore alone run at
    /// about 1 GB/s each, so the link decides. Too low a figure makes plans pessimistic, too high a one misses deadlines.
    pub bytes_per_second: u64,
    /// From the start to a target that is ready, when there is nothing to send: reservation, container made by the engine.
    ///
    /// Default 1 s: two round trips and a `docker create`, with room for a busy disk.
    #[serde(rename = "prepare_ms", with = "millis")]
    pub prepare: Duration,
    /// Freeze and checkpoint of a container that uses hardly any memory.
    ///
    /// Default 200 ms: `runc checkpoint` of a tiny container took 76 to 200 ms (p50) on the machines this was built on.
    #[serde(rename = "freeze_ms", with = "millis")]
    pub freeze: Duration,
    /// Restore of such a container, until its tasks run.
    ///
    /// Default 300 ms: `runc restore` took 80 to 173 ms (p50), and the engine's `start` comes on top.
    #[serde(rename = "restore_ms", with = "millis")]
    pub restore: Duration,
}

impl Default for Rates {
    fn default() -> Self {
        Self {
            bytes_per_second: 100_000_000,
            prepare: Duration::from_secs(1),
            freeze: Duration::from_millis(200),
            restore: Duration::from_millis(300),
        }
    }
}

impl Rates {
    /// The time one migration takes that sends `bytes`, rounded up to a millisecond.
    ///
    /// With a rate of 0 nothing ever arrives; the answer is then the longest time that can be written, as it is upon overflow.
    pub fn predict(&self, bytes: u64) -> Duration {
        let fixed = self.prepare.saturating_add(self.freeze).saturating_add(self.restore);
        let sending = match (u128::from(bytes) * 1_000).div_ceil(u128::from(self.bytes_per_second.max(1))) {
            _ if self.bytes_per_second == 0 && bytes > 0 => LONGEST,
            millis => Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX)),
        };
        let whole = fixed.saturating_add(sending);
        Duration::from_millis(u64::try_from(whole.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX))
    }
}

/// The longest time that the JSON form (milliseconds in 64 bits) can hold.
pub(crate) const LONGEST: Duration = Duration::from_millis(u64::MAX);

/// Durations in JSON as whole milliseconds.
pub(crate) mod millis {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(crate) fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_millis)
    }
}

/// Optional durations in JSON as whole milliseconds or null.
pub(crate) mod optional_millis {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(crate) fn serialize<S: Serializer>(duration: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
        duration.map(|d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX)).serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
        Ok(Option::<u64>::deserialize(deserializer)?.map(Duration::from_millis))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_gibibyte_at_the_default_rate() {
        // 1 GiB / 100 MB/s = 10.737 s, rounded up to a millisecond, and 1.5 s of fixed costs.
        assert_eq!(Rates::default().predict(1 << 30), Duration::from_millis(12_238));
    }

    #[test]
    fn nothing_to_send_costs_the_fixed_part_even_without_a_rate() {
        let rates = Rates { bytes_per_second: 0, ..Rates::default() };
        assert_eq!(rates.predict(0), Duration::from_millis(1_500));
        assert_eq!(rates.predict(1), LONGEST);
    }

    #[test]
    fn the_longest_prediction_does_not_overflow() {
        let rates = Rates { bytes_per_second: 1, prepare: Duration::MAX, ..Rates::default() };
        assert_eq!(rates.predict(u64::MAX), LONGEST);
    }
}
