//! The lifecycle hook by which an Auto Scaling group waits before it terminates an instance.
//!
//! Calls, all of which need the permission of their name:
//! - `autoscaling:DescribeAutoScalingInstances` and `autoscaling:DescribeLifecycleHooks`, which know no single resources;
//! - `autoscaling:RecordLifecycleActionHeartbeat`, which begins the hook's time anew: up to 48 h, or a hundred times that time if that is less;
//! - `autoscaling:CompleteLifecycleAction`, after which the group goes on.
//!
//! `AWS_ENDPOINT_URL_AUTO_SCALING` is the SDK's.

use std::future::Future;
use std::time::Duration;

use aws_config::{Region, SdkConfig};
use aws_sdk_autoscaling::error::{ProvideErrorMetadata, SdkError};
use tokio::time::timeout;

use crate::{Access, Error, LIMIT, sdk};

/// What Auto Scaling answers, with the code `ValidationError`, about an instance that no hook holds. There is no code for it alone.
const NOTHING_WAITS: &str = "No active Lifecycle Action found";

/// Where an instance is in its group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Membership {
    /// The group's name.
    pub group: String,
    /// Its lifecycle state, such as `InService`, `Terminating:Wait`, `Terminating:Proceed`.
    pub state: String,
}

/// A hook of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hook {
    /// When it acts: `autoscaling:EC2_INSTANCE_TERMINATING` or `…_LAUNCHING`.
    pub transition: String,
    /// How long it waits for a heartbeat, or for the end: 30 s to 2 h.
    pub timeout: Option<Duration>,
}

/// An instance that a hook may hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// Where.
    pub region: String,
    /// The group's name.
    pub group: String,
    /// The hook's name.
    pub hook: String,
    /// The instance's id.
    pub instance: String,
}

/// Auto Scaling's API. Asks nothing before it is asked.
#[derive(Debug, Clone)]
pub struct AutoScaling {
    config: SdkConfig,
    limit: Duration,
}

impl AutoScaling {
    /// Reads environment and profile files; credentials are looked for with the first question.
    pub async fn new(access: Access) -> Self {
        Self { config: sdk(access, LIMIT).await, limit: LIMIT }
    }

    /// In which group an instance is, if in one.
    ///
    /// # Errors
    /// Everything that keeps Auto Scaling from saying it; so of the others.
    pub async fn membership(&self, region: &str, instance: &str) -> Result<Option<Membership>, Error> {
        let ask = self.client(region).describe_auto_scaling_instances().instance_ids(instance);
        let answer = self.in_time("autoscaling:DescribeAutoScalingInstances", ask.send()).await?;
        let found = answer.auto_scaling_instances().iter().find(|one| one.instance_id() == Some(instance));
        found
            .map(|one| {
                let (group, state) = (one.auto_scaling_group_name(), one.lifecycle_state());
                let lacking = || Error::Nonsense { detail: "an instance without a group or a state".to_owned() };
                let (group, state) = group.zip(state).ok_or_else(lacking)?;
                Ok(Membership { group: group.to_owned(), state: state.to_owned() })
            })
            .transpose()
    }

    /// A hook by its name; `None` when the group has no such one.
    ///
    /// # Errors
    /// See [`AutoScaling::membership`].
    pub async fn hook(&self, region: &str, group: &str, hook: &str) -> Result<Option<Hook>, Error> {
        let ask = self.client(region).describe_lifecycle_hooks().auto_scaling_group_name(group);
        let ask = ask.lifecycle_hook_names(hook);
        let answer = self.in_time("autoscaling:DescribeLifecycleHooks", ask.send()).await?;
        let found = answer.lifecycle_hooks().iter().find(|one| one.lifecycle_hook_name() == Some(hook));
        Ok(found.map(|one| Hook {
            transition: one.lifecycle_transition().unwrap_or_default().to_owned(),
            timeout: one.heartbeat_timeout().and_then(|seconds| u64::try_from(seconds).ok()).map(Duration::from_secs),
        }))
    }

    /// Has the hook wait anew. Returns whether it waits at all: not yet, or not any more, if not.
    ///
    /// # Errors
    /// See [`AutoScaling::membership`].
    pub async fn heartbeat(&self, of: &Waiting) -> Result<bool, Error> {
        let beat = self.client(&of.region).record_lifecycle_action_heartbeat();
        let beat = beat.auto_scaling_group_name(&of.group).lifecycle_hook_name(&of.hook).instance_id(&of.instance);
        self.unless_nothing_waits("autoscaling:RecordLifecycleActionHeartbeat", beat.send()).await
    }

    /// Ends the waiting: the group goes on (`CONTINUE`, which for an instance that ends differs from `ABANDON` only in that its other hooks
    /// are heard too). Returns whether it waited.
    ///
    /// # Errors
    /// See [`AutoScaling::membership`].
    pub async fn complete(&self, of: &Waiting) -> Result<bool, Error> {
        let end = self.client(&of.region).complete_lifecycle_action().lifecycle_action_result("CONTINUE");
        let end = end.auto_scaling_group_name(&of.group).lifecycle_hook_name(&of.hook).instance_id(&of.instance);
        self.unless_nothing_waits("autoscaling:CompleteLifecycleAction", end.send()).await
    }

