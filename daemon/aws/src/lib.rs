//! What Amazon EC2's API says of instances, what a queue of SQS holds, and whom an Auto Scaling group waits for, through AWS's own SDK.
//!
//! A crate of its own because of that SDK: it takes minutes to build, so it must not be rebuilt with anything that changes
//! often, nor stand in the way of whoever builds the daemon without it. It knows nothing of migrations; what an answer means for
//! them is said in the daemon's `provider`.
//!
//! Calls (for the queue's see [`Queue`], for the group's [`AutoScaling`]):
//! - `DescribeInstances` with one id or by a tag, which needs the permission `ec2:DescribeInstances`;
//! - `CreateFleet`, which launches instances and needs `ec2:CreateFleet`, `ec2:RunInstances` and `ec2:CreateTags`, and
//!   `iam:PassRole` for a template with a role;
//! - `DescribeNetworkInterfaces`, `AssignPrivateIpAddresses` and `UnassignPrivateIpAddresses`, each with the permission of its name;
//! - `DescribeSpotPriceHistory` and `GetSpotPlacementScores`, which need the permissions of their names;
//! - `GetCallerIdentity`, which needs none ("No permissions are required", AWS STS API Reference).
//!
//! Credentials, profiles and the variables `AWS_ENDPOINT_URL`, `AWS_ENDPOINT_URL_EC2` and `AWS_ENDPOINT_URL_STS` are
//! the SDK's: environment, `~/.aws`, web identity, container, and at last the role of the instance. No proxy is used: what
//! stands between is one more that could answer for EC2.

mod addresses;
mod autoscaling;
mod error;
mod fleet;
mod market;
mod sqs;
mod tags;
#[cfg(test)]
mod tests;

use std::time::Duration;

use aws_config::default_provider::credentials::DefaultCredentialsChain;
use aws_config::imds;
use aws_config::provider_config::ProviderConfig;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, ConfigLoader, Region, SdkConfig};
use aws_sdk_ec2::config::{Credentials, SharedHttpClient};
use aws_sdk_ec2::error::ProvideErrorMetadata;
use aws_sdk_ec2::operation::describe_instances::DescribeInstancesOutput;
use aws_sdk_ec2::types::{Instance, InstanceStateName};
use aws_smithy_http_client::Builder as HttpClient;
use aws_smithy_http_client::tls::{Provider as Tls, rustls_provider::CryptoMode};
use tokio::time::timeout;

pub use addresses::Interface;
pub use autoscaling::{AutoScaling, Hook, Membership, Waiting};
pub use error::Error;
pub use fleet::{FleetError, Launched, Market, Order};
pub use sqs::{Message, Queue};
pub use tags::Tagged;

/// Time that one question may take, with credentials, connection and retries.
pub const LIMIT: Duration = Duration::from_secs(5);

/// Attempts at one question: the second is for a connection that was closed while idle and for a passing 503. Whoever needs
/// to know asks again anyway, and more attempts would only use up an account's request rate.
const ATTEMPTS: u32 = 2;

/// Between the two, at most.
const BACKOFF: Duration = Duration::from_millis(200);

/// EC2's code for an id that it does not know, in this region and for these credentials.
const NOT_FOUND: &str = "InvalidInstanceID.NotFound";

/// An instance's state, by EC2's own names (`InstanceState` in the Amazon EC2 API Reference).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InstanceState {
    /// It is being started.
    Pending,
    /// It runs.
    Running,
    /// It is being stopped or hibernated; its programs may still run.
    Stopping,
    /// It does not run, and can be started again. So is a hibernated one.
    Stopped,
    /// It is being terminated; its programs may still run.
    ShuttingDown,
    /// It "has been permanently deleted and cannot be started" (Amazon EC2 User Guide, "Instance state changes").
    Terminated,
    /// A state that did not exist when this was written.
    Other(String),
}

/// Where to ask, and as whom.
#[derive(Debug, Clone, Default)]
pub enum Access {
    /// As environment, profile or the instance's role say.
    #[default]
    Environment,
    /// At an imitation of EC2.
    Imitation {
        /// Base URL for all services, such as `http://127.0.0.1:5000`.
        endpoint: String,
        /// Access key id and secret; an imitation takes any.
        keys: (String, String),
    },
}

/// EC2's API. Asks nothing before it is asked, and holds no connection open for long.
#[derive(Debug, Clone)]
pub struct Ec2 {
    config: SdkConfig,
    limit: Duration,
}

impl Ec2 {
    /// Reads environment and profile files; credentials are looked for with the first question.
    pub async fn new(access: Access) -> Self {
        Self::with_limit(access, LIMIT).await
    }

    async fn with_limit(access: Access, limit: Duration) -> Self {
        Self { config: sdk(access, limit).await, limit }
    }

