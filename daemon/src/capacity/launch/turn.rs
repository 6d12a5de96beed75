//! One budget for several hosts, which do not know of each other: EC2 itself lets one of them order at a time.
//!
//! An order's token says which instances its author had counted. EC2 takes a token once: of two hosts that counted the same and order at once,
//! with tags of their own, one is told that the token is another order's (`IdempotentParameterMismatch`). It waits until EC2
//! shows what that one launched, and counts again. Where nothing new is seen for as long as EC2 may take to show it, that order launched nothing,
//! and the next token is free for whoever is first.
//!
//! This rests on EC2 showing the instances of an order together, within [`SHOWN`] of it. Tokens are remembered for a while only, and a set
//! of instances may come back when old ones are forgotten; so a token is of a day, and nobody orders while another's may still be of the day before.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use spothop_aws::{FleetError, Launched, Market};
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use super::{Launcher, Memory, NotLaunched};
use crate::config::capacity::Market as Choice;

/// How long to wait for what others ordered.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    /// By when EC2 shows what was launched.
    pub(super) shown: Duration,
    /// Between two looks for it.
    pub(super) look: Duration,
}

impl Pace {
    /// EC2's.
    pub(super) const EC2: Self = Self { shown: SHOWN, look: Duration::from_secs(1) };
}

/// By when EC2 shows what was launched, and how far hosts' clocks differ besides: its answers are "eventually consistent", which takes a second or two.
const SHOWN: Duration = Duration::from_secs(20);

/// Tokens of others that are waited for before it is said.
const PATIENCE: usize = 3;

/// A day of UTC, in seconds.
const DAY: i64 = 86_400;

impl Launcher {
    /// The order, when it is this host's turn in the fleet.
    pub(super) async fn launch_in_turn(
        &self,
        fleet: &str,
        notice: &str,
        wanted: u32,
        memory: &mut Memory,
    ) -> Result<Launched, NotLaunched> {
        let (mut markets, mut others) = (markets(self.config.market), 0);
        // What was counted when a token turned out to be another's, that token, and until when its instances are waited for.
        let mut waiting: Option<(BTreeSet<String>, String, Instant)> = None;
        loop {
            let count = self.count(notice, memory).await?;
            if !count.before.is_empty() {
                return Ok(Launched { instances: count.before, lacking: Vec::new() });
            }
            if let Some((before, token, until)) = waiting.take_if(|(before, ..)| *before == count.known) {
                if Instant::now() < until {
                    waiting = Some((before, token, until));
                    // Nothing tells of it.
                    sleep(self.pace.look).await;
                    continue;
                }
                memory.spent.insert(token);
            }
            waiting = None;
            let mut order = self.order(notice, wanted, &count)?;
            let Some(day) = day(Timestamp::now()) else {
                sleep(self.pace.look).await;
                continue;
            };
            let mut tokens = (1..).map(|number: u32| token(fleet, day, number, &count.known));
            let Some(free) = tokens.find(|token| !memory.spent.contains(token)) else {
                return Err(NotLaunched::Others);
            };
            (order.token, order.market) = (free, markets[0]);
            match self.insist(&order).await {
                Ok(launched) => {
                    memory.spent.insert(order.token.clone());
                    memory.remember(&order, &launched);
                    return Ok(launched);
                }
                Err(FleetError::TokenTaken) if others == PATIENCE => return Err(NotLaunched::Others),
                Err(FleetError::TokenTaken) => {
                    others += 1;
                    info!(fleet, "another host of this fleet launches instances; waiting until EC2 shows them");
                    waiting = Some((count.known, order.token, Instant::now() + self.pace.shown));
                }
                // By EC2's word, so that it is over. One without an answer may yet launch what it says.
                Err(failure) if !matches!(failure, FleetError::Call(_)) => {
                    memory.spent.insert(order.token.clone());
                    if markets.len() == 1 || !failure.other_market_may_do() {
                        return Err(failure.into());
                    }
                    warn!(%failure, "there are no spot instances; on-demand instances are launched instead");
                    markets = &markets[1..];
                }
                Err(failure) => return Err(failure.into()),
            }
        }
    }
}

/// In which markets to order, one after the other.
fn markets(choice: Choice) -> &'static [Market] {
    match choice {
        Choice::Spot => &[Market::Spot],
        Choice::OnDemand => &[Market::OnDemand],
        Choice::SpotThenOnDemand => &[Market::Spot, Market::OnDemand],
    }
}

/// The day that tokens are of; none in its first seconds, when what was ordered on the day before may not be shown yet.
fn day(now: Timestamp) -> Option<i64> {
    let (day, second) = (now.as_second().div_euclid(DAY), now.as_second().rem_euclid(DAY));
    (second.unsigned_abs() >= SHOWN.as_secs()).then_some(day)
}

/// 64 characters of ASCII, the most that EC2 takes.
fn token(fleet: &str, day: i64, number: u32, known: &BTreeSet<String>) -> String {
    let known: Vec<&str> = known.iter().map(String::as_str).collect();
    let text = format!("{fleet}\n{day}\n{number}\n{}", known.join("\n"));
    let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_of_what_was_counted_of_the_day_and_of_the_attempt() {
        let known = |ids: &[&str]| ids.iter().map(ToString::to_string).collect::<BTreeSet<_>>();
        let one = token("f", 20_000, 1, &known(&["i-1"]));
        assert_eq!(one.len(), 64);
        assert_eq!(one, token("f", 20_000, 1, &known(&["i-1"])));
        let others = [
            token("g", 20_000, 1, &known(&["i-1"])),
            token("f", 20_001, 1, &known(&["i-1"])),
            token("f", 20_000, 2, &known(&["i-1"])),
        ];
        assert!(others.iter().all(|other| *other != one));
        assert_ne!(one, token("f", 20_000, 1, &known(&["i-1", "i-2"])));
    }

    #[test]
    fn nothing_is_ordered_while_yesterdays_orders_may_not_be_shown() {
        let at = |second| Timestamp::from_second(second).expect("a time");
        assert_eq!(day(at(DAY * 7)), None);
        assert_eq!(day(at(DAY * 7 + 19)), None);
        assert_eq!(day(at(DAY * 7 + 20)), Some(7));
        assert_eq!(day(at(DAY * 8 - 1)), Some(7));
    }
}
