//! With an imitation of logind at the other end of a socket. The real one is in `scenarios`: `clouds::*`.

use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream as StdStream;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::net::UnixStream;
use zbus::connection::Builder;
use zbus::object_server::SignalEmitter;
use zbus::{Guid, interface};

use super::*;
use crate::notice::testing::{next, noticed};

/// logind, as far as it is asked.
struct Logind {
    going_down: bool,
    /// The far end of every lock given out.
    locks: mpsc::UnboundedSender<StdStream>,
    /// Hears of every question whether the machine goes down.
    asked: mpsc::UnboundedSender<()>,
}

#[interface(name = "org.freedesktop.login1.Manager")]
impl Logind {
    fn inhibit(&self, what: &str, _who: &str, _why: &str, mode: &str) -> OwnedFd {
        assert_eq!((what, mode), ("shutdown", "delay"));
        let (ours, theirs) = StdStream::pair().unwrap();
        let _ = self.locks.send(ours);
        OwnedFd::from(std::os::fd::OwnedFd::from(theirs))
    }

    #[zbus(property, name = "InhibitDelayMaxUSec")]
    fn inhibit_delay_max_usec(&self) -> u64 {
        30_000_000
    }

    #[zbus(property)]
    fn preparing_for_shutdown(&self) -> bool {
        let _ = self.asked.send(());
        self.going_down
    }

    #[zbus(signal)]
    async fn prepare_for_shutdown(emitter: &SignalEmitter<'_>, start: bool) -> zbus::Result<()>;
}

struct Machine {
    bus: Connection,
    locks: mpsc::UnboundedReceiver<StdStream>,
    asked: mpsc::UnboundedReceiver<()>,
    acknowledger: Arc<dyn Acknowledge>,
    events: mpsc::Receiver<NoticeEvent>,
}

impl Machine {
    async fn new() -> Self {
        let (theirs, ours) = UnixStream::pair().unwrap();
        let (sender, locks) = mpsc::unbounded_channel();
        let (hears, asked) = mpsc::unbounded_channel();
        let logind = Logind { going_down: false, locks: sender, asked: hears };
        let server =
            Builder::unix_stream(theirs).server(Guid::generate()).unwrap().p2p().serve_at(PATH, logind).unwrap();
        let (server, client) = tokio::join!(server.build(), Builder::unix_stream(ours).p2p().build());
        let client = client.unwrap();
        let source = ShutdownSource::at(
            "a",
            Box::new(move || {
                let client = client.clone();
                Box::pin(async move { Ok(client) })
            }),
        );
        let acknowledger = source.acknowledger().expect("a lock to close");
        let (sender, events) = mpsc::channel(16);
        tokio::spawn(Box::new(source).run(sender));
        Self { bus: server.unwrap(), locks, asked, acknowledger, events }
    }

    /// What logind says of itself, and the signal for it.
    async fn goes_down(&self, start: bool, signal: bool) {
        let logind = self.bus.object_server().interface::<_, Logind>(PATH).await.unwrap();
        logind.get_mut().await.going_down = start;
        Logind::prepare_for_shutdown(logind.signal_emitter(), signal).await.unwrap();
    }
}

/// Whether the other end of a lock is open.
fn is_held(lock: &StdStream) -> bool {
    let mut descriptors = [PollFd::new(lock.as_fd(), PollFlags::POLLIN)];
    poll(&mut descriptors, PollTimeout::ZERO).unwrap() == 0
}

#[tokio::test]
async fn a_shutdown_is_a_notice_and_waits_until_the_host_is_empty() {
    let mut machine = Machine::new().await;
    let lock = machine.locks.recv().await.expect("a lock");
    machine.goes_down(true, true).await;
    let notice = noticed(&mut machine.events).await;
    assert_eq!((notice.id.as_str(), notice.cloud), ("machine:a:stop", Cloud::Machine));
    assert_eq!(notice.lead_time(notice.received), Some(Duration::from_secs(30)));
    assert!(is_held(&lock));
    // Not ours to answer.
    machine.acknowledger.acknowledge(&Notice { cloud: Cloud::Gcp, ..notice.clone() }).await;
    assert!(is_held(&lock));
    machine.acknowledger.acknowledge(&notice).await;
    assert!(!is_held(&lock), "the shutdown waits for nothing");
}

#[tokio::test]
async fn a_shutdown_that_is_called_off_is_over_and_the_next_one_waits_again() {
    let mut machine = Machine::new().await;
    let lock = machine.locks.recv().await.expect("a lock");
    machine.goes_down(true, true).await;
    let notice = noticed(&mut machine.events).await;
    machine.acknowledger.acknowledge(&notice).await;
    assert!(!is_held(&lock));
    machine.goes_down(false, false).await;
    assert_eq!(next(&mut machine.events).await, NoticeEvent::Cancelled { id: notice.id.clone() });
    let lock = machine.locks.recv().await.expect("another lock");
    machine.goes_down(true, true).await;
    assert_eq!(noticed(&mut machine.events).await.id, notice.id);
    assert!(is_held(&lock));
}

#[tokio::test]
async fn a_signal_that_logind_does_not_stand_by_is_no_notice() {
    let mut machine = Machine::new().await;
    let _lock = machine.locks.recv().await.expect("a lock");
    machine.asked.recv().await.expect("a look at the beginning");
    machine.goes_down(false, true).await;
    machine.asked.recv().await.expect("a look because of the signal");
    machine.goes_down(true, true).await;
    noticed(&mut machine.events).await;
    machine.goes_down(false, false).await;
    // One notice and its end: the first signal was none.
    assert!(matches!(next(&mut machine.events).await, NoticeEvent::Cancelled { .. }));
}