    /// The state of the instance with this id in this region; `None` when EC2 says that these credentials' account has no such
    /// instance there. Takes 5 s at most ([`LIMIT`]).
    ///
    /// An answer that leaves the instance out is an error, not `None`: "If you specify an instance that you do not own, it is
    /// not included in the output" (DescribeInstances in the API Reference).
    ///
    /// # Errors
    /// Everything that keeps EC2 from saying it.
    pub async fn instance_state(&self, region: &str, id: &str) -> Result<Option<InstanceState>, Error> {
        let ec2 = self.client(region);
        match timeout(self.limit, ec2.describe_instances().instance_ids(id).send()).await {
            Err(_) => Err(Error::TimedOut { limit: self.limit }),
            Ok(Ok(answer)) => read(&answer, id).map(Some),
            Ok(Err(error)) if error.code() == Some(NOT_FOUND) => Ok(None),
            Ok(Err(error)) => Err(Error::of("ec2:DescribeInstances", self.limit, error)),
        }
    }

    fn client(&self, region: &str) -> aws_sdk_ec2::Client {
        let config = aws_sdk_ec2::config::Builder::from(&self.config).region(Region::new(region.to_owned())).build();
        aws_sdk_ec2::Client::from_conf(config)
    }

    /// The twelve digits of the account that these credentials belong to, as STS in this region says.
    ///
    /// # Errors
    /// Everything that keeps STS from saying it.
    pub async fn account(&self, region: &str) -> Result<String, Error> {
        let config = aws_sdk_sts::config::Builder::from(&self.config).region(Region::new(region.to_owned())).build();
        let sts = aws_sdk_sts::Client::from_conf(config);
        let asked = timeout(self.limit, sts.get_caller_identity().send()).await;
        match asked.map_err(|_| Error::TimedOut { limit: self.limit })? {
            Ok(identity) => identity.account.ok_or(Error::Nonsense { detail: "STS names no account".to_owned() }),
            Err(error) => Err(Error::of("sts:GetCallerIdentity", self.limit, error)),
        }
    }
}

/// What every client of one of AWS's services is made of.
async fn sdk(access: Access, limit: Duration) -> SdkConfig {
    let loader = match access {
        Access::Environment => {
            let config = ProviderConfig::without_region().with_http_client(http());
            // The SDK's own patience is four attempts and tens of seconds. A metadata service is on the same machine.
            let second = Duration::from_secs(1);
            let role = imds::Client::builder()
                .configure(&config)
                .max_attempts(1)
                .connect_timeout(second)
                .read_timeout(second)
                .build();
            let chain = DefaultCredentialsChain::builder().configure(config).imds_client(role).build().await;
            aws_config::defaults(BehaviorVersion::latest()).credentials_provider(chain)
        }
        Access::Imitation { endpoint, keys: (id, secret) } => aws_config::defaults(BehaviorVersion::latest())
            .endpoint_url(endpoint)
            .credentials_provider(Credentials::new(id, secret, None, None, "imitation")),
    };
    load(loader, limit).await
}

/// With somebody's credentials, and our own patience.
async fn load(loader: ConfigLoader, limit: Duration) -> SdkConfig {
    let timeouts = TimeoutConfig::builder()
        .connect_timeout(limit * 2 / 5)
        .operation_attempt_timeout(limit * 2 / 5)
        .operation_timeout(limit)
        .build();
    let retries = RetryConfig::standard().with_max_attempts(ATTEMPTS).with_initial_backoff(BACKOFF);
    // Every question names its own region; without one the SDK would ask the metadata service.
    let region = Region::from_static("us-east-1");
    let loader = loader.http_client(http()).region(region).retry_config(retries).timeout_config(timeouts);
    loader.load().await
}

fn http() -> SharedHttpClient {
    HttpClient::new().tls_provider(Tls::Rustls(CryptoMode::Ring)).build_https()
}

/// The one instance that was asked for.
fn read(answer: &DescribeInstancesOutput, id: &str) -> Result<InstanceState, Error> {
    let mut instances = answer.reservations().iter().flat_map(|reservation| reservation.instances());
    let found = instances.find(|instance| instance.instance_id() == Some(id)).ok_or(Error::LeftOut)?;
    state(found).ok_or_else(|| Error::Nonsense { detail: "the instance has no state".to_owned() })
}

/// An instance's state; none when the answer has none.
fn state(instance: &Instance) -> Option<InstanceState> {
    Some(match instance.state()?.name()? {
        InstanceStateName::Pending => InstanceState::Pending,
        InstanceStateName::Running => InstanceState::Running,
        InstanceStateName::Stopping => InstanceState::Stopping,
        InstanceStateName::Stopped => InstanceState::Stopped,
        InstanceStateName::ShuttingDown => InstanceState::ShuttingDown,
        InstanceStateName::Terminated => InstanceState::Terminated,
        other => InstanceState::Other(other.as_str().to_owned()),
    })
}
