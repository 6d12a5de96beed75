//! Amazon EC2, by `DescribeInstances`.

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use spothop_aws::{Access, InstanceState};

use super::{Fate, Instance, Provider, ProviderError};
use crate::notice::Cloud;

/// The account that this host's credentials belong to, at EC2.
pub struct Ec2(spothop_aws::Ec2);

impl Ec2 {
    /// Asks nothing yet.
    pub async fn new(access: Access) -> Self {
        Self(spothop_aws::Ec2::new(access).await)
    }

    async fn fate(&self, instance: &Instance) -> Result<Fate, ProviderError> {
        if let Some(state) = self.0.instance_state(instance.region(), instance.id()).await? {
            return Ok(fate(state));
        }
        // Absence means something only in the instance's own account. It is not remembered: credentials change.
        let ours = self.0.account(instance.region()).await?;
        if ours == instance.account() {
            return Ok(Fate::Absent);
        }
        Err(ProviderError::OtherAccount { instance: Box::new(instance.clone()), ours })
    }
}

/// The table in the room's description.
fn fate(state: InstanceState) -> Fate {
    let may_run = |state: &str| Fate::MayRun { state: state.to_owned() };
    match state {
        InstanceState::Terminated => Fate::Gone { state: "terminated".to_owned() },
        InstanceState::Stopped => Fate::Stopped { state: "stopped".to_owned() },
        InstanceState::Pending => may_run("pending"),
        InstanceState::Running => may_run("running"),
        InstanceState::Stopping => may_run("stopping"),
        InstanceState::ShuttingDown => may_run("shutting-down"),
        InstanceState::Other(name) => Fate::MayRun { state: name },
    }
}

impl Provider for Ec2 {
    fn cloud(&self) -> Cloud {
        Cloud::Aws
    }

    fn ask<'a>(&'a self, instance: &'a Instance) -> BoxFuture<'a, Result<Fate, ProviderError>> {
        self.fate(instance).boxed()
    }
}

#[cfg(test)]
mod tests {
    use wiremock::matchers::{body_string_contains, method};
    use wiremock::{Mock, MockServer, ResponseTemplate};

    use super::*;

    /// An account in which there are no instances.
    async fn empty_account(account: &str) -> (MockServer, Ec2) {
        let server = MockServer::start().await;
        let not_found = "<Response><Errors><Error><Code>InvalidInstanceID.NotFound</Code><Message>does not exist</Message>\
                         </Error></Errors></Response>";
        let describe = Mock::given(method("POST")).and(body_string_contains("Action=DescribeInstances"));
        describe.respond_with(ResponseTemplate::new(400).set_body_raw(not_found, "text/xml")).mount(&server).await;
        let identity = format!(
            "<GetCallerIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><GetCallerIdentityResult>\
             <Account>{account}</Account></GetCallerIdentityResult></GetCallerIdentityResponse>"
        );
        let caller = Mock::given(method("POST")).and(body_string_contains("Action=GetCallerIdentity"));
        caller.respond_with(ResponseTemplate::new(200).set_body_raw(identity, "text/xml")).mount(&server).await;
        let keys = ("key".to_owned(), "secret".to_owned());
        let ec2 = Ec2::new(Access::Imitation { endpoint: server.uri(), keys }).await;
        (server, ec2)
    }

    #[tokio::test]
    async fn an_instance_is_absent_only_from_its_own_account() {
        let instance = Instance::aws("123456789012", "eu-central-1", "i-1234567890abcdef0").unwrap();
        let (_server, ours) = empty_account("123456789012").await;
        assert_eq!(ours.ask(&instance).await.unwrap(), Fate::Absent);
        let (_server, other) = empty_account("210987654321").await;
        let error = other.ask(&instance).await.expect_err("another account");
        assert!(matches!(error, ProviderError::OtherAccount { .. }), "{error}");
    }

    #[test]
    fn nothing_but_terminated_is_gone() {
        let states = [
            InstanceState::Pending,
            InstanceState::Running,
            InstanceState::Stopping,
            InstanceState::ShuttingDown,
            InstanceState::Other("levitating".to_owned()),
        ];
        for state in states {
            assert!(matches!(fate(state.clone()), Fate::MayRun { .. }), "{state:?}");
        }
        assert!(matches!(fate(InstanceState::Stopped), Fate::Stopped { .. }));
        assert!(matches!(fate(InstanceState::Terminated), Fate::Gone { .. }));
    }
}
