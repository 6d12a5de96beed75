//! The watch over both hosts for a whole run: where the server runs, every few milliseconds, and whether ever in two places.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::inside::{Inside, Running};

/// Between two looks: a restored server answers within some ten milliseconds, and two that run do so for longer.
const INTERVAL: Duration = Duration::from_millis(10);
/// Changes that are kept; a run has some ten.
const KEPT: usize = 500;

/// A change of what runs where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// When it was seen.
    pub at: Timestamp,
    /// The host.
    pub host: String,
    /// The server's processes that run there from now on.
    pub running: Vec<i32>,
}

/// What was seen.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Watch {
    /// How often both hosts were looked at.
    pub samples: u64,
    /// The longest time between two looks, in milliseconds.
    pub longest_ms: f64,
    /// Samples in which it ran on both.
    pub doubled: u64,
    /// When and where first.
    pub first_doubled: Option<String>,
    /// What ran where, in order.
    pub changes: Vec<Change>,
}

impl Watch {
    /// Whether the server ran at `host` as two processes, one after the other: it was started anew there.
    #[must_use]
    pub fn saw_another_at(&self, host: &str) -> bool {
        let mut ran = self.changes.iter().filter(|change| change.host == host && !change.running.is_empty());
        let Some(first) = ran.next() else { return false };
        ran.any(|change| change.running.iter().all(|pid| !first.running.contains(pid)))
    }
}

/// A thread that looks.
#[derive(Debug)]
pub struct Sampler {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Watch>>,
    thread: Option<JoinHandle<()>>,
}

impl Sampler {
    /// Begins to look at two hosts. Their cgroups keep their names over a loss of power.
    #[must_use]
    pub fn start(hosts: [Inside; 2]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::new(Mutex::new(Watch::default()));
        let thread = thread::spawn({
            let (stop, seen) = (Arc::clone(&stop), Arc::clone(&seen));
            move || look(&hosts, &stop, &seen)
        });
        Self { stop, seen, thread: Some(thread) }
    }

    /// Ends it, and returns what was seen.
    #[must_use]
    pub fn finish(mut self) -> Watch {
        self.end();
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // it panics on nothing
        }
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.end();
    }
}

fn look(hosts: &[Inside; 2], stop: &AtomicBool, seen: &Mutex<Watch>) {
    let mut last: [Vec<Running>; 2] = Default::default();
    let mut before = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        let now = hosts.each_ref().map(Inside::running);
        // The two are looked at one after the other: it may have moved in between. So the first must be seen once more, the same
        // process, for both to have run at the moment of the second look.
        let doubled = now.iter().all(|running| !running.is_empty())
            && hosts[0].running().iter().any(|running| now[0].contains(running));
        let mut watch = seen.lock().unwrap_or_else(PoisonError::into_inner);
        watch.samples += 1;
        watch.longest_ms = watch.longest_ms.max(before.elapsed().as_secs_f64() * 1000.0);
        before = Instant::now();
        if doubled {
            watch.doubled += 1;
            watch.first_doubled.get_or_insert_with(|| format!("at {}: {now:?}", Timestamp::now()));
        }
        for ((host, now), last) in hosts.iter().zip(&now).zip(&last) {
            if now != last && watch.changes.len() < KEPT {
                let running = now.iter().map(|running| running.pid).collect();
                watch.changes.push(Change { at: Timestamp::now(), host: host.host.clone(), running });
            }
        }
        drop(watch);
        last = now;
        thread::sleep(INTERVAL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_was_started_anew_is_another_process() {
        let change = |host: &str, running: &[i32]| Change {
            at: Timestamp::UNIX_EPOCH,
            host: host.to_owned(),
            running: running.to_vec(),
        };
        let frozen = [change("a", &[7]), change("a", &[]), change("a", &[7, 8]), change("b", &[3])];
        let watch = Watch { changes: frozen.to_vec(), ..Watch::default() };
        assert!(!watch.saw_another_at("a") && !watch.saw_another_at("b") && !watch.saw_another_at("c"));
        let ended = [change("a", &[7]), change("a", &[]), change("a", &[9]), change("a", &[]), change("b", &[3])];
        let watch = Watch { changes: ended.to_vec(), ..Watch::default() };
        assert!(watch.saw_another_at("a") && !watch.saw_another_at("b"));
    }
}
