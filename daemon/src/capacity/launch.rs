//! More hosts, when none has room: as many instances as what is left behind needs, and never more than the budget.
//!
//! The budget is a host's own, or one that all hosts of a fleet share ([`turn`]). It is kept by what EC2 has and not by what this daemon
//! remembers: every instance is tagged with the host that launched it, with the notice that it was launched for, and with what it may cost
//! at most. Whoever comes back after a crash counts those, finds what was launched for a notice already, and gives the same order by the same
//! token, which EC2 takes for the same one. What EC2 does not show yet is counted too, as long as this daemon lives.
//!
//! An instance is no host before it is in the inventory: its image starts the daemon, and whoever plans again finds it there.

mod turn;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use spothop_aws::{FleetError, InstanceState, Launched, Market, Order, Tagged};
use spothop_policy::{Bytes, Plan, Refusal, Stay};
use tokio::sync::Mutex;
use tokio::time::Instant;
use tracing::{error, info, warn};

use crate::config::capacity::{Ec2, Market as Choice};

/// By which host an instance was launched.
const TAG_HOST: &str = "spothop:launched-by";
/// Whose budget it is part of, where several hosts have one.
const TAG_FLEET: &str = "spothop:fleet";
/// For which notice.
const TAG_CAUSE: &str = "spothop:launched-for";
/// What it may cost, in millionths of a dollar an hour.
const TAG_PRICE: &str = "spothop:max-price-micros";

/// How long an instance may be missing from EC2's answers after it was launched: they are "eventually consistent", which takes seconds.
const UNSEEN: Duration = Duration::from_secs(600);

/// Attempts at an order that got no answer. By its token it is one order.
const ATTEMPTS: usize = 3;

/// Launches instances. One for each daemon.
#[derive(Debug)]
pub struct Launcher {
    api: spothop_aws::Ec2,
    config: Ec2,
    /// This host's name.
    host: String,
    /// Held from counting to launching.
    memory: Mutex<Memory>,
    pace: turn::Pace,
    /// Notices for which there was an order, whatever became of it: plans are made every few seconds.
    ordered: Mutex<BTreeSet<String>>,
}

/// What this daemon knows of its orders and EC2 may not tell.
#[derive(Debug, Default)]
struct Memory {
    /// What was launched lately: id, most it costs, when.
    lately: Vec<(String, u64, Instant)>,
    /// Tokens of a fleet whose orders are over, with whatever they launched.
    spent: BTreeSet<String>,
}

/// What there is of the budget.
#[derive(Debug)]
struct Count {
    /// All instances that EC2 shows, whatever their state, and those of [`Memory::lately`].
    known: BTreeSet<String>,
    /// How many of them may live.
    living: usize,
    /// What those may cost, in millionths of a dollar an hour.
    price_micros: u64,
    /// Those that this host launched for the notice that it is about.
    before: Vec<String>,
}

