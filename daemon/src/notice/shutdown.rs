//! The machine itself: somebody shuts it down, by a command, by its power button (which clouds press too), or by a timer.
//!
//! From systemd's documentation, org.freedesktop.login1(5) and "Inhibitor Locks": who holds a lock on `shutdown` in mode `delay` is told by the
//! signal `PrepareForShutdown(true)` and has `InhibitDelayMaxUSec` (microseconds; 5 s unless logind.conf(5) says otherwise) until the machine
//! goes down all the same; it goes down as soon as every such lock is closed. `PrepareForShutdown(false)` says that it does not.
//! The property `PreparingForShutdown` has the same value.
//!
//! A daemon that is told to stop is no such case: SIGTERM comes with every restart of the service, and containers live through that.
//!
//! Anybody may send a signal on the system's bus. So it is only what makes us look: the word that counts is logind's property.

#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use zbus::message::Type;
use zbus::zvariant::{OwnedFd, OwnedValue};
use zbus::{Connection, MatchRule, MessageStream};

use super::complaint::Complaint;
use super::polling::InForce;
use super::{Acknowledge, Action, Certainty, Cloud, Notice, NoticeEvent, NoticeSource};

const LOGIND: &str = "org.freedesktop.login1";
const PATH: &str = "/org/freedesktop/login1";
const MANAGER: &str = "org.freedesktop.login1.Manager";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";
/// Shown to whoever wonders what a shutdown waits for.
const WHY: &str = "containers move to other hosts first";
/// Time to the next try when there is no bus, or no logind.
const PAUSE: Duration = Duration::from_secs(5);
/// With less than this hardly any container gets away.
const ENOUGH: Duration = Duration::from_secs(20);

type Connect = Box<dyn Fn() -> BoxFuture<'static, zbus::Result<Connection>> + Send + Sync>;

/// The lock that holds a shutdown back, while there is one.
type Lock = Arc<Mutex<Option<OwnedFd>>>;

/// Holds shutdowns back, and tells of them.
pub(super) struct ShutdownSource {
    host: String,
    connect: Connect,
    lock: Lock,
}

impl ShutdownSource {
    /// A source that holds nothing back yet. Its notices carry the name of this host.
    pub(super) fn new(host: &str) -> Self {
        Self::at(host, Box::new(|| Box::pin(Connection::system())))
    }

    fn at(host: &str, connect: Connect) -> Self {
        Self { host: host.to_owned(), connect, lock: Arc::default() }
    }

    /// Until the bus is gone, or nobody listens any more.
    async fn watch(&self, in_force: &mut InForce, events: &mpsc::Sender<NoticeEvent>) -> zbus::Result<()> {
        let bus = (self.connect)().await?;
        let rule = MatchRule::builder()
            .msg_type(Type::Signal)
            .path(PATH)?
            .interface(MANAGER)?
            .member("PrepareForShutdown")?
            .build();
        // Listened to before anything is looked at, so that nothing happens in between.
        let mut signals = MessageStream::for_match_rule(rule, &bus, None).await?;
        let longest = Duration::from_micros(property(&bus, "InhibitDelayMaxUSec").await?.try_into()?);
        if longest < ENOUGH {
            tracing::warn!(
                "a shutdown waits for {} s at most while containers leave; set InhibitDelayMaxSec in logind.conf",
                longest.as_secs()
            );
        }
        loop {
            let going_down = bool::try_from(property(&bus, "PreparingForShutdown").await?)?;
            let notices = match in_force.first() {
                _ if !going_down => Vec::new(),
                Some(known) => vec![known.clone()],
                None => vec![self.notice(longest)],
            };
            if !going_down {
                self.hold(&bus).await?;
            }
            if in_force.tell(notices, events).await.is_err() {
                return Ok(());
            }
            match signals.next().await {
                Some(signal) => drop(signal?),
                None => return Err(zbus::Error::InputOutput(Arc::new(std::io::ErrorKind::ConnectionReset.into()))),
            }
        }
    }

    /// Takes the lock, unless it is held.
    async fn hold(&self, bus: &Connection) -> zbus::Result<()> {
        if locked(&self.lock).is_some() {
            return Ok(());
        }
        let question = ("shutdown", "spothop", WHY, "delay");
        let reply = bus.call_method(Some(LOGIND), PATH, Some(MANAGER), "Inhibit", &question).await?;
        *locked(&self.lock) = Some(reply.body().deserialize()?);
        tracing::info!("a shutdown of this machine moves its containers first");
        Ok(())
    }

    fn notice(&self, longest: Duration) -> Notice {
        let received = Timestamp::now();
        // A reboot is announced in the same way. Neither takes the disks.
        let action = Action::Stop;
        Notice {
            id: format!("{}:{}:{action}", Cloud::Machine, self.host),
            cloud: Cloud::Machine,
            instance: self.host.clone(),
            action,
            certainty: Certainty::Certain,
            deadline: received.checked_add(longest).ok(),
            received,
        }
    }
}

async fn property(bus: &Connection, name: &str) -> zbus::Result<OwnedValue> {
    let reply = bus.call_method(Some(LOGIND), PATH, Some(PROPERTIES), "Get", &(MANAGER, name)).await?;
    reply.body().deserialize()
}

fn locked(lock: &Lock) -> std::sync::MutexGuard<'_, Option<OwnedFd>> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

impl NoticeSource for ShutdownSource {
    fn name(&self) -> &'static str {
        "machine"
    }

    fn run(self: Box<Self>, events: mpsc::Sender<NoticeEvent>) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let watch = async {
                let mut complaint = Complaint::default();
                let mut in_force = InForce::default();
                loop {
                    match self.watch(&mut in_force, &events).await {
                        Ok(()) => return,
                        Err(error) if complaint.failed(Instant::now()) => {
                            tracing::warn!(
                                "a shutdown cannot be held back, as logind cannot be asked, trying on: {error}"
                            );
                        }
                        Err(_) => {}
                    }
                    sleep(PAUSE).await;
                }
            };
            tokio::select! {
                () = events.closed() => {}
                () = watch => {}
            }
        })
    }

    fn acknowledger(&self) -> Option<Arc<dyn Acknowledge>> {
        Some(Arc::new(Release(Arc::clone(&self.lock))))
    }
}

/// Lets the shutdown go on.
struct Release(Lock);

impl Acknowledge for Release {
    fn acknowledge(&self, notice: &Notice) -> BoxFuture<'static, ()> {
        if notice.cloud == Cloud::Machine && locked(&self.0).take().is_some() {
            tracing::info!(notice = notice.id, "the shutdown goes on");
        }
        Box::pin(std::future::ready(()))
    }
}
