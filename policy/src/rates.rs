//! Measured speeds and fixed costs, and the times they predict.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How fast migrations go. [`Estimates`](crate::Estimates) replaces the defaults by what was measured.
///
/// ```text
/// until it is frozen   prepare + (image, files, memory in rounds) / bytes_per_second
/// frozen               freeze + memory × freeze_per_gib + (what is left) / frozen_bytes_per_second
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Rates {
    /// Bytes of memory, files and image that reach a target per second while the container runs, before compression.
    ///
    /// Default 100 MB/s: a 1 Gbit/s link, the least that spot machines of a useful size come with. Too low a figure makes plans
    /// pessimistic, too high a one misses deadlines.
    pub bytes_per_second: u64,
    /// The same for what goes over while it is frozen. Default: the same.
    pub frozen_bytes_per_second: u64,
    /// From the start to the freeze, when there is nothing to send: reservation, container made by the engine.
    ///
    /// Default 1 s: two round trips and a `docker create`, with room for a busy disk.
    #[serde(rename = "prepare_ms", with = "millis")]
    pub prepare: Duration,
    /// From the freeze to running tasks, of a container that uses hardly any memory.
    ///
    /// Default 500 ms: `runc checkpoint` of a tiny container took 76 to 200 ms (p50) on the machines this was built on, `runc
    /// restore` 80 to 173 ms, and COMMIT and the engine's `start` come on top.
    #[serde(rename = "freeze_ms", with = "millis")]
    pub freeze: Duration,
    /// What that grows by for each GiB of memory, besides what is sent.
    ///
    /// Default 200 ms, and 2 s where CRIU dumps the pages: it walks through the page tables also of memory that it does not dump.
    #[serde(rename = "freeze_per_gib_ms", with = "millis")]
    pub freeze_per_gib: Duration,
}

impl Default for Rates {
    fn default() -> Self {
        Self::without_experience(Leaves::default())
    }
}

impl Rates {
    /// What is assumed before anything was measured.
    pub const fn without_experience(leaves: Leaves) -> Self {
        Self {
            bytes_per_second: 100_000_000,
            frozen_bytes_per_second: 100_000_000,
            prepare: Duration::from_secs(1),
            freeze: Duration::from_millis(500),
            freeze_per_gib: leaves.walk(),
        }
    }

    /// The times of one migration, each rounded up to a millisecond.
    ///
    /// With a rate of 0 nothing ever arrives; the answer is then the longest time that can be written, as it is upon overflow.
    pub fn predict(&self, load: &Load) -> Times {
        self.stages(load).times()
    }

    /// What a migration consists of.
    pub(crate) fn stages(&self, load: &Load) -> Stages {
        Stages {
            prepare: self.prepare,
            running: sending(load.running_bytes(), self.bytes_per_second),
            freeze: self.freeze.saturating_add(scaled(self.freeze_per_gib, load.memory_bytes, GIB)),
            frozen: sending(load.frozen_bytes(), self.frozen_bytes_per_second),
            running_rate: self.bytes_per_second,
            frozen_rate: self.frozen_bytes_per_second,
            follows: load.leaves == Leaves::PostCopy,
        }
    }

    /// The faster of both rates, in bytes per second.
    pub(crate) fn fastest(&self) -> u64 {
        self.bytes_per_second.max(self.frozen_bytes_per_second)
    }
}

/// The parts of a migration, one after the other, each as long as it takes when nobody else sends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Stages {
    /// Nothing is sent.
    pub(crate) prepare: Duration,
    /// Image, files and memory are sent while the container runs.
    pub(crate) running: Duration,
    /// It is frozen, and nothing is sent.
    pub(crate) freeze: Duration,
    /// What is left is sent.
    pub(crate) frozen: Duration,
    /// In bytes per second.
    pub(crate) running_rate: u64,
    /// In bytes per second.
    pub(crate) frozen_rate: u64,
    /// Whether what is left is sent when the container runs at the target already.
    pub(crate) follows: bool,
}

