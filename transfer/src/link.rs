//! How fast the link of a session is, as far as its sender can see.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A measurement spans so many chunks: enough that every connection had its turn to wait.
const WINDOW: u32 = 8;
/// Weight of the newest measurement, of 1: after a change, three windows make most of the difference.
const NEWEST: f64 = 0.4;

/// What the data connections of a session together know of their link, over all transfers that this side sends.
///
/// The link is what keeps a sender waiting. While writes wait, be it all connections at once (files) or one after the other (a stream), the
/// time belongs to the bytes that go out; a sender that is busy with its own work and never waits has a link that costs nothing.
#[derive(Debug)]
pub(crate) struct Link {
    /// How many chunks this side can compress at the same time.
    pub(crate) compressing: f64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// End of the last window.
    begin: Option<Instant>,
    /// Time that writes took since then, all connections together.
    waited: Duration,
    bytes: usize,
    chunks: u32,
    /// In seconds, smoothed over some windows.
    time_per_byte: Option<f64>,
}

impl Link {
    /// A link of so many connections, not measured yet.
    pub(crate) fn new(connections: usize) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self { compressing: connections.min(cores) as f64, state: Mutex::default() }
    }

    /// Seconds that a byte keeps the link busy; `None` before the first measurement.
    pub(crate) fn time_per_byte(&self) -> Option<f64> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).time_per_byte
    }

    /// A chunk of so many bytes was written; that took so long and ended now.
    pub(crate) fn written(&self, bytes: usize, took: Duration, now: Instant) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let begin = *state.begin.get_or_insert_with(|| now.checked_sub(took).unwrap_or(now));
        state.waited += took;
        state.bytes += bytes;
        state.chunks += 1;
        if state.chunks == WINDOW {
            let busy = state.waited.min(now.saturating_duration_since(begin));
            let time = busy.as_secs_f64() / state.bytes.max(1) as f64;
            let time = state.time_per_byte.map_or(time, |smooth| smooth + NEWEST * (time - smooth));
            *state = State { begin: Some(now), time_per_byte: Some(time), ..State::default() };
        }
    }

    /// Sets the measurement.
    #[cfg(test)]
    pub(crate) fn assume(&self, time_per_byte: f64) {
        self.state.lock().unwrap().time_per_byte = Some(time_per_byte);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes windows full of chunks of 1,000 bytes: one ends every `step`, each having waited for `took`.
    fn measure(link: &Link, start: Instant, windows: u32, step: Duration, took: Duration) -> Instant {
        (0..windows * WINDOW).fold(start, |now, _| {
            let now = now + step;
            link.written(1000, took, now);
            now
        })
    }

    fn nanoseconds_per_byte(link: &Link) -> f64 {
        (link.time_per_byte().unwrap() * 1e9).round()
    }

    #[test]
    fn nothing_is_known_before_the_first_window() {
        let link = Link::new(4);
        (1..WINDOW).for_each(|_| link.written(1000, Duration::from_micros(1), Instant::now()));
        assert_eq!(link.time_per_byte(), None);
    }

    #[test]
    fn one_waiting_after_the_other_or_all_at_once_is_the_same_link() {
        let (stream, files) = (Link::new(4), Link::new(4));
        let step = Duration::from_micros(8);
        measure(&stream, Instant::now(), 1, step, step);
        measure(&files, Instant::now(), 30, step, 4 * step);
        assert_eq!(nanoseconds_per_byte(&stream), 8.0);
        assert_eq!(nanoseconds_per_byte(&files), 8.0);
    }

    #[test]
    fn a_sender_busy_with_itself_does_not_blame_the_link() {
        let link = Link::new(4);
        measure(&link, Instant::now(), 1, Duration::from_micros(8), Duration::from_micros(1));
        assert_eq!(nanoseconds_per_byte(&link), 1.0);
    }

    #[test]
    fn a_change_is_noticed_within_some_windows() {
        let link = Link::new(4);
        let (fast, slow) = (Duration::from_micros(1), Duration::from_micros(8));
        let now = measure(&link, Instant::now(), 10, fast, fast);
        measure(&link, now, 3, slow, slow);
        assert_eq!(nanoseconds_per_byte(&link), 6.0, "most of the way from 1 to 8");
    }
}
