//! What a migration that is over has measured.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::rates::{Leaves, WHOLE};

/// Bytes that were sent, and how long that took until the target had them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sent {
    /// Before compression.
    pub bytes: u64,
    /// With the target's answer.
    #[serde(rename = "micros", with = "micros")]
    pub time: Duration,
}

impl Sent {
    /// A rate from less than this would be one of round trips. 32 MiB take 0.3 s on a link of 1 Gbit/s, and 30 ms on the fastest.
    const LEAST: u64 = 32 << 20;

    /// Bytes per second; none if it was too little to tell.
    pub(crate) fn rate(&self) -> Option<u64> {
        let rate = || u128::from(self.bytes) * 1_000_000_000 / self.time.as_nanos().max(1);
        (self.bytes >= Self::LEAST).then(|| u64::try_from(rate()).unwrap_or(u64::MAX))
    }
}

/// What the source counts besides the moments of its phases.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counted {
    /// How the memory went.
    pub leaves: Leaves,
    /// How much memory there was, in bytes, when it began.
    pub memory_bytes: u64,
    /// How long it waited for the container to have all of the memory that an earlier migration has brought, which says nothing of
    /// the next.
    #[serde(rename = "waited_micros", with = "micros")]
    pub waited: Duration,
    /// Bytes of memory that were sent while the container ran. What was written meanwhile counts again.
    pub rounds_bytes: u64,
    /// Everything that was sent while it ran: image, files, memory.
    pub running: Sent,
    /// Everything that was sent while it was frozen: files, memory, CRIU's images.
    pub frozen: Sent,
    /// Bytes of memory that were left at the freeze and followed when the container ran at the target already.
    #[serde(default)]
    pub followed_bytes: u64,
    /// For how much of that time CRIU was dumping meanwhile, so that it held nobody up.
    #[serde(rename = "hidden_micros", with = "micros")]
    pub hidden: Duration,
}

/// A migration whose container runs at its target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// The target's name.
    pub peer: String,
    /// The container's name.
    pub container: String,
    /// What was counted.
    pub counted: Counted,
    /// From its start to the freeze.
    pub until_frozen: Duration,
    /// From the freeze to running tasks.
    pub frozen_for: Duration,
}

impl Sample {
    /// Time until the freeze, but for the sending and for what had nothing to do with it.
    pub(crate) fn prepare(&self) -> Duration {
        self.until_frozen.saturating_sub(self.counted.running.time).saturating_sub(self.counted.waited)
    }

    /// Time from the freeze to running tasks, but for the sending.
    pub(crate) fn freeze(&self) -> Duration {
        self.frozen_for.saturating_sub(self.counted.frozen.time.saturating_sub(self.counted.hidden))
    }

    /// Millionths of the memory that were sent in rounds, and that were left for the freeze (files and all); none where there were
    /// no rounds.
    pub(crate) fn shares(&self) -> Option<(u64, u64)> {
        let Counted { leaves, memory_bytes, rounds_bytes, frozen, followed_bytes, .. } = self.counted;
        let share = |bytes: u64| {
            u64::try_from(u128::from(bytes) * u128::from(WHOLE) / u128::from(memory_bytes.max(1))).unwrap_or(u64::MAX)
        };
        let has_rounds = leaves <= Leaves::PreCopy && memory_bytes > 0 && rounds_bytes > 0;
        has_rounds.then(|| (share(rounds_bytes), share(frozen.bytes.saturating_add(followed_bytes))))
    }
}

/// Durations in JSON as whole microseconds.
mod micros {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        u64::try_from(duration.as_micros()).unwrap_or(u64::MAX).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_micros)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_a_migration_add_up_to_its_times() {
        let ms = Duration::from_millis;
        let counted = Counted {
            memory_bytes: 1 << 30,
            rounds_bytes: 1 << 30,
            running: Sent { bytes: 1 << 30, time: ms(2_000) },
            frozen: Sent { bytes: 1 << 20, time: ms(50) },
            hidden: ms(30),
            waited: ms(100),
            ..Counted::default()
        };
        let sample = Sample {
            peer: "b".to_owned(),
            container: "redis".to_owned(),
            counted,
            until_frozen: ms(2_600),
            frozen_for: ms(420),
        };
        assert_eq!((sample.prepare(), sample.freeze()), (ms(500), ms(400)));
        assert_eq!(sample.shares(), Some((1_000_000, 976)));
        let followed = Sample {
            counted: Counted { leaves: Leaves::PostCopy, followed_bytes: 1 << 29, ..counted },
            ..sample.clone()
        };
        assert_eq!(followed.shares(), Some((1_000_000, 500_976)));
        let dumped = Sample { counted: Counted { leaves: Leaves::Dump, ..counted }, ..sample };
        assert_eq!(dumped.shares(), None);
    }

    #[test]
    fn too_little_says_nothing_of_a_rate_and_no_time_is_no_division_by_zero() {
        let sent = |bytes, time| Sent { bytes, time }.rate();
        assert_eq!(sent(Sent::LEAST - 1, Duration::from_secs(1)), None);
        assert_eq!(sent(Sent::LEAST, Duration::from_secs(1)), Some(Sent::LEAST));
        assert_eq!(sent(u64::MAX, Duration::ZERO), Some(u64::MAX));
    }

    #[test]
    fn what_was_counted_reads_back_from_json() {
        let counted = Counted { running: Sent { bytes: 7, time: Duration::from_micros(1_234) }, ..Counted::default() };
        let json = serde_json::to_string(&counted).unwrap();
        assert!(json.contains(r#""leaves":"pre-copy""#) && json.contains(r#""micros":1234"#), "{json}");
        assert_eq!(serde_json::from_str::<Counted>(&json).unwrap(), counted);
    }
}
