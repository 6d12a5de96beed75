//! The lifecycle hook by which an Auto Scaling group waits for this host before it terminates it (`[notice.aws] lifecycle_hook`).
//!
//! From the Auto Scaling user guide, "Amazon EC2 Auto Scaling lifecycle hooks": an instance that its group takes out becomes `Terminating:Wait`
//! until the hook is completed, or its time is over, which a heartbeat begins anew. Then it becomes `Terminating:Proceed`, and is terminated.
//! All this is up to 48 h, or a hundred times the hook's time if that is less.
//!
//! | on this host | what the group hears |
//! |---|---|
//! | a container is on its way, or may yet find a host | a heartbeat, twice in the hook's time |
//! | only what cannot be moved | nothing: the group goes on when the hook's time is over |
//! | no container | the hook is completed |
//!
//! Only a notice of the group itself is answered, and only its hook of that name: others may do something else there.

use std::error::Error;
use std::future::{Future, ready};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};

use super::aws::outlook::is_scale_in;
use super::complaint::Complaint;
use super::{Acknowledge, Notice};
use crate::provider::Instance;

/// Between two heartbeats where nobody says how long the hook waits: half of the least that AWS allows.
const HALF_OF_THE_LEAST: Duration = Duration::from_secs(15);

/// Between two attempts: the instance becomes `Terminating:Wait` some seconds after its metadata service has told of it.
const AGAIN: Duration = Duration::from_secs(3);

/// Attempts at completing the hook, over two minutes. What fails for longer ends by the hook's own time.
const ATTEMPTS: u32 = 40;

/// Where an instance is in its group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The group's name.
    pub group: String,
    /// Its lifecycle state, such as `Terminating:Wait`.
    pub state: String,
}

/// A hook of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hook {
    /// It acts when instances are terminated, not when they are launched.
    pub terminating: bool,
    /// How long it waits for a heartbeat.
    pub timeout: Option<Duration>,
}

/// An instance that a hook may hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// Where.
    pub region: String,
    /// The group's name.
    pub group: String,
    /// The hook's name.
    pub hook: String,
    /// The instance's id.
    pub instance: String,
}

/// What is needed of Auto Scaling.
pub trait Groups: Send + Sync + 'static {
    /// Why it did not do it.
    type Error: Error + Send;

    /// In which group an instance is.
    fn member(&self, region: &str, instance: &str) -> impl Future<Output = Result<Option<Member>, Self::Error>> + Send;

    /// A group's hook, if it has one of that name.
    fn hook(&self, of: &Held) -> impl Future<Output = Result<Option<Hook>, Self::Error>> + Send;

    /// Has the hook wait anew; false when it does not wait.
    fn heartbeat(&self, of: &Held) -> impl Future<Output = Result<bool, Self::Error>> + Send;

    /// Has the group go on; false when it does not wait.
    fn complete(&self, of: &Held) -> impl Future<Output = Result<bool, Self::Error>> + Send;
}

#[cfg(feature = "aws")]
impl From<&Held> for spothop_aws::Waiting {
    fn from(Held { region, group, hook, instance }: &Held) -> Self {
        let [region, group, hook, instance] = [region, group, hook, instance].map(String::clone);
        Self { region, group, hook, instance }
    }
}

#[cfg(feature = "aws")]
impl Groups for spothop_aws::AutoScaling {
    type Error = spothop_aws::Error;

    async fn member(&self, region: &str, instance: &str) -> Result<Option<Member>, Self::Error> {
        let found = self.membership(region, instance).await?;
        Ok(found.map(|one| Member { group: one.group, state: one.state }))
    }

    async fn hook(&self, of: &Held) -> Result<Option<Hook>, Self::Error> {
        let found = spothop_aws::AutoScaling::hook(self, &of.region, &of.group, &of.hook).await?;
        let is_terminating = |transition: &str| transition == "autoscaling:EC2_INSTANCE_TERMINATING";
        Ok(found.map(|one| Hook { terminating: is_terminating(&one.transition), timeout: one.timeout }))
    }

    async fn heartbeat(&self, of: &Held) -> Result<bool, Self::Error> {
        spothop_aws::AutoScaling::heartbeat(self, &of.into()).await
    }

    async fn complete(&self, of: &Held) -> Result<bool, Self::Error> {
        spothop_aws::AutoScaling::complete(self, &of.into()).await
    }
}

/// Whether the hook could be held and completed if the group took this host out now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outlook {
    /// It could.
    Ready {
        /// The group's name.
        group: String,
        /// How long the hook waits for a heartbeat, in seconds; none where Auto Scaling does not say.
        timeout_seconds: Option<u64>,
    },
    /// This host is in no group, so that nobody waits for it.
    Alone {
        /// How that is known.
        reason: String,
    },
    /// It could not.
    Broken {
        /// Why.
        reason: String,
    },
}