impl Stages {
    /// Until it runs, each rounded up to a millisecond.
    pub(crate) fn times(&self) -> Times {
        let frozen = self.freeze.saturating_add(if self.follows { Duration::ZERO } else { self.frozen });
        let before = self.prepare.saturating_add(self.running);
        Times { total: whole(before.saturating_add(frozen)), frozen: whole(frozen) }
    }

    /// Until nothing of it is at the source any more, rounded up to a millisecond.
    pub(crate) fn until_whole(&self) -> Duration {
        let before = self.prepare.saturating_add(self.running);
        whole(before.saturating_add(self.freeze.saturating_add(self.frozen)))
    }
}

/// How the memory of a container leaves its host, the best first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Leaves {
    /// In rounds while it runs; what was written meanwhile follows when it runs at the target already, where that is worth it.
    PostCopy,
    /// In rounds while it runs, and what was written meanwhile once it is frozen.
    #[default]
    PreCopy,
    /// Page by page once it is frozen.
    StopAndCopy,
    /// In CRIU's images, once it is frozen.
    Dump,
}

/// As the configuration has it: `post-copy`, `pre-copy`, `stop-and-copy`, `dump`.
impl fmt::Display for Leaves {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PostCopy => "post-copy",
            Self::PreCopy => "pre-copy",
            Self::StopAndCopy => "stop-and-copy",
            Self::Dump => "dump",
        })
    }
}

impl Leaves {
    /// What a GiB of memory adds to the freeze, besides being sent: CRIU's walk through page tables took 0.1 to 0.2 s, a dump to a
    /// tmpfs and a restore from one 1.9 s, on the machines this was built on.
    const fn walk(self) -> Duration {
        Duration::from_millis(match self {
            Self::PostCopy | Self::PreCopy | Self::StopAndCopy => 200,
            Self::Dump => 2_000,
        })
    }

    /// Whether CRIU dumps the pages: what it then costs says nothing about what it costs otherwise.
    pub(crate) fn is_dumped(self) -> bool {
        self == Self::Dump
    }
}

/// What is to be moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// Memory of all tasks, in bytes.
    pub memory_bytes: u64,
    /// Files, and the image where the target lacks it, in bytes.
    pub other_bytes: u64,
    /// How the memory goes.
    pub leaves: Leaves,
    /// What earlier migrations of this container found.
    pub habits: Habits,
}

impl Load {
    /// Bytes that are sent while it runs.
    fn running_bytes(&self) -> u64 {
        self.other_bytes.saturating_add(match self.leaves {
            Leaves::PostCopy | Leaves::PreCopy => share(self.memory_bytes, self.habits.sent_ppm),
            Leaves::StopAndCopy | Leaves::Dump => 0,
        })
    }

    /// Bytes that are sent once it is frozen.
    fn frozen_bytes(&self) -> u64 {
        match self.leaves {
            Leaves::PostCopy | Leaves::PreCopy => self.habits.left_of(self.memory_bytes),
            Leaves::StopAndCopy | Leaves::Dump => self.memory_bytes,
        }
    }
}

/// How a container writes to its memory while it is sent, in millionths of that memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Habits {
    /// What the rounds send: all of it once, and what was written meanwhile again.
    pub sent_ppm: u64,
    /// What is left for the freeze.
    pub left_ppm: u64,
}

impl Default for Habits {
    /// All is sent once and a tenth is left: a Redis of 1 GiB writes to 5 % of its pages in 5 s at 1,000 `SET`s a second, and to 15 %
    /// at 5,000.
    fn default() -> Self {
        Self { sent_ppm: WHOLE, left_ppm: WHOLE / 10 }
    }
}

impl Habits {
    /// How much of so much memory is left for the freeze, in bytes.
    pub(crate) fn left_of(&self, memory_bytes: u64) -> u64 {
        share(memory_bytes, self.left_ppm)
    }
}

/// How long a migration takes, as predicted or as measured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Times {
    /// From its start until the container runs at the target.
    #[serde(rename = "total_ms", with = "millis")]
    pub total: Duration,
    /// How long of that the container is frozen.
    #[serde(rename = "frozen_ms", with = "millis")]
    pub frozen: Duration,
}

/// The whole of a container's memory in millionths.
pub(crate) const WHOLE: u64 = 1_000_000;

