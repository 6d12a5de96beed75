//! Asking on about one instance, and what all the answers together mean.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{Fate, Instance, Provider, ProviderError};
use crate::migration::{chain, protocol};

/// Time between two questions to a cloud, at least and at most. Its answer changes within a minute or so at best, and all hosts
/// of an account share one rate of requests; AWS recommends to begin with "a couple of seconds" and to go up from there.
pub const PACE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(30));

/// An instance counts as gone when its account does not know it for this long. AWS: "increasing gradually up to five minutes of
/// wait time" (Amazon EC2 Developer Guide, "Eventual consistency in the Amazon EC2 API"). Nobody waits for it in vain: an instance
/// that has just been terminated is shown as such for an hour, and after an hour five minutes do not matter.
pub const ABSENCE: Duration = Duration::from_secs(5 * 60);

/// Answers of absence that are needed besides: a daemon that was stopped or a machine that slept has waited, but not looked.
const ABSENCES: u32 = 5;

/// What is known of an instance by its cloud's word.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "word", rename_all = "kebab-case")]
pub enum Word {
    /// It does not run, and never will again: the only word that lets a container run elsewhere.
    Gone {
        /// How that is known, for the operator.
        reason: String,
    },
    /// It does not run now, and may be started again with its disks and its journal.
    Stopped {
        /// The cloud's own name of the state.
        state: String,
    },
    /// It runs, or its programs may.
    MayRun {
        /// The cloud's own name of the state.
        state: String,
    },
    /// Nobody says.
    Unknown {
        /// Why not, and what to do about it, for the operator.
        reason: String,
    },
}

impl Word {
    /// Whether the instance can never run again.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::Gone { .. })
    }
}

/// As the protocol's decisions take it.
impl From<&Word> for protocol::Instance {
    fn from(word: &Word) -> Self {
        match word {
            Word::Gone { .. } => Self::Gone,
            Word::Stopped { .. } => Self::Stopped,
            Word::MayRun { .. } => Self::MayRun,
            Word::Unknown { .. } => Self::Unknown,
        }
    }
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gone { reason } => write!(f, "gone for good: {reason}"),
            Self::Stopped { state } => write!(f, "{state}: does not run, but may be started again"),
            Self::MayRun { state } => write!(f, "{state}: its programs may run"),
            Self::Unknown { reason } => write!(f, "not known: {reason}"),
        }
    }
}

/// Questions about one instance. Kept for as long as an answer is needed.
pub struct Inquiry {
    provider: Option<Arc<dyn Provider>>,
    instance: Option<Instance>,
    /// When to ask next; none before the first question.
    next: Option<Instant>,
    pause: Duration,
    absence: Absence,
    last: Option<Word>,
}

impl Inquiry {
    pub(super) fn new(provider: Option<Arc<dyn Provider>>, instance: Option<Instance>) -> Self {
        Self { provider, instance, next: None, pause: PACE.0, absence: Absence::default(), last: None }
    }

    /// Asks the cloud and returns its word; between two questions ([`PACE`]) the last one again, at once. Never fails: what keeps the cloud
    /// from answering is in the word.
    ///
    /// Safe to cancel; the question is then asked again.
    pub async fn word(&mut self) -> Word {
        self.word_by(Instant::now).await
    }

    async fn word_by(&mut self, clock: impl Fn() -> Instant) -> Word {
        let Some(instance) = &self.instance else {
            return Word::Unknown { reason: "the source did not say which instance of a cloud it is".to_owned() };
        };
        let Some(provider) = &self.provider else {
            let cloud = instance.cloud();
            let reason = format!(
                "{instance} cannot be asked about: [provider.{cloud}] is off on this host, or spothop was built without it"
            );
            return Word::Unknown { reason };
        };
        let now = clock();
        if let (Some(next), Some(last)) = (self.next, &self.last)
            && now < next
        {
            return last.clone();
        }
        let answer = provider.ask(instance).await;
        let now = clock();
        self.next = Some(now + self.pause);
        self.pause = (self.pause * 2).min(PACE.1);
        let word = self.absence.digest(instance, answer, now);
        self.last = Some(word.clone());
        word
    }
}

/// For how long an instance has been absent without a break.
#[derive(Debug, Default)]
struct Absence {
    since: Option<Instant>,
    answers: u32,
}