/// Holds the hook while there is something to be moved, and completes it when there is nothing.
pub struct LifecycleHook<G>(Arc<Inner<G>>);

struct Inner<G> {
    groups: G,
    /// The hook's name.
    name: String,
    instance: Arc<OnceLock<Instance>>,
    /// Between two attempts.
    again: Duration,
    /// Locked by who speaks with Auto Scaling, so that nobody else does.
    pulse: Mutex<Pulse>,
}

#[derive(Debug, Default)]
struct Pulse {
    /// When the next heartbeat is due; none at the first.
    next: Option<Instant>,
    /// As it was found with the first heartbeat, and between which two to wait.
    found: Option<(Held, Duration)>,
    complaint: Complaint,
}

impl<G: Groups> LifecycleHook<G> {
    /// The hook of this name. Asks nothing yet: `instance` is known later.
    #[must_use]
    pub fn new(groups: G, name: &str, instance: Arc<OnceLock<Instance>>) -> Self {
        Self::patient(groups, name, instance, AGAIN)
    }

    fn patient(groups: G, name: &str, instance: Arc<OnceLock<Instance>>, again: Duration) -> Self {
        Self(Arc::new(Inner { groups, name: name.to_owned(), instance, again, pulse: Mutex::default() }))
    }

    /// Looks whether all is well. A hook that waits hears a heartbeat by that, which is also how the permission for one is tried.
    pub async fn examine(&self) -> Outlook {
        let inner = &self.0;
        let held = match inner.held().await {
            Ok((held, _)) => held,
            Err(Trouble::Alone(reason)) => return Outlook::Alone { reason },
            Err(trouble) => return Outlook::Broken { reason: trouble.to_string() },
        };
        let broken = |reason: String| Outlook::Broken { reason };
        let timeout = match inner.groups.hook(&held).await {
            Err(error) => return broken(chain(&error)),
            Ok(None) => return broken(format!("the group {} has no lifecycle hook {}", held.group, held.hook)),
            Ok(Some(Hook { terminating: false, .. })) => {
                return broken(format!(
                    "the hook {} of the group {} is not one for instances that end",
                    held.hook, held.group
                ));
            }
            Ok(Some(Hook { timeout, .. })) => timeout,
        };
        match inner.groups.heartbeat(&held).await {
            Err(error) => broken(chain(&error)),
            Ok(_) => Outlook::Ready { group: held.group, timeout_seconds: timeout.map(|timeout| timeout.as_secs()) },
        }
    }
}

/// Why nothing can be told to the group.
#[derive(Debug, thiserror::Error)]
enum Trouble<E: Error> {
    #[error("{0}")]
    Alone(String),
    #[error("{}", chain(.0))]
    Call(E),
}

impl<G: Groups> Inner<G> {
    /// Which instance, and in which state it is.
    async fn held(&self) -> Result<(Held, String), Trouble<G::Error>> {
        let Some(instance) = self.instance.get() else {
            return Err(Trouble::Alone("no metadata service says which instance of EC2 this host is".to_owned()));
        };
        let (region, id) = (instance.region(), instance.id());
        match self.groups.member(region, id).await.map_err(Trouble::Call)? {
            None => Err(Trouble::Alone(format!("the instance {id} is in no Auto Scaling group"))),
            Some(Member { group, state }) => {
                let [region, hook, instance] = [region, &self.name, id].map(str::to_owned);
                Ok((Held { region, group, hook, instance }, state))
            }
        }
    }

    /// A heartbeat; returns when the next one is due.
    async fn beat(&self, pulse: &mut Pulse) -> Result<Duration, Trouble<G::Error>> {
        let is_first = pulse.found.is_none();
        let (held, pause) = match pulse.found.take() {
            Some(found) => found,
            None => {
                let (held, _) = self.held().await?;
                // What is not known of the hook does not keep it from being held.
                let hook = self.groups.hook(&held).await.ok().flatten();
                let pause = hook.and_then(|hook| hook.timeout).map_or(HALF_OF_THE_LEAST, |timeout| timeout / 2);
                (held, pause)
            }
        };
        if !self.groups.heartbeat(&held).await.map_err(Trouble::Call)? {
            tracing::debug!(group = held.group, hook = held.hook, "the group does not wait for this host, or not yet");
            return Ok(self.again);
        }
        if is_first {
            tracing::info!(
                group = held.group,
                hook = held.hook,
                "the Auto Scaling group waits for this host's containers"
            );
        }
        pulse.found = Some((held, pause));
        Ok(pause)
    }

