//! What it costs to send a container to a host.
//!
//! Everything is counted in one unit: **seconds of moving**. A price of five seconds is as bad as a migration that takes five seconds
//! longer. [`Weights`] say how many such seconds each thing is worth; the parts of a [`Cost`] say where they come from.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::container::Container;
use crate::host::{CpuVerdict, Facts, Source};
use crate::rates::{GIB, Times};

/// What a restore that may fail after the freeze is worth avoiding, in seconds: any other host that was checked is better.
const UNCHECKED_CPU: f64 = 100_000.0;

/// No part of a cost is more than this, in microseconds (31 years): sums of them cannot overflow.
const MOST: f64 = 1e15;

/// The chance of an interruption that is assumed of a spot machine, in the time that a container would rather stay where it is.
const SPOT: f64 = 0.05;

/// And where nobody has said whether it is one.
const PERHAPS_SPOT: f64 = SPOT / 2.0;

/// What each notice that it had within a day adds.
const NOTICED: f64 = 0.1;

/// What it adds that the source is in the same zone: capacity is short there.
const SAME_ZONE: f64 = 0.1;

/// What it adds that the source is of the same spot pool: clouds take back what is of one kind together.
const SAME_POOL: f64 = 0.4;

/// The placement score at which a spot machine is as likely to go as is assumed of any.
const USUAL_SCORE: u8 = 6;

/// How many seconds of moving things are worth. None may be negative.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Weights {
    /// A second that the migration takes. Default: 1.
    pub time: f64,
    /// A second of that for which the container is frozen, besides. Default: 5.
    pub downtime: f64,
    /// A dollar an hour that the host costs. Default: 10.
    pub price: f64,
    /// A host that is certain to be interrupted soon. Default: 100.
    pub interruption: f64,
    /// A GiB that goes from one zone to another. Default: 2.
    pub transfer: f64,
    /// A host whose processors are all busy. Default: 5.
    pub load: f64,
    /// A host whose free memory the plan uses up. Default: 1.
    pub balance: f64,
}

impl Default for Weights {
    fn default() -> Self {
        Self { time: 1.0, downtime: 5.0, price: 10.0, interruption: 100.0, transfer: 2.0, load: 5.0, balance: 1.0 }
    }
}

impl Weights {
    /// The first that is negative, not a number, or so large that nothing else would count.
    pub fn out_of_range(&self) -> Option<&'static str> {
        let Self { time, downtime, price, interruption, transfer, load, balance } = *self;
        let all = [
            ("time", time),
            ("downtime", downtime),
            ("price", price),
            ("interruption", interruption),
            ("transfer", transfer),
            ("load", load),
            ("balance", balance),
        ];
        all.into_iter().find(|(_, weight)| !(0.0..=1e6).contains(weight)).map(|(name, _)| name)
    }
}

/// What sending a container to a host costs, in microseconds of moving, by what it is for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Cost {
    /// The time it takes.
    pub time_us: i64,
    /// The time for which it is frozen.
    pub downtime_us: i64,
    /// What the host costs.
    pub price_us: i64,
    /// That the host may be taken away as well.
    pub interruption_us: i64,
    /// Bytes that go to another zone.
    pub transfer_us: i64,
    /// That its processors are busy, with the rest of the plan.
    pub load_us: i64,
    /// That its memory is used up, with the rest of the plan.
    pub balance_us: i64,
    /// That nobody has checked its CPU.
    pub unchecked_us: i64,
    /// What the operator's rules add or, where this is negative, take off.
    pub rules_us: i64,
}

impl Cost {
    /// All of it, in microseconds.
    pub fn total_us(&self) -> i64 {
        self.parts().iter().map(|(_, part)| part).sum()
    }

