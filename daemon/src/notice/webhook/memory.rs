//! What was answered to events, so that one that comes again is not heeded again.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

/// Twice as long as a signature of Standard Webhooks can be old or early.
const KEPT: Duration = Duration::from_secs(600);

/// More at once are no sender's; the oldest go.
const MOST: usize = 10_000;

/// Answers by sender and event id.
#[derive(Debug)]
pub(super) struct Memory<T> {
    known: HashMap<(String, String), T>,
    order: VecDeque<(Instant, (String, String))>,
}

impl<T> Default for Memory<T> {
    fn default() -> Self {
        Self { known: HashMap::new(), order: VecDeque::new() }
    }
}

impl<T> Memory<T> {
    /// What was answered to this event.
    pub(super) fn recall(&mut self, sender: &str, event: &str, now: Instant) -> Option<&T> {
        while let Some((_, key)) =
            self.order.pop_front_if(|(at, _)| now.duration_since(*at) >= KEPT || self.known.len() > MOST)
        {
            self.known.remove(&key);
        }
        self.known.get(&(sender.to_owned(), event.to_owned()))
    }

    /// Keeps an answer to an event that was not known.
    pub(super) fn keep(&mut self, sender: &str, event: &str, answer: T, now: Instant) {
        let key = (sender.to_owned(), event.to_owned());
        self.order.push_back((now, key.clone()));
        self.known.insert(key, answer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_kept_for_ten_minutes_for_its_sender_and_event() {
        let start = Instant::now();
        let mut memory = Memory::default();
        assert_eq!(memory.recall("s", "1", start), None);
        memory.keep("s", "1", "first", start);
        memory.keep("s", "2", "second", start + Duration::from_secs(300));
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(memory.recall("s", "1", at(599)), Some(&"first"));
        assert_eq!(memory.recall("other", "1", at(599)), None);
        assert_eq!(memory.recall("s", "1", at(600)), None);
        assert_eq!(memory.recall("s", "2", at(600)), Some(&"second"));
    }

    #[test]
    fn there_is_an_end_to_what_is_kept() {
        let now = Instant::now();
        let mut memory = Memory::default();
        for event in 0..MOST + 10 {
            assert_eq!(memory.recall("s", &event.to_string(), now), None);
            memory.keep("s", &event.to_string(), (), now);
        }
        memory.recall("s", "x", now);
        assert_eq!((memory.known.len(), memory.order.len()), (MOST, MOST));
    }
}