    async fn hold(&self, now: Instant) {
        let Ok(mut pulse) = self.pulse.try_lock() else { return };
        if pulse.next.is_some_and(|next| now < next) {
            return;
        }
        let pause = match self.beat(&mut pulse).await {
            Ok(pause) => {
                pulse.complaint.succeeded();
                pause
            }
            Err(trouble) => {
                complain(
                    &mut pulse.complaint,
                    "the Auto Scaling group is not told that this host needs time",
                    &trouble,
                );
                self.again
            }
        };
        pulse.next = Some(now + pause);
    }

    /// True when the group waits for nothing here any more.
    async fn complete(&self) -> Result<bool, Trouble<G::Error>> {
        let (held, state) = self.held().await?;
        if self.groups.complete(&held).await.map_err(Trouble::Call)? {
            tracing::info!(
                group = held.group,
                hook = held.hook,
                "the Auto Scaling group is told that it need not wait"
            );
            return Ok(true);
        }
        // It has gone on without us, or the hook is about to begin.
        let over = state.ends_with(":Proceed") || state.ends_with("Terminated");
        if over {
            tracing::info!(group = held.group, hook = held.hook, state, "the Auto Scaling group did not wait any more");
        }
        Ok(over)
    }

    async fn complete_in_the_end(&self, notice: &str) {
        let mut pulse = self.pulse.lock().await;
        for _ in 0..ATTEMPTS {
            match self.complete().await {
                Ok(true) => return,
                Ok(false) => {}
                Err(trouble) => {
                    complain(&mut pulse.complaint, "the Auto Scaling group is not told that it need not wait", &trouble)
                }
            }
            sleep(self.again).await;
        }
        tracing::warn!(
            notice,
            "the Auto Scaling group was never told that it need not wait; it waits for the hook's time"
        );
    }
}

impl<G: Groups> Acknowledge for LifecycleHook<G> {
    fn acknowledge(&self, notice: &Notice) -> BoxFuture<'static, ()> {
        if !is_scale_in(notice) {
            return Box::pin(ready(()));
        }
        let (inner, id) = (Arc::clone(&self.0), notice.id.clone());
        Box::pin(async move { inner.complete_in_the_end(&id).await })
    }

    fn hold(&self, notice: &Notice) -> BoxFuture<'static, ()> {
        if !is_scale_in(notice) {
            return Box::pin(ready(()));
        }
        let inner = Arc::clone(&self.0);
        Box::pin(async move { inner.hold(Instant::now()).await })
    }
}

fn complain(complaint: &mut Complaint, what: &str, trouble: &impl Error) {
    if complaint.failed(Instant::now()) {
        tracing::warn!("{what}, trying again: {trouble}");
    }
}

fn chain(error: &impl Error) -> String {
    crate::migration::chain(error)
}

#[cfg(test)]
mod tests {
    use std::sync::PoisonError;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use jiff::Timestamp;

    use super::*;
    use crate::notice::aws::outlook::{rebalance, scale_in};

    const ID: &str = "i-1234567890abcdef0";

    #[derive(Debug, Clone, Copy, thiserror::Error)]
    #[error("no permission")]
    struct Refused;

    /// A group whose hook waits from the third question on, when the instance is in it.
    #[derive(Debug, Default)]
    struct Fake {
        alone: bool,
        refusing: bool,
        hook: Option<Hook>,
        /// States, one question after the other; the last stays.
        states: Vec<&'static str>,
        asked: AtomicUsize,
        beats: AtomicUsize,
        completed: AtomicUsize,
        calls: std::sync::Mutex<Vec<Held>>,
    }

    impl Fake {
        fn state(&self) -> &'static str {
            let asked = self.asked.load(Ordering::Relaxed).saturating_sub(1);
            self.states[asked.min(self.states.len() - 1)]
        }