    fn parts(&self) -> [(&'static str, i64); 9] {
        [
            ("time", self.time_us),
            ("downtime", self.downtime_us),
            ("price", self.price_us),
            ("interruption", self.interruption_us),
            ("transfer", self.transfer_us),
            ("load", self.load_us),
            ("balance", self.balance_us),
            ("unchecked CPU", self.unchecked_us),
            ("rules", self.rules_us),
        ]
    }
}

/// `14.60 s (time 13.50, downtime 1.10)`; what would read as nothing is left out.
impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = |us: i64| us as f64 / 1e6;
        write!(f, "{:.2} s", seconds(self.total_us()))?;
        let shown = self.parts().into_iter().filter(|(_, us)| us.abs() >= 5_000);
        for (n, (name, us)) in shown.clone().enumerate() {
            write!(f, "{}{name} {:.2}", if n == 0 { " (" } else { ", " }, seconds(us))?;
        }
        if shown.count() > 0 { f.write_str(")") } else { Ok(()) }
    }
}

/// Seconds as whole microseconds, within bounds.
pub(crate) fn micros(seconds: f64) -> i64 {
    let bounded = (seconds * 1e6).clamp(-MOST, MOST);
    // NaN can only come of an infinite weight, which no configuration has; it counts nothing. Within the bounds the cast is exact enough.
    if bounded.is_nan() { 0 } else { bounded.round() as i64 }
}

/// What all costs are made with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tariff<'r> {
    pub(crate) weights: &'r Weights,
    pub(crate) source: &'r Source,
    /// What a host is taken to cost of which nobody knows it, in millionths of a dollar an hour.
    pub(crate) usual_price: u64,
}

impl<'r> Tariff<'r> {
    pub(crate) fn new<'f>(weights: &'r Weights, source: &'r Source, hosts: impl Iterator<Item = &'f Facts>) -> Self {
        let mut prices: Vec<u64> = hosts.filter_map(|facts| facts.price_micros).collect();
        prices.sort_unstable();
        Self { weights, source, usual_price: prices.get(prices.len() / 2).copied().unwrap_or(0) }
    }

    /// All but what depends on the rest of the plan, and on rules.
    pub(crate) fn of(&self, container: &Container, facts: &Facts, times: &Times, bytes: u64) -> Cost {
        let Weights { time, downtime, price, interruption, transfer, .. } = self.weights;
        let dollars = facts.price_micros.unwrap_or(self.usual_price) as f64 / 1e6;
        let elsewhere = matches!((&self.source.zone, &facts.zone), (Some(from), Some(to)) if from != to);
        let sent = if elsewhere { bytes.saturating_add(container.memory_bytes) } else { 0 };
        Cost {
            time_us: micros(time * times.total.as_secs_f64()),
            downtime_us: micros(downtime * times.frozen.as_secs_f64()),
            price_us: micros(price * dollars),
            interruption_us: micros(interruption * self.risk(facts)),
            transfer_us: micros(transfer * sent as f64 / GIB as f64),
            // The host's own load counts for each that comes; what they add to it is `crowding`.
            load_us: micros(self.weights.load * busy(facts, 0)),
            unchecked_us: if facts.cpu == CpuVerdict::Compatible { 0 } else { micros(UNCHECKED_CPU) },
            ..Cost::default()
        }
    }

    /// How likely the host is to be interrupted, from 0 to 1. A scale and no statistics: it only has to put hosts in order.
    fn risk(&self, facts: &Facts) -> f64 {
        let noticed = NOTICED * f64::from(facts.notices_last_day);
        let cloud = match facts.spot {
            // Nobody takes back what is not lent.
            Some(false) => 0.0,
            spot => {
                let usual = if spot.is_some() { SPOT } else { PERHAPS_SPOT };
                let score = facts.placement_score.unwrap_or(USUAL_SCORE).clamp(1, 10);
                let same = |one: &Option<String>, other: &Option<String>| one.is_some() && one == other;
                let fate = if same(&self.source.pool, &facts.pool) {
                    SAME_POOL
                } else if same(&self.source.zone, &facts.zone) {
                    SAME_ZONE
                } else {
                    0.0
                };
                usual * f64::from(11 - score) / f64::from(11 - USUAL_SCORE) + fate
            }
        };
        (noticed + cloud).min(1.0)
    }

    /// What a host costs for being used by so many bytes of memory and so much processor time of the plan, together. It grows faster than
    /// either, so that two hosts that are used by half cost less than one that is used up.
    pub(crate) fn crowding(&self, facts: &Facts, memory_bytes: u64, cpu_milli: u64) -> (i64, i64) {
        let used = memory_bytes as f64 / facts.room_bytes().max(1) as f64;
        let load = busy(facts, cpu_milli) - busy(facts, 0);
        (micros(self.weights.load * load), micros(self.weights.balance * used * used))
    }
}

