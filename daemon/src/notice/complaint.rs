//! Saying that something does not work without saying it every second.

use std::time::Duration;

use tokio::time::Instant;

/// Time between two log lines about the same trouble.
const REPEAT: Duration = Duration::from_secs(60);

/// Decides which failures and recoveries of something polled are worth a log line.
#[derive(Debug, Default)]
pub(crate) struct Complaint {
    /// When the last line about a failure was written.
    said: Option<Instant>,
    /// Failures since the last success.
    failures: u64,
    /// A failure since the last success was logged.
    open: bool,
}

impl Complaint {
    /// Counts a failure; true when it is to be logged: the first one, and then one each minute.
    pub(crate) fn failed(&mut self, now: Instant) -> bool {
        self.failures += 1;
        let due = self.said.is_none_or(|said| now.duration_since(said) >= REPEAT);
        if due {
            self.said = Some(now);
            self.open = true;
        }
        due
    }

    /// Failures since the last success.
    pub(crate) fn failures(&self) -> u64 {
        self.failures
    }

    /// Ends a row of failures. Their number, when that row was logged and its end should be too.
    pub(crate) fn succeeded(&mut self) -> Option<u64> {
        let failures = std::mem::take(&mut self.failures);
        std::mem::take(&mut self.open).then_some(failures)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_the_first_failure_and_then_one_a_minute() {
        let start = Instant::now();
        let mut complaint = Complaint::default();
        let said = (0..180).filter(|second| complaint.failed(start + Duration::from_secs(*second)));
        assert_eq!(said.collect::<Vec<_>>(), [0, 60, 120]);
        assert_eq!(complaint.succeeded(), Some(180));
        assert_eq!(complaint.succeeded(), None);
    }

    #[test]
    fn every_second_answer_failing_is_not_a_line_every_second() {
        let start = Instant::now();
        let mut complaint = Complaint::default();
        let mut lines = 0;
        for second in 0..60 {
            let failed = second % 2 == 0 && complaint.failed(start + Duration::from_secs(second));
            let recovered = second % 2 == 1 && complaint.succeeded().is_some();
            lines += usize::from(failed) + usize::from(recovered);
        }
        assert_eq!(lines, 2);
    }
}