impl Absence {
    /// What an answer means after all those before it. No answer neither breaks an absence nor adds to it.
    fn digest(&mut self, instance: &Instance, answer: Result<Fate, ProviderError>, now: Instant) -> Word {
        let fate = match answer {
            Ok(fate) => fate,
            Err(failure) => return Word::Unknown { reason: chain(&failure) },
        };
        if fate != Fate::Absent {
            *self = Self::default();
        }
        match fate {
            Fate::Gone { state } => Word::Gone { reason: format!("{instance} is {state}") },
            Fate::Stopped { state } => Word::Stopped { state },
            Fate::MayRun { state } => Word::MayRun { state },
            Fate::Absent => {
                let absent = now.duration_since(*self.since.get_or_insert(now));
                self.answers += 1;
                if absent >= ABSENCE && self.answers >= ABSENCES {
                    let seconds = absent.as_secs();
                    Word::Gone {
                        reason: format!("account {} has had no {instance} for {seconds} s", instance.account()),
                    }
                } else {
                    let (seconds, account) = (ABSENCE.as_secs(), instance.account());
                    let reason = format!(
                        "account {account} has no {instance}; it counts as gone if that stays so for {seconds} s"
                    );
                    Word::Unknown { reason }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Mutex;

    use futures_util::FutureExt as _;
    use futures_util::future::BoxFuture;

    use super::*;
    use crate::notice::Cloud;
    use crate::provider::Providers;

    /// A cloud that says these things in turn, and then nothing any more.
    struct Cumulus(Mutex<VecDeque<Result<Fate, ProviderError>>>);

    impl Provider for Cumulus {
        fn cloud(&self) -> Cloud {
            Cloud::Aws
        }

        fn ask<'a>(&'a self, _: &'a Instance) -> BoxFuture<'a, Result<Fate, ProviderError>> {
            let answer = self.0.lock().unwrap().pop_front().expect("asked too often");
            async { answer }.boxed()
        }
    }

    fn instance() -> Instance {
        Instance::aws("123456789012", "eu-central-1", "i-1234567890abcdef0").unwrap()
    }

    fn inquiry(answers: impl IntoIterator<Item = Result<Fate, ProviderError>>) -> Inquiry {
        let cumulus: Arc<dyn Provider> = Arc::new(Cumulus(Mutex::new(answers.into_iter().collect())));
        Providers::from_iter([cumulus]).inquire(Some(instance()))
    }

    fn may_run() -> Result<Fate, ProviderError> {
        Ok(Fate::MayRun { state: "running".to_owned() })
    }

    fn failure() -> Result<Fate, ProviderError> {
        Err(ProviderError::OtherAccount { instance: Box::new(instance()), ours: "210987654321".to_owned() })
    }

    #[tokio::test]
    async fn only_what_never_comes_back_is_gone() {
        let (stopped, gone) =
            (Fate::Stopped { state: "stopped".to_owned() }, Fate::Gone { state: "terminated".to_owned() });
        let mut inquiry = inquiry([may_run(), Ok(stopped), failure(), Ok(gone)]);
        let (start, mut words) = (Instant::now(), Vec::new());
        for n in 0..4 {
            words.push(inquiry.word_by(|| start + PACE.1 * n).await);
        }
        assert_eq!(words.iter().map(Word::is_gone).collect::<Vec<_>>(), [false, false, false, true]);
        let fence: Vec<protocol::Instance> = words.iter().map(Into::into).collect();
        use protocol::Instance::{Gone, MayRun, Stopped, Unknown};
        assert_eq!(fence, [MayRun, Stopped, Unknown, Gone]);
        assert_eq!(words[1].to_string(), "stopped: does not run, but may be started again");
        assert!(words[2].to_string().contains("use a role in account 123456789012"), "{}", words[2]);
        assert_eq!(words[3].to_string(), "gone for good: aws i-1234567890abcdef0 in eu-central-1 is terminated");
    }

    #[tokio::test]
    async fn a_cloud_is_asked_at_its_own_pace_and_not_at_ours() {
        // At 0, 5, 15, 35 and 65 s; a sixth question has no answer.
        let mut inquiry = inquiry(std::iter::repeat_with(may_run).take(5));
        let start = Instant::now();
        for n in 0..140 {
            let word = inquiry.word_by(|| start + Duration::from_millis(500) * n).await;
            assert_eq!(word, Word::MayRun { state: "running".to_owned() });
        }
    }

    #[tokio::test]
    async fn an_absent_instance_is_gone_when_it_stays_absent() {
        let mut inquiry = inquiry(std::iter::repeat_with(|| Ok(Fate::Absent)).take(100));
        let (start, mut passed) = (Instant::now(), Duration::ZERO);
        while !inquiry.word_by(|| start + passed).await.is_gone() {
            passed += Duration::from_secs(1);
        }
        assert!((ABSENCE..=ABSENCE + PACE.1).contains(&passed), "{passed:?}");
    }

    #[tokio::test]
    async fn one_sight_of_it_or_a_long_sleep_makes_absence_start_anew() {
        let mut inquiry = inquiry([Ok(Fate::Absent), may_run(), Ok(Fate::Absent), Ok(Fate::Absent)]);
        let start = Instant::now();
        for n in 0..4 {
            assert!(!inquiry.word_by(|| start + ABSENCE * 10 * n).await.is_gone());
        }
    }

    #[tokio::test]
    async fn without_an_instance_or_a_provider_the_reason_is_said() {
        let nothing = Providers::default();
        let word = nothing.inquire(None).word().await;
        assert!(matches!(&word, Word::Unknown { reason } if reason.contains("did not say which instance")), "{word}");
        let word = nothing.inquire(Some(instance())).word().await;
        assert!(matches!(&word, Word::Unknown { reason } if reason.contains("[provider.aws] is off")), "{word}");
    }
}