/// How busy the host's processors are with so much more to do, squared: 1 is all of them; 0 where nobody has said how many there are.
fn busy(facts: &Facts, more_milli: u64) -> f64 {
    if facts.cpus == 0 {
        return 0.0;
    }
    (facts.load_milli.saturating_add(more_milli) as f64 / 1000.0 / f64::from(facts.cpus)).powi(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tariff<'r>(weights: &'r Weights, source: &'r Source) -> Tariff<'r> {
        Tariff { weights, source, usual_price: 0 }
    }

    fn spot() -> Facts {
        Facts { spot: Some(true), zone: Some("z1".to_owned()), pool: Some("c7/z1".to_owned()), ..Facts::default() }
    }

    #[test]
    fn who_shares_the_sources_fate_is_likelier_to_go_too() {
        let weights = Weights::default();
        let source = Source { zone: Some("z1".to_owned()), pool: Some("c7/z1".to_owned()), ..Source::default() };
        let risk = |facts: Facts| tariff(&weights, &source).risk(&facts);
        let other_pool = Facts { pool: Some("m7/z1".to_owned()), ..spot() };
        let other_zone = Facts { zone: Some("z2".to_owned()), pool: Some("c7/z2".to_owned()), ..spot() };
        let on_demand = Facts { spot: Some(false), ..spot() };
        let order = [on_demand.clone(), other_zone.clone(), other_pool, spot()].map(risk);
        assert!(order.is_sorted_by(|a, b| a < b), "{order:?}");
        assert_eq!(risk(on_demand), 0.0);
        let scores = [10, 6, 1].map(|score| risk(Facts { placement_score: Some(score), ..other_zone.clone() }));
        assert!(scores.is_sorted_by(|a, b| a < b), "{scores:?}");
        assert!(risk(Facts { notices_last_day: 100, ..spot() }) <= 1.0);
    }

    #[test]
    fn what_nobody_knows_speaks_neither_for_nor_against() {
        let (weights, source) = (Weights::default(), Source::default());
        let price = |price_micros| Facts { price_micros, ..Facts::default() };
        let hosts = [price(Some(10_000)), price(None), price(Some(90_000)), price(Some(50_000))];
        let tariff = Tariff::new(&weights, &source, hosts.iter());
        let costs = hosts.map(|facts| tariff.of(&Container::default(), &facts, &Times::default(), 0).price_us);
        assert_eq!(costs, [100_000, 500_000, 900_000, 500_000]);
    }

    #[test]
    fn bytes_cost_only_across_zones_that_are_known() {
        let weights = Weights::default();
        let source = Source { zone: Some("z1".to_owned()), ..Source::default() };
        let container = Container { memory_bytes: GIB, ..Container::default() };
        let cost = |zone: Option<&str>| {
            let facts = Facts { zone: zone.map(str::to_owned), ..Facts::default() };
            tariff(&weights, &source).of(&container, &facts, &Times::default(), GIB).transfer_us
        };
        assert_eq!((cost(Some("z1")), cost(Some("z2")), cost(None)), (0, 4_000_000, 0));
    }

    #[test]
    fn two_half_used_hosts_cost_less_than_one_that_is_used_up() {
        let (weights, source) = (Weights::default(), Source::default());
        let facts = Facts { free_memory_bytes: 8 * GIB, cpus: 4, ..Facts::default() };
        let sum = |memory, cpu| {
            let (load, balance) = tariff(&weights, &source).crowding(&facts, memory, cpu);
            load + balance
        };
        assert!(2 * sum(4 * GIB, 2_000) < sum(8 * GIB, 4_000));
        assert_eq!(sum(0, 0), 0);
    }

    #[test]
    fn a_cost_says_what_it_is_for() {
        let cost = Cost { time_us: 13_500_000, rules_us: -2_000_000, balance_us: 100, ..Cost::default() };
        assert_eq!(cost.to_string(), "11.50 s (time 13.50, rules -2.00)");
        assert_eq!(Cost::default().to_string(), "0.00 s");
    }
}
