//! From what earlier migrations measured to what the next one is predicted by.
//!
//! Everything here is a median of the newest few: one odd run (a busy disk, a link that hung) does not move it past its neighbours,
//! whatever it measured, and a link that has really changed is believed after half as many migrations. A mean, also a weighted one,
//! would follow the odd run at once.
//!
//! What was assumed before counts as one more run. So a single measurement never makes a prediction more daring, nor more than four
//! times as careful, and two that agree are enough. Of an even number the slower one of the middle is taken: who is too careful
//! waits, who is too daring misses deadlines.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::rates::{GIB, Habits, Leaves, Load, Rates, Stages, Times, nanos, scaled};
use crate::sample::Sample;

/// So many of the newest runs are looked at. A change is believed after five of them.
const NEWEST: usize = 9;

/// A single run may be an odd one. It warns, but it is not believed when it says that all takes more than so many times as long.
const AT_ONCE: u32 = 4;

/// How the freeze grows with memory is a matter of two runs each. With less than this many an odd one would be in most of the pairs.
const FOR_A_SLOPE: usize = 5;

/// Two runs that differ by less memory than this say nothing of it.
const APART: u64 = 64 << 20;

/// What migrations from this host are predicted by.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Estimates {
    /// How memory leaves this host, at best. Which way each container's goes is decided for it ([`mode`](crate::mode)).
    pub leaves: Leaves,
    /// To hosts that nothing is known of: measured over all, else the defaults.
    pub everywhere: Rates,
    /// To hosts that containers were moved to, by name.
    pub peers: BTreeMap<String, Rates>,
    /// Of containers that were moved before, by name.
    pub habits: BTreeMap<String, Habits>,
}

impl Estimates {
    /// So many runs to each host, the newest, are all that [`learn`](Self::learn) has use for; habits of containers may be older.
    pub const SAMPLES: u32 = 32;

    /// From what was measured, the newest first.
    pub fn learn(samples: &[Sample], leaves: Leaves) -> Self {
        let everywhere = estimate(samples.iter(), leaves, &Rates::without_experience(leaves));
        let mut peers = BTreeMap::new();
        let mut habits = BTreeMap::new();
        for sample in samples {
            peers.entry(sample.peer.clone()).or_insert_with(|| {
                estimate(samples.iter().filter(|other| other.peer == sample.peer), leaves, &everywhere)
            });
            if !habits.contains_key(&sample.container)
                && let Some(found) = habit(samples.iter().filter(|other| other.container == sample.container))
            {
                habits.insert(sample.container.clone(), found);
            }
        }
        Self { leaves, everywhere, peers, habits }
    }

    /// How fast it goes to a host.
    pub fn rates(&self, peer: &str) -> &Rates {
        self.peers.get(peer).unwrap_or(&self.everywhere)
    }

    /// How long it takes to move a container of this name, with so much memory and so many other bytes, to a host, so that all of it is
    /// there before it runs.
    pub fn predict(&self, peer: &str, container: &str, memory_bytes: u64, other_bytes: u64) -> Times {
        self.stages(peer, container, memory_bytes, other_bytes).times()
    }

    /// The same in its parts.
    pub(crate) fn stages(&self, peer: &str, container: &str, memory_bytes: u64, other_bytes: u64) -> Stages {
        let habits = self.habits.get(container).copied().unwrap_or_default();
        let leaves = self.all_at_once();
        self.rates(peer).stages(&Load { memory_bytes, other_bytes, leaves, habits })
    }

    /// The best way in which nothing follows.
    pub fn all_at_once(&self) -> Leaves {
        self.leaves.max(Leaves::PreCopy)
    }

    /// What leaves this host at most, in bytes per second: as much as the fastest target took. More than that nobody has seen.
    pub(crate) fn link(&self) -> u64 {
        self.peers.values().map(Rates::fastest).fold(self.everywhere.fastest(), u64::max)
    }
}