    fn client(&self, region: &str) -> aws_sdk_autoscaling::Client {
        let builder = aws_sdk_autoscaling::config::Builder::from(&self.config);
        aws_sdk_autoscaling::Client::from_conf(builder.region(Region::new(region.to_owned())).build())
    }

    async fn in_time<T, E, R>(
        &self,
        action: &'static str,
        asked: impl Future<Output = Result<T, SdkError<E, R>>>,
    ) -> Result<T, Error>
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
        R: std::fmt::Debug + Send + Sync + 'static,
    {
        let answer = timeout(self.limit, asked).await.map_err(|_| Error::TimedOut { limit: self.limit })?;
        answer.map_err(|error| Error::of(action, self.limit, error))
    }

    async fn unless_nothing_waits<T, E, R>(
        &self,
        action: &'static str,
        asked: impl Future<Output = Result<T, SdkError<E, R>>>,
    ) -> Result<bool, Error>
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
        R: std::fmt::Debug + Send + Sync + 'static,
    {
        match self.in_time(action, asked).await {
            Ok(_) => Ok(true),
            Err(Error::Refused { code, message })
                if code == "ValidationError" && message.starts_with(NOTHING_WAITS) =>
            {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use spothop_tests::autoscaling::{Group, Imitation, State};
    use wiremock::matchers::method;
    use wiremock::{Mock, MockServer, ResponseTemplate};

    use super::*;

    const REGION: &str = "eu-central-1";
    const ID: &str = "i-1234567890abcdef0";

    async fn at(endpoint: String) -> AutoScaling {
        AutoScaling::new(Access::Imitation { endpoint, keys: ("key".to_owned(), "secret".to_owned()) }).await
    }

    fn waiting(hook: &str) -> Waiting {
        let [region, group, hook, instance] = [REGION, "spot", hook, ID].map(str::to_owned);
        Waiting { region, group, hook, instance }
    }

    /// A group `spot` with the hook `drain`, and the instance in it.
    async fn imitation() -> (Imitation, AutoScaling) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let group = Group { name: "spot".to_owned(), hook: "drain".to_owned(), timeout: Duration::from_secs(90) };
        let imitation = Imitation::start(listener, group, ID).unwrap();
        let api = at(imitation.endpoint()).await;
        (imitation, api)
    }

    #[tokio::test]
    async fn a_hook_holds_from_its_beginning_to_its_completion() {
        let (imitation, api) = imitation().await;
        let member = api.membership(REGION, ID).await.unwrap().expect("a member");
        assert_eq!((member.group.as_str(), member.state.as_str()), ("spot", "InService"));
        assert_eq!(api.membership(REGION, "i-00000000000000000").await.unwrap(), None);
        let hook = api.hook(REGION, "spot", "drain").await.unwrap().expect("a hook");
        assert_eq!(hook.timeout, Some(Duration::from_secs(90)));
        assert_eq!(hook.transition, "autoscaling:EC2_INSTANCE_TERMINATING");
        assert_eq!(api.hook(REGION, "spot", "other").await.unwrap(), None);
        let drain = waiting("drain");
        assert!(!api.heartbeat(&drain).await.unwrap(), "it does not wait yet");
        assert!(!api.complete(&drain).await.unwrap());
        imitation.terminate();
        assert!(api.heartbeat(&drain).await.unwrap());
        assert!(api.complete(&drain).await.unwrap());
        assert!(!api.complete(&drain).await.unwrap(), "it waits no more");
        let State { heartbeats, completed, .. } = imitation.state();
        assert_eq!(heartbeats.len(), 1);
        assert!(completed.is_some());
        assert_eq!(api.membership(REGION, ID).await.unwrap().expect("a member").state, "Terminating:Proceed");
    }

    #[tokio::test]
    async fn other_refusals_are_errors() {
        let (imitation, api) = imitation().await;
        imitation.terminate();
        let error =
            api.heartbeat(&Waiting { group: "other".to_owned(), ..waiting("drain") }).await.expect_err("no group");
        assert!(matches!(&error, Error::Refused { code, .. } if code == "ValidationError"), "{error:?}");
        let server = MockServer::start().await;
        let refusal = "<ErrorResponse xmlns=\"http://autoscaling.amazonaws.com/doc/2011-01-01/\"><Error><Type>Sender</Type>\
                       <Code>AccessDenied</Code><Message>User is not authorized</Message></Error></ErrorResponse>";
        let answer = ResponseTemplate::new(403).set_body_raw(refusal, "text/xml");
        Mock::given(method("POST")).respond_with(answer).mount(&server).await;
        let error = at(server.uri()).await.complete(&waiting("drain")).await.expect_err("a refusal");
        assert!(matches!(error, Error::Forbidden { action: "autoscaling:CompleteLifecycleAction", .. }), "{error:?}");
    }
}
