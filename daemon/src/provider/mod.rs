//! What a cloud says of an instance: the third of the fence's three words (the source's own, the provider's, the deadline's).
//!
//! A target that has restored and then lost its source may let the tasks run only when the source cannot run any more. Where no
//! notice has a deadline (a migration by hand), that word can only come from whoever owns the machine. [`Provider`] asks one
//! cloud one question; [`Inquiry`] asks it on, at a pace that a cloud does not mind, and makes a [`Word`] of the answers.
//!
//! | EC2's state | [`Fate`] | why |
//! |---|---|---|
//! | `terminated` | [`Gone`](Fate::Gone) | "permanently deleted and cannot be started": the one state that nothing leads out of, so that an old answer is as good as a new one |
//! | `shutting-down`, `stopping` | [`MayRun`](Fate::MayRun) | the system is being shut down, for minutes if it likes; its programs run until then |
//! | `pending`, `running`, any that is new | [`MayRun`](Fate::MayRun) | |
//! | `stopped`, hibernated too | [`Stopped`](Fate::Stopped) | "can be started at any time", with its disks and therefore with its journal, and hibernated with its memory |
//! | no such instance | [`Absent`](Fate::Absent) | see below |
//!
//! **Stopped is not gone.** What runs at the target while the source is stopped may meet its double when somebody (or EC2, for
//! a persistent spot request) starts the source again. A fence must not let the tasks run for it, unless it has another way to keep
//! the source from going on when it comes back.
//!
//! **Absent is not gone either, at first.** A terminated instance is shown for about an hour and then is unknown
//! (`InvalidInstanceID.NotFound`), so the answer is what a target hears that was down for long. But the same answer comes
//! for an id of another account or region, and, by AWS's own word, for instances that run: "This does not mean the
//! instance does not exist", "Your instance might still be running" (Amazon EC2 Developer Guide, "Eventual consistency in the
//! Amazon EC2 API"). So it counts only when the credentials are of the very account that the source named (the provider looks, and
//! says [`ProviderError::OtherAccount`] if not), and only when it was the sole answer for [`ABSENCE`].
//!
//! No answer at all (no permission, no network, throttled) is [`Word::Unknown`] with its reason, and never a reason to run.

#[cfg(feature = "aws")]
mod ec2;
mod inquiry;
mod instance;

use std::sync::Arc;

use futures_util::future::BoxFuture;

pub use inquiry::{ABSENCE, Inquiry, PACE, Word};
pub use instance::{BadInstance, Instance};

#[cfg(feature = "aws")]
pub use ec2::Ec2;

use crate::config;
use crate::notice::Cloud;

/// What a cloud says of an instance at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// It does not run, and never will again.
    Gone {
        /// The cloud's own name of the state, such as `terminated`.
        state: String,
    },
    /// It does not run now, and may be started again with its disks.
    Stopped {
        /// The cloud's own name of the state, such as `stopped`.
        state: String,
    },
    /// It runs, or its programs may.
    MayRun {
        /// The cloud's own name of the state, such as `running`.
        state: String,
    },
    /// The account that the instance is said to belong to has no such instance in that region.
    Absent,
}

/// Why a cloud did not say it. None of it says anything about the instance.
#[derive(Debug, thiserror::Error)]
pub enum ProviderError {
    /// The cloud is AWS, and it did not answer or refused to.
    #[cfg(feature = "aws")]
    #[error(transparent)]
    Aws(#[from] spothop_aws::Error),
    /// The credentials see another account's instances.
    #[error(
        "{instance} belongs to account {theirs}, and this host's credentials to {ours}: they cannot see it; use a role in account {theirs}",
        theirs = instance.account()
    )]
    OtherAccount {
        /// The instance that was asked about.
        instance: Box<Instance>,
        /// The account of the credentials.
        ours: String,
    },
}

/// A cloud that can be asked about instances. Object-safe: the daemon holds `Arc<dyn Provider>`.
pub trait Provider: Send + Sync {
    /// Whose instances it knows.
    fn cloud(&self) -> Cloud;

    /// What it says of the instance, which is one of [`cloud`](Self::cloud)'s. Takes seconds at most, also when nobody answers. [`Fate::Absent`]
    /// only if it is known that the credentials would see the instance.
    ///
    /// # Errors
    /// It does not say, and why, with what to do about it.
    fn ask<'a>(&'a self, instance: &'a Instance) -> BoxFuture<'a, Result<Fate, ProviderError>>;
}

/// The clouds that this host may ask. Cheap to clone.
#[derive(Clone, Default)]
pub struct Providers(Vec<Arc<dyn Provider>>);

impl Providers {
    /// Those that the configuration allows and this program was built with. Asks nothing yet.
    pub async fn new(config: &config::Provider) -> Self {
        let mut providers: Vec<Arc<dyn Provider>> = Vec::new();
        #[cfg(feature = "aws")]
        if config.aws.enabled {
            providers.push(Arc::new(Ec2::new(spothop_aws::Access::Environment).await));
        }
        #[cfg(not(feature = "aws"))]
        let _ = (config, &mut providers);
        Self(providers)
    }

    /// The one that knows this cloud's instances.
    #[must_use]
    pub fn of(&self, cloud: Cloud) -> Option<Arc<dyn Provider>> {
        self.0.iter().find(|provider| provider.cloud() == cloud).cloned()
    }

    /// Begins to ask about an instance, which may be none that anybody knows. Asks nothing yet.
    #[must_use]
    pub fn inquire(&self, instance: Option<Instance>) -> Inquiry {
        let provider = instance.as_ref().and_then(|instance| self.of(instance.cloud()));
        Inquiry::new(provider, instance)
    }
}

impl FromIterator<Arc<dyn Provider>> for Providers {
    fn from_iter<T: IntoIterator<Item = Arc<dyn Provider>>>(providers: T) -> Self {
        Self(providers.into_iter().collect())
    }
}