fn estimate<'s>(samples: impl Iterator<Item = &'s Sample> + Clone, leaves: Leaves, before: &Rates) -> Rates {
    let rates = samples.clone().filter_map(|sample| sample.counted.running.rate());
    let bytes_per_second = slow_rate(rates, before.bytes_per_second);
    let frozen_rates = samples.clone().filter_map(|sample| sample.counted.frozen.rate());
    // Until its memory has followed the source counts it as frozen: that says nothing of what a freeze costs.
    let told = samples.clone().filter(|sample| sample.counted.followed_bytes == 0);
    let alike = told.filter(|sample| sample.counted.leaves.is_dumped() == leaves.is_dumped());
    let freezes: Vec<_> = alike.map(|sample| (sample.counted.memory_bytes, sample.freeze())).take(NEWEST).collect();
    let (freeze, freeze_per_gib) = line(&freezes, before);
    Rates {
        bytes_per_second,
        // Little is sent under the freeze as a rule; it is the same link.
        frozen_bytes_per_second: slow_rate(frozen_rates, bytes_per_second),
        prepare: slow_time(samples.map(Sample::prepare), before.prepare),
        freeze,
        freeze_per_gib,
    }
}

/// What a freeze costs without any memory, and what a GiB of it adds: the medians of slopes and of what is left after Theil and Sen
/// (P. K. Sen, "Estimates of the regression coefficient based on Kendall's tau", 1968), which is for a line what a median is for a
/// number. At the sizes that were measured it is right also where the slope is not.
fn line(freezes: &[(u64, Duration)], before: &Rates) -> (Duration, Duration) {
    let slope = if freezes.len() < FOR_A_SLOPE { None } else { middle_slope(freezes) };
    // No more than the whole of what it cost, or nothing would be left for the fixed part.
    let whole = middle(freezes.iter().filter(|(bytes, _)| *bytes > 0).map(|&(bytes, cost)| scaled(cost, GIB, bytes)));
    let slope = slope.unwrap_or(before.freeze_per_gib).min(whole.unwrap_or(Duration::MAX));
    let fixed = freezes.iter().map(|&(bytes, cost)| cost.saturating_sub(scaled(slope, bytes, GIB)));
    (slow_time(fixed, before.freeze), slope)
}

fn middle_slope(freezes: &[(u64, Duration)]) -> Option<Duration> {
    let pairs = freezes.iter().enumerate().flat_map(|(n, one)| freezes[n + 1..].iter().map(move |other| (one, other)));
    middle(pairs.filter(|(one, other)| one.0.abs_diff(other.0) >= APART).map(|(one, other)| {
        let (small, large) = if one.0 < other.0 { (one, other) } else { (other, one) };
        // More memory does not make it shorter.
        let more = large.1.saturating_sub(small.1).as_nanos();
        nanos(more.saturating_mul(u128::from(GIB)) / u128::from(large.0 - small.0))
    }))
}

/// The longer of the middle two; none of none.
fn middle(times: impl Iterator<Item = Duration>) -> Option<Duration> {
    let mut times: Vec<_> = times.collect();
    times.sort_unstable();
    times.get(times.len() / 2).copied()
}

fn slow_time(newest_first: impl Iterator<Item = Duration>, before: Duration) -> Duration {
    let times: Vec<_> = newest_first.take(NEWEST).collect();
    match times[..] {
        [only] => only.clamp(before, before.saturating_mul(AT_ONCE)),
        _ => middle(times.into_iter().chain([before])).unwrap_or(before),
    }
}

/// The same for rates: the lower of the middle two.
fn slow_rate(newest_first: impl Iterator<Item = u64>, before: u64) -> u64 {
    let mut rates: Vec<_> = newest_first.take(NEWEST).collect();
    if let [only] = rates[..] {
        return only.clamp(before / u64::from(AT_ONCE), before);
    }
    rates.push(before);
    rates.sort_unstable();
    rates[(rates.len() - 1) / 2]
}

/// The greater of the middle two, of each share for itself.
fn habit<'s>(newest_first: impl Iterator<Item = &'s Sample>) -> Option<Habits> {
    let (mut sent, mut left): (Vec<_>, Vec<_>) = newest_first.filter_map(Sample::shares).take(NEWEST).unzip();
    sent.sort_unstable();
    left.sort_unstable();
    Some(Habits { sent_ppm: *sent.get(sent.len() / 2)?, left_ppm: *left.get(left.len() / 2)? })
}