/// Why nothing is launched, although something is left behind.
#[derive(Debug, thiserror::Error)]
pub enum NotLaunched {
    /// All that may be launched is launched.
    #[error("the budget of [capacity.ec2] is used up: {instances} instances of this {whose} live, for up to ${text} an hour", text = dollars(*.price_micros))]
    Budget {
        /// Whose budget it is: `host` or `fleet`.
        whose: &'static str,
        /// How many live.
        instances: usize,
        /// What they may cost.
        price_micros: u64,
    },
    /// What is left behind would not fit on an instance either.
    #[error("no container that is left behind fits into {} ([capacity.ec2] room)", Bytes(*.room))]
    TooLarge {
        /// Bytes.
        room: u64,
    },
    /// EC2 does not say what lives, and without that there is no budget.
    #[error("EC2 does not say how many instances of the budget live, so none is launched")]
    Uncounted(#[source] spothop_aws::Error),
    /// Others of the fleet order too, and EC2 does not show yet what they launched.
    #[error("other hosts of this fleet launch instances, and EC2 does not show them yet; looking again")]
    Others,
    /// EC2 launches none.
    #[error(transparent)]
    Fleet(#[from] FleetError),
}

impl Launcher {
    /// Asks nothing yet.
    #[must_use]
    pub fn new(api: spothop_aws::Ec2, config: Ec2, host: &str) -> Self {
        Self {
            api,
            config,
            host: host.to_owned(),
            memory: Mutex::default(),
            pace: turn::Pace::EC2,
            ordered: Mutex::default(),
        }
    }

    /// Launches hosts for these containers (bytes of memory each), once for each notice, and says so in the log.
    pub async fn help(&self, notice: &str, containers: &[u64]) {
        if containers.is_empty() || !self.ordered.lock().await.insert(notice.to_owned()) {
            return;
        }
        match self.launch(notice, containers).await {
            Ok(launched) => {
                let (instances, lacking) = (launched.instances.join(", "), launched.lacking.join("; "));
                info!(notice, instances, lacking, "instances are launched for what has no room elsewhere");
            }
            Err(NotLaunched::Others) => {
                warn!(notice, reason = NotLaunched::Others.to_string(), "no instance is launched yet");
                self.ordered.lock().await.remove(notice);
            }
            Err(failure) => {
                let failure = crate::migration::chain(&failure);
                error!(notice, failure, "no instance is launched for what has no room elsewhere");
            }
        }
    }

    /// The same.
    ///
    /// # Errors
    /// [`NotLaunched`].
    pub async fn launch(&self, notice: &str, containers: &[u64]) -> Result<Launched, NotLaunched> {
        let mut memory = self.memory.lock().await;
        let wanted = instances(containers, self.config.room);
        if wanted == 0 {
            return Err(NotLaunched::TooLarge { room: self.config.room });
        }
        if let Some(fleet) = &self.config.fleet {
            return self.launch_in_turn(fleet, notice, wanted, &mut memory).await;
        }
        let count = self.count(notice, &mut memory).await?;
        if !count.before.is_empty() {
            return Ok(Launched { instances: count.before, lacking: Vec::new() });
        }
        let order = self.order(notice, wanted, &count)?;
        let launched = self.give(order.clone()).await?;
        memory.remember(&order, &launched);
        Ok(launched)
    }

    async fn count(&self, notice: &str, memory: &mut Memory) -> Result<Count, NotLaunched> {
        let (key, value) = self.config.fleet.as_ref().map_or((TAG_HOST, &self.host), |fleet| (TAG_FLEET, fleet));
        let all = self.api.tagged(&self.config.region, key, value).await.map_err(NotLaunched::Uncounted)?;
        let now = Instant::now();
        let lately = &mut memory.lately;
        lately.retain(|(id, _, at)| now.duration_since(*at) < UNSEEN && all.iter().all(|one| one.id != *id));
        let living: Vec<&Tagged> = all.iter().filter(|one| lives(&one.state)).collect();
        let prices =
            living.iter().map(|one| price(one, self.config.max_price)).chain(lately.iter().map(|(_, price, _)| *price));
        let has = |one: &Tagged, key: &str, value: &str| one.tags.get(key).is_some_and(|is| is == value);
        let before = living.iter().filter(|one| has(one, TAG_CAUSE, notice) && has(one, TAG_HOST, &self.host));
        Ok(Count {
            price_micros: prices.fold(0, u64::saturating_add),
            living: living.len() + lately.len(),
            before: before.map(|one| one.id.clone()).collect(),
            known: all.iter().map(|one| &one.id).chain(lately.iter().map(|(id, ..)| id)).cloned().collect(),
        })
    }

    /// As much of what is wanted as the budget has left.
    fn order(&self, notice: &str, wanted: u32, count: &Count) -> Result<Order, NotLaunched> {
        let left = usize::try_from(self.config.max_instances).unwrap_or(usize::MAX).saturating_sub(count.living);
        let price_left = self.config.max_price.saturating_sub(count.price_micros);
        let number = wanted.min(u32::try_from(left).unwrap_or(u32::MAX));
        // Each of those that may live has the same part of the price, so that the last is as dear as the first.
        let part = self.config.max_price / u64::from(self.config.max_instances);
        let price = part.saturating_mul(number.into()).min(price_left);
        if number == 0 || price < u64::from(number) {
            let whose = if self.config.fleet.is_some() { "fleet" } else { "host" };
            return Err(NotLaunched::Budget { whose, instances: count.living, price_micros: count.price_micros });
        }
        let each = price / u64::from(number);
        let tags = [(TAG_HOST, self.host.clone()), (TAG_CAUSE, notice.to_owned()), (TAG_PRICE, each.to_string())];
        let fleet = self.config.fleet.clone().map(|fleet| (TAG_FLEET, fleet));
        Ok(Order {
            region: self.config.region.clone(),
            template: self.config.template.clone(),
            version: self.config.version.clone(),
            types: self.config.types.clone(),
            zones: self.config.zones.clone(),
            market: if self.config.market == Choice::OnDemand { Market::OnDemand } else { Market::Spot },
            count: number,
            max_price_micros: price,
            token: String::new(),
            tags: tags.into_iter().chain(fleet).map(|(key, value)| (key.to_owned(), value)).collect::<BTreeMap<_, _>>(),
        })
    }

    /// The order, in the one market and then in the other, if that is allowed.
    async fn give(&self, mut order: Order) -> Result<Launched, FleetError> {
        order.token = token(&self.host, &order.tags[TAG_CAUSE], order.market);
        match self.insist(&order).await {
            Err(failure) if failure.other_market_may_do() && self.config.market == Choice::SpotThenOnDemand => {
                warn!(%failure, "there are no spot instances; on-demand instances are launched instead");
                order.market = Market::OnDemand;
                order.token = token(&self.host, &order.tags[TAG_CAUSE], order.market);
                self.insist(&order).await
            }
            outcome => outcome,
        }
    }

    async fn insist(&self, order: &Order) -> Result<Launched, FleetError> {
        let mut outcome = self.api.launch(order).await;
        for _ in 1..ATTEMPTS {
            use spothop_aws::Error::{NoAnswer, Throttled, TimedOut};
            if !matches!(outcome, Err(FleetError::Call(NoAnswer { .. } | Throttled { .. } | TimedOut { .. }))) {
                break;
            }
            outcome = self.api.launch(order).await;
        }
        outcome
    }
}

impl Memory {
    fn remember(&mut self, order: &Order, launched: &Launched) {
        let (each, now) = (order.max_price_micros / u64::from(order.count), Instant::now());
        self.lately.extend(launched.instances.iter().map(|id| (id.clone(), each, now)));
    }
}

/// The containers of a plan that stay for want of room alone, by id: another host would do for them.
#[must_use]
pub fn without_room(plan: &Plan) -> Vec<&str> {
    plan.stays.iter().filter(|stay| lacks_room(stay)).map(|stay| stay.container.as_str()).collect()
}

/// A host that is away, or about to be, says nothing about another one. Any other reason than room would be that of a new one too.
fn lacks_room(stay: &Stay) -> bool {
    let away = |refusal: &Refusal| {
        matches!(
            refusal,
            Refusal::IsSource | Refusal::Unreachable { .. } | Refusal::UnderNotice { .. } | Refusal::Declines { .. }
        )
    };
    let room = |refusal: &Refusal| matches!(refusal, Refusal::NoMemory { .. } | Refusal::NoDisk { .. });
    stay.obstacles.is_empty()
        && stay.refusals.iter().all(|host| host.refusals.iter().any(away) || host.refusals.iter().all(room))
}

/// How many instances these containers need, the largest placed first, each on the first that has room left. Those that are larger than an
/// instance need none.
fn instances(containers: &[u64], room: u64) -> u32 {
    let mut sizes: Vec<u64> = containers.iter().copied().filter(|size| *size <= room).collect();
    sizes.sort_unstable_by(|one, other| other.cmp(one));
    let mut left: Vec<u64> = Vec::new();
    for size in sizes {
        match left.iter_mut().find(|left| **left >= size) {
            Some(left) => *left -= size,
            None => left.push(room - size),
        }
    }
    u32::try_from(left.len()).unwrap_or(u32::MAX)
}

/// What can be stopped is paid for again when it is started.
fn lives(state: &InstanceState) -> bool {
    !matches!(state, InstanceState::ShuttingDown | InstanceState::Terminated)
}

/// What an instance may cost; all that there is where its tag has been changed.
fn price(instance: &Tagged, all: u64) -> u64 {
    instance.tags.get(TAG_PRICE).and_then(|price| price.parse().ok()).unwrap_or(all)
}

/// The same for the same notice, also after a restart: 64 characters of ASCII at most ("Ensuring idempotency in Amazon EC2 API requests").
/// The end of a notice's id is what tells it from others.
fn token(host: &str, notice: &str, market: Market) -> String {
    let market = if market == Market::Spot { "spot" } else { "on-demand" };
    let plain: Vec<char> =
        format!("{host}-{notice}-{market}").chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    plain[plain.len().saturating_sub(64)..].iter().collect()
}

fn dollars(micros: u64) -> String {
    format!("{}.{:02}", micros / 1_000_000, micros % 1_000_000 / 10_000)
}

#[cfg(test)]
mod tests;