        fn call(&self, of: &Held, counter: &AtomicUsize) -> Result<bool, Refused> {
            self.calls.lock().unwrap_or_else(PoisonError::into_inner).push(of.clone());
            match (self.refusing, self.state()) {
                (true, _) => Err(Refused),
                (false, "Terminating:Wait") => {
                    counter.fetch_add(1, Ordering::Relaxed);
                    Ok(true)
                }
                (false, _) => Ok(false),
            }
        }
    }

    impl Groups for Arc<Fake> {
        type Error = Refused;

        async fn member(&self, _: &str, instance: &str) -> Result<Option<Member>, Refused> {
            assert_eq!(instance, ID);
            self.asked.fetch_add(1, Ordering::Relaxed);
            let (group, state) = ("spot".to_owned(), self.state().to_owned());
            Ok((!self.alone).then_some(Member { group, state }))
        }

        async fn hook(&self, of: &Held) -> Result<Option<Hook>, Refused> {
            assert_eq!(of.hook, "drain");
            Ok(self.hook.clone())
        }

        async fn heartbeat(&self, of: &Held) -> Result<bool, Refused> {
            self.call(of, &self.beats)
        }

        async fn complete(&self, of: &Held) -> Result<bool, Refused> {
            self.call(of, &self.completed)
        }
    }

    fn hook(fake: Fake) -> (Arc<Fake>, LifecycleHook<Arc<Fake>>) {
        let fake = Arc::new(fake);
        let instance = Instance::aws("123456789012", "eu-central-1", ID).unwrap();
        let instance = Arc::new(OnceLock::from(instance));
        let hook = LifecycleHook::patient(Arc::clone(&fake), "drain", instance, Duration::from_millis(1));
        (fake, hook)
    }

    fn waiting() -> Fake {
        let hook = Some(Hook { terminating: true, timeout: Some(Duration::from_secs(60)) });
        Fake { hook, states: vec!["Terminating:Wait"], ..Fake::default() }
    }

    async fn hold_every_three_seconds(hook: &LifecycleHook<Arc<Fake>>, times: u32) {
        let start = Instant::now();
        for time in 0..=times {
            hook.0.hold(start + Duration::from_secs(3) * time).await;
        }
    }

    fn notice() -> Notice {
        scale_in(ID, Timestamp::UNIX_EPOCH)
    }

    #[tokio::test]
    async fn the_heartbeat_comes_twice_in_the_hooks_time_however_often_it_is_held() {
        let (fake, hook) = hook(waiting());
        hold_every_three_seconds(&hook, 100).await;
        // After 0, 30, 60, … 300 s.
        assert_eq!(fake.beats.load(Ordering::Relaxed), 11);
        let calls = fake.calls.lock().unwrap();
        assert_eq!((calls[0].group.as_str(), calls[0].region.as_str()), ("spot", "eu-central-1"));
    }

    #[tokio::test]
    async fn a_hook_of_which_nobody_says_how_long_it_waits_is_held_often_enough_for_the_shortest() {
        let (fake, hook) = hook(Fake { hook: None, ..waiting() });
        hold_every_three_seconds(&hook, 10).await;
        assert_eq!(fake.beats.load(Ordering::Relaxed), 3, "after 0, 15 and 30 s");
    }

    #[tokio::test]
    async fn a_hook_that_does_not_wait_yet_is_asked_until_it_does() {
        let states = vec!["InService", "Terminating", "Terminating", "Terminating:Wait"];
        let (fake, hook) = hook(Fake { states, ..waiting() });
        hook.acknowledge(&notice()).await;
        assert_eq!(fake.completed.load(Ordering::Relaxed), 1);
        assert_eq!(fake.asked.load(Ordering::Relaxed), 4);
    }

    #[tokio::test]
    async fn a_group_that_went_on_by_itself_is_left_in_peace_and_one_that_refuses_is_asked_for_a_while() {
        let (fake, hook) = hook(Fake { states: vec!["Terminating:Proceed"], ..waiting() });
        hook.acknowledge(&notice()).await;
        assert_eq!((fake.completed.load(Ordering::Relaxed), fake.asked.load(Ordering::Relaxed)), (0, 1));
        let (fake, hook) = self::hook(Fake { refusing: true, ..waiting() });
        hook.acknowledge(&notice()).await;
        assert_eq!(fake.asked.load(Ordering::Relaxed), ATTEMPTS as usize);
    }

    #[tokio::test]
    async fn other_notices_are_not_the_groups() {
        let (fake, hook) = hook(waiting());
        let other = Notice { id: format!("aws:{ID}:terminate"), ..notice() };
        for notice in [other, rebalance(ID, Timestamp::UNIX_EPOCH)] {
            hook.hold(&notice).await;
            hook.acknowledge(&notice).await;
        }
        assert_eq!(fake.asked.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn what_keeps_it_from_being_held_is_known_beforehand() {
        let in_service = || Fake { states: vec!["InService"], ..waiting() };
        let ready = Outlook::Ready { group: "spot".to_owned(), timeout_seconds: Some(60) };
        assert_eq!(hook(in_service()).1.examine().await, ready);
        let alone = hook(Fake { alone: true, ..in_service() }).1.examine().await;
        assert!(matches!(alone, Outlook::Alone { .. }), "{alone:?}");
        let launching = Some(Hook { terminating: false, timeout: None });
        for (fake, word) in [
            (Fake { hook: None, ..in_service() }, "has no lifecycle hook drain"),
            (Fake { hook: launching, ..in_service() }, "not one for instances that end"),
            (Fake { refusing: true, ..in_service() }, "no permission"),
        ] {
            let outlook = hook(fake).1.examine().await;
            assert!(matches!(&outlook, Outlook::Broken { reason } if reason.contains(word)), "{outlook:?}");
        }
    }
}