pub(crate) const GIB: u64 = 1 << 30;

/// The longest time that the JSON form (milliseconds in 64 bits) can hold.
pub(crate) const LONGEST: Duration = Duration::from_millis(u64::MAX);

fn share(bytes: u64, ppm: u64) -> u64 {
    u64::try_from(u128::from(bytes) * u128::from(ppm) / u128::from(WHOLE)).unwrap_or(u64::MAX)
}

/// `duration × times / per`.
pub(crate) fn scaled(duration: Duration, times: u64, per: u64) -> Duration {
    nanos(duration.as_nanos().saturating_mul(u128::from(times)) / u128::from(per.max(1)))
}

fn sending(bytes: u64, bytes_per_second: u64) -> Duration {
    match (bytes, bytes_per_second) {
        (0, _) => Duration::ZERO,
        (_, 0) => LONGEST,
        _ => nanos((u128::from(bytes) * 1_000_000_000).div_ceil(u128::from(bytes_per_second))),
    }
}

pub(crate) fn nanos(nanos: u128) -> Duration {
    let seconds = u64::try_from(nanos / 1_000_000_000).unwrap_or(u64::MAX);
    // A remainder of a division by a thousand millions fits.
    Duration::new(seconds, (nanos % 1_000_000_000) as u32).min(LONGEST)
}

/// Rounded up to a millisecond.
pub(crate) fn whole(duration: Duration) -> Duration {
    Duration::from_millis(u64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX))
}

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

    fn load(leaves: Leaves, memory_bytes: u64) -> Load {
        Load { memory_bytes, other_bytes: 0, leaves, habits: Habits::default() }
    }

    fn in_millis(times: Times) -> (u128, u128) {
        (times.total.as_millis(), times.frozen.as_millis())
    }

    #[test]
    fn one_gibibyte_at_the_default_rates() {
        // 1 GiB / 100 MB/s = 10.737 s; 1 s until it is frozen, 0.5 s and CRIU's walk afterwards.
        let predict = |leaves| in_millis(Rates::without_experience(leaves).predict(&load(leaves, GIB)));
        assert_eq!(predict(Leaves::PreCopy), (13_512, 1_774));
        assert_eq!(predict(Leaves::PostCopy), (12_438, 700));
        assert_eq!(predict(Leaves::StopAndCopy), (12_438, 11_438));
        assert_eq!(predict(Leaves::Dump), (14_238, 13_238));
    }

    #[test]
    fn nothing_to_send_costs_the_fixed_part_even_without_a_rate() {
        let rates = Rates { bytes_per_second: 0, frozen_bytes_per_second: 0, ..Rates::default() };
        assert_eq!(in_millis(rates.predict(&load(Leaves::PreCopy, 0))), (1_500, 500));
        let one = rates.predict(&load(Leaves::Dump, 1));
        assert_eq!((one.total, one.frozen), (LONGEST, LONGEST));
    }

    #[test]
    fn the_longest_prediction_does_not_overflow() {
        let rates = Rates {
            bytes_per_second: 1,
            frozen_bytes_per_second: 1,
            prepare: Duration::MAX,
            freeze: Duration::MAX,
            freeze_per_gib: Duration::MAX,
        };
        let all = Load {
            other_bytes: u64::MAX,
            habits: Habits { sent_ppm: u64::MAX, left_ppm: u64::MAX },
            ..load(Leaves::PreCopy, u64::MAX)
        };
        assert_eq!(rates.predict(&all), Times { total: LONGEST, frozen: LONGEST });
    }

    #[test]
    fn a_container_that_was_moved_before_is_predicted_by_its_habits() {
        let quiet = Load { habits: Habits { sent_ppm: WHOLE, left_ppm: 0 }, ..load(Leaves::PreCopy, GIB) };
        let busy = Load { habits: Habits { sent_ppm: 2 * WHOLE, left_ppm: WHOLE / 2 }, ..quiet };
        let rates = Rates::default();
        assert_eq!(in_millis(rates.predict(&quiet)), (12_438, 700));
        assert_eq!(in_millis(rates.predict(&busy)), (28_544, 6_069));
    }
}
